//! Faults at the emulator's doors: what a client sees of each, and that nothing else has changed.

use std::error::Error as _;

use super::*;

fn script(text: &str) -> Script {
    Script::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A played emulator whose lists leave nothing out and whose clock stands still.
async fn calm(conversations: u64) -> Running {
    Running::played(Options {
        partial: 0.0,
        start_time: Some(base()),
        ..options(conversations)
    })
    .await
}

impl Running {
    async fn faults(&self, text: &str) {
        let request = self
            .request("PUT", "/emulator/faults")
            .body(text.to_owned());
        let (status, answer) = answer(request).await;
        assert_eq!(status, 200, "{answer}");
    }

    async fn first_id(&self) -> String {
        let (_, page) = self.get("/v2/Conversations?pageSize=1").await;
        page["conversations"][0]["id"].as_str().unwrap().to_owned()
    }

    /// Status, headers and body.
    async fn raw(&self, path: &str) -> reqwest::Result<(u16, HeaderMap, Bytes)> {
        let request = self.request("GET", path).timeout(Duration::from_secs(2));
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok((status, headers, answer.bytes().await?))
    }
}

#[tokio::test]
async fn an_error_comes_in_the_apis_own_words() {
    let running = calm(1).await;
    for (fault, status, retry_after) in [
        ("{code: 429}", 429, None),
        ("{code: 429, retryAfter: {seconds: 7}}", 429, Some("7")),
        (
            "{code: 503, retryAfter: {date: 90}}",
            503,
            Some("Sun, 22 Nov 2026 12:01:30 GMT"),
        ),
        (
            "{code: 503, retryAfter: {date: -1}}",
            503,
            Some("Sun, 22 Nov 2026 11:59:59 GMT"),
        ),
        ("{code: 500, retryAfter: {text: soon}}", 500, Some("soon")),
        ("{code: 404}", 404, None),
    ] {
        running
            .faults(&format!(
                "rest: [{{path: /v2/Conversations, fault: {{status: {fault}}}}}]"
            ))
            .await;
        let (found, headers, body) = running.raw("/v2/Conversations").await.unwrap();
        assert_eq!(found, status, "{fault}");
        let asked = headers.get("retry-after").map(|it| it.to_str().unwrap());
        assert_eq!(asked, retry_after, "{fault}");
        assert_eq!(headers["date"], "Sun, 22 Nov 2026 12:00:00 GMT");
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["status"], status);
    }
    running.finish().await;
}

#[tokio::test]
async fn connections_break_as_they_do() {
    let running = calm(1).await;
    let whole = running.raw("/v2/Conversations").await.unwrap().2;

    running.faults("rest: [{path: /v2/**, fault: reset}]").await;
    let error = running.raw("/v2/Conversations").await.unwrap_err();
    let mut cause = error.source();
    let mut reset = false;
    while let Some(source) = cause {
        let io = source.downcast_ref::<std::io::Error>();
        reset |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionReset);
        cause = source.source();
    }
    assert!(reset, "{error:?}");

    running
        .faults("rest: [{path: /v2/**, fault: {hang: {seconds: 120}}}]")
        .await;
    let error = running.raw("/v2/Conversations").await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");

    running
        .faults("rest: [{path: /v2/**, fault: {truncated: {keep: 0.5}}}]")
        .await;
    let error = running.raw("/v2/Conversations").await.unwrap_err();
    assert!(error.is_body() || error.is_decode(), "{error:?}");

    running
        .faults("rest: [{path: /v2/**, fault: {truncated: {keep: 0.5, framed: true}}}]")
        .await;
    let (status, _, half) = running.raw("/v2/Conversations").await.unwrap();
    assert_eq!((status, half.len()), (200, whole.len() / 2));
    assert_eq!(half, whole[..whole.len() / 2]);

    // A hang does not outlive the stop.
    running
        .faults("rest: [{path: /v2/**, fault: {hang: {seconds: 120}}}]")
        .await;
    let hanging = running.request("GET", "/v2/Conversations").send();
    let hanging = tokio::spawn(hanging);
    let counted = async {
        loop {
            let (_, shown) = running.get("/emulator/faults").await;
            if shown["counts"]["rest"][0]["fired"] == 1 {
                break;
            }
        }
    };
    timeout(DEADLINE, counted).await.unwrap();
    running.finish().await;
    assert!(hanging.await.unwrap().is_err());
}

