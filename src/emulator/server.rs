//! Accepts connections and keeps them until they end or the emulator does.
//! It knows sockets and HTTP versions, and nothing of what is asked.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::line::{Grip, Line, Socket};
use super::world::World;
use super::{EmulatorConfig, TlsHandshake, by_hand, exchange};

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
    let socket = match tls {
        None => Socket::Plain(stream),
        Some(tls) => match timeout(HANDSHAKE, (tls.0)(stream)).await {
            Ok(Ok(stream)) => Socket::Wrapped(stream),
            Ok(Err(error)) => return log::debug!("emulator: TLS handshake failed: {error}"),
            Err(_) => return log::debug!("emulator: TLS handshake took too long"),
        },
    };
    let grip = Arc::new(Grip::default());
    let (line, mut returned) = Line::lend(socket, Arc::clone(&grip));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let holding = Arc::clone(&grip);
    let service = service_fn(move |request| {
        exchange::answer(Arc::clone(&world), Arc::clone(&holding), request)
    });
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(line), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        log::debug!("emulator: connection ended: {error}");
    }
    // hyper gives its line back when it is dropped.
    drop(connection);
    if let (Some(seized), Ok(line)) = (grip.release(), returned.try_recv()) {
        tokio::select! {
            () = by_hand::play(seized, line) => {}
            _ = stopping.changed() => {}
        }
    }
}
