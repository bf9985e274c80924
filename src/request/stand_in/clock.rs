//! How long an upstream's next sign is waited for: a deadline, and besides it a doubt that is asked
//! now and then. Set by the gateway, looked at where Pingora listens for the client.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

/// For what does not come.
const NEVER: u64 = u64::MAX;
/// The first look at a doubt comes after this.
const FIRST_LOOK: Duration = Duration::from_millis(1_100);
/// From one look to the next at least; of a longer wait, it is a quarter.
const NEXT_LOOK: Duration = Duration::from_millis(250);
/// A write that takes less is none that anybody waits for.
const SLOW: Duration = Duration::from_millis(1);

/// Asked now and then while an upstream shows no content: is it to be given up before its deadline?
pub type Doubt = Box<dyn Fn(std::time::Instant) -> bool + Send + Sync>;

/// Times are microseconds after `epoch`, or [`NEVER`].
pub(super) struct Clock {
    epoch: Instant,
    deadline: AtomicU64,
    /// Nothing puts the deadline off beyond this.
    end: AtomicU64,
    /// By how much it was put off since the wait began.
    slack: AtomicU64,
    late: AtomicBool,
    /// When the doubt is asked next.
    look: AtomicU64,
    doubt: Mutex<Option<Doubted>>,
    /// It was doubt and no deadline.
    doubted: AtomicBool,
}

struct Doubted {
    since: Instant,
    gives_up: Doubt,
}

/// Goes off at the deadline, or before it if that was put off since.
pub(super) type Alarm = Option<Pin<Box<Sleep>>>;

impl Clock {
    pub(super) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            deadline: AtomicU64::new(NEVER),
            end: AtomicU64::new(NEVER),
            slack: AtomicU64::new(0),
            late: AtomicBool::new(false),
            look: AtomicU64::new(NEVER),
            doubt: Mutex::default(),
            doubted: AtomicBool::new(false),
        }
    }

    /// A wait begins that is over at `end` at the latest.
    pub(super) fn begin(&self, end: std::time::Instant) {
        let end = self.micros(Instant::from_std(end));
        self.end.store(end, Ordering::Release);
        self.slack.store(0, Ordering::Release);
    }

    /// There was content: what is waited for now is something else.
    pub(super) fn begin_anew(&self) {
        if self.slack.load(Ordering::Acquire) != 0 {
            self.slack.store(0, Ordering::Release);
        }
    }

    pub(super) fn wait_until(&self, deadline: std::time::Instant) {
        let deadline = self.micros(Instant::from_std(deadline));
        let deadline = self.later(deadline, self.slack.load(Ordering::Acquire));
        self.deadline.store(deadline, Ordering::Release);
    }

    /// `at`, put off by so much, but not beyond the end.
    fn later(&self, at: u64, by: u64) -> u64 {
        let end = self.end.load(Ordering::Acquire);
        at.saturating_add(by).min(end).max(at)
    }

    /// How much time is left for the request as a whole; `None` if nobody is waited for.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let end = self.end.load(Ordering::Acquire);
        let left = || Duration::from_micros(end.saturating_sub(self.micros(now)));
        (end != NEVER).then(left)
    }

    pub(super) fn rest(&self) {
        self.deadline.store(NEVER, Ordering::Release);
        self.doubt(None);
    }

    pub(super) fn doubt(&self, doubt: Option<Doubt>) {
        let since = Instant::now();
        let look = match &doubt {
            Some(_) => self.micros(since + FIRST_LOOK),
            // The usual case: nobody doubted before either.
            None if self.look.load(Ordering::Acquire) == NEVER => return,
            None => NEVER,
        };
        *self.doubt.lock() = doubt.map(|gives_up| Doubted { since, gives_up });
        self.look.store(look, Ordering::Release);
    }

    pub(super) fn was_doubted(&self) -> bool {
        self.doubted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn was_late(&self) -> bool {
        self.late.swap(false, Ordering::AcqRel)
    }

    /// Puts the deadline off by a time in which nothing was read, since the client took what it was
    /// written slowly: that is no silence of the upstream's.
    pub(super) fn put_off(&self, by: Duration) {
        if by < SLOW {
            return;
        }
        let by = u64::try_from(by.as_micros()).unwrap_or(NEVER);
        let order = Ordering::AcqRel;
        self.slack.fetch_add(by, order);
        let later = |at: u64| (at != NEVER).then(|| self.later(at, by));
        // There may be none.
        let _ = self.deadline.fetch_update(order, Ordering::Acquire, later);
    }

    /// Never ends unless the deadline is over, or a doubt says that it is no use. The alarm is set
    /// anew when it must go off sooner, and when it went off too early; not for each piece.
    pub(super) async fn is_over(&self, alarm: &mut Alarm) {
        let Some(wakes) = self.wakes() else {
            return std::future::pending().await;
        };
        let alarm = alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(wakes)));
        if alarm.deadline() > wakes || alarm.is_elapsed() {
            alarm.as_mut().reset(wakes);
        }
        loop {
            alarm.as_mut().await;
            if self.is_over_now() {
                return;
            }
            match self.wakes() {
                None => return std::future::pending().await,
                Some(later) => alarm.as_mut().reset(later),
            }
        }
    }

    /// Is the deadline over, or does a doubt say that it is no use? For whoever looks in the place of
    /// [`Self::is_over`].
    pub(super) fn is_over_now(&self) -> bool {
        let over = self.gives_up(Instant::now());
        if over {
            self.late.store(true, Ordering::Release);
        }
        over
    }

    /// When somebody must look next.
    fn wakes(&self) -> Option<Instant> {
        let next = [&self.deadline, &self.look].map(|at| at.load(Ordering::Acquire));
        let next = next.into_iter().min().filter(|at| *at != NEVER)?;
        self.epoch.checked_add(Duration::from_micros(next))
    }

    fn gives_up(&self, now: Instant) -> bool {
        let over = |at: &AtomicU64| {
            let at = at.load(Ordering::Acquire);
            at != NEVER && now >= self.epoch + Duration::from_micros(at)
        };
        if over(&self.deadline) {
            return true;
        }
        if !over(&self.look) {
            return false;
        }
        let mut doubt = self.doubt.lock();
        let Some(doubted) = doubt.as_ref() else {
            self.look.store(NEVER, Ordering::Release);
            return false;
        };
        if (doubted.gives_up)(now.into_std()) {
            *doubt = None;
            self.look.store(NEVER, Ordering::Release);
            self.doubted.store(true, Ordering::Release);
            return true;
        }
        let waited = now.saturating_duration_since(doubted.since);
        let next = now + (waited / 4).max(NEXT_LOOK);
        self.look.store(self.micros(next), Ordering::Release);
        false
    }

    /// Never before `at`: whoever is woken asks whether it is over.
    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(since.div_ceil(1_000)).unwrap_or(NEVER)
    }
}
