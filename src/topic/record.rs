//! What a record is, on the way in and on the way out.
//!
//! Owns the names of the three topics, the copy made of a record that was read, and the headers a dead
//! letter adds. Refuses to interpret keys, values or headers.
//!
//! Guarantees: a record that was read is one allocation and a list of header positions; its bytes count
//! against the consumer's bound until it is dropped. Content is never part of Debug output.

use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use super::consumer::Hold;
use super::{PublishError, Publisher};
use crate::event::header;
use crate::telemetry;

/// The topics of one pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Callbacks as received.
    pub events: String,
    /// Authenticated bodies that are no event.
    pub quarantine: String,
    /// Records that a stage gave up on.
    pub dead_letters: String,
}

impl Topics {
    /// `base` for events, `base.quarantine` and `base.dead-letters` beside it.
    pub fn named(base: &str) -> Self {
        Topics {
            events: base.to_owned(),
            quarantine: format!("{base}{QUARANTINE_SUFFIX}"),
            dead_letters: format!("{base}{DEAD_LETTERS_SUFFIX}"),
        }
    }

    /// All three.
    pub fn all(&self) -> [&str; 3] {
        [&self.events, &self.quarantine, &self.dead_letters]
    }
}

const QUARANTINE_SUFFIX: &str = ".quarantine";
const DEAD_LETTERS_SUFFIX: &str = ".dead-letters";

/// What a topic holds: the label of the publish counters, where names would be an open set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Events,
    Quarantine,
    DeadLetters,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Events, Kind::Quarantine, Kind::DeadLetters];

    pub(super) fn of(topic: &str) -> Self {
        if topic.ends_with(QUARANTINE_SUFFIX) {
            Kind::Quarantine
        } else if topic.ends_with(DEAD_LETTERS_SUFFIX) {
            Kind::DeadLetters
        } else {
            Kind::Events
        }
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Kind::Events => "events",
            Kind::Quarantine => "quarantine",
            Kind::DeadLetters => "dead-letters",
        }
    }
}

/// A record to publish. It is copied; nothing needs to outlive the call.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// The topic, which must exist.
    pub topic: &'a str,
    /// Decides the partition; records of one key stay in order. Without a key: any partition.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// Header names and values, in order.
    pub headers: &'a [(&'a str, &'a [u8])],
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic)
            .field("value_bytes", &self.value.len())
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}

/// What a record costs beside its bytes: bounds the number of empty ones.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 256;

/// A record that was read. It holds its share of the consumer's bound until it is dropped.
pub struct Record {
    /// Where it was read from.
    pub partition: i32,
    /// Its offset there; the next position is one more, or later in a compacted log.
    pub offset: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; empty also where there is none (a tombstone).
    pub value: Bytes,
    /// The headers.
    pub headers: Headers,
    /// When it was produced or appended, milliseconds since 1970, if the broker says.
    pub timestamp_ms: Option<i64>,
    topic: Bytes,
    hold: Option<Hold>,
}

impl Record {
    /// The topic it was read from.
    pub fn topic(&self) -> &str {
        std::str::from_utf8(&self.topic).expect("copied from a &str")
    }

    /// Bytes of key, value and headers.
    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.value.len() + self.headers.bytes()
    }

    /// What it takes of the consumer's bound.
    pub fn share(&self) -> usize {
        self.bytes() + RECORD_OVERHEAD_BYTES
    }

    /// Copies `message` into one allocation.
    pub(super) fn copy(message: &BorrowedMessage<'_>) -> Self {
        let key = message.key();
        let value = message.payload().unwrap_or_default();
        let topic = message.topic();
        let mut data = BytesMut::with_capacity(
            topic.len() + key.map_or(0, <[u8]>::len) + value.len() + header_bytes(message),
        );
        let mut put = |bytes: &[u8]| {
            let start = data.len();
            data.put_slice(bytes);
            start..data.len()
        };
        let topic = put(topic.as_bytes());
        let key = key.map(&mut put);
        let value = put(value);
        let spans = message.headers().map_or_else(Box::default, |headers| {
            headers
                .iter()
                .map(|header| (put(header.key.as_bytes()), header.value.map(&mut put)))
                .collect()
        });
        let data = data.freeze();
        Record {
            partition: message.partition(),
            offset: message.offset(),
            key: key.map(|range| data.slice(range)),
            value: data.slice(value),
            timestamp_ms: message.timestamp().to_millis(),
            topic: data.slice(topic),
            headers: Headers { data, spans },
            hold: None,
        }
    }

    /// Gives it its share of the bound.
    pub(super) fn hold(&mut self, hold: Hold) {
        self.hold = Some(hold);
    }
}

