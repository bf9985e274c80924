//! Keeps on disk what was counted: a thread of its own that writes four times a second, off every
//! request's path, and hands the counting over when a new process takes this one's place.
//!
//! What goes wrong here never stops a request. What could not be written stays in memory and is
//! written later; a file that is damaged is moved aside and written anew from memory.
//!
//! One process counts on a `state_dir` at a time ([`Ownership`]). A second one waits in its start
//! until the first is draining and lets go; what the first still holds goes with it, and what
//! becomes of that is told through the database as its streams end.

mod exchange;
mod handover;
mod keeper;
mod leases;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use log::{error, warn};

use crate::admission::counting::Counting;
use crate::config::settings::{Accounting, Settings};
use crate::database::ownership::{Ownership, Successor};
use crate::database::{DatabaseError, Meta};
use crate::downstream::in_flight::Requests;
use crate::ledger::journal::Journal;
use crate::routing::switches::Switches;
use crate::snapshot::Current;
use crate::telemetry::metrics::Metrics;
use keeper::{Keeper, Role};

/// What a crash loses of the counts at most, and a little.
const TICK: Duration = Duration::from_millis(250);
/// How long a start waits for the process before it to let go.
const TAKE_OVER: Duration = Duration::from_secs(10);
const TAKE_OVER_TICK: Duration = Duration::from_millis(50);
/// How often old rows are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);
/// Counts that nothing touched for so long are of windows long over.
const KEEP_COUNTERS: Duration = Duration::from_secs(70 * 86_400);

/// Why counting cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BookkeepingError {
    #[error(
        "{}: another tidegate counts on this state_dir and is not stopping; give each its own `server.state_dir`, or stop the other",
        .0.display()
    )]
    Taken(PathBuf),
    #[error(transparent)]
    Database(DatabaseError),
    #[error("cannot start the thread that writes counts: {0}")]
    Thread(std::io::Error),
}

/// What is to be kept, and what counting needs for it.
pub struct Kept {
    pub counting: Arc<Counting>,
    pub journal: Arc<Journal>,
    pub switches: Arc<Switches>,
    pub metrics: Arc<Metrics>,
}

/// Before the first request: the counts of earlier processes are taken over.
pub struct Bookkeeping {
    kept: Kept,
    keeper: Keeper,
}

/// The running thread.
pub struct Bookkeeper {
    orders: SyncSender<SyncSender<()>>,
}

impl Bookkeeping {
    /// Takes the counting over, and with it what was counted. Waits for a process that is leaving.
    ///
    /// # Errors
    /// If another process counts here and stays, or a newer one has written the file.
    pub fn begin(settings: &Settings, kept: Kept) -> Result<Self, BookkeepingError> {
        let dir = &settings.server.state_dir;
        let process: Arc<str> = uuid::Uuid::now_v7().to_string().into();
        let ownership = match take_over(dir) {
            Ok(Some(ownership)) => Some(ownership),
            Ok(None) => return Err(BookkeepingError::Taken(dir.clone())),
            Err(cause) => {
                error!(
                    "Cannot lock the state directory: counts are kept in memory alone. state_dir={} cause=\"{cause}\"",
                    dir.display()
                );
                None
            }
        };
        let mut keeper = Keeper::new(dir, process, ownership);
        keeper.open(&kept)?;
        keeper.note(&meta(&settings.accounting));
        Ok(Self { kept, keeper })
    }

    /// What is counted.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Starts the thread that writes from here on.
    ///
    /// # Errors
    /// If there can be no further thread.
    pub fn start(
        self,
        current: Current,
        in_flight: Arc<Requests>,
    ) -> Result<Arc<Bookkeeper>, BookkeepingError> {
        let (orders, receiver) = sync_channel(4);
        let mut thread = Thread {
            kept: self.kept,
            keeper: self.keeper,
            current,
            in_flight,
            forgotten: Instant::now(),
            leases: leases::Watch::default(),
        };
        std::thread::Builder::new()
            .name("bookkeeper".to_owned())
            .spawn(move || thread.run(&receiver))
            .map_err(BookkeepingError::Thread)?;
        Ok(Arc::new(Bookkeeper { orders }))
    }
}

impl Bookkeeper {
    /// Writes what is left, for the end of the process; waits at most so long.
    pub fn finish(&self, most: Duration) {
        let (done, wait) = sync_channel(1);
        if self.orders.try_send(done).is_ok() {
            let _ = wait.recv_timeout(most);
        }
    }
}

struct Thread {
    kept: Kept,
    keeper: Keeper,
    current: Current,
    in_flight: Arc<Requests>,
    forgotten: Instant,
    leases: leases::Watch,
}

impl Thread {
    fn run(&mut self, orders: &Receiver<SyncSender<()>>) {
        loop {
            match orders.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Ok(done) => {
                    self.keeper.write_all_next();
                    self.tick();
                    // With the thread go the lock, the sign of life and the database, which leaves
                    // one whole file behind.
                    self.keeper.close();
                    let _ = done.try_send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tick(&mut self) {
        let snapshot = self.current.load_full();
        let settings = &snapshot.settings;
        self.kept
            .journal
            .follow(&settings.accounting.time_zone, Timestamp::now());
        match self.keeper.role {
            Role::Counts => {
                self.keeper.write(&self.kept);
                self.keeper.hear(&self.kept, &snapshot);
                if self.in_flight.is_draining() && self.keeper.is_awaited() {
                    self.keeper.begin_to_part(&self.kept);
                    self.keeper.part(&self.kept);
                }
            }
            Role::Leaves(_) => self.keeper.part(&self.kept),
            Role::Left => self.keeper.tell(&self.kept),
        }
        self.leases.look(&self.kept, settings);
        if self.forgotten.elapsed() > FORGET_EVERY {
            self.forgotten = Instant::now();
            self.keeper.note(&meta(&settings.accounting));
            self.keeper.forget(settings.accounting.keep, KEEP_COUNTERS);
        }
    }
}

fn meta(accounting: &Accounting) -> Meta {
    let zone = accounting.time_zone.iana_name().unwrap_or("UTC");
    Meta {
        currency: accounting.currency.to_string(),
        time_zone: zone.to_owned(),
    }
}

/// `None` if the owner did not let go in time.
fn take_over(dir: &std::path::Path) -> std::io::Result<Option<Ownership>> {
    if let Some(ownership) = Ownership::try_take(dir)? {
        return Ok(Some(ownership));
    }
    warn!(
        "Another process counts on this state directory; waiting for it to let go. state_dir={}",
        dir.display()
    );
    let began = Instant::now();
    let mut waiting: Option<Successor> = None;
    while began.elapsed() < TAKE_OVER {
        if waiting.is_none() {
            waiting = Successor::announce(dir)?;
        }
        if let Some(ownership) = Ownership::try_take(dir)? {
            return Ok(Some(ownership));
        }
        pause(TAKE_OVER_TICK);
    }
    Ok(None)
}

#[expect(
    clippy::disallowed_methods,
    reason = "during the start, before there is a runtime or a stream to hold up"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
