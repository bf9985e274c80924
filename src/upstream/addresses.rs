//! The addresses behind an endpoint's name, in turn. One that cannot be reached is passed over while
//! another can; then a single attempt tries it again. Only where none can be reached is it the
//! endpoint that is ill, which is not decided here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{info, warn};
use parking_lot::Mutex;

/// How long an address is passed over after its first failure; each further one in a row doubles it.
const FIRST_REST: Duration = Duration::from_secs(10);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// What may become of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// It may find out whether an address can be reached again.
    MayTry,
    /// It should be served; it finds out only where nobody else has for long.
    Sure,
}

/// Outlives reloads and moves of the name: an address that stays keeps what is known of it.
#[derive(Debug)]
pub struct Addresses {
    epoch: Instant,
    all: ArcSwap<Vec<Arc<Address>>>,
    next: AtomicUsize,
    next_check: AtomicUsize,
}

#[derive(Debug)]
struct Address {
    at: SocketAddr,
    /// Microseconds after the epoch; 0 for one that can be reached.
    rests_until: AtomicU64,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    /// In a row.
    failures: u32,
    /// When it was last seen to change: it failed, its trial began, it answered.
    since: Option<Instant>,
}

impl Addresses {
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            all: ArcSwap::default(),
            next: AtomicUsize::new(0),
            next_check: AtomicUsize::new(0),
        }
    }

    pub fn count(&self) -> usize {
        self.all.load().len()
    }

    /// How many could not be reached; they are passed over while others can.
    pub fn resting(&self) -> usize {
        let all = self.all.load();
        all.iter().filter(|address| !address.is_good()).count()
    }

    /// Takes over a fresh resolution; an empty one is ignored, stale addresses beat none.
    pub fn set(&self, fresh: &[SocketAddr]) {
        let all = self.all.load();
        if fresh.is_empty() || all.iter().map(|it| &it.at).eq(fresh) {
            return;
        }
        let keep = |at: &SocketAddr| {
            let known = all.iter().find(|address| address.at == *at).cloned();
            known.unwrap_or_else(|| Arc::new(Address::new(*at)))
        };
        self.all.store(Arc::new(fresh.iter().map(keep).collect()));
    }

    /// Where the next attempt goes, which begins at `now`; `None` until the name was resolved.
    pub fn next(&self, visit: Visit, now: Instant) -> Option<SocketAddr> {
        let all = self.all.load();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let [only] = all.as_slice() {
            return Some(only.at);
        }
        // Where nobody has time to spare, somebody must find out all the same.
        let overdue = match visit {
            Visit::MayTry => Duration::ZERO,
            Visit::Sure => LONGEST_REST,
        };
        let due = now.checked_sub(overdue).map_or(0, |at| self.micros(at));
        let tries = |it: &&Arc<Address>| it.takes_trial(due, now, self.micros(now + FIRST_REST));
        if let Some(trial) = all.iter().find(tries) {
            return Some(trial.at);
        }
        let good = || all.iter().filter(|address| address.is_good());
        match turn.checked_rem(good().count()) {
            Some(turn) => good().nth(turn),
            None => all.get(turn.checked_rem(all.len())?),
        }
        .map(|address| address.at)
    }

    /// Which one is checked next: each in turn, however it is.
    pub fn next_check(&self) -> Option<SocketAddr> {
        let all = self.all.load();
        let turn = self.next_check.fetch_add(1, Ordering::Relaxed);
        Some(all.get(turn.checked_rem(all.len())?)?.at)
    }

    /// It has answered, in an attempt that began at `began`. One of before it failed says only that
    /// what was under way there ends well.
    pub fn reached(&self, at: SocketAddr, began: Instant, now: Instant) {
        let all = self.all.load();
        let found = all.iter().find(|address| address.at == at);
        if let Some(address) = found.filter(|address| !address.is_good()) {
            let mut rest = address.rest.lock();
            if rest.since.is_some_and(|since| began < since) {
                return;
            }
            rest.failures = 0;
            rest.since = Some(now);
            address.rests_until.store(0, Ordering::Release);
            info!("An address can be reached again. address={at}");
        }
    }

    /// There was none, in an attempt that began at `began`. True if others of the name are left:
    /// then this says nothing of the endpoint.
    pub fn failed(&self, at: SocketAddr, began: Instant, now: Instant) -> bool {
        let all = self.all.load();
        let are_left = all.iter().any(|other| other.at != at && other.is_good());
        let alone = all.len() == 1;
        let found = all.iter().find(|address| address.at == at);
        if let Some(address) = found.filter(|_| !alone) {
            let mut rest = address.rest.lock();
            // What began before its last change is no news.
            if rest.since.is_none_or(|since| began >= since) {
                let longer = 1 << rest.failures.min(16);
                let rests = (FIRST_REST * longer).min(LONGEST_REST);
                // Where all fail alike, none should be missed for longer than the others.
                rest.failures = rest.failures.saturating_add(u32::from(are_left));
                rest.since = Some(now);
                address.rest_until(self.micros(now + rests));
                if are_left {
                    let rests = rests.as_secs();
                    warn!(
                        "An address cannot be reached; others of its name are asked. address={at} for_s={rests}"
                    );
                }
            }
        }
        are_left
    }

    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch).as_micros();
        u64::try_from(since).unwrap_or(u64::MAX)
    }
}

