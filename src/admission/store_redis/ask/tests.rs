use proptest::prelude::*;

use super::*;
use crate::config::settings::{LimitKey, Surfaces};

const MINUTE: Duration = Duration::from_secs(60);

fn limit(quantity: Quantity, window: Window) -> Limit {
    Limit {
        key: LimitKey {
            surfaces: Surfaces::Chat,
            model: None,
            quantity,
            window,
        },
        amount: 60,
        burst: 10,
        shadow: true,
    }
}

fn part(rule: Rule, demand: u64) -> Part {
    Part {
        counter: Counter {
            name: "x".into(),
            rule,
            shadow: false,
        },
        demand,
    }
}

fn bucket(amount: u64, burst: u64) -> Rule {
    Rule::Bucket {
        period: MINUTE,
        amount,
        burst,
    }
}

fn unfit(held: u64, a: u64, c: u64) -> Raw {
    Raw {
        fits: false,
        held,
        a,
        b: 7,
        c,
    }
}

#[test]
fn a_limit_becomes_the_kind_of_counter_that_its_window_says() {
    let of = |quantity, window| Counter::of("tenant/acme", &limit(quantity, window), 1000);
    let requests = of(Quantity::Requests, Window::Minute);
    assert_eq!(&*requests.name, "tenant/acme|chat/*/requests_per_minute");
    assert_eq!(requests.rule, bucket(60, 10));
    assert!(requests.shadow);
    let day = Rule::Calendar {
        window: 1000,
        amount: 60,
    };
    assert_eq!(of(Quantity::Cost, Window::Day).rule, day);
    assert_eq!(of(Quantity::Tokens, Window::Month).rule, day);
    let places = Rule::Concurrency { amount: 60 };
    assert_eq!(of(Quantity::Concurrent, Window::None).rule, places);
}

#[test]
fn what_is_beyond_the_bounds_counts_as_the_bound() {
    assert_eq!(bucket(0, 1).amount(), 1);
    assert_eq!(bucket(u64::MAX, 1).amount(), MAX_AMOUNT);
    assert_eq!(bucket(1, u64::MAX).bound(), LIMIT);
    assert_eq!(bucket(1, 1).cost(u64::MAX), LIMIT);
    assert_eq!(part(bucket(1, 1), u64::MAX).demand(), MAX_AMOUNT);
    let calendar = Rule::Calendar {
        window: u64::MAX,
        amount: u64::MAX,
    };
    assert_eq!((calendar.amount(), calendar.window()), (LIMIT, LIMIT));
    assert_eq!(part(Rule::Concurrency { amount: 3 }, 9).demand(), 1);
}

#[test]
fn a_bucket_tells_how_long_until_enough_has_leaked() {
    let wanted = part(bucket(60, 10), 4);
    // Eight of ten are in use: two must leak, one per second.
    let standing = wanted.standing(unfit(0, 8_000_000_000, 0), false);
    assert_eq!(standing.wait, Wait::Leak(Duration::from_secs(2)));
    assert_eq!(
        (standing.used, standing.drains),
        (8, Duration::from_secs(8))
    );
    // What is held does not leak.
    let standing = wanted.standing(unfit(9, 1_000_000_000, 0), false);
    assert_eq!(standing.wait, Wait::Release);
    let standing = part(bucket(60, 10), 11).standing(unfit(0, 0, 0), false);
    assert_eq!(standing.wait, Wait::Never);
}

#[test]
fn a_budget_waits_for_a_release_or_for_its_next_window() {
    let rule = Rule::Calendar {
        window: 7,
        amount: 100,
    };
    let wait = |demand, raw| part(rule, demand).standing(raw, false).wait;
    assert_eq!(wait(10, unfit(50, 50, 0)), Wait::Release);
    assert_eq!(wait(10, unfit(0, 95, 0)), Wait::Window);
    assert_eq!(
        wait(10, unfit(20, 95, 5)),
        Wait::Release,
        "the extension helps"
    );
    assert_eq!(wait(101, unfit(0, 0, 0)), Wait::Never);
    assert_eq!(wait(105, unfit(0, 1, 5)), Wait::Window, "here too");
    assert_eq!(wait(106, unfit(0, 0, 5)), Wait::Never);
    let standing = part(rule, 1).standing(unfit(1, 2, 3), true);
    assert_eq!(
        (standing.wait, standing.extra, standing.window),
        (Wait::None, 3, 7)
    );
}

#[test]
fn places_wait_for_a_release() {
    let wait = |amount| {
        part(Rule::Concurrency { amount }, 1)
            .standing(unfit(3, 0, 0), false)
            .wait
    };
    assert_eq!(wait(3), Wait::Release);
    assert_eq!(wait(0), Wait::Never);
}

proptest! {
    #[test]
    fn what_was_used_is_never_shown_as_less(n in 0..MAX_AMOUNT, amount in 1..MAX_AMOUNT) {
        let rule = bucket(amount, 1);
        let cost = rule.cost(n);
        prop_assume!(cost < LIMIT);
        let shown = leaky(rule, cost);
        prop_assert!(shown >= n);
        // A nanosecond is the grain: of a fast bucket it is more than one unit.
        prop_assert!(shown - n <= amount / rule.period() + 1);
    }

    #[test]
    fn after_the_wait_it_fits(
        amount in 1..1_000_000_u64, burst in 1..1_000_000_u64, demand in 1..1_000_000_u64,
        held in 0..1_000_000_u64, level in 0..LIMIT,
    ) {
        let wanted = part(bucket(amount, burst), demand);
        let rule = wanted.counter.rule;
        let fits = |level: u64| level.saturating_add(rule.cost(held + demand)) <= rule.bound();
        prop_assume!(!fits(level));
        match wanted.standing(unfit(held, level, 0), false).wait {
            Wait::Leak(wait) => {
                let wait = u64::try_from(wait.as_nanos()).unwrap();
                prop_assert!(fits(level - wait));
                prop_assert!(!fits(level - wait + 1), "not too long");
            }
            Wait::Release => prop_assert!(!fits(0)),
            Wait::Never => prop_assert!(rule.cost(demand) > rule.bound()),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
