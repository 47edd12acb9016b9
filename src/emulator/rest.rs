//! REST: the Conversation Orchestrator's `/v2`, and the emulator's own `/emulator`.
//!
//! Owns routes, parameters, credentials and the shape of errors. Refuses rules of a conversation's life:
//! each change is a command for the state machine, each refusal of it an error body here.
//!
//! Guarantees: nothing under `/v2` answers without credentials. Bodies are JSON or refused (415), and
//! bounded by [`MAX_BODY_BYTES`]; pages are bounded by [`pages::MAX_PAGE_SIZE`]. The state is locked to
//! read or to apply one command, never across a wait.
//!
//! `/emulator` needs no credentials: it is for whoever runs the emulator, on loopback, and its
//! conversations are made up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::callbacks::Filter;
use super::faults::{self, Script};
use super::listing::{CommunicationView, ConversationView, Shape};
use super::pages::{self, Cursor, ListKey, Page};
use super::resource::{NewCommunication, NewParticipant, Status, StatusCallback};
use super::state::{Change, Command, Refusal};
use super::truth::Truth;

/// Largest request body.
pub(crate) const MAX_BODY_BYTES: usize = 1024 * 1024;

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let v2 = Router::new()
        .route(
            "/Conversations",
            get(list_conversations).post(create_conversation),
        )
        .route(
            "/Conversations/{id}",
            get(one_conversation).patch(change_conversation),
        )
        .route(
            "/Conversations/{id}/Communications",
            get(list_communications).post(create_communication),
        )
        .route(
            "/Conversations/{id}/Communications/{communication}",
            get(one_communication),
        )
        .route(
            "/Conversations/{id}/Participants",
            get(list_participants).post(create_participant),
        )
        .route(
            "/Conversations/{id}/Participants/{participant}",
            get(one_participant),
        )
        .fallback(async || Problem::not_found("resource at this path"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(from_fn_with_state(Arc::clone(&shared), faults::rest::spoil))
        .layer(from_fn_with_state(Arc::clone(&shared), admit));
    let controls = Router::new()
        .route("/truth", get(truth))
        .route("/deliveries", get(deliveries))
        .route("/faults", get(show_faults).put(replace_faults))
        .route("/stats", get(stats));
    Router::new()
        .nest("/v2", v2)
        .nest("/emulator", controls)
        .fallback(async || Problem::not_found("resource at this path"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
}

type Answer = Result<Response, Problem>;
/// A body that may be larger than [`MAX_BODY_BYTES`], or cut short.
type Sent = Result<Bytes, BytesRejection>;

/// Counts the request and checks its credentials.
async fn admit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Answer {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let given = request.headers().get(header::AUTHORIZATION);
    match given.and_then(basic) {
        Some((user, password)) if shared.credentials.accept(&user, &password) => {
            Ok(next.run(request).await)
        }
        _ => Err(Problem::unauthorized()),
    }
}

fn basic(header: &HeaderValue) -> Option<(String, String)> {
    let (scheme, encoded) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

async fn list_conversations(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = ListQuery::parse(query.as_deref(), true)?;
    let statuses: Vec<String> = query.statuses.iter().map(|s| format!("{s:?}")).collect();
    let channel_id = query.channel_id.as_deref().unwrap_or("");
    let mut words = vec!["conversations", channel_id];
    words.extend(statuses.iter().map(String::as_str));
    let key = ListKey::of(&words);
    let cursor = query.cursor(key)?;
    let state = shared.state();
    let entries = state.conversations();
    let takes = |position: usize| {
        let entry = &entries[position];
        (query.statuses.is_empty() || query.statuses.contains(&entry.conversation.status))
            && (channel_id.is_empty() || entry.channel_ids.contains(channel_id))
    };
    let page = pages::cut(entries.len(), takes, cursor, query.size);
    let items: Vec<_> = page
        .positions
        .iter()
        .map(|&position| {
            let entry = &entries[position];
            let shape = shared.list_shape(&entry.conversation.id);
            ConversationView::new(entry, state.account_id(), shape)
        })
        .collect();
    Ok(page_answer("conversations", &items, &page, query.size, key))
}

async fn one_conversation(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
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
    /// Absent leaves it, null takes it away.
    #[serde(default, deserialize_with = "present")]
    name: Option<Option<Arc<str>>>,
    #[serde(default)]
    configuration: Option<ChangeConfiguration>,
    #[serde(default)]
    metadata: BTreeMap<String, Option<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChangeConfiguration {
    #[serde(default)]
    status_callbacks: Option<Vec<StatusCallback>>,
}

fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<Arc<str>>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Callbacks of one conversation: the larger of Twilio's two documented limits.
const MAX_CALLBACKS: usize = 20;

async fn change_conversation(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let new: ChangeConversation = json(&headers, body)?;
    let callbacks = new.configuration.and_then(|c| c.status_callbacks);
    if callbacks.as_ref().is_some_and(|c| c.len() > MAX_CALLBACKS) {
        return Err(Problem::bad_request(format!(
            "statusCallbacks has more than {MAX_CALLBACKS} entries"
        )));
    }
    let command = Command::Change {
        conversation: id.into(),
        change: Change {
            status: new.status,
            name: new.name,
            callbacks: callbacks.map(Arc::from),
            metadata: new.metadata,
        },
    };
    let id = shared.carry_out(command, shared.clock.now()).await?;
    conversation_answer(&shared, StatusCode::OK, &id)
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
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = ListQuery::parse(query.as_deref(), false)?;
    let channel_id = query.channel_id.as_deref().unwrap_or("");
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
    let page = pages::cut(all.len(), takes, cursor, query.size);
    let items: Vec<_> = page
        .positions
        .iter()
        .map(|&position| {
            let communication = &all[position];
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
    Path((id, communication)): Path<(String, String)>,
) -> Answer {
    communication_answer(&shared, StatusCode::OK, &id, &communication)
}

async fn create_communication(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
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
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = ListQuery::parse(query.as_deref(), false)?;
    let channel_id = query.channel_id.as_deref().unwrap_or("");
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
    let page = pages::cut(all.len(), takes, cursor, query.size);
    let items: Vec<_> = page.positions.iter().map(|&p| &all[p]).collect();
    Ok(page_answer("participants", &items, &page, query.size, key))
}

async fn one_participant(
    State(shared): State<Arc<Shared>>,
    Path((id, participant)): Path<(String, String)>,
) -> Answer {
    participant_answer(&shared, StatusCode::OK, &id, &participant)
}

async fn create_participant(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
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

async fn truth(State(shared): State<Arc<Shared>>) -> Response {
    let chunks = futures::stream::iter(Truth::new(shared));
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, Body::from_stream(chunks)).into_response()
}

async fn deliveries(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let filter = Filter::parse(query.as_deref().unwrap_or(""));
    raw_json(StatusCode::OK, shared.outbox.log().to_json(&filter))
}

async fn show_faults(State(shared): State<Arc<Shared>>) -> Response {
    raw_json(StatusCode::OK, shared.faults.to_json())
}

/// Takes a script as YAML or JSON, whatever its content type says: JSON is YAML.
async fn replace_faults(State(shared): State<Arc<Shared>>, body: Sent) -> Answer {
    let body = body.map_err(Problem::unreadable)?;
    let text = std::str::from_utf8(&body)
        .map_err(|_| Problem::bad_request("the fault script is not UTF-8".to_owned()))?;
    let script = Script::parse(text)
        .map_err(|error| Problem::bad_request(format!("the fault script, {error}")))?;
    shared.faults.replace(script);
    Ok(raw_json(StatusCode::OK, shared.faults.to_json()))
}

async fn stats(State(shared): State<Arc<Shared>>) -> Response {
    json_answer(StatusCode::OK, &shared.counts())
}

/// The parameters of a list, in both spellings: the reference writes `PageSize`, the SDKs `pageSize`.
struct ListQuery {
    size: usize,
    token: Option<String>,
    statuses: BTreeSet<Status>,
    channel_id: Option<String>,
}

impl ListQuery {
    fn parse(query: Option<&str>, has_status: bool) -> Result<Self, Problem> {
        let mut parsed = ListQuery {
            size: pages::DEFAULT_PAGE_SIZE,
            token: None,
            statuses: BTreeSet::new(),
            channel_id: None,
        };
        let pairs = url::form_urlencoded::parse(query.unwrap_or("").as_bytes());
        for (name, value) in pairs {
            match &*name {
                "pageSize" | "PageSize" => parsed.size = page_size(&value)?,
                "pageToken" | "PageToken" => parsed.token = Some(value.into_owned()),
                "channelId" | "ChannelId" => parsed.channel_id = Some(value.into_owned()),
                "status" | "Status" if has_status => {
                    let status = match &*value {
                        "ACTIVE" => Status::Active,
                        "INACTIVE" => Status::Inactive,
                        "CLOSED" => Status::Closed,
                        _ => {
                            return Err(Problem::bad_request(
                                "status is ACTIVE, INACTIVE or CLOSED".to_owned(),
                            ));
                        }
                    };
                    parsed.statuses.insert(status);
                }
                // What is not known is not used, as at Twilio.
                _ => {}
            }
        }
        Ok(parsed)
    }

    fn cursor(&self, key: ListKey) -> Result<Cursor, Problem> {
        match self.token.as_deref() {
            None | Some("") => Ok(Cursor::From(0)),
            Some(token) => {
                pages::decode(token, key).map_err(|error| Problem::bad_request(error.to_string()))
            }
        }
    }
}

fn page_size(value: &str) -> Result<usize, Problem> {
    match value.parse() {
        Ok(size) if (1..=pages::MAX_PAGE_SIZE).contains(&size) => Ok(size),
        _ => Err(Problem::bad_request(format!(
            "pageSize is a number from 1 to {}",
            pages::MAX_PAGE_SIZE
        ))),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    key: &'static str,
    page_size: usize,
    next_token: Option<String>,
    previous_token: Option<String>,
}

fn page_answer<T: Serialize>(
    name: &'static str,
    items: &[T],
    page: &Page,
    size: usize,
    key: ListKey,
) -> Response {
    let meta = Meta {
        key: name,
        page_size: size,
        next_token: page.next.map(|cursor| pages::encode(cursor, key)),
        previous_token: page.previous.map(|cursor| pages::encode(cursor, key)),
    };
    let mut out = format!("{{\"{name}\":").into_bytes();
    out.extend_from_slice(&rendered(&items));
    out.extend_from_slice(b",\"meta\":");
    out.extend_from_slice(&rendered(&meta));
    out.push(b'}');
    raw_json(StatusCode::OK, out)
}

fn json_answer<T: Serialize>(status: StatusCode, value: &T) -> Response {
    raw_json(status, rendered(value))
}

fn rendered<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value)
        .expect("the resources have string keys, and memory does not fail to write")
}

fn raw_json(status: StatusCode, body: Vec<u8>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, body).into_response()
}

fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Sent) -> Result<T, Problem> {
    let given = headers.get(header::CONTENT_TYPE);
    let essence = given
        .and_then(|value| value.to_str().ok())
        .map(|value| value.split(';').next().unwrap_or("").trim());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Err(Problem::unsupported_media_type());
    }
    let body = body.map_err(Problem::unreadable)?;
    serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("the body is not as documented: {error}")))
}

/// An error as Twilio words them: `{code, message, more_info, status}`.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// Twilio's error number; where it publishes none, 20000 and the status.
    code: u32,
    message: String,
    /// The living conversation that stands in the way.
    conflicting: Option<Arc<str>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: u32, message: String) -> Self {
        Problem {
            status,
            code,
            message,
            conflicting: None,
        }
    }

    fn unreadable(rejection: BytesRejection) -> Self {
        let code = 20_000 + u32::from(rejection.status().as_u16());
        Problem::new(rejection.status(), code, rejection.body_text())
    }

    fn bad_request(message: String) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, 20_001, message)
    }

    fn unauthorized() -> Self {
        let message = "Authenticate with account SID and auth token, or API key and secret";
        Problem::new(StatusCode::UNAUTHORIZED, 20_003, message.to_owned())
    }

    fn method_not_allowed() -> Self {
        let message = "Method not allowed";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, 20_004, message.to_owned())
    }

    pub(crate) fn not_found(what: &str) -> Self {
        let message = format!("There is no {what}");
        Problem::new(StatusCode::NOT_FOUND, 20_404, message)
    }

    fn unsupported_media_type() -> Self {
        let message = "The content type has to be application/json";
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            20_415,
            message.to_owned(),
        )
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound(what) => Problem::not_found(what),
            Refusal::Closed | Refusal::Taken(_) => {
                Problem::new(StatusCode::CONFLICT, 20_409, message)
            }
            Refusal::Conflict { living } => Problem {
                conflicting: Some(living),
                ..Problem::new(StatusCode::CONFLICT, 20_409, message)
            },
            Refusal::TooMany { .. } => Problem::bad_request(message),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Shown<'a> {
            code: u32,
            message: &'a str,
            more_info: String,
            status: u16,
        }
        let shown = Shown {
            code: self.code,
            message: &self.message,
            more_info: format!("https://www.twilio.com/docs/errors/{}", self.code),
            status: self.status.as_u16(),
        };
        let mut response = json_answer(self.status, &shown);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            let realm = HeaderValue::from_static("Basic realm=\"Twilio API\"");
            headers.insert(header::WWW_AUTHENTICATE, realm);
        }
        let id = self.conflicting.map(|id| HeaderValue::from_str(&id));
        if let Some(Ok(id)) = id {
            headers.insert("x-conflicting-resource-id", id);
        }
        response
    }
}
