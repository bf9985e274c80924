//! What operators see and do, over the admin API and on the command line.

use std::process::Output;

use serde_json::json;

use super::*;

const DAY: &str = "all/*/requests_per_day";

fn change(gateway: &Gateway, verb: &str, body: &Value) -> Answer {
    operate(
        gateway,
        &Request::post(&format!("/limits/acme/{verb}"), body),
    )
}

/// `tidegate limits …` against this gateway, with its token in the environment.
fn command(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = tidegate();
    command.arg("limits").args(arguments);
    command.args(["--admin", &gateway.admin().to_string()]);
    command
        .env("TIDEGATE_ADMIN_TOKEN", ADMIN_TOKEN)
        .output()
        .unwrap()
}

fn printed(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn told(output: &Output, code: i32) -> String {
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert!(output.stdout.is_empty());
    told
}

#[test]
fn a_grant_extends_a_day_once_and_leaves_a_line() {
    let (_emulator, gateway) = stage(json!({"requests_per_day": 1}));
    assert!(gateway.is_serving());
    assert!(!gateway.is_serving());
    let grant = json!({"limit": DAY, "amount": 2, "reason": "launch day"});
    let answer = change(&gateway, "grant", &grant);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["limits"][0]["allowed"], 3);
    assert!(gateway.is_serving());
    assert!(gateway.is_serving());
    assert!(!gateway.is_serving());
    let line = gateway.logged(&["audit", "action=grant", "launch day"]);
    for word in ["subject=tenant/acme", DAY, "amount=2", "from=127.0.0.1:"] {
        assert!(line.contains(word), "{word}: {line}");
    }
}

#[test]
fn a_reset_forgets_what_was_used_and_leaves_a_line() {
    let (_emulator, gateway) = stage(json!({"requests_per_day": 1, "requests_per_hour": 1}));
    assert!(gateway.is_serving());
    let answer = change(
        &gateway,
        "reset",
        &json!({"reason": "a loop in their code"}),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(gateway.is_serving());
    assert!(!gateway.is_serving());
    gateway.logged(&["audit", "action=reset", "requests_per_hour", "a loop"]);
    // Of one limit alone, the other one still refuses.
    change(&gateway, "reset", &json!({"limit": DAY}));
    let refused = gateway.post(CHAT, &chat("hello"));
    assert_refused(&refused, "rate_limit_exceeded", "all/*/requests_per_hour");
}

#[test]
fn a_groups_limits_are_eased_for_the_group() {
    let emulator = Emulator::quick();
    let config = config(&emulator, json!({"requests_per_day": 10}))
        .set("/plans/sum", json!({"requests_per_day": 1}))
        .set("/groups", json!([{"id": "org", "plan": "sum"}]))
        .set("/tenants/0/group", json!("org"));
    let gateway = Gateway::start(config);
    assert!(gateway.is_serving());
    assert!(!gateway.is_serving());
    let grant = json!({"limit": DAY, "amount": 1, "group": true});
    let report = change(&gateway, "grant", &grant).json();
    assert_eq!(report["limits"][0]["allowed"], 10);
    assert_eq!(report["limits"][1]["allowed"], 2);
    gateway.logged(&["audit", "subject=group/org"]);
    assert!(gateway.is_serving());
}

#[test]
fn the_api_refuses_what_makes_no_sense_and_helps() {
    let (_emulator, gateway) = stage(json!({"requests_per_day": 5, "requests_per_minute": 5}));
    let minute = "all/*/requests_per_minute";
    for (verb, body, status, words) in [
        (
            "grant",
            json!({"limit": minute, "amount": 1}),
            409,
            "a day or a month",
        ),
        ("grant", json!({"limit": DAY}), 400, "amount above 0"),
        (
            "grant",
            json!({"limit": DAY, "amount": 0}),
            400,
            "amount above 0",
        ),
        ("grant", json!({"limit": DAY, "amount": -1}), 400, "Send"),
        ("grant", json!({"amount": 1}), 400, "names one limit"),
        (
            "grant",
            json!({"limit": DAY, "amount": 1, "group": true}),
            404,
            "in no group",
        ),
        (
            "grant",
            json!({"limit": "all/*/request_per_day", "amount": 1}),
            404,
            "did you mean",
        ),
        (
            "reset",
            json!({"limit": DAY, "amount": 1}),
            400,
            "no amount",
        ),
        ("reset", json!({"limit": "nonsense"}), 404, minute),
        ("reset", json!({"limitt": DAY}), 400, "Send"),
        (
            "reset",
            json!({"reason": "x".repeat(5_000)}),
            413,
            "too long",
        ),
        ("extend", json!({}), 405, "GET /limits/TENANT"),
    ] {
        let answer = change(&gateway, verb, &body);
        assert_eq!(answer.status, status, "{verb} {body}: {}", answer.text());
        assert!(
            answer.text().contains(words),
            "{verb} {body}: {}",
            answer.text()
        );
    }
    let unknown = operate(&gateway, &Request::get("/limits/acmee"));
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.text().contains("did you mean \"acme\"?"),
        "{}",
        unknown.text()
    );
    let open = Request::get("/limits/acme").send(gateway.admin());
    assert_eq!(open.status, 401);
    assert!(
        !gateway
            .log()
            .iter()
            .any(|line| line.contains("action=grant"))
    );
}

