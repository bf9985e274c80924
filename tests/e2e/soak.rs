//! Everything at once, by chance from a seed: upstreams that fail in every way, wires that break,
//! clients that leave, reloads. Each answer is the whole one or visibly broken, and afterwards nothing
//! is left: no request, no lease, no connection, no memory.
//!
//! `SOAK_SECONDS` says how long (20), `SOAK_SEED` which course it takes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use tidegate::emulator::EmulatorConfig;

use crate::support::crowd::{self, Client, Fate, Heard, Leaves, Question, Surface};
use crate::support::relay::Relay;
use crate::support::*;

const ACCOUNTS: usize = 4;
const QUESTIONS: usize = 30;
const CLIENTS: usize = 24;
/// Connections from the gateway that nobody uses are closed after this.
const IDLE: Duration = Duration::from_secs(2);

/// Before content, after it, at the end, and none at all.
const FAULTS: [&str; 34] = [
    "",
    "",
    "",
    "status=401",
    "status=402",
    "status=429",
    "status=429,retry_after=1",
    "status=500",
    "status=502",
    "status=503",
    "status=504",
    "reset",
    "stall",
    "head=300ms,reset",
    "html",
    "empty",
    "noise",
    "endless_head=5ms",
    "gzip",
    "length=+50",
    "length=-10",
    "queue=300ms",
    "queue=60s",
    "queue=200ms,reset_after=0",
    "queue=200ms,error_first",
    "cut_after=1",
    "cut_after=9",
    "reset_after=12",
    "stall_after=7",
    "end_after=8",
    "error_after=6",
    "garbage=5",
    "finish=insufficient_system_resource",
    "first_token=700ms,burst=5",
];

/// Numbers by chance: SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).unwrap()
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn millis(&mut self, limit: usize) -> Duration {
        Duration::from_millis(self.below(limit) as u64)
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(otherwise, |value| value.parse().unwrap())
}

fn question(surface: Surface, number: usize, streamed: bool) -> Question {
    Question {
        surface,
        text: format!("{number} is the number of this question, whoever asks it."),
        streamed,
    }
}

const SURFACES: [Surface; 3] = [Surface::Chat, Surface::Messages, Surface::Responses];

/// What the emulator says itself, by surface and question.
fn answers(emulator: &Emulator) -> Vec<Vec<String>> {
    let one = |surface, number| {
        let question = question(surface, number, false);
        let request = Request::post(question.path(), &question.body()).bearer("sk-upstream-1");
        let answer = request.send(emulator.address());
        match crowd::of_answer(surface, &answer.text(), true) {
            Fate::Whole(text) => text,
            other => panic!("{other:?}"),
        }
    };
    let all = |surface| (0..QUESTIONS).map(|number| one(surface, number)).collect();
    SURFACES.into_iter().map(all).collect()
}

