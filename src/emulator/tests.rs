//! The emulator through its doors: REST as a client sees it, callbacks as a receiver does.

mod ingress;

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
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
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

#[tokio::test]
async fn pages_of_any_size_are_the_same_list() {
    let running = Running::played(options(60)).await;
    let whole = running
        .list("/v2/Conversations", "conversations", 1_000)
        .await;
    assert_eq!(whole.len(), 60);
    for size in [1, 7, 59, 60, 61] {
        let list = running.list("/v2/Conversations", "conversations", size);
        assert_eq!(list.await, whole, "pageSize {size}");
    }
    let longest = longest_conversation(&running, &whole).await;
    let path = format!("/v2/Conversations/{longest}/Communications");
    let all = running.list(&path, "communications", 1_000).await;
    assert!(all.len() > 20);
    assert_eq!(running.list(&path, "communications", 3).await, all);

    let (_, first) = running.get(&format!("{path}?PageSize=5")).await;
    let next = first["meta"]["nextToken"].as_str().unwrap();
    assert_eq!(first["meta"]["previousToken"], Value::Null);
    let (_, second) = running
        .get(&format!("{path}?pageSize=5&PageToken={next}"))
        .await;
    let back = second["meta"]["previousToken"].as_str().unwrap();
    let (_, again) = running
        .get(&format!("{path}?pageSize=5&pageToken={back}"))
        .await;
    assert_eq!(again["communications"], first["communications"]);
    running.finish().await;
}

async fn longest_conversation(running: &Running, all: &[Value]) -> String {
    let mut longest = (0, String::new());
    for id in ids(all) {
        let path = format!("/v2/Conversations/{id}/Communications");
        let count = running.list(&path, "communications", 1_000).await.len();
        longest = longest.max((count, id.to_owned()));
    }
    longest.1
}

#[tokio::test]
async fn filters_narrow_a_list_and_tokens_stay_with_their_filter() {
    let running = Running::played(options(20)).await;
    let new = json!({"configurationId": configuration::CONFIGURATION_ID, "name": "open one"});
    let (status, open) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(status, 201);
    let key = "conversations";
    let path = "/v2/Conversations?status=ACTIVE&status=INACTIVE";
    assert_eq!(running.list(path, key, 50).await.len(), 1);
    let path = "/v2/Conversations?Status=CLOSED";
    let closed = running.list(path, key, 6).await;
    assert_eq!(closed.len(), 20);
    assert!(!ids(&closed).contains(&open["id"].as_str().unwrap()));

    let channel = &closed[3]["participants"][0]["addresses"][0]["channelId"];
    let path = format!("/v2/Conversations?channelId={}", channel.as_str().unwrap());
    let found = running.list(&path, key, 1).await;
    assert_eq!(ids(&found), [closed[3]["id"].as_str().unwrap()]);

    let (_, page) = running.get("/v2/Conversations?pageSize=2").await;
    let token = page["meta"]["nextToken"].as_str().unwrap();
    let path = format!("/v2/Conversations?status=CLOSED&pageToken={token}");
    let (status, problem) = running.get(&path).await;
    assert_eq!((status, &problem["status"]), (400, &json!(400)));
    running.finish().await;
}

