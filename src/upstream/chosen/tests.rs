use super::super::balance::Standing;
use super::super::breaker::{Ended, State};
use super::super::lane::{NoChoice, Wish};
use super::super::pool::Registry;
use super::super::queue::tests::{lanes, upstream};
use super::*;
use crate::config::settings::{Outlier, TenantId, Upstream};

const SECOND: Duration = Duration::from_secs(1);

fn with_rules(accounts: usize, endpoints: usize) -> Upstream {
    let mut settings = upstream(&vec![100; accounts], &vec![None; endpoints]);
    settings.outlier = Some(Outlier::default());
    settings.breaker = Some(Breaker::default());
    settings
}

fn lane(settings: Upstream) -> Arc<Lane> {
    let [lane, _] = lanes(&Registry::default(), settings, 0);
    lane
}

fn failed(class: FailureClass) -> Outcome {
    Outcome::Failed {
        class,
        status: None,
        retry_after: None,
    }
}

fn refused(status: u16) -> Outcome {
    Outcome::Failed {
        class: FailureClass::AccountRefused,
        status: Some(status),
        retry_after: None,
    }
}

/// Only this account will do.
fn at(account: usize) -> Wish {
    Wish {
        pinned: Some(account),
        ..Wish::default()
    }
}

fn send(lane: &Arc<Lane>, account: usize, outcome: Outcome, now: Instant) {
    let mut chosen = lane.choose(&at(account), now).unwrap();
    assert_eq!(chosen.account, account);
    chosen.report(outcome, now);
}

fn account(lane: &Lane, index: usize) -> &'static str {
    lane.pool.accounts[index].state.condition.shown().state
}

fn endpoint(lane: &Lane, index: usize) -> &'static str {
    lane.pool.endpoints[index].state.condition.shown().state
}

/// Each account in turn.
fn send_to_all(lane: &Arc<Lane>, outcome: Outcome, times: usize, now: Instant) {
    for _ in 0..times {
        for account in 0..lane.width() {
            if lane.choose(&at(account), now).is_ok() {
                send(lane, account, outcome, now);
            }
        }
    }
}

#[test]
fn an_account_that_fails_where_others_succeed_leaves_and_comes_back_by_a_probe() {
    let lane = lane(with_rules(3, 1));
    let now = Instant::now();
    send_to_all(&lane, Outcome::Complete, 2, now);
    for _ in 0..5 {
        send(&lane, 1, failed(FailureClass::ServerError), now);
    }
    assert_eq!(account(&lane, 1), "failing");
    assert_eq!((account(&lane, 0), endpoint(&lane, 0)), ("good", "healthy"));
    let closed = lane.choose(&at(1), now).map(|_| ()).unwrap_err();
    assert!(matches!(closed, NoChoice::Closed { retry_in } if retry_in >= 2 * SECOND));
    assert!(lane.choose(&Wish::default(), now).is_ok());
    let later = now + 7 * SECOND;
    lane.pump(later);
    let mut probe = lane.choose(&at(1), later).unwrap();
    assert!(probe.is_probe());
    assert!(lane.choose(&at(1), later).is_err());
    probe.report(Outcome::FirstContent, later);
    assert_eq!(account(&lane, 1), "ramping");
    assert!(!probe.is_probe());
    probe.report(Outcome::Complete, later);
    lane.pump(later + 10 * SECOND);
    assert_eq!(account(&lane, 1), "good");
}

#[test]
fn a_probe_whose_client_left_makes_room_for_the_next() {
    let lane = lane(with_rules(2, 1));
    let now = Instant::now();
    send(&lane, 0, refused(401), now);
    assert_eq!(account(&lane, 0), "dead");
    let later = now + 7 * SECOND;
    drop(lane.choose(&at(0), later).unwrap());
    let mut probe = lane.choose(&at(0), later).unwrap();
    probe.report(refused(402), later);
    assert_eq!(account(&lane, 0), "unpaid");
}

