//! The emulator's page in Debian's Chromium, driven by `tests/parts/node/page.js`.
//!
//! Screenshots of both pages, wide and narrow, light and dark, stay in the folder `artifacts/`, or where
//! `CONVOLAKE_ARTIFACTS` says.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::parts;
use crate::harness::process::{arg, run_with};
use crate::harness::roles::Orchestrator;
use crate::harness::{free_address, http};

/// Conversations that are there already: more than a page of the list.
const CONVERSATIONS: usize = 60;
/// Items of a page of a list.
const PAGE_ITEMS: usize = 50;
const CUSTOMER: &str = "+15559876543";
const NUMBER: &str = "+15551234567";
/// Minutes until a conversation is inactive.
const INACTIVE: u32 = 10;

#[tokio::test]
async fn the_page_shows_what_goes_on_and_its_forms_make_it_go_on() {
    let (Some(modules), Some(chromium)) = (parts::node_modules(), parts::chromium()) else {
        return;
    };
    let callbacks = free_address();
    let flags = ["--callback-connect", &callbacks];
    let emulator = Orchestrator::with(CONVERSATIONS, 21, &flags).await;
    emulator.closed(CONVERSATIONS).await;
    emulator.configure(&configuration()).await;
    let messages = [
        "Is anybody there?",
        "<script>window.marked = 1</script><img src=x onerror=\"window.marked = 1\">",
        "שלום, מה שלומך?",
        "مرحبا \u{202e}txt.exe",
        "👩🏽‍🚀 says “hi” & 'bye' </p>",
        "two\nlines",
    ];
    let utterances = [
        "Good morning, is this the bakery?",
        "It is. What can I do for you?",
    ];
    let artifacts = artifacts();
    let plan = json!({
        "baseUrl": format!("http://{}", emulator.address),
        "chromium": arg(chromium),
        "artifacts": arg(&artifacts),
        "customer": CUSTOMER,
        "number": NUMBER,
        "messages": messages,
        "utterances": utterances,
        "minutesToInactive": INACTIVE,
    });
    let mut node = Command::new("node");
    node.arg(arg(&parts::parts_folder().join("node/page.js")))
        .env("NODE_PATH", modules);
    let printed = run_with("page.js", &mut node, &plan.to_string());
    let said: Value = serde_json::from_str(&printed).unwrap();

    assert_eq!(said["complaints"], json!([]), "the browser complains");
    assert_eq!(said["messages"], json!(messages), "each as it was written");
    assert_eq!(said["scriptRan"], false);
    assert_eq!(said["utterances"], json!(utterances));
    assert_eq!(said["rows"], PAGE_ITEMS);
    assert_eq!(said["rowsOfTheSecondPage"], CONVERSATIONS + 2 - PAGE_ITEMS);
    assert_eq!(said["newest"], said["newestAgain"], "there and back");
    let bill = said["bill"].as_str().unwrap();
    assert!(
        bill.contains("a capture rule"),
        "the call is on the bill: {bill}"
    );
    let events = said["events"].to_string();
    for event in [
        "CONVERSATION_CREATED",
        "PARTICIPANT_ADDED",
        "COMMUNICATION_CREATED",
    ] {
        assert!(
            events.contains(event),
            "{event} is in the timeline: {events}"
        );
    }
    assert_eq!(said["statusAfterTime"], "INACTIVE");
    assert_eq!(said["statusAfterClose"], "CLOSED");
    assert_eq!(said["canCloseAgain"], 0);
    screens(&said["screens"]);
    for shot in [
        "front-phone-dark",
        "conversation-desktop-light",
        "call",
        "closed",
    ] {
        let file = artifacts.join(format!("emulator-{shot}.png"));
        assert!(file.is_file(), "{}", file.display());
    }
}

/// On every screen: nothing beside it, a ground as light or dark as was asked for, and nothing that
/// axe-core would mend (labels, contrast, headers of tables, order of headings).
fn screens(screens: &Value) {
    let screens = screens.as_object().unwrap();
    assert_eq!(screens.len(), 2 * 2 * 2);
    for (screen, seen) in screens {
        assert_eq!(seen["violations"], json!([]), "{screen}");
        let width = if screen.contains("phone") { 390 } else { 1280 };
        assert!(seen["width"].as_u64().unwrap() <= width, "{screen}: {seen}");
        let dark = seen["ground"] == "rgb(16, 19, 24)";
        assert_eq!(dark, screen.ends_with("dark"), "{screen}: {seen}");
    }
}

