use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const TERMS: Terms = Terms {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(30),
    probes: 2,
    ramp: Duration::from_secs(10),
};
/// Neither shorter nor longer.
const EVEN: u64 = JITTER;

fn out(now: Instant) -> Gate {
    let mut gate = Gate::new(now);
    let _ = gate.leave(Reason::Failures, now, TERMS, EVEN);
    gate
}

#[test]
fn it_is_out_then_tried_then_back_by_a_ramp() {
    let start = Instant::now();
    let mut gate = out(start);
    assert_eq!(gate.standing(start + 4 * SECOND, TERMS), Standing::Closed);
    assert_eq!(gate.advance(start + 4 * SECOND), None);
    assert!(gate.admit(start, TERMS).is_none());
    assert_eq!(gate.opens_in(start + 2 * SECOND, TERMS), Some(3 * SECOND));
    let now = start + 5 * SECOND;
    assert_eq!(gate.standing(now, TERMS), Standing::Probe);
    assert_eq!(gate.advance(now).map(|it| it.to), Some(Phase::HalfOpen));
    let probe = gate.admit(now, TERMS).unwrap();
    assert!(probe.is_probe());
    let change = gate.succeeded(probe, now, TERMS).unwrap();
    assert!(matches!(change.to, Phase::Ramp { .. }));
    let share = |after: u64| gate.standing(now + Duration::from_millis(after), TERMS);
    for (after, permille) in [(0, 100), (5_000, 550), (10_000, 1_000)] {
        assert_eq!(share(after), Standing::Open { permille });
    }
    assert!(!gate.admit(now, TERMS).unwrap().is_probe());
    let full = gate.advance(now + 10 * SECOND).unwrap();
    assert_eq!((full.to, full.reason), (Phase::In, Reason::Time));
    assert_eq!(gate.reason(), None);
}

#[test]
fn so_many_try_it_at_one_time_and_one_that_shows_nothing_makes_room() {
    let start = Instant::now();
    let mut gate = out(start);
    gate.advance(start + 5 * SECOND);
    let first = gate.admit(start + 5 * SECOND, TERMS).unwrap();
    let _second = gate.admit(start + 5 * SECOND, TERMS).unwrap();
    assert!(gate.admit(start + 5 * SECOND, TERMS).is_none());
    assert_eq!(gate.standing(start + 5 * SECOND, TERMS), Standing::Closed);
    gate.give_back(first);
    assert!(gate.admit(start + 5 * SECOND, TERMS).is_some());
}

#[test]
fn probes_that_show_nothing_for_long_do_not_keep_the_next_from_being_sent() {
    let start = Instant::now() + 5 * SECOND;
    let mut gate = out(start - 5 * SECOND);
    gate.advance(start);
    let silent = [(); 2].map(|()| gate.admit(start, TERMS).unwrap());
    let closed = start + PROBE_COUNTS - SECOND;
    assert_eq!(gate.standing(closed, TERMS), Standing::Closed);
    let now = start + PROBE_COUNTS;
    assert_eq!(gate.standing(now, TERMS), Standing::Probe);
    let probe = gate.admit(now, TERMS).unwrap();
    assert!(gate.admit(now, TERMS).is_none());
    silent.into_iter().for_each(|pass| gate.give_back(pass));
    assert!(gate.succeeded(probe, now, TERMS).is_some());
}

#[test]
fn it_doubles_with_each_failed_probe_up_to_the_longest() {
    let mut now = Instant::now();
    let mut gate = out(now);
    for seconds in [5, 10, 20, 30, 30] {
        let closed = now + seconds * SECOND - Duration::from_millis(1);
        assert_eq!(gate.standing(closed, TERMS), Standing::Closed);
        now += seconds * SECOND;
        gate.advance(now);
        let probe = gate.admit(now, TERMS).unwrap();
        let change = gate.failed(probe, now, TERMS, EVEN).unwrap();
        assert_eq!(change.reason, Reason::Probe);
        assert_eq!(gate.reason(), Some(Reason::Failures));
    }
    // Once it was in, it begins anew.
    now += 30 * SECOND;
    gate.advance(now);
    let probe = gate.admit(now, TERMS).unwrap();
    let _ = gate.succeeded(probe, now, TERMS);
    now += TERMS.ramp;
    gate.advance(now);
    let _ = gate.leave(Reason::Failures, now, TERMS, EVEN);
    assert_eq!(gate.opens_in(now, TERMS), Some(5 * SECOND));
}

#[test]
fn whoever_was_let_through_before_it_left_changes_nothing_after() {
    let start = Instant::now();
    let mut gate = Gate::new(start);
    let early = gate.admit(start + 5 * SECOND, TERMS).unwrap();
    let _ = gate.leave(Reason::Failures, start, TERMS, EVEN);
    assert!(!gate.is_current(early));
    gate.advance(start + 5 * SECOND);
    let stale = gate.admit(start + 5 * SECOND, TERMS).unwrap();
    let _ = gate.leave(Reason::Refused, start + 5 * SECOND, TERMS, EVEN);
    gate.advance(start + 30 * SECOND);
    let probes = [(); 2].map(|()| gate.admit(start + 30 * SECOND, TERMS).unwrap());
    gate.give_back(stale);
    assert!(gate.admit(start + 30 * SECOND, TERMS).is_none());
    assert_eq!(gate.succeeded(stale, start + 30 * SECOND, TERMS), None);
    assert!(
        gate.succeeded(probes[0], start + 30 * SECOND, TERMS)
            .is_some()
    );
}

