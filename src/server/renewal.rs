//! Takes over certificates, keys, authorities and revocation lists that were exchanged on disk,
//! on reload and when the files change; and shouts when something is about to expire.
//!
//! A file that cannot be used leaves the old one in service: a renewal that went wrong must not
//! take a listener down that still has a good certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use log::{error, info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::reload::{Reloader, seconds_now};
use super::tls::{Acceptor, CertificateError, Fresh, expired};
use super::watch::{Look, SETTLE, Stamps, Watch};
use crate::config::settings::{Listener, ListenerTls, Settings, TokenKeys};
use crate::identity::expiry;
use crate::telemetry::metrics::Metrics;

/// How often the nearing end of something is told.
const REMINDER: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

/// The listeners' TLS: by listener, in the order of the configuration.
pub struct Certificates {
    acceptors: Vec<Option<Arc<Acceptor>>>,
    metrics: Arc<Metrics>,
}

impl Certificates {
    /// Reads all for the first time. An expired certificate is served all the same: clients that
    /// look will refuse it, and those that do not are better off than without a gateway.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn first(listeners: &[Listener], metrics: Arc<Metrics>) -> Result<Self, CertificateError> {
        let mut acceptors = Vec::new();
        for listener in listeners {
            let Some(tls) = &listener.tls else {
                acceptors.push(None);
                continue;
            };
            let fresh = Fresh::read(tls)?;
            if let Some(path) = expired(&fresh.certificates, now()) {
                error!(
                    "Serving a certificate that has expired. listener={} certificate={}",
                    listener.address,
                    path.display()
                );
            }
            show(&metrics, listener, &fresh);
            acceptors.push(Some(Arc::new(Acceptor::new(fresh))));
        }
        Ok(Self { acceptors, metrics })
    }

    pub fn of(&self, listener: usize) -> Option<Arc<Acceptor>> {
        self.acceptors.get(listener)?.clone()
    }

    /// Reads all anew before any is replaced.
    ///
    /// # Errors
    /// If a file cannot be used; nothing is replaced then. An expired certificate is no reason:
    /// its listener keeps what it has, and the log says so.
    pub fn renew(&self, listeners: &[Listener]) -> Result<(), CertificateError> {
        let fresh = self
            .pairs(listeners)
            .map(|(_, tls, _)| Fresh::read(tls))
            .collect::<Result<Vec<_>, _>>()
            .inspect_err(|_| self.count("refused"))?;
        for ((listener, _, acceptor), fresh) in self.pairs(listeners).zip(fresh) {
            self.replace(listener, acceptor, fresh);
        }
        Ok(())
    }

    fn pairs<'a>(
        &'a self,
        listeners: &'a [Listener],
    ) -> impl Iterator<Item = (&'a Listener, &'a ListenerTls, &'a Acceptor)> {
        listeners
            .iter()
            .zip(&self.acceptors)
            .filter_map(|(listener, acceptor)| {
                Some((listener, listener.tls.as_ref()?, acceptor.as_deref()?))
            })
    }

    fn replace(&self, listener: &Listener, acceptor: &Acceptor, fresh: Fresh) {
        let good = expired(&acceptor.served(), now()).is_none();
        if let Some(path) = expired(&fresh.certificates, now()).filter(|_| good) {
            error!(
                "Not taking over a certificate that has expired; the one in use stays. listener={} certificate={}",
                listener.address,
                path.display()
            );
            acceptor.replace_trust(fresh);
            self.count("expired");
            return;
        }
        show(&self.metrics, listener, &fresh);
        acceptor.replace(fresh);
        self.count("ok");
    }

    fn count(&self, result: &str) {
        self.metrics
            .certificate_reloads
            .with_label_values(&[result])
            .inc();
    }
}

fn show(metrics: &Metrics, listener: &Listener, fresh: &Fresh) {
    let address = listener.address.to_string();
    for served in &fresh.certificates {
        metrics
            .certificate_expiry
            .with_label_values(&[&address, &served.path.display().to_string()])
            .set(served.not_after as f64);
    }
}

/// Looks at the files, and at the calendar.
pub struct FileWatch {
    pub reloader: Arc<Reloader>,
}

