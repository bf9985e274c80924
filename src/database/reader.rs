//! Reads the ledger for reports, beside a gateway that writes it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::open::BUSY_TIMEOUT;
use super::{DatabaseError, Meta, ledger, meta, schema};
use crate::ledger::{Period, Row};

/// The database, open for reading alone.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

impl Reader {
    /// Opens the database at `path`, and makes none. A running gateway is not disturbed.
    ///
    /// # Errors
    /// If there is none, it is no database, or one of another form than ours. SQLite reads a log
    /// beside the file and makes it if it is not there, so without a running gateway the folder must
    /// be writable.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Err(DatabaseError::Missing(path.to_owned())),
            Err(cause) => return Err(DatabaseError::file(path, cause)),
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let header = schema::header(&connection)?;
        let (path, found, known) = (path.to_owned(), header.version, schema::known());
        if header.application_id == 0 && found == 0 {
            return Err(DatabaseError::Missing(path));
        }
        if header.application_id != schema::APPLICATION_ID {
            let what = "it belongs to another program".to_owned();
            return Err(DatabaseError::Damaged { path, what });
        }
        if found > known {
            return Err(DatabaseError::Newer { path, found, known });
        }
        if found < known {
            return Err(DatabaseError::Older { path, found, known });
        }
        Ok(Self { connection })
    }

    /// In what the ledger is kept; nothing until a gateway has written it.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn read_meta(&self) -> Result<Option<Meta>, DatabaseError> {
        meta::read(&self.connection)
    }

    /// Shows `visit` the rows of a period one by one, in the order of their hours, as they were at
    /// one instant.
    ///
    /// # Errors
    /// If the database cannot be read; some rows may have been shown then.
    pub fn read_ledger(&self, period: Period, visit: impl FnMut(Row)) -> Result<(), DatabaseError> {
        Ok(ledger::read(&self.connection, period, visit)?)
    }
}
