//! Counts of limits, one row for each subject and limit.

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::{Database, DatabaseError, counted, stored};

/// What a limit has counted for a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterRow {
    /// Whose count it is.
    pub subject: String,
    /// Which limit's.
    pub key: String,
    /// Nanoseconds that the bucket took to run empty when this was written; up to `i64::MAX`.
    pub bucket_level: u64,
    /// The amount of the limit that `bucket_level` was computed for.
    pub bucket_amount: u64,
    /// To the millisecond.
    pub written: Timestamp,
    pub spans: [SpanRow; 2],
}

/// What was used in one span of the calendar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanRow {
    /// Its start, in seconds since 1970.
    pub start: i64,
    pub used: u64,
    /// Granted on top of the limit.
    pub extra: u64,
}

impl Database {
    /// All counts.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn read_counters(&self) -> Result<Vec<CounterRow>, DatabaseError> {
        let mut statement = self.connection.prepare(
            "SELECT subject, key, bucket_level, bucket_amount,
                    first_start, first_used, first_extra,
                    second_start, second_used, second_extra, touched FROM counters",
        )?;
        let rows = statement.query_map([], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets counts that were not written since `older_than`, and returns how many.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn forget_counters(&self, older_than: Timestamp) -> Result<usize, DatabaseError> {
        let forget = "DELETE FROM counters WHERE touched < ?1";
        Ok(self
            .connection
            .execute(forget, [older_than.as_millisecond()])?)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<CounterRow> {
    let count = |column| row.get(column).map(counted);
    let span = |column: usize| {
        Ok::<_, rusqlite::Error>(SpanRow {
            start: row.get(column)?,
            used: count(column.saturating_add(1))?,
            extra: count(column.saturating_add(2))?,
        })
    };
    Ok(CounterRow {
        subject: row.get(0)?,
        key: row.get(1)?,
        bucket_level: count(2)?,
        bucket_amount: count(3)?,
        spans: [span(4)?, span(7)?],
        written: Timestamp::from_millisecond(row.get(10)?).unwrap_or_default(),
    })
}

/// Puts each row in the place of the one before it.
pub(super) fn put(connection: &Connection, rows: &[CounterRow]) -> rusqlite::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare(
        "INSERT OR REPLACE INTO counters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    for row in rows {
        let [first, second] = row.spans;
        statement.execute(params![
            row.subject,
            row.key,
            stored(row.bucket_level),
            stored(row.bucket_amount),
            first.start,
            stored(first.used),
            stored(first.extra),
            second.start,
            stored(second.used),
            stored(second.extra),
            row.written.as_millisecond(),
        ])?;
    }
    Ok(())
}
