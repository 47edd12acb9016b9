//! Which settings librdkafka gets, and which of them nobody may change.
//!
//! Owns the two lists our promises rest on (producer, consumer) and the rule how properties of the
//! operator are laid over them. Refuses to pass on a property of [`PROTECTED`], whatever its value: a
//! promise that can be switched off by accident is none.
//!
//! Guarantees: a wrong property is named before any connection is made; no value is ever printed.
//! Property names and defaults: librdkafka 2.12, CONFIGURATION.md.

use std::fmt;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;

use super::Error;
use super::consumer::MAX_POLL_INTERVAL;

/// Longest life of a record in the producer (`message.timeout.ms`). The sender of a callback waits 15 s
/// for everything, so that a retry of its own still fits.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Longest wait for one answer of a broker (`socket.timeout.ms`).
pub const SOCKET_TIMEOUT: Duration = Duration::from_millis(2_000);
/// Longest pause between connection attempts. The default of 10 s delays the first success after an
/// outage by as much.
const RECONNECT_BACKOFF_MAX_MS: u64 = 500;
/// How long a batch gathers records. Less than 5 ms costs 10 to 15 % of the receiver's processor time.
const LINGER_MS: u64 = 5;
/// Most records in the producer's queue.
pub const QUEUE_MESSAGES: u32 = 16_384;
/// Most bytes in the producer's queue, in kB. The default of 1 GiB is more than a container has.
pub const QUEUE_KBYTES: u32 = 32_768;
/// Most bytes librdkafka reads ahead for all partitions, in kB, and never more than a quarter of what may
/// be in flight: a pause throws it away. The default is 64 MB.
const READ_AHEAD_KBYTES: u32 = 16_384;
/// How long a broker may wait for new records before it answers a fetch. After a pause, reading goes on
/// when the fetch before it was answered; the default is 500 ms.
const FETCH_WAIT_MAX_MS: u32 = 100;
/// How long fetching stops when enough was read ahead. The default of 1 s is longer than it lasts.
const FETCH_QUEUE_BACKOFF_MS: u32 = 20;

/// How to reach Kafka.
#[derive(Clone, Default)]
pub struct Settings {
    /// `HOST:PORT,…` (`bootstrap.servers`).
    pub brokers: String,
    /// librdkafka properties, such as those of TLS and SASL; the last of a name holds.
    pub properties: Vec<(String, String)>,
    /// Answers [`cluster_id`](super::cluster_id) instead of the brokers. The embedded cluster needs it:
    /// its own identity repeats, and positions in the lake are kept by it.
    pub cluster: Option<String>,
}

impl Settings {
    /// Checks every property without connecting.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Property`], naming the property.
    pub fn validate(&self) -> Result<(), Error> {
        self.producer()?;
        self.consumer(Some(("validate", u32::MAX))).map(drop)
    }

    /// Settings of the idempotent producer.
    pub(super) fn producer(&self) -> Result<ClientConfig, Error> {
        let mut config = self.common();
        for (name, value) in [
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            ("compression.type", "lz4".to_owned()),
            (
                "message.timeout.ms",
                MESSAGE_TIMEOUT.as_millis().to_string(),
            ),
            ("linger.ms", LINGER_MS.to_string()),
            ("queue.buffering.max.messages", QUEUE_MESSAGES.to_string()),
            ("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string()),
        ] {
            config.set(name, value);
        }
        self.finish(config)
    }

    /// Settings of a consumer of a group, with the bytes it may have in flight; without a group it can
    /// only ask (metadata, watermarks).
    pub(super) fn consumer(&self, group: Option<(&str, u32)>) -> Result<ClientConfig, Error> {
        let mut config = self.common();
        for (name, value) in [
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("auto.offset.reset", "error".to_owned()),
            ("check.crcs", "true".to_owned()),
            (
                "partition.assignment.strategy",
                "cooperative-sticky".to_owned(),
            ),
            (
                "max.poll.interval.ms",
                MAX_POLL_INTERVAL.as_millis().to_string(),
            ),
            ("fetch.wait.max.ms", FETCH_WAIT_MAX_MS.to_string()),
            ("fetch.queue.backoff.ms", FETCH_QUEUE_BACKOFF_MS.to_string()),
        ] {
            config.set(name, value);
        }
        if let Some((group, in_flight_bytes)) = group {
            let quarter_kbytes = (in_flight_bytes / 1024 / 4).max(1);
            config.set("group.id", group).set(
                "queued.max.messages.kbytes",
                READ_AHEAD_KBYTES.min(quarter_kbytes).to_string(),
            );
        }
        self.finish(config)
    }

    fn common(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "convolake")
            .set("allow.auto.create.topics", "false")
            .set("socket.timeout.ms", SOCKET_TIMEOUT.as_millis().to_string())
            .set(
                "reconnect.backoff.max.ms",
                RECONNECT_BACKOFF_MAX_MS.to_string(),
            )
            .set_log_level(RDKafkaLogLevel::Info);
        config
    }

