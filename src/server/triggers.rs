//! Decides when the configuration is read again: on SIGHUP, when a source that is fetched has
//! changed, and when a file has. Each asks for the same reload; which one it was is logged and
//! counted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use log::{error, info};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};

use super::lifecycle::tell_reload;
use super::reload::{ReloadError, Reloader, seconds_now};
use super::sources::{Note, Polled};
use super::watch::{Look, SETTLE, Stamps, Watch};

/// What the configuration in use was read from.
#[derive(Default)]
pub struct Files {
    pub stamps: Stamps,
    /// Where its secrets come from.
    pub secrets: Vec<PathBuf>,
}

/// What asked for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trigger {
    Signal,
    /// A source that is fetched has changed.
    Poll,
    /// A file has changed.
    Watch,
}

impl Trigger {
    fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Poll => "poll",
            Self::Watch => "watch",
        }
    }
}

impl Reloader {
    async fn reload_and_tell(&self, trigger: Trigger) {
        tell_reload(false);
        let by = trigger.as_str();
        info!("Reading the configuration again. trigger={by}");
        let result = match self.read_and_reload(trigger).await {
            Ok(()) => {
                self.metrics.last_reload.set(seconds_now());
                "ok"
            }
            Err(cause) => {
                error!(
                    "Reload refused, the configuration in use stays. trigger={by} cause=\"{cause}\""
                );
                "refused"
            }
        };
        self.metrics.reloads.with_label_values(&[result, by]).inc();
        tell_reload(true);
    }

    async fn read_and_reload(&self, trigger: Trigger) -> Result<(), ReloadError> {
        // Good or bad, these files have been seen.
        let seen = Stamps::of(self.watched());
        self.read.lock().stamps = seen;
        let known = match trigger {
            Trigger::Poll => self.sources.latest(),
            // A signal means now, so every source is asked.
            Trigger::Signal | Trigger::Watch => None,
        };
        let reading = match known {
            Some(reading) => reading,
            None => self.sources.read().await?,
        };
        reading.notes.iter().for_each(Note::write);
        self.reload(reading).await
    }

    /// The files to watch, as they looked when they were read; those that are new to the list as
    /// they look now.
    fn files_as_read(&self) -> Stamps {
        let watched = self.watched();
        Stamps::since(&self.read.lock().stamps, watched)
    }

    fn watched(&self) -> Vec<PathBuf> {
        let mut files = self.sources.files();
        files.extend(self.read.lock().secrets.iter().cloned());
        files
    }

    /// Asks the sources that are fetched, and reloads if one has changed. Did it reload?
    async fn ask_sources(&self) -> bool {
        let polled = self.sources.poll().await;
        let result = match polled {
            Polled::Unchanged => "unchanged",
            Polled::Changed => "changed",
            Polled::Failed => "failed",
        };
        self.metrics.source_polls.with_label_values(&[result]).inc();
        if polled != Polled::Failed {
            self.metrics.source_answer.set(seconds_now());
        }
        let changed = polled == Polled::Changed;
        if changed {
            self.reload_and_tell(Trigger::Poll).await;
        }
        changed
    }
}

/// When the next look at something is due; never, if it is not looked at.
struct Turn {
    every: Option<Duration>,
    next: Instant,
}

impl Turn {
    fn new(every: Duration, now: Instant) -> Self {
        Self {
            every: Some(every).filter(|every| !every.is_zero()),
            next: now + every,
        }
    }

    async fn comes(&self) {
        match self.every {
            Some(_) => tokio::time::sleep_until(self.next.into()).await,
            None => std::future::pending().await,
        }
    }

    fn done(&mut self, now: Instant) {
        self.next = now + self.every.unwrap_or_default();
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
        let every = self.current.load().settings.server.watch_configuration;
        let asked = if self.sources.are_remote() {
            self.poll
        } else {
            Duration::ZERO
        };
        let mut look = Turn::new(every, Instant::now());
        let mut ask = Turn::new(asked, Instant::now());
        let mut watch = Watch::new(self.files_as_read());
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    self.reload_and_tell(Trigger::Signal).await;
                    watch = Watch::new(self.files_as_read());
                }
                () = ask.comes() => {
                    if self.ask_sources().await {
                        watch = Watch::new(self.files_as_read());
                    }
                    ask.done(Instant::now());
                }
                () = look.comes() => {
                    look.done(Instant::now());
                    match watch.look(Stamps::of(self.watched())) {
                        Look::Same => {}
                        Look::Settling => look.next = Instant::now() + SETTLE,
                        Look::Changed => {
                            self.reload_and_tell(Trigger::Watch).await;
                            watch = Watch::new(self.files_as_read());
                        }
                    }
                }
                changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
            }
        }
    }
}
