//! Calls against a server of bytes: what is believed, what is tried again, what is given up.

use std::sync::Arc;

use serde_json::{Value, json};

use super::scripted::{self, Reply, Server};
use super::*;

fn settings(url: &Url) -> Settings {
    Settings {
        requests_per_second: NonZeroU32::new(10_000).unwrap(),
        max_attempts: NonZeroU32::new(4).unwrap(),
        total_budget: Duration::from_secs(10),
        request_timeout: Duration::from_secs(2),
        min_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(4),
        max_retry_after: Duration::from_millis(80),
        max_body_bytes: 100_000,
        ..Settings::new(url.clone(), Credentials::new("AC1", "canary-secret"))
    }
}

fn api(server: &Server) -> Api {
    Api::new(settings(&server.url), Clock::system()).unwrap()
}

fn conversation() -> Value {
    json!({"id": "v1", "status": "CLOSED", "name": "canary-text"})
}

type Make = fn() -> Reply;
type Script = Vec<Make>;

/// The conversation asked for from a server that answers with `script`, its last line for ever.
async fn ask(script: Script) -> (Server, Api, Result<Answer<Conversation>, ApiError>) {
    let script = Arc::new(script);
    let server = Server::start(move |_, nth| script[nth.min(script.len() - 1)]()).await;
    let api = api(&server);
    let result = api.conversation("v1").await;
    (server, api, result)
}

fn good() -> Reply {
    scripted::ok(&conversation())
}

#[tokio::test]
async fn a_call_says_who_it_is_and_asks_for_json() {
    let (server, api, answer) = ask(vec![good]).await;
    let answer = answer.unwrap();
    assert_eq!(answer.calls, 1);
    assert_eq!(answer.bytes, conversation().to_string().len());
    assert_eq!(answer.value.status.as_deref(), Some("CLOSED"));
    let seen = &server.seen()[0];
    assert_eq!(seen.target, "/v2/Conversations/v1");
    let head = seen.head.to_ascii_lowercase();
    assert!(
        head.contains("authorization: basic qumxomnhbmfyes1zzwnyzxq="),
        "{head}"
    );
    assert!(head.contains("accept: application/json"));
    assert!(head.contains("accept-encoding: gzip"));
    assert!(!format!("{api:?}").contains("canary"));
}

#[tokio::test]
async fn troubles_are_tried_again() {
    let scripts: [(&str, Make); 10] = [
        ("429", || scripted::error(429)),
        ("500", || scripted::error(500)),
        ("503", || scripted::error(503)),
        ("408", || scripted::error(408)),
        ("cut body", || scripted::cut(&conversation())),
        ("no answer", || Reply::Bytes(Vec::new())),
        ("HTML", || {
            scripted::raw(200, &[("content-type", "text/html")], b"<html>")
        }),
        ("cut JSON", || {
            scripted::raw(
                200,
                &[("content-type", "application/json")],
                b"{\"id\": \"v",
            )
        }),
        ("wrong type", || {
            scripted::ok(&json!({"id": "v1", "name": 7}))
        }),
        ("another one", || scripted::ok(&json!({"id": "v2"}))),
    ];
    for (name, trouble) in scripts {
        let (server, api, answer) = ask(vec![trouble, trouble, good]).await;
        assert_eq!(answer.expect(name).calls, 3, "{name}");
        assert_eq!(server.seen().len(), 3, "{name}");
        assert_eq!(api.calls(), 3, "{name}");
        assert!(api.answered_since(server.seen()[2].at), "{name}");
    }
}

#[tokio::test]
async fn tries_are_bounded_and_the_last_failure_is_named() {
    let scripts: [(&str, Make); 9] = [
        ("throttled", || scripted::error(429)),
        ("unavailable", || scripted::error(500)),
        ("unreachable", || scripted::cut(&conversation())),
        ("malformed-answer", || {
            scripted::raw(200, &[("content-type", "text/html")], b"<html>")
        }),
        ("malformed-answer", || scripted::raw(200, &[], b"<html>")),
        ("malformed-answer", || {
            scripted::ok(&json!({"id": "v1", "name": {"x": "canary-text"}}))
        }),
        ("malformed-answer", || scripted::ok(&json!({"id": "a\nb"}))),
        ("malformed-answer", || scripted::raw(404, &[], b"nginx")),
        ("redirected", || {
            scripted::raw(302, &[("location", "http://127.0.0.1:1/")], b"")
        }),
    ];
    for (reason, trouble) in scripts {
        let (server, api, result) = ask(vec![trouble]).await;
        let error = result.unwrap_err();
        assert_eq!((error.reason(), error.calls()), (reason, 4));
        assert_eq!(server.seen().len(), 4);
        assert!(!api.answered_since(server.seen()[0].at), "{reason}");
        assert!(
            !format!("{error} {error:?}").contains("canary"),
            "{error:?}"
        );
        let later = matches!(
            error.outcome(),
            Outcome::Later | Outcome::DeadLetterIfAnsweredSince(_)
        );
        assert!(later, "{error:?}");
    }
}

