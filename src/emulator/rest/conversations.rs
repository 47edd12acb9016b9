//! `/v2/Conversations`: conversations with their communications and participants.
//!
//! Owns which fields a request may have, and the answers. Refuses rules of a conversation's life
//! (`state`).
//!
//! Leaves out: `Actions`, which send messages; and the parts of a conversation's `configuration` that the
//! SDKs let a POST override.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use serde::Deserialize;

use super::super::Shared;
use super::super::configuration::{Invalid, check_callbacks};
use super::super::listing::{CommunicationView, ConversationView, Shape};
use super::super::pages::{self, ListKey};
use super::super::resource::{NewCommunication, NewParticipant, Status, StatusCallback};
use super::super::state::{Change, Command, Entry, MetadataChange, Refusal, Request};
use super::control_plane::begin;
use super::problem::Problem;
use super::query::{ListQuery, page_answer};
use super::{Answer, Ids, Sent, json, json_answer, patch};

/// Its routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/", get(list_conversations).post(create_conversation))
        .route(
            "/{id}",
            get(one_conversation)
                .patch(change_conversation)
                .put(replace_conversation)
                .delete(delete_conversation),
        )
        .route(
            "/{id}/Communications",
            get(list_communications).post(create_communication),
        )
        .route(
            "/{id}/Communications/{communication}",
            get(one_communication),
        )
        .route(
            "/{id}/Participants",
            get(list_participants).post(create_participant),
        )
        .route(
            "/{id}/Participants/{participant}",
            get(one_participant).put(replace_participant),
        )
        .route("/{id}/Actions", post(actions))
        .route("/{id}/Actions/{action}", get(actions))
}

async fn list_conversations(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = ListQuery::parse(query.as_deref())?;
    let statuses: Vec<String> = query.statuses.iter().map(|s| format!("{s:?}")).collect();
    let channel_id = &*query.channel_id;
    let mut words = vec!["conversations", channel_id];
    words.extend(statuses.iter().map(String::as_str));
    let key = ListKey::of(&words);
    let cursor = query.cursor(key)?;
    let state = shared.state();
    let takes = |entry: &Entry| {
        (query.statuses.is_empty() || query.statuses.contains(&entry.conversation.status))
            && (channel_id.is_empty() || entry.channel_ids.contains(channel_id))
    };
    let taken = |(position, entry): (u64, &Arc<Entry>)| takes(entry).then_some(position);
    let page = pages::cut(
        |from| state.listed(from..u64::MAX).filter_map(taken),
        |to| state.listed(0..to).rev().filter_map(taken),
        cursor,
        query.size,
    );
    let entries = page
        .positions
        .iter()
        .filter_map(|&position| state.at(position));
    let items: Vec<_> = entries
        .map(|entry| {
            let shape = shared.list_shape(&entry.conversation.id);
            ConversationView::new(entry, state.account_id(), shape)
        })
        .collect();
    Ok(page_answer("conversations", &items, &page, query.size, key))
}