/// What came of the requests.
#[derive(Default)]
struct Tally {
    fates: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Tally {
    fn count(&mut self, asked: &Question, heard: &Heard, answer: &str) {
        let word = match &heard.fate {
            Fate::Whole(text) if text == answer => "whole".to_owned(),
            Fate::Whole(text) => {
                self.wrong
                    .push(format!("another answer: {text:?} for {answer:?}"));
                return;
            }
            Fate::Pretends(why) => {
                self.wrong.push(format!(
                    "{:?} {} {why} {}",
                    asked.surface, asked.streamed, heard.request_id
                ));
                return;
            }
            Fate::Told(why) => format!("told {why}"),
            Fate::Broken(why) => format!("broken {why}"),
            Fate::Left => "left".to_owned(),
        };
        *self.fates.entry(word).or_default() += 1;
    }

    fn whole(&self) -> usize {
        self.fates.get("whole").copied().unwrap_or_default()
    }

    fn all(&self) -> usize {
        self.fates.values().sum()
    }
}

/// Everything around the gateway.
struct World {
    emulator: Emulator,
    relay: Relay,
    gateway: Gateway,
    answers: Vec<Vec<String>>,
}

fn world() -> World {
    let emulator = Emulator::start(EmulatorConfig {
        first_token_delay: Duration::from_millis(20),
        token_delay: Duration::from_millis(1),
        keep_alive: Duration::from_millis(50),
        ..Emulator::with_accounts(ACCOUNTS)
    });
    let relay = Relay::to(emulator.address());
    // Clocks of seconds in the place of minutes: what waits for one would only wait here.
    let config = Config::for_urls(&[emulator.url(), relay.url()], emulator.accounts())
        .set(
            "/upstreams/0/outlier",
            json!({"ejection": "1s", "max_ejection": "2s", "ramp": "2s"}),
        )
        .set("/upstreams/0/breaker", json!({"open": "1s"}))
        .set("/upstreams/0/idle_timeout", json!("2s"))
        .set(
            "/upstreams/0/timeouts",
            json!({"connect": "1s", "connect_total": "1s", "first_byte": "1s", "queued": "1s",
                   "first_content": "2s", "gap": "1s", "read": "2s", "total": "20s"}),
        );
    let gateway = Gateway::start(config);
    let answers = answers(&emulator);
    World {
        emulator,
        relay,
        gateway,
        answers,
    }
}

/// Clients that ask until they are told to stop.
fn ask(world: &World, seed: u64, patient: bool, stop: &AtomicBool) -> Tally {
    let tally = Mutex::new(Tally::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let clients = (0..CLIENTS).map(|number| {
            let mut dice = Dice(seed ^ (number as u64) << 32);
            let mut client = Client::new(world.gateway.address(), &key("acme"), number % 3 == 0);
            let tally = &tally;
            async move {
                while !stop.load(Ordering::Acquire) {
                    let surface = dice.below(SURFACES.len());
                    let number = dice.below(QUESTIONS);
                    let asked = question(SURFACES[surface], number, dice.percent(70));
                    let leaves = match dice.below(100) {
                        _ if patient => Leaves::Never,
                        0..5 => Leaves::After(dice.millis(150)),
                        5..10 => Leaves::AfterPieces(1 + dice.below(6)),
                        _ => Leaves::Never,
                    };
                    let heard = client.ask(&asked, leaves).await;
                    tally
                        .lock()
                        .count(&asked, &heard, &world.answers[surface][number]);
                    let pause = if heard.is_whole() { 20 } else { 100 };
                    tokio::time::sleep(dice.millis(pause)).await;
                }
            }
        });
        futures_util::future::join_all(clients).await;
    });
    tally.into_inner()
}

/// Something else goes wrong every second, and something is well again.
fn go_wrong(world: &World, seed: u64, stop: &AtomicBool) {
    let mut dice = Dice(seed);
    let accounts: Vec<_> = world
        .emulator
        .accounts()
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    for second in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        // Each illness lasts a second or two, that of all accounts one.
        world.emulator.order(None, "");
        for account in &accounts {
            if dice.percent(40) {
                world.emulator.order(Some(account), "");
            }
        }
        match dice.below(20) {
            0 => world.emulator.order(None, FAULTS[dice.below(FAULTS.len())]),
            1..4 => {}
            _ => {
                let account = &accounts[dice.below(ACCOUNTS)];
                world
                    .emulator
                    .order(Some(account), FAULTS[dice.below(FAULTS.len())]);
            }
        }
        match dice.below(12) {
            0 => world.relay.reset_all(),
            1 => world.relay.block(),
            2 => world.relay.cut_after(500 + dice.below(20_000)),
            3 => world.relay.delay(dice.millis(80)),
            4 => world.relay.refuse(),
            _ => {
                world.relay.listen();
                world.relay.pass();
            }
        }
        if second % 4 == 3 {
            let attempts = 2 + dice.below(3);
            let took = world
                .gateway
                .reload(|config| config.set("/retry/attempts", json!(attempts)));
            assert_eq!(took, "ok");
        }
        std::thread::sleep(Duration::from_millis(700) + dice.millis(600));
    }
    world.emulator.order(None, "");
    for account in &accounts {
        world.emulator.order(Some(account), "");
    }
    world.relay.listen();
    world.relay.pass();
}

/// What a process has.
#[derive(Debug, Clone, Copy)]
struct Size {
    files: usize,
    threads: usize,
    resident: u64,
}

