//! An upstream's trouble is met at another endpoint or account before the tenant sees anything;
//! when nothing is left the tenant gets an honest error; a tenant's own error stays its own.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::emulator::EmulatorConfig;

use crate::support::hostile::Deaf;
use crate::support::*;

/// An address that refuses connections.
fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn two_accounts() -> (Emulator, Gateway) {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    (emulator, gateway)
}

fn endpoint_is_healthy(gateway: &Gateway, url: &str) -> bool {
    let label = format!("endpoint=\"{url}");
    gateway.metric("tidegate_upstream_endpoint_healthy", &[&label]) == 1.0
}

#[test]
fn an_endpoint_that_refuses_connections_is_passed_over() {
    let emulator = Emulator::quick();
    let urls = [refusing(), emulator.url()];
    let config =
        Config::for_urls(&urls, emulator.accounts()).set("/upstreams/0/health", json!(false));
    let gateway = Gateway::start(config);
    for _ in 0..8 {
        assert_eq!(
            gateway.post("/v1/chat/completions", &chat("hello")).status,
            200
        );
        assert_eq!(
            gateway
                .post("/anthropic/v1/messages", &message_stream("hello"))
                .status,
            200
        );
    }
    // Three failures in a row took it out; after that nobody pays for it any more.
    let failed = gateway.metric("tidegate_attempts_total", &["outcome=\"connect\""]);
    assert_eq!(failed, 3.0);
    assert!(!endpoint_is_healthy(&gateway, &urls[0]));
    assert!(endpoint_is_healthy(&gateway, &urls[1]));
}

#[test]
fn a_tenant_does_not_notice_that_an_account_is_in_trouble() {
    for status in [500, 502, 503, 429, 402, 401, 403] {
        let (emulator, gateway) = two_accounts();
        emulator.order(Some("account-1"), &format!("status={status}"));
        for round in 0..3 {
            for (path, body) in [
                ("/v1/chat/completions", chat("hello")),
                ("/v1/chat/completions", chat_stream("hello")),
                ("/anthropic/v1/messages", message("hello")),
                ("/v1/responses", response("hello")),
            ] {
                let answer = gateway.post(path, &body);
                assert_eq!(
                    answer.status,
                    200,
                    "{status} {round} {path}: {}",
                    answer.text()
                );
            }
        }
        let refused = |call: &&Value| call["account"] == "account-1";
        let calls = emulator.calls();
        assert!(
            calls.iter().filter(refused).count() >= 1,
            "{status}: account-1 was never asked"
        );
        if (401..=403).contains(&status) || status == 429 {
            // It rests after the first refusal.
            assert_eq!(calls.iter().filter(refused).count(), 1, "{status}");
        }
    }
}

#[test]
fn an_account_at_its_limit_for_one_model_still_serves_the_others() {
    let (emulator, gateway) = two_accounts();
    let path = "/v1/chat/completions";
    let faults = "[[fault:status=429,retry_after=60,times=1]]";
    let pro = |text: &str| with(chat(text), "model", json!("deepseek-v4-pro"));
    assert_eq!(gateway.post(path, &pro(faults)).status, 200);
    let calls = emulator.calls();
    let limited = calls[0]["account"].clone();
    assert_ne!(calls[1]["account"], limited);
    for _ in 0..4 {
        assert_eq!(gateway.post(path, &chat("hello")).status, 200);
        assert_eq!(gateway.post(path, &pro("hello")).status, 200);
    }
    let calls = emulator.calls().split_off(2);
    let at_limited = calls.iter().filter(|call| call["account"] == limited);
    let models: Vec<_> = at_limited.map(|call| call["model"].clone()).collect();
    assert!(!models.is_empty(), "it rests as a whole");
    assert!(models.iter().all(|model| model == "deepseek-flash"));
    let status = gateway.status();
    let resting: Vec<_> = status["upstreams"][0]["in_flight"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|lane| lane["resting"] == true)
        .map(|lane| (&lane["account"], &lane["model"]))
        .collect();
    assert_eq!(resting, [(&limited, &json!("deepseek-v4-pro"))]);
}

