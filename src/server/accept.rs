//! Takes connections in: caps, the TLS handshake with its deadline, and the hand-over to Pingora.
//!
//! Pingora's own listener has no connection cap, a fixed handshake deadline of a minute, and reports
//! ready before it binds; its documentation offers a custom accept loop for such cases. Sockets are
//! bound by the caller before anything starts, so that readiness is never a promise.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use log::{debug, info, warn};
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use pingora_limits::inflight::{Guard, Inflight};
use pingora_proxy::HttpProxy;
use tokio::net::{TcpListener, TcpStream};

use super::lifecycle::feed_watchdog;
use super::tls::Acceptor;
use crate::downstream::connection::{Connection, ConnectionOptions, ConnectionState};
use crate::gateway::Gateway;
use crate::telemetry::metrics::{Metrics, RefusedConnection};

/// What a pause after a failed `accept` (out of descriptors) gives others time for.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connection caps and clocks, the same for all listeners.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    pub head_timeout: Duration,
    pub tls_handshake_timeout: Duration,
}

/// The connections of the whole process.
pub struct Admittance {
    open: AtomicUsize,
    /// Constant memory whatever number of addresses comes; it may count a few too many when
    /// thousands of addresses are connected, never too few.
    by_address: Inflight,
    limits: AcceptLimits,
    metrics: Arc<Metrics>,
}

impl Admittance {
    pub fn new(limits: AcceptLimits, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            by_address: Inflight::new(),
            limits,
            metrics,
        })
    }

    /// Takes a place for a connection, or says which cap is reached.
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Place, RefusedConnection> {
        if self.open.fetch_add(1, Ordering::AcqRel) >= self.limits.max_connections {
            self.open.fetch_sub(1, Ordering::AcqRel);
            return Err(RefusedConnection::Total);
        }
        let (guard, count) = self.by_address.incr(network(peer), 1);
        self.metrics.connections_open.inc();
        let place = Place {
            of: self.clone(),
            _guard: guard,
        };
        if usize::try_from(count).unwrap_or(usize::MAX) > self.limits.max_connections_per_ip {
            return Err(RefusedConnection::PerAddress);
        }
        Ok(place)
    }
}

/// A connection's place under both caps.
#[must_use]
struct Place {
    of: Arc<Admittance>,
    _guard: Guard,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.open.fetch_sub(1, Ordering::AcqRel);
        self.of.metrics.connections_open.dec();
    }
}

/// Who counts as one client: an IPv4 address, or an IPv6 /64, the least a client is given.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// A bound socket and how its connections are treated.
pub struct Listening {
    pub socket: std::net::TcpListener,
    pub h2c: bool,
    pub tls: Option<Arc<Acceptor>>,
}

/// All listeners of the process, on one runtime.
pub struct Listeners {
    listening: Vec<Listening>,
    front: Arc<Front>,
    threads: usize,
}

/// What accepted connections are handed to.
struct Front {
    proxy: Arc<HttpProxy<Gateway>>,
    admittance: Arc<Admittance>,
}

impl Listeners {
    pub fn new(
        listening: Vec<Listening>,
        proxy: Arc<HttpProxy<Gateway>>,
        admittance: Arc<Admittance>,
        threads: usize,
    ) -> Self {
        let front = Arc::new(Front { proxy, admittance });
        Self {
            listening,
            front,
            threads,
        }
    }
}

