//! The vocabulary of a status callback: ids, the event inside a body, its Kafka key, its identity.
//!
//! Owns what a callback *is*, apart from how it arrives (`receive`), travels (`topic`) or is stored
//! (`table`). Refuses to decide whether bytes are authentic: that is `signature`'s proof.
//!
//! Guarantees: no I/O and no clock. A body is never changed; what is parsed borrows from it. JSON is
//! read with serde_json's own depth limit (128), so a body of 100,000 brackets is an error and never a
//! stack overflow.
//!
//! Fails with [`NotUnderstood`], whose [`NotUnderstood::reason`] is stable enough to be a metric label
//! and the `dead-letter-reason` of a quarantined record.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Event types that the Orchestrator is documented to send; a new one passes through as it is.
pub mod event_type {
    /// A conversation was opened.
    pub const CONVERSATION_CREATED: &str = "CONVERSATION_CREATED";
    /// Status or name changed; a close is this one with `data.status == "CLOSED"`.
    pub const CONVERSATION_UPDATED: &str = "CONVERSATION_UPDATED";
    /// A participant joined.
    pub const PARTICIPANT_ADDED: &str = "PARTICIPANT_ADDED";
    /// A participant changed.
    pub const PARTICIPANT_UPDATED: &str = "PARTICIPANT_UPDATED";
    /// A participant left.
    pub const PARTICIPANT_REMOVED: &str = "PARTICIPANT_REMOVED";
    /// A message or utterance was captured.
    pub const COMMUNICATION_CREATED: &str = "COMMUNICATION_CREATED";
    /// A delivery state or a text changed.
    pub const COMMUNICATION_UPDATED: &str = "COMMUNICATION_UPDATED";
}

/// The status that ends a conversation.
pub const CLOSED: &str = "CLOSED";

/// Names of Kafka record headers (CloudEvents 1.0 Kafka binding, binary mode, and our own).
pub mod header {
    /// CloudEvents version, always `1.0`.
    pub const CE_SPECVERSION: &str = "ce_specversion";
    /// The event's identity ([`super::EventId`], 64 hex digits).
    pub const CE_ID: &str = "ce_id";
    /// The account, or `unknown`.
    pub const CE_SOURCE: &str = "ce_source";
    /// [`TYPE_PREFIX`] and the event type.
    pub const CE_TYPE: &str = "ce_type";
    /// The event's own timestamp, absent where the body has none.
    pub const CE_TIME: &str = "ce_time";
    /// The conversation id.
    pub const CE_SUBJECT: &str = "ce_subject";
    /// The request's content type.
    pub const CONTENT_TYPE: &str = "content-type";
    /// When the callback was received, RFC 3339 with microseconds, UTC.
    pub const RECEIVED_AT: &str = "received-at";
    /// Twilio's token, the same on every retry of one delivery; not signed, so a hint only.
    pub const IDEMPOTENCY_TOKEN: &str = "idempotency-token";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// Why a record is in quarantine or a dead letter: a stable word.
    pub const DEAD_LETTER_REASON: &str = "dead-letter-reason";
    /// The stage that gave up: `receive`, `archive`, `enrich`.
    pub const DEAD_LETTER_STAGE: &str = "dead-letter-stage";
    /// How many tries it got, decimal.
    pub const DEAD_LETTER_ATTEMPTS: &str = "dead-letter-attempts";
    /// The start of the API's answer, where one was malformed.
    pub const DEAD_LETTER_RESPONSE: &str = "dead-letter-response";
    /// Where the record was read from.
    pub const DEAD_LETTER_TOPIC: &str = "dead-letter-topic";
    /// Its partition, decimal.
    pub const DEAD_LETTER_PARTITION: &str = "dead-letter-partition";
    /// Its offset, decimal.
    pub const DEAD_LETTER_OFFSET: &str = "dead-letter-offset";
    /// Where a replayed record was kept: topic, partition and offset, with `/` between them.
    pub const REPLAYED: &str = "replayed";
    /// The record is no callback but a close that the API's list told us of; why it was published.
    pub const RECONCILED: &str = "reconciled";
    /// Prefix of `ce_type`.
    pub const TYPE_PREFIX: &str = "com.twilio.conversations.";
}

/// Longest id that becomes a Kafka key and a column; Twilio's are under 64 characters.
pub const MAX_ID_BYTES: usize = 256;

