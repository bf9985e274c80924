//! Sums over all calls, which go on when the journal has forgotten them. Bounded
//! by the callers it tells apart; beyond, calls are summed under `(others)`.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::meter::Bill;
use super::usage::Usage;

/// Most lines; what would be one more is summed with others.
const MAX_LINES: usize = 10_000;
/// Stands for models and user ids beyond the lines; no `user_id` can be written so.
const OTHERS: &str = "(others)";
/// Status of a call above the account's concurrency.
const TOO_MANY: u16 = 429;

/// How a call ended, for the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The answer went out to its end.
    Whole,
    /// A fault ended it after work was begun.
    Cut,
    /// The client left first.
    ClientGone,
    /// It ended before any work: refused by rule or by order, reset, or given up in the queue.
    Refused,
}

/// Whose calls are summed together.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Caller {
    /// Empty when the key was wrong.
    pub account: String,
    /// Empty when the request was not understood.
    pub model: String,
    /// Empty when the request has none.
    pub user_id: String,
}

/// Tokens of many calls.
#[derive(Debug, Clone, Copy, Default)]
struct Tokens {
    prompt: u64,
    cached: u64,
    completion: u64,
    reasoning: u64,
}

impl Tokens {
    fn add(&mut self, usage: &Usage) {
        let wide = |tokens: usize| u64::try_from(tokens).unwrap_or(u64::MAX);
        self.prompt = self.prompt.saturating_add(wide(usage.prompt));
        self.cached = self.cached.saturating_add(wide(usage.hit));
        self.completion = self.completion.saturating_add(wide(usage.completion));
        let reasoning = wide(usage.reasoning.unwrap_or(0));
        self.reasoning = self.reasoning.saturating_add(reasoning);
    }

    fn to_json(self) -> Value {
        json!({
            "prompt": self.prompt,
            "cached": self.cached,
            "completion": self.completion,
            "reasoning": self.reasoning,
        })
    }
}

#[derive(Debug, Default)]
struct Line {
    whole: u64,
    cut: u64,
    client_gone: u64,
    refused: u64,
    too_many: u64,
    billed: Tokens,
    /// Billed calls whose true usage was not sent, and their part of `billed`.
    untold: u64,
    untold_tokens: Tokens,
}

/// The sums since the journal was last cleared.
#[derive(Default)]
pub(super) struct Totals(Mutex<BTreeMap<Caller, Line>>);

impl Totals {
    /// Adds a call that has ended, with the status of its refusal if it was refused.
    pub(super) fn add(&self, caller: Caller, end: End, refusal: Option<u16>, bill: Option<Bill>) {
        let mut lines = self.0.lock();
        let caller = if lines.len() < MAX_LINES || lines.contains_key(&caller) {
            caller
        } else {
            Caller {
                model: OTHERS.to_owned(),
                user_id: OTHERS.to_owned(),
                ..caller
            }
        };
        let line = lines.entry(caller).or_default();
        let count = match end {
            End::Whole => &mut line.whole,
            End::Cut => &mut line.cut,
            End::ClientGone => &mut line.client_gone,
            End::Refused => &mut line.refused,
        };
        *count += 1;
        line.too_many += u64::from(refusal == Some(TOO_MANY));
        if let Some(bill) = bill {
            line.billed.add(&bill.usage);
            if !bill.usage_sent {
                line.untold += 1;
                line.untold_tokens.add(&bill.usage);
            }
        }
    }

    /// One object for each account, model and user id.
    pub(super) fn to_json(&self) -> Value {
        let lines = self.0.lock();
        let shown = lines.iter().map(|(caller, line)| {
            json!({
                "account": caller.account,
                "model": caller.model,
                "user_id": caller.user_id,
                "whole": line.whole,
                "cut": line.cut,
                "client_gone": line.client_gone,
                "refused": line.refused,
                "status_429": line.too_many,
                "usage": line.billed.to_json(),
                "unsent": { "calls": line.untold, "usage": line.untold_tokens.to_json() },
            })
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(user_id: &str) -> Caller {
        Caller {
            account: "a".into(),
            model: "m".into(),
            user_id: user_id.into(),
        }
    }

    fn bill(completion: usize, usage_sent: bool) -> Option<Bill> {
        let usage = Usage {
            prompt: 10,
            hit: 4,
            completion,
            reasoning: None,
        };
        Some(Bill {
            usage,
            whole: usage_sent,
            usage_sent,
        })
    }

    #[test]
    fn callers_are_summed_apart_and_what_was_not_told_is_told_apart() {
        let totals = Totals::default();
        totals.add(caller("x"), End::Whole, None, bill(5, true));
        totals.add(caller("x"), End::Cut, None, bill(2, false));
        totals.add(caller("x"), End::Refused, Some(429), None);
        totals.add(caller("y"), End::ClientGone, None, None);
        let lines = totals.to_json();
        assert_eq!(
            lines[0],
            json!({
                "account": "a", "model": "m", "user_id": "x",
                "whole": 1, "cut": 1, "client_gone": 0, "refused": 1, "status_429": 1,
                "usage": {"prompt": 20, "cached": 8, "completion": 7, "reasoning": 0},
                "unsent": {"calls": 1,
                    "usage": {"prompt": 10, "cached": 4, "completion": 2, "reasoning": 0}},
            })
        );
        assert_eq!(
            (&lines[1]["client_gone"], &lines[1]["usage"]["prompt"]),
            (&json!(1), &json!(0))
        );
    }

    #[test]
    fn the_lines_stay_bounded_and_lose_nothing() {
        let totals = Totals::default();
        let calls = MAX_LINES + 500;
        for user in 0..calls {
            totals.add(caller(&user.to_string()), End::Whole, None, bill(1, true));
        }
        let lines = totals.to_json();
        let lines = lines.as_array().unwrap();
        assert!(lines.len() <= MAX_LINES + 1);
        let sum: u64 = lines
            .iter()
            .map(|line| line["usage"]["completion"].as_u64().unwrap())
            .sum();
        assert_eq!(sum, calls as u64);
    }
}
