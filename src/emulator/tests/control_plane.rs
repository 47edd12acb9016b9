//! Configurations: made and changed by operations, limited, versioned, pinned.

use super::*;

const CONFIGURATIONS: &str = "/v2/ControlPlane/Configurations";

fn gated() -> Options {
    Options {
        gate_open: false,
        ..options(1)
    }
}

fn settings(name: &str) -> Value {
    json!({
        "displayName": name,
        "description": "what a test made",
        "conversationGroupingType": "GROUP_BY_PROFILE",
        "memoryStoreId": "mem_store_1",
        "memoryExtractionEnabled": true,
        "channelSettings": {
            "SMS": {
                "captureRules": [
                    {"from": "+15551234567", "to": "*", "metadata": {}},
                    {"from": "*", "to": "+15551234567", "metadata": {}}
                ],
                "statusTimeouts": {"inactive": 10, "closed": 60}
            },
            "VOICE": {"statusTimeouts": null}
        },
        "statusCallbacks": [{"url": "https://example.com/hook#rc=5", "method": "POST"}],
        "intelligenceConfigurationIds": ["intelligence_1"]
    })
}

impl Running {
    async fn pass(&self, seconds: u64) {
        let body = json!({ "advanceSeconds": seconds });
        let (status, clock) = self.send("POST", "/emulator/clock", &body).await;
        assert_eq!(status, 200, "{clock}");
    }

