//! May a failed attempt be tried again, when, where, and what must the next one avoid? Pure.
//!
//! Only failures before the client saw content come here. Statuses and whose fault they are:
//! DeepSeek's error_codes page. A request the upstream calls bad (400, 404, 413, 415, 422) is bad
//! everywhere and is never repeated.
//!
//! Waits protect an upstream that has trouble (5xx, broken or late answers): exponential backoff
//! with full jitter, wherever the next attempt goes. The first change of account after 401 to 403
//! or 429, or of endpoint after a refused connection, waits for nothing: the other one has shown
//! no trouble. A `retry-after` is the word of one account, and is waited for if that is asked again.
//!
//! Nobody bad is asked twice in one request. An account at its limit is not bad: it is asked again
//! if no other is left. Nor can it be told whether the only account and endpoint there are is bad
//! or had a bad moment; there a passing failure is tried again.

use std::time::{Duration, Instant};

use super::pool::Tried;
use crate::config::settings::{FailureClass, Retry};

/// Dead pooled connections that one request runs into for free; more are taken for resets.
pub const MAX_STALE: u32 = 2;

/// The class of an answer's status; `None` if it is no failure or the request's own.
pub fn class_of_status(status: u16) -> Option<FailureClass> {
    match status {
        401..=403 => Some(FailureClass::AccountRefused),
        408 | 425 | 504 => Some(FailureClass::GatewayTimeout),
        429 => Some(FailureClass::RateLimited),
        502 => Some(FailureClass::BadGateway),
        503 | 529 => Some(FailureClass::Unavailable),
        500.. => Some(FailureClass::ServerError),
        200..=299 | 400..=499 => None,
        // Nobody asked for a redirect, and a final answer is not informational.
        _ => Some(FailureClass::Garbage),
    }
}

/// What ended an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A pooled connection was dead when it was used; the upstream saw nothing.
    StaleConnection,
    Class(FailureClass),
}

impl Cause {
    /// The outcome in metrics and log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StaleConnection => "stale_connection",
            Self::Class(class) => class.as_str(),
        }
    }
}

/// Everything the decision looks at.
#[derive(Debug, Clone, Copy)]
pub struct Story<'a> {
    pub cause: Cause,
    /// Attempts made, the failed one included; those with a stale connection do not count.
    pub attempts: u32,
    /// Stale connections met before.
    pub stale: u32,
    /// When the request came in.
    pub received: Instant,
    /// When the request as a whole must have ended, if it must.
    pub ends: Option<Instant>,
    /// The client has seen content.
    pub content_sent: bool,
    /// The body can be sent once more; not what streamed through.
    pub repeatable: bool,
    pub client_there: bool,
    /// As told by the failed account.
    pub retry_after: Option<Duration>,
    /// What was set aside by earlier attempts at this variant.
    pub tried: &'a Tried,
    pub choice: Choice,
    /// There is a further variant for a failure of this class.
    pub next_variant: bool,
    /// The upstream's retry budget has something left.
    pub budget: bool,
    /// Spread over all of `u64`.
    pub random: u64,
}

/// What comes after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Again {
        to: Where,
        /// Before the next attempt is chosen; the client must be watched meanwhile.
        after: Duration,
        avoid: Avoid,
        /// It counts as an attempt; it takes from the upstream's budget unless it goes to another
        /// variant.
        counted: bool,
    },
    Stop(Stop),
}

/// Where the next attempt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// The same account and endpoint, or the line in which one waits for that account.
    Same,
    /// Another account or endpoint of the variant.
    Other,
    /// The next variant, whose upstream has a budget of its own: there, it is a first attempt.
    Variant,
}

/// Why nothing is tried any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    ClientGone,
    /// What the client has seen cannot be taken back.
    ContentSent,
    /// The body streamed through and is gone.
    NotRepeatable,
    /// The configuration does not want this class tried again.
    Class,
    /// As many attempts as there may be.
    Attempts,
    /// Too late for a further attempt.
    Deadline,
    /// Everybody was asked.
    NobodyLeft,
    /// The upstream asks to wait longer than is waited.
    ToldToWait,
    /// The upstream has had its share of retries.
    Budget,
}

impl Stop {
    /// The word in metrics and log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::ContentSent => "content_sent",
            Self::NotRepeatable => "not_repeatable",
            Self::Class => "class",
            Self::Attempts => "attempts",
            Self::Deadline => "deadline",
            Self::NobodyLeft => "nobody_left",
            Self::ToldToWait => "told_to_wait",
            Self::Budget => "budget",
        }
    }
}

