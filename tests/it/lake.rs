//! The lake in the hands of others: DuckDB, with its Delta extension and with plain SQL, and delta-rs.

use std::fs;
use std::path::Path;

use convolake::lake::sql::{Reader, views};
use convolake::lake::{Access, Commit, Lake, Position};
use convolake::table::row::{
    Address, CommunicationRow, Completeness, ConversationRow, EventRow, Participant, Recipient,
    Word,
};
use convolake::table::{TableName, communications_batch, conversations_batch, events_batch};
use serde_json::{Value, json};

use super::harness::duckdb::run_script;
use super::harness::{folder, parts};

const APP: &str = "convolake/group/cluster/topic/0";
/// 2026-09-22T00:00:00Z.
const DAY_START: i64 = 1_790_035_200_000_000;
const DAY: i32 = 20_718;
const SECOND: i64 = 1_000_000;

async fn open(root: &Path) -> Lake {
    Lake::open(root.to_str().unwrap(), Access::Create)
        .await
        .unwrap()
}

/// A call: greeted by the machine, asked by the customer a second later, answered after three more.
fn communications(conversation: &str) -> Vec<CommunicationRow> {
    ["AI_AGENT", "CUSTOMER", "AI_AGENT", "HUMAN_AGENT"]
        .into_iter()
        .zip([0, 1, 4, 9])
        .enumerate()
        .map(|(position, (author, second))| CommunicationRow {
            conversation_id: conversation.to_owned(),
            communication_id: format!("{conversation}-{position}"),
            position: position as i64,
            author_type: Some(author.to_owned()),
            direction: Some(
                if author == "CUSTOMER" {
                    "INBOUND"
                } else {
                    "OUTBOUND"
                }
                .to_owned(),
            ),
            text: (position != 3).then(|| "it's \"quoted\" 😀\n".to_owned()),
            transcription_confidence: Some(0.5),
            transcription_words: (position == 1).then(|| {
                vec![Word {
                    text: Some("it's".to_owned()),
                    start_ms: Some(3),
                    end_ms: None,
                }]
            }),
            recipients: Some(vec![Recipient {
                address: Some("+15550100".to_owned()),
                ..Recipient::default()
            }]),
            occurred_at: Some(DAY_START + second * SECOND),
            turn: position as i64 / 2,
            missing: if position == 3 {
                vec!["text".to_owned()]
            } else {
                vec![]
            },
            channel: if position == 3 { "SMS" } else { "VOICE" }.to_owned(),
            date: DAY,
            ..CommunicationRow::default()
        })
        .collect()
}

fn conversation(id: &str, completeness: Completeness) -> ConversationRow {
    ConversationRow {
        conversation_id: id.to_owned(),
        account_id: Some("AC1".to_owned()),
        configuration_id: None,
        name: None,
        status: Some("CLOSED".to_owned()),
        channels: vec!["SMS".to_owned(), "VOICE".to_owned()],
        participants: vec![Participant {
            r#type: Some("CUSTOMER".to_owned()),
            addresses: vec![Address {
                channel: Some("VOICE".to_owned()),
                address: Some("+15550100".to_owned()),
                channel_id: None,
            }],
            ..Participant::default()
        }],
        created_at: None,
        closed_at: Some(DAY_START),
        updated_at: None,
        first_communication_at: None,
        last_communication_at: None,
        communications: 4,
        metadata: Some("{}".to_owned()),
        extra: None,
        completeness,
        missing: vec![],
        pages: 1,
        fetched_singly: 0,
        api_calls: 2,
        content_hash: "00".to_owned(),
        kafka_partition: 0,
        kafka_offset: 1,
        enriched_at: DAY_START,
        date: DAY,
    }
}

fn event(id: &str, offset: i64) -> EventRow {
    EventRow {
        event_id: id.to_owned(),
        event_type: "CONVERSATION_UPDATED".to_owned(),
        conversation_id: "c1".to_owned(),
        occurred_at: None,
        received_at: DAY_START + offset,
        idempotency_token: Some("t".to_owned()),
        body: "{}".to_owned(),
        kafka_partition: 0,
        kafka_offset: offset,
        date: DAY,
    }
}

