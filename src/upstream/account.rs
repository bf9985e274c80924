//! An account's running state: how it is, how many requests it holds per model and may hold, and
//! whether a model of it is resting.
//!
//! DeepSeek limits *concurrent requests per account and model*, counted from sending until the
//! answer is complete (rate_limit page), so that is what is counted here. The state outlives
//! reloads, the ceiling with it: requests that began before a reload are held to the ceiling of
//! after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::condition::Condition;
use super::credit::Funds;
use super::gate::Reason;
use super::governor::{Governor, Load};
use super::latency::Latency;
use super::transitions::Teller;

/// What the provider says of an account's money holds so long, unless it says it again.
const BALANCE_HOLDS: Duration = Duration::from_secs(600);

/// An account as a whole, whatever the model.
#[derive(Debug)]
pub struct AccountState {
    pub condition: Condition,
    pub funds: Funds,
}

impl AccountState {
    pub fn new(teller: Teller, now: Instant) -> Self {
        Self {
            condition: Condition::new(teller, now),
            funds: Funds::default(),
        }
    }

    /// The operator wants no new requests at it, or wants them again. Those under way go on.
    pub fn drain(&self, drained: bool) {
        self.condition.drain(drained, Instant::now());
    }

    pub fn is_drained(&self) -> bool {
        self.condition.is_drained()
    }

    /// The provider's own account of it shows that nothing is left. To be repeated while that is so.
    pub fn set_unpaid(&self, now: Instant) {
        let until = Some(now + BALANCE_HOLDS);
        self.condition
            .leave_until(Reason::Unpaid, "nothing is left", until, now);
    }

    /// Something is left again: if it was out for that, it is tried again.
    pub fn paid_again(&self, now: Instant) {
        self.condition.try_now(&[Reason::Unpaid], Reason::Paid, now);
    }
}

/// Requests in flight at one account for one model.
#[derive(Debug)]
pub struct Places {
    in_flight: AtomicU32,
    /// [`NO_CEILING`] for none.
    configured: AtomicU32,
    pub governor: Governor,
    pub latency: Latency,
    /// After a 429: the account's other models are not concerned.
    pub rest: Rest,
}

const NO_CEILING: u32 = u32::MAX;

impl Places {
    /// `None` for no ceiling. Rests are measured from `now`.
    pub fn new(ceiling: Option<u32>, now: Instant) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            configured: AtomicU32::new(ceiling.unwrap_or(NO_CEILING)),
            governor: Governor::default(),
            latency: Latency::new(now),
            rest: Rest::new(now),
        }
    }

    /// Requests in flight.
    pub fn get(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Changes the configured ceiling; `None` for none. Places above it are given back as they end.
    pub fn configure(&self, ceiling: Option<u32>) {
        let ceiling = ceiling.unwrap_or(NO_CEILING);
        self.configured.store(ceiling, Ordering::Release);
    }

    /// What the governor is told.
    pub fn load(&self) -> Load {
        let configured = self.configured.load(Ordering::Acquire);
        Load {
            configured: (configured != NO_CEILING).then_some(configured),
            in_flight: self.get(),
        }
    }

    /// What was configured or has been learned, whichever is less; `None` for no ceiling.
    pub fn ceiling(&self) -> Option<u32> {
        let configured = self.configured.load(Ordering::Acquire);
        let ceiling = configured.min(self.governor.learned().unwrap_or(NO_CEILING));
        (ceiling != NO_CEILING).then_some(ceiling)
    }

    /// Takes a place unless as many are taken as may be. It comes back when the lease is dropped.
    pub fn acquire(self: &Arc<Self>) -> Option<AccountLease> {
        let ceiling = self.ceiling().unwrap_or(NO_CEILING);
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |held| {
                (held < ceiling).then_some(held + 1)
            })
            .ok()
            .map(|_| AccountLease(self.clone()))
    }
}

/// A held place at an account.
#[must_use]
#[derive(Debug)]
pub struct AccountLease(Arc<Places>);

impl Drop for AccountLease {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a model of an account should be left alone for a while.
#[derive(Debug)]
pub struct Rest {
    epoch: Instant,
    /// Milliseconds after `epoch`; 0 for never.
    until: AtomicU64,
}

impl Rest {
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            until: AtomicU64::new(0),
        }
    }

    /// Rests until `now + pause`, or longer if it already does.
    pub fn rest(&self, now: Instant, pause: Duration) {
        self.until
            .fetch_max(self.millis(now + pause), Ordering::AcqRel);
    }

    pub fn is_resting(&self, now: Instant) -> bool {
        self.until.load(Ordering::Acquire) > self.millis(now)
    }

    /// How long it still rests; zero if it does not.
    pub fn left(&self, now: Instant) -> Duration {
        let until = self.until.load(Ordering::Acquire);
        Duration::from_millis(until.saturating_sub(self.millis(now)))
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long a model of an account rests after a 429: as `retry_after` says, else 1 s; at most 60 s.
pub fn rest_after_429(retry_after: Option<Duration>) -> Duration {
    let pause = retry_after.unwrap_or(Duration::from_secs(1));
    pause.min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_never_passed_and_a_drop_gives_the_place_back() {
        let in_flight = Arc::new(Places::new(Some(2), Instant::now()));
        let first = in_flight.acquire().unwrap();
        let _second = in_flight.acquire().unwrap();
        assert!(in_flight.acquire().is_none());
        drop(first);
        assert_eq!(in_flight.get(), 1);
        assert!(in_flight.acquire().is_some());
    }

    #[test]
    fn many_threads_cannot_take_one_place_too_many() {
        let in_flight = Arc::new(Places::new(Some(3), Instant::now()));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let lease = in_flight.acquire();
                        assert!(in_flight.get() <= 3);
                        drop(lease);
                    }
                });
            }
        });
        assert_eq!(in_flight.get(), 0);
    }

    #[test]
    fn the_longest_rest_counts_and_ends_by_itself() {
        let start = Instant::now();
        let rest = Rest::new(start);
        rest.rest(start, Duration::from_secs(5));
        rest.rest(start, Duration::from_secs(1));
        assert!(rest.is_resting(start + Duration::from_secs(4)));
        assert!(!rest.is_resting(start + Duration::from_secs(5)));
        let left = |after| rest.left(start + Duration::from_secs(after));
        assert_eq!([left(1), left(9)], [Duration::from_secs(4), Duration::ZERO]);
    }

    #[test]
    fn a_429_rests_the_model_as_long_as_was_asked_for_within_reason() {
        for (told, rests) in [(None, 1), (Some(0), 0), (Some(7), 7), (Some(3600), 60)] {
            let rest = rest_after_429(told.map(Duration::from_secs));
            assert_eq!(rest, Duration::from_secs(rests));
        }
    }
}
