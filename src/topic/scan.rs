//! One reading of a whole topic: from its beginning to the ends that it had when the reading began.
//!
//! Owns which partitions are read and when each is done. Joins no group and commits nothing, so it takes
//! no partition from anybody and can be repeated. Refuses to choose among records: its reader does.
//!
//! Guarantees: records of a partition come in order; what is appended after the start is not read, so the
//! reading ends; at most [`AHEAD`] records, and what librdkafka reads ahead, wait in memory. Dropping it
//! ends the reading.
//!
//! Fails with [`Error`], after which there are no more records: nothing is passed over to go on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::admin::{self, Deadline};
use super::{Error, Quiet, Record, Settings};

/// librdkafka assigns no partitions without a group's name. Nothing is ever stored under it.
const GROUP: &str = "convolake-scan";
/// Records read ahead of whoever takes them.
const AHEAD: usize = 64;
/// Bytes that librdkafka sizes its own reading ahead by.
const IN_FLIGHT_BYTES: u32 = 16 * 1024 * 1024;
/// Longest time to find the partitions and their ends.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of the brokers before the reading fails.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest poll: bounds how late a dropped reader is seen.
const POLL: Duration = Duration::from_millis(100);

/// A reading under way.
#[derive(Debug)]
pub struct Scan {
    records: mpsc::Receiver<Result<Record, Error>>,
    /// Awaited after the last record: a reading that panicked must not look like one that is done.
    reading: Option<JoinHandle<()>>,
}

impl Scan {
    /// Finds the ends of `topic` and begins to read.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::UnknownTopic`], [`Error::NoLeader`], [`Error::NotAllowed`], a
    /// wrong setting; within 10 s.
    pub async fn start(settings: &Settings, topic: &str) -> Result<Scan, Error> {
        let mut config = settings.consumer(Some((GROUP, IN_FLIGHT_BYTES)))?;
        config.set("enable.partition.eof", "true");
        let (brokers, topic) = (settings.brokers.clone(), topic.to_owned());
        let begin = move || -> Result<Reading, Error> {
            let consumer: BaseConsumer<Quiet> =
                config
                    .create_with_context(Quiet)
                    .map_err(|error| Error::Client {
                        reason: error.to_string(),
                    })?;
            let deadline = Deadline::after(START_TIMEOUT);
            admin::check_topic(consumer.client(), &brokers, &topic, deadline)?;
            let ends = ends(&consumer, &brokers, &topic, deadline)?;
            Ok(Reading {
                consumer,
                brokers,
                topic,
                ends,
            })
        };
        let reading = admin::blocking(begin).await?;
        let (sender, records) = mpsc::channel(AHEAD);
        let reading = tokio::task::spawn_blocking(move || reading.run(&sender));
        Ok(Scan {
            records,
            reading: Some(reading),
        })
    }

    /// The next record; `None` after the last.
    ///
    /// # Errors
    /// As the file's header says.
    pub async fn next(&mut self) -> Result<Option<Record>, Error> {
        if let Some(record) = self.records.recv().await {
            return record.map(Some);
        }
        let Some(reading) = self.reading.take() else {
            return Ok(None);
        };
        match reading
            .await
            .map_err(tokio::task::JoinError::try_into_panic)
        {
            Ok(()) => Ok(None),
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // Cancelled by the end of the runtime.
            Err(Err(_)) => Err(Error::Fatal {
                doing: "reading a topic",
                source: KafkaError::Canceled,
            }),
        }
    }
}

/// One past the last record, for each partition that has records.
fn ends(
    consumer: &BaseConsumer<Quiet>,
    brokers: &str,
    topic: &str,
    deadline: Deadline,
) -> Result<BTreeMap<i32, i64>, Error> {
    let unreachable = |error| admin::unreachable_error(brokers, START_TIMEOUT, Some(error));
    let metadata = consumer
        .fetch_metadata(Some(topic), deadline.left())
        .map_err(unreachable)?;
    let mut ends = BTreeMap::new();
    for partition in metadata.topics().iter().flat_map(|t| t.partitions()) {
        let (low, high) = consumer
            .fetch_watermarks(topic, partition.id(), deadline.left())
            .map_err(unreachable)?;
        if low < high {
            ends.insert(partition.id(), high);
        }
    }
    Ok(ends)
}

struct Reading {
    consumer: BaseConsumer<Quiet>,
    brokers: String,
    topic: String,
    /// Of the partitions that are not read to their end yet.
    ends: BTreeMap<i32, i64>,
}

impl Reading {
    fn run(mut self, sender: &mpsc::Sender<Result<Record, Error>>) {
        if let Err(error) = self.read(sender) {
            // Nobody is left to hear of it when the reader was dropped.
            let _ = sender.blocking_send(Err(error));
        }
    }

