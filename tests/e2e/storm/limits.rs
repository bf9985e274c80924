//! What limits promise against the times in the emulator's journal, and against what was charged.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::world::{self, Bounds, Bucket};
use super::{Aftermath, Line};
use crate::support::books::{Call, ledger, sum};
use crate::support::{Request, SOON};

/// A request that reached the emulator.
struct Sent<'a> {
    line: &'a Line,
    calls: &'a [Call],
}

fn sent<'a>(aftermath: &'a Aftermath, tenants: &[usize]) -> Vec<Sent<'a>> {
    let names: Vec<_> = tenants
        .iter()
        .map(|number| world::tenant_id(*number))
        .collect();
    let sent = aftermath.journal.iter().filter_map(|(id, calls)| {
        let line = &aftermath.lines[id];
        let wanted = names.contains(line.tenant.as_ref()?);
        wanted.then_some(Sent { line, calls })
    });
    sent.collect()
}

/// Everybody whose limits hold together, with these limits.
fn subjects() -> Vec<(String, Vec<usize>, Bounds)> {
    let tenants = (0..world::TENANTS).map(|number| {
        let bounds = world::bounds_of_plan(world::plan_of(number));
        (world::tenant_id(number), vec![number], bounds)
    });
    let groups = world::groups();
    let groups =
        groups.map(|(group, members)| (group.to_owned(), members, world::bounds_of_group(group)));
    tenants.chain(groups).collect()
}

/// More requests between any two moments than the bucket holds and gets in that time?
///
/// A request counts from when it is sent, which is some time after it came in (`began`) and before
/// the emulator had it (`there`). All that came in after one moment and were there before another
/// were sent between the two.
fn overflow(bucket: Bucket, mut times: Vec<(u64, u64)>) -> Option<(usize, u64)> {
    times.sort_unstable_by_key(|(_, there)| *there);
    for (from, _) in &times {
        let mut count = 0;
        for (_, there) in times.iter().filter(|(began, _)| began >= from) {
            count += 1;
            // One more for milliseconds that were cut off.
            let allowed = bucket.burst + bucket.limit * (there - from + 2) / 60_000 + 1;
            if count as u64 > allowed {
                return Some((count, there - from));
            }
        }
    }
    None
}

pub(super) fn assert_requests_fit_their_buckets(aftermath: &Aftermath) {
    for (name, tenants, bounds) in subjects() {
        let Some(bucket) = bounds.bucket else {
            continue;
        };
        let sent = sent(aftermath, &tenants);
        let times = sent
            .iter()
            .map(|sent| (sent.line.began_ms(), sent.calls[0].started_ms));
        let over = overflow(bucket, times.collect());
        assert_eq!(
            over, None,
            "{name}: so many requests in so many milliseconds"
        );
    }
}

/// The most of these that overlap; who ends makes room for who begins in the same millisecond.
fn most_at_once(stretches: impl Iterator<Item = (u64, u64)>) -> i64 {
    let stretches = stretches.filter(|(from, to)| from < to);
    let mut edges: Vec<_> = stretches
        .flat_map(|(from, to)| [(from, 1), (to, -1)])
        .collect();
    edges.sort_unstable();
    let mut now = 0;
    let counts = edges.into_iter().map(|(_, step)| {
        now += step;
        now
    });
    counts.max().unwrap_or(0)
}

/// From when the emulator had a request to when the gateway gave its place back, it was held.
pub(super) fn assert_concurrency_was_kept(aftermath: &Aftermath) {
    let mut reached = 0;
    for (name, tenants, bounds) in subjects() {
        let sent = sent(aftermath, &tenants);
        let held = sent
            .iter()
            .map(|sent| (sent.calls[0].started_ms, sent.line.held_until_ms()));
        let most = most_at_once(held);
        let allowed = i64::try_from(bounds.concurrent).unwrap();
        assert!(most <= allowed, "{name}: {most} at one time of {allowed}");
        reached += i64::from(most == allowed);
    }
    eprintln!("{reached} tenants and groups were at their limit of concurrent requests");
    assert!(reached > 0);
    assert_accounts_were_not_overrun(aftermath);
}

/// Of the second process or the first, at which account, for which of its models.
type Place<'a> = (bool, &'a str, &'a str);

