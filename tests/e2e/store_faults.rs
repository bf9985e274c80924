//! What happens to the database of counts never stops a request: it is loud, counting goes on in
//! memory, and what was missed is written when that is possible again, once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use serde_json::json;
use tidegate::database::FILE;

use crate::support::books::{ledger, noon, sum};
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const TOKENS: &str = "all/*/tokens_per_day";
const REQUESTS: &str = "all/*/requests_per_day";

fn config(emulator: &Emulator) -> Config {
    Config::for_emulator(emulator)
        .set("/accounting/time_zone", noon())
        .set(
            "/plans/tested",
            json!({"requests_per_day": 100, "tokens_per_day": 1_000_000, "max_concurrent": 5}),
        )
        .set("/tenants/0/plan", json!("tested"))
}

fn stage() -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(config(&emulator));
    (emulator, gateway)
}

fn database(gateway: &Gateway) -> PathBuf {
    gateway.state_dir().join(FILE)
}

fn ask(gateway: &Gateway, times: usize) {
    for _ in 0..times {
        assert_eq!(gateway.post(CHAT, &chat("hi")).status, 200);
    }
}

/// Requests and tokens that the emulator has told.
fn told(emulator: &Emulator) -> (u64, u64) {
    let calls = emulator.journal();
    let usage = calls.iter().filter_map(|call| call.usage);
    let tokens = usage.map(|usage| usage.prompt + usage.completion).sum();
    (calls.len() as u64, tokens)
}

fn counted(gateway: &Gateway) -> (u64, u64) {
    gateway.wait_until_idle(SOON);
    let used = |limit| gateway.standing("acme", limit).0;
    (used(REQUESTS), used(TOKENS))
}

fn written(gateway: &Gateway) -> (u64, u64) {
    gateway.wait_until_written();
    let counts = sum(ledger(&gateway.state_dir()).values());
    (counts.requests, counts.prompt + counts.completion)
}

fn healthy(gateway: &Gateway, wanted: f64) {
    let what = format!("store_healthy is {wanted}");
    eventually(&what, SOON, || {
        (gateway.metric("tidegate_store_healthy", &[]) == wanted).then_some(())
    });
}

fn moved_aside(gateway: &Gateway) -> Vec<PathBuf> {
    let entries = fs::read_dir(gateway.state_dir()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths
        .filter(|path| name(path).contains(".corrupt-"))
        .filter(|path| !["-wal", "-shm"].iter().any(|log| name(path).ends_with(log)))
        .collect()
}

#[test]
fn without_a_database_a_new_one_is_made_and_used() {
    let (emulator, gateway) = stage();
    gateway.logged(&["A new database of counts was made"]);
    ask(&gateway, 3);
    healthy(&gateway, 1.0);
    assert_eq!(counted(&gateway), told(&emulator));
    assert_eq!(written(&gateway), told(&emulator));
    assert_eq!(gateway.metric("tidegate_store_replaced_total", &[]), 0.0);
    assert_eq!(gateway.metric("tidegate_store_errors_total", &[]), 0.0);
}

#[test]
fn garbage_in_its_place_is_moved_aside_and_serving_goes_on() {
    let (emulator, gateway) = stage();
    ask(&gateway, 2);
    gateway.signal("TERM");
    gateway.exit(SOON);
    let garbage = "This is no database. ".repeat(1_000);
    fs::write(database(&gateway), &garbage).unwrap();
    for log in ["-wal", "-shm"] {
        let _ = fs::remove_file(gateway.state_dir().join(format!("{FILE}{log}")));
    }
    emulator.forget_calls();
    let next = gateway.again();
    next.logged(&["\"level\":\"error\"", "was moved aside", ".corrupt-"]);
    assert_eq!(next.metric("tidegate_store_replaced_total", &[]), 1.0);
    healthy(&next, 1.0);
    let aside = moved_aside(&next);
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read_to_string(&aside[0]).unwrap(), garbage);
    ask(&next, 3);
    assert_eq!(counted(&next), told(&emulator));
    assert_eq!(written(&next), told(&emulator));
}

