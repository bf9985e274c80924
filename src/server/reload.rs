//! Takes a changed configuration over without dropping anything: all of it or nothing.
//!
//! Read, checked and built beside the one in use; only then put in its place, by one pointer.
//! Requests under way finish with the snapshot they began with. What needs a restart is said and
//! left as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use futures_util::future::join_all;
use log::{error, info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::lifecycle::tell_reload;
use super::tls::Acceptor;
use crate::config::{self, Mistake, diff};
use crate::snapshot::{Current, Snapshot};
use crate::telemetry::logger;
use crate::telemetry::metrics::Metrics;
use crate::upstream::discovery;
use crate::upstream::pool::{PoolError, Registry};

pub struct Reloader {
    pub path: PathBuf,
    pub current: Current,
    pub registry: Arc<Registry>,
    /// By listener, in the order of the configuration.
    pub acceptors: Vec<Option<Arc<Acceptor>>>,
    pub metrics: Arc<Metrics>,
    /// Rung when a new snapshot is in place.
    pub reloaded: Arc<Notify>,
}

/// Why the configuration in use stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("{} in the configuration: {}", count(.0), list(.0))]
    Mistakes(Vec<Mistake>),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Certificate(#[from] super::tls::CertificateError),
}

fn count(mistakes: &[Mistake]) -> String {
    match mistakes.len() {
        1 => "1 mistake".to_owned(),
        many => format!("{many} mistakes"),
    }
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" | ")
}

impl Reloader {
    /// Reads the configuration again and takes it over.
    ///
    /// # Errors
    /// If it cannot be used; the one in use stays in every part.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let loaded = config::load(&[config::Layer::Path(self.path.clone())])
            .map_err(ReloadError::Mistakes)?;
        for warning in &loaded.warnings {
            warn!("Configuration: {warning}");
        }
        let running = self.current.load_full();
        let mut settings = loaded.settings;
        let difference = diff::diff(&running.settings, &settings);
        settings.server = running.settings.server.clone();
        settings.logging.format = running.settings.logging.format;
        let snapshot = Snapshot::new(Arc::new(settings), &self.registry, Instant::now())?;
        self.reload_certificates(&snapshot)?;
        logger::set_level(snapshot.settings.logging.level);
        // A request that the new snapshot serves finds every upstream's addresses.
        join_all(snapshot.pools.iter().map(|pool| discovery::resolve(pool))).await;
        if difference.needs_restart.is_empty() {
            keep_configuration(&snapshot.settings.server.state_dir, &loaded.kept);
        }
        self.current.store(Arc::new(snapshot));
        self.reloaded.notify_one();
        for change in &difference.changed {
            info!("Reloaded: {change}");
        }
        for key in &difference.needs_restart {
            warn!("Changed in the file, but needs a restart to take effect: {key}");
        }
        if difference.is_empty() {
            info!("Reloaded: nothing has changed but what secrets and certificates may hold.");
        }
        Ok(())
    }

    /// All certificates are read before any is replaced.
    fn reload_certificates(&self, snapshot: &Snapshot) -> Result<(), ReloadError> {
        let listeners = snapshot
            .settings
            .server
            .listeners
            .iter()
            .zip(&self.acceptors);
        let pairs: Vec<_> = listeners
            .filter_map(|(listener, acceptor)| listener.tls.as_ref().zip(acceptor.as_ref()))
            .collect();
        let fresh = pairs
            .iter()
            .map(|(tls, _)| Acceptor::read(tls))
            .collect::<Result<Vec<_>, _>>()?;
        for ((_, acceptor), fresh) in pairs.iter().zip(fresh) {
            acceptor.replace(fresh);
        }
        Ok(())
    }

    async fn reload_and_tell(&self) {
        tell_reload(false);
        let result = match self.reload().await {
            Ok(()) => {
                self.metrics.last_reload.set(seconds_now());
                "ok"
            }
            Err(cause) => {
                error!("Reload refused, the configuration in use stays. cause=\"{cause}\"");
                "refused"
            }
        };
        self.metrics.reloads.with_label_values(&[result]).inc();
        tell_reload(true);
    }
}

#[async_trait]
impl BackgroundService for Reloader {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else {
            error!("Cannot watch for SIGHUP; the configuration cannot be reloaded.");
            return;
        };
        self.metrics.last_reload.set(seconds_now());
        loop {
            tokio::select! {
                _ = hangup.recv() => self.reload_and_tell().await,
                changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
            }
        }
    }
}

/// Keeps the configuration in use where `check --diff` finds it; serving does not depend on it.
pub(super) fn keep_configuration(state_dir: &Path, text: &str) {
    if let Err(cause) = config::kept::keep(state_dir, text) {
        warn!(
            "Cannot keep the configuration in use; `check --diff` will not find it. state_dir={} cause=\"{cause}\"",
            state_dir.display()
        );
    }
}

fn seconds_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
