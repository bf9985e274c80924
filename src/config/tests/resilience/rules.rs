//! Each rule, with what is told when it is broken.

use super::*;

/// Asserts that `text` has exactly these mistakes, told without file and line, in any order.
fn told(text: &str, expected: &[&str]) {
    let mut told: Vec<String> = mistakes(text)
        .iter()
        .map(|line| line.split_once(": ").unwrap().1.to_owned())
        .collect();
    told.sort();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(told, expected, "{text}");
}

#[test]
fn each_rule_of_retries_is_kept() {
    let with = |text: &str| MINIMAL.replace("tenants:\n", &format!("retry: {text}\ntenants:\n"));
    let classes = "connect, tls, reset, rate_limited, account_refused, server_error, bad_gateway, unavailable, gateway_timeout, garbage, error_in_answer, no_resources, cut, deadline";
    for (written, mistake) in [
        (
            "{ attempts: 0 }",
            "attempts: 0; expected a whole number from 1 to 5",
        ),
        (
            "{ attempts: 6 }",
            "attempts: 6; expected a whole number from 1 to 5",
        ),
        (
            "{ deadline: 0s }",
            "deadline: 0s; expected more than 0 and at most 24h",
        ),
        (
            "{ deadline: 25h }",
            "deadline: 25h; expected more than 0 and at most 24h",
        ),
        (
            "{ base_backoff: 61s, max_backoff: 2m }",
            "base_backoff: 1m1s; expected 0s to 1m",
        ),
        ("{ max_backoff: 6m }", "max_backoff: 6m; expected 0s to 5m"),
        (
            "{ base_backoff: 3s }",
            "base_backoff: 3s, more than max_backoff; expected at most 2s",
        ),
        (
            "{ max_backoff: 0s }",
            "base_backoff: 50ms, more than max_backoff; expected at most 0s",
        ),
        (
            "{ budget_percent: 101 }",
            "budget_percent: 101; expected a whole number from 0 to 100",
        ),
        (
            "{ budget_reserve: 10001 }",
            "budget_reserve: 10001; expected a whole number from 0 to 10000",
        ),
        (
            "{ hold_head: 601s }",
            "hold_head: 10m1s; expected 0s to 10m",
        ),
        (
            "{ on: [] }",
            "on: an empty list; at least one entry is needed",
        ),
        (
            "{ on: [cut, cut] }",
            "on[1]: cut a second time; it is taken by retry.on[0]",
        ),
        (
            "{ on: [deadlines] }",
            &format!("on[0]: \"deadlines\"; expected one of {classes}; did you mean \"deadline\"?"),
        ),
        (
            "{ hold_head: 10 }",
            "hold_head: the number 10; expected a duration such as 250ms, 30s, 10m or 1h30m",
        ),
    ] {
        told(&with(written), &[&format!("retry.{mistake}")]);
    }
    assert!(
        load_text(&with(
            "{ base_backoff: 0s, max_backoff: 0s, budget_percent: 0, budget_reserve: 0 }"
        ))
        .is_ok()
    );
}