#[test]
fn without_a_usable_state_dir_it_counts_in_memory_and_says_so() {
    let emulator = Emulator::quick();
    let config = config(&emulator)
        .file("file", "in the way")
        .set("/server/state_dir", json!("file/state"))
        .set("/plans/tested/requests_per_day", json!(3));
    let gateway = Gateway::start(config);
    gateway.logged(&["\"level\":\"error\"", "counts are kept in memory alone"]);
    healthy(&gateway, 0.0);
    ask(&gateway, 3);
    assert_eq!(gateway.post(CHAT, &chat("hi")).status, 429);
    assert_eq!(counted(&gateway), told(&emulator));
    assert!(gateway.stop().success());
}

#[test]
fn a_state_dir_that_becomes_usable_is_used_with_all_that_was_counted() {
    let emulator = Emulator::quick();
    let config = config(&emulator)
        .file("file", "in the way")
        .set("/server/state_dir", json!("file/state"));
    let gateway = Gateway::start(config);
    ask(&gateway, 3);
    let place = gateway.folder().join("file");
    fs::remove_file(&place).unwrap();
    healthy(&gateway, 1.0);
    gateway.logged(&["can be used again"]);
    ask(&gateway, 2);
    gateway.wait_until_idle(SOON);
    gateway.wait_until_written();
    let counts = sum(ledger(&place.join("state")).values());
    let all = (counts.requests, counts.prompt + counts.completion);
    assert_eq!(all, told(&emulator));
    gateway.signal("TERM");
    gateway.exit(SOON);
    let reader = Connection::open(place.join("state").join(FILE)).unwrap();
    let used: i64 = reader
        .query_row(
            "SELECT max(first_used, second_used) FROM counters WHERE subject = 'tenant/acme' AND key = ?1",
            [REQUESTS],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(used, 5);
}

/// Nothing that the process writes to a file fits any more, or all of it does again.
fn room(gateway: &Gateway, limit: &str) -> bool {
    let mut command = Command::new("prlimit");
    command.args([
        "--pid",
        &gateway.pid().to_string(),
        &format!("--fsize={limit}:unlimited"),
    ]);
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn without_room_for_a_byte_requests_go_on_and_all_is_written_once_later() {
    let emulator = Emulator::quick();
    // A limit stands in for the disk; its signal is ignored, as a full disk sends none.
    let config = config(&emulator).under(&["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    let gateway = Gateway::start(config);
    ask(&gateway, 3);
    assert_eq!(written(&gateway), told(&emulator));
    if !room(&gateway, "1") {
        eprintln!("skipped: prlimit(1) is not there, or may not");
        return;
    }
    ask(&gateway, 4);
    healthy(&gateway, 0.0);
    gateway.logged(&["\"level\":\"error\"", "Requests go on", "what=write"]);
    let errors = || gateway.metric("tidegate_store_errors_total", &["operation=\"write\""]);
    let before = errors();
    assert!(before >= 1.0);
    ask(&gateway, 2);
    eventually("it is tried again", SOON, || {
        (errors() > before + 2.0).then_some(())
    });
    assert_eq!(counted(&gateway), told(&emulator));
    let old = sum(ledger(&gateway.state_dir()).values());
    assert_eq!(old.requests, 3);
    assert!(gateway.metric("tidegate_ledger_pending_rows", &[]) >= 1.0);
    assert!(room(&gateway, "unlimited"));
    healthy(&gateway, 1.0);
    ask(&gateway, 1);
    assert_eq!(counted(&gateway), told(&emulator));
    assert_eq!(written(&gateway), told(&emulator));
    assert_eq!(gateway.metric("tidegate_store_replaced_total", &[]), 0.0);
    gateway.signal("TERM");
    gateway.exit(SOON);
    let next = gateway.again();
    assert_eq!(counted(&next), told(&emulator));
    assert_eq!(written(&next), told(&emulator));
}

/// Whether this user may mount a small disk of its own, seen by one process alone.
fn may_mount() -> bool {
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", "mount -t tmpfs none /tmp"]);
    command.output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_is_told_as_such_and_forgiven() {
    if !may_mount() {
        eprintln!("skipped: no disk can be mounted here");
        return;
    }
    let emulator = Emulator::quick();
    let mount = "cd \"$(dirname \"$4\")\" && mkdir -p state && mount -t tmpfs -o size=2m none state \
                 && exec \"$@\"";
    let config = config(&emulator).under(&["unshare", "-rm", "sh", "-c", mount, "sh"]);
    let gateway = Gateway::start(config);
    // The disk is seen through the process that has it.
    let state_dir = gateway.state_dir();
    let inside = format!("/proc/{}/root{}", gateway.pid(), state_dir.display());
    let inside = Path::new(&inside);
    ask(&gateway, 3);
    gateway.wait_until_written();
    let filler = inside.join("filler");
    let _ = fs::write(&filler, vec![0; 4 << 20]);
    ask(&gateway, 4);
    // Some pages may still find a place in the log that is there already.
    eventually("the disk is full", SOON, || {
        ask(&gateway, 1);
        let full = ["kind=\"full\""];
        (gateway.metric("tidegate_store_errors_total", &full) > 0.0).then_some(())
    });
    fs::remove_file(&filler).unwrap();
    healthy(&gateway, 1.0);
    assert_eq!(counted(&gateway), told(&emulator));
    gateway.wait_until_written();
    // SQLite would look for this path outside.
    let copy = tempfile::tempdir().unwrap();
    for name in [FILE.to_owned(), format!("{FILE}-wal")] {
        fs::copy(inside.join(&name), copy.path().join(&name)).unwrap();
    }
    let counts = sum(ledger(copy.path()).values());
    let all = (counts.requests, counts.prompt + counts.completion);
    assert_eq!(all, told(&emulator));
}

#[test]
fn a_database_deleted_while_it_is_used_is_made_anew_from_memory() {
    let (emulator, gateway) = stage();
    ask(&gateway, 3);
    gateway.wait_until_written();
    for ending in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(gateway.state_dir().join(format!("{FILE}{ending}")));
    }
    gateway.logged(&[
        "\"level\":\"error\"",
        "was deleted or replaced",
        "kind=gone",
    ]);
    eventually("there is a new one", SOON, || {
        database(&gateway).exists().then_some(())
    });
    healthy(&gateway, 1.0);
    ask(&gateway, 2);
    assert_eq!(counted(&gateway), told(&emulator));
    // Rows of before are gone with the file; limits are not.
    assert_eq!(written(&gateway).0, 2);
    gateway.signal("TERM");
    gateway.exit(SOON);
    let next = gateway.again();
    assert_eq!(counted(&next), told(&emulator));
}

#[test]
fn a_database_overwritten_while_it_is_used_is_moved_aside_and_made_anew() {
    let (emulator, gateway) = stage();
    ask(&gateway, 3);
    gateway.wait_until_written();
    let path = database(&gateway);
    let outside = Connection::open(&path).unwrap();
    eventually("all is in the file itself", SOON, || {
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: i64 = outside.query_row(checkpoint, [], |row| row.get(0)).unwrap();
        (busy == 0).then_some(())
    });
    drop(outside);
    let length = fs::metadata(&path).unwrap().len();
    fs::write(&path, vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
    gateway.logged(&["\"level\":\"error\"", "was moved aside", ".corrupt-"]);
    healthy(&gateway, 1.0);
    assert_eq!(gateway.metric("tidegate_store_replaced_total", &[]), 1.0);
    assert_eq!(moved_aside(&gateway).len(), 1);
    ask(&gateway, 2);
    assert_eq!(counted(&gateway), told(&emulator));
    assert_eq!(written(&gateway).0, 2);
    gateway.signal("TERM");
    gateway.exit(SOON);
    let next = gateway.again();
    assert_eq!(counted(&next), told(&emulator));
}

#[test]
fn a_database_of_a_newer_tidegate_is_left_alone_and_nothing_starts() {
    let (_emulator, gateway) = stage();
    ask(&gateway, 1);
    gateway.signal("TERM");
    gateway.exit(SOON);
    let connection = Connection::open(database(&gateway)).unwrap();
    connection
        .pragma_update(None, "user_version", 1_000)
        .unwrap();
    drop(connection);
    let next = gateway.beside();
    assert_eq!(next.exit(SOON).code(), Some(1));
    let log = next.log().join("\n");
    for word in ["written by a newer tidegate", "move the file away", FILE] {
        assert!(log.contains(word), "no {word}: {log}");
    }
    assert!(moved_aside(&gateway).is_empty());
    let connection = Connection::open(database(&gateway)).unwrap();
    let requests: i64 = connection
        .query_row("SELECT sum(requests) FROM ledger", [], |row| row.get(0))
        .unwrap();
    assert_eq!(requests, 1);
}
