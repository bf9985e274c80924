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
fn a_file_that_is_no_database_is_moved_aside_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let garbage = "not a database, not at all. ".repeat(300);
    for name in [
        "tidegate.db.corrupt-1793534400",
        "tidegate.db.corrupt-1793534400.1",
    ] {
        fs::write(&path, &garbage).unwrap();
        let (database, state) = open(&path);
        let State::Replaced { aside, why } = state else {
            panic!("{state:?}");
        };
        assert_eq!(aside, folder.path().join(name));
        assert!(!why.is_empty());
        assert_eq!(fs::read_to_string(&aside).unwrap(), garbage);
        assert!(database.read_counters().unwrap().is_empty());
    }
}

#[test]
fn a_database_with_a_damaged_page_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let rows: Vec<_> = (0..2_000).map(|n| row(HOUR + n * 3_600, "a", 1)).collect();
    let batch = Batch {
        ledger: &rows,
        ..Batch::default()
    };
    database.write(&batch).unwrap();
    drop(database);
    assert!(!with(&path, "-wal").exists());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4_096 * 4_096;
    bytes[middle..middle + 2_048].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let (database, state) = open(&path);
    assert!(matches!(state, State::Replaced { .. }), "{state:?}");
    drop(database);
    assert_eq!(open(&path).1, State::Existing);
}

#[test]
fn a_database_of_another_program_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(other);
    assert!(Reader::open(&path).is_err());
    let State::Replaced { aside, why } = open(&path).1 else {
        panic!();
    };
    assert!(why.contains("another program"));
    let theirs = Connection::open(aside).unwrap();
    theirs.execute("INSERT INTO theirs VALUES (1)", []).unwrap();
}

#[test]
fn a_newer_form_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (database, _) = open(&path);
    let newer = schema::known() + 1;
    let set = |version| {
        database
            .connection
            .pragma_update(None, "user_version", version)
    };
    set(newer).unwrap();
    for error in [
        Database::open(&path, at(HOUR)).unwrap_err(),
        Reader::open(&path).unwrap_err(),
    ] {
        assert!(matches!(error, DatabaseError::Newer { .. }));
        assert!(!error.is_corrupt());
        assert!(error.to_string().contains("move the file away"));
    }
    set(schema::known()).unwrap();
    assert_eq!(open(&path).1, State::Existing);
}

#[test]
fn a_place_where_nothing_can_be_made_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Database::open(&file.join(FILE), at(HOUR)).unwrap_err();
    assert!(error.is_read_only() || matches!(error, DatabaseError::File { .. }));
    assert!(!error.is_corrupt());
    let directory = folder.path().join("dir").join(FILE);
    fs::create_dir_all(&directory).unwrap();
    let error = Database::open(&directory, at(HOUR)).unwrap_err();
    assert!(error.is_read_only(), "{error:?}");
    // Nothing that stands there is taken for a database and moved.
    assert!(directory.is_dir());
}

#[test]
fn a_database_that_became_read_only_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    database
        .connection
        .pragma_update(None, "query_only", true)
        .unwrap();
    let batch = Batch {
        counters: &[counter("a", 1)],
        ..Batch::default()
    };
    let error = database.write(&batch).unwrap_err();
    assert!(error.is_read_only() && !error.is_full() && !error.is_corrupt());
}

#[test]
fn a_full_disk_takes_nothing_of_a_batch_and_the_same_batch_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let pages = |most: i64| {
        let set = format!("PRAGMA max_page_count = {most}");
        move |connection: &Connection| connection.query_row(&set, [], |row| row.get::<_, i64>(0))
    };
    let now: i64 = database
        .connection
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .unwrap();
    pages(now + 3)(&database.connection).unwrap();
    let rows: Vec<_> = (0..2_000).map(|n| row(HOUR + n * 3_600, "a", 1)).collect();
    let batch = Batch {
        counters: &[counter("a", 1)],
        ledger: &rows,
        ..Batch::default()
    };
    let error = database.write(&batch).unwrap_err();
    assert!(error.is_full(), "{error:?}");
    assert!(database.read_counters().unwrap().is_empty());
    assert!(ledger(&path, ALWAYS).is_empty());
    pages(1 << 30)(&database.connection).unwrap();
    database.write(&batch).unwrap();
    assert_eq!(ledger(&path, ALWAYS).len(), 2_000);
    assert_eq!(database.read_counters().unwrap().len(), 1);
}