    fn read(&mut self, sender: &mpsc::Sender<Result<Record, Error>>) -> Result<(), Error> {
        let mut list = TopicPartitionList::with_capacity(self.ends.len());
        let fatal = |doing| move |source| Error::Fatal { doing, source };
        for partition in self.ends.keys() {
            list.add_partition_offset(&self.topic, *partition, Offset::Beginning)
                .map_err(fatal("assigning partitions"))?;
        }
        self.consumer
            .assign(&list)
            .map_err(fatal("assigning partitions"))?;
        let mut silent_since = Instant::now();
        while !self.ends.is_empty() && !sender.is_closed() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    silent_since = Instant::now();
                    let (partition, offset) = (message.partition(), message.offset());
                    let Some(end) = self.ends.get(&partition).copied() else {
                        continue;
                    };
                    if offset < end && sender.blocking_send(Ok(Record::copy(&message))).is_err() {
                        return Ok(());
                    }
                    if offset + 1 >= end {
                        self.ends.remove(&partition);
                    }
                }
                // The log's own end can lie behind its last record (a compacted log, a transaction's mark).
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    silent_since = Instant::now();
                    self.ends.remove(&partition);
                }
                Some(Err(error)) => self.judge(error)?,
                None => {}
            }
            if silent_since.elapsed() > SILENCE {
                return Err(admin::unreachable_error(&self.brokers, SILENCE, None));
            }
        }
        Ok(())
    }

    /// An error that ends the reading, or one that librdkafka gets over by itself.
    fn judge(&self, error: KafkaError) -> Result<(), Error> {
        use RDKafkaErrorCode as Code;
        let topic = self.topic.clone();
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(Error::Fatal {
                doing: "reading a topic",
                source: error,
            });
        }
        match error.rdkafka_error_code().unwrap_or(Code::Unknown) {
            // What stood at the beginning was deleted while it was read.
            Code::AutoOffsetReset | Code::OffsetOutOfRange => Err(Error::Position { topic }),
            Code::UnknownTopic | Code::UnknownTopicOrPartition => {
                Err(Error::UnknownTopic { topic })
            }
            code @ (Code::BadMessage | Code::InvalidMessage | Code::BadCompression) => {
                Err(Error::Corrupt {
                    topic,
                    source: code,
                })
            }
            code @ (Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
                Err(Error::NotAllowed {
                    doing: format!("reading {topic}"),
                    source: code,
                })
            }
            _ => {
                tracing::debug!(%error, "reading met an error that passes");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::topic::testing::within;
    use crate::topic::{EmbeddedCluster, Message, Publisher};

    const RECORDS: usize = 300;

    async fn publish(publisher: &Publisher, topic: &str, number: usize) {
        let key = number.to_string();
        let message = Message {
            topic,
            key: Some(key.as_bytes()),
            value: key.as_bytes(),
            headers: &[],
        };
        within(publisher.publish(&message)).await.unwrap();
    }

    async fn values(scan: &mut Scan) -> Vec<String> {
        let mut values = Vec::new();
        while let Some(record) = within(scan.next()).await.unwrap() {
            values.push(String::from_utf8(record.value.to_vec()).unwrap());
        }
        values
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_record_comes_once_and_what_is_appended_later_does_not() {
        let cluster = EmbeddedCluster::start(3, &["letters", "empty"]).unwrap();
        let settings = cluster.settings();
        let publisher = Publisher::start(&settings).unwrap();
        for number in 0..RECORDS {
            publish(&publisher, "letters", number).await;
        }
        for _ in 0..2 {
            let mut scan = within(Scan::start(&settings, "letters")).await.unwrap();
            publish(&publisher, "letters", RECORDS).await;
            let read = values(&mut scan).await;
            let distinct: BTreeSet<&String> = read.iter().collect();
            assert_eq!(distinct.len(), read.len(), "each record once");
            // The second reading has the one that was appended during the first.
            let late = read.iter().filter(|n| **n == RECORDS.to_string()).count();
            assert_eq!(read.len(), RECORDS + late);
            assert!(late <= 1);
        }
        let mut scan = within(Scan::start(&settings, "empty")).await.unwrap();
        assert_eq!(values(&mut scan).await, [""; 0]);
        within(publisher.close(Duration::from_secs(5)))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let cluster = EmbeddedCluster::start(1, &["letters"]).unwrap();
        let settings = cluster.settings();
        let error = within(Scan::start(&settings, "nothing")).await.unwrap_err();
        assert!(matches!(error, Error::UnknownTopic { .. }), "{error}");
        cluster.go_down();
        let error = within(Scan::start(&settings, "letters")).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
}
