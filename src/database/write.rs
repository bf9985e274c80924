//! Writes a batch: all of it, or nothing.

use rusqlite::TransactionBehavior;

use super::counters::{self, CounterRow};
use super::handover::{self, HeldRow, SettlementRow};
use super::learned::{self, LearnedRow};
use super::switches::{self, SwitchRow};
use super::{Database, DatabaseError, ledger};
use crate::ledger::Row;

/// What is written together. An empty part changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// Whose `held` and `settlements` they are.
    pub process: &'a str,
    /// In the place of the rows before.
    pub counters: &'a [CounterRow],
    /// In the place of everything the process held before; `None` leaves that as it is.
    pub held: Option<&'a [HeldRow]>,
    /// On top of those that nobody took yet.
    pub settlements: &'a [SettlementRow],
    /// In the place of the rows before.
    pub learned: &'a [LearnedRow],
    /// In the place of all that were there; `None` leaves them as they are.
    pub switches: Option<&'a [SwitchRow]>,
    /// Added to the rows before.
    pub ledger: &'a [Row],
}

impl Batch<'_> {
    fn is_empty(&self) -> bool {
        self.counters.is_empty()
            && self.held.is_none()
            && self.settlements.is_empty()
            && self.learned.is_empty()
            && self.switches.is_none()
            && self.ledger.is_empty()
    }
}

impl Database {
    /// Writes a batch in one transaction. Statements are prepared once for each batch, not for each
    /// row.
    ///
    /// # Errors
    /// If it cannot be written; then nothing of it is, and the same batch may be written again.
    pub fn write(&mut self, batch: &Batch<'_>) -> Result<(), DatabaseError> {
        if batch.is_empty() {
            return Ok(());
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        counters::put(&transaction, batch.counters)?;
        if let Some(held) = batch.held {
            handover::put_held(&transaction, batch.process, held)?;
        }
        handover::add_settlements(&transaction, batch.process, batch.settlements)?;
        learned::put(&transaction, batch.learned)?;
        if let Some(switches) = batch.switches {
            switches::put(&transaction, switches)?;
        }
        ledger::add(&transaction, batch.ledger)?;
        transaction.commit()?;
        self.watched.take_note();
        Ok(())
    }
}
