//! Rows of the ledger: added to, read by period, forgotten after their time.

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::{Database, DatabaseError, counted, stored};
use crate::ledger::{Counts, Hour, Key, Money, Period, Row};

impl Database {
    /// Forgets the hours that began before `before`, and returns how many rows that were.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn forget_ledger(&self, before: Timestamp) -> Result<usize, DatabaseError> {
        let forget = "DELETE FROM ledger WHERE hour < ?1";
        Ok(self.connection.execute(forget, [ceiling(before)])?)
    }
}

/// Shows `visit` the rows of a period one by one, in the order of their hours; there may be millions.
pub(super) fn read(
    connection: &Connection,
    period: Period,
    mut visit: impl FnMut(Row),
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(
        "SELECT hour, tenant, model, upstream, account, requests, cut, estimated, unpriced,
                prompt, cached, completion, reasoning, cost, saved
         FROM ledger WHERE hour >= ?1 AND hour < ?2 ORDER BY hour",
    )?;
    let mut rows = statement.query([ceiling(period.from), ceiling(period.to)])?;
    while let Some(row) = rows.next()? {
        let count = |column| row.get(column).map(counted);
        visit(Row {
            key: Key {
                hour: Hour::starting_at(row.get(0)?),
                tenant: row.get(1)?,
                model: row.get(2)?,
                upstream: row.get(3)?,
                account: row.get(4)?,
            },
            counts: Counts {
                requests: count(5)?,
                cut: count(6)?,
                estimated: count(7)?,
                unpriced: count(8)?,
                prompt: count(9)?,
                cached: count(10)?,
                completion: count(11)?,
                reasoning: count(12)?,
                cost: count(13).map(Money::from_nanos)?,
                saved: count(14).map(Money::from_nanos)?,
            },
        });
    }
    Ok(())
}

/// The first whole second that is not before `at`.
fn ceiling(at: Timestamp) -> i64 {
    let more = i64::from(at.subsec_nanosecond() > 0);
    at.as_second().saturating_add(more)
}

/// Adds each row to the one that is there.
pub(super) fn add(connection: &Connection, rows: &[Row]) -> rusqlite::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare(&add_statement())?;
    for Row { key, counts } in rows {
        statement.execute(params![
            key.hour.start(),
            &*key.tenant,
            &*key.model,
            &*key.upstream,
            &*key.account,
            stored(counts.requests),
            stored(counts.cut),
            stored(counts.estimated),
            stored(counts.unpriced),
            stored(counts.prompt),
            stored(counts.cached),
            stored(counts.completion),
            stored(counts.reasoning),
            stored(counts.cost.nanos()),
            stored(counts.saved.nanos()),
        ])?;
    }
    Ok(())
}

/// A sum beyond SQLite's integers would become a real number, which the table refuses: it stays at
/// the most there is.
fn add_statement() -> String {
    let columns = [
        "requests",
        "cut",
        "estimated",
        "unpriced",
        "prompt",
        "cached",
        "completion",
        "reasoning",
        "cost",
        "saved",
    ];
    let sums = columns.map(|column| {
        format!(
            "{column} = CASE WHEN {column} > {most} - excluded.{column} THEN {most}
             ELSE {column} + excluded.{column} END",
            most = i64::MAX,
        )
    });
    format!(
        "INSERT INTO ledger VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
         ON CONFLICT DO UPDATE SET {}",
        sums.join(", ")
    )
}