fn size(pid: u32) -> Size {
    let count = |of: &str| {
        std::fs::read_dir(format!("/proc/{pid}/{of}"))
            .unwrap()
            .count()
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    Size {
        files: count("fd"),
        threads: count("task"),
        resident: kilobytes.parse::<u64>().unwrap() << 10,
    }
}

/// Nothing is under way any more, and connections that nobody uses are closed.
fn settle(world: &World) -> Size {
    let gauges = [
        "tidegate_requests_in_flight",
        "tidegate_requests_admitted",
        "tidegate_leases_open",
        "tidegate_leases_unmatched",
        "tidegate_account_in_flight",
        "tidegate_queue_length",
        "tidegate_request_body_buffer_bytes",
        "tidegate_connections_open",
    ];
    let mut left = BTreeMap::new();
    let began = Instant::now();
    loop {
        left.clear();
        for name in gauges {
            let value = world.gateway.metric(name, &[]);
            if value != 0.0 {
                left.insert(name, value);
            }
        }
        let at_work = world.emulator.in_flight();
        let open = world.relay.open();
        if left.is_empty() && at_work == 0 && open == 0 {
            break;
        }
        let late = began.elapsed() > Duration::from_secs(30);
        assert!(!late, "left: {left:?}, at work {at_work}, open {open}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Those to the emulator itself go by the same clock.
    std::thread::sleep(IDLE + Duration::from_secs(1));
    size(world.gateway.pid())
}

/// The growth from the third quarter's middle to the last one's, of one.
fn growth(samples: &[u64]) -> f64 {
    let quarter = samples.len() / 4;
    let mean = |from: usize| {
        let part = &samples[from..from + quarter];
        part.iter().sum::<u64>() as f64 / quarter.max(1) as f64
    };
    mean(samples.len() - quarter) / mean(samples.len() - 2 * quarter) - 1.0
}

#[test]
fn whatever_goes_wrong_each_answer_is_whole_or_visibly_broken_and_nothing_is_left() {
    let seconds = setting("SOAK_SECONDS", 20);
    let seed = setting("SOAK_SEED", crowd::now_ms());
    eprintln!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let world = world();
    let run = |time: Duration, wrong: bool| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let clients = scope.spawn(|| ask(&world, seed, !wrong, &stop));
            let faults = wrong.then(|| scope.spawn(|| go_wrong(&world, seed, &stop)));
            let (began, mut samples) = (Instant::now(), Vec::new());
            while began.elapsed() < time {
                std::thread::sleep(Duration::from_millis(500));
                samples.push(size(world.gateway.pid()).resident);
                if clients.is_finished() || faults.as_ref().is_some_and(|it| it.is_finished()) {
                    break;
                }
            }
            stop.store(true, Ordering::Release);
            faults.into_iter().for_each(|faults| faults.join().unwrap());
            (clients.join().unwrap(), samples)
        })
    };
    let (well, _) = run(Duration::from_secs(5), false);
    assert!(
        well.wrong.is_empty() && well.whole() == well.all(),
        "{:?} {:?}",
        well.fates,
        well.wrong
    );
    let before = settle(&world);
    let (tally, samples) = run(Duration::from_secs(seconds), true);
    let after = settle(&world);
    let grown = growth(&samples);
    eprintln!(
        "{:#?}\n{} requests, {before:?} → {after:?}, at most {:?} MiB, growth {:.1} %",
        tally.fates,
        tally.all(),
        samples.iter().max().map(|most| most >> 20),
        grown * 100.0,
    );
    assert!(
        tally.wrong.is_empty(),
        "{} wrong: {:#?}",
        tally.wrong.len(),
        &tally.wrong[..tally.wrong.len().min(5)]
    );
    assert!(tally.whole() * 2 > tally.all(), "{:?}", tally.fates);
    // Everybody is served again.
    let (well, _) = run(Duration::from_secs(3), false);
    eprintln!("afterwards {:?}", well.fates);
    assert!(after.files <= before.files, "{before:?} → {after:?}");
    assert!(after.threads <= before.threads, "{before:?} → {after:?}");
    assert!(
        after.resident * 10 <= before.resident * 13,
        "{before:?} → {after:?}"
    );
    // In a short one the first use of everything is most of what there is.
    assert!(seconds < 120 || grown < 0.05, "{grown}");
}
