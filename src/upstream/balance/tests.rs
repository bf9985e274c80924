use proptest::prelude::*;

use super::*;

const OPEN: Standing = Standing::Open { permille: 1000 };

fn acc(in_flight: u32, ceiling: Option<u32>) -> AccountView {
    AccountView {
        seed: 1,
        in_flight,
        ceiling,
        priority: 0,
        weight: 1,
        latency: 100_000,
        errors: 0,
        standing: OPEN,
        limited: false,
        tried: false,
    }
}

fn end(in_flight: u32, priority: u32, standing: Standing) -> EndpointView {
    EndpointView {
        in_flight,
        priority,
        weight: 1,
        latency: 0,
        errors: 0,
        standing,
        full: false,
        tried: false,
        doubted: false,
    }
}

/// How often each of the accounts is chosen, of 10,000.
fn chosen(views: &[AccountView], home: Option<Home>) -> Vec<u32> {
    let mut counts = vec![0; views.len()];
    for random in 0..10_000u64 {
        let random = affinity::mix(random);
        counts[account(views, home, Patience::None, random).unwrap()] += 1;
    }
    counts
}

fn all_to(index: usize, count: usize) -> Vec<u32> {
    (0..count)
        .map(|it| if it == index { 10_000 } else { 0 })
        .collect()
}

#[test]
fn of_two_the_one_where_content_is_nearer_wins() {
    let quick = AccountView {
        latency: 50_000,
        ..acc(3, None)
    };
    assert_eq!(chosen(&[acc(3, None), quick], None), all_to(1, 2));
    assert_eq!(chosen(&[acc(3, None), acc(2, None)], None), all_to(1, 2));
    // The one with more room below its ceiling.
    let nearly = acc(90, Some(100));
    assert_eq!(chosen(&[nearly, acc(90, Some(2500))], None), all_to(1, 2));
}

#[test]
fn whoever_fails_at_once_does_not_look_like_the_best() {
    let failing = |errors| AccountView {
        errors,
        latency: 20_000,
        ..acc(0, None)
    };
    assert_eq!(chosen(&[acc(2, None), failing(0)], None), all_to(1, 2));
    let views = [acc(2, None), failing(1_000)];
    assert_eq!(chosen(&views, None), all_to(0, 2));
    assert_eq!(chosen(&views, home(1)), all_to(0, 2));
    let all = [failing(1_000), failing(1_000)];
    assert_eq!(chosen(&all, home(1)), all_to(1, 2));
    let ends = [end(2, 0, OPEN), end(0, 0, OPEN)];
    let [well, ill] = ends.map(|view| EndpointView {
        errors: view.in_flight.abs_diff(2) * 400,
        ..view
    });
    assert_eq!(endpoint(&[well, ill], 5), Ok(0));
}

#[test]
fn idle_equals_share_alike_and_weights_are_shares() {
    for count in chosen(&[acc(0, None); 4], None) {
        assert!((2_200..=2_800).contains(&count), "{count}");
    }
    let heavy = AccountView {
        weight: 3,
        ..acc(0, None)
    };
    let counts = chosen(&[acc(0, None), heavy], None);
    assert!((7_200..=7_800).contains(&counts[1]), "{counts:?}");
    let busy = |in_flight, weight| AccountView {
        weight,
        ..acc(in_flight, None)
    };
    assert_eq!(chosen(&[busy(10, 1), busy(29, 3)], None), all_to(1, 2));
    assert_eq!(chosen(&[busy(10, 1), busy(31, 3)], None), all_to(0, 2));
}

