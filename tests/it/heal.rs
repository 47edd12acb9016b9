//! What an operator heals afterwards, and that healing twice changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use convolake::event::header;
use convolake::topic::{Message, Publisher, Topics};
use serde_json::{Value, json};

use crate::faults::{
    CONVERSATIONS, LAKE_LIMIT, closed, dead_letters, in_lake, parts, publish, publisher, whole,
};
use crate::harness::duckdb::query;
use crate::harness::parts::Kafka;
use crate::harness::process::{STOP_LIMIT, convolake};
use crate::harness::roles::{TOPIC, ingest};
use crate::harness::scripted::{Api, problem};
use crate::harness::{ACCOUNT, folder, until};

/// Longest run of a command that reads a topic or a lake.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_brings_back_what_can_be_understood_and_doubles_nothing() {
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let broken = Arc::new(AtomicBool::new(true));
    let rule = Arc::clone(&broken);
    let api = Api::start(move |asked| {
        let lists = rule.load(Ordering::Relaxed) && asked.part == "Communications";
        (lists && asked.conversation == "one").then(|| problem(StatusCode::NOT_FOUND))
    })
    .await;
    let publisher = publisher(&kafka).await;
    publish(&publisher, "one", closed("one").as_bytes()).await;
    publish(&publisher, "one", b"\xff poison").await;
    publish(&publisher, "three", closed("three").as_bytes()).await;
    quarantine(&publisher, "missing-type", closed("two").as_bytes()).await;
    quarantine(&publisher, "form", closed("forged").as_bytes()).await;
    let mut ingest = ingest(&kafka, &lake, api.address()).await;
    in_lake(python, &lake, CONVERSATIONS, &whole(&["three"]), LAKE_LIMIT).await;
    let what = "two dead letters";
    until(what, LAKE_LIMIT, async || {
        match dead_letters(&kafka).len() {
            2 => Ok(()),
            other => Err(format!("{other}")),
        }
    })
    .await;

    broken.store(false, Ordering::Relaxed);
    let dry = replay(&kafka, &["--dry-run"]).await;
    assert_eq!(dry["replayed"], 1, "{dry}");
    let none = replay(&kafka, &["--reason", "server-error"]).await;
    assert_eq!((&none["read"], &none["selected"]), (&json!(2), &json!(0)));
    let letters = replay(&kafka, &["--reason", "communications-not-found"]).await;
    assert_eq!(
        letters["by_reason"]["communications-not-found"]["replayed"],
        1
    );
    let quarantined = replay(&kafka, &["--from", "quarantine"]).await;
    assert_eq!(quarantined["replayed"], 1, "{quarantined}");
    assert_eq!(quarantined["staying"][0]["reason"], "form", "{quarantined}");
    let want = whole(&["one", "three", "two"]);
    in_lake(python, &lake, CONVERSATIONS, &want, LAKE_LIMIT).await;

    // Everything once more: nothing is added but repeats in the raw record, which `event_id` tells.
    let before = events(python, &lake);
    replay(&kafka, &["--conversation", "one"]).await;
    replay(&kafka, &["--from", "quarantine"]).await;
    let repeats =
        json!([{"ids": before[0]["ids"], "rows": before[0]["rows"].as_i64().unwrap() + 2}]);
    in_lake(python, &lake, EVENTS, &repeats, LAKE_LIMIT).await;
    in_lake(python, &lake, CONVERSATIONS, &want, LAKE_LIMIT).await;
    ingest.stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();
    assert_eq!(dead_letters(&kafka).len(), 2, "nothing was set aside again");
}

const EVENTS: &str = "select count(distinct event_id) as ids, count(*) as rows from events";

fn events(python: &Path, lake: &Path) -> Vec<Value> {
    query(python, lake, EVENTS).unwrap_or_else(|why| panic!("{why}"))
}

/// An authentic body that `receive` set aside.
async fn quarantine(publisher: &Publisher, reason: &str, value: &[u8]) {
    let message = Message {
        topic: &Topics::named(TOPIC).quarantine,
        key: None,
        value,
        headers: &[(header::DEAD_LETTER_REASON, reason.as_bytes())],
    };
    publisher.publish(&message).await.unwrap();
}

/// What `convolake replay --json` printed.
async fn replay(kafka: &Kafka, flags: &[&str]) -> Value {
    let own = [
        "replay",
        "--kafka",
        kafka.address(),
        "--topic",
        TOPIC,
        "--json",
    ];
    let (code, printed) = command(&[&own, flags].concat()).await;
    assert_eq!(code, Some(0), "{flags:?}");
    printed
}

/// The exit code of a command, and the one JSON object that it printed.
async fn command(args: &[&str]) -> (Option<i32>, Value) {
    let mut process = convolake(args, ACCOUNT);
    let status = process.wait_exit(COMMAND_LIMIT).await;
    let printed = process.stdout();
    let value = serde_json::from_str(&printed)
        .unwrap_or_else(|error| panic!("{args:?}: {error}: {printed}: {}", process.stderr()));
    (status.code(), value)
}
