//! What is done about failures: what it means, and what may not be written.

mod rules;

use super::*;
use crate::config::settings::{Affinity, Breaker, Credit, Deadlines, FailureClass, Outlier, Retry};

#[test]
fn who_says_nothing_of_failures_is_guarded_against_them() {
    let settings = settings_of(MINIMAL);
    assert_eq!(settings.retry, Default::default());
    assert_eq!(settings.retry.on.len(), 14);
    let upstream = &settings.upstreams[0];
    assert_eq!(upstream.outlier, Some(Default::default()));
    assert_eq!(upstream.breaker, Some(Default::default()));
    assert_eq!(upstream.affinity, Some(Default::default()));
    assert_eq!(upstream.credit, Some(Default::default()));
    let clocks = &upstream.timeouts;
    assert_eq!(
        [
            clocks.first_byte,
            clocks.queued,
            clocks.first_content,
            clocks.gap
        ]
        .map(|time| time.as_secs()),
        [60, 600, 600, 120]
    );
    let account = &upstream.accounts[0];
    assert_eq!((account.priority, account.weight), (0, 1));
    let model = &settings.models["flash"];
    assert_eq!(model.deadlines, Default::default());
    assert_eq!((&model.degraded, model.resume), (&None, 0));
    assert_eq!(model.variants[0].on, None);
    assert_eq!(settings.tenants[0].deadlines, Default::default());
}

const UPSTREAM: &str = "- id: deepseek\n";
const MODEL: &str = "{ variants: [{ ";
const VARIANT: &str = "model: deepseek-flash }";

/// An engine of one's own beside DeepSeek.
const OWN: &str = "- { id: own, dialect: openai, endpoints: [{ url: 'http://10.0.0.7' }] }\n  ";

/// [`MINIMAL`] with this in its upstream.
fn upstream(text: &str) -> String {
    MINIMAL.replace(UPSTREAM, &format!("{UPSTREAM}    {text}\n"))
}

/// [`MINIMAL`] with this in its model.
fn model(text: &str) -> String {
    MINIMAL.replace(MODEL, &format!("{{ {text}, variants: [{{ "))
}

#[test]
fn every_key_means_what_it_says() {
    let text = MINIMAL
        .replace(
            "tenants:\n",
            "retry: { attempts: 2, deadline: 30s, base_backoff: 10ms, max_backoff: 1s, budget_percent: 20, budget_reserve: 3, on: [connect, deadline], hold_head: 0s }\ntenants:\n",
        )
        .replace("- id: a\n", "- id: a\n    deadlines: { total: 5m, gap: 9s }\n")
        .replace(
            UPSTREAM,
            "- id: deepseek
    timeouts: { first_byte: 1s, queued: 2s, first_content: 3s, gap: 4s, total: 5s }
    outlier: { consecutive_failures: 2, error_percent: 30, min_requests: 7, window: 1s, slow_factor: 3, ejection: 200ms, max_ejection: 1h, max_ejected_percent: 0, probes: 4, ramp: 0s }
    breaker: { error_percent: 100, min_requests: 1, window: 10m, open: 100ms, probes: 9 }
    affinity: { bound_percent: 100 }
    credit: { interval: 1s, low_water: { USD: 10, CNY: 50.5, EUR: '0.000000001' } }
",
        )
        .replace("{ id: main,", "{ id: main, priority: 3, weight: 20,")
        .replace("upstreams:\n  ", &format!("upstreams:\n  {OWN}"))
        .replace(
            MODEL,
            "{ resume: 2, degraded: { text: 'No {model} ({request_id}). {\"a\": {}} { model}' }, deadlines: { first_byte: 1s, queued: 2s, first_content: 3s }, variants: [{ ",
        )
        .replace(
            VARIANT,
            &format!("{VARIANT}, {{ upstream: own, model: small, on: [rate_limited, no_resources] }}"),
        );
    let settings = settings_of(&text);
    let seconds = Duration::from_secs;
    assert_eq!(
        settings.retry,
        Retry {
            attempts: 2,
            deadline: seconds(30),
            base_backoff: Duration::from_millis(10),
            max_backoff: seconds(1),
            budget_percent: 20,
            budget_reserve: 3,
            on: [FailureClass::Connect, FailureClass::Deadline].into(),
            hold_head: Duration::ZERO,
        }
    );
    let deepseek = &settings.upstreams[1];
    let clocks = &deepseek.timeouts;
    let clocks = [
        clocks.first_byte,
        clocks.queued,
        clocks.first_content,
        clocks.gap,
        clocks.total,
    ];
    assert_eq!(clocks.map(|clock| clock.as_secs()), [1, 2, 3, 4, 5]);
    assert_eq!(
        deepseek.outlier,
        Some(Outlier {
            consecutive_failures: 2,
            error_percent: 30,
            min_requests: 7,
            window: seconds(1),
            slow_factor: 3,
            ejection: Duration::from_millis(200),
            max_ejection: seconds(3600),
            max_ejected_percent: 0,
            probes: 4,
            ramp: Duration::ZERO,
        })
    );
    assert_eq!(
        deepseek.breaker,
        Some(Breaker {
            error_percent: 100,
            min_requests: 1,
            window: seconds(600),
            open: Duration::from_millis(100),
            probes: 9,
        })
    );
    assert_eq!(deepseek.affinity, Some(Affinity { bound_percent: 100 }));
    let marks = [("CNY", 50_500_000_000), ("EUR", 1), ("USD", 10_000_000_000)];
    assert_eq!(
        deepseek.credit,
        Some(Credit {
            interval: seconds(1),
            low_water: marks.map(|(name, mark)| (name.to_owned(), mark)).into(),
        })
    );
    let account = &deepseek.accounts[0];
    assert_eq!((account.priority, account.weight), (3, 20));
    let own = &settings.upstreams[0];
    assert_eq!(own.credit, None);
    assert_eq!((own.accounts[0].priority, own.accounts[0].weight), (0, 1));
    let flash = &settings.models["flash"];
    assert_eq!(flash.resume, 2);
    assert_eq!(
        flash.degraded.as_ref().unwrap().text,
        "No {model} ({request_id}). {\"a\": {}} { model}"
    );
    assert_eq!(
        flash.deadlines,
        Deadlines {
            first_byte: Some(seconds(1)),
            queued: Some(seconds(2)),
            first_content: Some(seconds(3)),
            ..Deadlines::default()
        }
    );
    assert_eq!(flash.variants[0].on, None);
    let classes = [FailureClass::RateLimited, FailureClass::NoResources].into();
    assert_eq!(flash.variants[1].on, Some(classes));
    assert_eq!(
        settings.tenants[0].deadlines,
        Deadlines {
            gap: Some(seconds(9)),
            total: Some(seconds(300)),
            ..Deadlines::default()
        }
    );
}