#[test]
fn somebody_unknown_is_taken_for_usual() {
    let unknown = AccountView {
        latency: 0,
        ..acc(0, None)
    };
    let counts = chosen(&[unknown, acc(0, None), acc(0, None)], None);
    assert!(
        counts.iter().all(|count| (2_800..=3_900).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_full_account_is_passed_over_and_all_full_is_told_from_all_tried_and_all_closed() {
    let pick = |views: &[AccountView]| account(views, None, Patience::None, 7);
    assert_eq!(pick(&[acc(2, Some(2)), acc(1, Some(2))]), Ok(1));
    assert_eq!(pick(&[acc(2, Some(2))]), Err(NoneLeft::Full));
    let tried = AccountView {
        tried: true,
        ..acc(0, None)
    };
    let closed = AccountView {
        standing: Standing::Closed,
        ..acc(0, None)
    };
    assert_eq!(pick(&[tried]), Err(NoneLeft::Tried));
    assert_eq!(pick(&[tried, closed]), Err(NoneLeft::Closed));
    assert_eq!(pick(&[acc(2, Some(2)), closed]), Err(NoneLeft::Full));
    assert_eq!(pick(&[]), Err(NoneLeft::Tried));
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
    let pick = |views: &[AccountView], patience| account(views, None, patience, 3);
    assert_eq!(pick(&[limited, acc(9, None)], Patience::Some), Ok(1));
    assert_eq!(pick(&[limited, closed], Patience::None), Ok(0));
    for others in [vec![limited], vec![limited, closed]] {
        assert_eq!(pick(&others, Patience::Some), Err(NoneLeft::Full));
    }
    let tried = AccountView {
        tried: true,
        ..limited
    };
    assert_eq!(pick(&[tried], Patience::Some), Err(NoneLeft::Tried));
}

#[test]
fn a_probe_is_sent_as_soon_as_it_may_be() {
    let probe = AccountView {
        standing: Standing::Probe,
        ..acc(5, None)
    };
    assert_eq!(
        chosen(&[acc(0, None), probe, acc(0, None)], None),
        all_to(1, 3)
    );
}

#[test]
fn a_preferred_tier_that_may_be_tried_is_tried_while_a_later_one_serves() {
    let with = |standing, priority| AccountView {
        standing,
        priority,
        ..acc(0, None)
    };
    let accounts = [
        with(Standing::Closed, 0),
        with(Standing::Probe, 0),
        with(OPEN, 1),
    ];
    assert_eq!(chosen(&accounts, None), all_to(1, 3));
    let endpoints = [
        end(0, 0, Standing::Closed),
        end(0, 0, Standing::Probe),
        end(0, 1, OPEN),
    ];
    for random in 0..1_000 {
        assert_eq!(endpoint(&endpoints, affinity::mix(random)), Ok(1));
    }
}

#[test]
fn who_comes_back_gets_its_share_and_no_flood() {
    let back = AccountView {
        standing: Standing::Open { permille: 200 },
        ..acc(0, None)
    };
    let counts = chosen(&[acc(20, None), acc(20, None), back], None);
    assert!((1_000..=2_200).contains(&counts[2]), "{counts:?}");
    // Better than nobody.
    assert_eq!(chosen(&[back], None), [10_000]);
}

#[test]
fn a_later_tier_serves_when_the_first_is_closed_full_or_tried() {
    let later = AccountView {
        priority: 1,
        ..acc(50, None)
    };
    assert_eq!(chosen(&[acc(9, None), later], None), all_to(0, 2));
    for first in [
        AccountView {
            standing: Standing::Closed,
            ..acc(0, None)
        },
        AccountView {
            tried: true,
            ..acc(0, None)
        },
        acc(2, Some(2)),
    ] {
        assert_eq!(chosen(&[first, later], None), all_to(1, 2));
    }
}

#[test]
fn a_tier_that_is_mostly_ill_gives_part_of_its_traffic_away() {
    let closed = AccountView {
        standing: Standing::Closed,
        ..acc(0, None)
    };
    let later = AccountView {
        priority: 1,
        ..acc(0, None)
    };
    // Three of four are open: enough. One of four: 1.4 quarters of the traffic stay.
    let well = chosen(
        &[acc(0, None), acc(0, None), acc(0, None), closed, later],
        None,
    );
    assert_eq!(well[4], 0);
    let ill = chosen(&[acc(0, None), closed, closed, closed, later], None);
    assert!((6_200..=6_800).contains(&ill[4]), "{ill:?}");
}

#[test]
fn endpoints_are_chosen_alike() {
    let closed = Standing::Closed;
    let pick = |views: &[EndpointView]| endpoint(views, 5);
    assert_eq!(pick(&[end(9, 0, OPEN), end(0, 1, OPEN)]), Ok(0));
    assert_eq!(pick(&[end(0, 0, closed), end(9, 1, OPEN)]), Ok(1));
    assert_eq!(pick(&[end(4, 0, OPEN), end(1, 0, OPEN)]), Ok(1));
    assert_eq!(pick(&[end(0, 0, closed)]), Err(NoneLeft::Closed));
    let full = EndpointView {
        full: true,
        ..end(0, 0, OPEN)
    };
    assert_eq!(pick(&[full, end(3, 1, OPEN)]), Ok(1));
    assert_eq!(pick(&[full]), Err(NoneLeft::Full));
    let tried = EndpointView {
        tried: true,
        ..end(0, 0, OPEN)
    };
    assert_eq!(pick(&[tried]), Err(NoneLeft::Tried));
    assert_eq!(pick(&[end(0, 0, Standing::Probe), end(0, 0, OPEN)]), Ok(0));
}

#[test]
fn an_endpoint_that_is_doubted_is_asked_again_only_if_no_other_may_be() {
    let doubted = EndpointView {
        doubted: true,
        ..end(0, 0, OPEN)
    };
    for (other, expected) in [
        (end(9, 1, OPEN), Ok(1)),
        (end(0, 0, Standing::Closed), Ok(0)),
    ] {
        assert_eq!(endpoint(&[doubted, other], 5), expected);
    }
    let closed = EndpointView {
        standing: Standing::Closed,
        ..doubted
    };
    assert_eq!(endpoint(&[closed], 5), Err(NoneLeft::Closed));
}

#[test]
fn of_those_at_their_limit_the_preferred_ones_are_asked() {
    let limited = |priority| AccountView {
        limited: true,
        priority,
        ..acc(0, None)
    };
    let views = [limited(1), limited(0), limited(1)];
    assert_eq!(chosen(&views, None), all_to(1, 3));
}

fn home(account: usize) -> Option<Home> {
    Some(Home {
        key: 11,
        account,
        bound_percent: 125,
    })
}

fn four(in_flight: [u32; 4]) -> Vec<AccountView> {
    let view = |(index, count): (usize, u32)| AccountView {
        seed: affinity::seed(&index.to_string()),
        ..acc(count, None)
    };
    in_flight.into_iter().enumerate().map(view).collect()
}

#[test]
fn a_conversation_goes_home_until_its_account_has_more_than_its_share() {
    assert_eq!(chosen(&four([7, 0, 0, 0]), home(0)), all_to(0, 4));
    assert_eq!(chosen(&four([40, 40, 40, 40]), home(2)), all_to(2, 4));
    let away = chosen(&four([60, 30, 30, 30]), home(0));
    assert_eq!(away[0], 0);
    // All of it to the one account that is next in its own order.
    assert_eq!(away.iter().filter(|count| **count > 0).count(), 1);
}

#[test]
fn a_conversation_does_not_wait_at_an_account_that_is_hot_or_ill() {
    let mut views = four([10, 10, 10, 10]);
    views[1].latency = 500_000;
    assert_eq!(chosen(&views, home(1))[1], 0);
    let mut views = four([1; 4]);
    for standing in [Standing::Closed, Standing::Open { permille: 100 }] {
        views[1].standing = standing;
        assert!(chosen(&views, home(1))[1] < 1_200);
    }
    views[1].standing = OPEN;
    assert_eq!(chosen(&views, home(1)), all_to(1, 4));
}

fn any_account() -> impl Strategy<Value = AccountView> {
    let standing = prop_oneof![
        Just(Standing::Closed),
        Just(Standing::Probe),
        (1u32..=1000).prop_map(|permille| Standing::Open { permille }),
    ];
    let numbers = (0u32..50, prop::option::of(1u32..50), 0u32..3, 1u32..5);
    (
        numbers,
        0u64..10_000_000,
        standing,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |((in_flight, ceiling, priority, weight), latency, standing, limited, tried)| {
                AccountView {
                    seed: u64::from(in_flight) << 7 | latency,
                    in_flight,
                    ceiling,
                    priority,
                    weight,
                    latency,
                    errors: (latency % 1_001) as u32,
                    standing,
                    limited,
                    tried,
                }
            },
        )
}

proptest! {
    #[test]
    fn whoever_is_chosen_can_take_it_and_whoever_can_is_found(
        views in prop::collection::vec(any_account(), 0..9),
        at in 0usize..9,
        key: u64,
        random: u64,
        waits: bool,
    ) {
        let patience = if waits { Patience::Some } else { Patience::None };
        let home = (at < views.len()).then_some(Home { key, account: at, bound_percent: 125 });
        let takes = |view: &AccountView| {
            !view.tried
                && view.standing != Standing::Closed
                && view.ceiling.is_none_or(|ceiling| view.in_flight < ceiling)
                && !(view.limited && waits)
        };
        match account(&views, home, patience, random) {
            Ok(index) => prop_assert!(takes(&views[index])),
            Err(_) => prop_assert!(!views.iter().any(takes)),
        }
    }
}
