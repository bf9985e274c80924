//! Random histories, told to the counts and to a reference that remembers every single use.

use proptest::prelude::*;

use super::*;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Ask {
        prompt: u64,
        completion: u64,
    },
    /// Of the open reservations, the one with this number modulo their count.
    Send(usize),
    Settle(usize, u64),
    Drop(usize),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u64..40, 0u64..40).prop_map(|(prompt, completion)| Event::Ask { prompt, completion }),
        3 => any::<usize>().prop_map(Event::Send),
        3 => (any::<usize>(), 0u64..100).prop_map(|(which, used)| Event::Settle(which, used)),
        1 => any::<usize>().prop_map(Event::Drop),
        2 => (0u64..40_000).prop_map(Event::Pass),
    ]
}

/// One limit, remembered use by use.
struct Reference {
    limit: Limit,
    /// When, how much.
    uses: Vec<(u64, u64)>,
    held: u64,
}

impl Reference {
    /// Fluid in the bucket, in uses × period, exactly.
    fn level(&self, now: u64) -> u128 {
        let period = u128::from(self.limit.key.window.period().unwrap().as_secs());
        let mut level = 0u128;
        let mut last = 0u64;
        for (when, amount) in &self.uses {
            let faded = u128::from(when - last) * u128::from(self.limit.amount);
            level = level.saturating_sub(faded) + u128::from(*amount) * period;
            level = level.min(2 * u128::from(self.limit.amount) * period);
            last = *when;
        }
        level.saturating_sub(u128::from(now - last) * u128::from(self.limit.amount))
    }

    fn fits(&self, demand: u64, now: u64) -> bool {
        let wanted = self.held + demand;
        match self.limit.key.window {
            Window::None => wanted <= self.limit.amount,
            Window::Day | Window::Month => {
                let day = |seconds: u64| (seconds + 43_200) / 86_400;
                let today = self.uses.iter().filter(|(when, _)| day(*when) == day(now));
                let used: u64 = today.map(|(_, amount)| amount).sum();
                used + wanted <= self.limit.amount
            }
            window => {
                let period = u128::from(window.period().unwrap().as_secs());
                self.level(now) + u128::from(wanted) * period
                    <= u128::from(self.limit.burst) * period
            }
        }
    }
}

fn limits() -> Vec<Limit> {
    let mut tokens = limit(Quantity::Tokens, Window::Minute, 240);
    tokens.burst = 120;
    vec![
        limit(Quantity::Requests, Window::Minute, 30),
        limit(Quantity::Requests, Window::Day, 90),
        tokens,
        limit(Quantity::CompletionTokens, Window::Hour, 1_800),
        limit(Quantity::Cost, Window::Day, 9_000),
        limit(Quantity::Concurrent, Window::None, 6),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_counts_say_what_the_reference_says(events in prop::collection::vec(event(), 1..120)) {
        let book = Book::default();
        let allowance = Allowance::new(&tenant("a", &limits(), None), &book, Part::Whole);
        let mut references: Vec<_> = limits()
            .into_iter()
            .map(|limit| Reference { limit, uses: Vec::new(), held: 0 })
            .collect();
        let mut open: Vec<(Reservation, Amounts, bool)> = Vec::new();
        let mut now = 0;
        for event in events {
            match event {
                Event::Pass(seconds) => now += seconds,
                Event::Ask { prompt, completion } => {
                    let ask = ask(prompt, completion);
                    let expected = references
                        .iter()
                        .all(|one| one.fits(ask.amounts.of(one.limit.key.quantity), now));
                    let reservation = admit(&allowance, &ask, &at(now));
                    // Rounding up may cost the last nanosecond, never give one.
                    prop_assert!(expected || reservation.is_err(), "let too much pass at {now}");
                    prop_assert!(!expected || reservation.is_ok(), "refused too early at {now}: {reservation:?}");
                    if let Ok(reservation) = reservation {
                        for one in &mut references {
                            one.held += ask.amounts.of(one.limit.key.quantity);
                        }
                        open.push((reservation, ask.amounts, false));
                    }
                }
                Event::Send(which) if !open.is_empty() => {
                    let which = which % open.len();
                    let (reservation, _, sent) = &mut open[which];
                    reservation.sent(&at(now));
                    if !std::mem::replace(sent, true) {
                        for one in &mut references {
                            if one.limit.key.quantity == Quantity::Requests {
                                one.held -= 1;
                                one.uses.push((now, 1));
                            }
                        }
                    }
                }
                Event::Settle(which, used) if !open.is_empty() => {
                    let which = which % open.len();
                    let (reservation, asked, sent) = open.swap_remove(which);
                    let used = Amounts {
                        requests: 1,
                        prompt: used / 2,
                        uncached: used / 4,
                        completion: used - used / 2,
                        cost: used * 3,
                    };
                    reservation.settle(&used, &at(now));
                    end(&mut references, &asked, &used, sent, now);
                }
                Event::Drop(which) if !open.is_empty() => {
                    let which = which % open.len();
                    let (reservation, asked, sent) = open.swap_remove(which);
                    drop(reservation);
                    end(&mut references, &asked, &Amounts::default(), sent, now);
                }
                Event::Send(_) | Event::Settle(..) | Event::Drop(_) => {}
            }
        }
        drop(open);
        prop_assert_eq!(book.leases(0).held, 0);
        prop_assert_eq!(book.leases(0).open, 0);
    }
}

fn end(references: &mut [Reference], asked: &Amounts, used: &Amounts, sent: bool, now: u64) {
    for one in references {
        match one.limit.key.quantity {
            Quantity::Requests if sent => {}
            Quantity::Requests | Quantity::Concurrent => one.held -= 1,
            quantity => {
                one.held -= asked.of(quantity);
                if used.of(quantity) > 0 {
                    one.uses.push((now, used.of(quantity)));
                }
            }
        }
    }
}
