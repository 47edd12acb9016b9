//! One row of each table as plain values, before it becomes Arrow.
//!
//! Field names are the column names (`schemas/tables.json`). Times are microseconds since 1970, UTC.
//! A row here has been judged: `enrich` makes [`ConversationRow`] and [`CommunicationRow`] together, with
//! what is missing named; nothing else in the program builds them from an answer of the API.

/// Microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;
/// Days since 1970-01-01, UTC.
pub type Days = i32;

/// The UTC day of `time`, as partitions count days.
pub fn day(time: jiff::Timestamp) -> Days {
    const SECONDS: i64 = 24 * 60 * 60;
    Days::try_from(time.as_second().div_euclid(SECONDS))
        .expect("a Timestamp ends with the year 9999, some 3 million days")
}

/// How much of a closed conversation the lake has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Completeness {
    /// The API answered 404: deleted before it could be fetched.
    Gone,
    /// Every page was read, but a field that a row needs could not be had; `missing` names it.
    Partial,
    /// Every communication that the API lists, with every field that a row needs.
    Complete,
}

impl Completeness {
    /// The value of the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Completeness::Complete => "COMPLETE",
            Completeness::Partial => "PARTIAL",
            Completeness::Gone => "GONE",
        }
    }

    /// The reverse of [`Completeness::as_str`].
    pub fn from_column(value: &str) -> Option<Self> {
        [Self::Complete, Self::Partial, Self::Gone]
            .into_iter()
            .find(|c| c.as_str() == value)
    }
}

/// A word of a transcription.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Word {
    /// The word as recognised.
    pub text: Option<String>,
    /// Start, milliseconds from the start of the transcription.
    pub start_ms: Option<i64>,
    /// End, likewise.
    pub end_ms: Option<i64>,
}

/// Somebody a communication was sent to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recipient {
    /// Address as sent.
    pub address: Option<String>,
    /// Channel as sent.
    pub channel: Option<String>,
    /// Participant, where known.
    pub participant_id: Option<String>,
    /// Delivery state.
    pub delivery_status: Option<String>,
}

/// An address of a participant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Address {
    /// Channel as sent.
    pub channel: Option<String>,
    /// Address as sent.
    pub address: Option<String>,
    /// Call or chat it belongs to.
    pub channel_id: Option<String>,
}

/// A participant of a conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Participant {
    /// Participant id.
    pub participant_id: Option<String>,
    /// `HUMAN_AGENT`, `CUSTOMER`, `AI_AGENT`, `AGENT`, `UNKNOWN` as sent.
    pub r#type: Option<String>,
    /// Display name.
    pub name: Option<String>,
    /// Memory profile, customers only.
    pub profile_id: Option<String>,
    /// Addresses.
    pub addresses: Vec<Address>,
}

/// A message or utterance of a closed conversation: table `communications`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CommunicationRow {
    pub conversation_id: String,
    pub communication_id: String,
    pub account_id: Option<String>,
    pub configuration_id: Option<String>,
    /// 0.. in the conversation, by occurred_at, created_at, communication_id.
    pub position: i64,
    pub author_participant_id: Option<String>,
    pub author_type: Option<String>,
    pub author_address: Option<String>,
    pub author_channel: Option<String>,
    /// `INBOUND` or `OUTBOUND`.
    pub direction: Option<String>,
    pub content_type: Option<String>,
    pub text: Option<String>,
    pub transcription_engine: Option<String>,
    pub transcription_confidence: Option<f64>,
    pub transcription_words: Option<Vec<Word>>,
    pub recipients: Option<Vec<Recipient>>,
    pub channel_id: Option<String>,
    pub resource_id: Option<String>,
    pub occurred_at: Option<Micros>,
    pub created_at: Option<Micros>,
    pub updated_at: Option<Micros>,
    /// Number of the whole utterance that this belongs to, 0.. in the conversation.
    pub turn: i64,
    /// Names of columns that the API could not fill.
    pub missing: Vec<String>,
    /// JSON object of fields that this program does not know; absent where there are none.
    pub extra: Option<String>,
    /// Partition: `[A-Z0-9_]{1,32}`.
    pub channel: String,
    /// Partition: the day the conversation closed.
    pub date: Days,
}

/// A closed conversation and the ledger of how it was completed: table `conversations`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationRow {
    pub conversation_id: String,
    pub account_id: Option<String>,
    pub configuration_id: Option<String>,
    pub name: Option<String>,
    pub status: Option<String>,
    /// Distinct channels of its communications, sorted.
    pub channels: Vec<String>,
    pub participants: Vec<Participant>,
    pub created_at: Option<Micros>,
    pub closed_at: Option<Micros>,
    pub updated_at: Option<Micros>,
    pub first_communication_at: Option<Micros>,
    pub last_communication_at: Option<Micros>,
    /// Rows of `communications`.
    pub communications: i64,
    /// JSON object as sent.
    pub metadata: Option<String>,
    pub extra: Option<String>,
    pub completeness: Completeness,
    pub missing: Vec<String>,
    /// Pages of communications read.
    pub pages: i64,
    /// Resources fetched one by one because a list left fields out.
    pub fetched_singly: i64,
    /// Requests sent for this conversation, retries included.
    pub api_calls: i64,
    /// Hex SHA-256 over what the rows say, independent of pages and fetches.
    pub content_hash: String,
    /// Partition of the record that announced the close.
    pub kafka_partition: i32,
    /// Its offset.
    pub kafka_offset: i64,
    pub enriched_at: Micros,
    /// Partition: the day it closed.
    pub date: Days,
}

/// A conversation of which nothing is known, for tests to fill in.
#[cfg(test)]
pub(crate) fn empty_conversation(id: &str) -> ConversationRow {
    ConversationRow {
        conversation_id: id.to_owned(),
        account_id: None,
        configuration_id: None,
        name: None,
        status: None,
        channels: Vec::new(),
        participants: Vec::new(),
        created_at: None,
        closed_at: None,
        updated_at: None,
        first_communication_at: None,
        last_communication_at: None,
        communications: 0,
        metadata: None,
        extra: None,
        completeness: Completeness::Complete,
        missing: Vec::new(),
        pages: 0,
        fetched_singly: 0,
        api_calls: 0,
        content_hash: String::new(),
        kafka_partition: 0,
        kafka_offset: 0,
        enriched_at: 0,
        date: 0,
    }
}

/// A callback as received: table `events`.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    pub event_id: String,
    pub event_type: String,
    pub conversation_id: String,
    pub occurred_at: Option<Micros>,
    pub received_at: Micros,
    pub idempotency_token: Option<String>,
    /// The callback's body, as it was.
    pub body: String,
    pub kafka_partition: i32,
    pub kafka_offset: i64,
    /// Partition: the day it was received.
    pub date: Days,
}
