//! From "ready" to "gone": a new configuration is taken over whole or not at all, and an end lets
//! what runs finish.

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

/// Over after some three seconds.
fn long_stream() -> Value {
    chat_stream("[[fault:token_delay=100ms,tokens=30]]")
}

fn stage() -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    (emulator, gateway)
}

fn status_for(gateway: &Gateway, key: &str) -> u16 {
    let request = Request::post("/v1/chat/completions", &chat("hi"));
    request.key(key).send(gateway.address()).status
}

#[test]
fn a_reload_brings_tenants_and_models_in_and_takes_them_out() {
    let (_emulator, gateway) = stage();
    assert_eq!(
        (status_for(&gateway, "acme"), status_for(&gateway, "fresh")),
        (200, 401)
    );
    let result = gateway.reload(|config| {
        let model = json!({"variants": [{"upstream": "deepseek", "model": "deepseek-flash"}]});
        config
            .set("/tenants", json!([tenant("fresh")]))
            .set("/models/fast", model)
    });
    assert_eq!(result, "ok");
    assert_eq!(
        (status_for(&gateway, "acme"), status_for(&gateway, "fresh")),
        (401, 200)
    );
    let body = with(chat("hi"), "model", json!("fast"));
    let request = Request::post("/v1/chat/completions", &body).key("fresh");
    assert_eq!(request.send(gateway.address()).status, 200);
    gateway.logged(&["Reloaded:", "fresh"]);
    gateway.logged(&["Reloaded:", "acme"]);
}

#[test]
fn a_reload_leads_to_another_upstream_and_a_new_key() {
    let (emulator, gateway) = stage();
    let other = Emulator::start(tidegate::emulator::EmulatorConfig {
        accounts: vec![tidegate::emulator::EmulatedAccount::new("sk-new", "new")],
        ..Emulator::with_accounts(1)
    });
    let result = gateway.reload(|config| {
        config
            .set("/upstreams/0/endpoints/0/url", json!(other.url()))
            .file("account-1.key", "sk-new")
    });
    assert_eq!(result, "ok");
    assert!(gateway.is_serving());
    assert_eq!((emulator.calls().len(), other.calls().len()), (0, 1));
}

#[test]
fn a_broken_configuration_is_refused_and_the_one_in_use_stays() {
    let (_emulator, gateway) = stage();
    let good = std::fs::read_to_string(gateway.config_path()).unwrap();
    let huge = "x: ".to_owned() + &"[".repeat(100_000);
    for broken in [
        "",
        "server: [",
        "\0",
        &good.replace("tenants:", "tenant:"),
        &good.replace("variants:", "variant:"),
        &good.replace("enabled: false", "enabled: nein"),
        &huge,
    ] {
        std::fs::write(gateway.config_path(), broken).unwrap();
        assert_eq!(
            gateway.reload_as_written(),
            "refused",
            "{}",
            &broken[..broken.len().min(200)]
        );
        assert!(gateway.is_serving());
    }
    gateway.logged(&["Reload refused", "\"level\":\"error\""]);
    gateway.logged(&["Reload refused", "tidegate.yaml:", "tenant"]);
    std::fs::remove_file(gateway.config_path()).unwrap();
    assert_eq!(gateway.reload_as_written(), "refused");
    assert!(gateway.is_serving());
    std::fs::write(gateway.config_path(), good).unwrap();
    assert_eq!(gateway.reload_as_written(), "ok");
}

#[test]
fn what_needs_a_restart_is_said_and_left_as_it_was() {
    let (_emulator, gateway) = stage();
    let result = gateway.reload(|config| {
        config
            .limit("max_request_body", "64KiB")
            .set("/server/shutdown_grace", json!("1m"))
    });
    assert_eq!(result, "ok");
    gateway.logged(&["needs a restart", "max_request_body"]);
    gateway.logged(&["needs a restart", "shutdown_grace"]);
    let body = with(chat("hi"), "x", json!("x".repeat(100_000)));
    assert_eq!(gateway.post("/v1/chat/completions", &body).status, 200);
}

#[test]
fn a_running_stream_survives_a_reload_that_takes_its_tenant_away() {
    let (_emulator, gateway) = stage();
    let mut stream = gateway.stream("/v1/chat/completions", &long_stream());
    stream.read_until("data: ");
    let result = gateway.reload(|config| config.set("/tenants", json!([tenant("fresh")])));
    assert_eq!(result, "ok");
    assert_eq!(status_for(&gateway, "acme"), 401);
    let answer = stream.rest();
    assert_eq!(answer.ending, Ending::Whole);
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
}

