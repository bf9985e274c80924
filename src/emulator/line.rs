//! A connection that can end in a reset, and that an exchange can take out of
//! hyper's hands to write to it what hyper would not. It knows no HTTP.

use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::Duplex;
use super::by_hand::Seized;

/// What exchanges have decided about the connection under them.
#[derive(Default)]
pub(super) struct Grip {
    abrupt: AtomicBool,
    seized: Mutex<Option<Seized>>,
}

impl Grip {
    /// The connection ends in a reset, as soon as it ends.
    pub(super) fn break_off(&self) {
        self.abrupt.store(true, Ordering::Release);
    }

    /// Once hyper has given up the connection, this is played on it.
    pub(super) fn seize(&self, seized: Seized) {
        *self.seized.lock() = Some(seized);
    }

    pub(super) fn release(&self) -> Option<Seized> {
        self.seized.lock().take()
    }
}

pub(super) enum Socket {
    Plain(TcpStream),
    Wrapped(Box<dyn Duplex>),
    /// It was given back.
    Gone,
}

/// A connection that can end in a reset instead of an orderly close.
pub(super) struct Line {
    socket: Socket,
    grip: Arc<Grip>,
    /// Who gets it when it is dropped.
    lender: Option<oneshot::Sender<Line>>,
}

impl Line {
    /// A line to give away, and where it comes back when it is dropped there.
    pub(super) fn lend(socket: Socket, grip: Arc<Grip>) -> (Self, oneshot::Receiver<Self>) {
        let (lender, returned) = oneshot::channel();
        let line = Self {
            socket,
            grip,
            lender: Some(lender),
        };
        (line, returned)
    }

    pub(super) fn grip(&self) -> &Arc<Grip> {
        &self.grip
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(lender) = self.lender.take() {
            let line = Self {
                socket: mem::replace(&mut self.socket, Socket::Gone),
                grip: Arc::clone(&self.grip),
                lender: None,
            };
            // Were nobody waiting for it, it would end here.
            drop(lender.send(line));
        } else if let Socket::Plain(stream) = &self.socket
            && self.grip.abrupt.load(Ordering::Acquire)
            && let Err(error) = stream.set_zero_linger()
        {
            log::debug!("emulator: no reset: {error}");
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Wrapped(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Wrapped(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Wrapped(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(stream) => stream.is_write_vectored(),
            Socket::Wrapped(stream) => stream.is_write_vectored(),
            Socket::Gone => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Wrapped(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Wrapped(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}
