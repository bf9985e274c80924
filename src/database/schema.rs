//! The tables, and how a file of an older form becomes one of ours.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::DatabaseError;

/// "tide", in the header of every file of ours.
pub(super) const APPLICATION_ID: i32 = 0x7469_6465;

/// One step each, never changed once released; the count of steps taken is the file's
/// `user_version`.
const STEPS: &[&str] = &[
    "
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE counters (
    subject         TEXT NOT NULL,
    key             TEXT NOT NULL,
    bucket_level    INTEGER NOT NULL, -- nanoseconds
    bucket_amount   INTEGER NOT NULL,
    first_start     INTEGER NOT NULL,
    first_used      INTEGER NOT NULL,
    first_extra     INTEGER NOT NULL,
    second_start    INTEGER NOT NULL,
    second_used     INTEGER NOT NULL,
    second_extra    INTEGER NOT NULL,
    touched         INTEGER NOT NULL, -- unix milliseconds
    PRIMARY KEY (subject, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE held (
    process TEXT NOT NULL,
    subject TEXT NOT NULL,
    key     TEXT NOT NULL,
    amount  INTEGER NOT NULL,
    PRIMARY KEY (process, subject, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE settlements (
    id       INTEGER PRIMARY KEY,
    process  TEXT NOT NULL,
    subject  TEXT NOT NULL,
    key      TEXT NOT NULL,
    released INTEGER NOT NULL,
    taken    INTEGER NOT NULL
) STRICT;

CREATE TABLE learned (
    model TEXT NOT NULL PRIMARY KEY,
    text  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger (
    hour       INTEGER NOT NULL, -- unix seconds of its start
    tenant     TEXT NOT NULL,
    model      TEXT NOT NULL,
    upstream   TEXT NOT NULL,
    account    TEXT NOT NULL,
    requests   INTEGER NOT NULL,
    cut        INTEGER NOT NULL,
    estimated  INTEGER NOT NULL,
    unpriced   INTEGER NOT NULL,
    prompt     INTEGER NOT NULL,
    cached     INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    reasoning  INTEGER NOT NULL,
    cost       INTEGER NOT NULL, -- nano-units of meta.currency
    saved      INTEGER NOT NULL,
    PRIMARY KEY (hour, tenant, model, upstream, account)
) STRICT, WITHOUT ROWID;
",
    "
CREATE TABLE switches (
    kind    TEXT NOT NULL,
    part_of TEXT NOT NULL,
    name    TEXT NOT NULL,
    since   INTEGER NOT NULL, -- unix milliseconds
    author  TEXT NOT NULL,
    address TEXT NOT NULL,
    reason  TEXT NOT NULL,
    PRIMARY KEY (kind, part_of, name)
) STRICT, WITHOUT ROWID;
",
];

/// The form this program writes.
pub(super) fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// What the file says it is.
pub(super) struct Header {
    pub(super) application_id: i32,
    pub(super) version: i64,
}

pub(super) fn header(connection: &Connection) -> rusqlite::Result<Header> {
    Ok(Header {
        application_id: connection.pragma_query_value(None, "application_id", |row| row.get(0))?,
        version: connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
    })
}

/// Takes the steps that the file lacks, all or none. Two processes may do it at once. Returns whether
/// the file was empty before.
pub(super) fn bring_up_to_date(
    connection: &mut Connection,
    path: &Path,
) -> Result<bool, DatabaseError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let Header {
        application_id,
        version,
    } = header(&transaction)?;
    let known = known();
    if application_id != APPLICATION_ID && !(application_id == 0 && is_empty(&transaction)?) {
        return Err(DatabaseError::Damaged {
            path: path.to_owned(),
            what: "it belongs to another program".to_owned(),
        });
    }
    if version > known {
        return Err(DatabaseError::Newer {
            path: path.to_owned(),
            found: version,
            known,
        });
    }
    let taken = usize::try_from(version).unwrap_or(0);
    for step in STEPS.get(taken..).unwrap_or_default() {
        transaction.execute_batch(step)?;
    }
    if version != known {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", known)?;
    }
    transaction.commit()?;
    Ok(application_id == 0)
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    let tables = "SELECT count(*) FROM sqlite_schema";
    let count: i64 = connection.query_row(tables, [], |row| row.get(0))?;
    Ok(count == 0)
}