async fn one_conversation(State(shared): State<Arc<Shared>>, Ids(id): Ids<String>) -> Answer {
    conversation_answer(&shared, StatusCode::OK, &id)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateConversation {
    configuration_id: Arc<str>,
    #[serde(default)]
    name: Option<Arc<str>>,
    #[serde(default)]
    participants: Vec<NewParticipant>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

async fn create_conversation(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let new: CreateConversation = json(&headers, body)?;
    for (key, value) in &new.metadata {
        check_metadata(key, value)?;
    }
    let participants = new.participants.into_iter();
    let command = Command::Open {
        id: shared.new_id("conversation"),
        configuration_id: new.configuration_id,
        name: new.name,
        metadata: new.metadata,
        participants: participants
            .map(|participant| (shared.new_id("participant"), participant))
            .collect(),
    };
    let id = shared.carry_out(command, shared.clock.now()).await?;
    conversation_answer(&shared, StatusCode::CREATED, &id)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChangeConversation {
    #[serde(default)]
    status: Option<Status>,
    /// A null leaves it as nothing does: Twilio's SDK for Python writes one where it was given nothing.
    #[serde(default)]
    name: Option<Arc<str>>,
    #[serde(default)]
    configuration: Option<ChangeConfiguration>,
    #[serde(default)]
    metadata: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChangeConfiguration {
    #[serde(default)]
    status_callbacks: Option<Vec<StatusCallback>>,
}

async fn change_conversation(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let new: ChangeConversation = patch(&headers, body)?;
    let callbacks = new.configuration.and_then(|c| c.status_callbacks);
    if let Some(callbacks) = &callbacks {
        check_callbacks("configuration.statusCallbacks", callbacks)?;
    }
    let metadata = new.metadata.unwrap_or_default();
    for (key, value) in &metadata {
        check_metadata(key, value.as_deref().unwrap_or(""))?;
    }
    let change = Change {
        status: new.status,
        name: new.name.map(Some),
        callbacks: callbacks.map(Arc::from),
        metadata: MetadataChange::Merge(metadata),
    };
    carry_out_change(&shared, id, change).await
}

/// All of what a PUT can change: what it leaves out is gone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplaceConversation {
    status: Status,
    #[serde(default)]
    name: Option<Arc<str>>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

async fn replace_conversation(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let new: ReplaceConversation = json(&headers, body)?;
    for (key, value) in &new.metadata {
        check_metadata(key, value)?;
    }
    let change = Change {
        status: Some(new.status),
        name: Some(new.name),
        callbacks: None,
        metadata: MetadataChange::Replace(new.metadata),
    };
    carry_out_change(&shared, id, change).await
}

async fn carry_out_change(shared: &Shared, id: String, change: Change) -> Answer {
    let command = Command::Change {
        conversation: id.into(),
        change,
    };
    let id = shared.carry_out(command, shared.clock.now()).await?;
    conversation_answer(shared, StatusCode::OK, &id)
}

async fn delete_conversation(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
) -> Answer {
    begin(&shared, &headers, Request::DeleteConversation(id.into())).await
}

/// Longest key and value of `metadata`, characters (npm `twilio` 6.2).
const MAX_METADATA_KEY: usize = 128;
const MAX_METADATA_VALUE: usize = 512;

fn check_metadata(key: &str, value: &str) -> Result<(), Invalid> {
    let field = || format!("metadata.{key}");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if key.is_empty() || key.len() > MAX_METADATA_KEY || !key.chars().all(plain) {
        let problem = format!("a key has 1 to {MAX_METADATA_KEY} letters, digits, . _ -");
        return Err(Invalid::new(field(), problem));
    }
    if value.chars().count() > MAX_METADATA_VALUE {
        let problem = format!("has more than {MAX_METADATA_VALUE} characters");
        return Err(Invalid::new(field(), problem));
    }
    Ok(())
}

fn conversation_answer(shared: &Shared, status: StatusCode, id: &str) -> Answer {
    let state = shared.state();
    let entry = state
        .conversation(id)
        .ok_or(Refusal::NotFound("conversation"))?;
    let view = ConversationView::new(entry, state.account_id(), Shape::WHOLE);
    Ok(json_answer(status, &view))
}

async fn list_communications(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = ListQuery::parse(query.as_deref())?;
    let channel_id = &*query.channel_id;
    let key = ListKey::of(&["communications", &id, channel_id]);
    let cursor = query.cursor(key)?;
    let state = shared.state();
    let all = &state
        .conversation(&id)
        .ok_or(Refusal::NotFound("conversation"))?
        .communications;
    let takes = |position: usize| {
        channel_id.is_empty() || all[position].channel_id.as_deref() == Some(channel_id)
    };
    let page = pages::cut_slice(all.len(), takes, cursor, query.size);
    let items: Vec<_> = page
        .positions
        .iter()
        .map(|&position| {
            let communication = &all[position as usize];
            CommunicationView::new(communication, shared.list_shape(&communication.id))
        })
        .collect();
    Ok(page_answer(
        "communications",
        &items,
        &page,
        query.size,
        key,
    ))
}

async fn one_communication(
    State(shared): State<Arc<Shared>>,
    Ids((id, communication)): Ids<(String, String)>,
) -> Answer {
    communication_answer(&shared, StatusCode::OK, &id, &communication)
}

async fn create_communication(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let communication: NewCommunication = json(&headers, body)?;
    let command = Command::Capture {
        conversation: Arc::from(&*id),
        id: shared.new_id("communication"),
        communication,
    };
    let communication = shared.carry_out(command, shared.clock.now()).await?;
    communication_answer(&shared, StatusCode::CREATED, &id, &communication)
}

fn communication_answer(shared: &Shared, status: StatusCode, id: &str, wanted: &str) -> Answer {
    let state = shared.state();
    let found = state
        .communication(id, wanted)
        .ok_or(Refusal::NotFound("communication"))?;
    Ok(json_answer(status, found))
}

async fn list_participants(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = ListQuery::parse(query.as_deref())?;
    let channel_id = &*query.channel_id;
    let key = ListKey::of(&["participants", &id, channel_id]);
    let cursor = query.cursor(key)?;
    let state = shared.state();
    let all = &state
        .conversation(&id)
        .ok_or(Refusal::NotFound("conversation"))?
        .participants;
    let takes = |position: usize| {
        let mut addresses = all[position].addresses.iter();
        channel_id.is_empty() || addresses.any(|a| a.channel_id.as_deref() == Some(channel_id))
    };
    let page = pages::cut_slice(all.len(), takes, cursor, query.size);
    let items: Vec<_> = page.positions.iter().map(|&p| &all[p as usize]).collect();
    Ok(page_answer("participants", &items, &page, query.size, key))
}

async fn one_participant(
    State(shared): State<Arc<Shared>>,
    Ids((id, participant)): Ids<(String, String)>,
) -> Answer {
    participant_answer(&shared, StatusCode::OK, &id, &participant)
}

async fn create_participant(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let command = Command::Join {
        conversation: Arc::from(&*id),
        participant: json(&headers, body)?,
        id: shared.new_id("participant"),
    };
    let participant = shared.carry_out(command, shared.clock.now()).await?;
    participant_answer(&shared, StatusCode::CREATED, &id, &participant)
}

async fn replace_participant(
    State(shared): State<Arc<Shared>>,
    Ids((id, participant)): Ids<(String, String)>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let command = Command::Replace {
        conversation: Arc::from(&*id),
        participant: participant.into(),
        new: json(&headers, body)?,
    };
    let participant = shared.carry_out(command, shared.clock.now()).await?;
    participant_answer(&shared, StatusCode::OK, &id, &participant)
}

fn participant_answer(shared: &Shared, status: StatusCode, id: &str, wanted: &str) -> Answer {
    let state = shared.state();
    let entry = state
        .conversation(id)
        .ok_or(Refusal::NotFound("conversation"))?;
    let mut participants = entry.participants.iter();
    let found = participants
        .find(|participant| &*participant.id == wanted)
        .ok_or(Refusal::NotFound("participant"))?;
    Ok(json_answer(status, found))
}

async fn actions() -> Problem {
    Problem::not_implemented(
        "The emulator sends no messages: POST /emulator/messages puts one into a conversation",
    )
}