#[tokio::test]
async fn the_page_keeps_to_itself() {
    let emulator = Orchestrator::with(1, 22, &[]).await;
    let base = format!("http://{}/emulator", emulator.address);
    let client = http::pooled_client();
    let front = client.get(format!("{base}/")).send().await.unwrap();
    assert_eq!(front.status(), 200);
    let header = |name: &str| front.headers()[name].to_str().unwrap().to_owned();
    let policy = header("content-security-policy");
    for part in [
        "default-src 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "'sha256-",
    ] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("cache-control"), "no-store");
    let body = front.text().await.unwrap();
    assert!(!body.contains("<script"), "no script");

    let form = |origin: &'static str| {
        client
            .post(format!("{base}/forms/clock"))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("origin", origin)
            .body("amount=1&unit=60")
    };
    let status = |request: reqwest::RequestBuilder| async {
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status(form("https://elsewhere.example")).await, 403);
    assert_eq!(status(form("null")).await, 403);
    let cross = form("https://elsewhere.example").header("sec-fetch-site", "cross-site");
    assert_eq!(status(cross).await, 403);
    let own: &'static str = format!("http://{}", emulator.address).leak();
    assert_eq!(
        status(form(own)).await,
        303,
        "and nothing is done twice by loading again"
    );
    for (path, wanted) in [
        ("/conversations/conv_conversation_nowhere", 404),
        ("/conversations/%3Cscript%3E", 404),
        ("/conversations/%ff", 400),
        ("/?status=ENDED", 400),
        ("/?before=-1", 400),
        ("/?before=99999999", 200),
    ] {
        let answer = client.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), wanted, "{path}");
        let html = answer.text().await.unwrap();
        assert!(html.starts_with("<!DOCTYPE html>"), "{path}: {html}");
        assert!(!html.contains("<script"), "{path}: {html}");
    }
}

#[tokio::test]
async fn a_form_says_what_became_of_it() {
    let emulator = Orchestrator::with(1, 23, &[]).await;
    emulator.closed(1).await;
    emulator.configure(&configuration()).await;
    let base = format!("http://{}", emulator.address);
    let client = http::pooled_client();
    let fill = async |form: &str, fields: &[(&str, &str)]| {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let request = client
            .post(format!("{base}/emulator/forms/{form}"))
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body(body).send().await.unwrap();
        let location = answer.headers().get("location");
        let location = location.map(|to| to.to_str().unwrap().to_owned());
        (
            answer.status().as_u16(),
            location,
            answer.text().await.unwrap(),
        )
    };
    let read = async |path: &str| http::get(&format!("{base}{path}")).await.unwrap().1;

    let stranger = [
        ("channel", "SMS"),
        ("from", "+15550001"),
        ("to", "+15550002"),
        ("text", "x"),
    ];
    let (status, to, _) = fill("message", &stranger).await;
    assert_eq!(
        (status, to.as_deref()),
        (303, Some("/emulator/?note=not-captured"))
    );
    assert!(
        read("/emulator/?note=not-captured")
            .await
            .contains("Nothing was captured")
    );

    let twiml = format!(
        "<Response><Start><Transcription conversationConfiguration=\"{}\"/></Start></Response>",
        emulator.configure(&configuration()).await
    );
    let call = [
        ("from", CUSTOMER),
        ("to", NUMBER),
        ("callType", "PSTN"),
        ("utterances", "Hello?\r\n\r\nHow can I help?"),
        ("twiml", &twiml),
    ];
    let (status, to, _) = fill("call", &call).await;
    assert_eq!(
        (status, to.as_deref()),
        (303, Some("/emulator/?note=double-billed"))
    );
    let front = read("/emulator/?note=double-billed").await;
    for shown in [
        "recognised twice",
        "billed twice",
        "Transcription",
        "a capture rule",
    ] {
        assert!(front.contains(shown), "{shown}: {front}");
    }
    for (form, fields, wanted) in [
        (
            "call",
            &[
                ("from", "a"),
                ("to", "b"),
                ("callType", "PSTN"),
                ("utterances", "x"),
                ("twiml", "<Resp"),
            ][..],
            "TwiML",
        ),
        (
            "message",
            &[
                ("channel", "VOICE"),
                ("from", "a"),
                ("to", "b"),
                ("text", "<i>"),
            ],
            "calls have a route",
        ),
        (
            "clock",
            &[("amount", "99999999999"), ("unit", "86400")],
            "advanceSeconds",
        ),
    ] {
        let (status, _, html) = fill(form, fields).await;
        assert_eq!(status, 400, "{form}: {html}");
        assert!(
            html.contains("That cannot be done") && html.contains(wanted),
            "{form}: {html}"
        );
        assert!(!html.contains("<i>"), "{form}: {html}");
    }
    let (status, _, html) = fill("clock", &[("amount", "many"), ("unit", "1")]).await;
    assert!((400..500).contains(&status), "{status}: {html}");
    assert!(
        read("/emulator/?status=CLOSED&refresh=5")
            .await
            .contains("http-equiv=\"refresh\"")
    );
}

fn configuration() -> Value {
    let rules = json!([{"from": "*", "to": NUMBER}, {"from": NUMBER, "to": "*"}]);
    json!({
        "displayName": "page",
        "description": "What the page's forms write to",
        "conversationGroupingType": "GROUP_BY_PARTICIPANT_ADDRESSES_AND_CHANNEL_TYPE",
        "memoryStoreId": "mem_store_0123456789abcdefghjkmnpqrs",
        "statusCallbacks": [{"url": "https://hooks.example.test/twilio"}],
        "channelSettings": {
            "SMS": {
                "captureRules": rules,
                "statusTimeouts": {"inactive": INACTIVE, "closed": 60},
            },
            "VOICE": {"captureRules": rules},
        },
    })
}

#[allow(
    clippy::disallowed_methods,
    reason = "the ban is for the program; this is how CI says where it wants to find the pictures"
)]
fn artifacts() -> PathBuf {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("artifacts");
    let folder = std::env::var_os("CONVOLAKE_ARTIFACTS").map_or_else(default, PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
