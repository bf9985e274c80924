//! Many threads at one limit: never one more than it allows, and everything comes back.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const THREADS: u64 = 8;
const ROUNDS: u64 = 5_000;

#[test]
fn no_limit_is_passed_and_every_lease_comes_back() {
    let book = Book::default();
    let own = [
        limit(Quantity::Concurrent, Window::None, 5),
        limit(Quantity::Tokens, Window::Day, 300_000),
    ];
    let group = [
        limit(Quantity::Concurrent, Window::None, 8),
        limit(Quantity::Requests, Window::Month, 9_000),
        limit(Quantity::Requests, Window::Hour, 8_000),
    ];
    let tenants: Vec<_> = (0..4)
        .map(|number| {
            Allowance::new(
                &tenant(&format!("t{number}"), &own, Some(&group)),
                &book,
                Part::Whole,
            )
        })
        .collect();
    let in_flight: Vec<_> = (0..5).map(|_| AtomicU64::new(0)).collect();
    let tokens: Vec<_> = (0..4).map(|_| AtomicU64::new(0)).collect();
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (tenants, in_flight, tokens, sent) = (&tenants, &in_flight, &tokens, &sent);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let number = ((thread * 7 + round) % 4) as usize;
                    let demand = 10 + round % 50;
                    let Ok(mut lease) = admit(&tenants[number], &ask(demand, demand), &at(0))
                    else {
                        std::thread::yield_now();
                        continue;
                    };
                    assert!(in_flight[number].fetch_add(1, Ordering::SeqCst) < 5);
                    assert!(in_flight[4].fetch_add(1, Ordering::SeqCst) < 8);
                    let way = (round + thread) % 4;
                    if way > 0 {
                        lease.sent(&at(0));
                        sent.fetch_add(1, Ordering::SeqCst);
                    }
                    in_flight[number].fetch_sub(1, Ordering::SeqCst);
                    in_flight[4].fetch_sub(1, Ordering::SeqCst);
                    if way > 1 {
                        tokens[number].fetch_add(demand, Ordering::SeqCst);
                        let used = Amounts {
                            prompt: demand,
                            ..Amounts::default()
                        };
                        lease.settle(&used, &at(0));
                    }
                }
            });
        }
    });
    assert!(sent.load(Ordering::SeqCst) <= 8_000);
    for (number, allowance) in tenants.iter().enumerate() {
        let side = &allowance.sides[0];
        let rule = side.all().find(|rule| rule.limit.key.window == Window::Day);
        let rule = rule.unwrap();
        let mut counts = side.subject.look();
        let standing = counts.counter(rule.place).unwrap();
        let standing = standing.standing(&rule.limit, &at(0));
        assert_eq!(standing.used, tokens[number].load(Ordering::SeqCst));
        assert!(standing.used <= 300_000);
    }
    let leases = book.leases(0);
    assert_eq!((leases.open, leases.held), (0, 0));
}
