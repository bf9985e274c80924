//! Whose address counts: the peer's, unless a proxy that is trusted names somebody else. Shown by
//! what a tenant may from where, and by the access log.

mod proxy_protocol;

use serde_json::json;

use crate::support::*;

/// What the proxies of these tests name; `acme` may call from the first network alone.
const ALLOWED: &str = "192.0.2.7";
const OTHER: &str = "198.51.100.9";

fn config(emulator: &Emulator) -> Config {
    Config::for_emulator(emulator)
        .set(
            "/tenants/0/allow_from",
            json!(["192.0.2.0/24", "2001:db8::/32"]),
        )
        .set("/identity/failed_attempts_per_minute", json!(0))
}

/// The client of an answered request, by the access log.
fn client_of(gateway: &Gateway, answer: &Answer) -> String {
    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    line["client"].as_str().unwrap_or_default().to_owned()
}

/// What a request with these fields leads to: status, code, and the client's address.
fn outcome(gateway: &Gateway, fields: &[(&str, &str)]) -> (u16, String, String) {
    let request = Request::get("/v1/models").key("acme");
    let request = fields.iter().fold(request, |request, (name, value)| {
        request.header(name, value)
    });
    let answer = request.send(gateway.address());
    let code = if answer.status == 200 {
        String::new()
    } else {
        answer.code()
    };
    let client = client_of(gateway, &answer);
    (answer.status, code, client)
}

fn served(client: &str) -> (u16, String, String) {
    (200, String::new(), client.to_owned())
}

fn refused(client: &str) -> (u16, String, String) {
    (403, "address_not_allowed".to_owned(), client.to_owned())
}

/// The log has nobody better than the proxy.
fn unreadable() -> (u16, String, String) {
    (400, "bad_request".to_owned(), "127.0.0.1".to_owned())
}