#[test]
fn each_guard_can_be_switched_off_and_on() {
    let of = |text: &str| {
        let upstream = settings_of(&upstream(text)).upstreams[0].clone();
        [
            upstream.outlier.is_some(),
            upstream.breaker.is_some(),
            upstream.affinity.is_some(),
            upstream.credit.is_some(),
        ]
    };
    let all = |word: &str| {
        let keys = ["outlier", "breaker", "affinity", "credit"];
        keys.map(|key| format!("{key}: {word}")).join("\n    ")
    };
    assert_eq!(of(&all("false")), [false; 4]);
    assert_eq!(of(&all("true")), [true; 4]);
    assert_eq!(of(&all("{}")), [true; 4]);
    // What is left is asked for by default, as the surfaces are had; the others are as `health` is.
    assert_eq!(of(&all("null")), [false, false, false, true]);
}

#[test]
fn what_is_left_is_asked_of_deepseek_where_it_tells() {
    assert!(settings_of(MINIMAL).upstreams[0].credit.is_some());
    let without_balance = upstream("surfaces: [chat]");
    assert_eq!(settings_of(&without_balance).upstreams[0].credit, None);
    let all_the_same = upstream("surfaces: [chat]\n    credit: true");
    assert!(settings_of(&all_the_same).upstreams[0].credit.is_some());
    for (dialect, words) in [("openai", "false"), ("enveloped", "null")] {
        let text = upstream(&format!("dialect: {dialect}\n    credit: {words}"));
        assert_eq!(settings_of(&text).upstreams[0].credit, None);
    }
}

#[test]
fn clocks_that_are_not_written_give_way_to_a_shorter_total() {
    let clocks = settings_of(&upstream("timeouts: { total: 90s, gap: 5s }")).upstreams[0]
        .timeouts
        .clone();
    let clocks = [
        clocks.first_byte,
        clocks.queued,
        clocks.first_content,
        clocks.gap,
    ];
    assert_eq!(clocks.map(|clock| clock.as_secs()), [60, 90, 90, 5]);
}