/// Longest text from outside that is copied into a record header.
pub const MAX_HEADER_BYTES: usize = 256;

/// `value`, where it is visible ASCII that a record header may have.
pub fn copyable(value: &[u8]) -> Option<&[u8]> {
    let visible = value.iter().all(u8::is_ascii_graphic);
    (visible && (1..=MAX_HEADER_BYTES).contains(&value.len())).then_some(value)
}

/// A callback's event, borrowed from its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackEvent<'a> {
    /// One of [`event_type`], or a name that is newer than this program.
    pub event_type: Cow<'a, str>,
    /// When it happened, as sent (ISO 8601, UTC); absent or odd values are kept as they are.
    pub timestamp: Option<Cow<'a, str>>,
    /// The id of the resource in `data`.
    pub resource_id: Cow<'a, str>,
    /// The conversation that it belongs to: the Kafka key.
    pub conversation_id: Cow<'a, str>,
    /// The account.
    pub account_id: Option<Cow<'a, str>>,
    /// `data.status` (conversations).
    pub status: Option<Cow<'a, str>>,
    /// `data.updatedAt`, as sent.
    pub updated_at: Option<Cow<'a, str>>,
}

impl<'a> CallbackEvent<'a> {
    /// Reads the event in `body`.
    ///
    /// Unknown event types and fields are accepted. A body that has no usable id, or gives a known
    /// field twice (which of two statuses would hold?), is [`NotUnderstood`].
    pub fn parse(body: &'a [u8]) -> Result<Self, NotUnderstood> {
        let text = std::str::from_utf8(body).map_err(|_| NotUnderstood::NotUtf8)?;
        let raw: RawEvent<'a> = serde_json::from_str(text).map_err(|e| {
            if e.is_data() {
                NotUnderstood::WrongShape
            } else {
                NotUnderstood::NotJson
            }
        })?;
        let event_type = raw
            .event_type
            .0
            .filter(|t| !t.is_empty())
            .ok_or(NotUnderstood::MissingType)?;
        let resource_id = usable(raw.data.id.0)?;
        let conversation_id = if event_type.starts_with("CONVERSATION_") {
            resource_id.clone()
        } else {
            usable(raw.data.conversation_id.0)?
        };
        Ok(CallbackEvent {
            event_type,
            timestamp: raw.timestamp.0,
            resource_id,
            conversation_id,
            account_id: raw.data.account_id.0,
            status: raw.data.status.0,
            updated_at: raw.data.updated_at.0,
        })
    }

    /// Whether this event says that its conversation was closed. There is no event type for it.
    pub fn is_close(&self) -> bool {
        self.event_type == event_type::CONVERSATION_UPDATED
            && self.status.as_deref() == Some(CLOSED)
    }

    /// Whether the event's type can be an attribute of a record; a body whose type cannot is no event of
    /// the events topic.
    pub fn has_usable_type(&self) -> bool {
        self.event_type.len() <= MAX_ID_BYTES && !self.event_type.chars().any(char::is_control)
    }

    /// The CloudEvents attributes of the record that carries this event.
    pub fn attributes(&self, body_sha256: &[u8; 32]) -> Attributes<'_> {
        let account = self.account_id.as_deref().unwrap_or("").as_bytes();
        // Odd times stay in the body alone: CloudEvents requires RFC 3339.
        let time = self.timestamp.as_deref();
        let time = time.filter(|text| text.parse::<jiff::Timestamp>().is_ok());
        Attributes {
            id: self.identity(body_sha256).hex(),
            source: copyable(account).unwrap_or(b"unknown"),
            name: format!("{}{}", header::TYPE_PREFIX, self.event_type),
            time: time.and_then(|text| copyable(text.as_bytes())),
            subject: self.conversation_id.as_bytes(),
        }
    }

    /// SHA-256 over event type, resource id, timestamp and body hash, each preceded by its length.
    ///
    /// The idempotency token takes no part: it is not signed, and a captured request can be replayed
    /// with a stolen one.
    pub fn identity(&self, body_sha256: &[u8; 32]) -> EventId {
        let mut hash = Sha256::new();
        for part in [
            self.event_type.as_bytes(),
            self.resource_id.as_bytes(),
            self.timestamp.as_deref().unwrap_or("").as_bytes(),
            body_sha256,
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        EventId(hash.finalize().into())
    }
}

