//! `/emulator`: what whoever runs the emulator sees and does, without credentials.
//!
//! Owns the truth, the deliveries, the sums, the faults and the clock. Nothing here exists at Twilio.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::super::Shared;
use super::super::callbacks::Filter;
use super::super::faults::Script;
use super::super::truth::Truth;
use super::problem::Problem;
use super::{Answer, Sent, json, json_answer, raw_json};

/// Its routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/truth", get(truth))
        .route("/deliveries", get(deliveries))
        .route("/faults", get(faults).put(replace_faults))
        .route("/stats", get(stats))
        .route("/clock", get(clock).post(advance))
}

async fn truth(State(shared): State<Arc<Shared>>) -> Response {
    let chunks = futures::stream::iter(Truth::new(&shared));
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, Body::from_stream(chunks)).into_response()
}

async fn deliveries(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let filter = Filter::parse(query.as_deref().unwrap_or(""));
    raw_json(StatusCode::OK, shared.outbox.log().to_json(&filter))
}

async fn faults(State(shared): State<Arc<Shared>>) -> Response {
    raw_json(StatusCode::OK, shared.faults.to_json())
}

/// Takes a script as YAML or JSON, whatever its content type says: JSON is YAML.
async fn replace_faults(State(shared): State<Arc<Shared>>, body: Sent) -> Answer {
    let body = body.map_err(Problem::unreadable)?;
    let text = std::str::from_utf8(&body)
        .map_err(|_| Problem::bad_request("the fault script is not UTF-8"))?;
    let script = Script::parse(text)
        .map_err(|error| Problem::bad_request(format!("the fault script, {error}")))?;
    shared.faults.replace(script);
    Ok(raw_json(StatusCode::OK, shared.faults.to_json()))
}

async fn stats(State(shared): State<Arc<Shared>>) -> Response {
    json_answer(StatusCode::OK, &shared.counts())
}

async fn clock(State(shared): State<Arc<Shared>>) -> Response {
    json_answer(StatusCode::OK, &shared.clock.shown())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Advance {
    advance_seconds: u64,
}

/// Everything that becomes due has happened when the answer goes out.
async fn advance(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Sent) -> Answer {
    let Advance { advance_seconds } = json(&headers, body)?;
    shared.clock.advance(advance_seconds)?;
    shared.catch_up().await;
    Ok(json_answer(StatusCode::OK, &shared.clock.shown()))
}
