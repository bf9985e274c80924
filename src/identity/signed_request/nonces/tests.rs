use std::sync::Barrier;

use proptest::prelude::*;

use super::*;

const WINDOW: Window = Window {
    past: 300,
    future: 30,
};
const NOW: i64 = 1_767_225_600;

fn roomy() -> Nonces {
    Nonces::new(1_000_000, 1_000_000)
}

/// A claim by key "a" with a timestamp of this very moment.
fn claim(nonces: &Nonces, nonce: &str, now: i64) -> Claim {
    nonces.claim("a", nonce, now, WINDOW, now)
}

#[test]
fn a_nonce_is_fresh_once() {
    let nonces = roomy();
    assert_eq!(claim(&nonces, "n1", NOW), Claim::Fresh);
    assert_eq!(claim(&nonces, "n1", NOW), Claim::Replayed);
    assert_eq!(claim(&nonces, "n2", NOW), Claim::Fresh);
    assert_eq!(nonces.claim("b", "n1", NOW, WINDOW, NOW), Claim::Fresh);
    // A new signature does not make a used nonce new.
    assert_eq!(claim(&nonces, "n1", NOW + 1), Claim::Replayed);
    assert_eq!(nonces.held(), 3);
}

#[test]
fn key_id_and_nonce_do_not_run_together() {
    let nonces = roomy();
    assert_eq!(nonces.claim("ab", "c", NOW, WINDOW, NOW), Claim::Fresh);
    assert_eq!(nonces.claim("a", "bc", NOW, WINDOW, NOW), Claim::Fresh);
}

#[test]
fn a_nonce_is_remembered_until_its_timestamp_is_stale() {
    for ahead in [-300, -299, 0, 29, 30] {
        let timestamp = NOW + ahead;
        let nonces = roomy();
        assert_eq!(nonces.claim("a", "n", timestamp, WINDOW, NOW), Claim::Fresh);
        for later in NOW..=timestamp + 300 + BUCKET {
            // Others come in between and let old things be forgotten.
            let _ = claim(&nonces, &format!("other {later}"), later);
            assert_eq!(
                nonces.claim("a", "n", timestamp, WINDOW, later),
                Claim::Replayed
            );
        }
    }
}

#[test]
fn room_comes_back_with_time() {
    let nonces = Nonces::new(10, 10);
    for n in 0..10 {
        assert_eq!(claim(&nonces, &n.to_string(), NOW), Claim::Fresh);
    }
    assert_eq!(claim(&nonces, "one more", NOW + 300), Claim::Full);
    assert_eq!(claim(&nonces, "one more", NOW + 300 + BUCKET), Claim::Fresh);
    assert_eq!(nonces.held(), 1);
    // A used nonce may be used again when nobody can replay its first request.
    assert_eq!(claim(&nonces, "0", NOW + 300 + BUCKET), Claim::Fresh);
}

#[test]
fn one_key_cannot_fill_it_for_the_others() {
    let nonces = Nonces::new(100, 3);
    for n in ["1", "2", "3"] {
        assert_eq!(claim(&nonces, n, NOW), Claim::Fresh);
    }
    assert_eq!(claim(&nonces, "4", NOW), Claim::Full);
    assert_eq!(claim(&nonces, "1", NOW), Claim::Replayed);
    assert_eq!(nonces.held(), 3);
    // With so many keys some are in the same shard.
    for key in 0..32 {
        let key = format!("key {key}");
        let claims = ["1", "2", "3", "4"].map(|n| nonces.claim(&key, n, NOW, WINDOW, NOW));
        let expected = [Claim::Fresh, Claim::Fresh, Claim::Fresh, Claim::Full];
        assert_eq!(claims, expected, "{key}");
    }
    assert_eq!(nonces.held(), 99);
}

#[test]
fn all_together_have_an_end_and_silent_keys_make_room() {
    let nonces = Nonces::new(500, 10);
    for key in 0..50 {
        for n in 0..10 {
            let claim = nonces.claim(&key.to_string(), &n.to_string(), NOW, WINDOW, NOW);
            assert_eq!(claim, Claim::Fresh);
        }
    }
    assert_eq!(nonces.claim("new", "n", NOW, WINDOW, NOW), Claim::Full);
    assert_eq!(nonces.claim("0", "0", NOW, WINDOW, NOW), Claim::Replayed);
    // None of the fifty keys says anything more, and still they do not keep their places.
    let later = NOW + 300 + BUCKET;
    assert_eq!(nonces.claim("new", "n", later, WINDOW, later), Claim::Fresh);
    assert_eq!(nonces.held(), 1);
}

#[test]
fn a_clock_that_steps_back_reopens_nothing() {
    let nonces = roomy();
    assert_eq!(claim(&nonces, "n", NOW), Claim::Fresh);
    // The clock runs ahead; what is old by then is forgotten.
    let ahead = NOW + 1000;
    assert_eq!(claim(&nonces, "m", ahead), Claim::Fresh);
    // It is set right, and the first request would be in the window again.
    for now in [NOW, NOW + 100, NOW + 300] {
        assert_eq!(nonces.claim("a", "n", NOW, WINDOW, now), Claim::Replayed);
        assert_eq!(nonces.claim("a", "m", ahead, WINDOW, now), Claim::Replayed);
    }
    // Requests signed since are taken.
    let now = NOW + 2 * BUCKET;
    assert_eq!(claim(&nonces, "new", now), Claim::Fresh);
    assert_eq!(
        nonces.claim("a", "m", ahead, WINDOW, ahead),
        Claim::Replayed
    );
}

