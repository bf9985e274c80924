//! Takes a changed configuration over without dropping anything: all of it or nothing.
//!
//! Read, checked and built beside the one in use; only then put in its place, by one pointer.
//! Requests under way finish with the snapshot they began with. What needs a restart is said and
//! left as it was.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use log::{error, info, warn};
use tokio::sync::Notify;

use super::renewal::Certificates;
use super::sources::{Reading, SourceError, Sources};
use super::triggers::Files;
use crate::admission::book::Book;
use crate::config::{self, Mistake, Settings, diff};
use crate::identity::standing::Standing;
use crate::routing::switches::Switches;
use crate::snapshot::{Current, Snapshot, SnapshotError};
use crate::telemetry::logger;
use crate::telemetry::metrics::Metrics;
use crate::upstream::discovery;
use crate::upstream::pool::Registry;

pub struct Reloader {
    pub sources: Sources,
    /// How often sources that are fetched are asked; zero for never.
    pub poll: Duration,
    /// The files of the configuration in use, as they were read.
    pub read: parking_lot::Mutex<Files>,
    pub current: Current,
    pub registry: Arc<Registry>,
    pub standing: Arc<Standing>,
    pub book: Arc<Book>,
    pub switches: Arc<Switches>,
    pub certificates: Certificates,
    /// One change at a time.
    pub changing: tokio::sync::Mutex<()>,
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
    Source(#[from] SourceError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
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
    /// Takes over what the sources said.
    ///
    /// # Errors
    /// If it cannot be used; the one in use stays in every part.
    pub async fn reload(&self, reading: Reading) -> Result<(), ReloadError> {
        let _turn = self.changing.lock().await;
        let loaded = config::load(&reading.layers).map_err(ReloadError::Mistakes)?;
        for warning in &loaded.warnings {
            warn!("Configuration: {warning}");
        }
        let running = self.current.load_full();
        let mut settings = loaded.settings;
        let difference = diff::diff(&running.settings, &settings);
        settings.server = running.settings.server.clone();
        settings.logging.format = running.settings.logging.format;
        let snapshot = self.prepare(Arc::new(settings))?;
        let listeners = &snapshot.settings.server.listeners;
        self.certificates.renew(listeners)?;
        logger::set_level(snapshot.settings.logging.level);
        // A request that the new snapshot serves finds every upstream's addresses.
        join_all(snapshot.pools.iter().map(|pool| discovery::resolve(pool))).await;
        if difference.needs_restart.is_empty() {
            keep_configuration(&snapshot.settings.server.state_dir, &loaded.kept);
        }
        self.standing
            .forget_others(&snapshot.settings.identity.tokens);
        self.current.store(Arc::new(snapshot));
        // Who waits may profit by the change at once.
        self.current.load().pump(Instant::now());
        self.reloaded.notify_one();
        self.sources.taken_over(&reading.layers);
        self.read.lock().secrets = loaded.secret_files;
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

    /// Builds the settings in use anew, for files beside the configuration that have changed.
    pub async fn rebuild(&self) {
        let _turn = self.changing.lock().await;
        let settings = self.current.load().settings.clone();
        match self.prepare(settings) {
            Ok(snapshot) => {
                self.current.store(Arc::new(snapshot));
                self.reloaded.notify_one();
                info!("The files of upstreams and token issuers were read again.");
            }
            Err(cause) => {
                error!(
                    "The files of upstreams and token issuers stay as they are. cause=\"{cause}\""
                );
            }
        }
    }

    fn prepare(&self, settings: Arc<Settings>) -> Result<Snapshot, SnapshotError> {
        let (registry, standing, book) = (&self.registry, &self.standing, &self.book);
        let snapshot = Snapshot::new(settings, registry, standing, book, Instant::now())?;
        // Before it is used: a drained account of it takes no request.
        self.switches.follow();
        Ok(snapshot)
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

pub(super) fn seconds_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
