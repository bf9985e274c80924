//! Counts that several hosts share, in Redis: reservations by one script in one round trip,
//! settlements in the background. It decides how to ask and what to believe; it knows neither plans nor
//! requests, and not what its caller does while Redis is away.
//!
//! - [`ask`] says what is asked for and what the numbers mean, `script` puts it into Redis' words;
//! - [`circuit`] says whether Redis is asked at all, [`outbox`] what it is still to be told;
//! - `client` connects, `upkeep` is the background part.

pub mod ask;
pub mod circuit;
mod client;
pub mod outbox;
mod script;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::RedisError;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

pub use ask::{Ask, Counter, Part, Rule, Standing, Wait};
use circuit::{Circuit, Failure};
pub use client::ConnectError;
use client::{ANSWER, Connector, Link};
use outbox::{Abandoned, Moment, News, Outbox, Ticket};
pub use script::LIVENESS;
use script::{Operation, Outcome, Purpose, Reply, Scripts};

use crate::config::settings::RedisStore;

/// Why Redis did not decide. Its caller does what the configuration says for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("Redis is away")]
    Away,
    #[error("Redis did not answer in time")]
    Slow,
    /// Only a calendar's window can be extended.
    #[error("only limits per day or month can be extended")]
    NotGrantable,
}

/// What Redis decided.
#[derive(Debug)]
pub enum Verdict {
    Granted {
        reservation: Reservation,
        /// By the order of the parts.
        standings: Vec<Standing>,
    },
    /// Nothing was taken.
    Refused {
        /// The first part that refuses: does not fit, and is not a shadow.
        by: usize,
        standings: Vec<Standing>,
    },
}

/// What is held until it is settled. Dropped, it is given back as if nothing had been used.
#[must_use = "dropped, it is given back"]
pub struct Reservation {
    counts: Arc<RedisCounts>,
    root: Arc<str>,
    ticket: Ticket,
    parts: Vec<Part>,
    is_settled: bool,
}

/// How the store is, for metrics and operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub up: bool,
    /// The last change.
    pub since: Instant,
    /// Counters and reservations that Redis is still to be told of.
    pub queued: usize,
    /// Reservations of this process that were granted and not settled.
    pub open: u64,
    /// Since the start: questions without an answer, in time or at all; answers that were errors.
    pub slow: u64,
    pub away: u64,
    pub errors: u64,
    /// How often a root was found emptied, by `FLUSHALL` or a failover to an empty replica, or had to
    /// be removed because its keys held something else.
    pub emptied: u64,
    /// Uses that could not be kept while Redis was away, or that Redis rejected.
    pub lost: u64,
    /// The last failure, without anything secret.
    pub last_error: Option<String>,
}

/// The counts in Redis. One for each process.
pub struct RedisCounts {
    /// `None` while the circuit is open.
    link: ArcSwapOption<Link>,
    connector: Connector,
    scripts: Scripts,
    deadline: Duration,
    incarnation: String,
    reservations: AtomicU64,
    circuit: Mutex<Circuit>,
    outbox: Mutex<Outbox>,
    /// Something waits, or the circuit opened.
    bell: Notify,
    probing: tokio::sync::Mutex<()>,
    /// Was there a probe?
    tried: watch::Sender<bool>,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    slow: AtomicU64,
    away: AtomicU64,
    errors: AtomicU64,
    emptied: AtomicU64,
    last: Mutex<Option<String>>,
}

