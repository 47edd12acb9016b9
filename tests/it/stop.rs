//! SIGTERM under load: what was answered 204 is in Kafka, and the process ends in time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::http::{pooled_client, post_callback};
use crate::harness::parts::Kafka;
use crate::harness::process::STOP_LIMIT;
use crate::harness::roles::{Receiver, TOPIC, callback};
use crate::harness::until;

/// Requests in flight at any moment.
const SENDERS: usize = 32;
/// Callbacks answered before the signal: enough that batches are on their way when it comes.
const BEFORE_SIGNAL: usize = 500;
/// Longest time to that many.
const LOAD_LIMIT: Duration = Duration::from_secs(60);
/// What a receiver that stops may answer besides 204.
const UNAVAILABLE: u16 = 503;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_stopped_under_load_loses_nothing_that_it_accepted() {
    let Some(kafka) = Kafka::start().await else {
        return;
    };
    let mut receiver = Receiver::start(&kafka).await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let client = pooled_client();
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (client, accepted) = (client.clone(), Arc::clone(&accepted));
            let address = receiver.address.clone();
            tokio::spawn(send_until_gone(client, address, sender, accepted))
        })
        .collect();
    until("callbacks are accepted", LOAD_LIMIT, async || {
        if let Some(status) = receiver.process.exited() {
            panic!("receive ended under load: {status}");
        }
        match accepted.load(Ordering::Relaxed) {
            enough if enough >= BEFORE_SIGNAL => Ok(()),
            few => Err(format!("{few} accepted")),
        }
    })
    .await;
    let signalled = Instant::now();
    receiver.process.stop().await;
    assert!(signalled.elapsed() <= STOP_LIMIT, "{signalled:?}");
    let mut answered = BTreeSet::new();
    for sender in senders {
        answered.extend(sender.await.unwrap());
    }
    assert!(answered.len() >= BEFORE_SIGNAL);
    let kept: BTreeSet<Vec<u8>> = kafka.records(TOPIC).into_iter().map(|r| r.value).collect();
    let lost: Vec<String> = answered
        .iter()
        .filter(|body| !kept.contains(body.as_bytes()))
        .cloned()
        .collect();
    assert!(lost.is_empty(), "answered 204 and not in Kafka: {lost:?}");
}

/// Sends callbacks one after the other until the receiver is no longer there; gives the bodies that were
/// answered 204. A request whose answer did not come may or may not be kept: it is not counted.
async fn send_until_gone(
    client: reqwest::Client,
    address: String,
    sender: usize,
    accepted: Arc<AtomicUsize>,
) -> Vec<String> {
    let mut answered = Vec::new();
    for n in 0.. {
        let body = json!({
            "eventType": "CONVERSATION_CREATED",
            "timestamp": "2026-11-22T10:00:00Z",
            "data": {"id": format!("conv_conversation_{sender}_{n}"), "status": "ACTIVE"},
        })
        .to_string();
        let request = callback(&address, body);
        match post_callback(&client, &request).await {
            Ok(204) => {
                accepted.fetch_add(1, Ordering::Relaxed);
                answered.push(request.body);
            }
            Ok(UNAVAILABLE) => {}
            Ok(status) => panic!("answered {status}"),
            Err(_) => break,
        }
    }
    answered
}
