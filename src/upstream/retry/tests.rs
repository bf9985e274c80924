use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

static NOBODY: Tried = Tried {
    accounts: Vec::new(),
    endpoints: Vec::new(),
    doubted: Vec::new(),
};
const SECOND: Duration = Duration::from_secs(1);

fn among(accounts: usize, endpoints: usize) -> Choice {
    Choice {
        accounts,
        endpoints,
        addresses: 1,
        queue: false,
        rests: false,
    }
}

/// A first attempt with nothing sent, among three accounts and two endpoints.
fn story(class: FailureClass, received: Instant) -> Story<'static> {
    Story {
        cause: Cause::Class(class),
        attempts: 1,
        stale: 0,
        received,
        ends: None,
        content_sent: false,
        repeatable: true,
        client_there: true,
        retry_after: None,
        tried: &NOBODY,
        choice: among(3, 2),
        next_variant: false,
        budget: true,
        random: u64::MAX,
    }
}

fn stopped(verdict: Verdict) -> Option<Stop> {
    match verdict {
        Verdict::Stop(stop) => Some(stop),
        Verdict::Again { .. } => None,
    }
}

fn waited(verdict: Verdict) -> Duration {
    match verdict {
        Verdict::Again { after, .. } => after,
        Verdict::Stop(stop) => panic!("stopped: {}", stop.as_str()),
    }
}

fn goes(verdict: Verdict) -> (Where, Avoid) {
    match verdict {
        Verdict::Again { to, avoid, .. } => (to, avoid),
        Verdict::Stop(stop) => panic!("stopped: {}", stop.as_str()),
    }
}

#[test]
fn a_bad_request_is_never_repeated() {
    for status in [200, 204, 400, 404, 405, 409, 413, 415, 422, 499] {
        assert_eq!(class_of_status(status), None, "{status}");
    }
}

#[test]
fn each_status_has_the_class_of_who_is_to_blame() {
    for (status, class) in [
        (100, FailureClass::Garbage),
        (302, FailureClass::Garbage),
        (401, FailureClass::AccountRefused),
        (402, FailureClass::AccountRefused),
        (403, FailureClass::AccountRefused),
        (408, FailureClass::GatewayTimeout),
        (425, FailureClass::GatewayTimeout),
        (429, FailureClass::RateLimited),
        (500, FailureClass::ServerError),
        (501, FailureClass::ServerError),
        (502, FailureClass::BadGateway),
        (503, FailureClass::Unavailable),
        (504, FailureClass::GatewayTimeout),
        (529, FailureClass::Unavailable),
        (599, FailureClass::ServerError),
    ] {
        assert_eq!(class_of_status(status), Some(class), "{status}");
    }
}

#[test]
fn each_failure_avoids_what_caused_it() {
    let now = Instant::now();
    for (class, avoid) in [
        (FailureClass::Connect, Avoid::Endpoint),
        (FailureClass::Tls, Avoid::Endpoint),
        (FailureClass::AccountRefused, Avoid::Account),
        (FailureClass::RateLimited, Avoid::Limited),
        (FailureClass::Reset, Avoid::Either),
        (FailureClass::Unavailable, Avoid::Either),
        (FailureClass::Garbage, Avoid::Either),
        (FailureClass::Deadline, Avoid::Either),
    ] {
        let verdict = decide(now, &Retry::default(), &story(class, now));
        assert_eq!(goes(verdict), (Where::Other, avoid), "{}", class.as_str());
    }
}

#[test]
fn what_forbids_another_attempt_is_named() {
    let now = Instant::now();
    let plain = story(FailureClass::Unavailable, now);
    for (story, stop) in [
        (
            Story {
                client_there: false,
                ..plain
            },
            Stop::ClientGone,
        ),
        (
            Story {
                content_sent: true,
                ..plain
            },
            Stop::ContentSent,
        ),
        (
            Story {
                repeatable: false,
                ..plain
            },
            Stop::NotRepeatable,
        ),
        (
            Story {
                attempts: 3,
                ..plain
            },
            Stop::Attempts,
        ),
        (
            Story {
                ends: Some(now),
                ..plain
            },
            Stop::Deadline,
        ),
        (
            Story {
                budget: false,
                ..plain
            },
            Stop::Budget,
        ),
    ] {
        assert_eq!(stopped(decide(now, &Retry::default(), &story)), Some(stop));
    }
    let rules = Retry {
        on: BTreeSet::from([FailureClass::Connect]),
        ..Retry::default()
    };
    assert_eq!(stopped(decide(now, &rules, &plain)), Some(Stop::Class));
    let late = now + Retry::default().deadline;
    let verdict = decide(late, &Retry::default(), &plain);
    assert_eq!(stopped(verdict), Some(Stop::Deadline));
}

