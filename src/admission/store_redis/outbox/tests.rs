use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::ask::Rule;
use super::*;

fn at(now: Instant) -> Moment {
    Moment { now, away: false }
}

fn away(now: Instant) -> Moment {
    Moment { now, away: true }
}

fn daily(name: &str, window: u64) -> Counter {
    Counter {
        name: name.into(),
        rule: Rule::Calendar {
            window,
            amount: 100,
        },
        shadow: false,
    }
}

fn per_second(name: &str) -> Counter {
    Counter {
        name: name.into(),
        rule: Rule::Bucket {
            period: Duration::from_secs(1),
            amount: 1,
            burst: 1,
        },
        shadow: false,
    }
}

fn news(epoch: u64, generation: u64) -> News {
    News { epoch, generation }
}

/// Nobody had asked Redis for it.
fn use_up(outbox: &mut Outbox, root: &Arc<str>, used: &[(Counter, u64)], moment: Moment) {
    let parts = used.iter().cloned();
    let parts: Vec<_> = parts
        .map(|(counter, demand)| Part { counter, demand })
        .collect();
    let used: Vec<_> = used.iter().map(|(_, used)| *used).collect();
    let ticket = outbox.assumed(root, &parts);
    outbox.settled(root, ticket, &parts, &used, moment);
}

fn root() -> Arc<str> {
    "tenant/acme".into()
}

#[test]
fn settlements_are_merged_by_counter_window_and_generation() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    let part = |window| {
        vec![Part {
            counter: daily("day", window),
            demand: 10,
        }]
    };
    for (generation, window) in [(1, 5), (1, 5), (2, 5), (1, 6)] {
        let ticket = outbox.granted(&root(), generation, &part(window), now);
        outbox.settled(&root(), ticket, &part(window), &[3], at(now));
    }
    assert_eq!((outbox.len(), outbox.open()), (3, 0));
    let batch = &outbox.take(9, at(now))[0];
    let told: Vec<_> = batch
        .moves
        .iter()
        .map(|(key, one)| (key.window, key.generation, one.release, one.used))
        .collect();
    assert_eq!(
        told,
        [(5, 1, 20, 6), (5, 2, 10, 3), (6, 1, 10, 3)],
        "older windows first"
    );
}

#[test]
fn a_batch_is_told_again_as_it_was_until_it_is_acknowledged() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    use_up(&mut outbox, &root(), &[(daily("day", 1), 5)], at(now));
    let first = outbox.take(9, at(now));
    use_up(&mut outbox, &root(), &[(daily("day", 1), 7)], at(now));
    assert!(
        outbox.take(9, at(now)).is_empty(),
        "one of a root at a time"
    );
    outbox.failed(&first[0]);
    let again = outbox.take(9, away(now + Duration::from_secs(9)));
    assert_eq!(again, first);
    outbox.delivered(&again[0]);
    let next = outbox.take(9, at(now));
    assert_eq!(next[0].moves[0].1.used, 7);
    assert!(next[0].sequence > first[0].sequence);
    outbox.delivered(&next[0]);
    assert!(outbox.is_empty());
    assert_eq!(outbox.len(), 0);
}

#[test]
fn buckets_leak_while_redis_is_away_and_only_then() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let used = |moment: fn(Instant) -> Moment| {
        let mut outbox = Outbox::default();
        use_up(
            &mut outbox,
            &root(),
            &[(per_second("b"), 2), (daily("d", 1), 2)],
            moment(now),
        );
        use_up(
            &mut outbox,
            &root(),
            &[(per_second("b"), 2)],
            moment(now + second),
        );
        let batch = outbox.take(1, moment(now + 2 * second)).remove(0);
        (batch.moves[0].1.used, batch.moves[1].1.used)
    };
    assert_eq!(used(at), (4_000_000_000, 2));
    assert_eq!(used(away), (2_000_000_000, 2));
}

#[test]
fn too_many_given_up_reservations_give_up_all_that_is_held() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    for number in 0..=MAX_ABANDONED {
        let id = number.to_string().into();
        outbox.abandoned(
            &root(),
            Abandoned {
                id,
                held: Vec::new(),
            },
        );
    }
    assert_eq!(outbox.len(), MAX_ABANDONED);
    let batch = outbox.take(1, at(now)).remove(0);
    assert!(batch.renew);
    assert_eq!(batch.abandoned.len(), BATCH);
}

