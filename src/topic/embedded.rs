//! A Kafka cluster inside the process, for `convolake dev` and for tests: the real protocol on loopback.
//!
//! Owns one broker of librdkafka's mock cluster and its topics. Refuses to stand in for durability: it
//! keeps records in memory and drops the oldest beyond [`EMBEDDED_PARTITION_BYTES`] a partition, so a
//! reader that falls behind meets [`Error::OffsetOutOfRange`].
//!
//! It leaves out: creating topics by request, deleting records, replication, quotas, access control.

use std::fmt;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use uuid::Uuid;

use super::{Error, Quiet, Settings, notify};

/// What one partition keeps, bytes of stored batches (librdkafka 2.12, `rdkafka_mock.c`); also at most
/// 100,000 batches.
pub const EMBEDDED_PARTITION_BYTES: u64 = 5 * 1024 * 1024;

/// How long a member may be silent.
const SESSION_TIMEOUT: Duration = Duration::from_millis(3_000);
/// How often a member speaks up.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(300);
/// The one broker's number.
const BROKER: i32 = 1;

/// A cluster of one broker, which ends when this is dropped.
pub struct EmbeddedCluster {
    /// Owns the cluster; never produces.
    owner: BaseProducer<Quiet>,
    brokers: String,
    cluster_id: String,
}

impl EmbeddedCluster {
    /// Starts it with `topics`, each of `partitions` partitions.
    ///
    /// # Errors
    /// [`Error::Client`] where it cannot listen on loopback, or a topic's name is none.
    pub fn start(partitions: i32, topics: &[&str]) -> Result<EmbeddedCluster, Error> {
        let failed = |error: rdkafka::error::KafkaError| Error::Client {
            reason: error.to_string(),
        };
        let owner: BaseProducer<Quiet> = ClientConfig::new()
            .set("test.mock.num.brokers", "1")
            .set_log_level(RDKafkaLogLevel::Warning)
            .create_with_context(Quiet)
            .map_err(failed)?;
        notify::skip_group_delay(owner.client());
        for topic in topics {
            mock(&owner)
                .create_topic(topic, partitions, 1)
                .map_err(failed)?;
        }
        let brokers = mock(&owner).bootstrap_servers();
        Ok(EmbeddedCluster {
            brokers,
            cluster_id: format!("embedded-{}", Uuid::new_v4().simple()),
            owner,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Another one at every start: what a former start wrote is gone, and its positions with it.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// How to reach it. The mock cluster lets a rebalance last as long as the session, less a second,
    /// so sessions are short.
    pub fn settings(&self) -> Settings {
        let property = |name: &str, ms: Duration| (name.to_owned(), ms.as_millis().to_string());
        Settings {
            brokers: self.brokers.clone(),
            properties: vec![
                property("session.timeout.ms", SESSION_TIMEOUT),
                property("heartbeat.interval.ms", HEARTBEAT_INTERVAL),
            ],
            cluster: Some(self.cluster_id.clone()),
        }
    }

    /// Closes every connection and takes no new one, until [`come_up`](Self::come_up).
    pub fn go_down(&self) {
        // The one broker is 1; librdkafka knows no other reason to fail.
        let _ = mock(&self.owner).broker_down(BROKER);
    }

    /// Takes connections again; the records are still there.
    pub fn come_up(&self) {
        let _ = mock(&self.owner).broker_up(BROKER);
    }

    /// Makes another topic, of one partition.
    #[cfg(test)]
    pub(crate) fn add_topic(&self, topic: &str) {
        mock(&self.owner)
            .create_topic(topic, 1, 1)
            .expect("the name is one");
    }

    /// Lets the broker take so long for every answer.
    #[cfg(test)]
    pub(crate) fn answer_after(&self, delay: Duration) {
        mock(&self.owner)
            .broker_round_trip_time(BROKER, delay)
            .expect("there is a broker 1");
    }

    /// Refuses the next `batches` of records as too large.
    #[cfg(test)]
    pub(crate) fn refuse_produce(&self, batches: usize) {
        use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
        let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
        mock(&self.owner).request_errors(RDKafkaApiKey::Produce, &vec![too_large; batches]);
    }

    /// Calls the next batch of records a repeat, which says nothing of where it is.
    #[cfg(test)]
    pub(crate) fn doubt_produce(&self) {
        use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
        let repeat = RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
        mock(&self.owner).request_errors(RDKafkaApiKey::Produce, &[repeat]);
    }

    /// The other faults it can play.
    #[cfg(test)]
    pub(super) fn mock(&self) -> MockCluster<'_, Quiet> {
        mock(&self.owner)
    }
}

fn mock(owner: &BaseProducer<Quiet>) -> MockCluster<'_, Quiet> {
    owner
        .client()
        .mock_cluster()
        .expect("the client was created with test.mock.num.brokers")
}

impl fmt::Debug for EmbeddedCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedCluster")
            .field("brokers", &self.brokers)
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