#[test]
fn counters_and_places_are_kept_over_a_reload() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator)
        .set(
            "/upstreams/0/accounts/0/max_concurrent",
            json!({"deepseek-flash": 1}),
        )
        .set("/queue", json!({"max_length": 0}));
    let gateway = Gateway::start(config);
    let mut stream = gateway.stream("/v1/chat/completions", &long_stream());
    stream.read_until("data: ");
    assert_eq!(
        gateway.reload(|config| config.set("/retry", json!({"attempts": 3}))),
        "ok"
    );
    assert_eq!(
        gateway.post("/v1/chat/completions", &chat("hi")).status,
        503
    );
    assert_eq!(stream.rest().ending, Ending::Whole);
    eventually("the place is given back", SOON, || {
        gateway.is_serving().then_some(())
    });
    eventually("both are counted", SOON, || {
        let served = gateway.metric("tidegate_requests_total", &["status=\"200\""]);
        (served == 2.0).then_some(())
    });
}

#[test]
fn a_certificate_is_replaced_on_reload_and_kept_when_the_new_one_is_unusable() {
    let emulator = Emulator::quick();
    let (old, new) = (tls::certificate(), tls::certificate());
    let listener = json!([{"tls": {"certificate": "cert.pem", "private_key": "key.pem"}}]);
    let config = Config::for_emulator(&emulator)
        .set("/server/listeners", listener)
        .file("cert.pem", old.0.clone())
        .file("key.pem", old.1.clone());
    let gateway = Gateway::start(config);
    assert_eq!(tls::shown_certificate(gateway.address()), tls::der(&old.0));
    // A connection from before goes on.
    let mut wire = Wire::connect_tls(gateway.address());
    let result = gateway.reload(|config| {
        config
            .file("cert.pem", new.0.clone())
            .file("key.pem", new.1.clone())
    });
    assert_eq!(result, "ok");
    assert_eq!(tls::shown_certificate(gateway.address()), tls::der(&new.0));
    wire.send(
        &Request::post("/v1/chat/completions", &chat("hi"))
            .key("acme")
            .to_bytes(),
    );
    assert_eq!(wire.answer().status, 200);

    for (certificate, private_key) in [(&old.0, &new.1), (&"nonsense".to_owned(), &new.1)] {
        let result = gateway.reload(|config| {
            config
                .file("cert.pem", certificate.clone())
                .file("key.pem", private_key.clone())
                .set("/tenants", json!([tenant("fresh")]))
        });
        assert_eq!(result, "refused");
        assert_eq!(tls::shown_certificate(gateway.address()), tls::der(&new.0));
    }
    // Refused as a whole: the tenants are the old ones too.
    let mut wire = Wire::connect_tls(gateway.address());
    wire.send(
        &Request::post("/v1/chat/completions", &chat("hi"))
            .key("acme")
            .to_bytes(),
    );
    assert_eq!(wire.answer().status, 200);
}

#[test]
fn a_stop_lets_the_running_stream_finish_and_ends_with_it() {
    let (emulator, gateway) = stage();
    let mut stream = gateway.stream("/v1/chat/completions", &long_stream());
    let mut idle = gateway.connect();
    idle.send(
        &Request::post("/v1/chat/completions", &chat("hi"))
            .key("acme")
            .to_bytes(),
    );
    assert_eq!(idle.answer().status, 200);
    stream.read_until("data: ");
    gateway.signal("TERM");
    eventually("it is not ready", SOON, || {
        (!gateway.is_ready()).then_some(())
    });
    eventually("it takes no connections", SOON, || {
        TcpStream::connect(gateway.address()).is_err().then_some(())
    });
    assert!(gateway.metrics().contains("tidegate_ready 0"));
    assert!(process_exists(gateway.pid()));
    let answer = stream.rest();
    let ended = Instant::now();
    assert_eq!(answer.ending, Ending::Whole);
    assert_eq!(answer.data().last().unwrap(), "[DONE]");
    let status = gateway.exit(SOON);
    assert!(status.success(), "{status}");
    assert!(
        ended.elapsed() < Duration::from_secs(3),
        "{:?} after the last stream",
        ended.elapsed()
    );
    assert_eq!(emulator.calls()[0]["outcome"], "complete");
    gateway.logged(&["Stopped: the last request ended"]);
    gateway.logged(&["\"access\"", "\"stream\":true", "\"complete\""]);
}