#[test]
fn a_connection_that_breaks_before_the_answer_is_tried_again() {
    let (emulator, gateway) = two_accounts();
    let body = chat("[[fault:reset,times=1]] hello");
    assert_eq!(gateway.post("/v1/chat/completions", &body).status, 200);
    assert_eq!(emulator.calls().len(), 2);
}

/// What everybody is asked, and the `type` of an error there.
fn asked_of_all(
    kind: &'static str,
    anthropic: &'static str,
) -> [(&'static str, Value, &'static str); 4] {
    [
        ("/v1/chat/completions", chat("hello"), kind),
        ("/v1/chat/completions", chat_stream("hello"), kind),
        ("/anthropic/v1/messages", message("hello"), anthropic),
        ("/anthropic/v1/messages", message_stream("hello"), anthropic),
    ]
}

/// Two accounts that both fail; with a queue, accounts at their limit would be waited for.
fn without_queue(emulator: &Emulator) -> Gateway {
    let config = Config::for_emulator(emulator).set("/queue/max_length", json!(0));
    Gateway::start(config.unguarded())
}

/// Told as it is, with a time to come back, after each account was asked once.
fn is_told_honestly(
    gateway: &Gateway,
    emulator: &Emulator,
    (path, body, kind): &(&str, Value, &str),
    (status, told, code): (u16, u16, &str),
) {
    emulator.forget_calls();
    let answer = gateway.post(path, body);
    assert_eq!(answer.status, told, "{status} {path}: {}", answer.text());
    assert_eq!(answer.code(), code, "{status} {path}");
    assert_eq!(answer.json()["error"]["type"], *kind, "{status} {path}");
    assert_eq!(answer.header("retry-after"), Some("7"), "{status} {path}");
    // Another try may help, so the SDKs' own rule holds.
    assert_ne!(
        answer.header("x-should-retry"),
        Some("false"),
        "{status} {path}"
    );
    assert_eq!(
        emulator.calls().len(),
        2,
        "{status} {path}: two attempts, no more"
    );
}

#[test]
fn when_all_fail_the_tenant_is_told_honestly_and_when_to_come_back() {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let gateway = without_queue(&emulator);
    let overloaded = asked_of_all("server_error", "overloaded_error");
    let failed = asked_of_all("server_error", "api_error");
    let limited = asked_of_all("rate_limit_error", "rate_limit_error");
    for (case, asked) in [
        ((503, 503, "upstream_unavailable"), overloaded),
        ((500, 502, "upstream_error"), failed),
        ((429, 429, "upstream_rate_limited"), limited),
    ] {
        emulator.order(None, &format!("status={},retry_after=7", case.0));
        for asked in &asked {
            is_told_honestly(&gateway, &emulator, asked, case);
        }
    }
    emulator.order(None, "");
    assert!(gateway.is_serving());
}

#[test]
fn when_all_accounts_are_refused_the_tenant_is_told_so_and_they_are_left_alone() {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    for status in [402, 401] {
        emulator.order(None, &format!("status={status},retry_after=7"));
        let all = asked_of_all("server_error", "overloaded_error");
        for asked in &all {
            let gateway = without_queue(&emulator);
            let case = (status, 503, "upstream_unavailable");
            is_told_honestly(&gateway, &emulator, asked, case);
            // They are known now: the next one is told at once, and when they may be asked again.
            emulator.forget_calls();
            let (path, body, kind) = asked;
            let answer = gateway.post(path, body);
            let told = (answer.status, answer.code());
            assert_eq!(told, (503, "upstream_unavailable".to_owned()), "{path}");
            assert_eq!(answer.json()["error"]["type"], *kind, "{path}");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=40).contains(&wait), "{wait}");
            assert_eq!(emulator.calls().len(), 0, "{status} {path}");
        }
    }
}

