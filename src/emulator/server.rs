//! Accepts connections and keeps them until they end or the emulator does.
//! It knows sockets and HTTP versions, and nothing of what is asked.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::exchange;
use super::world::World;
use super::{Duplex, EmulatorConfig, TlsHandshake};

/// How long answers may go on after the shutdown.
const GRACE: Duration = Duration::from_secs(1);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Rest after a failed accept, as when descriptors have run out.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Streams of one HTTP/2 connection: above an account's concurrency, so that
/// the 429 is met and not the transport's limit.
const MAX_STREAMS: u32 = 4096;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// An emulator that has its port and does not answer yet.
pub struct Emulator {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsHandshake>,
    world: Arc<World>,
}

/// Takes the port of `config`; fails as binding does.
pub async fn bind(mut config: EmulatorConfig) -> io::Result<Emulator> {
    let listener = TcpListener::bind(config.listen).await?;
    Ok(Emulator {
        address: listener.local_addr()?,
        listener,
        tls: config.tls.take(),
        world: Arc::new(World::new(config)),
    })
}

impl Emulator {
    /// Where it listens, with the real port when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is done; answers under way get one second more.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let (stop, stopping) = watch::channel(());
        let mut lines = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = lines.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let world = Arc::clone(&self.world);
                        lines.spawn(attend(world, stream, self.tls.clone(), stopping.clone()));
                    }
                    Err(error) => {
                        log::warn!("emulator: accept failed: {error}");
                        sleep(ACCEPT_REST).await;
                    }
                },
            }
        }
        drop(self.listener);
        drop(stop);
        let drained = async { while lines.join_next().await.is_some() {} };
        if timeout(GRACE, drained).await.is_err() {
            log::debug!("emulator: breaking off answers under way");
        }
    }
}

/// Serves one connection to its end.
async fn attend(
    world: Arc<World>,
    stream: TcpStream,
    tls: Option<TlsHandshake>,
    mut stopping: watch::Receiver<()>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("emulator: no TCP_NODELAY: {error}");
    }
    let abrupt = Arc::new(AtomicBool::new(false));
    let socket = match tls {
        None => Socket::Plain(stream),
        Some(tls) => match timeout(HANDSHAKE, (tls.0)(stream)).await {
            Ok(Ok(stream)) => Socket::Wrapped(stream),
            Ok(Err(error)) => return log::debug!("emulator: TLS handshake failed: {error}"),
            Err(_) => return log::debug!("emulator: TLS handshake took too long"),
        },
    };
    let line = Line {
        socket,
        abrupt: Arc::clone(&abrupt),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let service = service_fn(move |request| {
        exchange::answer(Arc::clone(&world), Arc::clone(&abrupt), request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(line), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        log::debug!("emulator: connection ended: {error}");
    }
}

enum Socket {
    Plain(TcpStream),
    Wrapped(Box<dyn Duplex>),
}

/// A connection that can end in a reset instead of an orderly close.
struct Line {
    socket: Socket,
    abrupt: Arc<AtomicBool>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Socket::Plain(stream) = &self.socket
            && self.abrupt.load(Ordering::Acquire)
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(stream) => stream.is_write_vectored(),
            Socket::Wrapped(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Wrapped(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Wrapped(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
