//! Room held for one request, wherever it is counted: here, or here and in Redis.
//!
//! Where Redis counts, this process counts its own part as well. So it knows what it has used when
//! Redis goes away, and one list of leases tells what is under way.

use super::amounts::Amounts;
use super::clock::Now;
use super::reservation::{Reservation, Shown};
use super::store_redis;
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
    pub reservation: store_redis::Reservation,
    /// By the order of the reservation's parts, but for limits on requests, which come last.
    pub quantities: Vec<Quantity>,
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
        self.reservation.settle_from(self.quantities.len(), 1);
    }

    fn settle(self, used: &Amounts) {
        let taken = self.quantities.iter().map(|quantity| match quantity {
            Quantity::Concurrent => 0,
            quantity => used.of(*quantity),
        });
        self.reservation.settle(&taken.collect::<Vec<_>>());
    }
}