impl RedisCounts {
    /// Reads the settings; connects later, in `run` or `probe`, so a Redis that is down is no error.
    ///
    /// `host` names this process among those that share the counts. A process that starts with the
    /// name of a former one takes its place: what that one held is given up. So two live processes
    /// must never share a name.
    ///
    /// # Errors
    /// If the settings cannot lead anywhere.
    pub fn connect(store: &RedisStore, host: &str) -> Result<Arc<Self>, ConnectError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|e| ConnectError::Random(e.to_string()))?;
        let incarnation = hex::encode(random);
        Ok(Arc::new(Self {
            link: ArcSwapOption::empty(),
            connector: Connector::new(store)?,
            scripts: Scripts::new(&store.prefix, host, &incarnation),
            deadline: store.timeout,
            incarnation,
            reservations: AtomicU64::new(0),
            circuit: Mutex::new(Circuit::new(Instant::now())),
            outbox: Mutex::new(Outbox::default()),
            bell: Notify::new(),
            probing: tokio::sync::Mutex::new(()),
            tried: watch::Sender::new(false),
            tally: Tally::default(),
        }))
    }

    /// Reserves all parts or none, in one round trip, within the configured deadline. A caller that
    /// stops waiting leaves nothing behind: what Redis may have granted is given back by its id.
    ///
    /// # Errors
    /// If Redis did not decide.
    pub async fn reserve(self: &Arc<Self>, ask: Ask) -> Result<Verdict, StoreError> {
        let link = self.link.load_full().ok_or(StoreError::Away)?;
        let number = self.reservations.fetch_add(1, Ordering::Relaxed);
        let mut unanswered = Unanswered {
            counts: self,
            ask: Some(&ask),
            id: format!("{}-{number}", self.incarnation),
        };
        let mut link = Link::clone(&link);
        let Ask { root, parts } = &ask;
        let asking = self
            .scripts
            .reserve(&mut link, Purpose::Reserve, root, &unanswered.id, parts);
        let answer = match timeout(self.deadline, asking).await {
            Ok(answer) => answer,
            Err(_) => {
                self.cut(Failure::Slow);
                return Err(self.too_slow());
            }
        };
        let reply = match answer {
            Ok(Some(reply)) => reply,
            Ok(None) => return Err(self.nonsense()),
            Err(error) => {
                if is_answer(&error) {
                    unanswered.ask = None;
                }
                let failure = self.failure(&error);
                if is_rejection(&error) {
                    self.outbox.lock().suspect(root);
                    self.bell.notify_one();
                } else {
                    self.cut(Failure::Away);
                }
                return Err(failure);
            }
        };
        unanswered.ask = None;
        drop(unanswered);
        self.circuit.lock().answered();
        self.heard(&ask.root, reply.news);
        self.verdict(ask, &reply)
    }

    fn verdict(self: &Arc<Self>, ask: Ask, reply: &Reply) -> Result<Verdict, StoreError> {
        let granted = reply.outcome == Outcome::Granted;
        let raw = reply.counters.iter();
        let standings: Vec<_> = ask
            .parts
            .iter()
            .zip(raw)
            .map(|(part, raw)| part.standing(*raw, granted))
            .collect();
        match reply.outcome {
            Outcome::Granted => {
                let (generation, now) = (reply.news.generation, Instant::now());
                let ticket = self
                    .outbox
                    .lock()
                    .granted(&ask.root, generation, &ask.parts, now);
                let reservation = Reservation {
                    counts: self.clone(),
                    root: ask.root,
                    ticket,
                    parts: ask.parts,
                    is_settled: false,
                };
                Ok(Verdict::Granted {
                    reservation,
                    standings,
                })
            }
            Outcome::Refused => {
                let refuses = |(part, raw): (&Part, &ask::Raw)| !raw.fits && !part.counter.shadow;
                let by = ask.parts.iter().zip(&reply.counters).position(refuses);
                let by = by.ok_or_else(|| self.nonsense())?;
                Ok(Verdict::Refused { by, standings })
            }
            Outcome::Void => Err(StoreError::Slow),
        }
    }

    /// Holds what was admitted without asking, while Redis could not decide: it is claimed as soon as
    /// Redis is back, whether it fits or not. Never waits.
    pub fn assume(self: &Arc<Self>, ask: Ask) -> Reservation {
        let ticket = self.outbox.lock().assumed(&ask.root, &ask.parts);
        self.bell.notify_one();
        Reservation {
            counts: self.clone(),
            root: ask.root,
            ticket,
            parts: ask.parts,
            is_settled: false,
        }
    }

    /// How `counters` of a root stand. `fits` says whether one unit more would fit.
    ///
    /// # Errors
    /// If Redis does not tell.
    pub async fn show(
        &self,
        root: &str,
        counters: &[Counter],
    ) -> Result<Vec<Standing>, StoreError> {
        let mut link = self.linked()?;
        let parts: Vec<_> = counters
            .iter()
            .map(|counter| Part {
                counter: counter.clone(),
                demand: 1,
            })
            .collect();
        let asking = self
            .scripts
            .reserve(&mut link, Purpose::Show, root, "show", &parts);
        let reply = match timeout(ANSWER, asking).await {
            Ok(Ok(Some(reply))) => reply,
            Ok(Ok(None)) => return Err(self.nonsense()),
            Ok(Err(error)) => return Err(self.failure(&error)),
            Err(_) => return Err(self.too_slow()),
        };
        let standings = parts.iter().zip(&reply.counters);
        Ok(standings
            .map(|(part, raw)| part.standing(*raw, false))
            .collect())
    }

    /// Extends a limit by `amount` for the window in use. Added to earlier extensions.
    ///
    /// # Errors
    /// If the limit has no calendar's window, or Redis does not answer; it may have acted then.
    pub async fn grant(
        &self,
        root: &str,
        counter: &Counter,
        amount: u64,
    ) -> Result<(), StoreError> {
        if !matches!(counter.rule, Rule::Calendar { .. }) {
            return Err(StoreError::NotGrantable);
        }
        let amount = amount.min(ask::LIMIT);
        self.operate(root, counter, Operation::Grant(amount)).await
    }

    /// Sets what was used to nothing. What is held stays, and so do extensions.
    ///
    /// # Errors
    /// If Redis does not answer; it may have acted then.
    pub async fn reset(&self, root: &str, counter: &Counter) -> Result<(), StoreError> {
        self.operate(root, counter, Operation::Reset).await
    }

    async fn operate(
        &self,
        root: &str,
        counter: &Counter,
        operation: Operation,
    ) -> Result<(), StoreError> {
        let mut link = self.linked()?;
        let asking = self.scripts.operate(&mut link, root, counter, operation);
        match timeout(ANSWER, asking).await {
            Ok(answer) => answer.map_err(|error| self.failure(&error)),
            Err(_) => Err(self.too_slow()),
        }
    }

    /// How the store is.
    pub fn state(&self) -> State {
        let (up, since) = {
            let circuit = self.circuit.lock();
            (circuit.is_up(), circuit.since())
        };
        let (queued, open, lost) = {
            let outbox = self.outbox.lock();
            (outbox.len(), outbox.open(), outbox.lost())
        };
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        State {
            up,
            since,
            queued,
            open,
            slow: count(&self.tally.slow),
            away: count(&self.tally.away),
            errors: count(&self.tally.errors),
            emptied: count(&self.tally.emptied),
            lost,
            last_error: self.tally.last.lock().clone(),
        }
    }

    fn linked(&self) -> Result<Link, StoreError> {
        let link = self.link.load_full().ok_or(StoreError::Away)?;
        Ok(Link::clone(&link))
    }

    fn moment(&self) -> Moment {
        Moment {
            now: Instant::now(),
            away: self.link.load().is_none(),
        }
    }

    /// Redis answered about a root.
    fn heard(&self, root: &Arc<str>, news: News) {
        if self.outbox.lock().answered(root, news, Instant::now()) {
            self.tally.emptied.fetch_add(1, Ordering::Relaxed);
            log::warn!(
                "redis: the counts of {root} are gone and begin anew (flushed, or failed over to an empty replica)"
            );
        }
    }

    /// Opens the circuit if it is time.
    fn cut(&self, failure: Failure) {
        let opened = self.circuit.lock().failed(failure, Instant::now());
        if opened {
            self.link.store(None);
            self.bell.notify_one();
            let last = self.tally.last.lock().clone().unwrap_or_default();
            log::warn!("redis: {failure:?}; limits follow `fail` until it is back: {last}");
        }
    }

    fn failure(&self, error: &RedisError) -> StoreError {
        let late = error.is_timeout();
        let tally = match error {
            _ if late => &self.tally.slow,
            error if is_answer(error) => &self.tally.errors,
            _ => &self.tally.away,
        };
        tally.fetch_add(1, Ordering::Relaxed);
        *self.tally.last.lock() = Some(error.to_string());
        if late {
            StoreError::Slow
        } else {
            StoreError::Away
        }
    }

    fn too_slow(&self) -> StoreError {
        self.tally.slow.fetch_add(1, Ordering::Relaxed);
        *self.tally.last.lock() = Some(StoreError::Slow.to_string());
        StoreError::Slow
    }

    fn nonsense(&self) -> StoreError {
        self.tally.errors.fetch_add(1, Ordering::Relaxed);
        *self.tally.last.lock() = Some("an answer that is none of our script".to_owned());
        StoreError::Away
    }
}