#[tokio::test]
async fn answers_are_not_what_was_asked_for() {
    let running = calm(1).await;
    let id = running.first_id().await;
    let path = format!("/v2/Conversations/{id}/Communications");
    running
        .faults("rest: [{path: /v2/**, fault: {html: {code: 200}}}]")
        .await;
    let (status, headers, body) = running.raw(&path).await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert!(body.starts_with(b"<!DOCTYPE html>"));

    running
        .faults(
            "rest: [{path: /v2/**, fault: {redirect: {code: 307, to: 'https://other.example/x'}}}]",
        )
        .await;
    let (status, headers, _) = running.raw(&path).await.unwrap();
    assert_eq!(
        (status, &headers["location"]),
        (307, &"https://other.example/x".parse().unwrap())
    );

    running
        .faults("rest: [{path: /v2/**, fault: {partial: {fields: [author, createdAt]}}}]")
        .await;
    let (_, partial) = running.get(&path).await;
    let item = &partial["communications"][0];
    assert!(
        item.get("author").is_none() && item.get("createdAt").is_none(),
        "{item}"
    );
    assert!(item["content"]["text"].is_string());

    running
        .faults("rest: [{path: /v2/**, fault: {wrongTypes: {fields: [author, meta]}}}]")
        .await;
    let (_, wrong) = running.get(&path).await;
    assert_eq!(wrong["communications"][0]["author"], true);
    assert_eq!(wrong["meta"], true);
    running.finish().await;
}

#[tokio::test]
async fn a_lost_answer_can_have_had_its_effect() {
    let running = calm(1).await;
    let new = json!({"configurationId": resource_configuration(&running).await});
    for (after, opened) in [(false, 0), (true, 1)] {
        running
            .faults(&format!(
                "rest: [{{method: POST, path: /v2/Conversations, afterEffect: {after}, fault: {{status: {{code: 500}}}}}}]"
            ))
            .await;
        let (status, _) = running.send("POST", "/v2/Conversations", &new).await;
        assert_eq!(status, 500);
        let path = "/v2/Conversations?status=ACTIVE";
        assert_eq!(running.list(path, "conversations", 50).await.len(), opened);
    }
    running.finish().await;
}

async fn resource_configuration(running: &Running) -> String {
    let (_, page) = running.get("/v2/Conversations?pageSize=1").await;
    let id = page["conversations"][0]["configurationId"].as_str();
    id.unwrap().to_owned()
}

#[tokio::test]
async fn pages_lead_elsewhere() {
    let running = Running::played(Options {
        large: Some(30),
        partial: 0.0,
        ..options(1)
    })
    .await;
    let path = format!(
        "/v2/Conversations/{}/Communications",
        running.first_id().await
    );
    let whole = running.list(&path, "communications", 1_000).await;
    let pages = |kind: &str, when: &str| {
        format!(
            "rest: [{{path: /v2/Conversations/*/Communications, when: {when}, fault: {{page: {kind}}}}}]"
        )
    };
    running.faults(&pages("duplicate", "{}")).await;
    let twice = running.list(&path, "communications", 7).await;
    let last_page = whole.len() % 7;
    assert_eq!(twice.len(), 2 * whole.len() - last_page);
    let distinct: BTreeSet<&str> = ids(&twice).into_iter().collect();
    assert_eq!(distinct.len(), whole.len());

    running.faults(&pages("skip", "{nth: [1]}")).await;
    let skipped = running.list(&path, "communications", 7).await;
    assert_eq!(ids(&skipped)[..7], ids(&whole)[..7]);
    assert_eq!(ids(&skipped)[7..], ids(&whole)[14..]);

    running.faults(&pages("loop", "{}")).await;
    let (_, first) = running.get(&format!("{path}?pageSize=7")).await;
    let token = first["meta"]["nextToken"].as_str().unwrap();
    let (_, second) = running
        .get(&format!("{path}?pageSize=7&pageToken={token}"))
        .await;
    assert_eq!(second["communications"], first["communications"]);
    assert_eq!(second["meta"]["nextToken"], token, "no end");
    running.finish().await;
}