#[test]
fn when_nobody_can_be_reached_the_answer_is_a_503_with_a_time_to_come_back() {
    let accounts = [("main".to_owned(), "sk-x".to_owned())];
    let gateway = Gateway::start(Config::for_urls(&[refusing()], &accounts));
    for (path, body) in [
        ("/v1/chat/completions", chat("hi")),
        ("/v1/messages", message("hi")),
    ] {
        let answer = gateway.post(path, &body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "upstream_unavailable")
        );
        assert!(answer.header("retry-after").is_some());
    }
}

#[test]
fn a_request_that_is_bad_is_not_tried_again_and_marks_nobody() {
    let (emulator, gateway) = two_accounts();
    for status in [400, 404, 413, 415, 422] {
        for (path, body, anthropic) in [
            (
                "/v1/chat/completions",
                chat(&format!("[[fault:status={status}]]")),
                false,
            ),
            (
                "/v1/chat/completions",
                chat_stream(&format!("[[fault:status={status}]]")),
                false,
            ),
            (
                "/anthropic/v1/messages",
                message(&format!("[[fault:status={status}]]")),
                true,
            ),
        ] {
            emulator.forget_calls();
            let answer = gateway.post(path, &body);
            assert_eq!(answer.status, status, "{path}: {}", answer.text());
            assert_eq!(answer.header("x-should-retry"), Some("false"));
            let error = answer.json();
            assert!(error["error"]["message"].is_string());
            assert_eq!(error["type"] == "error", anthropic, "{error}");
            assert_eq!(emulator.calls().len(), 1, "{status}");
        }
    }
    // The upstream's own words about the request reach the tenant.
    let answer = gateway.post(
        "/v1/chat/completions",
        &with(chat("hi"), "max_tokens", json!(-1)),
    );
    assert!((400..=422).contains(&answer.status));
    assert!(answer.text().contains("max_tokens"), "{}", answer.text());
    assert!(endpoint_is_healthy(&gateway, &emulator.url()));
    let resting = gateway.status();
    let accounts = resting["upstreams"][0]["accounts"].as_array().unwrap();
    assert!(
        accounts.iter().all(|account| account["resting"] == false),
        "{resting}"
    );
}

#[test]
fn the_upstreams_words_about_its_key_never_reach_the_tenant() {
    let emulator = Emulator::quick();
    // A key that the emulator does not know: it answers 401 with the key's last characters.
    let accounts = [("main".to_owned(), "sk-wrong-secret-tail7".to_owned())];
    let gateway = Gateway::start(Config::for_urls(&[emulator.url()], &accounts));
    for (path, body) in [
        ("/v1/chat/completions", chat("hello")),
        ("/v1/chat/completions", chat_stream("hello")),
        ("/anthropic/v1/messages", message("hello")),
        ("/v1/responses", response("hello")),
    ] {
        let answer = gateway.post(path, &body);
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(!answer.text().contains("ail7"), "{}", answer.text());
        assert!(!answer.text().contains("sk-"), "{}", answer.text());
        gateway.access_line(answer.header("x-request-id").unwrap());
    }
    for path in ["/user/balance", "/v1/files"] {
        let answer = gateway.get(path);
        assert_eq!(answer.status, 503, "{path}");
        assert!(!answer.text().contains("ail7"), "{}", answer.text());
    }
    assert!(!gateway.log().join("\n").contains("ail7"));
}

