//! A connection inside the process: Pingora holds one end, the work at the other
//! end is done whenever Pingora reads or writes. So it goes no faster than the
//! answer is read, wakes the same task, and ends when the connection is dropped.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::Cut;

type Work = Pin<Box<dyn Future<Output = Result<(), Cut>> + Send>>;

enum Far {
    Working(Work),
    Done,
    Broken(Cut),
}

/// Pingora's end of the connection, and the work behind it.
pub(super) struct Line {
    near: DuplexStream,
    /// Never contended: Pingora asks that connections be `Sync`, which a future need not be.
    far: Mutex<Far>,
}

impl Line {
    /// `near` is connected to what `work` reads and writes. If the work fails, reading and
    /// writing do, once everything it has written was read.
    pub fn new(
        near: DuplexStream,
        work: impl Future<Output = Result<(), Cut>> + Send + 'static,
    ) -> Self {
        Self {
            near,
            far: Mutex::new(Far::Working(Box::pin(work))),
        }
    }

    fn work(&mut self, cx: &mut Context<'_>) {
        let far = self.far.get_mut();
        let Far::Working(work) = far else {
            return;
        };
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            *far = match result {
                Ok(()) => Far::Done,
                Err(cut) => Far::Broken(cut),
            };
        }
    }

    fn broken(&mut self) -> Option<io::Error> {
        match self.far.get_mut() {
            Far::Broken(cut) => Some(io::Error::other(cut.clone())),
            _ => None,
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.work(cx);
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.near).poll_read(cx, buffer);
        let ended = matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        match self.broken().filter(|_| ended) {
            Some(broken) => Poll::Ready(Err(broken)),
            None => read,
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.work(cx);
        if let Some(broken) = self.broken() {
            return Poll::Ready(Err(broken));
        }
        Pin::new(&mut self.near).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.work(cx);
        Pin::new(&mut self.near).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_shutdown(cx)
    }
}

impl VirtualSocket for Line {
    /// There is no socket to set anything on.
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}
