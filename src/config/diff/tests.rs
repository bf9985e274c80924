use super::*;
use crate::config::tests::{MINIMAL, settings_of};

fn told(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
    let diff = diff(&settings_of(old), &settings_of(new));
    (
        diff.changed.iter().map(ToString::to_string).collect(),
        diff.needs_restart,
    )
}

#[test]
fn the_same_configuration_has_no_difference() {
    assert_eq!(told(MINIMAL, MINIMAL), (vec![], vec![]));
}

#[test]
fn each_change_is_one_line_and_applies_at_once() {
    let new = MINIMAL
        .replace("models: [flash]", "models: [pro]\n    balance: true")
        .replace(
            "  flash: ",
            "  pro: { variants: [{ upstream: deepseek, model: pro }] }\n  flash: ",
        )
        .replace("${env:KEY}", "${env:OTHER}")
        .replace("https://api.deepseek.com", "https://other.deepseek.com");
    let (changes, restart) = told(MINIMAL, &new);
    assert_eq!(
        changes,
        [
            "tenant a: models +pro −flash",
            "tenant a: balance false → true",
            "upstream deepseek account main: key changed",
            "removed upstream deepseek endpoint https://api.deepseek.com",
            "added model pro",
            "added upstream deepseek endpoint https://other.deepseek.com",
        ]
    );
    assert_eq!(restart, [""; 0]);
}

#[test]
fn a_new_tenant_is_one_line_and_not_one_for_each_of_its_keys() {
    let hash = "1a".repeat(32);
    let more = format!(
        "  - id: b\n    models: ['*']\n    credentials: [{{ api_key: {{ id: kb, hash: 'sha256:{hash}' }} }}]\nupstreams:"
    );
    let new = MINIMAL.replace("upstreams:", &more);
    assert_eq!(told(MINIMAL, &new).0, ["added tenant b"]);
    assert_eq!(told(&new, MINIMAL).0, ["removed tenant b"]);
}

#[test]
fn the_process_and_the_log_format_need_a_restart() {
    let new = MINIMAL
        .replace("server:", "logging: { format: text, level: debug }\nserver:\n  threads: 7\n  limits: { max_head: 16KiB }\n  admin: { address: '127.0.0.1:9', token: '${env:KEY}' }")
        .replace("8080", "8081");
    let (changes, restart) = told(&MINIMAL.replace("server:", "server:\n  threads: 6"), &new);
    assert_eq!(
        restart,
        [
            "logging.format",
            "server.admin",
            "server.limits.max_head",
            "server.listeners",
            "server.threads"
        ]
    );
    assert!(
        changes.contains(&"logging: level info → debug".to_owned()),
        "{changes:?}"
    );
    assert!(
        changes.contains(&"limits: max_head 64KiB → 16KiB".to_owned()),
        "{changes:?}"
    );
    assert!(changes.contains(&"added admin".to_owned()), "{changes:?}");
}

#[test]
fn a_change_of_how_much_may_be_used_is_told_limit_by_limit() {
    let (old, new) = (
        "plans: { p: { chat: { requests_per_minute: 60 }, cost_per_day: 5 USD } }\n",
        "plans: { p: { chat: { requests_per_minute: { limit: 60, burst: 6 } }, cost_per_day: { limit: 0.5 USD, shadow: true }, priority: low, on_disconnect: drain } }\n\
         groups: [{ id: g, plan: p }]\nqueue: { max_length: 0, keep_alive: 5s }\n",
    );
    let with = |text: &str| MINIMAL.replace("tenants:", &format!("{text}tenants:"));
    let joined = with(new).replace("id: a\n", "id: a\n    plan: p\n    group: g\n");
    let (mut changes, restart) = told(&with(old), &joined);
    changes.sort();
    assert_eq!(
        changes,
        [
            "added group g",
            "plan p: limits +all/*/cost_per_day=0.5 in shadow +chat/*/requests_per_minute=60 burst 6 −all/*/cost_per_day=5 −chat/*/requests_per_minute=60",
            "plan p: on_disconnect cancel → drain for 30s",
            "plan p: priority normal → low",
            "queue: keep_alive none → 5s",
            "queue: max_length 1000 → 0",
            "tenant a: group none → g",
            "tenant a: plan default → p",
        ]
    );
    assert_eq!(restart, [""; 0]);
}

#[test]
fn a_change_of_prices_is_told_as_they_are_written() {
    let price = |hit: &str, holiday: &str| {
        let accounting = format!(
            "accounting:\n  peak_hours: [{{ id: h, time_zone: Asia/Shanghai, hours: ['09:00-12:00'], holidays: [{holiday}] }}]\n  \
             prices: [{{ upstream: deepseek, model: deepseek-flash, cache_hit: {hit}, cache_miss: 0.15, output: 0.6, peak: {{ hours: h, factor: 2 }} }}]\ntenants:"
        );
        MINIMAL.replace("tenants:", &accounting)
    };
    let (changes, _) = told(&price("0.003", "2027-01-01"), &price("0.004", "2027-10-01"));
    assert_eq!(
        changes,
        [
            "price of deepseek/deepseek-flash: base cache_hit 0.003, cache_miss 0.15, output 0.6 → cache_hit 0.004, cache_miss 0.15, output 0.6",
            "price of deepseek/deepseek-flash: peak cache_hit 0.006, cache_miss 0.3, output 1.2 → cache_hit 0.008, cache_miss 0.3, output 1.2",
            "price of deepseek/deepseek-flash: peak_hours +not 2027-10-01 −not 2027-01-01",
        ]
    );
    assert_eq!(
        told(MINIMAL, &price("0.003", "2027-01-01")).0,
        ["added price of deepseek/deepseek-flash"]
    );
    let zone = MINIMAL.replace(
        "tenants:",
        "accounting: { time_zone: Europe/Berlin, currency: EUR, keep_days: 30 }\ntenants:",
    );
    assert_eq!(
        told(MINIMAL, &zone).0,
        [
            "accounting: time_zone UTC → Europe/Berlin",
            "accounting: currency USD → EUR",
            "accounting: keep_days 400 → 30",
        ]
    );
}

#[test]
fn another_store_needs_a_restart_and_shows_no_password() {
    let with = |key: &str| {
        let store = format!(
            "server:\n  store: {{ redis: {{ node: 'r:1', password: '${{env:{key}}}', fail: open }} }}\n"
        );
        MINIMAL.replace("server:\n", &store)
    };
    let (changes, restart) = told(&with("KEY"), &with("OTHER"));
    assert_eq!(changes, ["store: password changed"]);
    assert_eq!(restart, ["server.store"]);
    let (changes, restart) = told(MINIMAL, &with("KEY"));
    assert!(
        changes.contains(&"store: kind local → redis".to_owned()),
        "{changes:?}"
    );
    assert_eq!(restart, ["server.store"]);
}

#[test]
fn no_secret_is_shown() {
    let diff = diff(
        &settings_of(MINIMAL),
        &settings_of(&MINIMAL.replace("${env:KEY}", "${env:OTHER}")),
    );
    let shown = format!("{diff:?}");
    assert!(
        !shown.contains("sk-one") && !shown.contains("sk-two"),
        "{shown}"
    );
}
