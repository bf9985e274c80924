//! Decides what of one root goes into its next batch, and which of its holdings Redis has to be told
//! of again. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BATCH, Batch, LIMIT, Moment, Part, Root, Ticket};

impl Root {
    pub(super) fn pack(&mut self, name: &Arc<str>, sequence: u64, moment: Moment) -> Batch {
        let mut moves = Vec::new();
        while moves.len() < BATCH {
            let Some((key, mut one)) = self.moves.pop_first() else {
                break;
            };
            one.leak(moment);
            moves.push((key, one));
        }
        let taken = self.abandoned.len().min(BATCH);
        let renew = std::mem::take(&mut self.renew);
        if renew {
            self.generation = self.generation.saturating_add(1);
        }
        let claims = self.claims();
        Batch {
            root: name.clone(),
            sequence,
            renew,
            claims,
            generation: self.generation,
            moves,
            abandoned: self.abandoned.drain(..taken).collect(),
        }
    }

    /// Says to which generation the release of these parts belongs.
    pub(super) fn let_go(&mut self, ticket: Ticket, parts: &[Part]) -> u64 {
        let generation = match self.claimed {
            (upto, claimed) if ticket.number <= upto => claimed.max(ticket.generation),
            _ => ticket.generation,
        };
        for part in parts {
            let key = (generation, part.counter.name.clone());
            if let Some(held) = self.holding.get_mut(&key) {
                *held = held.saturating_sub(part.demand());
                if *held == 0 {
                    self.holding.remove(&key);
                }
            }
        }
        generation
    }

    /// What earlier generations hold becomes part of this one.
    pub(super) fn claims(&mut self) -> Vec<(Arc<str>, u64)> {
        let mut claims: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        while self.has_to_claim() {
            let Some(((_, counter), held)) = self.holding.pop_first() else {
                break;
            };
            let claim = claims.entry(counter).or_default();
            *claim = claim.saturating_add(held).min(LIMIT);
        }
        for (counter, claim) in &claims {
            let key = (self.generation, counter.clone());
            let held = self.holding.entry(key).or_default();
            *held = held.saturating_add(*claim);
        }
        if !claims.is_empty() {
            self.claimed = (self.tickets, self.generation);
        }
        claims.into_iter().collect()
    }

    pub(super) fn has_to_claim(&self) -> bool {
        let oldest = self.holding.first_key_value();
        oldest.is_some_and(|((generation, _), _)| *generation < self.generation)
    }

    pub(super) fn has_something(&self) -> bool {
        !self.moves.is_empty() || !self.abandoned.is_empty() || self.renew || self.has_to_claim()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open == 0 && self.sent.is_none() && !self.has_something()
    }
}
