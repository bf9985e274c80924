//! Remembers what was asked and how it ended, for tests that want to know what
//! reached the upstream. Bounded in entries and bytes; it decides nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use serde_json::Value;

use super::entry::{Entry, Form, header_lines};
use super::route::Since;
use super::ticket::Ticket;
use super::totals::Totals;

/// Most entries that are kept, whatever the configuration says.
pub(super) const MAX_ENTRIES: usize = 50_000;
/// Headers and paths of all entries together; the oldest entries give way.
const MAX_HEADS_BYTES: usize = 64 << 20;
/// Longest text of one body that is kept.
const MAX_BODY_BYTES: usize = 64 << 10;
/// All kept bodies together; the oldest give way.
const MAX_BODIES_BYTES: usize = 32 << 20;

#[derive(Default)]
struct Pages {
    entries: VecDeque<Arc<Entry>>,
    head_bytes: usize,
    /// Kept bodies with their lengths; an entry that is gone took its body along.
    bodies: VecDeque<(Weak<Entry>, usize)>,
    body_bytes: usize,
    /// Replaced when the journal is cleared, so that a call counts where it began.
    totals: Arc<Totals>,
}

impl Pages {
    fn push(&mut self, entry: Arc<Entry>, capacity: usize) {
        self.head_bytes += entry.weight();
        self.entries.push_back(entry);
        while self.entries.len() > capacity || self.head_bytes > MAX_HEADS_BYTES {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.head_bytes -= oldest.weight();
        }
    }

    fn keep_body(&mut self, entry: &Arc<Entry>, bytes: usize, capacity: usize) {
        self.body_bytes += bytes;
        self.bodies.push_back((Arc::downgrade(entry), bytes));
        while self.body_bytes > MAX_BODIES_BYTES || self.bodies.len() > capacity {
            let Some((oldest, bytes)) = self.bodies.pop_front() else {
                break;
            };
            self.body_bytes -= bytes;
            if let Some(entry) = oldest.upgrade() {
                entry.course.lock().body = None;
            }
        }
    }
}

/// The list of exchanges, newest last.
pub(super) struct Journal {
    capacity: usize,
    next: AtomicU64,
    pages: Mutex<Pages>,
}

impl Journal {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.min(MAX_ENTRIES),
            next: AtomicU64::new(1),
            pages: Mutex::default(),
        }
    }

    /// Opens an entry; it ends as `client_gone` when its ticket is dropped unsettled.
    pub(super) fn open(
        &self,
        method: &str,
        path: &str,
        headers: &HeaderMap,
        trace: &str,
    ) -> Ticket {
        if self.capacity == 0 {
            return Ticket::default();
        }
        let headers = header_lines(headers);
        let mut pages = self.pages.lock();
        let entry = Arc::new(Entry {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            method: method.to_owned(),
            path: path.to_owned(),
            trace: trace.to_owned(),
            headers,
            started_ms: now_ms(),
            course: Mutex::default(),
        });
        pages.push(Arc::clone(&entry), self.capacity);
        Ticket::new(entry, Arc::clone(&pages.totals))
    }

    /// Keeps the body of a ticket's request.
    pub(super) fn keep_body(&self, ticket: &Ticket, body: &[u8]) {
        let Some(entry) = ticket.entry() else {
            return;
        };
        let kept: Box<[u8]> = body.get(..MAX_BODY_BYTES).unwrap_or(body).into();
        let kept_bytes = kept.len();
        let hash = fnv(body);
        {
            let mut course = entry.course.lock();
            course.body_bytes = body.len();
            course.body_hash = hash;
            course.body = Some(kept);
        }
        let mut pages = self.pages.lock();
        pages.keep_body(entry, kept_bytes, self.capacity);
    }

    /// Forgets all entries and sums; calls that still run count nowhere.
    pub(super) fn clear(&self) {
        let forgotten = std::mem::take(&mut *self.pages.lock());
        drop(forgotten);
    }

    /// The entries from `since` on as a JSON list. They stand in the order in which
    /// they began, so that those before it cost nothing.
    pub(super) fn to_json(&self, form: Form, since: Since) -> Bytes {
        let entries: Vec<Arc<Entry>> = {
            let pages = self.pages.lock();
            let before = pages.entries.partition_point(|entry| {
                entry.id <= since.after_id || entry.started_ms < since.began_ms
            });
            pages.entries.range(before..).cloned().collect()
        };
        let mut list = vec![b'['];
        for (index, entry) in entries.iter().enumerate() {
            if index > 0 {
                list.push(b',');
            }
            entry.write(&mut list, form);
        }
        list.push(b']');
        Bytes::from(list)
    }

    /// The sums of all calls that began since the start or the last clearing.
    pub(super) fn totals(&self) -> Value {
        let totals = Arc::clone(&self.pages.lock().totals);
        totals.to_json()
    }
}

