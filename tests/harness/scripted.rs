//! An API of conversations that answers as the test wants: with whole conversations, or with what proxies,
//! outages and defects send in their place.
//!
//! Every conversation is whole unless the test's own rule says otherwise. The list of closed conversations
//! is always empty, so that the question whether the API answers at all is answered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::ACCOUNT;

/// Communications of every whole conversation.
pub(crate) const COMMUNICATIONS: usize = 3;

/// A running API; ends when dropped.
#[derive(Debug)]
pub(crate) struct Api {
    address: String,
    server: JoinHandle<()>,
}

/// A question to the API.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// The conversation.
    pub(crate) conversation: &'a str,
    /// What of it: empty, `Communications`, `Participants`, or these with an id behind.
    pub(crate) part: &'a str,
    /// How often the same path was asked for before.
    pub(crate) before: usize,
}

impl Api {
    /// Listens on a free loopback port. `rule` answers, or leaves the answer to the whole conversation.
    pub(crate) async fn start(
        rule: impl Fn(&Asked<'_>) -> Option<Response> + Clone + Send + Sync + 'static,
    ) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let counts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let routes = Router::new().fallback(async move |request: Request| {
            let path = request.uri().path();
            let before = {
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                let count = counts.entry(path.to_owned()).or_default();
                *count += 1;
                *count - 1
            };
            answer(request.headers(), path, before, &rule)
        });
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Api { address, server }
    }

    /// `HOST:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn answer(
    headers: &HeaderMap,
    path: &str,
    before: usize,
    rule: &impl Fn(&Asked<'_>) -> Option<Response>,
) -> Response {
    let [(_, account), (_, token)] = ACCOUNT else {
        unreachable!("two entries");
    };
    let credentials = format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{account}:{token}"))
    );
    if headers
        .get(AUTHORIZATION)
        .is_none_or(|given| given != credentials.as_str())
    {
        return problem(StatusCode::UNAUTHORIZED);
    }
    let Some(below) = path.strip_prefix("/v2/Conversations") else {
        return problem(StatusCode::NOT_FOUND);
    };
    let Some(below) = below.strip_prefix('/') else {
        return json_answer(&json!({"conversations": [], "meta": {}}));
    };
    let (conversation, part) = below.split_once('/').unwrap_or((below, ""));
    let asked = Asked {
        conversation,
        part,
        before,
    };
    rule(&asked).unwrap_or_else(|| match part {
        "" => json_answer(&whole(conversation)),
        "Communications" => json_answer(&communications(conversation)),
        _ => problem(StatusCode::NOT_FOUND),
    })
}

/// An error in the API's own words.
pub(crate) fn problem(status: StatusCode) -> Response {
    let body = json!({"code": 20_000 + status.as_u16(), "status": status.as_u16()});
    (status, json_answer(&body)).into_response()
}

/// 200 with this JSON.
pub(crate) fn json_answer(body: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// A closed conversation with its one participant.
fn whole(id: &str) -> Value {
    json!({
        "id": id,
        "accountId": ACCOUNT[0].1,
        "status": "CLOSED",
        "createdAt": "2026-11-22T10:00:00Z",
        "updatedAt": "2026-11-22T10:10:00Z",
        "participants": [{
            "id": "conv_participant_1",
            "conversationId": id,
            "type": "CUSTOMER",
            "addresses": [{"channel": "SMS", "address": "+15550100"}],
        }],
    })
}

/// The one page of its communications.
pub(crate) fn communications(id: &str) -> Value {
    let items: Vec<Value> = (0..COMMUNICATIONS)
        .map(|n| {
            json!({
                "id": format!("conv_communication_{n}"),
                "conversationId": id,
                "author": {"address": "+15550100", "channel": "SMS", "participantId": "conv_participant_1"},
                "content": {"type": "TEXT", "text": format!("text {n}")},
                "recipients": [{"address": "+15550199", "channel": "SMS"}],
                "createdAt": format!("2026-11-22T10:00:0{n}Z"),
                "occurredAt": format!("2026-11-22T10:00:0{n}Z"),
            })
        })
        .collect();
    json!({"communications": items, "meta": {"nextToken": null}})
}
