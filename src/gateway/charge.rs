//! What a request has really taken: its reservation is settled by it, the ledger and the metrics
//! count it, and the model's estimates learn from it.

use log::warn;

use super::Gateway;
use crate::admission::amounts::{Amounts, MOST_TOKENS};
use crate::config::settings::CutCharge;
use crate::context::{Admitted, Context, Watch};
use crate::ledger::cost::{Money, cost, saved};
use crate::ledger::journal::Entry;
use crate::relay::usage::Usage;

/// Bytes of JSON that are one token of an answer nobody has counted, roughly.
const BYTES_PER_TOKEN: u64 = 4;

/// What is charged for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charge {
    pub usage: Usage,
    /// Nobody has told the usage: it was made up from what passed.
    pub estimated: bool,
    /// The answer did not come to its end.
    pub cut: bool,
    /// `None` where the model has no price.
    pub cost: Option<Money>,
    pub saved: Money,
}

/// What is known of an answer when it has ended.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    /// An upstream was asked, and did not fail before it answered.
    taken: bool,
    whole: bool,
    /// As the upstream told it, if that is its last word.
    usage: Option<Usage>,
    /// Of a prompt that was told before the answer broke off.
    prompt: Option<u64>,
    /// Tokens seen in passing.
    seen: u64,
    /// Some of it was certainly content.
    spoke: bool,
}

impl Gateway {
    /// Settles the request. Nothing is charged for what was refused, or failed before it was
    /// answered.
    pub(super) fn charge(&self, ctx: &mut Context, sent: u64) -> Option<Charge> {
        let mut admitted = ctx.admitted.take()?;
        let charge = self.weigh(ctx, &admitted, sent);
        let now = self.counting.now(&ctx.snapshot.calendar);
        if let Some(lease) = admitted.lease.take() {
            let used = charge.as_ref().map(amounts).unwrap_or_default();
            lease.settle(&used, &now);
        }
        if let Some(charge) = &charge {
            self.learn(ctx, charge);
            self.post(ctx, charge, now.wall);
        }
        charge
    }

    fn weigh(&self, ctx: &Context, admitted: &Admitted, sent: u64) -> Option<Charge> {
        let outcome = outcome(ctx, sent);
        let routed = ctx.routed()?;
        let route = routed.route.as_ref()?;
        let last = ctx.attempts.last.as_ref()?;
        if !outcome.taken {
            return None;
        }
        let told = outcome.usage.filter(|usage| is_sensible(usage, &outcome));
        if outcome.usage.is_some() && told.is_none() {
            warn!(
                "An upstream told a usage that cannot be; it is estimated instead. upstream={} request_id={}",
                last.upstream,
                ctx.request_id()
            );
            self.metrics
                .usage_nonsensical
                .with_label_values(&[last.upstream.as_str()])
                .inc();
        }
        let cut = routed.identity.tenant.plan.cut;
        let reported_only = !outcome.whole && cut == CutCharge::Reported;
        let estimated = told.is_none();
        let usage = match told {
            Some(usage) => usage,
            None if reported_only => Usage {
                prompt: outcome.prompt.unwrap_or(0),
                ..Usage::default()
            },
            None => {
                let asked = route.learned.likely_prompt(routed.expected.prompt);
                guess(&outcome, asked, routed.expected.most_output)
            }
        };
        let prices = ctx.snapshot.prices.of(&last.upstream, &last.model);
        let rates = prices.rates_at(admitted.at);
        Some(Charge {
            usage,
            estimated,
            cut: !outcome.whole,
            cost: rates.map(|rates| cost(rates, &usage)),
            saved: rates.map_or(Money::ZERO, |rates| saved(rates, &usage)),
        })
    }

    fn learn(&self, ctx: &Context, charge: &Charge) {
        let Some(routed) = ctx.routed().filter(|_| !charge.estimated) else {
            return;
        };
        let Some(route) = &routed.route else { return };
        route
            .learned
            .saw_prompt(routed.expected.prompt, charge.usage.prompt);
        if routed.expected.most_output.is_none() && !charge.cut {
            route.learned.saw_completion(charge.usage.completion);
        }
    }