/// FNV-1a, 64 bits: enough to tell whether two bodies are the same bytes.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::entry::Outcome;
    use super::*;

    fn shown(journal: &Journal, form: Form) -> Value {
        serde_json::from_slice(&journal.to_json(form, Since::default())).unwrap()
    }

    fn open(journal: &Journal) -> Ticket {
        journal.open("POST", "/chat/completions", &HeaderMap::new(), "t")
    }

    #[test]
    fn the_oldest_entries_give_way() {
        let journal = Journal::new(2);
        for _ in 0..3 {
            open(&journal).settle(Outcome::Complete);
        }
        let entries = shown(&journal, Form::Usual);
        assert_eq!(entries.as_array().unwrap().len(), 2);
        assert_eq!(entries[0]["id"], 2);
        assert_eq!(entries[1]["outcome"], "complete");
    }

    #[test]
    fn entries_before_an_id_or_a_time_are_left_out() {
        let journal = Journal::new(9);
        for _ in 0..3 {
            open(&journal).settle(Outcome::Complete);
        }
        let count = |since| {
            let list = journal.to_json(Form::Brief, since);
            let list: Vec<Value> = serde_json::from_slice(&list).unwrap();
            list.len()
        };
        let after = |after_id| Since {
            after_id,
            ..Since::default()
        };
        assert_eq!([0, 2, 3].map(|id| count(after(id))), [3, 1, 0]);
        let from = |began_ms| Since {
            began_ms,
            ..Since::default()
        };
        assert_eq!(count(from(now_ms() + 60_000)), 0);
        assert_eq!(count(from(1)), 3);
    }

    #[test]
    fn a_ticket_that_is_dropped_unsettled_means_that_the_client_has_gone() {
        let journal = Journal::new(2);
        let ticket = open(&journal);
        assert_eq!(shown(&journal, Form::Usual)[0]["outcome"], Value::Null);
        drop(ticket);
        assert_eq!(shown(&journal, Form::Usual)[0]["outcome"], "client_gone");
    }

    #[test]
    fn kept_bodies_stay_under_their_ceiling() {
        let journal = Journal::new(MAX_ENTRIES);
        let body = vec![b'x'; 100_000];
        for _ in 0..600 {
            let mut ticket = open(&journal);
            journal.keep_body(&ticket, &body);
            ticket.settle(Outcome::Complete);
        }
        assert!(journal.pages.lock().body_bytes <= MAX_BODIES_BYTES);
        let entries = shown(&journal, Form::Full);
        assert_eq!(entries[0]["body"], Value::Null);
        assert_eq!(entries[599]["body"].as_str().unwrap().len(), MAX_BODY_BYTES);
        assert_eq!(entries[599]["body_bytes"], 100_000);
    }

    #[test]
    fn heads_stay_under_their_ceiling_and_give_way_whole() {
        let journal = Journal::new(MAX_ENTRIES);
        let mut headers = HeaderMap::new();
        headers.insert("x-long", "x".repeat(16_000).parse().unwrap());
        for _ in 0..4500 {
            let mut ticket = journal.open("POST", "/chat/completions", &headers, "t");
            ticket.settle(Outcome::Complete);
        }
        let pages = journal.pages.lock();
        assert!(pages.head_bytes <= MAX_HEADS_BYTES);
        assert!((4000..4500).contains(&pages.entries.len()));
    }

    #[test]
    fn a_call_that_began_before_the_clearing_counts_nowhere() {
        let journal = Journal::new(9);
        let mut old = open(&journal);
        old.generates();
        journal.clear();
        let mut new = open(&journal);
        new.generates();
        old.settle(Outcome::Complete);
        assert_eq!(journal.totals(), json!([]));
        drop(new);
        assert_eq!(journal.totals()[0]["client_gone"], 1);
    }

    #[test]
    fn sums_go_on_when_entries_have_given_way() {
        let journal = Journal::new(2);
        for _ in 0..50 {
            let mut ticket = open(&journal);
            ticket.generates();
            ticket.settle(Outcome::Refused);
        }
        assert_eq!(journal.totals()[0]["refused"], 50);
    }

    #[test]
    fn a_journal_of_no_entries_costs_nothing_and_says_nothing() {
        let journal = Journal::new(0);
        let ticket = open(&journal);
        journal.keep_body(&ticket, b"x");
        assert_eq!(shown(&journal, Form::Full), json!([]));
    }
}