#[tokio::test]
async fn a_replica_lags() {
    let running = calm(2).await;
    let id = running.first_id().await;
    let path = format!("/v2/Conversations/{id}");
    let list = format!("{path}/Communications");
    let whole = running.list(&list, "communications", 1_000).await;
    running
        .faults("rest: [{path: /v2/**, fault: {stale: {changes: 3}}}]")
        .await;
    assert_eq!(running.get(&path).await.1["status"], "ACTIVE");
    let earlier = running.list(&list, "communications", 1_000).await;
    assert_eq!(earlier, whole[..whole.len() - 2]);
    let last = ids(&whole)[whole.len() - 1].to_owned();
    assert_eq!(running.get(&format!("{list}/{last}")).await.0, 404);
    let closed = "/v2/Conversations?status=CLOSED";
    assert_eq!(
        running.list(closed, "conversations", 50).await,
        Vec::<Value>::new()
    );

    // Everything of the traffic lies hours back.
    running
        .faults("rest: [{path: /v2/**, fault: {stale: {seconds: 1}}}]")
        .await;
    assert_eq!(running.list(&list, "communications", 1_000).await, whole);
    assert_eq!(running.get(&path).await.1["status"], "CLOSED");
    running
        .faults("rest: [{path: /v2/**, fault: {stale: {seconds: 1000000}}}]")
        .await;
    assert_eq!(running.get(&path).await.0, 404, "before it was opened");
    assert_eq!(
        running.list(closed, "conversations", 50).await,
        Vec::<Value>::new()
    );
    running.faults("{}").await;
    assert_eq!(running.list(&list, "communications", 1_000).await, whole);
    running.finish().await;
}

#[tokio::test]
async fn conversations_close_late_or_vanish_or_change() {
    let running = calm(6).await;
    let closed = "/v2/Conversations?status=CLOSED";
    let all = running.list(closed, "conversations", 50).await;
    let all: Vec<String> = ids(&all).into_iter().map(str::to_owned).collect();
    let path = |place: usize| format!("/v2/Conversations/{}", all[place]);
    running
        .faults(
            "conversations:\n  - {conversation: {nth: [1]}, fault: {lateClose: {reads: 2}}}\n  \
             - {conversation: {nth: [2]}, fault: {lateClose: {seconds: 60}}}\n  \
             - {conversation: {nth: [3]}, fault: neverCloses}\n  \
             - {conversation: {nth: [4]}, fault: {deletedDuringFetch: {afterReads: 1}}}\n  \
             - {conversation: {nth: [5]}, fault: changedBetweenPages}\n",
        )
        .await;
    let listed = running.list(closed, "conversations", 50).await;
    assert_eq!(ids(&listed), [&*all[3], &*all[4], &*all[5]]);
    let status = async |place: usize| {
        let (_, conversation) = running.get(&path(place)).await;
        conversation["status"].as_str().map(str::to_owned)
    };
    for expected in ["ACTIVE", "ACTIVE", "CLOSED"] {
        assert_eq!(status(0).await.as_deref(), Some(expected));
    }
    assert_eq!(status(1).await.as_deref(), Some("ACTIVE"));
    let later = json!({"advanceSeconds": 60});
    assert_eq!(running.send("POST", "/emulator/clock", &later).await.0, 200);
    assert_eq!(status(1).await.as_deref(), Some("CLOSED"));
    assert_eq!(status(2).await.as_deref(), Some("ACTIVE"));

    assert_eq!(status(3).await.as_deref(), Some("CLOSED"));
    let communications = format!("{}/Communications", path(3));
    assert_eq!(running.get(&communications).await.0, 404);
    assert_eq!(running.get(&path(3)).await.0, 404);
    let listed = running.list(closed, "conversations", 50).await;
    assert_eq!(ids(&listed), [&*all[0], &*all[1], &*all[4], &*all[5]]);

    let communications = format!("{}/Communications?pageSize=1", path(4));
    let (_, first) = running.get(&communications).await;
    let (_, again) = running.get(&communications).await;
    assert_ne!(again["communications"], first["communications"]);
    let recipient = &again["communications"][0]["recipients"][0];
    assert_eq!(recipient["deliveryStatus"], "READ");

    let truth: Value = serde_json::from_slice(&running.truth().await).unwrap();
    assert_eq!(truth["conversations"].as_array().unwrap().len(), 6);
    running.finish().await;
}

