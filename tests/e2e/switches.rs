//! What operators switch off or drain holds at once, outlives reloads, restarts and crashes, and is
//! told to tenants in words they can act on.

use std::process::Output;

use rusqlite::Connection;
use serde_json::{Value, json};
use tidegate::database::FILE;

use crate::limits::operate;
use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/anthropic/v1/messages";

fn stage(accounts: usize) -> (Emulator, Gateway) {
    let emulator = Emulator::start(Emulator::with_accounts(accounts));
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    (emulator, gateway)
}

fn ask(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Answer {
    let request = Request::new(method, path).body(body.to_string());
    operate(gateway, &request)
}

fn off(gateway: &Gateway, path: &str) {
    let body = match path.starts_with("/switches") {
        true => json!({"state": "off", "reason": "a loop, ticket 4711", "by": "ann"}),
        false => json!({"reason": "the key is rotated", "by": "ann"}),
    };
    let answer = ask(gateway, "PUT", path, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["kept"], true, "{}", answer.text());
}

fn on(gateway: &Gateway, path: &str) {
    let answer = operate(gateway, &Request::new("DELETE", path));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["state"], "on");
}

fn listed(gateway: &Gateway) -> Vec<Value> {
    let answer = operate(gateway, &Request::get("/switches"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["switches"].as_array().unwrap().clone()
}

/// A refusal that no other try of the same request can change.
fn assert_off(answer: &Answer, status: u16, code: &str) {
    let text = answer.text();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (status, code),
        "{text}"
    );
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("retry-after"), None);
    assert!(!text.contains("4711") && !text.contains("ann"), "{text}");
}

#[test]
fn a_tenant_that_is_off_is_refused_and_nobody_else_is() {
    let (emulator, gateway) = stage(1);
    off(&gateway, "/switches/tenant/acme");
    emulator.forget_calls();
    for (path, body) in [
        (CHAT, chat("hello")),
        (CHAT, chat_stream("hello")),
        (MESSAGES, message("hello")),
    ] {
        assert_off(&gateway.post(path, &body), 403, "tenant_switched_off");
    }
    assert_off(&gateway.get("/v1/models"), 403, "tenant_switched_off");
    assert!(emulator.calls().is_empty());
    let other = Request::post(CHAT, &chat("hello")).key("limited");
    assert_eq!(other.send(gateway.address()).status, 200);
    // Who shows no credential learns nothing of it.
    let nobody = Request::post(CHAT, &chat("hello")).bearer("tg_acme_wrong");
    assert_eq!(nobody.send(gateway.address()).status, 401);
    on(&gateway, "/switches/tenant/acme");
    assert!(gateway.is_serving());
}

#[test]
fn a_model_that_is_off_is_refused_by_its_name_alone() {
    let (_emulator, gateway) = stage(1);
    off(&gateway, "/switches/model/deepseek-flash");
    for (path, body) in [(CHAT, chat("hello")), (MESSAGES, message("hello"))] {
        assert_off(&gateway.post(path, &body), 503, "model_switched_off");
    }
    for model in ["deepseek-v4-pro", "deepseek-chat"] {
        let body = with(chat("hello"), "model", json!(model));
        assert_eq!(gateway.post(CHAT, &body).status, 200, "{model}");
    }
    on(&gateway, "/switches/model/deepseek-flash");
    assert!(gateway.is_serving());
}

