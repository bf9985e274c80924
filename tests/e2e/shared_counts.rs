//! Several gateways hold one set of limits, counted in one Redis: exactly while it is there, as the
//! configuration says while it is not, and exactly again once it is back.

mod ends;
mod exact;
mod operators;
mod outages;
mod reloads;
mod stalls;
mod starts;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::limits::{assert_refused, noon, operate, report, standing};
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const DAY: &str = "all/*/requests_per_day";
const PLACES: &str = "all/*/max_concurrent";

/// No answer takes longer than this, whatever becomes of Redis, on a busy machine.
const BOUND: Duration = Duration::from_secs(3);
/// A deadline of reservations that a busy machine keeps.
const PATIENT: &str = "1s";
/// For a Redis that still has everything after it was killed.
const KEEPS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Two gateways with state directories of their own before one Redis and one emulator.
struct Stage {
    emulator: Emulator,
    redis: Redis,
    gateways: [Gateway; 2],
}

/// What a client heard, and after how long.
struct Heard {
    answer: Answer,
    after: Duration,
}

impl Stage {
    /// The tenant `acme` has this plan; `fail` is for both gateways.
    fn new(plan: Value, fail: &Value) -> Self {
        Self::with(&[], plan, fail, |config| config)
    }

    fn with(redis: &[&str], plan: Value, fail: &Value, more: impl Fn(Config) -> Config) -> Self {
        let emulator = Emulator::quick();
        let redis = start_redis(redis);
        let config = more(config(&emulator, &redis, plan, fail));
        let gateways = start_two(&config);
        Self {
            emulator,
            redis,
            gateways,
        }
    }

    /// One request of `acme` at each gateway, in turn, so often.
    fn ask(&self, times: usize) -> Vec<u16> {
        let gateways = self.gateways.iter().cycle();
        gateways.take(times).map(status).collect()
    }

    /// What both gateways say of a limit of `acme`, once nothing is under way and they agree.
    fn agreed(&self, limit: &str) -> Value {
        agreed(&self.gateways, limit)
    }

    fn used(&self, limit: &str) -> u64 {
        self.agreed(limit)["used"].as_u64().unwrap()
    }
}

fn start_redis(arguments: &[&str]) -> Redis {
    Redis::at(free_address().port(), arguments)
}

fn config(emulator: &Emulator, redis: &Redis, plan: Value, fail: &Value) -> Config {
    let mut store = json!({"node": redis.address(), "timeout": PATIENT});
    let fail = fail.as_object().unwrap();
    store.as_object_mut().unwrap().extend(fail.clone());
    Config::for_emulator(emulator)
        .set("/accounting/time_zone", json!(noon()))
        .set("/plans/tested", plan)
        .set("/tenants/0/plan", json!("tested"))
        .set("/server/store", json!({"redis": store}))
        .limit("max_connections_per_ip", 2000)
}

fn start_two(config: &Config) -> [Gateway; 2] {
    thread::scope(|scope| {
        [(), ()]
            .map(|()| scope.spawn(|| Gateway::start(config.clone())))
            .map(|starting| starting.join().unwrap())
    })
}

fn open() -> Value {
    json!({"fail": "open"})
}

fn closed() -> Value {
    json!({"fail": "closed"})
}

fn status(gateway: &Gateway) -> u16 {
    ask(gateway, &hello()).answer.status
}

fn hello() -> Request {
    Request::post(CHAT, &chat("hello")).key("acme")
}

fn ask(gateway: &Gateway, request: &Request) -> Heard {
    let began = Instant::now();
    let answer = request.send(gateway.address());
    Heard {
        answer,
        after: began.elapsed(),
    }
}

/// So many clients, half of them at each gateway, ask as long as `go` says so of their next question.
fn storm(
    gateways: &[Gateway; 2],
    clients: usize,
    request: &Request,
    go: impl Fn(usize) -> bool + Sync,
) -> Vec<Heard> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| {
                let (gateway, go) = (&gateways[number % 2], &go);
                scope.spawn(move || {
                    let questions = (0..).take_while(|question| go(*question));
                    questions.map(|_| ask(gateway, request)).collect::<Vec<_>>()
                })
            })
            .collect();
        let heard = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        heard.collect()
    })
}

fn count(heard: &[Heard], status: u16) -> u64 {
    let such = heard.iter().filter(|heard| heard.answer.status == status);
    such.count() as u64
}

fn assert_prompt(heard: &[Heard]) {
    let longest = heard.iter().map(|heard| heard.after).max().unwrap();
    assert!(longest < BOUND, "{longest:?}");
}

fn agreed(gateways: &[Gateway; 2], limit: &str) -> Value {
    eventually("both say the same, and nothing is held", SOON, || {
        let [one, other] = gateways.each_ref().map(|gateway| report(gateway, "acme"));
        let mut limits = one["limits"].as_array().unwrap().iter();
        // Buckets fade between the two questions.
        let still = |report: &Value| -> Vec<_> {
            let limits = report["limits"].as_array().unwrap().iter();
            let of_calendar = limits.filter(|limit| limit["burst"].is_null());
            of_calendar
                .map(|limit| (limit["limit"].clone(), limit["used"].clone()))
                .collect()
        };
        let free = limits.all(|limit| limit["reserved"] == 0);
        (free && still(&one) == still(&other) && all_told(gateways)).then_some(())
    });
    let [one, other] = gateways
        .each_ref()
        .map(|gateway| standing(gateway, "acme", limit));
    if one["burst"].is_null() {
        assert_eq!(one["used"], other["used"]);
    }
    one
}

/// Redis knows everything.
fn all_told(gateways: &[Gateway; 2]) -> bool {
    let waiting = |gateway: &Gateway| gateway.metric("tidegate_shared_counts_waiting", &[]);
    gateways.iter().all(|gateway| waiting(gateway) == 0.0)
}

fn is_up(gateway: &Gateway) -> bool {
    gateway.metric("tidegate_shared_counts_up", &[]) == 1.0
}

/// Both gateways know whether Redis is there.
fn all_know(gateways: &[Gateway; 2], up: bool) {
    eventually(&format!("Redis is known to be up: {up}"), SOON, || {
        let know = gateways.iter().all(|gateway| is_up(gateway) == up);
        know.then_some(())
    });
}

fn failures(gateway: &Gateway, kind: &str) -> f64 {
    let kind = format!("kind=\"{kind}\"");
    gateway.metric("tidegate_shared_counts_failures_total", &[&kind])
}

/// A stream that has begun and holds what it has reserved until it is dropped.
fn hold(gateway: &Gateway, request: &Value) -> Stream {
    let mut stream = gateway.stream(CHAT, request);
    if stream.status == 200 {
        stream.read_until("data: ");
    }
    stream
}

fn stalling() -> Value {
    chat_stream("[[fault:stall_after=2]] hello")
}