/// Three conversations in both tables, one of them replaced; `events` callbacks, a commit each, every second one
/// a repeat.
async fn fill(lake: &Lake, events: i64) {
    let table = lake.table(TableName::Communications);
    let rows: Vec<_> = ["c1", "c2", "c3"]
        .into_iter()
        .flat_map(communications)
        .collect();
    let first = Commit {
        rows: vec![communications_batch(&rows)],
        ..Commit::default()
    };
    table.commit(&first).await.unwrap();
    let again = Commit {
        rows: vec![communications_batch(&communications("c2"))],
        replace: ["c2".to_owned()].into(),
        ..Commit::default()
    };
    table.commit(&again).await.unwrap();
    let ledger = ["c1", "c2", "c3"].map(|id| conversation(id, Completeness::Complete));
    let ledger = Commit {
        rows: vec![conversations_batch(&ledger)],
        ..Commit::default()
    };
    lake.table(TableName::Conversations)
        .commit(&ledger)
        .await
        .unwrap();
    for offset in 0..events {
        let commit = Commit {
            rows: vec![events_batch(&[event(&format!("e{}", offset / 2), offset)])],
            positions: vec![Position {
                app: APP.to_owned(),
                from: (offset > 0).then_some(offset),
                to: offset + 1,
            }],
            ..Commit::default()
        };
        lake.table(TableName::Events).commit(&commit).await.unwrap();
    }
}

/// What DuckDB answers over the views, read either way.
fn ask(
    python: &Path,
    root: &Path,
    reader: Reader,
    statements: &[&str],
) -> Result<Vec<Value>, String> {
    let folder = folder();
    let file = folder.path().join("views.sql");
    fs::write(&file, views(root.to_str().unwrap(), reader).unwrap()).unwrap();
    let mut args = vec![file.to_str().unwrap()];
    args.extend(statements);
    match run_script(python, "views.py", &args)? {
        Value::Array(answers) => Ok(answers),
        other => Err(format!("views.py printed {other}")),
    }
}

fn delta_rs(python: &Path, root: &Path, table: TableName, args: &[&str]) -> Value {
    let table = root.join(table.as_str());
    let mut all = vec![table.to_str().unwrap()];
    all.extend(args);
    run_script(python, "delta_rs.py", &all).unwrap()
}

const CONTENT: [&str; 6] = [
    "SELECT (SELECT count(*) FROM communications) AS communications,
       (SELECT count(*) FROM conversations) AS conversations, (SELECT count(*) FROM events) AS events",
    "SELECT text, transcription_words, recipients, missing, occurred_at, channel, \"date\"
       FROM communications WHERE conversation_id = 'c2' ORDER BY position",
    "SELECT participants[1].addresses[1].address AS address, completeness, closed_at FROM conversations
       WHERE conversation_id = 'c2'",
    "SELECT * FROM first_response ORDER BY conversation_id",
    "SELECT * FROM channel_daily ORDER BY channel",
    "SELECT event_id, deliveries FROM distinct_events ORDER BY event_id LIMIT 1",
];

fn check_content(answers: &[Value], events: i64, reader: Reader) {
    let at = |answer: usize| &answers[answer];
    assert_eq!(
        *at(0),
        json!([{"communications": 12, "conversations": 3, "events": events}]),
        "{reader:?}"
    );
    let rows = at(1).as_array().unwrap();
    assert_eq!(rows.len(), 4, "{reader:?}: {rows:?}");
    assert_eq!(
        rows[1],
        json!({
            "text": "it's \"quoted\" 😀\n",
            "transcription_words": [{"text": "it's", "start_ms": 3, "end_ms": null}],
            "recipients": [{"address": "+15550100", "channel": null, "participant_id": null, "delivery_status": null}],
            "missing": [], "occurred_at": "2026-09-22 00:00:01+00:00", "channel": "VOICE", "date": "2026-09-22",
        })
    );
    assert_eq!(rows[3]["missing"], json!(["text"]));
    assert_eq!(
        *at(2),
        json!([{"address": "+15550100", "completeness": "COMPLETE", "closed_at": "2026-09-22 00:00:00+00:00"}])
    );
    let responses = at(3).as_array().unwrap();
    assert_eq!(responses.len(), 3);
    // The greeting before the question is no answer.
    assert_eq!(responses[0]["seconds"], json!(3.0), "{responses:?}");
    assert_eq!(responses[0]["answered_by"], json!("AI_AGENT"));
    assert_eq!(
        *at(4),
        json!([
            {"date": "2026-09-22", "channel": "SMS", "conversations": 3, "communications": 3, "turns": 3, "inbound": 0, "outbound": 3},
            {"date": "2026-09-22", "channel": "VOICE", "conversations": 3, "communications": 9, "turns": 6, "inbound": 3, "outbound": 6},
        ])
    );
    assert_eq!(*at(5), json!([{"event_id": "e0", "deliveries": 2}]));
}