    fn finish(&self, mut config: ClientConfig) -> Result<ClientConfig, Error> {
        for (name, value) in &self.properties {
            if let Some((_, why)) = PROTECTED.iter().find(|(protected, _)| protected == name) {
                return Err(Error::Refused {
                    name: name.clone(),
                    why,
                });
            }
            config.set(canonical(name), value);
        }
        match config.create_native_config() {
            Ok(_) => Ok(config),
            Err(KafkaError::ClientConfig(_, description, name, _)) => Err(Error::Property {
                name,
                problem: if description.starts_with("No such") {
                    "no such property"
                } else {
                    "the value is not one it takes"
                },
            }),
            Err(other) => Err(Error::Client {
                reason: other.to_string(),
            }),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.properties.iter().map(|(name, _)| name).collect();
        f.debug_struct("Settings")
            .field("brokers", &self.brokers)
            .field("properties", &names)
            .field("cluster", &self.cluster)
            .finish()
    }
}

/// Two names of one setting would otherwise both be set, and which of them holds is left to chance.
fn canonical(name: &str) -> &str {
    match name {
        "compression.codec" => "compression.type",
        "queue.buffering.max.ms" => "linger.ms",
        // So that a test need not wait for as long as a reader may be silent.
        #[cfg(test)]
        "test.max.poll.interval.ms" => "max.poll.interval.ms",
        other => other,
    }
}

/// Properties that cannot be set, with what rests on each.
const PROTECTED: &[(&str, &str)] = &[
    ("acks", ACKNOWLEDGED),
    ("request.required.acks", ACKNOWLEDGED),
    (
        "enable.idempotence",
        "order and single storage of a record rest on it",
    ),
    (
        "delivery.report.only.error",
        "an acknowledgement would never come",
    ),
    (
        "message.timeout.ms",
        "an answer to a callback within its time rests on it",
    ),
    (
        "delivery.timeout.ms",
        "an answer to a callback within its time rests on it",
    ),
    (
        "transactional.id",
        "positions are committed with the lake, not with Kafka",
    ),
    ("enable.auto.commit", POSITIONS),
    ("auto.commit.enable", POSITIONS),
    ("enable.auto.offset.store", POSITIONS),
    ("auto.offset.reset", POSITIONS),
    (
        "enable.partition.eof",
        "the end of a partition is not an event here",
    ),
    ("check.crcs", "a damaged batch must not be read"),
    (
        "partition.assignment.strategy",
        "handing partitions over one by one rests on it",
    ),
    (
        "group.protocol",
        "handing partitions over one by one rests on it",
    ),
    ("group.id", "it is --group"),
    (
        "max.poll.interval.ms",
        "a flush before a partition is handed over fits in it",
    ),
    (
        "allow.auto.create.topics",
        "a mistyped topic must be an error",
    ),
    ("bootstrap.servers", "it is --kafka"),
    ("metadata.broker.list", "it is --kafka"),
    (
        "test.mock.num.brokers",
        "it replaces the brokers by a cluster in memory",
    ),
];

const ACKNOWLEDGED: &str = "a callback is answered 2xx only when all in-sync replicas have it";
const POSITIONS: &str = "the lake holds the positions, never Kafka";

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Settings {
        Settings {
            brokers: "127.0.0.1:1".into(),
            properties: vec![(name.into(), value.into())],
            cluster: None,
        }
    }

    #[test]
    fn what_our_promises_rest_on_is_asserted() {
        let settings = Settings {
            brokers: "k:1".into(),
            ..Settings::default()
        };
        let producer = settings.producer().unwrap();
        for (name, value) in [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("compression.type", "lz4"),
            ("message.timeout.ms", "2500"),
            ("socket.timeout.ms", "2000"),
            ("reconnect.backoff.max.ms", "500"),
            ("linger.ms", "5"),
            ("allow.auto.create.topics", "false"),
        ] {
            assert_eq!(producer.get(name), Some(value), "{name}");
        }
        let consumer = settings.consumer(Some(("g", 64 << 20))).unwrap();
        for (name, value) in [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("check.crcs", "true"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("queued.max.messages.kbytes", "16384"),
            ("allow.auto.create.topics", "false"),
            ("group.id", "g"),
        ] {
            assert_eq!(consumer.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn protected_properties_are_refused_by_name() {
        for (name, _) in PROTECTED {
            let error = with(name, "1").validate().unwrap_err();
            assert!(
                matches!(&error, Error::Refused { name: n, .. } if n == name),
                "{error}"
            );
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_wrong_property_is_named_and_its_value_is_not() {
        for (name, value) in [("sasl.pasword", "hunter2"), ("linger.ms", "hunter2")] {
            let error = with(name, value).validate().unwrap_err();
            assert!(
                matches!(&error, Error::Property { name: n, .. } if n == name),
                "{error:?}"
            );
            assert!(
                !format!("{error:?} {error}").contains("hunter2"),
                "{error:?}"
            );
        }
        let settings = with("sasl.password", "hunter2");
        assert!(settings.validate().is_ok());
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn another_name_of_a_setting_replaces_it() {
        let config = with("compression.codec", "zstd").producer().unwrap();
        assert_eq!(config.get("compression.type"), Some("zstd"));
        assert_eq!(config.get("compression.codec"), None);
        let config = with("socket.timeout.ms", "7000").producer().unwrap();
        assert_eq!(config.get("socket.timeout.ms"), Some("7000"));
    }
}