#[test]
fn a_trusted_proxy_names_the_client_in_x_forwarded_for() {
    let emulator = Emulator::quick();
    let config = config(&emulator).set(
        "/server/listeners/0",
        json!({"trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}),
    );
    let gateway = Gateway::start(config);
    let name = "x-forwarded-for";
    for (value, expected) in [
        (ALLOWED, served(ALLOWED)),
        ("192.0.2.7:4711", served(ALLOWED)),
        ("::ffff:192.0.2.7", served(ALLOWED)),
        ("2001:db8::1", served("2001:db8::1")),
        ("[2001:db8::1]:4711", served("2001:db8::1")),
        ("192.0.2.7, 10.1.2.3, 10.3.2.1", served(ALLOWED)),
        (OTHER, refused(OTHER)),
        // What stands left of the last stranger, he may have made up.
        ("192.0.2.7, 198.51.100.9", refused(OTHER)),
        ("192.0.2.7, 198.51.100.9, 10.1.2.3", refused(OTHER)),
        ("nonsense, 192.0.2.7", served(ALLOWED)),
        ("nonsense", unreadable()),
        ("192.0.2.7, unknown", unreadable()),
        ("192.0.2.7,", unreadable()),
        ("192.0.2.007", unreadable()),
        ("192.0.2.7 192.0.2.7", unreadable()),
        ("", unreadable()),
    ] {
        assert_eq!(outcome(&gateway, &[(name, value)]), expected, "{value:?}");
    }
    let lines = [(name, ALLOWED), (name, OTHER)];
    assert_eq!(outcome(&gateway, &lines), refused(OTHER));
    let endless = vec![OTHER; 60].join(",");
    assert_eq!(outcome(&gateway, &[(name, &endless)]), unreadable());
    // Nobody named: the proxy's own request. The other field says nothing here.
    assert_eq!(outcome(&gateway, &[]), refused("127.0.0.1"));
    let other_field = [("forwarded", "for=192.0.2.7"), ("x-real-ip", ALLOWED)];
    assert_eq!(outcome(&gateway, &other_field), refused("127.0.0.1"));
    assert!(emulator.calls().is_empty());
}

#[test]
fn a_trusted_proxy_names_the_client_in_forwarded() {
    let emulator = Emulator::quick();
    let config = config(&emulator).set(
        "/server/listeners/0",
        json!({"trusted_proxies": ["127.0.0.0/8"], "forwarded_by": "forwarded"}),
    );
    let gateway = Gateway::start(config);
    for (value, expected) in [
        ("for=192.0.2.7", served(ALLOWED)),
        (
            "For=\"192.0.2.7:4711\";proto=https;by=127.0.0.3",
            served(ALLOWED),
        ),
        ("for=\"[2001:db8::1]:_port\"", served("2001:db8::1")),
        (
            "for=198.51.100.9, for=192.0.2.7, for=127.0.0.9",
            served(ALLOWED),
        ),
        ("for=192.0.2.7, for=198.51.100.9", refused(OTHER)),
        ("for=unknown", unreadable()),
        ("for=_hidden", unreadable()),
        ("proto=https", unreadable()),
        ("for=192.0.2.7;for=192.0.2.7", unreadable()),
        ("for=2001:db8::1", unreadable()),
        // A mark that a client left open, so that what the proxy adds reads as quoted.
        ("for=\"198.51.100.9, for=192.0.2.7", unreadable()),
        ("for=\"x\"192.0.2.7", unreadable()),
    ] {
        assert_eq!(
            outcome(&gateway, &[("forwarded", value)]),
            expected,
            "{value:?}"
        );
    }
    let other_field = [("x-forwarded-for", ALLOWED)];
    assert_eq!(outcome(&gateway, &other_field), refused("127.0.0.1"));
}

#[test]
fn nobody_else_is_believed() {
    let emulator = Emulator::quick();
    for listener in [
        json!({}),
        json!({"trusted_proxies": ["127.0.0.2", "10.0.0.0/8"]}),
        json!({"trusted_proxies": ["127.0.0.2"], "forwarded_by": "forwarded"}),
    ] {
        let gateway = Gateway::start(config(&emulator).set("/server/listeners/0", listener));
        for fields in [
            &[][..],
            &[("x-forwarded-for", ALLOWED)],
            &[("forwarded", "for=192.0.2.7")],
            &[("x-forwarded-for", "nonsense")],
            &[("forwarded", "for=\"")],
            &[("x-real-ip", ALLOWED), ("cf-connecting-ip", ALLOWED)],
        ] {
            assert_eq!(
                outcome(&gateway, fields),
                refused("127.0.0.1"),
                "{fields:?}"
            );
        }
    }
    assert!(emulator.calls().is_empty());
}

#[test]
fn a_forged_name_does_not_go_upstream() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let request = Request::post("/v1/chat/completions", &chat("hello")).key("acme");
    let request = request.header("x-forwarded-for", ALLOWED);
    let answer = request
        .header("forwarded", "for=192.0.2.7")
        .send(gateway.address());
    assert_eq!(answer.status, 200);
    assert_eq!(client_of(&gateway, &answer), "127.0.0.1");
    let call = emulator.call();
    for name in ["x-forwarded-for", "forwarded"] {
        assert_eq!(header_of(&call, name), None);
    }
}

#[test]
fn an_address_that_is_taken_from_a_tenant_is_refused_at_once() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set("/tenants/0/allow_from", json!(["127.0.0.1"]));
    let gateway = Gateway::start(config);
    let ask = |wire: &mut Wire| {
        wire.send(&Request::get("/v1/models").key("acme").to_bytes());
        wire.answer().status
    };
    let mut wire = gateway.connect();
    assert_eq!(ask(&mut wire), 200);
    let moved = |config: Config| config.set("/tenants/0/allow_from", json!(["127.0.0.2"]));
    assert_eq!(gateway.reload(moved), "ok");
    assert_eq!(ask(&mut wire), 403);
    let mut elsewhere = Wire::connect_from([127, 0, 0, 2].into(), gateway.address());
    assert_eq!(ask(&mut elsewhere), 200);
}