/// An account's places are each process's own.
fn assert_accounts_were_not_overrun(aftermath: &Aftermath) {
    let mut held: HashMap<Place<'_>, Vec<(u64, u64)>> = HashMap::new();
    for (id, calls) in &aftermath.journal {
        let line = &aftermath.lines[id];
        for (number, call) in calls.iter().enumerate() {
            let place = (
                line.second,
                call.account.as_deref().unwrap(),
                call.model.as_deref().unwrap(),
            );
            let last = number + 1 == calls.len();
            let end = if last { line.held_until_ms() } else { u64::MAX };
            let stretch = (call.started_ms, end.min(call.ended_ms.unwrap()));
            held.entry(place).or_default().push(stretch);
        }
    }
    for (place, stretches) in held {
        let (_, _, model) = place;
        let ceiling = world::PLACES.iter().find(|(known, _)| *known == model);
        let ceiling = i64::try_from(ceiling.unwrap().1).unwrap();
        let most = most_at_once(stretches.into_iter());
        assert!(most <= ceiling, "{place:?}: {most} at one time");
    }
    let totals = Request::get("/_emulator/totals")
        .send(aftermath.emulator.address())
        .json();
    for lane in totals["concurrency"].as_array().unwrap() {
        let ceiling = world::PLACES
            .iter()
            .find(|(known, _)| lane["model"] == *known);
        let Some((_, ceiling)) = ceiling else {
            continue;
        };
        let peak = lane["peak_in_flight"].as_u64().unwrap();
        eprintln!("{lane}");
        // Two processes for a while; and who was left is told a moment later.
        assert!(peak <= 2 * *ceiling as u64, "{lane}");
    }
}

/// How a limit stands, as `/limits/TENANT` tells it.
fn find<'a>(report: &'a Value, subject: &str, limit: &str) -> &'a Value {
    let mut limits = report["limits"].as_array().unwrap().iter();
    let found = limits.find(|one| one["subject"] == subject && one["limit"] == limit);
    found.unwrap_or_else(|| panic!("no {limit} of {subject} in {report:#}"))
}

pub(super) fn assert_counts_are_what_was_charged(aftermath: &Aftermath) {
    let ledger = ledger(&aftermath.gateway.state_dir());
    for (name, tenants, bounds) in subjects() {
        let names: Vec<_> = tenants
            .iter()
            .map(|number| world::tenant_id(*number))
            .collect();
        let rows = ledger
            .iter()
            .filter(|((tenant, ..), _)| names.contains(tenant));
        let charged = sum(rows.map(|(_, counts)| counts));
        let report = aftermath.gateway.limits(&names[0]);
        let subject = match name.as_str() {
            name if name == names[0] => format!("tenant/{name}"),
            name => format!("group/{name}"),
        };
        let used = |limit: &str| {
            let standing = find(&report, &subject, limit);
            assert_eq!(standing["reserved"], 0, "{name}");
            standing["used"].as_u64().unwrap()
        };
        let tokens = charged.prompt + charged.completion;
        assert_eq!(used("all/*/tokens_per_day"), tokens, "{name}");
        assert_eq!(
            used("all/*/prompt_tokens_per_month"),
            charged.prompt,
            "{name}"
        );
        assert_eq!(used("all/*/cost_per_day"), charged.cost.nanos(), "{name}");

        // A request counts once it is sent, whatever became of it. One whose client left at that
        // moment may never have arrived.
        let arrived = sent(aftermath, &tenants).len() as u64;
        let left = aftermath.lines.values().filter(|line| {
            let lost = line.is_gone() && !aftermath.journal.contains_key(&line.request_id);
            lost && line
                .tenant
                .as_ref()
                .is_some_and(|tenant| names.contains(tenant))
        });
        let most = arrived + left.count() as u64;
        let requests = used("all/*/requests_per_day");
        assert!(
            (arrived..=most).contains(&requests),
            "{name}: {arrived} {requests} {most}"
        );
        if let Some(allowed) = bounds.requests_per_day {
            assert!(requests <= allowed, "{name}: {requests} of {allowed}");
        }
        if let Some(allowed) = bounds.completion_per_day {
            let completion = used("all/*/completion_tokens_per_day");
            assert_eq!(completion, charged.completion, "{name}");
            assert!(completion <= allowed, "{name}: {completion} of {allowed}");
        }
    }
}

pub(super) fn assert_nothing_is_held(aftermath: &Aftermath) {
    let gateway = &aftermath.gateway;
    gateway.wait_until_idle(SOON);
    for number in 0..world::TENANTS {
        let report = gateway.limits(&world::tenant_id(number));
        assert_eq!(report["requests_under_way"], 0, "{report:#}");
        let limits = report["limits"].as_array().unwrap();
        assert!(
            limits.iter().all(|limit| limit["reserved"] == 0),
            "{report:#}"
        );
    }
    let status = gateway.status();
    for upstream in status["upstreams"].as_array().unwrap() {
        let places = ["endpoints", "in_flight"].map(|name| upstream[name].as_array().unwrap());
        for place in places.into_iter().flatten() {
            assert_eq!(place["in_flight"], json!(0), "{status:#}");
        }
    }
}
