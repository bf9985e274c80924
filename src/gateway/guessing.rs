//! Decides whether an address that failed to identify itself too often is still heard. Knows
//! addresses and fingerprints of credentials; neither credentials nor whose they are.
//!
//! What this protects from: trying keys, tokens or signatures from one place in great number, and
//! the work and log lines such attempts cost. A caller that was found good from the same address
//! before is heard all the same, so one noisy program does not lock out its neighbours behind a NAT.
//!
//! What it does not protect from:
//! - Guessing from many addresses, each below the limit. Credentials of 256 bits do.
//! - A burst: whatever is under way at once when the limit is reached is still judged.
//! - A pause: spans begin when somebody comes, so after a minute without strangers old failures may
//!   count for up to a minute longer than they should.
//! - A first visit from an address that is over its limit: it has to wait, even with a good
//!   credential. So has a caller whose credential is new (a fresh token, a rotated key).
//! - Somebody with a good credential and 16,384 addresses: he can displace what is known of others.
//!   They notice only while their own address is over its limit.
//!
//! A credential that was good and no longer is (revoked, expired) stays known until displaced. That
//! lets it be heard and refused again. A fingerprint covers all that is secret in a credential, so
//! that gives no room to guess; but for signed requests, which are never the same twice and are
//! known by their key id. Who calls from a signer's address may try signatures at leisure, against
//! 256 bits and at the price of one HMAC each.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pingora_limits::rate::Rate;

/// The span over which failures are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// Rows and columns of the count–min sketch that counts failures.
///
/// It only ever counts too much: an address seems to be over its limit if in every row it shares its
/// counter with one that is. Those over the limit are not counted further, so what matters is how
/// many there are: with 2,000 at once it happens to 2 in 10,000 of the others, with 10,000 to 1 in
/// 20, and known callers never notice. Pingora's default, 1,024 columns, would do it to half of
/// them with 2,000.
///
/// Memory: 2 spans × 4 × 16,384 counters of 8 bytes are 1 MiB, made with the first failure.
const ROWS: usize = 4;
const COLUMNS: usize = 1 << 14;

/// Callers that are remembered, 8 bytes each: 128 KiB. Two that fall on the same slot displace each
/// other.
const SLOTS: usize = 1 << 14;

/// Failed attempts by network, and callers that are known to be good.
pub struct Guessing {
    /// Behind a lock although it is made for many threads: it reads the time, then when its span
    /// began. If another thread begins a new span in between, the difference underflows, which
    /// empties the counts, or panics where overflow is checked. Known callers never come here.
    failures: OnceLock<Mutex<Rate>>,
    window: Duration,
    known: Box<[AtomicU64]>,
    /// Seeded at random, so that nobody can compute whom he would displace.
    hasher: RandomState,
}

/// What is one caller's to choose from: an IPv4 address, or an IPv6 /64, which is the least that
/// providers hand out.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Network(u128);

impl Network {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // The marker keeps it apart from every /64, whose lower half is zero.
            IpAddr::V4(address) => Self(1 << 32 | u128::from(u32::from(address))),
            IpAddr::V6(address) => Self(u128::from(address) >> 64 << 64),
        }
    }
}

impl Default for Guessing {
    fn default() -> Self {
        Self::new()
    }
}

impl Guessing {
    /// Counts by the minute.
    pub fn new() -> Self {
        Self::over(WINDOW)
    }

    fn over(window: Duration) -> Self {
        Self {
            failures: OnceLock::new(),
            window,
            known: std::iter::repeat_with(AtomicU64::default)
                .take(SLOTS)
                .collect(),
            hasher: RandomState::new(),
        }
    }

    fn counted(&self) -> &Mutex<Rate> {
        let make = || Mutex::new(Rate::new_with_estimator_config(self.window, ROWS, COLUMNS));
        self.failures.get_or_init(make)
    }

    /// Counts an attempt that was judged and found wrong. Do not count those that were not judged
    /// because the address was throttled: it would then never come free.
    pub fn failed(&self, address: IpAddr) {
        self.counted().lock().observe(&Network::of(address), 1);
    }

    /// Has the address used up its `limit` of failed attempts a minute? 0 stands for no limit. Then for how long it has to wait, in whole seconds, 1 to
    /// 120. Ask [`Self::known`] first: it costs less, and a known caller is heard anyway.
    pub fn is_throttled(&self, address: IpAddr, limit: u32) -> Option<Duration> {
        if limit == 0 {
            return None;
        }
        let network = Network::of(address);
        // Where nobody has failed yet, nobody has failed too often.
        self.failures.get()?.lock().rate_with(&network, |rate| {
            let count = Count {
                previous: rate.prev_samples as f64,
                current: rate.curr_samples as f64,
                passed: rate.current_interval_fraction,
            };
            wait(count, f64::from(limit), rate.interval)
        })
    }

