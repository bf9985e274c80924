//! Which account and which endpoint take the next attempt. Pure: numbers in, an index out.
//!
//! Lower priorities are tiers: the next one serves when this one is closed, tried or full, and takes
//! over gradually when most of it is ill (Envoy's overprovisioning factor). Within a tier the
//! conversation's own account comes first, unless it is hot; else two are drawn by weight and the
//! one at which first content is the nearer wins, by its latency times the requests before it.
//! Somebody who comes back is drawn less often: what is empty is not flooded.

use super::affinity::{self, Candidate};

/// What one may be sent at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// So many thousandths of its full share, 1 to 1000.
    Open {
        permille: u32,
    },
    /// A request may find out how it is.
    Probe,
    Closed,
}

impl Standing {
    /// What may be sent if both must let it through.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Closed, _) | (_, Self::Closed) => Self::Closed,
            (Self::Probe, _) | (_, Self::Probe) => Self::Probe,
            (Self::Open { permille }, Self::Open { permille: other }) => Self::Open {
                permille: permille.min(other),
            },
        }
    }

    fn permille(self) -> u32 {
        match self {
            Self::Open { permille } => permille.min(1000),
            Self::Probe | Self::Closed => 0,
        }
    }
}

/// An account as it looks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountView {
    /// Made of its name.
    pub seed: u64,
    pub in_flight: u32,
    pub ceiling: Option<u32>,
    /// Lower is preferred.
    pub priority: u32,
    /// At least 1.
    pub weight: u32,
    /// To first content, in microseconds; 0 for nothing to go by.
    pub latency: u64,
    /// Of its latest attempts, in thousandths; 0 for nothing to go by.
    pub errors: u32,
    pub standing: Standing,
    /// It has said that it takes no more for this model for a while.
    pub limited: bool,
    /// Already tried in this request, or none that could serve it.
    pub tried: bool,
}

/// An endpoint as it looks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointView {
    pub in_flight: u32,
    /// Lower is preferred.
    pub priority: u32,
    /// At least 1.
    pub weight: u32,
    /// To first content, in microseconds; 0 for nothing to go by.
    pub latency: u64,
    /// Of its latest attempts, in thousandths; 0 for nothing to go by.
    pub errors: u32,
    pub standing: Standing,
    /// It takes no more at the moment.
    pub full: bool,
    /// Already tried in this request.
    pub tried: bool,
    /// Tried as well, but it may not be to blame: better than none.
    pub doubted: bool,
}

/// The account that a conversation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    pub key: u64,
    /// Index of its account.
    pub account: usize,
    /// An account takes so many percent of its even share before its conversations go elsewhere.
    pub bound_percent: u32,
}

/// Why nothing can take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoneLeft {
    /// Each one left is at its ceiling.
    Full,
    /// Each one was tried.
    Tried,
    /// Those that were not tried are closed.
    Closed,
}

/// Can the request wait for an account that is at its limit, until it is asked again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// There is no waiting: one that is limited is better than none.
    None,
    Some,
}

/// A tier counts as whole while more than this share of it is open, in percent: what is left takes
/// the rest on.
const OVERPROVISIONED: u64 = 140;
/// An account with so few requests in flight is not hot.
const COOL: u32 = 8;
/// Nor is one whose first content takes no more than this many times that of the best.
const HOT: u64 = 4;
/// In thousandths. A failure costs another attempt; were it all that is known, nobody is worth less
/// than a twentieth.
const MOST_ERRORS: u32 = 950;
/// In thousandths. Conversations do not stay with whoever fails more often, unless all do.
const ILL: u32 = 500;
/// What is asked of somebody nobody knows anything of, in microseconds, where nobody is known.
const UNKNOWN: u64 = 1_000;

/// What both kinds look like to those who choose.
#[derive(Debug, Clone, Copy)]
struct Look {
    priority: u32,
    weight: u32,
    in_flight: u32,
    ceiling: Option<u32>,
    latency: u64,
    errors: u32,
    standing: Standing,
    /// It can take the request now.
    open: bool,
}

impl From<&AccountView> for Look {
    fn from(view: &AccountView) -> Self {
        let below = view.ceiling.is_none_or(|ceiling| view.in_flight < ceiling);
        Self {
            priority: view.priority,
            weight: view.weight.max(1),
            in_flight: view.in_flight,
            ceiling: view.ceiling,
            latency: view.latency,
            errors: view.errors,
            standing: view.standing,
            open: !view.tried && below && view.standing != Standing::Closed,
        }
    }
}

impl From<&EndpointView> for Look {
    fn from(view: &EndpointView) -> Self {
        Self {
            priority: view.priority,
            weight: view.weight.max(1),
            in_flight: view.in_flight,
            ceiling: None,
            latency: view.latency,
            errors: view.errors,
            standing: view.standing,
            open: !view.tried && !view.full && view.standing != Standing::Closed,
        }
    }
}