#[tokio::test]
async fn a_script_is_shown_with_its_counts_and_a_bad_one_changes_nothing() {
    let running = calm(1).await;
    running
        .faults("seed: 3\nrest:\n  - {name: third, path: /v2/Conversations, when: {every: 3}, fault: {status: {code: 500}}}\n")
        .await;
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(running.get("/v2/Conversations").await.0);
    }
    assert_eq!(statuses, [200, 200, 500, 200, 200, 500, 200]);
    let url = format!("http://{}/v2/Conversations", running.emulator.address());
    let stranger = answer(running.client.get(url)).await;
    assert_eq!(stranger.0, 401, "not counted");
    let bad = running
        .request("PUT", "/emulator/faults")
        .body("rest:\n  - path: 7");
    let (status, problem) = answer(bad).await;
    assert_eq!(status, 400);
    let message = problem["message"].as_str().unwrap();
    assert!(
        message.contains("line 2") && message.contains("rest[0].path"),
        "{message}"
    );
    let (_, shown) = running.get("/emulator/faults").await;
    assert_eq!(shown["seed"], 3);
    let counts = json!([{"name": "third", "matched": 7, "fired": 2}]);
    assert_eq!(shown["counts"]["rest"], counts);
    assert_eq!(shown["script"]["rest"][0]["when"]["every"], 3);
    let large = running
        .request("PUT", "/emulator/faults")
        .body("#".repeat(300_000));
    assert_eq!(answer(large).await.0, 400);
    running.finish().await;
}

