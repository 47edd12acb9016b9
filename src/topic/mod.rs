//! Kafka: publish, consume with rebalances as messages, set aside. The only part that names rdkafka.
//!
//! Owns the settings our promises rest on ([`Settings`]), the form of a record ([`Message`], [`Record`]),
//! the producer ([`Publisher`]), the consumer ([`Consumer`]), one reading of a whole topic ([`Scan`]) and a
//! cluster inside the process ([`EmbeddedCluster`]). Refuses to decide what a record means, which offset is durable, or whether to
//! try again: it reports outcomes, its callers decide.
//!
//! Guarantees: a publish ends acknowledged by all in-sync replicas or in an error that says whether the
//! record may be in the topic all the same; a consumer starts exactly where it was told and never at a
//! place Kafka chose; what is read and not yet let go is bounded in bytes.
//!
//! Fails with [`Error`] and [`PublishError`], which carry no record content and no property values.

mod admin;
mod consumer;
mod embedded;
mod gap;
mod notify;
mod producer;
mod record;
mod scan;
mod settings;
#[cfg(test)]
mod testing;

pub use admin::{cluster_id, create_topics, topic_id};
pub use consumer::{
    AssignReply, Consumer, Event, MAX_POLL_INTERVAL, REPLY_WAIT, RevokeReply, Watermarks,
};
pub use embedded::{EMBEDDED_PARTITION_BYTES, EmbeddedCluster};
pub use gap::Gap;
pub use producer::{Acknowledgement, Publisher};
pub use record::{DeadLetter, Headers, Message, Record, Topics};
pub use scan::Scan;
pub use settings::{MESSAGE_TIMEOUT, QUEUE_KBYTES, QUEUE_MESSAGES, SOCKET_TIMEOUT, Settings};