#[test]
fn an_upstream_that_is_off_is_passed_over_and_without_another_it_is_a_503() {
    let first = Emulator::quick();
    let second = Emulator::quick();
    let accounts = json!([{"id": "account-1", "api_key": "${file:account-1.key}"}]);
    let backup = json!({
        "id": "backup", "credit": false, "endpoints": [{"url": second.url()}], "accounts": accounts,
    });
    let variants = json!([
        {"upstream": "deepseek", "model": "deepseek-flash"},
        {"upstream": "backup", "model": "deepseek-flash"},
    ]);
    let config = Config::for_emulator(&first)
        .set("/upstreams/-", backup)
        .set("/models/deepseek-flash/variants", variants);
    let gateway = Gateway::start(config);
    off(&gateway, "/switches/upstream/deepseek");
    first.forget_calls();
    assert!(gateway.is_serving());
    assert!(first.calls().is_empty());
    assert_eq!(second.calls().len(), 1);
    // What names no model belongs to one upstream.
    assert_eq!(gateway.get("/user/balance").status, 503);
    assert!(first.calls().is_empty());
    off(&gateway, "/switches/upstream/backup");
    let answer = gateway.post(CHAT, &chat("hello"));
    let text = answer.text();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "upstream_unavailable"),
        "{text}"
    );
    assert_eq!(second.calls().len(), 1);
    on(&gateway, "/switches/upstream/deepseek");
    assert!(gateway.is_serving());
    assert_eq!(first.calls().len(), 1);
}

#[test]
fn requests_under_way_end_as_they_would() {
    let (_emulator, gateway) = stage(1);
    let story = "[[fault:token_delay=50ms,tokens=20]] Tell me a story.";
    let mut stream = gateway.stream(CHAT, &chat_stream(story));
    assert_eq!(stream.status, 200);
    stream.read_until("data: ");
    off(&gateway, "/switches/tenant/acme");
    off(&gateway, "/drains/accounts/deepseek/account-1");
    let text = stream.rest().text();
    assert!(text.contains("[DONE]"), "{text}");
}

