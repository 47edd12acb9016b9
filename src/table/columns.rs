//! The columns of each table, as data.
//!
//! The order is the table's; partition columns come last, since they live in folder names and not in the
//! files. A column is never renamed, retyped or moved: other people's queries name it. A new one is
//! nullable for old files, whatever it says here.

use super::{Column, Kind};

use Kind::{Day, Double, Int, List, Long, Struct, Text, Time};

const fn required(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        required: true,
    }
}

const fn optional(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        required: false,
    }
}

pub(super) const WORD: Kind = Struct(&[("text", Text), ("start_ms", Long), ("end_ms", Long)]);

pub(super) const RECIPIENT: Kind = Struct(&[
    ("address", Text),
    ("channel", Text),
    ("participant_id", Text),
    ("delivery_status", Text),
]);

pub(super) const ADDRESS: Kind =
    Struct(&[("channel", Text), ("address", Text), ("channel_id", Text)]);

pub(super) const PARTICIPANT: Kind = Struct(&[
    ("participant_id", Text),
    ("type", Text),
    ("name", Text),
    ("profile_id", Text),
    ("addresses", List(&ADDRESS)),
]);

pub(super) const COMMUNICATIONS: &[Column] = &[
    required("conversation_id", Text),
    required("communication_id", Text),
    optional("account_id", Text),
    optional("configuration_id", Text),
    required("position", Long),
    optional("author_participant_id", Text),
    optional("author_type", Text),
    optional("author_address", Text),
    optional("author_channel", Text),
    optional("direction", Text),
    optional("content_type", Text),
    optional("text", Text),
    optional("transcription_engine", Text),
    optional("transcription_confidence", Double),
    optional("transcription_words", List(&WORD)),
    optional("recipients", List(&RECIPIENT)),
    optional("channel_id", Text),
    optional("resource_id", Text),
    optional("occurred_at", Time),
    optional("created_at", Time),
    optional("updated_at", Time),
    required("turn", Long),
    required("missing", List(&Text)),
    optional("extra", Text),
    required("channel", Text),
    required("date", Day),
];

pub(super) const CONVERSATIONS: &[Column] = &[
    required("conversation_id", Text),
    optional("account_id", Text),
    optional("configuration_id", Text),
    optional("name", Text),
    optional("status", Text),
    required("channels", List(&Text)),
    required("participants", List(&PARTICIPANT)),
    optional("created_at", Time),
    optional("closed_at", Time),
    optional("updated_at", Time),
    optional("first_communication_at", Time),
    optional("last_communication_at", Time),
    required("communications", Long),
    optional("metadata", Text),
    optional("extra", Text),
    required("completeness", Text),
    required("missing", List(&Text)),
    required("pages", Long),
    required("fetched_singly", Long),
    required("api_calls", Long),
    required("content_hash", Text),
    required("kafka_partition", Int),
    required("kafka_offset", Long),
    required("enriched_at", Time),
    required("date", Day),
];

pub(super) const EVENTS: &[Column] = &[
    required("event_id", Text),
    required("event_type", Text),
    required("conversation_id", Text),
    optional("occurred_at", Time),
    required("received_at", Time),
    optional("idempotency_token", Text),
    required("body", Text),
    required("kafka_partition", Int),
    required("kafka_offset", Long),
    required("date", Day),
];
