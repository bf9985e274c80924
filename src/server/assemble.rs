//! Settings become a running gateway: sockets bound, services joined, Pingora started.

use std::hash::RandomState;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::future::join_all;
use log::{info, warn};
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora_proxy::HttpProxy;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;

use super::accept::{AcceptLimits, Admittance, Listeners, Listening};
use super::bookkeeping::{Bookkeeping, BookkeepingError, Kept};
use super::credit::CreditWatch;
use super::key_sets::KeySets;
use super::lifecycle::{LAST_WRITE, LastOneOut, StopSignal};
use super::reload::{Reloader, keep_configuration};
use super::renewal::{Certificates, FileWatch};
use super::sources::{Note, SourceError, Sources};
use super::tls::CertificateError;
use super::triggers::Files;
use super::upkeep::Upkeep;
use super::watch::Stamps;
use crate::admin::AdminService;
use crate::admission::book::Book;
use crate::admission::counting::{Counting, Shared};
use crate::admission::store_redis::{ConnectError, RedisCounts};
use crate::config::settings::{self, Settings};
use crate::config::{self, Loaded, Mistake};
use crate::downstream::in_flight::Requests;
use crate::gateway::guessing::Guessing;
use crate::gateway::{Gateway, Overload};
use crate::identity::standing::Standing;
use crate::ledger::journal::Journal;
use crate::request::body::BodyBudget;
use crate::routing::switches::Switches;
use crate::snapshot::{Snapshot, SnapshotError};
use crate::telemetry::logger;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::readiness::Readiness;
use crate::upstream::pool::Registry;

