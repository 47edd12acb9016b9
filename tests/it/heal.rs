//! What an operator heals afterwards, and that healing twice changes nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use convolake::event::header;
use convolake::topic::{self, Message, Publisher, Topics};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::faults::{
    CONVERSATIONS, LAKE_LIMIT, closed, dead_letters, in_lake, opened, parts, publish, publisher,
    whole,
};
use crate::harness::duckdb::query;
use crate::harness::http::get_json;
use crate::harness::parts::Kafka;
use crate::harness::process::{Process, STOP_LIMIT, arg, convolake};
use crate::harness::roles::{Orchestrator, TOPIC, ingest, spawn_ingest};
use crate::harness::scripted::{Api, communications, json_answer, problem};
use crate::harness::{ACCOUNT, folder, free_address, until};

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

/// Sixty conversations that nobody announced, a lake that is damaged afterwards, and a topic read again from its
/// beginning: found, healed, and nothing doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconcile_and_repair_make_the_lake_whole_and_repeating_them_adds_nothing() {
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let publisher = publisher(&kafka).await;
    let orchestrator = Orchestrator::with(UNANNOUNCED, 21, &[]).await;
    all_closed(&orchestrator, UNANNOUNCED).await;
    let api = orchestrator.address.clone();
    let mut first = ingest(&kafka, &lake, &api).await;

    let (code, report) = reconcile(&kafka, &lake, &api).await;
    assert_eq!(code, Some(3), "{report}");
    assert_eq!(
        report["published"],
        json!({"missing": UNANNOUNCED}),
        "{report}"
    );
    in_lake(
        python,
        &lake,
        COUNTS,
        &json!([{"ids": UNANNOUNCED, "rows": UNANNOUNCED}]),
        LAKE_LIMIT,
    )
    .await;
    let (code, report) = reconcile(&kafka, &lake, &api).await;
    assert_eq!(
        (code, &report["complete"]),
        (Some(0), &json!(UNANNOUNCED)),
        "{report}"
    );
    let (code, report) = verify(&kafka, &lake, &api, &[]).await;
    assert_eq!(code, Some(0), "{report}");
    // No callback came, so none is archived.
    assert_eq!(events(python, &lake), [json!({"ids": 0, "rows": 0})]);
    let sound = content(python, &lake);

    // One file of messages is deleted, one cut short; `ingest` is not there meanwhile.
    first.stop().await;
    let files = data_files(&lake.join("communications"));
    std::fs::remove_file(&files[0]).unwrap();
    let cut = std::fs::read(&files[1]).unwrap();
    std::fs::write(&files[1], &cut[..cut.len() / 2]).unwrap();
    let (code, report) = verify(&kafka, &lake, &api, &[]).await;
    assert_eq!(code, Some(3), "{report}");
    let mut damaged: Vec<String> = (report["damaged"].as_array().unwrap().iter())
        .map(|it| it["path"].as_str().unwrap().to_owned())
        .collect();
    damaged.sort();
    let names = [&files[0], &files[1]].map(|file| file.file_name().unwrap().to_str().unwrap());
    assert_eq!(damaged.len(), 2, "{report}");
    for name in names {
        assert!(
            damaged.iter().any(|path| path.ends_with(name)),
            "{name}: {report}"
        );
    }
    let torn = report["torn"].as_u64().unwrap();
    assert!(torn > 0, "{report}");

    let (code, report) = verify(&kafka, &lake, &api, &["--repair"]).await;
    assert_eq!(code, Some(3), "{report}");
    assert_eq!(
        report["repair"],
        json!({"files_dropped": 2, "closes_published": torn, "events_published": 0, "events_gone": 0})
    );
    let mut second = ingest(&kafka, &lake, &api).await;
    until(
        "the lake is whole again",
        LAKE_LIMIT,
        async || match verify(&kafka, &lake, &api, &[]).await {
            (Some(0), _) => Ok(()),
            (code, report) => Err(format!("{code:?}: {report}")),
        },
    )
    .await;
    assert_eq!(content(python, &lake), sound);
    second.stop().await;

    // Another group reads everything again, closes of repair included, beside a reconciliation.
    let mut third = ingest_as(&kafka, &lake, &api, "again", &[]);
    let (code, report) = reconcile(&kafka, &lake, &api).await;
    assert_eq!(code, Some(0), "{report}");
    publish(&publisher, "marker", opened("marker").as_bytes()).await;
    in_lake(
        python,
        &lake,
        EVENTS,
        &json!([{"ids": 1, "rows": 1}]),
        LAKE_LIMIT,
    )
    .await;
    third.stop().await;
    assert_eq!(content(python, &lake), sound);
    lost_callbacks(python, &kafka, &lake, &api).await;
    assert_eq!(content(python, &lake), sound);
    publisher.close(STOP_LIMIT).await.unwrap();
    assert_eq!(dead_letters(&kafka), []);
}

