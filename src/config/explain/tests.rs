use std::path::PathBuf;

use super::*;
use crate::config::tests::MINIMAL;

fn explained(files: &[(&str, &str)], keys: &[&str]) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let layers = files.iter().map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Layer::Path(path)
    });
    let layers: Vec<_> = layers.collect();
    let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
    let told = explain(&layers, &keys).map_err(|error| match error {
        ExplainError::Unknown(why) => why,
        ExplainError::Mistakes(mistakes) => mistakes[0].to_string(),
    })?;
    let told = told.replace(&format!("{}/", folder.path().display()), "");
    Ok(told.lines().map(str::to_owned).collect())
}

fn one(over: &str, key: &str) -> Vec<String> {
    explained(&[("base.yaml", MINIMAL), ("over.yaml", over)], &[key]).unwrap()
}

fn tenant(id: &str) -> String {
    let hash = "1a".repeat(32);
    format!(
        "{{id: {id}, models: ['*'], credentials: [{{api_key: {{id: k{id}, hash: 'sha256:{hash}'}}}}]}}"
    )
}

#[test]
fn each_value_is_told_with_its_line_what_it_replaced_or_that_it_is_a_default() {
    let base = MINIMAL.replace(
        "server:\n",
        "server:\n  limits: { head_timeout: 10s, body_timeout: 5s }\n",
    );
    let files = [
        ("base.yaml", base.as_str()),
        ("site.yaml", "server: {limits: {head_timeout: 15s}}"),
        (
            "over.yaml",
            "server:\n  limits:\n    head_timeout: 30s\n    body_timeout: null",
        ),
    ];
    let told = explained(&files, &["server.limits"]).unwrap();
    assert_eq!(told.len(), 17, "{told:#?}");
    for line in [
        "server.limits.head_timeout: 30s  ← over.yaml:3 (was 15s at site.yaml:1, before that 10s at base.yaml:3)",
        "server.limits.body_timeout: 1m  ← default (was 5s at base.yaml:3, removed at over.yaml:4)",
        "server.limits.max_head: 64KiB  ← default",
    ] {
        assert!(told.contains(&line.to_owned()), "{line}\n{told:#?}");
    }
}

#[test]
fn items_are_told_by_name_and_found_by_name_or_index() {
    let over = &format!("tenants: [{}]", tenant("b"));
    for key in ["tenants[a].models", "tenants[0].models"] {
        assert_eq!(
            one(over, key),
            ["tenants[a].models: [flash]  ← base.yaml:6"]
        );
    }
    assert_eq!(
        one(over, "tenants[b].enabled"),
        ["tenants[b].enabled: true  ← default"]
    );
    let url = "upstreams[deepseek].endpoints[https://api.deepseek.com].weight";
    let quoted = "upstreams[0].endpoints[\"https://api.deepseek.com\"].weight";
    assert_eq!(one("", url), one("", quoted));
    assert_eq!(
        one("", url),
        [format!("{quoted}: 1  ← default").replace("[0]", "[deepseek]")]
    );
}

#[test]
fn what_was_taken_away_is_told_too() {
    let over = &format!("tenants:\n- {{id: a, $remove: true}}\n- {}", tenant("b"));
    let told = one(over, "tenants[a]");
    let models = "tenants[a].models: removed  ← over.yaml:2 (was [flash] at base.yaml:6)";
    assert!(told.contains(&models.to_owned()), "{told:#?}");
    let all = one(over, "all");
    assert!(all.contains(&models.to_owned()), "{all:#?}");
    assert_eq!(all, one(over, ""));
}

#[test]
fn a_key_below_something_that_is_not_there_leads_to_it() {
    let told = one("", "server.admin.token");
    assert_eq!(told, ["server.admin: none  ← default"]);
    let told = one("", "upstreams[deepseek].health.interval");
    assert_eq!(
        told,
        ["upstreams[deepseek].health.interval: 10s  ← default"]
    );
}

#[test]
fn an_unknown_key_is_told_with_the_nearest() {
    let told = |key| explained(&[("base.yaml", MINIMAL)], &[key]).unwrap_err();
    for (key, about) in [
        ("server.limts.head_timeout", "did you mean \"limits\"?"),
        ("tenants[aa].models", "did you mean \"a\"?"),
        ("tenants[7]", "has 1 items and none is \"7\""),
        ("models.flsh", "did you mean \"flash\"?"),
        ("server..x", "is not a key"),
    ] {
        assert!(told(key).contains(about), "{key}: {}", told(key));
    }
    let mistake = explained(&[("base.yaml", "server: 1")], &["all"]).unwrap_err();
    assert!(mistake.contains("server"), "{mistake}");
}