#[test]
fn who_is_out_until_told_otherwise_stays_out() {
    let now = Instant::now();
    let mut gate = Gate::new(now);
    let _ = gate.leave_until(Reason::Checks, None, now);
    let later = now + 10_000 * SECOND;
    assert_eq!(gate.advance(later), None);
    assert_eq!(gate.opens_in(later, TERMS), None);
    let back = gate.welcome(Reason::Checks, later, TERMS).unwrap();
    assert!(matches!(back.to, Phase::Ramp { .. }));
    let at_once = Terms {
        ramp: Duration::ZERO,
        ..TERMS
    };
    let _ = gate.leave_until(Reason::Unpaid, None, now);
    assert_eq!(
        gate.try_now(Reason::Paid, now).map(|it| it.to),
        Some(Phase::HalfOpen)
    );
    assert_eq!(
        gate.welcome(Reason::Checks, now, at_once).map(|it| it.to),
        Some(Phase::In)
    );
}

#[test]
fn not_all_come_back_at_once() {
    let pauses: std::collections::BTreeSet<_> = (0..1_000)
        .map(|seed| jittered(10 * SECOND, seed * 7))
        .collect();
    assert!(pauses.len() > 300);
    assert!(
        pauses
            .iter()
            .all(|pause| (8 * SECOND..=12 * SECOND).contains(pause))
    );
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Ask,
    Good(usize),
    Bad(usize),
    Nothing(usize),
    Leave,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..20_000).prop_map(Step::Wait),
        Just(Step::Ask),
        (0usize..8).prop_map(Step::Good),
        (0usize..8).prop_map(Step::Bad),
        (0usize..8).prop_map(Step::Nothing),
        Just(Step::Leave),
    ]
}

#[test]
fn clients_that_leave_early_do_not_keep_others_from_finding_out() {
    let now = Instant::now() + 5 * SECOND;
    let mut gate = out(now - 5 * SECOND);
    gate.advance(now);
    let admitted = |gate: &mut Gate| {
        let passes: Vec<_> = std::iter::from_fn(|| gate.admit(now, TERMS)).collect();
        passes
    };
    for more in [0, 2, MOST_MORE, MOST_MORE] {
        let passes = admitted(&mut gate);
        let most = TERMS.probes + more;
        assert_eq!(passes.len(), usize::try_from(most).unwrap());
        passes.into_iter().for_each(|pass| gate.give_back(pass));
    }
    // One that shows something makes it as narrow as before.
    let passes = admitted(&mut gate);
    gate.failed(passes[0], now, TERMS, 0);
    let later = now + 100 * SECOND;
    gate.advance(later);
    assert!((0..TERMS.probes).all(|_| gate.admit(later, TERMS).is_some()));
    assert_eq!(gate.admit(later, TERMS), None);
}

proptest! {
    /// Whatever happens in whatever order: no more probes at one time than may, nobody let through
    /// while it is out, no way back but through a probe, and no probe lost for good.
    #[test]
    fn the_way_back_is_never_cut_short(
        script in prop::collection::vec(steps(), 1..200),
        seed: u64,
    ) {
        let mut now = Instant::now();
        let mut gate = Gate::new(now);
        let mut under_way: Vec<Pass> = Vec::new();
        for step in script {
            let before = gate.phase();
            match step {
                Step::Wait(millis) => {
                    now += Duration::from_millis(millis);
                    gate.advance(now);
                }
                Step::Ask => {
                    let fresh = now - gate.probed < PROBE_COUNTS;
                    let most = TERMS.probes + gate.fruitless.min(MOST_MORE);
                    let taken = fresh && gate.probing >= most;
                    let pass = gate.admit(now, TERMS);
                    prop_assert!(!(taken && pass.is_some_and(Pass::is_probe)));
                    let out = matches!(before, Phase::Out { .. });
                    let slipped = out && pass.is_some();
                    prop_assert!(!slipped);
                    under_way.extend(pass);
                }
                Step::Good(index) if index < under_way.len() => {
                    let pass = under_way.swap_remove(index);
                    let change = gate.succeeded(pass, now, TERMS);
                    prop_assert!(change.is_none() || before == Phase::HalfOpen);
                }
                Step::Bad(index) if index < under_way.len() => {
                    let pass = under_way.swap_remove(index);
                    let change = gate.failed(pass, now, TERMS, seed);
                    prop_assert!(change.is_none() || before == Phase::HalfOpen);
                }
                Step::Nothing(index) if index < under_way.len() => {
                    gate.give_back(under_way.swap_remove(index));
                }
                Step::Leave => {
                    let _ = gate.leave(Reason::Errors, now, TERMS, seed);
                }
                _ => {}
            }
            let probing = under_way.iter().filter(|pass| pass.probe && gate.is_current(**pass));
            let probing = u32::try_from(probing.count()).unwrap();
            if gate.phase() == Phase::HalfOpen {
                prop_assert_eq!(gate.probing, probing);
            }
            let into = gate.phase() == Phase::In;
            let by_ramp = matches!(before, Phase::In | Phase::Ramp { .. });
            prop_assert!(!into || by_ramp);
        }
    }
}
