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

/// Every request arrives as it was sent, one of five twice, the second time later than others sent after it.
#[tokio::test]
async fn the_relay_repeats_late_and_changes_nothing() {
    const REQUESTS: usize = 300;
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&arrived);
    let note = async move |request: Request| {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, MAX_BODY_BYTES).await.unwrap();
        let target = parts.uri.path_and_query().unwrap().to_string();
        let header = parts.headers["x-twilio-signature"].clone();
        sink.lock().unwrap().push((target, header, body));
        StatusCode::NO_CONTENT
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let receiver = listener.local_addr().unwrap().to_string();
    let routes = axum::Router::new().fallback(note);
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });
    let relay = Relay::start(&receiver).await;
    let client = http::pooled_client();
    for n in 0..REQUESTS {
        let sent = http::Callback {
            url: format!("http://{}/a%20b/c?n={n}&x=%2B", relay.address()),
            signature: format!("s{n}="),
            token: n.to_string(),
            body: format!("body {n}"),
        };
        assert_eq!(http::post_callback(&client, &sent).await, Ok(204));
    }
    let (repeats, answers) = relay.finish().await;
    server.abort();
    let repeated = REQUESTS / REPEAT_EVERY as usize;
    assert_eq!(repeats, repeated as u64);
    assert_eq!(answers[&204], (REQUESTS + repeated) as u64);
    let arrived = arrived.lock().unwrap();
    for n in 0..REQUESTS {
        let target = format!("/a%20b/c?n={n}&x=%2B");
        let (signature, body) = (format!("s{n}="), format!("body {n}"));
        let mut at = arrived.iter().enumerate().filter(|(_, arrived)| {
            arrived.0 == target && arrived.1 == signature && arrived.2 == body
        });
        let first = at.next().unwrap().0;
        let second = at.next().map(|(position, _)| position);
        let due = (n + 1).is_multiple_of(REPEAT_EVERY as usize);
        assert_eq!(second.is_some(), due, "request {n}");
        let last = n + REPEAT_AFTER >= REQUESTS;
        assert!(
            last || second.is_none_or(|again| again > first + REPEAT_AFTER),
            "{n}"
        );
    }
}