#[test]
fn the_providers_verdict_holds_without_rules_and_for_the_last_account_too() {
    let lane = lane(upstream(&[5], &[None]));
    let now = Instant::now();
    for _ in 0..50 {
        send(&lane, 0, failed(FailureClass::ServerError), now);
    }
    assert_eq!((account(&lane, 0), endpoint(&lane, 0)), ("good", "healthy"));
    send(&lane, 0, refused(402), now);
    assert_eq!(account(&lane, 0), "unpaid");
    let closed = lane.choose(&Wish::default(), now).map(|_| ()).unwrap_err();
    assert!(matches!(closed, NoChoice::Closed { .. }));
    let later = now + 40 * SECOND;
    send(&lane, 0, Outcome::Complete, later);
    assert_eq!(account(&lane, 0), "good");
}

#[test]
fn when_all_fail_alike_the_breaker_opens_and_the_accounts_are_forgiven() {
    for class in [
        FailureClass::Unavailable,
        FailureClass::Reset,
        FailureClass::Garbage,
    ] {
        all_fail_alike(class);
    }
}

fn all_fail_alike(class: FailureClass) {
    let lane = lane(with_rules(3, 1));
    let now = Instant::now();
    send_to_all(&lane, failed(class), 7, now);
    assert_eq!([0, 1, 2].map(|index| account(&lane, index)), ["good"; 3]);
    let (_, shown) = lane.breakers().next().unwrap();
    assert!(matches!(shown.state, State::Open { .. }) && !shown.for_one);
    assert!(
        lane.pool
            .accounts
            .iter()
            .all(|it| it.state.condition.look(now).tally.bad == 0)
    );
    let closed = lane.choose(&Wish::default(), now).map(|_| ()).unwrap_err();
    assert!(matches!(closed, NoChoice::Closed { retry_in } if retry_in <= 6 * SECOND));
    let later = now + 6 * SECOND;
    let mut probes: Vec<_> = (0..3)
        .map(|index| lane.choose(&at(index), later).unwrap())
        .collect();
    assert!(lane.choose(&Wish::default(), later).is_err());
    for probe in &mut probes {
        probe.report(Outcome::FirstContent, later);
        probe.report(Outcome::Complete, later);
    }
    assert_eq!(lane.breakers().next().unwrap().1.state, State::Closed);
}

#[test]
fn attempts_that_were_under_way_when_an_account_left_do_not_open_the_breaker() {
    let lane = lane(with_rules(3, 1));
    let now = Instant::now();
    send_to_all(&lane, Outcome::Complete, 2, now);
    let under_way = (0..50).map(|_| lane.choose(&at(0), now).unwrap());
    let mut under_way: Vec<_> = under_way.collect();
    for chosen in &mut under_way {
        chosen.report(failed(FailureClass::Cut), now);
    }
    assert_eq!(account(&lane, 0), "failing");
    assert_eq!(endpoint(&lane, 0), "healthy");
    assert_eq!(lane.breakers().next().unwrap().1.state, State::Closed);
}

#[test]
fn what_an_account_that_left_did_is_forgiven_the_breakers_of_all_models() {
    let registry = Registry::default();
    let [first, second] = lanes(&registry, with_rules(3, 1), 0);
    let now = Instant::now();
    send_to_all(&first, Outcome::Complete, 2, now);
    for _ in 0..4 {
        send(&first, 1, failed(FailureClass::Cut), now);
    }
    let rules = second.pool.settings.breaker.clone().unwrap();
    let breaker = &second.breakers[0];
    let bad = Ended {
        caller: None,
        good: false,
    };
    let fail = |times: u32| {
        (0..times).any(|_| {
            let pass = breaker.admit(None, now, &rules).unwrap();
            breaker.record(pass, bad, now, &rules)
        })
    };
    assert!(!fail(rules.min_requests - 1));
    send(&first, 1, failed(FailureClass::Cut), now);
    assert_eq!(account(&first, 1), "failing");
    assert!(!fail(rules.min_requests - 1));
    assert!(fail(1));
}

