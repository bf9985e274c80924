//! What an old process hands over to a new one on the same `state_dir`: while the new one admits, the
//! old one still holds reservations, and settles them as its streams end.

use rusqlite::{Connection, TransactionBehavior, params};

use super::{Database, DatabaseError, counted, stored};

/// What a process holds of a limit, in all its reservations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRow {
    pub subject: String,
    pub key: String,
    pub amount: u64,
}

/// A reservation that a process gave back, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettlementRow {
    pub subject: String,
    pub key: String,
    /// No longer held.
    pub released: u64,
    /// Really used.
    pub taken: u64,
}

impl Database {
    /// What all processes hold, by process.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn read_held(&self) -> Result<Vec<(String, HeldRow)>, DatabaseError> {
        let mut statement = self
            .connection
            .prepare("SELECT process, subject, key, amount FROM held")?;
        let rows = statement.query_map([], |row| {
            let held = HeldRow {
                subject: row.get(1)?,
                key: row.get(2)?,
                amount: counted(row.get(3)?),
            };
            Ok((row.get(0)?, held))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets what a process held, because it has ended; returns how many rows that were. What it
    /// settled before is still there to be taken.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn forget_held(&self, process: &str) -> Result<usize, DatabaseError> {
        let forget = "DELETE FROM held WHERE process = ?1";
        Ok(self.connection.execute(forget, [process])?)
    }

    /// Takes all settlements in the order in which they were written, each with its process. They are
    /// gone afterwards: each is taken once, whoever asks.
    ///
    /// # Errors
    /// If the database cannot be written; then all are still there.
    pub fn take_settlements(&mut self) -> Result<Vec<(String, SettlementRow)>, DatabaseError> {
        let waiting = "SELECT EXISTS (SELECT 1 FROM settlements)";
        if !self.connection.query_row(waiting, [], |row| row.get(0))? {
            return Ok(Vec::new());
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let taken = read_settlements(&transaction)?;
        transaction.execute("DELETE FROM settlements", [])?;
        transaction.commit()?;
        self.watched.take_note();
        Ok(taken)
    }
}

fn read_settlements(connection: &Connection) -> rusqlite::Result<Vec<(String, SettlementRow)>> {
    let mut statement = connection
        .prepare("SELECT process, subject, key, released, taken FROM settlements ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let settlement = SettlementRow {
            subject: row.get(1)?,
            key: row.get(2)?,
            released: counted(row.get(3)?),
            taken: counted(row.get(4)?),
        };
        Ok((row.get(0)?, settlement))
    })?;
    rows.collect()
}

/// Puts these in the place of everything that the process held.
pub(super) fn put_held(
    connection: &Connection,
    process: &str,
    rows: &[HeldRow],
) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM held WHERE process = ?1", [process])?;
    let mut statement =
        connection.prepare("INSERT OR REPLACE INTO held VALUES (?1, ?2, ?3, ?4)")?;
    for row in rows {
        statement.execute(params![process, row.subject, row.key, stored(row.amount)])?;
    }
    Ok(())
}

pub(super) fn add_settlements(
    connection: &Connection,
    process: &str,
    rows: &[SettlementRow],
) -> rusqlite::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare(
        "INSERT INTO settlements (process, subject, key, released, taken)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for row in rows {
        statement.execute(params![
            process,
            row.subject,
            row.key,
            stored(row.released),
            stored(row.taken),
        ])?;
    }
    Ok(())
}
