//! The wall clock of a running gateway steps, back and forward and over midnight: nobody is locked
//! out, and no day is given twice. By libfaketime; without it the unit tests of `admission` are all
//! there is.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::books::{ledger, noon, sum};
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const REQUESTS: &str = "all/*/requests_per_day";
const TOKENS: &str = "all/*/tokens_per_month";
/// Debian's places for it.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];
const DAY: &str = "86400";

/// A gateway whose wall clock can be stepped; the monotonic one goes on as it does.
struct Stage {
    _emulator: Emulator,
    gateway: Gateway,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Option<Self> {
        let Some(library) = LIBRARIES.iter().find(|path| Path::new(path).exists()) else {
            eprintln!("skipped: libfaketime is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let steps = folder.path().join("steps");
        fs::write(&steps, "+0").unwrap();
        let emulator = Emulator::quick();
        let config = Config::for_emulator(&emulator)
            .set("/accounting/time_zone", noon())
            .set(
                "/plans/tested",
                json!({"requests_per_day": 3, "tokens_per_month": 1_000_000,
                    "requests_per_minute": {"limit": 60, "burst": 50}, "max_concurrent": 5}),
            )
            .set("/tenants/0/plan", json!("tested"))
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", steps.to_str().unwrap())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let gateway = Gateway::start(config);
        Some(Self {
            _emulator: emulator,
            gateway,
            folder,
        })
    }

    /// Puts the clock so many seconds from the true time, at once.
    fn step(&self, offset: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, offset).unwrap();
        fs::rename(new, self.folder.path().join("steps")).unwrap();
    }

    fn statuses(&self, times: usize) -> Vec<u16> {
        let ask = |_| self.gateway.post(CHAT, &chat("hi")).status;
        (0..times).map(ask).collect()
    }

    fn used_today(&self) -> u64 {
        self.gateway.standing("acme", REQUESTS).0
    }
}

#[test]
fn a_clock_that_steps_over_midnight_and_back_gives_each_day_once() {
    let Some(stage) = Stage::new() else { return };
    assert_eq!(stage.statuses(4), [200, 200, 200, 429]);
    stage.step(&format!("+{DAY}"));
    assert_eq!(stage.used_today(), 0);
    assert_eq!(stage.statuses(2), [200, 200]);
    // Back: of the first day nothing is left, and the second one is remembered.
    stage.step("+0");
    assert_eq!(stage.statuses(2), [429, 429]);
    assert_eq!(stage.used_today(), 3);
    stage.step(&format!("+{DAY}"));
    assert_eq!(stage.statuses(2), [200, 429]);
    // A day that never was is a day of its own, and leads nobody back to a fresh budget.
    stage.step(&format!("-{DAY}"));
    assert_eq!(stage.statuses(4), [200, 200, 200, 429]);
    assert!(stage.gateway.is_running());
    stage.gateway.wait_until_idle(SOON);
    stage.gateway.wait_until_written();
    let counts = sum(ledger(&stage.gateway.state_dir()).values());
    assert_eq!(counts.requests, 9);
    assert_eq!(
        stage.gateway.metric("tidegate_store_errors_total", &[]),
        0.0
    );
}

#[test]
fn what_is_under_way_when_the_clock_steps_is_settled_and_locks_nobody_out() {
    let Some(stage) = Stage::new() else { return };
    for offset in ["-86400", "+86400", "+0"] {
        let body = chat_stream("[[fault:token_delay=20ms,tokens=20]]");
        let mut stream = stage.gateway.stream(CHAT, &body);
        if stream.status == 429 {
            // Its day is over; that is as it should be.
            continue;
        }
        stream.read_until("data: ");
        stage.step(offset);
        assert_eq!(stream.rest().ending, Ending::Whole);
        stage.gateway.wait_until_idle(SOON);
        let (_, reserved) = stage.gateway.standing("acme", TOKENS);
        assert_eq!(reserved, 0);
    }
    // Minutes do not follow the wall clock at all.
    let (used, _) = stage.gateway.standing("acme", "all/*/requests_per_minute");
    assert!(used <= 3, "{used}");
}

#[test]
fn a_restart_on_another_day_of_the_clock_finds_the_counts_of_both() {
    let Some(stage) = Stage::new() else { return };
    assert_eq!(stage.statuses(2), [200, 200]);
    stage.gateway.signal("TERM");
    stage.gateway.exit(SOON);
    stage.step(&format!("-{DAY}"));
    let earlier = stage.gateway.again();
    let ask = |gateway: &Gateway| gateway.post(CHAT, &chat("hi")).status;
    assert_eq!(ask(&earlier), 200);
    assert_eq!(earlier.standing("acme", REQUESTS).0, 1);
    // The bucket of minutes was used at a time that is yet to come; it is not fuller for that.
    let (used, _) = earlier.standing("acme", "all/*/requests_per_minute");
    assert!(used <= 4, "{used}");
    earlier.signal("TERM");
    earlier.exit(SOON);
    stage.step("+0");
    let later = earlier.again();
    assert_eq!(later.standing("acme", REQUESTS).0, 2);
    assert_eq!([ask(&later), ask(&later)], [200, 429]);
}