/// What CloudEvents 1.0 says of an event (Kafka binding, binary mode).
#[derive(Debug)]
pub struct Attributes<'a> {
    id: [u8; 64],
    source: &'a [u8],
    name: String,
    time: Option<&'a [u8]>,
    subject: &'a [u8],
}

impl Attributes<'_> {
    /// As record headers; `None` is absent.
    pub fn headers(&self) -> [(&'static str, Option<&[u8]>); 6] {
        [
            (header::CE_SPECVERSION, Some(b"1.0")),
            (header::CE_ID, Some(&self.id)),
            (header::CE_SOURCE, Some(self.source)),
            (header::CE_TYPE, Some(self.name.as_bytes())),
            (header::CE_TIME, self.time),
            (header::CE_SUBJECT, Some(self.subject)),
        ]
    }
}

fn usable(id: Option<Cow<'_, str>>) -> Result<Cow<'_, str>, NotUnderstood> {
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or(NotUnderstood::MissingId)?;
    if id.len() > MAX_ID_BYTES || id.chars().any(char::is_control) {
        return Err(NotUnderstood::UnusableId);
    }
    Ok(id)
}

/// Identity of an event: equal for repeats of the same signed bytes, whatever brought them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId([u8; 32]);

impl EventId {
    /// 64 lower-case digits: the value of [`header::CE_ID`], without the formatter's cost.
    pub fn hex(&self) -> [u8; 64] {
        let mut digits = [0; 64];
        write_hex(&self.0, &mut digits);
        digits
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.hex()).expect("hex digits are ASCII"))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes `bytes` as lower-case hex; `digits` has room for exactly two a byte.
pub(crate) fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    assert_eq!(digits.len(), 2 * bytes.len(), "two digits a byte");
    for (byte, pair) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Why an authenticated body is not an event. The bytes are kept all the same (quarantine).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    /// Not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// Not JSON, cut short, or nested deeper than 128.
    #[error("the body is not JSON, or is nested too deep")]
    NotJson,
    /// JSON, but not an object with the documented shapes, or with a field given twice.
    #[error("the body is not a callback object")]
    WrongShape,
    /// No `eventType`.
    #[error("the callback has no eventType")]
    MissingType,
    /// No `data.id`, or no `data.conversationId`.
    #[error("the callback names no resource or no conversation")]
    MissingId,
    /// An id that is too long or has control characters.
    #[error("the callback has an id that cannot be used as a key")]
    UnusableId,
}

impl NotUnderstood {
    /// A stable word for metrics and record headers.
    pub fn reason(self) -> &'static str {
        match self {
            NotUnderstood::NotUtf8 => "not-utf8",
            NotUnderstood::NotJson => "not-json",
            NotUnderstood::WrongShape => "wrong-shape",
            NotUnderstood::MissingType => "missing-type",
            NotUnderstood::MissingId => "missing-id",
            NotUnderstood::UnusableId => "unusable-id",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEvent<'a> {
    #[serde(borrow, default)]
    event_type: Text<'a>,
    #[serde(borrow, default)]
    timestamp: Text<'a>,
    #[serde(borrow)]
    data: RawData<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawData<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    conversation_id: Text<'a>,
    #[serde(borrow, default)]
    account_id: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default)]
    updated_at: Text<'a>,
}

