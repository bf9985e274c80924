use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// Neither shorter nor longer.
const EVEN: u64 = 200;

fn rules() -> Rules {
    Rules::default()
}

fn ended(good: bool) -> Ended {
    Ended { caller: None, good }
}

/// Sends one of this tenant through.
fn send_of(breaker: &mut Breaker, name: &str, good: bool, now: Instant) -> bool {
    let caller = Some(Caller::of(&TenantId::new(name)));
    breaker.advance(now);
    let pass = breaker.admit(caller, now, &rules());
    if let Some(pass) = pass {
        breaker.record(pass, Ended { caller, good }, now, &rules(), EVEN);
    }
    pass.is_some()
}

#[test]
fn one_tenant_alone_can_close_an_endpoint_to_itself_only() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    for index in 0..40 {
        send_of(&mut breaker, "bad", false, now);
        send_of(&mut breaker, "good", index % 5 != 0, now);
    }
    assert!(matches!(breaker.state(), State::Open { .. }));
    assert!(!send_of(&mut breaker, "bad", true, now));
    for _ in 0..9 {
        assert!(send_of(&mut breaker, "good", true, now));
    }
    // Its own probes open it again.
    let later = now + 6 * SECOND;
    for good in [true, true, true] {
        assert!(send_of(&mut breaker, "bad", good, later));
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn when_the_others_fail_as_well_it_is_not_the_tenant() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    for _ in 0..20 {
        send_of(&mut breaker, "first", false, now);
    }
    let mut let_through = 0;
    for _ in 0..30 {
        let_through += u32::from(send_of(&mut breaker, "second", false, now));
    }
    assert_eq!(let_through, rules().min_requests);
    assert!(!send_of(&mut breaker, "third", true, now));
    // Failures of many are nobody's.
    let mut breaker = Breaker::new(now);
    for index in 0..20 {
        send_of(&mut breaker, &format!("t{}", index % 3), false, now);
    }
    assert!(!send_of(&mut breaker, "another", true, now));
}

/// Sends one through.
fn send(breaker: &mut Breaker, good: bool, now: Instant) -> Option<Change> {
    breaker.advance(now);
    let pass = breaker.admit(None, now, &rules()).unwrap();
    breaker.record(pass, ended(good), now, &rules(), EVEN)
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(now);
    for _ in 0..20 {
        send(&mut breaker, false, now);
        if breaker.state() != State::Closed {
            break;
        }
    }
    assert!(matches!(breaker.state(), State::Open { .. }));
    breaker
}

#[test]
fn it_opens_above_the_share_once_enough_was_seen() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    for index in 0..21 {
        assert_eq!(send(&mut breaker, index % 2 == 0, now), None);
    }
    assert_eq!(send(&mut breaker, false, now), None);
    let change = send(&mut breaker, false, now).unwrap();
    assert_eq!(change.reason, Reason::Errors);
    assert!(breaker.admit(None, now, &rules()).is_none());
    assert_eq!(breaker.opens_in(None, now, &rules()), 5 * SECOND);
}

#[test]
fn it_closes_after_as_many_successes_as_it_lets_through() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + 5 * SECOND;
    assert_eq!(
        breaker.advance(later).map(|it| it.to.as_str()),
        Some("half_open")
    );
    let passes = [(); 3].map(|()| breaker.admit(None, later, &rules()).unwrap());
    assert!(breaker.admit(None, later, &rules()).is_none());
    let [first, second, third] = passes;
    assert_eq!(
        breaker.record(first, ended(true), later, &rules(), EVEN),
        None
    );
    assert_eq!(
        breaker.record(second, ended(true), later, &rules(), EVEN),
        None
    );
    let closed = breaker.record(third, ended(true), later, &rules(), EVEN);
    assert_eq!(closed.map(|it| it.to), Some(State::Closed));
    // What it opened for is forgotten.
    assert_eq!(send(&mut breaker, false, later), None);
}

#[test]
fn one_failure_opens_it_again_and_the_others_that_were_let_through_no_longer_count() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + 5 * SECOND;
    breaker.advance(later);
    let [first, second, third] = [(); 3].map(|()| breaker.admit(None, later, &rules()).unwrap());
    breaker.give_back(first);
    let again = breaker
        .record(second, ended(false), later, &rules(), EVEN)
        .unwrap();
    assert_eq!(again.reason, Reason::Probe);
    assert_eq!(
        breaker.record(third, ended(true), later, &rules(), EVEN),
        None
    );
    assert!(matches!(breaker.state(), State::Open { .. }));
}

