//! Says what is wrong with the database, and what kind of trouble that is.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why the database cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("{}: there is no database; a gateway makes one when it starts", .0.display())]
    Missing(PathBuf),
    #[error(
        "{}: written by a newer tidegate (its form is {found}, this one knows up to {known}); run that one, or move the file away to begin with empty counts",
        path.display()
    )]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error(
        "{}: written by an older tidegate (its form is {found}, this one reads {known}); start the gateway once, which brings it up to date",
        path.display()
    )]
    Older {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// Found while opening; [`super::Database::open`] mends it and does not return it.
    #[error("{}: not a database of tidegate: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    /// Found by [`super::Database::look`].
    #[error("{}: the file that is in use was deleted or replaced", .0.display())]
    Gone(PathBuf),
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl DatabaseError {
    pub(super) fn file(path: &Path, cause: io::Error) -> Self {
        let path = path.to_owned();
        Self::File { path, cause }
    }

    /// The file does not hold what it should. Opening it anew moves it aside.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            _ => matches!(
                self.code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ),
        }
    }

    /// What is open is not the file at its place any more. Nothing that is written will be found.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone(_))
    }

    /// No room on the disk. Worth another try later.
    pub fn is_full(&self) -> bool {
        match self {
            Self::File { cause, .. } => matches!(
                cause.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            _ => self.code() == Some(ErrorCode::DiskFull),
        }
    }

    /// The file or its folder cannot be written, or not be opened at all. Worth another try later,
    /// when somebody has looked at it.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::File { cause, .. } => matches!(
                cause.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
            ),
            _ => matches!(
                self.code(),
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen)
            ),
        }
    }

    /// Another process writes for longer than we wait. Worth another try at once.
    pub fn is_busy(&self) -> bool {
        matches!(
            self.code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        )
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sqlite(cause) => cause.sqlite_error_code(),
            _ => None,
        }
    }
}
