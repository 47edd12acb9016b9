//! The edge with a spool: Kafka down, slow, full, refusing; the disk full; both; the stop in between.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::spool;

/// Longest that any answer may take: its deadline, and time for a busy machine to see it.
const ANSWER_LIMIT: Duration = ANSWER_TIME_LIMIT.saturating_add(Duration::from_millis(500));
/// Time from Kafka's return to the first record in the topic.
const RETURN_LIMIT: Duration = Duration::from_secs(1);

fn spool_in(folder: &TempDir, max_bytes: u64) -> Spool {
    let settings = spool::Settings {
        folder: folder.path().join("spool"),
        max_bytes,
        clock: Clock::from_fn(|| "2026-11-22T10:00:00Z".parse().unwrap()),
    };
    Spool::open(&settings).unwrap()
}

/// A server with a spool in a folder of its own.
struct Spooled {
    server: Server,
    spool: Spool,
    folder: TempDir,
}

impl Spooled {
    async fn start(kafka: &crate::topic::Settings) -> Spooled {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool_in(&folder, 1 << 30);
        Spooled::with(kafka, folder, spool).await
    }

    async fn with(kafka: &crate::topic::Settings, folder: TempDir, spool: Spool) -> Spooled {
        let spooled = Some(spool.clone());
        let server = Server::start_spooled(kafka, DEFAULT_MAX_CONNECTIONS, spooled).await;
        Spooled {
            server,
            spool,
            folder,
        }
    }

    /// As `convolake receive` does at its end.
    async fn finish(self) -> TempDir {
        self.server.stop.request();
        within(self.server.served).await.unwrap().unwrap();
        // Without Kafka something may be unflushed, which is in the spool then.
        let _ = self.server.publisher.close(Duration::from_secs(1)).await;
        self.spool.close(PATIENCE).await;
        self.folder
    }

    async fn send(&self, client: &mut Client, conversation: &str) -> (u16, Duration) {
        let started = Instant::now();
        client
            .send(&Wire::signed(event(conversation)).bytes())
            .await;
        let status = client.status().await;
        let took = started.elapsed();
        assert!(took < ANSWER_LIMIT, "{took:?}");
        (status, took)
    }

    /// Sends as many at once, each from a client of its own.
    async fn send_at_once(&self, count: usize, name: &str) -> Vec<(u16, Duration)> {
        let sends = (0..count).map(async |n| {
            let mut client = self.server.connect().await;
            self.send(&mut client, &format!("{name}-{n}")).await
        });
        futures::future::join_all(sends).await
    }

