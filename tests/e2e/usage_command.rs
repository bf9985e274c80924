//! `tidegate usage` tells who used what, beside a process that writes, and without a secret.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tidegate::database::{Batch, Database, FILE, Meta};
use tidegate::ledger::{Counts, Hour, Key, Money, Row};

use crate::support::*;

fn usage(arguments: &[&str]) -> Output {
    tidegate().arg("usage").args(arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn row(hour: &str, tenant: &str, nanos: u64) -> Row {
    let hour: jiff::Timestamp = hour.parse().unwrap();
    Row {
        key: Key {
            hour: Hour::starting_at(hour.as_second()),
            tenant: tenant.into(),
            model: "deepseek-flash".into(),
            upstream: "deepseek".into(),
            account: "main".into(),
        },
        counts: Counts {
            requests: 2,
            prompt: 1_000,
            cached: 500,
            completion: 70,
            cost: Money::from_nanos(nanos),
            ..Counts::default()
        },
    }
}

/// A ledger in Chinese time, still open for writing.
fn ledger(state_dir: &Path) -> Database {
    let now = jiff::Timestamp::now();
    let mut database = Database::open(&state_dir.join(FILE), now).unwrap().database;
    let meta = Meta {
        currency: "CNY".to_owned(),
        time_zone: "Asia/Shanghai".to_owned(),
    };
    database.write_meta(&meta).unwrap();
    let rows = [
        row("2026-10-31T15:00:00Z", "search", 1),
        row("2026-10-31T16:00:00Z", "search", 1_234_567_891),
        row("2026-11-10T00:00:00Z", "ads", 3),
        row("2026-11-30T16:00:00Z", "ads", 5),
    ];
    let batch = Batch {
        ledger: &rows,
        ..Batch::default()
    };
    database.write(&batch).unwrap();
    database
}

#[test]
fn usage_reports_a_month_of_the_ledgers_own_time_zone_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let _writing = ledger(folder.path());
    let state_dir = folder.path().to_str().unwrap();
    let month = |more: &[&str]| {
        let mut arguments = vec![
            "--state-dir",
            state_dir,
            "--from",
            "2026-11",
            "--to",
            "2026-11",
        ];
        arguments.extend(more);
        out(&usage(&arguments))
    };
    let table = month(&[]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("tenant  model") && lines[0].contains("cost CNY"));
    assert!(lines[1].starts_with("ads     deepseek-flash") && lines[1].contains("50.0%"));
    assert!(lines[2].contains("1.234568"));
    assert!(lines[3].starts_with("total"));

    let csv = month(&["--by", "day", "--format", "csv"]);
    let days: Vec<_> = csv
        .split("\r\n")
        .map(|line| line.split(',').next())
        .collect();
    let expected = ["day", "2026-11-01", "2026-11-10", ""];
    assert_eq!(days, expected.map(Some));

    let parsed: Value =
        serde_json::from_str(&month(&["--by", "tenant", "--format", "json"])).unwrap();
    assert_eq!(parsed[1]["tenant"], "search");
    assert_eq!(parsed[1]["cost"], "1.234567891");
    assert_eq!(parsed[1]["prompt_tokens"], 1_000);
    assert_eq!(parsed.as_array().unwrap().len(), 2);
}

#[test]
fn usage_finds_the_ledger_by_a_configuration_whose_secrets_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    drop(ledger(&folder.path().join("state")));
    let config = folder.path().join("tidegate.yaml");
    let text = "
server:
  state_dir: state
  listeners: [{ address: '127.0.0.1:0' }]
tenants: []
upstreams:
  - id: deepseek
    dialect: deepseek
    endpoints: [{ url: 'https://api.deepseek.com' }]
    accounts: [{ id: main, api_key: '${file:/nonexistent/key}' }]
models:
  deepseek-flash: { variants: [{ upstream: deepseek, model: deepseek-flash }] }
";
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let told = out(&usage(&[
        "-c",
        config,
        "--by",
        "account",
        "--from",
        "2026-10-01",
    ]));
    assert!(told.contains("main"), "{told}");
}

#[test]
fn usage_says_what_is_wrong_and_whose_fault_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().to_str().unwrap();
    let refused = |arguments: &[&str], code: i32, word: &str| {
        let output = usage(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(word), "no {word}: {told}");
    };
    refused(&["--state-dir", state_dir], 1, "there is no database");
    refused(&[], 2, "--config");
    refused(
        &["--state-dir", state_dir, "-c", "a.yaml"],
        2,
        "cannot be used",
    );
    refused(&["-c", "/nonexistent.yaml"], 2, "/nonexistent.yaml");
    refused(
        &["--state-dir", state_dir, "--by", "tenant,week"],
        2,
        "hour, day, month",
    );
    drop(ledger(folder.path()));
    refused(
        &["--state-dir", state_dir, "--from", "yesterday"],
        2,
        "expected a day",
    );
    refused(
        &[
            "--state-dir",
            state_dir,
            "--from",
            "2026-11",
            "--to",
            "2026-10",
        ],
        2,
        "not after",
    );
    std::fs::write(folder.path().join(FILE), "garbage ".repeat(1_000)).unwrap();
    refused(&["--state-dir", state_dir], 1, FILE);
}
