//! The database as the bookkeeper uses it: opened, lost, opened again; what could not be written is
//! kept for the next time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use log::{error, info, warn};

use super::exchange;
use super::{BookkeepingError, Kept};
use crate::database::ownership::{Alive, Ownership, Successor};
use crate::database::{
    Batch, CounterRow, Database, DatabaseError, FILE, HeldRow, LearnedRow, Meta, Opened, State,
    SwitchRow,
};
use crate::routing::switches::Version;

/// Between two tries to open a database that cannot be used.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// Between two lines about the same trouble.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// What was learned is written this often.
const LEARNED_EVERY: Duration = Duration::from_secs(30);

pub(super) struct Keeper {
    pub(super) dir: PathBuf,
    pub(super) process: Arc<str>,
    /// The right to count here, and with it to write; `None` where no lock can be had, and after it
    /// was handed over.
    pub(super) ownership: Option<Ownership>,
    /// Shows that this process lives, for those who look.
    alive: Option<Alive>,
    pub(super) role: Role,
    pub(super) database: Option<Database>,
    /// What was written before this process began is counted.
    pub(super) restored: bool,
    /// What was told before this process began is counted.
    pub(super) heard: bool,
    tried: Instant,
    said: Option<Instant>,
    /// When what was learned was written; `None` if it is to be written now.
    learned: Option<Instant>,
}

/// What this process has to do with the counting.
pub(super) enum Role {
    Counts,
    /// It counts no more; what the next one needs is not written yet.
    Leaves(Box<Parting>),
    /// Another process counts, and is told what becomes of what is held here.
    Left,
}

/// What a process leaves to the next one.
pub(super) struct Parting {
    pub(super) counters: Vec<CounterRow>,
    pub(super) held: Vec<HeldRow>,
    pub(super) learned: Vec<LearnedRow>,
    pub(super) since: Instant,
}

impl Keeper {
    pub(super) fn new(dir: &Path, process: Arc<str>, ownership: Option<Ownership>) -> Self {
        let now = Instant::now();
        Self {
            dir: dir.to_owned(),
            alive: ownership
                .as_ref()
                .and_then(|_| Alive::mark(dir, &process).ok()),
            process,
            ownership,
            role: Role::Counts,
            database: None,
            restored: false,
            heard: false,
            tried: now,
            said: None,
            learned: Some(now),
        }
    }

    /// Opens the database for the first time, and takes over what it holds.
    ///
    /// # Errors
    /// If a newer tidegate has written it. Any other trouble is told, and tried again later.
    pub(super) fn open(&mut self, kept: &Kept) -> Result<(), BookkeepingError> {
        if self.ownership.is_none() {
            kept.metrics.store_healthy.set(0);
            return Ok(());
        }
        match Database::open(&self.dir.join(FILE), Timestamp::now()) {
            Ok(opened) => {
                self.use_database(opened, kept);
                Ok(())
            }
            Err(cause @ DatabaseError::Newer { .. }) => Err(BookkeepingError::Database(cause)),
            Err(cause) => {
                self.trouble(kept, "open", &cause);
                Ok(())
            }
        }
    }

    fn use_database(&mut self, opened: Opened, kept: &Kept) {
        match &opened.state {
            State::Fresh => {
                self.restored = true;
                info!(
                    "A new database of counts was made. state_dir={}",
                    self.dir.display()
                );
            }
            State::Existing => {}
            State::Replaced { aside, why } => {
                self.restored = true;
                kept.metrics.store_replaced.inc();
                error!(
                    "The database of counts could not be used and was moved aside; what only it knew is not counted any more. moved_to={} cause=\"{why}\"",
                    aside.display()
                );
            }
        }
        self.database = Some(opened.database);
        if !self.restored {
            self.take_over(kept);
        }
        kept.metrics.store_healthy.set(1);
    }

    /// Notes in what the ledger is kept.
    pub(super) fn note(&mut self, meta: &Meta) {
        let Some(database) = &mut self.database else {
            return;
        };
        match database.write_meta(meta) {
            Ok(Some(before)) if before.currency != meta.currency => warn!(
                "The ledger's currency has changed; earlier rows stay as they were. before={} now={}",
                before.currency, meta.currency
            ),
            Ok(_) => {}
            Err(cause) => warn!("Cannot note the ledger's currency. cause=\"{cause}\""),
        }
    }

    /// Writes what changed since the last time, all of it or nothing.
    pub(super) fn write(&mut self, kept: &Kept) {
        if !self.is_usable(kept) {
            return;
        }
        let changed = kept.counting.book.changes(kept.counting.steady());
        let counters = exchange::counter_rows(&changed, Timestamp::now());
        let ledger = kept.journal.take();
        let learned = self.learned(kept);
        let switches = unkept(kept);
        let process = self.process.clone();
        let batch = Batch {
            process: &process,
            counters: &counters,
            learned: &learned,
            switches: switches.as_ref().map(|(_, rows)| rows.as_slice()),
            ledger: &ledger,
            ..Batch::default()
        };
        if let Err(cause) = self.try_write(&batch, kept) {
            kept.journal.put_back(ledger);
            changed
                .iter()
                .for_each(|changed| changed.subject.write_again());
            self.failed(kept, "write", &cause);
        } else if let Some((version, _)) = switches {
            kept.switches.note_kept(version);
        }
    }

