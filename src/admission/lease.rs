//! Room held for one request, wherever it is counted: here, or here and in Redis.
//!
//! Where Redis counts, this process counts its own part as well. So it knows what it has used when
//! Redis goes away, and one list of leases tells what is under way.

use std::sync::Arc;

use super::amounts::Amounts;
use super::clock::Now;
use super::reservation::{Reservation, Shown};
use super::store_redis::{self, Counter, RedisCounts};
use crate::config::settings::Quantity;

/// Given back when it is dropped.
#[must_use]
pub struct Lease {
    local: Reservation,
    remote: Option<Remote>,
    pub shown: Shown,
}

/// The same in Redis.
pub(super) struct Remote {
    pub counts: Arc<RedisCounts>,
    pub root: Arc<str>,
    /// `None` for a request that was admitted while Redis was away: its use is told later.
    pub reservation: Option<store_redis::Reservation>,
    /// By the order of the reservation's parts; limits on requests come last.
    pub counters: Vec<(Counter, Quantity)>,
    /// Index of the first limit on requests.
    pub first_request: usize,
    pub sent: bool,
}

impl Lease {
    pub(super) fn new(local: Reservation, remote: Option<Remote>, shown: Shown) -> Self {
        Self {
            local,
            remote,
            shown,
        }
    }

    /// The request goes to an upstream: from here on it counts as one.
    pub fn sent(&mut self, now: &Now) {
        self.local.sent(now);
        if let Some(remote) = &mut self.remote {
            remote.sent();
        }
    }

    /// Lets go of all that is held, and counts what was really taken.
    pub fn settle(self, used: &Amounts, now: &Now) {
        self.local.settle(used, now);
        if let Some(remote) = self.remote {
            remote.settle(used);
        }
    }
}

impl Remote {
    fn sent(&mut self) {
        if std::mem::replace(&mut self.sent, true) {
            return;
        }
        let requests = self.counters.get(self.first_request..).unwrap_or_default();
        match &mut self.reservation {
            Some(reservation) => {
                reservation.settle_from(self.first_request, &vec![1; requests.len()]);
            }
            None => {
                let used: Vec<_> = requests.iter().map(|(one, _)| (one.clone(), 1)).collect();
                self.counts.report_use(&self.root, &used);
            }
        }
    }

    fn settle(self, used: &Amounts) {
        let others = self.counters.get(..self.first_request).unwrap_or_default();
        let taken = |quantity: &Quantity| match quantity {
            Quantity::Concurrent => 0,
            quantity => used.of(*quantity),
        };
        match self.reservation {
            Some(reservation) => {
                let used: Vec<_> = others.iter().map(|(_, quantity)| taken(quantity)).collect();
                reservation.settle(&used);
            }
            None => {
                let used = others.iter();
                let used: Vec<_> = used
                    .map(|(counter, quantity)| (counter.clone(), taken(quantity)))
                    .collect();
                self.counts.report_use(&self.root, &used);
            }
        }
    }
}
