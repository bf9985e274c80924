//! A storm: thousands of requests of twenty tenants, with everything that can go wrong going wrong,
//! the plans changed meanwhile and the process replaced by another. When it is over, the ledger is
//! the emulator's own journal to the token, no limit was ever exceeded, and nothing is held.
//!
//! `STORM_REQUESTS` and `STORM_SEED` choose other storms.

mod calls;
mod ledger;
mod limits;
mod world;

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use crate::support::books::{Call, Tokens};
use crate::support::*;
use calls::{Caller, Seen};

/// Which take some 15 seconds.
const REQUESTS: usize = 10_000;
const SEED: u64 = 20_261_125;
/// Clients at one time: more than all accounts have places.
const CLIENTS: usize = 48;
/// Nothing of the storm lasts longer.
const DRAINED: Duration = Duration::from_secs(60);
/// As long as ten thousand requests may take on a busy machine.
const OVER: Duration = Duration::from_secs(600);

fn ordered(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One access line, as far as use and limits are concerned.
#[derive(Debug, Deserialize)]
struct Line {
    request_id: String,
    tenant: Option<String>,
    model: Option<String>,
    account: Option<String>,
    surface: String,
    ending: String,
    code: Option<String>,
    duration_ms: f64,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
    #[serde(default)]
    usage_estimated: bool,
    /// Of two processes, the second.
    #[serde(skip)]
    second: bool,
}

impl Line {
    /// What was charged, if anything was.
    fn charged(&self) -> Option<Tokens> {
        Some(Tokens {
            prompt: self.prompt_tokens?,
            cached: self.cached_tokens?,
            completion: self.completion_tokens?,
            reasoning: self.reasoning_tokens?,
        })
    }

    /// What of a call's usage its caller could know: the Anthropic format does not tell reasoning
    /// apart.
    fn told(&self, usage: Tokens) -> Tokens {
        let known = self.surface != "messages";
        Tokens {
            reasoning: if known { usage.reasoning } else { 0 },
            ..usage
        }
    }

    fn is_gone(&self) -> bool {
        self.ending == "client_gone"
    }

    /// When the request came in: its id begins with that.
    fn began_ms(&self) -> u64 {
        u64::from_str_radix(&self.request_id[..12], 16).unwrap()
    }

    /// Before this nothing was given back yet.
    fn held_until_ms(&self) -> u64 {
        // Both times are cut to a millisecond.
        (self.began_ms() + self.duration_ms as u64).saturating_sub(1)
    }
}

/// What is left when all has ended.
struct Aftermath {
    emulator: Emulator,
    gateway: Gateway,
    lines: HashMap<String, Line>,
    journal: HashMap<String, Vec<Call>>,
    seen: Vec<Seen>,
}

fn lines_of(gateway: &Gateway, second: bool) -> Vec<Line> {
    let lines = gateway.access_lines().into_iter();
    let parsed = lines.map(|line| Line {
        second,
        ..serde_json::from_value(line).unwrap()
    });
    parsed.collect()
}

fn storm(requests: usize, seed: u64) -> Aftermath {
    let emulator = world::emulator();
    let first = Gateway::start(world::config(&emulator));
    let address = first.address();
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let (gateway, seen) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let numbers = std::iter::from_fn(|| {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        (number < requests).then_some(number)
                    });
                    let ask = |number| Caller::new(seed, number).ask(address);
                    numbers.map(ask).collect::<Vec<_>>()
                })
            })
            .collect();
        let until = |percent: usize| {
            eventually("the storm goes on", OVER, || {
                (next.load(Ordering::Relaxed) >= requests * percent / 100).then_some(())
            });
        };
        let gateway = interfere(&first, until);
        let seen = clients.into_iter().map(|client| client.join().unwrap());
        (gateway, seen.collect::<Vec<_>>().concat())
    });
    eprintln!("{requests} requests, seed {seed}, in {:?}", began.elapsed());
    assert!(first.exit(DRAINED).success());
    gateway.wait_until_idle(DRAINED);
    gateway.wait_until_written();
    let mut journal: HashMap<_, Vec<_>> = HashMap::new();
    for call in emulator.journal() {
        let id = call.request_id.clone().unwrap();
        journal.entry(id).or_default().push(call);
    }
    assert_eq!(gateway.metric("tidegate_log_lines_dropped_total", &[]), 0.0);
    let lines = lines_of(&first, false).into_iter();
    let lines = lines.chain(lines_of(&gateway, true));
    Aftermath {
        lines: lines.map(|line| (line.request_id.clone(), line)).collect(),
        emulator,
        gateway,
        journal,
        seen,
    }
}

/// Reloads, and in the middle the change from one process to the next, which is returned.
fn interfere(first: &Gateway, until: impl Fn(usize)) -> Gateway {
    until(10);
    assert_eq!(first.reload(world::roomier), "ok");
    until(20);
    let change = |config: Config| config.set("/retry", json!({"attempts": 2}));
    assert_eq!(first.reload(change), "ok");
    until(30);
    assert_eq!(first.reload(world::as_before), "ok");
    until(45);
    // Held over the change, whatever else is under way.
    let mut witness = world::witness(first);
    witness.read_until("data: ");
    first.signal("TERM");
    eventually("the first takes no connections", SOON, || {
        TcpStream::connect(first.address()).is_err().then_some(())
    });
    let second = first.successor();
    second.wait_until_ready();
    let handed_over = first.logged(&["The counting was handed over"]);
    eprintln!("{handed_over}");
    assert_eq!(second.standing(world::WITNESS, "all/*/max_concurrent").1, 1);
    until(60);
    assert_eq!(second.reload(world::roomier), "ok");
    until(75);
    let change = |config: Config| config.set("/retry", json!({"attempts": 3}));
    assert_eq!(second.reload(change), "ok");
    until(90);
    assert_eq!(second.reload(world::as_before), "ok");
    assert_eq!(witness.rest().ending, Ending::Whole);
    second
}

#[test]
fn after_a_storm_the_books_agree_no_limit_was_exceeded_and_nothing_is_held() {
    let requests = ordered("STORM_REQUESTS").map(|number| usize::try_from(number).unwrap());
    let aftermath = storm(
        requests.unwrap_or(REQUESTS),
        ordered("STORM_SEED").unwrap_or(SEED),
    );
    calls::assert_all_came_to_an_end(&aftermath);
    ledger::assert_ledger_is_the_journal(&aftermath);
    ledger::assert_each_charge_is_what_was_told(&aftermath);
    ledger::assert_refused_requests_went_nowhere(&aftermath);
    limits::assert_requests_fit_their_buckets(&aftermath);
    limits::assert_concurrency_was_kept(&aftermath);
    limits::assert_counts_are_what_was_charged(&aftermath);
    limits::assert_nothing_is_held(&aftermath);
}
