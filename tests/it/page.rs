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
    looks(&said);
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

/// What the front page and a timeline show, before and after time has passed.
fn looks(said: &Value) {
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
async fn a_form_leads_to_what_became_of_it() {
    let visit = Visit::begin(23).await;
    let stranger = [
        ("channel", "SMS"),
        ("from", "+15550001"),
        ("to", "+15550002"),
        ("text", "x"),
    ];
    let (status, to, _) = visit.fill("message", &stranger).await;
    assert_eq!((status, &*to), (303, "/emulator/?note=not-captured"));
    assert!(visit.read(&to).await.contains("Nothing was captured"));

    let another = visit.emulator.configure(&configuration()).await;
    let twiml = format!(
        "<Response><Start><Transcription conversationConfiguration=\"{another}\"/></Start></Response>"
    );
    let call = [
        ("from", CUSTOMER),
        ("to", NUMBER),
        ("callType", "PSTN"),
        ("utterances", "Hello?\r\n\r\nHow can I help?"),
        ("twiml", &twiml),
    ];
    let (status, to, _) = visit.fill("call", &call).await;
    assert_eq!((status, &*to), (303, "/emulator/?note=double-billed"));
    let front = visit.read(&to).await;
    for shown in [
        "recognised twice",
        "billed twice",
        "Transcription",
        "a capture rule",
    ] {
        assert!(front.contains(shown), "{shown}: {front}");
    }
    let refreshed = visit.read("/emulator/?status=CLOSED&refresh=5").await;
    assert!(refreshed.contains("http-equiv=\"refresh\""), "{refreshed}");
}

#[tokio::test]
async fn a_form_that_cannot_be_carried_out_says_why() {
    let visit = Visit::begin(24).await;
    let half = [
        ("from", "a"),
        ("to", "b"),
        ("callType", "PSTN"),
        ("utterances", "x"),
        ("twiml", "<Resp"),
    ];
    let voice = [
        ("channel", "VOICE"),
        ("from", "a"),
        ("to", "b"),
        ("text", "<i>"),
    ];
    let far = [("amount", "99999999999"), ("unit", "86400")];
    for (form, fields, wanted) in [
        ("call", &half[..], "TwiML"),
        ("message", &voice, "calls have a route"),
        ("clock", &far, "advanceSeconds"),
    ] {
        let (status, _, html) = visit.fill(form, fields).await;
        assert_eq!(status, 400, "{form}: {html}");
        let said = html.contains("That cannot be done") && html.contains(wanted);
        assert!(said, "{form}: {html}");
        assert!(!html.contains("<i>"), "{form}: {html}");
    }
    let words = [("amount", "many"), ("unit", "1")];
    let (status, _, html) = visit.fill("clock", &words).await;
    assert!((400..500).contains(&status), "{status}: {html}");
}

/// An emulator, and somebody who fills in its forms without a browser.
struct Visit {
    emulator: Orchestrator,
    client: reqwest::Client,
}

impl Visit {
    async fn begin(seed: u64) -> Visit {
        let emulator = Orchestrator::with(1, seed, &[]).await;
        emulator.closed(1).await;
        emulator.configure(&configuration()).await;
        Visit {
            emulator,
            client: http::pooled_client(),
        }
    }

    /// The status, where the answer leads to, and its body.
    async fn fill(&self, form: &str, fields: &[(&str, &str)]) -> (u16, String, String) {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let url = format!("http://{}/emulator/forms/{form}", self.emulator.address);
        let request = self
            .client
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        let answer = request.send().await.unwrap();
        let location = answer.headers().get("location");
        let location = location.map_or("", |to| to.to_str().unwrap()).to_owned();
        (
            answer.status().as_u16(),
            location,
            answer.text().await.unwrap(),
        )
    }

    async fn read(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.emulator.address);
        http::get(&url).await.unwrap().1
    }
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
