//! Conversations that stay ACTIVE, and what in their configuration lets them.
//!
//! A conversation that nothing closes is never announced as closed and never in the lake; its memory is never
//! extracted. The cause is nearly always a channel without `statusTimeouts.closed`. [`cause`] says it in words, from
//! the configuration that the conversation was created under; it is pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{MAX_PAGES, ReconcileError, age};
use crate::api::resource::{Configuration, Conversation};
use crate::api::{Api, ApiError};

/// The status of an open conversation.
const ACTIVE: &str = "ACTIVE";

/// Conversations named at most; a configuration that closes nothing has them all.
const NAMED: usize = 10_000;

/// A conversation that has been ACTIVE, and unchanged, for longer than the limit.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Active {
    /// Which.
    pub conversation_id: String,
    /// The configuration that it was created under.
    pub configuration_id: Option<String>,
    /// When it last changed, as the API says it.
    pub since: String,
    /// Why it is not closed, in words.
    pub cause: String,
}

/// All that are ACTIVE for longer than `limit`, [`NAMED`] at most.
pub(super) async fn overdue(
    api: &Api,
    limit: Duration,
    now: Timestamp,
) -> Result<Vec<Active>, ReconcileError> {
    let mut found = Vec::new();
    let mut configurations = HashMap::new();
    let mut token: Option<String> = None;
    let mut seen = BTreeSet::new();
    for _ in 0..MAX_PAGES {
        let page = api
            .conversations_page(ACTIVE, token.as_deref())
            .await?
            .value;
        for item in page.items {
            let Some(id) = item.id.clone() else { continue };
            let Some(item) = with_times(api, item, &id).await? else {
                continue;
            };
            let Some((since, idle)) = changed(&item, now).filter(|(_, idle)| *idle > limit) else {
                continue;
            };
            let configuration =
                configuration(api, item.configuration_id.as_deref(), &mut configurations).await?;
            found.push(Active {
                conversation_id: id,
                cause: cause(configuration, idle),
                configuration_id: item.configuration_id,
                since,
            });
            if found.len() >= NAMED {
                tracing::warn!(
                    named = NAMED,
                    "more are ACTIVE beyond the limit than are named"
                );
                return Ok(found);
            }
        }
        match page.next_token {
            None => return Ok(found),
            Some(next) if !seen.insert(next.clone()) => return Err(ReconcileError::EndlessList),
            next => token = next,
        }
    }
    Err(ReconcileError::EndlessList)
}

/// The list can leave times out; the single resource has them. `None`: deleted meanwhile.
async fn with_times(
    api: &Api,
    item: Conversation,
    id: &str,
) -> Result<Option<Conversation>, ApiError> {
    if last_change(&item).is_some() {
        return Ok(Some(item));
    }
    match api.conversation(id).await {
        Ok(answer) => Ok(Some(answer.value)),
        Err(ApiError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn last_change(item: &Conversation) -> Option<&str> {
    let times = [
        &item.updated_at,
        &item.date_updated,
        &item.created_at,
        &item.date_created,
    ];
    times.into_iter().flatten().next().map(String::as_str)
}

fn changed(item: &Conversation, now: Timestamp) -> Option<(String, Duration)> {
    let text = last_change(item)?;
    Some((text.to_owned(), age(text, now)?))
}

/// Each configuration is asked for once; `None`: it does not exist.
async fn configuration<'a>(
    api: &Api,
    id: Option<&str>,
    known: &'a mut HashMap<String, Option<Configuration>>,
) -> Result<Option<&'a Configuration>, ApiError> {
    let Some(id) = id else { return Ok(None) };
    if !known.contains_key(id) {
        let configuration = match api.configuration(id).await {
            Ok(answer) => Some(answer.value),
            Err(ApiError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        known.insert(id.to_owned(), configuration);
    }
    Ok(known[id].as_ref())
}

/// Why a conversation that was silent for `idle` is still open.
fn cause(configuration: Option<&Configuration>, idle: Duration) -> String {
    let Some(configuration) = configuration else {
        return "its configuration does not exist, so nothing closes it; close it with PATCH"
            .to_owned();
    };
    let settings = configuration.channel_settings.clone().unwrap_or_default();
    let closed = |settings: &Option<crate::api::resource::ChannelSettings>| {
        settings.as_ref()?.status_timeouts.as_ref()?.closed
    };
    let without: Vec<&str> = settings
        .iter()
        .filter(|(_, settings)| closed(settings).is_none())
        .map(|(channel, _)| channel.as_str())
        .collect();
    let longest = settings.values().filter_map(closed).max();
    let mut cause = match (without.is_empty(), longest) {
        (_, None) => {
            "its configuration has no statusTimeouts.closed, so nothing closes it".to_owned()
        }
        (false, Some(_)) => format!(
            "its configuration has no statusTimeouts.closed for {}, so nothing closes it there",
            without.join(", ")
        ),
        (true, Some(minutes)) if idle.as_secs() / 60 < u64::try_from(minutes).unwrap_or(0) => {
            format!(
                "its configuration closes it after {minutes} min of silence, which are not over"
            )
        }
        (true, Some(minutes)) => format!(
            "its configuration closes it after {minutes} min of silence, which are over: close it with PATCH"
        ),
    };
    if configuration
        .status_callbacks
        .as_ref()
        .is_none_or(Vec::is_empty)
    {
        cause += "; and it has no statusCallbacks, so its close will not be announced";
    }
    cause
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const IDLE: Duration = Duration::from_secs(60 * 60);

    fn cause_of(channels: Value, callbacks: Value) -> String {
        let configuration = json!({
            "id": "conv_configuration_1",
            "channelSettings": channels,
            "statusCallbacks": callbacks,
            "newField": [1],
        });
        let configuration: Configuration = serde_json::from_value(configuration).unwrap();
        cause(Some(&configuration), IDLE)
    }

    #[test]
    fn the_cause_is_named_from_the_configuration() {
        let ours = json!([{"url": "https://hooks.example.test/", "method": "POST"}]);
        let closes = |minutes| json!({"statusTimeouts": {"closed": minutes, "inactive": 1}});
        for (channels, part) in [
            (json!({}), "no statusTimeouts.closed, so"),
            (Value::Null, "no statusTimeouts.closed, so"),
            (
                json!({"SMS": {}, "VOICE": null}),
                "no statusTimeouts.closed, so",
            ),
            (
                json!({"SMS": closes(5), "VOICE": {"statusTimeouts": {"inactive": 5}}}),
                "for VOICE,",
            ),
            (
                json!({"SMS": closes(5), "VOICE": closes(61)}),
                "61 min of silence, which are not over",
            ),
            (
                json!({"SMS": closes(5), "VOICE": closes(60)}),
                "60 min of silence, which are over",
            ),
        ] {
            let cause = cause_of(channels, ours.clone());
            assert!(cause.contains(part), "{part}: {cause}");
            assert!(!cause.contains("statusCallbacks"), "{cause}");
        }
        for none in [json!([]), Value::Null] {
            assert!(cause_of(json!({"SMS": closes(5)}), none).contains("no statusCallbacks"));
        }
        assert!(cause(None, IDLE).contains("does not exist"));
    }
}
