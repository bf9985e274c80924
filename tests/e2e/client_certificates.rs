//! Client certificates: which tenant they lead to, every way in which one can be wrong, and how
//! authorities and revocation lists are exchanged while the gateway runs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::authority::{Authority, DAY, Leaf, Term};
use crate::support::tls::{Client, Resuming};
use crate::support::*;

/// A gateway with a plain listener and one that asks for certificates.
struct Stage {
    emulator: Emulator,
    gateway: Gateway,
    authority: Authority,
}

impl Stage {
    fn new(change: impl FnOnce(Config) -> Config) -> Self {
        Self::of(Authority::new("the clients' authority"), change)
    }

    fn of(authority: Authority, change: impl FnOnce(Config) -> Config) -> Self {
        let emulator = Emulator::quick();
        let server = Authority::new("the servers' authority").issue(&["localhost"]);
        let listener = json!({"tls": {
            "certificate": "cert.pem", "private_key": "key.pem",
            "client_ca": "clients.pem", "client_crl": "revoked.pem",
        }});
        let config = Config::for_emulator(&emulator)
            .set("/server/listeners/-", listener)
            .set("/server/watch_files", json!("0s"))
            .set("/identity/failed_attempts_per_minute", json!(0))
            .set(
                "/tenants/-",
                known("by-uri", json!({"san_uri": "spiffe://corp/search"})),
            )
            .set(
                "/tenants/-",
                known("by-dns", json!({"san_dns": "batch.corp.internal"})),
            )
            .set(
                "/tenants/-",
                known("by-cn", json!({"common_name": "the old batch"})),
            )
            .file("cert.pem", server.pem)
            .file("key.pem", server.key)
            .file("clients.pem", authority.pem())
            .file("revoked.pem", authority.revoke(&[]));
        Self {
            gateway: Gateway::start(change(config)),
            emulator,
            authority,
        }
    }

    fn search(&self) -> Leaf {
        self.authority.issue(&["spiffe://corp/search"])
    }

    /// One HTTP/1.1 request of a client that shows this.
    fn ask(&self, leaf: Option<&Leaf>, request: &Request) -> Answer {
        let client = leaf.into_iter().fold(Client::new(), Client::shows);
        client.wire(self.gateway.listener(1)).ask(request)
    }

    fn tenant_of(&self, request_id: &str) -> Value {
        let line = self.gateway.access_line(request_id);
        assert_eq!(line["authentication"], "client_certificate");
        line["tenant"].clone()
    }

    /// Waits until a client is answered with this status.
    fn becomes(&self, leaf: &Leaf, status: u16) {
        eventually(
            &format!("the certificate is answered {status}"),
            SOON,
            || (self.ask(Some(leaf), &question()).status == status).then_some(()),
        );
    }
}

/// A tenant that is known by a certificate, or by its key.
fn known(id: &str, certificate: Value) -> Value {
    let mut tenant = tenant(id);
    let credentials = tenant["credentials"].as_array_mut().unwrap();
    credentials.push(json!({"client_certificate": certificate}));
    tenant
}

fn question() -> Request {
    Request::post("/v1/chat/completions", &chat("hello"))
}