#[test]
fn each_rule_of_who_is_left_out_is_kept() {
    for (written, mistake) in [
        (
            "outlier: { consecutive_failures: 0 }",
            "outlier.consecutive_failures: 0; expected a whole number from 1 to 1000",
        ),
        (
            "outlier: { error_percent: 0 }",
            "outlier.error_percent: 0; expected a whole number from 1 to 100",
        ),
        (
            "outlier: { min_requests: 0 }",
            "outlier.min_requests: 0; expected a whole number from 1 to 1000000",
        ),
        (
            "outlier: { window: 999ms }",
            "outlier.window: 999ms; expected 1s to 10m",
        ),
        (
            "outlier: { window: 11m }",
            "outlier.window: 11m; expected 1s to 10m",
        ),
        (
            "outlier: { slow_factor: 1 }",
            "outlier.slow_factor: 1; expected a whole number from 2 to 1000",
        ),
        (
            "outlier: { ejection: 0s }",
            "outlier.ejection: 0s; expected 100ms to 1h",
        ),
        (
            "outlier: { max_ejection: 2h }",
            "outlier.max_ejection: 2h; expected 100ms to 1h",
        ),
        (
            "outlier: { ejection: 6s }",
            "outlier.ejection: 6s, more than max_ejection; expected at most 5s",
        ),
        (
            "outlier: { max_ejection: 1s }",
            "outlier.ejection: 3s, more than max_ejection; expected at most 1s",
        ),
        (
            "outlier: { max_ejected_percent: 101 }",
            "outlier.max_ejected_percent: 101; expected a whole number from 0 to 100",
        ),
        (
            "outlier: { probes: 0 }",
            "outlier.probes: 0; expected a whole number from 1 to 100",
        ),
        (
            "outlier: { ramp: 11m }",
            "outlier.ramp: 11m; expected 0s to 10m",
        ),
        (
            "outlier: { windows: 1s }",
            "outlier.windows: unknown key; allowed here: consecutive_failures, error_percent, min_requests, window, slow_factor, ejection, max_ejection, max_ejected_percent, probes, ramp; did you mean \"window\"?",
        ),
        (
            "outlier: never",
            "outlier: \"never\"; expected true or false, or a map",
        ),
        (
            "breaker: { error_percent: 101 }",
            "breaker.error_percent: 101; expected a whole number from 1 to 100",
        ),
        (
            "breaker: { min_requests: 0 }",
            "breaker.min_requests: 0; expected a whole number from 1 to 1000000",
        ),
        (
            "breaker: { window: 0s }",
            "breaker.window: 0s; expected 1s to 10m",
        ),
        (
            "breaker: { open: 61m }",
            "breaker.open: 1h1m; expected 100ms to 1h",
        ),
        (
            "breaker: { probes: 101 }",
            "breaker.probes: 101; expected a whole number from 1 to 100",
        ),
        (
            "affinity: { bound_percent: 99 }",
            "affinity.bound_percent: 99; expected a whole number from 100 to 1000",
        ),
        (
            "credit: { interval: 500ms }",
            "credit.interval: 500ms; expected 1s to 24h",
        ),
        (
            "credit: { low_water: { usd: 1 } }",
            "credit.low_water.usd: \"usd\"; expected the three capital letters of ISO 4217, such as USD",
        ),
        (
            "credit: { low_water: { USD: 0 } }",
            "credit.low_water.USD: 0; expected more than 0 and at most 1000000000, with at most 9 digits after the point",
        ),
        (
            "credit: { low_water: { USD: 1000000001 } }",
            "credit.low_water.USD: 1000000001; expected more than 0 and at most 1000000000, with at most 9 digits after the point",
        ),
        (
            "credit: { low_water: { USD: '0.0000000001' } }",
            "credit.low_water.USD: 0.0000000001; expected more than 0 and at most 1000000000, with at most 9 digits after the point",
        ),
        (
            "credit: { low_water: { USD: 5 USD } }",
            "credit.low_water.USD: \"5 USD\" is not of that form; expected a decimal number of at most 12 digits after the point, such as 0.15, not negative",
        ),
    ] {
        told(&upstream(written), &[&format!("upstreams[0].{mistake}")]);
    }
    for (key, range) in [("priority: 1001", "0 to 1000"), ("weight: 0", "1 to 1000")] {
        let (name, value) = key.split_once(": ").unwrap();
        let mistake = format!(
            "upstreams[0].accounts[0].{name}: {value}; expected a whole number from {range}"
        );
        told(
            &MINIMAL.replace("id: main,", &format!("id: main, {key},")),
            &[&mistake],
        );
    }
}

