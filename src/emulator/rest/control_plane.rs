//! `/v2/ControlPlane`: configurations and the operations that change them.
//!
//! Owns their answers: a change is 202 with an operation, a look is 200 with the resource. Refuses rules of
//! the account (`state/control`) and of the resource (`configuration`).
//!
//! Guarantees: a repeated `Idempotency-Key` gets the answer that the first request got. `statusUrl` is on
//! the origin that the request was sent to, so that a client which polls only its own origin can follow it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;

use super::super::Shared;
use super::super::configuration::{Invalid, Settings};
use super::super::pages::{self, ListKey};
use super::super::state::{
    Command, ConfigurationChange, Operation, Progress, Refusal, Related, Request, related,
};
use super::problem::Problem;
use super::query::{ListQuery, page_answer};
use super::{Answer, Ids, Sent, json_answer, object};

/// Its routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/Configurations", get(list).post(create))
        .route(
            "/Configurations/{id}",
            get(one).put(replace).patch(patch).delete(delete),
        )
        .route("/Operations/{id}", get(operation))
}

async fn list(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Answer {
    let query = ListQuery::parse(query.as_deref())?;
    let store = &*query.memory_store_id;
    let key = ListKey::of(&["configurations", store]);
    let cursor = query.cursor(key)?;
    let state = shared.state();
    let configurations = state.configurations();
    let taken = |position: &u64| {
        let found = configurations.at(*position);
        found.is_some_and(|c| store.is_empty() || &*c.settings.memory_store_id == store)
    };
    let end = configurations.end();
    let page = pages::cut(
        |from| (from..end).filter(taken),
        |to| (0..to.min(end)).rev().filter(taken),
        cursor,
        query.size,
    );
    let found = page.positions.iter().filter_map(|&p| configurations.at(p));
    let items: Vec<_> = found.collect();
    Ok(page_answer(
        "configurations",
        &items,
        &page,
        query.size,
        key,
    ))
}

async fn one(State(shared): State<Arc<Shared>>, Ids(id): Ids<String>) -> Answer {
    let state = shared.state();
    let found = state.configurations().current(&id);
    let found = found.ok_or(Refusal::NotFound("configuration"))?;
    Ok(json_answer(StatusCode::OK, found))
}

async fn create(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Sent) -> Answer {
    let settings = Settings::for_create(object(&headers, body)?)?;
    let id = shared.new_id("configuration");
    let change = ConfigurationChange::Create { id, settings };
    begin(&shared, &headers, Request::Configuration(change)).await
}

async fn replace(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let body = object(&headers, body)?;
    let version = match body.get("version") {
        None | Some(serde_json::Value::Null) => None,
        Some(version) => Some(
            version
                .as_u64()
                .ok_or_else(|| Invalid::new("version", "is a number"))?,
        ),
    };
    let change = ConfigurationChange::Replace {
        configuration: id.into(),
        settings: Settings::for_replace(body)?,
        version,
    };
    begin(&shared, &headers, Request::Configuration(change)).await
}

async fn patch(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    if !shared.allow_configuration_patch {
        return Err(Problem::method_not_allowed(
            "A configuration cannot be patched: fetch it, change it, and PUT all of it",
        ));
    }
    let change = ConfigurationChange::Patch {
        configuration: id.into(),
        patch: object(&headers, body)?,
    };
    begin(&shared, &headers, Request::Configuration(change)).await
}

async fn delete(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
) -> Answer {
    let configuration = id.into();
    let change = ConfigurationChange::Delete { configuration };
    begin(&shared, &headers, Request::Configuration(change)).await
}

async fn operation(
    State(shared): State<Arc<Shared>>,
    Ids(id): Ids<String>,
    headers: HeaderMap,
) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Shown<'a> {
        #[serde(flatten)]
        operation: &'a Operation,
        status_url: String,
    }
    let state = shared.state();
    let operation = state.operation(&id).ok_or(Refusal::NotFound("operation"))?;
    let shown = Shown {
        operation,
        status_url: status_url(&shared, &headers, &id),
    };
    Ok(json_answer(StatusCode::OK, &shown))
}

/// Begins an operation and answers 202 with it as it began.
pub(super) async fn begin(shared: &Shared, headers: &HeaderMap, request: Request) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Accepted {
        operation_id: Arc<str>,
        status: Progress,
        status_url: String,
        #[serde(serialize_with = "related")]
        related: Option<Related>,
    }
    let command = Command::Begin {
        operation: shared.new_id("operation"),
        request,
        key: idempotency_key(headers)?,
    };
    let id = shared.carry_out(command, shared.clock.now()).await?;
    let known = shared.state().operation(&id).and_then(|o| o.known.clone());
    let accepted = Accepted {
        status_url: status_url(shared, headers, &id),
        operation_id: id,
        status: Progress::Pending,
        related: known,
    };
    Ok(accepted_answer(&accepted))
}

fn accepted_answer<T: Serialize>(accepted: &T) -> Response {
    json_answer(StatusCode::ACCEPTED, accepted)
}

/// A UUID that the client made up (npm `twilio` 6.2).
fn idempotency_key(headers: &HeaderMap) -> Result<Option<Arc<str>>, Problem> {
    let Some(given) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = given.to_str().ok().and_then(|text| text.parse().ok());
    let key: uuid::Uuid = key.ok_or_else(|| Invalid::new("Idempotency-Key", "has to be a UUID"))?;
    Ok(Some(key.to_string().into()))
}

fn status_url(shared: &Shared, headers: &HeaderMap, id: &str) -> String {
    let host = headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let origin = host.map_or_else(|| shared.address.to_string(), |host| host.to_string());
    format!("http://{origin}/v2/ControlPlane/Operations/{id}")
}