#[test]
fn no_secret_is_shown_nor_what_stands_in_its_place() {
    let key = "tg_k_0123456789";
    let base = MINIMAL
        .replace("${env:KEY}", "sk-pasted-by-mistake")
        .replace("https://api", "https://user:hidden@api")
        .replace("sha256:", key);
    let over = "upstreams: [{id: deepseek, accounts: [{id: main, api_key: '${env:NOT_SET}'}]}]";
    let files = [("base.yaml", base.as_str()), ("over.yaml", over)];
    let told = explained(&files, &["all"]).unwrap().join("\n");
    for secret in ["sk-pasted", "user:hidden", key] {
        assert!(!told.contains(secret), "{told}");
    }
    let line = "upstreams[deepseek].accounts[main].api_key: ${env:NOT_SET}  ← over.yaml:1 (was (not shown) at base.yaml:11)";
    assert!(told.contains(line), "{told}");
    assert!(told.contains("hash: (not shown)"), "{told}");
}

#[test]
fn of_limits_those_that_are_written_are_told_and_others_to_who_asks() {
    let plans = "plans: { p: { cost_per_day: 5 USD, tokens_per_day: 9, chat: { max_concurrent: { limit: 2 } } } }";
    let over = "plans: { p: { tokens_per_day: null } }";
    let files = [
        ("base.yaml", MINIMAL),
        ("plans.yaml", plans),
        ("over.yaml", over),
    ];
    let told = explained(&files, &["plans.p"]).unwrap();
    for line in [
        "plans.p.cost_per_day: 5 USD  ← plans.yaml:1",
        "plans.p.tokens_per_day: none  ← default (was 9 at plans.yaml:1, removed at over.yaml:1)",
        "plans.p.chat.max_concurrent.limit: 2  ← plans.yaml:1",
        "plans.p.chat.max_concurrent.shadow: false  ← default",
        "plans.p.weight: 1  ← default",
    ] {
        assert!(told.contains(&line.to_owned()), "{line}\n{told:#?}");
    }
    assert!(
        !told.iter().any(|line| line.contains("requests_per_hour")),
        "{told:#?}"
    );
    assert_eq!(
        explained(&files, &["plans.p.chat.requests_per_hour"]).unwrap(),
        ["plans.p.chat.requests_per_hour: none  ← default"]
    );
}

#[test]
fn what_is_done_about_failures_is_told_with_its_defaults() {
    let over = "upstreams: [{id: deepseek, outlier: {window: 3s}, timeouts: {gap: 7s}}]";
    for (key, lines) in [
        (
            "upstreams[deepseek].outlier",
            &[
                "upstreams[deepseek].outlier.window: 3s  ← over.yaml:1",
                "upstreams[deepseek].outlier.max_ejection: 5s  ← default",
            ][..],
        ),
        (
            "upstreams[deepseek].breaker",
            &["upstreams[deepseek].breaker.open: 5s  ← default"],
        ),
        (
            "upstreams[deepseek].timeouts",
            &[
                "upstreams[deepseek].timeouts.gap: 7s  ← over.yaml:1",
                "upstreams[deepseek].timeouts.first_byte: 1m  ← default",
                "upstreams[deepseek].timeouts.first_content: 10m  ← default",
            ],
        ),
        (
            "models.flash",
            &[
                "models.flash.deadlines.gap: none  ← default",
                "models.flash.degraded: none  ← default",
            ],
        ),
        ("retry", &["retry.max_backoff: 2s  ← default"]),
    ] {
        let told = one(over, key);
        for line in lines {
            assert!(told.contains(&(*line).to_owned()), "{line}\n{told:#?}");
        }
    }
}

#[test]
fn a_text_cannot_write_to_the_terminal() {
    let over = "models: {flash: {set: {stop: \"\\e[2J\\nserver: x\"}}}";
    let told = one(over, "models.flash.set");
    assert_eq!(told.len(), 1);
    assert!(
        !told[0].contains('\u{1b}') && told[0].contains("\\u{1b}"),
        "{told:?}"
    );
}

#[test]
fn all_of_the_reference_is_explained() {
    let reference = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conf/reference.yaml");
    let layers = [Layer::Path(reference)];
    let told = explain(&layers, &[ALL.to_owned()]).unwrap();
    assert!(told.lines().count() > 80, "{told}");
    // Every key that the reference shows stands in it, so nothing is left to a default.
    assert!(!told.contains("server.limits.max_head: 64KiB  ← default"));
}