#[test]
fn a_certificate_leads_to_its_tenant_over_http_1_and_2() {
    let authority = Authority::new("the clients' authority");
    let pinned = authority.issue(&["cn:nothing else"]);
    let stage = Stage::of(authority, |config| {
        let print = json!({"fingerprint": pinned.fingerprint()});
        config.set("/tenants/-", known("by-print", print))
    });
    let issue = |names: &[&str]| stage.authority.issue(names);
    let cases = [
        (pinned, "by-print"),
        (issue(&["spiffe://corp/search"]), "by-uri"),
        (issue(&["Batch.Corp.Internal"]), "by-dns"),
        (issue(&["cn:the old batch"]), "by-cn"),
        (
            issue(&[
                "spiffe://corp/other",
                "other.corp",
                "batch.corp.internal",
                "cn:x",
            ]),
            "by-dns",
        ),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (leaf, tenant) in &cases {
        let answer = stage.ask(Some(leaf), &question());
        assert_eq!(answer.status, 200, "{tenant}: {}", answer.text());
        assert_eq!(
            stage.tenant_of(answer.header("x-request-id").unwrap()),
            *tenant
        );
        let (status, request_id) = runtime.block_on(async {
            let client = Client::new().shows(leaf);
            let mut sender = h2::connect_as(client, stage.gateway.listener(1)).await;
            let body = h2::sized(chat("hello").to_string().into());
            let request = http::Request::post("http://gateway/v1/chat/completions");
            let answer = sender
                .send_request(request.body(body).unwrap())
                .await
                .unwrap();
            let id = answer.headers()["x-request-id"]
                .to_str()
                .unwrap()
                .to_owned();
            (answer.status(), id)
        });
        assert_eq!(status, 200);
        assert_eq!(stage.tenant_of(&request_id), *tenant);
    }
}

#[test]
fn a_certificate_that_is_not_to_be_trusted_is_a_401_in_the_callers_words() {
    let stage = Stage::new(|config| config);
    let names = ["spiffe://corp/search"];
    let stranger = Authority::new("the clients' authority").issue(&names);
    let revoked = stage.search();
    stage
        .gateway
        .put(&[("revoked.pem", &stage.authority.revoke(&[&revoked]))]);
    assert_eq!(stage.gateway.reload_as_written(), "ok");
    let cases = [
        ("another authority of the same name", &stranger),
        (
            "an expired one",
            &stage.authority.issue_for(&names, Term::Over),
        ),
        (
            "one of tomorrow",
            &stage.authority.issue_for(&names, Term::Ahead),
        ),
        ("a revoked one", &revoked),
    ];
    for (what, leaf) in cases {
        for (path, body) in [
            ("/v1/chat/completions", chat("hello")),
            ("/anthropic/v1/messages", message("hello")),
        ] {
            let request = Request::post(path, &body);
            // A good key does not make up for it.
            for request in [request.clone(), request.key("by-uri")] {
                let answer = stage.ask(Some(leaf), &request);
                assert_eq!(answer.status, 401, "{what}: {}", answer.text());
                assert_eq!(answer.code(), "invalid_credential", "{what}");
                let anthropic = answer.json()["type"] == "error";
                assert_eq!(anthropic, path.starts_with("/anthropic"), "{what}");
            }
        }
    }
    assert!(stage.emulator.calls().is_empty());
    let reason = ["reason=\"bad_certificate\""];
    let failures = |labels: &[&str]| {
        let name = "tidegate_authentication_failures_total";
        stage.gateway.metric(name, labels)
    };
    assert_eq!((failures(&reason), failures(&[])), (16.0, 16.0));
    stage
        .gateway
        .logged(&["\"access\"", "bad_certificate: certificate revoked"]);
    stage
        .gateway
        .logged(&["\"access\"", "bad_certificate: certificate has expired"]);
    assert_eq!(stage.ask(Some(&stage.search()), &question()).status, 200);
}

#[test]
fn a_certificate_is_required_unless_the_listener_says_otherwise() {
    let stage = Stage::new(|config| config);
    for request in [question(), question().key("acme")] {
        let answer = stage.ask(None, &request);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "missing_credential")
        );
    }
    assert!(stage.emulator.calls().is_empty());
    assert_eq!(
        stage
            .gateway
            .post("/v1/chat/completions", &chat("hello"))
            .status,
        200
    );

    let optional = "/server/listeners/1/tls/client_certificates";
    let stage = Stage::new(|config| config.set(optional, json!("optional")));
    let answer = stage.ask(None, &question());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "missing_credential")
    );
    assert_eq!(stage.ask(None, &question().key("acme")).status, 200);
    assert_eq!(stage.ask(Some(&stage.search()), &question()).status, 200);
    let expired = stage
        .authority
        .issue_for(&["spiffe://corp/search"], Term::Over);
    assert_eq!(
        stage.ask(Some(&expired), &question().key("by-uri")).status,
        401
    );
}