#[test]
fn no_more_than_the_share_leave_for_failing() {
    let lane = lane(with_rules(4, 1));
    let now = Instant::now();
    send_to_all(&lane, Outcome::Complete, 20, now);
    for index in [0, 1, 2] {
        for _ in 0..6 {
            let _ = lane.choose(&at(index), now).map(|mut chosen| {
                chosen.report(failed(FailureClass::Reset), now);
            });
        }
    }
    let states = [0, 1, 2, 3].map(|index| account(&lane, index));
    assert_eq!(states, ["failing", "failing", "good", "good"]);
    // The provider's word is not bounded by it.
    send(&lane, 2, refused(403), now);
    assert_eq!(account(&lane, 2), "dead");
}

#[test]
fn connections_that_fail_take_an_endpoint_out_and_say_nothing_of_accounts() {
    let mut settings = with_rules(2, 2);
    settings.breaker = None;
    let lane = lane(settings);
    let now = Instant::now();
    let mut beside = Wish::default();
    beside.tried.endpoints.push(1);
    for _ in 0..3 {
        let mut chosen = lane.choose(&beside, now).unwrap();
        chosen.report(failed(FailureClass::Connect), now);
    }
    assert_eq!(
        [0, 1].map(|index| endpoint(&lane, index)),
        ["ejected", "healthy"]
    );
    let looks = [0, 1].map(|index| lane.pool.accounts[index].state.condition.look(now));
    assert!(
        looks
            .iter()
            .all(|look| look.tally.total() == 0 && look.streak == 0)
    );
    assert_eq!(lane.choose(&Wish::default(), now).unwrap().endpoint, 1);
}

#[test]
fn whoever_is_tried_out_has_all_the_time_where_nobody_could_take_over() {
    let now = Instant::now();
    let hour = Duration::from_secs(3_600);
    let lane = lane(with_rules(2, 1));
    let condition = |index: usize| &lane.pool.accounts[index].state.condition;
    condition(0).leave(Reason::Failures, "", now, lane.pool.terms);
    assert!(lane.probe_time(0, now) < hour);
    condition(1).leave(Reason::Failures, "", now, lane.pool.terms);
    assert_eq!(lane.probe_time(0, now), hour);
    let alone = self::lane(with_rules(2, 1));
    let slot = &alone.pool.endpoints[0].state.condition;
    slot.leave(Reason::Failures, "", now, alone.pool.terms);
    assert_eq!(alone.probe_time(0, now), hour);
}

#[test]
fn a_429_rests_the_model_and_is_no_failure() {
    let lane = lane(with_rules(2, 1));
    let now = Instant::now();
    let limited = Outcome::Failed {
        class: FailureClass::RateLimited,
        status: Some(429),
        retry_after: Some(7 * SECOND),
    };
    for _ in 0..6 {
        let mut chosen = lane.choose(&at(0), now).unwrap();
        chosen.report(limited, now);
    }
    let rests: Vec<_> = lane.rests(now + 6 * SECOND).collect();
    assert_eq!((rests, account(&lane, 0)), (vec![true, false], "good"));
}

#[test]
fn an_account_that_falls_silent_leaves_while_others_answer() {
    let lane = lane(with_rules(3, 1));
    let now = Instant::now();
    let streamed = |account| Wish {
        streamed: true,
        ..at(account)
    };
    let mut at_work = Vec::new();
    for _ in 0..5 {
        for index in 0..3 {
            let mut chosen = lane.choose(&streamed(index), now).unwrap();
            if index == 0 {
                at_work.push(chosen);
            } else {
                chosen.report(Outcome::FirstContent, now + SECOND / 2);
                chosen.report(Outcome::Complete, now + SECOND);
            }
        }
    }
    lane.pump(now + 2 * SECOND);
    assert_eq!(account(&lane, 0), "good");
    lane.pump(now + 3 * SECOND);
    assert_eq!(account(&lane, 0), "failing");
    let shown = lane.pool.accounts[0].state.condition.shown();
    assert_eq!(shown.reason, Some(Reason::Slow));
    // A probe that is as slow is no recovery.
    let later = now + 10 * SECOND;
    for (after, took, expected) in [(0, 3 * SECOND, "failing"), (16, SECOND / 2, "ramping")] {
        let later = later + after * SECOND;
        let mut probe = lane.choose(&streamed(0), later).unwrap();
        probe.report(Outcome::FirstContent, later + took);
        assert_eq!(account(&lane, 0), expected);
    }
}