#[test]
fn a_file_that_was_deleted_or_replaced_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let batch = Batch {
        counters: &[counter("a", 1)],
        ..Batch::default()
    };
    database.look().unwrap();
    fs::remove_file(&path).unwrap();
    database.write(&batch).unwrap();
    let error = database.look().unwrap_err();
    assert!(error.is_gone() && !error.is_corrupt(), "{error:?}");
    let (mut other, state) = open(&path);
    assert_eq!(state, State::Fresh);
    assert!(database.look().unwrap_err().is_gone());
    database.write(&batch).unwrap();
    assert!(database.look().unwrap_err().is_gone());
    other.look().unwrap();
}

#[test]
fn what_others_wrote_into_the_file_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let (mut other, _) = open(&path);
    let batch = Batch {
        counters: &[counter("a", 1)],
        ..Batch::default()
    };
    other.write(&batch).unwrap();
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    other
        .connection
        .query_row(checkpoint, [], |_| Ok(()))
        .unwrap();
    drop(other);
    database.look().unwrap();
    let length = fs::metadata(&path).unwrap().len();
    let garbage = vec![0xa5; usize::try_from(length).unwrap()];
    fs::write(&path, garbage).unwrap();
    let error = database.look().unwrap_err();
    assert!(error.is_corrupt(), "{error:?}");
}

#[test]
fn ledger_rows_add_up_and_never_overflow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let mut most = row(HOUR, "most", 1);
    most.counts.prompt = u64::MAX;
    most.counts.cost = Money::from_nanos(u64::MAX - 1);
    let rows = [row(HOUR, "a", 2), most, row(HOUR + 3_600, "a", 1)];
    for _ in 0..2 {
        let batch = Batch {
            ledger: &rows,
            ..Batch::default()
        };
        database.write(&batch).unwrap();
    }
    let found = ledger(&path, ALWAYS);
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].counts.requests, 4);
    assert_eq!(found[0].counts.saved, Money::from_nanos(12));
    assert_eq!(found[1].counts.prompt, i64::MAX as u64);
    assert_eq!(found[1].counts.cost.nanos(), i64::MAX as u64);
    assert_eq!(found[1].counts.cut, 2);
}

#[test]
fn a_period_holds_the_hours_that_begin_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let rows: Vec<_> = (0..4).map(|n| row(HOUR + n * 3_600, "a", 1)).collect();
    let batch = Batch {
        ledger: &rows,
        ..Batch::default()
    };
    database.write(&batch).unwrap();
    let hours = |from, to| -> Vec<i64> {
        let period = Period { from, to };
        let hours = ledger(&path, period);
        let hours = hours
            .iter()
            .map(|row| (row.key.hour.start() - HOUR) / 3_600);
        hours.collect()
    };
    assert_eq!(hours(at(HOUR + 3_600), at(HOUR + 3 * 3_600)), [1, 2]);
    let just_after = at(HOUR) + jiff::SignedDuration::from_nanos(1);
    assert_eq!(hours(just_after, Timestamp::MAX), [1, 2, 3]);
    assert_eq!(hours(Timestamp::MIN, just_after), [0]);
    assert_eq!(database.forget_ledger(at(HOUR + 3_601)).unwrap(), 2);
    assert_eq!(hours(Timestamp::MIN, Timestamp::MAX), [2, 3]);
}

#[test]
fn counters_are_replaced_saturate_and_are_forgotten_when_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let (mut database, _) = open(&folder.path().join(FILE));
    let mut write = |rows: &[CounterRow], now| {
        let rows = rows.iter().cloned();
        let rows: Vec<_> = rows
            .map(|row| CounterRow {
                written: at(now),
                ..row
            })
            .collect();
        let batch = Batch {
            counters: &rows,
            ..Batch::default()
        };
        database.write(&batch).unwrap();
        database.read_counters().unwrap()
    };
    write(&[counter("a", 1), counter("b", 1)], HOUR);
    let mut most = counter("a", u64::MAX);
    most.bucket_level = u64::MAX;
    most.spans[1].start = i64::MIN;
    let found = write(&[most], HOUR + 10);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].spans[0].used, i64::MAX as u64);
    assert_eq!(found[0].bucket_level, i64::MAX as u64);
    assert_eq!(found[0].spans[1].start, i64::MIN);
    assert_eq!(database.forget_counters(at(HOUR + 10)).unwrap(), 1);
    assert_eq!(database.read_counters().unwrap()[0].subject, "a");
}