#[tokio::test]
async fn lists_are_partial_and_single_resources_are_whole() {
    let running = Running::played(Options {
        partial: 1.0,
        ..options(30)
    })
    .await;
    let truth: Value = serde_json::from_slice(&running.truth().await).unwrap();
    let mut missing = BTreeSet::new();
    let mut flat = BTreeSet::new();
    for conversation in truth["conversations"].as_array().unwrap() {
        let id = conversation["id"].as_str().unwrap();
        let path = format!("/v2/Conversations/{id}/Communications");
        let listed = running.list(&path, "communications", 13).await;
        let whole = conversation["communications"].as_array().unwrap();
        assert_eq!(ids(&listed), ids(whole));
        for item in &listed {
            let lacks = ["createdAt", "author", "content", "recipients"];
            let lacking: Vec<_> = lacks.iter().filter(|f| item.get(**f).is_none()).collect();
            assert!(!lacking.is_empty(), "every item is partial: {item}");
            missing.extend(lacking.into_iter().copied());
            for other in ["dateCreated", "channel", "body"] {
                if item.get(other).is_some() {
                    flat.insert(other);
                }
            }
        }
        let (_, single) = running.get(&format!("{path}/{}", ids(whole)[0])).await;
        assert_eq!(single, whole[0], "the single GET is the truth");
    }
    assert_eq!(missing.len(), 4, "{missing:?}");
    assert_eq!(flat.len(), 3, "{flat:?}");
    let conversations = running.list("/v2/Conversations", "conversations", 50).await;
    assert!(conversations.iter().any(|c| c.get("channels").is_none()));
    assert!(conversations.iter().any(|c| c.get("createdAt").is_none()));
    let id = ids(&conversations)[0];
    let (_, single) = running.get(&format!("/v2/Conversations/{id}")).await;
    assert!(single["channels"].is_array() && single["createdAt"].is_string());
    running.finish().await;
}

#[tokio::test]
async fn a_seed_repeats_the_truth_byte_for_byte_whatever_the_pace() {
    let first = Running::played(options(40)).await;
    let second = Running::played(Options {
        rate: Some(2_000.0),
        ..options(40)
    })
    .await;
    let truth = first.truth().await;
    assert!(truth == second.truth().await, "the truths differ");
    let parsed: Value = serde_json::from_slice(&truth).unwrap();
    assert_eq!(parsed["conversations"].as_array().unwrap().len(), 40);
    first.finish().await;
    second.finish().await;
}

#[tokio::test]
async fn callbacks_are_proven_and_announce_every_step_once() {
    let (receiver, address) = Receiver::start(dev_keys(), 0).await;
    let running = Running::played(Options {
        duplicates: 0.3,
        disorder: 0.3,
        ..calling(40, address)
    })
    .await;
    assert_eq!(*receiver.unproven.lock().unwrap(), Vec::<String>::new());
    let counts = running.emulator.counts();
    assert_eq!(counts.deliveries, counts.deliveries_accepted, "{counts:?}");
    assert!(counts.duplicate > 0);
    let seen = std::mem::take(&mut *receiver.seen.lock().unwrap());
    let tries: usize = seen.values().map(Vec::len).sum();
    assert_eq!(tries as u64, counts.deliveries, "no retry was needed");
    assert_eq!(seen.len() as u64, counts.deliveries - counts.duplicate);
    let mut by_type = BTreeMap::<String, u64>::new();
    let mut closes = BTreeSet::new();
    for tries in seen.values() {
        assert!(tries.iter().all(|(body, _)| *body == tries[0].0));
        let event = CallbackEvent::parse(&tries[0].0).unwrap();
        assert_eq!(event.account_id.as_deref(), Some(DEV_ACCOUNT_SID));
        *by_type.entry(event.event_type.to_string()).or_default() += 1;
        if event.is_close() {
            assert!(
                closes.insert(event.conversation_id.to_string()),
                "closed twice"
            );
        }
    }
    assert_eq!(closes.len(), 40);
    assert_eq!(by_type["CONVERSATION_CREATED"], 40);
    assert_eq!(by_type["COMMUNICATION_CREATED"], counts.communications);
    assert!(
        by_type["CONVERSATION_UPDATED"] > 40,
        "some are INACTIVE first"
    );
    assert!(by_type["PARTICIPANT_ADDED"] >= 80);
    assert!(by_type.contains_key("COMMUNICATION_UPDATED"));
    let (_, log) = running.get("/emulator/deliveries").await;
    let kept = log["deliveries"].as_array().unwrap();
    assert_eq!(
        kept.len() as u64 + log["forgotten"].as_u64().unwrap(),
        counts.deliveries
    );
    assert_eq!(kept[0]["attempts"][0]["status"], 204);
    running.finish().await;
}

