//! The producer against the embedded cluster: order, doubt, faults, close.

use super::*;
use crate::topic::notify::raise_fatal_error;
use crate::topic::testing::{read_back, until, within};
use crate::topic::{EmbeddedCluster, MESSAGE_TIMEOUT};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::time::Instant;

const TOPIC: &str = "events";
/// librdkafka looks for records that are too old once a second.
const SCAN: Duration = Duration::from_millis(1_200);

fn message<'a>(key: &'a [u8], value: &'a [u8]) -> Message<'a> {
    Message {
        topic: TOPIC,
        key: Some(key),
        value,
        headers: &[],
    }
}

fn started(partitions: i32) -> (EmbeddedCluster, Publisher) {
    let cluster = EmbeddedCluster::start(partitions, &[TOPIC]).unwrap();
    let publisher = Publisher::start(&cluster.settings()).unwrap();
    (cluster, publisher)
}

fn slots(publisher: &Publisher) -> (usize, usize) {
    let producer = publisher.0.core.producer().unwrap();
    let slots = lock(&producer.client().context().deliveries.slots);
    (slots.in_flight, slots.slots.len() - slots.free.len())
}

#[tokio::test]
async fn bytes_arrive_as_they_were() {
    let (cluster, publisher) = started(1);
    let headers: [(&str, &[u8]); 3] = [("a", b"\xff\0"), ("empty", b""), ("a", b"second")];
    let published = Message {
        headers: &headers,
        ..message(b"k\0\xff", b"v\0\xfe")
    };
    publisher.publish(&published).await.unwrap();
    let keyless = Message {
        key: None,
        value: b"",
        headers: &[],
        ..published
    };
    publisher.publish(&keyless).await.unwrap();
    publisher.close(Duration::from_secs(5)).await.unwrap();

    let read = read_back(&cluster, TOPIC, 2).await;
    assert_eq!(read[0].key.as_deref(), Some(&b"k\0\xff"[..]));
    assert_eq!(read[0].value, b"v\0\xfe");
    let expected: Vec<_> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
        .collect();
    assert_eq!(read[0].headers, expected);
    assert_eq!(
        (read[1].key.as_deref(), &read[1].value[..]),
        (None, &b""[..])
    );
}

async fn ten_thousand_in_order() {
    const KEYS: usize = 100;
    const EACH: usize = 100;
    let (cluster, publisher) = started(4);
    let acknowledgements: Vec<_> = (0..KEYS * EACH)
        .map(|n| {
            let (key, value) = ((n % KEYS).to_string(), (n / KEYS).to_string());
            publisher.publish(&message(key.as_bytes(), value.as_bytes()))
        })
        .collect();
    for acknowledgement in acknowledgements {
        within(acknowledgement).await.unwrap();
    }
    assert_eq!(slots(&publisher), (0, 0));
    publisher.close(Duration::from_secs(5)).await.unwrap();

    let mut next = [0; KEYS];
    for record in read_back(&cluster, TOPIC, KEYS * EACH).await {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).parse::<usize>().unwrap();
        let key = text(&record.key.unwrap());
        assert_eq!(text(&record.value), next[key], "key {key}");
        next[key] += 1;
    }
    assert_eq!(next, [EACH; KEYS]);
}

#[tokio::test]
async fn ten_thousand_are_acknowledged_and_in_order_per_key_on_one_thread() {
    ten_thousand_in_order().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_are_acknowledged_and_in_order_per_key_on_two_threads() {
    ten_thousand_in_order().await;
}

#[tokio::test]
async fn without_a_broker_a_publish_ends_in_time_and_may_be_sent_again_after() {
    let (cluster, publisher) = started(1);
    publisher.publish(&message(b"k", b"before")).await.unwrap();
    cluster.go_down();
    let start = Instant::now();
    let error = publisher
        .publish(&message(b"k", b"lost"))
        .await
        .unwrap_err();
    let waited = start.elapsed();
    assert!(error.is_ambiguous(), "{error:?}");
    assert!(waited < MESSAGE_TIMEOUT + SCAN, "{waited:?}");
    cluster.come_up();
    let start = Instant::now();
    publisher.publish(&message(b"k", b"after")).await.unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    cluster.go_down();
    let mut settings = cluster.settings();
    settings
        .properties
        .push(("queue.buffering.max.messages".into(), "10".into()));
    let publisher = Publisher::start(&settings).unwrap();
    let queued: Vec<_> = (0..10)
        .map(|_| publisher.publish(&message(b"k", b"v")))
        .collect();
    assert_eq!(publisher.in_flight(), 10);
    let start = Instant::now();
    assert_eq!(
        publisher.publish(&message(b"k", b"v")).await,
        Err(PublishError::QueueFull)
    );
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    for acknowledgement in queued {
        assert!(within(acknowledgement).await.unwrap_err().is_ambiguous());
    }
    assert_eq!(slots(&publisher), (0, 0));
    publisher
        .publish(&Message {
            topic: "no\0topic",
            ..message(b"k", b"v")
        })
        .await
        .unwrap_err();
    assert_eq!(
        slots(&publisher),
        (0, 0),
        "a record that was not taken frees its slot"
    );
}

#[tokio::test]
async fn a_dropped_acknowledgement_frees_its_slot_after_delivery() {
    let (_cluster, publisher) = started(1);
    for _ in 0..100 {
        drop(publisher.publish(&message(b"k", b"v")));
    }
    until("all are delivered", || slots(&publisher) == (0, 0)).await;
    let acknowledgement = publisher.publish(&message(b"k", b"v"));
    until("it is delivered", || publisher.in_flight() == 0).await;
    assert_eq!(slots(&publisher), (0, 1));
    drop(acknowledgement);
    assert_eq!(slots(&publisher), (0, 0));
}

#[tokio::test]
async fn a_refusal_of_the_broker_is_no_doubt() {
    let (cluster, publisher) = started(1);
    cluster.mock().request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
    );
    let error = within(publisher.publish(&message(b"k", b"v")))
        .await
        .unwrap_err();
    assert_eq!(
        error,
        PublishError::Refused(RDKafkaErrorCode::TopicAuthorizationFailed)
    );
    // The client remembers the refusal until it sees the topic's metadata again.
    publisher
        .check(&[TOPIC], Duration::from_secs(5))
        .await
        .unwrap();
    publisher.publish(&message(b"k", b"v")).await.unwrap();
}