#[test]
fn a_change_of_account_or_endpoint_waits_only_if_the_upstream_has_trouble() {
    let now = Instant::now();
    let rules = Retry::default();
    for class in FailureClass::ALL {
        let waits = waited(decide(now, &rules, &story(class, now))) > Duration::ZERO;
        let unsuspected = matches!(
            class,
            FailureClass::Connect
                | FailureClass::Tls
                | FailureClass::RateLimited
                | FailureClass::AccountRefused
        );
        assert_eq!(waits, !unsuspected, "{}", class.as_str());
        let second = Story {
            attempts: 2,
            ..story(class, now)
        };
        assert!(waited(decide(now, &rules, &second)) > Duration::ZERO);
    }
}

#[test]
fn the_longest_wait_doubles_up_to_its_bound_and_the_shortest_is_nothing() {
    let now = Instant::now();
    let rules = Retry {
        attempts: u32::MAX,
        ..Retry::default()
    };
    for (attempts, most) in [
        (1, 50),
        (2, 100),
        (3, 200),
        (6, 1_600),
        (7, 2_000),
        (99, 2_000),
    ] {
        let story = Story {
            attempts,
            ..story(FailureClass::Unavailable, now)
        };
        let after = waited(decide(now, &rules, &story));
        let most = Duration::from_millis(most);
        assert!(
            after < most && after + Duration::from_micros(1) > most,
            "{after:?}"
        );
        let lucky = Story { random: 0, ..story };
        assert_eq!(waited(decide(now, &rules, &lucky)), Duration::ZERO);
    }
}

#[test]
fn a_wait_ends_before_the_time_for_retries_and_for_the_request_does() {
    let now = Instant::now();
    let slow = Retry {
        base_backoff: 2 * SECOND,
        ..Retry::default()
    };
    let left = Duration::from_millis(300);
    let nearly = now + slow.deadline - left;
    let plain = story(FailureClass::ServerError, now);
    assert!(waited(decide(nearly, &slow, &plain)) < left);
    let ends = Story {
        ends: Some(now + left),
        ..plain
    };
    assert!(waited(decide(now, &slow, &ends)) < left);
}

#[test]
fn a_retry_after_is_waited_for_where_the_same_account_is_asked_again() {
    let now = Instant::now();
    let rules = Retry::default();
    let told = Story {
        retry_after: Some(SECOND),
        random: 0,
        ..story(FailureClass::RateLimited, now)
    };
    assert_eq!(waited(decide(now, &rules, &told)), Duration::ZERO);
    let alone = Story {
        choice: among(1, 1),
        ..told
    };
    let verdict = decide(now, &rules, &alone);
    assert_eq!(goes(verdict), (Where::Same, Avoid::Nothing));
    assert_eq!(waited(verdict), SECOND);
    // Who was told the same moment does not come in one crowd.
    let spread = Story {
        random: u64::MAX,
        ..alone
    };
    assert!(waited(decide(now, &rules, &spread)) > SECOND);
    let long = Story {
        retry_after: Some(7 * SECOND),
        ..alone
    };
    assert_eq!(stopped(decide(now, &rules, &long)), Some(Stop::ToldToWait));
    let short_of_time = Story {
        ends: Some(now + SECOND / 2),
        ..alone
    };
    let verdict = decide(now, &rules, &short_of_time);
    assert_eq!(stopped(verdict), Some(Stop::Deadline));
}

#[test]
fn an_account_that_rests_is_waited_for_in_the_line_alone() {
    let now = Instant::now();
    let choice = Choice {
        queue: true,
        rests: true,
        ..among(1, 1)
    };
    let story = Story {
        choice,
        attempts: 2,
        retry_after: Some(30 * SECOND),
        ..story(FailureClass::RateLimited, now)
    };
    let verdict = decide(now, &Retry::default(), &story);
    assert_eq!(goes(verdict), (Where::Same, Avoid::Limited));
    assert_eq!(waited(verdict), Duration::ZERO);
}

#[test]
fn whoever_is_alone_is_asked_again_for_what_may_pass() {
    let now = Instant::now();
    for class in FailureClass::ALL {
        let alone = Story {
            choice: among(1, 1),
            ..story(class, now)
        };
        let verdict = decide(now, &Retry::default(), &alone);
        let lasts = matches!(
            class,
            FailureClass::Connect
                | FailureClass::Tls
                | FailureClass::AccountRefused
                | FailureClass::Garbage
                | FailureClass::Deadline
        );
        let stop = lasts.then_some(Stop::NobodyLeft);
        assert_eq!(stopped(verdict), stop, "{}", class.as_str());
        if !lasts {
            assert_eq!(goes(verdict), (Where::Same, Avoid::Nothing));
        }
    }
}

#[test]
fn nobody_bad_among_several_is_asked_again() {
    let now = Instant::now();
    let tried = Tried {
        accounts: vec![0],
        endpoints: Vec::new(),
        doubted: Vec::new(),
    };
    let story = Story {
        attempts: 2,
        tried: &tried,
        choice: among(2, 1),
        ..story(FailureClass::Unavailable, now)
    };
    let verdict = decide(now, &Retry::default(), &story);
    assert_eq!(stopped(verdict), Some(Stop::NobodyLeft));
}