#[tokio::test]
async fn retries_keep_their_token_and_end_with_success() {
    let keys = vec![
        SigningKey::new(Algorithm::Sha1, "old").unwrap(),
        SigningKey::new(Algorithm::Sha256, "new").unwrap(),
    ];
    let (receiver, address) = Receiver::start(keys.clone(), 1).await;
    let running = Running::played(Options {
        signing_keys: keys,
        duplicates: 0.0,
        ..calling(2, address)
    })
    .await;
    assert_eq!(*receiver.unproven.lock().unwrap(), Vec::<String>::new());
    let counts = running.emulator.counts();
    assert_eq!(counts.deliveries_accepted, counts.deliveries);
    assert_eq!(counts.retries, counts.deliveries);
    for tries in receiver.seen.lock().unwrap().values() {
        let statuses: Vec<u16> = tries.iter().map(|(_, status)| *status).collect();
        assert_eq!(statuses, [503, 204]);
        assert_eq!(tries[0].0, tries[1].0);
    }
    running.finish().await;
}

#[tokio::test]
async fn what_nobody_answers_is_counted_and_given_up() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let running = Running::played(Options {
        retries: Retries {
            attempts: 2,
            ..Retries::default()
        },
        duplicates: 0.0,
        ..calling(1, address)
    })
    .await;
    let counts = running.emulator.counts();
    assert_eq!(counts.conversations_closed, 1);
    assert!(counts.deliveries > 0);
    assert_eq!(counts.unanswered, counts.deliveries);
    assert_eq!(counts.retries, counts.deliveries);
    running.finish().await;
}

#[tokio::test]
async fn the_gate_holds_traffic_back() {
    let running = Running::start(Options {
        gate_open: false,
        ..options(3)
    });
    let (_, page) = running.get("/v2/Conversations").await;
    assert_eq!(page["conversations"], json!([]));
    assert_eq!(page["meta"]["nextToken"], Value::Null);
    running.emulator.gate(true);
    timeout(DEADLINE, running.emulator.traffic_done())
        .await
        .unwrap();
    assert_eq!(running.emulator.counts().conversations_closed, 3);
    running.finish().await;
}