    /// The operation that `method` on `path` begins, once it has ended.
    async fn operate(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, accepted) = self.send(method, path, body).await;
        assert_eq!(
            (status, &accepted["status"]),
            (202, &json!("PENDING")),
            "{accepted}"
        );
        self.pass(1).await;
        let id = accepted["operationId"].as_str().unwrap();
        let (status, ended) = self.get(&format!("/v2/ControlPlane/Operations/{id}")).await;
        assert_eq!(status, 200);
        ended
    }

    async fn configuration(&self, settings: &Value) -> String {
        let ended = self.operate("POST", CONFIGURATIONS, settings).await;
        assert_eq!(ended["status"], "COMPLETED", "{ended}");
        ended["related"]["configurationId"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

fn failed(operation: &Value, status: u16, word: &str) {
    assert_eq!(operation["status"], "FAILED", "{operation}");
    assert!(operation["completedAt"].is_string());
    let error = &operation["error"];
    assert_eq!(error["status"], status, "{error}");
    assert!(error["type"].is_string() && error["title"].is_string());
    assert!(error["detail"].as_str().unwrap().contains(word), "{error}");
}

#[tokio::test]
async fn a_configuration_is_made_by_an_operation_that_alone_tells_its_id() {
    let running = Running::start(gated());
    let (status, accepted) = running.send("POST", CONFIGURATIONS, &settings("one")).await;
    assert_eq!(status, 202);
    assert_eq!(accepted["related"], json!({}), "no id yet");
    let operation = accepted["operationId"].as_str().unwrap();
    let url = accepted["statusUrl"].as_str().unwrap();
    let path = format!("/v2/ControlPlane/Operations/{operation}");
    assert_eq!(url, format!("http://{}{path}", running.emulator.address()));
    let (_, pending) = running.get(&path).await;
    assert_eq!(pending["status"], "PENDING");
    assert_eq!(pending["statusUrl"], url);
    assert_eq!(
        (&pending["related"], pending.get("completedAt")),
        (&json!({}), None)
    );
    let list = running.list(CONFIGURATIONS, "configurations", 50).await;
    assert_eq!(ids(&list), [configuration::CONFIGURATION_ID]);

    running.pass(1).await;
    let (_, completed) = running.get(&path).await;
    assert_eq!(completed["status"], "COMPLETED");
    assert_eq!(completed["createdAt"], "2026-11-22T12:30:00Z");
    assert_eq!(
        completed["completedAt"], "2026-11-22T12:30:00Z",
        "when it was due, to the second"
    );
    let id = completed["related"]["configurationId"].as_str().unwrap();
    let (status, made) = running.get(&format!("{CONFIGURATIONS}/{id}")).await;
    assert_eq!((status, &made["version"]), (200, &json!(1)));
    for (field, value) in settings("one").as_object().unwrap() {
        assert_eq!(&made[field], value, "{field}");
    }

    let request = running
        .request("GET", &path)
        .header("host", "orchestrator.test:8085");
    let (_, elsewhere) = answer(request).await;
    let url = format!("http://orchestrator.test:8085{path}");
    assert_eq!(elsewhere["statusUrl"], url, "on the origin that was asked");
    assert_eq!(running.get("/v2/ControlPlane/Operations/x").await.0, 404);
    assert_eq!(running.get(&format!("{CONFIGURATIONS}/x")).await.0, 404);
    running.finish().await;
}

#[tokio::test]
async fn a_put_replaces_everything_and_drops_what_is_left_out() {
    let running = Running::start(gated());
    let mut first = settings("one");
    first["somethingNew"] = json!({"of": ["Twilio's"]});
    let id = running.configuration(&first).await;
    let path = format!("{CONFIGURATIONS}/{id}");
    let (_, mut fetched) = running.get(&path).await;
    assert_eq!(fetched["somethingNew"], first["somethingNew"]);
    fetched["displayName"] = json!("two");
    let ended = running.operate("PUT", &path, &fetched).await;
    assert_eq!(ended["status"], "COMPLETED", "{ended}");
    assert_eq!(ended["related"]["configurationId"], json!(id));
    let (_, second) = running.get(&path).await;
    assert_eq!(
        (&second["displayName"], &second["version"]),
        (&json!("two"), &json!(2))
    );
    for same in [
        "channelSettings",
        "somethingNew",
        "createdAt",
        "memoryStoreId",
    ] {
        assert_eq!(second[same], fetched[same], "{same}");
    }
    assert_ne!(second["updatedAt"], fetched["updatedAt"]);

    let bare = json!({"conversationGroupingType": "GROUP_BY_PROFILE"});
    let ended = running.operate("PUT", &path, &bare).await;
    assert_eq!(ended["status"], "COMPLETED", "silently");
    let (_, third) = running.get(&path).await;
    for gone in ["displayName", "memoryStoreId", "somethingNew"] {
        assert_eq!(third.get(gone), None, "{third}");
    }
    assert_eq!(third["channelSettings"], json!({}));
    assert_eq!(third["statusCallbacks"], json!([]));
    assert_eq!(third["memoryExtractionEnabled"], false);

    failed(
        &running.operate("PUT", &path, &second).await,
        409,
        "version",
    );
    let (status, problem) = running.send("PUT", &path, &json!({})).await;
    let message = problem["message"].as_str().unwrap();
    assert_eq!(
        (status, message),
        (400, "conversationGroupingType: is required")
    );
    assert_eq!(
        running
            .send("PUT", &format!("{CONFIGURATIONS}/x"), &bare)
            .await
            .0,
        404
    );
    running.finish().await;
}

#[tokio::test]
async fn the_grouping_type_cannot_change() {
    let running = Running::start(gated());
    let id = running.configuration(&settings("one")).await;
    let path = format!("{CONFIGURATIONS}/{id}");
    let (_, before) = running.get(&path).await;
    let mut other = settings("one");
    other["conversationGroupingType"] = json!("GROUP_BY_PARTICIPANT_ADDRESSES");
    let ended = running.operate("PUT", &path, &other).await;
    failed(&ended, 409, "conversationGroupingType");
    assert_eq!(
        running.get(&path).await.1,
        before,
        "a failure changes nothing"
    );
    running.finish().await;
}

#[tokio::test]
async fn a_patch_is_refused_unless_a_switch_allows_it() {
    let patch = json!({
        "displayName": "patched",
        "memoryExtractionEnabled": null,
        "channelSettings": {"SMS": null, "WHATSAPP": {"statusTimeouts": {"closed": 5}}}
    });
    let running = Running::start(gated());
    let id = running.configuration(&settings("one")).await;
    let path = format!("{CONFIGURATIONS}/{id}");
    let (status, problem) = running.send("PATCH", &path, &patch).await;
    assert_eq!((status, &problem["code"]), (405, &json!(20_004)));
    assert!(problem["message"].as_str().unwrap().contains("PUT"));
    running.finish().await;

    let running = Running::start(Options {
        allow_configuration_patch: true,
        ..gated()
    });
    let id = running.configuration(&settings("one")).await;
    let path = format!("{CONFIGURATIONS}/{id}");
    let ended = running.operate("PATCH", &path, &patch).await;
    assert_eq!(ended["status"], "COMPLETED", "{ended}");
    let (_, patched) = running.get(&path).await;
    assert_eq!(patched["displayName"], "patched");
    assert_eq!(patched["description"], "what a test made", "untouched");
    assert_eq!(
        patched["memoryExtractionEnabled"], false,
        "null is the default"
    );
    let channels: Vec<_> = patched["channelSettings"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    assert_eq!(channels, ["VOICE", "WHATSAPP"]);
    let wrong = json!({"channelSettings": {"SMS": {"statusTimeouts": {"closed": 0}}}});
    assert_eq!(running.send("PATCH", &path, &wrong).await.0, 400);
    running.finish().await;
}

#[tokio::test]
async fn an_account_has_ten_configurations_at_most() {
    let running = Running::start(gated());
    let mut made = Vec::new();
    for number in 2..=10 {
        made.push(
            running
                .configuration(&settings(&format!("n{number}")))
                .await,
        );
    }
    let eleventh = running
        .operate("POST", CONFIGURATIONS, &settings("n11"))
        .await;
    failed(&eleventh, 409, "10 configurations");
    assert_eq!(eleventh["related"], json!({}));
    let path = format!("{CONFIGURATIONS}/{}", made[3]);
    let ended = running.operate("DELETE", &path, &json!({})).await;
    assert_eq!(ended["status"], "COMPLETED");
    assert_eq!(running.get(&path).await.0, 404);
    assert_eq!(running.send("DELETE", &path, &json!({})).await.0, 404);
    made[3] = running.configuration(&settings("n11")).await;
    let list = running.list(CONFIGURATIONS, "configurations", 3).await;
    assert_eq!(list.len(), 10);
    assert_eq!(ids(&list)[9], made[3], "in the order of creation");
    running.finish().await;
}

#[tokio::test]
async fn configurations_are_paged_both_ways_and_filtered_by_memory_store() {
    let running = Running::start(gated());
    for number in 0..5 {
        let mut new = settings(&format!("n{number}"));
        new["memoryStoreId"] = json!(format!("mem_store_{}", number % 2));
        running.configuration(&new).await;
    }
    let path = format!("{CONFIGURATIONS}?memoryStoreId=mem_store_0");
    for size in [1, 2, 50] {
        let list = running.list(&path, "configurations", size).await;
        let names: Vec<_> = list
            .iter()
            .map(|c| c["displayName"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["n0", "n2", "n4"], "pageSize {size}");
    }
    let (_, first) = running.get(&format!("{path}&PageSize=2")).await;
    let next = first["meta"]["nextToken"].as_str().unwrap();
    let (_, second) = running
        .get(&format!("{path}&PageSize=2&PageToken={next}"))
        .await;
    let back = second["meta"]["previousToken"].as_str().unwrap();
    let (_, again) = running
        .get(&format!("{path}&pageSize=2&pageToken={back}"))
        .await;
    assert_eq!(again["configurations"], first["configurations"]);
    assert_eq!(
        running
            .get(&format!("{CONFIGURATIONS}?pageToken={next}"))
            .await
            .0,
        400
    );
    running.finish().await;
}

#[tokio::test]
async fn an_idempotency_key_is_one_operation_for_a_day() {
    let running = Running::start(gated());
    let key = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let post = async || {
        let request = running.request("POST", CONFIGURATIONS);
        let request = request.header("content-type", "application/json");
        let request = request.header("idempotency-key", key);
        answer(request.body(settings("once").to_string())).await
    };
    let first = post().await;
    assert_eq!(first.0, 202);
    assert_eq!(post().await, first);
    running.pass(24 * 3_600 - 1).await;
    assert_eq!(
        post().await,
        first,
        "after it ended as well, and as it was answered first"
    );
    let list = running.list(CONFIGURATIONS, "configurations", 50).await;
    assert_eq!(list.len(), 2, "the one that was there, and one more");
    running.pass(1).await;
    let later = post().await;
    assert_ne!(later.1["operationId"], first.1["operationId"], "forgotten");
    let forgotten = first.1["operationId"].as_str().unwrap();
    assert_eq!(
        running
            .get(&format!("/v2/ControlPlane/Operations/{forgotten}"))
            .await
            .0,
        404
    );

    let wrong = running.request("DELETE", &format!("{CONFIGURATIONS}/x"));
    let (status, problem) = answer(wrong.header("idempotency-key", "1")).await;
    assert_eq!(status, 400);
    assert!(
        problem["message"]
            .as_str()
            .unwrap()
            .starts_with("Idempotency-Key")
    );
    running.finish().await;
}

#[tokio::test]
async fn conversations_keep_the_version_that_they_were_born_under() {
    let running = Running::start(gated());
    let id = running.configuration(&settings("first")).await;
    let path = format!("{CONFIGURATIONS}/{id}");
    let new = json!({ "configurationId": id });
    let (_, old) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(old["configuration"]["displayName"], "first");
    let mut changed = settings("second");
    changed["statusCallbacks"] = json!([]);
    running.operate("PUT", &path, &changed).await;
    let (_, young) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(young["configuration"]["displayName"], "second");
    assert_eq!(young["configuration"]["statusCallbacks"], json!([]));
    let kept = format!("/v2/Conversations/{}", old["id"].as_str().unwrap());
    assert_eq!(running.get(&kept).await.1, old);

    running.operate("DELETE", &path, &json!({})).await;
    let (_, still) = running.get(&kept).await;
    assert_eq!(
        still["configuration"]["displayName"], "first",
        "its configuration is gone"
    );
    assert_eq!(still["configurationId"], json!(id));
    let (status, problem) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(
        (status, &problem["message"]),
        (404, &json!("There is no configuration"))
    );
    running.finish().await;
}

#[tokio::test]
async fn one_configuration_bridges_a_classic_service() {
    let running = Running::start(gated());
    let mut bridged = settings("one");
    bridged["conversationsV1Bridge"] = json!({"serviceId": "IS00000000000000000000000000000001"});
    let id = running.configuration(&bridged).await;
    let path = format!("{CONFIGURATIONS}/{id}");
    failed(
        &running.operate("POST", CONFIGURATIONS, &bridged).await,
        409,
        "conversationsV1Bridge",
    );
    let ended = running.operate("PUT", &path, &bridged).await;
    assert_eq!(ended["status"], "COMPLETED", "its own");
    running.finish().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_configuration_is_named() {
    let running = Running::start(gated());
    let rules = |count: usize| vec![json!({"from": "*", "to": "+1"}); count];
    for (pointer, value, field) in [
        ("/displayName", json!(null), "displayName: is required"),
        ("/displayName", json!(""), "displayName: is required"),
        (
            "/displayName",
            json!("é".repeat(33)),
            "displayName: has more than 32",
        ),
        ("/displayName", json!(7), "displayName: invalid type"),
        ("/memoryStoreId", json!(null), "memoryStoreId: is required"),
        (
            "/conversationGroupingType",
            json!(null),
            "conversationGroupingType: is required",
        ),
        (
            "/conversationGroupingType",
            json!("GROUP_BY_MOON"),
            "conversationGroupingType: unknown",
        ),
        (
            "/intelligenceConfigurationIds",
            json!(vec!["i"; 6]),
            "intelligenceConfigurationIds: has more than 5",
        ),
        (
            "/statusCallbacks",
            json!([{"url": "https://a.b"}, {"url": "https://a.c"}, {"url": "https://a.d"}]),
            "statusCallbacks: has more than 2",
        ),
        (
            "/statusCallbacks",
            json!([{"url": "ftp://a.b"}]),
            "statusCallbacks[0].url",
        ),
        (
            "/statusCallbacks",
            json!([{"url": "https://a.b"}, {"url": "/hook"}]),
            "statusCallbacks[1].url",
        ),
        (
            "/statusCallbacks",
            json!([{"method": "POST"}]),
            "statusCallbacks[0].url: is required",
        ),
        (
            "/statusCallbacks",
            json!([{"url": "https://a.b", "method": "TRACE"}]),
            "statusCallbacks[0].method",
        ),
        (
            "/channelSettings/SMS/captureRules",
            json!(rules(101)),
            "channelSettings.SMS.captureRules: has more than 100",
        ),
        (
            "/channelSettings/SMS/captureRules",
            json!([{"to": "*"}]),
            "channelSettings.SMS.captureRules[0].from: is required",
        ),
        (
            "/channelSettings/SMS/captureRules",
            json!([{"from": "", "to": "*"}]),
            "channelSettings.SMS.captureRules[0].from",
        ),
        (
            "/channelSettings/SMS/statusTimeouts",
            json!({"inactive": 0}),
            "channelSettings.SMS.statusTimeouts.inactive",
        ),
        (
            "/channelSettings/SMS/statusTimeouts",
            json!({"closed": -1}),
            "channelSettings.SMS.statusTimeouts.closed",
        ),
        (
            "/channelSettings/SMS/statusTimeouts",
            json!({"inactive": 10, "closed": 9}),
            "channelSettings.SMS.statusTimeouts.closed",
        ),
        ("/channelSettings", json!({"FAX": {}}), "channelSettings"),
        (
            "/memoryExtractionEnabled",
            json!("yes"),
            "memoryExtractionEnabled: invalid type",
        ),
    ] {
        let mut wrong = settings("one");
        *wrong.pointer_mut(pointer).unwrap() = value;
        let (status, problem) = running.send("POST", CONFIGURATIONS, &wrong).await;
        assert_eq!(
            (status, &problem["status"]),
            (400, &json!(400)),
            "{pointer}: {problem}"
        );
        let message = problem["message"].as_str().unwrap();
        assert!(message.starts_with(field), "{pointer}: {message}");
    }
    let mut right = settings("é".repeat(32).as_str());
    right["channelSettings"]["SMS"]["captureRules"] = json!(rules(100));
    right["conversationsV1Bridge"] = json!(null);
    right["memoryStoreId"] = json!("mem_store_that_was_deleted");
    running.configuration(&right).await;
    running.finish().await;
}

#[tokio::test]
async fn a_conversation_is_deleted_by_an_operation() {
    let running = Running::played(options(5)).await;
    let all = running.list("/v2/Conversations", "conversations", 50).await;
    let (_, page) = running.get("/v2/Conversations?pageSize=2").await;
    let token = page["meta"]["nextToken"].as_str().unwrap();
    let id = ids(&all)[1];
    let path = format!("/v2/Conversations/{id}");
    let communications = format!("{path}/Communications");
    let (_, first) = running.get(&format!("{communications}?pageSize=1")).await;
    let communication = first["communications"][0]["id"].as_str().unwrap();
    let (status, accepted) = running.send("DELETE", &path, &json!({})).await;
    assert_eq!((status, &accepted["status"]), (202, &json!("PENDING")));
    assert_eq!(accepted["related"]["conversationId"], json!(id));
    assert_eq!(running.get(&path).await.0, 200, "not yet");
    running.pass(1).await;
    let operation = accepted["operationId"].as_str().unwrap();
    let (_, ended) = running
        .get(&format!("/v2/ControlPlane/Operations/{operation}"))
        .await;
    assert_eq!(ended["status"], "COMPLETED");
    let gone = format!("{communications}/{communication}");
    for path in [
        &path,
        &communications,
        &gone,
        &format!("{path}/Participants"),
    ] {
        assert_eq!(running.get(path).await.0, 404, "{path}");
    }
    let rest = running.list("/v2/Conversations", "conversations", 50).await;
    let others = [0, 2, 3, 4].map(|place| ids(&all)[place]);
    assert_eq!(ids(&rest), others);
    let (_, page) = running
        .get(&format!("/v2/Conversations?pageSize=2&pageToken={token}"))
        .await;
    let items = page["conversations"].as_array().unwrap();
    assert_eq!(
        ids(items),
        others[1..3],
        "a token from before is where it was"
    );
    assert_eq!(running.send("DELETE", &path, &json!({})).await.0, 404);
    running.finish().await;
}