    async fn until_empty(&self) {
        until("the spool is empty", async || self.spool.held() == 0).await;
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How often each conversation is in the topic; there may be repeats.
async fn stored(cluster: &EmbeddedCluster, topic: &str) -> BTreeMap<String, usize> {
    let mut stored = BTreeMap::new();
    for record in read_all(cluster, topic).await {
        let key = record
            .key
            .as_ref()
            .map(|key| String::from_utf8(key.to_vec()).unwrap());
        *stored.entry(key.unwrap_or_default()).or_default() += 1;
    }
    stored
}

/// All records of `topic`, of which there is at least one.
async fn read_all(cluster: &EmbeddedCluster, topic: &str) -> Vec<Record> {
    let group = format!("read-all-{topic}");
    let mut consumer = Consumer::subscribe(&cluster.settings(), &group, topic, 1 << 26).unwrap();
    let mut records = Vec::new();
    let mut end = None;
    while end != Some(records.len()) {
        match within(consumer.next()).await {
            Event::Assigned { partitions, reply } => {
                reply.start_at(partitions.into_iter().map(|p| (p, None)).collect());
            }
            Event::Record(record) => {
                records.push(record);
                if end.is_none() {
                    let watermarks = within(consumer.watermarks()).await.unwrap();
                    let stored: i64 = watermarks.iter().map(|w| w.high - w.low).sum();
                    end = Some(usize::try_from(stored).unwrap());
                }
            }
            Event::Revoked { reply, .. } => reply.done(),
            Event::Unreachable(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    consumer.close(PATIENCE).await.unwrap();
    records
}

#[tokio::test]
async fn while_kafka_is_down_callbacks_are_accepted_and_come_to_kafka_after() {
    const EACH: usize = 20;
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    let mut client = edge.server.connect().await;
    assert_eq!(edge.send(&mut client, "before").await.0, 204);
    assert_eq!(edge.spool.held(), 0, "a Kafka that is well is the only way");
    cluster.go_down();
    // Those that find out wait for Kafka first; after them the spool comes first.
    for (status, took) in edge.send_at_once(EACH, "first").await {
        assert_eq!(status, 204);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    for (status, took) in edge.send_at_once(EACH, "then").await {
        assert_eq!(status, 204);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert_eq!(edge.spool.held(), 2 * EACH as u64);
    let up = Instant::now();
    cluster.come_up();
    until("the first is drained", async || {
        edge.spool.held() < 2 * EACH as u64
    })
    .await;
    assert!(up.elapsed() < RETURN_LIMIT, "{:?}", up.elapsed());
    edge.until_empty().await;
    // And Kafka comes first again.
    until("nothing is spooled", async || {
        let (status, _) = edge.send(&mut client, "after").await;
        status == 204 && edge.spool.held() == 0
    })
    .await;
    edge.finish().await;
    let stored = stored(&cluster, &topics().events).await;
    for n in 0..EACH {
        assert!(stored.contains_key(&format!("first-{n}")), "{stored:?}");
        assert!(stored.contains_key(&format!("then-{n}")), "{stored:?}");
    }
    assert_eq!(stored.len(), 2 * EACH + 2, "nothing else: {stored:?}");
}

#[tokio::test]
async fn a_start_without_kafka_accepts_and_a_later_start_with_it_drains() {
    let cluster = cluster();
    cluster.go_down();
    let edge = Spooled::start(&cluster.settings()).await;
    for (status, _) in edge.send_at_once(10, "c").await {
        assert_eq!(status, 204);
    }
    let quarantined = Wire::signed("not JSON, not understood, and kept").bytes();
    let mut client = edge.server.connect().await;
    client.send(&quarantined).await;
    assert_eq!(client.status().await, 204);
    let folder = edge.finish().await;
    cluster.come_up();
    let spool = spool_in(&folder, 1 << 30);
    assert_eq!(spool.held(), 11);
    let edge = Spooled::with(&cluster.settings(), folder, spool).await;
    edge.until_empty().await;
    edge.finish().await;
    let stored = stored(&cluster, &topics().events).await;
    assert_eq!(stored.len(), 10, "{stored:?}");
    let kept = read_all(&cluster, &topics().quarantine).await;
    assert!(
        kept.iter()
            .all(|record| record.value == b"not JSON, not understood, and kept"[..])
    );
    assert!(kept[0].headers.get("dead-letter-reason").is_some());
}

#[tokio::test]
async fn what_comes_out_of_the_spool_is_what_would_have_gone_to_kafka() {
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    let mut client = edge.server.connect().await;
    let wire = Wire::signed(event("c1"))
        .with("I-Twilio-Idempotency-Token", "token-1")
        .with(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        );
    client.send(&wire.bytes()).await;
    assert_eq!(client.status().await, 204);
    cluster.go_down();
    client.send(&wire.bytes()).await;
    assert_eq!(client.status().await, 204);
    cluster.come_up();
    edge.until_empty().await;
    edge.finish().await;
    let records = read_all(&cluster, &topics().events).await;
    let [direct, spooled @ ..] = &records[..] else {
        panic!("{records:?}");
    };
    assert!(!spooled.is_empty());
    for spooled in spooled {
        assert_eq!((&spooled.key, &spooled.value), (&direct.key, &direct.value));
        assert!(spooled.headers.iter().eq(direct.headers.iter()));
    }
}

/// Traffic goes on while Kafka goes down and comes back: in order of each conversation.
#[tokio::test]
async fn no_record_overtakes_an_older_one_of_its_conversation_on_the_way_back() {
    const CONVERSATIONS: usize = 4;
    /// Records before, during and after the outage.
    const EACH: usize = 100;
    const PACE: Duration = Duration::from_millis(10);
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    let (accepted, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let traffic = (0..CONVERSATIONS).map(async |c| {
        let mut client = edge.server.connect().await;
        let mut pace = tokio::time::interval(PACE);
        let mut sent = 0;
        while !done.load(Ordering::SeqCst) {
            pace.tick().await;
            let body = event(&format!("c{c}")).replace("AC1", &format!("AC{sent}"));
            client.send(&Wire::signed(body).bytes()).await;
            assert_eq!(client.status().await, 204);
            accepted.fetch_add(1, Ordering::SeqCst);
            sent += 1;
        }
        sent
    });
    let more = async |what: &str| {
        let enough = accepted.load(Ordering::SeqCst) + EACH;
        until(what, async || accepted.load(Ordering::SeqCst) >= enough).await;
    };
    let story = async {
        more("before").await;
        cluster.go_down();
        until("records are spooled", async || {
            edge.spool.held() > EACH as u64
        })
        .await;
        cluster.come_up();
        edge.until_empty().await;
        more("after").await;
        until("Kafka comes first", async || edge.spool.held() == 0).await;
        more("at the end").await;
        done.store(true, Ordering::SeqCst);
    };
    let (sent, ()) = tokio::join!(futures::future::join_all(traffic), story);
    edge.until_empty().await;
    edge.finish().await;
    let mut next: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for record in read_all(&cluster, &topics().events).await {
        let account = String::from_utf8(record.headers.get("ce_source").unwrap().to_vec());
        let n: usize = account.unwrap()[2..].parse().unwrap();
        // What comes for the first time comes in its turn; a repeat may be late.
        let next = next.entry(record.key.unwrap().to_vec()).or_default();
        assert!(n <= *next, "{n} before {next}");
        *next = (*next).max(n + 1);
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), sent);
}

#[tokio::test]
async fn a_slow_kafka_is_not_waited_for_again_and_again() {
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    let mut client = edge.server.connect().await;
    assert_eq!(edge.send(&mut client, "before").await.0, 204);
    cluster.answer_after(Duration::from_secs(8));
    let first = edge.send_at_once(5, "first").await;
    let then = edge.send_at_once(20, "then").await;
    for (status, took) in first.into_iter().chain(then.clone()) {
        assert_eq!(status, 204);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    assert!(
        then.iter().all(|(_, took)| *took < Duration::from_secs(1)),
        "{then:?}"
    );
    cluster.answer_after(Duration::ZERO);
    edge.until_empty().await;
    edge.finish().await;
    let stored = stored(&cluster, &topics().events).await;
    assert_eq!(stored.len(), 26, "{stored:?}");
}

#[tokio::test]
async fn a_full_producer_queue_goes_to_the_spool_at_once() {
    let cluster = cluster();
    let mut kafka = cluster.settings();
    let queue = ("queue.buffering.max.messages".into(), "5".into());
    kafka.properties.push(queue);
    cluster.go_down();
    let edge = Spooled::start(&kafka).await;
    let answers = edge.send_at_once(40, "c").await;
    assert!(
        answers.iter().all(|(status, _)| *status == 204),
        "{answers:?}"
    );
    let fast = answers
        .iter()
        .filter(|(_, took)| *took < Duration::from_secs(1));
    assert!(fast.count() >= 35, "{answers:?}");
    cluster.come_up();
    edge.until_empty().await;
    edge.finish().await;
    assert_eq!(stored(&cluster, &topics().events).await.len(), 40);
}

#[tokio::test]
async fn a_full_spool_without_kafka_is_503_and_with_it_does_not_matter() {
    let cluster = cluster();
    let folder = tempfile::tempdir().unwrap();
    let spool = spool_in(&folder, 3_000);
    let edge = Spooled::with(&cluster.settings(), folder, spool).await;
    let mut client = edge.server.connect().await;
    cluster.go_down();
    let mut accepted = 0;
    let refused = loop {
        client
            .send(&Wire::signed(event(&format!("c{accepted}"))).bytes())
            .await;
        let answer = client.answer().await.unwrap();
        match answer.status {
            204 => accepted += 1,
            _ => break answer,
        }
    };
    assert!((2..6).contains(&accepted), "{accepted}");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.headers["retry-after"], "1");
    let refused = edge.send_at_once(10, "refused").await;
    assert!(
        refused.iter().all(|(status, _)| *status == 503),
        "{refused:?}"
    );
    assert!(edge.spool.health().down.is_some());
    cluster.come_up();
    edge.until_empty().await;
    until("all is well", async || edge.spool.health().down.is_none()).await;
    assert_eq!(edge.send(&mut client, "after").await.0, 204);
    edge.finish().await;
    let stored = stored(&cluster, &topics().events).await;
    for n in 0..accepted {
        assert!(stored.contains_key(&format!("c{n}")), "{stored:?}");
    }
    assert!(stored.contains_key("after"));
}

#[tokio::test]
async fn a_spool_that_fails_leaves_kafka_as_the_way() {
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    // Removed, and not to be made again.
    let path = edge.folder.path().join("spool");
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, "in its way").unwrap();
    let mut client = edge.server.connect().await;
    cluster.go_down();
    let refused = edge.send_at_once(5, "refused").await;
    assert!(
        refused.iter().all(|(status, _)| *status == 503),
        "{refused:?}"
    );
    cluster.come_up();
    // The spool comes first now, and does not hold it up.
    until("Kafka answers", async || {
        edge.send(&mut client, "after").await.0 == 204
    })
    .await;
    let (status, took) = edge.send(&mut client, "again").await;
    assert_eq!(status, 204);
    assert!(took < Duration::from_secs(1), "{took:?}");
    edge.finish().await;
}

#[tokio::test]
async fn a_record_that_kafka_refuses_is_kept_and_does_not_hold_up_the_others() {
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    let mut client = edge.server.connect().await;
    assert_eq!(edge.send(&mut client, "before").await.0, 204);
    cluster.refuse_produce(2);
    assert_eq!(edge.send(&mut client, "refused").await.0, 204);
    until("the refused one was tried again", async || {
        edge.server.publisher.failed() == 2
    })
    .await;
    assert_eq!(edge.send(&mut client, "after").await.0, 204);
    assert_eq!(edge.spool.held(), 1);
    let folder = edge.finish().await;
    // At the next start Kafka takes it.
    let spool = spool_in(&folder, 1 << 30);
    let edge = Spooled::with(&cluster.settings(), folder, spool).await;
    edge.until_empty().await;
    edge.finish().await;
    let stored = stored(&cluster, &topics().events).await;
    let want = ["after", "before", "refused"].map(|name| (name.to_owned(), 1));
    assert_eq!(stored, BTreeMap::from(want));
}

#[tokio::test]
async fn a_fatal_error_of_the_producer_sends_what_was_on_its_way_again() {
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    let mut client = edge.server.connect().await;
    assert_eq!(edge.send(&mut client, "before").await.0, 204);
    cluster.go_down();
    let sends = edge.send_at_once(5, "c");
    let fatal = async {
        until("they are on their way", async || {
            edge.server.publisher.in_flight() == 5
        })
        .await;
        edge.server.publisher.raise_fatal_error();
        cluster.come_up();
    };
    let (answers, ()) = tokio::join!(sends, fatal);
    for (status, took) in answers {
        assert_eq!(status, 204);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    assert_eq!(edge.send(&mut client, "after").await.0, 204);
    edge.until_empty().await;
    edge.finish().await;
    let stored = stored(&cluster, &topics().events).await;
    assert_eq!(stored.len(), 7, "{stored:?}");
}

#[tokio::test]
async fn what_is_not_verified_is_in_neither() {
    let cluster = cluster();
    cluster.go_down();
    let edge = Spooled::start(&cluster.settings()).await;
    let mut client = edge.server.connect().await;
    for wire in [
        Wire::signed(event("c1")).without("X-Twilio-Signature"),
        Wire::signed(event("c1")).instead("X-Twilio-Signature", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ] {
        client.send(&wire.bytes()).await;
        assert_eq!(client.status().await, 403);
    }
    assert_eq!(
        (edge.spool.held(), edge.server.publisher.in_flight()),
        (0, 0)
    );
    edge.finish().await;
}

#[tokio::test]
async fn a_stop_without_kafka_answers_what_is_in_flight_from_the_spool() {
    let cluster = cluster();
    let edge = Spooled::start(&cluster.settings()).await;
    cluster.go_down();
    let sends = edge.send_at_once(10, "c");
    let stop = async {
        until("they are on their way", async || {
            edge.server.publisher.in_flight() == 10
        })
        .await;
        edge.server.stop.request();
    };
    let started = Instant::now();
    let (answers, ()) = tokio::join!(sends, stop);
    assert!(
        answers.iter().all(|(status, _)| *status == 204),
        "{answers:?}"
    );
    let folder = edge.finish().await;
    assert!(
        started.elapsed() < DRAIN_DEADLINE,
        "{:?}",
        started.elapsed()
    );
    let spool = spool_in(&folder, 1 << 30);
    assert_eq!(spool.held(), 10);
    spool.close(PATIENCE).await;
}
