//! What was charged against what the emulator says it made.

use std::collections::BTreeMap;

use serde_json::Value;
use tidegate::ledger::Counts;

use super::{Aftermath, Line};
use crate::support::books::{Call, Tokens, Who, ledger};
use crate::support::tidegate;

fn who(line: &Line) -> Who {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    (text(&line.tenant), text(&line.model), text(&line.account))
}

fn tokens(counts: &Counts) -> Tokens {
    Tokens {
        prompt: counts.prompt,
        cached: counts.cached,
        completion: counts.completion,
        reasoning: counts.reasoning,
    }
}

fn add(usage: Tokens, sum: &mut Counts) {
    sum.requests += 1;
    sum.prompt += usage.prompt;
    sum.cached += usage.cached;
    sum.completion += usage.completion;
    sum.reasoning += usage.reasoning;
}

/// The ledger, by tenant, model and account, is what the emulator told; and where it told nothing,
/// what the access lines say was estimated.
pub(super) fn assert_ledger_is_the_journal(aftermath: &Aftermath) {
    let mut expected: BTreeMap<Who, Counts> = BTreeMap::new();
    for line in aftermath.lines.values() {
        let Some(charged) = line.charged() else {
            continue;
        };
        let sum = expected.entry(who(line)).or_default();
        if line.usage_estimated {
            sum.estimated += 1;
            add(charged, sum);
        } else {
            let call = charged_call(aftermath, line).expect("charged for what nobody was asked");
            add(line.told(call.usage.unwrap()), sum);
        }
    }
    let found = ledger(&aftermath.gateway.state_dir());
    let view = |counts: &Counts| (counts.requests, counts.estimated, tokens(counts));
    let found: BTreeMap<_, _> = found
        .iter()
        .map(|(who, counts)| (who, view(counts)))
        .collect();
    let expected: BTreeMap<_, _> = expected
        .iter()
        .map(|(who, counts)| (who, view(counts)))
        .collect();
    assert!(found.len() > 100, "only {} rows", found.len());
    let cached = found.values().map(|(_, _, tokens)| tokens.cached);
    assert!(cached.sum::<u64>() > 0, "nothing came from the cache");
    for who in found.keys().chain(expected.keys()) {
        assert_eq!(found.get(who), expected.get(who), "{who:?}");
    }

    let report = tidegate()
        .args(["usage", "--by", "tenant,model,account", "--format", "json"])
        .args(["--from", "2026-01", "--state-dir"])
        .arg(aftermath.gateway.state_dir())
        .output()
        .unwrap();
    assert!(report.status.success());
    let rows: Vec<Value> = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(rows.len(), found.len());
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        let number = |name: &str| row[name].as_u64().unwrap();
        let of = (text("tenant"), text("model"), text("account"));
        let usage = Tokens {
            prompt: number("prompt_tokens"),
            cached: number("cached_tokens"),
            completion: number("completion_tokens"),
            reasoning: number("reasoning_tokens"),
        };
        assert_eq!(found[&of], (number("requests"), number("estimated"), usage));
    }
}

/// The attempt that a request is charged for: its last one.
fn charged_call<'a>(aftermath: &'a Aftermath, line: &Line) -> Option<&'a Call> {
    let calls = aftermath.journal.get(&line.request_id)?;
    calls.last().filter(|call| call.account == line.account)
}

/// Each request by itself: what was told is what is charged, and whoever was told nothing says so.
pub(super) fn assert_each_charge_is_what_was_told(aftermath: &Aftermath) {
    let (mut exact, mut estimated, mut gone) = (0, 0, 0);
    for line in aftermath.lines.values() {
        let call = charged_call(aftermath, line);
        let Some(charged) = line.charged() else {
            let calls = aftermath
                .journal
                .get(&line.request_id)
                .into_iter()
                .flatten();
            for call in calls {
                assert!(!call.usage_sent, "told, and not charged: {line:?} {call:?}");
            }
            continue;
        };
        if !line.usage_estimated {
            let call = call.unwrap_or_else(|| panic!("nobody was asked: {line:?}"));
            let told = call.usage.map(|usage| line.told(usage));
            assert_eq!(Some(charged), told, "{line:?} {call:?}");
            assert!(call.usage_sent, "{line:?} {call:?}");
            exact += 1;
        } else if line.is_gone() {
            // The emulator may have told it to a connection that nobody read any more.
            gone += 1;
        } else {
            let call = call.unwrap_or_else(|| panic!("nobody was asked: {line:?}"));
            assert!(
                call.usage.is_some() && !call.usage_sent,
                "{line:?} {call:?}"
            );
            estimated += 1;
        }
    }
    let mut followed = 0;
    let untold = aftermath.journal.iter().flat_map(|(id, calls)| {
        let line = aftermath.lines.get(id);
        let line = line.unwrap_or_else(|| panic!("no access line of {calls:?}"));
        let untold = |call: &&Call| call.usage.is_some() && !call.usage_sent;
        // What failed before its content and was followed by another attempt is no tenant's to pay.
        let (last, earlier) = calls.split_last().unwrap();
        followed += earlier.iter().filter(untold).count();
        let last = Some(last).filter(|_| !line.is_gone()).filter(untold);
        // Nor is what failed before it when nobody else was left: nothing of it went out.
        if last.is_some() && line.charged().is_none() {
            assert_eq!(line.ending, "refused", "{line:?} {calls:?}");
            followed += 1;
        }
        last.filter(|_| line.charged().is_some())
    });
    assert_eq!(untold.count(), estimated);
    eprintln!("worked for nothing: {followed} attempts that failed before their content");
    eprintln!("charged: {exact} as told, {estimated} estimated, {gone} of clients that left");
    assert!(exact > 0 && estimated > 0 && gone > 0);
}

/// Limits were felt, and what they refused cost nothing.
pub(super) fn assert_refused_requests_went_nowhere(aftermath: &Aftermath) {
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    for line in aftermath.lines.values() {
        let Some(code @ ("rate_limit_exceeded" | "insufficient_quota" | "handed_over")) =
            line.code.as_deref()
        else {
            continue;
        };
        *refused.entry(code).or_default() += 1;
        assert!(line.charged().is_none(), "{line:?}");
        let calls = aftermath.journal.get(&line.request_id);
        assert!(calls.is_none(), "{line:?} {calls:?}");
    }
    eprintln!("refused: {refused:?}");
    assert!(refused["rate_limit_exceeded"] > 0 && refused["insufficient_quota"] > 0);
}