    /// Was this credential found good from this address before? May have been forgotten.
    ///
    /// The fingerprint is a hash of the whole credential as it was presented. It need not be keyed,
    /// for it is hashed again with a secret seed.
    pub fn known(&self, address: IpAddr, fingerprint: u64) -> bool {
        let mark = self.mark(address, fingerprint);
        self.slot(mark)
            .is_some_and(|slot| slot.load(Ordering::Relaxed) == mark)
    }

    /// Remembers that this credential was found good from this address. Cheap enough for every
    /// request: what is remembered already is not written again, so the line stays in every core's
    /// cache.
    pub fn succeeded(&self, address: IpAddr, fingerprint: u64) {
        let mark = self.mark(address, fingerprint);
        if let Some(slot) = self.slot(mark)
            && slot.load(Ordering::Relaxed) != mark
        {
            slot.store(mark, Ordering::Relaxed);
        }
    }

    /// Never 0, which is an empty slot.
    fn mark(&self, address: IpAddr, fingerprint: u64) -> u64 {
        self.hasher
            .hash_one((Network::of(address), fingerprint))
            .max(1)
    }

    fn slot(&self, mark: u64) -> Option<&AtomicU64> {
        self.known.get(mark as usize % SLOTS)
    }
}

/// One network's failures, and how much of the current span has passed, 0 to 1.
#[derive(Debug, Clone, Copy)]
struct Count {
    previous: f64,
    current: f64,
    passed: f64,
}