#[test]
fn the_command_shows_limits_to_people_and_to_programs() {
    let (_emulator, gateway) = stage(json!({
        "requests_per_day": 5, "cost_per_month": "1.5 USD", "max_concurrent": 7,
    }));
    assert!(gateway.is_serving());
    settled(&gateway, "acme", DAY);
    let table = printed(&command(&gateway, &["show", "acme"]));
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(
        table.starts_with("tenant acme, plan tested, requests under way: 0\n"),
        "{table}"
    );
    let row = |name: &str| rows.iter().find(|row| row.first() == Some(&name)).unwrap();
    assert_eq!(row(DAY)[1..6], ["tenant", "5", "1", "0", "4"], "{table}");
    assert_eq!(
        row("all/*/cost_per_month")[1..4],
        ["tenant", "1.5", "USD"],
        "{table}"
    );
    assert_eq!(row("all/*/max_concurrent").last(), Some(&"-"), "{table}");
    let json = printed(&command(&gateway, &["show", "acme", "--format", "json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["limits"].as_array().unwrap().len(), 3);
    // The configuration has address and token; a secret of it that is away does no harm.
    std::fs::remove_file(gateway.folder().join("account-1.key")).unwrap();
    let mut command = tidegate();
    command
        .args(["limits", "show", "acme", "-c"])
        .arg(gateway.config_path());
    assert_eq!(printed(&command.output().unwrap()), table);
}

#[test]
fn the_command_grants_and_resets() {
    let (_emulator, gateway) = stage(json!({"requests_per_day": 1, "cost_per_day": "1 USD"}));
    assert!(gateway.is_serving());
    assert!(!gateway.is_serving());
    let reason = ["--reason", "they asked"];
    let grant = |limit: &str, amount: &str| {
        let arguments = ["grant", "acme", "--limit", limit, "--amount", amount];
        command(&gateway, &[&arguments[..], &reason[..]].concat())
    };
    printed(&grant(DAY, "1"));
    assert!(gateway.is_serving());
    assert!(!gateway.is_serving());
    let table = printed(&grant("all/*/cost_per_day", "2.50 USD"));
    assert!(table.contains("3.5 USD"), "{table}");
    gateway.logged(&["audit", "amount=2500000000", "they asked"]);
    printed(&command(
        &gateway,
        &[&["reset", "acme", "--limit", DAY][..], &reason].concat(),
    ));
    assert!(gateway.is_serving());
    assert!(told(&grant(DAY, "many"), 2).contains("whole number"));
    assert!(told(&grant("all/*/request_per_day", "1"), 2).contains("did you mean"));
    assert!(told(&grant("all/*/cost_per_day", "1 EUR"), 2).contains("USD"));
}

#[test]
fn the_command_says_what_is_wrong_and_exits_accordingly() {
    let (_emulator, gateway) = stage(json!({"requests_per_day": 1}));
    let unknown = command(&gateway, &["show", "acmee"]);
    assert!(told(&unknown, 2).contains("did you mean \"acme\"?"));
    let mut wrong = tidegate();
    wrong.args([
        "limits",
        "show",
        "acme",
        "--admin",
        &gateway.admin().to_string(),
    ]);
    let output = wrong
        .env("TIDEGATE_ADMIN_TOKEN", "another")
        .output()
        .unwrap();
    let text = told(&output, 2);
    assert!(
        text.contains("admin token") && !text.contains("another-"),
        "{text}"
    );
    wrong.args(["--token", ADMIN_TOKEN]);
    let text = told(&wrong.output().unwrap(), 2);
    assert!(
        text.contains("${env:NAME}") && !text.contains(ADMIN_TOKEN),
        "{text}"
    );
    let mut unset = tidegate();
    unset
        .env_remove("TIDEGATE_ADMIN_TOKEN")
        .args(["limits", "show", "acme"]);
    assert!(told(&unset.output().unwrap(), 2).contains("TIDEGATE_ADMIN_TOKEN"));
    let no_reason = command(&gateway, &["reset", "acme"]);
    assert!(told(&no_reason, 2).contains("--reason"));
    // Nothing listens on the port of a listener that is gone.
    let away = gateway.admin().to_string();
    drop(gateway);
    let mut command = tidegate();
    command.args(["limits", "show", "acme", "--admin", &away]);
    let output = command
        .env("TIDEGATE_ADMIN_TOKEN", ADMIN_TOKEN)
        .output()
        .unwrap();
    assert!(told(&output, 1).contains("is it running"));
}
