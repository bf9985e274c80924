//! Opens the database and decides what becomes of a file that cannot be used: it is moved aside, and
//! an empty one takes its place.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};

use super::watch::Watched;
use super::{Database, DatabaseError, schema};

/// Its name in `state_dir`.
pub const FILE: &str = "tidegate.db";

/// How long one process waits while another writes; a write takes milliseconds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Who used what is nobody else's business.
const MODE: u32 = 0o600;
/// A file up to this is read whole when it is opened, in bytes: a second of a slow disk.
const MOST_CHECKED: u64 = 64 << 20;
/// The log is cut back to this after a burst, in bytes.
const MOST_LOG: i64 = 16 << 20;

/// A database that can be used.
#[derive(Debug)]
pub struct Opened {
    pub database: Database,
    pub state: State,
}

/// What was found at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing: all counts begin at zero.
    Fresh,
    /// What a process before wrote.
    Existing,
    /// Something that could not be used, and why. It was moved, and all counts begin at zero.
    Replaced { aside: PathBuf, why: String },
}

impl Database {
    /// Opens the database at `path`, or makes it, for this user alone; the folder as well. A file
    /// that is none of ours or does not hold together is moved to
    /// `<path>.corrupt-<unix seconds>` together with its log.
    ///
    /// It reads the file once, but not a large ledger. A process that has it open already must have dropped it before,
    /// if it was found to be corrupt.
    ///
    /// # Errors
    /// If a newer tidegate wrote it, or it can neither be read nor made; see
    /// [`DatabaseError::is_read_only`], [`DatabaseError::is_full`] and [`DatabaseError::is_busy`].
    pub fn open(path: &Path, now: Timestamp) -> Result<Opened, DatabaseError> {
        match try_open(path) {
            Err(error) if error.is_corrupt() => {
                let aside = move_aside(path, now)?;
                let (database, _) = try_open(path)?;
                let why = error.to_string();
                let state = State::Replaced { aside, why };
                Ok(Opened { database, state })
            }
            Err(error) => Err(error),
            Ok((database, state)) => Ok(Opened { database, state }),
        }
    }
}

fn try_open(path: &Path) -> Result<(Database, State), DatabaseError> {
    make(path).map_err(|cause| DatabaseError::file(path, cause))?;
    // Without URIs: a path means what it says.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // The first statement that reads: here it shows whether it is a database at all. A file whose
    // form is newer is left as it is.
    let header = schema::header(&connection)?;
    if header.application_id == schema::APPLICATION_ID && header.version > schema::known() {
        return Err(DatabaseError::Newer {
            path: path.to_owned(),
            found: header.version,
            known: schema::known(),
        });
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", MOST_LOG)?;
    let fresh = schema::bring_up_to_date(&mut connection, path)?;
    if !fresh {
        check(&connection, path)?;
    }
    let state = if fresh { State::Fresh } else { State::Existing };
    let watched = Watched::new(path);
    let database = Database {
        connection,
        watched,
    };
    Ok((database, state))
}

/// Makes an empty file with the right permissions, which its log inherits, if there is none.
///
/// A file that is there is not opened: closing it again would take away the locks that another
/// connection of this process has on it.
fn make(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    match options.write(true).create_new(true).mode(MODE).open(path) {
        Ok(_) => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
            let now = fs::metadata(path)?.permissions().mode() & 0o777;
            if now & !MODE != 0 {
                fs::set_permissions(path, Permissions::from_mode(now & MODE))?;
            }
            Ok(())
        }
        Err(cause) => Err(cause),
    }
}

/// Reads what must hold together before anybody counts by it. The ledger, which grows, only while it
/// is small: what is damaged there is found when it is read.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), DatabaseError> {
    let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
    let tables: &[&str] = match size {
        0..=MOST_CHECKED => &["1"],
        _ => &[
            "meta",
            "counters",
            "held",
            "settlements",
            "learned",
            "switches",
        ],
    };
    for table in tables {
        let check = format!("PRAGMA quick_check({table})");
        let found: String = connection.query_row(&check, [], |row| row.get(0))?;
        if found != "ok" {
            return Err(DatabaseError::Damaged {
                path: path.to_owned(),
                what: found,
            });
        }
    }
    Ok(())
}

/// Renames the file and its log alike, so that SQLite's own tools find both.
fn move_aside(path: &Path, now: Timestamp) -> Result<PathBuf, DatabaseError> {
    let base = format!(".corrupt-{}", now.as_second());
    let names = (0..100).map(|number| match number {
        0 => with(path, &base),
        _ => with(path, &format!("{base}.{number}")),
    });
    let mut free = names.into_iter().filter(|name| !name.exists());
    let aside = free.next().unwrap_or_else(|| with(path, &base));
    for ending in ["", "-wal", "-shm"] {
        let from = with(path, ending);
        match fs::rename(&from, with(&aside, ending)) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(DatabaseError::file(&from, cause));
            }
            _ => {}
        }
    }
    Ok(aside)
}

/// The path with something behind its name.
pub(super) fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
