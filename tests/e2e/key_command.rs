//! `tidegate key`: what it prints can be pasted, and works.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

const PEPPER: &str = "a pepper of more than thirty-two bytes in all";

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = tidegate();
    let command = command.arg("key").args(arguments).stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// What it printed, once it has ended well.
fn printed(arguments: &[&str], input: &str) -> String {
    let output = run(arguments, input);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    String::from_utf8(output.stdout).unwrap()
}

/// The key that is shown.
fn shown(text: &str) -> String {
    let mut lines = text.lines().map(str::trim);
    lines
        .find(|line| line.starts_with("tg_"))
        .unwrap()
        .to_owned()
}

/// The lines to paste.
fn lines(text: &str) -> Value {
    let from = text.lines().skip_while(|line| !line.contains("- api_key"));
    serde_yaml::from_str(&from.collect::<Vec<_>>().join("\n")).unwrap()
}

fn answer_to(gateway: &Gateway, key: &str) -> Answer {
    let request = Request::post("/v1/chat/completions", &chat("hi"));
    let request = request.header("authorization", &format!("Bearer {key}"));
    request.send(gateway.address())
}

fn with_credentials(config: Config, credentials: Value) -> Config {
    config.set("/tenants/0/credentials", credentials)
}

#[test]
fn a_rotated_key_and_its_successor_both_serve_until_the_old_one_ends() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let config = gateway.config_path();
    let config = config.to_str().unwrap();
    // The last moment at which both are good must not have come when they are tried.
    let overlap = Duration::from_secs(6);
    let began = std::time::Instant::now();
    let text = printed(
        &["rotate", "-c", config, "--key", "acme", "--overlap", "6s"],
        "",
    );
    assert!(!text.contains(&key("acme")));
    let (new, credentials) = (shown(&text), lines(&text));
    assert_eq!(credentials.as_array().unwrap().len(), 2);
    assert_eq!(credentials[0]["api_key"]["id"], "acme");
    assert_eq!(
        gateway.reload(|config| with_credentials(config, credentials)),
        "ok"
    );
    let both = [key("acme"), new.clone()].map(|key| answer_to(&gateway, &key).status);
    assert!(began.elapsed() < overlap, "too slow to tell");
    assert_eq!(both, [200, 200]);
    let refused = eventually("the old key ends", SOON * 2, || {
        let answer = answer_to(&gateway, &key("acme"));
        (answer.status != 200).then_some(answer)
    });
    assert!(began.elapsed() >= overlap - Duration::from_secs(1));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (401, "expired_credential")
    );
    assert_eq!(answer_to(&gateway, &new).status, 200);

    // The successor of a key that has ended ends no later than it did.
    let text = printed(&["rotate", "-c", config, "--key", "acme"], "");
    let end: jiff::Timestamp = lines(&text)[0]["api_key"]["not_after"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(end < jiff::Timestamp::now());
}

#[test]
fn what_cannot_be_rotated_is_said() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let path = gateway.config_path();
    let config = path.to_str().unwrap();
    for (arguments, status, word) in [
        (
            vec!["rotate", "-c", config, "--key", "nobodys"],
            1,
            "nobodys",
        ),
        (
            vec!["rotate", "-c", config, "--key", "acme", "--id", "acme"],
            1,
            "id of its own",
        ),
        (
            vec!["rotate", "-c", config, "--key", "acme", "--overlap", "soon"],
            2,
            "soon",
        ),
        (
            vec!["rotate", "-c", "missing.yaml", "--key", "acme"],
            2,
            "missing.yaml",
        ),
        (vec!["rotate", "--key", "acme"], 2, "--config"),
    ] {
        let output = run(&arguments, "");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{told}");
        assert!(told.contains(word), "{told}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_peppered_key_works_with_its_pepper_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pepper");
    std::fs::write(&file, format!("{PEPPER}\n")).unwrap();
    let pepper = ["--pepper", "main", "--pepper-file", file.to_str().unwrap()];
    let arguments = [&["new", "--tenant", "acme", "--id", "spiced"], &pepper[..]].concat();
    let text = printed(&arguments, "");
    let (spiced, credentials) = (shown(&text), lines(&text));
    let hash = credentials[0]["api_key"]["hash"].as_str().unwrap();
    assert!(hash.starts_with("hmac-sha256:main:"), "{hash}");

    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .set("/identity", json!({"peppers": {"main": "${file:pepper}"}}))
        .file("pepper", format!("{PEPPER}\n"));
    let gateway = Gateway::start(with_credentials(config, credentials.clone()));
    assert_eq!(answer_to(&gateway, &spiced).status, 200);

    // Its successor is made with the same pepper.
    let path = gateway.config_path();
    let text = printed(
        &["rotate", "-c", path.to_str().unwrap(), "--key", "spiced"],
        "",
    );
    let (next, both) = (shown(&text), lines(&text));
    let hash = both[1]["api_key"]["hash"].as_str().unwrap();
    assert!(hash.starts_with("hmac-sha256:main:"), "{hash}");
    assert_eq!(
        gateway.reload(|config| with_credentials(config, both)),
        "ok"
    );
    let statuses = [&spiced, &next].map(|key| answer_to(&gateway, key).status);
    assert_eq!(statuses, [200, 200]);

    let hashed = printed(&[&["hash"], &pepper[..]].concat(), &format!("{spiced}\n"));
    assert_eq!(lines(&hashed), credentials);
    let other = gateway.reload(|config| config.file("pepper", PEPPER.to_uppercase()));
    assert_eq!(other, "ok");
    let statuses = [&spiced, &next].map(|key| answer_to(&gateway, key).status);
    assert_eq!(statuses, [401, 401]);
}

#[test]
fn a_key_that_is_there_already_can_be_hashed_and_is_not_repeated() {
    let text = printed(&["hash"], &format!("  {}\n", key("kept")));
    assert!(!text.contains(&key("kept")));
    let emulator = Emulator::quick();
    let config = with_credentials(Config::for_emulator(&emulator), lines(&text));
    let gateway = Gateway::start(config);
    assert_eq!(answer_to(&gateway, &key("kept")).status, 200);
    assert_eq!(answer_to(&gateway, &key("acme")).status, 401);

    let good = key("kept");
    let typo = format!(
        "{}{}",
        &good[..good.len() - 1],
        if good.ends_with('x') { 'y' } else { 'x' }
    );
    for input in [
        typo.as_str(),
        "",
        "sk-of-somebody-else",
        &"tg_".repeat(5000),
    ] {
        let output = run(&["hash"], input);
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.stdout.is_empty());
        assert!(input.is_empty() || !told.contains(input), "{told}");
    }
}
