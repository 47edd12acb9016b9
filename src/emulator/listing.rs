//! What a resource looks like in an answer: whole, or as lists show it.
//!
//! Owns what lists leave out. Twilio's lists are partial: any of `createdAt`, `channels`, `channel`,
//! `author`, `content`, `body`, `recipients` can be missing, the creation time may be called
//! `dateCreated`, and author and content may be flattened into `channel` and `body`; the single GET has
//! everything. Refuses randomness of its own: an item's shape depends on the seed and its id, so that it
//! looks the same on every page that shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::configuration::{Bridge, ChannelSettings, GroupingType};
use super::resource::{
    Author, Channel, Communication, Content, Conversation, Participant, Recipient, Status,
    StatusCallback, rfc3339, rfc3339_seconds, rfc3339_seconds_or_null,
};
use super::seeds;
use super::state::Entry;

/// What an item of a list leaves out or writes otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shape {
    no_created_at: bool,
    date_created: bool,
    no_channels: bool,
    /// `channel` and `body` instead of `author` and `content`.
    flat: bool,
    no_author: bool,
    no_content: bool,
    no_recipients: bool,
}

impl Shape {
    /// Nothing left out.
    pub(crate) const WHOLE: Shape = Shape {
        no_created_at: false,
        date_created: false,
        no_channels: false,
        flat: false,
        no_author: false,
        no_content: false,
        no_recipients: false,
    };

    /// The shape of the item `id` in lists: whole but for a share of `partial`, seeded.
    pub(crate) fn in_list(seed: u64, id: &str, partial: Partial) -> Self {
        let draw = seeds::mix_text(seed, id);
        if !seeds::falls(draw, partial.rate) {
            return Shape::WHOLE;
        }
        let mut bits = seeds::mix(draw, 1) as u8 & partial.fields.0;
        if bits & LEAVES_OUT == 0 {
            // An item that the rate chose is partial for certain, or the rate would mean less.
            bits |= partial.fields.0 & LEAVES_OUT;
        }
        let bit = |place: u32| bits & (1 << place) != 0;
        Shape {
            no_created_at: bit(0),
            date_created: bit(1),
            no_channels: bit(2),
            flat: bit(3),
            no_author: bit(4),
            no_content: bit(5),
            no_recipients: bit(6),
        }
    }
}

/// How often items of lists are partial, and in which fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partial {
    /// 0..1.
    pub(crate) rate: f64,
    pub(crate) fields: PartialFields,
}

/// What a partial item can lack or write otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialFields(u8);

/// By bit. `dateCreated` renames the creation time; `flat` writes `channel` and `body` instead of author and
/// content; the others are left out.
const FIELDS: [&str; 7] = [
    "createdAt",
    "dateCreated",
    "channels",
    "flat",
    "author",
    "content",
    "recipients",
];
/// The fields of which a partial communication lacks one at least.
const LEAVES_OUT: u8 = 0b111_0001;

impl Default for PartialFields {
    /// Everything that Twilio's lists are seen to lack.
    fn default() -> Self {
        PartialFields((1 << FIELDS.len()) - 1)
    }
}

impl FromStr for PartialFields {
    type Err = String;

    /// A list with commas.
    fn from_str(list: &str) -> Result<Self, String> {
        let mut fields = 0;
        for name in list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let place = FIELDS.iter().position(|field| *field == name);
            let place = place.ok_or_else(|| format!("{name} is none of {}", FIELDS.join(", ")))?;
            fields |= 1 << place;
        }
        Ok(PartialFields(fields))
    }
}

/// A conversation as an answer shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConversationView<'a> {
    id: &'a str,
    account_id: &'a str,
    configuration_id: &'a str,
    status: Status,
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<&'a BTreeSet<Channel>>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "rfc3339_seconds_or_null"
    )]
    created_at: Option<Timestamp>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "rfc3339_seconds_or_null"
    )]
    date_created: Option<Timestamp>,
    #[serde(serialize_with = "rfc3339_seconds")]
    updated_at: Timestamp,
    configuration: ConfigurationView<'a>,
    metadata: &'a BTreeMap<String, String>,
    participants: &'a [Participant],
}

impl<'a> ConversationView<'a> {
    /// `entry` in `shape`.
    pub(crate) fn new(entry: &'a Entry, account_id: &'a str, shape: Shape) -> Self {
        let own = &entry.conversation;
        let (created_at, date_created) = creation(own.created_at, shape);
        ConversationView {
            id: &own.id,
            account_id,
            configuration_id: &own.configuration.id,
            status: own.status,
            name: own.name.as_deref(),
            channels: (!shape.no_channels).then_some(&entry.channels),
            created_at,
            date_created,
            updated_at: own.updated_at,
            configuration: ConfigurationView::new(own),
            metadata: &own.metadata,
            participants: &entry.participants,
        }
    }
}

