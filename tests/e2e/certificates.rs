//! What a TLS listener shows and speaks: certificates by name, sessions taken up again, versions,
//! and certificates that are exchanged while connections run.

use openssl::ssl::SslVersion;
use serde_json::json;

use crate::support::authority::{Authority, DAY, Leaf, Term};
use crate::support::tls::{Client, HTTP1, Resuming};
use crate::support::*;

/// A gateway with a plain listener and one with TLS.
struct Stage {
    _emulator: Emulator,
    gateway: Gateway,
    authority: Authority,
    first: Leaf,
}

impl Stage {
    fn new(change: impl FnOnce(Config, &Authority) -> Config) -> Self {
        let authority = Authority::new("the servers' authority");
        let first = authority.issue(&["first.test"]);
        let emulator = Emulator::quick();
        let listener = json!({"tls": {"certificate": "cert.pem", "private_key": "key.pem"}});
        let config = Config::for_emulator(&emulator)
            .set("/server/listeners/-", listener)
            .set("/server/watch_files", json!("200ms"))
            .file("cert.pem", first.pem.clone())
            .file("key.pem", first.key.clone());
        Self {
            gateway: Gateway::start(change(config, &authority)),
            _emulator: emulator,
            authority,
            first,
        }
    }

    fn shown(&self) -> Vec<u8> {
        tls::shown_certificate(self.gateway.listener(1))
    }

    fn reloads(&self, result: &str) -> f64 {
        let label = format!("result=\"{result}\"");
        let name = "tidegate_certificate_reloads_total";
        self.gateway.metric(name, &[&label])
    }

    fn put(&self, leaf: &Leaf) {
        let files = [("cert.pem", &*leaf.pem), ("key.pem", &*leaf.key)];
        self.gateway.put(&files);
    }

    fn becomes(&self, leaf: &Leaf) {
        let der = leaf.der();
        eventually("the new certificate is shown", SOON, || {
            (self.shown() == der).then_some(())
        });
    }

    /// Whether a client that speaks this version only gets through.
    fn speaks(&self, version: SslVersion) -> bool {
        let client = Client::new().only(version);
        client.connect(self.gateway.listener(1), HTTP1).is_ok()
    }
}

fn question() -> Request {
    Request::post("/v1/chat/completions", &chat("hello")).key("acme")
}

/// Over after some three seconds.
fn long_answer() -> Request {
    let body = chat_stream("[[fault:token_delay=100ms,tokens=30]]");
    Request::post("/v1/chat/completions", &body).key("acme")
}

/// Adds a certificate beside the first.
fn with_more(config: Config, name: &str, leaf: &Leaf) -> Config {
    let (pem, key) = (format!("{name}.pem"), format!("{name}.key"));
    let pointer = "/server/listeners/1/tls/more_certificates";
    let config = if config.value.pointer(pointer).is_some() {
        config
    } else {
        config.set(pointer, json!([]))
    };
    config
        .set(
            &format!("{pointer}/-"),
            json!({"certificate": pem, "private_key": key}),
        )
        .file(&pem, leaf.pem.clone())
        .file(&key, leaf.key.clone())
}

#[test]
fn the_certificate_is_that_of_the_name_which_is_asked_for() {
    let mut leaves = Vec::new();
    let stage = Stage::new(|config, authority| {
        let first = authority.issue(&["first.test", "exact.wild.test"]);
        let second = authority.issue(&["second.test", "*.wild.test"]);
        let third = authority.issue(&["Third.Test", "third.wild.test", "second.test"]);
        let config = config
            .file("cert.pem", first.pem.clone())
            .file("key.pem", first.key.clone());
        let config = with_more(config, "second", &second);
        let config = with_more(config, "third", &third);
        leaves = vec![first.der(), second.der(), third.der()];
        config
    });
    for (asked, certificate) in [
        ("first.test", 0),
        ("second.test", 1),
        ("SECOND.test", 1),
        ("a.wild.test", 1),
        ("A.WILD.TEST", 1),
        ("third.test", 2),
        ("THIRD.wild.test", 2),
        // An exact name goes before another certificate's wildcard, the first's as well.
        ("exact.wild.test", 0),
        ("a.b.wild.test", 0),
        ("wild.test", 0),
        ("unknown.test", 0),
        ("localhost", 0),
    ] {
        let shown = Client::new()
            .asks_for(asked)
            .certificate_of(stage.gateway.listener(1));
        assert!(shown == leaves[certificate], "{asked}");
        let client = Client::new().asks_for(asked);
        let answer = client.wire(stage.gateway.listener(1)).ask(&question());
        assert_eq!(answer.status, 200, "{asked}");
    }
    // An address is no name: nothing is asked for.
    let shown = Client::new()
        .asks_for("127.0.0.1")
        .certificate_of(stage.gateway.listener(1));
    assert!(shown == leaves[0]);
}