/// Connections the kernel may hold before we accept them.
const BACKLOG: i32 = 4096;
/// More than any request may use; the limit that counts is the request's own.
const MAX_ATTEMPTS: usize = 16;
/// What a connection's streams may have under way unread; a stream keeps HTTP/2's 64 KiB.
const H2_CONNECTION_WINDOW: u32 = 1 << 20;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration has mistakes")]
    Config(Vec<Mistake>),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        address: SocketAddr,
        cause: io::Error,
    },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("cannot set up the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("server.store.redis: {0}")]
    Redis(#[from] ConnectError),
    #[error(transparent)]
    Bookkeeping(#[from] BookkeepingError),
    #[error("cannot set up the log: {0}")]
    Log(io::Error),
}

/// What the command line says of a gateway that is to run.
pub struct Start {
    /// Where its configuration comes from.
    pub sources: Sources,
    /// How often sources that are fetched are asked; zero for never.
    pub poll: Duration,
}

/// Runs the gateway until it is told to stop. On an orderly stop the process exits from within.
///
/// # Errors
/// If it cannot start; nothing is bound then, or no longer.
pub fn run(start: Start) -> Result<(), StartError> {
    let stamps = Stamps::of(start.sources.files());
    let reading = start.sources.read_now()?;
    let loaded = config::load(&reading.layers).map_err(StartError::Config)?;
    let metrics = Arc::new(Metrics::new()?);
    let flusher = logger::install(&loaded.settings.logging, metrics.log_lines_dropped.clone())
        .map_err(StartError::Log)?;
    metrics
        .build_info
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1.0);
    reading.notes.iter().for_each(Note::write);
    let parts = Parts::prepare(start, loaded, stamps, metrics)?;
    parts.start.sources.taken_over(&reading.layers);
    parts.start(flusher)
}

/// Everything that can fail has been done; what is left is to start.
struct Parts {
    start: Start,
    files: Files,
    settings: Arc<Settings>,
    snapshot: Snapshot,
    registry: Arc<Registry>,
    standing: Arc<Standing>,
    bookkeeping: Bookkeeping,
    certificates: Certificates,
    metrics: Arc<Metrics>,
    listening: Vec<Listening>,
    admin: Option<TcpListener>,
}

impl Parts {
    fn prepare(
        start: Start,
        loaded: Loaded,
        stamps: Stamps,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        info!(
            "Starting. version={} configuration={} digest={}",
            env!("CARGO_PKG_VERSION"),
            start.sources.names().join(" + "),
            loaded.digest
        );
        for warning in &loaded.warnings {
            warn!("Configuration: {warning}");
        }
        let kept = loaded.kept;
        let settings = Arc::new(loaded.settings);
        let server = &settings.server;
        let idle = server
            .upstream_idle_connections
            .saturating_mul(server.threads.max(1));
        let registry = Arc::new(Registry::keeping(idle));
        let standing = Arc::new(Standing::new(&settings.identity.signed_requests));
        let certificates = Certificates::first(&settings.server.listeners, metrics.clone())?;
        let mut listening = Vec::new();
        for (number, listener) in settings.server.listeners.iter().enumerate() {
            listening.push(Listening {
                socket: bind(listener.address)?,
                number,
                h2c: listener.h2c,
                tls: certificates.of(number),
                proxy_protocol_from: listener.proxy_protocol_from.clone(),
            });
        }
        let admin = settings
            .server
            .admin
            .as_ref()
            .map(|admin| bind(admin.address))
            .transpose()?;
        let shared = shared(&settings.server.store)?;
        let book = Arc::new(Book::default());
        let switches = Arc::new(Switches::new(registry.clone()));
        let bookkeeping = Bookkeeping::begin(
            &settings,
            Kept {
                counting: Arc::new(Counting::new(book, shared)),
                journal: Arc::new(Journal::default()),
                switches: switches.clone(),
                metrics: metrics.clone(),
            },
        )?;
        let book = &bookkeeping.kept().counting.book;
        let snapshot = Snapshot::new(settings.clone(), &registry, &standing, book, Instant::now())?;
        switches.follow();
        keep_configuration(&settings.server.state_dir, &kept);
        let files = Files {
            stamps,
            secrets: loaded.secret_files,
        };
        Ok(Self {
            start,
            files,
            settings,
            snapshot,
            registry,
            standing,
            bookkeeping,
            certificates,
            metrics,
            listening,
            admin,
        })
    }

    fn start(self, flusher: logger::Flusher) -> Result<(), StartError> {
        let Self {
            start,
            files,
            settings,
            snapshot,
            registry,
            standing,
            bookkeeping,
            certificates,
            metrics,
            listening,
            admin,
        } = self;
        let mut server = Server::new_with_opt_and_conf(None, server_conf(&settings.server));
        server.bootstrap();
        let current = Arc::new(ArcSwap::from_pointee(snapshot));
        let in_flight = Arc::new(Requests::default());
        let readiness = Readiness::new(metrics.ready.clone());
        let reloaded = Arc::new(Notify::new());
        let limits = &settings.server.limits;
        let (counting, journal, switches) = {
            let kept = bookkeeping.kept();
            let switches = kept.switches.clone();
            (kept.counting.clone(), kept.journal.clone(), switches)
        };
        let bookkeeper = bookkeeping.start(current.clone(), in_flight.clone())?;
        let gateway = Gateway {
            current: current.clone(),
            metrics: metrics.clone(),
            in_flight: in_flight.clone(),
            bodies: BodyBudget::new(limits.max_buffered_bodies, metrics.buffered_bytes.clone()),
            guessing: Guessing::new(),
            overload: Overload::default(),
            counting: counting.clone(),
            journal: journal.clone(),
            switches: switches.clone(),
            hasher: RandomState::new(),
        };
        let proxy = Arc::new(proxy(gateway, server.configuration.clone(), limits));
        let admittance = Admittance::new(accept_limits(limits), metrics.clone());
        server.add_service(Listeners::new(
            listening,
            proxy,
            admittance,
            settings.server.threads,
        ));
        if let (Some(socket), Some(settings)) = (admin, &settings.server.admin) {
            let service = AdminService::new(
                socket,
                settings.token.clone(),
                current.clone(),
                counting.clone(),
                switches.clone(),
                metrics.clone(),
                readiness.clone(),
            );
            server.add_service(background_service("admin", service));
        }
        let upkeep = Upkeep {
            current: current.clone(),
            readiness: readiness.clone(),
            reloaded: reloaded.clone(),
            pin_mismatches: metrics.upstream_pin_mismatches.clone(),
            credit: CreditWatch {
                current: current.clone(),
                metrics: metrics.clone(),
            },
            shared: counting.shared().cloned(),
        };
        server.add_service(background_service("upkeep", upkeep));
        let connections_open = metrics.connections_open.clone();
        let key_sets = KeySets {
            current: current.clone(),
            standing: standing.clone(),
            metrics: metrics.clone(),
        };
        let reloader = Reloader {
            sources: start.sources,
            poll: start.poll,
            read: parking_lot::Mutex::new(files),
            current,
            registry,
            standing,
            book: counting.book.clone(),
            switches,
            certificates,
            changing: tokio::sync::Mutex::default(),
            metrics,
            reloaded,
        };
        let reloader = Arc::new(reloader);
        let watch = FileWatch {
            reloader: reloader.clone(),
        };
        if let Some(counts) = counting.shared() {
            let service = SharedCounts(counts.clone());
            server.add_service(background_service("shared counts", service));
        }
        let follow = Together(vec![reloader, Arc::new(watch), Arc::new(key_sets)]);
        server.add_service(background_service("follow changes", follow));
        let grace = settings.server.shutdown_grace;
        let connections = connections_open;
        server.add_service(background_service(
            "drain",
            LastOneOut {
                in_flight: in_flight.clone(),
                grace,
                bookkeeper: bookkeeper.clone(),
                shared: counting.shared().cloned(),
                flusher,
                connections,
            },
        ));
        let stop = StopSignal {
            readiness,
            in_flight,
            pause: settings.server.shutdown_pause,
        };
        server.run(RunArgs {
            shutdown_signal: Box::new(stop),
        });
        bookkeeper.finish(LAST_WRITE);
        Ok(())
    }
}

fn proxy(gateway: Gateway, conf: Arc<ServerConf>, limits: &settings::Limits) -> HttpProxy<Gateway> {
    let mut proxy = HttpProxy::new(gateway, conf);
    let mut options = HttpServerOptions::default();
    // Whether a listener takes h2c is decided by its connections, see `Connection::try_peek`.
    options.h2c = true;
    // Pingora counts the times a connection is used again.
    options.keepalive_request_limit = Some(limits.requests_per_connection.saturating_sub(1));
    options.h2_idle_timeout = Some(limits.idle_timeout);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.initial_connection_window_size(H2_CONNECTION_WINDOW);
    proxy.h2_options = Some(h2);
    proxy.handle_init_modules();
    proxy
}

/// The counts in Redis, if that is where they are; connected later, so that a Redis that is down
/// stops no start. The name is this process's alone: it dies with what it holds.
fn shared(store: &settings::Store) -> Result<Option<Shared>, ConnectError> {
    let settings::Store::Redis(redis) = store else {
        return Ok(None);
    };
    let host = uuid::Uuid::now_v7().simple().to_string();
    let counts = RedisCounts::connect(redis, &host)?;
    Ok(Some(Shared {
        counts,
        fail: redis.fail,
    }))
}

/// Keeps in touch with Redis, until the process ends.
struct SharedCounts(Arc<RedisCounts>);

#[async_trait]
impl BackgroundService for SharedCounts {
    async fn start(&self, _shutdown: ShutdownWatch) {
        self.0.run().await;
    }
}

/// Services that are rarely awake, on one thread and runtime instead of one each.
struct Together(Vec<Arc<dyn BackgroundService + Send + Sync>>);

#[async_trait]
impl BackgroundService for Together {
    async fn start(&self, shutdown: ShutdownWatch) {
        let services = self.0.iter();
        join_all(services.map(|service| service.start(shutdown.clone()))).await;
    }
}

fn accept_limits(limits: &settings::Limits) -> AcceptLimits {
    AcceptLimits {
        max_connections: limits.max_connections,
        max_connections_per_ip: limits.max_connections_per_ip,
        head_timeout: limits.head_timeout,
        tls_handshake_timeout: limits.tls_handshake_timeout,
    }
}

fn server_conf(server: &settings::Server) -> ServerConf {
    ServerConf {
        threads: server.threads,
        work_stealing: true,
        // `LastOneOut` ends the process within the grace; this is only the net below it.
        grace_period_seconds: Some(server.shutdown_grace.as_secs().saturating_add(5)),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: server.upstream_idle_connections,
        max_retries: MAX_ATTEMPTS,
        ..ServerConf::default()
    }
}

/// Binds before anything starts, so that "ready" is never a promise.
fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let open = || -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|cause| StartError::Listen { address, cause })
}
