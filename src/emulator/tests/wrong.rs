//! What is refused, and how it is said.

use super::*;

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

/// Every route that takes a body, with a method that takes it.
const WRITES: [(&str, &str); 12] = [
    ("POST", "/v2/Conversations"),
    ("PATCH", "/v2/Conversations/x"),
    ("PUT", "/v2/Conversations/x"),
    ("POST", "/v2/Conversations/x/Communications"),
    ("POST", "/v2/Conversations/x/Participants"),
    ("PUT", "/v2/Conversations/x/Participants/y"),
    ("POST", "/v2/ControlPlane/Configurations"),
    ("PUT", "/v2/ControlPlane/Configurations/x"),
    ("PATCH", "/v2/ControlPlane/Configurations/x"),
    ("POST", "/emulator/clock"),
    ("POST", "/v2/Conversations/../Conversations"),
    ("POST", "/v2//Conversations"),
];

fn is_problem(status: u16, problem: &Value, what: &str) {
    assert!((400..500).contains(&status), "{what}: {status} {problem}");
    assert_eq!(problem["status"], status, "{what}: {problem}");
    assert!(problem["code"].is_u64() && problem["message"].is_string());
    assert!(problem["more_info"].is_string());
}

#[tokio::test]
async fn json_is_the_only_language() {
    let running = Running::start(Options {
        allow_configuration_patch: true,
        gate_open: false,
        ..options(1)
    });
    for (method, path) in &WRITES[..10] {
        for kind in [
            Some("application/x-www-form-urlencoded"),
            Some("text/json"),
            Some("application/jsonl"),
            Some("multipart/form-data; boundary=x"),
            None,
        ] {
            let mut request = running.request(method, path).body("displayName=form");
            if let Some(kind) = kind {
                request = request.header("content-type", kind);
            }
            let (status, problem) = answer(request).await;
            assert_eq!(status, 415, "{method} {path} as {kind:?}");
            is_problem(status, &problem, path);
        }
    }
    running.finish().await;
}

#[tokio::test]
async fn bodies_that_are_wrong_are_refused_whatever_they_are() {
    let running = Running::start(Options {
        allow_configuration_patch: true,
        gate_open: false,
        ..options(1)
    });
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    for (method, path) in WRITES {
        for body in [
            "",
            "{",
            "null",
            "[]",
            "7",
            "\"x\"",
            "{\"a\":}",
            "\u{feff}{}",
            "{\"status\":5}",
            "{\"status\":\"closed\"}",
            "{\"participants\":{}}",
            "{\"addresses\":[{}]}",
            "{\"configurationId\":[]}",
            "{\"channelSettings\":[]}",
            "{\"advanceSeconds\":1e99}",
            "{\"content\":{\"type\":\"SONG\"}}",
            "{\"occurredAt\":\"soon\"}",
            &deep,
        ] {
            let request = running.request(method, path);
            let request = request.header("content-type", "application/json");
            let (status, problem) = answer(request.body(body.to_owned())).await;
            let head: String = body.chars().take(40).collect();
            is_problem(status, &problem, &format!("{method} {path} {head}"));
        }
        let large = "x".repeat(rest::MAX_BODY_BYTES + 1);
        let request = running.request(method, path);
        let request = request.header("content-type", "application/json");
        let (status, problem) = answer(request.body(large)).await;
        is_problem(status, &problem, path);
    }
    assert_eq!(running.emulator.counts().conversations, 0);
    running.finish().await;
}

#[tokio::test]
async fn wrong_methods_and_unknown_routes_are_told_so() {
    let running = Running::start(Options {
        gate_open: false,
        ..options(1)
    });
    for (method, path) in [
        ("PUT", "/v2/Conversations"),
        ("POST", "/v2/Conversations/x"),
        ("DELETE", "/v2/Conversations/x/Communications"),
        ("PATCH", "/v2/Conversations/x/Communications/y"),
        ("PATCH", "/v2/Conversations/x/Participants/y"),
        ("DELETE", "/v2/Conversations/x/Participants/y"),
        ("PUT", "/v2/ControlPlane/Configurations"),
        ("POST", "/v2/ControlPlane/Operations/x"),
        ("PATCH", "/v2/ControlPlane/Configurations/x"),
        ("DELETE", "/emulator/clock"),
        ("POST", "/emulator/truth"),
    ] {
        let (status, problem) = running.send(method, path, &json!({})).await;
        assert_eq!(
            (status, &problem["code"]),
            (405, &json!(20_004)),
            "{method} {path}"
        );
        is_problem(status, &problem, path);
    }
    for path in [
        "/v3/Conversations",
        "/v2",
        "/v2/",
        "/v2/conversations",
        "/v2/Conversations/",
        "/v2/Conversations/x/Messages",
        "/v2/ControlPlane",
        "/v2/ControlPlane/Operations",
        "/v2/Conversations/%00",
        "/v2/Conversations/%F0%28%8C%28",
        "/v2/Conversations/x%2FCommunications",
        "/emulator/truth/x",
        "/v2/Conversations/a/b/c/d/e/f/g",
    ] {
        let (status, problem) = running.get(path).await;
        is_problem(status, &problem, path);
    }
    let actions = "/v2/Conversations/x/Actions";
    let (status, problem) = running
        .send("POST", actions, &json!({"type": "SEND_MESSAGE"}))
        .await;
    assert_eq!((status, &problem["code"]), (501, &json!(20_501)));
    running.finish().await;
}

#[tokio::test]
async fn a_field_that_is_wrong_is_named() {
    let running = Running::played(options(1)).await;
    let configuration = configuration::CONFIGURATION_ID;
    let address = json!({"channel": "SMS", "address": "+15551234567"});
    for (path, body, field) in [
        ("", json!({}), "configurationId: is required"),
        (
            "",
            json!({"configurationId": configuration, "participants": [{"type": "ROBOT"}]}),
            "participants[0].type",
        ),
        (
            "",
            json!({"configurationId": configuration, "participants": vec![json!({}); 51]}),
            "participants",
        ),
        (
            "",
            json!({"configurationId": configuration, "metadata": {"a b": "c"}}),
            "metadata.a b: a key has",
        ),
        (
            "",
            json!({"configurationId": configuration, "metadata": {"k": "v".repeat(513)}}),
            "metadata.k: has more than 512",
        ),
        (
            "/x/Participants",
            json!({"addresses": [{"channel": "PIGEON", "address": "x"}]}),
            "addresses[0].channel",
        ),
        (
            "/x/Communications",
            json!({"content": {"type": "TEXT", "text": ""}, "recipients": []}),
            "author: is required",
        ),
        (
            "/x/Communications",
            json!({"author": address, "content": {"type": "TEXT"}, "recipients": []}),
            "content.text: is required",
        ),
        (
            "/x/Communications",
            json!({"author": address, "content": {"type": "TEXT", "text": ""}}),
            "recipients: is required",
        ),
    ] {
        let path = format!("/v2/Conversations{path}");
        let (status, problem) = running.send("POST", &path, &body).await;
        is_problem(status, &problem, field);
        let message = problem["message"].as_str().unwrap();
        assert!(
            status == 400 && message.contains(field),
            "{field}: {message}"
        );
    }
    running.finish().await;
}