/// Chooses an account.
///
/// # Errors
/// If none is left to try, none may be asked, or those that could serve are full.
pub fn account(
    views: &[AccountView],
    home: Option<Home>,
    patience: Patience,
    random: u64,
) -> Result<usize, NoneLeft> {
    let awake = |index: usize| {
        let view = views.get(index)?;
        let look = Look::from(view);
        (look.open && !view.limited).then_some(look)
    };
    let whole = views.iter().map(Look::from);
    let tier = tier(whole.clone(), awake, random);
    if let Some(tier) = tier {
        let of_tier = |index| awake(index).filter(|look| look.priority == tier);
        let chosen = probe(views.len(), of_tier)
            .or_else(|| at_home(views, home?, of_tier, random))
            .or_else(|| draw(views.len(), of_tier, random));
        if let Some(chosen) = chosen {
            return Ok(chosen);
        }
    }
    if patience == Patience::None {
        // It may be asked sooner than it said, and refusing outright helps nobody.
        let limited = |index: usize| views.get(index).map(Look::from).filter(|look| look.open);
        let priorities = (0..views.len()).filter_map(|index| Some(limited(index)?.priority));
        let best = priorities.min();
        let limited = |index| limited(index).filter(|look| Some(look.priority) == best);
        if let Some(limited) = draw(views.len(), limited, random) {
            return Ok(limited);
        }
    }
    let left = || views.iter().filter(|view| !view.tried);
    match left().next() {
        None => Err(NoneLeft::Tried),
        Some(_) if left().all(|view| view.standing == Standing::Closed) => Err(NoneLeft::Closed),
        Some(_) => Err(NoneLeft::Full),
    }
}

/// Chooses an endpoint.
///
/// # Errors
/// If none is left to try, none may be asked, or those that could serve are full.
pub fn endpoint(views: &[EndpointView], random: u64) -> Result<usize, NoneLeft> {
    for with_doubted in [false, true] {
        let open = |index: usize| {
            let view = views.get(index)?;
            let look = Look::from(view);
            (look.open && (with_doubted || !view.doubted)).then_some(look)
        };
        let Some(tier) = tier(views.iter().map(Look::from), open, random) else {
            continue;
        };
        let of_tier = |index| open(index).filter(|look| look.priority == tier);
        let chosen = probe(views.len(), of_tier).or_else(|| draw(views.len(), of_tier, random));
        if let Some(chosen) = chosen {
            return Ok(chosen);
        }
    }
    let left = || views.iter().filter(|view| !view.tried);
    match left().next() {
        None => Err(NoneLeft::Tried),
        Some(_) if left().all(|view| view.standing == Standing::Closed) => Err(NoneLeft::Closed),
        Some(_) => Err(NoneLeft::Full),
    }
}

/// The priority that serves: the best that can, or a later one in place of what of it is ill.
fn tier(
    all: impl Iterator<Item = Look> + Clone,
    open: impl Fn(usize) -> Option<Look>,
    random: u64,
) -> Option<u32> {
    let count = all.clone().count();
    let best = |above: Option<u32>| {
        let priorities = (0..count).filter_map(|index| Some(open(index)?.priority));
        priorities
            .filter(|priority| above.is_none_or(|above| *priority > above))
            .min()
    };
    let first = best(None)?;
    // Who may be asked how it is must be: it has no share to be drawn by, and would stay out as
    // long as a later tier serves.
    let asked = |look: Look| look.priority == first && look.standing == Standing::Probe;
    if (0..count).any(|index| open(index).is_some_and(asked)) {
        return Some(first);
    }
    let Some(next) = best(Some(first)) else {
        return Some(first);
    };
    let members = || all.clone().filter(|look| look.priority == first);
    let weight: u64 = members().map(|look| u64::from(look.weight) * 1000).sum();
    let healthy: u64 = members()
        .map(|look| u64::from(look.weight) * u64::from(look.standing.permille()))
        .sum();
    // In parts of a thousand, of what it would take whole.
    let share = healthy * OVERPROVISIONED * 10 / weight.max(1);
    let drawn = affinity::mix(random ^ 0x7469_6572) % 1000;
    Some(if drawn < share { first } else { next })
}

/// Somebody who may be asked how it is. Another answers if it is not well.
fn probe(count: usize, open: impl Fn(usize) -> Option<Look>) -> Option<usize> {
    (0..count).find(|index| open(*index).is_some_and(|look| look.standing == Standing::Probe))
}

