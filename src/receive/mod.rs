//! The edge: signed callbacks in over HTTP/1.1, records in Kafka out, 204 when Kafka or the spool has them.
//!
//! Owns the callback listener and the life of its connections: how many, how long, how they end. What a
//! request is answered is `request`'s, where one ends on the wire is `gate`'s and `head`'s, what
//! is published is `publish`'s, where to is `delivery`'s and `ways`', and what becomes of the spool is
//! `drain`'s. Refuses TLS (a proxy's work) and HTTP/2.
//!
//! Guarantees: no connection lives on without progress (a head within [`HEAD_TIME_LIMIT`], a body within
//! [`BODY_TIME_LIMIT`], an idle one as long as a head); every request is answered within
//! [`ANSWER_TIME_LIMIT`] of its head; at most [`Settings::max_connections`] at once, and while more want in,
//! those that have nothing to say make room (`seats`). A stop ends idle connections at once, answers what is in
//! flight with `Connection: close`, and returns when all are done.
//!
//! Fails when the listener cannot accept any more, or when a connection's task panicked (the others are
//! served on; the process ends with an error when it stops).

mod delivery;
mod drain;
mod gate;
mod head;
mod publish;
mod request;
mod seats;
mod ways;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::poll;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};

use self::delivery::Delivery;
use self::gate::Gate;
use self::request::{Edge, last};
use self::seats::{Seat, Seats};
use crate::lifecycle::{Clock, DRAIN_DEADLINE, Stop};
use crate::signature::Verifier;
use crate::spool::Spool;
use crate::telemetry;
use crate::topic::{Publisher, Topics};

pub use self::delivery::{PUBLISH_TIMEOUT, SPOOL_TIMEOUT};
pub use self::request::{ANSWER_TIME_LIMIT, BODY_TIME_LIMIT, MAX_BODY_BYTES};

/// Connections served at once, unless configured otherwise. Each holds under 32 kB while it waits.
pub const DEFAULT_MAX_CONNECTIONS: usize = 4_096;

/// Time for a request's head to arrive; an idle connection is closed after as long.
pub const HEAD_TIME_LIMIT: Duration = Duration::from_secs(5);

/// Longest drain of connections, leaving the rest of [`DRAIN_DEADLINE`] to flush the publisher and to
/// close the spool. A request in flight needs at most [`ANSWER_TIME_LIMIT`]; what is left is for clients that
/// are slow to take their answers.
pub const DRAIN_LIMIT: Duration = DRAIN_DEADLINE.saturating_sub(Duration::from_secs(2));

/// Pause after an accept failed for want of something (file descriptors), and how many in a row are
/// taken for a passing want.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MAX_ACCEPT_FAILURES: u32 = 600;

/// What the edge needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The public URL, whose path is the route, and the keys.
    pub verifier: Verifier,
    /// Where records go.
    pub topics: Topics,
    /// Connections at once, see [`DEFAULT_MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// Where records go that Kafka does not take in time; without it they are refused.
    pub spool: Option<Spool>,
}

/// Why the edge ended otherwise than by a stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener is of no use any more.
    #[error(
        "the callback listener failed {failures} times in a row; raise the limit of open files or restart"
    )]
    Accept {
        /// In a row.
        failures: u32,
        /// The last one.
        #[source]
        source: io::Error,
    },
    /// A defect: reported with its place on standard error when it happened.
    #[error("{connections} callback connections ended in a panic, unanswered; report the defect")]
    Panicked {
        /// How many.
        connections: u64,
    },
}

/// Serves callbacks on `listener` until `stop`, then finishes what is in flight.
///
/// When this returns no publish is waited for any more: the caller closes the publisher next, and the
/// spool, whose records stay for the next start.
///
/// # Errors
/// See [`Error`]; in both cases every answer that was given holds.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    publisher: Publisher,
    clock: Clock,
    stop: Stop,
) -> Result<(), Error> {
    let seats = Seats::new(settings.max_connections);
    let edge = Arc::new(Edge::new(
        settings.verifier,
        settings.topics,
        Delivery::new(publisher, settings.spool),
        clock,
    ));
    // Of its own, for the listener may fail without a stop.
    let drain_stop = stop.child();
    let mut connections = Connections::default();
    let serving = async {
        let accepting = accept_all(&listener, &seats, &edge, &stop, &mut connections).await;
        drop(listener);
        connections.drain().await;
        drain_stop.request();
        accepting
    };
    let draining = async {
        if let Some(backup) = &edge.delivery.backup {
            drain::drain(backup, &edge.delivery.publisher, &drain_stop).await;
        }
    };
    let (accepting, ()) = tokio::join!(serving, draining);
    accepting?;
    match connections.panics {
        0 => Ok(()),
        connections => Err(Error::Panicked { connections }),
    }
}

