//! What was learned of models, as texts that others read and write.

use rusqlite::Connection;

use super::{Database, DatabaseError};

/// What was learned of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedRow {
    pub model: String,
    /// JSON.
    pub text: String,
}

impl Database {
    /// What was learned of all models.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn read_learned(&self) -> Result<Vec<LearnedRow>, DatabaseError> {
        let mut statement = self.connection.prepare("SELECT model, text FROM learned")?;
        let rows = statement.query_map([], |row| {
            Ok(LearnedRow {
                model: row.get(0)?,
                text: row.get(1)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Puts each row in the place of the one before it.
pub(super) fn put(connection: &Connection, rows: &[LearnedRow]) -> rusqlite::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare("INSERT OR REPLACE INTO learned VALUES (?1, ?2)")?;
    for row in rows {
        statement.execute([&row.model, &row.text])?;
    }
    Ok(())
}
