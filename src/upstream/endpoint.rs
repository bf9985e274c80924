//! An endpoint's running state: its addresses, how it is, its load. Outlives reloads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::addresses::Addresses;
use super::condition::Condition;
use super::gate::{Reason, Terms};
use super::health::{Record, Thresholds, Transition};
use super::latency::Latency;
use super::transitions::Teller;

/// How an endpoint is watched over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    pub thresholds: Thresholds,
    /// Active checks are on: they alone say when it is well again.
    pub checked: bool,
    /// How it comes back, and without checks also when.
    pub terms: Terms,
}

/// A result of a check, or of a connection of live traffic.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'a> {
    pub good: bool,
    /// What takes it out if it is not good.
    pub reason: Reason,
    pub text: &'a str,
}

#[derive(Debug)]
pub struct EndpointState {
    pub condition: Condition,
    pub latency: Latency,
    pub addresses: Addresses,
    record: Mutex<Record>,
    in_flight: AtomicU32,
    /// Requests at one time; [`NO_LIMIT`] for no limit.
    limit: AtomicU32,
}

const NO_LIMIT: u32 = u32::MAX;

impl EndpointState {
    pub fn new(teller: Teller, now: Instant) -> Self {
        Self {
            latency: Latency::new(now),
            condition: Condition::new(teller, now),
            addresses: Addresses::new(now),
            record: Mutex::default(),
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(NO_LIMIT),
        }
    }

    /// Counts a result; so many in a row take it out, or bring it back.
    pub fn record(&self, heard: Heard<'_>, watch: Watch, now: Instant) {
        let mut record = self.record.lock();
        let change = record.record(heard.good, watch.thresholds);
        if !watch.checked && change == Some(Transition::BecameUnhealthy) {
            // Nobody will ask after it: it is tried again, and counted anew.
            *record = Record::default();
        }
        // The record is held over what follows, or an older result could have the last word.
        match change {
            Some(Transition::BecameUnhealthy) if watch.checked => {
                self.condition
                    .leave_until(heard.reason, heard.text, None, now);
            }
            Some(Transition::BecameUnhealthy) => {
                self.condition
                    .leave(heard.reason, heard.text, now, watch.terms);
            }
            Some(Transition::BecameHealthy) => {
                self.condition
                    .welcome(Reason::Checks, heard.text, now, watch.terms);
            }
            None => {}
        }
    }

    /// Lets it back in if it is out without end and its record is good: no result would any more.
    pub fn reconcile(&self, watch: Watch, now: Instant) {
        if self.condition.is_plain() {
            return;
        }
        let record = self.record.lock();
        if watch.checked && record.is_healthy() {
            self.condition
                .welcome_unending(Reason::Checks, now, watch.terms);
        }
    }

    /// The operator wants no new requests at it, or wants them again. Those under way go on.
    pub fn drain(&self, drained: bool) {
        self.condition.drain(drained, Instant::now());
    }

    pub fn is_drained(&self) -> bool {
        self.condition.is_drained()
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
    use std::time::Duration;

    use super::super::balance::Standing;
    use super::super::transitions::{Kind, Transitions};
    use super::*;
    use crate::config::settings::UpstreamId;

    fn state() -> Arc<EndpointState> {
        let teller = Teller {
            kind: Kind::Endpoint,
            name: "e".into(),
            transitions: Arc::new(Transitions::new(UpstreamId::new("u"))),
        };
        Arc::new(EndpointState::new(teller, Instant::now()))
    }

    #[test]
    fn results_in_a_row_take_it_out_and_without_checks_it_is_tried_again() {
        let now = Instant::now();
        for checked in [false, true] {
            let state = state();
            let watch = Watch {
                thresholds: Thresholds {
                    healthy_after: 1,
                    unhealthy_after: 2,
                },
                checked,
                terms: Terms::of(None),
            };
            let heard = |good| Heard {
                good,
                reason: Reason::Checks,
                text: "",
            };
            let standing = |at| state.condition.standing(at, watch.terms);
            state.record(heard(false), watch, now);
            assert_ne!(standing(now), Standing::Closed);
            state.record(heard(false), watch, now);
            assert_eq!(standing(now), Standing::Closed);
            let much_later = now + Duration::from_secs(1_000);
            let expected = if checked {
                Standing::Closed
            } else {
                Standing::Probe
            };
            assert_eq!(standing(much_later), expected);
            state.record(heard(true), watch, much_later);
            assert_ne!(standing(much_later), Standing::Closed);
        }
    }

    #[test]
    fn who_is_out_without_end_comes_back_while_its_record_is_good() {
        let now = Instant::now();
        let watch = Watch {
            thresholds: Thresholds {
                healthy_after: 1,
                unhealthy_after: 1,
            },
            checked: true,
            terms: Terms::of(None),
        };
        let bad = Heard {
            good: false,
            reason: Reason::Checks,
            text: "",
        };
        let [apart, together] = [state(), state()];
        apart.condition.leave_until(Reason::Checks, "", None, now);
        together.record(bad, watch, now);
        for (state, closed) in [(apart, false), (together, true)] {
            state.reconcile(watch, now);
            let standing = state.condition.standing(now, watch.terms);
            assert_eq!(standing == Standing::Closed, closed);
        }
    }

    #[test]
    fn a_limit_is_never_passed_and_a_dropped_lease_is_no_longer_counted() {
        let state = state();
        state.configure(Some(1));
        let lease = state.acquire().unwrap();
        assert_eq!(state.in_flight(), 1);
        assert!(state.acquire().is_none());
        drop(lease);
        assert_eq!(state.in_flight(), 0);
    }
}
