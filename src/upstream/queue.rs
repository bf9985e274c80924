//! Waiting for a place: those who wait for a lane stand in one line, in the order of
//! [`super::fair_queue`], and a place that comes free goes to the first of them at once.
//!
//! Whoever gives a place back hands it on ([`Release`]), so no task runs for a line, and a newcomer
//! cannot be quicker than those who wait. A place that was handed to somebody who has just left is
//! handed on again. The line belongs to the running state: it stays where it is over a reload.
//!
//! The line's length is shared: when it is full, whoever has less than its share of it still gets
//! in, for the newest of somebody who has more. As it fills, classes of priority are turned away
//! one after the other, the lowest first; nobody takes the place of a higher class.

mod outcome;
mod share;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::chosen::Chosen;
use super::fair_queue::{FairQueue, Look, Ticket};
use super::lane::{Lane, NoChoice, Tried, Wish};
use crate::config::settings::{Priority, TenantId};
pub use outcome::{NotServed, Observed};

/// A new holding time's share in the mean.
const HOLD_SHARE: u64 = 16;

/// Who waits.
#[derive(Debug, Clone)]
pub struct Waiter {
    pub tenant: TenantId,
    /// 1 to 1000.
    pub weight: u32,
    pub priority: Priority,
}

/// The lines of one upstream, by model.
#[derive(Default)]
pub(super) struct Lines {
    lines: Mutex<HashMap<String, Arc<Line>>>,
    /// In all of them.
    waiting: Arc<AtomicUsize>,
}

impl Lines {
    /// The line for a model.
    pub(super) fn of(self: &Arc<Self>, model: &str) -> Arc<Line> {
        let mut lines = self.lines.lock();
        let make = || {
            Arc::new(Line {
                of: Arc::downgrade(self),
                waiting_anywhere: self.waiting.clone(),
                waiting: AtomicUsize::new(0),
                again: AtomicBool::new(false),
                places: Mutex::default(),
                hold: AtomicU64::new(0),
                counts: Counts::default(),
            })
        };
        lines.entry(model.to_owned()).or_insert_with(make).clone()
    }
}

/// Those who wait for one model of an upstream.
pub(super) struct Line {
    of: Weak<Lines>,
    /// In all lines of the upstream; a release looks here first.
    waiting_anywhere: Arc<AtomicUsize>,
    waiting: AtomicUsize,
    /// Something has changed since whoever hands out places began to look.
    again: AtomicBool,
    places: Mutex<FairQueue<TenantId, Need, Entry>>,
    /// Mean time for which a place is held, in microseconds.
    hold: AtomicU64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    granted: AtomicU64,
    left: AtomicU64,
    queue_full: AtomicU64,
    shed: AtomicU64,
    too_long: AtomicU64,
    late: AtomicU64,
    exhausted: AtomicU64,
    closed: AtomicU64,
}

type Grant = Result<Chosen, NotServed>;

/// What a request can be served with: what is full for one is full for all that need the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Need {
    /// Where the lane stands in memory, and stays as long as somebody waits with it.
    lane: usize,
    tried: Tried,
    pinned: Option<usize>,
}

struct Entry {
    /// Of the waiter's own configuration.
    lane: Arc<Lane>,
    wish: Wish,
    grant: oneshot::Sender<Grant>,
}

/// Where a newcomer could stand.
enum Room {
    Free,
    /// In the place of one who waits.
    Of(Ticket<TenantId>),
    /// Only for higher classes.
    Kept,
    None,
}

