//! Takes room in every limit that covers a request, in all of them or in none, and gives it back
//! whatever ends the request. Pure but for the subjects' locks.

use std::sync::Arc;
use std::time::Duration;

use super::allowance::{Allowance, Rule, Side};
use super::amounts::Amounts;
use super::clock::Now;
use super::counter::{Full, Standing};
use super::subject::{Counts, Live, Subject, SubjectName};
use crate::config::settings::{Limit, LimitKey, Quantity};

/// A request that asks to be admitted.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Of [`super::allowance::bit`].
    pub surface: u8,
    /// The public model; empty for calls without one.
    pub model: &'a str,
    /// What it may take at most, as far as one can know.
    pub amounts: Amounts,
    /// What of it is certain. The rest is a guess, which gives way where a limit has no room for it
    /// even when empty.
    pub least: Amounts,
    /// Its id, as a number.
    pub request: u128,
}

impl Ask<'_> {
    pub(super) fn demand(&self, limit: &Limit) -> u64 {
        let quantity = limit.key.quantity;
        let wanted = self.amounts.of(quantity).min(limit.burst);
        wanted.max(self.least.of(quantity))
    }
}

/// Why nothing was reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A limit has no room.
    Denied(Box<Denied>),
    /// Another process counts now.
    HandedOver,
    /// Nobody can say how the limits stand, and the operator wants no request to pass unseen.
    Unknown,
}

impl Refused {
    /// A host's share is used up: the whole may not be, and who counts it is soon asked again.
    pub(super) fn for_a_while(self) -> Self {
        match self {
            Self::Denied(mut denied) => {
                let wait = match denied.full {
                    Full::For(wait) => wait.min(SHARE_WAIT),
                    Full::Always => SHARE_WAIT,
                };
                denied.full = Full::For(wait);
                Self::Denied(denied)
            }
            other => other,
        }
    }
}

/// Until Redis is looked for again, and a little.
const SHARE_WAIT: Duration = Duration::from_secs(5);

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    pub subject: SubjectName,
    pub key: LimitKey,
    pub standing: Standing,
    /// What was asked for.
    pub demand: u64,
    pub full: Full,
}

/// Room that is held for one request. Dropped without [`Reservation::settle`], nothing counts but a
/// request that was sent.
#[must_use]
#[derive(Debug)]
pub struct Reservation {
    held: Vec<Held>,
    /// Of the subjects of `held`, by [`Held::side`].
    sides: Vec<(Arc<Subject>, usize)>,
    sent: bool,
    pub shown: Shown,
    /// The clock's last reading, for a drop, which has none.
    last: Now,
}

#[derive(Debug)]
struct Held {
    side: usize,
    place: usize,
    limit: Arc<Limit>,
    amount: u64,
}

/// What a caller is told of its limits: the tightest on requests, and the tightest on tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    pub requests: Option<Standing>,
    pub tokens: Option<Standing>,
}

/// A limit that only looks on, and would have refused.
pub type Shadowed = Vec<(SubjectName, LimitKey)>;

/// Who says whether there is room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judging {
    Here,
    /// Redis, or an operator who lets everybody pass while it is away.
    Elsewhere,
}

/// Takes room without asking whether there is any: the limits are judged elsewhere.
///
/// # Errors
/// If another process counts now.
pub fn hold(allowance: &Allowance, ask: &Ask<'_>, now: &Now) -> Result<Reservation, Refused> {
    take(allowance, ask, now, Judging::Elsewhere).0
}

/// Admits or refuses; the second part of the answer names limits in shadow mode that would have
/// refused.
pub fn reserve(
    allowance: &Allowance,
    ask: &Ask<'_>,
    now: &Now,
) -> (Result<Reservation, Refused>, Shadowed) {
    take(allowance, ask, now, Judging::Here)
}

