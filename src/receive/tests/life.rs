//! The life of connections and of the whole edge: sharing one, waiting for one, stopping.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test]
async fn one_connection_carries_many_requests_in_order() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let mut client = server.connect().await;
    let bodies: Vec<_> = (0..5).map(|n| event(&format!("c{n}"))).collect();
    let unsigned = Wire::signed("{}").without("X-Twilio-Signature");
    let mut pipeline = Vec::new();
    for body in &bodies {
        pipeline.extend(Wire::signed(body.as_str()).bytes());
        pipeline.extend(unsigned.bytes());
    }
    // The last one is ambiguous: it ends the connection, and nothing behind it is read.
    pipeline.extend(unsigned.with("Host", "again").bytes());
    pipeline.extend(Wire::signed(event("smuggled")).bytes());
    client.send(&pipeline).await;
    for _ in &bodies {
        assert_eq!(client.status().await, 204);
        assert_eq!(client.status().await, 403);
    }
    assert_eq!(client.status().await, 400);
    assert!(client.is_closed().await);
    server.finish().await;
    let records = read_back(&cluster, &topics().events, bodies.len()).await;
    for (record, body) in records.iter().zip(&bodies) {
        assert_eq!(record.value, body.as_bytes());
    }
}

#[tokio::test]
async fn nothing_is_read_behind_a_chunked_request() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let mut client = server.connect().await;
    let chunked = Wire::signed(event("c1")).chunked(50).bytes();
    let behind = Wire::signed(event("c2")).bytes();
    client.send(&[chunked, behind].concat()).await;
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.closes()), (204, true));
    assert!(client.is_closed().await);
    server.finish().await;
    read_back(&cluster, &topics().events, 1).await;
}

#[tokio::test]
async fn a_body_may_wait_for_the_interim_answer() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let mut client = server.connect().await;
    let wire = Wire::signed(event("c1")).with("Expect", "100-continue");
    client.send(&wire.head()).await;
    assert_eq!(client.status().await, 100);
    client.send(&wire.body).await;
    assert_eq!(client.status().await, 204);
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_has_said_all_still_gets_its_answer() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let mut client = server.connect().await;
    client.send(&Wire::signed(event("c1")).bytes()).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.status().await, 204);
    assert!(client.is_closed().await);
    server.finish().await;
}

#[tokio::test]
async fn clients_above_the_limit_wait_their_turn() {
    let cluster = cluster();
    let server = Server::start_with(&cluster.settings(), 1).await;
    let mut first = server.connect().await;
    first.send(&Wire::signed(event("c1")).bytes()).await;
    assert_eq!(first.status().await, 204);
    let mut second = server.connect().await;
    second.send(&Wire::signed(event("c2")).bytes()).await;
    let early = tokio::time::timeout(Duration::from_millis(200), second.answer()).await;
    assert!(early.is_err(), "{early:?}");
    drop(first);
    assert_eq!(second.status().await, 204);
    server.finish().await;
}

/// Clients that have nothing to say do not keep out one that has; one whose request is in progress stays.
#[tokio::test]
async fn idle_and_dripping_clients_make_room_for_others() {
    let cluster = cluster();
    let server = Server::start_with(&cluster.settings(), 3).await;
    let mut idle = server.connect().await;
    idle.send(&Wire::signed(event("c1")).bytes()).await;
    assert_eq!(idle.status().await, 204);
    let mut dripping = server.connect().await;
    dripping.send(b"POST /").await;
    let mut busy = server.connect().await;
    let wire = Wire::signed(event("c2")).with("Expect", "100-continue");
    busy.send(&wire.head()).await;
    assert_eq!(busy.status().await, 100);
    let started = tokio::time::Instant::now();
    let mut others = Vec::new();
    for n in 0..2 {
        let mut other = server.connect().await;
        let wire = Wire::signed(event(&format!("other-{n}")));
        other.send(&wire.bytes()).await;
        assert_eq!(other.status().await, 204);
        others.push(other);
    }
    let took = started.elapsed();
    assert!(took < HEAD_TIME_LIMIT / 2, "{took:?}");
    assert!(idle.is_closed().await && dripping.is_closed().await);
    busy.send(&wire.body).await;
    assert_eq!(busy.status().await, 204);
    drop((others, busy));
    server.finish().await;
    read_back(&cluster, &topics().events, 4).await;
}

