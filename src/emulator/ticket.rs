//! One exchange's way through the emulator: what it holds, what it is billed,
//! and where both are written down when it ends.

use std::sync::Arc;

use tokio::time::Instant;

use super::account::Slot;
use super::entry::{Course, Entry, Outcome};
use super::journal::now_ms;
use super::meter::{Bill, Meter, Progress};
use super::totals::{Caller, End, Totals};

/// Longest copy of a model's name; a self-hosted emulator takes any.
const MAX_MODEL_BYTES: usize = 256;

/// One exchange's right to its entry and its slot; gives both back on drop.
#[derive(Default)]
#[must_use]
pub(super) struct Ticket {
    entry: Option<Arc<Entry>>,
    totals: Arc<Totals>,
    slot: Option<Slot>,
    generates: bool,
    refusal: Option<u16>,
    meter: Option<Meter>,
}

impl Ticket {
    pub(super) fn new(entry: Arc<Entry>, totals: Arc<Totals>) -> Self {
        let mut ticket = Self::default();
        ticket.entry = Some(entry);
        ticket.totals = totals;
        ticket
    }

    pub(super) fn entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref()
    }

    fn note(&self, note: impl FnOnce(&mut Course)) {
        if let Some(entry) = &self.entry {
            note(&mut entry.course.lock());
        }
    }

    pub(super) fn account(&self, name: &str) {
        self.note(|course| course.account = Some(name.to_owned()));
    }

    pub(super) fn asked(&self, model: &str, user_id: &str, stream: bool) {
        let kept = model.get(..model.floor_char_boundary(MAX_MODEL_BYTES));
        self.note(|course| {
            course.model = kept.map(str::to_owned);
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

    /// It asks for work, so that it is summed.
    pub(super) fn generates(&mut self) {
        self.generates = true;
    }

    /// It is refused, with this status.
    pub(super) fn refused(&mut self, status: u16) {
        self.refusal = Some(status);
    }

    /// Holds a slot of the account's concurrency until this ticket is settled.
    pub(super) fn hold(&mut self, slot: Slot) {
        self.slot = Some(slot);
    }

    /// Measures its work from now on.
    pub(super) fn measure(&mut self, meter: Meter) {
        self.meter = Some(meter);
    }

    /// The work on its answer begins.
    pub(super) fn begin(&mut self) {
        if let Some(meter) = &mut self.meter {
            meter.begin(Instant::now());
        }
    }

    /// A part of its answer goes out.
    pub(super) fn sent(&mut self, progress: Progress) {
        if let Some(meter) = &mut self.meter {
            meter.sent(progress);
        }
    }

    /// Ends the exchange; the first outcome stays. The slot comes back last, so
    /// that an account without requests in flight has all its sums.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        if let Some(entry) = self.entry.take() {
            let bill = self
                .meter
                .take()
                .and_then(|meter| meter.bill(Instant::now()));
            let caller = close(&entry, outcome, bill);
            if self.generates {
                let end = end(outcome, bill);
                self.totals.add(caller, end, self.refusal, bill);
            }
        }
        self.slot = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(Outcome::ClientGone);
    }
}

fn close(entry: &Entry, outcome: Outcome, bill: Option<Bill>) -> Caller {
    let mut course = entry.course.lock();
    course.outcome = Some(outcome);
    course.ended_ms = Some(now_ms());
    course.bill = bill;
    let known = |text: &Option<String>| text.clone().unwrap_or_default();
    Caller {
        account: known(&course.account),
        model: known(&course.model),
        user_id: known(&course.user_id),
    }
}

fn end(outcome: Outcome, bill: Option<Bill>) -> End {
    match (outcome, bill) {
        (Outcome::ClientGone, _) => End::ClientGone,
        (_, None) => End::Refused,
        (_, Some(bill)) if bill.whole => End::Whole,
        (_, Some(_)) => End::Cut,
    }
}