impl Reservation {
    /// Gives back what is held and counts what was used, by the order of the parts; what is missing
    /// is nothing. Never waits: Redis is told in the background.
    pub fn settle(mut self, used: &[u64]) {
        self.end(used);
    }

    /// Settles the parts from `first` on, now, each with `used`; the reservation goes on with those
    /// before.
    pub fn settle_from(&mut self, first: usize, used: u64) {
        if first >= self.parts.len() {
            return;
        }
        let parts = self.parts.split_off(first);
        let counts = &self.counts;
        let moment = counts.moment();
        counts
            .outbox
            .lock()
            .settled_in_part(&self.root, self.ticket, &parts, used, moment);
        counts.bell.notify_one();
    }

    fn end(&mut self, used: &[u64]) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let counts = &self.counts;
        let moment = counts.moment();
        counts
            .outbox
            .lock()
            .settled(&self.root, self.ticket, &self.parts, used, moment);
        counts.bell.notify_one();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.end(&[]);
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({}, {} parts)", self.root, self.parts.len())
    }
}

/// A reservation that Redis may or may not have granted. Dropped without an answer, for whatever
/// reason, Redis is told to give it up.
struct Unanswered<'a> {
    counts: &'a RedisCounts,
    ask: Option<&'a Ask>,
    id: String,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Some(ask) = self.ask else {
            return;
        };
        let held = ask.parts.iter();
        let abandoned = Abandoned {
            id: self.id.as_str().into(),
            held: held
                .map(|part| (part.counter.name.clone(), part.demand()))
                .collect(),
        };
        self.counts.outbox.lock().abandoned(&ask.root, abandoned);
        self.counts.bell.notify_one();
    }
}

/// Redis itself said no, so nothing was done.
fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

/// It is about these keys or this script, not about the server; asking for others may go well.
fn is_rejection(error: &RedisError) -> bool {
    matches!(error.code(), Some("ERR" | "WRONGTYPE"))
}
