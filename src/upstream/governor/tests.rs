use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

fn rules() -> Rules {
    Rules {
        floor: 1,
        decrease_percent: 20,
        recovery: Duration::from_secs(1),
        slow_factor: 3,
    }
}

fn load(configured: Option<u32>, in_flight: u32) -> Load {
    Load {
        configured,
        in_flight,
    }
}

const MILLI: Duration = Duration::from_millis(1);

#[test]
fn a_refusal_takes_a_share_off_what_was_in_flight() {
    let governor = Governor::default();
    let start = Instant::now();
    assert_eq!(governor.learned(), None);
    assert!(governor.refused(&rules(), load(Some(2500), 100), start, start + MILLI));
    assert_eq!(governor.learned(), Some(80));
    assert_eq!(governor.decreases(Cause::RateLimited), 1);
}

#[test]
fn what_was_sent_before_a_decrease_does_not_decrease_again() {
    let governor = Governor::default();
    let start = Instant::now();
    let seen = start + Duration::from_secs(1);
    assert!(governor.refused(&rules(), load(None, 100), start, seen));
    for late in 0..50 {
        assert!(!governor.refused(&rules(), load(None, 99), start + late * MILLI, seen));
    }
    assert!(governor.refused(&rules(), load(None, 80), seen + MILLI, seen + 2 * MILLI));
    assert_eq!(governor.learned(), Some(64));
}

#[test]
fn places_come_back_one_by_one_and_only_while_they_are_wanted() {
    let governor = Governor::default();
    let mut now = Instant::now();
    governor.refused(&rules(), load(Some(12), 10), now, now + MILLI);
    assert_eq!(governor.learned(), Some(8));
    for _ in 0..100 {
        now += Duration::from_millis(250);
        governor.recover(&rules(), load(Some(12), 3), now);
    }
    assert_eq!(governor.learned(), Some(8), "nobody needed more");
    for _ in 0..4 {
        now += Duration::from_millis(250);
        governor.press();
        governor.recover(&rules(), load(Some(12), 3), now);
    }
    assert_eq!(governor.learned(), Some(9), "somebody was turned away");
    for _ in 0..13 {
        now += Duration::from_millis(250);
        governor.recover(&rules(), load(Some(12), 12), now);
    }
    assert_eq!(governor.learned(), None, "back where it began");
}

#[test]
fn without_a_configured_ceiling_a_learned_one_is_outgrown() {
    let governor = Governor::default();
    let mut now = Instant::now();
    governor.refused(&rules(), load(None, 5), now, now + MILLI);
    assert_eq!(governor.learned(), Some(4));
    let mut highest = 0;
    while let Some(learned) = governor.learned() {
        highest = learned;
        now += Duration::from_millis(500);
        governor.recover(&rules(), load(None, learned), now);
    }
    assert_eq!(highest, 9);
}

#[test]
fn slow_first_content_brings_the_ceiling_of_a_loaded_account_down() {
    let governor = Governor::default();
    let start = Instant::now();
    let mut now = start;
    let mut see = |took: u64, in_flight: u32| {
        now += Duration::from_secs(1);
        let took = Duration::from_millis(took);
        governor.first_content(&rules(), load(Some(20), in_flight), took, now, now + took)
    };
    for round in 0..200 {
        // Now and then a long prompt, which is nobody's fault.
        assert!(!see(if round % 20 == 0 { 8_000 } else { 500 }, 20));
    }
    for _ in 0..60 {
        assert!(!see(500, 4));
    }
    let few = (0..200).filter(|_| see(8_000, 4)).count();
    assert_eq!(few, 0, "an account that is hardly used is not too full");
    for _ in 0..600 {
        see(500, 4);
    }
    let first = (0..100).position(|_| see(8_000, 20)).unwrap();
    assert!((4..40).contains(&first), "{first}");
    assert_eq!(governor.learned(), Some(16));
    let second = (0..100).position(|_| see(8_000, 16)).unwrap();
    assert!(second + 1 >= MIN_FRESH as usize, "{second}");
    assert_eq!(governor.decreases(Cause::Slow), 2);
}

#[test]
fn what_is_forgotten_is_learned_from_nothing() {
    let governor = Governor::default();
    let now = Instant::now();
    governor.refused(&rules(), load(None, 10), now, now + MILLI);
    governor.forget();
    assert_eq!(governor.learned(), None);
}

#[derive(Debug, Clone)]
enum Event {
    Refused { age: u64, in_flight: u32 },
    First { took: u64, in_flight: u32 },
    Look { in_flight: u32, pressed: bool },
    Configure(Option<u32>),
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        (0..5_000u64, 0..200u32).prop_map(|(age, in_flight)| Event::Refused { age, in_flight }),
        (1..60_000u64, 0..200u32).prop_map(|(took, in_flight)| Event::First { took, in_flight }),
        (0..200u32, any::<bool>())
            .prop_map(|(in_flight, pressed)| Event::Look { in_flight, pressed }),
        proptest::option::of(1..200u32).prop_map(Event::Configure),
    ];
    proptest::collection::vec((0..3_000u64, event), 1..400)
}