/// Live files only, from log entries alone, from a checkpoint and entries, and from a checkpoint whose log was
/// cleaned; below a path that no quoting or globbing may touch.
#[tokio::test(flavor = "multi_thread")]
async fn duckdb_reads_what_is_live_with_and_without_its_extension() {
    const EVENTS: i64 = 54;
    let Some(python) = parts::python() else {
        return;
    };
    let folder = folder();
    let root = folder.path().join("it's a [lake] #1 100%");
    let lake = open(&root).await;
    fill(&lake, EVENTS).await;
    let log = root.join("events/_delta_log");
    for cleaned in [false, true] {
        if cleaned {
            for version in 0..50 {
                fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
            }
        }
        for reader in [Reader::Plain, Reader::Delta] {
            let answers = ask(python, &root, reader, &CONTENT);
            check_content(&answers.unwrap(), EVENTS, reader);
        }
    }
    let seen = delta_rs(python, &root, TableName::Events, &["read", APP]);
    assert_eq!(
        (&seen["version"], &seen["rows"], &seen["position"]),
        (&json!(EVENTS), &json!(EVENTS), &json!(EVENTS))
    );
    assert_eq!(
        seen["nullable"],
        json!(["occurred_at", "idempotency_token"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_lake_has_every_column_and_no_rows() {
    let Some(python) = parts::python() else {
        return;
    };
    let folder = folder();
    drop(open(folder.path()).await);
    let mut described = Vec::new();
    for reader in [Reader::Plain, Reader::Delta] {
        let statements = [
            "SELECT count(*) AS n FROM communications",
            "SELECT count(*) AS n FROM first_response",
            "DESCRIBE communications",
            "DESCRIBE conversations",
            "DESCRIBE events",
        ];
        let answers = ask(python, folder.path(), reader, &statements).unwrap();
        assert_eq!(answers[0], json!([{"n": 0}]), "{reader:?}");
        assert_eq!(answers[1], json!([{"n": 0}]), "{reader:?}");
        for (answer, table) in answers[2..].iter().zip(TableName::ALL) {
            let names: Vec<_> = answer
                .as_array()
                .unwrap()
                .iter()
                .map(|column| column["column_name"].as_str().unwrap())
                .collect();
            let expected: Vec<_> = table.columns().iter().map(|column| column.name).collect();
            assert_eq!(names, expected, "{reader:?}");
        }
        described.push(answers);
    }
    assert_eq!(described[0], described[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_not_there_is_said() {
    let Some(python) = parts::python() else {
        return;
    };
    let folder = folder();
    let error = ask(python, folder.path(), Reader::Plain, &["SELECT 1"]).unwrap_err();
    assert!(
        error.contains("no Delta log of table communications"),
        "{error}"
    );
}

/// What another writer adds, a row without one of our columns and with one of its own, is read, moved by
/// its compaction, and kept when we rewrite the file for the sake of another conversation.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_writer_live_beside_ours() {
    let Some(python) = parts::python() else {
        return;
    };
    let folder = folder();
    let root = folder.path();
    let lake = open(root).await;
    fill(&lake, 3).await;
    let table = lake.table(TableName::Events);
    delta_rs(python, root, TableName::Events, &["append", "2026-09-22"]);
    let asked = ["c-theirs", "c-other"].map(str::to_owned);
    assert_eq!(table.holds(&asked).await.unwrap().len(), 2);
    delta_rs(python, root, TableName::Events, &["compact"]);
    assert_eq!(table.holds(&asked).await.unwrap().len(), 2);
    assert_eq!(table.stats().await.unwrap().rows, 5);

    let erase = Commit {
        replace: [asked[1].clone()].into(),
        ..Commit::default()
    };
    table.commit(&erase).await.unwrap();
    let seen = delta_rs(python, root, TableName::Events, &["read", APP]);
    assert_eq!((&seen["rows"], &seen["position"]), (&json!(4), &json!(3)));
    let statements = [
        "SELECT count(*) AS n, count(idempotency_token) AS tokens FROM events",
        "SELECT their_note FROM delta_scan(getvariable('table')) WHERE their_note IS NOT NULL",
    ];
    let set = format!(
        "SET VARIABLE \"table\" = '{}'",
        root.join("events").display()
    );
    for reader in [Reader::Plain, Reader::Delta] {
        let answers = ask(python, root, reader, &[statements[0]]).unwrap();
        assert_eq!(answers[0], json!([{"n": 4, "tokens": 3}]), "{reader:?}");
    }
    let answers = ask(python, root, Reader::Delta, &[&set, statements[1]]).unwrap();
    assert_eq!(answers[1], json!([{"their_note": "kept"}]));
}