#[test]
fn no_clock_of_a_part_runs_longer_than_that_of_the_whole() {
    let never = |total: &str| format!("expected at most {total}: it would never come to pass");
    for key in ["first_byte", "queued", "first_content", "gap"] {
        let more = format!("{key}: 3s, more than total; {}", never("2s"));
        let both = format!("{{ {key}: 3s, total: 2s }}");
        told(
            &upstream(&format!("timeouts: {both}")),
            &[&format!("upstreams[0].timeouts.{more}")],
        );
        told(
            &model(&format!("deadlines: {both}")),
            &[&format!("models.flash.deadlines.{more}")],
        );
        told(
            &MINIMAL.replace("id: a\n", &format!("id: a\n    deadlines: {both}\n")),
            &[&format!("tenants[0].deadlines.{more}")],
        );
        let zero = format!("{key}: 0s; expected more than 0 and at most 24h");
        told(
            &model(&format!("deadlines: {{ {key}: 0s }}")),
            &[&format!("models.flash.deadlines.{zero}")],
        );
        told(
            &upstream(&format!("timeouts: {{ {key}: 0s }}")),
            &[&format!("upstreams[0].timeouts.{zero}")],
        );
        // Without a total of its own, that of the upstream is not known here.
        assert!(load_text(&model(&format!("deadlines: {{ {key}: 23h }}"))).is_ok());
    }
    told(
        &model("deadlines: { total: 25h }"),
        &["models.flash.deadlines.total: 25h; expected more than 0 and at most 24h"],
    );
    // What an alias inherits is told where it stands; what it makes of it, at the alias.
    let alias = |target: &str, own: &str| {
        model(&format!("deadlines: {target}")).replace(
            "models:\n",
            &format!("models:\n  b: {{ alias: flash, deadlines: {own} }}\n"),
        )
    };
    told(
        &alias("{ gap: 3s, total: 2s }", "{ queued: 1s }"),
        &[&format!(
            "models.flash.deadlines.gap: 3s, more than total; {}",
            never("2s")
        )],
    );
    told(
        &alias("{ gap: 3s, total: 4s }", "{ total: 2s }"),
        &[&format!(
            "models.b.deadlines.gap: 3s, more than total; {}",
            never("2s")
        )],
    );
    told(
        &alias("{ total: 4s }", "{ gap: 5s }"),
        &[&format!(
            "models.b.deadlines.gap: 5s, more than total; {}",
            never("4s")
        )],
    );
}

#[test]
fn each_rule_of_fallback_is_kept() {
    told(
        &MINIMAL.replace(VARIANT, "model: deepseek-flash, on: [cut] }"),
        &[
            "models.flash.variants[0].on: classes of failures on the first variant; nothing comes before it; write them on the variant that is to step in",
        ],
    );
    let second = |on: &str| {
        let second = format!("{VARIANT}, {{ upstream: deepseek, model: small, on: {on} }}");
        MINIMAL.replace(VARIANT, &second)
    };
    assert!(load_text(&second("null")).is_ok());
    told(
        &second("[]"),
        &["models.flash.variants[1].on: an empty list; at least one entry is needed"],
    );
    told(
        &second("[tls, cut, tls]"),
        &[
            "models.flash.variants[1].on[2]: tls a second time; it is taken by models.flash.variants[1].on[0]",
        ],
    );
    let own = MINIMAL
        .replace("upstreams:\n  ", &format!("upstreams:\n  {OWN}"))
        .replace("upstream: deepseek,", "upstream: own,");
    let own = own.replace(MODEL, "{ resume: 1, variants: [{ ");
    let cannot = "1, and no variant is at an upstream of dialect deepseek; expected 0: only DeepSeek goes on from a given text, by prefix completion";
    told(&own, &[&format!("models.flash.resume: {cannot}")]);
    let alias = own
        .replace("resume: 1, ", "")
        .replace("models:\n", "models:\n  b: { alias: flash, resume: 1 }\n");
    told(&alias, &[&format!("models.b.resume: {cannot}")]);
    assert!(load_text(&own.replace("resume: 1", "resume: 0")).is_ok());
    let one_can = own.replace(
        VARIANT,
        &format!("{VARIANT}, {{ upstream: deepseek, model: deepseek-flash }}"),
    );
    assert_eq!(settings_of(&one_can).models["flash"].resume, 1);
    told(
        &model("resume: 3"),
        &["models.flash.resume: 3; expected a whole number from 0 to 2"],
    );
}