    /// The next write is the last: it leaves nothing out.
    pub(super) fn write_all_next(&mut self) {
        self.learned = None;
    }

    /// Writes a batch and says how it went in the metrics.
    pub(super) fn try_write(
        &mut self,
        batch: &Batch<'_>,
        kept: &Kept,
    ) -> Result<(), DatabaseError> {
        let Some(database) = &mut self.database else {
            return Err(DatabaseError::Missing(self.dir.join(FILE)));
        };
        let began = Instant::now();
        database.write(batch)?;
        kept.metrics
            .store_write
            .observe(began.elapsed().as_secs_f64());
        kept.metrics.store_healthy.set(1);
        self.said = None;
        Ok(())
    }

    fn learned(&mut self, kept: &Kept) -> Vec<LearnedRow> {
        if self.learned.is_some_and(|at| at.elapsed() < LEARNED_EVERY) {
            return Vec::new();
        }
        self.learned = Some(Instant::now());
        exchange::learned_rows(&kept.counting.book)
    }

    /// What goes wrong with a database in use: one that is damaged or gone is given up, and everything is written
    /// down anew into the one that takes its place.
    pub(super) fn failed(&mut self, kept: &Kept, what: &str, cause: &DatabaseError) {
        self.trouble(kept, what, cause);
        if cause.is_corrupt() || cause.is_gone() {
            self.database = None;
            write_all_again(kept);
        }
    }

    fn trouble(&mut self, kept: &Kept, what: &str, cause: &DatabaseError) {
        let kind = match cause {
            cause if cause.is_corrupt() => "corrupt",
            cause if cause.is_gone() => "gone",
            cause if cause.is_full() => "full",
            cause if cause.is_read_only() => "read_only",
            cause if cause.is_busy() => "busy",
            _ => "other",
        };
        kept.metrics
            .store_errors
            .with_label_values(&[what, kind])
            .inc();
        kept.metrics.store_healthy.set(0);
        if self.said.is_none_or(|said| said.elapsed() > SAY_EVERY) {
            self.said = Some(Instant::now());
            error!(
                "Counts are kept in memory alone: the database cannot be used. Requests go on; what was counted since is lost if the process ends. what={what} kind={kind} cause=\"{cause}\""
            );
        }
    }

    /// Is there a database that may be written? If not, it is looked for now and then.
    pub(super) fn is_usable(&mut self, kept: &Kept) -> bool {
        if let Some(database) = &mut self.database {
            match database.look() {
                Ok(()) => {}
                Err(cause) => self.failed(kept, "look", &cause),
            }
        }
        if self.database.is_none() {
            if self.tried.elapsed() < REOPEN_EVERY {
                return false;
            }
            self.tried = Instant::now();
            if !self.may_write() {
                return false;
            }
            self.reopen(kept);
        } else if !self.restored {
            // The first look at it failed: nothing of it may be overwritten before it was read.
            self.take_over(kept);
        }
        self.database.is_some() && self.restored
    }

    fn reopen(&mut self, kept: &Kept) {
        match Database::open(&self.dir.join(FILE), Timestamp::now()) {
            Ok(opened) => {
                self.use_database(opened, kept);
                info!(
                    "The database of counts can be used again. state_dir={}",
                    self.dir.display()
                );
                self.said = None;
                write_all_again(kept);
            }
            Err(cause) => self.trouble(kept, "open", &cause),
        }
    }

    /// A process that counts writes only what is its own; where no lock could be had, it is tried
    /// for again.
    fn may_write(&mut self) -> bool {
        if self.ownership.is_none() && matches!(self.role, Role::Counts) {
            self.ownership = Ownership::try_take(&self.dir).ok().flatten();
            if self.ownership.is_some() {
                self.alive = Alive::mark(&self.dir, &self.process).ok();
            }
        }
        self.ownership.is_some() || !matches!(self.role, Role::Counts)
    }

    /// Forgets rows that are older than this.
    pub(super) fn forget(&mut self, ledger: Duration, counters: Duration) {
        let Some(database) = &self.database else {
            return;
        };
        let ago = |time: Duration| {
            Timestamp::now()
                .saturating_sub(time)
                .unwrap_or(Timestamp::MIN)
        };
        let forgotten = database.forget_ledger(ago(ledger));
        let forgotten = forgotten.and_then(|_| database.forget_counters(ago(counters)));
        if let Err(cause) = forgotten {
            warn!("Cannot forget old rows of the ledger. cause=\"{cause}\"");
        }
    }

    /// Lets go of everything, at the end of the process.
    pub(super) fn close(&mut self) {
        self.database = None;
        self.alive = None;
        self.ownership = None;
    }

    /// Does a new process wait for the counting?
    pub(super) fn is_awaited(&self) -> bool {
        Successor::is_waiting(&self.dir).unwrap_or(false)
    }
}

/// What operators have switched off or drained, if it is not written as it is.
pub(super) fn unkept(kept: &Kept) -> Option<(Version, Vec<SwitchRow>)> {
    let (version, entries) = kept.switches.unkept()?;
    Some((version, exchange::switch_rows(entries)))
}

/// The file is another one.
fn write_all_again(kept: &Kept) {
    kept.counting.book.write_all_again();
    kept.switches.keep_again();
}
