//! Decides whether the file that is open is still the one at its place, and still ours: SQLite goes on
//! writing into a file that somebody has deleted, and never sees what others write into it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Database, DatabaseError};

/// The file as it was seen last.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    /// `None` where the system did not say.
    seen: Option<Sight>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    file: (u64, u64),
    length: u64,
    /// Seconds and nanoseconds.
    written: (i64, i64),
}

impl From<Metadata> for Sight {
    fn from(metadata: Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Watched {
    pub(super) fn new(path: &Path) -> Self {
        let path = path.to_owned();
        let seen = fs::metadata(&path).ok().map(Sight::from);
        Self { path, seen }
    }

    /// What it is like now is as it should be, as after a write of ours.
    pub(super) fn take_note(&mut self) {
        if let Ok(metadata) = fs::metadata(&self.path) {
            let now = Sight::from(metadata);
            // Of another file nothing is as it should be.
            if self.seen.is_none_or(|seen| seen.file == now.file) {
                self.seen = Some(now);
            }
        }
    }
}

impl Database {
    /// Looks at the file from outside, which costs one call of the system as long as nobody else
    /// wrote to it. If somebody did, it is read whole.
    ///
    /// # Errors
    /// If it is gone, another one has its place, or what it holds was damaged.
    pub fn look(&mut self) -> Result<(), DatabaseError> {
        let path = &self.watched.path;
        let now = match fs::metadata(path) {
            Ok(metadata) => Sight::from(metadata),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                return Err(DatabaseError::Gone(path.clone()));
            }
            // Whoever cannot be asked is believed.
            Err(_) => return Ok(()),
        };
        let Some(seen) = self.watched.seen else {
            return Ok(());
        };
        if seen.file != now.file {
            return Err(DatabaseError::Gone(path.clone()));
        }
        if seen == now {
            return Ok(());
        }
        // Another process of ours writes as well while it leaves; only the content tells. What is
        // remembered of it must not answer in its place.
        self.connection.execute_batch("PRAGMA shrink_memory")?;
        super::open::check(&self.connection, path)?;
        self.watched.seen = Some(now);
        Ok(())
    }
}
