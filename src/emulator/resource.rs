//! The Orchestrator's resources as it keeps them, and as its JSON shows them whole.
//!
//! Owns field names and closed sets of words (Twilio's reference pages for Conversations v2, and the
//! resource classes of npm `twilio` 6.2). Refuses behaviour: `state` decides what may change, `listing`
//! what a list leaves out.
//!
//! Guarantees: a resource serialises to the same bytes however often it is asked for. Ids, addresses
//! and texts are kept once (`Arc<str>`), so that 50,000 communications of one call share the call's id.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::configuration::Configuration;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub(crate) enum $name { $($variant),* }
    };
}

words! {
    /// A channel; EMAIL, API and SYSTEM are seen although the SDK's type does not list them.
    Channel { Voice, Sms, Rcs, Whatsapp, Chat, Video, Email, Api, System }
}
impl Channel {
    /// Its name on the wire.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Channel::Voice => "VOICE",
            Channel::Sms => "SMS",
            Channel::Rcs => "RCS",
            Channel::Whatsapp => "WHATSAPP",
            Channel::Chat => "CHAT",
            Channel::Video => "VIDEO",
            Channel::Email => "EMAIL",
            Channel::Api => "API",
            Channel::System => "SYSTEM",
        }
    }
}

words! {
    /// What a participant is.
    ParticipantType { HumanAgent, Customer, AiAgent, Agent, Unknown }
}
words! {
    /// Where a conversation is in its life.
    Status { Active, Inactive, Closed }
}
words! {
    /// How far a communication got to a recipient.
    DeliveryStatus { Initiated, InProgress, Delivered, Read, Failed, Completed }
}
words! {
    /// Written, or recognised from speech.
    ContentType { Text, Transcription }
}

/// An address of a participant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Address {
    pub(crate) channel: Channel,
    pub(crate) address: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) channel_id: Option<Arc<str>>,
}

/// A participant before it has an id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewParticipant {
    #[serde(default)]
    pub(crate) name: Option<Arc<str>>,
    #[serde(rename = "type", default = "unknown")]
    pub(crate) kind: ParticipantType,
    #[serde(default)]
    pub(crate) profile_id: Option<Arc<str>>,
    #[serde(default)]
    pub(crate) addresses: Vec<Address>,
}

fn unknown() -> ParticipantType {
    ParticipantType::Unknown
}

/// A participant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Participant {
    pub(crate) id: Arc<str>,
    pub(crate) conversation_id: Arc<str>,
    pub(crate) account_id: Arc<str>,
    /// Empty where nobody gave one: Twilio's agent-connect package takes no null.
    #[serde(serialize_with = "text_or_empty")]
    pub(crate) name: Option<Arc<str>>,
    #[serde(rename = "type")]
    pub(crate) kind: ParticipantType,
    /// Only customers have one, and only where the memory store resolves them.
    pub(crate) profile_id: Option<Arc<str>>,
    pub(crate) addresses: Vec<Address>,
    #[serde(serialize_with = "rfc3339_seconds")]
    pub(crate) created_at: Timestamp,
    #[serde(serialize_with = "rfc3339_seconds")]
    pub(crate) updated_at: Timestamp,
}

/// Who said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Author {
    pub(crate) address: Arc<str>,
    pub(crate) channel: Channel,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) participant_id: Option<Arc<str>>,
}

/// Whom it was said to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Recipient {
    pub(crate) address: Arc<str>,
    pub(crate) channel: Channel,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) participant_id: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) delivery_status: Option<DeliveryStatus>,
}

/// A recognised word. The SDK reads its times as dates, so they are points in time, not offsets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Word {
    pub(crate) text: Box<str>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "rfc3339_or_null",
        deserialize_with = "timestamp"
    )]
    pub(crate) start_time: Option<Timestamp>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "rfc3339_or_null",
        deserialize_with = "timestamp"
    )]
    pub(crate) end_time: Option<Timestamp>,
}

/// How speech was recognised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transcription {
    /// 0 inbound, 1 outbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) channel: Option<u8>,
    /// 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) confidence: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<Arc<str>>,
    #[serde(default)]
    pub(crate) words: Vec<Word>,
}

/// What was said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Content {
    #[serde(rename = "type")]
    pub(crate) kind: ContentType,
    pub(crate) text: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) transcription: Option<Box<Transcription>>,
}

/// A communication before it has an id.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewCommunication {
    pub(crate) author: Author,
    pub(crate) content: Content,
    #[serde(default)]
    pub(crate) channel_id: Option<Arc<str>>,
    /// Unique in a conversation; a second one with the same updates the first.
    #[serde(default)]
    pub(crate) resource_id: Option<Arc<str>>,
    pub(crate) recipients: Vec<Recipient>,
    #[serde(default, deserialize_with = "timestamp")]
    pub(crate) occurred_at: Option<Timestamp>,
}

/// A message or utterance.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Communication {
    pub(crate) id: Arc<str>,
    pub(crate) conversation_id: Arc<str>,
    pub(crate) account_id: Arc<str>,
    pub(crate) author: Author,
    pub(crate) content: Content,
    pub(crate) channel_id: Option<Arc<str>>,
    pub(crate) resource_id: Option<Arc<str>>,
    pub(crate) recipients: Vec<Recipient>,
    #[serde(serialize_with = "rfc3339_seconds")]
    pub(crate) created_at: Timestamp,
    #[serde(serialize_with = "rfc3339_seconds")]
    pub(crate) updated_at: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) occurred_at: Timestamp,
}

/// Where a conversation announces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusCallback {
    pub(crate) url: Arc<str>,
    #[serde(default)]
    pub(crate) method: CallbackMethod,
}

/// How; POST unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum CallbackMethod {
    #[default]
    Post,
    Get,
    Put,
    Delete,
    Patch,
}

/// A conversation's own fields; its participants and communications are kept beside it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conversation {
    pub(crate) id: Arc<str>,
    /// The version that it was born under, whatever becomes of the configuration since.
    pub(crate) configuration: Arc<Configuration>,
    pub(crate) status: Status,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Its own copy of the configuration's: an empty list ends its callbacks, the close's included.
    pub(crate) callbacks: Arc<[StatusCallback]>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

/// RFC 3339 in UTC without a fraction, as Twilio writes when a resource was created, changed or completed:
/// its SDK for Python reads no other as a date.
pub(crate) fn rfc3339_seconds<S: Serializer>(
    at: &Timestamp,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&whole_seconds(*at))
}

/// The same, of a time that may be absent.
pub(crate) fn rfc3339_seconds_or_null<S: Serializer>(
    at: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    rfc3339_or_null(&at.map(whole_seconds), serializer)
}

/// The second that `at` is in.
pub(crate) fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).expect("it is of a timestamp")
}

fn text_or_empty<S: Serializer>(text: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text.as_deref().unwrap_or(""))
}

/// RFC 3339 in UTC with its fraction, as times of what happened and was said.
pub(crate) fn rfc3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

/// The same, of a time that may be absent.
pub(crate) fn rfc3339_or_null<S: Serializer>(
    at: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}

fn timestamp<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    Option::<String>::deserialize(deserializer)?
        .map(|text| text.parse().map_err(serde::de::Error::custom))
        .transpose()
}
