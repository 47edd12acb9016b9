//! The first hour of somebody new: a capture rule, a message, time passes, and DuckDB finds the row.
//!
//! Nothing here is made up by the emulator's traffic: the conversation begins with a text message that a
//! capture rule takes, ends by its own timeout, and gets into the lake by callback, Kafka and REST.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::duckdb::query;
use crate::harness::http::{get_json, send_json};
use crate::harness::parts::{self, Kafka};
use crate::harness::process::{arg, convolake};
use crate::harness::roles::{Orchestrator, PUBLIC_URL, Receiver, TOPIC, ingest};
use crate::harness::{ACCOUNT, SLOW_POLL_INTERVAL, folder, until_every};

const CUSTOMER: &str = "+15559876543";
const NUMBER: &str = "+15551234567";
/// Longest way from the close to the lake, on two shared cores.
const LAKE_LIMIT: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_text_message_is_captured_closed_by_time_and_found_by_duckdb() {
    let Some(python) = parts::python() else {
        return;
    };
    let Some(kafka) = Kafka::start().await else {
        return;
    };
    let receiver = Receiver::start(&kafka).await;
    let flags = ["--callback-connect", &receiver.address];
    let emulator = Orchestrator::with(1, 31, &flags).await;
    let lake = folder();
    let _ingester = ingest(&kafka, lake.path(), &emulator.address).await;

    emulator.configure(&configuration()).await;
    let asked = "Are you open on Sunday? 🥐 Grüße, O'Neil";
    let conversation = message(&emulator, CUSTOMER, NUMBER, asked).await;
    let answered = message(&emulator, NUMBER, CUSTOMER, "We are, from 8 to 12.").await;
    assert_eq!(answered, conversation, "the answer belongs to the question");
    // Two minutes to INACTIVE, five to CLOSED.
    control(&emulator, "clock", &json!({"advanceSeconds": 6 * 60})).await;
    let path = format!(
        "http://{}/v2/Conversations/{conversation}",
        emulator.address
    );
    assert_eq!(get_json(&path).await["status"], "CLOSED");

    let sql = format!(
        "select text, channel, direction, author_address, completeness
         from communications join conversations using (conversation_id)
         where conversation_id = '{conversation}' order by position"
    );
    let rows = until_every(
        SLOW_POLL_INTERVAL,
        "the lake has it",
        LAKE_LIMIT,
        async || match query(python, lake.path(), &sql) {
            Ok(rows) if rows.is_empty() => Err("no row yet".to_owned()),
            found => found,
        },
    )
    .await;
    let row = |text: &str, direction: &str, author: &str| {
        json!({
            "text": text,
            "channel": "SMS",
            "direction": direction,
            "author_address": author,
            "completeness": "COMPLETE",
        })
    };
    let expected = [
        row(asked, "INBOUND", CUSTOMER),
        row("We are, from 8 to 12.", "OUTBOUND", NUMBER),
    ];
    assert_eq!(rows, expected);
}

/// A configuration without a timeout, as they often are: `reconcile` says which conversation is stuck, and why.
#[tokio::test]
async fn a_conversation_that_nothing_closes_is_named_with_the_cause_in_its_configuration() {
    let Some(kafka) = Kafka::start().await else {
        return;
    };
    // The conversation is months old by the clock of whoever looks. That time stands still, and operations
    // are done at once.
    let flags = [
        "--start-time",
        "2026-01-01T00:00:00Z",
        "--operation-delay",
        "0s",
    ];
    let emulator = Orchestrator::with(1, 32, &flags).await;
    let mut endless = configuration();
    endless["channelSettings"]["SMS"]["statusTimeouts"] = Value::Null;
    let id = emulator.configure(&endless).await;
    let conversation = message(&emulator, CUSTOMER, NUMBER, "Hello?").await;

    let receiver = Receiver::start(&kafka).await;
    let lake = folder();
    let ingester = ingest(&kafka, lake.path(), &emulator.address).await;
    let api = format!("http://{}", emulator.address);
    let args = [
        "reconcile",
        "--json",
        "--active-limit",
        "1h",
        "--kafka",
        kafka.address(),
        "--topic",
        TOPIC,
        "--lake",
        arg(lake.path()),
        "--api-url",
        &api,
    ];
    let mut reconcile = convolake(&args, ACCOUNT);
    let status = reconcile.wait_exit(LAKE_LIMIT).await;
    assert_eq!(status.code(), Some(3), "{}", reconcile.report());
    let report: Value = serde_json::from_str(&reconcile.stdout()).unwrap();
    let stuck = report["active"].as_array().unwrap();
    assert_eq!(stuck.len(), 1, "{report}");
    assert_eq!(stuck[0]["conversation_id"], *conversation);
    assert_eq!(stuck[0]["configuration_id"], *id);
    let cause = stuck[0]["cause"].as_str().unwrap();
    assert!(cause.contains("no statusTimeouts.closed"), "{cause}");
    drop((receiver, ingester));
}

/// Sends a text message; the conversation that took it.
async fn message(emulator: &Orchestrator, from: &str, to: &str, text: &str) -> String {
    let message = json!({"channel": "SMS", "from": from, "to": to, "text": text});
    let report = control(emulator, "messages", &message).await;
    let captured = report["captured"].as_array().unwrap();
    assert_eq!(captured.len(), 1, "{report}");
    captured[0]["conversationId"].as_str().unwrap().to_owned()
}

async fn control(emulator: &Orchestrator, route: &str, body: &Value) -> Value {
    let url = format!("http://{}/emulator/{route}", emulator.address);
    let (status, answer) = send_json("POST", &url, body).await.unwrap();
    assert_eq!(status, 200, "{route}: {answer}");
    serde_json::from_str(&answer).unwrap()
}

fn configuration() -> Value {
    json!({
        "displayName": "bakery",
        "description": "The number on the door",
        "conversationGroupingType": "GROUP_BY_PARTICIPANT_ADDRESSES",
        "memoryStoreId": "mem_store_0123456789abcdefghjkmnpqrs",
        "statusCallbacks": [{"url": PUBLIC_URL}],
        "channelSettings": {
            "SMS": {
                "captureRules": [
                    {"from": "*", "to": NUMBER},
                    {"from": NUMBER, "to": "*"},
                ],
                "statusTimeouts": {"inactive": 2, "closed": 5},
            },
        },
    })
}