async fn accept_all(
    listener: &TcpListener,
    seats: &Arc<Seats>,
    edge: &Arc<Edge>,
    stop: &Stop,
    connections: &mut Connections,
) -> Result<(), Error> {
    let mut failures = 0;
    // Accepted, and without a seat yet: that it waits is what makes others leave.
    let mut waiting = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.requested() => return Ok(()),
            Some(ended) = connections.tasks.join_next() => {
                connections.ended(ended);
                continue;
            }
            seat = seats.take(), if waiting.is_some() => {
                let stream = waiting.take().expect("as was asked");
                let life = connection(stream, seat, edge.clone(), stop.child());
                connections.tasks.spawn(life);
                continue;
            }
            accepted = listener.accept(), if waiting.is_none() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failures = 0;
                waiting = Some(stream);
            }
            // The client's doing, not the listener's.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(source) => {
                failures += 1;
                if failures == 1 {
                    tracing::error!(error = %source, "cannot accept callback connections; trying on");
                }
                if failures == MAX_ACCEPT_FAILURES {
                    return Err(Error::Accept { failures, source });
                }
                stop.race(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
}

/// One connection until it closes: by the client, by an answer, by a time limit, for another that wants its
/// seat, or by the stop.
async fn connection(stream: TcpStream, seat: Seat, edge: Arc<Edge>, stop: Stop) {
    let _open = OpenConnection::count();
    // An interim 100 must not wait for the answer. Failing, it only waits longer.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        seat.busy();
        let answer = edge.clone().respond(request);
        async {
            let mut answer = answer.await?;
            // An idle connection would keep the seat from one that has something to say.
            if seat.is_wanted() {
                last(&mut answer);
            }
            seat.waits();
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_LIMIT)
        // A client that has sent its all may still want its answer. It also spares a read a request.
        .half_close(true)
        .serve_connection(Gate::new(stream), service);
    tokio::pin!(connection);
    let ended = loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => break ended,
            () = seat.wanted() => {
                // A request that the kernel has by now is not cut off: the yield lets it be seen.
                tokio::task::yield_now().await;
                if let Poll::Ready(ended) = poll!(connection.as_mut()) {
                    break ended;
                }
                if seat.is_leaving() {
                    return;
                }
            }
            () = stop.requested() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
        }
    };
    if let Err(error) = ended {
        // Clients that go away are their own concern; what they were owed is counted with its answer.
        tracing::debug!(%error, "a callback connection broke off");
    }
}

/// The tasks of open connections.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    panics: u64,
}

impl Connections {
    fn ended(&mut self, ended: Result<(), JoinError>) {
        if ended.is_err_and(|error| error.is_panic()) {
            self.panics += 1;
            tracing::error!("a callback connection ended in a panic; its client got no answer");
        }
    }

    async fn drain(&mut self) {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                self.ended(ended);
            }
        };
        if tokio::time::timeout(DRAIN_LIMIT, all).await.is_err() {
            tracing::warn!(
                connections = self.tasks.len(),
                limit_s = DRAIN_LIMIT.as_secs(),
                "clients did not take their answers in time; closing their connections"
            );
            self.tasks.shutdown().await;
        }
    }
}

/// Counts an open connection for as long as it lives.
struct OpenConnection;

impl OpenConnection {
    fn count() -> Self {
        metrics::gauge!(telemetry::CALLBACK_CONNECTIONS).increment(1);
        OpenConnection
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::CALLBACK_CONNECTIONS).decrement(1);
    }
}

#[cfg(test)]
mod tests;
