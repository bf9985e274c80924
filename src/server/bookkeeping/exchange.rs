//! Between the counts in memory and their rows in the database: the same things in two forms.

use jiff::Timestamp;

use crate::admission::book::{Book, Changed, Holding};
use crate::admission::counter::{Kept, Level, Span};
use crate::admission::estimate::Experience;
use crate::admission::subject::{SubjectName, Told};
use crate::database::{CounterRow, HeldRow, LearnedRow, SettlementRow, SpanRow, SwitchRow};
use crate::routing::switches::{Entry, Note, Target};

/// `written` is this moment.
pub(super) fn counter_rows(changed: &[Changed], written: Timestamp) -> Vec<CounterRow> {
    let changes = changed.iter().flat_map(|changed| {
        let subject = changed.subject.name.to_string();
        let changes = changed.changes.iter();
        changes.map(move |(key, kept)| (subject.clone(), key, kept))
    });
    let rows = changes.map(|(subject, key, kept)| CounterRow {
        subject,
        key: key.to_string(),
        bucket_level: kept.bucket.nanos,
        bucket_amount: kept.bucket.amount,
        spans: kept.spans.map(|span| SpanRow {
            start: span.start,
            used: span.used,
            extra: span.extra,
        }),
        written,
    });
    rows.collect()
}

/// Takes rows over; `wall` and `steady` are this moment by both clocks. Rows whose limit this version
/// does not know are left out.
pub(super) fn restore(book: &Book, rows: Vec<CounterRow>, wall: Timestamp, steady: u64) {
    for row in rows {
        let Ok(key) = row.key.parse() else { continue };
        let kept = Kept {
            bucket: Level {
                nanos: row.bucket_level,
                amount: row.bucket_amount,
            },
            spans: row.spans.map(|span| Span {
                start: span.start,
                used: span.used,
                extra: span.extra,
            }),
        };
        // A clock that was set back has let no time pass.
        let passed = wall.duration_since(row.written).as_nanos().max(0);
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        book.restore(SubjectName(row.subject.into()), &key, kept, passed, steady);
    }
}

pub(super) fn learned_rows(book: &Book) -> Vec<LearnedRow> {
    let experiences = book.experiences().into_iter();
    let rows = experiences.filter_map(|(model, experience)| {
        let text = serde_json::to_string(&experience).ok()?;
        Some(LearnedRow { model, text })
    });
    rows.collect()
}

/// What cannot be read is learned anew.
pub(super) fn restore_learned(book: &Book, rows: Vec<LearnedRow>) {
    for row in rows {
        if let Ok(experience) = serde_json::from_str::<Experience>(&row.text) {
            book.restore_experience(&row.model, experience);
        }
    }
}

pub(super) fn switch_rows(entries: Vec<Entry>) -> Vec<SwitchRow> {
    let rows = entries.into_iter().map(|(target, note)| SwitchRow {
        kind: target.kind().to_owned(),
        part_of: target.part_of().unwrap_or_default().to_owned(),
        name: target.name().to_owned(),
        since: note.since,
        author: note.author,
        address: note.from,
        reason: note.reason,
    });
    rows.collect()
}

/// Rows of a kind that this version does not know are left out.
pub(super) fn switches(rows: Vec<SwitchRow>) -> Vec<Entry> {
    let entries = rows.into_iter().filter_map(|row| {
        let target = Target::from_parts(&row.kind, &row.part_of, &row.name)?;
        let note = Note {
            since: row.since,
            author: row.author,
            from: row.address,
            reason: row.reason,
        };
        Some((target, note))
    });
    entries.collect()
}

pub(super) fn held_rows(holdings: &[Holding]) -> Vec<HeldRow> {
    let rows = holdings.iter().map(|holding| HeldRow {
        subject: holding.subject.to_string(),
        key: holding.key.to_string(),
        amount: holding.held,
    });
    rows.collect()
}

pub(super) fn holding(row: &HeldRow) -> Option<Holding> {
    Some(Holding {
        subject: SubjectName(row.subject.as_str().into()),
        key: row.key.parse().ok()?,
        held: row.amount,
    })
}

pub(super) fn settlement_rows(told: &[(SubjectName, Told)]) -> Vec<SettlementRow> {
    let rows = told.iter().map(|(subject, told)| SettlementRow {
        subject: subject.to_string(),
        key: told.key.to_string(),
        released: told.released,
        taken: told.taken,
    });
    rows.collect()
}

pub(super) fn told(row: &SettlementRow) -> Option<(SubjectName, Told)> {
    let told = Told {
        key: row.key.parse().ok()?,
        released: row.released,
        taken: row.taken,
    };
    Some((SubjectName(row.subject.as_str().into()), told))
}
