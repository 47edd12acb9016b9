//! The emulator through its doors: REST as a client sees it, callbacks as a receiver does.
//!
//! Lists, pages and what they leave out go into `lists`; what callbacks are and what becomes of them into
//! `callbacks`; what a conversation goes through into `life`; configurations and operations into
//! `control_plane`; traffic from outside into `ingress`; the clock into `time`; what is refused into `wrong`;
//! what goes wrong on purpose into `faults`.
//! Here is what they share.

mod callbacks;
mod control_plane;
mod faults;
mod ingress;
mod life;
mod lists;
mod time;
mod wrong;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Extracted;
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::event::CallbackEvent;
use crate::signature::{Algorithm, PublicUrl, Verifier};

const DEADLINE: Duration = Duration::from_secs(60);
const PUBLIC_URL: &str = "https://callbacks.example.com/twilio/conversations?tenant=7";

fn base() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn options(conversations: u64) -> Options {
    Options {
        conversations,
        ..Options::new(7, base())
    }
}

struct Running {
    emulator: Emulator,
    stop: Stop,
    client: reqwest::Client,
}

impl Running {
    fn start(options: Options) -> Self {
        let stop = Stop::new();
        let clock = Clock::from_fn(|| "2026-11-22T12:30:00Z".parse().unwrap());
        Running {
            emulator: Emulator::start(options, clock, stop.clone()).unwrap(),
            stop,
            client: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap(),
        }
    }

    async fn played(options: Options) -> Self {
        let running = Running::start(options);
        timeout(DEADLINE, running.emulator.traffic_done())
            .await
            .expect("the traffic ends");
        running
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.emulator.address());
        self.client
            .request(method.parse().unwrap(), url)
            .basic_auth(DEV_ACCOUNT_SID, Some(DEV_AUTH_TOKEN))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request("GET", path)).await
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(method, path);
        let request = request.header("content-type", "application/json");
        answer(request.body(body.to_string())).await
    }

    /// Every item of a list, by following `nextToken`.
    async fn list(&self, path: &str, key: &str, size: usize) -> Vec<Value> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = format!("{path}{separator}pageSize={size}&pageToken={token}");
            let (status, page) = self.get(&page).await;
            assert_eq!(status, 200, "{page}");
            assert_eq!(page["meta"]["key"], key);
            assert_eq!(page["meta"]["pageSize"], size);
            items.extend(page[key].as_array().unwrap().clone());
            match page["meta"]["nextToken"].as_str() {
                Some(next) => token = next.to_owned(),
                None => return items,
            }
        }
    }

    async fn truth(&self) -> Vec<u8> {
        let answer = self.request("GET", "/emulator/truth").send().await.unwrap();
        answer.bytes().await.unwrap().to_vec()
    }

    async fn finish(self) {
        self.stop.request();
        self.emulator.finish().await.unwrap();
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn ids(items: &[Value]) -> Vec<&str> {
    items.iter().map(|i| i["id"].as_str().unwrap()).collect()
}

/// A receiver that proves each callback, and refuses every one the first `failures` times.
struct Receiver {
    verifier: Verifier,
    failures: usize,
    /// By token: bodies and answers.
    seen: Mutex<BTreeMap<String, Vec<(Bytes, u16)>>>,
    unproven: Mutex<Vec<String>>,
}

impl Receiver {
    async fn start(keys: Vec<SigningKey>, failures: usize) -> (Arc<Self>, SocketAddr) {
        let receiver = Arc::new(Receiver {
            verifier: Verifier::new(PublicUrl::parse(PUBLIC_URL).unwrap(), keys).unwrap(),
            failures,
            seen: Mutex::default(),
            unproven: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new()
            .fallback(receive)
            .with_state(Arc::clone(&receiver));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (receiver, address)
    }
}

async fn receive(
    Extracted(receiver): Extracted<Arc<Receiver>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let target = uri.path_and_query().unwrap().as_str();
    if let Err(refusal) = receiver.verifier.verify(target, &headers, body.clone()) {
        let reason = refusal.reason().to_owned();
        receiver.unproven.lock().unwrap().push(reason);
        return StatusCode::FORBIDDEN;
    }
    if headers["host"] != "callbacks.example.com" {
        return StatusCode::MISDIRECTED_REQUEST;
    }
    let token = headers[IDEMPOTENCY_HEADER].to_str().unwrap().to_owned();
    let mut seen = receiver.seen.lock().unwrap();
    let tries = seen.entry(token).or_default();
    let status = match tries.len() < receiver.failures {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::NO_CONTENT,
    };
    tries.push((body, status.as_u16()));
    status
}

fn dev_keys() -> Vec<SigningKey> {
    vec![SigningKey::new(Algorithm::Sha1, DEV_AUTH_TOKEN).unwrap()]
}

fn calling(conversations: u64, address: SocketAddr) -> Options {
    Options {
        callback_url: Some(format!("{PUBLIC_URL}#rc=5&rp=all")),
        callback_connect: Some(address),
        ..options(conversations)
    }
}
