//! A configuration: which traffic becomes conversations, how it is grouped, when it closes, what is linked.
//!
//! Owns the resource's JSON and the limits that its own fields can break (Twilio's reference page of
//! Configurations, and npm `twilio` 6.2). Refuses what needs more than one configuration to judge: the
//! account's limit, versions, operations (`state`).
//!
//! Guarantees: [`Settings`] is all of what PUT replaces, and nothing of what it cannot; what Convolake does
//! not know of it is kept in `extra`, so that GET, change, PUT brings it back. A null is as good as nothing,
//! as Twilio's Python SDK writes a null for each field that it was not given.
//!
//! Fails with [`Invalid`], which names the field.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::resource::{Channel, StatusCallback, rfc3339_seconds};

/// Longest `displayName`, characters.
pub(crate) const MAX_DISPLAY_NAME: usize = 32;
/// Entries of `statusCallbacks`.
pub(crate) const MAX_STATUS_CALLBACKS: usize = 2;
/// Entries of `intelligenceConfigurationIds`.
pub(crate) const MAX_INTELLIGENCE: usize = 5;
/// Entries of one channel's `captureRules`.
pub(crate) const MAX_CAPTURE_RULES: usize = 100;

/// The configuration that is there from the start; all generated traffic runs under it.
pub(crate) const CONFIGURATION_ID: &str = "conv_configuration_00000000000000000000000dev";
/// Its memory store.
pub(crate) const DEV_MEMORY_STORE_ID: &str = "mem_store_00000000000000000000000dev";

/// What GET shows and PUT is sent back with, but cannot change.
const READ_ONLY: [&str; 5] = ["id", "accountId", "version", "createdAt", "updatedAt"];

/// A field that cannot be so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(crate) struct Invalid {
    /// Its path, as `channelSettings.SMS.statusTimeouts.closed`.
    pub(crate) field: String,
    pub(crate) problem: String,
}

impl Invalid {
    /// `field` is not as it has to be.
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// A configuration as of one version.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Configuration {
    pub(crate) id: Arc<str>,
    #[serde(flatten)]
    pub(crate) settings: Settings,
    /// 1.., one more with each PUT. Conversations keep the version that they were born under.
    pub(crate) version: u64,
    #[serde(serialize_with = "rfc3339_seconds")]
    pub(crate) created_at: Timestamp,
    #[serde(serialize_with = "rfc3339_seconds")]
    pub(crate) updated_at: Timestamp,
}

/// What POST gives and PUT replaces, all of it: what is left out is its default, silently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    /// Empty where a PUT left it out.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(crate) display_name: Arc<str>,
    #[serde(default)]
    pub(crate) description: String,
    /// Cannot change after creation.
    pub(crate) conversation_grouping_type: GroupingType,
    /// Mandatory at creation; empty where a PUT left it out, which nobody reports.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(crate) memory_store_id: Arc<str>,
    #[serde(default, deserialize_with = "by_channel")]
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
    pub(crate) extra: BTreeMap<String, Value>,
}

impl Configuration {
    /// The configuration [`CONFIGURATION_ID`]: it captures nothing by itself and closes nothing.
    pub(crate) fn dev(status_callbacks: Arc<[StatusCallback]>, at: Timestamp) -> Self {
        Configuration {
            id: CONFIGURATION_ID.into(),
            settings: Settings {
                display_name: "convolake dev".into(),
                description: "What the generated traffic runs under".to_owned(),
                conversation_grouping_type: GroupingType::GroupByParticipantAddressesAndChannelType,
                memory_store_id: DEV_MEMORY_STORE_ID.into(),
                channel_settings: BTreeMap::new(),
                status_callbacks,
                intelligence_configuration_ids: Vec::new(),
                memory_extraction_enabled: false,
                conversations_v1_bridge: None,
                extra: BTreeMap::new(),
            },
            version: 1,
            created_at: at,
            updated_at: at,
        }
    }
}

impl Settings {
    /// What a POST says; the SDKs' required fields are required.
    pub(crate) fn for_create(body: Map<String, Value>) -> Result<Self, Invalid> {
        let settings = Settings::read(body)?;
        for (field, value) in [
            ("displayName", &settings.display_name),
            ("memoryStoreId", &settings.memory_store_id),
        ] {
            if value.is_empty() {
                return Err(Invalid::new(field, "is required"));
            }
        }
        Ok(settings)
    }

    /// What a PUT says. Only the grouping type has to be there: anything else that is left out is gone.
    pub(crate) fn for_replace(body: Map<String, Value>) -> Result<Self, Invalid> {
        Settings::read(body)
    }

