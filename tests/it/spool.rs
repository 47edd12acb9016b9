//! The spool of `receive`: Kafka killed, the receiver killed, both started again; and folders it refuses.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::http::{get, pooled_client, post_callback};
use crate::harness::parts::Kafka;
use crate::harness::process::{arg, convolake};
use crate::harness::roles::{PUBLIC_URL, Receiver, TOPIC, callback};
use crate::harness::{ACCOUNT, folder, free_address, until};

/// Longest time to any answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest time until a spool of a few hundred records has drained.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// Longest time until a wrong folder is refused.
const REFUSE_LIMIT: Duration = Duration::from_secs(30);
/// Clients that send at once.
const SENDERS: usize = 8;
/// Metrics.
const RECORDS: &str = "convolake_spool_records";
const WRITTEN: &str = "convolake_spool_written_records_total";
const SWITCHES: &str = "convolake_spool_switches_total{to=\"spool\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_accepted_while_kafka_is_dead_are_in_the_topic_after() {
    let Some(mut kafka) = Kafka::start().await else {
        return;
    };
    let folder = folder();
    let spool = folder.path().join("spool");
    let flags = ["--spool", arg(&spool)];
    let (mut receiver, ops) = Receiver::spawn_with(kafka.address(), &flags);
    receiver.process.wait_ready(&ops).await;
    until("the topic is there", DRAIN_LIMIT, async || {
        ready(&ops, "ready\n").await
    })
    .await;
    // A broker that has just started may be too slow for its first records.
    let mut accepted = load(&receiver, "first", 10).await;
    until("Kafka comes first", DRAIN_LIMIT, async || {
        let before = metric(&ops, WRITTEN).await;
        accepted.extend(load(&receiver, &format!("well {}", accepted.len()), 50).await);
        match metric(&ops, WRITTEN).await - before {
            0 => Ok(()),
            spooled => Err(format!("{spooled} were spooled")),
        }
    })
    .await;
    let switches = metric(&ops, SWITCHES).await;

    kafka.kill9();
    accepted.extend(load(&receiver, "dead", 300).await);
    until("it names Kafka", DRAIN_LIMIT, async || {
        ready(&ops, "ready\nkafka: ").await
    })
    .await;
    assert!(metric(&ops, RECORDS).await >= 290);
    assert_eq!(metric(&ops, SWITCHES).await, switches + 1);

    receiver.process.kill9();
    let restarted = Instant::now();
    let (mut receiver, ops) = Receiver::spawn_with(kafka.address(), &flags);
    receiver.process.wait_ready(&ops).await;
    println!(
        "ready {:?} after kill -9, with a backlog",
        restarted.elapsed()
    );
    accepted.extend(load(&receiver, "killed", 100).await);

    kafka.restart().await;
    let back = Instant::now();
    accepted.extend(load(&receiver, "back", 100).await);
    until("the spool is empty", DRAIN_LIMIT, async || {
        match metric(&ops, RECORDS).await {
            0 => Ok(()),
            left => Err(format!("{left} records")),
        }
    })
    .await;
    println!("empty {:?} after Kafka answered", back.elapsed());
    receiver.process.stop().await;

    let kept: Vec<Vec<u8>> = kafka.records(TOPIC).into_iter().map(|r| r.value).collect();
    let records = kept.len();
    let kept: BTreeSet<Vec<u8>> = kept.into_iter().collect();
    let lost: Vec<_> = (accepted.iter())
        .filter(|body| !kept.contains(body.as_bytes()))
        .collect();
    assert!(lost.is_empty(), "answered 204 and not in Kafka: {lost:?}");
    assert_eq!(kept.len(), accepted.len(), "nothing that was not sent");
    println!("{} accepted, {records} records", accepted.len());
}

/// Sends `count` callbacks, all of which must be accepted in time; gives their bodies.
async fn load(receiver: &Receiver, name: &str, count: usize) -> Vec<String> {
    let client = pooled_client();
    let senders = (0..SENDERS).map(async |sender| {
        let mut accepted = Vec::new();
        for n in (sender..count).step_by(SENDERS) {
            let body = json!({
                "eventType": "CONVERSATION_CREATED",
                "timestamp": "2026-11-22T10:00:00Z",
                "data": {"id": format!("conv_conversation_{name}_{n}"), "status": "ACTIVE"},
            });
            let request = callback(&receiver.address, body.to_string());
            let sent = Instant::now();
            assert_eq!(
                post_callback(&client, &request).await,
                Ok(204),
                "{name} {n}"
            );
            assert!(
                sent.elapsed() < ANSWER_LIMIT,
                "{name} {n}: {:?}",
                sent.elapsed()
            );
            accepted.push(request.body);
        }
        accepted
    });
    let accepted = futures::future::join_all(senders).await;
    accepted.into_iter().flatten().collect()
}

/// Whether `/readyz` answers 200 with a text that starts so.
async fn ready(ops: &str, start: &str) -> Result<(), String> {
    match get(&format!("http://{ops}/readyz")).await? {
        (200, text) if text.starts_with(start) && (start != "ready\n" || text == start) => Ok(()),
        (status, text) => Err(format!("{status}: {text}")),
    }
}

/// A metric's value; 0 where it is not there yet.
async fn metric(ops: &str, name: &str) -> u64 {
    let (_, text) = get(&format!("http://{ops}/metrics")).await.unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(name));
    let mut values = values.filter_map(|rest| rest.strip_prefix(' '));
    values.next().map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn a_spool_that_cannot_be_used_is_said_before_any_port_opens() {
    let folder = folder();
    let newer = folder.path().join("newer");
    private(&newer);
    std::fs::write(newer.join("lock"), "convolake spool, format 2\n").unwrap();
    refused(&newer, "newer release").await;
    let content = std::fs::read_to_string(newer.join("lock"));
    assert_eq!(content.unwrap(), "convolake spool, format 2\n");

    let shared = folder.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&shared, mode).unwrap();
    refused(&shared, "chmod 700").await;

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    refused(&file, "no folder").await;
    refused(&folder.path().join("no/such/parent"), "creating it failed").await;
}

fn private(folder: &Path) {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .unwrap();
}

/// `receive` ends with 2 and says so, before it looks at its ports.
async fn refused(spool: &Path, why: &str) {
    let address = free_address();
    let mut receive = convolake(
        &[
            "receive",
            "--public-url",
            PUBLIC_URL,
            "--kafka",
            "127.0.0.1:1",
            "--listen",
            &address,
            "--spool",
            arg(spool),
        ],
        ACCOUNT,
    );
    let status = receive.wait_exit(REFUSE_LIMIT).await;
    let said = receive.stderr();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("--spool") && said.contains(why), "{said}");
}
