use std::sync::Arc;

use super::super::transitions::Transitions;
use super::*;
use crate::config::settings::UpstreamId;

const SECOND: Duration = Duration::from_secs(1);

fn condition(kind: Kind, now: Instant) -> Condition {
    let teller = Teller {
        kind,
        name: "x".into(),
        transitions: Arc::new(Transitions::new(UpstreamId::new("u"))),
    };
    Condition::new(teller, now)
}

fn rules() -> Outlier {
    Outlier::default()
}

fn fail(condition: &Condition, now: Instant) -> After {
    let rules = rules();
    let pass = condition.admit(false, now, Terms::of(Some(&rules)));
    condition.ended(pass.unwrap(), Verdict::Bad, None, now, Some(&rules))
}

#[test]
fn every_state_has_its_word() {
    let now = Instant::now();
    let rules = rules();
    let terms = Terms::of(Some(&rules));
    for (reason, word) in [
        (Reason::Unpaid, "unpaid"),
        (Reason::Refused, "dead"),
        (Reason::Errors, "failing"),
    ] {
        let account = condition(Kind::Account, now);
        assert_eq!(account.shown().state, "good");
        account.leave(reason, "", now, terms);
        let shown = account.shown();
        assert_eq!((shown.state, shown.reason), (word, Some(reason)));
        let tried = shown.until.unwrap();
        assert!(tried >= now + 2 * SECOND && tried <= now + 4 * SECOND);
        account.advance(false, tried);
        assert_eq!(account.shown().state, "probing");
        let probe = account.admit(false, tried, terms).unwrap();
        let after = account.ended(probe, Verdict::Good, None, tried, Some(&rules));
        assert_eq!((after, account.shown().state), (After::Nothing, "ramping"));
        account.advance(false, tried + rules.ramp);
        assert_eq!(account.shown().state, "good");
    }
    let endpoint = condition(Kind::Endpoint, now);
    endpoint.strain(Some(Reason::Slow), now);
    endpoint.strain(None, now + SECOND);
    assert_eq!(endpoint.shown().state, "degraded");
    let half = Standing::Open { permille: 500 };
    assert_eq!(endpoint.standing(now, terms), half);
    endpoint.leave(Reason::Slow, "", now, terms);
    assert_eq!(endpoint.shown().state, "ejected");
    let all = [ACCOUNT_STATES.as_slice(), &ENDPOINT_STATES].concat();
    assert!(all.contains(&endpoint.shown().state));
}

#[test]
fn who_is_drained_takes_nothing_new_and_stays_as_it_was() {
    let now = Instant::now();
    let terms = Terms::of(None);
    let account = condition(Kind::Account, now);
    account.drain(true, now);
    assert_eq!(account.standing(now, terms), Standing::Closed);
    assert!(account.admit(false, now, terms).is_none());
    assert!(account.look(now).out && account.is_drained());
    assert_eq!(account.opens_in(now, terms), None);
    account.leave(Reason::Refused, "", now, terms);
    assert_eq!(account.shown().state, "drained");
    account.drain(false, now);
    assert_eq!(account.shown().state, "dead");
}

#[test]
fn a_failed_probe_is_no_suspicion_and_one_that_shows_nothing_decides_nothing() {
    let now = Instant::now();
    let rules = rules();
    let terms = Terms::of(Some(&rules));
    let account = condition(Kind::Account, now);
    assert_eq!(fail(&account, now), After::Suspect);
    account.leave(Reason::Failures, "", now, terms);
    // What was seen before is not held against it again.
    assert_eq!(account.look(now).streak, 0);
    let later = now + 6 * SECOND;
    let silent = account.admit(false, later, terms).unwrap();
    account.ended(silent, Verdict::Nothing, None, later, Some(&rules));
    assert_eq!(account.shown().state, "probing");
    assert_eq!(fail(&account, later), After::Left);
    assert_eq!(account.shown().state, "failing");
}

#[test]
fn an_end_that_comes_late_changes_nothing() {
    let now = Instant::now();
    let rules = rules();
    let terms = Terms::of(Some(&rules));
    let account = condition(Kind::Account, now);
    let early = account.admit(false, now, terms).unwrap();
    account.leave(Reason::Failures, "", now, terms);
    assert!(account.is_late(early));
    for verdict in [Verdict::Bad, Verdict::Leave(Reason::Refused)] {
        let after = account.ended(early, verdict, None, now, Some(&rules));
        assert_eq!((after, account.shown().state), (After::Late, "failing"));
    }
}

#[test]
fn stragglers_of_an_outage_do_not_make_who_is_back_slow() {
    let now = Instant::now();
    let rules = rules();
    let terms = Terms::of(Some(&rules));
    let account = condition(Kind::Account, now);
    let early = [(); 10].map(|()| account.admit(true, now, terms).unwrap());
    account.leave(Reason::Slow, "", now, terms);
    let later = now + 20 * SECOND;
    account.advance(false, later);
    let probe = account.admit(true, later, terms).unwrap();
    account.first_content(probe, Some(later), false, later, terms);
    for pass in early {
        account.first_content(pass, Some(now), false, later, terms);
        account.give_back(pass, Some(now));
    }
    assert_eq!(account.shown().state, "ramping");
    assert_eq!(account.look(later + SECOND).pace, None);
    // Nor are they counted off from those who wait now.
    let _now = [(); 3].map(|()| account.admit(true, later, terms).unwrap());
    assert_eq!(account.look(later + SECOND).pace, Some(SECOND));
}

#[test]
fn an_account_without_money_is_tried_again_once_it_has_some() {
    let now = Instant::now();
    let terms = Terms::of(None);
    let account = condition(Kind::Account, now);
    let until = |seconds: u32| Some(now + seconds * SECOND);
    account.leave_until(Reason::Unpaid, "", until(60), now);
    account.leave_until(Reason::Unpaid, "", until(90), now);
    assert_eq!(account.opens_in(now, terms), Some(90 * SECOND));
    account.try_now(&[Reason::Refused], Reason::Paid, now);
    assert_eq!(account.shown().state, "unpaid");
    account.try_now(&[Reason::Unpaid], Reason::Paid, now);
    assert_eq!(account.standing(now, terms), Standing::Probe);
    let counts = account.teller.transitions.counts();
    let words: Vec<_> = counts.iter().map(|(it, count)| (it.to, *count)).collect();
    assert_eq!(words, [("probing", 1), ("unpaid", 1)]);
}
