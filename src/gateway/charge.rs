//! What a request has really taken: its reservation is settled by it, the ledger and the metrics
//! count it, and the model's estimates learn from it.

use log::warn;

use super::Gateway;
use crate::admission::amounts::{Amounts, MOST_TOKENS};
use crate::admission::estimate::Learned;
use crate::config::settings::CutCharge;
use crate::context::{Admitted, Broken, Context, Names, Routed, Watch};
use crate::ledger::cost::{Money, cost, saved};
use crate::ledger::journal::Entry;
use crate::relay::usage::Usage;

/// Bytes of JSON that are one token of an answer nobody has counted, roughly.
const BYTES_PER_TOKEN: u64 = 4;
/// What an event of one token takes at most, with all that is around the token.
const BYTES_PER_EVENT: u64 = 600;
/// How much longer than allowed an answer may be said to be, in times and in tokens besides: some
/// count reasoning apart.
const LENIENCE: u64 = 2;
const FEW: u64 = 1_000;

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

impl Charge {
    /// Both together.
    fn and(self, other: &Self) -> Self {
        Self {
            usage: Usage {
                prompt: self.usage.prompt + other.usage.prompt,
                cached: self.usage.cached + other.usage.cached,
                completion: self.usage.completion + other.usage.completion,
                reasoning: self.usage.reasoning + other.usage.reasoning,
            },
            estimated: self.estimated || other.estimated,
            cut: other.cut,
            cost: match (self.cost, other.cost) {
                (Some(one), Some(other)) => Some(one + other),
                (one, other) => one.or(other),
            },
            saved: self.saved + other.saved,
        }
    }
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
        let broken = std::mem::take(&mut ctx.attempts.broken);
        let broken: Vec<_> = broken
            .iter()
            .filter(|it| it.took_something())
            .map(|it| (it.place.names(), self.weigh_broken(ctx, &admitted, it)))
            .collect();
        let all = broken.iter().map(|(_, charge)| charge).chain(&charge);
        let sum = all.fold(None, |sum: Option<Charge>, charge| match sum {
            None => Some(*charge),
            Some(sum) => Some(sum.and(charge)),
        });
        for (names, charge) in &broken {
            self.post(ctx, *names, charge, now.wall);
        }
        if let (Some(charge), Some(last)) = (&charge, ctx.attempts.last_names()) {
            if broken.is_empty() {
                learn(ctx, &admitted.learned, charge);
            }
            self.post(ctx, last, charge, now.wall);
        }
        // Last: whoever sees that nothing is reserved any more may look at all that was posted.
        if let Some(lease) = admitted.lease.take() {
            let used = sum.as_ref().map(amounts).unwrap_or_default();
            lease.settle(&used, &now);
        }
        sum
    }

    /// What an attempt took that broke and was gone on from, by our own count.
    fn weigh_broken(&self, ctx: &Context, admitted: &Admitted, broken: &Broken) -> Charge {
        let expected = ctx.routed().map_or(0, |it| it.expected.prompt.tokens);
        let usage = Usage {
            prompt: match broken.usage.prompt {
                0 => admitted.learned.likely_prompt(expected),
                told => told,
            },
            ..broken.usage
        };
        let names = broken.place.names();
        let prices = ctx.snapshot.prices.of(names.upstream, names.model);
        let rates = prices.rates_at(admitted.at);
        Charge {
            usage,
            estimated: true,
            cut: true,
            cost: rates.map(|rates| cost(rates, &usage)),
            saved: rates.map_or(Money::ZERO, |rates| saved(rates, &usage)),
        }
    }

    fn weigh(&self, ctx: &Context, admitted: &Admitted, sent: u64) -> Option<Charge> {
        let outcome = outcome(ctx, sent);
        let routed = ctx.routed()?;
        routed.route.as_ref()?;
        let last = ctx.attempts.last_names()?;
        if !outcome.taken {
            return None;
        }
        let most = most_output(routed);
        let told = outcome.usage;
        let told = told.filter(|usage| is_sensible(usage, &outcome, most));
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
                let asked = admitted
                    .learned
                    .likely_prompt(routed.expected.prompt.tokens);
                guess(&outcome, asked, most)
            }
        };
        let prices = ctx.snapshot.prices.of(last.upstream, last.model);
        let rates = prices.rates_at(admitted.at);
        Some(Charge {
            usage,
            estimated,
            cut: !outcome.whole,
            cost: rates.map(|rates| cost(rates, &usage)),
            saved: rates.map_or(Money::ZERO, |rates| saved(rates, &usage)),
        })
    }

    fn post(&self, ctx: &Context, last: Names<'_>, charge: &Charge, wall: i64) {
        let Some(routed) = ctx.routed() else {
            return;
        };
        let tenant = &routed.identity.tenant.id;
        let model = ctx.model().unwrap_or_default();
        self.journal.add(&Entry {
            at: jiff::Timestamp::from_second(wall).unwrap_or_default(),
            tenant,
            model,
            upstream: last.upstream,
            account: last.account,
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
        if !charge.estimated {
            self.count_tokens(tenant.as_str(), model, charge.usage);
            return;
        }
        metrics.usage_estimated.with_label_values(&labels).inc();
        if !charge.cut {
            let upstream = [last.upstream.as_str()];
            metrics.usage_missing.with_label_values(&upstream).inc();
        }
    }

    fn count_tokens(&self, tenant: &str, model: &str, usage: Usage) {
        let kinds = [
            ("prompt", usage.prompt),
            ("cached", usage.cached),
            ("completion", usage.completion),
            ("reasoning", usage.reasoning),
        ];
        for (kind, count) in kinds {
            self.metrics
                .tokens
                .with_label_values(&[tenant, model, kind])
                .inc_by(count);
        }
    }
}

fn learn(ctx: &Context, learned: &Learned, charge: &Charge) {
    let Some(routed) = ctx.routed().filter(|_| !charge.estimated) else {
        return;
    };
    let expected = &routed.expected;
    if !expected.prompt.pictures {
        learned.saw_prompt(expected.prompt.tokens, charge.usage.prompt);
    }
    if expected.most_output.is_none() && !charge.cut {
        learned.saw_completion(charge.usage.completion / expected.choices.max(1));
    }
}

/// What the request allows in all its answers; `None` if nobody has said.
fn most_output(routed: &Routed) -> Option<u64> {
    let most = routed.expected.most_output?;
    Some(most.saturating_mul(routed.expected.choices))
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
    if ctx.answer.status >= 400 || ctx.answer.degraded {
        // Whatever came, the caller got an error, or words of ours.
        return Outcome::default();
    }
    let whole = ctx.answer.complete;
    // The client left while the upstream was at work. An attempt that failed has ended before.
    let left = ctx.client_gone && ctx.attempts.left_at_work;
    // What came before the attempt that is weighed is on others' bills.
    let before = ctx.answer.resumption.as_ref().map_or(0, |it| it.before);
    let sent = sent.saturating_sub(u64::try_from(before).unwrap_or(u64::MAX));
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
                seen: tokens_seen(seen.content_events, sent),
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

/// Of a stream. An event is a token where providers send each as it comes (DeepSeek does); where they
/// gather some, the bytes tell.
fn tokens_seen(events: u64, sent: u64) -> u64 {
    let text = sent.saturating_sub(events.saturating_mul(BYTES_PER_EVENT) + BYTES_PER_EVENT);
    events.max(text / BYTES_PER_TOKEN)
}

/// Nobody pays for a number that no model can reach, and nobody is served for nothing: no prompt is
/// empty to a model, and what was heard was made of tokens.
fn is_sensible(usage: &Usage, outcome: &Outcome, most: Option<u64>) -> bool {
    let silent = usage.completion == 0 && outcome.spoke;
    let most = most.map_or(MOST_TOKENS, |most| {
        most.saturating_mul(LENIENCE).saturating_add(FEW)
    });
    is_prompt(&usage.prompt) && usage.completion <= most.min(MOST_TOKENS) && !silent
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

    #[test]
    fn an_event_is_a_token_until_the_bytes_say_more() {
        assert_eq!(tokens_seen(0, 500), 0);
        assert_eq!(tokens_seen(100, 30_000), 100);
        assert!(tokens_seen(33, 100_574) > 19_000);
    }

    #[test]
    fn a_usage_far_beyond_what_was_allowed_is_none() {
        let usage = |completion| Usage {
            prompt: 5,
            completion,
            ..Usage::default()
        };
        let sensible =
            |completion, most| is_sensible(&usage(completion), &Outcome::default(), most);
        assert!(sensible(10, Some(10)) && sensible(400, Some(10)));
        assert!(!sensible(5_000, Some(10)) && sensible(5_000, None));
    }
}