use std::fmt;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Why Kafka, or the way to it, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A property that a promise of ours rests on.
    #[error("--kafka-property {name}: cannot be set: {why}; remove it")]
    Refused {
        /// The property.
        name: String,
        /// What rests on it.
        why: &'static str,
    },
    /// A property librdkafka does not know, or whose value it does not take. The value is not repeated:
    /// it may be a secret.
    #[error(
        "--kafka-property {name}: {problem}; see librdkafka's CONFIGURATION.md for names and values"
    )]
    Property {
        /// The property.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The properties do not fit together, or name a file that cannot be read.
    #[error(
        "Kafka's client cannot be set up from --kafka and --kafka-property: {reason}; correct them"
    )]
    Client {
        /// librdkafka's own sentence.
        reason: String,
    },
    /// No answer from any broker within the time given.
    #[error(
        "no answer from Kafka at {brokers} within {waited_ms} ms; check the address, the network and the brokers"
    )]
    Unreachable {
        /// The bootstrap addresses.
        brokers: String,
        /// How long was waited.
        waited_ms: u128,
        /// What librdkafka says.
        #[source]
        source: Option<KafkaError>,
    },
    /// A topic that is not there.
    #[error("topic {topic} does not exist; create it, or start with --create-topics")]
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// A topic some of whose partitions have no leader now.
    #[error(
        "topic {topic}: {partitions} partitions have no leader; wait for the brokers to elect one"
    )]
    NoLeader {
        /// The topic.
        topic: String,
        /// How many.
        partitions: usize,
    },
    /// The cluster refuses.
    #[error("Kafka refuses {doing}; check credentials and access control lists")]
    NotAllowed {
        /// What was tried.
        doing: String,
        /// The broker's code.
        #[source]
        source: RDKafkaErrorCode,
    },
    /// A topic could not be created.
    #[error("cannot create topic {topic}; create it by hand or correct the settings")]
    CreateTopic {
        /// The topic.
        topic: String,
        /// The broker's code.
        #[source]
        source: RDKafkaErrorCode,
    },
    /// Not all records that somebody waits for were acknowledged when the publisher closed.
    #[error(
        "closing the publisher: {unacknowledged} records unacknowledged, {failed} failed; their senders were told, send those again"
    )]
    Unflushed {
        /// Still in the queue or on the way when the deadline came.
        unacknowledged: usize,
        /// Ended in an error during the flush.
        failed: u64,
    },
    /// Positions to go on from are not in the log: records are missing, or the topic is another one.
    #[error("{topic}: {}", sentences(missing))]
    OffsetOutOfRange {
        /// The topic.
        topic: String,
        /// Every partition whose position is not there.
        missing: Vec<OutOfRange>,
    },
    /// librdkafka stopped at a position that lies inside the log.
    #[error(
        "cannot go on reading {topic} where it stopped; restart to read from the lake's position"
    )]
    Position {
        /// The topic.
        topic: String,
    },
    /// A batch whose checksum does not match its content.
    #[error("a batch of {topic} is damaged; nothing after it was read, check the broker's disks")]
    Corrupt {
        /// The topic.
        topic: String,
        /// librdkafka's code.
        #[source]
        source: RDKafkaErrorCode,
    },
    /// Nobody told the consumer where to start within [`REPLY_WAIT`].
    #[error("partitions {partitions:?} were assigned and no position was given within {} s; restart", REPLY_WAIT.as_secs())]
    NoPositions {
        /// The partitions, which are not read.
        partitions: Vec<i32>,
    },
    /// Anything else that ends a consumer.
    #[error("Kafka's client ended while {doing}; restart")]
    Fatal {
        /// What it was doing.
        doing: &'static str,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// The consumer did not leave its group in time.
    #[error("the consumer of {topic} did not leave its group within {} ms; the brokers will drop it after the session timeout", waited.as_millis())]
    Leave {
        /// The topic.
        topic: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The operating system gives no thread or file descriptor.
    #[error("cannot start {what}; raise the limit on threads or file descriptors")]
    System {
        /// What was to start.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A position that is not in its partition's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange {
    /// The partition.
    pub partition: i32,
    /// Where consuming was to go on.
    pub wanted: i64,
    /// First offset in the log.
    pub low: i64,
    /// One past the last offset in the log.
    pub high: i64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutOfRange {
            partition,
            wanted,
            low,
            high,
        } = self;
        write!(f, "partition {partition} holds {low}..{high}, ")?;
        if wanted < low {
            write!(f, "records {wanted}..{low} were deleted unread")
        } else {
            write!(
                f,
                "the log ends {} records short of {wanted}",
                wanted - high
            )
        }
    }
}

/// What is missing, and the commands that go on without it.
fn sentences(missing: &[OutOfRange]) -> String {
    let list: Vec<String> = missing.iter().map(OutOfRange::to_string).collect();
    let gaps: Vec<String> = (missing.iter().filter(|it| it.wanted < it.low))
        .map(|it| format!("--accept-gap {}:{}..{}", it.partition, it.wanted, it.low))
        .collect();
    let mut text = list.join("; ");
    if !gaps.is_empty() {
        text += &format!(
            ". Start `convolake ingest` with {} to go on behind them, and find the conversations that closed in them with `convolake reconcile --once`",
            gaps.join(" ")
        );
    }
    if gaps.len() < missing.len() {
        text += ". A log that ends before its position was cut short, or its topic created anew: start `convolake ingest` with another --group, which reads the topic from its beginning and writes no whole conversation again, and find those that closed in the lost records with `convolake reconcile --once`";
    }
    text
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Not sent: the queue to Kafka holds [`QUEUE_MESSAGES`] records or [`QUEUE_KBYTES`] kB already.
    #[error("the queue to Kafka is full; refuse the work or keep it elsewhere, and try later")]
    QueueFull,
    /// Not sent: the publisher was closed.
    #[error("the publisher is closed; the process is stopping")]
    Closed,
    /// Not stored: the broker or the client refuses this record, and would again.
    #[error("Kafka refuses the record; check topic, size limits and access control lists")]
    Refused(#[source] RDKafkaErrorCode),
    /// **May be stored**: no acknowledgement came within [`MESSAGE_TIMEOUT`], or the producer had to be
    /// rebuilt. Sending again can store it twice; readers tell repeats by `ce_id`.
    #[error("Kafka did not acknowledge the record, which may be in the topic all the same")]
    Unacknowledged(#[source] RDKafkaErrorCode),
    /// **May be stored**: librdkafka concludes that it must be, from a later batch or a repeat, and no broker has
    /// told its offset. Sending again can store it twice.
    #[error("Kafka told no offset of the record, which may be in the topic all the same")]
    Unproven,
}

impl PublishError {
    /// A stable word for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            PublishError::QueueFull => "queue-full",
            PublishError::Closed => "closed",
            PublishError::Refused(_) => "refused",
            PublishError::Unacknowledged(_) => "unacknowledged",
            PublishError::Unproven => "unproven",
        }
    }

    /// Whether the record may be in the topic although this is an error.
    pub fn is_ambiguous(self) -> bool {
        match self {
            PublishError::Unacknowledged(_) | PublishError::Unproven => true,
            PublishError::QueueFull | PublishError::Closed | PublishError::Refused(_) => false,
        }
    }

    fn of(code: RDKafkaErrorCode) -> Self {
        use RDKafkaErrorCode as Code;
        match code {
            Code::QueueFull => PublishError::QueueFull,
            Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidTopic
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::InvalidRecord
            | Code::PolicyViolation
            | Code::InvalidArgument => PublishError::Refused(code),
            _ => PublishError::Unacknowledged(code),
        }
    }
}

/// librdkafka's log lines, as log events of ours.
#[derive(Debug, Default)]
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka's client reports");
    }
}

/// librdkafka calls a broker that went away an error; it reconnects by itself, so nothing here is more
/// than a warning. Its remarks on settings of the other kind of client (one list serves both) are noise.
fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => tracing::warn!(facility, "librdkafka: {line}"),
        RDKafkaLogLevel::Warning if facility != "CONFWARN" => {
            tracing::warn!(facility, "librdkafka: {line}");
        }
        RDKafkaLogLevel::Warning
        | RDKafkaLogLevel::Notice
        | RDKafkaLogLevel::Info
        | RDKafkaLogLevel::Debug => tracing::debug!(facility, "librdkafka: {line}"),
    }
}
