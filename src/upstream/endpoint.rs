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
}

impl EndpointState {
    pub fn new(now: Instant) -> Self {
        Self {
            addresses: ArcSwap::from_pointee(Vec::new()),
            next: AtomicUsize::new(0),
            record: Mutex::new(Record::new(now)),
            in_flight: AtomicU32::new(0),
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

    /// Counts a request until the lease is dropped.
    pub fn lease(self: &Arc<Self>) -> EndpointLease {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        EndpointLease(self.clone())
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
    fn a_dropped_lease_is_no_longer_counted() {
        let state = Arc::new(EndpointState::new(Instant::now()));
        let lease = state.lease();
        assert_eq!(state.in_flight(), 1);
        drop(lease);
        assert_eq!(state.in_flight(), 0);
    }
}
