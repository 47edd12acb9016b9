//! A configuration: which traffic becomes conversations, how it is grouped, when it closes, what is linked.
//!
//! Owns the resource's JSON and the limits that its own fields can break (Twilio's reference page of
//! Configurations, and npm `twilio` 6.2). Refuses what needs more than one configuration to judge: the
//! account's limit, versions, operations (`state`).
//!
//! Guarantees: [`Settings`] is all of what PUT replaces, and nothing of what it cannot; what Convolake does
//! not know of it is kept in `extra`, so that GET, change, PUT brings it back.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::resource::{Channel, StatusCallback, rfc3339};

/// A configuration as of one version.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Configuration {
    pub(crate) id: Arc<str>,
    #[serde(flatten)]
    pub(crate) settings: Settings,
    /// 1.., one more with each PUT. Conversations keep the version that they were born under.
    pub(crate) version: u64,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) created_at: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) updated_at: Timestamp,
}

/// What POST gives and PUT replaces, all of it: what is left out is its default, silently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    pub(crate) display_name: Arc<str>,
    #[serde(default)]
    pub(crate) description: String,
    /// Cannot change after creation.
    pub(crate) conversation_grouping_type: GroupingType,
    pub(crate) memory_store_id: Arc<str>,
    #[serde(default)]
    pub(crate) channel_settings: BTreeMap<Channel, ChannelSettings>,
    #[serde(default)]
    pub(crate) status_callbacks: Arc<[StatusCallback]>,
    #[serde(default)]
    pub(crate) intelligence_configuration_ids: Vec<Arc<str>>,
    #[serde(default)]
    pub(crate) memory_extraction_enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) conversations_v1_bridge: Option<Bridge>,
    #[serde(flatten)]
    pub(crate) extra: BTreeMap<String, serde_json::Value>,
}

/// How traffic finds its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum GroupingType {
    /// One conversation for each set of addresses and channel.
    GroupByParticipantAddressesAndChannelType,
    /// One for each set of addresses, whatever the channel.
    GroupByParticipantAddresses,
    /// One for each customer profile, whatever address and channel.
    GroupByProfile,
}

/// What holds for one channel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChannelSettings {
    /// Null or left out: this channel never makes a conversation inactive or closed.
    #[serde(default)]
    pub(crate) status_timeouts: Option<StatusTimeouts>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) capture_rules: Vec<CaptureRule>,
}

/// Minutes without traffic, 1.. each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusTimeouts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inactive: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) closed: Option<u32>,
}

/// Which traffic of a channel is captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CaptureRule {
    /// An address, or `*`.
    pub(crate) from: Arc<str>,
    /// An address, or `*`.
    pub(crate) to: Arc<str>,
    /// `callType`: `PSTN` where it says nothing, `CLIENT`, `PUBLIC_SIP`.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// The classic Conversations service whose chats come in as CHAT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bridge {
    pub(crate) service_id: Arc<str>,
}
