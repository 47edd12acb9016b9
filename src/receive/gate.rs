//! The connection as hyper sees it: one checked request after another, never a byte of a refused one.
//!
//! Owns where a request ends on the wire, the time a client may take to read an answer, and the end of a
//! connection. A head is held back until it is whole and [`Head`] has accepted it; then it and exactly its
//! body pass. A refused head is replaced by [`Refused`], a request that the service answers with the
//! refusal's status and closes on, and nothing that follows passes. A client may spell that request itself;
//! all it gets is refused.
//!
//! Chunked bodies are not measured here: everything behind such a head passes, so the service must
//! answer it with `Connection: close`, after which hyper reads no further request.
//!
//! Guarantees: memory is bounded by one head; after an answer that cuts a request short, what the client
//! still sends is read and dropped for a while, because closing on unread bytes resets the connection and
//! takes the answer with it (RFC 9112, section 9.6).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::head::{Framing, Head, MAX_HEAD_BYTES, Refused};

/// Method of the request that stands for a refused head; its target is the status.
pub(super) const REFUSED_METHOD: &str = "REFUSED";

/// How long a client may take no byte of an answer.
const WRITE_STALL_LIMIT: Duration = Duration::from_secs(5);

/// How long and how much is read after the last answer.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 1024 * 1024;

/// Read at once; a callback with its head fits.
const BUFFER_BYTES: usize = 8 * 1024;

/// A byte stream for hyper, in front of `stream`.
#[derive(Debug)]
pub(super) struct Gate<S> {
    stream: S,
    /// `buffer[start..end]` has arrived and not yet passed.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    state: State,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
    lingered_bytes: usize,
}

