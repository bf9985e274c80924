//! One account of three goes bad, in every way there is, while many clients ask: they notice
//! nothing, the account is left alone within seconds, and it comes back by a ramp when it is well.
//!
//! The ways run beside each other, each at a gateway and an emulator of its own with fewer clients
//! than fifty, since what is measured are shares: of the clients, a third is at the bad account when
//! it goes bad. Fifty clients at once meet the worst of the ways, and fifty of OpenAI's SDK all that
//! have a status.

use std::time::Duration;

use tidegate::emulator::EmulatorConfig;

use crate::support::crowd::{self, Crowd, Habits, Heard, now_ms};
use crate::support::load::{self, Load};
use crate::support::*;

/// How the account goes bad.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Its key is refused.
    Key,
    /// Its money is gone.
    Money,
    /// As the emulator is told.
    Fault(&'static str),
}

use Way::{Fault, Key, Money};

/// The one that the health checks ask with.
const BAD: &str = "account-1";

/// First content comes after so long: far more than a busy machine adds by itself.
const FIRST: Duration = Duration::from_millis(150);
const HEALTHY: Duration = Duration::from_secs(4);
const ILL: Duration = Duration::from_secs(11);
/// Within this it must be left alone.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// Within this it must have its share again.
const BACK: Duration = Duration::from_secs(10);

fn emulator() -> Emulator {
    Emulator::start(EmulatorConfig {
        first_token_delay: FIRST,
        tokens: 8,
        ..Emulator::with_accounts(3)
    })
}

fn gateway(emulator: &Emulator) -> Gateway {
    // As shipped, the clocks of minutes included: nobody is to wait for them.
    Gateway::start(Config::for_emulator(emulator))
}

fn strike(emulator: &Emulator, way: Way) {
    match way {
        Key => emulator.set_key(BAD, "sk-exchanged"),
        Money => emulator.set_balance(BAD, "0.00"),
        Fault(order) => emulator.order(Some(BAD), order),
    }
}

fn heal(emulator: &Emulator, way: Way) {
    match way {
        Key => emulator.set_key(BAD, "sk-upstream-1"),
        Money => emulator.set_balance(BAD, "110.00"),
        Fault(_) => emulator.order(Some(BAD), ""),
    }
}

/// Moments in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Course {
    began: u64,
    struck: u64,
    healed: u64,
    ended: u64,
}

fn take_course(emulator: &Emulator, way: Way) -> Course {
    // The first requests find neither connections nor anything that is known of anybody.
    std::thread::sleep(Duration::from_secs(1));
    let began = now_ms();
    std::thread::sleep(HEALTHY);
    strike(emulator, way);
    let struck = now_ms();
    std::thread::sleep(ILL);
    heal(emulator, way);
    let healed = now_ms();
    std::thread::sleep(BACK);
    let ended = now_ms();
    Course {
        began,
        struck,
        healed,
        ended,
    }
}

/// The bad account's part of the attempts that began between two moments, of one.
fn share(emulator: &Emulator, from: u64, to: u64) -> f64 {
    let counts = emulator.attempts_between(from, to);
    let all: usize = counts.values().sum();
    let bad = counts.get(BAD).copied().unwrap_or_default();
    bad as f64 / all.max(1) as f64
}

/// The bad account's part in each second after its healing.
fn rises(emulator: &Emulator, course: Course) -> Vec<f64> {
    let seconds = (course.healed..course.ended).step_by(1_000);
    seconds
        .map(|from| share(emulator, from, from + 1_000))
        .collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}

fn within(heard: &[Heard], from: u64, to: u64) -> impl Iterator<Item = &Heard> {
    heard
        .iter()
        .filter(move |one| (from..to).contains(&one.at_ms))
}

