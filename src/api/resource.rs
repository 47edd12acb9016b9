//! The resources of Conversations v2 as the API sends them, and what makes one malformed.
//!
//! Owns the JSON shapes of Twilio's reference and of its SDKs' resource classes (npm `twilio` 6.2, PyPI
//! `twilio-agent-connect` 2.5). Refuses to judge whether a resource is whole: every field is optional,
//! and `null` means the same as absent, because lists leave out fields that the single GET has.
//!
//! Guarantees: a known field of a wrong type, or given twice, is an error and never a guess; unknown
//! fields are kept as JSON (`unknown`); an id that could not be a column or a path segment is refused;
//! a page without `meta` is refused, because its end could not be told from a cut. serde_json's own
//! depth limit (128) holds. Text and addresses cannot be printed: `Debug` shows the type's name alone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::event::MAX_ID_BYTES;

/// Longest page token that is sent back; a target above 8 KiB is refused by most servers.
pub const MAX_TOKEN_BYTES: usize = 4 * 1024;

/// Defines a resource: named optional fields, and the rest in `unknown`.
///
/// Not `#[serde(flatten)]`: that buffers every value of every object before it looks at one, which
/// doubles the time of reading a page, and it cannot tell a field that is given twice.
macro_rules! resource {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $key:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Default, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<$type>,)*
            /// Fields that this program does not know, as sent.
            pub unknown: Map<String, Value>,
        }

        impl $name {
            /// Takes over every field that `later` has; fields that it lacks stay.
            pub fn merge(&mut self, later: Self) {
                $(if later.$field.is_some() { self.$field = later.$field; })*
                self.unknown.extend(later.unknown);
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("an object (", stringify!($name), ")"))
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut it = $name::default();
                        while let Some(Key(key)) = map.next_key()? {
                            match key.as_ref() {
                                $($key => {
                                    let value = map.next_value()?;
                                    if it.$field.is_some() {
                                        return Err(A::Error::duplicate_field($key));
                                    }
                                    it.$field = value;
                                })*
                                _ => {
                                    it.unknown.insert(key.into_owned(), map.next_value()?);
                                }
                            }
                        }
                        Ok(it)
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}

resource! {
    /// `GET /Conversations/{id}`, and an item of the list.
    Conversation {
        /// `conv_conversation_…`, older ones `CH…`.
        id: String = "id",
        /// `AC…`.
        account_id: String = "accountId",
        /// The configuration that it was created under.
        configuration_id: String = "configurationId",
        /// `ACTIVE`, `INACTIVE`, `CLOSED`.
        status: String = "status",
        /// Display name.
        name: String = "name",
        /// ISO 8601.
        created_at: String = "createdAt",
        /// What lists have been seen to call it.
        date_created: String = "dateCreated",
        /// ISO 8601.
        updated_at: String = "updatedAt",
        /// What lists have been seen to call it.
        date_updated: String = "dateUpdated",
        /// The user's own JSON object.
        metadata: Map<String, Value> = "metadata",
        /// Participants, where the API includes them.
        participants: Vec<Participant> = "participants",
        /// Its copy of the configuration: not read, and not kept, because callback URLs can hold secrets.
        configuration: IgnoredAny = "configuration",
        /// The channels it has used: not read, its communications say it.
        channels: IgnoredAny = "channels",
    }
}

resource! {
    /// `GET …/Participants/{id}`, and an item of the list.
    Participant {
        /// Participant id.
        id: String = "id",
        /// The conversation that it belongs to.
        conversation_id: String = "conversationId",
        /// `AC…`.
        account_id: String = "accountId",
        /// Display name.
        name: String = "name",
        /// `HUMAN_AGENT`, `CUSTOMER`, `AI_AGENT`, `AGENT`, `UNKNOWN`.
        r#type: String = "type",
        /// Memory profile, customers only.
        profile_id: String = "profileId",
        /// Where it can be reached.
        addresses: Vec<Address> = "addresses",
    }
}

