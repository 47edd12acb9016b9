//! A TCP proxy that does to connections what networks do.
//!
//! Owns the listener and every byte between its two sides. What it does is one value, which may change at
//! any time and holds for open connections too. A connection that lost bytes is closed when passing is
//! allowed again, for it makes no sense any more.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::plan::Toxic;

/// Bytes taken at once.
const CHUNK: usize = 16 * 1024;

/// A running proxy; ends, with its connections, when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    toxic: watch::Sender<Toxic>,
    server: JoinHandle<()>,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Request,
    Reply,
}

impl Proxy {
    /// From `port` of loopback to `to` (`HOST:PORT`).
    pub(crate) async fn start(port: u16, to: String) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let (toxic, seen) = watch::channel(Toxic::Pass);
        let server = tokio::spawn(async move {
            let to: Arc<str> = to.into();
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("loopback accepts");
                while connections.try_join_next().is_some() {}
                if *seen.borrow() == Toxic::Refuse {
                    reset(&client);
                    continue;
                }
                connections.spawn(connection(client, Arc::clone(&to), seen.clone()));
            }
        });
        Proxy { toxic, server }
    }

    pub(crate) fn set(&self, toxic: Toxic) {
        self.toxic.send_replace(toxic);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn connection(client: TcpStream, to: Arc<str>, toxic: watch::Receiver<Toxic>) {
    let Ok(server) = TcpStream::connect(&*to).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    // Either way's end is the connection's: what is half open is made so on purpose, below.
    tokio::select! {
        () = pump(client_in, server_out, Way::Request, toxic.clone()) => {}
        () = pump(server_in, client_out, Way::Reply, toxic) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut toxic: watch::Receiver<Toxic>,
) {
    let mut chunk = vec![0; CHUNK];
    let mut tainted = false;
    loop {
        let read = tokio::select! {
            changed = toxic.changed() => match changed {
                Ok(()) if tainted || *toxic.borrow() == Toxic::Refuse => return reset(to.as_ref()),
                Ok(()) => continue,
                Err(_) => return,
            },
            read = from.read(&mut chunk) => read,
        };
        let Ok(read @ 1..) = read else { return };
        let now = *toxic.borrow_and_update();
        match now {
            Toxic::Pass => {}
            Toxic::Latency(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Toxic::Bandwidth(bytes) => {
                let share = Duration::from_secs(read as u64).div_f64(bytes as f64);
                tokio::time::sleep(share).await;
            }
            Toxic::LoseReplies if way == Way::Request => {}
            Toxic::LoseReplies | Toxic::BlackHole => {
                tainted = true;
                continue;
            }
            Toxic::Reset(share) => {
                // Which one is hit depends on the machine's timing anyway.
                if rand::rng().random_bool(share) {
                    return reset(to.as_ref());
                }
            }
            Toxic::HalfClose if way == Way::Request => {}
            Toxic::HalfClose => {
                let _ = to.shutdown().await;
                tainted = true;
                continue;
            }
            Toxic::Refuse => return reset(to.as_ref()),
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

/// Closes with a reset instead of an end.
fn reset(stream: &TcpStream) {
    // Without it the peer sees an end, which is a fault as well.
    let _ = stream.set_zero_linger();
}
