//! What the tests of this part share: reading a topic back without our own consumer, and bounded waits.

use std::future::Future;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::EmbeddedCluster;
use super::admin::{Deadline, blocking};

/// Longest wait for anything in a test.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `work`, but not for ever.
pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it ends in time")
}

/// Waits until `condition` holds.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Deadline::after(PATIENCE);
    while !condition() {
        assert!(!deadline.passed(), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A record as librdkafka gives it.
pub(super) struct Raw {
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Vec<u8>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

/// All records of `topic`, of which there must be `expected` and no more.
pub(super) async fn read_back(cluster: &EmbeddedCluster, topic: &str, expected: usize) -> Vec<Raw> {
    let (brokers, topic) = (cluster.brokers().to_owned(), topic.to_owned());
    blocking(move || {
        let reader: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "read-back")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let metadata = reader.fetch_metadata(Some(&topic), PATIENCE).unwrap();
        let mut assignment = TopicPartitionList::new();
        let mut end = 0;
        for partition in metadata.topics()[0].partitions() {
            let (low, high) = reader
                .fetch_watermarks(&topic, partition.id(), PATIENCE)
                .unwrap();
            end += usize::try_from(high - low).unwrap();
            assignment
                .add_partition_offset(&topic, partition.id(), Offset::Beginning)
                .unwrap();
        }
        assert_eq!(end, expected, "records in {topic}");
        reader.assign(&assignment).unwrap();
        let deadline = Deadline::after(PATIENCE);
        let mut records = Vec::new();
        while records.len() < expected {
            assert!(!deadline.passed(), "read {} of {expected}", records.len());
            let Some(message) = reader.poll(Duration::from_millis(100)) else {
                continue;
            };
            let message = message.unwrap();
            records.push(Raw {
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().unwrap_or_default().to_vec(),
                headers: message.headers().map_or_else(Vec::new, |headers| {
                    headers
                        .iter()
                        .map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec()))
                        .collect()
                }),
            });
        }
        records
    })
    .await
}
