//! The command line teaches, tells all mistakes at once, and ends with codes that mean something.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::*;

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    tidegate().args(arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What `verb` says of a configuration with this text, once it has exited with 2.
fn mistakes(verb: &str, text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.yaml");
    std::fs::write(&path, text).unwrap();
    let output = run(&[verb, "-c", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    err(&output)
}

/// Each line that is marked `# wrong` is told of, with the word that the mark ends in, and no other.
fn tells_all_marked(text: &str) {
    for verb in ["check", "run"] {
        let told = mistakes(verb, text);
        let mut count = 0;
        for (number, line) in (1..).zip(text.lines()) {
            let Some((_, word)) = line.split_once("# wrong ") else {
                continue;
            };
            count += 1;
            let place = format!("bad.yaml:{number}:");
            let found = told
                .lines()
                .any(|told| told.contains(&place) && told.contains(word));
            assert!(found, "nothing about {word} in line {number}:\n{told}");
        }
        let sum = format!("{count} mistakes in the configuration");
        assert!(told.contains(&sum), "{told}");
        assert!(!told.contains("sk-this-is"), "{told}");
    }
}

#[test]
fn check_lists_every_mistake_of_structure_with_its_line() {
    tells_all_marked(
        r#"server:
  listeners:
    - adress: 127.0.0.1:8080 # wrong adress
      address: 127.0.0.1:8080
  limits:
    head_timeout: soon # wrong head_timeout
    max_head: [1] # wrong max_head
    max_connections: many # wrong max_connections
  unknown_key: 1 # wrong unknown_key
tenants:
  - id: acme
    enabled: nein # wrong enabled
    models: deepseek-flash # wrong models
    credentials: {} # wrong credentials
upstreams:
  - id: deepseek
    dialect: klingon # wrong dialect
    endpoints:
      - url: http://127.0.0.1:1
models:
  deepseek-flash:
    variants:
      - upstrem: deepseek # wrong upstrem
        upstream: deepseek
        model: deepseek-flash
"#,
    );
}

#[test]
fn check_lists_every_mistake_of_meaning_with_its_line() {
    tells_all_marked(
        r#"server:
  listeners:
    - address: 127.0.0.1:99999 # wrong address
tenants:
  - id: "Bad Id" # wrong id
    models: [deepseek-flash, nothing] # wrong nothing
    credentials:
      - api_key: { id: a, hash: "md5:x" } # wrong hash
upstreams:
  - id: deepseek
    endpoints:
      - url: ftp://example.com # wrong url
    accounts:
      - id: main
        api_key: sk-this-is-a-secret-in-the-file # wrong api_key
models:
  deepseek-flash:
    variants:
      - upstream: nowhere # wrong nowhere
        model: deepseek-flash
"#,
    );
}

#[test]
fn check_sums_up_a_good_configuration_and_shows_what_a_reload_would_change() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let path = gateway.config_path();
    let output = run(&["check", "-c", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let told = out(&output);
    for word in [
        "valid",
        "deepseek",
        "tenants",
        "3",
        "deepseek-chat",
        "1 account",
    ] {
        assert!(told.contains(word), "no {word}:\n{told}");
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let other = gateway.folder().join("other.yaml");
    std::fs::write(
        &other,
        text.replace("shutdown_grace: 10s", "shutdown_grace: 11s")
            .replace("id: limited", "id: renamed"),
    )
    .unwrap();
    let difference = |path: &Path| {
        let output = run(&["check", "--diff", "-c", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        out(&output)
    };
    assert_eq!(
        difference(&path),
        "no difference
"
    );
    let told = difference(&other);
    for word in ["needs a restart", "shutdown_grace", "limited", "renamed"] {
        assert!(
            told.contains(word),
            "no {word}:
{told}"
        );
    }
}

#[test]
fn check_finds_files_that_are_not_there_and_secrets_that_are_not_set() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let path = gateway.config_path();
    std::fs::remove_file(gateway.folder().join("account-1.key")).unwrap();
    let output = run(&["check", "-c", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("account-1.key"), "{}", err(&output));
    let output = run(&["check", "-c", "/nonexistent/tidegate.yaml"]);
    assert_ne!(output.status.code(), Some(0));
}

#[test]
fn the_schema_is_json_and_knows_the_sections() {
    let output = run(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    for section in [
        "server",
        "tenants",
        "upstreams",
        "models",
        "logging",
        "retry",
    ] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}

#[test]
fn a_new_key_and_its_line_work_in_a_configuration() {
    let output = run(&["key", "new", "--tenant", "search"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let told = out(&output);
    let made = told
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("tg_"))
        .unwrap();
    let line: String = told
        .lines()
        .skip_while(|line| !line.contains("- api_key"))
        .collect::<Vec<_>>()
        .join("\n");
    let credentials: Value = serde_yaml::from_str(&line).unwrap();
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set(
        "/tenants/-",
        json!({"id": "search", "models": ["*"], "credentials": credentials}),
    );
    let gateway = Gateway::start(config);
    let request = Request::post("/v1/chat/completions", &chat("hi"))
        .header("authorization", &format!("Bearer {made}"));
    let answer = request.send(gateway.address());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["tenant"], "search");
    assert_ne!(
        out(&run(&["key", "new", "--tenant", "search"])),
        told,
        "two keys are never the same"
    );
    assert_eq!(
        run(&["key", "new", "--tenant", "Bad Id"]).status.code(),
        Some(2)
    );
}

#[test]
fn what_is_not_understood_exits_2_and_help_exits_0() {
    for wrong in [
        &["--nonsense"][..],
        &["run"],
        &["check"],
        &["explode"],
        &["run", "-c", "a", "b"],
        &[],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    for right in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["help", "demo"],
    ] {
        let output = run(right);
        assert_eq!(output.status.code(), Some(0), "{right:?}");
        assert!(!out(&output).is_empty());
    }
    assert!(out(&run(&["--help"])).contains("Exit codes"));
}

#[test]
fn a_port_that_is_taken_is_a_failure_with_a_reason() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let output = run(&["run", "-c", gateway.config_path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(
        err(&output).contains(&gateway.address().to_string()),
        "{}",
        err(&output)
    );
    assert!(gateway.is_serving());
}

#[test]
fn the_demos_curl_line_works() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = tidegate()
        .args(["demo", "--port", "0", "--admin-port", "0"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let _running = Running(child);
    let curl = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.starts_with("curl -N"))
        .unwrap();
    std::thread::spawn(move || lines.count());
    let answer = eventually("the curl line works", SOON, || {
        let output = Command::new("sh").args(["-c", &curl]).output().unwrap();
        let text = out(&output);
        text.contains("[DONE]").then_some(text)
    });
    assert!(
        answer
            .lines()
            .filter(|line| line.starts_with("data: {"))
            .count()
            > 5,
        "{answer}"
    );
}

#[test]
fn the_emulator_stands_alone_too() {
    let mut child = tidegate()
        .args([
            "emulate",
            "--listen",
            "127.0.0.1:0",
            "--key",
            "sk-one",
            "--tokens",
            "3",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let _running = Running(child);
    lines.read_line(&mut first).unwrap();
    let address = first
        .trim()
        .rsplit("http://")
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let request =
        Request::post("/chat/completions", &chat("hi")).header("authorization", "Bearer sk-one");
    assert_eq!(request.send(address).status, 200);
}
