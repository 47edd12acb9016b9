//! A small HTTP/1.1 server for tests: every answer is bytes that the test decides, so that it can cut,
//! hang, lie about lengths and inflate without end. Each connection carries one request.
//!
//! Leaves out what a real service has: keep-alive, TLS, HTTP/2, authentication.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use url::Url;

/// What a test answers with.
pub(crate) enum Reply {
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// Bytes that the test sends when it likes.
    Held(oneshot::Receiver<Vec<u8>>),
    /// Nothing; the connection stays open.
    Hang,
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Path and query, as on the wire.
    pub(crate) target: String,
    /// The whole head.
    pub(crate) head: String,
    pub(crate) at: Instant,
}

impl Seen {
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let url = Url::parse(&format!("http://h{}", self.target)).unwrap();
        url.query_pairs()
            .find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    }
}

pub(crate) struct Server {
    pub(crate) url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `answer` gets the request and how many came to the same path before.
    pub(crate) async fn start(
        answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), Arc::clone(&seen));
        let counts = Arc::new(Mutex::new(HashMap::new()));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log, counts) = (answer.clone(), log.clone(), counts.clone());
                connections.spawn(async move {
                    let (mut stream, request) = read_head(stream).await?;
                    log.lock().unwrap().push(request.clone());
                    let nth = {
                        let mut counts = counts.lock().unwrap();
                        let count: &mut usize =
                            counts.entry(request.path().to_owned()).or_default();
                        *count += 1;
                        *count - 1
                    };
                    match answer(&request, nth) {
                        // The client may have left already, or leave in the middle of a bomb.
                        Reply::Bytes(bytes) => _ = stream.write_all(&bytes).await,
                        Reply::Held(bytes) => _ = stream.write_all(&bytes.await.ok()?).await,
                        Reply::Hang => std::future::pending().await,
                    }
                    Some(())
                });
            }
        });
        Server { url, seen, task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn read_head(mut stream: TcpStream) -> Option<(TcpStream, Seen)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let at = Instant::now();
    Some((stream, Seen { target, head, at }))
}

/// A whole answer with a JSON body.
pub(crate) fn json(status: u16, headers: &[(&str, &str)], body: &Value) -> Reply {
    let mut all = vec![("content-type", "application/json")];
    all.extend_from_slice(headers);
    raw(status, &all, body.to_string().as_bytes())
}

/// 200 with a JSON body.
pub(crate) fn ok(body: &Value) -> Reply {
    json(200, &[], body)
}

/// A JSON error.
pub(crate) fn error(status: u16) -> Reply {
    let body = serde_json::json!({"code": 20000, "message": "no", "status": status});
    json(status, &[], &body)
}

/// A whole answer with any body.
pub(crate) fn raw(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    Reply::Bytes(bytes(status, headers, body.len(), body))
}

/// An answer whose body ends after half of what its length says.
pub(crate) fn cut(body: &Value) -> Reply {
    let body = body.to_string();
    let headers = [("content-type", "application/json")];
    Reply::Bytes(bytes(
        200,
        &headers,
        body.len(),
        &body.as_bytes()[..body.len() / 2],
    ))
}

fn bytes(status: u16, headers: &[(&str, &str)], length: usize, body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    answer.push_str("\r\n");
    let mut answer = answer.into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// `body` as a gzip member of one stored block (RFC 1951, 3.2.4).
pub(crate) fn gzip(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend(body);
    let crc = !body.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    out.extend(crc.to_le_bytes());
    out.extend(u32::from(length).to_le_bytes());
    out
}

/// A gzip member that inflates to `258 * repeats` spaces at 13 bits for 258 bytes.
pub(crate) fn gzip_bomb(repeats: usize) -> Vec<u8> {
    let mut bits: Vec<bool> = Vec::new();
    let mut code = |value: u32, width: u32| {
        bits.extend((0..width).rev().map(|i| value >> i & 1 == 1));
    };
    code(1, 1); // the last block
    code(0b10, 2); // fixed Huffman codes, the lower bit first
    code(0x30 + 0x20, 8); // one space
    for _ in 0..repeats {
        code(0b1100_0101, 8); // copy 258 bytes
        code(0, 5); // from one byte back
    }
    code(0, 7); // the end
    let packed = bits.chunks(8).map(|byte| {
        let bit = |(i, set): (usize, &bool)| u8::from(*set) << i;
        byte.iter().enumerate().map(bit).sum::<u8>()
    });
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    out.extend(packed);
    out.extend([0; 8]);
    out
}
