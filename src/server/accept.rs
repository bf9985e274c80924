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
use log::{debug, info, warn};
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use pingora_limits::inflight::{Guard, Inflight};
use pingora_proxy::HttpProxy;
use tokio::net::{TcpListener, TcpStream};

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

/// A bound listener with the proxy that serves it.
pub struct ListenerService {
    name: String,
    socket: Option<std::net::TcpListener>,
    h2c: bool,
    tls: Option<Arc<Acceptor>>,
    proxy: Arc<HttpProxy<Gateway>>,
    admittance: Arc<Admittance>,
    threads: usize,
}

impl ListenerService {
    pub fn new(
        socket: std::net::TcpListener,
        h2c: bool,
        tls: Option<Arc<Acceptor>>,
        proxy: Arc<HttpProxy<Gateway>>,
        admittance: Arc<Admittance>,
        threads: usize,
    ) -> io::Result<Self> {
        let name = format!("listener {}", socket.local_addr()?);
        Ok(Self {
            name,
            socket: Some(socket),
            h2c,
            tls,
            proxy,
            admittance,
            threads,
        })
    }

    fn accepted(&self, socket: TcpStream, peer: SocketAddr, shutdown: &ShutdownWatch) {
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
        let serve = Serve {
            options: ConnectionOptions {
                h2c: self.h2c,
                head_timeout: self.admittance.limits.head_timeout,
                bad_heads: self
                    .admittance
                    .metrics
                    .refusals
                    .with_label_values(&["none", "bad_request"]),
            },
            tls: self.tls.clone(),
            handshake_timeout: self.admittance.limits.tls_handshake_timeout,
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
impl Service for ListenerService {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(cause) => {
                warn!(
                    "Cannot listen. listener=\"{}\" cause=\"{cause}\"",
                    self.name
                );
                return;
            }
        };
        info!(
            "Listening. listener=\"{}\" tls={} h2c={}",
            self.name,
            self.tls.is_some(),
            self.h2c
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
                    Ok((socket, peer)) => self.accepted(socket, peer, &shutdown),
                    Err(cause) => {
                        warn!("Cannot accept. listener=\"{}\" cause=\"{cause}\"", self.name);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        info!("No longer listening. listener=\"{}\"", self.name);
        self.proxy.cleanup().await;
    }

    fn name(&self) -> &str {
        &self.name
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
