//! TLS towards upstreams: whom we trust, what we show, and that an upstream whose key is not the
//! pinned one never hears a byte of a request.

use openssl::ssl::SslVersion;
use serde_json::{Value, json};

use crate::support::authority::{Authority, Leaf, Term};
use crate::support::front::TlsFront;
use crate::support::*;

const NAME: &str = "upstream.test";

/// An authority, a certificate of its for the upstream, and an emulator that stands behind it.
fn stage() -> (Authority, Leaf, Emulator) {
    let authority = Authority::new("the company's authority");
    let leaf = authority.issue(&[NAME]);
    (authority, leaf, Emulator::quick())
}

/// Leads to the front over TLS that this authority vouches for. Without health checks, so that
/// each connection is a request's.
fn leading_to(front: &TlsFront, authority: &Authority, emulator: &Emulator) -> Config {
    Config::for_emulator(emulator)
        .set("/upstreams/0/endpoints/0/url", json!(front.url()))
        .set(
            "/upstreams/0/tls",
            json!({"ca": "ca.pem", "server_name": NAME}),
        )
        .set("/upstreams/0/health", json!(false))
        .file("ca.pem", authority.pem())
}

fn pins(leaves: &[&Leaf]) -> Value {
    leaves.iter().map(|leaf| leaf.pin()).collect()
}

/// A request is refused as if nobody were there, and nothing of it was heard.
fn is_kept_from(gateway: &Gateway, front: &TlsFront, what: &str) {
    let before = front.connections();
    let answer = gateway.post("/v1/chat/completions", &chat("a secret"));
    assert_eq!(answer.status, 503, "{what}: {}", answer.text());
    assert_eq!(answer.code(), "upstream_unavailable", "{what}");
    assert!(front.connections() > before, "{what}");
    assert_eq!(front.bytes(), 0, "{what}");
}

#[test]
fn an_upstream_is_trusted_by_its_authority_and_its_name() {
    let (authority, leaf, emulator) = stage();
    let front = TlsFront::start(&emulator, &leaf);
    for protocol in ["http1", "http2"] {
        let config = leading_to(&front, &authority, &emulator);
        let gateway = Gateway::start(config.set("/upstreams/0/protocol", json!(protocol)));
        assert!(gateway.is_serving(), "{protocol}");
        let answer = gateway
            .stream("/v1/chat/completions", &chat_stream("hi"))
            .rest();
        assert_eq!(answer.data().last().unwrap(), "[DONE]");
    }
    assert_eq!(front.asked_for().as_deref(), Some(NAME));

    let stranger = Authority::new("the company's authority");
    for (what, leaf) in [
        ("another authority", &stranger.issue(&[NAME])),
        ("another name", &authority.issue(&["elsewhere.test"])),
        (
            "a wildcard too wide",
            &authority.issue(&["*.test.upstream.test"]),
        ),
        (
            "only a common name of another",
            &authority.issue(&["cn:elsewhere.test"]),
        ),
        ("an expired one", &authority.issue_for(&[NAME], Term::Over)),
        (
            "one of tomorrow",
            &authority.issue_for(&[NAME], Term::Ahead),
        ),
    ] {
        let front = TlsFront::start(&emulator, leaf);
        let gateway = Gateway::start(leading_to(&front, &authority, &emulator));
        is_kept_from(&gateway, &front, what);
    }
}

#[test]
fn an_authority_that_a_reload_brings_or_takes_counts_for_the_next_connection() {
    let (authority, leaf, emulator) = stage();
    let front = TlsFront::start(&emulator, &leaf);
    let stranger = Authority::new("a stranger");
    let gateway = Gateway::start(leading_to(&front, &stranger, &emulator));
    is_kept_from(&gateway, &front, "before");
    assert_eq!(
        gateway.reload(|config| config.file("ca.pem", authority.pem())),
        "ok"
    );
    assert!(gateway.is_serving());
    // The connection that is kept open was trusted by an authority that counts no more.
    let bytes = front.bytes();
    assert_eq!(
        gateway.reload(|config| config.file("ca.pem", stranger.pem())),
        "ok"
    );
    assert_eq!(
        gateway.post("/v1/chat/completions", &chat("hi")).status,
        503
    );
    assert_eq!(front.bytes(), bytes);
}

