//! How much may this caller use: room is taken in its limits before an upstream is chosen. What was
//! really taken is settled in [`super::charge`].

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Gateway;
use crate::admission::allowance::bit;
use crate::admission::amounts::{Amounts, MOST_TOKENS};
use crate::admission::counter::{Full, Standing};
use crate::admission::estimate::{self, Learned};
use crate::admission::reservation::{Ask, Denied, Refused, Shown};
use crate::config::money::format_money;
use crate::config::settings::{LimitKey, Quantity, Rates, Window};
use crate::context::{Admitted, Context, Expected, Routed};
use crate::ledger::cost::cost;
use crate::relay::usage::Usage;
use crate::request::rate::{self as rates, Gauge, RateLimits};
use crate::request::refusal::{Code, LimitNote, Refusal};
use crate::request::scan::Fields;
use crate::request::surface::Surface;
use crate::routing::route::{Route, Variant};
use crate::snapshot::Snapshot;

/// The longest wait that is told: above it, OpenAI's Python SDK gives up at once instead of waiting.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// OpenAI's own bound of `n`.
const MOST_CHOICES: u64 = 128;
/// While nobody can say how the limits stand.
const UNKNOWN_WAIT: Duration = Duration::from_secs(2);

/// What a body says of what it will take. Asked before the body is edited.
pub(super) fn expected(fields: &Fields<'_>, route: &Route) -> Expected {
    // All of it: providers find prompts in fields that nobody here has heard of.
    let texts = fields.members().iter();
    let texts = texts.filter_map(|member| fields.bytes(&member.value));
    let asked = [
        fields.max_tokens,
        fields.max_completion_tokens,
        fields.max_output_tokens,
    ];
    // What the route sets comes over what the client says, field by field.
    let asked = route.most_output.iter().zip(asked);
    let asked = asked.filter_map(|(fixed, asked)| fixed.or(asked)).max();
    Expected {
        prompt: estimate::prompt(texts),
        most_output: asked.map(|most| most.min(MOST_TOKENS)),
        choices: choices(fields),
    }
}

/// How many answers are asked for at once: each is generated.
fn choices(fields: &Fields<'_>) -> u64 {
    let number = |key| {
        let spans = fields.spans(key);
        let numbers = spans.filter_map(|span| {
            let text = std::str::from_utf8(fields.bytes(&span)?).ok()?;
            text.parse::<u64>().ok()
        });
        numbers.max()
    };
    let asked = number("n").max(number("best_of"));
    asked.unwrap_or(1).clamp(1, MOST_CHOICES)
}

impl Gateway {
    /// Takes room in every limit that covers the routed request, or refuses.
    pub(super) async fn admit(&self, ctx: &mut Context) -> Result<(), Refusal> {
        let began = Instant::now();
        let snapshot = ctx.snapshot.clone();
        let Some(routed) = ctx.routed() else {
            return Err(Refusal::new(Code::Internal, "The request lost its way."));
        };
        let at = Timestamp::now();
        let surface = routed.surface.name();
        let Some(allowance) = snapshot.allowance(&routed.identity.tenant.id) else {
            return Err(Refusal::new(Code::Internal, "The tenant is not known."));
        };
        let model = ctx.model().unwrap_or_default();
        let learned = allowance.learned(model);
        let (amounts, least) = amounts(&snapshot, routed, &learned, at);
        let ask = Ask {
            surface: bit(surface),
            model,
            amounts,
            least,
            request: ctx.request_number,
        };
        let now = self.counting.now(&snapshot.calendar);
        let share = snapshot.share(&routed.identity.tenant.id);
        let (lease, shadowed) = self.counting.admit(allowance, share, &ask, &now).await;
        for (subject, key) in shadowed {
            self.metrics.would_refuse(&subject.0, &key);
        }
        let lease = lease.map_err(|refused| match refused {
            Refused::Denied(denied) => {
                self.metrics.limit_refused(&denied.subject.0, &denied.key);
                refusal(&denied, at, &snapshot.settings.accounting.currency)
            }
            Refused::HandedOver => handed_over(),
            Refused::Unknown => Refusal::new(
                Code::LimitsUnavailable,
                "How much of your limits is left cannot be told at the moment; try again shortly.",
            )
            .retry_after(UNKNOWN_WAIT),
        })?;
        ctx.admitted = Some(Admitted {
            shown: shown(&lease.shown),
            lease: Some(lease),
            learned,
            counted: self.metrics.show_admitted(),
            at,
        });
        self.metrics.own_work("admit", began.elapsed());
        Ok(())
    }

    /// The request goes out: from here on it counts as one.
    pub(super) fn count_as_sent(&self, ctx: &mut Context) {
        let now = self.counting.now(&ctx.snapshot.calendar);
        if let Some(admitted) = &mut ctx.admitted
            && let Some(lease) = &mut admitted.lease
        {
            lease.sent(&now);
        }
    }
}

