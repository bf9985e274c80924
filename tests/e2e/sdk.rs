//! The SDKs that tenants use, at the versions pinned in `tests/sdk`: each drives the gateway by a
//! program of its own, which prints a line for each check.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tidegate::emulator::EmulatorConfig;

use crate::support::*;

/// Where `make setup` puts the SDKs.
const INSTALLED: &str = "target/sdk";
/// What runs Python programs and what runs JavaScript ones.
pub const PYTHON: &str = "venv/bin/python";
pub const NODE: &str = "venv/bin/node";

#[test]
fn the_openai_sdk_for_python_is_served() {
    run(PYTHON, "openai_sdk.py");
}

#[test]
fn the_anthropic_sdk_for_python_is_served() {
    run(PYTHON, "anthropic_sdk.py");
}

#[test]
fn the_openai_sdk_for_javascript_is_served() {
    run(NODE, "openai_sdk.mjs");
}

/// Runs one of the programs in `tests/sdk` against a gateway of its own.
fn run(interpreter: &str, program: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sdks = installed(root);
    let emulator = Emulator::start(EmulatorConfig {
        // A little apart, so that streams come in pieces and the checks stay quick.
        token_delay: Duration::from_millis(2),
        embeddings: true,
        ..Emulator::with_accounts(1)
    });
    let gateway = Gateway::start(
        // Refusals are told at once: with a queue, an account at its limit would be waited for. And
        // the only account, if it is refused, is back in a moment.
        config(&emulator)
            .set("/queue/max_length", json!(0))
            .unguarded()
            .set("/upstreams/0/outlier", json!(back_in_a_moment()))
            // So many answers of 429 would leave no room for forty streams.
            .set("/upstreams/0/governor", json!(false)),
    );
    let output = Command::new(sdks.join(interpreter))
        .arg(root.join("tests/sdk").join(program))
        // SDKs read keys, addresses and proxies from the environment.
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SDK_FOLDER", &sdks)
        .env("TIDEGATE_URL", gateway.url())
        .env("TIDEGATE_KEY", key("acme"))
        .env(
            "EMULATOR_JOURNAL",
            format!("{}/_emulator/journal", emulator.url()),
        )
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("ok "),
        "{program}: {}\n{told}{errors}",
        output.status
    );
}

/// The folder of the SDKs; a missing one is a failure, since a skipped test proves nothing.
pub fn installed(root: &Path) -> PathBuf {
    let sdks = root.join(INSTALLED);
    let stamp = sdks.join("installed");
    assert!(
        stamp.is_file(),
        "the SDKs are not in {}: run `make setup`",
        sdks.display()
    );
    sdks
}

fn back_in_a_moment() -> serde_json::Value {
    json!({
        "consecutive_failures": 1000, "min_requests": 1_000_000,
        "ejection": "100ms", "max_ejection": "100ms", "ramp": "0s",
    })
}

/// Every model but `deepseek-v4-pro` and all paths are open to `acme`, and the upstream has
/// embeddings.
fn config(emulator: &Emulator) -> Config {
    let surfaces = [
        "chat",
        "completions",
        "embeddings",
        "messages",
        "responses",
        "files",
    ];
    Config::for_emulator(emulator)
        .set("/upstreams/0/surfaces", json!(surfaces))
        .set("/tenants/0/files", json!(true))
        .set(
            "/tenants/0/models",
            json!(["deepseek-flash", "deepseek-chat", "deepseek-reasoner"]),
        )
}