/// A conversation's configuration: the version it was born under, with its own callbacks.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigurationView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    display_name: &'a str,
    description: &'a str,
    conversation_grouping_type: GroupingType,
    #[serde(skip_serializing_if = "str::is_empty")]
    memory_store_id: &'a str,
    channel_settings: &'a BTreeMap<Channel, ChannelSettings>,
    status_callbacks: &'a [StatusCallback],
    intelligence_configuration_ids: &'a [Arc<str>],
    memory_extraction_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversations_v1_bridge: Option<&'a Bridge>,
    #[serde(flatten)]
    extra: &'a BTreeMap<String, Value>,
}

impl<'a> ConfigurationView<'a> {
    fn new(conversation: &'a Conversation) -> Self {
        let settings = &conversation.configuration.settings;
        ConfigurationView {
            display_name: &settings.display_name,
            description: &settings.description,
            conversation_grouping_type: settings.conversation_grouping_type,
            memory_store_id: &settings.memory_store_id,
            channel_settings: &settings.channel_settings,
            status_callbacks: &conversation.callbacks,
            intelligence_configuration_ids: &settings.intelligence_configuration_ids,
            memory_extraction_enabled: settings.memory_extraction_enabled,
            conversations_v1_bridge: settings.conversations_v1_bridge.as_ref(),
            extra: &settings.extra,
        }
    }
}

/// A communication as a list shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CommunicationView<'a> {
    id: &'a str,
    conversation_id: &'a str,
    account_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<&'a Author>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<Channel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    channel_id: Option<&'a str>,
    resource_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipients: Option<&'a [Recipient]>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "rfc3339_seconds_or_null"
    )]
    created_at: Option<Timestamp>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "rfc3339_seconds_or_null"
    )]
    date_created: Option<Timestamp>,
    #[serde(serialize_with = "rfc3339_seconds")]
    updated_at: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    occurred_at: Timestamp,
}

impl<'a> CommunicationView<'a> {
    /// `communication` in `shape`; in [`Shape::WHOLE`] it is the resource itself.
    pub(crate) fn new(communication: &'a Communication, shape: Shape) -> Self {
        let (created_at, date_created) = creation(communication.created_at, shape);
        let author = !shape.no_author;
        let content = !shape.no_content;
        CommunicationView {
            id: &communication.id,
            conversation_id: &communication.conversation_id,
            account_id: &communication.account_id,
            author: (author && !shape.flat).then_some(&communication.author),
            channel: (author && shape.flat).then_some(communication.author.channel),
            content: (content && !shape.flat).then_some(&communication.content),
            body: (content && shape.flat).then_some(&communication.content.text),
            channel_id: communication.channel_id.as_deref(),
            resource_id: communication.resource_id.as_deref(),
            recipients: (!shape.no_recipients).then_some(&communication.recipients),
            created_at,
            date_created,
            updated_at: communication.updated_at,
            occurred_at: communication.occurred_at,
        }
    }
}

fn creation(at: Timestamp, shape: Shape) -> (Option<Timestamp>, Option<Timestamp>) {
    match (shape.no_created_at, shape.date_created) {
        (true, _) => (None, None),
        (false, true) => (None, Some(at)),
        (false, false) => (Some(at), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(fields: &str, id: u32) -> Shape {
        let fields = fields.parse().unwrap();
        Shape::in_list(7, &format!("c{id}"), Partial { rate: 1.0, fields })
    }

    #[test]
    fn only_the_chosen_fields_are_missing() {
        for id in 0..200 {
            let shape = shape("recipients", id);
            let expected = Shape {
                no_recipients: true,
                ..Shape::WHOLE
            };
            assert_eq!(shape, expected);
        }
        assert!((0..200).any(|id| shape("dateCreated,author", id).date_created));
        assert!((0..200).all(|id| shape("dateCreated,author", id).no_author));
        assert!((0..200).all(|id| shape("", id) == Shape::WHOLE));
        let error = PartialFields::from_str("author,colour").unwrap_err();
        assert!(error.starts_with("colour is none of createdAt,"), "{error}");
    }

    #[test]
    fn the_rate_is_met_and_an_item_keeps_its_shape() {
        let partial = Partial {
            rate: 0.25,
            fields: PartialFields::default(),
        };
        let of = |id: u32| Shape::in_list(7, &format!("c{id}"), partial);
        let hits = (0..10_000).filter(|&id| of(id) != Shape::WHOLE).count();
        assert!((2_300..2_700).contains(&hits), "{hits}");
        assert!((0..100).all(|id| of(id) == of(id)));
    }
}