/// The file of the one callback is deleted: its offset is named, published again, and archived once.
async fn lost_callbacks(python: &Path, kafka: &Kafka, lake: &Path, api: &str) {
    let id = "select event_id as id, kafka_offset as offset from events";
    let before = query(python, lake, id).unwrap();
    std::fs::remove_file(&data_files(&lake.join("events"))[0]).unwrap();
    let (code, report) = verify(kafka, lake, api, &[]).await;
    assert_eq!(code, Some(3), "{report}");
    let at = before[0]["offset"].as_i64().unwrap();
    let offsets = json!([format!("0:{at}..{}", at + 1)]);
    assert_eq!(report["damaged"][0]["offsets"], offsets, "{report}");
    let (_, report) = verify(kafka, lake, api, &["--repair"]).await;
    assert_eq!(
        report["repair"],
        json!({"files_dropped": 1, "closes_published": 0, "events_published": 1, "events_gone": 0})
    );
    let mut process = ingest_as(kafka, lake, api, "again", &[]);
    let same = "select event_id as id, count(*) as rows from events group by all";
    let want = json!([{"id": before[0]["id"], "rows": 1}]);
    in_lake(python, lake, same, &want, LAKE_LIMIT).await;
    process.stop().await;
    let (code, report) = verify(kafka, lake, api, &[]).await;
    assert_eq!(code, Some(0), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_after_the_close_replaces_its_rows() {
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let status = Arc::new(Mutex::new("INITIATED"));
    let shown = Arc::clone(&status);
    let api = Api::start(move |asked| {
        (asked.part == "Communications").then(|| {
            let mut page = communications(asked.conversation);
            page["communications"][0]["recipients"][0]["deliveryStatus"] =
                json!(*shown.lock().unwrap());
            json_answer(&page)
        })
    })
    .await;
    let publisher = publisher(&kafka).await;
    // The conversations of these tests closed days ago.
    let window = ["--recheck-window", "876000h"];
    let mut group = None;
    publish(&publisher, "late", closed("late").as_bytes()).await;
    for (change, state) in [None, Some("DELIVERED"), Some("READ")]
        .into_iter()
        .enumerate()
    {
        if change != 1 {
            // The first knows the close from its own work, the last one from the lake.
            if let Some(mut group) = group.take() {
                Process::stop(&mut group).await;
            }
            let (mut process, ops) =
                spawn_ingest(kafka.address(), &lake, api.address(), ACCOUNT, &window);
            process.wait_ready(&ops).await;
            group = Some(process);
        }
        if let Some(state) = state {
            *status.lock().unwrap() = state;
            publish(&publisher, "late", updated("late", change).as_bytes()).await;
        }
        let want = json!([{"state": state.unwrap_or("INITIATED"), "rows": 3, "ledgers": 1}]);
        in_lake(python, &lake, STATE, &want, LAKE_LIMIT).await;
    }
    group.unwrap().stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();
    assert_eq!(dead_letters(&kafka), []);
}

/// A topic of the old name with new records is not read on, and one whose records were deleted unread only behind
/// the gap that the operator names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_lost_records_or_was_created_anew_stops_ingest_with_the_command_that_goes_on()
{
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let publisher = publisher(&kafka).await;
    let admin: AdminClient<_> = ClientConfig::new()
        .set("bootstrap.servers", kafka.address())
        .create()
        .unwrap();
    for id in ["a0", "a1"] {
        publish(&publisher, "a", opened(id).as_bytes()).await;
    }
    let mut first = ingest_as(&kafka, &lake, NOBODY, "convolake", &[]);
    in_lake(
        python,
        &lake,
        IDS,
        &json!([{"id": "a0"}, {"id": "a1"}]),
        LAKE_LIMIT,
    )
    .await;
    first.stop().await;

    for id in ["a2", "a3", "a4"] {
        publish(&publisher, "a", opened(id).as_bytes()).await;
    }
    let mut until_4 = TopicPartitionList::new();
    until_4
        .add_partition_offset(TOPIC, 0, Offset::Offset(4))
        .unwrap();
    admin
        .delete_records(&until_4, &AdminOptions::new())
        .await
        .unwrap();
    let said = refuses(&kafka, &lake).await;
    for part in [
        "records 2..4 were deleted unread",
        "--accept-gap 0:2..4",
        "reconcile --once",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mut second = ingest_as(
        &kafka,
        &lake,
        NOBODY,
        "convolake",
        &["--accept-gap", "0:2..4"],
    );
    let want = json!([{"id": "a0"}, {"id": "a1"}, {"id": "a4"}]);
    in_lake(python, &lake, IDS, &want, LAKE_LIMIT).await;
    second.stop().await;

    let settings = topic::Settings {
        brokers: kafka.address().to_owned(),
        ..topic::Settings::default()
    };
    let before = topic::topic_id(&settings, TOPIC, COMMAND_LIMIT)
        .await
        .unwrap();
    admin
        .delete_topics(&[TOPIC], &AdminOptions::new())
        .await
        .unwrap();
    until("the topic is another one", COMMAND_LIMIT, async || {
        let made = topic::create_topics(&settings, &Topics::named(TOPIC), 1, 1).await;
        made.map_err(|error| error.to_string())?;
        match topic::topic_id(&settings, TOPIC, COMMAND_LIMIT).await {
            Ok(id) if id.is_some() && id != before => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    publisher.close(STOP_LIMIT).await.unwrap();
    let publisher = Publisher::start(&settings).unwrap();
    // More records than the position counts: offsets alone would not tell.
    for n in 0..7 {
        publish(&publisher, "b", opened(&format!("b{n}")).as_bytes()).await;
    }
    let said = refuses(&kafka, &lake).await;
    for part in ["deleted and created anew", "another --group"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mut third = ingest_as(&kafka, &lake, NOBODY, "another", &[]);
    let ids = ["a0", "a1", "a4", "b0", "b1", "b2", "b3", "b4", "b5", "b6"];
    let want: Value = ids.iter().map(|id| json!({"id": id})).collect();
    in_lake(python, &lake, IDS, &want, LAKE_LIMIT).await;
    third.stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();
}

const IDS: &str = "select conversation_id as id from events order by id";

/// An API that is not asked for anything.
const NOBODY: &str = "127.0.0.1:1";

/// `ingest` of a group.
fn ingest_as(kafka: &Kafka, lake: &Path, api: &str, group: &str, flags: &[&str]) -> Process {
    let (ops, api_url) = (free_address(), format!("http://{api}"));
    let own = [
        "ingest",
        "--ops-listen",
        &ops,
        "--kafka",
        kafka.address(),
        "--topic",
        TOPIC,
        "--group",
        group,
        "--lake",
        arg(lake),
        "--api-url",
        &api_url,
        "--flush-interval",
        "1s",
    ];
    convolake(&[&own, flags].concat(), ACCOUNT)
}

/// What an `ingest` that must not start says.
async fn refuses(kafka: &Kafka, lake: &Path) -> String {
    let mut process = ingest_as(kafka, lake, NOBODY, "convolake", &[]);
    let status = process.wait_exit(COMMAND_LIMIT).await;
    assert_eq!(status.code(), Some(1), "{}", process.stderr());
    process.stderr()
}

/// Conversations that nobody announced.
const UNANNOUNCED: usize = 60;

const COUNTS: &str =
    "select count(distinct conversation_id) as ids, count(*) as rows from conversations";

const STATE: &str = "select max(recipients[1].delivery_status) as state, count(*) as rows,
       (select count(*) from conversations) as ledgers
     from communications";

/// A delivery state, some time after the close.
fn updated(id: &str, minute: usize) -> String {
    json!({
        "eventType": "COMMUNICATION_UPDATED",
        "timestamp": format!("2026-11-22T10:1{minute}:30Z"),
        "data": {"id": "conv_communication_0", "conversationId": id},
    })
    .to_string()
}

/// What every row says.
pub(crate) fn content(python: &Path, lake: &Path) -> Vec<Value> {
    let sql = "select conversation_id, communication_id, position, text, channel,
                      (select content_hash from conversations v where v.conversation_id = c.conversation_id) as hash
               from communications c order by all";
    query(python, lake, sql).unwrap_or_else(|why| panic!("{why}"))
}

/// The Parquet files below a table, sorted.
pub(crate) fn data_files(table: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![table.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let log = path.ends_with("_delta_log");
            if path.is_dir() && !log {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "parquet") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Waits until the emulator has closed this many.
async fn all_closed(orchestrator: &Orchestrator, conversations: usize) {
    let url = format!("http://{}/emulator/truth", orchestrator.address);
    until("all are closed", COMMAND_LIMIT, async || {
        match get_json(&url).await["conversations"]
            .as_array()
            .unwrap()
            .len()
        {
            all if all == conversations => Ok(()),
            some => Err(format!("{some} are closed")),
        }
    })
    .await;
}

/// `convolake reconcile --once --json`.
async fn reconcile(kafka: &Kafka, lake: &Path, api: &str) -> (Option<i32>, Value) {
    let api = format!("http://{api}");
    command(&[
        "reconcile",
        "--once",
        "--json",
        "--grace",
        "0s",
        "--kafka",
        kafka.address(),
        "--topic",
        TOPIC,
        "--lake",
        arg(lake),
        "--api-url",
        &api,
        "--requests-per-second",
        "2000",
    ])
    .await
}

/// `convolake verify --json`.
async fn verify(kafka: &Kafka, lake: &Path, api: &str, flags: &[&str]) -> (Option<i32>, Value) {
    let api = format!("http://{api}");
    let own = [
        "verify",
        "--json",
        "--kafka",
        kafka.address(),
        "--topic",
        TOPIC,
        "--lake",
        arg(lake),
        "--api-url",
        &api,
        "--requests-per-second",
        "2000",
    ];
    command(&[&own, flags].concat()).await
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
pub(crate) async fn command(args: &[&str]) -> (Option<i32>, Value) {
    let mut process = convolake(args, ACCOUNT);
    let status = process.wait_exit(COMMAND_LIMIT).await;
    let printed = process.stdout();
    let value = serde_json::from_str(&printed)
        .unwrap_or_else(|error| panic!("{args:?}: {error}: {printed}: {}", process.stderr()));
    (status.code(), value)
}
