//! Files that are damaged, foreign, full, replaced or out of reach.

use super::*;

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
