mod damage;
mod rows;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jiff::Timestamp;

use super::open::with;
use super::*;
use crate::ledger::{Counts, Hour, Key, Money, Period, Row};

const HOUR: i64 = 1_793_534_400;
const ALWAYS: Period = Period {
    from: Timestamp::MIN,
    to: Timestamp::MAX,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn open(path: &Path) -> (Database, State) {
    let opened = Database::open(path, at(HOUR)).unwrap();
    (opened.database, opened.state)
}

fn row(hour: i64, tenant: &str, requests: u64) -> Row {
    Row {
        key: Key {
            hour: Hour::starting_at(hour),
            tenant: tenant.into(),
            model: "flash".into(),
            upstream: "deepseek".into(),
            account: "main".into(),
        },
        counts: Counts {
            requests,
            cut: 1,
            estimated: 2,
            unpriced: 3,
            prompt: requests * 100,
            cached: requests * 64,
            completion: requests * 10,
            reasoning: requests * 4,
            cost: Money::from_nanos(requests * 7),
            saved: Money::from_nanos(requests * 3),
        },
    }
}

fn counter(subject: &str, used: u64) -> CounterRow {
    CounterRow {
        subject: subject.to_owned(),
        key: "requests/day".to_owned(),
        bucket_level: 30_000_000_123,
        written: at(HOUR),
        bucket_amount: 60,
        spans: [
            SpanRow {
                start: HOUR,
                used,
                extra: 5,
            },
            SpanRow::default(),
        ],
    }
}

fn switch(kind: &str, name: &str) -> SwitchRow {
    SwitchRow {
        kind: kind.to_owned(),
        part_of: String::new(),
        name: name.to_owned(),
        since: at(HOUR),
        author: "ann".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        reason: "a loop".to_owned(),
    }
}

fn ledger(path: &Path, period: Period) -> Vec<Row> {
    let mut rows = Vec::new();
    let reader = Reader::open(path).unwrap();
    reader.read_ledger(period, |row| rows.push(row)).unwrap();
    rows
}

/// The files as the end of the process at this instant would leave them.
fn as_after_a_crash(path: &Path, folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let copy = folder.join(FILE);
    for ending in ["", "-wal"] {
        fs::copy(with(path, ending), with(&copy, ending)).unwrap();
    }
    copy
}

#[test]
fn what_was_written_is_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state").join(FILE);
    let (mut database, state) = open(&path);
    assert_eq!(state, State::Fresh);
    let batch = Batch {
        process: "a",
        counters: &[counter("tenant/search", 7)],
        ledger: &[row(HOUR, "search", 1)],
        held: Some(&[HeldRow {
            subject: "tenant/search".to_owned(),
            key: "tokens/day".to_owned(),
            amount: 4_000,
        }]),
        settlements: &[SettlementRow {
            subject: "tenant/search".to_owned(),
            key: "tokens/day".to_owned(),
            released: 500,
            taken: 123,
        }],
        learned: &[LearnedRow {
            model: "flash".to_owned(),
            text: "{}".to_owned(),
        }],
        switches: Some(&[switch("tenant", "search")]),
    };
    database.write(&batch).unwrap();

    let crashed = as_after_a_crash(&path, &folder.path().join("crashed"));
    let (mut again, state) = open(&crashed);
    assert_eq!(state, State::Existing);
    assert_eq!(again.read_counters().unwrap(), batch.counters);
    assert_eq!(again.read_learned().unwrap(), batch.learned);
    assert_eq!(again.read_switches().unwrap(), batch.switches.unwrap());
    let held = batch.held.unwrap()[0].clone();
    assert_eq!(again.read_held().unwrap(), [("a".to_owned(), held)]);
    let settled = ("a".to_owned(), batch.settlements[0].clone());
    assert_eq!(again.take_settlements().unwrap(), [settled]);
    assert!(again.take_settlements().unwrap().is_empty());
    assert_eq!(ledger(&crashed, ALWAYS), batch.ledger);
}

#[test]
fn a_log_that_ends_in_the_middle_loses_its_last_writes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    for used in 1..=40 {
        let counters = [counter("tenant/search", used)];
        let batch = Batch {
            counters: &counters,
            ..Batch::default()
        };
        database.write(&batch).unwrap();
    }
    let length = fs::metadata(with(&path, "-wal")).unwrap().len();
    for (number, part) in [10, 30, 60, 90, 99].into_iter().enumerate() {
        let crashed = as_after_a_crash(&path, &folder.path().join(number.to_string()));
        let log = fs::OpenOptions::new()
            .write(true)
            .open(with(&crashed, "-wal"))
            .unwrap();
        log.set_len(length * part / 100).unwrap();
        let (again, state) = open(&crashed);
        // The tables themselves may have been in what was cut off.
        assert!(!matches!(state, State::Replaced { .. }), "{state:?}");
        let counters = again.read_counters().unwrap();
        assert!(counters.iter().all(|row| row.spans[0].used < 40));
    }
}

#[test]
fn the_file_is_for_its_user_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let batch = Batch {
        counters: &[counter("a", 1)],
        ..Batch::default()
    };
    database.write(&batch).unwrap();
    let mode = |ending| {
        let metadata = fs::metadata(with(&path, ending)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    for ending in ["", "-wal", "-shm"] {
        assert_eq!(mode(ending), 0o600, "{ending}");
    }
    drop(database);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let _again = open(&path);
    assert_eq!(mode(""), 0o600);
}

#[test]
fn two_processes_that_begin_at_once_make_one_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (path, barrier) = (&path, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let (mut database, state) = open(path);
                assert!(!matches!(state, State::Replaced { .. }));
                let batch = Batch {
                    counters: &[counter(&number.to_string(), 1)],
                    ..Batch::default()
                };
                database.write(&batch).unwrap();
            });
        }
    });
    assert_eq!(open(&path).0.read_counters().unwrap().len(), 4);
}

#[test]
fn a_file_from_before_there_were_switches_gets_room_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let counters = [counter("tenant/search", 7)];
    let batch = Batch {
        counters: &counters,
        ..Batch::default()
    };
    database.write(&batch).unwrap();
    let before = "DROP TABLE switches; PRAGMA user_version = 1";
    database.connection.execute_batch(before).unwrap();
    drop(database);
    let (database, state) = open(&path);
    assert_eq!(state, State::Existing);
    assert!(database.read_switches().unwrap().is_empty());
    assert_eq!(database.read_counters().unwrap(), counters);
}