/// What the next attempt should do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Avoid {
    Endpoint,
    Account,
    /// The account until it has rested.
    Limited,
    /// Whichever there is another one of.
    Either,
    /// Nothing: the same account and endpoint are fine.
    Nothing,
}

/// How much there is to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    pub accounts: usize,
    pub endpoints: usize,
    /// Addresses of the endpoint that was used.
    pub addresses: usize,
    /// Accounts at their limit can be waited for.
    pub queue: bool,
    /// The one that was used rests: it is not chosen before it has.
    pub rests: bool,
}

/// Decides over a failed attempt. `Again` with `counted` holds only if the budget then gives a
/// retry; if another request was quicker, decide anew without [`Story::budget`].
pub fn decide(now: Instant, rules: &Retry, story: &Story<'_>) -> Verdict {
    match again(now, rules, story) {
        Ok(verdict) => verdict,
        Err(stop) => Verdict::Stop(stop),
    }
}

fn again(now: Instant, rules: &Retry, story: &Story<'_>) -> Result<Verdict, Stop> {
    if !story.client_there {
        return Err(Stop::ClientGone);
    }
    if story.content_sent {
        return Err(Stop::ContentSent);
    }
    if !story.repeatable {
        return Err(Stop::NotRepeatable);
    }
    if story.ends.is_some_and(|ends| now >= ends) {
        return Err(Stop::Deadline);
    }
    let class = match story.cause {
        // The same account took nothing amiss, and the upstream saw nothing to be spared of.
        Cause::StaleConnection if story.stale < MAX_STALE => {
            return Ok(Verdict::Again {
                to: Where::Same,
                after: Duration::ZERO,
                avoid: Avoid::Nothing,
                counted: false,
            });
        }
        Cause::StaleConnection => FailureClass::Reset,
        Cause::Class(class) => class,
    };
    if !rules.on.contains(&class) {
        return Err(Stop::Class);
    }
    if story.attempts >= rules.attempts {
        return Err(Stop::Attempts);
    }
    let time = time_left(now, rules, story);
    if time.is_zero() {
        return Err(Stop::Deadline);
    }
    let (to, avoid) = place(class, story)?;
    let after = wait(class, to, time, rules, story)?;
    Ok(Verdict::Again {
        to,
        after,
        avoid,
        counted: true,
    })
}

/// Within which the next attempt must begin.
fn time_left(now: Instant, rules: &Retry, story: &Story<'_>) -> Duration {
    let spent = now.saturating_duration_since(story.received);
    let retry = rules.deadline.saturating_sub(spent);
    let ends = story.ends.map(|ends| ends.saturating_duration_since(now));
    ends.map_or(retry, |ends| ends.min(retry))
}

fn place(class: FailureClass, story: &Story<'_>) -> Result<(Where, Avoid), Stop> {
    let avoid = avoid(class);
    let choice = story.choice;
    let here = if is_another_left(avoid, story.tried, choice) {
        Some((Where::Other, avoid))
    } else if avoid == Avoid::Limited && choice.queue {
        Some((Where::Same, avoid))
    } else {
        None
    };
    if let Some(here) = here.filter(|_| story.budget) {
        return Ok(here);
    }
    if story.next_variant {
        return Ok((Where::Variant, avoid));
    }
    let alone = choice.accounts <= 1 && choice.endpoints <= 1 && passes(class);
    let again = here.is_some() || avoid == Avoid::Limited || alone;
    match again {
        true if !story.budget => Err(Stop::Budget),
        true => Ok((Where::Same, Avoid::Nothing)),
        false => Err(Stop::NobodyLeft),
    }
}

fn avoid(class: FailureClass) -> Avoid {
    match class {
        FailureClass::Connect | FailureClass::Tls => Avoid::Endpoint,
        FailureClass::RateLimited => Avoid::Limited,
        FailureClass::AccountRefused => Avoid::Account,
        FailureClass::Reset
        | FailureClass::ServerError
        | FailureClass::BadGateway
        | FailureClass::Unavailable
        | FailureClass::GatewayTimeout
        | FailureClass::Garbage
        | FailureClass::ErrorInAnswer
        | FailureClass::NoResources
        | FailureClass::Cut
        | FailureClass::Deadline => Avoid::Either,
    }
}