#[test]
fn one_certificate_is_one_tenant_and_agrees_with_the_key_beside_it() {
    let stage = Stage::new(|config| config);
    let nobody = stage.authority.issue(&["spiffe://corp/nobody"]);
    let answer = stage.ask(Some(&nobody), &question());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (403, "not_allowed")
    );
    let both = stage
        .authority
        .issue(&["spiffe://corp/search", "batch.corp.internal"]);
    let answer = stage.ask(Some(&both), &question());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "invalid_credential")
    );

    let search = stage.search();
    assert_eq!(
        stage.ask(Some(&search), &question().key("by-uri")).status,
        200
    );
    stage.emulator.forget_calls();
    let answer = stage.ask(Some(&search), &question().key("acme"));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "invalid_credential")
    );
    assert_eq!(
        stage.ask(Some(&search), &question().key("nobody")).status,
        401
    );
    assert!(stage.emulator.calls().is_empty());
    for reason in ["no_tenant", "two_identities", "unknown_id"] {
        let label = format!("reason=\"{reason}\"");
        let name = "tidegate_authentication_failures_total";
        assert!(stage.gateway.metric(name, &[&label]) >= 1.0, "{reason}");
    }
}

#[test]
fn a_resumed_session_keeps_its_identity_until_its_certificate_is_revoked() {
    let stage = Stage::new(|config| config);
    let to = stage.gateway.listener(1);
    for version in ["-tls1_3", "-tls1_2"] {
        let (stays, goes) = (stage.search(), stage.search());
        let clients = [&stays, &goes].map(|leaf| Resuming::new(version, Some(leaf)));
        for (visit, resumed) in [(1, false), (2, true), (3, true)] {
            for client in &clients {
                let visit_to = client.visit(to, "localhost", question());
                let text = &visit_to.text;
                assert_eq!(
                    (visit_to.status, visit_to.resumed),
                    (200, resumed),
                    "{visit}: {text}"
                );
                let id = text.split("x-request-id: ").nth(1).unwrap();
                assert_eq!(stage.tenant_of(id.lines().next().unwrap()), "by-uri");
            }
        }
        stage
            .gateway
            .put(&[("revoked.pem", &stage.authority.revoke(&[&goes]))]);
        assert_eq!(stage.gateway.reload_as_written(), "ok");
        let [stays, goes] = clients.map(|client| client.visit(to, "localhost", question()));
        assert_eq!((stays.status, stays.resumed), (200, false));
        assert_eq!((goes.status, goes.resumed), (401, false), "{}", goes.text);
        assert!(goes.text.contains("invalid_credential"), "{}", goes.text);
    }
}

#[test]
fn a_resumed_session_ends_with_its_certificate() {
    let stage = Stage::new(|config| config);
    let names = ["spiffe://corp/search"];
    let ends = Term::Ends(Duration::from_secs(5));
    let leaf = stage.authority.issue_for(&names, ends);
    let client = Resuming::new("-tls1_3", Some(&leaf));
    let visit = || client.visit(stage.gateway.listener(1), "localhost", question());
    assert_eq!(visit().status, 200);
    let late = eventually("the certificate has expired", SOON * 2, || {
        let visit = visit();
        assert!(visit.resumed, "{}", visit.text);
        (visit.status != 200).then_some(visit)
    });
    assert_eq!(late.status, 401, "{}", late.text);
    stage
        .gateway
        .logged(&["\"access\"", "bad_certificate: certificate has expired"]);
}

#[test]
fn a_bad_certificate_does_not_become_good_by_resuming() {
    let stage = Stage::new(|config| config);
    let stranger = Authority::new("a stranger").issue(&["spiffe://corp/search"]);
    for version in ["-tls1_3", "-tls1_2"] {
        let client = Resuming::new(version, Some(&stranger));
        for _ in 0..3 {
            let visit = client.visit(stage.gateway.listener(1), "localhost", question());
            assert_eq!(visit.status, 401, "{}", visit.text);
        }
    }
    assert!(stage.emulator.calls().is_empty());
}