/// What is wrong with how it went; empty if nothing is.
fn faults_of(
    way: Way,
    emulator: &Emulator,
    heard: &[Heard],
    control: &[Heard],
    course: Course,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let lost: Vec<_> = heard.iter().filter(|one| !one.is_whole()).collect();
    if !lost.is_empty() {
        wrong.push(format!("{} lost, as {:?}", lost.len(), lost[0]));
    }
    let during = |from: u64, to: u64| within(heard, from, to);
    let p99 = |all, from, to| crowd::first_content(within(all, from, to), 0.99);
    let before = p99(heard, course.began, course.struck);
    let meanwhile = p99(heard, course.struck, course.healed);
    let machine = p99(control, course.struck, course.healed);
    // What a busy machine adds on the one way of the control, it adds on each of the gateway's.
    let added = machine.saturating_sub(FIRST) * 2;
    if meanwhile >= before.max(machine) * 2 + added {
        wrong.push(format!("p99 from {before:?} to {meanwhile:?}"));
    }
    let left_alone = course.struck + millis(LEFT_ALONE);
    let ill = share(emulator, left_alone, course.healed);
    if ill >= 0.02 {
        wrong.push(format!("{:.1} % of the attempts", ill * 100.0));
    }
    // By halves, and the last two seconds: a ramp rises, and ends at a third.
    let half = course.healed + millis(BACK) / 2;
    let (first, second) = (
        share(emulator, course.healed, half),
        share(emulator, half, course.ended),
    );
    let last = share(emulator, course.ended - 2_000, course.ended);
    let rises = rises(emulator, course);
    // Who was at its limit was not ill: it comes back with the places that it was left.
    let steps = rises.iter().take_while(|share| **share < 0.28);
    let steps = steps.filter(|share| **share > 0.02).count();
    if steps < 2 && !matches!(way, Fault("status=429")) {
        wrong.push(format!("back at once: {rises:.2?}"));
    }
    if first >= second {
        wrong.push(format!("no ramp: {first:.3}, then {second:.3}"));
    }
    if last < 0.5 / 3.0 {
        wrong.push(format!("not back: {last:.3} at the end"));
    }
    let told = format!(
        "{way:?}: {} in {} s, p99 {before:?} → {meanwhile:?} (longest {:?}), ill {:.2} %, back {first:.3} {second:.3} {last:.3} {rises:.2?}, machine {machine:?}",
        heard.len(),
        (course.ended - course.began) / 1000,
        during(course.struck, course.healed)
            .filter_map(|one| one.first)
            .max(),
        ill * 100.0,
    );
    eprintln!("{told}");
    if !wrong.is_empty() {
        wrong.insert(0, told);
    }
    wrong
}

fn goes_bad(way: Way, clients: usize) -> Vec<String> {
    let emulator = emulator();
    let gateway = gateway(&emulator);
    let habits = Habits {
        clients,
        waits: Duration::from_millis(100),
        spread: FIRST,
    };
    let crowd = Crowd::start(gateway.address(), &key("acme"), habits);
    // Straight at a healthy account: what the machine is to blame for.
    let few = Habits {
        clients: 2,
        ..habits
    };
    let control = Crowd::start(emulator.address(), "sk-upstream-2", few);
    let course = take_course(&emulator, way);
    let (heard, control) = (crowd.finish(), control.finish());
    let wrong = faults_of(way, &emulator, &heard, &control, course);
    if !wrong.is_empty() {
        let told = gateway.log();
        let told = told.iter().filter(|line| line.contains("state="));
        eprintln!("{}", told.cloned().collect::<Vec<_>>().join("\n"));
    }
    wrong
}

/// All of them beside each other.
fn each(ways: &[Way]) {
    let wrong: Vec<_> = std::thread::scope(|scope| {
        let ways: Vec<_> = ways
            .iter()
            .map(|way| scope.spawn(|| goes_bad(*way, 24)))
            .collect();
        let ended = ways.into_iter().map(|way| way.join().unwrap());
        ended.filter(|wrong| !wrong.is_empty()).collect()
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nobody_notices_an_account_without_a_key_or_money() {
    each(&[Key, Money]);
}

#[test]
fn nobody_notices_an_account_at_its_limit_or_with_errors() {
    each(&[Fault("status=429"), Fault("status=500")]);
}

#[test]
fn nobody_notices_an_account_that_is_unavailable_or_reset() {
    each(&[Fault("status=503"), Fault("reset")]);
}

#[test]
fn nobody_notices_an_account_that_breaks_off_before_content() {
    each(&[Fault("cut_after=1"), Fault("error_after=1")]);
}

#[test]
fn nobody_notices_an_account_that_answers_nonsense() {
    each(&[Fault("html"), Fault("noise")]);
}

#[test]
fn nobody_notices_an_account_that_falls_silent() {
    each(&[Fault("stall"), Fault("stall_after=1")]);
}

#[test]
fn nobody_notices_an_account_that_keeps_alive_or_is_slow() {
    each(&[Fault("queue=600s"), Fault("first_token=1500ms")]);
}

#[test]
fn nobody_of_fifty_notices_an_account_that_says_nothing() {
    let wrong = goes_bad(Fault("stall"), 50);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_sdk_of_fifty_raises_while_an_account_goes_bad_in_one_way_after_the_other() {
    let emulator = emulator();
    let gateway = gateway(&emulator);
    let load = Load {
        rate: 100,
        during: Duration::from_secs(20),
        prompt: String::new(),
        ..Load::default()
    };
    let running = load.start(&gateway.url(), "acme");
    let ways = [
        Key,
        Money,
        Fault("status=429"),
        Fault("status=500"),
        Fault("reset"),
        Fault("cut_after=1"),
        Fault("error_after=1"),
        Fault("html"),
    ];
    eventually("the SDK asks", SOON, || {
        (!emulator.calls_since("after=0").is_empty()).then_some(())
    });
    for way in ways {
        strike(&emulator, way);
        std::thread::sleep(Duration::from_millis(1_500));
        heal(&emulator, way);
        std::thread::sleep(Duration::from_millis(500));
    }
    let asked = running.finish();
    assert!(asked.len() > 500, "{}", asked.len());
    assert_eq!(load::failures(&asked), Default::default());
    assert!(asked.iter().all(load::Asked::is_whole));
}