#[test]
fn sessions_are_taken_up_again_by_any_name() {
    let stage = Stage::new(|config, authority| {
        let second = authority.issue(&["second.test"]);
        with_more(config, "second", &second)
    });
    for version in ["-tls1_3", "-tls1_2"] {
        for name in ["first.test", "second.test"] {
            let client = Resuming::new(version, None);
            for resumed in [false, true, true] {
                let visit = client.visit(stage.gateway.listener(1), name, question());
                let was = (visit.status, visit.resumed);
                assert_eq!(was, (200, resumed), "{version} {name}: {}", visit.text);
            }
        }
    }
}

#[test]
fn a_renewed_certificate_is_shown_and_no_connection_is_dropped() {
    let stage = Stage::new(|config, _| config);
    let connect = || Client::new().wire(stage.gateway.listener(1));
    let mut idle = connect();
    assert_eq!(idle.ask(&question()).status, 200);
    for by_signal in [false, true] {
        let mut running = connect();
        running.send(&long_answer().to_bytes());
        let mut running = running.stream();
        running.read_until("data: ");
        let renewed = stage.authority.issue(&["first.test"]);
        stage.put(&renewed);
        if by_signal {
            assert_eq!(stage.gateway.reload_as_written(), "ok");
            assert!(stage.shown() == renewed.der());
        } else {
            stage.becomes(&renewed);
        }
        let answer = running.rest();
        assert_eq!(answer.ending, Ending::Whole);
        assert_eq!(answer.data().last().unwrap(), "[DONE]");
        assert_eq!(idle.ask(&question()).status, 200);
    }
    assert!(stage.reloads("ok") >= 2.0);
    assert_eq!(stage.reloads("refused") + stage.reloads("expired"), 0.0);
}

#[test]
fn a_certificate_that_cannot_be_served_leaves_the_old_one_and_says_so() {
    let stage = Stage::new(|config, _| config);
    let (old, other) = (&stage.first, stage.authority.issue(&["first.test"]));
    let over = stage.authority.issue_for(&["first.test"], Term::Over);
    let chain_of_nothing = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (what, result, pem, key, word) in [
        (
            "another's key",
            "refused",
            &*old.pem,
            &*other.key,
            "key.pem",
        ),
        ("no key", "refused", &old.pem, "", "key.pem"),
        ("no certificate", "refused", "", &old.key, "cert.pem"),
        ("garbage", "refused", chain_of_nothing, &old.key, "cert.pem"),
        (
            "an expired one",
            "expired",
            &over.pem,
            &over.key,
            "cert.pem",
        ),
    ] {
        let before = stage.reloads(result);
        stage.gateway.put(&[("cert.pem", pem), ("key.pem", key)]);
        eventually(&format!("{what} is counted"), SOON, || {
            (stage.reloads(result) > before).then_some(())
        });
        assert!(stage.shown() == old.der(), "{what}");
        let said = if result == "expired" {
            stage
                .gateway
                .logged(&["has expired; the one in use stays", word])
        } else {
            stage
                .gateway
                .logged(&["certificates stay as they are", word])
        };
        assert!(said.contains("\"level\":\"error\""), "{said}");
        // By signal a certificate that cannot be read is refused with all else; one that has
        // expired is no reason to keep the rest of the configuration away.
        let before = stage.reloads(result);
        let taken = if result == "expired" { "ok" } else { "refused" };
        assert_eq!(stage.gateway.reload_as_written(), taken, "{what}");
        assert!(stage.reloads(result) > before, "{what}");
        assert!(stage.shown() == old.der(), "{what}");
    }
    for file in ["cert.pem", "key.pem"] {
        std::fs::remove_file(stage.gateway.folder().join(file)).unwrap();
        assert_eq!(stage.gateway.reload_as_written(), "refused");
        assert!(stage.shown() == old.der());
    }
    stage.put(&other);
    stage.becomes(&other);
    assert_eq!(stage.gateway.reload_as_written(), "ok");
    assert!(stage.shown() == other.der());
}

