//! What others do wrong, and what must come of it: each fault costs what it hits and nothing beside it.
//!
//! Poison in the topic, an API that answers nonsense, refuses or is in a hurry, Kafka that is not there,
//! a folder that is somebody else's, a conversation far larger than any other.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse as _};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use convolake::lake::{Access, Lake};
use convolake::topic::{self, Message, Publisher, Topics};
use serde_json::{Value, json};

use crate::harness::duckdb::query;
use crate::harness::http::{get, pooled_client, post_callback, send_callback};
use crate::harness::parts::{self, Kafka, Record};
use crate::harness::process::{Process, STOP_LIMIT, arg, convolake};
use crate::harness::roles::{
    Orchestrator, PUBLIC_URL, Receiver, TOPIC, callback, ingest, spawn_ingest,
};
use crate::harness::scripted::{Api, COMMUNICATIONS, communications, json_answer, problem};
use crate::harness::{ACCOUNT, SLOW_POLL_INTERVAL, folder, free_address, until, until_every};

/// Longest time until a handful of conversations is in the lake.
pub(crate) const LAKE_LIMIT: Duration = Duration::from_secs(60);
/// The same where the API has to be given up on first: eight tries, with pauses that sum to 51 s at most.
const GIVEN_UP_LIMIT: Duration = Duration::from_secs(120);
/// Longest time to an answer while Kafka is away; Twilio waits 15 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest time until a process has noticed that Kafka is there, or not.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// Communications of the large conversation.
const LARGE: usize = 50_000;
/// Longest time until the emulator has made and announced it and the lake has it: 150 s were measured in an
/// unoptimised build on two shared cores, most of it for the 50,000 callbacks.
const LARGE_LIMIT: Duration = Duration::from_secs(300);
/// Most memory that an `ingest` may hold for it. Measured: 330 MiB; the rest is headroom for allocators and
/// for a batch of callbacks that falls together with it.
const LARGE_MEMORY_BYTES: u64 = 500 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_record_is_one_dead_letter_and_its_neighbours_are_kept() {
    const POISON: &[u8] = b"\xff\xfe not JSON, \0 no ids \x80";
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let api = Api::start(|_| None).await;
    let publisher = publisher(&kafka).await;
    publish(&publisher, "one", opened("one").as_bytes()).await;
    publish(&publisher, "one", POISON).await;
    publish(&publisher, "one", opened("one").as_bytes()).await;
    publish(&publisher, "two", closed("two").as_bytes()).await;
    // The archive passes the last record only after the poison.
    let events = "select conversation_id as id, kafka_offset as offset from events order by all";
    let want =
        json!([{"id": "one", "offset": 0}, {"id": "one", "offset": 2}, {"id": "two", "offset": 3}]);
    for _ in 0..2 {
        let mut ingest = ingest(&kafka, &lake, api.address()).await;
        in_lake(python, &lake, events, &want, LAKE_LIMIT).await;
        in_lake(python, &lake, CONVERSATIONS, &whole(&["two"]), LAKE_LIMIT).await;
        ingest.stop().await;
        let letters = dead_letters(&kafka);
        let [letter] = &letters[..] else {
            panic!("one dead letter is wanted: {letters:?}");
        };
        assert_eq!(letter.value, POISON);
        assert_eq!(letter.key.as_deref(), Some("one"));
        for (name, want) in [
            ("reason", "not-utf8"),
            ("stage", "archive"),
            ("topic", TOPIC),
            ("partition", "0"),
            ("offset", "1"),
            ("attempts", "1"),
        ] {
            let header = dead_letter_header(letter, name);
            assert_eq!(header.as_deref(), Some(want), "{name}: {letter:?}");
        }
    }
    publisher.close(STOP_LIMIT).await.unwrap();
}

