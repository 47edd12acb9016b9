//! Connections that can be reset.
//!
//! Owns the one thing that an HTTP handler cannot do: end its connection by a TCP reset (RST), as a
//! crashed host or a firewall does. Everything else passes through.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// A listener whose connections can be reset by the [`Link`] that their requests carry.
#[derive(Debug)]
pub(crate) struct Wires(pub(crate) TcpListener);

/// The handle of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link(Arc<AtomicBool>);

impl Link {
    /// Resets the connection as soon as something is to be written to it.
    pub(crate) fn reset(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Listener for Wires {
    type Io = Wire;
    type Addr = Link;

    async fn accept(&mut self) -> (Wire, Link) {
        let (stream, _) = Listener::accept(&mut self.0).await;
        let link = Link::default();
        let wire = Wire {
            stream,
            link: link.clone(),
        };
        (wire, link)
    }

    fn local_addr(&self) -> io::Result<Link> {
        Ok(Link::default())
    }
}

impl Connected<IncomingStream<'_, Wires>> for Link {
    fn connect_info(stream: IncomingStream<'_, Wires>) -> Self {
        stream.remote_addr().clone()
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    link: Link,
}

impl Wire {
    fn unless_reset(&self) -> io::Result<()> {
        if !self.link.0.load(Ordering::Acquire) {
            return Ok(());
        }
        // With no linger, closing the socket sends RST and drops what was buffered.
        self.stream.set_zero_linger()?;
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_reset()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unless_reset()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
