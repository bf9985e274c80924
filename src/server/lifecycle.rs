//! From "ready" to "gone": readiness, what systemd is told, and how the process ends.
//!
//! Ready means: the listening sockets are bound, every upstream has been resolved and asked once,
//! and so has the Redis that counts are shared in, if it answers within two seconds. On SIGTERM readiness goes first, then (after a pause in which load balancers notice) the
//! listeners, then each connection with its last request; the process exits with the last stream,
//! at the latest when the grace is over. A second signal ends it at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use log::{info, warn};
use pingora::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::BackgroundService;
use prometheus::IntGauge;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::bookkeeping::Bookkeeper;
use crate::admission::store_redis::RedisCounts;
use crate::downstream::in_flight::Requests;
use crate::telemetry::logger::Flusher;
use crate::telemetry::readiness::Readiness;

/// How long the last log lines may take.
const FLUSH_TIME: Duration = Duration::from_secs(2);
/// How long the last write of the counts may take.
pub const LAST_WRITE: Duration = Duration::from_secs(5);
/// How long connections may outlive the last request, and how often they are looked at.
const LAST_BYTES: Duration = Duration::from_millis(500);
const LAST_BYTES_TICK: Duration = Duration::from_millis(10);

/// Tells the service manager, if there is one; that there is none is no error.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(cause) = sd_notify::notify(false, states) {
        warn!("Cannot notify systemd. cause=\"{cause}\"");
    }
}

/// Notes that the upstreams are known; the first time, the gateway is ready and says so.
pub fn upstreams_known(readiness: &Readiness) {
    if readiness.upstreams_known() {
        tell(&[NotifyState::Ready]);
        info!("Ready.");
    }
}

/// Tells systemd that a reload has begun, or is over.
pub fn tell_reload(done: bool) {
    if done {
        tell(&[NotifyState::Ready]);
    } else {
        tell(&[NotifyState::Reloading]);
    }
}

/// Pingora's question "when shall we stop?", answered.
pub struct StopSignal {
    pub readiness: Arc<Readiness>,
    pub in_flight: Arc<Requests>,
    pub pause: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for StopSignal {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            warn!("Cannot watch for signals; stop the gateway with SIGKILL.");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!(
            "Stopping: readiness withdrawn. in_flight={} pause={:?}",
            self.in_flight.count(),
            self.pause
        );
        self.readiness.withdraw();
        tell(&[NotifyState::Stopping]);
        self.in_flight.begin_drain();
        tokio::select! {
            () = tokio::time::sleep(self.pause) => ShutdownSignal::GracefulTerminate,
            _ = terminate.recv() => ShutdownSignal::FastShutdown,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        }
    }
}

/// Ends the process with the last request.
pub struct LastOneOut {
    pub in_flight: Arc<Requests>,
    pub grace: Duration,
    pub bookkeeper: Arc<Bookkeeper>,
    /// The counts in Redis, which are told the last settlements.
    pub shared: Option<Arc<RedisCounts>>,
    pub flusher: Flusher,
    /// Client connections; they close once their last bytes are out.
    pub connections: IntGauge,
}

#[async_trait]
impl BackgroundService for LastOneOut {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        while !*shutdown.borrow() {
            if shutdown.changed().await.is_err() {
                return;
            }
        }
        let began = Instant::now();
        let cause = tokio::select! {
            () = self.last_bytes() => "the last request ended",
            () = tokio::time::sleep(self.grace) => "the grace is over",
            () = second_signal() => "a second signal came",
        };
        info!(
            "Stopped: {cause}. in_flight={} after={:?}",
            self.in_flight.count(),
            began.elapsed()
        );
        if let Some(counts) = &self.shared {
            counts.finish(LAST_WRITE).await;
        }
        self.bookkeeper.finish(LAST_WRITE);
        self.flusher.flush(FLUSH_TIME);
        exit();
    }
}

impl LastOneOut {
    /// Waits for the last request, and then a moment for its connection: on HTTP/2 the last bytes
    /// are still with the connection's own task.
    async fn last_bytes(&self) {
        self.in_flight.idle().await;
        let until = Instant::now() + LAST_BYTES;
        while self.connections.get() > 0 && Instant::now() < until {
            tokio::time::sleep(LAST_BYTES_TICK).await;
        }
    }
}

/// Pingora sleeps its whole grace period whatever happens; only leaving ends it early.
#[expect(
    clippy::disallowed_methods,
    reason = "the one orderly end of the process, after the last request and the last log line"
)]
fn exit() -> ! {
    std::process::exit(0)
}

async fn second_signal() {
    let streams: [Option<Signal>; 2] = [
        signal(SignalKind::terminate()).ok(),
        signal(SignalKind::interrupt()).ok(),
    ];
    let [Some(mut terminate), Some(mut interrupt)] = streams else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Pings systemd's watchdog, twice per interval as sd_watchdog_enabled(3) advises.
pub async fn feed_watchdog() {
    let mut micros = 0;
    if !sd_notify::watchdog_enabled(false, &mut micros) || micros == 0 {
        return;
    }
    let mut tick = tokio::time::interval(Duration::from_micros(micros / 2));
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
