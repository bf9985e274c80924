//! One process leaves and another counts: what is written for the other, and what is read of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use log::{error, info, warn};

use super::Kept;
use super::exchange;
use super::keeper::{Keeper, Parting, Role, unkept};
use crate::admission::book::Book;
use crate::database::ownership::is_alive;
use crate::database::{Batch, DatabaseError};
use crate::snapshot::Snapshot;

/// What was told and could not be written yet stays this much; more is given up with the process.
const MOST_TOLD: usize = 100_000;

/// A new process waits for ten seconds in its start.
const LONGEST_PARTING: Duration = Duration::from_secs(5);

impl Keeper {
    /// Takes over what earlier processes have counted and what living ones still hold.
    pub(super) fn take_over(&mut self, kept: &Kept) {
        let Some(database) = &self.database else {
            return;
        };
        let read = (|| {
            let counters = database.read_counters()?;
            let learned = database.read_learned()?;
            let held = database.read_held()?;
            let switches = database.read_switches()?;
            Ok::<_, DatabaseError>((counters, learned, held, switches))
        })();
        let (counters, learned, held, switches) = match read {
            Ok(read) => read,
            Err(cause) => return self.failed(kept, "read", &cause),
        };
        self.restored = true;
        let book = &kept.counting.book;
        let (wall, steady) = (Timestamp::now(), kept.counting.steady());
        exchange::restore(book, counters, wall, steady);
        exchange::restore_learned(book, learned);
        kept.switches.restore(exchange::switches(switches));
        for (process, row) in held {
            if let Some(holding) = exchange::holding(&row) {
                book.hold_for(&process.as_str().into(), &holding);
            }
        }
    }

    /// Hears what processes that are leaving have settled, and gives free what dead ones held. The
    /// first time also what was told to a process that is gone and did not hear it any more.
    pub(super) fn hear(&mut self, kept: &Kept, snapshot: &Snapshot) {
        let book = &kept.counting.book;
        if book.holders().is_empty() && self.heard {
            return;
        }
        if !self.is_usable(kept) {
            return;
        }
        // Before reading: what a process had to tell, it told while it lived.
        let dead = self.dead(book);
        let Some(database) = &mut self.database else {
            return;
        };
        let settlements = match database.take_settlements() {
            Ok(settlements) => settlements,
            Err(cause) => return self.failed(kept, "read", &cause),
        };
        let now = kept.counting.now(&snapshot.calendar);
        let mut heard: BTreeSet<String> = BTreeSet::new();
        for (process, row) in settlements {
            let Some((subject, told)) = exchange::told(&row) else {
                continue;
            };
            let limit = snapshot.limit(&subject, &told.key);
            book.hear(&process, subject, &told, limit, &now);
            heard.insert(process);
        }
        for process in heard {
            let rows = exchange::held_rows(&book.held_by(&process));
            let batch = Batch {
                process: &process,
                held: Some(&rows),
                ..Batch::default()
            };
            if let Err(cause) = self.try_write(&batch, kept) {
                self.failed(kept, "write", &cause);
            }
        }
        self.heard = true;
        self.release(&dead, kept);
    }

    /// Where nobody can say, a process is taken for alive: limits hold, at the price of some room.
    fn dead(&self, book: &Book) -> Vec<Arc<str>> {
        let mut holders = book.holders();
        holders.retain(|process| !is_alive(&self.dir, process).unwrap_or(true));
        holders
    }

    fn release(&mut self, dead: &[Arc<str>], kept: &Kept) {
        let book = &kept.counting.book;
        for process in dead {
            let released = book.release_all_of(process);
            info!(
                "A process that counted here before is gone; what it held is free. process={process} released={released}"
            );
            if let Some(database) = &self.database
                && let Err(cause) = database.forget_held(process)
            {
                warn!("Cannot forget what a process held. cause=\"{cause}\"");
            }
        }
    }

    /// Counts no more, so that the process that waits can. What it needs is written by
    /// [`Keeper::part`].
    pub(super) fn begin_to_part(&mut self, kept: &Kept) {
        let handed_over = kept.counting.book.hand_over(kept.counting.steady());
        self.role = Role::Leaves(Box::new(Parting {
            counters: exchange::counter_rows(&handed_over.counters, Timestamp::now()),
            held: exchange::held_rows(&handed_over.held),
            learned: exchange::learned_rows(&kept.counting.book),
            since: Instant::now(),
        }));
    }

    /// Writes it, all or nothing, and lets the other process count. A database that cannot be written
    /// is tried for a while: afterwards it goes on with what was written before.
    pub(super) fn part(&mut self, kept: &Kept) {
        let usable = self.is_usable(kept);
        let Role::Leaves(parting) = std::mem::replace(&mut self.role, Role::Left) else {
            return;
        };
        let ledger = kept.journal.take();
        let switches = unkept(kept);
        let batch = Batch {
            process: &self.process.clone(),
            counters: &parting.counters,
            held: Some(&parting.held),
            learned: &parting.learned,
            switches: switches.as_ref().map(|(_, rows)| rows.as_slice()),
            ledger: &ledger,
            ..Batch::default()
        };
        let written = if usable {
            self.try_write(&batch, kept)
        } else {
            Err(DatabaseError::Missing(self.dir.clone()))
        };
        if let Err(cause) = written {
            kept.journal.put_back(ledger);
            self.failed(kept, "hand_over", &cause);
            if parting.since.elapsed() < LONGEST_PARTING {
                self.role = Role::Leaves(parting);
                return;
            }
            error!(
                "The counting is left to a new process that does not know the last counts of this one. process={}",
                self.process
            );
        } else if let Some((version, _)) = switches {
            kept.switches.note_kept(version);
        }
        // After the last word: whoever takes it reads what was written.
        drop(self.ownership.take());
        info!(
            "The counting was handed over to a new process. process={}",
            self.process
        );
    }

    /// After that: tells it what becomes of what is held here.
    pub(super) fn tell(&mut self, kept: &Kept) {
        if !self.is_usable(kept) {
            return;
        }
        let told = kept.counting.book.told();
        let ledger = kept.journal.take();
        let settlements = exchange::settlement_rows(&told);
        let batch = Batch {
            process: &self.process.clone(),
            settlements: &settlements,
            ledger: &ledger,
            ..Batch::default()
        };
        if let Err(cause) = self.try_write(&batch, kept) {
            kept.journal.put_back(ledger);
            kept.counting.book.tell_again(told, MOST_TOLD);
            self.failed(kept, "write", &cause);
        }
    }
}