#[test]
fn what_a_process_holds_is_replaced_and_forgotten_by_process() {
    let folder = tempfile::tempdir().unwrap();
    let (mut database, _) = open(&folder.path().join(FILE));
    let held = |key: &str, amount| HeldRow {
        subject: "s".to_owned(),
        key: key.to_owned(),
        amount,
    };
    let mut write = |process, rows: Option<&[HeldRow]>| {
        let batch = Batch {
            process,
            held: rows,
            counters: &[counter("a", 1)],
            ..Batch::default()
        };
        database.write(&batch).unwrap();
    };
    write("a", Some(&[held("x", 1), held("y", 2)]));
    write("b", Some(&[held("x", 3)]));
    write("a", Some(&[held("y", 5)]));
    write("b", None);
    let named = |process: &str, row| (process.to_owned(), row);
    let expected = [named("a", held("y", 5)), named("b", held("x", 3))];
    assert_eq!(database.read_held().unwrap(), expected);
    assert_eq!(database.forget_held("a").unwrap(), 1);
    assert_eq!(database.read_held().unwrap(), expected[1..]);
}

#[test]
fn a_settlement_is_taken_once_by_whoever_asks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut old, _) = open(&path);
    let written = 200;
    let left = AtomicU64::new(written);
    let mut taken: Vec<u64> = std::thread::scope(|scope| {
        let takers = [0, 1].map(|_| {
            scope.spawn(|| {
                let (mut database, _) = open(&path);
                let mut taken = Vec::new();
                while left.load(Ordering::Acquire) > 0 {
                    let rows = database.take_settlements().unwrap();
                    left.fetch_sub(rows.len() as u64, Ordering::AcqRel);
                    taken.extend(rows.iter().map(|(_, row)| row.taken));
                }
                taken
            })
        });
        for number in 0..written {
            let row = SettlementRow {
                subject: "s".to_owned(),
                key: "k".to_owned(),
                released: 0,
                taken: number,
            };
            let batch = Batch {
                process: "old",
                settlements: &[row],
                ..Batch::default()
            };
            old.write(&batch).unwrap();
        }
        let taken = takers.map(|taker| taker.join().unwrap());
        taken.concat()
    });
    taken.sort_unstable();
    assert_eq!(taken, (0..written).collect::<Vec<_>>());
}

#[test]
fn a_report_reads_beside_the_writer_and_sees_whole_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let reader = Reader::open(&path).unwrap();
            let mut reads = 0;
            loop {
                let last = done.load(Ordering::Acquire);
                let mut sums = [0u64; 2];
                reader
                    .read_ledger(ALWAYS, |row| {
                        sums[usize::from(&*row.key.tenant == "b")] += row.counts.requests;
                    })
                    .unwrap();
                assert_eq!(sums[0], sums[1]);
                reads += 1;
                if last {
                    return (reads, sums[0]);
                }
            }
        });
        for _ in 0..100 {
            let batch = Batch {
                ledger: &[row(HOUR, "a", 1), row(HOUR, "b", 1)],
                ..Batch::default()
            };
            database.write(&batch).unwrap();
        }
        done.store(true, Ordering::Release);
        let (reads, sum) = reading.join().unwrap();
        assert!(reads > 0);
        assert_eq!(sum, 100);
    });
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
fn in_what_the_ledger_is_kept_is_told_with_what_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let (mut database, _) = open(&path);
    let meta = |currency: &str| Meta {
        currency: currency.to_owned(),
        time_zone: "Asia/Shanghai".to_owned(),
    };
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.read_meta().unwrap(), None);
    assert_eq!(database.write_meta(&meta("USD")).unwrap(), None);
    assert_eq!(
        database.write_meta(&meta("CNY")).unwrap(),
        Some(meta("USD"))
    );
    assert_eq!(reader.read_meta().unwrap(), Some(meta("CNY")));
}

#[test]
fn a_report_makes_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let error = Reader::open(&path).unwrap_err();
    assert!(matches!(error, DatabaseError::Missing(_)));
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    assert!(matches!(
        Reader::open(&path).unwrap_err(),
        DatabaseError::Missing(_)
    ));
    fs::write(&path, "garbage ".repeat(1_000)).unwrap();
    assert!(Reader::open(&path).unwrap_err().is_corrupt());
}

#[test]
fn switches_are_replaced_as_a_whole_and_only_where_a_batch_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let (mut database, _) = open(&folder.path().join(FILE));
    let mut write = |switches: Option<&[SwitchRow]>| {
        let counters = [counter("tenant/search", 7)];
        let batch = Batch {
            counters: &counters,
            switches,
            ..Batch::default()
        };
        database.write(&batch).unwrap();
        database.read_switches().unwrap()
    };
    let (one, other) = (switch("model", "flash"), switch("tenant", "search"));
    let both = [one.clone(), other.clone()];
    assert_eq!(write(Some(&both)), both);
    assert_eq!(write(None), both);
    assert_eq!(write(Some(&both[1..])), [other]);
    assert!(write(Some(&[])).is_empty());
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
