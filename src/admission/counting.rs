//! Where counts are asked and told, at the edge: reads the clocks, and knows whether this process
//! counts by itself or together with other hosts, and what holds while those cannot be asked.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::allowance::{Allowance, Rule as LimitRule, Side};
use super::book::Book;
use super::clock::{Calendar, Now, Stretch};
use super::counter::{Full, Standing};
use super::lease::{Lease, Remote};
use super::reservation::{Ask, Denied, Refused, Shadowed, Shown, hold, reserve};
use super::store_redis::{
    self, Counter, Part, RedisCounts, Rule as SharedRule, StoreError, Verdict, Wait,
};
use crate::config::settings::{FailMode, Quantity, Window};

/// What is counted, where, and by which clock.
pub struct Counting {
    pub book: Arc<Book>,
    shared: Option<Shared>,
    began: Instant,
    /// Nanoseconds since 1970 at `began`.
    epoch: u64,
}

/// Counts that several hosts share.
pub struct Shared {
    pub counts: Arc<RedisCounts>,
    pub fail: FailMode,
}

/// One limit as it stands, for operators.
pub struct Stand<'a> {
    pub side: &'a Side,
    pub rule: &'a LimitRule,
    pub standing: Standing,
}

impl Counting {
    pub fn new(book: Arc<Book>, shared: Option<Shared>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            book,
            shared,
            began: Instant::now(),
            epoch: since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
        }
    }

    /// The counts in Redis, if that is where they are.
    pub fn shared(&self) -> Option<&Arc<RedisCounts>> {
        self.shared.as_ref().map(|shared| &shared.counts)
    }

    /// [`Now::steady`] of this moment.
    pub fn steady(&self) -> u64 {
        let since = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.epoch.saturating_add(since)
    }

    /// This moment by both clocks.
    pub fn now(&self, calendar: &Calendar) -> Now {
        calendar.at(self.steady(), Timestamp::now().as_second())
    }

    /// Takes room in every limit that covers the request, or in none. `share` is what this host
    /// keeps to while it is on its own. The second part names limits in shadow mode that would have
    /// refused.
    ///
    /// # Errors
    /// Why nothing was taken.
    pub async fn admit(
        &self,
        allowance: &Allowance,
        share: Option<&Allowance>,
        ask: &Ask<'_>,
        now: &Now,
    ) -> (Result<Lease, Refused>, Shadowed) {
        let question = self
            .shared
            .as_ref()
            .and_then(|shared| Some((shared, Question::new(allowance, ask)?)));
        let Some((shared, question)) = question else {
            let (local, shadowed) = reserve(allowance, ask, now);
            let lease = |local: super::reservation::Reservation| {
                let shown = local.shown;
                Lease::new(local, None, shown)
            };
            return (local.map(lease), shadowed);
        };
        match shared.counts.reserve(question.put(ask, now)).await {
            Ok(Verdict::Granted {
                reservation,
                standings,
            }) => {
                let (shown, shadowed) = question.read(&standings, now);
                let lease = hold(allowance, ask, now).map(|local| {
                    let remote = question.into_remote(reservation);
                    Lease::new(local, Some(remote), shown)
                });
                (lease, shadowed)
            }
            Ok(Verdict::Refused { standings, .. }) => {
                let (_, shadowed) = question.read(&standings, now);
                let refused = question
                    .denied(&standings, ask, now)
                    .map_or(Refused::Unknown, |denied| Refused::Denied(Box::new(denied)));
                (Err(refused), shadowed)
            }
            Err(_) => {
                let (local, shadowed) = match (shared.fail, share) {
                    (FailMode::Closed, _) if question.may_refuse() => {
                        (Err(Refused::Unknown), Shadowed::new())
                    }
                    (FailMode::LocalShare { .. }, Some(share)) => {
                        let (local, shadowed) = reserve(share, ask, now);
                        (local.map_err(Refused::for_a_while), shadowed)
                    }
                    _ => (hold(allowance, ask, now), Shadowed::new()),
                };
                let lease = local.map(|local| {
                    let shown = local.shown;
                    let assumed = shared.counts.assume(question.put(ask, now));
                    let remote = question.into_remote(assumed);
                    Lease::new(local, Some(remote), shown)
                });
                (lease, shadowed)
            }
        }
    }

    /// How the limits of a tenant stand.
    ///
    /// # Errors
    /// If Redis does not tell.
    pub async fn standings<'a>(
        &self,
        allowance: &'a Allowance,
        now: &Now,
    ) -> Result<Vec<Stand<'a>>, StoreError> {
        let rules = allowance.sides.iter();
        let rules = rules.flat_map(|side| side.all().map(move |rule| (side, rule)));
        let (Some(shared), Some(root)) = (&self.shared, allowance.root()) else {
            let stand = |(side, rule): (&'a Side, &'a LimitRule)| {
                let mut counts = side.subject.look();
                let counter = counts.counter(rule.place)?;
                let standing = counter.standing(&rule.limit, now);
                Some(Stand {
                    side,
                    rule,
                    standing,
                })
            };
            return Ok(rules.filter_map(stand).collect());
        };
        let known = rules.filter_map(|(side, rule)| Some((side, rule, counter(rule, now)?)));
        let known: Vec<_> = known.collect();
        let counters: Vec<_> = known
            .iter()
            .map(|(_, _, counter)| counter.clone())
            .collect();
        if counters.is_empty() {
            return Ok(Vec::new());
        }
        let standings = shared.counts.show(root, &counters).await?;
        let stands = known.into_iter().zip(&standings);
        Ok(stands
            .map(|((side, rule, _), standing)| Stand {
                side,
                rule,
                standing: local_form(rule, standing, now),
            })
            .collect())
    }

    /// Sets what a limit has counted to nothing; what is held stays.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn reset(
        &self,
        allowance: &Allowance,
        side: &Side,
        rule: &LimitRule,
        now: &Now,
    ) -> Result<(), StoreError> {
        if let (Some(shared), Some(root)) = (&self.shared, allowance.root())
            && let Some(counter) = counter(rule, now)
        {
            shared.counts.reset(root, &counter).await?;
        }
        if let Some(counter) = side.subject.change().counter(rule.place) {
            counter.reset(rule.limit.key.window, now);
        }
        Ok(())
    }

    /// Extends a limit of the calendar for its current window.
    ///
    /// # Errors
    /// If Redis does not answer, or the limit has no window of the calendar.
    pub async fn grant(
        &self,
        allowance: &Allowance,
        side: &Side,
        rule: &LimitRule,
        amount: u64,
        now: &Now,
    ) -> Result<(), StoreError> {
        if let (Some(shared), Some(root)) = (&self.shared, allowance.root())
            && let Some(counter) = counter(rule, now)
        {
            shared.counts.grant(root, &counter, amount).await?;
        }
        let window = rule.limit.key.window;
        let granted = side
            .subject
            .change()
            .counter(rule.place)
            .is_some_and(|counter| counter.grant(window, amount, now));
        if granted {
            Ok(())
        } else {
            Err(StoreError::NotGrantable)
        }
    }
}