#[test]
fn the_ceiling_of_each_account_is_respected() {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    let ceiling = json!({"deepseek-flash": 1});
    let config = Config::for_emulator(&emulator)
        .set("/upstreams/0/accounts/0/max_concurrent", ceiling.clone())
        .set("/upstreams/0/accounts/1/max_concurrent", ceiling)
        .set("/queue", json!({"max_length": 0}));
    let gateway = Gateway::start(config);
    let long = chat_stream("[[fault:token_delay=50ms,tokens=400]]");
    let mut first = gateway.stream("/v1/chat/completions", &long);
    let mut second = gateway.stream("/v1/chat/completions", &long);
    first.read_until("data: ");
    second.read_until("data: ");
    let calls = emulator.calls();
    assert_ne!(calls[0]["account"], calls[1]["account"]);
    for (path, body) in [
        ("/v1/chat/completions", chat("hi")),
        ("/v1/messages", message("hi")),
    ] {
        let answer = gateway.post(path, &body);
        assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(
        emulator.calls().len(),
        2,
        "nothing was sent over the ceiling"
    );
    // Another model has its own ceiling.
    let pro = with(chat("hi"), "model", json!("deepseek-v4-pro"));
    assert_eq!(gateway.post("/v1/chat/completions", &pro).status, 200);
    drop(first);
    eventually("the place is given back", SOON, || {
        gateway.is_serving().then_some(())
    });
    assert_eq!(
        gateway.metric("tidegate_account_ceiling", &["model=\"deepseek-flash\""]),
        2.0
    );
    let in_flight = gateway.metric("tidegate_account_in_flight", &["model=\"deepseek-flash\""]);
    assert_eq!(in_flight, 1.0);
    drop(second);
}

#[test]
fn a_health_check_takes_an_endpoint_out_and_brings_it_back() {
    let first = Emulator::quick();
    let second = Emulator::quick();
    let config = Config::for_urls(&[first.url(), second.url()], first.accounts())
        .set("/upstreams/0/endpoints/1/priority", json!(1))
        .set(
            "/upstreams/0/health",
            json!({"interval": "100ms", "timeout": "1s", "unhealthy_after": 2}),
        );
    // Otherwise the other one would take its share for a while.
    let config = config.set("/upstreams/0/outlier/ramp", json!("0s"));
    let gateway = Gateway::start(config);
    assert!(gateway.is_serving());
    assert_eq!((first.calls().len(), second.calls().len()), (1, 0));

    first.order(None, "status=503,everywhere");
    eventually("it is out", SOON, || {
        (!endpoint_is_healthy(&gateway, &first.url())).then_some(())
    });
    gateway.logged(&["Endpoint is out", &first.url()]);
    assert!(gateway.is_serving());
    assert_eq!((first.calls().len(), second.calls().len()), (1, 1));

    first.order(None, "");
    eventually("it is back", SOON, || {
        endpoint_is_healthy(&gateway, &first.url()).then_some(())
    });
    gateway.logged(&["Endpoint is back", &first.url()]);
    assert!(gateway.is_serving());
    assert_eq!(first.calls().len(), 2);
}

#[test]
fn an_endpoint_that_goes_away_and_comes_back_is_used_again() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set(
        "/upstreams/0/health",
        json!({"interval": "100ms", "timeout": "1s"}),
    );
    let gateway = Gateway::start(config);
    assert!(gateway.is_serving());
    let (address, url) = (emulator.address(), emulator.url());
    emulator.stop();
    eventually("it is out", SOON, || {
        (!endpoint_is_healthy(&gateway, &url)).then_some(())
    });
    assert_eq!(
        gateway.post("/v1/chat/completions", &chat("hi")).status,
        503
    );
    let _again = Emulator::start(EmulatorConfig {
        listen: address,
        ..Emulator::with_accounts(1)
    });
    eventually("it is back", SOON, || {
        endpoint_is_healthy(&gateway, &url).then_some(())
    });
    assert!(gateway.is_serving());
}

#[test]
fn no_tenant_can_mark_an_endpoint_unhealthy() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/upstreams/0/health", json!(false));
    // It has no peers. A breaker looks at how often the upstream fails, whoever asked.
    let config = config.set("/upstreams/0/breaker", json!(false));
    let gateway = Gateway::start(config);
    for _ in 0..5 {
        for order in [
            "status=400",
            "status=422",
            "status=500",
            "cut_after=1",
            "status=503",
        ] {
            gateway
                .stream(
                    "/v1/chat/completions",
                    &chat_stream(&format!("[[fault:{order}]]")),
                )
                .rest();
        }
        gateway.post("/v1/chat/completions", &json!({"model": "deepseek-flash"}));
        leave(&gateway, &emulator);
    }
    assert!(endpoint_is_healthy(&gateway, &emulator.url()));
    assert!(gateway.is_serving());
}