    fn post(&self, ctx: &Context, charge: &Charge, wall: i64) {
        let (Some(routed), Some(last)) = (ctx.routed(), &ctx.attempts.last) else {
            return;
        };
        let tenant = &routed.identity.tenant.id;
        let model = ctx.model().unwrap_or_default();
        self.journal.add(&Entry {
            at: jiff::Timestamp::from_second(wall).unwrap_or_default(),
            tenant,
            model,
            upstream: &last.upstream,
            account: &last.account,
            usage: charge.usage,
            cut: charge.cut,
            estimated: charge.estimated,
            cost: charge.cost,
            saved: charge.saved,
        });
        let labels = [tenant.as_str(), model, last.upstream.as_str()];
        let units = |money: Money| money.nanos() as f64 / 1e9;
        let metrics = &self.metrics;
        if let Some(cost) = charge.cost {
            metrics.cost.with_label_values(&labels).inc_by(units(cost));
        }
        if charge.saved > Money::ZERO {
            let saved = units(charge.saved);
            metrics
                .cache_savings
                .with_label_values(&labels)
                .inc_by(saved);
        }
        if charge.estimated {
            metrics.usage_estimated.with_label_values(&labels).inc();
        }
    }
}

fn amounts(charge: &Charge) -> Amounts {
    let usage = charge.usage;
    Amounts {
        requests: 1,
        prompt: usage.prompt,
        uncached: usage.prompt.saturating_sub(usage.cached),
        completion: usage.completion,
        cost: charge.cost.map_or(0, Money::nanos),
    }
}

/// A usage that nobody told: `asked` is what the prompt likely took. However much was seen, an
/// upstream makes no more than it was allowed to.
fn guess(outcome: &Outcome, asked: u64, most: Option<u64>) -> Usage {
    Usage {
        prompt: outcome.prompt.unwrap_or(asked),
        completion: outcome.seen.min(most.unwrap_or(u64::MAX)),
        ..Usage::default()
    }
}

/// Reads what the stages have left behind.
fn outcome(ctx: &Context, sent: u64) -> Outcome {
    let whole = ctx.answer.complete;
    // The client left while the upstream was at work. An attempt that failed has ended before.
    let left = ctx.client_gone && ctx.attempts.left_at_work;
    match &ctx.answer.watch {
        Watch::Stream(scanner) => {
            let seen = scanner.seen();
            // In the Anthropic format the first report counts the prompt alone.
            let last_word = whole || seen.finish_reason.is_some();
            Outcome {
                // Keep-alives alone are no answer: the request was still in the upstream's queue.
                taken: whole || seen.first_content || left,
                whole,
                usage: seen.usage.filter(|_| last_word),
                prompt: seen.usage.map(|usage| usage.prompt).filter(is_prompt),
                seen: seen.content_events,
                spoke: seen.first_content,
            }
        }
        Watch::Whole(scanner) => Outcome {
            taken: whole || scanner.seen().begun || left,
            whole,
            usage: scanner.seen().usage,
            prompt: None,
            seen: sent / BYTES_PER_TOKEN,
            spoke: false,
        },
        Watch::Nothing => Outcome {
            taken: left,
            ..Outcome::default()
        },
        Watch::Error { .. } => Outcome::default(),
    }
}

/// Nobody pays for a number that no model can reach, and nobody is served for nothing: no prompt is
/// empty to a model, and what was heard was made of tokens.
fn is_sensible(usage: &Usage, outcome: &Outcome) -> bool {
    let silent = usage.completion == 0 && outcome.spoke;
    is_prompt(&usage.prompt) && usage.completion <= MOST_TOKENS && !silent
}

fn is_prompt(tokens: &u64) -> bool {
    (1..=MOST_TOKENS).contains(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_is_what_was_seen_and_never_more_than_was_allowed() {
        let outcome = Outcome {
            seen: 160,
            ..Outcome::default()
        };
        let completion = |most| guess(&outcome, 7, most).completion;
        assert_eq!((completion(None), completion(Some(500))), (160, 160));
        assert_eq!(completion(Some(20)), 20);
        assert_eq!(guess(&outcome, 7, None).prompt, 7);
        let told = Outcome {
            prompt: Some(9),
            ..outcome
        };
        assert_eq!(guess(&told, 7, None).prompt, 9);
    }
}