/// Nothing else moves the position: the poison is the last record of its partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_not_set_aside_again_after_a_clean_stop() {
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let api = Api::start(|_| None).await;
    let publisher = publisher(&kafka).await;
    let events = "select kafka_offset as offset from events order by all";
    publish(&publisher, "one", opened("one").as_bytes()).await;
    let mut first = ingest(&kafka, &lake, api.address()).await;
    in_lake(python, &lake, events, &json!([{"offset": 0}]), LAKE_LIMIT).await;
    publish(&publisher, "one", b"poison").await;
    until(
        "the dead letter",
        LAKE_LIMIT,
        async || match dead_letters(&kafka).len() {
            1 => Ok(()),
            other => Err(format!("{other} dead letters")),
        },
    )
    .await;
    first.stop().await;
    publish(&publisher, "one", opened("one").as_bytes()).await;
    let mut second = ingest(&kafka, &lake, api.address()).await;
    let want = json!([{"offset": 0}, {"offset": 2}]);
    in_lake(python, &lake, events, &want, LAKE_LIMIT).await;
    second.stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();
    assert_eq!(dead_letters(&kafka).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_make_no_sense_cost_their_own_conversation_and_no_other() {
    const HTML: &str = "<html><body>502, said the proxy with a 200</body></html>";
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let api = Api::start(|asked| match (asked.conversation, asked.part) {
        ("html", _) => Some(Html(HTML).into_response()),
        ("cut", "Communications") => {
            let whole = communications("cut").to_string();
            let cut = whole[..whole.len() / 2].to_owned();
            Some(([("content-type", "application/json")], cut).into_response())
        }
        ("types", "Communications") => {
            let mut page = communications("types");
            page["communications"][1]["content"]["text"] = json!(7);
            Some(json_answer(&page))
        }
        _ => None,
    })
    .await;
    let publisher = publisher(&kafka).await;
    for id in ["html", "cut", "types", "right"] {
        publish(&publisher, id, closed(id).as_bytes()).await;
    }
    let mut first = ingest(&kafka, &lake, api.address()).await;
    in_lake(
        python,
        &lake,
        CONVERSATIONS,
        &whole(&["right"]),
        GIVEN_UP_LIMIT,
    )
    .await;
    first.stop().await;
    // A second process finds them done, and sets nothing aside again.
    let mut second = ingest(&kafka, &lake, api.address()).await;
    publish(&publisher, "later", closed("later").as_bytes()).await;
    let both = whole(&["later", "right"]);
    in_lake(python, &lake, CONVERSATIONS, &both, LAKE_LIMIT).await;
    second.stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();
    let rows = "select distinct conversation_id as id from communications order by all";
    let rows = query(python, &lake, rows).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(rows, [json!({"id": "later"}), json!({"id": "right"})]);

    let letters = dead_letters(&kafka);
    let keys: Vec<_> = letters.iter().map(|letter| letter.key.as_deref()).collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    for (id, response) in [("html", HTML), ("cut", "{\"comm"), ("types", "{\"comm")] {
        let letter = letters
            .iter()
            .find(|letter| letter.key.as_deref() == Some(id));
        let letter = letter.unwrap_or_else(|| panic!("{id}: {keys:?}"));
        assert_eq!(letter.value, closed(id).as_bytes());
        let header = |name| dead_letter_header(letter, name);
        assert_eq!(header("stage").as_deref(), Some("enrich"), "{id}");
        assert_eq!(
            header("reason").as_deref(),
            Some("malformed-answer"),
            "{id}"
        );
        let start = header("response").unwrap_or_default();
        assert!(start.starts_with(response), "{id}: {start:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_found_is_gone_and_what_was_throttled_is_complete() {
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let api = Api::start(|asked| match (asked.conversation, asked.before) {
        ("deleted", _) => Some(problem(StatusCode::NOT_FOUND)),
        ("hurried", 0) => {
            let problem = problem(StatusCode::TOO_MANY_REQUESTS);
            Some(([("retry-after", "1")], problem).into_response())
        }
        _ => None,
    })
    .await;
    let publisher = publisher(&kafka).await;
    publish(&publisher, "deleted", closed("deleted").as_bytes()).await;
    publish(&publisher, "hurried", closed("hurried").as_bytes()).await;
    let mut ingest = ingest(&kafka, &lake, api.address()).await;
    let want = json!([
        {"id": "deleted", "completeness": "GONE", "said": 0, "rows": 0},
        {"id": "hurried", "completeness": "COMPLETE", "said": COMMUNICATIONS, "rows": COMMUNICATIONS},
    ]);
    in_lake(python, &lake, CONVERSATIONS, &want, LAKE_LIMIT).await;
    ingest.stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();
    assert_eq!(dead_letters(&kafka), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_end_ingest_and_pass_no_record() {
    const WRONG: &str = "canary-7c1f-wrong-token";
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let api = Api::start(|_| None).await;
    let publisher = publisher(&kafka).await;
    publish(&publisher, "one", closed("one").as_bytes()).await;
    let [account, _] = ACCOUNT else {
        unreachable!("two entries");
    };
    let credentials = [*account, ("TWILIO_AUTH_TOKEN", WRONG)];
    let trace = ["--log-filter", "trace"];
    let (mut refused, _) =
        spawn_ingest(kafka.address(), &lake, api.address(), &credentials, &trace);
    let status = refused.wait_exit(LAKE_LIMIT).await;
    assert_eq!(status.code(), Some(1));
    let said = refused.stderr();
    let last = said.lines().rfind(|line| line.starts_with("convolake: "));
    let last = last.unwrap_or_default();
    for word in ["401", "TWILIO_AUTH_TOKEN", "TWILIO_API_KEY"] {
        assert!(last.contains(word), "{word}: {last}");
    }
    let basic = BASE64_STANDARD.encode(format!("{}:{WRONG}", account.1));
    for secret in [WRONG, &basic] {
        assert!(!said.contains(secret), "a secret was printed");
    }
    let mut right = ingest(&kafka, &lake, api.address()).await;
    in_lake(python, &lake, CONVERSATIONS, &whole(&["one"]), LAKE_LIMIT).await;
    right.stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();
    assert_eq!(dead_letters(&kafka), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_without_kafka_says_so_and_works_as_soon_as_it_is_there() {
    let Some(mut kafka) = Kafka::start().await else {
        return;
    };
    kafka.kill9();
    let (mut receiver, ops) = Receiver::spawn(kafka.address());
    not_ready(&mut receiver.process, &ops, "kafka").await;
    let client = pooled_client();
    let request = callback(&receiver.address, opened("one"));
    let sent = Instant::now();
    let answer = send_callback(&client, &request).await.unwrap();
    assert!(sent.elapsed() < ANSWER_LIMIT, "{:?}", sent.elapsed());
    assert_eq!(answer.status(), 503);
    let retry_after = answer.headers()["retry-after"].to_str().unwrap();
    assert!(retry_after.parse::<u32>().is_ok(), "{retry_after}");

    kafka.restart().await;
    receiver.process.wait_ready(&ops).await;
    assert_eq!(post_callback(&client, &request).await, Ok(204));
    receiver.process.stop().await;
    let kept = kafka.records(TOPIC);
    assert!(!kept.is_empty());
    assert!(
        kept.iter()
            .all(|record| record.value == request.body.as_bytes())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_kafka_both_roles_wait_and_stop_when_asked_to() {
    let kafka = free_address();
    let folder = folder();
    let lake = folder.path().join("lake");
    for flags in [&[][..], &["--create-topics"]] {
        let (mut ingest, ops) = spawn_ingest(&kafka, &lake, "127.0.0.1:1", ACCOUNT, flags);
        not_ready(&mut ingest, &ops, "kafka").await;
        ingest.stop().await;
    }
    let (mut receiver, ops) = Receiver::spawn(&kafka);
    not_ready(&mut receiver.process, &ops, "kafka").await;
    receiver.process.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_not_ours_is_refused_and_left_as_it_is() {
    let foreign = folder();
    std::fs::write(foreign.path().join("thesis.txt"), "three years of work").unwrap();
    refused(foreign.path()).await;

    let newer = folder();
    drop(Lake::open(arg(newer.path()), Access::Create).await.unwrap());
    let log = newer.path().join("conversations/_delta_log");
    let entry = json!({"protocol": {
        "minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": ["notInventedYet"], "writerFeatures": ["notInventedYet"],
    }});
    let version = std::fs::read_dir(&log).unwrap().count();
    std::fs::write(
        log.join(format!("{version:020}.json")),
        format!("{entry}\n"),
    )
    .unwrap();
    refused(newer.path()).await;
}

/// `ingest` does not start on this folder and changes nothing in it.
async fn refused(lake: &Path) {
    // Its ops port is taken: had it been asked for before the lake was looked at, the error named that.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let ops = taken.local_addr().unwrap().to_string();
    let before = content(lake);
    let mut ingest = convolake(
        &[
            "ingest",
            "--kafka",
            "127.0.0.1:1",
            "--lake",
            arg(lake),
            "--ops-listen",
            &ops,
        ],
        ACCOUNT,
    );
    let status = ingest.wait_exit(NOTICE_LIMIT).await;
    assert_eq!(status.code(), Some(1));
    let said = ingest.stderr();
    assert!(said.contains(arg(lake)), "{said}");
    assert!(!said.contains("--ops-listen"), "{said}");
    assert_eq!(content(lake), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_of_50_000_communications_is_complete_in_bounded_memory() {
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let mut receiver = Receiver::start(&kafka).await;
    let (large, url) = (LARGE.to_string(), format!("{PUBLIC_URL}#rc=5&rp=all"));
    let flags = [
        "--large",
        &large,
        "--callback-url",
        &url,
        "--callback-connect",
        &receiver.address,
    ];
    let orchestrator = Orchestrator::with(1, 5, &flags).await;
    let mut ingest = ingest(&kafka, &lake, &orchestrator.address).await;
    let started = Instant::now();
    let sql = "select completeness, communications as said,
                      (select count(*) from communications) as rows,
                      (select count(distinct communication_id) from communications) as ids
               from conversations";
    let want = json!([{"completeness": "COMPLETE", "said": LARGE, "rows": LARGE, "ids": LARGE}]);
    in_lake(python, &lake, sql, &want, LARGE_LIMIT).await;
    let peak = ingest.peak_memory();
    eprintln!(
        "{LARGE} communications: {:?}, peak memory {} MiB",
        started.elapsed(),
        peak >> 20
    );
    assert!(peak < LARGE_MEMORY_BYTES, "{peak} bytes");
    ingest.stop().await;
    receiver.process.stop().await;
}

/// All conversations of the lake, with what their row says and how many rows they have.
pub(crate) const CONVERSATIONS: &str =
    "select c.conversation_id as id, c.completeness, c.communications as said,
       (select count(*) from communications m where m.conversation_id = c.conversation_id) as rows
     from conversations c order by id";

/// What [`CONVERSATIONS`] gives where these are whole and there are no others.
pub(crate) fn whole(ids: &[&str]) -> Value {
    ids.iter()
        .map(|id| json!({"id": id, "completeness": "COMPLETE", "said": COMMUNICATIONS, "rows": COMMUNICATIONS}))
        .collect()
}

/// Waits until `sql` gives exactly `want`.
pub(crate) async fn in_lake(python: &Path, lake: &Path, sql: &str, want: &Value, limit: Duration) {
    until_every(
        SLOW_POLL_INTERVAL,
        "the lake",
        limit,
        async || match query(python, lake, sql).map(Value::Array)? {
            rows if rows == *want => Ok(()),
            rows => Err(format!("{rows}, where {want} is wanted")),
        },
    )
    .await;
}

/// A foreign reader and a broker, or none.
pub(crate) async fn parts() -> Option<(&'static Path, Kafka)> {
    Some((parts::python()?, Kafka::start().await?))
}

/// A publisher to topics of one partition, so that every record has the others as neighbours.
pub(crate) async fn publisher(kafka: &Kafka) -> Publisher {
    let settings = topic::Settings {
        brokers: kafka.address().to_owned(),
        ..topic::Settings::default()
    };
    let topics = Topics::named(TOPIC);
    topic::create_topics(&settings, &topics, 1, 1)
        .await
        .unwrap();
    Publisher::start(&settings).unwrap()
}

pub(crate) async fn publish(publisher: &Publisher, key: &str, value: &[u8]) {
    let message = Message {
        topic: TOPIC,
        key: Some(key.as_bytes()),
        value,
        headers: &[],
    };
    publisher.publish(&message).await.unwrap();
}

pub(crate) fn opened(id: &str) -> String {
    event("CONVERSATION_CREATED", id, "ACTIVE")
}

pub(crate) fn closed(id: &str) -> String {
    event("CONVERSATION_UPDATED", id, "CLOSED")
}

fn event(event_type: &str, id: &str, status: &str) -> String {
    json!({
        "eventType": event_type,
        "timestamp": "2026-11-22T10:10:00Z",
        "data": {"id": id, "status": status},
    })
    .to_string()
}

pub(crate) fn dead_letters(kafka: &Kafka) -> Vec<Record> {
    kafka.records(&Topics::named(TOPIC).dead_letters)
}

fn dead_letter_header(letter: &Record, name: &str) -> Option<String> {
    let name = format!("dead-letter-{name}");
    let mut all = letter.headers.iter().filter(|(known, _)| *known == name);
    let value = all.next().map(|(_, value)| value.clone());
    assert!(all.next().is_none(), "{name} twice: {letter:?}");
    value
}

/// Waits until `/readyz` of a living process answers 503 and names `dependency` with a reason.
async fn not_ready(process: &mut Process, ops: &str, dependency: &str) {
    let url = format!("http://{ops}/readyz");
    let (line, unknown) = (format!("{dependency}: "), "not connected yet");
    until("not ready", NOTICE_LIMIT, async || {
        if let Some(status) = process.exited() {
            panic!("ended: {status}");
        }
        match get(&url).await? {
            (503, body) if body.contains(&line) && !body.contains(unknown) => Ok(()),
            (status, body) => Err(format!("{status}: {body}")),
        }
    })
    .await;
}

/// Every file below `folder` with its bytes.
fn content(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
                found.insert(path, None);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path, Some(bytes));
            }
        }
    }
    found
}