#[test]
fn probes_that_show_nothing_for_long_do_not_keep_the_next_from_being_sent() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + 5 * SECOND;
    breaker.advance(later);
    let _silent = [(); 3].map(|()| breaker.admit(None, later, &rules()).unwrap());
    let standing = |breaker: &Breaker, at| breaker.standing(None, at, &rules());
    let closed = later + PROBE_COUNTS - SECOND;
    assert_eq!(standing(&breaker, closed), Standing::Closed);
    let later = later + PROBE_COUNTS;
    assert_eq!(standing(&breaker, later), Standing::Probe);
    assert!(breaker.admit(None, later, &rules()).is_some());
    assert!(breaker.admit(None, later, &rules()).is_none());
}

proptest! {
    /// Closed, open, half open, and from there to either: never another way.
    #[test]
    fn no_state_is_skipped(
        script in prop::collection::vec((0u8..4, 0usize..6, 0u64..4_000), 1..300),
        seed: u64,
    ) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        let mut under_way: Vec<Pass> = Vec::new();
        let rules = Rules { min_requests: 3, ..rules() };
        for (what, index, millis) in script {
            let before = breaker.state().as_str();
            match what {
                0 => {
                    now += Duration::from_millis(millis);
                    breaker.advance(now);
                }
                1 => {
                    let fresh = now - breaker.probed < PROBE_COUNTS;
                    let taken = fresh && breaker.probing >= rules.probes;
                    let pass = breaker.admit(None, now, &rules);
                    prop_assert!(!(taken && pass.is_some_and(Pass::is_probe)));
                    under_way.extend(pass);
                }
                2 if index < under_way.len() => {
                    breaker.give_back(under_way.swap_remove(index));
                }
                _ if index < under_way.len() => {
                    let pass = under_way.swap_remove(index);
                    let change = breaker.record(pass, ended(millis % 3 == 0), now, &rules, seed);
                    prop_assert_eq!(change.is_some(), before != breaker.state().as_str());
                }
                _ => {}
            }
            let after = breaker.state().as_str();
            prop_assert!(before == after || matches!(
                (before, after),
                ("closed", "open") | ("open", "half_open")
                    | ("half_open", "open") | ("half_open", "closed")
            ));
        }
    }
}

/// Open for all.
fn open_for_all(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(now);
    for _ in 0..rules().min_requests {
        send_of(&mut breaker, "one", false, now);
        send_of(&mut breaker, "other", false, now);
    }
    assert!(matches!(breaker.state(), State::Open { .. }) && !breaker.is_for_one());
    breaker
}

#[test]
fn a_tenant_whose_requests_fail_everywhere_keeps_an_endpoint_from_nobody_else() {
    let start = Instant::now();
    let mut breaker = open_for_all(start);
    let now = start + 6 * SECOND;
    assert!(send_of(&mut breaker, "bad", false, now));
    for _ in 0..10 {
        assert!(!send_of(&mut breaker, "bad", false, now));
    }
    for _ in 0..3 {
        assert!(send_of(&mut breaker, "good", true, now));
    }
    // Open for the one, closed for the others.
    assert!(breaker.is_for_one() && !send_of(&mut breaker, "bad", true, now));
    assert!(send_of(&mut breaker, "good", true, now));
}

#[test]
fn two_tenants_whose_probes_fail_open_it_again() {
    let start = Instant::now();
    let mut breaker = open_for_all(start);
    let now = start + 6 * SECOND;
    assert!(send_of(&mut breaker, "one", false, now));
    assert!(send_of(&mut breaker, "other", false, now));
    assert!(matches!(breaker.state(), State::Open { .. }) && !breaker.is_for_one());
    assert!(!send_of(&mut breaker, "third", true, now));
}

#[test]
fn where_there_is_one_tenant_it_is_let_try_again_after_a_while() {
    let start = Instant::now();
    let mut breaker = open_for_all(start);
    let now = start + 6 * SECOND;
    assert!(send_of(&mut breaker, "one", false, now));
    assert!(!send_of(&mut breaker, "one", true, now + 4 * SECOND));
    for _ in 0..3 {
        assert!(send_of(&mut breaker, "one", true, now + 6 * SECOND));
    }
    assert_eq!(breaker.state(), State::Closed);
}