#[test]
fn a_variant_that_no_failure_leads_to_is_a_warning() {
    let second = format!("{VARIANT}, {{ upstream: deepseek, model: small, on: [tls, cut] }}");
    let warned = |retry: &str| {
        let text = MINIMAL.replace("tenants:\n", &format!("retry: {retry}\ntenants:\n"));
        let loaded = load_text(&text.replace(VARIANT, &second)).unwrap();
        let lines = lines(&loaded.warnings).into_iter();
        let lines = lines.map(|line| line.split_once(": ").unwrap().1.to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(warned("{ attempts: 2 }"), [""; 0]);
    assert_eq!(
        warned("{ attempts: 1, on: [connect, tls] }"),
        [
            "models.flash.variants[1].on: cut, not among `retry.on`; what is not tried again leads to no other variant",
            "models.flash.variants[1].on: classes of failures, while `retry.attempts` is 1; after the first failure no other variant is asked",
        ]
    );
}

#[test]
fn a_degraded_answer_is_a_text_of_known_placeholders() {
    let text = |text: &str| model(&format!("degraded: {{ text: {text:?} }}"));
    let path = "models.flash.degraded.text";
    told(
        &model("degraded: {}"),
        &[&format!("{path}: missing; this key is required")],
    );
    let size = "expected 1 byte to 16KiB of text";
    told(&text(""), &[&format!("{path}: 0 bytes; {size}")]);
    told(
        &text(&"x".repeat(16 * 1024 + 1)),
        &[&format!("{path}: 16385 bytes; {size}")],
    );
    let longest = "{model}{request_id}".to_owned() + &"é".repeat(8182);
    let longest = settings_of(&text(&longest));
    let longest = longest.models["flash"].degraded.as_ref().unwrap();
    assert_eq!(longest.text.len(), 16 * 1024 - 1);
    told(
        &text("{modell} {modell} {tenant}{model}{Model}"),
        &[
            &format!(
                "{path}: the placeholder \"{{modell}}\"; {{model}} and {{request_id}} may stand here; did you mean \"model\"?"
            ),
            &format!(
                "{path}: the placeholder \"{{tenant}}\"; {{model}} and {{request_id}} may stand here"
            ),
            &format!(
                "{path}: the placeholder \"{{Model}}\"; {{model}} and {{request_id}} may stand here; did you mean \"model\"?"
            ),
        ],
    );
    for braces in [
        "{",
        "}",
        "{}",
        "{{model}}",
        "{ x }",
        "{\"a\":1}",
        "{a b}",
        "{1}",
        "{model",
    ] {
        let settings = settings_of(&text(braces));
        let degraded = settings.models["flash"].degraded.as_ref().unwrap();
        assert_eq!(degraded.text, braces);
    }
}

#[test]
fn all_mistakes_about_failures_are_told_at_once() {
    let text = upstream(
        "outlier: { window: 0s, ejection: 1m }\n    breaker: { open: 2h }\n    credit: { low_water: { Usd: 0 } }\n    timeouts: { gap: 1h }",
    )
    .replace(
        MODEL,
        "{ degraded: { text: '{x}' }, deadlines: { gap: 2s, total: 1s }, variants: [{ ",
    )
    .replace("tenants:\n", "retry: { hold_head: 1h, on: [cut, cut] }\ntenants:\n")
    .replace(VARIANT, "model: deepseek-flash, on: [tls, tls] }");
    let found = mistakes(&text);
    assert_eq!(found.len(), 12, "{found:#?}");
}

#[test]
fn only_deepseek_is_asked_what_is_left() {
    for words in ["true", "{}", "{ interval: 5s }"] {
        told(
            &upstream(&format!("dialect: openai\n    credit: {words}")),
            &[
                "upstreams[0].credit: given for another dialect; only dialect deepseek tells what is left of an account",
            ],
        );
    }
}