#[tokio::test]
async fn final_answers_are_not_tried_again() {
    let scripts: [(Make, &str, Outcome); 6] = [
        (|| scripted::error(404), "not-found", Outcome::Gone),
        (|| scripted::error(410), "not-found", Outcome::Gone),
        (|| scripted::error(401), "unauthorized", Outcome::Stop),
        (
            || scripted::raw(403, &[], b""),
            "unauthorized",
            Outcome::Stop,
        ),
        (|| scripted::error(400), "refused", Outcome::DeadLetter),
        (
            || scripted::ok(&json!({"id": "v1", "name": "x".repeat(100_000)})),
            "answer-too-large",
            Outcome::DeadLetter,
        ),
    ];
    for (reply, reason, outcome) in scripts {
        let (server, _, result) = ask(vec![reply]).await;
        let error = result.unwrap_err();
        assert_eq!((error.reason(), error.calls()), (reason, 1));
        assert_eq!(error.outcome(), outcome);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn the_start_of_a_malformed_answer_is_kept_and_not_printed() {
    let (_server, _, result) = ask(vec![|| {
        let body = format!("canary-text{}", "x".repeat(9_000));
        scripted::raw(200, &[], body.as_bytes())
    }])
    .await;
    let error = result.unwrap_err();
    let start = error.response().unwrap();
    assert_eq!(start.len(), RESPONSE_START_BYTES);
    assert!(start.starts_with(b"canary-text"));
    assert!(!format!("{error:?}").contains("canary"));
}

#[tokio::test]
async fn gzip_is_inflated_up_to_the_limit() {
    let gzip = [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
    ];
    let server = Server::start(move |seen, _| {
        let body = match seen.path() {
            "/v2/Conversations/v1" => scripted::gzip(conversation().to_string().as_bytes()),
            _ => scripted::gzip_bomb(40_000),
        };
        scripted::raw(200, &gzip, &body)
    })
    .await;
    let api = api(&server);
    assert_eq!(
        api.conversation("v1").await.unwrap().value.id.as_deref(),
        Some("v1")
    );
    let bomb = api.conversation("bomb").await.unwrap_err();
    assert!(
        matches!(
            bomb,
            ApiError::TooLarge {
                limit_bytes: 100_000,
                calls: 1
            }
        ),
        "{bomb:?}"
    );
}

#[tokio::test]
async fn retry_after_is_obeyed_capped_and_shared() {
    // 3,600 s is capped to 80 ms, and no request of any clone is sent in that time.
    let server = Server::start(|seen, nth| match (seen.path(), nth) {
        ("/v2/Conversations/v1", 0) => scripted::json(429, &[("retry-after", "3600")], &json!({})),
        _ => scripted::ok(&json!({"id": seen.path().rsplit('/').next()})),
    })
    .await;
    let api = api(&server);
    let first = tokio::spawn({
        let api = api.clone();
        async move { api.conversation("v1").await }
    });
    let held = || api.0.pace.is_held();
    let until = Instant::now() + Duration::from_secs(5);
    while !held() && Instant::now() < until {
        tokio::task::yield_now().await;
    }
    api.conversation("v2").await.unwrap();
    assert_eq!(first.await.unwrap().unwrap().calls, 2);
    let seen = server.seen();
    let pause = Duration::from_millis(78);
    assert!(
        seen[1..].iter().all(|later| later.at - seen[0].at >= pause),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_date_counts_from_the_answers_own_clock() {
    let (server, _, answer) = ask(vec![
        || {
            let headers = [
                ("date", "Sun, 06 Nov 1994 08:49:00 GMT"),
                ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ];
            scripted::json(503, &headers, &json!({}))
        },
        || scripted::json(429, &[("retry-after", "-3")], &json!({})),
        good,
    ])
    .await;
    assert_eq!(answer.unwrap().calls, 3);
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(78));
    assert!(seen[2].at - seen[1].at < Duration::from_millis(78));
}

#[tokio::test]
async fn a_hanging_api_costs_the_budget_and_no_more() {
    let server = Server::start(|_, _| Reply::Hang).await;
    let mut settings = settings(&server.url);
    settings.request_timeout = Duration::from_millis(60);
    settings.connect_timeout = Duration::from_millis(60);
    settings.total_budget = Duration::from_millis(150);
    settings.max_attempts = NonZeroU32::new(100).unwrap();
    let api = Api::new(settings, Clock::system()).unwrap();
    let began = Instant::now();
    let error = api.conversation("v1").await.unwrap_err();
    assert_eq!(error.reason(), "unreachable");
    assert!((2..=3).contains(&error.calls()), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(|_, _| good()).await;
    let target = elsewhere.url.to_string();
    let server = Server::start(move |_, _| scripted::raw(307, &[("location", &target)], b"")).await;
    let error = api(&server).conversation("v1").await.unwrap_err();
    assert!(matches!(error, ApiError::Redirected { status: 307, .. }));
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn ids_and_tokens_stay_in_their_place() {
    let server = Server::start(|seen, _| match seen.path().rsplit('/').next() {
        Some("Communications") => {
            scripted::ok(&json!({"communications": [], "meta": {"nextToken": null}}))
        }
        Some("Conversations") => {
            scripted::ok(&json!({"conversations": [], "meta": {"nextToken": null}}))
        }
        _ => scripted::error(404),
    })
    .await;
    let api = api(&server);
    for id in ["../../x", "a/b?c#d", "%2e%2e", "@evil:80", "\\\\evil"] {
        assert_eq!(
            api.conversation(id).await.unwrap_err().reason(),
            "not-found",
            "{id}"
        );
    }
    for id in ["", ".", "..", "a\r\nb"] {
        assert_eq!(
            api.conversation(id).await.unwrap_err().reason(),
            "unusable-id",
            "{id:?}"
        );
    }
    for token in [
        "t&pageSize=1",
        "http://169.254.169.254/",
        "//evil",
        "a b+c%2F#",
    ] {
        api.communications_page("v1", Some(token)).await.unwrap();
        let seen = server.seen().pop().unwrap();
        assert_eq!(seen.path(), "/v2/Conversations/v1/Communications");
        assert_eq!(seen.query("pageToken").as_deref(), Some(token));
        assert_eq!(seen.query("pageSize").as_deref(), Some("100"));
    }
    api.closed_conversations_page(None).await.unwrap();
    let seen = server.seen().pop().unwrap();
    assert_eq!(seen.target, "/v2/Conversations?status=CLOSED&pageSize=100");
    for seen in server.seen() {
        assert!(seen.path().split('/').count() <= 5, "{}", seen.target);
        assert!(seen.path().split('/').all(|s| s != ".."), "{}", seen.target);
    }
}

#[tokio::test]
async fn the_budget_is_shared_by_clones() {
    let server =
        Server::start(|seen, _| scripted::ok(&json!({"id": seen.path().rsplit('/').next()}))).await;
    let mut settings = settings(&server.url);
    settings.requests_per_second = NonZeroU32::new(50).unwrap();
    let api = Api::new(settings, Clock::system()).unwrap();
    let began = Instant::now();
    let calls = (0..20).map(|n| {
        let api = api.clone();
        async move {
            api.conversation(&format!("v{n}"))
                .await
                .map(|answer| answer.calls)
        }
    });
    futures::future::try_join_all(calls).await.unwrap();
    // 20 calls, 5 at once, 50 a second: the last waits for 15 turns of 20 ms.
    assert!(
        began.elapsed() >= Duration::from_millis(295),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_probe_asks_once() {
    let server = Server::start(|_, nth| match nth {
        0 => scripted::error(503),
        _ => scripted::ok(&json!({"conversations": [], "meta": {}})),
    })
    .await;
    let api = api(&server);
    assert!(!api.answers().await);
    assert!(api.answers().await);
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn settings_are_checked() {
    for (url, ok) in [
        ("https://conversations.twilio.com", true),
        ("http://127.0.0.1:9/prefix/", true),
        ("ftp://h/", false),
        ("data:text/plain,x", false),
        ("https://user:pass@h/", false),
        ("https://h/?x=1", false),
    ] {
        let settings = Settings::new(Url::parse(url).unwrap(), Credentials::new("AC1", "t"));
        assert_eq!(Api::new(settings, Clock::system()).is_ok(), ok, "{url}");
    }
}