#[test]
fn the_gateway_shows_its_own_certificate_to_those_who_ask() {
    let (authority, leaf, emulator) = stage();
    let clients = Authority::new("the upstream's clients");
    let (first, second) = (
        clients.issue(&["cn:tidegate"]),
        clients.issue(&["cn:tidegate"]),
    );
    let front = TlsFront::for_clients_of(&emulator, &leaf, &clients);
    let gateway = Gateway::start(leading_to(&front, &authority, &emulator));
    let answer = gateway.post("/v1/chat/completions", &chat("hi"));
    assert!(matches!(answer.status, 502 | 503), "{}", answer.text());
    assert_eq!((front.handshakes(), front.bytes()), (0, 0));
    drop(gateway);

    let config = leading_to(&front, &authority, &emulator)
        .set("/server/watch_files", json!("200ms"))
        .set("/upstreams/0/tls/client_certificate", json!("client.pem"))
        .set("/upstreams/0/tls/client_key", json!("client.key"))
        .file("client.pem", first.pem.clone())
        .file("client.key", first.key.clone());
    let gateway = Gateway::start(config);
    assert!(gateway.is_serving());
    assert_eq!(front.was_shown(), Some(first.der()));
    // Renewed on disk: shown on the next connection, without a reload.
    gateway.put(&[("client.pem", &second.pem), ("client.key", &second.key)]);
    eventually("the renewed certificate is shown", SOON, || {
        assert!(gateway.is_serving());
        (front.was_shown() == Some(second.der())).then_some(())
    });
    // A pair that does not fit is not taken over.
    gateway.put(&[("client.key", &first.key)]);
    gateway.logged(&["stay as they are", "client.key"]);
    assert_eq!(gateway.reload_as_written(), "refused");
    assert!(gateway.is_serving());
}

#[test]
fn any_of_several_pinned_keys_will_do() {
    let (authority, leaf, emulator) = stage();
    let (next, unknown) = (authority.issue(&[NAME]), authority.issue(&[NAME]));
    let front = TlsFront::start(&emulator, &leaf);
    let config = leading_to(&front, &authority, &emulator);
    let gateway = Gateway::start(config.set("/upstreams/0/tls/pins", pins(&[&next, &leaf])));
    assert!(gateway.is_serving());
    let shaken = front.handshakes();
    front.present(&next);
    assert!(gateway.is_serving());
    assert!(front.handshakes() > shaken);
    let bytes = front.bytes();
    front.present(&unknown);
    assert_eq!(
        gateway.post("/v1/chat/completions", &chat("hi")).status,
        503
    );
    assert_eq!(front.bytes(), bytes);
}

#[test]
fn an_upstream_with_another_key_hears_not_one_byte() {
    let (authority, leaf, emulator) = stage();
    let pinned = authority.issue(&[NAME]);
    let front = TlsFront::start(&emulator, &leaf);
    let config = leading_to(&front, &authority, &emulator)
        .set("/upstreams/0/tls/pins", pins(&[&pinned]))
        .set("/retry", json!({"attempts": 1}));
    let gateway = Gateway::start(config);
    let mismatches = || gateway.metric("tidegate_upstream_pin_mismatches_total", &[]);
    let healthy = || gateway.metric("tidegate_upstream_endpoint_healthy", &[]);
    assert_eq!((mismatches(), healthy()), (0.0, 1.0));
    is_kept_from(&gateway, &front, "a chat");
    assert_eq!((mismatches(), healthy()), (1.0, 0.0));
    let said = gateway.logged(&["none of the pinned", "upstream=deepseek", &front.url()]);
    assert!(said.contains("\"level\":\"error\""), "{said}");
    gateway.logged(&["Endpoint is out", "pin mismatch"]);

    let upload = Request::post("/v1/files", &json!({}))
        .key("acme")
        .header("content-type", "multipart/form-data; boundary=x")
        .body("--x\r\n\r\n--x--\r\n");
    assert_eq!(upload.send(gateway.address()).status / 100, 5);
    let mut stream = gateway.connect();
    let answer = stream.ask(&Request::post("/v1/chat/completions", &chat_stream("hi")).key("acme"));
    assert_eq!(answer.status, 503);
    assert_eq!(front.bytes(), 0);
    assert!(emulator.calls().is_empty());

    let mended = pins(&[&pinned, &leaf]);
    let result = gateway.reload(|config| config.set("/upstreams/0/tls/pins", mended));
    assert_eq!(result, "ok");
    assert!(gateway.is_serving());
    gateway.logged(&["Endpoint is back"]);
    assert_eq!(healthy(), 1.0);
}

