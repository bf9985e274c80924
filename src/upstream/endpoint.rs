//! An endpoint's running state: its addresses, its health, its load. Outlives reloads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::health::{Record, Thresholds, Transition};

#[derive(Debug)]
pub struct EndpointState {
    addresses: ArcSwap<Vec<SocketAddr>>,
    next: AtomicUsize,
    record: Mutex<Record>,
    in_flight: AtomicU32,
    /// Requests at one time; [`NO_LIMIT`] for no limit.
    limit: AtomicU32,
}

const NO_LIMIT: u32 = u32::MAX;

impl EndpointState {
    pub fn new(now: Instant) -> Self {
        Self {
            addresses: ArcSwap::from_pointee(Vec::new()),
            next: AtomicUsize::new(0),
            record: Mutex::new(Record::new(now)),
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(NO_LIMIT),
        }
    }

    /// The next of all known addresses, in turn; `None` until the name was resolved once.
    pub fn next_address(&self) -> Option<SocketAddr> {
        let addresses = self.addresses.load();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        addresses.get(turn.checked_rem(addresses.len())?).copied()
    }

    pub fn address_count(&self) -> usize {
        self.addresses.load().len()
    }

    /// Takes over a fresh resolution; an empty one is ignored, stale addresses beat none.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        if !addresses.is_empty() && **self.addresses.load() != addresses {
            self.addresses.store(Arc::new(addresses));
        }
    }

    pub fn is_healthy(&self, now: Instant, watched: bool) -> bool {
        self.record.lock().is_healthy(now, watched)
    }

    pub fn record(&self, now: Instant, good: bool, thresholds: Thresholds) -> Option<Transition> {
        self.record.lock().record(now, good, thresholds)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Changes how many requests it takes at one time; `None` for any number.
    pub fn configure(&self, limit: Option<u32>) {
        let limit = limit.unwrap_or(NO_LIMIT);
        self.limit.store(limit, Ordering::Release);
    }

    /// How many requests it takes at one time; `None` for any number.
    pub fn limit(&self) -> Option<u32> {
        let limit = self.limit.load(Ordering::Acquire);
        (limit != NO_LIMIT).then_some(limit)
    }

    /// Counts a request until the lease is dropped, unless as many are under way as may be.
    pub fn acquire(self: &Arc<Self>) -> Option<EndpointLease> {
        let limit = self.limit.load(Ordering::Acquire);
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |held| {
                (held < limit).then_some(held + 1)
            })
            .ok()
            .map(|_| EndpointLease(self.clone()))
    }
}

/// A request under way at an endpoint.
#[must_use]
#[derive(Debug)]
pub struct EndpointLease(Arc<EndpointState>);

impl Drop for EndpointLease {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_take_turns_and_an_empty_answer_keeps_the_old_ones() {
        let state = Arc::new(EndpointState::new(Instant::now()));
        assert_eq!(state.next_address(), None);
        let [a, b]: [SocketAddr; 2] = [
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.2:1".parse().unwrap(),
        ];
        state.set_addresses(vec![a, b]);
        state.set_addresses(Vec::new());
        let seen: Vec<_> = (0..4).filter_map(|_| state.next_address()).collect();
        assert_eq!(seen.iter().filter(|x| **x == a).count(), 2);
        assert_eq!(seen.iter().filter(|x| **x == b).count(), 2);
    }

    #[test]
    fn a_limit_is_never_passed_and_a_dropped_lease_is_no_longer_counted() {
        let state = Arc::new(EndpointState::new(Instant::now()));
        state.configure(Some(1));
        let lease = state.acquire().unwrap();
        assert_eq!(state.in_flight(), 1);
        assert!(state.acquire().is_none());
        drop(lease);
        assert_eq!(state.in_flight(), 0);
    }
}