/// What Redis is asked for one request.
struct Question<'a> {
    root: &'a Arc<str>,
    /// Limits on requests come last.
    asked: Vec<(&'a Side, &'a LimitRule)>,
}

impl<'a> Question<'a> {
    /// `None` if no limit covers the request.
    fn new(allowance: &'a Allowance, ask: &Ask<'_>) -> Option<Self> {
        let root = allowance.root()?;
        let mut asked = Vec::with_capacity(8);
        for requests in [false, true] {
            for side in &allowance.sides {
                for rule in side.rules(ask.surface, ask.model) {
                    if is_on_requests(rule) == requests {
                        rule.shared.as_ref()?;
                        asked.push((side, rule));
                    }
                }
            }
        }
        (!asked.is_empty()).then_some(Self { root, asked })
    }

    /// In Redis' words, one part for each limit.
    fn put(&self, ask: &Ask<'_>, now: &Now) -> store_redis::Ask {
        let mut parts = Vec::with_capacity(self.asked.len());
        for (_, rule) in &self.asked {
            parts.extend(counter(rule, now).map(|counter| Part {
                counter,
                demand: ask.demand(&rule.limit),
            }));
        }
        store_redis::Ask {
            root: self.root.clone(),
            parts,
        }
    }

    fn into_remote(self, reservation: store_redis::Reservation) -> Remote {
        let asked = self.asked.iter().map(|(_, rule)| rule);
        let others = asked.take_while(|rule| !is_on_requests(rule));
        Remote {
            reservation,
            quantities: others.map(|rule| rule.limit.key.quantity).collect(),
            sent: false,
        }
    }

