//! Which account and which endpoint take the next attempt. Pure: numbers in, an index out.
//!
//! Accounts: the least loaded relative to its ceiling among those that are open and below it.
//! Endpoints: among the best priority that has an open one, the least loaded relative to its
//! weight. Who is to be tried again is tried first; who has a part of its share is taken for more
//! loaded than it is. Ties go round by `turn`, so that idle peers share evenly. Whoever is closed
//! is never chosen.

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
}

/// An account as it looks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountView {
    pub in_flight: u32,
    pub ceiling: Option<u32>,
    /// As a whole.
    pub standing: Standing,
    /// It has said that it takes no more for this model for a while.
    pub limited: bool,
    /// Already tried in this request.
    pub tried: bool,
}

/// An endpoint as it looks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointView {
    pub in_flight: u32,
    pub priority: u32,
    /// At least 1.
    pub weight: u32,
    pub standing: Standing,
    /// It takes no more at the moment.
    pub full: bool,
    /// Already tried in this request.
    pub tried: bool,
}

/// Why nothing can take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoneLeft {
    /// Each one left is at its ceiling.
    Full,
    /// Each one was tried.
    Tried,
    /// Each one that was not tried is closed.
    Closed,
}

/// What is better: an account at its limit, or to wait until it is asked again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// There is no waiting: it is better than none.
    None,
    /// The request can wait for it.
    Some,
}

/// Chooses an account. One at its limit is taken only if no other is left and there is no waiting:
/// its rest may be over sooner than we think, and refusing outright helps nobody.
///
/// # Errors
/// If none is left to try.
pub fn account(
    accounts: &[AccountView],
    patience: Patience,
    turn: usize,
) -> Result<usize, NoneLeft> {
    let below = |view: &AccountView| view.ceiling.is_none_or(|it| view.in_flight < it);
    let usable = |view: &AccountView| !view.tried && view.standing != Standing::Closed;
    let load = |view: &AccountView| {
        let open = usable(view) && below(view);
        open.then(|| load(view.in_flight, view.ceiling.unwrap_or(1_000), view.standing))
    };
    let rested = least(accounts, turn, |view| load(view).filter(|_| !view.limited));
    let any = || match patience {
        Patience::None => least(accounts, turn, load),
        Patience::Some => None,
    };
    let left = accounts.iter().filter(|view| !view.tried);
    rested
        .or_else(any)
        .ok_or_else(|| none(left.map(|view| view.standing)))
}

/// Chooses an endpoint. One of a lower priority serves when the better ones are closed or full.
///
/// # Errors
/// If none is left to try, or those that could serve are full.
pub fn endpoint(endpoints: &[EndpointView], turn: usize) -> Result<usize, NoneLeft> {
    let usable = |view: &EndpointView| !view.tried && view.standing != Standing::Closed;
    let open = |view: &EndpointView| usable(view) && !view.full;
    let best = endpoints.iter().filter(|view| open(view));
    let best = best.map(|view| view.priority).min();
    let least = least(endpoints, turn, |view| {
        let open = open(view) && best == Some(view.priority);
        open.then(|| load(view.in_flight, view.weight, view.standing))
    });
    let left = endpoints.iter().filter(|view| !view.tried);
    least.ok_or_else(|| none(left.map(|view| view.standing)))
}

/// Why none of those that are left was chosen.
fn none(mut left: impl Iterator<Item = Standing>) -> NoneLeft {
    match left.next() {
        None => NoneLeft::Tried,
        Some(Standing::Closed) if left.all(|standing| standing == Standing::Closed) => {
            NoneLeft::Closed
        }
        Some(_) => NoneLeft::Full,
    }
}

/// `in_flight / capacity` as a whole number fine enough to compare.
fn load(in_flight: u32, capacity: u32, standing: Standing) -> u64 {
    let ratio = |in_flight: u32| (u64::from(in_flight) << 20) / u64::from(capacity.max(1));
    match standing {
        Standing::Probe => 0,
        // Counted with the request to come: idle is not yet less loaded than the others.
        Standing::Open { permille } if permille < 1_000 => {
            ratio(in_flight.saturating_add(1)) * 1_000 / u64::from(permille.max(1))
        }
        Standing::Open { .. } | Standing::Closed => ratio(in_flight),
    }
}

