//! Conversations of the emulator, fetched over its REST, compared field by field with what it really holds.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::api::{Credentials, Settings};
use crate::emulator::{DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Emulator, Options};
use crate::lifecycle::Stop;
use crate::table::row::Completeness;

const CONVERSATIONS: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(60);

fn clock() -> Clock {
    Clock::from_fn(|| "2026-11-22T12:30:00Z".parse().unwrap())
}

fn text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str)
}

fn at(value: &Value, path: &str) -> Option<i64> {
    let time: Timestamp = text(value, path)?.parse().unwrap();
    Some(time.as_microsecond())
}

async fn truth(emulator: &Emulator) -> HashMap<String, Value> {
    let url = format!("http://{}/emulator/truth", emulator.address());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client
        .get(url)
        .basic_auth(DEV_ACCOUNT_SID, Some(DEV_AUTH_TOKEN));
    let body = request.send().await.unwrap().bytes().await.unwrap();
    let all: Value = serde_json::from_slice(&body).unwrap();
    let conversations = all["conversations"].as_array().unwrap().iter();
    conversations
        .map(|it| (it["id"].as_str().unwrap().to_owned(), it.clone()))
        .collect()
}

fn compare(row: &CommunicationRow, real: &Value) {
    let id = &row.communication_id;
    assert_eq!(row.text.as_deref(), text(real, "/content/text"), "{id}");
    assert_eq!(
        row.content_type.as_deref(),
        text(real, "/content/type"),
        "{id}"
    );
    assert_eq!(
        row.author_address.as_deref(),
        text(real, "/author/address"),
        "{id}"
    );
    assert_eq!(
        Some(row.channel.as_str()),
        text(real, "/author/channel"),
        "{id}"
    );
    assert_eq!(row.channel_id.as_deref(), text(real, "/channelId"), "{id}");
    assert_eq!(
        row.resource_id.as_deref(),
        text(real, "/resourceId"),
        "{id}"
    );
    assert_eq!(row.created_at, at(real, "/createdAt"), "{id}");
    assert_eq!(row.updated_at, at(real, "/updatedAt"), "{id}");
    assert_eq!(row.occurred_at, at(real, "/occurredAt"), "{id}");
    let recipients = row.recipients.as_ref().unwrap();
    let real_ones = real["recipients"].as_array().unwrap();
    assert_eq!(recipients.len(), real_ones.len(), "{id}");
    for (recipient, real) in recipients.iter().zip(real_ones) {
        assert_eq!(recipient.address.as_deref(), text(real, "/address"), "{id}");
        assert_eq!(
            recipient.delivery_status.as_deref(),
            text(real, "/deliveryStatus"),
            "{id}"
        );
    }
    let words = real
        .pointer("/content/transcription/words")
        .and_then(Value::as_array);
    assert_eq!(
        row.transcription_words.as_ref().map(Vec::len),
        words.map(Vec::len),
        "{id}"
    );
    assert_eq!(row.extra, None, "{id}");
    let known = row.author_type.as_deref() != Some("UNKNOWN");
    assert!(
        row.direction.is_some() || !known,
        "{id}: {:?}",
        row.author_type
    );
}