/// The conversation's own account, or the next in its own order while that is hot or ill.
fn at_home(
    views: &[AccountView],
    home: Home,
    open: impl Fn(usize) -> Option<Look>,
    random: u64,
) -> Option<usize> {
    let total: u64 = views.iter().map(|view| u64::from(view.in_flight)).sum();
    let weights: u64 = (0..views.len())
        .filter_map(|index| Some(u64::from(open(index)?.weight)))
        .sum();
    // What is known of an idle one has faded.
    let best = (0..views.len())
        .filter_map(&open)
        .filter(|look| look.in_flight > 0 && look.latency > 0)
        .map(|look| look.latency)
        .min();
    let fewest = (0..views.len()).filter_map(|index| Some(open(index)?.errors));
    let fewest = fewest.min().unwrap_or(0);
    let takes = |index: usize| {
        let look = open(index)?;
        let well = look.errors <= ILL || fewest > ILL;
        let share = u64::from(home.bound_percent) * (total + 1) * u64::from(look.weight);
        let bound = share.div_ceil(weights.max(1) * 100).max(u64::from(COOL));
        let cool = look.in_flight < COOL
            || best.is_none_or(|best| look.latency <= best.saturating_mul(HOT));
        let there = is_drawn(look, index, random);
        (u64::from(look.in_flight) < bound && cool && well && there).then_some(index)
    };
    let next = || {
        let others = (0..views.len()).filter(|index| *index != home.account);
        let scored = others.filter_map(|index| {
            let view = views.get(takes(index)?)?;
            let candidate = Candidate {
                seed: view.seed,
                weight: view.weight,
            };
            Some((index, affinity::score(home.key, candidate)))
        });
        let best = scored.max_by(|one, other| one.1.total_cmp(&other.1));
        best.map(|(index, _)| index)
    };
    takes(home.account).or_else(next)
}

/// Who is coming back is there for its share of the requests only.
fn is_drawn(look: Look, index: usize, random: u64) -> bool {
    let draw = affinity::mix(random.wrapping_add(index as u64)) % 1000;
    draw < u64::from(look.standing.permille())
}

/// The better of two that are drawn by weight.
fn draw(count: usize, open: impl Fn(usize) -> Option<Look>, random: u64) -> Option<usize> {
    let there = |index: usize| open(index).filter(|look| is_drawn(*look, index, random));
    let nobody = (0..count).all(|index| there(index).is_none());
    // Nobody drawn, but somebody there: better than nobody.
    let there = |index: usize| if nobody { open(index) } else { there(index) };
    let weights = || (0..count).filter_map(|index| Some((index, u64::from(there(index)?.weight))));
    let total: u64 = weights().map(|(_, weight)| weight).sum();
    let pick = |without: Option<(usize, u64)>, random: u64| {
        let total = total - without.map_or(0, |(_, weight)| weight);
        let mut at = random.checked_rem(total)?;
        let mut left = weights().filter(|(index, _)| without.is_none_or(|(it, _)| it != *index));
        left.find(|(_, weight)| match at.checked_sub(*weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    };
    let first = pick(None, affinity::mix(random ^ 1))?;
    let Some(second) = pick(Some(first), affinity::mix(random ^ 2)) else {
        return Some(first.0);
    };
    let usual = usual((0..count).filter_map(&open));
    let cost = |(index, _): (usize, u64)| open(index).map(|look| cost(look, usual));
    let better = cost(second)? < cost(first)?;
    Some(if better { second.0 } else { first.0 })
}

/// The mean of the latencies that are known: what somebody unknown is taken for.
fn usual(looks: impl Iterator<Item = Look>) -> u64 {
    let known = looks
        .map(|look| look.latency)
        .filter(|latency| *latency > 0);
    let (sum, count) = known.fold((0u64, 0u64), |(sum, count), latency| {
        (sum.saturating_add(latency), count + 1)
    });
    sum.checked_div(count).unwrap_or(UNKNOWN).max(1)
}

/// How long first content would be waited for, relatively: latency × those before it, as often as it
/// takes until an attempt succeeds, and dearer the nearer its ceiling is. Whoever fails at once has
/// nobody before it and no latency to show: without its errors it would look like the best.
fn cost(look: Look, usual: u64) -> u128 {
    let latency = u128::from(if look.latency == 0 {
        usual
    } else {
        look.latency
    });
    // Idle ones are equal: who was drawn first, by weight, has it.
    let before = u128::from(look.in_flight) * 1_000 / u128::from(look.weight.max(1)) + 1_000;
    let succeeds = 1_000 - u128::from(look.errors.min(MOST_ERRORS));
    let cost = latency * before * 1_000 / succeeds;
    match look.ceiling {
        None => cost,
        Some(ceiling) => {
            let room = ceiling.saturating_sub(look.in_flight).max(1);
            cost * u128::from(ceiling.max(1)) / u128::from(room)
        }
    }
}

#[cfg(test)]
mod tests;