resource! {
    /// An address of a participant.
    Address {
        /// Channel name.
        channel: String = "channel",
        /// Phone number, mail address, identity.
        address: String = "address",
        /// Call or chat that it belongs to.
        channel_id: String = "channelId",
    }
}

resource! {
    /// `GET …/Communications/{id}`, and an item of the list.
    Communication {
        /// Communication id.
        id: String = "id",
        /// The conversation that it belongs to.
        conversation_id: String = "conversationId",
        /// `AC…`.
        account_id: String = "accountId",
        /// Channel name; Twilio's SDKs do not know this field, its examples do.
        channel: String = "channel",
        /// Who said it.
        author: Author = "author",
        /// What was said.
        content: Content = "content",
        /// The text under its older name.
        body: String = "body",
        /// Whom it was sent to.
        recipients: Vec<Recipient> = "recipients",
        /// Call or message SID.
        channel_id: String = "channelId",
        /// Message SID; for a transcription the SID and an index.
        resource_id: String = "resourceId",
        /// ISO 8601.
        created_at: String = "createdAt",
        /// What lists have been seen to call it.
        date_created: String = "dateCreated",
        /// ISO 8601.
        updated_at: String = "updatedAt",
        /// What lists have been seen to call it.
        date_updated: String = "dateUpdated",
        /// ISO 8601.
        occurred_at: String = "occurredAt",
    }
}

resource! {
    /// Who said it.
    Author {
        /// Address as sent.
        address: String = "address",
        /// Channel name.
        channel: String = "channel",
        /// The participant, where it was resolved.
        participant_id: String = "participantId",
    }
}

resource! {
    /// What was said.
    Content {
        /// `TEXT` or `TRANSCRIPTION`.
        r#type: String = "type",
        /// The words, at most 8 MiB (agent-connect's model).
        text: String = "text",
        /// How speech was recognised.
        transcription: Transcription = "transcription",
    }
}

resource! {
    /// How speech was recognised.
    Transcription {
        /// 0 inbound, 1 outbound.
        channel: i64 = "channel",
        /// 0 to 1.
        confidence: f64 = "confidence",
        /// Its name.
        engine: String = "engine",
        /// Words with times.
        words: Vec<Word> = "words",
    }
}

resource! {
    /// A word of a transcription.
    Word {
        /// The word as recognised.
        text: String = "text",
        /// When it begins.
        start_time: WordTime = "startTime",
        /// When it ends.
        end_time: WordTime = "endTime",
    }
}

resource! {
    /// Somebody a communication was sent to.
    Recipient {
        /// Address as sent.
        address: String = "address",
        /// Channel name.
        channel: String = "channel",
        /// The participant, where it was resolved.
        participant_id: String = "participantId",
        /// `INITIATED`, `IN_PROGRESS`, `DELIVERED`, `READ`, `FAILED`, `COMPLETED`.
        delivery_status: String = "deliveryStatus",
    }
}

resource! {
    /// `GET /ControlPlane/Configurations/{id}`: what closes a conversation, and who hears of it.
    Configuration {
        /// Configuration id.
        id: String = "id",
        /// By channel name.
        channel_settings: BTreeMap<String, Option<ChannelSettings>> = "channelSettings",
        /// Who hears of events.
        status_callbacks: Vec<IgnoredAny> = "statusCallbacks",
    }
}

resource! {
    /// What holds for one channel.
    ChannelSettings {
        /// When a conversation changes its status by itself.
        status_timeouts: StatusTimeouts = "statusTimeouts",
    }
}

resource! {
    /// Minutes of silence.
    StatusTimeouts {
        /// Until INACTIVE.
        inactive: i64 = "inactive",
        /// Until CLOSED.
        closed: i64 = "closed",
    }
}