fn header_bytes(message: &BorrowedMessage<'_>) -> usize {
    message.headers().map_or(0, |headers| {
        headers
            .iter()
            .map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len))
            .sum()
    })
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// The headers of a record that was read, in the record's own allocation.
#[derive(Clone, Default)]
pub struct Headers {
    data: Bytes,
    spans: Box<[Span]>,
}

/// Where a header's name and value are.
type Span = (Range<usize>, Option<Range<usize>>);

impl Headers {
    /// The value of the last header called `name`, as Kafka's own clients choose; a null value is none.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().rev().find(|(n, _)| *n == name)?.1
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, Option<&[u8]>)> {
        self.spans.iter().map(|(name, value)| {
            let name = std::str::from_utf8(&self.data[name.clone()]).expect("copied from a &str");
            (name, value.clone().map(|value| &self.data[value]))
        })
    }

    /// All but those that say why and where a record was set aside; a null value is an empty one.
    pub fn of_the_event(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.iter()
            .filter(|(name, _)| !name.starts_with(DEAD_LETTER_PREFIX))
            .map(|(name, value)| (name, value.unwrap_or_default()))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    fn bytes(&self) -> usize {
        self.spans
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Range::len))
            .sum()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

/// Why a record is set aside.
#[derive(Clone, Copy)]
pub struct DeadLetter<'a> {
    /// A stable word: header and metric label.
    pub reason: &'static str,
    /// The stage that gave up: `archive`, `enrich`.
    pub stage: &'static str,
    /// How many tries it got.
    pub attempts: u32,
    /// The start of an answer that could not be read.
    pub response: Option<&'a [u8]>,
}

impl fmt::Debug for DeadLetter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("reason", &self.reason)
            .field("stage", &self.stage)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

/// Headers a dead letter adds at most.
const DEAD_LETTER_HEADERS: usize = 7;

impl Publisher {
    /// Sets `record` aside: key, value and headers as they are, and why. Done when acknowledged, so that
    /// the record's position may be passed.
    ///
    /// Dead-letter headers of an earlier round (a replayed record that failed again) are replaced.
    ///
    /// # Errors
    /// As any publish; the position must then stay. After an ambiguous error it may be there twice.
    pub async fn dead_letter(
        &self,
        topics: &Topics,
        record: &Record,
        letter: &DeadLetter<'_>,
    ) -> Result<(), PublishError> {
        let attempts = letter.attempts.to_string();
        let partition = record.partition.to_string();
        let offset = record.offset.to_string();
        let mut headers: Vec<(&str, &[u8])> =
            Vec::with_capacity(record.headers.len() + DEAD_LETTER_HEADERS);
        headers.extend(record.headers.of_the_event());
        headers.extend([
            (header::DEAD_LETTER_REASON, letter.reason.as_bytes()),
            (header::DEAD_LETTER_STAGE, letter.stage.as_bytes()),
            (header::DEAD_LETTER_ATTEMPTS, attempts.as_bytes()),
            (header::DEAD_LETTER_TOPIC, record.topic().as_bytes()),
            (header::DEAD_LETTER_PARTITION, partition.as_bytes()),
            (header::DEAD_LETTER_OFFSET, offset.as_bytes()),
        ]);
        headers.extend(
            letter
                .response
                .map(|start| (header::DEAD_LETTER_RESPONSE, start)),
        );
        let message = Message {
            topic: &topics.dead_letters,
            key: record.key.as_deref(),
            value: &record.value,
            headers: &headers,
        };
        self.publish(&message).await?;
        metrics::counter!(telemetry::DEAD_LETTERS, "reason" => letter.reason).increment(1);
        Ok(())
    }
}

/// What all names of dead-letter headers begin with.
const DEAD_LETTER_PREFIX: &str = "dead-letter-";
