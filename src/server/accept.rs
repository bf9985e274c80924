//! Takes connections in: caps, the TLS handshake with its deadline, and the hand-over to Pingora.
//!
//! Pingora's own listener has no connection cap, a fixed handshake deadline of a minute, and reports
//! ready before it binds; its documentation offers a custom accept loop for such cases. Sockets are
//! bound by the caller before anything starts, so that readiness is never a promise.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
use crate::config::networks::Networks;
use crate::downstream::connection::{Connection, ConnectionOptions, ConnectionState};
use crate::downstream::proxy_protocol::{self, Origin};
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

    /// Takes a place for a connection among all, or says that there is none.
    fn admit(self: &Arc<Self>) -> Result<Place, RefusedConnection> {
        if self.open.fetch_add(1, Ordering::AcqRel) >= self.limits.max_connections {
            self.open.fetch_sub(1, Ordering::AcqRel);
            return Err(RefusedConnection::Total);
        }
        self.metrics.connections_open.inc();
        Ok(Place {
            of: self.clone(),
            guard: None,
        })
    }

    fn refuse(&self, peer: SocketAddr, reason: RefusedConnection) {
        self.metrics.connection_refused(reason);
        debug!(
            "Refused a connection. peer={peer} reason={}",
            reason.as_str()
        );
    }
}

/// A connection's place under both caps.
#[must_use]
struct Place {
    of: Arc<Admittance>,
    guard: Option<Guard>,
}

impl Place {
    /// Counts the connection for its client, or says that it has too many. Apart from the first
    /// cap, because behind a proxy the client is only known after the proxy's header.
    fn belongs_to(&mut self, client: IpAddr) -> Result<(), RefusedConnection> {
        let (guard, count) = self.of.by_address.incr(network(client), 1);
        self.guard = Some(guard);
        let most = self.of.limits.max_connections_per_ip;
        if usize::try_from(count).unwrap_or(usize::MAX) > most {
            return Err(RefusedConnection::PerAddress);
        }
        Ok(())
    }

    /// For what comes before the first request: a proxy's header and the TLS handshake.
    fn handshake_time(&self) -> Duration {
        self.of.limits.tls_handshake_timeout
    }
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
    /// In the order of the configuration.
    pub number: usize,
    pub h2c: bool,
    pub tls: Option<Arc<Acceptor>>,
    /// Connections from here begin with a PROXY protocol header.
    pub proxy_protocol_from: Networks,
}

/// How connections of one listener are treated.
struct Manner {
    number: usize,
    h2c: bool,
    tls: Option<Arc<Acceptor>>,
    proxy_protocol_from: Networks,
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
        let Listening {
            socket,
            number,
            h2c,
            tls,
            proxy_protocol_from,
        } = listening;
        let manner = Arc::new(Manner {
            number,
            h2c,
            tls,
            proxy_protocol_from,
        });
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(cause) => return warn!("Cannot listen. cause=\"{cause}\""),
        };
        let address = listener
            .local_addr()
            .map_or_else(|_| "?".to_owned(), |address| address.to_string());
        info!(
            "Listening. address={address} tls={} h2c={h2c}",
            manner.tls.is_some()
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
                    Ok((socket, peer)) => self.accepted(socket, peer, &manner, &shutdown),
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
        manner: &Arc<Manner>,
        shutdown: &ShutdownWatch,
    ) {
        let behind_proxy = manner.proxy_protocol_from.contains(peer.ip());
        let mut place = match self.admittance.admit() {
            Ok(place) => place,
            Err(reason) => return self.admittance.refuse(peer, reason),
        };
        if !behind_proxy && let Err(reason) = place.belongs_to(peer.ip()) {
            return self.admittance.refuse(peer, reason);
        }
        let limits = &self.admittance.limits;
        let serve = Serve {
            options: ConnectionOptions {
                h2c: manner.h2c,
                head_timeout: limits.head_timeout,
                bad_heads: self.admittance.metrics.bad_heads(),
            },
            manner: manner.clone(),
            behind_proxy,
            place,
            proxy: self.proxy.clone(),
            shutdown: shutdown.clone(),
        };
        tokio::spawn(async move {
            if let Err(cause) = serve.run(socket, peer).await {
                debug!(
                    "A connection ended before its first request. peer={peer} cause=\"{cause}\""
                );
            }
        });
    }
}

/// One accepted connection on its way.
struct Serve {
    options: ConnectionOptions,
    manner: Arc<Manner>,
    behind_proxy: bool,
    place: Place,
    proxy: Arc<HttpProxy<Gateway>>,
    shutdown: ShutdownWatch,
}

impl Serve {
    async fn run(mut self, socket: TcpStream, peer: SocketAddr) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let began = Instant::now();
        let (socket, client) = self.introduced(socket, peer).await?;
        let state = ConnectionState::new(client, self.manner.number);
        let connection = match &self.manner.tls {
            None => Connection::plain(socket, state, self.options)?,
            Some(acceptor) => {
                let trust = acceptor.trust().clone();
                let acceptor = acceptor.current();
                let (acceptor, generation) = &*acceptor;
                let trust = (trust, *generation);
                let left = self.place.handshake_time().saturating_sub(began.elapsed());
                let shaken = Connection::tls(socket, acceptor, trust, state, self.options);
                tokio::time::timeout(left, shaken)
                    .await
                    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake"))??
            }
        };
        let stream: Stream = Box::new(connection);
        // Returns a stream only for protocols that Pingora wants to go round again with.
        let _ = self.proxy.process_new(stream, &self.shutdown).await;
        drop(self.place);
        Ok(())
    }

    /// Who is at the other end: a proxy that is believed names someone else.
    async fn introduced(
        &mut self,
        mut socket: TcpStream,
        peer: SocketAddr,
    ) -> io::Result<(TcpStream, SocketAddr)> {
        if !self.behind_proxy {
            return Ok((socket, peer));
        }
        let header = proxy_protocol::read(&mut socket);
        let origin = match tokio::time::timeout(self.place.handshake_time(), header).await {
            Ok(origin) => origin.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "PROXY header")),
        };
        let origin = origin.inspect_err(|_| {
            self.place
                .of
                .metrics
                .connection_refused(RefusedConnection::ProxyHeader);
        })?;
        let client = match origin {
            Origin::Client(client) => client,
            Origin::Local => peer,
        };
        self.place.belongs_to(client.ip()).map_err(|reason| {
            self.place.of.metrics.connection_refused(reason);
            io::Error::other(reason.as_str())
        })?;
        Ok((socket, client))
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

    fn connect(caps: &Arc<Admittance>, from: IpAddr) -> Result<Place, RefusedConnection> {
        let mut place = caps.admit()?;
        place.belongs_to(from)?;
        Ok(place)
    }

    #[test]
    fn both_caps_hold_and_a_closed_connection_frees_its_place() {
        let caps = admittance(3, 2);
        let [a, b]: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let first = connect(&caps, a).ok().unwrap();
        let _second = connect(&caps, a).ok().unwrap();
        assert_eq!(connect(&caps, a).err(), Some(RefusedConnection::PerAddress));
        let _third = connect(&caps, b).ok().unwrap();
        assert_eq!(connect(&caps, b).err(), Some(RefusedConnection::Total));
        drop(first);
        assert!(connect(&caps, a).is_ok());
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