#[test]
fn beyond_the_bound_use_is_lost_and_counted_and_what_is_held_is_given_up() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    for number in 0..MAX_MOVES {
        use_up(
            &mut outbox,
            &root(),
            &[(daily(&number.to_string(), 1), 1)],
            at(now),
        );
    }
    use_up(&mut outbox, &root(), &[(daily("one more", 1), 1)], at(now));
    use_up(&mut outbox, &root(), &[(daily("0", 1), 1)], at(now));
    assert_eq!((outbox.len(), outbox.lost()), (MAX_MOVES, 1));
    let part = Part {
        counter: daily("another", 1),
        demand: 1,
    };
    let parts = [part];
    let ticket = outbox.granted(&root(), 1, &parts, now);
    outbox.settled(&root(), ticket, &parts, &[0], at(now));
    assert_eq!(outbox.lost(), 1);
    assert!(outbox.take(1, at(now))[0].renew);
}

#[test]
fn a_silent_root_gives_a_sign_of_life_while_something_of_it_is_held() {
    let now = Instant::now();
    let span = Duration::from_secs(3);
    let mut outbox = Outbox::default();
    let ticket = outbox.granted(&root(), 1, &[], now);
    assert!(outbox.signs(span, now).is_empty());
    let signs = outbox.signs(span, now + span);
    assert_eq!((signs.len(), signs[0].sequence), (1, 0));
    outbox.answered(&root(), news(1, 1), now + span);
    assert!(outbox.signs(span, now + span).is_empty());
    outbox.settled(&root(), ticket, &[], &[], at(now));
    assert!(outbox.signs(span, now + 9 * span).is_empty());
}

#[test]
fn a_later_epoch_tells_that_redis_was_emptied() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    assert!(!outbox.answered(&root(), news(5, 1), now));
    assert!(!outbox.answered(&root(), news(5, 1), now));
    assert!(outbox.answered(&root(), news(6, 1), now));
    assert!(
        !outbox.answered(&root(), news(5, 1), now),
        "an answer that was overtaken"
    );
}

#[test]
fn what_redis_forgot_is_claimed_once_and_released_as_claimed() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    let parts = [Part {
        counter: daily("day", 1),
        demand: 10,
    }];
    outbox.answered(&root(), news(1, 1), now);
    let ended = outbox.granted(&root(), 1, &parts, now);
    let open = outbox.granted(&root(), 1, &parts, now);
    assert!(outbox.take(1, at(now)).is_empty(), "Redis knows them");
    outbox.settled(&root(), ended, &parts, &[], at(now));
    outbox.answered(&root(), news(2, 2), now);
    let new = outbox.granted(&root(), 2, &parts, now);
    let batch = outbox.take(1, at(now)).remove(0);
    let claim: (Arc<str>, u64) = ("day".into(), 10);
    assert_eq!(
        (&batch.claims[..], batch.generation),
        (&[claim.clone()][..], 2)
    );
    outbox.delivered(&batch);
    // One whose answer was overtaken by the news.
    let late = outbox.granted(&root(), 1, &parts, now);
    let batch = outbox.take(1, at(now)).remove(0);
    assert_eq!((&batch.claims[..], batch.generation), (&[claim][..], 2));
    outbox.delivered(&batch);
    for ticket in [open, new, late] {
        outbox.settled(&root(), ticket, &parts, &[], at(now));
    }
    let batch = outbox.take(1, at(now)).remove(0);
    let moves: Vec<_> = batch.moves.iter().collect();
    assert!(batch.claims.is_empty());
    assert_eq!(
        (moves.len(), moves[0].0.generation, moves[0].1.release),
        (1, 2, 30)
    );
}

proptest! {
    /// Whatever fails and in whatever order, what Redis applied is what was used.
    #[test]
    fn nothing_is_lost_and_nothing_is_told_twice(
        steps in prop::collection::vec((0..4_u8, 0..3_usize, 0..100_u64), 0..200),
    ) {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        let roots: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
        let (mut used, mut applied) = (0, 0);
        let mut seen = BTreeSet::new();
        let mut redis = |batch: &Batch| {
            if seen.insert(batch.sequence) {
                applied += batch.moves.iter().map(|(_, one)| one.used).sum::<u64>();
            }
        };
        for (kind, which, amount) in steps {
            match kind {
                0 => {
                    used += amount;
                    use_up(&mut outbox, &roots[which], &[(daily(&amount.to_string(), 1), amount)], at(now));
                }
                1 => for batch in outbox.take(which, at(now)) {
                    redis(&batch);
                    outbox.delivered(&batch);
                },
                // The answer is lost.
                2 => for batch in outbox.take(which, at(now)) {
                    redis(&batch);
                    outbox.failed(&batch);
                },
                // The question is lost.
                _ => for batch in outbox.take(which, at(now)) {
                    outbox.failed(&batch);
                },
            }
        }
        loop {
            let batches = outbox.take(2, at(now));
            if batches.is_empty() {
                break;
            }
            for batch in batches {
                redis(&batch);
                outbox.delivered(&batch);
            }
        }
        prop_assert_eq!(applied, used);
        prop_assert!(outbox.is_empty());
        prop_assert_eq!(outbox.len(), 0);
    }
}