#[tokio::test]
async fn endless_traffic_happens_now_and_ends_at_the_stop() {
    let running = Running::start(options(0));
    let closed = async {
        while running.emulator.counts().conversations_closed < 50 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, closed).await.unwrap();
    let (_, page) = running.get("/v2/Conversations?status=CLOSED").await;
    let updated: Timestamp = page["conversations"][0]["updatedAt"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(updated <= running.emulator.shared.clock.now());
    running.finish().await;
}

#[tokio::test]
async fn a_conversation_lives_over_rest_and_a_closed_one_never_changes() {
    let (receiver, address) = Receiver::start(dev_keys(), 0).await;
    let running = Running::start(Options {
        gate_open: false,
        duplicates: 0.0,
        ..calling(1, address)
    });
    let new = json!({
        "configurationId": configuration::CONFIGURATION_ID,
        "name": "Kiran",
        "metadata": {"order": "17"},
        "participants": [
            {"name": "Kiran A.", "type": "CUSTOMER", "addresses": [{"channel": "SMS", "address": "+15551234567"}]},
            {"type": "HUMAN_AGENT", "addresses": [{"channel": "SMS", "address": "+15557654321"}]}
        ]
    });
    let (status, created) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!((status, &created["status"]), (201, &json!("ACTIVE")));
    let id = created["id"].as_str().unwrap().to_owned();
    let path = format!("/v2/Conversations/{id}");

    let request = running.request("POST", "/v2/Conversations");
    let request = request.header("content-type", "application/json; charset=utf-8");
    let conflict = request.body(new.to_string()).send().await.unwrap();
    assert_eq!(conflict.status(), 409);
    assert_eq!(conflict.headers()["x-conflicting-resource-id"], id.as_str());

    let inactive = json!({"status": "INACTIVE"});
    assert_eq!(running.send("PATCH", &path, &inactive).await.0, 200);
    let message = json!({
        "author": {"address": "+15551234567", "channel": "SMS"},
        "content": {"type": "TEXT", "text": "hello"},
        "resourceId": "SM1",
        "recipients": [{"address": "+15557654321", "channel": "SMS", "deliveryStatus": "INITIATED"}]
    });
    let messages = format!("{path}/Communications");
    let (status, first) = running.send("POST", &messages, &message).await;
    assert_eq!(status, 201, "{first}");
    let (_, awake) = running.get(&path).await;
    assert_eq!(awake["status"], "ACTIVE", "new traffic wakes it");
    let (_, again) = running.send("POST", &messages, &message).await;
    assert_eq!(again["id"], first["id"], "one communication per resourceId");
    let participant = json!({"type": "AI_AGENT"});
    let participants = format!("{path}/Participants");
    let (status, joined) = running.send("POST", &participants, &participant).await;
    assert_eq!(status, 201);
    let one = format!("{participants}/{}", joined["id"].as_str().unwrap());
    assert_eq!(running.get(&one).await, (200, joined));
    assert_eq!(
        running.list(&participants, "participants", 2).await.len(),
        3
    );

    closes_for_good(&running, &path, &message).await;
    timeout(DEADLINE, running.emulator.shared.outbox.settled())
        .await
        .unwrap();
    // Created, two participants, inactive, active, message, its update, participant, closed.
    assert_eq!(receiver.seen.lock().unwrap().len(), 9);
    running.finish().await;
}

async fn closes_for_good(running: &Running, path: &str, message: &Value) {
    let (messages, participants) = (
        format!("{path}/Communications"),
        format!("{path}/Participants"),
    );
    let close = json!({"status": "CLOSED", "name": null});
    let (status, closed) = running.send("PATCH", path, &close).await;
    assert_eq!((status, &closed["status"]), (200, &json!("CLOSED")));
    assert_eq!(closed["name"], Value::Null);
    assert_eq!(
        running.send("PATCH", path, &close).await,
        (200, closed.clone())
    );
    let inactive = json!({"status": "INACTIVE"});
    let participant = json!({"type": "AI_AGENT"});
    let rename = json!({"name": "another"});
    for (method, path, body) in [
        ("PATCH", path, &rename),
        ("PATCH", path, &inactive),
        ("POST", &messages, message),
        ("POST", &participants, &participant),
    ] {
        let (status, problem) = running.send(method, path, body).await;
        assert_eq!(status, 409, "{method} {path}");
        assert_eq!(problem["status"], 409);
    }
    assert_eq!(running.get(path).await, (200, closed));
}

#[tokio::test]
async fn cleared_callbacks_end_with_the_conversation_unannounced() {
    let (receiver, address) = Receiver::start(dev_keys(), 0).await;
    let running = Running::start(Options {
        gate_open: false,
        ..calling(1, address)
    });
    let new = json!({"configurationId": configuration::CONFIGURATION_ID});
    let (_, created) = running.send("POST", "/v2/Conversations", &new).await;
    let path = format!("/v2/Conversations/{}", created["id"].as_str().unwrap());
    assert_eq!(
        created["configuration"]["statusCallbacks"][0]["method"],
        "POST"
    );
    let clear = json!({"configuration": {"statusCallbacks": []}});
    let (status, cleared) = running.send("PATCH", &path, &clear).await;
    assert_eq!(status, 200);
    assert_eq!(cleared["configuration"]["statusCallbacks"], json!([]));
    let close = json!({"status": "CLOSED"});
    assert_eq!(running.send("PATCH", &path, &close).await.0, 200);
    timeout(DEADLINE, running.emulator.shared.outbox.settled())
        .await
        .unwrap();
    for tries in receiver.seen.lock().unwrap().values() {
        assert!(!CallbackEvent::parse(&tries[0].0).unwrap().is_close());
    }
    running.finish().await;
}

#[tokio::test]
async fn requests_that_are_wrong_are_told_so_as_twilio_does() {
    let running = Running::played(Options {
        api_key: Some(("SK1".to_owned(), "s3cret".to_owned())),
        ..options(1)
    })
    .await;
    let list = "/v2/Conversations";
    for (what, path, status) in [
        ("no such path", "/v2/Nothing", 404),
        ("no such path of ours", "/emulator/nothing", 404),
        ("no such root", "/", 404),
        ("no such conversation", "/v2/Conversations/x", 404),
        (
            "of no such conversation",
            "/v2/Conversations/x/Communications",
            404,
        ),
        ("size 0", "/v2/Conversations?pageSize=0", 400),
        ("size 1001", "/v2/Conversations?PageSize=1001", 400),
        ("size word", "/v2/Conversations?pageSize=ten", 400),
        ("bad token", "/v2/Conversations?pageToken=AAAA", 400),
        ("bad status", "/v2/Conversations?status=OPEN", 400),
    ] {
        let (found, problem) = running.get(path).await;
        assert_eq!((what, found), (what, status), "{problem}");
        assert_eq!(problem["status"], status);
        assert!(problem["code"].is_u64() && problem["message"].is_string());
        assert!(
            problem["more_info"]
                .as_str()
                .unwrap()
                .starts_with("https://")
        );
    }
    let new = json!({"configurationId": configuration::CONFIGURATION_ID}).to_string();
    let form = running.request("POST", list).body(new.clone());
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(answer(form).await.0, 415);
    assert_eq!(answer(running.request("POST", list).body(new)).await.0, 415);
    assert_eq!(running.send("POST", list, &json!({})).await.0, 400);
    for method in ["PUT", "DELETE"] {
        let (status, problem) = running.send(method, list, &json!({})).await;
        assert_eq!((status, &problem["code"]), (405, &json!(20_004)));
    }
    let too_large = json!({"configurationId": "x".repeat(rest::MAX_BODY_BYTES)});
    let (status, problem) = running.send("POST", list, &too_large).await;
    assert_eq!((status, &problem["status"]), (413, &json!(413)));

    let url = format!("http://{}{list}", running.emulator.address());
    let key = running.client.get(&url).basic_auth("SK1", Some("s3cret"));
    assert_eq!(answer(key).await.0, 200);
    for (user, password) in [("SK1", "s3cre"), (DEV_ACCOUNT_SID, "s3cret"), ("", "")] {
        let request = running.client.get(&url).basic_auth(user, Some(password));
        assert_eq!(answer(request).await.0, 401);
    }
    let (status, problem) = answer(running.client.get(&url)).await;
    assert_eq!((status, &problem["code"]), (401, &json!(20_003)));
    let nowhere = format!("http://{}/v2/Nothing", running.emulator.address());
    assert_eq!(answer(running.client.get(nowhere)).await.0, 401);
    running.finish().await;
}

#[tokio::test]
async fn a_large_conversation_is_served_page_by_page() {
    let running = Running::played(Options {
        large: Some(2_500),
        ..options(1)
    })
    .await;
    let (_, page) = running.get("/v2/Conversations").await;
    let id = page["conversations"][0]["id"].as_str().unwrap();
    let path = format!("/v2/Conversations/{id}/Communications");
    let list = running.list(&path, "communications", 1_000).await;
    assert!((2_500..=2_501).contains(&list.len()));
    let truth: Value = serde_json::from_slice(&running.truth().await).unwrap();
    let whole = truth["conversations"][0]["communications"]
        .as_array()
        .unwrap();
    assert_eq!(ids(whole), ids(&list));
    running.finish().await;
}

#[test]
fn options_that_make_no_sense_are_refused_before_a_port_opens() {
    for (wrong, word) in [
        (
            Options {
                partial: 1.5,
                ..options(1)
            },
            "partial",
        ),
        (
            Options {
                duplicates: f64::NAN,
                ..options(1)
            },
            "duplicates",
        ),
        (
            Options {
                rate: Some(0.0),
                ..options(1)
            },
            "rate",
        ),
        (
            Options {
                large: Some(2_000_000),
                ..options(1)
            },
            "large",
        ),
        (
            Options {
                callback_url: Some("ftp://x/y".to_owned()),
                ..options(1)
            },
            "--callback-url",
        ),
    ] {
        let error = wrong.check().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(DEV_ACCOUNT_SID.len(), 34);
    let shown = format!("{:?}", options(1));
    assert!(!shown.contains(DEV_AUTH_TOKEN), "{shown}");
}