#[test]
fn a_health_check_finds_another_key_out_and_says_nothing_either() {
    let (authority, leaf, emulator) = stage();
    let pinned = authority.issue(&[NAME]);
    let front = TlsFront::start(&emulator, &leaf);
    let config = leading_to(&front, &authority, &emulator)
        .set("/upstreams/0/tls/pins", pins(&[&pinned]))
        .set(
            "/upstreams/0/health",
            json!({"interval": "200ms", "timeout": "5s"}),
        );
    let gateway = Gateway::start(config);
    let mismatches = || gateway.metric("tidegate_upstream_pin_mismatches_total", &[]);
    let healthy = || gateway.metric("tidegate_upstream_endpoint_healthy", &[]);
    eventually("several checks were made", SOON, || {
        (mismatches() >= 3.0).then_some(())
    });
    assert_eq!(healthy(), 0.0);
    assert_eq!(front.bytes(), 0);
    let mended = pins(&[&leaf]);
    let result = gateway.reload(|config| config.set("/upstreams/0/tls/pins", mended));
    assert_eq!(result, "ok");
    eventually("the endpoint is back", SOON, || {
        (healthy() == 1.0).then_some(())
    });
    assert!(gateway.is_serving());
}

#[test]
fn another_endpoint_takes_over_from_one_with_another_key() {
    let (authority, leaf, emulator) = stage();
    let good = TlsFront::start(&emulator, &leaf);
    let bad = TlsFront::start(&emulator, &authority.issue(&[NAME]));
    let endpoints = json!([{"url": bad.url()}, {"url": good.url(), "priority": 1}]);
    let config = leading_to(&bad, &authority, &emulator)
        .set("/upstreams/0/endpoints", endpoints)
        .set("/upstreams/0/tls/pins", pins(&[&leaf]));
    let gateway = Gateway::start(config);
    for _ in 0..3 {
        assert!(gateway.is_serving());
    }
    // Tried once, and then left alone.
    assert_eq!((bad.connections(), bad.bytes()), (1, 0));
    assert_eq!(emulator.calls().len(), 3);
}

#[test]
fn pins_and_http_2_do_not_go_together() {
    let (authority, leaf, emulator) = stage();
    let front = TlsFront::start(&emulator, &leaf);
    let config = leading_to(&front, &authority, &emulator);
    let gateway = Gateway::start(config.set("/upstreams/0/protocol", json!("http2")));
    let pinned = pins(&[&leaf]);
    let result = gateway.reload(|config| config.set("/upstreams/0/tls/pins", pinned));
    assert_eq!(result, "refused");
    gateway.logged(&["Reload refused", "http2 together with tls.pins"]);
    assert!(gateway.is_serving());
}

#[test]
fn an_upstream_that_speaks_only_old_versions_is_not_spoken_to() {
    let (authority, leaf, emulator) = stage();
    let rsa = authority.issue_rsa(&[NAME]);
    for (newest, least, leaf) in [
        (SslVersion::TLS1, "1.2", &rsa),
        (SslVersion::TLS1_1, "1.2", &rsa),
        (SslVersion::TLS1_2, "1.3", &leaf),
    ] {
        let front = TlsFront::with(&emulator, leaf, |builder| {
            builder.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
            builder.set_max_proto_version(Some(newest)).unwrap();
        });
        let config = leading_to(&front, &authority, &emulator);
        let gateway = Gateway::start(config.set("/upstreams/0/tls/min_version", json!(least)));
        is_kept_from(&gateway, &front, least);
    }
    let front = TlsFront::with(&emulator, &leaf, |builder| {
        builder
            .set_max_proto_version(Some(SslVersion::TLS1_2))
            .unwrap();
    });
    let gateway = Gateway::start(leading_to(&front, &authority, &emulator));
    assert!(gateway.is_serving());
}

#[test]
fn an_address_is_no_name_to_be_trusted_by_and_that_is_said() {
    let (authority, _, emulator) = stage();
    let front = TlsFront::start(&emulator, &authority.issue(&["127.0.0.1", NAME]));
    let config = leading_to(&front, &authority, &emulator);
    let gateway = Gateway::start(config.set("/upstreams/0/tls", json!({"ca": "ca.pem"})));
    gateway.logged(&["\"level\":\"warn\"", "without `tls.server_name`"]);
    is_kept_from(&gateway, &front, "an address");
    let name = "/upstreams/0/tls/server_name";
    assert_eq!(gateway.reload(|config| config.set(name, json!(NAME))), "ok");
    assert!(gateway.is_serving());
}