#[test]
fn the_next_variant_is_asked_at_once_where_nobody_else_is_left_or_may_be_asked() {
    let now = Instant::now();
    let alone = Story {
        choice: among(1, 1),
        next_variant: true,
        ..story(FailureClass::Unavailable, now)
    };
    let without_budget = Story {
        choice: among(3, 2),
        budget: false,
        ..alone
    };
    for story in [alone, without_budget] {
        let verdict = decide(now, &Retry::default(), &story);
        assert_eq!(goes(verdict).0, Where::Variant);
        assert_eq!(waited(verdict), Duration::ZERO);
    }
}

#[test]
fn a_dead_pooled_connection_is_free_a_few_times() {
    let now = Instant::now();
    let rules = Retry {
        attempts: 1,
        on: BTreeSet::new(),
        ..Retry::default()
    };
    for stale in 0..=MAX_STALE {
        let story = Story {
            cause: Cause::StaleConnection,
            stale,
            budget: false,
            ..story(FailureClass::Reset, now)
        };
        let free = Verdict::Again {
            to: Where::Same,
            after: Duration::ZERO,
            avoid: Avoid::Nothing,
            counted: false,
        };
        let verdict = decide(now, &rules, &story);
        assert_eq!(verdict == free, stale < MAX_STALE);
    }
}

#[test]
fn an_account_at_its_limit_is_left_out_only_if_it_cannot_be_waited_for() {
    for (queue, rests, accounts, left_out) in [
        (true, true, 2, 0),
        (true, true, 1, 0),
        // It need not rest: another one is better, but it is better than none.
        (true, false, 2, 1),
        (true, false, 1, 0),
        (false, true, 1, 1),
    ] {
        let choice = Choice {
            queue,
            rests,
            ..among(accounts, 1)
        };
        let mut tried = Tried::default();
        set_aside(&mut tried, Avoid::Limited, 0, 0, choice);
        assert_eq!(tried.accounts.len(), left_out);
        set_aside(&mut tried, Avoid::Account, 0, 0, choice);
        assert_eq!(tried.accounts.len(), left_out + 1);
    }
}

#[test]
fn whoever_may_be_to_blame_is_set_aside_with_the_other_if_there_are_others_of_both() {
    let aside = |accounts, endpoints| {
        let mut tried = Tried::default();
        let choice = among(accounts, endpoints);
        set_aside(&mut tried, Avoid::Either, 0, 0, choice);
        (tried.accounts, tried.endpoints, tried.doubted)
    };
    assert_eq!(aside(2, 2), (vec![0], vec![], vec![0]));
    assert_eq!(aside(1, 2), (vec![], vec![0], vec![]));
    let now = Instant::now();
    for (accounts, stop) in [(2, Some(Stop::NobodyLeft)), (3, None)] {
        let tried = Tried {
            accounts: vec![0],
            doubted: vec![0],
            ..Tried::default()
        };
        let second = Story {
            attempts: 2,
            tried: &tried,
            choice: among(accounts, 2),
            ..story(FailureClass::Reset, now)
        };
        assert_eq!(stopped(decide(now, &Retry::default(), &second)), stop);
    }
}

fn class() -> impl Strategy<Value = FailureClass> {
    prop::sample::select(FailureClass::ALL.to_vec())
}

proptest! {
    /// One request's life, with whatever failures: each attempt takes the first that is not set
    /// aside, as the balance does.
    #[test]
    fn no_request_asks_somebody_bad_twice_or_waits_too_long(
        failures in prop::collection::vec((class(), any::<u64>(), 0u64..4_000), 1..8),
        accounts in 1usize..4,
        endpoints in 1usize..4,
        queue in any::<bool>(),
    ) {
        let received = Instant::now();
        let rules = Retry { attempts: 5, ..Retry::default() };
        let (mut now, mut tried) = (received, Tried::default());
        let mut bad = (Vec::new(), Vec::new());
        for (made, (class, random, told)) in (1u32..).zip(failures) {
            let first_but = |tried: &[usize], of: usize| (0..of).find(|it| !tried.contains(it));
            let account = first_but(&tried.accounts, accounts);
            let endpoint = first_but(&tried.endpoints, endpoints);
            // Somebody is there whenever the verdict said so.
            let (account, endpoint) = (account.unwrap(), endpoint.unwrap());
            prop_assert!(!bad.0.contains(&account) && !bad.1.contains(&endpoint));
            let choice = Choice { queue, rests: queue, ..among(accounts, endpoints) };
            let story = Story {
                attempts: made,
                tried: &tried,
                choice,
                retry_after: Some(Duration::from_millis(told)),
                random,
                ..story(class, received)
            };
            let Verdict::Again { after, avoid, to, .. } = decide(now, &rules, &story) else {
                break;
            };
            prop_assert!(made < rules.attempts);
            prop_assert!(after <= rules.max_backoff);
            now += after;
            prop_assert!(now <= received + rules.deadline);
            match class {
                FailureClass::AccountRefused => bad.0.push(account),
                FailureClass::Connect | FailureClass::Tls => bad.1.push(endpoint),
                _ => {}
            }
            prop_assert!(to != Where::Variant);
            set_aside(&mut tried, avoid, account, endpoint, choice);
        }
    }
}