impl Front {
    /// Accepts until the shutdown begins.
    async fn accept_from(self: Arc<Self>, listening: Listening, mut shutdown: ShutdownWatch) {
        let Listening { socket, h2c, tls } = listening;
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(cause) => return warn!("Cannot listen. cause=\"{cause}\""),
        };
        let address = listener
            .local_addr()
            .map_or_else(|_| "?".to_owned(), |address| address.to_string());
        info!(
            "Listening. address={address} tls={} h2c={h2c}",
            tls.is_some()
        );
        loop {
            tokio::select! {
                biased;
                changed = shutdown.changed() => {
                    if changed.is_err() || *shutdown.borrow() {
                        break;
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => self.accepted(socket, peer, h2c, tls.clone(), &shutdown),
                    Err(cause) => {
                        warn!("Cannot accept. address={address} cause=\"{cause}\"");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        info!("No longer listening. address={address}");
    }

    fn accepted(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        h2c: bool,
        tls: Option<Arc<Acceptor>>,
        shutdown: &ShutdownWatch,
    ) {
        let place = match self.admittance.admit(peer.ip()) {
            Ok(place) => place,
            Err(reason) => {
                self.admittance.metrics.connection_refused(reason);
                debug!(
                    "Refused a connection. peer={peer} reason={}",
                    reason.as_str()
                );
                return;
            }
        };
        let limits = &self.admittance.limits;
        let serve = Serve {
            options: ConnectionOptions {
                h2c,
                head_timeout: limits.head_timeout,
                bad_heads: self.admittance.metrics.bad_heads(),
            },
            tls,
            handshake_timeout: limits.tls_handshake_timeout,
            proxy: self.proxy.clone(),
            shutdown: shutdown.clone(),
        };
        tokio::spawn(async move {
            if let Err(cause) = serve.run(socket, peer).await {
                debug!(
                    "A connection ended before its first request. peer={peer} cause=\"{cause}\""
                );
            }
            drop(place);
        });
    }
}

/// One accepted connection on its way.
struct Serve {
    options: ConnectionOptions,
    tls: Option<Arc<Acceptor>>,
    handshake_timeout: Duration,
    proxy: Arc<HttpProxy<Gateway>>,
    shutdown: ShutdownWatch,
}

impl Serve {
    async fn run(self, socket: TcpStream, peer: SocketAddr) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let state = ConnectionState::new(peer);
        let connection = match &self.tls {
            None => Connection::plain(socket, state, self.options)?,
            Some(acceptor) => {
                let acceptor = acceptor.current();
                let shaken = Connection::tls(socket, &acceptor, state, self.options);
                tokio::time::timeout(self.handshake_timeout, shaken)
                    .await
                    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake"))??
            }
        };
        let stream: Stream = Box::new(connection);
        // Returns a stream only for protocols that Pingora wants to go round again with.
        let _ = self.proxy.process_new(stream, &self.shutdown).await;
        Ok(())
    }
}

#[async_trait]
impl Service for Listeners {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        // Here, so that a runtime that no longer serves requests no longer pings either.
        let watchdog = tokio::spawn(feed_watchdog());
        let loops = self.listening.drain(..).map(|listening| {
            tokio::spawn(self.front.clone().accept_from(listening, shutdown.clone()))
        });
        join_all(loops.collect::<Vec<_>>()).await;
        self.front.proxy.cleanup().await;
        // Streams go on in this runtime; the watchdog is fed until the process ends.
        let _ = watchdog.await;
    }

    fn name(&self) -> &'static str {
        "listeners"
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admittance(total: usize, per_ip: usize) -> Arc<Admittance> {
        let limits = AcceptLimits {
            max_connections: total,
            max_connections_per_ip: per_ip,
            head_timeout: Duration::from_secs(1),
            tls_handshake_timeout: Duration::from_secs(1),
        };
        Admittance::new(limits, Arc::new(Metrics::new().unwrap()))
    }

    #[test]
    fn both_caps_hold_and_a_closed_connection_frees_its_place() {
        let caps = admittance(3, 2);
        let [a, b]: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let first = caps.admit(a).ok().unwrap();
        let _second = caps.admit(a).ok().unwrap();
        assert_eq!(caps.admit(a).err(), Some(RefusedConnection::PerAddress));
        let _third = caps.admit(b).ok().unwrap();
        assert_eq!(caps.admit(b).err(), Some(RefusedConnection::Total));
        drop(first);
        assert!(caps.admit(a).is_ok());
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let one: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let two: IpAddr = "2001:db8:1:2:ffff::9".parse().unwrap();
        assert_eq!(network(one), network(two));
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(network(mapped), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