impl Address {
    fn new(at: SocketAddr) -> Self {
        Self {
            at,
            rests_until: AtomicU64::new(0),
            rest: Mutex::default(),
        }
    }

    fn is_good(&self) -> bool {
        self.rests_until.load(Ordering::Acquire) == 0
    }

    fn rest_until(&self, until: u64) {
        self.rests_until.store(until.max(1), Ordering::Release);
    }

    /// Has it rested, and is this the one attempt that finds out? No other is for a while.
    fn takes_trial(&self, due: u64, now: Instant, until: u64) -> bool {
        let rests_until = self.rests_until.load(Ordering::Acquire);
        if rests_until == 0 || due < rests_until {
            return false;
        }
        let mut rest = self.rest.lock();
        if self.rests_until.load(Ordering::Acquire) != rests_until {
            return false;
        }
        rest.since = Some(now);
        self.rest_until(until);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 1))
    }

    fn three(now: Instant) -> (Addresses, [SocketAddr; 3]) {
        let addresses = Addresses::new(now);
        let all = [1, 2, 3].map(address);
        addresses.set(&all);
        (addresses, all)
    }

    fn counts(addresses: &Addresses, now: Instant, asked: usize) -> [usize; 3] {
        let seen: Vec<_> = (0..asked)
            .filter_map(|_| addresses.next(Visit::MayTry, now))
            .collect();
        [1, 2, 3].map(|last| seen.iter().filter(|at| **at == address(last)).count())
    }

    #[test]
    fn all_take_turns_and_an_empty_answer_keeps_the_old_ones() {
        let now = Instant::now();
        let addresses = Addresses::new(now);
        assert_eq!(
            (addresses.next(Visit::MayTry, now), addresses.next_check()),
            (None, None)
        );
        let (addresses, _) = three(now);
        addresses.set(&[]);
        assert_eq!(counts(&addresses, now, 30), [10, 10, 10]);
        let checked: Vec<_> = (0..3).filter_map(|_| addresses.next_check()).collect();
        assert_eq!(checked, [1, 2, 3].map(address));
    }

    #[test]
    fn one_that_fails_is_passed_over_and_the_others_share_its_turns() {
        let now = Instant::now();
        let (addresses, [_, dead, _]) = three(now);
        assert!(addresses.failed(dead, now, now));
        assert_eq!(addresses.resting(), 1);
        assert_eq!(counts(&addresses, now, 30), [15, 0, 15]);
    }

    #[test]
    fn one_attempt_alone_finds_out_whether_it_can_be_reached_again() {
        let now = Instant::now();
        let (addresses, [_, dead, _]) = three(now);
        addresses.failed(dead, now, now);
        let rested = now + FIRST_REST;
        assert_eq!(counts(&addresses, rested, 31), [15, 1, 15]);
        // It could not: it rests for longer.
        let failed = rested + Duration::from_secs(1);
        assert!(addresses.failed(dead, rested, failed));
        assert_eq!(counts(&addresses, failed + FIRST_REST, 30)[1], 0);
        let rested = failed + FIRST_REST * 2;
        assert_eq!(addresses.next(Visit::MayTry, rested), Some(dead));
        // It could.
        addresses.reached(dead, rested, rested);
        assert_eq!(counts(&addresses, rested, 30), [10, 10, 10]);
    }

    #[test]
    fn a_trial_that_never_ends_is_followed_by_another() {
        let now = Instant::now();
        let (addresses, [_, dead, _]) = three(now);
        addresses.failed(dead, now, now);
        assert_eq!(addresses.next(Visit::MayTry, now + FIRST_REST), Some(dead));
        assert_eq!(
            addresses.next(Visit::MayTry, now + FIRST_REST * 2),
            Some(dead)
        );
    }

    #[test]
    fn many_that_fail_together_are_one_failure() {
        let now = Instant::now();
        let (addresses, [_, dead, _]) = three(now);
        for later in 1..9 {
            addresses.failed(dead, now, now + Duration::from_millis(later));
        }
        let rested = now + FIRST_REST + Duration::from_millis(1);
        assert_eq!(addresses.next(Visit::MayTry, rested), Some(dead));
    }

    #[test]
    fn rests_grow_to_a_bound() {
        let mut now = Instant::now();
        let (addresses, [_, dead, _]) = three(now);
        for _ in 0..40 {
            addresses.failed(dead, now, now);
            now += LONGEST_REST;
            assert_eq!(addresses.next(Visit::MayTry, now), Some(dead));
        }
    }

    #[test]
    fn where_none_can_be_reached_all_are_asked_and_it_is_the_endpoints_failure() {
        let now = Instant::now();
        let (addresses, all) = three(now);
        let left = all.map(|at| addresses.failed(at, now, now));
        assert_eq!(left, [true, true, false]);
        assert_eq!(counts(&addresses, now, 30), [10, 10, 10]);
        let alone = Addresses::new(now);
        alone.set(&[address(1)]);
        assert!(!alone.failed(address(1), now, now));
        assert_eq!(alone.next(Visit::MayTry, now), Some(address(1)));
        assert_eq!(alone.resting(), 0);
    }

    #[test]
    fn an_address_that_stays_keeps_what_is_known_of_it() {
        let now = Instant::now();
        let (addresses, [_, dead, other]) = three(now);
        addresses.failed(dead, now, now);
        addresses.set(&[dead, other, address(4)]);
        assert_eq!((addresses.count(), addresses.resting()), (3, 1));
        // One that is gone is no failure of what is there now.
        assert!(addresses.failed(address(1), now, now));
        assert_eq!(addresses.resting(), 1);
    }

    #[test]
    fn whoever_should_be_served_is_not_sent_where_nobody_was_reached() {
        let now = Instant::now();
        let (addresses, [_, dead, _]) = three(now);
        addresses.failed(dead, now, now);
        for _ in 0..30 {
            assert_ne!(addresses.next(Visit::Sure, now + FIRST_REST), Some(dead));
        }
        let overdue = now + FIRST_REST + LONGEST_REST;
        assert_eq!(addresses.next(Visit::Sure, overdue), Some(dead));
    }

    #[test]
    fn after_a_time_in_which_none_could_be_reached_all_are_tried_soon() {
        let mut now = Instant::now();
        let (addresses, all) = three(now);
        for _ in 0..20 {
            now += Duration::from_secs(1);
            for at in all {
                addresses.failed(at, now, now);
            }
        }
        addresses.reached(all[0], now, now);
        let rested = now + FIRST_REST * 4;
        let tried = [(); 2].map(|()| addresses.next(Visit::MayTry, rested));
        assert_eq!(tried, [Some(all[1]), Some(all[2])]);
    }

    #[test]
    fn an_attempt_that_began_before_it_answered_is_no_news() {
        let now = Instant::now();
        let (addresses, [_, dead, _]) = three(now);
        let second = Duration::from_secs(1);
        addresses.failed(dead, now, now + second);
        addresses.reached(dead, now, now + second * 2);
        assert_eq!(addresses.resting(), 1, "of what was under way before");
        addresses.reached(dead, now + second, now + second * 2);
        addresses.failed(dead, now + second, now + second * 3);
        assert_eq!(addresses.resting(), 0);
    }
}
