//! Which account and which endpoint take the next attempt. Pure: numbers in, an index out.
//!
//! Accounts: the least loaded relative to its ceiling among those that are awake and below it.
//! Endpoints: among the best priority that has a healthy one, the least loaded relative to its
//! weight. Ties go round by `turn`, so that idle peers share evenly.

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
    pub resting: bool,
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
    pub healthy: bool,
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
}

/// What is better: a resting account, or a place at one that is awake but full?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// There is no waiting: a resting account is better than none.
    None,
    /// The request can wait for an account that is awake, if there is one, and for one that is at
    /// its limit until it is asked again.
    Some,
}

/// Chooses an account. A resting one is taken only if no other is left: its rest may be over
/// sooner than we think, and refusing outright helps nobody.
///
/// # Errors
/// If none is left to try.
pub fn account(
    accounts: &[AccountView],
    patience: Patience,
    turn: usize,
) -> Result<usize, NoneLeft> {
    let waited_for = |view: &AccountView| view.limited && patience == Patience::Some;
    let open = |view: &AccountView| {
        let below = view.ceiling.is_none_or(|ceiling| view.in_flight < ceiling);
        !view.tried && below && !waited_for(view)
    };
    let awake = least(accounts, turn, |view| {
        (open(view) && !view.resting && !view.limited).then(|| account_load(view))
    });
    if let Some(awake) = awake {
        return Ok(awake);
    }
    let worth_waiting = |view: &AccountView| !view.tried && !view.resting;
    if patience == Patience::Some && accounts.iter().any(worth_waiting) {
        return Err(NoneLeft::Full);
    }
    let resting = least(accounts, turn, |view| {
        open(view).then(|| account_load(view))
    });
    resting.ok_or_else(|| {
        if accounts.iter().all(|view| view.tried) {
            NoneLeft::Tried
        } else {
            NoneLeft::Full
        }
    })
}

/// Chooses an endpoint. One of a lower priority serves when the better ones are ill or full. If
/// none that is left is healthy, an unhealthy one of the best priority gets the chance.
///
/// # Errors
/// If none is left to try, or those that could serve are full.
pub fn endpoint(endpoints: &[EndpointView], turn: usize) -> Result<usize, NoneLeft> {
    for need_health in [true, false] {
        let usable = |view: &EndpointView| !view.tried && (view.healthy || !need_health);
        if !endpoints.iter().any(usable) {
            continue;
        }
        let open = |view: &EndpointView| usable(view) && !view.full;
        let best = endpoints
            .iter()
            .filter(|view| open(view))
            .map(|view| view.priority)
            .min();
        let least = least(endpoints, turn, |view| {
            (open(view) && best == Some(view.priority)).then(|| ratio(view.in_flight, view.weight))
        });
        return least.ok_or(NoneLeft::Full);
    }
    Err(NoneLeft::Tried)
}

fn account_load(view: &AccountView) -> u64 {
    ratio(view.in_flight, view.ceiling.unwrap_or(1_000))
}

/// `load / share` as a whole number fine enough to compare.
fn ratio(load: u32, share: u32) -> u64 {
    (u64::from(load) << 20) / u64::from(share.max(1))
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

    fn acc(in_flight: u32, ceiling: Option<u32>) -> AccountView {
        AccountView {
            in_flight,
            ceiling,
            resting: false,
            limited: false,
            tried: false,
        }
    }

    fn end(in_flight: u32, priority: u32, healthy: bool) -> EndpointView {
        EndpointView {
            in_flight,
            priority,
            weight: 1,
            healthy,
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
    fn a_resting_account_is_the_last_resort() {
        let resting = AccountView {
            resting: true,
            ..acc(0, None)
        };
        assert_eq!(account(&[resting, acc(50, None)], Patience::None, 0), Ok(1));
        assert_eq!(account(&[resting], Patience::None, 0), Ok(0));
    }

    #[test]
    fn whoever_can_wait_waits_for_an_account_that_is_awake() {
        let resting = AccountView {
            resting: true,
            ..acc(0, None)
        };
        let full = acc(2, Some(2));
        assert_eq!(account(&[resting, full], Patience::None, 0), Ok(0));
        assert_eq!(
            account(&[resting, full], Patience::Some, 0),
            Err(NoneLeft::Full)
        );
        let tried = AccountView {
            tried: true,
            ..full
        };
        assert_eq!(account(&[resting, tried], Patience::Some, 0), Ok(0));
    }

    #[test]
    fn whoever_can_wait_waits_for_an_account_at_its_limit_to_have_rested() {
        let limited = AccountView {
            limited: true,
            ..acc(0, None)
        };
        let resting = AccountView {
            resting: true,
            ..acc(0, None)
        };
        assert_eq!(account(&[limited, acc(9, None)], Patience::Some, 0), Ok(1));
        assert_eq!(account(&[limited], Patience::None, 0), Ok(0));
        for others in [vec![limited], vec![limited, resting]] {
            assert_eq!(account(&others, Patience::Some, 0), Err(NoneLeft::Full));
        }
        let tried = AccountView {
            tried: true,
            ..limited
        };
        assert_eq!(account(&[tried], Patience::Some, 0), Err(NoneLeft::Tried));
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
        assert_eq!(endpoint(&[end(0, 0, false), end(0, 1, false)], 0), Ok(0));
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
