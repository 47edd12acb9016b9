//! The edge from a client's side: raw sockets against a real listener, read back from a real topic.

mod corpus;
mod life;
mod limits;
mod spooled;

use std::collections::HashMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::signature::{Algorithm, PublicUrl, SigningKey, sign, signed_url};
use crate::topic::{Consumer, EmbeddedCluster, Event, Record};

const PUBLIC_URL: &str = "https://hooks.example/twilio/conversations";
const PATH: &str = "/twilio/conversations";
const SECRET: &str = "a-secret-for-tests";

/// Longest wait for anything in a test.
const PATIENCE: Duration = Duration::from_secs(20);

fn key() -> SigningKey {
    SigningKey::new(Algorithm::Sha1, SECRET).unwrap()
}

fn topics() -> Topics {
    Topics::named("test.events")
}

fn cluster() -> EmbeddedCluster {
    EmbeddedCluster::start(1, &topics().all()).unwrap()
}

/// An edge that serves, with its own publisher.
struct Server {
    address: std::net::SocketAddr,
    publisher: Publisher,
    stop: Stop,
    served: JoinHandle<Result<(), Error>>,
}

impl Server {
    async fn start(kafka: &crate::topic::Settings) -> Server {
        Server::start_with(kafka, DEFAULT_MAX_CONNECTIONS).await
    }

    async fn start_with(kafka: &crate::topic::Settings, max_connections: usize) -> Server {
        Server::start_spooled(kafka, max_connections, None).await
    }

    async fn start_spooled(
        kafka: &crate::topic::Settings,
        max_connections: usize,
        spool: Option<Spool>,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            verifier: Verifier::new(PublicUrl::parse(PUBLIC_URL).unwrap(), vec![key()]).unwrap(),
            topics: topics(),
            max_connections,
            spool,
        };
        let publisher = Publisher::start(kafka).unwrap();
        let stop = Stop::new();
        let clock = Clock::from_fn(|| "2026-11-22T10:00:00.123456Z".parse().unwrap());
        let served = tokio::spawn(serve(
            listener,
            settings,
            publisher.clone(),
            clock,
            stop.clone(),
        ));
        Server {
            address,
            publisher,
            stop,
            served,
        }
    }

    async fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Client {
            stream,
            received: Vec::new(),
            bodiless: false,
        }
    }

    /// Stops and flushes, as `convolake receive` does.
    async fn finish(self) {
        self.stop.request();
        within(self.served).await.unwrap().unwrap();
        self.publisher.close(PATIENCE).await.unwrap();
    }
}

/// A client that decides every byte.
struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    /// Answers to HEAD announce a body and have none.
    bodiless: bool,
}

impl Client {
    /// The server may have refused and closed before it took everything.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = within(self.stream.write_all(bytes)).await;
    }

    /// The next answer, interim ones included; `None` when the server closed without one.
    async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = Answer::take(&mut self.received, self.bodiless) {
                return Some(answer);
            }
            match within(self.stream.read_buf(&mut self.received)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn status(&mut self) -> u16 {
        self.answer().await.map_or(0, |answer| answer.status)
    }

    /// Whether the server closes, with nothing more said.
    async fn is_closed(&mut self) -> bool {
        self.received.is_empty() && self.answer().await.is_none() && self.received.is_empty()
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn take(received: &mut Vec<u8>, bodiless: bool) -> Option<Answer> {
        let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(received[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers: HashMap<_, _> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers
            .get("content-length")
            .filter(|_| !bodiless)
            .map_or(0, |length| length.parse().unwrap());
        let body = received.get(end + 4..end + 4 + length)?.to_vec();
        received.drain(..end + 4 + length);
        Some(Answer {
            status: status.parse().unwrap(),
            headers,
            body,
        })
    }

    fn closes(&self) -> bool {
        self.headers
            .get("connection")
            .is_some_and(|value| value == "close")
    }
}

/// A request that is right in all respects, until a test changes one.
#[derive(Clone)]
struct Wire {
    method: &'static str,
    target: String,
    version: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Wire {
    /// A signed JSON callback.
    fn signed(body: impl Into<Vec<u8>>) -> Wire {
        let body = body.into();
        let url = signed_url(PUBLIC_URL, &body);
        Wire {
            method: "POST",
            target: target_of(&url),
            version: "HTTP/1.1",
            headers: vec![
                ("Host", "hooks.example".to_owned()),
                ("Content-Type", "application/json".to_owned()),
                ("Content-Length", body.len().to_string()),
                ("X-Twilio-Signature", sign(&key(), &url)),
            ],
            body,
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Wire {
        self.headers.push((name, value.into()));
        self
    }

    fn without(mut self, name: &str) -> Wire {
        self.headers.retain(|header| header.0 != name);
        self
    }

    fn instead(self, name: &'static str, value: impl Into<String>) -> Wire {
        self.without(name).with(name, value)
    }

    fn to(mut self, target: impl Into<String>) -> Wire {
        self.target = target.into();
        self
    }

    fn method(mut self, method: &'static str) -> Wire {
        self.method = method;
        self
    }

    /// The same body in chunks of `size`.
    fn chunked(self, size: usize) -> Wire {
        let mut wire = self
            .without("Content-Length")
            .with("Transfer-Encoding", "chunked");
        let mut chunks = Vec::new();
        for chunk in wire.body.chunks(size) {
            chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunks.extend_from_slice(chunk);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        wire.body = chunks;
        wire
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        [self.head(), self.body.clone()].concat()
    }
}

fn target_of(url: &str) -> String {
    let origin = PUBLIC_URL.len() - PATH.len();
    url[origin..].to_owned()
}

/// A body that is an event of `conversation`.
fn event(conversation: &str) -> String {
    format!(
        r#"{{"eventType":"CONVERSATION_UPDATED","timestamp":"2026-11-22T09:59:59Z","data":{{"id":"{conversation}","accountId":"AC1","status":"CLOSED"}}}}"#
    )
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it ends in time")
}

/// All records of `topic`, of which there must be `expected` and no more.
async fn read_back(cluster: &EmbeddedCluster, topic: &str, expected: usize) -> Vec<Record> {
    let group = format!("read-back-{topic}");
    let mut consumer = Consumer::subscribe(&cluster.settings(), &group, topic, 1 << 26).unwrap();
    let mut records = Vec::new();
    while records.len() < expected {
        match within(consumer.next()).await {
            Event::Assigned { partitions, reply } => {
                reply.start_at(partitions.into_iter().map(|p| (p, None)).collect());
            }
            Event::Record(record) => records.push(record),
            Event::Revoked { reply, .. } => reply.done(),
            Event::Unreachable(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    let watermarks = within(consumer.watermarks()).await.unwrap();
    let stored: i64 = watermarks.iter().map(|w| w.high - w.low).sum();
    assert_eq!(usize::try_from(stored).unwrap(), expected, "in {topic}");
    consumer.close(PATIENCE).await.unwrap();
    records
}