/// The time of a word. The reference gives no unit; agent-connect's model says an ISO 8601 time.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum WordTime {
    /// Seconds from the start of the transcription.
    Seconds(f64),
    /// An ISO 8601 time, or seconds written as text.
    Text(String),
}

impl fmt::Debug for WordTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WordTime")
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page<T> {
    /// Its items, in the API's order.
    pub items: Vec<T>,
    /// What asks for the next page, opaque; `None` on the last.
    pub next_token: Option<String>,
}

/// What an answer must be to be believed.
pub(crate) trait Reply: DeserializeOwned {
    /// What is wrong with it for a request that asked for `wanted`, in words without content.
    fn flaw(&self, wanted: &Wanted<'_>) -> Option<&'static str>;
}

/// The ids that a request named.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) conversation: Option<&'a str>,
    pub(crate) item: Option<&'a str>,
}

/// Whether `id` can be a column, a key and a path segment.
pub(crate) fn usable(id: &str) -> bool {
    // A path segment of dots alone is removed by every URL parser, ours and the server's.
    !id.is_empty()
        && id.len() <= MAX_ID_BYTES
        && !id.chars().any(char::is_control)
        && id != "."
        && id != ".."
}

impl Reply for Conversation {
    fn flaw(&self, wanted: &Wanted<'_>) -> Option<&'static str> {
        wrong_id(self.id.as_deref(), wanted.conversation).or_else(|| {
            self.participants
                .iter()
                .flatten()
                .find_map(|p| p.id.as_deref().filter(|id| !usable(id)))
                .map(|_| "a participant's id cannot be used")
        })
    }
}

impl Reply for Participant {
    fn flaw(&self, wanted: &Wanted<'_>) -> Option<&'static str> {
        wrong_id(self.id.as_deref(), wanted.item)
            .or_else(|| foreign(self.conversation_id.as_deref(), wanted))
    }
}

impl Reply for Communication {
    fn flaw(&self, wanted: &Wanted<'_>) -> Option<&'static str> {
        wrong_id(self.id.as_deref(), wanted.item)
            .or_else(|| foreign(self.conversation_id.as_deref(), wanted))
    }
}

impl Reply for Configuration {
    fn flaw(&self, wanted: &Wanted<'_>) -> Option<&'static str> {
        wrong_id(self.id.as_deref(), wanted.item)
    }
}

impl<T: Reply + Listed> Reply for Page<T> {
    fn flaw(&self, wanted: &Wanted<'_>) -> Option<&'static str> {
        if self
            .next_token
            .as_ref()
            .is_some_and(|t| t.len() > MAX_TOKEN_BYTES)
        {
            return Some("the page token is too long to send back");
        }
        self.items.iter().find_map(|item| item.flaw(wanted))
    }
}

fn wrong_id(id: Option<&str>, wanted: Option<&str>) -> Option<&'static str> {
    match (id, wanted) {
        (None, _) => Some("a resource has no id"),
        (Some(id), _) if !usable(id) => Some("a resource's id cannot be used"),
        (Some(id), Some(wanted)) if id != wanted => Some("the answer is another resource"),
        (Some(_), _) => None,
    }
}

fn foreign(conversation: Option<&str>, wanted: &Wanted<'_>) -> Option<&'static str> {
    match (conversation, wanted.conversation) {
        (Some(is), Some(wanted)) if is != wanted => Some("the answer is of another conversation"),
        _ => None,
    }
}

/// A resource that comes in pages.
pub(crate) trait Listed {
    /// The key of the page's items.
    const KEY: &'static str;
}

impl Listed for Conversation {
    const KEY: &'static str = "conversations";
}

impl Listed for Communication {
    const KEY: &'static str = "communications";
}

impl Listed for Participant {
    const KEY: &'static str = "participants";
}

impl<'de, T: Listed + Deserialize<'de>> Deserialize<'de> for Page<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PageFields(PhantomData))
    }
}

struct PageFields<T>(PhantomData<T>);

impl<'de, T: Listed + Deserialize<'de>> Visitor<'de> for PageFields<T> {
    type Value = Page<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a page of {}", T::KEY)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page<T>, A::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            next_token: Option<String>,
        }
        let mut items: Option<Vec<T>> = None;
        let mut meta: Option<Meta> = None;
        while let Some(Key(key)) = map.next_key()? {
            if key == T::KEY {
                if items.replace(map.next_value()?).is_some() {
                    return Err(A::Error::duplicate_field(T::KEY));
                }
            } else if key == "meta" {
                if meta.replace(map.next_value()?).is_some() {
                    return Err(A::Error::duplicate_field("meta"));
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Page {
            items: items.ok_or_else(|| A::Error::missing_field(T::KEY))?,
            next_token: meta
                .ok_or_else(|| A::Error::missing_field("meta"))?
                .next_token
                .filter(|token| !token.is_empty()),
        })
    }
}

/// An object's key, borrowed unless it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn communication(json: Value) -> Result<Communication, serde_json::Error> {
        serde_json::from_str(&json.to_string())
    }