#[test]
fn who_waits_is_looked_after_until_the_end() {
    let (emulator, gateway) = stage();
    // Nobody gives a place back when the account has rested: it has to be seen.
    let body = chat("[[fault:status=429,retry_after=3,times=1]] hi");
    let mut wire = gateway.connect();
    wire.send(
        &Request::post("/v1/chat/completions", &body)
            .key("acme")
            .to_bytes(),
    );
    emulator.call_once("the first attempt", |_| true);
    gateway.signal("TERM");
    eventually("it takes no connections", SOON, || {
        TcpStream::connect(gateway.address()).is_err().then_some(())
    });
    let answer = wire.answer();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(gateway.exit(SOON).success());
    assert_eq!(emulator.calls().len(), 2);
}

#[test]
fn a_stop_without_requests_ends_at_once() {
    let (_emulator, gateway) = stage();
    let began = Instant::now();
    assert!(gateway.stop().success());
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn the_listeners_stay_open_for_the_pause_after_readiness_was_withdrawn() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/server/shutdown_pause", json!("2s"));
    let gateway = Gateway::start(config);
    gateway.signal("TERM");
    eventually("it is not ready", SOON, || {
        (!gateway.is_ready()).then_some(())
    });
    let mut wire = gateway.connect();
    wire.send(
        &Request::post("/v1/chat/completions", &chat("hi"))
            .key("acme")
            .to_bytes(),
    );
    assert_eq!(wire.answer().status, 200);
    assert!(
        wire.is_closed_within(Duration::from_secs(1)),
        "it should not be kept alive"
    );
    assert!(gateway.exit(SOON).success());
}

#[test]
fn a_stream_longer_than_the_grace_is_cut_with_it() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/server/shutdown_grace", json!("1s"));
    let gateway = Gateway::start(config);
    let endless = chat_stream("[[fault:token_delay=100ms,tokens=1000]]");
    let mut stream = gateway.stream("/v1/chat/completions", &endless);
    stream.read_until("data: ");
    let began = Instant::now();
    gateway.signal("TERM");
    assert!(gateway.exit(SOON).success());
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < Duration::from_secs(4),
        "{took:?}"
    );
    let answer = stream.rest();
    assert_eq!(answer.ending, Ending::Broken);
    assert!(!answer.text().contains("[DONE]"));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for pause in ["0s", "1m"] {
        let emulator = Emulator::quick();
        let config = Config::for_emulator(&emulator)
            .set("/server/shutdown_grace", json!("1m"))
            .set("/server/shutdown_pause", json!(pause));
        let gateway = Gateway::start(config);
        let endless = chat_stream("[[fault:token_delay=100ms,tokens=1000]]");
        let mut stream = gateway.stream("/v1/chat/completions", &endless);
        stream.read_until("data: ");
        gateway.signal("TERM");
        eventually("it is not ready", SOON, || {
            (!gateway.is_ready()).then_some(())
        });
        if pause == "0s" {
            eventually("it takes no connections", SOON, || {
                TcpStream::connect(gateway.address()).is_err().then_some(())
            });
        }
        let began = Instant::now();
        gateway.signal("INT");
        gateway.exit(SOON);
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{pause}: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn systemd_is_told_when_it_is_ready_reloads_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).env("NOTIFY_SOCKET", path.to_str().unwrap());
    let gateway = Gateway::start(config);
    let told = || {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    assert!(told().contains("READY=1"));
    assert_eq!(gateway.reload(|config| config), "ok");
    assert!(told().contains("RELOADING=1"));
    assert!(told().contains("READY=1"));
    gateway.signal("TERM");
    assert!(told().contains("STOPPING=1"));
    assert!(gateway.exit(SOON).success());
}

#[test]
fn it_is_not_ready_before_its_upstreams_were_asked() {
    let emulator = Emulator::quick();
    emulator.order(None, "stall,everywhere");
    let config = Config::for_emulator(&emulator).set(
        "/upstreams/0/health",
        json!({"interval": "10s", "timeout": "1s"}),
    );
    let gateway = Gateway::launch(config);
    assert!(!gateway.is_ready());
    eventually("it is ready after the probe's deadline", SOON, || {
        gateway.is_ready().then_some(())
    });
}