#[test]
fn after_a_new_connection_what_is_held_is_stated_anew_and_let_go_in_its_new_generation() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    let parts = [Part {
        counter: daily("day", 1),
        demand: 3,
    }];
    let [ended, open] = [(); 2].map(|()| outbox.granted(&root(), 7, &parts, now));
    outbox.answered(&root(), news(1, 7), now);
    outbox.settled(&root(), ended, &parts, &[2], at(now));
    outbox.reconnected(now);
    let batch = outbox.take(1, at(now)).remove(0);
    assert!(batch.renew && batch.generation == 8);
    assert_eq!(batch.claims, [(Arc::from("day"), 3)]);
    let told = batch.moves.iter();
    let told: Vec<_> = told.map(|(key, one)| (key.generation, one.used)).collect();
    assert_eq!(told, [(7, 2)]);
    outbox.delivered(&batch);
    outbox.answered(&root(), news(1, 8), now);
    outbox.settled(&root(), open, &parts, &[1], at(now));
    let batch = outbox.take(1, at(now)).remove(0);
    assert!(!batch.renew && batch.claims.is_empty());
    assert_eq!(batch.moves[0].0.generation, 8);
    // Who was not heard of for long is left alone.
    outbox.delivered(&batch);
    outbox.reconnected(now + RECENT);
    assert!(outbox.is_empty());
}

#[test]
fn what_was_admitted_without_asking_is_claimed_once_redis_is_there() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    let parts = [Part {
        counter: daily("day", 1),
        demand: 3,
    }];
    let [ended, open] = [(); 2].map(|()| outbox.assumed(&root(), &parts));
    outbox.settled(&root(), ended, &parts, &[2], away(now));
    outbox.reconnected(now);
    let batch = outbox.take(1, away(now)).remove(0);
    assert_eq!(batch.claims, [(Arc::from("day"), 3)]);
    assert_eq!((batch.moves[0].1.release, batch.moves[0].1.used), (0, 2));
    outbox.delivered(&batch);
    outbox.answered(&root(), news(1, batch.generation), now);
    // While Redis is there, but was too slow for this one.
    let late = outbox.assumed(&root(), &parts);
    let next = outbox.take(1, at(now)).remove(0);
    assert_eq!((next.renew, next.claims.len()), (false, 1));
    outbox.delivered(&next);
    for ticket in [open, late] {
        outbox.settled(&root(), ticket, &parts, &[1], at(now));
    }
    let last = outbox.take(1, at(now)).remove(0);
    let (key, told) = &last.moves[0];
    assert_eq!(
        (key.generation, told.release, told.used),
        (batch.generation, 6, 2)
    );
    assert_eq!(outbox.open(), 0);
}

#[test]
fn a_rejected_batch_loses_its_use_and_what_is_held_is_stated_anew_later() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    let parts = [Part {
        counter: daily("day", 1),
        demand: 3,
    }];
    let [ended, open] = [(); 2].map(|()| outbox.granted(&root(), 7, &parts, now));
    outbox.answered(&root(), news(1, 7), now);
    outbox.settled(&root(), ended, &parts, &[2], at(now));
    let given_up = Abandoned {
        id: "x".into(),
        held: Vec::new(),
    };
    outbox.abandoned(&root(), given_up.clone());
    let batch = outbox.take(1, at(now)).remove(0);
    outbox.rejected(&batch);
    assert_eq!((outbox.lost(), outbox.take(1, at(now)).len()), (1, 0));
    outbox.signs(Duration::from_secs(3), now);
    let again = outbox.take(1, at(now)).remove(0);
    assert!(again.renew && again.moves.is_empty());
    assert_eq!(again.claims, [(Arc::from("day"), 3)]);
    assert_eq!(again.abandoned, [given_up]);
    outbox.delivered(&again);
    outbox.settled(&root(), open, &parts, &[1], at(now));
    assert_eq!(outbox.len(), 1);
}