/// A receiver that keeps every request as it came, whole or not.
#[derive(Default)]
struct Recorder {
    requests: Mutex<Vec<Recorded>>,
    /// Tokens that start with one of these are refused once.
    refused_first: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Recorded {
    token: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Bytes>,
}

impl Recorder {
    async fn start(refused_first: &'static str) -> (Arc<Self>, SocketAddr) {
        let recorder = Arc::new(Recorder {
            refused_first,
            ..Recorder::default()
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new()
            .fallback(record)
            .with_state(Arc::clone(&recorder));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (recorder, address)
    }

    fn taken(&self) -> Vec<Recorded> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

async fn record(
    Extracted(recorder): Extracted<Arc<Recorder>>,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> StatusCode {
    let text = |value: &axum::http::HeaderValue| value.to_str().unwrap().to_owned();
    let named = headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)));
    let recorded = Recorded {
        token: text(&headers[IDEMPOTENCY_HEADER]),
        target: uri.to_string(),
        headers: named.collect(),
        body: body.ok(),
    };
    let mut requests = recorder.requests.lock().unwrap();
    let again = requests.iter().any(|known| known.token == recorded.token);
    let refused = !again
        && recorded
            .token
            .starts_with(|c| recorder.refused_first.contains(c));
    requests.push(recorded);
    match refused {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::NO_CONTENT,
    }
}

/// Traffic whose callbacks have these faults and no others.
fn telling(conversations: u64, address: SocketAddr, faults: &str) -> Options {
    Options {
        duplicates: 0.0,
        disorder: 0.0,
        faults: script(faults),
        ..calling(conversations, address)
    }
}

fn is_close(recorded: &Recorded) -> bool {
    let body = recorded.body.as_ref().unwrap();
    CallbackEvent::parse(body).unwrap().is_close()
}

#[tokio::test]
async fn callbacks_are_lost_repeated_and_replayed() {
    let (recorder, address) = Recorder::start("").await;
    let faults = "callbacks:\n  - {close: true, conversation: {nth: [1]}, fault: lost}\n  \
                  - {close: true, conversation: {nth: [2]}, fault: {duplicated: {times: 2}}}\n  \
                  - {close: true, conversation: {nth: [3]}, fault: {replayed: {times: 2}}}\n";
    let running = Running::played(telling(4, address, faults)).await;
    let taken = recorder.taken();
    let closes: Vec<_> = taken.iter().filter(|it| is_close(it)).collect();
    assert_eq!(closes.len(), 1 + 2 + 2 + 2);
    let tokens: BTreeSet<_> = closes.iter().map(|it| &it.token).collect();
    assert_eq!(tokens.len(), 1 + 3 + 1);
    let bodies: BTreeSet<_> = closes.iter().map(|it| &it.body).collect();
    assert_eq!(bodies.len(), 3);
    let counts = running.emulator.counts();
    assert_eq!((counts.lost, counts.duplicate), (1, 4));
    let (_, shown) = running.get("/emulator/faults").await;
    let fired: Vec<_> = (0..3)
        .map(|rule| &shown["counts"]["callbacks"][rule]["fired"])
        .collect();
    assert_eq!(fired, [1, 1, 1]);

    let lost = "/emulator/deliveries?eventType=CONVERSATION_UPDATED";
    let (_, log) = running.get(lost).await;
    let deliveries = log["deliveries"].as_array().unwrap();
    assert!(
        deliveries
            .iter()
            .all(|it| it["eventType"] == "CONVERSATION_UPDATED")
    );
    let lost = deliveries.iter().find(|it| it["fault"] == "lost").unwrap();
    assert_eq!(
        (&lost["attempts"], &lost["accepted"]),
        (&json!([]), &json!(false))
    );
    running.finish().await;
}

#[tokio::test]
async fn callbacks_come_late_and_behind_others() {
    let (recorder, address) = Recorder::start("").await;
    let faults = "callbacks:\n  - {eventType: CONVERSATION_CREATED, fault: {reordered: {behind: 5}}}\n  \
                  - {eventType: PARTICIPANT_ADDED, when: {nth: [1]}, fault: {delayed: {milliseconds: 50}}}\n";
    let running = Running::played(telling(3, address, faults)).await;
    let taken = recorder.taken();
    let kinds = taken.iter().map(|recorded| {
        let body = recorded.body.as_ref().unwrap();
        CallbackEvent::parse(body).unwrap().event_type.to_string()
    });
    let created: Vec<usize> = kinds
        .enumerate()
        .filter(|(_, kind)| kind == "CONVERSATION_CREATED")
        .map(|(place, _)| place)
        .collect();
    assert_eq!(created.len(), 3);
    assert!(created.iter().all(|place| *place >= 5), "{created:?}");
    let counts = running.emulator.counts();
    assert_eq!(counts.deliveries, counts.deliveries_accepted);
    running.finish().await;
}

#[tokio::test]
async fn a_wrong_signature_is_refused_and_half_a_body_never_whole() {
    let (receiver, address) = Receiver::start(dev_keys(), 0).await;
    let faults = "callbacks:\n  - {close: true, fault: {wrongSignature: {tries: first}}}\n  \
                  - {eventType: CONVERSATION_CREATED, fault: {wrongSignature: {tries: every}}}\n";
    let running = Running::played(telling(2, address, faults)).await;
    let counts = running.emulator.counts();
    assert_eq!(counts.refused, 2, "openings, for good");
    // Each of the five retries of the two, and the first try of each close.
    assert_eq!(receiver.unproven.lock().unwrap().len(), 2 * 6 + 2);
    let closes = receiver
        .seen
        .lock()
        .unwrap()
        .values()
        .filter(|tries| CallbackEvent::parse(&tries[0].0).unwrap().is_close())
        .count();
    assert_eq!(closes, 2);
    running.finish().await;

    let (recorder, address) = Recorder::start("").await;
    let faults = "callbacks: [{close: true, fault: {halfBody: {tries: first}}}]";
    let running = Running::played(telling(2, address, faults)).await;
    let taken = recorder.taken();
    let halves: Vec<_> = taken.iter().filter(|it| it.body.is_none()).collect();
    assert_eq!(halves.len(), 2);
    for half in halves {
        let again = taken.iter().filter(|it| it.token == half.token);
        assert_eq!(again.filter(|it| it.body.is_some()).count(), 1, "its retry");
    }
    let counts = running.emulator.counts();
    assert_eq!(
        (counts.retries, counts.deliveries_accepted),
        (2, counts.deliveries)
    );
    running.finish().await;
}

#[tokio::test]
async fn retries_are_a_property_of_the_url() {
    for (fragment, tries) in [
        ("", 1),
        ("#rc=2&rp=5xx", 3),
        ("#rc=5&rp=4xx", 1),
        ("#rc=0", 1),
    ] {
        let (receiver, address) = Receiver::start(dev_keys(), 9).await;
        let running = Running::played(Options {
            duplicates: 0.0,
            callback_url: Some(format!("{PUBLIC_URL}{fragment}")),
            ..calling(1, address)
        })
        .await;
        let seen = std::mem::take(&mut *receiver.seen.lock().unwrap());
        assert!(!seen.is_empty());
        assert!(seen.values().all(|all| all.len() == tries), "{fragment}");
        let unproven = std::mem::take(&mut *receiver.unproven.lock().unwrap());
        assert_eq!(unproven, Vec::<String>::new(), "signed without it");
        let counts = running.emulator.counts();
        assert_eq!(counts.refused, counts.deliveries);
        running.finish().await;
    }
}

/// A listener that takes connections and never answers.
async fn deaf() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            connections.push(connection);
        }
    });
    address
}

