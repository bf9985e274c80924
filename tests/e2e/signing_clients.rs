//! The programs that show how to sign requests, in `tests/sdk/signing` and in the documentation:
//! each runs against the real gateway.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::sdk::{NODE, PYTHON, installed};
use crate::support::signing::{SIGNING_SECRET, signer};
use crate::support::*;

/// What `make setup` makes of the program in Go.
const GO_CLIENT: &str = "signing-client";

fn stage() -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .set("/tenants/0/credentials/-", signer("signer"))
        .file("signer.secret", SIGNING_SECRET);
    (emulator, Gateway::start(config))
}

/// Runs a program of `tests/sdk/signing` with this secret.
fn run(gateway: &Gateway, interpreter: Option<&str>, program: &str, secret: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sdks = installed(root);
    let source = root.join("tests/sdk/signing").join(program);
    let mut command = match interpreter {
        None => Command::new(sdks.join(GO_CLIENT)),
        Some("bash") => Command::new("bash"),
        Some(installed) => Command::new(sdks.join(installed)),
    };
    if interpreter.is_some() {
        command.arg(source);
    }
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TIDEGATE_URL", gateway.url())
        .env("TIDEGATE_KEY_ID", "signer")
        .env("TIDEGATE_SECRET", secret)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// It prints the answer with the right secret, and fails and says why with a wrong one.
fn signs(interpreter: Option<&str>, program: &str) {
    let (emulator, gateway) = stage();
    let direct = gateway.post("/v1/chat/completions", &chat_stream("Say hello."));
    let events = direct.events();
    let words = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let answer: String = words.collect();
    assert!(!answer.is_empty());
    emulator.forget_calls();
    // Twice, for a nonce counts once.
    for calls in 1..=2 {
        let output = run(&gateway, interpreter, program, SIGNING_SECRET);
        assert!(output.status.success(), "{program}: {output:?}");
        let told = String::from_utf8_lossy(&output.stdout);
        if interpreter == Some("bash") {
            assert!(told.trim().ends_with("data: [DONE]"), "{told}");
        } else {
            assert_eq!(told.trim(), answer.trim(), "{program}");
        }
        let call = emulator.call_ended("complete");
        assert_eq!(call["stream"], true);
        assert_eq!(emulator.calls().len(), calls);
    }
    emulator.forget_calls();
    let wrong = format!("{SIGNING_SECRET}x");
    let output = run(&gateway, interpreter, program, &wrong);
    assert!(!output.status.success(), "{program}: {output:?}");
    let told = format!("{output:?}");
    assert!(
        told.contains("The credential is not valid here"),
        "{program}: {told}"
    );
    assert!(!told.contains(&wrong), "{program}: {told}");
    assert!(emulator.calls().is_empty());
    let reason = "reason=\"wrong_signature\"";
    assert_eq!(
        gateway.metric("tidegate_authentication_failures_total", &[reason]),
        1.0
    );
}

#[test]
fn a_python_program_signs() {
    signs(Some(PYTHON), "client.py");
}

#[test]
fn openais_sdk_signs() {
    signs(Some(PYTHON), "openai_auth.py");
}

#[test]
fn a_javascript_program_signs() {
    signs(Some(NODE), "client.mjs");
}

#[test]
fn curl_and_openssl_sign() {
    signs(Some("bash"), "client.sh");
}

#[test]
fn a_go_program_signs() {
    signs(None, "client.go");
}
