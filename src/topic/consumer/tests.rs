//! The consumer against the embedded cluster: the real group protocol, positions, bounds, faults.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tokio::time::timeout;

use super::*;
use crate::event::header;
use crate::topic::testing::{read_back, until, within};
use crate::topic::{DeadLetter, EmbeddedCluster, Message, OutOfRange, Publisher, Topics};

const TOPIC: &str = "events";
const ROOMY: u32 = 8 * 1024 * 1024;
/// Leaving a group takes a poll and an answer of the broker.
const LEAVE: Duration = Duration::from_secs(10);

async fn publish(cluster: &EmbeddedCluster, records: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let publisher = Publisher::start(&cluster.settings()).unwrap();
    for (key, value) in records {
        let message = Message {
            topic: TOPIC,
            key: Some(key.as_bytes()),
            value: &value,
            headers: &[],
        };
        drop(publisher.publish(&message));
    }
    publisher.close(Duration::from_secs(20)).await.unwrap();
}

async fn publish_numbers(cluster: &EmbeddedCluster, numbers: std::ops::Range<u32>) {
    publish(
        cluster,
        numbers.map(|n| (n.to_string(), n.to_be_bytes().to_vec())),
    )
    .await;
}

fn number(record: &Record) -> u32 {
    u32::from_be_bytes(record.value[..].try_into().unwrap())
}

/// A consumer and what a committer would remember of it: positions, and everything read, in order.
struct Member {
    consumer: Consumer,
    positions: BTreeMap<i32, i64>,
    owned: BTreeSet<i32>,
    numbers: Vec<u32>,
}

impl Member {
    fn join(cluster: &EmbeddedCluster, bytes: u32) -> Member {
        Member {
            consumer: Consumer::subscribe(&cluster.settings(), "group", TOPIC, bytes).unwrap(),
            positions: BTreeMap::new(),
            owned: BTreeSet::new(),
            numbers: Vec::new(),
        }
    }

