//! The rules of dependency, held against the `use` lines: arrows point inwards, and the pure core
//! knows neither Pingora nor the runtime. `ARCHITECTURE.md` gives the reasons.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each part may use of the others.
const MAY_USE: &[(&str, &[&str])] = &[
    ("json", &[]),
    ("config", &[]),
    ("emulator", &[]),
    ("fetch", &[]),
    ("relay", &["json"]),
    ("ledger", &["config", "relay"]),
    ("database", &["ledger"]),
    ("request", &["config", "json"]),
    ("identity", &["config", "request"]),
    ("upstream", &["config", "relay"]),
    ("admission", &["config"]),
    ("ledger", &["config", "relay"]),
    ("routing", &["config", "identity", "request", "upstream"]),
    ("telemetry", &["config", "relay"]),
    ("downstream", &["identity", "request"]),
    (
        "snapshot",
        &[
            "admission",
            "config",
            "identity",
            "ledger",
            "request",
            "routing",
            "upstream",
        ],
    ),
    (
        "context",
        &[
            "admission",
            "config",
            "downstream",
            "identity",
            "ledger",
            "relay",
            "request",
            "routing",
            "snapshot",
            "telemetry",
            "upstream",
        ],
    ),
    (
        "gateway",
        &[
            "admission",
            "config",
            "context",
            "downstream",
            "identity",
            "ledger",
            "relay",
            "request",
            "routing",
            "snapshot",
            "telemetry",
            "upstream",
        ],
    ),
    (
        "admin",
        &[
            "admission",
            "config",
            "identity",
            "ledger",
            "routing",
            "snapshot",
            "telemetry",
            "upstream",
        ],
    ),
    (
        "server",
        &[
            "admin",
            "admission",
            "config",
            "database",
            "downstream",
            "fetch",
            "gateway",
            "identity",
            "ledger",
            "request",
            "routing",
            "snapshot",
            "telemetry",
            "upstream",
        ],
    ),
    (
        "cli",
        &[
            "admission",
            "config",
            "database",
            "emulator",
            "identity",
            "ledger",
            "server",
            "snapshot",
            "telemetry",
            "upstream",
        ],
    ),
];

/// Decisions: plain data in, a verdict out.
const PURE: &[&str] = &[
    "admission/allowance.rs",
    "admission/amounts.rs",
    "admission/book.rs",
    "admission/clock.rs",
    "admission/counter.rs",
    "admission/estimate.rs",
    "admission/reservation.rs",
    "admission/subject.rs",
    "json.rs",
    "ledger",
    "request/deadline.rs",
    "request/continuation.rs",
    "request/degraded.rs",
    "request/edit.rs",
    "request/head.rs",
    "request/refusal.rs",
    "request/scan.rs",
    "request/surface.rs",
    "identity",
    "ledger",
    "relay",
    "routing",
    "config",
    "downstream/resets.rs",
    "upstream/account.rs",
    "upstream/balance.rs",
    "upstream/breaker",
    "upstream/breaker.rs",
    "upstream/condition.rs",
    "upstream/budget.rs",
    "upstream/clocks.rs",
    "upstream/credit.rs",
    "upstream/endpoint.rs",
    "upstream/fair_queue",
    "upstream/fair_queue.rs",
    "upstream/gate",
    "upstream/gate.rs",
    "upstream/governor",
    "upstream/governor.rs",
    "upstream/health.rs",
    "upstream/outlier.rs",
    "upstream/pace.rs",
    "upstream/queue/share.rs",
    "upstream/retry",
    "upstream/retry.rs",
    "upstream/signing.rs",
    "upstream/transitions.rs",
    "upstream/window.rs",
];

#[test]
fn arrows_point_inwards_only() {
    for (part, allowed) in MAY_USE {
        let used = used_by(part);
        let allowed: BTreeSet<_> = allowed.iter().map(|name| (*name).to_owned()).collect();
        let beyond: Vec<_> = used.difference(&allowed).collect();
        assert!(beyond.is_empty(), "{part} may not use {beyond:?}");
    }
}

#[test]
fn every_part_has_a_rule() {
    let lib = std::fs::read_to_string(source("lib.rs")).unwrap();
    let parts = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for part in parts {
        assert!(
            MAY_USE.iter().any(|(known, _)| *known == part),
            "{part} has no rule"
        );
    }
}

#[test]
fn the_core_knows_neither_pingora_nor_the_runtime() {
    for place in PURE {
        for file in files(&source(place)) {
            let text = std::fs::read_to_string(&file).unwrap();
            for word in ["pingora", "tokio"] {
                let line = text.lines().find(|line| {
                    !line.trim_start().starts_with("//") && line.contains(&format!("{word}::"))
                });
                assert!(line.is_none(), "{} uses {word}: {line:?}", file.display());
            }
        }
    }
}

fn source(place: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(place)
}

fn used_by(part: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let own = [source(&format!("{part}.rs")), source(part)];
    for file in own
        .iter()
        .filter(|path| path.exists())
        .flat_map(|path| files(path))
    {
        let text = std::fs::read_to_string(&file).unwrap();
        for rest in text.split("crate::").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            used.insert(name);
        }
    }
    used.remove(part);
    used.remove("");
    used
}

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|entry| files(&entry))
        .filter(|file| file.extension().is_some_and(|e| e == "rs"))
        .collect()
}