/// Where there is no room, a connection that is kept open after its answer keeps another out.
#[tokio::test]
async fn while_others_wait_an_answer_is_the_last_of_its_connection() {
    let cluster = cluster();
    let server = Server::start_with(&cluster.settings(), 1).await;
    let mut first = server.connect().await;
    let wire = Wire::signed(event("c1")).with("Expect", "100-continue");
    first.send(&wire.head()).await;
    assert_eq!(first.status().await, 100);
    let mut second = server.connect().await;
    second.send(&Wire::signed(event("c2")).bytes()).await;
    first.send(&wire.body).await;
    let answer = first.answer().await.unwrap();
    assert_eq!((answer.status, answer.closes()), (204, true));
    assert!(first.is_closed().await);
    // Now nobody waits.
    let answer = second.answer().await.unwrap();
    assert_eq!((answer.status, answer.closes()), (204, false));
    drop((first, second));
    server.finish().await;
    read_back(&cluster, &topics().events, 2).await;
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_finishes_what_is_in_flight() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let mut idle = server.connect().await;
    idle.send(&Wire::signed(event("c1")).bytes()).await;
    assert_eq!(idle.status().await, 204);
    let mut fresh = server.connect().await;
    let mut busy = server.connect().await;
    let wire = Wire::signed(event("c2")).with("Expect", "100-continue");
    busy.send(&wire.head()).await;
    assert_eq!(busy.status().await, 100);

    server.stop.request();
    let started = tokio::time::Instant::now();
    assert!(idle.is_closed().await);
    assert!(fresh.is_closed().await);
    assert!(started.elapsed() < Duration::from_secs(1));
    // Those who come now are turned away by the kernel, once the listener is gone.
    drop((idle, fresh));
    busy.send(&wire.body).await;
    let answer = busy.answer().await.unwrap();
    assert_eq!((answer.status, answer.closes()), (204, true));
    assert!(busy.is_closed().await);
    drop(busy);
    let address = server.address;
    server.finish().await;
    assert!(TcpStream::connect(address).await.is_err());
    read_back(&cluster, &topics().events, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_loses_nothing_that_was_answered_204() {
    const CLIENTS: usize = 16;
    const ANSWERED_BEFORE_STOP: usize = 300;
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = server.connect().await;
        let answered = answered.clone();
        clients.spawn(async move {
            let mut kept = Vec::new();
            for n in 0.. {
                let body = event(&format!("c-{number}-{n}"));
                client.send(&Wire::signed(body.as_str()).bytes()).await;
                match client.answer().await {
                    Some(answer) if answer.status == 204 => kept.push(body),
                    Some(answer) => panic!("{answer:?}"),
                    None => break,
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
            kept
        });
    }
    within(async {
        while answered.load(Ordering::Relaxed) < ANSWERED_BEFORE_STOP {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.finish().await;
    let kept: BTreeSet<_> = clients.join_all().await.into_iter().flatten().collect();
    assert!(kept.len() >= ANSWERED_BEFORE_STOP);
    // Nor is there a record whose answer the stop cut off: each got its 204 before its connection closed.
    let records = read_back(&cluster, &topics().events, kept.len()).await;
    let stored: BTreeSet<_> = (records.iter())
        .map(|record| String::from_utf8(record.value.to_vec()).unwrap())
        .collect();
    assert_eq!(stored, kept);
}

#[tokio::test]
async fn an_outage_of_kafka_is_503_and_then_over() {
    let cluster = cluster();
    let server = Server::start(&cluster.settings()).await;
    let mut client = server.connect().await;
    client.send(&Wire::signed(event("c1")).bytes()).await;
    assert_eq!(client.status().await, 204);
    cluster.go_down();
    client.send(&Wire::signed(event("c2")).bytes()).await;
    assert_eq!(client.status().await, 503);
    cluster.come_up();
    let again = async {
        loop {
            client.send(&Wire::signed(event("c3")).bytes()).await;
            if client.status().await == 204 {
                break;
            }
        }
    };
    within(again).await;
    server.finish().await;
}
