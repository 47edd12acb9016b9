//! Time: advanced, standing still, and what happens when it is due; and memory, which is bounded.

use super::*;

#[tokio::test]
async fn a_clock_is_advanced_and_never_by_too_much() {
    let running = Running::start(Options {
        start_time: Some(base()),
        gate_open: false,
        ..options(1)
    });
    let (_, shown) = running.get("/emulator/clock").await;
    let expected = json!({"now": "2026-11-22T12:00:00Z", "mode": "STANDING", "advancedSeconds": 0});
    assert_eq!(shown, expected);
    let advance = json!({"advanceSeconds": 90});
    let (_, shown) = running.send("POST", "/emulator/clock", &advance).await;
    assert_eq!(shown["now"], "2026-11-22T12:01:30Z");
    for wrong in [
        json!({}),
        json!({"advanceSeconds": -1}),
        json!({"advanceSeconds": "5"}),
        json!({"advanceSeconds": u64::MAX}),
    ] {
        let (status, problem) = running.send("POST", "/emulator/clock", &wrong).await;
        assert_eq!(status, 400);
        assert!(
            problem["message"]
                .as_str()
                .unwrap()
                .starts_with("advanceSeconds"),
            "{problem}"
        );
    }
    let new = json!({"configurationId": configuration::CONFIGURATION_ID});
    let (_, opened) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(opened["createdAt"], "2026-11-22T12:01:30Z");
    running.finish().await;
}

#[tokio::test]
async fn what_is_due_happens_without_anybody_asking() {
    let stop = Stop::new();
    let emulator = Emulator::start(
        Options {
            gate_open: false,
            operation_delay: Duration::from_millis(5),
            ..options(1)
        },
        Clock::system(),
        stop.clone(),
    )
    .unwrap();
    let shared = Arc::clone(&emulator.shared);
    let conversation: Arc<str> = "conv_conversation_1".into();
    let now = shared.clock.now();
    let open = Command::Open {
        id: Arc::clone(&conversation),
        configuration_id: configuration::CONFIGURATION_ID.into(),
        name: None,
        metadata: BTreeMap::new(),
        participants: Vec::new(),
    };
    shared.carry_out(open, now).await.unwrap();
    let mut due = shared.due.subscribe();
    let delete = Command::Begin {
        operation: "operation_1".into(),
        request: state::Request::DeleteConversation(Arc::clone(&conversation)),
        key: None,
    };
    shared.carry_out(delete, now).await.unwrap();
    let ended = due.wait_for(|due| due.is_none());
    timeout(DEADLINE, ended).await.unwrap().unwrap();
    assert!(shared.state().conversation(&conversation).is_none());
    stop.request();
    emulator.finish().await.unwrap();
}

/// The same requests twice, while time stands still.
#[tokio::test]
async fn a_standing_clock_and_a_seed_repeat_every_answer_byte_for_byte() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let running = Running::played(Options {
            start_time: Some(base()),
            ..options(10)
        })
        .await;
        let mut answers = Vec::new();
        let new = json!({"configurationId": configuration::CONFIGURATION_ID, "participants": [{"name": "Kiran"}]});
        let configuration = json!({"displayName": "d", "memoryStoreId": "m", "conversationGroupingType": "GROUP_BY_PROFILE"});
        for (method, path, body) in [
            ("GET", "/v2/Conversations", json!(null)),
            ("POST", "/v2/Conversations", new),
            ("POST", "/v2/ControlPlane/Configurations", configuration),
            ("POST", "/emulator/clock", json!({"advanceSeconds": 5})),
            ("GET", "/v2/ControlPlane/Configurations", json!(null)),
            ("GET", "/v2/Conversations?status=ACTIVE", json!(null)),
            ("GET", "/emulator/truth", json!(null)),
            ("GET", "/v2/Nothing", json!(null)),
        ] {
            let request = running.request(method, path);
            let request = request.header("host", "orchestrator.test");
            let request = request.header("content-type", "application/json");
            let answer = request.body(body.to_string()).send().await.unwrap();
            answers.push((path, answer.status(), answer.bytes().await.unwrap()));
        }
        running.finish().await;
        runs.push(answers);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn old_closed_conversations_make_room_and_pages_stay_right() {
    let running = Running::start(Options {
        keep_conversations: 5,
        gate_open: false,
        ..options(1)
    });
    let list = "/v2/Conversations";
    let new = json!({"configurationId": configuration::CONFIGURATION_ID});
    let mut opened = Vec::new();
    for _ in 0..5 {
        let (_, conversation) = running.send("POST", list, &new).await;
        opened.push(conversation["id"].as_str().unwrap().to_owned());
    }
    let (_, page) = running.get(&format!("{list}?pageSize=2")).await;
    let token = page["meta"]["nextToken"].as_str().unwrap();
    // The fourth closes first, then the second: they go in this order, and the living ones never.
    for place in [3, 1] {
        let path = format!("{list}/{}", opened[place]);
        running
            .send("PATCH", &path, &json!({"status": "CLOSED"}))
            .await;
    }
    assert_eq!(
        running.emulator.counts().evicted,
        0,
        "five are not too many"
    );
    running.send("POST", list, &new).await;
    assert_eq!(running.get(&format!("{list}/{}", opened[3])).await.0, 404);
    assert_eq!(running.get(&format!("{list}/{}", opened[1])).await.0, 200);
    let (_, page) = running
        .get(&format!("{list}?pageSize=2&pageToken={token}"))
        .await;
    let items = page["conversations"].as_array().unwrap();
    assert_eq!(
        ids(items),
        [&*opened[2], &opened[4]],
        "a token from before is where it was"
    );
    for _ in 0..2 {
        running.send("POST", list, &new).await;
    }
    let whole = running.list(list, "conversations", 50).await;
    assert_eq!(whole.len(), 6, "the living are more than are kept");
    assert_eq!(running.list(list, "conversations", 1).await, whole);
    let (_, stats) = running.get("/emulator/stats").await;
    assert_eq!(
        (&stats["evicted"], &stats["conversations"]),
        (&json!(2), &json!(8))
    );
    let truth: Value = serde_json::from_slice(&running.truth().await).unwrap();
    assert_eq!(truth, json!({"conversations": [], "evicted": 2}));
    running.finish().await;
}

#[tokio::test]
async fn a_standing_clock_and_a_seed_repeat_every_callback_byte_for_byte() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let (receiver, address) = Receiver::start(dev_keys(), 0).await;
        let running = Running::played(Options {
            start_time: Some(base()),
            duplicates: 0.3,
            disorder: 0.3,
            ..calling(10, address)
        })
        .await;
        running.finish().await;
        runs.push(std::mem::take(&mut *receiver.seen.lock().unwrap()));
    }
    assert!(runs[0].len() > 100);
    assert!(runs[0] == runs[1], "tokens, bodies or repeats differ");
}

#[tokio::test]
async fn endless_traffic_stays_within_its_bound() {
    let running = Running::start(Options {
        keep_conversations: 20,
        ..options(0)
    });
    let evicting = async {
        while running.emulator.counts().evicted < 100 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, evicting).await.unwrap();
    {
        let state = running.emulator.shared.state();
        let statuses = state.conversations().map(|entry| entry.conversation.status);
        let (closed, living): (Vec<_>, Vec<_>) =
            statuses.partition(|status| *status == resource::Status::Closed);
        let kept = closed.len() + living.len();
        assert!(kept <= 20.max(living.len()), "{closed:?} {living:?}");
        let tally = state.tally();
        assert_eq!(tally.closed - tally.evicted, closed.len() as u64);
    }
    running.finish().await;
}