/// The index with the least load; of equals, the first at or after `turn`.
fn least<T>(items: &[T], turn: usize, load: impl Fn(&T) -> Option<u64>) -> Option<usize> {
    let count = items.len();
    let start = turn.checked_rem(count)?;
    items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| {
            load(item).map(|load| (load, (index + count - start) % count, index))
        })
        .min()
        .map(|(_, _, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Standing = Standing::Open { permille: 1_000 };

    fn acc(in_flight: u32, ceiling: Option<u32>) -> AccountView {
        AccountView {
            in_flight,
            ceiling,
            standing: OPEN,
            limited: false,
            tried: false,
        }
    }

    fn end(in_flight: u32, priority: u32, open: bool) -> EndpointView {
        EndpointView {
            in_flight,
            priority,
            weight: 1,
            standing: if open { OPEN } else { Standing::Closed },
            full: false,
            tried: false,
        }
    }

    #[test]
    fn the_account_with_most_room_wins() {
        assert_eq!(
            account(
                &[acc(10, Some(100)), acc(10, Some(2500))],
                Patience::None,
                0
            ),
            Ok(1)
        );
        assert_eq!(
            account(&[acc(3, None), acc(2, None)], Patience::None, 0),
            Ok(1)
        );
    }

    #[test]
    fn a_full_account_is_passed_over_and_all_full_is_told_from_all_tried() {
        assert_eq!(
            account(&[acc(2, Some(2)), acc(1, Some(2))], Patience::None, 0),
            Ok(1)
        );
        assert_eq!(
            account(&[acc(2, Some(2))], Patience::None, 0),
            Err(NoneLeft::Full)
        );
        assert_eq!(
            account(
                &[AccountView {
                    tried: true,
                    ..acc(0, None)
                }],
                Patience::None,
                0
            ),
            Err(NoneLeft::Tried)
        );
        assert_eq!(account(&[], Patience::None, 3), Err(NoneLeft::Tried));
    }

    #[test]
    fn who_is_closed_is_never_chosen() {
        let closed = AccountView {
            standing: Standing::Closed,
            ..acc(0, None)
        };
        let tried = AccountView {
            tried: true,
            ..closed
        };
        for patience in [Patience::None, Patience::Some] {
            let choose = |views: &[AccountView]| account(views, patience, 0);
            assert_eq!(choose(&[closed, acc(50, None)]), Ok(1));
            assert_eq!(choose(&[closed, closed]), Err(NoneLeft::Closed));
            assert_eq!(choose(&[closed, tried]), Err(NoneLeft::Closed));
            assert_eq!(choose(&[closed, acc(2, Some(2))]), Err(NoneLeft::Full));
            assert_eq!(choose(&[tried]), Err(NoneLeft::Tried));
        }
    }

    #[test]
    fn whoever_can_wait_waits_for_an_account_at_its_limit_to_have_rested() {
        let limited = AccountView {
            limited: true,
            ..acc(0, None)
        };
        let closed = AccountView {
            standing: Standing::Closed,
            ..acc(0, None)
        };
        assert_eq!(account(&[limited, acc(9, None)], Patience::Some, 0), Ok(1));
        assert_eq!(account(&[limited], Patience::None, 0), Ok(0));
        for others in [vec![limited], vec![limited, closed]] {
            assert_eq!(account(&others, Patience::Some, 0), Err(NoneLeft::Full));
        }
        let tried = AccountView {
            tried: true,
            ..limited
        };
        assert_eq!(account(&[tried], Patience::Some, 0), Err(NoneLeft::Tried));
    }

    #[test]
    fn who_is_to_be_tried_is_tried_first_and_who_is_coming_back_gets_a_part() {
        let probe = AccountView {
            standing: Standing::Probe,
            ..acc(0, None)
        };
        let choose = |views: &[AccountView]| account(views, Patience::None, 1);
        assert_eq!(choose(&[probe, acc(1, None)]), Ok(0));
        let tenth = |in_flight| AccountView {
            standing: Standing::Open { permille: 100 },
            ..acc(in_flight, None)
        };
        assert_eq!(choose(&[tenth(0), acc(9, None)]), Ok(1));
        assert_eq!(choose(&[tenth(0), acc(11, None)]), Ok(0));
        assert_eq!(choose(&[tenth(1), acc(11, None)]), Ok(1));
        assert_eq!(choose(&[tenth(50)]), Ok(0));
    }

    #[test]
    fn a_full_endpoint_hands_over_to_a_healthy_one_only() {
        let full = |priority| EndpointView {
            full: true,
            ..end(5, priority, true)
        };
        assert_eq!(endpoint(&[full(0), end(9, 1, true)], 0), Ok(1));
        assert_eq!(endpoint(&[full(0), full(1)], 0), Err(NoneLeft::Full));
        assert_eq!(
            endpoint(&[full(0), end(0, 0, false)], 0),
            Err(NoneLeft::Full)
        );
    }

    #[test]
    fn equals_take_turns() {
        let idle = [acc(0, None); 3];
        let order: Vec<_> = (0..6)
            .map(|turn| account(&idle, Patience::None, turn).unwrap())
            .collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_lower_priority_serves_only_when_the_best_is_ill() {
        assert_eq!(endpoint(&[end(90, 0, true), end(0, 1, true)], 0), Ok(0));
        assert_eq!(endpoint(&[end(0, 0, false), end(9, 1, true)], 0), Ok(1));
        let closed = [end(0, 0, false), end(0, 1, false)];
        assert_eq!(endpoint(&closed, 0), Err(NoneLeft::Closed));
    }

    #[test]
    fn load_is_shared_by_weight() {
        let heavy = EndpointView {
            weight: 3,
            ..end(2, 0, true)
        };
        assert_eq!(endpoint(&[end(1, 0, true), heavy], 0), Ok(1));
        assert_eq!(
            endpoint(
                &[EndpointView {
                    tried: true,
                    ..heavy
                }],
                0
            ),
            Err(NoneLeft::Tried)
        );
        assert_eq!(endpoint(&[], 0), Err(NoneLeft::Tried));
    }
}