proptest! {
    #[test]
    fn a_ceiling_stays_within_its_bounds_and_falls_once_a_round_trip(
        story in events(),
        floor in 1..20u32,
        percent in 1..=90u32,
        recovery in 1..5_000u64,
    ) {
        let rules = Rules {
            floor,
            decrease_percent: percent,
            recovery: Duration::from_millis(recovery),
            slow_factor: 2,
        };
        let governor = Governor::default();
        let start = Instant::now() + Duration::from_secs(60);
        let (mut now, mut configured) = (start, Some(100));
        let mut decreased: Option<Instant> = None;
        for (pause, event) in story {
            now += Duration::from_millis(pause);
            let before = governor.in_effect(configured);
            let fell = match event {
                Event::Refused { age, in_flight } => {
                    let sent = now.checked_sub(Duration::from_millis(age)).unwrap();
                    let fell = governor.refused(&rules, load(configured, in_flight), sent, now);
                    prop_assert!(!fell || decreased.is_none_or(|last| sent > last));
                    fell
                }
                Event::First { took, in_flight } => {
                    let took = Duration::from_millis(took);
                    let sent = now.checked_sub(took).unwrap();
                    let fell = governor.first_content(&rules, load(configured, in_flight), took, sent, now);
                    prop_assert!(!fell || decreased.is_none_or(|last| sent > last));
                    fell
                }
                Event::Look { in_flight, pressed } => {
                    if pressed { governor.press(); }
                    governor.recover(&rules, load(configured, in_flight), now);
                    prop_assert!(governor.in_effect(configured) >= before);
                    false
                }
                Event::Configure(new) => { configured = new; continue; }
            };
            if fell {
                decreased = Some(now);
                prop_assert!(governor.in_effect(configured) < before);
            }
            if let Some(learned) = governor.learned() {
                prop_assert!(learned >= floor);
            }
            prop_assert!(governor.in_effect(configured) >= 1);
        }
        // However it went, enough time under load without trouble leads back to the top.
        let rest = u64::from(configured.unwrap_or(500)) * recovery / 250 + 2;
        for _ in 0..rest.max(u64::from(configured.unwrap_or(500)) * 2) {
            now += Duration::from_millis(250);
            governor.press();
            governor.recover(&rules, load(configured, 0), now);
        }
        prop_assert_eq!(governor.learned(), None);
    }
}

/// A model server that takes `limit` requests at a time, 1 s each, and more callers than that.
fn simulate(governor: &Governor, configured: Option<u32>, limit: impl Fn(u64) -> u32) -> [u64; 3] {
    let rules = Rules {
        recovery: Duration::from_secs(2),
        ..rules()
    };
    let start = Instant::now();
    let mut ends: BinaryHeap<std::cmp::Reverse<u64>> = BinaryHeap::new();
    let (mut served, mut refused, mut room) = (0, 0, 0);
    for tick in 0..60_000u64 {
        let at = tick * 10;
        let now = start + Duration::from_millis(at);
        while ends.peek().is_some_and(|end| end.0 <= at) {
            ends.pop();
            served += 1;
        }
        let in_flight = |ends: &BinaryHeap<_>| u32::try_from(ends.len()).unwrap();
        // Ninety callers, who arrive a few at a time.
        for _ in 0..4 {
            let held = in_flight(&ends);
            if held >= governor.in_effect(configured).min(90) {
                governor.press();
                break;
            }
            let sent = now + Duration::from_micros(u64::from(held) + 1);
            if held < limit(at) {
                ends.push(std::cmp::Reverse(at + 900 + (tick * 7) % 200));
            } else {
                refused += 1;
                governor.refused(&rules, load(configured, held + 1), sent, sent + MILLI);
            }
        }
        room += u64::from(limit(at).min(90));
        if tick % 25 == 0 {
            governor.recover(&rules, load(configured, in_flight(&ends)), now);
        }
    }
    [served, refused, room / 100]
}

#[test]
fn a_hidden_limit_is_found_with_few_refusals_even_when_it_moves() {
    for configured in [None, Some(80)] {
        for limit in [
            (|_| 30) as fn(u64) -> u32,
            |at| if at < 200_000 { 50 } else { 12 },
            |at| if at / 150_000 % 2 == 0 { 10 } else { 40 },
        ] {
            let governor = Governor::default();
            let [served, refused, room] = simulate(&governor, configured, limit);
            assert!(refused * 50 < served, "{refused} refusals for {served}");
            assert!(served * 10 > room * 7, "{served} of {room} were served");
        }
    }
}