/// A string that may be null, borrowed unless it has escapes (serde's `Option<Cow>` always copies).
#[derive(Default)]
struct Text<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(transparent)]
        struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);
        Ok(Text(
            Option::<Borrowed<'a>>::deserialize(deserializer)?.map(|text| text.0),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSE: &str = r#"{"eventType":"CONVERSATION_UPDATED","timestamp":"2026-11-22T10:00:00Z",
        "data":{"id":"conv_conversation_1","accountId":"AC1","status":"CLOSED","new":[1e400]}}"#;

    #[test]
    fn a_close_is_an_update_with_status_closed() {
        let event = CallbackEvent::parse(CLOSE.as_bytes()).unwrap();
        assert!(event.is_close());
        assert_eq!(event.conversation_id, "conv_conversation_1");
        assert!(
            matches!(event.conversation_id, Cow::Borrowed(_)),
            "no copy on the hot path"
        );
    }

    #[test]
    fn other_resources_name_their_conversation() {
        let body =
            br#"{"eventType":"COMMUNICATION_CREATED","data":{"id":"c1","conversationId":"v1"}}"#;
        let event = CallbackEvent::parse(body).unwrap();
        assert_eq!((&*event.resource_id, &*event.conversation_id), ("c1", "v1"));
        assert!(!event.is_close());
    }

    #[test]
    fn an_event_type_that_is_not_known_yet_is_an_event() {
        let body = br#"{"eventType":"SUMMARY_READY","data":{"id":"s1","conversationId":"v1"}}"#;
        assert_eq!(
            CallbackEvent::parse(body).unwrap().event_type,
            "SUMMARY_READY"
        );
    }

    #[test]
    fn what_is_not_understood_has_a_reason() {
        let deep = "[".repeat(100_000);
        let long = format!(
            r#"{{"eventType":"CONVERSATION_CREATED","data":{{"id":"{}"}}}}"#,
            "x".repeat(300)
        );
        for (body, want) in [
            ("", NotUnderstood::NotJson),
            ("null", NotUnderstood::WrongShape),
            ("[]", NotUnderstood::WrongShape),
            ("\"x\"", NotUnderstood::WrongShape),
            ("{\"data\":", NotUnderstood::NotJson),
            ("{}", NotUnderstood::WrongShape),
            (r#"{"data":{"id":"x"}}"#, NotUnderstood::MissingType),
            (
                r#"{"eventType":"CONVERSATION_CREATED","data":{}}"#,
                NotUnderstood::MissingId,
            ),
            (
                r#"{"eventType":"CONVERSATION_CREATED","data":{"id":""}}"#,
                NotUnderstood::MissingId,
            ),
            (
                r#"{"eventType":"PARTICIPANT_ADDED","data":{"id":"p"}}"#,
                NotUnderstood::MissingId,
            ),
            (
                r#"{"eventType":"CONVERSATION_CREATED","data":{"id":"a\u0000"}}"#,
                NotUnderstood::UnusableId,
            ),
            (
                r#"{"eventType":"X_Y","data":{"id":"1","conversationId":"v","status":"CLOSED","status":"ACTIVE"}}"#,
                NotUnderstood::WrongShape,
            ),
            (&long, NotUnderstood::UnusableId),
        ] {
            assert_eq!(
                CallbackEvent::parse(body.as_bytes()),
                Err(want),
                "{body:.60}"
            );
        }
        assert!(CallbackEvent::parse(deep.as_bytes()).is_err());
        assert_eq!(
            CallbackEvent::parse(b"\xff\xfe"),
            Err(NotUnderstood::NotUtf8)
        );
    }

    #[test]
    fn identity_depends_on_every_part_and_not_on_their_boundaries() {
        let event = CallbackEvent::parse(CLOSE.as_bytes()).unwrap();
        let id = event.identity(&[7; 32]);
        assert_eq!(id, event.identity(&[7; 32]));
        assert_ne!(id, event.identity(&[8; 32]));
        let mut moved = event.clone();
        moved.event_type = "CONVERSATION_UPDATEDc".into();
        moved.resource_id = "onv_conversation_1".into();
        assert_ne!(id, moved.identity(&[7; 32]));
        assert_eq!(id.to_string().len(), 64);
    }

    #[test]
    fn attributes_are_bounded_and_visible() {
        let body = |account: &str, time: &str| {
            format!(
                r#"{{"eventType":"CONVERSATION_CREATED","timestamp":{time:?},"data":{{"id":"c","accountId":{account:?}}}}}"#
            )
        };
        for (account, time_sent, want_source, want_time) in [
            ("AC1", "2026-11-22T10:00:00Z", "AC1", true),
            ("", "yesterday", "unknown", false),
            ("A C", "2026-11-22T10:00:60+01:00", "unknown", true),
            (&"x".repeat(300), "9999-99-99T00:00:00Z", "unknown", false),
        ] {
            let body = body(account, time_sent);
            let event = CallbackEvent::parse(body.as_bytes()).unwrap();
            let attributes = event.attributes(&[7; 32]);
            let [.., source, _, time, subject] = attributes.headers();
            assert_eq!(source.1, Some(want_source.as_bytes()));
            assert_eq!(
                time.1,
                want_time.then_some(time_sent.as_bytes()),
                "{time_sent}"
            );
            assert_eq!(subject.1, Some(&b"c"[..]));
        }
    }
}