/// A broker that has just become the leader refuses the first batch of a producer that it does not know, and takes the
/// second, as its numbers are new to it. Whoever believes that the first must have been stored then has lost it.
#[tokio::test]
async fn a_refused_batch_is_not_taken_for_stored_because_the_next_one_was() {
    // Two keys of two partitions, by CRC-32.
    let (cluster, publisher) = started(2);
    let (here, there) = (b"k", b"d");
    // The producer is known and knows where the partition is, which has not heard of it.
    within(publisher.publish(&message(there, b"before")))
        .await
        .unwrap();
    cluster.mock().request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION],
    );
    cluster.answer_after(Duration::from_millis(60));
    let mut first = std::pin::pin!(within(publisher.publish(&message(here, b"first"))));
    let mut further = Vec::new();
    // Batches of their own, of which some are published while the first has no answer.
    let mut pauses = tokio::time::interval(Duration::from_millis(20));
    let answer = loop {
        tokio::select! {
            biased;
            answer = first.as_mut() => break answer,
            _ = pauses.tick() => further.push(publisher.publish(&message(here, b"further"))),
        }
    };
    let mut answers = vec![(&b"first"[..], answer)];
    for answer in further {
        answers.push((b"further", within(answer).await));
    }
    assert_eq!(answers[0].1, Err(PublishError::Unproven));
    let sent = answers.len() + 1;
    for (value, answer) in answers {
        if answer.is_err() {
            assert_eq!(answer, Err(PublishError::Unproven));
            within(publisher.publish(&message(here, value)))
                .await
                .unwrap();
        }
    }
    let read = read_back(&cluster, TOPIC, sent).await;
    assert!(read.iter().any(|record| record.value == b"first"));
}

/// A broker that calls a batch a repeat tells no offset, and the client counts on from there.
#[tokio::test]
async fn a_repeat_is_not_proof_of_storage() {
    let (cluster, publisher) = started(1);
    publisher.publish(&message(b"k", b"before")).await.unwrap();
    cluster.doubt_produce();
    let batch: Vec<_> = (0..3)
        .map(|_| publisher.publish(&message(b"k", b"doubtful")))
        .collect();
    for doubtful in batch {
        let doubtful = within(doubtful).await;
        assert_eq!(doubtful, Err(PublishError::Unproven));
        assert!(doubtful.unwrap_err().is_ambiguous());
    }
    within(publisher.publish(&message(b"k", b"after")))
        .await
        .unwrap();
}

/// Nobody is to be told twice: whoever dropped the acknowledgement has heard an error already.
#[tokio::test]
async fn close_does_not_count_what_nobody_waits_for() {
    let (cluster, publisher) = started(1);
    cluster.go_down();
    for _ in 0..7 {
        drop(publisher.publish(&message(b"k", b"v")));
    }
    publisher.close(Duration::from_millis(100)).await.unwrap();
}

#[tokio::test]
async fn passing_errors_of_the_broker_are_retried_without_repeats() {
    let (cluster, publisher) = started(1);
    cluster.mock().request_errors(
        RDKafkaApiKey::Produce,
        &[
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
        ],
    );
    within(publisher.publish(&message(b"k", b"1")))
        .await
        .unwrap();
    within(publisher.publish(&message(b"k", b"2")))
        .await
        .unwrap();
    let values: Vec<_> = read_back(&cluster, TOPIC, 2)
        .await
        .into_iter()
        .map(|record| record.value)
        .collect();
    assert_eq!(values, [b"1", b"2"]);
}