impl Line {
    pub(super) fn is_waited_in(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Hands out what is free, in fair order. Never waits: if somebody else is at it, they look
    /// again.
    fn pump(&self) {
        self.again.store(true, Ordering::SeqCst);
        while self.again.load(Ordering::SeqCst) {
            let Some(mut places) = self.places.try_lock() else {
                return;
            };
            while self.again.swap(false, Ordering::SeqCst) {
                self.hand_out(&mut places);
            }
        }
    }

    fn hand_out(&self, places: &mut FairQueue<TenantId, Need, Entry>) {
        let now = Instant::now();
        while self.is_waited_in() {
            let mut grant = None;
            let entry = places.pop_first(|entry| {
                grant = match entry.lane.take(&entry.wish, now) {
                    Ok(chosen) => Some(Ok(chosen)),
                    Err(NoChoice::Exhausted) => Some(Err(NotServed::Exhausted)),
                    Err(NoChoice::Closed { retry_in }) => {
                        Some(Err(NotServed::Closed { wait: retry_in }))
                    }
                    Err(NoChoice::Full) => return Look::Next,
                };
                Look::Take
            });
            let (Some(entry), Some(grant)) = (entry, grant) else {
                return;
            };
            self.one_less();
            // If the waiter has left, dropping what it was given sets `again`.
            let _ = entry.grant.send(grant);
        }
    }

    fn one_more(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.waiting_anywhere.fetch_add(1, Ordering::SeqCst);
    }

    fn one_less(&self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.waiting_anywhere.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes a waiter out that was not served; says how many would go before another like it.
    /// `None` if it was served.
    fn leave(&self, ticket: &Ticket<TenantId>, who: &Waiter) -> Option<usize> {
        let mut places = self.places.lock();
        let left = places.remove(ticket).is_some();
        let ahead = left.then(|| places.ahead(&who.tenant, who.priority));
        drop(places);
        if left {
            self.one_less();
        }
        // Somebody may have found the line locked.
        if self.is_waited_in() {
            self.pump();
        }
        ahead
    }

    /// Refuses somebody who waits, for a newcomer.
    fn make_way(
        &self,
        places: &mut FairQueue<TenantId, Need, Entry>,
        ticket: &Ticket<TenantId>,
        now: Instant,
    ) {
        let Some(entry) = places.remove(ticket) else {
            return;
        };
        let ahead = places.ahead(ticket.tenant(), ticket.priority());
        let wait = self.wait(ahead, entry.lane.breadth(now));
        // If it has just left, all the better.
        let _ = entry.grant.send(Err(NotServed::QueueFull { wait }));
    }

    /// A place of this line, or one shared with the others of its upstream, came free.
    fn came_free(&self, shared: bool) {
        // Against `one_more` and the look that follows it: one of both sees the other.
        fence(Ordering::SeqCst);
        let anywhere = self.waiting_anywhere.load(Ordering::SeqCst);
        if anywhere == 0 {
            return;
        }
        if self.is_waited_in() {
            self.pump();
        }
        if !shared || self.waiting.load(Ordering::SeqCst) >= anywhere {
            return;
        }
        let lines: Vec<_> = self
            .of
            .upgrade()
            .map_or_else(Vec::new, |of| of.lines.lock().values().cloned().collect());
        for line in lines.iter().filter(|line| line.is_waited_in()) {
            line.pump();
        }
    }

    fn held_for(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let mean = self.hold.load(Ordering::Relaxed);
        // Two at once may lose one of both: it is a mean.
        let mean = match mean {
            0 => time,
            mean if time > mean => mean + (time - mean) / HOLD_SHARE,
            mean => mean - (mean - time) / HOLD_SHARE,
        };
        self.hold.store(mean.max(1), Ordering::Relaxed);
    }

    /// How long somebody waits who has so many before them.
    fn wait(&self, ahead: usize, breadth: u32) -> Duration {
        let turns = u64::try_from(ahead).unwrap_or(u64::MAX).saturating_add(1);
        let hold = self.hold.load(Ordering::Relaxed);
        Duration::from_micros(hold.saturating_mul(turns) / u64::from(breadth.max(1)))
    }

    fn count(&self, refused: NotServed) {
        let count = match refused {
            NotServed::QueueFull { .. } => &self.counts.queue_full,
            NotServed::Shed { .. } => &self.counts.shed,
            NotServed::TooLong { .. } => &self.counts.too_long,
            NotServed::Late { .. } => &self.counts.late,
            NotServed::Exhausted => &self.counts.exhausted,
            NotServed::Closed { .. } => &self.counts.closed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Hands the places on that were given back just before.
pub(super) struct Release {
    line: Arc<Line>,
    since: Instant,
    /// Other lines of the upstream may want it as well.
    shared: bool,
}

impl Release {
    pub(super) fn new(line: Arc<Line>, since: Instant, shared: bool) -> Self {
        Self {
            line,
            since,
            shared,
        }
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        self.line.held_for(self.since.elapsed());
        self.line.came_free(self.shared);
    }
}

impl fmt::Debug for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Release").finish_non_exhaustive()
    }
}

/// A request that waits; gives a place, or says why not. Dropped, it leaves the line, and what it
/// was given goes to the next.
#[must_use]
pub struct Waiting {
    lane: Arc<Lane>,
    who: Waiter,
    ticket: Ticket<TenantId>,
    grant: oneshot::Receiver<Grant>,
    time: Pin<Box<Sleep>>,
    over: bool,
}

impl Future for Waiting {
    type Output = Grant;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Grant> {
        if let Poll::Ready(grant) = Pin::new(&mut self.grant).poll(cx) {
            self.over = true;
            return Poll::Ready(self.served(grant.unwrap_or(Err(NotServed::Exhausted))));
        }
        if self.time.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.over = true;
        let line = &self.lane.line;
        if let Some(ahead) = line.leave(&self.ticket, &self.who) {
            let wait = line.wait(ahead, self.lane.breadth(Instant::now()));
            return Poll::Ready(self.served(Err(NotServed::Late { wait })));
        }
        // It was served in the very moment.
        let grant = self.grant.try_recv();
        Poll::Ready(self.served(grant.unwrap_or(Err(NotServed::Exhausted))))
    }
}

impl Waiting {
    fn served(&self, grant: Grant) -> Grant {
        let line = &self.lane.line;
        match &grant {
            Ok(_) => {
                line.counts.granted.fetch_add(1, Ordering::Relaxed);
            }
            Err(refused) => line.count(*refused),
        }
        grant
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over {
            self.lane.line.leave(&self.ticket, &self.who);
            self.lane.line.counts.left.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Lane {
    /// Waits for a place in fair order, until `deadline`. Only what the wish allows is given.
    ///
    /// # Errors
    /// If too many wait already, or it would take longer than until `deadline`.
    pub fn wait(
        self: &Arc<Self>,
        who: Waiter,
        wish: &Wish,
        deadline: Instant,
        now: Instant,
    ) -> Result<Waiting, NotServed> {
        let line = &self.line;
        let (grant, granted) = oneshot::channel();
        let ticket = {
            let mut places = line.places.lock();
            let ahead = places.ahead(&who.tenant, who.priority);
            let rested = self.rested_in(wish, now);
            let wait = line.wait(ahead, self.breadth(now)).max(rested);
            // Who is next waits for one place alone: a mean says little of when that comes.
            let certain = if ahead == 0 { rested } else { wait };
            let room = self.room(&places, &who);
            let refused = match room {
                Room::None => Some(NotServed::QueueFull { wait }),
                Room::Kept => Some(NotServed::Shed { wait }),
                _ if certain > deadline.saturating_duration_since(now) => {
                    Some(NotServed::TooLong { wait })
                }
                _ => None,
            };
            if let Some(refused) = refused {
                line.count(refused);
                drop(places);
                line.pump();
                return Err(refused);
            }
            // Who leaves and who comes are as many as before.
            match room {
                Room::Of(ticket) => line.make_way(&mut places, &ticket, now),
                _ => line.one_more(),
            }
            let entry = Entry {
                lane: self.clone(),
                wish: wish.clone(),
                grant,
            };
            let need = Need {
                lane: Arc::as_ptr(self).addr(),
                tried: wish.tried.clone(),
                pinned: wish.pinned,
            };
            places.push(who.tenant.clone(), who.weight, who.priority, need, entry)
        };
        fence(Ordering::SeqCst);
        line.pump();
        Ok(Waiting {
            lane: self.clone(),
            who,
            ticket,
            grant: granted,
            time: Box::pin(tokio::time::sleep_until(deadline.into())),
            over: false,
        })
    }

    fn room(&self, places: &FairQueue<TenantId, Need, Entry>, who: &Waiter) -> Room {
        let waiting = places.len();
        if waiting < share::of(self.max_length, who.priority) {
            return Room::Free;
        }
        // Without a queue, those of an earlier configuration wait until they are served.
        let ticket = self
            .is_queued_for()
            .then(|| places.gives_way(&who.tenant, who.weight, who.priority))
            .flatten();
        match ticket.filter(|ticket| ticket.priority() >= who.priority) {
            Some(ticket) => Room::Of(ticket),
            None if waiting < self.max_length => Room::Kept,
            None => Room::None,
        }
    }

    /// Brings ceilings up to date and serves those who wait, should anything have come free that
    /// nobody gave back: a ceiling that rose, an account that woke up, an endpoint that recovered.
    pub fn pump(&self, now: Instant) {
        self.govern(now);
        if self.line.is_waited_in() {
            self.line.pump();
        }
    }

    /// The state of the queue, for metrics.
    pub fn observed(&self) -> Observed {
        let counts = &self.line.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Observed {
            waiting: self.line.waiting.load(Ordering::Relaxed),
            granted: read(&counts.granted),
            left: read(&counts.left),
            queue_full: read(&counts.queue_full),
            shed: read(&counts.shed),
            too_long: read(&counts.too_long),
            late: read(&counts.late),
            exhausted: read(&counts.exhausted),
            closed: read(&counts.closed),
            hold: Duration::from_micros(read(&self.line.hold)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
