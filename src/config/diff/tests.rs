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