#[test]
fn states_outlive_a_reload() {
    let registry = Registry::default();
    let [lane, _] = lanes(&registry, with_rules(2, 1), 0);
    let now = Instant::now();
    send(&lane, 0, refused(401), now);
    registry.account("u", "a1").unwrap().drain(true);
    let url = lane.pool.endpoints[0].settings.url.clone();
    let [newer, other] = lanes(&registry, with_rules(2, 1), 0);
    for lane in [&newer, &other] {
        assert_eq!(
            [0, 1].map(|index| account(lane, index)),
            ["dead", "drained"]
        );
    }
    registry.endpoint_of("u", &url).unwrap().drain(true);
    let slot = &newer.pool.endpoints[0];
    let terms = newer.pool.watch().terms;
    assert_eq!(slot.state.condition.standing(now, terms), Standing::Closed);
}

#[test]
fn an_account_that_was_refused_is_tried_again_with_another_key() {
    let registry = Registry::default();
    let with_key = |id: &str| {
        let mut settings = with_rules(1, 1);
        id.clone_into(&mut settings.accounts[0].key_id);
        let [lane, _] = lanes(&registry, settings, 0);
        lane
    };
    let lane = with_key("one");
    send(&lane, 0, refused(401), Instant::now());
    for (id, expected) in [("one", "dead"), ("two", "probing")] {
        assert_eq!(account(&with_key(id), 0), expected);
    }
}

#[test]
fn when_only_the_operator_can_open_it_a_while_is_told() {
    let lane = lane(with_rules(1, 1));
    lane.pool.endpoints[0].state.drain(true);
    let now = Instant::now();
    let closed = lane.choose(&Wish::default(), now).map(|_| ()).unwrap_err();
    let retry_in = 30 * SECOND;
    assert_eq!(closed, NoChoice::Closed { retry_in });
    // Who has tried all that is there is told that, and not to wait.
    lane.pool.endpoints[0].state.drain(false);
    let mut tried = Wish::default();
    tried.tried.accounts.push(0);
    let none = lane.choose(&tried, now).map(|_| ()).unwrap_err();
    assert_eq!(none, NoChoice::Exhausted);
}

#[test]
fn what_one_tenant_asks_for_closes_an_endpoint_to_nobody_else() {
    let lane = lane(with_rules(1, 1));
    let now = Instant::now();
    let of = |name| Wish {
        caller: Some(Caller::of(&TenantId::new(name))),
        ..Wish::default()
    };
    for _ in 0..20 {
        let mut chosen = lane.choose(&of("bad"), now).unwrap();
        chosen.report(failed(FailureClass::ServerError), now);
    }
    assert!(lane.choose(&of("bad"), now).is_err());
    assert!(lane.choose(&of("good"), now).is_ok());
    assert!(lane.breakers().all(|(_, shown)| shown.for_one));
}