#[test]
fn a_clock_far_ahead_for_a_moment_does_not_close_the_door() {
    let nonces = roomy();
    assert_eq!(claim(&nonces, "n", NOW), Claim::Fresh);
    assert_eq!(claim(&nonces, "m", NOW + 2_000_000_000), Claim::Fresh);
    // Only what was really forgotten is refused, and that was from the minute of the first.
    assert_eq!(claim(&nonces, "n", NOW), Claim::Replayed);
    assert_eq!(claim(&nonces, "later", NOW + BUCKET), Claim::Fresh);
}

#[test]
fn a_wider_window_reopens_nothing() {
    let nonces = roomy();
    assert_eq!(claim(&nonces, "n", NOW), Claim::Fresh);
    assert_eq!(claim(&nonces, "m", NOW + 400), Claim::Fresh);
    let wider = Window {
        past: 3600,
        ..WINDOW
    };
    let again = nonces.claim("a", "n", NOW, wider, NOW + 400);
    assert_eq!(again, Claim::Replayed);
}

#[test]
fn odd_times_neither_panic_nor_are_fresh() {
    let nonces = roomy();
    for (timestamp, now) in [
        (i64::MIN, i64::MAX),
        (i64::MAX, i64::MIN),
        (0, i64::MAX),
        (NOW, 0),
    ] {
        assert_eq!(
            nonces.claim("a", "n", timestamp, WINDOW, now),
            Claim::Replayed
        );
    }
    for now in [i64::MIN, -1, 0, i64::MAX] {
        let _ = nonces.claim("a", "n", now, WINDOW, now);
        assert_eq!(nonces.claim("a", "n", now, WINDOW, now), Claim::Replayed);
    }
}

#[test]
fn of_many_threads_exactly_one_has_the_nonce() {
    const THREADS: usize = 8;
    const EACH: usize = 2000;
    let nonces = roomy();
    let together = Barrier::new(THREADS);
    let fresh: usize = std::thread::scope(|scope| {
        let claims = || {
            together.wait();
            let mine = |n: &usize| claim(&nonces, &n.to_string(), NOW) == Claim::Fresh;
            (0..EACH).filter(mine).count()
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(claims)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!((fresh, nonces.held()), (EACH, EACH));
}

#[test]
fn the_bounds_are_exact_among_threads() {
    let nonces = Nonces::new(1000, 200);
    let fresh: usize = std::thread::scope(|scope| {
        let claims = |thread: usize| {
            let nonces = &nonces;
            move || {
                let mine = |n: &usize| {
                    let (key, nonce) = (format!("key {}", n % 8), format!("{thread} {n}"));
                    nonces.claim(&key, &nonce, NOW, WINDOW, NOW) == Claim::Fresh
                };
                (0..2000).filter(mine).count()
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(claims(thread))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!((fresh, nonces.held()), (1000, 1000));
    let per_key = |key: &String| {
        let counts = nonces.shards.iter().flat_map(|shard| {
            let key = nonces.hashers[0].hash_one(key.as_str());
            let shard = shard.lock();
            let counts: Vec<usize> = shard
                .buckets
                .values()
                .filter_map(|bucket| bucket.per_key.get(&key).copied())
                .collect();
            counts
        });
        counts.sum::<usize>()
    };
    let held: Vec<usize> = (0..8)
        .map(|key| format!("key {key}"))
        .map(|key| per_key(&key))
        .collect();
    assert!(held.iter().all(|held| *held <= 200), "{held:?}");
    assert_eq!(held.iter().sum::<usize>(), 1000);
}

/// Key, nonce, timestamp against the clock, and how the clock moves before the claim.
fn steps(moves: std::ops::Range<i64>) -> impl Strategy<Value = Vec<(usize, usize, i64, i64)>> {
    prop::collection::vec((0..3usize, 0..6usize, -330..40i64, moves), 1..200)
}

proptest! {
    /// With a clock that only goes forward, the slow reference knows the answer but for the bucket's
    /// slack.
    #[test]
    fn answers_are_those_of_a_table_that_forgets_nothing(steps in steps(0..120)) {
        let nonces = roomy();
        let mut used: HashMap<(usize, usize), i64> = HashMap::new();
        let mut now = NOW;
        for (key, nonce, offset, step) in steps {
            now += step;
            let timestamp = now + offset;
            let claimed = nonces.claim(&key.to_string(), &nonce.to_string(), timestamp, WINDOW, now);
            let before = used.get(&(key, nonce)).copied();
            let alive = before.is_some_and(|before| before + 300 >= now);
            let lingers = before.is_some_and(|before| before + 300 + BUCKET > now);
            match claimed {
                Claim::Fresh => prop_assert!(!alive && WINDOW.within(timestamp, now).is_ok()),
                Claim::Replayed => prop_assert!(lingers || WINDOW.within(timestamp, now).is_err()),
                Claim::Full => prop_assert!(false, "there was room"),
            }
            if claimed == Claim::Fresh {
                used.insert((key, nonce), timestamp);
            }
        }
    }

    /// Whatever the clock does. (A nonce that was forgotten may come back in a request that was
    /// signed anew; its first request may not.)
    #[test]
    fn no_clock_makes_a_request_fresh_twice(steps in steps(-500..500), small: bool) {
        let nonces = if small { Nonces::new(8, 4) } else { roomy() };
        let mut used = HashSet::new();
        let mut sent: Vec<(usize, usize, i64)> = Vec::new();
        let mut now = NOW;
        for (key, nonce, offset, step) in steps {
            now += step;
            sent.push((key, nonce, now + offset));
            // The newest request, and the last forty sent once more.
            for request in sent.iter().rev().take(40).copied() {
                let (key, nonce, timestamp) = request;
                let claimed = nonces.claim(&key.to_string(), &nonce.to_string(), timestamp, WINDOW, now);
                prop_assert!(claimed != Claim::Fresh || used.insert(request));
                prop_assert!(!small || nonces.held() <= 8);
            }
        }
    }
}