fn take(
    allowance: &Allowance,
    ask: &Ask<'_>,
    now: &Now,
    judging: Judging,
) -> (Result<Reservation, Refused>, Shadowed) {
    let mut shadowed = Shadowed::new();
    let mut denied: Option<Denied> = None;
    let mut held = Vec::with_capacity(8);
    let mut shown = Shown::default();
    // All locks before the first change: what is judged is what is taken.
    let mut locked: Vec<_> = Vec::with_capacity(2);
    for side in &allowance.sides {
        locked.push((side, side.subject.look()));
    }
    if locked.iter().any(|(_, counts)| counts.is_handed_over()) {
        return (Err(Refused::HandedOver), shadowed);
    }
    for (number, (side, counts)) in locked.iter_mut().enumerate() {
        for rule in side.rules(ask.surface, ask.model) {
            let demand = ask.demand(&rule.limit);
            let verdict = match judging {
                Judging::Here => judge(side, counts, rule, demand, now).map(Some),
                Judging::Elsewhere => Ok(None),
            };
            match verdict {
                Ok(Some(standing)) => shown.note(rule, standing, demand),
                Ok(None) => {}
                Err(_) if rule.limit.shadow => {
                    shadowed.push((side.subject.name.clone(), rule.limit.key.clone()));
                }
                Err(refusal) => {
                    if denied.as_ref().is_none_or(|known| refusal.outlasts(known)) {
                        denied = Some(*refusal);
                    }
                }
            }
            held.push(Held {
                side: number,
                place: rule.place,
                limit: rule.limit.clone(),
                amount: demand,
            });
        }
    }
    if let Some(denied) = denied {
        return (Err(Refused::Denied(Box::new(denied))), shadowed);
    }
    let live = Live {
        request: ask.request,
        since: now.steady,
    };
    let mut sides = Vec::with_capacity(locked.len());
    for (side, counts) in &mut locked {
        sides.push((side.subject.clone(), counts.enter(live)));
    }
    for held in &held {
        if let Some((_, counts)) = locked.get_mut(held.side)
            && let Some(counter) = counts.counter(held.place)
        {
            counter.hold(held.amount);
        }
    }
    let reservation = Reservation {
        held,
        sides,
        sent: false,
        shown,
        last: *now,
    };
    (Ok(reservation), shadowed)
}

fn judge(
    side: &Side,
    counts: &mut Counts,
    rule: &Rule,
    demand: u64,
    now: &Now,
) -> Result<Standing, Box<Denied>> {
    let Some(counter) = counts.counter(rule.place) else {
        return Ok(Standing::default());
    };
    let fits = counter.fits(&rule.limit, demand, now);
    let standing = counter.standing(&rule.limit, now);
    match fits {
        Ok(()) => Ok(standing),
        Err(full) => Err(Box::new(Denied {
            subject: side.subject.name.clone(),
            key: rule.limit.key.clone(),
            standing,
            demand,
            full,
        })),
    }
}

impl Denied {
    /// Of several limits that refuse, the one that does so the longest is told.
    pub(super) fn outlasts(&self, other: &Self) -> bool {
        match (self.full, other.full) {
            (_, Full::Always) => false,
            (Full::Always, _) => true,
            (Full::For(own), Full::For(others)) => own > others,
        }
    }
}

impl Shown {
    /// Keeps the tighter one. `demand` has just been taken.
    pub(super) fn note(&mut self, rule: &Rule, standing: Standing, demand: u64) {
        let place = match rule.limit.key.quantity {
            Quantity::Requests => &mut self.requests,
            Quantity::Tokens
            | Quantity::PromptTokens
            | Quantity::CompletionTokens
            | Quantity::UncachedPromptTokens => &mut self.tokens,
            Quantity::Cost | Quantity::Concurrent => return,
        };
        if rule.limit.shadow {
            return;
        }
        let standing = Standing {
            held: standing.held.saturating_add(demand),
            ..standing
        };
        // Which of two fractions is smaller, without dividing.
        let left = |one: &Standing, other: &Standing| {
            u128::from(one.remaining()) * u128::from(other.limit.max(1))
        };
        if place.is_none_or(|known| left(&standing, &known) < left(&known, &standing)) {
            *place = Some(standing);
        }
    }
}

impl Reservation {
    /// The request goes to an upstream: from here on it counts as one.
    pub fn sent(&mut self, now: &Now) {
        self.last = *now;
        if std::mem::replace(&mut self.sent, true) {
            return;
        }
        for (number, (subject, _)) in self.sides.iter().enumerate() {
            let requests = |held: &&mut Held| {
                held.side == number && held.limit.key.quantity == Quantity::Requests
            };
            let mut requests = self.held.iter_mut().filter(requests).peekable();
            if requests.peek().is_none() {
                continue;
            }
            let mut counts = subject.change();
            for held in requests {
                let amount = std::mem::take(&mut held.amount);
                counts.settle(held.place, &held.limit, amount, amount, now);
            }
        }
    }

    /// Lets go of all that is held, and counts what was really taken. A request that was sent
    /// counts as one whatever `used` says.
    pub fn settle(mut self, used: &Amounts, now: &Now) {
        self.last = *now;
        self.end(used);
    }

    fn end(&mut self, used: &Amounts) {
        let now = self.last;
        for (number, (subject, live)) in std::mem::take(&mut self.sides).into_iter().enumerate() {
            let mut counts = subject.change();
            counts.leave(live);
            for held in self.held.iter().filter(|held| held.side == number) {
                let taken = match held.limit.key.quantity {
                    Quantity::Requests | Quantity::Concurrent => 0,
                    quantity => used.of(quantity),
                };
                counts.settle(held.place, &held.limit, held.amount, taken, &now);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.end(&Amounts::default());
    }
}
