//! Where the configuration comes from: layers over each other, each value traceable, a source over
//! HTTPS that may be away or talk nonsense, and files that are watched.

use std::path::Path;
use std::process::Output;

use serde_json::json;

use crate::support::*;

fn run(arguments: &[&str]) -> Output {
    tidegate().args(arguments).output().unwrap()
}

fn told(output: &Output) -> String {
    let both = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8(both).unwrap()
}

fn status_for(gateway: &Gateway, key: &str) -> u16 {
    let request = Request::post("/v1/chat/completions", &chat("hi"));
    request.key(key).send(gateway.address()).status
}

/// An overlay that brings the tenant `id` in.
fn with_tenant(id: &str) -> String {
    serde_yaml::to_string(&json!({"tenants": [tenant(id)]})).unwrap()
}

fn reloads(gateway: &Gateway, result: &str, trigger: &str) -> f64 {
    let labels = [
        format!("result=\"{result}\""),
        format!("trigger=\"{trigger}\""),
    ];
    gateway.metric("tidegate_config_reloads_total", &[&labels[0], &labels[1]])
}

fn polls(gateway: &Gateway, result: &str) -> f64 {
    let label = format!("result=\"{result}\"");
    gateway.metric("tidegate_config_source_polls_total", &[&label])
}

/// Waits until one more reload than `before` has had this result.
fn reloaded(gateway: &Gateway, result: &str, trigger: &str, before: f64) {
    eventually("it reloads by itself", SOON, || {
        (reloads(gateway, result, trigger) > before).then_some(())
    });
}

#[test]
fn an_overlay_is_laid_over_the_base_and_both_are_read_on_reload() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .file("over.yaml", with_tenant("fresh"))
        .arguments(&["-c", "{folder}/over.yaml"]);
    let gateway = Gateway::start(config);
    assert_eq!(
        (status_for(&gateway, "acme"), status_for(&gateway, "fresh")),
        (200, 200)
    );
    let over = gateway.folder().join("over.yaml");
    let text = with_tenant("later") + "- { id: acme, $remove: true }\n";
    std::fs::write(&over, text).unwrap();
    assert_eq!(gateway.reload_as_written(), "ok");
    assert_eq!(
        (status_for(&gateway, "acme"), status_for(&gateway, "later")),
        (401, 200)
    );
    assert_eq!(status_for(&gateway, "fresh"), 401);
    std::fs::write(&over, "retry:\n  attempts: 99\n").unwrap();
    assert_eq!(gateway.reload_as_written(), "refused");
    gateway.logged(&["over.yaml:2: retry.attempts", "trigger=signal"]);
    let base = gateway.config_path();
    let layers = [
        "check",
        "-c",
        base.to_str().unwrap(),
        "-c",
        over.to_str().unwrap(),
    ];
    assert_eq!(run(&layers).status.code(), Some(2));
    std::fs::write(&over, "retry: {attempts: 4}").unwrap();
    let output = run(&[&layers[..], &["--diff"]].concat());
    assert!(
        told(&output).contains("retry: attempts 3 → 4"),
        "{}",
        told(&output)
    );
}

#[test]
fn each_value_is_explained_by_file_and_line_and_no_secret_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let (base, over) = (
        folder.path().join("base.yaml"),
        folder.path().join("over.yaml"),
    );
    let text = "\
server:
  listeners: [{ address: 127.0.0.1:8080 }]
  limits: { head_timeout: 10s }
