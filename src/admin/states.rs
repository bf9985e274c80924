//! How accounts, endpoints and breakers stand: since when, why, until when. As JSON for operators
//! and as gauges for the scraper; reads, decides nothing.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;
use crate::upstream::condition::{ACCOUNT_STATES, ENDPOINT_STATES, Shown};
use crate::upstream::credit;
use crate::upstream::gate::Reason;
use crate::upstream::pool::{AccountSlot, EndpointSlot, Lane, Pool};

const GOOD: &str = "good";
const COOLING: &str = "cooling";
const BREAKER_STATES: [&str; 3] = ["closed", "open", "half_open"];

/// The accounts of an upstream.
pub fn accounts(snapshot: &Snapshot, pool: &Pool, now: Instant) -> Vec<Value> {
    let account = |(index, slot): (usize, &AccountSlot)| {
        let shown = of_account(snapshot, pool, index, slot, now);
        json!({
            "id": slot.id.as_str(),
            "state": shown.state,
            "since": moment(shown.since, now),
            "reason": shown.reason.map(Reason::as_str),
            "until": shown.until.and_then(|until| moment(until, now)),
            "resting": !pool.may_be_asked(slot, now),
            "balance": balance(pool, slot),
        })
    };
    pool.accounts.iter().enumerate().map(account).collect()
}

/// What the provider has said is left, by currency; null if it was never asked or never said.
fn balance(pool: &Pool, slot: &AccountSlot) -> Value {
    let entry = |shown: credit::Shown| {
        json!({
            "currency": shown.balance.currency,
            "left": shown.balance.text(),
            "low": shown.low.unwrap_or(false),
        })
    };
    let shown = funds(pool, slot).map(|shown| shown.into_iter().map(entry).collect());
    shown.unwrap_or(Value::Null)
}

fn funds(pool: &Pool, slot: &AccountSlot) -> Option<Vec<credit::Shown>> {
    let credit = pool.settings.credit.as_ref()?;
    slot.state.funds.shown(&credit.low_water)
}

fn refresh_funds(metrics: &Metrics, pool: &Pool, slot: &AccountSlot) {
    for shown in funds(pool, slot).unwrap_or_default() {
        let (upstream, account) = (pool.settings.id.as_str(), slot.id.as_str());
        let labels = [upstream, account, shown.balance.currency.as_str()];
        let gauge = metrics.account_balance.with_label_values(&labels);
        gauge.set(shown.balance.units());
        if let Some(low) = shown.low {
            let gauge = metrics.account_balance_low.with_label_values(&labels);
            gauge.set(i64::from(low));
        }
    }
}

/// The endpoints of an upstream.
pub fn endpoints(pool: &Pool, now: Instant) -> Vec<Value> {
    let endpoint = |slot: &EndpointSlot| {
        let shown = slot.state.condition.shown();
        json!({
            "url": slot.settings.url,
            "priority": slot.settings.priority,
            "state": shown.state,
            "since": moment(shown.since, now),
            "reason": shown.reason.map(Reason::as_str),
            "until": shown.until.and_then(|until| moment(until, now)),
            "healthy": pool.is_used(slot, now),
            "addresses": slot.state.addresses.count(),
            "addresses_passed_over": slot.state.addresses.resting(),
            "in_flight": slot.state.in_flight(),
        })
    };
    pool.endpoints.iter().map(endpoint).collect()
}

/// The breakers of an upstream, by endpoint and model.
pub fn breakers(snapshot: &Snapshot, pool: &Pool, now: Instant) -> Vec<Value> {
    let mut entries = Vec::new();
    for lane in lanes(snapshot, pool) {
        for (endpoint, shown) in lane.breakers() {
            entries.push(json!({
                "endpoint": endpoint,
                "model": lane.model,
                "state": shown.state.as_str(),
                "since": moment(shown.since, now),
                "one_tenant_only": shown.for_one,
            }));
        }
    }
    entries
}

/// Sets the gauges of states and copies the counts of what has changed.
pub fn refresh(metrics: &Metrics, snapshot: &Snapshot, now: Instant) {
    metrics.account_state.reset();
    metrics.endpoint_state.reset();
    metrics.account_balance.reset();
    metrics.account_balance_low.reset();
    metrics.breaker_state.reset();
    metrics.upstream_transitions.reset();
    for pool in &snapshot.pools {
        let upstream = pool.settings.id.as_str();
        for (index, slot) in pool.accounts.iter().enumerate() {
            let is = of_account(snapshot, pool, index, slot, now).state;
            for state in ACCOUNT_STATES {
                let labels = [upstream, slot.id.as_str(), state];
                let gauge = metrics.account_state.with_label_values(&labels);
                gauge.set(i64::from(state == is));
            }
            refresh_funds(metrics, pool, slot);
        }
        for slot in &pool.endpoints {
            let is = slot.state.condition.shown().state;
            for state in ENDPOINT_STATES {
                let labels = [upstream, slot.settings.url.as_str(), state];
                let gauge = metrics.endpoint_state.with_label_values(&labels);
                gauge.set(i64::from(state == is));
            }
        }
        for (transition, count) in pool.transitions.counts() {
            let kind = transition.kind.as_str();
            let (to, reason) = (transition.to, transition.reason.as_str());
            let labels = [upstream, kind, &transition.name, to, reason];
            let counter = metrics.upstream_transitions.with_label_values(&labels);
            counter.inc_by(count);
        }
    }
    for lane in snapshot.lanes() {
        for (endpoint, shown) in lane.breakers() {
            for state in BREAKER_STATES {
                let upstream = lane.pool.settings.id.as_str();
                let labels = [upstream, endpoint, lane.model.as_str(), state];
                let gauge = metrics.breaker_state.with_label_values(&labels);
                gauge.set(i64::from(state == shown.state.as_str()));
            }
        }
    }
}

fn lanes<'a>(snapshot: &'a Snapshot, pool: &'a Pool) -> impl Iterator<Item = &'a Lane> {
    let lanes = snapshot.lanes().map(|lane| &**lane);
    lanes.filter(|lane| lane.pool.settings.id == pool.settings.id)
}

/// An account that is good is cooling while a model of it rests after a 429.
fn of_account(
    snapshot: &Snapshot,
    pool: &Pool,
    index: usize,
    slot: &AccountSlot,
    now: Instant,
) -> Shown {
    let mut shown = slot.state.condition.shown();
    let rests = |lane: &Lane| lane.rests(now).nth(index).unwrap_or(false);
    if shown.state == GOOD && lanes(snapshot, pool).any(rests) {
        shown.state = COOLING;
    }
    shown
}

/// As a date; `None` for one that cannot be written.
fn moment(at: Instant, now: Instant) -> Option<String> {
    let today = Timestamp::now();
    let at = match at.checked_duration_since(now) {
        Some(ahead) => today.checked_add(ahead),
        None => today.checked_sub(now.saturating_duration_since(at)),
    };
    at.ok().map(|at| at.to_string())
}