#[tokio::test]
async fn every_conversation_is_as_the_emulator_holds_it() {
    let stop = Stop::new();
    let base = "2026-11-22T12:00:00Z".parse().unwrap();
    let options = Options {
        conversations: CONVERSATIONS,
        partial: 0.4,
        ..Options::new(11, base)
    };
    let emulator = Emulator::start(options, clock(), stop.clone()).unwrap();
    tokio::time::timeout(DEADLINE, emulator.traffic_done())
        .await
        .expect("the traffic ends");
    let url = format!("http://{}", emulator.address()).parse().unwrap();
    let settings = Settings {
        requests_per_second: NonZeroU32::new(100_000).unwrap(),
        page_size: NonZeroU32::new(7).unwrap(),
        ..Settings::new(url, Credentials::new(DEV_ACCOUNT_SID, DEV_AUTH_TOKEN))
    };
    let enricher = Enricher::new(
        Api::new(settings, clock()).unwrap(),
        clock(),
        Limits::default(),
    );
    let truth = truth(&emulator).await;
    assert_eq!(truth.len() as u64, CONVERSATIONS);
    let (mut singly, mut joined, mut pages) = (0, 0, 0);
    for (id, real) in &truth {
        let close = Close {
            conversation_id: id.clone(),
            account_id: None,
            closed_at: None,
            received_at: clock().now(),
            partition: 0,
            offset: 0,
        };
        let enriched = enricher.enrich(&close).await.unwrap();
        let row = &enriched.conversation;
        assert_eq!(
            row.completeness,
            Completeness::Complete,
            "{id}: {:?}",
            row.missing
        );
        assert_eq!(row.account_id.as_deref(), text(real, "/accountId"));
        assert_eq!(row.created_at, at(real, "/createdAt"));
        assert_eq!(row.closed_at, at(real, "/updatedAt"));
        assert_eq!(row.extra, None);
        let real: HashMap<_, _> = (real["communications"].as_array().unwrap().iter())
            .map(|it| (it["id"].as_str().unwrap(), it))
            .collect();
        assert_eq!(enriched.communications.len(), real.len(), "{id}");
        for row in &enriched.communications {
            compare(row, real[row.communication_id.as_str()]);
        }
        let turns = enriched
            .communications
            .iter()
            .map(|row| row.turn + 1)
            .max()
            .unwrap_or(0);
        joined += row.communications - turns;
        singly += row.fetched_singly;
        pages += row.pages;
    }
    assert!(singly > 0 && joined > 0 && pages > truth.len() as i64);
    stop.request();
    emulator.finish().await.unwrap();
}

/// An emulator that only does what it is told, with a configuration that captures SMS, WHATSAPP and VOICE
/// by profile, and an enricher of what it holds.
struct Told {
    emulator: Emulator,
    stop: Stop,
    client: reqwest::Client,
    enricher: Enricher,
    configuration: String,
}

const NUMBER: &str = "+15551234567";
const CUSTOMER: &str = "+15559876543";

