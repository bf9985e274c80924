//! Another attempt after one that failed: whether, where and when. What is asked of
//! [`crate::upstream::retry`] is gathered here, and its verdict noted.

use std::time::{Duration, Instant};

use super::Gateway;
use crate::context::{Attempt, Context, Outbound, Routed};
use crate::request::stand_in::Behind;
use crate::routing::route::Variant;
use crate::upstream::pool::Pool;
use crate::upstream::retry::{self, Cause, Choice, Story, Verdict, Where};

impl Gateway {
    /// Will there be another attempt? If so, notes when, and whom it must leave out.
    pub(super) fn go_on(
        &self,
        ctx: &mut Context,
        cause: Cause,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> bool {
        let Some(attempt) = &ctx.attempts.current else {
            return false;
        };
        let pool = attempt.lane.pool.clone();
        let (account, endpoint) = (attempt.chosen.account, attempt.chosen.endpoint);
        let choice = choice(attempt, now);
        let upstream = pool.settings.id.as_str();
        match self.decide(ctx, &pool, choice, (cause, retry_after), now) {
            Verdict::Again {
                to,
                after,
                avoid,
                counted,
            } => {
                match to {
                    Where::Variant => ctx.attempts.next_lane(),
                    Where::Same | Where::Other => {
                        let tried = &mut ctx.attempts.tried;
                        retry::set_aside(tried, avoid, account, endpoint, choice);
                    }
                }
                if !counted {
                    ctx.attempts.stale += 1;
                    ctx.attempts.made -= 1;
                }
                ctx.attempts.pause_until = (!after.is_zero()).then(|| now + after);
                let labels = [upstream, cause.as_str()];
                self.metrics.retries.with_label_values(&labels).inc();
                true
            }
            Verdict::Stop(why) => {
                let labels = [upstream, why.as_str()];
                self.metrics
                    .retries_stopped
                    .with_label_values(&labels)
                    .inc();
                false
            }
        }
    }

    /// Another attempt, or none; what it costs is taken from the budget.
    fn decide(
        &self,
        ctx: &Context,
        pool: &Pool,
        choice: Choice,
        (cause, retry_after): (Cause, Option<Duration>),
        now: Instant,
    ) -> Verdict {
        let mut story = Story {
            cause,
            attempts: ctx.attempts.made,
            stale: ctx.attempts.stale,
            received: ctx.started,
            ends: ctx.ends_by(),
            content_sent: ctx.answer.begun,
            repeatable: repeatable(ctx),
            client_there: !ctx.client_left(),
            retry_after,
            tried: &ctx.attempts.tried,
            choice,
            next_variant: self.next_variant(ctx, cause).is_some(),
            budget: true,
            random: ctx.random(),
        };
        // Who was given up by a doubt has taken its retry from the budget.
        let paid = ctx.behind.as_ref().is_some_and(Behind::was_doubted);
        let rules = &ctx.snapshot.settings.retry;
        let mut verdict = retry::decide(now, rules, &story);
        // Another upstream has a budget of its own.
        let elsewhere = self
            .next_variant(ctx, cause)
            .is_some_and(|it| !ctx.attempts.were_at(&it.lane));
        let takes = matches!(
            verdict,
            Verdict::Again { to, counted: true, .. } if to != Where::Variant || !elsewhere
        );
        if takes && !paid && !pool.budget.try_retry(now, rules) {
            story.budget = false;
            story.next_variant &= elsewhere;
            verdict = retry::decide(now, rules, &story);
        }
        verdict
    }

    /// The next variant that would be asked after this failure.
    fn next_variant<'c>(&self, ctx: &'c Context, cause: Cause) -> Option<&'c Variant> {
        let class = match cause {
            Cause::Class(class) => Some(class),
            Cause::StaleConnection => None,
        };
        let variants = ctx.routed().map(|routed| routed.variants.as_slice());
        let later = variants.and_then(|all| all.get(ctx.attempts.lane + 1..));
        let mut later = later.unwrap_or_default().iter();
        later.find(|variant| {
            let fits = variant.follows(class) && ctx.has_files_at(&variant.lane);
            fits && !self.is_off(&variant.lane)
        })
    }
}

/// How much there is to choose from beside what the attempt had.
fn choice(attempt: &Attempt, now: Instant) -> Choice {
    let slot = attempt.endpoint_slot();
    Choice {
        accounts: attempt.lane.width(),
        endpoints: attempt.lane.pool.endpoints.len(),
        addresses: slot.map_or(0, |slot| slot.state.addresses.count()),
        queue: attempt.lane.is_queued_for(),
        rests: attempt.rests_for_model(now),
    }
}

/// Can what the client sent be sent once more?
fn repeatable(ctx: &Context) -> bool {
    let sent = ctx.attempts.current.as_ref().is_some_and(|it| it.sent);
    let through = |routed: &Routed| matches!(routed.body, Outbound::Through { .. });
    ctx.routed().is_some_and(|routed| !through(routed) || !sent)
}
