//! Reservations as a whole: against a slow and obvious reference, and under many threads.

mod model;
mod threads;

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::allowance::{Allowance, Part, bit};
use super::amounts::Amounts;
use super::book::Book;
use super::clock::{Calendar, Now};
use super::counter::Full;
use super::reservation::{Ask, Denied, Refused, Reservation, reserve};
use crate::config::settings::{
    Accepted, AllowedModels, CutCharge, Group, GroupId, Limit, LimitKey, OnDisconnect, Plan,
    PlanId, Priority, Quantity, Surfaces, Tenant, TenantId, Window,
};

const SECOND: u64 = 1_000_000_000;
/// 2026-11-25T12:00:00Z.
const NOON: i64 = 1_795_608_000;

pub(super) fn limit(quantity: Quantity, window: Window, amount: u64) -> Limit {
    Limit {
        key: LimitKey {
            surfaces: Surfaces::All,
            model: None,
            quantity,
            window,
        },
        amount,
        burst: amount,
        shadow: false,
    }
}

fn plan(limits: &[Limit]) -> Arc<Plan> {
    Arc::new(Plan {
        id: PlanId::new("test"),
        limits: limits.to_vec(),
        weight: 1,
        priority: Priority::Normal,
        cut: CutCharge::Estimate,
        on_disconnect: OnDisconnect::Cancel,
    })
}

fn tenant(id: &str, limits: &[Limit], group: Option<&[Limit]>) -> Tenant {
    Tenant {
        id: TenantId::new(id),
        enabled: true,
        models: AllowedModels::All,
        balance: false,
        files: false,
        credentials: Vec::new(),
        accept: Accepted::ALL,
        allow_from: None,
        plan: plan(limits),
        group: group.map(|limits| {
            Arc::new(Group {
                id: GroupId::new("all"),
                plan: plan(limits),
            })
        }),
        deadlines: Default::default(),
    }
}

/// So many seconds after noon.
fn at(seconds: u64) -> Now {
    let steady = NOON as u64 * SECOND + seconds * SECOND;
    Calendar::new(TimeZone::UTC).at(steady, NOON + seconds as i64)
}

fn ask(prompt: u64, completion: u64) -> Ask<'static> {
    let amounts = Amounts {
        requests: 1,
        prompt,
        uncached: prompt,
        completion,
        cost: prompt + 4 * completion,
    };
    Ask {
        surface: bit("chat"),
        model: "deepseek-flash",
        amounts,
        least: amounts,
        request: 7,
    }
}

fn admit(allowance: &Allowance, ask: &Ask<'_>, now: &Now) -> Result<Reservation, Box<Denied>> {
    reserve(allowance, ask, now)
        .0
        .map_err(|refused| match refused {
            Refused::Denied(denied) => denied,
            other => panic!("{other:?}"),
        })
}

#[test]
fn a_bucket_refills_evenly_and_knows_no_edge() {
    let book = Book::default();
    let limits = [limit(Quantity::Requests, Window::Minute, 60)];
    let allowance = Allowance::new(&tenant("a", &limits, None), &book, Part::Whole);
    for _ in 0..60 {
        let mut reservation = admit(&allowance, &ask(1, 1), &at(0)).unwrap();
        reservation.sent(&at(0));
    }
    let denied = admit(&allowance, &ask(1, 1), &at(0)).unwrap_err();
    assert_eq!(denied.full, Full::For(std::time::Duration::from_secs(1)));
    assert_eq!((denied.standing.used, denied.standing.limit), (60, 60));
    // A fixed window would let sixty more pass at its edge.
    let mut passed = 0;
    while let Ok(mut reservation) = admit(&allowance, &ask(1, 1), &at(10)) {
        reservation.sent(&at(10));
        passed += 1;
    }
    assert_eq!(passed, 10);
}

#[test]
fn several_limits_are_taken_all_or_none() {
    let book = Book::default();
    let limits = [
        limit(Quantity::Requests, Window::Minute, 10),
        limit(Quantity::Tokens, Window::Day, 1_000),
        limit(Quantity::Concurrent, Window::None, 3),
    ];
    let group = [limit(Quantity::Tokens, Window::Month, 1_500)];
    let one = Allowance::new(&tenant("one", &limits, Some(&group)), &book, Part::Whole);
    let two = Allowance::new(&tenant("two", &limits, Some(&group)), &book, Part::Whole);
    let first = admit(&one, &ask(100, 800), &at(0)).unwrap();
    let denied = admit(&two, &ask(100, 800), &at(0)).unwrap_err();
    assert_eq!(&*denied.subject.0, "group/all");
    assert_eq!(denied.key.to_string(), "all/*/tokens_per_month");
    // The refusal took nothing of the tenant's own limits.
    assert_eq!(book.leases(0).open, 1);
    let second = admit(&two, &ask(100, 400), &at(0)).unwrap();
    first.settle(
        &Amounts {
            prompt: 90,
            completion: 10,
            ..Amounts::default()
        },
        &at(1),
    );
    drop(second);
    assert_eq!((book.leases(0).open, book.leases(0).held), (0, 0));
    // 100 of 1,500 are used: 900 fit.
    let third = admit(&two, &ask(100, 800), &at(2)).unwrap();
    drop(third);
}

