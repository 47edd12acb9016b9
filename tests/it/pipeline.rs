//! The promise, from end to end: every closed conversation is in the lake exactly once and whole.
//!
//! Processes as they are deployed, a real broker, callbacks that come twice and out of order, a consumer
//! that is killed in the middle. The verdict is by three readers that are not ours (DuckDB's Delta
//! extension, DuckDB over the plain files by our printed views, delta-rs), against what the emulator says
//! is true.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::duckdb::{query, run_script};
use crate::harness::http::get_json;
use crate::harness::parts::{self, Kafka, Record};
use crate::harness::process::{STOP_LIMIT, arg, convolake};
use crate::harness::relay::Relay;
use crate::harness::roles::{Orchestrator, Receiver, TOPIC, ingest};
use crate::harness::{SLOW_POLL_INTERVAL, folder, until, until_every};

const CONVERSATIONS: usize = 2_000;
const SEED: u64 = 11;
/// Conversations opened a second; an unoptimised build on two shared cores keeps up with it.
const RATE: u32 = 50;
/// Commits of the conversations table after which a consumer is killed: it has work behind and before it.
const COMMITS_BEFORE_KILL: usize = 4;
/// Longest time until the emulator has closed every conversation.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(400);
/// Longest time from the last close until the lake has everything, a session timeout of the killed
/// consumer's group included.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_closed_conversation_is_in_the_lake_once_and_whole_though_a_consumer_was_killed() {
    let Some(python) = parts::python() else {
        return;
    };
    let Some(kafka) = Kafka::start().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let mut receiver = Receiver::start(&kafka).await;
    let relay = Relay::start(&receiver.address).await;
    let mut orchestrator = Orchestrator::start(relay.address(), CONVERSATIONS, SEED, RATE).await;
    let mut survivor = ingest(&kafka, &lake, &orchestrator.address).await;
    let mut killed = ingest(&kafka, &lake, &orchestrator.address).await;

    until(
        "commits before the kill",
        TRAFFIC_LIMIT,
        async || match commits(&lake) {
            enough if enough >= COMMITS_BEFORE_KILL => Ok(()),
            few => Err(format!("{few} commits")),
        },
    )
    .await;
    killed.kill9();
    let mut restarted = ingest(&kafka, &lake, &orchestrator.address).await;

    let truth = closed(&orchestrator).await;
    let (repeats, answers) = relay.finish().await;
    assert!(repeats > 0, "the relay repeated nothing");
    assert_eq!(answers.keys().collect::<Vec<_>>(), [&204], "{answers:?}");
    let records = kafka.records(TOPIC);
    caught_up(python, &lake, records.len()).await;
    for process in [
        &mut survivor,
        &mut restarted,
        &mut receiver.process,
        &mut orchestrator.process,
    ] {
        process.stop().await;
    }
    compare(python, folder.path(), &lake, &truth).await;
    archived_once(python, &lake, &records);
    valid(python, folder.path(), &records);
}

/// The emulator's truth once every conversation is closed.
async fn closed(orchestrator: &Orchestrator) -> Value {
    let url = format!("http://{}/emulator/truth", orchestrator.address);
    let what = "every conversation is closed";
    until_every(SLOW_POLL_INTERVAL, what, TRAFFIC_LIMIT, async || {
        let truth = get_json(&url).await;
        match truth["conversations"].as_array().unwrap().len() {
            CONVERSATIONS => Ok(truth),
            some => Err(format!("{some} are closed")),
        }
    })
    .await
}

/// Waits until the lake has a row for every conversation and an event for every record.
async fn caught_up(python: &Path, lake: &Path, records: usize) {
    let sql = "select (select count(distinct conversation_id) from conversations) as conversations,
                      (select count(*) from events) as events";
    let want = json!({"conversations": CONVERSATIONS, "events": records});
    until_every(
        SLOW_POLL_INTERVAL,
        "the lake",
        CATCH_UP_LIMIT,
        async || match query(python, lake, sql)?.as_slice() {
            [row] if *row == want => Ok(()),
            rows => Err(format!("{rows:?}, where {want} is wanted")),
        },
    )
    .await;
}

/// Three foreign readers find exactly the truth, field by field.
async fn compare(python: &Path, folder: &Path, lake: &Path, truth: &Value) {
    let truth_file = folder.join("truth.json");
    std::fs::write(&truth_file, truth.to_string()).unwrap();
    let mut views = convolake(&["sql", "--lake", arg(lake)], &[]);
    let status = views.wait_exit(STOP_LIMIT).await;
    assert_eq!(status.code(), Some(0), "convolake sql");
    let views_file = folder.join("views.sql");
    std::fs::write(&views_file, views.stdout()).unwrap();
    let args = [arg(lake), arg(&truth_file), arg(&views_file)];
    let report = run_script(python, "compare.py", &args).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(report["conversations"], CONVERSATIONS, "{report}");
    assert_eq!(report["readers"].as_object().unwrap().len(), 3, "{report}");
}

/// Each record is one row of `events`, though two processes shared them and one was killed.
fn archived_once(python: &Path, lake: &Path, records: &[Record]) {
    let sql = "select kafka_partition as partition, count(*) as rows,
                      count(distinct kafka_offset) as offsets, max(kafka_offset) as last
               from events group by all order by all";
    let rows = query(python, lake, sql).unwrap_or_else(|why| panic!("{why}"));
    let mut counts: HashMap<i32, (i64, i64)> = HashMap::new();
    for record in records {
        let (count, last) = counts.entry(record.partition).or_default();
        *count += 1;
        *last = (*last).max(record.offset);
    }
    let mut want: Vec<Value> = counts
        .into_iter()
        .map(|(partition, (count, last))| {
            json!({"partition": partition, "rows": count, "offsets": count, "last": last})
        })
        .collect();
    want.sort_by_key(|row| row["partition"].as_i64());
    assert_eq!(rows, want);
}

/// Records are what the published schemas say.
fn valid(python: &Path, folder: &Path, records: &[Record]) {
    let lines: String = records
        .iter()
        .map(|record| {
            let value: Value = serde_json::from_slice(&record.value).unwrap();
            let headers: HashMap<_, _> = record.headers.iter().cloned().collect();
            let line = json!({"key": record.key, "value": value, "headers": headers});
            format!("{line}\n")
        })
        .collect();
    let file = folder.join("records.jsonl");
    std::fs::write(&file, lines).unwrap();
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let report = run_script(python, "validate.py", &[arg(&schemas), arg(&file)]);
    let report = report.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(report["records"], records.len(), "{report}");
}

/// Commits of the conversations table so far.
fn commits(lake: &Path) -> usize {
    let log = lake.join("conversations/_delta_log");
    let Ok(entries) = std::fs::read_dir(log) else {
        return 0;
    };
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "json"))
        .count()
}