/// May it be over in a moment, where there is nobody else to ask? What was late had its time, and
/// what makes no sense will not make any.
fn passes(class: FailureClass) -> bool {
    matches!(
        class,
        FailureClass::Reset
            | FailureClass::ServerError
            | FailureClass::BadGateway
            | FailureClass::Unavailable
            | FailureClass::GatewayTimeout
            | FailureClass::ErrorInAnswer
            | FailureClass::NoResources
            | FailureClass::Cut
    )
}

fn wait(
    class: FailureClass,
    to: Where,
    time: Duration,
    rules: &Retry,
    story: &Story<'_>,
) -> Result<Duration, Stop> {
    let waits_in_line =
        class == FailureClass::RateLimited && story.choice.queue && story.choice.rests;
    let unsuspected = match to {
        // Whoever is at its limit is waited for in the line, which knows when it has rested.
        Where::Same | Where::Other if waits_in_line => return Ok(Duration::ZERO),
        // The next variant has shown no trouble at all.
        Where::Variant => return Ok(Duration::ZERO),
        Where::Same => false,
        Where::Other => matches!(
            class,
            FailureClass::Connect
                | FailureClass::Tls
                | FailureClass::RateLimited
                | FailureClass::AccountRefused
        ),
    };
    if unsuspected && story.attempts <= 1 {
        return Ok(Duration::ZERO);
    }
    let told = match to {
        Where::Same => story.retry_after.unwrap_or_default(),
        Where::Other | Where::Variant => Duration::ZERO,
    };
    let most = rules.max_backoff.min(time);
    if told > rules.max_backoff {
        return Err(Stop::ToldToWait);
    }
    if told > most {
        return Err(Stop::Deadline);
    }
    // Who was told the same moment comes spread after it, too.
    let ceiling = doubled(rules.base_backoff, story.attempts).min(most - told);
    Ok(told + part(ceiling, story.random))
}

/// `base` doubled with each attempt after the first.
fn doubled(base: Duration, attempts: u32) -> Duration {
    let exponent = attempts.saturating_sub(1).min(30);
    base.saturating_mul(1 << exponent)
}

/// Evenly spread: nothing at 0, just below `whole` at the greatest `random`.
fn part(whole: Duration, random: u64) -> Duration {
    let nanos = whole.as_nanos().min(u128::from(u64::MAX)) * u128::from(random);
    Duration::from_nanos(u64::try_from(nanos >> 64).unwrap_or(u64::MAX))
}

/// Will the next attempt find somebody, with what this one used set aside?
fn is_another_left(avoid: Avoid, tried: &Tried, choice: Choice) -> bool {
    let account = choice.accounts > tried.accounts.len() + 1;
    let endpoint = choice.endpoints > tried.endpoints.len() + 1;
    match avoid {
        Avoid::Account | Avoid::Limited => account,
        Avoid::Endpoint => endpoint || has_further_addresses(choice),
        Avoid::Either => account || choice.endpoints > spent(tried) + 1,
        Avoid::Nothing => true,
    }
}

/// Endpoints that failed, whoever was to blame.
fn spent(tried: &Tried) -> usize {
    let doubted = tried.doubted.iter();
    let only_doubted = doubted.filter(|index| !tried.endpoints.contains(index));
    tried.endpoints.len() + only_doubted.count()
}

/// A name with several addresses is several places; the next attempt takes the next one.
fn has_further_addresses(choice: Choice) -> bool {
    choice.endpoints == 1 && choice.addresses > 1
}

/// Notes what the next attempt must leave out.
pub fn set_aside(tried: &mut Tried, avoid: Avoid, account: usize, endpoint: usize, choice: Choice) {
    let another = choice.accounts > tried.accounts.len() + 1;
    match avoid {
        Avoid::Nothing => {}
        // It is asked again when it has rested, if no other has taken the request by then.
        Avoid::Limited if choice.queue && (choice.rests || !another) => {}
        Avoid::Account | Avoid::Limited => tried.accounts.push(account),
        Avoid::Endpoint if has_further_addresses(choice) => {}
        Avoid::Endpoint => tried.endpoints.push(endpoint),
        // It may be the endpoint as well: both differ the next time, if they can.
        Avoid::Either if another => {
            tried.accounts.push(account);
            if !tried.doubted.contains(&endpoint) {
                tried.doubted.push(endpoint);
            }
        }
        Avoid::Either => tried.endpoints.push(endpoint),
    }
}

#[cfg(test)]
mod tests;
