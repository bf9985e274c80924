//! Looks whether every lease belongs to a request: what is held is held against what is under way,
//! and a lease that lasts too long is named.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use log::warn;

use super::Kept;
use crate::config::settings::Settings;

/// A walk over all tenants; rare enough to cost nothing.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Watch {
    looked: Option<Instant>,
    /// Requests that were named already.
    named: HashSet<u128>,
}

impl Watch {
    pub(super) fn look(&mut self, kept: &Kept, settings: &Settings) {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let longest = settings.accounting.lease_warning.as_nanos();
        let longest = u64::try_from(longest).unwrap_or(u64::MAX);
        let now = kept.counting.steady();
        // Requests come and go between the two looks: a difference means something only if it stays.
        let requests = kept.metrics.admitted.get();
        let leases = kept.counting.book.leases(now.saturating_sub(longest));
        let open = i64::try_from(leases.open).unwrap_or(i64::MAX);
        kept.metrics.leases_open.set(open);
        kept.metrics
            .leases_unmatched
            .set(open.saturating_sub(requests));
        let overdue = i64::try_from(leases.overdue.len()).unwrap_or(i64::MAX);
        kept.metrics.leases_overdue.set(overdue);
        let pending = i64::try_from(kept.journal.rows()).unwrap_or(i64::MAX);
        kept.metrics.ledger_pending.set(pending);
        let merged = i64::try_from(kept.journal.merged()).unwrap_or(i64::MAX);
        kept.metrics.ledger_merged.set(merged);
        self.named
            .retain(|request| leases.overdue.iter().any(|live| live.request == *request));
        for live in &leases.overdue {
            if self.named.insert(live.request) {
                let held = Duration::from_nanos(now.saturating_sub(live.since));
                warn!(
                    "A request holds room in its tenant's limits for longer than accounting.lease_warning. request_id={:032x} held={held:?}",
                    live.request
                );
            }
        }
    }
}
