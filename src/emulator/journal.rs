//! Remembers what was asked and how it ended, for tests that want to know what
//! reached the upstream. Bounded in entries and bytes; it decides nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::account::Slot;

/// Most entries that are kept, whatever the configuration says.
pub(super) const MAX_ENTRIES: usize = 10_000;
/// Longest text of one body that is kept.
const MAX_BODY_BYTES: usize = 64 << 10;
/// All kept bodies together; the oldest give way.
const MAX_BODIES_BYTES: usize = 32 << 20;
/// Longest copy of one request's headers.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The whole answer went out.
    Complete,
    /// The emulator refused the request by the API's own rules.
    Refused,
    /// An ordered fault spoiled the answer.
    Fault,
    /// The client left first.
    ClientGone,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused => "refused",
            Self::Fault => "fault",
            Self::ClientGone => "client_gone",
        }
    }
}

/// What is learnt about a request while it is handled.
#[derive(Debug, Default)]
struct Course {
    account: Option<String>,
    model: Option<String>,
    user_id: Option<String>,
    stream: bool,
    faulted: bool,
    status: Option<u16>,
    body_bytes: usize,
    body_hash: u64,
    body: Option<Box<[u8]>>,
    ended_ms: Option<u64>,
    outcome: Option<Outcome>,
}

struct Entry {
    id: u64,
    method: String,
    path: String,
    trace: String,
    /// `name: value` lines: one allocation, and no hold on hyper's read buffer.
    headers: String,
    started_ms: u64,
    course: Mutex<Course>,
}

impl Entry {
    fn to_json(&self, full: bool) -> Value {
        let course = self.course.lock();
        let headers: Vec<(&str, &str)> = self
            .headers
            .lines()
            .filter_map(|line| line.split_once(": "))
            .collect();
        let mut json = json!({
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "trace_id": self.trace,
            "account": course.account,
            "model": course.model,
            "stream": course.stream,
            "user_id": course.user_id,
            "request_headers": headers,
            "body_bytes": course.body_bytes,
            "body_fnv": format!("{:016x}", course.body_hash),
            "status": course.status,
            "fault": course.faulted,
            "started_ms": self.started_ms,
            "ended_ms": course.ended_ms,
            "outcome": course.outcome.map(Outcome::name),
        });
        if let (true, Some(object)) = (full, json.as_object_mut()) {
            let body = course.body.as_deref().map(String::from_utf8_lossy);
            object.insert("body".to_owned(), json!(body));
        }
        json
    }
}

#[derive(Default)]
struct Pages {
    entries: VecDeque<Arc<Entry>>,
    bodies: VecDeque<Arc<Entry>>,
    body_bytes: usize,
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
        let entry = Arc::new(Entry {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            method: method.to_owned(),
            path: path.to_owned(),
            trace: trace.to_owned(),
            headers: header_lines(headers),
            started_ms: now_ms(),
            course: Mutex::default(),
        });
        let mut pages = self.pages.lock();
        if pages.entries.len() >= self.capacity {
            pages.entries.pop_front();
        }
        pages.entries.push_back(Arc::clone(&entry));
        Ticket {
            entry: Some(entry),
            slot: None,
        }
    }

    /// Keeps the body of a ticket's request.
    pub(super) fn keep_body(&self, ticket: &Ticket, body: &[u8]) {
        let Some(entry) = &ticket.entry else {
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
        pages.body_bytes += kept_bytes;
        pages.bodies.push_back(Arc::clone(entry));
        while pages.body_bytes > MAX_BODIES_BYTES || pages.bodies.len() > self.capacity {
            let Some(oldest) = pages.bodies.pop_front() else {
                break;
            };
            let gone = oldest.course.lock().body.take();
            pages.body_bytes -= gone.map_or(0, |body| body.len());
        }
    }

    pub(super) fn clear(&self) {
        *self.pages.lock() = Pages::default();
    }

    /// All entries; with `full`, what is kept of their bodies too.
    pub(super) fn to_json(&self, full: bool) -> Value {
        let entries: Vec<Arc<Entry>> = self.pages.lock().entries.iter().cloned().collect();
        entries.iter().map(|entry| entry.to_json(full)).collect()
    }
}

/// One exchange's right to its entry and its slot; gives both back on drop.
#[derive(Default)]
#[must_use]
pub(super) struct Ticket {
    entry: Option<Arc<Entry>>,
    slot: Option<Slot>,
}

impl Ticket {
    fn note(&self, note: impl FnOnce(&mut Course)) {
        if let Some(entry) = &self.entry {
            note(&mut entry.course.lock());
        }
    }

    pub(super) fn account(&self, name: &str) {
        self.note(|course| course.account = Some(name.to_owned()));
    }

    pub(super) fn asked(&self, model: &str, user_id: &str, stream: bool) {
        self.note(|course| {
            course.model = Some(model.to_owned());
            course.user_id = (!user_id.is_empty()).then(|| user_id.to_owned());
            course.stream = stream;
        });
    }

    pub(super) fn faulted(&self) {
        self.note(|course| course.faulted = true);
    }

    pub(super) fn status(&self, status: u16) {
        self.note(|course| course.status = Some(status));
    }

    /// Holds a slot of the account's concurrency until this ticket is settled.
    pub(super) fn hold(&mut self, slot: Slot) {
        self.slot = Some(slot);
    }

    /// Ends the exchange; the first outcome stays.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        self.slot = None;
        if let Some(entry) = self.entry.take() {
            let mut course = entry.course.lock();
            course.outcome = Some(outcome);
            course.ended_ms = Some(now_ms());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(Outcome::ClientGone);
    }
}

fn header_lines(headers: &HeaderMap) -> String {
    let mut lines = String::with_capacity(512);
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if lines.len() + name.as_str().len() + value.len() + 3 > MAX_HEADER_BYTES {
            break;
        }
        lines.push_str(name.as_str());
        lines.push_str(": ");
        lines.push_str(&value);
        lines.push('\n');
    }
    lines
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
    use super::*;

    fn open(journal: &Journal) -> Ticket {
        journal.open("POST", "/chat/completions", &HeaderMap::new(), "t")
    }

    #[test]
    fn the_oldest_entries_give_way() {
        let journal = Journal::new(2);
        for _ in 0..3 {
            open(&journal).settle(Outcome::Complete);
        }
        let entries = journal.to_json(false);
        assert_eq!(entries.as_array().unwrap().len(), 2);
        assert_eq!(entries[0]["id"], 2);
        assert_eq!(entries[1]["outcome"], "complete");
    }

    #[test]
    fn a_ticket_that_is_dropped_unsettled_means_that_the_client_has_gone() {
        let journal = Journal::new(2);
        let ticket = open(&journal);
        assert_eq!(journal.to_json(false)[0]["outcome"], Value::Null);
        drop(ticket);
        assert_eq!(journal.to_json(false)[0]["outcome"], "client_gone");
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
        let entries = journal.to_json(true);
        assert_eq!(entries[0]["body"], Value::Null);
        assert_eq!(entries[599]["body"].as_str().unwrap().len(), MAX_BODY_BYTES);
        assert_eq!(entries[599]["body_bytes"], 100_000);
    }

    #[test]
    fn a_journal_of_no_entries_costs_nothing_and_says_nothing() {
        let journal = Journal::new(0);
        let ticket = open(&journal);
        journal.keep_body(&ticket, b"x");
        assert_eq!(journal.to_json(true), json!([]));
    }
}
