//! `/emulator`: what whoever runs the emulator sees and does, without credentials.
//!
//! Owns the truth, the deliveries, the sums and the clock. Nothing here exists at Twilio.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::super::Shared;
use super::super::truth::Truth;
use super::{Answer, Sent, json, json_answer, raw_json};

/// Its routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/truth", get(truth))
        .route("/deliveries", get(deliveries))
        .route("/stats", get(stats))
        .route("/clock", get(clock).post(advance))
}

async fn truth(State(shared): State<Arc<Shared>>) -> Response {
    let chunks = futures::stream::iter(Truth::new(&shared));
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, Body::from_stream(chunks)).into_response()
}

async fn deliveries(State(shared): State<Arc<Shared>>) -> Response {
    raw_json(StatusCode::OK, shared.outbox.log().to_json())
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