    /// What the caller is told, and which limits in shadow mode would have refused.
    fn read(&self, standings: &[store_redis::Standing], now: &Now) -> (Shown, Shadowed) {
        let mut shown = Shown::default();
        let mut shadowed = Shadowed::new();
        for ((side, rule), standing) in self.asked.iter().zip(standings) {
            if standing.fits {
                shown.note(rule, local_form(rule, standing, now), 0);
            } else if rule.limit.shadow {
                shadowed.push((side.subject.name.clone(), rule.limit.key.clone()));
            }
        }
        (shown, shadowed)
    }

    /// Limits in shadow mode alone refuse nobody.
    fn may_refuse(&self) -> bool {
        self.asked.iter().any(|(_, rule)| !rule.limit.shadow)
    }

    /// Of several limits that refuse, the one that does so the longest.
    fn denied(
        &self,
        standings: &[store_redis::Standing],
        ask: &Ask<'_>,
        now: &Now,
    ) -> Option<Denied> {
        let asked = self.asked.iter().zip(standings);
        let refusing = asked.filter(|((_, rule), standing)| !standing.fits && !rule.limit.shadow);
        let denied = refusing.map(|((side, rule), standing)| {
            let demand = ask.demand(&rule.limit);
            Self::denied_by(side, rule, demand, standing, now)
        });
        denied.reduce(|known, other| if other.outlasts(&known) { other } else { known })
    }

    fn denied_by(
        side: &Side,
        rule: &LimitRule,
        demand: u64,
        standing: &store_redis::Standing,
        now: &Now,
    ) -> Denied {
        let full = match standing.wait {
            Wait::Leak(wait) => Full::For(wait),
            Wait::Window => Full::For(until(rule, now)),
            Wait::Release | Wait::None => Full::For(Duration::from_secs(1)),
            Wait::Never => Full::Always,
        };
        Denied {
            subject: side.subject.name.clone(),
            key: rule.limit.key.clone(),
            standing: local_form(rule, standing, now),
            demand,
            full,
        }
    }
}

fn is_on_requests(rule: &LimitRule) -> bool {
    rule.limit.key.quantity == Quantity::Requests
}

/// A limit's counter in Redis, with the window of this moment.
fn counter(rule: &LimitRule, now: &Now) -> Option<Counter> {
    let mut counter = rule.shared.clone()?;
    if let SharedRule::Calendar { window, .. } = &mut counter.rule {
        let start = stretch(rule, now).map_or(0, |stretch| stretch.start);
        *window = u64::try_from(start).unwrap_or(0);
    }
    Some(counter)
}

fn stretch(rule: &LimitRule, now: &Now) -> Option<Stretch> {
    match rule.limit.key.window {
        Window::Day => Some(now.day),
        Window::Month => Some(now.month),
        _ => None,
    }
}

fn until(rule: &LimitRule, now: &Now) -> Duration {
    let left = stretch(rule, now).map_or(0, |stretch| stretch.end.saturating_sub(now.wall));
    Duration::from_secs(u64::try_from(left).unwrap_or(0))
}

/// What Redis says of a limit, in the form that it has here.
fn local_form(rule: &LimitRule, standing: &store_redis::Standing, now: &Now) -> Standing {
    let limit = rule.limit.amount.saturating_add(standing.extra);
    let bucket = rule.limit.key.window.period().is_some();
    Standing {
        limit,
        room: if bucket { rule.limit.burst } else { limit },
        used: standing.used,
        held: standing.held,
        reset: if bucket {
            standing.drains
        } else {
            until(rule, now)
        },
    }
}