#[test]
fn a_gateway_starts_with_an_expired_certificate_and_shouts() {
    let mut over = None;
    let stage = Stage::new(|config, authority| {
        let leaf = authority.issue_for(&["first.test"], Term::Over);
        let (pem, key) = (leaf.pem.clone(), leaf.key.clone());
        over = Some(leaf);
        config.file("cert.pem", pem).file("key.pem", key)
    });
    assert!(stage.shown() == over.unwrap().der());
    let said = stage
        .gateway
        .logged(&["Serving a certificate that has expired", "cert.pem"]);
    assert!(said.contains("\"level\":\"error\""), "{said}");
    let renewed = stage.authority.issue(&["first.test"]);
    stage.put(&renewed);
    stage.becomes(&renewed);
}

#[test]
fn the_policy_decides_which_versions_are_spoken() {
    let all = [
        SslVersion::TLS1,
        SslVersion::TLS1_1,
        SslVersion::TLS1_2,
        SslVersion::TLS1_3,
    ];
    for (setting, value, spoken) in [
        ("policy", "intermediate", [false, false, true, true]),
        ("policy", "modern", [false, false, false, true]),
        ("min_version", "1.3", [false, false, false, true]),
    ] {
        let pointer = format!("/server/listeners/1/tls/{setting}");
        let stage = Stage::new(|config, _| config.set(&pointer, json!(value)));
        assert_eq!(all.map(|version| stage.speaks(version)), spoken, "{value}");
        assert!(stage.gateway.is_serving());
    }
}

#[test]
fn what_ends_soon_is_warned_about_and_measured() {
    let soon = DAY * 3;
    let mut ends = String::new();
    let stage = Stage::new(|config, authority| {
        let leaf = authority.issue_for(&["second.test"], Term::Ends(soon));
        let end = jiff::Timestamp::now() + jiff::SignedDuration::try_from(soon).unwrap();
        ends = jiff::Timestamp::from_second(end.as_second())
            .unwrap()
            .to_string();
        with_more(config, "second", &leaf)
            .set("/tenants/0/credentials/0/api_key/not_after", json!(ends))
            .set(
                "/tenants/0/credentials/-",
                other_key("2099-01-01T00:00:00Z"),
            )
    });
    let day = &ends[..10];
    let said = stage
        .gateway
        .logged(&["A certificate ends soon", "second.pem", day]);
    assert!(said.contains("\"level\":\"warn\""), "{said}");
    let said = stage
        .gateway
        .logged(&["A credential ends soon", "credential=acme ", &ends]);
    assert!(said.contains("\"level\":\"warn\""), "{said}");
    let log = stage.gateway.log();
    let loud = |word: &str| {
        log.iter()
            .any(|line| line.contains("ends soon") && line.contains(word))
    };
    assert!(!loud("cert.pem") && !loud("credential=later"));

    let metric = |name: &str, label: &str| stage.gateway.metric(name, &[label]);
    let certificate = "tidegate_certificate_expiry_timestamp_seconds";
    let now = jiff::Timestamp::now().as_second() as f64;
    let left = metric(certificate, "second.pem") - now;
    assert!((left - soon.as_secs_f64()).abs() < 60.0, "{left}");
    let left = metric(certificate, "cert.pem") - now;
    assert!((left - 1000.0 * DAY.as_secs_f64()).abs() < 60.0, "{left}");
    let credential = "tidegate_credential_expiry_timestamp_seconds";
    let left = metric(credential, "credential=\"acme\"") - now;
    assert!((left - soon.as_secs_f64()).abs() < 60.0, "{left}");
    assert_eq!(metric("tidegate_credentials_expiring", ""), 1.0);
    // A renewal is measured too.
    let renewed = stage
        .authority
        .issue_for(&["first.test"], Term::Ends(DAY * 90));
    stage.put(&renewed);
    stage.becomes(&renewed);
    let left = metric(certificate, "cert.pem") - now;
    assert!((left - 90.0 * DAY.as_secs_f64()).abs() < 60.0, "{left}");
}

/// A further key of a tenant, that ends at this time.
fn other_key(not_after: &str) -> serde_json::Value {
    let mut credential = tenant("later")["credentials"][0].clone();
    credential["api_key"]["not_after"] = json!(not_after);
    credential
}
