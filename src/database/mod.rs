//! Keeps on disk what must outlive the process: counts of limits, the ledger, what was learned, what
//! operators have switched off, and what an old process hands over to a new one. An embedded SQLite
//! file in `state_dir`; it must not know what the counts mean or when they are written.
//!
//! Everything here blocks: it is for threads that may wait for a disk. A write is one transaction
//! and survives the end of the process at any instant; the end of the machine may take the last
//! ones, never the file (WAL with `synchronous=NORMAL`).

pub mod counters;
mod error;
pub mod handover;
mod learned;
mod ledger;
mod meta;
mod open;
pub mod ownership;
mod reader;
mod schema;
mod switches;
mod watch;
mod write;

pub use counters::{CounterRow, SpanRow};
pub use error::DatabaseError;
pub use handover::{HeldRow, SettlementRow};
pub use learned::LearnedRow;
pub use meta::Meta;
pub use open::{FILE, Opened, State};
pub use reader::Reader;
pub use switches::SwitchRow;
pub use write::Batch;

use rusqlite::Connection;

/// The database, open for writing. One thread writes at a time; readers are not in its way.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    watched: watch::Watched,
}

/// What fits into SQLite's integers: the rest counts as the most there is.
fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back: nothing that is counted is below zero, whoever edited the file.
fn counted(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