#[test]
fn an_alias_has_what_its_target_says_of_failures_unless_it_says_otherwise() {
    let target = "resume: 1, degraded: { text: t }, deadlines: { total: 9s, gap: 2s }";
    let alias = |own: &str| {
        let text = model(target).replace("models:\n", &format!("models:\n  b: {{ {own} }}\n"));
        settings_of(&text).models["b"].clone()
    };
    let plain = alias("alias: flash");
    let flash = settings_of(&model(target)).models["flash"].clone();
    assert_eq!(
        (&plain.deadlines, &plain.degraded, plain.resume),
        (&flash.deadlines, &flash.degraded, 1)
    );
    assert_eq!(plain.variants, flash.variants);
    let own = alias(
        "alias: flash, resume: 0, degraded: { text: own }, deadlines: { queued: 1s, gap: 3s }",
    );
    assert_eq!(own.resume, 0);
    assert_eq!(own.degraded.as_ref().unwrap().text, "own");
    assert_eq!(
        own.deadlines,
        Deadlines {
            queued: Some(Duration::from_secs(1)),
            gap: Some(Duration::from_secs(3)),
            ..flash.deadlines
        }
    );
}

#[test]
fn every_key_about_failures_is_seen_in_a_diff() {
    let base = MINIMAL.replace("upstreams:\n  ", &format!("upstreams:\n  {OWN}"));
    let diff_of = |text: &str| -> Vec<String> {
        let diff = diff::diff(&settings_of(&base), &settings_of(text));
        assert_eq!(diff.needs_restart, [""; 0]);
        diff.changed.iter().map(ToString::to_string).collect()
    };
    let text = base
        .replace(
            "tenants:\n",
            "retry: { attempts: 2, deadline: 30s, base_backoff: 10ms, max_backoff: 1s, budget_percent: 20, budget_reserve: 3, on: [connect, deadline, cut, tls, reset, garbage, unavailable, no_resources, server_error, bad_gateway, rate_limited, gateway_timeout, account_refused], hold_head: 0s }\ntenants:\n",
        )
        .replace("id: a\n", "id: a\n    deadlines: { gap: 9s }\n")
        .replace(
            UPSTREAM,
            "- id: deepseek
    timeouts: { first_byte: 1s, queued: 2s, first_content: 3s, gap: 4s }
    outlier: { window: 1s }
    breaker: false
    affinity: { bound_percent: 150 }
    credit: { interval: 5m, low_water: { USD: 10 } }
",
        )
        .replace("{ id: main,", "{ id: main, priority: 3, weight: 20,")
        .replace(
            MODEL,
            "{ resume: 1, degraded: { text: \"no\\nmore\" }, deadlines: { total: 1m }, variants: [{ ",
        )
        .replace(
            VARIANT,
            &format!("{VARIANT}, {{ upstream: own, model: small, on: [cut, rate_limited] }}"),
        );
    assert_eq!(
        diff_of(&text),
        [
            "model flash: variants deepseek/deepseek-flash → deepseek/deepseek-flash, own/small on rate_limited cut",
            "model flash: degraded none → \"no\\nmore\"",
            "model flash: resume 0 → 1",
            "model flash: deadlines.total none → 1m",
            "retry: attempts 3 → 2",
            "retry: deadline 1m → 30s",
            "retry: base_backoff 50ms → 10ms",
            "retry: max_backoff 2s → 1s",
            "retry: budget_percent 15 → 20",
            "retry: budget_reserve 10 → 3",
            "retry: on −error_in_answer",
            "retry: hold_head 10s → 0s",
            "tenant a: deadlines.gap none → 9s",
            "upstream deepseek: outlier from 5 in a row, 50 % of 20 in 10s or 5 times the time on, out for 3s to 5s, 50 % at most, back by 1 over 4s → from 5 in a row, 50 % of 20 in 1s or 5 times the time on, out for 3s to 5s, 50 % at most, back by 1 over 4s",
            "upstream deepseek: breaker from 50 % of 20 in 10s on, open for 5s, back by 3 → none",
            "upstream deepseek: affinity up to 125 % of an even share → up to 150 % of an even share",
            "upstream deepseek: credit.interval 1m → 5m",
            "upstream deepseek: credit.low_water +10 USD",
            "upstream deepseek: timeouts.first_byte 1m → 1s",
            "upstream deepseek: timeouts.queued 10m → 2s",
            "upstream deepseek: timeouts.first_content 10m → 3s",
            "upstream deepseek: timeouts.gap 2m → 4s",
            "upstream deepseek account main: priority 0 → 3",
            "upstream deepseek account main: weight 1 → 20",
        ]
    );
}