#[test]
fn a_drained_account_is_asked_nothing_until_it_is_used_again() {
    let (emulator, gateway) = stage(2);
    off(&gateway, "/drains/accounts/deepseek/account-1");
    emulator.forget_calls();
    for _ in 0..10 {
        assert!(gateway.is_serving());
    }
    let asked = |name: &str| {
        emulator
            .calls()
            .iter()
            .filter(|call| call["account"] == name)
            .count()
    };
    assert_eq!((asked("account-1"), asked("account-2")), (0, 10));
    let state = |gateway: &Gateway| {
        gateway.status()["upstreams"][0]["accounts"][0]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(state(&gateway), "drained");
    on(&gateway, "/drains/accounts/deepseek/account-1");
    assert_eq!(state(&gateway), "good");
    eventually("the account is asked again", SOON, || {
        assert!(gateway.is_serving());
        (asked("account-1") > 0).then_some(())
    });
}

#[test]
fn a_drained_endpoint_is_named_in_the_query_or_in_the_body() {
    let emulators = [Emulator::quick(), Emulator::quick()];
    let urls = emulators.each_ref().map(Emulator::url);
    let gateway = Gateway::start(Config::for_urls(&urls, emulators[0].accounts()));
    let [first, second] = &emulators;
    off(
        &gateway,
        &format!("/drains/endpoints/deepseek?url={}", urls[0]),
    );
    emulators.iter().for_each(Emulator::forget_calls);
    for _ in 0..6 {
        assert!(gateway.is_serving());
    }
    assert_eq!((first.calls().len(), second.calls().len()), (0, 6));
    // A slash at the end means the same endpoint.
    let body = json!({"url": format!("{}/", urls[0])});
    let answer = ask(&gateway, "DELETE", "/drains/endpoints/deepseek", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(listed(&gateway).is_empty());
    eventually("the endpoint is asked again", SOON, || {
        assert!(gateway.is_serving());
        (!first.calls().is_empty()).then_some(())
    });
}

#[test]
fn what_was_answered_with_200_is_there_after_a_crash_and_over_reloads() {
    let (_emulator, gateway) = stage(2);
    off(&gateway, "/switches/tenant/limited");
    off(&gateway, "/switches/model/deepseek-v4-pro");
    off(&gateway, "/drains/accounts/deepseek/account-2");
    off(&gateway, "/switches/tenant/acme");
    on(&gateway, "/switches/tenant/acme");
    gateway.kill();
    let again = gateway.again();
    let names = |gateway: &Gateway| {
        let listed = listed(gateway);
        let names = listed
            .iter()
            .map(|one| one["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&again), ["limited", "deepseek-v4-pro", "account-2"]);
    assert!(again.is_serving());
    let accounts = &again.status()["upstreams"][0]["accounts"];
    assert_eq!(accounts[1]["state"], "drained", "{accounts}");
    let first = &listed(&again)[0];
    assert_eq!(first["by"], "ann");
    assert_eq!(first["reason"], "a loop, ticket 4711");
    assert_eq!(first["known"], true);
    // What the configuration no longer has stays, does nothing, and holds if it comes back.
    let accounts = again.status()["upstreams"][0]["accounts"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(accounts, 2);
    let without = |mut config: Config| {
        config.value["upstreams"][0]["accounts"]
            .as_array_mut()
            .unwrap()
            .pop();
        config.value["tenants"].as_array_mut().unwrap().remove(1);
        config
    };
    assert_eq!(again.reload(without), "ok");
    let known: Vec<_> = listed(&again)
        .iter()
        .map(|one| one["known"] == true)
        .collect();
    assert_eq!(known, [false, true, false]);
    assert_eq!(again.stop().code(), Some(0));
}

#[test]
fn a_switch_holds_while_the_disk_fails_and_the_answer_says_that_it_is_not_kept() {
    let (_emulator, gateway) = stage(1);
    let database = Connection::open(gateway.state_dir().join(FILE)).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let body = json!({"state": "off", "reason": "r"});
    let answer = ask(&gateway, "PUT", "/switches/tenant/acme", &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json()["kept"], false);
    gateway.logged(&["could not be kept", "name=acme"]);
    assert_eq!(gateway.post(CHAT, &chat("hello")).status, 403);
    let output = command(
        &gateway,
        &["switch", "off", "tenant", "limited", "--reason", "r"],
    );
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(printed(&output), "tenant limited is off\n");
    assert!(told.contains("lost if the process ends"), "{told}");
    database.execute_batch("ROLLBACK").unwrap();
    eventually("both are kept", SOON, || {
        let count = "SELECT count(*) FROM switches";
        let count: i64 = database.query_row(count, [], |row| row.get(0)).unwrap();
        (count == 2).then_some(())
    });
    gateway.kill();
    let again = gateway.again();
    assert_eq!(listed(&again).len(), 2);
}

#[test]
fn a_file_that_is_deleted_in_use_is_written_anew_with_all_switches() {
    let (_emulator, gateway) = stage(1);
    off(&gateway, "/switches/tenant/limited");
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(gateway.state_dir().join(format!("{FILE}{ending}")));
    }
    off(&gateway, "/switches/tenant/acme");
    gateway.kill();
    let again = gateway.again();
    assert_eq!(listed(&again).len(), 2);
}

#[test]
fn a_process_that_leaves_hands_its_switches_over_and_takes_no_more() {
    let (_emulator, gateway) = stage(1);
    let story = "[[fault:token_delay=100ms,tokens=40]] Tell me a story.";
    let mut stream = gateway.stream(CHAT, &chat_stream(story));
    stream.read_until("data: ");
    off(&gateway, "/switches/tenant/limited");
    gateway.signal("TERM");
    let next = gateway.successor();
    next.wait_until_ready();
    assert_eq!(listed(&next)[0]["name"], "limited");
    let body = json!({"state": "off", "reason": "r"});
    let late = ask(&gateway, "PUT", "/switches/tenant/acme", &body);
    assert_eq!(late.status, 409, "{}", late.text());
    off(&next, "/switches/tenant/acme");
    assert!(stream.rest().text().contains("[DONE]"));
}

#[test]
fn a_reload_drains_an_account_that_comes_back() {
    let (emulator, gateway) = stage(2);
    off(&gateway, "/drains/accounts/deepseek/account-2");
    let whole = Config::for_emulator(&emulator);
    let alone = |mut config: Config| {
        config.value["upstreams"][0]["accounts"]
            .as_array_mut()
            .unwrap()
            .pop();
        config
    };
    assert_eq!(gateway.reload(alone), "ok");
    gateway.kill();
    let again = gateway.again();
    assert_eq!(listed(&again)[0]["known"], false);
    assert_eq!(again.reload(|_| whole), "ok");
    let accounts = &again.status()["upstreams"][0]["accounts"];
    assert_eq!(accounts[1]["state"], "drained", "{accounts}");
}

#[test]
fn a_switch_is_in_the_log_the_metrics_and_the_status() {
    let (_emulator, gateway) = stage(1);
    off(&gateway, "/switches/tenant/acme");
    off(&gateway, "/drains/accounts/deepseek/account-1");
    let line = gateway.logged(&["audit", "action=off", "name=acme"]);
    for word in ["kind=tenant", "from=127.0.0.1:", "ann", "ticket 4711"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    gateway.logged(&["audit", "action=drain", "name=deepseek/account-1"]);
    let gauge = |kind: &str, name: &str| {
        let labels = [format!("kind=\"{kind}\""), format!("name=\"{name}\"")];
        gateway.metric(
            "tidegate_switched_off",
            &labels.each_ref().map(String::as_str),
        )
    };
    assert_eq!(gauge("tenant", "acme"), 1.0);
    assert_eq!(gauge("account", "deepseek/account-1"), 1.0);
    let status = gateway.status();
    assert_eq!(status["switches"], json!(listed(&gateway)));
    assert_eq!(status["switches"][0]["state"], "off");
    on(&gateway, "/switches/tenant/acme");
    gateway.logged(&["audit", "action=on", "name=acme"]);
    assert_eq!(gauge("tenant", "acme"), 0.0);
    let changes = |action: &str| {
        let label = format!("action=\"{action}\"");
        gateway.metric("tidegate_switch_changes_total", &[&label])
    };
    assert_eq!(
        ["off", "on", "drain", "undrain"].map(changes),
        [1.0, 1.0, 1.0, 0.0]
    );
}

#[test]
fn the_api_may_be_asked_twice_and_refuses_what_makes_no_sense() {
    let (_emulator, gateway) = stage(1);
    for _ in 0..2 {
        off(&gateway, "/switches/tenant/acme");
    }
    assert_eq!(listed(&gateway).len(), 1);
    for _ in 0..2 {
        on(&gateway, "/switches/tenant/acme");
    }
    let good = json!({"state": "off", "reason": "r"});
    let reason = |text: String| json!({"state": "off", "reason": text});
    for (method, path, body, status, words) in [
        (
            "PUT",
            "/switches/tenant/acmee",
            good.clone(),
            404,
            "did you mean \"acme\"?",
        ),
        (
            "PUT",
            "/switches/model/deepseek-flush",
            good.clone(),
            404,
            "deepseek-flash",
        ),
        (
            "PUT",
            "/switches/upstream/deepsek",
            good.clone(),
            404,
            "did you mean \"deepseek\"?",
        ),
        (
            "DELETE",
            "/switches/tenant/nobody",
            json!({}),
            404,
            "no tenant",
        ),
        (
            "PUT",
            "/switches/tenant/acme",
            json!({"reason": "r"}),
            400,
            "Send",
        ),
        (
            "PUT",
            "/switches/tenant/acme",
            json!({"state": "off"}),
            400,
            "\"reason\" is needed",
        ),
        (
            "PUT",
            "/switches/tenant/acme",
            json!({"state": "gone"}),
            400,
            "Send",
        ),
        (
            "PUT",
            "/switches/tenant/acme",
            reason("x".repeat(201)),
            400,
            "200 characters",
        ),
        (
            "PUT",
            "/switches/tenant/acme",
            reason("x".repeat(5_000)),
            413,
            "too long",
        ),
        (
            "PUT",
            "/switches/tenant/acme",
            reason("a\nb".to_owned()),
            400,
            "one line",
        ),
        (
            "POST",
            "/switches/tenant/acme",
            good.clone(),
            405,
            "GET /switches",
        ),
        (
            "PUT",
            "/switches/account/main",
            good.clone(),
            405,
            "GET /switches",
        ),
        (
            "PUT",
            "/drains/accounts/deepseek/account-2",
            json!({"reason": "r"}),
            404,
            "It has: account-1",
        ),
        (
            "PUT",
            "/drains/accounts/deepsek/account-1",
            json!({"reason": "r"}),
            404,
            "did you mean \"deepseek\"?",
        ),
        (
            "PUT",
            "/drains/endpoints/deepseek",
            json!({"reason": "r"}),
            400,
            "Which endpoint",
        ),
        (
            "PUT",
            "/drains/endpoints/deepseek?url=http://nowhere",
            json!({"reason": "r"}),
            404,
            "It has: http://127.0.0.1",
        ),
    ] {
        let answer = ask(&gateway, method, path, &body);
        let text = answer.text();
        assert_eq!(answer.status, status, "{method} {path} {body}: {text}");
        assert!(text.contains(words), "{method} {path}: {text}");
    }
    for path in [
        "/switches",
        "/switches/tenant/acme",
        "/drains/accounts/deepseek/account-1",
    ] {
        assert_eq!(
            Request::get(path).send(gateway.admin()).status,
            401,
            "{path}"
        );
    }
    assert!(listed(&gateway).is_empty());
}

/// `tidegate …` against this gateway, with its token in the environment.
fn command(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = tidegate();
    command.args(arguments);
    command.args(["--admin", &gateway.admin().to_string()]);
    command.env("TIDEGATE_ADMIN_TOKEN", ADMIN_TOKEN);
    command.env("USER", "bob").output().unwrap()
}

fn printed(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_command_line_switches_drains_and_lists() {
    let (emulator, gateway) = stage(1);
    let run = |arguments: &[&str]| printed(&command(&gateway, arguments));
    let reason = ["--reason", "a loop"];
    let with_reason = |arguments: &[&str]| run(&[arguments, &reason[..]].concat());
    assert_eq!(
        run(&["switch", "list"]),
        "nothing is switched off or drained\n"
    );
    assert_eq!(
        with_reason(&["switch", "off", "tenant", "acme"]),
        "tenant acme is off\n"
    );
    assert!(!gateway.is_serving());
    let account = "deepseek/account-1";
    assert_eq!(
        with_reason(&["drain", "account", account]),
        "account deepseek/account-1 is drained\n"
    );
    let url = emulator.url();
    with_reason(&["drain", "endpoint", "deepseek", &url]);
    let table = run(&["switch", "list"]);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["KIND", "NAME", "STATE", "SINCE", "BY", "REASON"]);
    assert_eq!(rows[1][..3], ["tenant", "acme", "off"]);
    assert_eq!(rows[1][4..], ["bob", "a", "loop"]);
    assert_eq!(rows[2][..3], ["account", account, "drained"]);
    assert_eq!(rows[3][1], format!("deepseek/{url}"));
    let json = run(&["switch", "list", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["switches"].as_array().unwrap().len(), 3);
    run(&["switch", "on", "tenant", "acme"]);
    run(&["undrain", "account", account]);
    run(&["undrain", "endpoint", "deepseek", &url]);
    assert!(listed(&gateway).is_empty());
    assert!(gateway.is_serving());
}

#[test]
fn the_command_line_says_what_is_wrong() {
    let (_emulator, gateway) = stage(1);
    for (arguments, words) in [
        (&["switch", "off", "tenant", "acme"][..], "--reason"),
        (
            &["switch", "off", "tenant", "acmee", "--reason", "r"],
            "did you mean \"acme\"?",
        ),
        (
            &["switch", "off", "model", "a/b c", "--reason", "r"],
            "no model \"a/b c\"",
        ),
        (
            &["drain", "account", "main", "--reason", "r"],
            "deepseek/main",
        ),
        (
            &["switch", "off", "account", "main", "--reason", "r"],
            "possible values",
        ),
    ] {
        let output = command(&gateway, arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
}