#[tokio::test]
async fn a_url_says_how_long_it_is_waited_for() {
    let address = deaf().await;
    for (fragment, tries) in [
        ("#rt=100", 1),
        ("#rt=100&rc=2&rp=rt", 3),
        ("#tt=150&rc=5&rp=all", 1),
    ] {
        let running = Running::start(Options {
            gate_open: false,
            callback_url: Some(format!("{PUBLIC_URL}{fragment}")),
            ..calling(1, address)
        });
        let new = json!({"configurationId": configuration::CONFIGURATION_ID});
        assert_eq!(running.send("POST", "/v2/Conversations", &new).await.0, 201);
        timeout(DEADLINE, running.emulator.shared.outbox.settled())
            .await
            .unwrap();
        let (_, log) = running.get("/emulator/deliveries").await;
        let attempts = log["deliveries"][0]["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), tries, "{fragment}: {log}");
        for attempt in attempts {
            assert_eq!(attempt["error"], "timeout", "{fragment}");
            assert!(
                attempt["milliseconds"].as_u64().unwrap() < 5_000,
                "{fragment}: {log}"
            );
        }
        running.finish().await;
    }
}

#[tokio::test]
async fn each_url_has_its_own_delivery() {
    let (recorder, address) = Recorder::start("").await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = nobody.local_addr().unwrap();
    drop(nobody);
    let running = Running::start(Options {
        gate_open: false,
        duplicates: 0.0,
        callback_connect: None,
        ..calling(1, address)
    });
    let configuration = configuration::CONFIGURATION_ID;
    let new = json!({"configurationId": configuration});
    let (status, created) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(status, 201, "{created}");
    let path = format!("/v2/Conversations/{}", created["id"].as_str().unwrap());
    let callbacks = json!({"configuration": {"statusCallbacks": [
        {"url": format!("http://{dead}/never#rc=5&rp=all&tt=1500"), "method": "POST"},
        {"url": format!("http://user:pass@{address}/hook?x=%20y#rc=1"), "method": "PUT"},
    ]}});
    assert_eq!(running.send("PATCH", &path, &callbacks).await.0, 200);
    let close = json!({"status": "CLOSED"});
    assert_eq!(running.send("PATCH", &path, &close).await.0, 200);
    timeout(DEADLINE, running.emulator.shared.outbox.settled())
        .await
        .unwrap();
    let taken = recorder.taken();
    assert_eq!(taken.len(), 1);
    assert!(
        taken[0].target.starts_with("/hook?x=%20y&bodySHA256="),
        "{}",
        taken[0].target
    );
    let id = created["id"].as_str().unwrap();
    let (_, log) = running
        .get(&format!("/emulator/deliveries?conversationId={id}"))
        .await;
    let deliveries = log["deliveries"].as_array().unwrap().iter();
    let ended: Vec<_> = deliveries
        .filter(|it| it["body"]["data"]["status"] == "CLOSED")
        .collect();
    assert_eq!(ended.len(), 2, "{log}");
    let (good, bad) = (ended[0], ended[1]);
    assert_eq!(
        (&good["method"], &good["accepted"]),
        (&json!("PUT"), &json!(true))
    );
    assert_ne!(good["token"], bad["token"]);
    assert!(bad["attempts"].as_array().unwrap().len() > 1);
    assert_eq!(bad["attempts"][0]["error"], "connect");
    let headers = good["headers"].as_object().unwrap();
    assert!(headers.contains_key("x-twilio-signature") && !headers.contains_key("authorization"));
    assert!(!log.to_string().contains("pass"), "no credential is shown");
    running.finish().await;
}

/// Everything that a client and a receiver see of one run.
async fn run(seed: u64) -> (Vec<Recorded>, Vec<(String, Vec<String>, Bytes)>) {
    let (recorder, address) = Recorder::start("012").await;
    let faults = "rest:\n  - {path: /v2/**, when: {probability: 0.1}, fault: {status: {code: 429, retryAfter: {date: 5}}}}\n  \
                  - {path: /v2/Conversations/*, when: {every: 7}, fault: {stale: {changes: 2}}}\n  \
                  - {path: /v2/Conversations/*/Communications, when: {every: 3}, fault: {page: duplicate}}\n  \
                  - {path: /v2/**, when: {probability: 0.1}, fault: {truncated: {keep: 0.3, framed: true}}}\n\
                  callbacks:\n  - {when: {probability: 0.1}, fault: {replayed: {times: 1}}}\n  \
                  - {when: {probability: 0.1}, fault: lost}\n  \
                  - {when: {probability: 0.1}, fault: {reordered: {behind: 7}}}\n  \
                  - {when: {probability: 0.1}, fault: {wrongSignature: {tries: first}}}\n\
                  conversations:\n  - {conversation: {probability: 0.5}, fault: {lateClose: {reads: 1}}}\n";
    let running = Running::played(Options {
        start_time: Some(base()),
        seed,
        faults: script(faults),
        ..calling(12, address)
    })
    .await;
    let mut answers = Vec::new();
    let mut paths: Vec<String> = vec!["/v2/ControlPlane/Configurations".to_owned()];
    let truth: Value = serde_json::from_slice(&running.truth().await).unwrap();
    for id in ids(truth["conversations"].as_array().unwrap()) {
        for rest in ["", "", "/Participants", "/Communications?pageSize=4"] {
            paths.push(format!("/v2/Conversations/{id}{rest}"));
        }
    }
    paths.extend(vec![
        "/v2/Conversations?status=CLOSED&pageSize=5".to_owned();
        4
    ]);
    for path in paths {
        let mut next = Some(path);
        while let Some(path) = next.take() {
            let (status, headers, body) = running.raw(&path).await.unwrap();
            let page: Value = serde_json::from_slice(&body).unwrap_or_default();
            if let Some(token) = page.pointer("/meta/nextToken").and_then(Value::as_str) {
                let (start, _) = path.split_once("&pageToken=").unwrap_or((&path, ""));
                next = Some(format!("{start}&pageToken={token}"));
            }
            let shown = headers
                .iter()
                .map(|(name, value)| format!("{name}: {value:?}"));
            let shown = std::iter::once(status.to_string()).chain(shown).collect();
            answers.push((path, shown, body));
        }
    }
    let mut requests = recorder.taken();
    // Tries of one delivery stay in their order.
    requests.sort_by(|a, b| a.token.cmp(&b.token));
    running.finish().await;
    (requests, answers)
}

#[tokio::test]
async fn same_seed_and_same_faults_give_the_same_bytes() {
    let (callbacks, answers) = run(7).await;
    assert!(callbacks.len() > 200, "{}", callbacks.len());
    assert!(answers.len() > 60, "{}", answers.len());
    let statuses: BTreeSet<&str> = answers.iter().map(|(_, head, _)| &*head[0]).collect();
    assert_eq!(statuses, BTreeSet::from(["200", "429"]));
    let again = run(7).await;
    for (one, other) in callbacks.iter().zip(&again.0) {
        assert_eq!(one, other);
    }
    assert_eq!(callbacks.len(), again.0.len());
    for (one, other) in answers.iter().zip(&again.1) {
        assert_eq!(one, other);
    }
    assert_eq!(answers.len(), again.1.len());
    let others = run(8).await;
    assert_ne!(others.1, answers, "another seed, another run");
}