#[test]
fn authorities_and_revocation_lists_are_taken_over_when_their_files_change() {
    let watch = "/server/watch_files";
    let stage = Stage::new(|config| config.set(watch, json!("200ms")));
    let new = Authority::new("the new authority");
    let (mine, theirs) = (stage.search(), new.issue(&["spiffe://corp/search"]));
    let mut before = Client::new().shows(&mine).wire(stage.gateway.listener(1));
    assert_eq!(before.ask(&question()).status, 200);
    assert_eq!(stage.ask(Some(&theirs), &question()).status, 401);

    let both = [stage.authority.pem(), new.pem()].concat();
    let lists = |ours: &[&Leaf]| [stage.authority.revoke(ours), new.revoke(&[])].concat();
    stage
        .gateway
        .put(&[("clients.pem", &both), ("revoked.pem", &lists(&[]))]);
    stage.becomes(&theirs, 200);
    assert_eq!(stage.ask(Some(&mine), &question()).status, 200);

    stage.gateway.put(&[("revoked.pem", &lists(&[&mine]))]);
    stage.becomes(&mine, 401);
    assert_eq!(stage.ask(Some(&theirs), &question()).status, 200);

    stage.gateway.put(&[("clients.pem", stage.authority.pem())]);
    stage.becomes(&theirs, 401);
    // The connection from before the revocation was not cut, but its client is judged anew.
    assert_eq!(before.ask(&question()).status, 401);
    assert_eq!(
        stage.gateway.metric("tidegate_config_reloads_total", &[]),
        0.0
    );
}

#[test]
fn a_list_that_cannot_be_read_leaves_the_old_one_in_force() {
    let watch = "/server/watch_files";
    let stage = Stage::new(|config| config.set(watch, json!("200ms")));
    let revoked = stage.search();
    stage
        .gateway
        .put(&[("revoked.pem", &stage.authority.revoke(&[&revoked]))]);
    stage.becomes(&revoked, 401);
    let refused = || {
        let name = "tidegate_certificate_reloads_total";
        stage.gateway.metric(name, &["result=\"refused\""])
    };
    for (file, content) in [
        ("revoked.pem", "nonsense"),
        ("clients.pem", ""),
        ("clients.pem", "nonsense"),
    ] {
        let before = refused();
        stage.gateway.put(&[(file, content)]);
        eventually("the refusal is counted", SOON, || {
            (refused() > before).then_some(())
        });
        stage
            .gateway
            .logged(&["certificates stay as they are", file]);
        assert_eq!(stage.ask(Some(&revoked), &question()).status, 401);
        assert_eq!(stage.ask(Some(&stage.search()), &question()).status, 200);
        let before = refused();
        assert_eq!(stage.gateway.reload_as_written(), "refused");
        assert_eq!(refused(), before + 1.0, "a reload counts as well");
    }
    stage.gateway.put(&[
        ("clients.pem", stage.authority.pem()),
        ("revoked.pem", &stage.authority.revoke(&[])),
    ]);
    stage.becomes(&revoked, 200);
    assert_eq!(stage.gateway.reload_as_written(), "ok");
}

#[test]
fn a_revocation_list_that_is_out_of_date_lets_nobody_in() {
    let stage = Stage::new(|config| config);
    let old = stage.authority.revoke_until(&[], Term::Over);
    stage.gateway.put(&[("revoked.pem", &old)]);
    assert_eq!(stage.gateway.reload_as_written(), "ok");
    let answer = stage.ask(Some(&stage.search()), &question());
    assert_eq!(answer.status, 401);
    stage.gateway.logged(&["\"access\"", "CRL has expired"]);
    let fresh = stage.authority.revoke_until(&[], Term::Ends(DAY));
    stage.gateway.put(&[("revoked.pem", &fresh)]);
    assert_eq!(stage.gateway.reload_as_written(), "ok");
    assert_eq!(stage.ask(Some(&stage.search()), &question()).status, 200);
}

#[test]
fn no_more_than_a_hundred_names_of_a_certificate_are_read() {
    let stage = Stage::new(|config| config);
    let names: Vec<String> = (0..500)
        .map(|n| format!("host-{n}.corp.internal"))
        .collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.push("batch.corp.internal");
    let answer = stage.ask(Some(&stage.authority.issue(&names)), &question());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (403, "not_allowed")
    );
}