#[async_trait]
impl BackgroundService for FileWatch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let settings = self.reloader.current.load().settings.clone();
        let every = settings.server.watch_files;
        let usual = if every.is_zero() { HOUR } else { every };
        let mut watches = Watches {
            listeners: Watch::new(Stamps::of(of_listeners(&settings.server.listeners))),
            others: Watch::new(Stamps::of(of_snapshot(&settings))),
        };
        let mut reminded = None;
        let mut pause = usual;
        loop {
            self.remind(&mut reminded);
            tokio::select! {
                changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
                () = tokio::time::sleep(pause) => {}
            }
            let settling = !every.is_zero() && self.look(&mut watches).await;
            pause = if settling { SETTLE.min(usual) } else { usual };
        }
    }
}

/// What is watched, by what follows from a change.
struct Watches {
    listeners: Watch,
    others: Watch,
}

impl FileWatch {
    /// Takes over what has changed; true if something is still being written.
    async fn look(&self, watches: &mut Watches) -> bool {
        let settings = self.reloader.current.load().settings.clone();
        let listeners = &settings.server.listeners;
        let ours = watches.listeners.look(Stamps::of(of_listeners(listeners)));
        if ours == Look::Changed {
            info!("TLS files of listeners have changed.");
            let _turn = self.reloader.changing.lock().await;
            self.renew(listeners);
        }
        let others = watches.others.look(Stamps::of(of_snapshot(&settings)));
        if others == Look::Changed {
            info!("Files of upstreams or token issuers have changed.");
            self.reloader.rebuild().await;
        }
        ours == Look::Settling || others == Look::Settling
    }

    fn renew(&self, listeners: &[Listener]) {
        let certificates = &self.reloader.certificates;
        match certificates.renew(listeners) {
            Ok(()) => info!("The listeners' certificates were read again."),
            Err(cause) => {
                error!("The listeners' certificates stay as they are. cause=\"{cause}\"");
            }
        }
    }

    /// Tells once a day what ends soon.
    fn remind(&self, last: &mut Option<Instant>) {
        if last.is_some_and(|last| last.elapsed() < REMINDER) {
            return;
        }
        *last = Some(Instant::now());
        let snapshot = self.reloader.current.load_full();
        let settings = &snapshot.settings;
        let ahead = settings.identity.warn_before_expiry.as_secs();
        let horizon = now().saturating_add_unsigned(ahead);
        let tenants = settings.tenants.iter().map(|tenant| &**tenant);
        for ending in expiry::endings(tenants).filter(|ending| ending.not_after <= horizon) {
            warn!(
                "A credential ends soon. tenant={} kind={} credential={} not_after={}",
                ending.tenant,
                ending.kind.as_str(),
                ending.id,
                date(ending.not_after)
            );
        }
        let certificates = &self.reloader.certificates;
        for (listener, _, acceptor) in certificates.pairs(&settings.server.listeners) {
            for served in acceptor
                .served()
                .iter()
                .filter(|served| served.not_after <= horizon)
            {
                warn!(
                    "A certificate ends soon. listener={} certificate={} not_after={}",
                    listener.address,
                    served.path.display(),
                    date(served.not_after)
                );
            }
        }
    }
}

fn of_listeners(listeners: &[Listener]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for tls in listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref())
    {
        for files in &tls.certificates {
            paths.extend([files.certificate.clone(), files.private_key.clone()]);
        }
        if let Some(clients) = &tls.clients {
            paths.push(clients.ca.clone());
            paths.extend(clients.crl.clone());
        }
    }
    paths
}

/// Files that are read when a snapshot is built.
fn of_snapshot(settings: &Settings) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for upstream in &settings.upstreams {
        paths.extend(upstream.tls.ca.clone());
        if let Some(files) = &upstream.tls.client {
            paths.extend([files.certificate.clone(), files.private_key.clone()]);
        }
    }
    for issuer in &settings.identity.tokens {
        if let TokenKeys::File(path) = &issuer.keys {
            paths.push(path.clone());
        }
    }
    paths
}

fn now() -> i64 {
    seconds_now() as i64
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}