    /// Handles one event as a committer does; the record, if it was one.
    async fn step(&mut self) -> Option<Record> {
        match self.consumer.next().await {
            Event::Assigned { partitions, reply } => {
                self.owned.extend(&partitions);
                let start = |p: i32| (p, self.positions.get(&p).copied());
                reply.start_at(partitions.into_iter().map(start).collect());
                None
            }
            Event::Revoked {
                partitions,
                lost,
                reply,
            } => {
                assert!(!lost);
                self.owned.retain(|p| !partitions.contains(p));
                reply.done();
                None
            }
            Event::Record(record) => {
                assert!(
                    self.owned.contains(&record.partition),
                    "{record:?} is not ours"
                );
                let next = self.positions.insert(record.partition, record.offset + 1);
                assert_eq!(
                    next.unwrap_or(0),
                    record.offset,
                    "of partition {}",
                    record.partition
                );
                self.numbers.push(number(&record));
                Some(record)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn owns(&mut self, partitions: usize) {
        within(async {
            while self.owned.len() != partitions {
                self.step().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_record_is_read_as_it_was_published() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    let publisher = Publisher::start(&cluster.settings()).unwrap();
    let headers: [(&str, &[u8]); 3] = [("a", b"first"), ("empty", b""), ("a", b"\xff\0")];
    let message = Message {
        topic: TOPIC,
        key: Some(b"k\0\xff"),
        value: b"v\0\xfe",
        headers: &headers,
    };
    publisher.publish(&message).await.unwrap();
    publisher
        .publish(&Message {
            key: None,
            headers: &[],
            ..message
        })
        .await
        .unwrap();

    let mut member = Consumer::subscribe(&cluster.settings(), "group", TOPIC, ROOMY).unwrap();
    let Event::Assigned { partitions, reply } = within(member.next()).await else {
        panic!("nothing comes before the assignment");
    };
    assert_eq!(partitions, [0]);
    reply.start_at(vec![(0, None)]);
    let Event::Record(record) = within(member.next()).await else {
        panic!("a record follows");
    };
    assert_eq!(
        (record.partition, record.offset, record.topic()),
        (0, 0, TOPIC)
    );
    assert_eq!(record.key.as_deref(), Some(&b"k\0\xff"[..]));
    assert_eq!(&record.value[..], b"v\0\xfe");
    let read: Vec<_> = record
        .headers
        .iter()
        .map(|(name, value)| (name, value.unwrap()))
        .collect();
    assert_eq!(read, headers);
    assert_eq!(
        record.headers.get("a"),
        Some(&b"\xff\0"[..]),
        "the last of a name"
    );
    assert_eq!(record.headers.get("A"), None);
    assert_eq!(record.bytes(), 3 + 3 + 6 + 5 + 3);
    assert!(record.timestamp_ms.is_some());
    assert!(!format!("{record:?} {:?}", record.headers).contains("first"));
    let Event::Record(second) = within(member.next()).await else {
        panic!("a record follows");
    };
    assert_eq!(
        (second.key.as_ref(), second.offset, second.headers.len()),
        (None, 1, 0)
    );

    publisher.publish(&message).await.unwrap();
    until("it is read ahead", || {
        member.shared.positions() == [(0, Some(3))]
    })
    .await;
    let marks = member.watermarks().await.unwrap();
    assert_eq!(
        marks,
        [Watermarks {
            partition: 0,
            low: 0,
            high: 3,
            position: Some(3)
        }]
    );
    assert_eq!(member.lag().await.unwrap(), [(0, 0)]);
    member.close(LEAVE).await.unwrap();
}

#[tokio::test]
async fn consuming_starts_where_it_is_told_whatever_the_group_committed() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    publish_numbers(&cluster, 0..10).await;
    for (told, first) in [(Some(7), 7), (None, 0), (Some(3), 3)] {
        let mut member = Member::join(&cluster, ROOMY);
        if let Some(told) = told {
            member.positions.insert(0, told);
        }
        within(async { while member.step().await.is_none() {} }).await;
        assert_eq!(member.numbers, [first]);
        member.consumer.commit_hint(&[(0, 9)]);
        member.consumer.close(LEAVE).await.unwrap();
    }
    let committed = admin::blocking(move || {
        let config = cluster.settings().consumer(Some(("group", ROOMY))).unwrap();
        let reader: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(TOPIC, 0);
        let committed = reader
            .committed_offsets(list, Duration::from_secs(5))
            .unwrap();
        committed.elements()[0].offset()
    })
    .await;
    assert_eq!(
        committed,
        Offset::Offset(9),
        "the hint arrived, and decided nothing"
    );
}

#[tokio::test]
async fn partitions_go_to_another_member_and_come_back_with_their_positions() {
    let cluster = EmbeddedCluster::start(4, &[TOPIC]).unwrap();
    publish_numbers(&cluster, 0..200).await;
    let mut first = Member::join(&cluster, ROOMY);
    within(async {
        while first.numbers.len() < 200 {
            first.step().await;
        }
    })
    .await;

    let mut second = Member::join(&cluster, ROOMY);
    // What the lake would tell the second.
    second.positions = first.positions.clone();
    within(async {
        while (first.owned.len(), second.owned.len()) != (2, 2) {
            tokio::select! {
                _ = first.step() => {}
                _ = second.step() => {}
            }
        }
    })
    .await;
    assert!(first.owned.is_disjoint(&second.owned));
    publish_numbers(&cluster, 200..400).await;
    within(async {
        while first.numbers.len() + second.numbers.len() < 400 {
            tokio::select! {
                _ = first.step() => {}
                _ = second.step() => {}
            }
        }
    })
    .await;
    assert!(!second.numbers.is_empty());

    for (partition, next) in &second.positions {
        let known = first.positions.entry(*partition).or_default();
        *known = (*known).max(*next);
    }
    second.consumer.close(LEAVE).await.unwrap();
    first.owns(4).await;
    publish_numbers(&cluster, 400..500).await;
    within(async {
        while first.numbers.len() + second.numbers.len() < 500 {
            first.step().await;
        }
    })
    .await;
    let mut all = [first.numbers, second.numbers].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..500), "every record once");
    first.consumer.close(LEAVE).await.unwrap();
}

#[tokio::test]
async fn records_that_wait_do_not_outlive_a_revocation() {
    let cluster = EmbeddedCluster::start(2, &[TOPIC]).unwrap();
    publish_numbers(&cluster, 0..100).await;
    let mut first = Member::join(&cluster, ROOMY);
    first.owns(2).await;
    let read_ahead = || {
        let positions = first.consumer.shared.positions();
        positions.iter().filter_map(|(_, next)| *next).sum::<i64>() == 100
    };
    until("all are read ahead and nothing was fetched", read_ahead).await;

    let mut second = Member::join(&cluster, ROOMY);
    let announced = || !first.consumer.events.is_empty();
    until("the revocation is announced", announced).await;
    // `step` asserts that each record's partition is still the member's own.
    within(async {
        while first.numbers.len() + second.numbers.len() < 100 {
            tokio::select! {
                _ = first.step() => {}
                _ = second.step() => {}
            }
        }
    })
    .await;
    assert_eq!((first.owned.len(), second.owned.len()), (1, 1));
    let mut all = [&first.numbers[..], &second.numbers[..]].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..100), "every record once");
}

#[tokio::test]
async fn reading_stops_at_the_bound_and_goes_on_when_records_are_let_go() {
    const RECORDS: u32 = 4_000;
    const ROOM: u32 = 50;
    let cluster = EmbeddedCluster::start(3, &[TOPIC]).unwrap();
    publish_numbers(&cluster, 0..RECORDS).await;
    let each = u32::try_from(RECORD_OVERHEAD_BYTES).unwrap() + 8;
    let mut member = Member::join(&cluster, ROOM * each);
    let budget = Arc::clone(&member.consumer.shared.budget);
    let mut held: Vec<Record> = Vec::new();
    for _ in 0..5 {
        within(async {
            while budget.free() >= each {
                held.extend(member.step().await);
            }
        })
        .await;
        // What is on its way still comes, and then nothing.
        while let Ok(step) = timeout(Duration::from_millis(300), member.step()).await {
            held.extend(step);
        }
        let bytes: usize = held
            .iter()
            .map(|record| record.bytes() + RECORD_OVERHEAD_BYTES)
            .sum();
        assert!(bytes <= (ROOM * each) as usize, "{bytes} in {held:?}");
        assert!(held.len() >= ROOM as usize, "{held:?}");
        held.clear();
    }
    within(async {
        while member.numbers.len() < RECORDS as usize {
            drop(member.step().await);
        }
    })
    .await;
    let mut all = std::mem::take(&mut member.numbers);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..RECORDS), "every record once");
    member.consumer.close(LEAVE).await.unwrap();
    assert_eq!(budget.free(), ROOM * each, "all of the bound is free again");
}

