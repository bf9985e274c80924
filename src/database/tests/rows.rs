//! What is put into the tables, and how it is found again.

use super::*;

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