impl Told {
    async fn start() -> Self {
        let stop = Stop::new();
        let base: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let options = Options {
            gate_open: false,
            start_time: Some(base),
            operation_delay: Duration::ZERO,
            ..Options::new(11, base)
        };
        let emulator = Emulator::start(options, clock(), stop.clone()).unwrap();
        let url = format!("http://{}", emulator.address()).parse().unwrap();
        let settings = Settings {
            requests_per_second: NonZeroU32::new(100_000).unwrap(),
            ..Settings::new(url, Credentials::new(DEV_ACCOUNT_SID, DEV_AUTH_TOKEN))
        };
        let api = Api::new(settings, clock()).unwrap();
        let mut told = Told {
            emulator,
            stop,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            enricher: Enricher::new(api, clock(), Limits::default()),
            configuration: String::new(),
        };
        let both_ways =
            serde_json::json!([{"from": NUMBER, "to": "*"}, {"from": "*", "to": NUMBER}]);
        let new = serde_json::json!({
            "displayName": "test",
            "conversationGroupingType": "GROUP_BY_PROFILE",
            "memoryStoreId": "mem_store_1",
            "channelSettings": {
                "SMS": {"captureRules": both_ways},
                "WHATSAPP": {"captureRules": both_ways},
                "VOICE": {"captureRules": [{"from": "*", "to": NUMBER}]},
            },
        });
        let begun = told
            .send("POST", "/v2/ControlPlane/Configurations", new)
            .await;
        let operation = text(&begun, "/operationId").unwrap();
        let path = format!("/v2/ControlPlane/Operations/{operation}");
        let ended = told.send("GET", &path, Value::Null).await;
        told.configuration = text(&ended, "/related/configurationId").unwrap().to_owned();
        told
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("http://{}{path}", self.emulator.address());
        let request = self
            .client
            .request(method.parse().unwrap(), url)
            .basic_auth(DEV_ACCOUNT_SID, Some(DEV_AUTH_TOKEN))
            .header("content-type", "application/json")
            .body(body.to_string());
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// The first conversation that a message or call went into.
    async fn tell(&self, path: &str, body: Value) -> String {
        let report = self.send("POST", path, body).await;
        text(&report, "/captured/0/conversationId")
            .unwrap()
            .to_owned()
    }

    async fn closed(&self, id: &str) -> Enriched {
        let path = format!("/v2/Conversations/{id}");
        let close = serde_json::json!({"status": "CLOSED"});
        self.send("PATCH", &path, close).await;
        let close = Close {
            conversation_id: id.to_owned(),
            account_id: None,
            closed_at: None,
            received_at: clock().now(),
            partition: 0,
            offset: 0,
        };
        self.enricher.enrich(&close).await.unwrap()
    }

    async fn finish(self) {
        self.stop.request();
        self.emulator.finish().await.unwrap();
    }
}

#[tokio::test]
async fn facts_3_and_11_each_communication_has_its_channel_and_whatsapp_its_spelling() {
    let told = Told::start().await;
    let sms = serde_json::json!({"channel": "SMS", "from": CUSTOMER, "to": NUMBER, "text": "one"});
    let id = told.tell("/emulator/messages", sms).await;
    for from in [CUSTOMER.to_owned(), format!("whatsapp:{CUSTOMER}")] {
        let whatsapp =
            serde_json::json!({"channel": "WHATSAPP", "from": from, "to": NUMBER, "text": "two"});
        assert_eq!(told.tell("/emulator/messages", whatsapp).await, id);
    }
    let said = serde_json::json!([{"by": "CUSTOMER", "text": "three"}, {"by": "HUMAN_AGENT", "text": "four"}]);
    let call = serde_json::json!({"from": CUSTOMER, "to": NUMBER, "utterances": said});
    assert_eq!(told.tell("/emulator/calls", call).await, id);
    let enriched = told.closed(&id).await;
    assert_eq!(enriched.conversation.completeness, Completeness::Complete);
    let mut rows: Vec<_> = enriched
        .communications
        .iter()
        .map(|row| {
            (
                row.channel.as_str(),
                row.text.as_deref().unwrap(),
                row.direction.as_deref(),
            )
        })
        .collect();
    rows.sort_unstable();
    let inbound = Some("INBOUND");
    let expected = [
        ("SMS", "one", inbound),
        ("VOICE", "four", Some("OUTBOUND")),
        ("VOICE", "three", inbound),
        ("WHATSAPP", "two", inbound),
        ("WHATSAPP", "two", inbound),
    ];
    assert_eq!(rows, expected);
    told.finish().await;
}

#[tokio::test]
async fn facts_2_and_7_fragments_and_double_transcriptions_are_one_turn_an_utterance() {
    let told = Told::start().await;
    let twiml = format!(
        "<Response><Connect><ConversationRelay conversationConfiguration=\"{}\"/></Connect></Response>",
        told.configuration
    );
    let said = serde_json::json!([
        {"by": "CUSTOMER", "text": "Where is my parcel?", "seconds": 3},
        {"by": "AI_AGENT", "text": "It left our house this morning and should be with you soon.", "seconds": 8},
        {"by": "CUSTOMER", "text": "Thank you.", "seconds": 2},
    ]);
    let call =
        serde_json::json!({"from": CUSTOMER, "to": NUMBER, "twiml": twiml, "utterances": said});
    let id = told.tell("/emulator/calls", call).await;
    let enriched = told.closed(&id).await;
    let rows = &enriched.communications;
    // Three whole utterances by rule, and by TwiML two with an answer of 3 to 5 fragments.
    assert!((8..=10).contains(&rows.len()), "{}", rows.len());
    let turns: std::collections::BTreeSet<_> = rows.iter().map(|row| row.turn).collect();
    assert_eq!(turns.len(), 3, "{rows:#?}");
    let engines: std::collections::BTreeSet<_> = rows
        .iter()
        .map(|row| row.transcription_engine.as_deref())
        .collect();
    assert_eq!(
        engines,
        [Some("deepgram"), Some("google")].into(),
        "told apart"
    );
    told.finish().await;
}
