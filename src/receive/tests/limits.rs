//! Time limits, on a paused clock: nothing here needs Kafka, which is out of reach.

use tokio::time::Instant;

use super::*;

fn unreachable() -> crate::topic::Settings {
    crate::topic::Settings {
        brokers: "127.0.0.1:1".to_owned(),
        properties: Vec::new(),
        cluster: None,
    }
}

/// Seconds until the server closes on a client that sends `first`, then a byte of `drip` every second.
async fn closes_after(first: &[u8], drip: &[u8]) -> (u64, Vec<u16>) {
    let server = Server::start(&unreachable()).await;
    let mut client = server.connect().await;
    client.send(first).await;
    let started = Instant::now();
    let mut statuses = Vec::new();
    let mut drip = drip.iter();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            answer = client.answer() => match answer {
                Some(answer) => statuses.push(answer.status),
                None => return (started.elapsed().as_secs(), statuses),
            },
            _ = tick.tick() => if let Some(byte) = drip.next() {
                client.send(&[*byte]).await;
            },
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_closed() {
    let (seconds, statuses) = closes_after(b"", b"").await;
    assert_eq!((seconds, statuses), (HEAD_TIME_LIMIT.as_secs(), vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_dripping_head_is_closed() {
    let (seconds, statuses) = closes_after(b"POST / HTTP/1.1\r\n", b"Host: a-long-name").await;
    assert_eq!((seconds, statuses), (HEAD_TIME_LIMIT.as_secs(), vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let refused = Wire::signed("{}").without("X-Twilio-Signature");
    let (seconds, statuses) = closes_after(&refused.bytes(), b"").await;
    assert_eq!((seconds, statuses), (HEAD_TIME_LIMIT.as_secs(), vec![403]));
}

#[tokio::test(start_paused = true)]
async fn a_dripping_body_is_answered_408() {
    let wire = Wire::signed(event("c1"));
    let (seconds, statuses) = closes_after(&wire.head(), &wire.body).await;
    assert_eq!((seconds, statuses), (BODY_TIME_LIMIT.as_secs(), vec![408]));
}

/// A body that takes its time leaves Kafka what remains of the answer's.
#[tokio::test(start_paused = true)]
async fn body_and_kafka_share_one_deadline() {
    let server = Server::start(&unreachable()).await;
    let mut client = server.connect().await;
    let wire = Wire::signed(event("c1")).with("Expect", "100-continue");
    client.send(&wire.head()).await;
    assert_eq!(client.status().await, 100);
    let started = Instant::now();
    let spent = BODY_TIME_LIMIT - Duration::from_millis(100);
    tokio::time::advance(spent).await;
    client.send(&wire.body).await;
    assert_eq!(client.status().await, 503);
    let took = started.elapsed();
    assert!(
        spent < took && took <= ANSWER_TIME_LIMIT + Duration::from_millis(50),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_body_cut_short_is_answered_400() {
    let server = Server::start(&unreachable()).await;
    let mut client = server.connect().await;
    let wire = Wire::signed(event("c1")).bytes();
    client.send(&wire[..wire.len() - 1]).await;
    client.stream.shutdown().await.unwrap();
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.closes()), (400, true));
}

#[tokio::test]
async fn without_kafka_the_sender_is_asked_to_retry() {
    let server = Server::start(&unreachable()).await;
    let mut client = server.connect().await;
    let started = Instant::now();
    client.send(&Wire::signed(event("c1")).bytes()).await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn large_bodies_have_a_share_of_memory_and_small_ones_need_none() {
    let server = Server::start(&unreachable()).await;
    let large = Wire::signed("x").instead("Content-Length", MAX_BODY_BYTES.to_string());
    let mut holders = Vec::new();
    let refused = loop {
        let mut client = server.connect().await;
        client
            .send(&large.clone().with("Expect", "100-continue").head())
            .await;
        match client.status().await {
            // Its body is awaited, so its share is taken.
            100 => holders.push(client),
            status => break status,
        }
        assert!(holders.len() <= 64 * 1024 / 256, "the share has a bound");
    };
    assert_eq!((refused, holders.len()), (503, 256));
    let mut client = server.connect().await;
    let small = Wire::signed("{}").without("X-Twilio-Signature");
    client.send(&small.bytes()).await;
    assert_eq!(client.status().await, 403);
}