#[tokio::test]
async fn a_fatal_error_replaces_the_producer() {
    let (cluster, publisher) = started(1);
    publisher.publish(&message(b"k", b"before")).await.unwrap();
    cluster.go_down();
    let on_its_way = publisher.publish(&message(b"k", b"doubtful"));
    let failed = publisher.0.core.producer().unwrap();
    raise_fatal_error(failed.client());
    let error = within(on_its_way).await.unwrap_err();
    assert!(error.is_ambiguous(), "{error:?}");
    let current = || publisher.0.core.producer().unwrap();
    until("the producer is replaced", || {
        !Arc::ptr_eq(&current(), &failed)
    })
    .await;
    cluster.come_up();
    within(publisher.publish(&message(b"k", b"after")))
        .await
        .unwrap();
    publisher.close(Duration::from_secs(5)).await.unwrap();
}

/// The broker itself reports a gap in the sequence numbers, which ends an idempotent producer.
#[tokio::test]
async fn a_gap_that_the_broker_reports_is_doubt_for_the_sender_and_a_new_producer() {
    let (cluster, publisher) = started(1);
    publisher.publish(&message(b"k", b"before")).await.unwrap();
    let gap = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    (cluster.mock()).request_errors(RDKafkaApiKey::Produce, &[gap]);
    let failed = publisher.0.core.producer().unwrap();
    let error = within(publisher.publish(&message(b"k", b"doubtful"))).await;
    assert!(error.unwrap_err().is_ambiguous());
    let current = || publisher.0.core.producer().unwrap();
    until("the producer is replaced", || {
        !Arc::ptr_eq(&current(), &failed)
    })
    .await;
    within(publisher.publish(&message(b"k", b"after")))
        .await
        .unwrap();
    publisher.close(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn close_flushes_what_is_queued() {
    let (cluster, publisher) = started(4);
    let other = publisher.clone();
    let queued: Vec<_> = (0..1_000u32)
        .map(|n| publisher.publish(&message(&n.to_be_bytes(), b"v")))
        .collect();
    publisher.close(Duration::from_secs(5)).await.unwrap();
    for acknowledgement in queued {
        within(acknowledgement).await.unwrap();
    }
    assert_eq!(read_back(&cluster, TOPIC, 1_000).await.len(), 1_000);
    let refused = other.publish(&message(b"k", b"v")).await;
    assert_eq!(refused, Err(PublishError::Closed));
    other.close(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn close_counts_what_it_could_not_flush_and_tells_the_senders() {
    let (cluster, publisher) = started(1);
    cluster.go_down();
    let queued: Vec<_> = (0..7)
        .map(|_| publisher.publish(&message(b"k", b"v")))
        .collect();
    let error = publisher
        .close(Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unflushed {
                unacknowledged: 7,
                failed: 0
            }
        ),
        "{error}"
    );
    for acknowledgement in queued {
        assert!(within(acknowledgement).await.unwrap_err().is_ambiguous());
    }
}

#[tokio::test]
async fn acknowledgements_end_when_the_publisher_is_dropped() {
    let (cluster, publisher) = started(1);
    cluster.go_down();
    let queued = publisher.publish(&message(b"k", b"v"));
    drop(publisher);
    assert!(within(queued).await.unwrap_err().is_ambiguous());
}

#[tokio::test]
async fn check_names_what_is_missing() {
    const SOON: Duration = Duration::from_millis(1_500);
    let (cluster, publisher) = started(2);
    publisher.check(&[TOPIC], SOON).await.unwrap();
    let error = publisher.check(&[TOPIC, "other"], SOON).await.unwrap_err();
    assert!(
        matches!(&error, Error::UnknownTopic { topic } if topic == "other"),
        "{error}"
    );
    cluster.mock().partition_leader(TOPIC, 1, None).unwrap();
    let error = publisher.check(&[TOPIC], SOON).await.unwrap_err();
    assert!(
        matches!(error, Error::NoLeader { partitions: 1, .. }),
        "{error}"
    );
    cluster.go_down();
    let error = publisher.check(&[TOPIC], SOON).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn an_event_from_before_the_first_wait_blocks_nothing() {
    let cluster = EmbeddedCluster::start(1, &[TOPIC]).unwrap();
    let mut settings = cluster.settings();
    // A consumer's property: librdkafka remarks on it while the producer is created.
    settings
        .properties
        .push(("fetch.min.bytes".into(), "1".into()));
    let publisher = Publisher::start(&settings).unwrap();
    within(publisher.publish(&message(b"k", b"v")))
        .await
        .unwrap();
}