/// A thousand requests a second from `from` on, each tried again elsewhere until it is served.
/// Says how many attempts each account had.
fn drive(
    lane: &Arc<Lane>,
    from: Instant,
    seconds: u32,
    goes: impl Fn(usize) -> Outcome,
) -> Vec<u32> {
    let mut attempts = vec![0; lane.width()];
    for tick in 0..seconds * 100 {
        let now = from + tick * Duration::from_millis(10);
        if tick % 25 == 0 {
            lane.pump(now);
        }
        for _ in 0..10 {
            let mut wish = Wish::default();
            loop {
                let mut chosen = lane.choose(&wish, now).expect("nobody is left");
                let outcome = goes(chosen.account);
                attempts[chosen.account] += 1;
                wish.tried.accounts.push(chosen.account);
                if outcome == Outcome::Complete {
                    chosen.report(Outcome::FirstContent, now);
                }
                chosen.report(outcome, now);
                if outcome == Outcome::Complete {
                    break;
                }
            }
        }
    }
    attempts
}

#[test]
fn one_bad_account_of_three_gets_hardly_any_attempts_and_is_back_soon_after_it_is_well() {
    for fault in [
        failed(FailureClass::ServerError),
        failed(FailureClass::Reset),
        failed(FailureClass::Garbage),
        failed(FailureClass::Cut),
        failed(FailureClass::Deadline),
        refused(401),
        refused(402),
    ] {
        let lane = lane(with_rules(3, 1));
        let start = Instant::now();
        let well = |_| Outcome::Complete;
        drive(&lane, start, 1, well);
        let ill = |account| match account {
            1 => fault,
            _ => Outcome::Complete,
        };
        let attempts = drive(&lane, start + SECOND, 5, ill);
        let all: u32 = attempts.iter().sum();
        assert!(attempts[1] * 50 < all, "{fault:?}: {attempts:?}");
        assert_eq!([0, 2].map(|index| account(&lane, index)), ["good"; 2]);
        assert_eq!(endpoint(&lane, 0), "healthy");
        assert_eq!(lane.breakers().next().unwrap().1.state, State::Closed);
        // Twice the first pause and a fifth at most, then the ramp.
        drive(&lane, start + 6 * SECOND, 23, well);
        assert_eq!(account(&lane, 1), "good", "{fault:?}");
        let attempts = drive(&lane, start + 29 * SECOND, 1, well);
        assert!(attempts[1] > 250, "{fault:?}: {attempts:?}");
    }
}

#[test]
fn when_all_fail_little_is_sent_and_all_are_used_again_once_it_is_over() {
    let lane = lane(with_rules(3, 1));
    let start = Instant::now();
    let mut sent = 0;
    for tick in 0..3_000 {
        let now = start + tick * Duration::from_millis(10);
        if let Ok(mut chosen) = lane.choose(&Wish::default(), now) {
            chosen.report(failed(FailureClass::Unavailable), now);
            sent += 1;
        }
    }
    // Until it opened, and a probe or so each five seconds.
    assert!(sent < 40, "{sent}");
    let later = start + 40 * SECOND;
    assert!(
        drive(&lane, later, 1, |_| Outcome::Complete)
            .iter()
            .all(|count| *count > 250)
    );
}

#[test]
fn a_stream_gives_up_waiting_for_a_slow_account_while_there_is_another_and_a_retry() {
    let lane = lane(with_rules(3, 1));
    let now = Instant::now();
    let streamed = Wish {
        streamed: true,
        ..at(1)
    };
    let waiting = lane.choose(&streamed, now).unwrap();
    let stuck = waiting.stuck().unwrap();
    let (rules, untried) = (Retry::default(), Tried::default());
    assert!(!stuck.gives_up(&untried, now, &rules));
    let condition = &lane.pool.accounts[1].state.condition;
    condition.leave(Reason::Slow, "", now, lane.pool.terms);
    assert!(stuck.gives_up(&untried, now, &rules));
    let both = Tried {
        accounts: vec![0, 2],
        ..Tried::default()
    };
    assert!(!stuck.gives_up(&both, now, &rules));
    let none = Retry {
        budget_percent: 0,
        budget_reserve: 0,
        ..rules
    };
    assert!(!stuck.gives_up(&untried, now, &none));
    assert!(lane.choose(&at(0), now).unwrap().stuck().is_none());
}
