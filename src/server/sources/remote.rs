//! One URL of the configuration: what it said last, what of that was taken over, and the copy that
//! stands in for it while it is away. It asks nobody itself.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use log::{Level, info, warn};
use parking_lot::Mutex;

use super::{Note, SourceError};
use crate::config::Layer;
use crate::config::kept::Copy;
use crate::config::text::format_duration;
use crate::fetch::{FetchError, Fetched, Location, Validators};

/// A URL and its history.
pub struct Remote {
    pub location: Location,
    copy: Copy,
    said: Mutex<Said>,
}

/// What a URL is known to have said.
#[derive(Default)]
struct Said {
    /// Of `newest`.
    validators: Validators,
    newest: Option<Arc<[u8]>>,
    /// What was taken over last, which is also what the copy holds.
    good: Option<Arc<[u8]>>,
    /// Why it could not be asked the last time.
    failing: Option<String>,
}

impl Remote {
    /// `copies` is the folder of the copies.
    pub fn new(location: Location, copies: &Path) -> Self {
        Self {
            copy: Copy::of(copies, location.exact()),
            location,
            said: Mutex::default(),
        }
    }

    pub fn layer(&self, bytes: Arc<[u8]>) -> Layer {
        Layer::Text {
            name: self.location.to_string(),
            bytes,
        }
    }

    /// By what its newest words are told from others.
    pub fn validators(&self) -> Validators {
        let said = self.said.lock();
        let known = said.newest.as_ref().map(|_| said.validators.clone());
        known.unwrap_or_default()
    }

    /// Its newest words, or those that were good before it was away.
    pub fn latest(&self) -> Option<Arc<[u8]>> {
        let said = self.said.lock();
        said.newest.clone().or_else(|| said.good.clone())
    }

    /// Notes that `bytes` are in use, and keeps them.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn taken_over(&self, bytes: &Arc<[u8]>) -> io::Result<()> {
        let before = self.said.lock().good.replace(bytes.clone());
        if before.as_ref() == Some(bytes) {
            return Ok(());
        }
        self.copy.keep(bytes)
    }

    /// Takes an answer in and gives back its newest words. A failure is told to the log once.
    ///
    /// # Errors
    /// If there was none.
    pub fn hear(&self, answer: Result<Fetched, FetchError>) -> Result<Arc<[u8]>, FetchError> {
        let answer = answer.inspect_err(|cause| self.missed(&cause.to_string()))?;
        let mut said = self.said.lock();
        if said.failing.take().is_some() {
            info!(
                "The configuration source answers again. source={}",
                self.location
            );
        }
        if let Fetched::Document { bytes, validators } = answer {
            said.newest = Some(Arc::from(bytes));
            said.validators = validators;
        }
        // The client refuses a 304 to a question without a condition.
        said.newest.clone().ok_or(FetchError::Status(304))
    }

    /// Notes that it could not be asked, and tells the log if that is new.
    pub fn missed(&self, cause: &str) {
        let mut said = self.said.lock();
        if said.failing.as_deref() != Some(cause) {
            warn!(
                "The configuration source cannot be asked. source={} cause=\"{cause}\"",
                self.location
            );
        }
        said.failing = Some(cause.to_owned());
    }

    /// What was good last, in memory or on disk, with a note of it.
    ///
    /// # Errors
    /// If nothing was.
    pub fn stand_in(
        &self,
        cause: FetchError,
        notes: &mut Vec<Note>,
    ) -> Result<Arc<[u8]>, SourceError> {
        let mut said = self.said.lock();
        if let Some(good) = &said.good {
            notes.push(Note {
                level: Level::Warn,
                text: format!(
                    "What the configuration source said last is in use. source={} cause=\"{cause}\"",
                    self.location
                ),
            });
            return Ok(good.clone());
        }
        let Ok((bytes, kept)) = self.copy.load() else {
            return Err(SourceError::Away {
                location: self.location.to_string(),
                copy: self.copy.path().to_owned(),
                cause,
            });
        };
        notes.push(Note {
            level: Level::Error,
            text: format!(
                "THE CONFIGURATION SOURCE IS AWAY; the last good copy is in use. source={} age={} copy={} cause=\"{cause}\"",
                self.location,
                age(kept, SystemTime::now()),
                self.copy.path().display()
            ),
        });
        let bytes: Arc<[u8]> = Arc::from(bytes);
        said.good = Some(bytes.clone());
        Ok(bytes)
    }
}

fn age(kept: SystemTime, now: SystemTime) -> String {
    let age = now.duration_since(kept).unwrap_or_default();
    format_duration(Duration::from_secs(age.as_secs()))
}