/// How long until less than `limit` failures lie in the last span; none if that is so now. Failures
/// of the previous span are taken as spread evenly over it.
fn wait(count: Count, limit: f64, span: Duration) -> Option<Duration> {
    let left = 1.0 - count.passed;
    if count.previous * left + count.current < limit {
        return None;
    }
    let spans = if count.current >= limit {
        left + (1.0 - limit / count.current)
    } else {
        left - (limit - count.current) / count.previous
    };
    // At the computed moment it is just not yet less, so the next whole second.
    let seconds = (spans * span.as_secs_f64()) as u64 + 1;
    Some(Duration::from_secs(seconds.min(2 * WINDOW.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Instant;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn numbered(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(number))
    }

    #[test]
    fn an_address_is_throttled_when_its_attempts_are_used_up() {
        let guessing = Guessing::new();
        let (noisy, other) = (address("192.0.2.1"), address("192.0.2.2"));
        for _ in 0..3 {
            assert_eq!(guessing.is_throttled(noisy, 3), None);
            guessing.failed(noisy);
        }
        let wait = guessing.is_throttled(noisy, 3).unwrap();
        assert!((1..=61).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(guessing.is_throttled(other, 3), None);
    }

    #[test]
    fn a_throttled_address_comes_free_by_itself() {
        let guessing = Guessing::over(Duration::from_millis(40));
        let noisy = address("192.0.2.1");
        guessing.failed(noisy);
        let began = Instant::now();
        while guessing.is_throttled(noisy, 1).is_some() {
            assert!(began.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
    }

    #[test]
    fn no_limit_throttles_nobody() {
        let guessing = Guessing::new();
        (0..100).for_each(|_| guessing.failed(address("192.0.2.1")));
        assert_eq!(guessing.is_throttled(address("192.0.2.1"), 0), None);
    }

    #[test]
    fn ipv6_is_counted_by_the_64_and_mapped_ipv4_as_ipv4() {
        let guessing = Guessing::new();
        guessing.failed(address("2001:db8::1"));
        guessing.failed(address("2001:db8::ffff:0:0:2"));
        assert!(guessing.is_throttled(address("2001:db8::3"), 2).is_some());
        assert!(
            guessing
                .is_throttled(address("2001:db8:0:1::1"), 2)
                .is_none()
        );
        guessing.failed(address("192.0.2.1"));
        guessing.failed(address("::ffff:192.0.2.1"));
        assert!(guessing.is_throttled(address("192.0.2.1"), 2).is_some());
        assert!(guessing.is_throttled(address("::1"), 2).is_none());
    }

    #[test]
    fn a_caller_is_known_by_its_address_and_its_credential() {
        let guessing = Guessing::new();
        let (here, there) = (address("192.0.2.1"), address("192.0.2.2"));
        assert!(!guessing.known(here, 7));
        guessing.succeeded(here, 7);
        guessing.succeeded(here, 7);
        assert!(guessing.known(here, 7));
        assert!(guessing.known(address("::ffff:192.0.2.1"), 7));
        assert!(!guessing.known(here, 8) && !guessing.known(there, 7));
        assert!(!guessing.known(here, 0));
    }

    #[test]
    fn a_neighbour_is_heard_while_a_noisy_program_is_not() {
        let guessing = Guessing::new();
        let shared = address("203.0.113.9");
        guessing.succeeded(shared, 1);
        (0..100).for_each(|_| guessing.failed(shared));
        assert!(guessing.is_throttled(shared, 5).is_some());
        assert!(guessing.known(shared, 1));
        assert!(!guessing.known(shared, 2));
    }

    #[test]
    fn most_of_many_callers_are_remembered() {
        let guessing = Guessing::new();
        (0..2_000).for_each(|n| guessing.succeeded(numbered(n), 1));
        let remembered = (0..2_000)
            .filter(|n| guessing.known(numbered(*n), 1))
            .count();
        assert!(remembered > 1_800, "{remembered}");
        assert!(!(10_000..20_000).any(|n| guessing.known(numbered(n), 1)));
    }

    #[test]
    fn seeds_differ_from_one_table_to_the_next() {
        let marks = [0, 1].map(|_| Guessing::new().mark(numbered(1), 1));
        assert_ne!(marks[0], marks[1]);
    }

    #[test]
    fn thousands_of_guessers_hardly_touch_the_others() {
        let guessing = Guessing::new();
        (0..2_000).for_each(|n| guessing.failed(numbered(n)));
        let touched = |guessing: &Guessing| {
            (1 << 24..(1 << 24) + 10_000)
                .filter(|n| guessing.is_throttled(numbered(*n), 10).is_some())
                .count()
        };
        assert_eq!(touched(&guessing), 0, "each failed once");
        for n in 0..2_000 {
            guessing
                .counted()
                .lock()
                .observe(&Network::of(numbered(n)), 9);
        }
        let touched = touched(&guessing);
        assert!(touched < 30, "each at its limit: {touched} of 10,000");
    }

    #[test]
    fn threads_may_count_at_once() {
        let guessing = Guessing::over(Duration::from_millis(1));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let guessing = &guessing;
                scope.spawn(move || {
                    for n in 0..10 {
                        guessing.failed(numbered(n));
                        guessing.is_throttled(numbered(thread), 1_000_000);
                        guessing.succeeded(numbered(n), 1);
                    }
                });
            }
        });
    }

    #[test]
    fn the_wait_follows_from_the_counts() {
        let seconds = |previous, current, passed| {
            let count = Count {
                previous,
                current,
                passed,
            };
            wait(count, 10.0, WINDOW).map(|wait| wait.as_secs())
        };
        assert_eq!(seconds(0.0, 9.0, 0.5), None);
        assert_eq!(seconds(0.0, 10.0, 0.5), Some(31));
        assert_eq!(seconds(0.0, 20.0, 0.5), Some(61));
        assert_eq!(seconds(10.0, 0.0, 0.0), Some(1));
        assert_eq!(seconds(10.0, 0.0, 0.1), None);
        assert_eq!(seconds(10.0, 5.0, 0.25), Some(16));
        assert_eq!(seconds(0.0, 1e18, 0.0), Some(120));
    }

    proptest! {
        #[test]
        fn who_waits_as_long_as_told_is_heard(
            previous in 0..50_u32,
            current in 0..50_u32,
            passed in 0.0..1.0_f64,
            limit in 1..60_u32,
        ) {
            let count = Count { previous: previous.into(), current: current.into(), passed };
            let limit = f64::from(limit);
            let Some(told) = wait(count, limit, WINDOW) else { return Ok(()) };
            let passed = passed + told.as_secs_f64() / WINDOW.as_secs_f64();
            let later = match passed {
                ..1.0 => Count { passed, ..count },
                ..2.0 => Count { previous: count.current, current: 0.0, passed: passed - 1.0 },
                _ => Count { previous: 0.0, current: 0.0, passed: 0.0 },
            };
            prop_assert_eq!(wait(later, limit, WINDOW), None);
        }

        #[test]
        fn no_two_networks_have_one_number(a in any::<u32>(), b in any::<u128>()) {
            let v6 = IpAddr::V6(Ipv6Addr::from(b));
            prop_assume!(v6.to_canonical().is_ipv6());
            prop_assert!(Network::of(numbered(a)) != Network::of(v6));
        }
    }
}
