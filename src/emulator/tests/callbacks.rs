//! What receivers get: proven, once a step, again where they refuse.

use super::*;

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
        duplicates: 0.0,
        callback_url: Some(PUBLIC_URL.to_owned()),
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