upstreams:
  - id: deepseek
    endpoints: [{ url: https://api.deepseek.com }]
    accounts: [{ id: main, api_key: '${env:NOBODY_HAS_SET_THIS}' }]
models: { flash: { variants: [{ upstream: deepseek, model: flash }] } }
";
    std::fs::write(&base, text).unwrap();
    std::fs::write(&over, "server:\n  limits:\n    head_timeout: 30s\n").unwrap();
    let explain = |keys: &[&str]| {
        let mut command = tidegate();
        command.current_dir(folder.path());
        command.args(["check", "-c", "base.yaml", "-c", "over.yaml"]);
        keys.iter().for_each(|key| {
            command.args(["--explain", key]);
        });
        command.output().unwrap()
    };
    let output = explain(&[
        "server.limits.head_timeout",
        "upstreams[0].accounts[main].api_key",
    ]);
    assert_eq!(
        told(&output),
        "server.limits.head_timeout: 30s  ← over.yaml:3 (was 10s at base.yaml:3)\n\
         upstreams[deepseek].accounts[main].api_key: ${env:NOBODY_HAS_SET_THIS}  ← base.yaml:7\n"
    );
    assert_eq!(output.status.code(), Some(0));
    let all = explain(&["all"]);
    assert_eq!(all.status.code(), Some(0));
    assert_eq!(told(&all), told(&explain(&[""])));
    assert!(
        told(&all).contains("retry.attempts: 3  ← default"),
        "{}",
        told(&all)
    );
    let output = explain(&["server.limits.haed_timeout"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        told(&output).contains("did you mean \"head_timeout\"?"),
        "{}",
        told(&output)
    );
}

/// A gateway whose second layer comes from `source`, asked for changes every `poll`.
fn gateway_with(emulator: &Emulator, source: &ConfigSource, copies: &Path, poll: &str) -> Config {
    Config::for_emulator(emulator)
        .file("ca.pem", source.certificate.clone())
        .file("source.token", "token-of-the-source")
        .arguments(&["-c", &source.url()])
        .arguments(&["--config-ca", "{folder}/ca.pem", "--config-poll", poll])
        .arguments(&["--config-header", "X-Token: ${file:{folder}/source.token}"])
        .arguments(&["--config-copies", copies.to_str().unwrap()])
}

#[test]
fn a_source_over_https_is_followed_and_a_bad_answer_changes_nothing() {
    let emulator = Emulator::quick();
    let source = ConfigSource::start(&with_tenant("fresh"));
    let copies = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(gateway_with(&emulator, &source, copies.path(), "1s"));
    assert_eq!(status_for(&gateway, "fresh"), 200);
    eventually("it is asked again", SOON, || {
        (polls(&gateway, "unchanged") >= 1.0).then_some(())
    });
    let asked = source.asked();
    assert!(
        asked[0].contains("x-token: token-of-the-source"),
        "{}",
        asked[0]
    );
    assert!(
        asked.last().unwrap().contains("if-none-match: \""),
        "{asked:?}"
    );
    assert_eq!(reloads(&gateway, "ok", "poll"), 0.0);

    source.says(Says::Text(with_tenant("later")));
    reloaded(&gateway, "ok", "poll", 0.0);
    assert_eq!(
        (status_for(&gateway, "fresh"), status_for(&gateway, "later")),
        (401, 200)
    );
    gateway.logged(&["Reloaded:", "later"]);
    let copy = || {
        let files = std::fs::read_dir(copies.path()).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::read_to_string(&files[0]).unwrap()
    };
    assert_eq!(copy(), with_tenant("later"));

    // Bad in one way each: told and counted once for each change, and never kept.
    let bomb = (0..30).fold("a0: &a0 [x, x, x, x]\n".to_owned(), |text, i| {
        text + &format!("a{0}: &a{0} [*a{i}, *a{i}, *a{i}, *a{i}]\n", i + 1)
    });
    for (count, bad) in ["server: [", "models: 1", "state_dir: x", &bomb]
        .into_iter()
        .enumerate()
    {
        source.says(Says::Text(bad.to_owned()));
        reloaded(&gateway, "refused", "poll", count as f64);
        let before = polls(&gateway, "unchanged");
        eventually("it is asked again", SOON, || {
            (polls(&gateway, "unchanged") > before).then_some(())
        });
        assert_eq!(
            reloads(&gateway, "refused", "poll"),
            (count + 1) as f64,
            "{bad}"
        );
        assert_eq!(status_for(&gateway, "later"), 200);
        assert_eq!(copy(), with_tenant("later"));
    }
    gateway.logged(&["Reload refused", "trigger=poll", &source.url()]);

    source.says(Says::Text(with_tenant("fresh")));
    reloaded(&gateway, "ok", "poll", 1.0);
    assert_eq!(status_for(&gateway, "fresh"), 200);
    assert!(!gateway.log().join("\n").contains("token-of-the-source"));
}

#[test]
fn a_source_that_is_away_changes_nothing_and_a_start_without_it_takes_the_copy() {
    let emulator = Emulator::quick();
    let source = ConfigSource::start(&with_tenant("fresh"));
    let copies = tempfile::tempdir().unwrap();
    let config = gateway_with(&emulator, &source, copies.path(), "1s");
    let gateway = Gateway::start(config.clone());
    drop(source);
    eventually("it is missed", SOON, || {
        (polls(&gateway, "failed") >= 2.0).then_some(())
    });
    assert_eq!(status_for(&gateway, "fresh"), 200);
    let lines = gateway.log();
    let told = lines.iter().filter(|line| line.contains("cannot be asked"));
    assert_eq!(told.count(), 1, "{lines:#?}");
    assert_eq!(gateway.reload_as_written(), "ok");
    assert_eq!(status_for(&gateway, "fresh"), 200);
    drop(gateway);

    let gateway = Gateway::start(config);
    assert_eq!(status_for(&gateway, "fresh"), 200);
    gateway.logged(&[
        "THE CONFIGURATION SOURCE IS AWAY",
        "age=",
        "\"level\":\"error\"",
    ]);
}

#[test]
fn a_signal_asks_the_source_now() {
    let emulator = Emulator::quick();
    let source = ConfigSource::start("");
    let copies = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(gateway_with(&emulator, &source, copies.path(), "0s"));
    source.says(Says::Text(with_tenant("fresh")));
    assert_eq!(gateway.reload_as_written(), "ok");
    assert_eq!(status_for(&gateway, "fresh"), 200);
    assert_eq!(source.asked().len(), 2);
}

#[test]
fn a_source_that_cannot_be_trusted_is_not_believed() {
    let source = ConfigSource::start("");
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let check = |ca: &Path| {
        let copies = folder.path().join("copies");
        let mut command = tidegate();
        command.args(["check", "-c", &source.url(), "--config-ca"]);
        command.arg(ca).arg("--config-copies").arg(copies);
        command.output().unwrap()
    };
    std::fs::write(&ca, &source.certificate).unwrap();
    let huge = 17 << 20;
    for (answer, about) in [
        (
            format!("HTTP/1.1 200 OK\r\ncontent-length: {huge}\r\n\r\n"),
            "larger than",
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\n".to_owned() + &"#".repeat(huge),
            "larger than",
        ),
        (
            "HTTP/1.1 302 x\r\nlocation: https://127.0.0.1:1/\r\n\r\n".to_owned(),
            "redirected",
        ),
        (
            "HTTP/1.1 302 x\r\nlocation: http://localhost:1/\r\n\r\n".to_owned(),
            "redirected",
        ),
        (
            "HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "answered with 500",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_owned(),
            "broke off",
        ),
    ] {
        source.says(Says::Raw(answer));
        let output = check(&ca);
        assert_eq!(output.status.code(), Some(1), "{about}: {}", told(&output));
        assert!(told(&output).contains(about), "{about}: {}", told(&output));
    }
    // Another authority, and the system's.
    let other = folder.path().join("other.pem");
    std::fs::write(&other, tls::certificate().0).unwrap();
    let output = check(&other);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(
        told(&output).contains("certificate verify failed"),
        "{}",
        told(&output)
    );
    let output = run(&["check", "-c", &source.url()]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));

    source.says(Says::Text("server: {state_dir: here, listeners: [{address: '127.0.0.1:1'}]}\nupstreams: [{id: u, endpoints: [{url: 'https://u'}], accounts: [{id: a, api_key: '${file:key}'}]}]\nmodels: {m: {variants: [{upstream: u, model: m}]}}".to_owned()));
    let output = check(&ca);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert!(
        told(&output).contains("2 mistakes") && told(&output).contains("an absolute path"),
        "{}",
        told(&output)
    );
}

#[test]
fn what_the_command_line_says_of_a_source_is_judged_and_no_secret_repeated() {
    for (arguments, about) in [
        (&["-c", "http://config.corp/a"][..], "https://"),
        (
            &["-c", "https://user:sk-hidden@config.corp/a"],
            "may not stand",
        ),
        (
            &["-c", "https://a.corp/a", "--config-header", "X: sk-hidden"],
            "${credential:NAME}",
        ),
        (
            &[
                "-c",
                "https://a.corp/a",
                "--config-ca",
                "/nonexistent/ca.pem",
            ],
            "ca.pem",
        ),
        (
            &[
                "-c",
                "https://a.corp/a",
                "--config-header",
                "X: ${file:/nonexistent/t}",
            ],
            "/nonexistent/t",
        ),
        (
            &[
                "-c",
                "https://a.corp/a",
                "-c",
                "https://b.corp/b",
                "--config-header",
                "X: ${env:PATH}",
            ],
            "several hosts",
        ),
    ] {
        for verb in ["check", "run"] {
            let output = run(&[&[verb], arguments].concat());
            assert_eq!(
                output.status.code(),
                Some(2),
                "{arguments:?}: {}",
                told(&output)
            );
            assert!(
                told(&output).contains(about),
                "{arguments:?}: {}",
                told(&output)
            );
            assert!(!told(&output).contains("sk-hidden"), "{}", told(&output));
        }
    }
}

#[test]
fn files_that_change_are_taken_over_without_a_signal() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .set("/server/watch_configuration", json!("200ms"))
        .file("over/10.yaml", with_tenant("fresh"))
        .arguments(&["-c", "{folder}/over"]);
    let gateway = Gateway::start(config);
    let over = gateway.folder().join("over");

    std::fs::write(over.join("20.yaml"), with_tenant("later")).unwrap();
    reloaded(&gateway, "ok", "watch", 0.0);
    assert_eq!(
        (status_for(&gateway, "fresh"), status_for(&gateway, "later")),
        (200, 200)
    );
    gateway.logged(&["trigger=watch"]);

    // One that cannot be used is told once.
    std::fs::write(over.join("20.yaml"), "tenants: 1").unwrap();
    reloaded(&gateway, "refused", "watch", 0.0);
    assert_eq!(status_for(&gateway, "later"), 200);

    std::fs::remove_file(over.join("20.yaml")).unwrap();
    reloaded(&gateway, "ok", "watch", 1.0);
    assert_eq!(
        (status_for(&gateway, "fresh"), status_for(&gateway, "later")),
        (200, 401)
    );

    // The upstream's key, behind a reference.
    std::fs::write(gateway.folder().join("account-1.key"), "sk-wrong").unwrap();
    reloaded(&gateway, "ok", "watch", 2.0);
    assert_eq!(status_for(&gateway, "fresh"), 503);
    assert_eq!(reloads(&gateway, "refused", "watch"), 1.0);
}
