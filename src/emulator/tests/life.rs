//! What a conversation goes through, by traffic and over REST.

use super::*;

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
    assert_eq!(closed["name"], "Kiran", "a null is nothing");
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
async fn a_put_replaces_a_conversation_and_a_participant() {
    let running = Running::start(Options {
        gate_open: false,
        ..options(1)
    });
    // As the Python SDK writes it: a null for each field that it was not given.
    let new = json!({
        "configurationId": configuration::CONFIGURATION_ID,
        "name": "before",
        "configuration": null,
        "participants": [{"name": "Kiran", "type": "CUSTOMER", "profileId": null, "addresses": null}],
        "metadata": {"order": "17", "shop": null}
    });
    let (status, created) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(
        (status, &created["metadata"]),
        (201, &json!({"order": "17"})),
        "{created}"
    );
    let path = format!("/v2/Conversations/{}", created["id"].as_str().unwrap());
    let put = json!({"status": "INACTIVE", "name": null, "metadata": {"shop": "4"}});
    let (status, replaced) = running.send("PUT", &path, &put).await;
    assert_eq!((status, &replaced["status"]), (200, &json!("INACTIVE")));
    assert_eq!(
        (&replaced["name"], &replaced["metadata"]),
        (&Value::Null, &json!({"shop": "4"}))
    );
    let merge = json!({"name": "after", "status": null, "configuration": null, "metadata": {"order": "18", "shop": null}});
    let (_, patched) = running.send("PATCH", &path, &merge).await;
    assert_eq!(
        (&patched["status"], &patched["metadata"]),
        (&json!("INACTIVE"), &json!({"order": "18"}))
    );
    let (status, problem) = running.send("PUT", &path, &json!({"name": "n"})).await;
    assert_eq!(
        (status, &problem["message"]),
        (400, &json!("status: is required"))
    );

    let participant = created["participants"][0]["id"].as_str().unwrap();
    let participant = format!("{path}/Participants/{participant}");
    let put = json!({"name": "Ada", "type": "HUMAN_AGENT", "addresses": [{"channel": "VOICE", "address": "+15551234567", "channelId": "CA1"}]});
    let (status, replaced) = running.send("PUT", &participant, &put).await;
    assert_eq!(
        (status, &replaced["name"], &replaced["type"]),
        (200, &json!("Ada"), &json!("HUMAN_AGENT"))
    );
    assert_eq!(running.get(&participant).await.1, replaced);
    let found = running
        .list("/v2/Conversations?channelId=CA1", "conversations", 5)
        .await;
    assert_eq!(found.len(), 1, "the new address is found");
    assert_eq!(
        running
            .send("PUT", &format!("{path}/Participants/x"), &put)
            .await
            .0,
        404
    );
    running
        .send("PATCH", &path, &json!({"status": "CLOSED"}))
        .await;
    assert_eq!(running.send("PUT", &participant, &put).await.0, 409);
    running.finish().await;
}
