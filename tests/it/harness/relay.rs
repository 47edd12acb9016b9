//! A listener between the emulator and the receiver that makes delivery as bad as Twilio's may be.
//!
//! Forwards every request as it came and answers with the receiver's answer. Of every [`REPEAT_EVERY`] it
//! keeps one and sends it again after [`REPEAT_AFTER`] later ones, so that events arrive twice, and out of
//! order: openings after closes, closes at two offsets. Waits for the receiver's answers to its repeats,
//! so that [`Relay::finish`] leaves nothing in flight.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use reqwest::Client;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::http;

/// One request of so many comes twice.
const REPEAT_EVERY: u64 = 5;
/// So many other requests come before the repeat.
const REPEAT_AFTER: usize = 100;
/// Larger than any callback of these tests.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// A running relay; ends when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    address: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    receiver: String,
    client: Client,
    state: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    repeats: u64,
    held: VecDeque<Held>,
    answers: HashMap<u16, u64>,
}

#[derive(Debug, Clone)]
struct Held {
    parts: axum::http::request::Parts,
    body: Bytes,
}

impl Relay {
    /// Listens on a free loopback port and forwards to `receiver` (`HOST:PORT`).
    pub(crate) async fn start(receiver: &str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            receiver: receiver.to_owned(),
            client: http::pooled_client(),
            state: Mutex::new(Seen::default()),
        });
        let routes = axum::Router::new()
            .fallback(relay)
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            axum::serve(listener, routes)
                .await
                .expect("axum::serve gives no error");
        });
        Relay {
            address,
            shared,
            server,
        }
    }

    /// `HOST:PORT`, for `--callback-connect`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends the repeats that are still held, and gives how many there were in all and the receiver's
    /// answers by status.
    pub(crate) async fn finish(&self) -> (u64, HashMap<u16, u64>) {
        loop {
            let held = self.shared.seen(|seen| seen.held.pop_front());
            let Some(held) = held else { break };
            self.shared.repeat(held).await;
        }
        self.shared
            .seen(|seen| (seen.repeats, seen.answers.clone()))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn relay(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let held = Held { parts, body };
    let due = shared.seen(|seen| {
        seen.requests += 1;
        if seen.requests.is_multiple_of(REPEAT_EVERY) {
            seen.held.push_back(held.clone());
        }
        let full = seen.held.len() > REPEAT_AFTER / REPEAT_EVERY as usize;
        full.then(|| seen.held.pop_front()).flatten()
    });
    let answer = shared.forward(held).await;
    if let Some(due) = due {
        shared.repeat(due).await;
    }
    answer
}

impl Shared {
    async fn forward(&self, held: Held) -> Response {
        let target = held
            .parts
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let url = format!("http://{}{target}", self.receiver);
        let request = self
            .client
            .request(held.parts.method, url)
            .headers(held.parts.headers)
            .body(held.body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        };
        self.seen(|seen| *seen.answers.entry(answer.status().as_u16()).or_default() += 1);
        Response::builder()
            .status(answer.status())
            .body(Body::empty())
            .expect("a status alone is a response")
    }

    async fn repeat(&self, held: Held) {
        self.seen(|seen| seen.repeats += 1);
        self.forward(held).await;
    }

    fn seen<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
