//! What operators have switched off or drained, one row each.

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::{Database, DatabaseError};

/// One thing that is off or drained, by whom and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchRow {
    /// What it is.
    pub kind: String,
    /// The upstream it is a part of; empty for what is part of none.
    pub part_of: String,
    pub name: String,
    /// To the millisecond.
    pub since: Timestamp,
    /// Who says so; may be empty.
    pub author: String,
    /// From which address.
    pub address: String,
    pub reason: String,
}

impl Database {
    /// All that is off or drained.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn read_switches(&self) -> Result<Vec<SwitchRow>, DatabaseError> {
        let mut statement = self
            .connection
            .prepare("SELECT kind, part_of, name, since, author, address, reason FROM switches")?;
        let rows = statement.query_map([], |row| {
            Ok(SwitchRow {
                kind: row.get(0)?,
                part_of: row.get(1)?,
                name: row.get(2)?,
                since: Timestamp::from_millisecond(row.get(3)?).unwrap_or(Timestamp::UNIX_EPOCH),
                author: row.get(4)?,
                address: row.get(5)?,
                reason: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Puts these in the place of all rows.
pub(super) fn put(connection: &Connection, rows: &[SwitchRow]) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM switches", [])?;
    let mut statement =
        connection.prepare("INSERT INTO switches VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    for row in rows {
        statement.execute(params![
            row.kind,
            row.part_of,
            row.name,
            row.since.as_millisecond(),
            row.author,
            row.address,
            row.reason,
        ])?;
    }
    Ok(())
}
