//! Messages, calls, clock and bill through the emulator's own routes.

use super::*;

const NUMBER: &str = "+15551234567";
const CUSTOMER: &str = "+15559876543";

/// No traffic but what the test sends; a clock that only the test moves.
fn quiet() -> Options {
    Options {
        gate_open: false,
        start_time: Some(base()),
        operation_delay: Duration::ZERO,
        ..options(0)
    }
}

fn rules() -> Value {
    json!({
        "SMS": {
            "captureRules": [{"from": NUMBER, "to": "*"}, {"from": "*", "to": NUMBER}],
            "statusTimeouts": {"inactive": 10, "closed": 60},
        },
        "VOICE": {"captureRules": [{"from": "*", "to": NUMBER}], "statusTimeouts": null},
    })
}

impl Running {
    /// The id of a new configuration.
    async fn configure(&self, channels: Value, more: Value) -> String {
        let mut new = json!({
            "displayName": "test",
            "conversationGroupingType": "GROUP_BY_PROFILE",
            "memoryStoreId": "mem_store_1",
            "channelSettings": channels,
        });
        for (field, value) in more.as_object().unwrap() {
            new[field] = value.clone();
        }
        let path = "/v2/ControlPlane/Configurations";
        let (status, begun) = self.send("POST", path, &new).await;
        assert_eq!(status, 202, "{begun}");
        let url = begun["statusUrl"].as_str().unwrap();
        let (_, path) = url.split_at(url.find("/v2/").unwrap());
        let (_, operation) = self.get(path).await;
        assert_eq!(operation["status"], "COMPLETED", "{operation}");
        let id = operation["related"]["configurationId"].as_str();
        id.unwrap().to_owned()
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.send(method, path, &body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn sms(&self, from: &str, to: &str) -> Value {
        let new = json!({"channel": "SMS", "from": from, "to": to, "text": "hello"});
        self.ask("POST", "/emulator/messages", new).await
    }

    async fn advance(&self, minutes: u64) {
        let advance = json!({"advanceSeconds": 60 * minutes});
        self.ask("POST", "/emulator/clock", advance).await;
    }

    async fn conversation(&self, id: &Value) -> Value {
        let path = format!("/v2/Conversations/{}", id.as_str().unwrap());
        self.get(&path).await.1
    }
}

#[tokio::test]
async fn a_conversation_lives_and_ends_by_the_emulators_clock() {
    let (receiver, address) = Receiver::start(dev_keys(), 0).await;
    let running = Running::start(Options {
        callback_connect: Some(address),
        duplicates: 0.0,
        ..quiet()
    });
    let callbacks = json!({"statusCallbacks": [{"url": PUBLIC_URL}]});
    running.configure(rules(), callbacks).await;
    let report = running.sms(CUSTOMER, NUMBER).await;
    let id = &report["captured"][0]["conversationId"];
    assert_eq!(report["captured"][0]["opened"], true);
    running.advance(10).await;
    assert_eq!(running.conversation(id).await["status"], "INACTIVE");
    let back = running.sms(NUMBER, CUSTOMER).await;
    assert_eq!(&back["captured"][0]["conversationId"], id);
    assert_eq!(back["captured"][0]["opened"], false);
    assert_eq!(running.conversation(id).await["status"], "ACTIVE");
    running.advance(24 * 60).await;
    let closed = running.conversation(id).await;
    assert_eq!(closed["status"], "CLOSED");
    assert_eq!(closed["updatedAt"], "2026-11-22T13:10:00Z");
    let later = running.sms(CUSTOMER, NUMBER).await;
    assert_ne!(&later["captured"][0]["conversationId"], id);
    assert_eq!(running.conversation(id).await, closed);

    timeout(DEADLINE, running.emulator.shared.outbox.settled())
        .await
        .expect("callbacks are answered");
    let mut told = Vec::new();
    for tries in receiver.seen.lock().unwrap().values() {
        let event: Value = serde_json::from_slice(&tries[0].0).unwrap();
        if &event["data"]["id"] == id {
            let text = |field: &Value| field.as_str().unwrap().to_owned();
            told.push((text(&event["timestamp"]), text(&event["data"]["status"])));
        }
    }
    told.sort();
    let expected = [
        ("2026-11-22T12:00:00Z", "ACTIVE"),
        ("2026-11-22T12:10:00Z", "ACTIVE"),
        ("2026-11-22T12:10:00Z", "INACTIVE"),
        ("2026-11-22T12:20:00Z", "INACTIVE"),
        ("2026-11-22T13:10:00Z", "CLOSED"),
    ];
    let expected = expected.map(|(at, status)| (at.to_owned(), status.to_owned()));
    assert_eq!(told, expected, "each change once, at its own time");
    assert!(receiver.unproven.lock().unwrap().is_empty());
    running.finish().await;
}

/// The bodies of all answers and callbacks of one run.
async fn everything_of_a_run() -> (Vec<Value>, BTreeMap<String, Vec<Bytes>>) {
    let (receiver, address) = Receiver::start(dev_keys(), 0).await;
    let running = Running::start(Options {
        callback_connect: Some(address),
        ..quiet()
    });
    let callbacks = json!({"statusCallbacks": [{"url": PUBLIC_URL}]});
    let configuration = running.configure(rules(), callbacks).await;
    let twiml = format!(
        "<Response><Start><Transcription conversationConfiguration='{configuration}'/></Start>\
         <Dial>+15550009999</Dial></Response>"
    );
    let said = json!([{"by": "CUSTOMER", "text": "hi"}, {"by": "HUMAN_AGENT", "text": "hello"}]);
    let call = json!({"from": CUSTOMER, "to": NUMBER, "twiml": twiml, "utterances": said});
    let mut answers = vec![
        running.sms(CUSTOMER, NUMBER).await,
        running.ask("POST", "/emulator/calls", call).await,
    ];
    running.advance(60).await;
    answers.push(running.sms(NUMBER, CUSTOMER).await);
    answers.push(running.get("/emulator/bill").await.1);
    answers.push(running.get("/v2/Conversations").await.1);
    timeout(DEADLINE, running.emulator.shared.outbox.settled())
        .await
        .expect("callbacks are answered");
    running.finish().await;
    let seen = receiver.seen.lock().unwrap();
    let bodies = |tries: &Vec<(Bytes, u16)>| tries.iter().map(|(body, _)| body.clone()).collect();
    let callbacks = seen
        .iter()
        .map(|(token, tries)| (token.clone(), bodies(tries)));
    (answers, callbacks.collect())
}

#[tokio::test]
async fn the_same_seed_and_requests_give_the_same_bytes() {
    let (answers, callbacks) = everything_of_a_run().await;
    assert!(callbacks.len() > 10, "{}", callbacks.len());
    let (again, called_back) = everything_of_a_run().await;
    assert_eq!(answers, again);
    assert_eq!(callbacks, called_back);
}

/// As far from the base as tokio's time, which a test can pause, from its start.
fn running_clock() -> Timestamp {
    thread_local! {
        static START: tokio::time::Instant = tokio::time::Instant::now();
    }
    let elapsed = START.with(tokio::time::Instant::elapsed);
    base() + SignedDuration::try_from(elapsed).unwrap()
}

/// What the layers share, on a running clock and without any task, with the configuration `c1`.
async fn unattended() -> Arc<Shared> {
    // Nobody is called back, so that nothing ever waits in the outbox.
    let (outbox, _) = Outbox::new();
    let options = Options {
        start_time: None,
        ..quiet()
    };
    let address = ([127, 0, 0, 1], 1).into();
    let clock = Clock::from_fn(running_clock);
    let shared = Arc::new(Shared::new(options, clock, outbox, address, Stop::new()));
    let settings = json!({
        "displayName": "test",
        "conversationGroupingType": "GROUP_BY_PROFILE",
        "memoryStoreId": "mem_store_1",
        "channelSettings": rules(),
    });
    let create = state::ConfigurationChange::Create {
        id: "c1".into(),
        settings: serde_json::from_value(settings).unwrap(),
    };
    let begin = Command::Begin {
        operation: "op1".into(),
        request: state::Request::Configuration(create),
        key: None,
    };
    shared.carry_out(begin, shared.clock.now()).await.unwrap();
    shared
}

/// The conversation that a customer's message went into.
async fn written(shared: &Shared) -> Arc<str> {
    let message = state::ingest::Message {
        channel: resource::Channel::Sms,
        from: CUSTOMER.into(),
        to: NUMBER.into(),
        text: "hello".into(),
        channel_id: None,
        service: None,
        customer: None,
    };
    let report = shared.take_in(|state, seed, at| state.message(&message, seed, at));
    Arc::clone(&report.await.captured[0].conversation_id)
}

#[tokio::test(start_paused = true)]
async fn what_is_due_happens_before_what_comes_later() {
    let shared = unattended().await;
    let first = written(&shared).await;
    assert_eq!(written(&shared).await, first);
    tokio::time::advance(Duration::from_secs(3_600)).await;
    let later = written(&shared).await;
    assert_ne!(
        later, first,
        "the first one closed in that minute, although no timer ran"
    );
}

#[tokio::test(start_paused = true)]
async fn conversations_end_by_themselves_while_the_clock_runs() {
    let shared = unattended().await;
    let stop = Stop::new();
    let timers = tokio::spawn(timers::run(Arc::clone(&shared), stop.clone()));
    let began = shared.clock.now();
    let id = written(&shared).await;
    let mut due = shared.due.subscribe();
    let over = due.wait_for(Option::is_none);
    timeout(Duration::from_secs(3 * 3_600), over)
        .await
        .unwrap()
        .unwrap();
    let closed = {
        let state = shared.state();
        state.conversation(&id).unwrap().conversation.clone()
    };
    assert_eq!(closed.status, resource::Status::Closed);
    assert_eq!(closed.updated_at, began + SignedDuration::from_hours(1));
    stop.request();
    timers.await.unwrap();
}

#[tokio::test]
async fn fact_7_both_engines_are_on_the_bill() {
    let running = Running::start(quiet());
    let configuration = running.configure(rules(), json!({})).await;
    let twiml = format!(
        "<Response><Connect><ConversationRelay url=\"wss://relay.example.com\" \
         conversationConfiguration=\"{configuration}\"/></Connect></Response>"
    );
    let call = json!({
        "from": CUSTOMER,
        "to": NUMBER,
        "twiml": twiml,
        "utterances": [
            {"by": "CUSTOMER", "text": "Where is my parcel?", "seconds": 5},
            {"by": "AI_AGENT", "text": "It left our house this morning.", "seconds": 70.5},
        ],
    });
    let report = running.ask("POST", "/emulator/calls", call).await;
    assert_eq!(report["doubleBilled"], true, "{report}");
    let id = &report["captured"][0]["conversationId"];
    assert_eq!(&report["captured"][1]["conversationId"], id);
    let path = format!("/v2/Conversations/{}/Communications", id.as_str().unwrap());
    let said = running.list(&path, "communications", 100).await;
    let ids = |place: usize| {
        let ids = report["captured"][place]["communicationIds"].as_array();
        ids.unwrap().len()
    };
    assert_eq!(ids(0), 2, "whole utterances");
    assert!((4..=6).contains(&ids(1)), "the answer in fragments");
    assert_eq!(said.len(), ids(0) + ids(1));
    let (_, bill) = running.get("/emulator/bill").await;
    let speech = json!({
        "captureRuleMinutes": 2,
        "conversationRelayMinutes": 2,
        "transcriptionMinutes": 0,
        "doubleBilledCalls": 1,
    });
    assert_eq!(bill["speech"], speech);
    assert_eq!(bill["calls"][0]["callSid"], report["sid"]);
    assert_eq!(bill["calls"][0]["engines"][1]["seconds"], 76);
    running.finish().await;
}

#[tokio::test]
async fn fact_9_only_a_missing_profile_shows_a_dead_store() {
    let running = Running::start(quiet());
    let extraction = json!({"memoryExtractionEnabled": true});
    running.configure(rules(), extraction).await;
    let profile = |conversation: Value| {
        let participants = conversation["participants"].as_array().unwrap().clone();
        let mut customers = participants.into_iter();
        let customer = customers.find(|p| p["type"] == "CUSTOMER").unwrap();
        customer["profileId"].clone()
    };
    let person = json!({"addresses": [CUSTOMER, "+15550001111"]});
    running.ask("POST", "/emulator/profiles", person).await;
    let alive = running.sms(CUSTOMER, NUMBER).await["captured"][0]["conversationId"].clone();
    let same = running.sms("+15550001111", NUMBER).await;
    assert_eq!(same["captured"][0]["conversationId"], alive);
    assert!(profile(running.conversation(&alive).await).is_string());
    let store = "/emulator/memory-stores/mem_store_1";
    running.ask("PUT", store, json!({"alive": false})).await;
    let dead = running.sms("+15550002222", NUMBER).await["captured"][0]["conversationId"].clone();
    assert_eq!(profile(running.conversation(&dead).await), Value::Null);
    running.advance(60).await;
    let (_, bill) = running.get("/emulator/bill").await;
    let counts = json!({"inactive": 0, "closed": 0, "notDone": 4});
    assert_eq!(bill["extractions"], json!({"mem_store_1": counts}));
    running.finish().await;
}

#[tokio::test]
async fn what_is_not_captured_says_why() {
    let running = Running::start(quiet());
    let one_way = json!({"SMS": {"captureRules": [{"from": "*", "to": NUMBER}]}});
    let configuration = running.configure(one_way, json!({})).await;
    let report = running.sms(NUMBER, CUSTOMER).await;
    assert_eq!(report["captured"], json!([]));
    let miss = json!({
        "source": "CAPTURE_RULE",
        "configurationId": configuration,
        "reason": "rules",
        "miss": "onlyTheOtherDirection",
    });
    assert_eq!(
        report["notCaptured"].as_array().unwrap().last(),
        Some(&miss)
    );
    let xml = "<Response><Connect><ConversationRelay \
               conversationConfigurationId=\"c\"/></Connect></Response>";
    let call = json!({"from": CUSTOMER, "to": NUMBER, "callType": "CLIENT", "twiml": [xml]});
    let report = running.ask("POST", "/emulator/calls", call).await;
    let miss = json!({"source": "CONVERSATION_RELAY", "reason": "misnamedAttribute"});
    assert_eq!(
        report["notCaptured"].as_array().unwrap().last(),
        Some(&miss)
    );
    running.finish().await;
}

#[tokio::test]
async fn traffic_that_is_no_traffic_is_refused_with_its_field() {
    let running = Running::start(quiet());
    let message = |more: Value| {
        let mut new = json!({"channel": "SMS", "from": CUSTOMER, "to": NUMBER});
        for (field, value) in more.as_object().unwrap() {
            new[field] = value.clone();
        }
        ("/emulator/messages", new)
    };
    let call = |more: Value| ("/emulator/calls", message(more).1);
    let said = |more: Value| {
        let mut said = json!({"by": "CUSTOMER", "text": "hi"});
        for (field, value) in more.as_object().unwrap() {
            said[field] = value.clone();
        }
        call(json!({"utterances": [said]}))
    };
    let long = format!("<Response>{}</Response>", " ".repeat(64 * 1024));
    for ((path, body), code, named) in [
        (message(json!({"channel": "VOICE"})), 20_001, "channel"),
        (message(json!({"channel": "PIGEON"})), 20_001, "channel"),
        (message(json!({"from": ""})), 20_001, "from"),
        (message(json!({"to": "*"})), 20_001, "to"),
        (message(json!({"channel": "CHAT"})), 20_001, "channelId"),
        (
            message(json!({"channel": "CHAT", "channelId": "CH1"})),
            20_001,
            "serviceId",
        ),
        (message(json!({"customer": "BOTH"})), 20_001, "customer"),
        (call(json!({"callType": "FAX"})), 20_001, "callType"),
        (call(json!({"twiml": "<Response>"})), 12_100, "TwiML"),
        (
            call(json!({"twiml": ["<Response/>", "hello"]})),
            12_100,
            "TwiML",
        ),
        (
            call(json!({"twiml": "<!DOCTYPE a [<!ENTITY b 'c'>]><Response/>"})),
            12_100,
            "TwiML",
        ),
        (call(json!({"twiml": long})), 11_750, "TwiML"),
        (
            call(json!({"twiml": vec!["<Response/>"; 11]})),
            20_001,
            "twiml",
        ),
        (said(json!({"by": "AGENT"})), 20_001, "utterances[0].by"),
        (
            said(json!({"seconds": -1})),
            20_001,
            "utterances[0].seconds",
        ),
        (
            said(json!({"document": 1})),
            20_001,
            "utterances[0].document",
        ),
        (
            ("/emulator/profiles", json!({"addresses": [""]})),
            20_001,
            "addresses[0]",
        ),
    ] {
        let (status, problem) = running.send("POST", path, &body).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!(code)),
            "{body} {problem}"
        );
        let message = problem["message"].as_str().unwrap();
        assert!(message.contains(named), "{named}: {message}");
    }
    let form = running.request("POST", "/emulator/messages").body("from=a");
    assert_eq!(answer(form).await.0, 415);
    let (_, stats) = running.get("/emulator/stats").await;
    assert_eq!(stats["conversations"], 0);
    running.finish().await;
}

#[tokio::test]
async fn fact_11_media_are_dropped_and_text_is_kept() {
    let running = Running::start(quiet());
    let channels = json!({"WHATSAPP": {"captureRules": [{"from": "*", "to": NUMBER}]}});
    running.configure(channels, json!({})).await;
    let new = json!({
        "channel": "WHATSAPP",
        "from": format!("whatsapp:{CUSTOMER}"),
        "to": NUMBER,
        "text": "this one",
        "media": ["https://example.com/photo.jpg"],
    });
    let report = running.ask("POST", "/emulator/messages", new).await;
    let captured = &report["captured"][0];
    let path = format!(
        "/v2/Conversations/{}/Communications/{}",
        captured["conversationId"].as_str().unwrap(),
        captured["communicationIds"][0].as_str().unwrap()
    );
    let (_, communication) = running.get(&path).await;
    assert_eq!(
        communication["content"],
        json!({"type": "TEXT", "text": "this one"})
    );
    assert!(!communication.to_string().contains("photo"));
    running.finish().await;
}
