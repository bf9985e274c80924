//! Holds the accounts of an upstream against each other, and its endpoints: who leaves, who is
//! strained, whose failures are forgiven. The rules are [`super::outlier`]'s.

use std::time::{Duration, Instant};

use super::condition::Condition;
use super::gate::{Reason, Terms};
use super::outlier::{self, Look};
use super::pool::{EndpointSlot, Pool};
use super::transitions::Transitions;
use crate::config::settings::Outlier;

impl Pool {
    /// An account has failed: if it is out of line with its peers, it leaves, and what it did to
    /// the endpoints is forgiven them, and their breakers.
    pub(super) fn judge_account(&self, own: usize, now: Instant) {
        let left = self.court(self.terms).is_some_and(|court| {
            let accounts = self.accounts.iter().map(|slot| &slot.state.condition);
            court.judge(accounts, own, now)
        });
        if left {
            let conditions = self.endpoints.iter().map(|slot| &slot.state.condition);
            conditions.for_each(Condition::forgive);
            self.transitions.pardon_breakers();
        }
    }

    /// The same of an endpoint. True if it left.
    pub(super) fn judge_endpoint(&self, own: usize, now: Instant) -> bool {
        let left = self
            .court(self.watch().terms)
            .is_some_and(|court| court.judge(self.conditions(), own, now));
        if left {
            self.forgive_accounts();
        }
        left
    }

    /// It was an endpoint, not they.
    pub(super) fn forgive_accounts(&self) {
        let conditions = self.accounts.iter().map(|slot| &slot.state.condition);
        conditions.for_each(Condition::forgive);
    }

    /// Is first content after so long out of line for this account?
    pub(super) fn is_slow_account(&self, own: usize, took: Duration, now: Instant) -> bool {
        let conditions = self.accounts.iter().map(|slot| &slot.state.condition);
        self.would_be_slow(conditions, own, took, now)
    }

    /// The same of an endpoint.
    pub(super) fn is_slow_endpoint(&self, own: usize, took: Duration, now: Instant) -> bool {
        self.would_be_slow(self.conditions(), own, took, now)
    }

    fn would_be_slow<'a>(
        &self,
        group: impl Iterator<Item = &'a Condition>,
        own: usize,
        took: Duration,
        now: Instant,
    ) -> bool {
        self.settings.outlier.as_ref().is_some_and(|rules| {
            let looks: Vec<_> = group.map(|condition| condition.look(now)).collect();
            outlier::would_be_slow(rules, own, took, &looks)
        })
    }

    /// What time changes: who may be tried again, whose ramp has ended, who has become slow or
    /// silent, which endpoints are strained. To be called several times a second.
    pub(super) fn look_after(&self, now: Instant) {
        for slot in &self.accounts {
            slot.state.condition.advance(false, now);
        }
        for slot in &self.endpoints {
            // Whom the checks took out before they were switched off.
            slot.state.condition.advance(!self.is_watched(), now);
            slot.state.reconcile(self.watch(), now);
        }
        let Some(rules) = &self.settings.outlier else {
            self.conditions()
                .for_each(|condition| condition.strain(None, now));
            return;
        };
        let looks = self.accounts.iter().map(|it| it.state.condition.look(now));
        let accounts: Vec<_> = looks.collect();
        for own in slow(rules, &accounts) {
            self.judge_account(own, now);
        }
        let endpoints: Vec<_> = self.conditions().map(|it| it.look(now)).collect();
        for own in slow(rules, &endpoints) {
            self.judge_endpoint(own, now);
        }
        for (own, condition) in self.conditions().enumerate() {
            condition.strain(outlier::strained(rules, own, &endpoints), now);
        }
    }

    fn conditions(&self) -> impl Iterator<Item = &Condition> + Clone {
        let condition: fn(&EndpointSlot) -> &Condition = |slot| &slot.state.condition;
        self.endpoints.iter().map(condition)
    }

    fn court(&self, terms: Terms) -> Option<Court<'_>> {
        Some(Court {
            rules: self.settings.outlier.as_ref()?,
            terms,
            transitions: &self.transitions,
        })
    }
}

struct Court<'a> {
    rules: &'a Outlier,
    terms: Terms,
    transitions: &'a Transitions,
}

impl Court<'_> {
    /// Takes `own` of the group out if it is out of line and one more may leave.
    fn judge<'a>(
        &self,
        group: impl Iterator<Item = &'a Condition> + Clone,
        own: usize,
        now: Instant,
    ) -> bool {
        let Some(accused) = group.clone().nth(own) else {
            return false;
        };
        if !outlier::is_suspect(self.rules, &accused.look(now)) {
            return false;
        }
        let _one_at_a_time = self.transitions.judging.lock();
        let looks: Vec<_> = group.map(|condition| condition.look(now)).collect();
        let found = outlier::out_of_line(self.rules, own, &looks);
        let Some(reason) = found.filter(|_| outlier::may_leave(self.rules, &looks)) else {
            return false;
        };
        accused.leave(reason, "", now, self.terms);
        true
    }
}

fn slow<'a>(rules: &'a Outlier, group: &'a [Look]) -> impl Iterator<Item = usize> + 'a {
    let members = 0..group.len();
    members.filter(|own| outlier::out_of_line(rules, *own, group) == Some(Reason::Slow))
}