/// What the request may take in all, and what of it is certain: its prompt.
fn amounts(
    snapshot: &Snapshot,
    routed: &Routed,
    learned: &Learned,
    at: Timestamp,
) -> (Amounts, Amounts) {
    let one = Amounts {
        requests: 1,
        ..Amounts::default()
    };
    let Some(route) = &routed.route else {
        return (one, one);
    };
    let prompt = learned.prompt(routed.expected.prompt.tokens);
    let completion = match routed.expected.most_output {
        _ if routed.surface == Surface::Embeddings => 0,
        Some(most) => most,
        None => learned.completion(route.usual_output),
    };
    let completion = completion.saturating_mul(routed.expected.choices);
    let rates = routed.variants.iter().filter_map(|Variant { lane, .. }| {
        let prices = snapshot.prices.of(&lane.pool.settings.id, &lane.model);
        prices.rates_at(at)
    });
    let dearest = rates.fold(None, |dearest: Option<Rates>, rates| {
        Some(dearest.map_or(rates, |other| Rates {
            cache_hit: other.cache_hit.max(rates.cache_hit),
            cache_miss: other.cache_miss.max(rates.cache_miss),
            output: other.output.max(rates.output),
        }))
    });
    let money = |prompt, completion| {
        let usage = Usage {
            prompt,
            completion,
            ..Usage::default()
        };
        dearest.map_or(0, |rates| cost(rates, &usage).nanos())
    };
    // What was learned, and what is usual, are guesses; what stands in the body is not.
    let sure = prompt.min(routed.expected.prompt.tokens);
    let sure_completion = routed.expected.most_output.map_or(0, |_| completion);
    let least = Amounts {
        prompt: sure,
        uncached: sure,
        completion: sure_completion,
        cost: money(sure, sure_completion),
        ..one
    };
    let amounts = Amounts {
        prompt,
        uncached: prompt,
        completion,
        cost: money(prompt, completion),
        ..one
    };
    (amounts, least)
}

/// What the caller is told of a limit that has no room.
fn refusal(denied: &Denied, at: Timestamp, currency: &str) -> Refusal {
    let Denied {
        subject,
        key,
        standing,
        demand,
        full,
    } = denied;
    let of_group = subject.0.starts_with("group/");
    let whose = if of_group { "your group" } else { "you" };
    let (code, wait, end) = match *full {
        Full::Always => (
            Code::RequestExceedsLimit,
            None,
            "This request alone is more than that; ask for less, for example by a smaller \
             max_tokens."
                .to_owned(),
        ),
        Full::For(wait) if key.quantity == Quantity::Concurrent => (
            Code::RateLimitExceeded,
            Some(wait.min(LONGEST_WAIT)),
            "It has room again when one of them ends.".to_owned(),
        ),
        Full::For(wait) => {
            let calendar = matches!(key.window, Window::Day | Window::Month);
            let again = format!(
                "It has room again in {}, at {}.",
                rates::short(wait),
                rates::after(at, wait)
            );
            if calendar && wait > LONGEST_WAIT {
                (Code::InsufficientQuota, Some(wait), again)
            } else {
                (Code::RateLimitExceeded, Some(wait.min(LONGEST_WAIT)), again)
            }
        }
    };
    let at_once = if standing.room < standing.limit {
        format!(", {} at once", quantity(key, standing.room, currency))
    } else {
        String::new()
    };
    let message = format!(
        "The limit {} allows {whose} {}{at_once}: {} used, {} reserved by requests under way, {} asked for. \
         {end}",
        limit_name(key),
        quantity(key, standing.limit, currency),
        quantity(key, standing.used, currency),
        quantity(key, standing.held, currency),
        quantity(key, *demand, currency),
    );
    let rate = match key.quantity {
        Quantity::Requests => RateLimits {
            requests: Some(gauge(standing)),
            tokens: None,
        },
        Quantity::Cost | Quantity::Concurrent => RateLimits::default(),
        _ => RateLimits {
            requests: None,
            tokens: Some(gauge(standing)),
        },
    };
    let note = LimitNote {
        name: key.to_string(),
        of: if of_group { "group" } else { "tenant" },
        limit: standing.limit,
        used: standing.used,
        reserved: standing.held,
        requested: *demand,
        reset_seconds: standing.reset.as_secs() + u64::from(standing.reset.subsec_nanos() > 0),
        rate,
    };
    let mut refusal = Refusal::new(code, message);
    refusal.retry_after = wait;
    refusal.limit = Some(Box::new(note));
    refusal
}

/// `requests_per_minute (chat, deepseek-flash)`: the key of the plan, and what it covers.
fn limit_name(key: &LimitKey) -> String {
    let name = key.to_string();
    let name = name.rsplit('/').next().unwrap_or_default();
    match &key.model {
        Some(model) => format!("{name} ({}, {model})", key.surfaces.as_str()),
        None => format!("{name} ({})", key.surfaces.as_str()),
    }
}

fn quantity(key: &LimitKey, amount: u64, currency: &str) -> String {
    match key.quantity {
        Quantity::Cost => format_money(u128::from(amount), currency),
        _ => amount.to_string(),
    }
}

fn handed_over() -> Refusal {
    Refusal::closing(
        Code::HandedOver,
        "This process is being replaced; connect again and the new one will answer.",
    )
    .retry_after(Duration::from_secs(1))
}

fn shown(shown: &Shown) -> RateLimits {
    RateLimits {
        requests: shown.requests.as_ref().map(gauge),
        tokens: shown.tokens.as_ref().map(gauge),
    }
}

fn gauge(standing: &Standing) -> Gauge {
    Gauge {
        limit: standing.limit,
        remaining: standing.remaining(),
        reset: standing.reset,
    }
}