/// A client that does not wait for its answer.
fn leave(gateway: &Gateway, emulator: &Emulator) {
    let mut wire = gateway.connect();
    let request = Request::post("/v1/chat/completions", &chat_stream("[[fault:stall]]"));
    wire.send(&request.key("acme").to_bytes());
    emulator.call_once("the call", |call| call["outcome"].is_null());
    drop(wire);
    emulator.call_ended("client_gone");
}

#[test]
fn what_tenants_do_wrong_opens_no_breaker_and_puts_nobody_out() {
    let (emulator, gateway) = two_accounts();
    for _ in 0..15 {
        for order in ["status=400", "status=404", "status=422"] {
            let body = chat_stream(&format!("[[fault:{order}]]"));
            gateway.stream("/v1/chat/completions", &body).rest();
        }
        gateway.post("/v1/chat/completions", &json!({"model": "deepseek-flash"}));
        leave(&gateway, &emulator);
    }
    let transitions = gateway.metric("tidegate_upstream_transitions_total", &[]);
    assert_eq!(transitions, 0.0, "{}", gateway.metrics());
    let open = ["state=\"open\""];
    assert_eq!(gateway.metric("tidegate_breaker_state", &open), 0.0);
    let good = gateway.metric("tidegate_account_state", &["state=\"good\""]);
    assert_eq!(good, 2.0);
    assert!(gateway.is_serving());
}

#[test]
fn an_upstream_that_says_nothing_is_given_up_after_its_deadline() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set(
        "/upstreams/0/timeouts",
        json!({"read": "500ms", "first_content": "1s", "total": "10s"}),
    );
    let gateway = Gateway::start(config);
    let answer = gateway.post("/v1/chat/completions", &chat("[[fault:stall]]"));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "upstream_timeout")
    );
    // In mid-stream: told, and not ended as if whole.
    let stalled = chat_stream("[[fault:stall_after=3]]");
    let answer = gateway.stream("/v1/chat/completions", &stalled).rest();
    assert!(
        answer.text().contains("stream_interrupted"),
        "{}",
        answer.text()
    );
    assert!(!answer.text().contains("[DONE]"));
    // Keep-alives are no content.
    let queued = chat_stream("[[fault:queue=30s]]");
    let began = Instant::now();
    let answer = gateway.stream("/v1/chat/completions", &queued).rest();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "upstream_timeout")
    );
    emulator.call_ended("client_gone");
    // Under a head that went out with them the truth is told in the stream.
    let result = gateway.reload(|config| config.set("/retry/hold_head", json!("0s")));
    assert_eq!(result, "ok");
    let began = Instant::now();
    let answer = gateway.stream("/v1/chat/completions", &queued).rest();
    assert!(began.elapsed() < Duration::from_secs(5));
    let end = (answer.status, answer.ending);
    assert_eq!(end, (200, Ending::Broken), "{}", answer.text());
    let told = answer.events();
    assert_eq!(told.len(), 1, "{}", answer.text());
    assert_eq!(told[0]["error"]["code"], "upstream_timeout");
    assert!(!answer.text().contains("[DONE]"));
    emulator.call_ended("client_gone");
}

#[test]
fn an_upstream_that_cannot_be_reached_holds_up_the_checks_of_no_other() {
    let deaf = Deaf::new();
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator);
    let mut other = config.value["upstreams"][0].clone();
    other["id"] = json!("deaf");
    other["endpoints"] = json!([{"url": deaf.url()}]);
    other["timeouts"] = json!({"connect": "30s", "connect_total": "30s"});
    other["health"] = json!({"interval": "30s", "timeout": "30s"});
    let config = config
        .set(
            "/upstreams/0/health",
            json!({"interval": "250ms", "timeout": "200ms"}),
        )
        .set("/upstreams/-", other);
    let gateway = Gateway::launch(config);
    let checks = || {
        let journal = Request::get("/_emulator/journal?brief=1").send(emulator.address());
        journal.json().as_array().unwrap().len()
    };
    eventually("it was asked eight times", SOON, || {
        (checks() >= 8).then_some(())
    });
    // The other one has not failed yet: that takes three times as long.
    assert!(!gateway.is_ready());
}