    /// These settings with a merge patch: a null takes a field away, a channel is replaced as a whole.
    pub(crate) fn patched(&self, patch: &Map<String, Value>) -> Result<Self, Invalid> {
        let whole = serde_json::to_value(self);
        let Ok(Value::Object(mut whole)) = whole else {
            unreachable!("settings are an object with string keys");
        };
        for (field, value) in patch {
            match (whole.get_mut(field), value) {
                (Some(Value::Object(channels)), Value::Object(changed))
                    if field == "channelSettings" =>
                {
                    for (channel, settings) in changed {
                        channels.insert(channel.clone(), settings.clone());
                    }
                }
                _ => {
                    whole.insert(field.clone(), value.clone());
                }
            }
        }
        Settings::read(whole)
    }

    fn read(mut body: Map<String, Value>) -> Result<Self, Invalid> {
        for field in READ_ONLY {
            body.remove(field);
        }
        let body = without_nulls(Value::Object(body));
        let settings: Settings = serde_path_to_error::deserialize(body).map_err(Invalid::from)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.display_name.chars().count() > MAX_DISPLAY_NAME {
            let problem = format!("has more than {MAX_DISPLAY_NAME} characters");
            return Err(Invalid::new("displayName", problem));
        }
        check_callbacks("statusCallbacks", &self.status_callbacks)?;
        at_most(
            "intelligenceConfigurationIds",
            self.intelligence_configuration_ids.len(),
            MAX_INTELLIGENCE,
        )?;
        for (channel, settings) in &self.channel_settings {
            settings.check(&format!("channelSettings.{}", channel.word()))?;
        }
        let bridge = self.conversations_v1_bridge.as_ref();
        if bridge.is_some_and(|bridge| !bridge.service_id.starts_with("IS")) {
            let problem = "is the SID of a classic service, which begins with IS";
            return Err(Invalid::new("conversationsV1Bridge.serviceId", problem));
        }
        Ok(())
    }
}

impl ChannelSettings {
    fn check(&self, path: &str) -> Result<(), Invalid> {
        let rules = format!("{path}.captureRules");
        at_most(&rules, self.capture_rules.len(), MAX_CAPTURE_RULES)?;
        for (place, rule) in self.capture_rules.iter().enumerate() {
            for (field, address) in [("from", &rule.from), ("to", &rule.to)] {
                if address.is_empty() {
                    let field = format!("{rules}[{place}].{field}");
                    return Err(Invalid::new(field, "is an address or *"));
                }
            }
        }
        let Some(timeouts) = self.status_timeouts else {
            return Ok(());
        };
        for (field, minutes) in [("inactive", timeouts.inactive), ("closed", timeouts.closed)] {
            if minutes == Some(0) {
                let field = format!("{path}.statusTimeouts.{field}");
                return Err(Invalid::new(field, "is 1 minute or more"));
            }
        }
        if let (Some(inactive), Some(closed)) = (timeouts.inactive, timeouts.closed)
            && closed < inactive
        {
            let field = format!("{path}.statusTimeouts.closed");
            return Err(Invalid::new(field, "cannot come before inactive"));
        }
        Ok(())
    }
}

/// Callbacks of a configuration or of a conversation: few, and where HTTP can reach them.
pub(crate) fn check_callbacks(path: &str, callbacks: &[StatusCallback]) -> Result<(), Invalid> {
    at_most(path, callbacks.len(), MAX_STATUS_CALLBACKS)?;
    for (place, callback) in callbacks.iter().enumerate() {
        let url = url::Url::parse(&callback.url);
        let usable =
            url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !usable {
            let problem = "has to be an absolute http or https URL";
            return Err(Invalid::new(format!("{path}[{place}].url"), problem));
        }
    }
    Ok(())
}

/// Not more than `limit` entries.
pub(crate) fn at_most(field: &str, count: usize, limit: usize) -> Result<(), Invalid> {
    match count <= limit {
        true => Ok(()),
        false => Err(Invalid::new(
            field,
            format!("has more than {limit} entries"),
        )),
    }
}

/// `value` without the members that are null, at any depth.
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

impl From<serde_path_to_error::Error<serde_json::Error>> for Invalid {
    fn from(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let problem = error.inner().to_string();
        let mut path = match error.path().to_string() {
            root if root == "." => Vec::new(),
            path => vec![path],
        };
        // A field that is missing has no path of its own: serde names it in its message.
        let missing = problem.strip_prefix("missing field `");
        if let Some((field, _)) = missing.and_then(|rest| rest.split_once('`')) {
            path.push(field.to_owned());
            return Invalid::new(path.join("."), "is required");
        }
        match path.is_empty() {
            true => Invalid::new("the body", problem),
            false => Invalid::new(path.join("."), problem),
        }
    }
}

/// By way of text, so that the path of a wrong field below names the channel.
fn by_channel<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Channel, ChannelSettings>, D::Error> {
    BTreeMap::<String, ChannelSettings>::deserialize(deserializer)?
        .into_iter()
        .map(|(name, settings)| {
            let channel = Channel::deserialize(name.into_deserializer())?;
            Ok((channel, settings))
        })
        .collect()
}

/// How traffic finds its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(clippy::enum_variant_names, reason = "the names on the wire")]
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