#[derive(Debug)]
enum State {
    /// Nothing passes.
    Head(Head),
    /// So many bytes pass, then comes a head.
    Request(u64),
    /// Everything passes.
    Unmeasured,
    /// This passes, and then nothing.
    Refused(&'static [u8]),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gate<S> {
    pub(super) fn new(stream: S) -> Self {
        Gate {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            state: State::Head(Head::default()),
            stalled: None,
            lingering: None,
            lingered_bytes: 0,
        }
    }

    /// Reads more; `false` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            debug_assert!(
                self.end < MAX_HEAD_BYTES,
                "a longer head was refused, a body passes"
            );
            self.buffer.resize(MAX_HEAD_BYTES, 0);
        }
        let mut room = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.end += read;
        Poll::Ready(Ok(read > 0))
    }

    /// Hands over at most `limit` bytes: how many, none at the end of the stream.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut ReadBufCursor<'_>,
        limit: u64,
    ) -> Poll<io::Result<u64>> {
        if self.start == self.end && !ready!(self.poll_fill(cx))? {
            return Poll::Ready(Ok(0));
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let count = (self.end - self.start).min(limit).min(to.remaining());
        to.put_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        Poll::Ready(Ok(count as u64))
    }

    /// Passes `written` on, or fails when the client has taken nothing for too long.
    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timer =
            (self.stalled).get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL_LIMIT)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut to: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = &mut *self;
        loop {
            match &mut gate.state {
                State::Head(head) => match head.advance(&gate.buffer[gate.start..gate.end]) {
                    Ok(None) => {
                        if !ready!(gate.poll_fill(cx))? {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Ok(Some(complete)) => {
                        gate.state = match complete.body {
                            // Beyond any size that is answered otherwise than with 413 and a close.
                            Framing::Length(length) => {
                                State::Request(length.saturating_add(complete.bytes as u64))
                            }
                            Framing::Chunked => State::Unmeasured,
                        };
                    }
                    Err(refused) => gate.state = State::Refused(substitute(refused)),
                },
                State::Request(0) => gate.state = State::Head(Head::default()),
                &mut State::Request(left) => {
                    let passed = ready!(gate.poll_pass(cx, &mut to, left))?;
                    gate.state = State::Request(left - passed);
                    return Poll::Ready(Ok(()));
                }
                State::Unmeasured => {
                    ready!(gate.poll_pass(cx, &mut to, u64::MAX))?;
                    return Poll::Ready(Ok(()));
                }
                // No waker: the answer to the refusal ends the connection, or its own timers do.
                State::Refused([]) => return Poll::Pending,
                State::Refused(rest) => {
                    let (now, later) = rest.split_at(rest.len().min(to.remaining()));
                    to.put_slice(now);
                    *rest = later;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// The request that the service sees in place of a refused one.
fn substitute(refused: Refused) -> &'static [u8] {
    match refused {
        Refused::Malformed => b"REFUSED /400 HTTP/1.1\r\n\r\n",
        Refused::TargetTooLong => b"REFUSED /414 HTTP/1.1\r\n\r\n",
        Refused::TooLarge => b"REFUSED /431 HTTP/1.1\r\n\r\n",
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Gate<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.unless_stalled(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.unless_stalled(cx, flushed)
    }

    /// Says that nothing more is sent, then waits for the client to say the same.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = &mut *self;
        if gate.lingering.is_none() {
            ready!(Pin::new(&mut gate.stream).poll_shutdown(cx))?;
        }
        let timer = (gate.lingering).get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        while gate.lingered_bytes < LINGER_BYTES && timer.as_mut().poll(cx).is_pending() {
            let mut dropped = ReadBuf::new(&mut gate.buffer);
            match ready!(Pin::new(&mut gate.stream).poll_read(cx, &mut dropped)) {
                Ok(()) if !dropped.filled().is_empty() => {
                    gate.lingered_bytes += dropped.filled().len();
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::ReadBuf as HyperReadBuf;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What passes when `wire` arrives in pieces of `step` bytes, then ends.
    async fn passes(wire: &[u8], step: usize) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(step);
        let mut gate = Gate::new(server);
        let read = async {
            let mut all = Vec::new();
            loop {
                let mut space = [0; 100];
                let mut space = HyperReadBuf::new(&mut space);
                std::future::poll_fn(|cx| {
                    match Pin::new(&mut gate).poll_read(cx, space.unfilled()) {
                        Poll::Pending if matches!(gate.state, State::Refused([])) => {
                            Poll::Ready(())
                        }
                        read => read.map(|read| read.unwrap()),
                    }
                })
                .await;
                if space.filled().is_empty() {
                    return all;
                }
                all.extend_from_slice(space.filled());
            }
        };
        let write = async {
            // A gate that refused stops reading.
            let _ = client.write_all(wire).await;
            let _ = client.shutdown().await;
            std::future::pending::<()>().await
        };
        tokio::select! { all = read => all, () = write => unreachable!("it waits for ever") }
    }

    #[tokio::test]
    async fn a_refused_head_is_replaced_and_ends_everything() {
        let good = b"POST /h HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n\n\r\n\r";
        let wire = [&good[..], b"POST /h HTTP/1.1\nHost: h\n\n", good].concat();
        let want = [&good[..], b"REFUSED /400 HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(passes(&wire, 7).await, want);
    }

    #[tokio::test]
    async fn half_a_head_does_not_pass() {
        assert_eq!(passes(b"POST /h HTTP/1.1\r\nHost: h\r\n", 64).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_given_up() {
        let (_client, server) = tokio::io::duplex(4);
        let mut gate = Gate::new(server);
        let started = tokio::time::Instant::now();
        let error = loop {
            let write = |cx: &mut Context<'_>| Pin::new(&mut gate).poll_write(cx, b"answer");
            if let Err(error) = std::future::poll_fn(write).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), WRITE_STALL_LIMIT.as_secs());
    }

    proptest! {
        #[test]
        fn good_requests_pass_unchanged_however_they_arrive(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
            padding in 0usize..12_000,
            step in 1usize..5_000,
        ) {
            let mut wire = Vec::new();
            for body in bodies {
                let padding = "x".repeat(padding);
                wire.extend_from_slice(
                    format!("POST /h HTTP/1.1\r\nHost: h\r\nP: {padding}\r\nContent-Length: {}\r\n\r\n", body.len())
                        .as_bytes(),
                );
                wire.extend_from_slice(&body);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            prop_assert_eq!(runtime.block_on(passes(&wire, step)), wire);
        }
    }
}
