//! REST: the Conversation Orchestrator's `/v2`, and the emulator's own `/emulator`.
//!
//! Owns routes, parameters, credentials and the shape of errors: `conversations` and `control_plane` are
//! Twilio's, `controls` are ours, `query` is what all lists share, `problem` what all refusals look like.
//! Refuses rules of a conversation's life: each change is a command for the state machine, each refusal of
//! it an error body here.
//!
//! Guarantees: nothing under `/v2` answers without credentials, nor before everything has happened that is
//! due by then. Bodies are JSON or refused (415), and bounded by [`MAX_BODY_BYTES`]; pages are bounded by
//! [`MAX_PAGE_SIZE`](super::pages::MAX_PAGE_SIZE). The state is locked to read or to apply one command,
//! never across a wait.
//!
//! `/emulator` needs no credentials: it is for whoever runs the emulator, on loopback, and its
//! conversations are made up.

mod control_plane;
mod controls;
mod conversations;
mod ingress;
mod problem;
mod query;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub(super) use self::ingress::{NewCall, NewMessage, take_call, take_message};
pub(crate) use self::problem::Problem;
use super::configuration::{Invalid, without_nulls};
use super::faults::rest::spoil;
use super::{Shared, page};

/// Largest request body.
pub(crate) const MAX_BODY_BYTES: usize = 1024 * 1024;

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let v2 = Router::new()
        .nest("/Conversations", conversations::routes())
        .nest("/ControlPlane", control_plane::routes())
        .fallback(async || Problem::not_found("resource at this path"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed("Method not allowed"))
        .layer(from_fn_with_state(Arc::clone(&shared), spoil))
        .layer(from_fn_with_state(Arc::clone(&shared), admit));
    Router::new()
        .nest("/v2", v2)
        .nest("/emulator", controls::routes().merge(ingress::routes()))
        .merge(page::routes())
        .fallback(async || Problem::not_found("resource at this path"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed("Method not allowed"))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
}

type Answer = Result<Response, Problem>;

/// The ids in a path; one that is no text is refused as everything else is.
struct Ids<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Ids<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(ids)) => Ok(Ids(ids)),
            Err(rejection) => Err(Problem::bad_request(rejection.body_text())),
        }
    }
}

/// A body that may be larger than [`MAX_BODY_BYTES`], or cut short.
type Sent = Result<Bytes, BytesRejection>;

/// Counts the request, checks its credentials, and lets everything happen that is due.
async fn admit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Answer {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let given = request.headers().get(header::AUTHORIZATION);
    match given.and_then(basic) {
        Some((user, password)) if shared.credentials.accept(&user, &password) => {
            shared.catch_up().await;
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

fn json_answer<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut body = Vec::new();
    render(value, &mut body);
    raw_json(status, body)
}

fn render<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value)
        .expect("the resources have string keys, and memory does not fail to write");
}

fn raw_json(status: StatusCode, body: Vec<u8>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, body).into_response()
}

/// A body of which a null says as much as nothing: Twilio's Python SDK writes one for each field that it
/// was not given.
fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Sent) -> Result<T, Problem> {
    typed(without_nulls(value(headers, body)?))
}

/// A merge patch, of which a null takes a field away.
fn patch<T: DeserializeOwned>(headers: &HeaderMap, body: Sent) -> Result<T, Problem> {
    typed(value(headers, body)?)
}

/// A body that is an object, whatever its members.
fn object(headers: &HeaderMap, body: Sent) -> Result<Map<String, Value>, Problem> {
    match value(headers, body)? {
        Value::Object(members) => Ok(members),
        _ => Err(Problem::bad_request("the body: is not a JSON object")),
    }
}

/// What `value` says, as the fields of a request.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    Ok(serde_path_to_error::deserialize(value).map_err(Invalid::from)?)
}

fn value(headers: &HeaderMap, body: Sent) -> Result<Value, Problem> {
    let given = headers.get(header::CONTENT_TYPE);
    let essence = given
        .and_then(|value| value.to_str().ok())
        .map(|value| value.split(';').next().unwrap_or("").trim());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Err(Problem::unsupported_media_type());
    }
    let body = body.map_err(Problem::unreadable)?;
    serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("the body: is no JSON: {error}")))
}
