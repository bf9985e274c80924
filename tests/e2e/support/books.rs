//! What was used, as three tell it that do not know of each other: the gateway's database, its
//! operators' listener, and the emulator's journal.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate::database::{FILE, Reader};
use tidegate::ledger::{Counts, Money, Period};

use super::config::ADMIN_TOKEN;
use super::{Emulator, Gateway, Request, SOON, eventually};

/// Whose use, of which public model, at which account.
pub type Who = (String, String, String);

/// The ledger in a `state_dir`, its hours added up.
pub fn ledger(state_dir: &Path) -> BTreeMap<Who, Counts> {
    let reader = Reader::open(&state_dir.join(FILE)).unwrap();
    let always = Period {
        from: Timestamp::MIN,
        to: Timestamp::MAX,
    };
    let mut sums: BTreeMap<Who, Counts> = BTreeMap::new();
    reader
        .read_ledger(always, |row| {
            let who = (
                row.key.tenant.to_string(),
                row.key.model.to_string(),
                row.key.account.to_string(),
            );
            add(sums.entry(who).or_default(), &row.counts);
        })
        .unwrap();
    sums
}

/// Everything in a ledger.
pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Counts>) -> Counts {
    let mut sum = Counts::default();
    rows.into_iter().for_each(|counts| add(&mut sum, counts));
    sum
}

fn add(sum: &mut Counts, more: &Counts) {
    sum.requests += more.requests;
    sum.cut += more.cut;
    sum.estimated += more.estimated;
    sum.unpriced += more.unpriced;
    sum.prompt += more.prompt;
    sum.cached += more.cached;
    sum.completion += more.completion;
    sum.reasoning += more.reasoning;
    sum.cost = Money::from_nanos(sum.cost.nanos() + more.cost.nanos());
    sum.saved = Money::from_nanos(sum.saved.nanos() + more.saved.nanos());
}

/// An entry of the emulator's journal, in its brief form.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    pub id: u64,
    pub path: String,
    /// Absent before the head, and for what had none.
    pub status: Option<u16>,
    pub outcome: Option<String>,
    pub request_id: Option<String>,
    pub account: Option<String>,
    pub model: Option<String>,
    pub usage: Option<Tokens>,
    pub usage_sent: bool,
    pub started_ms: u64,
    pub ended_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Tokens {
    pub prompt: u64,
    pub cached: u64,
    pub completion: u64,
    pub reasoning: u64,
}

impl Emulator {
    /// What it was asked by callers, oldest first; once nothing runs any more.
    pub fn journal(&self) -> Vec<Call> {
        eventually("the emulator is idle", SOON, || {
            (self.in_flight() == 0).then_some(())
        });
        let answer = Request::get("/_emulator/journal?brief=1").send(self.address());
        let calls: Vec<Call> = serde_json::from_slice(&answer.body).unwrap();
        // Health probes name no model.
        calls
            .into_iter()
            .filter(|call| call.model.is_some())
            .collect()
    }

    /// What callers asked it from a point on, oldest first, whether it has ended or not: `query` is
    /// `after=ID` or `since_ms=TIME`.
    pub fn calls_since(&self, query: &str) -> Vec<Call> {
        let path = format!("/_emulator/journal?brief=1&{query}");
        let answer = Request::get(&path).send(self.address());
        let mut calls: Vec<Call> = serde_json::from_slice(&answer.body).unwrap();
        calls.retain(|call| call.model.is_some());
        calls
    }

    /// How many attempts each account got between two times, in milliseconds since 1970, the second
    /// excluded.
    pub fn attempts_between(&self, from_ms: u64, to_ms: u64) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for call in self.calls_since(&format!("since_ms={from_ms}")) {
            if call.started_ms < to_ms {
                *counts.entry(call.account.unwrap_or_default()).or_default() += 1;
            }
        }
        counts
    }
}

impl Gateway {
    /// `GET /limits/TENANT`.
    pub fn limits(&self, tenant: &str) -> Value {
        let request = Request::get(&format!("/limits/{tenant}")).bearer(ADMIN_TOKEN);
        let answer = request.send(self.admin());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// How one limit of a tenant stands: what is used, and what is reserved.
    pub fn standing(&self, tenant: &str, limit: &str) -> (u64, u64) {
        let report = self.limits(tenant);
        let mut limits = report["limits"].as_array().unwrap().iter();
        let found = limits.find(|one| one["limit"] == limit);
        let found = found.unwrap_or_else(|| panic!("no {limit} in {report:#}"));
        let number = |name: &str| found[name].as_u64().unwrap();
        (number("used"), number("reserved"))
    }

    /// Waits until nothing is under way and nothing is held, for anybody. A client has its answer
    /// a moment before the request's record is made: what is counted there is whole after this.
    pub fn wait_until_idle(&self, within: std::time::Duration) {
        let held = [
            "tidegate_requests_in_flight",
            "tidegate_account_in_flight",
            "tidegate_requests_admitted",
            "tidegate_leases_open",
            "tidegate_leases_unmatched",
        ];
        eventually("nothing is held", within, || {
            held.iter()
                .all(|name| self.metric(name, &[]) == 0.0)
                .then_some(())
        });
    }

    /// Waits until what was counted so far is in the database.
    pub fn wait_until_written(&self) {
        // Two writes: the first may have begun before what is meant was counted.
        let writes = || self.metric("tidegate_store_write_seconds_count", &[]);
        let before = writes();
        eventually("counts are written", SOON, || {
            (writes() >= before + 2.0).then_some(())
        });
    }

    /// The access lines so far.
    pub fn access_lines(&self) -> Vec<Value> {
        let log = self.log();
        let lines = log.iter().filter(|line| line.contains("\"access\""));
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// A time zone in which it is about noon, so that no day ends while a test runs.
pub fn noon() -> Value {
    let hour = Timestamp::now().as_second().rem_euclid(86_400) / 3_600;
    // The sign of these names says how far behind UTC they are.
    let behind = hour - 12;
    json!(format!("Etc/GMT{behind:+}"))
}