    #[test]
    fn null_is_absent_and_the_unknown_is_kept() {
        let it = communication(json!({
            "id": "c1", "author": null, "sentiment": {"score": 0.5},
            "content": {"type": "TEXT", "text": "hello", "html": "<p>hello</p>"}
        }))
        .unwrap();
        assert_eq!(it.author, None);
        assert_eq!(it.unknown["sentiment"]["score"], 0.5);
        assert_eq!(it.content.as_ref().unwrap().unknown["html"], "<p>hello</p>");
        assert_eq!(format!("{it:?}"), "Communication { .. }");
    }

    #[test]
    fn a_wrong_type_or_a_field_given_twice_is_an_error() {
        for wrong in [
            json!({"id": 7}),
            json!({"id": "c1", "author": "Ann"}),
            json!({"id": "c1", "recipients": {}}),
            json!({"id": "c1", "content": {"transcription": {"channel": "left"}}}),
            json!(["c1"]),
            json!(null),
        ] {
            assert!(communication(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Communication>(r#"{"id":"a","id":"b"}"#).is_err());
    }

    #[test]
    fn a_page_needs_its_key_and_its_meta() {
        let page = |text| serde_json::from_str::<Page<Communication>>(text);
        let last = page(r#"{"communications": [{"id": "c1"}], "meta": {"nextToken": null}}"#);
        assert_eq!(last.unwrap().next_token, None);
        let more = page(r#"{"meta": {"nextToken": "t&x=1"}, "communications": [], "more": [1]}"#);
        assert_eq!(more.unwrap().next_token.as_deref(), Some("t&x=1"));
        for wrong in [
            r#"{"communications": []}"#,
            r#"{"meta": {}}"#,
            r#"{"participants": [], "meta": {}}"#,
            r#"{"communications": null, "meta": {}}"#,
            r#"{"communications": [], "meta": {"nextToken": 5}}"#,
            r#"{"communications": [], "communications": [], "meta": {}}"#,
        ] {
            assert!(page(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flaws_are_found() {
        let wanted = Wanted {
            conversation: Some("v1"),
            item: Some("c1"),
        };
        let flaw = |json| communication(json).unwrap().flaw(&wanted);
        assert_eq!(flaw(json!({"id": "c1", "conversationId": "v1"})), None);
        assert!(flaw(json!({})).is_some());
        assert!(flaw(json!({"id": "c2"})).is_some());
        assert!(flaw(json!({"id": "c1", "conversationId": "v2"})).is_some());
        let any = Wanted {
            conversation: Some("v1"),
            item: None,
        };
        for id in ["", ".", "..", "a\nb", &"x".repeat(257)] {
            assert!(
                communication(json!({"id": id}))
                    .unwrap()
                    .flaw(&any)
                    .is_some(),
                "{id:?}"
            );
        }
    }
}