#[tokio::test]
async fn a_record_larger_than_the_bound_comes_alone() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    let large = (0..3u32).map(|n| {
        let mut value = n.to_be_bytes().to_vec();
        value.resize(10_000, 0);
        ("k".to_owned(), value)
    });
    publish(&cluster, large).await;
    let mut consumer = Consumer::subscribe(&cluster.settings(), "group", TOPIC, 1_000).unwrap();
    let Event::Assigned { reply, .. } = within(consumer.next()).await else {
        panic!("nothing comes before the assignment");
    };
    reply.start_at(vec![(0, None)]);
    for offset in 0..3 {
        let Event::Record(record) = within(consumer.next()).await else {
            panic!("a record follows");
        };
        assert_eq!(record.offset, offset);
        let early = timeout(Duration::from_millis(300), consumer.next()).await;
        assert!(early.is_err(), "{early:?}");
    }
}

#[tokio::test]
async fn a_dead_letter_keeps_the_record_and_says_why() {
    let topics = Topics::named(TOPIC);
    let cluster = EmbeddedCluster::start(1, &topics.all()).unwrap();
    let publisher = Publisher::start(&cluster.settings()).unwrap();
    let headers: [(&str, &[u8]); 2] = [("ce_id", b"1"), (header::DEAD_LETTER_REASON, b"earlier")];
    let message = Message {
        topic: TOPIC,
        key: Some(b"conv"),
        value: b"body",
        headers: &headers,
    };
    publisher.publish(&message).await.unwrap();
    let mut consumer = Consumer::subscribe(&cluster.settings(), "group", TOPIC, ROOMY).unwrap();
    let Event::Assigned { reply, .. } = within(consumer.next()).await else {
        panic!("nothing comes before the assignment");
    };
    reply.start_at(vec![(0, None)]);
    let Event::Record(record) = within(consumer.next()).await else {
        panic!("a record follows");
    };
    let letter = DeadLetter {
        reason: "malformed",
        stage: "enrich",
        attempts: 3,
        response: Some(b"<html>"),
    };
    publisher
        .dead_letter(&topics, &record, &letter)
        .await
        .unwrap();

    let read = read_back(&cluster, &topics.dead_letters, 1).await;
    assert_eq!(read[0].key.as_deref(), Some(&b"conv"[..]));
    assert_eq!(read[0].value, b"body");
    let expected = [
        ("ce_id", "1"),
        (header::DEAD_LETTER_REASON, "malformed"),
        (header::DEAD_LETTER_STAGE, "enrich"),
        (header::DEAD_LETTER_ATTEMPTS, "3"),
        (header::DEAD_LETTER_TOPIC, TOPIC),
        (header::DEAD_LETTER_PARTITION, "0"),
        (header::DEAD_LETTER_OFFSET, "0"),
        (header::DEAD_LETTER_RESPONSE, "<html>"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect();
    assert_eq!(read[0].headers, expected);
}

async fn failure_from(cluster: &EmbeddedCluster, partitions: i32, next: i64) -> Error {
    let mut consumer = Consumer::subscribe(&cluster.settings(), "group", TOPIC, ROOMY).unwrap();
    within(async {
        loop {
            match consumer.next().await {
                Event::Assigned { reply, .. } => {
                    let last = partitions - 1;
                    let start = |p| (p, (p == last).then_some(next));
                    reply.start_at((0..partitions).map(start).collect());
                }
                Event::Failed(error) => return error,
                Event::Record(record) => assert_ne!(record.partition, partitions - 1),
                _ => {}
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_position_past_the_end_is_named_and_nothing_is_read() {
    let cluster = EmbeddedCluster::start(2, &[TOPIC]).unwrap();
    let error = failure_from(&cluster, 2, 17).await;
    let range = OutOfRange {
        partition: 1,
        wanted: 17,
        low: 0,
        high: 0,
    };
    assert!(error.to_string().contains(&range.to_string()), "{error}");
    assert!(error.to_string().contains("17 records short"), "{error}");
    assert!(error.to_string().contains("another --group"), "{error}");
}

#[tokio::test]
async fn records_deleted_unread_are_named_exactly() {
    use rand::{Rng, SeedableRng};
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let incompressible = (0..80).map(|n: u32| {
        let mut value = vec![0; 100_000];
        random.fill(&mut value[..]);
        (n.to_string(), value)
    });
    publish(&cluster, incompressible).await;
    let error = failure_from(&cluster, 1, 2).await;
    let Error::OffsetOutOfRange { missing, .. } = &error else {
        panic!("the records are gone: {error}");
    };
    let low = missing[0].low;
    let want = OutOfRange {
        partition: 0,
        wanted: 2,
        low,
        high: 80,
    };
    assert_eq!(missing[..], [want]);
    assert!(low > 2, "{low}");
    let command = format!("--accept-gap 0:2..{low}");
    assert!(error.to_string().contains(&command), "{error}");
}

#[tokio::test]
async fn an_outage_is_reported_and_consuming_goes_on_by_itself() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    publish_numbers(&cluster, 0..1).await;
    let mut member = Member::join(&cluster, ROOMY);
    within(async { while member.step().await.is_none() {} }).await;
    cluster.go_down();
    let event = within(member.consumer.next()).await;
    assert!(
        matches!(&event, Event::Unreachable(reason) if !reason.is_empty()),
        "{event:?}"
    );
    cluster.come_up();
    publish_numbers(&cluster, 1..2).await;
    within(async { while member.step().await.is_none() {} }).await;
    assert_eq!(member.numbers, [0, 1]);
}

#[tokio::test]
async fn partitions_that_were_lost_say_so() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    let mut consumer = Consumer::subscribe(&cluster.settings(), "group", TOPIC, ROOMY).unwrap();
    let Event::Assigned { reply, .. } = within(consumer.next()).await else {
        panic!("nothing comes before the assignment");
    };
    reply.start_at(vec![(0, None)]);
    // The answer was taken when the partition is ours.
    until("it is assigned", || consumer.shared.positions().len() == 1).await;
    cluster.go_down();
    within(async {
        loop {
            match consumer.next().await {
                Event::Unreachable(_) => {}
                Event::Revoked {
                    partitions,
                    lost: true,
                    reply,
                } => {
                    reply.done();
                    break assert_eq!(partitions, [0]);
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    cluster.come_up();
    let event = within(async {
        loop {
            match consumer.next().await {
                Event::Unreachable(_) => {}
                other => break other,
            }
        }
    })
    .await;
    assert!(matches!(event, Event::Assigned { .. }), "{event:?}");
}

#[tokio::test]
async fn without_a_position_nothing_is_read() {
    let cluster = EmbeddedCluster::start(2, &[TOPIC]).unwrap();
    publish_numbers(&cluster, 0..10).await;
    let mut consumer = Consumer::subscribe(&cluster.settings(), "group", TOPIC, ROOMY).unwrap();
    let Event::Assigned { reply, .. } = within(consumer.next()).await else {
        panic!("nothing comes before the assignment");
    };
    drop(reply);
    let event = within(consumer.next()).await;
    let Event::Failed(Error::NoPositions { partitions }) = event else {
        panic!("{event:?}");
    };
    assert_eq!(partitions, [0, 1]);
    let silence = timeout(Duration::from_millis(500), consumer.next()).await;
    assert!(silence.is_err(), "{silence:?}");
}

#[tokio::test]
async fn an_unknown_topic_fails() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    let mut consumer = Consumer::subscribe(&cluster.settings(), "group", "other", ROOMY).unwrap();
    let event = within(consumer.next()).await;
    let Event::Failed(Error::UnknownTopic { topic }) = event else {
        panic!("{event:?}");
    };
    assert_eq!(topic, "other");
}

#[tokio::test]
async fn close_is_bounded_also_without_brokers_and_with_an_open_question() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    let mut asked = Consumer::subscribe(&cluster.settings(), "group", TOPIC, ROOMY).unwrap();
    let question = within(asked.next()).await;
    assert!(matches!(question, Event::Assigned { .. }), "{question:?}");
    asked.close(LEAVE).await.unwrap();

    let mut member = Member::join(&cluster, ROOMY);
    member.owns(1).await;
    cluster.go_down();
    let start = Instant::now();
    let closed = member.consumer.close(LEAVE).await;
    assert!(
        start.elapsed() < LEAVE + Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    closed.unwrap();
}