#[test]
fn a_request_that_was_not_sent_costs_nothing() {
    let book = Book::default();
    let limits = [limit(Quantity::Requests, Window::Day, 1)];
    let allowance = Allowance::new(&tenant("a", &limits, None), &book, Part::Whole);
    drop(admit(&allowance, &ask(1, 1), &at(0)).unwrap());
    let mut sent = admit(&allowance, &ask(1, 1), &at(0)).unwrap();
    sent.sent(&at(0));
    sent.sent(&at(1));
    drop(sent);
    let denied = admit(&allowance, &ask(1, 1), &at(2)).unwrap_err();
    assert_eq!(denied.standing.used, 1);
    // The day is over twelve hours after noon.
    drop(admit(&allowance, &ask(1, 1), &at(12 * 3600)).unwrap());
}

#[test]
fn a_demand_beyond_the_whole_limit_is_told_as_such() {
    let book = Book::default();
    let limits = [limit(Quantity::Tokens, Window::Minute, 100)];
    let allowance = Allowance::new(&tenant("a", &limits, None), &book, Part::Whole);
    let denied = admit(&allowance, &ask(60, 60), &at(0)).unwrap_err();
    assert_eq!(denied.full, Full::Always);
}

#[test]
fn a_limit_in_shadow_counts_and_refuses_nobody() {
    let book = Book::default();
    let mut shadow = limit(Quantity::Requests, Window::Day, 1);
    shadow.shadow = true;
    let allowance = Allowance::new(&tenant("a", &[shadow], None), &book, Part::Whole);
    for expected in [0, 1, 1] {
        let (reservation, shadowed) = reserve(&allowance, &ask(1, 1), &at(0));
        assert_eq!(shadowed.len(), expected);
        reservation.unwrap().sent(&at(0));
    }
}

#[test]
fn limits_of_one_surface_or_model_leave_the_others_alone() {
    let book = Book::default();
    let mut chat = limit(Quantity::Requests, Window::Day, 1);
    chat.key.surfaces = Surfaces::Chat;
    let mut text = limit(Quantity::Requests, Window::Day, 2);
    text.key.surfaces = Surfaces::Text;
    let mut pro = limit(Quantity::Requests, Window::Day, 0);
    pro.key.model = Some("deepseek-v4-pro".into());
    let allowance = Allowance::new(&tenant("a", &[chat, text, pro], None), &book, Part::Whole);
    let send = |ask: Ask<'_>| match admit(&allowance, &ask, &at(0)) {
        Ok(mut reservation) => {
            reservation.sent(&at(0));
            true
        }
        Err(_) => false,
    };
    let messages = Ask {
        surface: bit("messages"),
        ..ask(1, 1)
    };
    let embeddings = Ask {
        surface: bit("embeddings"),
        ..ask(1, 1)
    };
    let pro = Ask {
        model: "deepseek-v4-pro",
        ..embeddings
    };
    assert!(send(ask(1, 1)) && !send(ask(1, 1)));
    assert!(send(messages) && !send(messages));
    assert!(send(embeddings) && !send(pro));
}

#[test]
fn a_changed_limit_measures_the_same_use_anew() {
    let book = Book::default();
    let small = [limit(Quantity::Requests, Window::Minute, 10)];
    let allowance = Allowance::new(&tenant("a", &small, None), &book, Part::Whole);
    for _ in 0..10 {
        admit(&allowance, &ask(1, 1), &at(0)).unwrap().sent(&at(0));
    }
    let large = [limit(Quantity::Requests, Window::Minute, 100)];
    let allowance = Allowance::new(&tenant("a", &large, None), &book, Part::Whole);
    for _ in 0..90 {
        admit(&allowance, &ask(1, 1), &at(0)).unwrap().sent(&at(0));
    }
    assert!(admit(&allowance, &ask(1, 1), &at(0)).is_err());
}

#[test]
fn a_plan_that_goes_while_its_leases_are_held_gets_them_back() {
    let book = Book::default();
    let limits = [limit(Quantity::Concurrent, Window::None, 1)];
    let with = tenant("a", &limits, None);
    let held = admit(
        &Allowance::new(&with, &book, Part::Whole),
        &ask(1, 1),
        &at(0),
    )
    .unwrap();
    let without = Allowance::new(&tenant("a", &[], None), &book, Part::Whole);
    assert_eq!(without.sides[0].all().count(), 0);
    let again = Allowance::new(&with, &book, Part::Whole);
    assert!(admit(&again, &ask(1, 1), &at(0)).is_err());
    drop(held);
    assert!(admit(&again, &ask(1, 1), &at(0)).is_ok());
}

#[test]
fn a_clock_that_steps_over_midnight_and_back_gives_no_second_day() {
    let book = Book::default();
    let limits = [limit(Quantity::Requests, Window::Day, 2)];
    let allowance = Allowance::new(&tenant("a", &limits, None), &book, Part::Whole);
    let calendar = Calendar::new(TimeZone::UTC);
    let send = |wall: i64| match admit(&allowance, &ask(1, 1), &calendar.at(0, wall)) {
        Ok(mut reservation) => {
            reservation.sent(&calendar.at(0, wall));
            true
        }
        Err(_) => false,
    };
    let tomorrow = NOON + 86_400;
    assert!(send(NOON) && send(NOON) && !send(NOON));
    assert!(send(tomorrow));
    assert!(!send(NOON));
    assert!(send(tomorrow) && !send(tomorrow));
    // A clock that was years ahead locks nobody out when it is set right.
    assert!(send(NOON + 400 * 86_400));
    assert!(send(tomorrow + 86_400));
}

#[test]
fn what_another_process_holds_takes_room_until_it_settles_or_dies() {
    let (old, new) = (Book::default(), Book::default());
    let limits = [
        limit(Quantity::Tokens, Window::Day, 1_000),
        limit(Quantity::Concurrent, Window::None, 2),
    ];
    let who = tenant("a", &limits, None);
    let before = Allowance::new(&who, &old, Part::Whole);
    let one = admit(&before, &ask(100, 200), &at(0)).unwrap();
    let two = admit(&before, &ask(100, 200), &at(0)).unwrap();
    let process: Arc<str> = "old".into();
    let handed_over = old.hand_over(at(0).steady);
    assert_eq!(handed_over.counters.len(), 1);
    for holding in handed_over.held {
        new.hold_for(&process, &holding);
    }
    assert!(old.is_handed_over());
    let refused = reserve(&before, &ask(1, 1), &at(1)).0;
    assert_eq!(refused.err(), Some(Refused::HandedOver));
    let after = Allowance::new(&who, &new, Part::Whole);
    assert!(admit(&after, &ask(1, 1), &at(1)).is_err());
    one.settle(
        &Amounts {
            prompt: 100,
            completion: 50,
            ..Amounts::default()
        },
        &at(1),
    );
    for (subject, told) in old.told() {
        let limit = limits.iter().find(|limit| limit.key == told.key);
        new.hear(&process, subject, &told, limit, &at(2));
    }
    let three = admit(&after, &ask(100, 100), &at(2)).unwrap();
    drop(three);
    // 150 used, 300 held by the other: 550 fit, 551 do not.
    assert!(admit(&after, &ask(51, 500), &at(2)).is_err());
    assert!(admit(&after, &ask(50, 500), &at(2)).is_ok());
    assert!(new.release_all_of("old") > 0);
    drop(two);
    assert_eq!(new.leases(0).held, 0);
    assert!(admit(&after, &ask(50, 800), &at(3)).is_ok());
}

#[test]
fn what_was_written_down_is_added_to_what_was_counted_since() {
    let (old, new) = (Book::default(), Book::default());
    let limits = [
        limit(Quantity::Requests, Window::Minute, 60),
        limit(Quantity::Requests, Window::Day, 1_000),
    ];
    let who = tenant("a", &limits, None);
    let send = |book: &Book, times: u32, now: &Now| {
        let allowance = Allowance::new(&who, book, Part::Whole);
        (0..times).for_each(|_| admit(&allowance, &ask(1, 1), now).unwrap().sent(now));
    };
    send(&old, 30, &at(0));
    send(&new, 5, &at(10));
    // Ten seconds later by a clock that has nothing to do with the other.
    let restore = |passed: u64| {
        for changed in old.hand_over(at(0).steady).counters {
            for (key, kept) in changed.changes {
                let name = changed.subject.name.clone();
                new.restore(name, &key, kept, passed * SECOND, at(10).steady);
            }
        }
    };
    restore(10);
    let used = |now: &Now| {
        let allowance = Allowance::new(&who, &new, Part::Whole);
        let standing = |rule: &super::allowance::Rule| {
            let mut counts = allowance.sides[0].subject.look();
            counts
                .counter(rule.place)
                .unwrap()
                .standing(&rule.limit, now)
                .used
        };
        allowance.sides[0].all().map(standing).collect::<Vec<_>>()
    };
    assert_eq!(used(&at(10)), [25, 35]);
    // A debt of more than two periods is forgiven.
    (0..10).for_each(|_| restore(0));
    assert_eq!(used(&at(10)), [120, 335]);
}
