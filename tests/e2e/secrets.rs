//! What must stay secret is in nothing that the process says, whatever credential was shown and
//! however wrong it was.

use serde_json::json;
use tidegate::config::secret::Secret;
use tidegate::identity::api_key::{self, Pepper};

use crate::support::signing::{SIGNING_SECRET, Signing, signer};
use crate::support::tokens::Issuer;
use crate::support::*;

const PEPPER: &str = "pepper-in-no-answer-and-no-log-00001";
const OTHER_PEPPER: &str = "pepper-in-no-answer-and-no-log-00002";
const TOKEN_SECRET: &str = "token-secret-in-no-answer-no-log-0001";
const UPSTREAM_KEY: &str = "sk-upstream-";
/// In the query and path of the key set's URL, where some providers have a token.
const QUERY: &str = "query-of-the-key-set-0123456789";

/// All that was shown and all that is configured.
#[derive(Default)]
struct Hidden(Vec<(&'static str, String)>);

impl Hidden {
    fn add(&mut self, what: &'static str, text: &str) {
        assert!(text.len() >= 12, "{what}");
        self.0.push((what, text.to_owned()));
    }

    /// A key's secret part, a token's parts, a signature's values.
    fn shown(&mut self, request: &Request) {
        for text in request.credentials() {
            if text.starts_with("TG-HMAC") {
                for part in text.split([' ', ',', '=']).filter(|part| part.len() >= 16) {
                    self.add("a signed request", part);
                }
            } else if let Some((_, secret)) = text.rsplit_once("tg_") {
                self.add("an API key", secret.split_once('_').unwrap().1);
            } else {
                for part in text.split(['.', ' ']).filter(|part| part.len() >= 16) {
                    self.add("a token", part);
                }
            }
        }
    }

    fn look_into(&self, place: &str, text: &str) {
        for (what, hidden) in &self.0 {
            if let Some(at) = text.find(hidden) {
                let from = text.floor_char_boundary(at.saturating_sub(300));
                panic!("{what} in {place}: {}", &text[from..at + hidden.len()]);
            }
        }
    }
}

fn config(emulator: &Emulator, level: &str, issuers: &[Issuer; 3]) -> Config {
    let [pem, shared, published] = issuers;
    let mut peppered = String::from("hmac-sha256:cellar:");
    for byte in Pepper::new(&Secret::new(PEPPER.to_owned()))
        .unwrap()
        .hash(&key("hot"))
    {
        peppered.push_str(&format!("{byte:02x}"));
    }
    // Nobody listens there, so what is logged is the failure.
    let url = format!("http://127.0.0.1:1/keys?token={QUERY}");
    Config::for_emulator(emulator)
        .set("/logging/level", json!(level))
        .set(
            "/identity/peppers",
            json!({"cellar": "${file:pepper}", "old": "${env:OLD_PEPPER}"}),
        )
        .set(
            "/identity/tokens",
            json!([
                pem.settings(json!({"file": "one.pem"})),
                shared.settings(json!({"secret": "${file:shared.secret}"})),
                published.settings(json!({"url": url, "refresh": "1s"})),
            ]),
        )
        .set("/identity/failed_attempts_per_minute", json!(45))
        .set("/tenants/0/credentials/-", signer("signer"))
        .set(
            "/tenants/0/credentials/-",
            json!({"api_key": {"id": "hot", "hash": peppered}}),
        )
        .file("signer.secret", SIGNING_SECRET)
        .file("pepper", PEPPER)
        .env("OLD_PEPPER", OTHER_PEPPER)
        .file("shared.secret", TOKEN_SECRET)
        .file("one.pem", pem.public_pem())
}

/// Good and wrong ones of every kind, on both paths.
fn requests(issuers: &[Issuer; 3]) -> Vec<Request> {
    let mut all = Vec::new();
    for (path, body) in [
        ("/v1/chat/completions", chat("hello")),
        ("/anthropic/v1/messages", message("hello")),
        ("/v1/chat/completions", chat("[[fault:status=401]]")),
        ("/v1/chat/completions", chat_stream("[[fault:cut_after=2]]")),
    ] {
        let request = || Request::post(path, &body);
        let wrong = api_key::make("acme", &[9; 32]).key.expose().to_owned();
        let mut keys = vec![key("acme"), key("hot"), wrong, key("nobody"), key("closed")];
        keys.push(format!("{}x", key("acme")));
        for key in &keys {
            all.push(request().bearer(key));
            all.push(request().header("x-api-key", key));
        }
        for issuer in issuers {
            let good = issuer.token("acme");
            all.push(request().bearer(&good).header("x-api-key", &key("limited")));
            all.push(request().bearer(&format!("{good}x")));
            all.push(request().bearer(&issuer.token("nobody")));
            all.push(request().header("x-api-key", &good));
        }
        let good = Signing::post(path, &body);
        let forged = Signing {
            secret: "x".repeat(40),
            ..good.clone()
        };
        let other = Signing {
            nonce: format!("{}-2", good.nonce),
            body: b"{}".to_vec(),
            ..good.clone()
        };
        for header in [
            good.header(),
            good.header(),
            forged.header(),
            other.header(),
        ] {
            all.push(request().header("authorization", &header));
        }
        let cut = good.header().replace(", nonce", "; nonce");
        all.push(request().header("authorization", &cut));
        all.push(request().header("authorization", &format!("Basic {}", key("acme"))));
    }
    all
}

#[test]
fn no_credential_and_no_secret_is_said_anywhere_at_any_level() {
    let issuers = [
        Issuer::new("one", "RS256"),
        Issuer::with_secret("shared", TOKEN_SECRET.as_bytes()),
        Issuer::new("published", "ES256"),
    ];
    for level in ["info", "trace"] {
        let emulator = Emulator::start(Emulator::with_accounts(2));
        let gateway = Gateway::start(config(&emulator, level, &issuers));
        let mut hidden = Hidden::default();
        for (what, text) in [
            ("a pepper", PEPPER),
            ("a pepper", OTHER_PEPPER),
            ("a signing secret", SIGNING_SECRET),
            ("a token's secret", TOKEN_SECRET),
            ("an upstream's key", UPSTREAM_KEY),
            ("the admin token", ADMIN_TOKEN),
            ("a key set's query", QUERY),
        ] {
            hidden.add(what, text);
        }
        let mut statuses = std::collections::BTreeSet::new();
        let requests = requests(&issuers);
        requests.iter().for_each(|request| hidden.shown(request));
        for request in &requests {
            let mut wire = gateway.connect();
            wire.send(&request.to_bytes());
            let Some(answer) = wire.try_answer() else {
                continue;
            };
            statuses.insert(answer.status);
            hidden.look_into("an answer", &answer.text());
            hidden.look_into("an answer's head", &format!("{:?}", answer.headers));
        }
        for status in [200, 401, 403, 429] {
            assert!(statuses.contains(&status), "{statuses:?}");
        }
        gateway.logged(&["Cannot get a key set"]);
        let rotated = json!({"cellar": "${env:OLD_PEPPER}", "old": "${file:pepper}"});
        assert_eq!(
            gateway.reload(|config| config.set("/identity/peppers", rotated)),
            "ok"
        );
        let wrong = json!({"cellar": "${file:signer.secret}x", "old": "${file:nothing}"});
        assert_eq!(
            gateway.reload(|config| config.set("/identity/peppers", wrong)),
            "refused"
        );
        let last = gateway.post("/v1/chat/completions", &chat("last"));
        gateway.access_line(last.header("x-request-id").unwrap());
        hidden.look_into("/status", &gateway.status().to_string());
        hidden.look_into("/metrics", &gateway.metrics());
        hidden.look_into("the log", &gateway.log().join("\n"));
    }
}

#[test]
fn the_command_line_tells_no_secret_of_a_good_or_a_bad_configuration() {
    let issuers = [
        Issuer::new("one", "RS256"),
        Issuer::with_secret("shared", TOKEN_SECRET.as_bytes()),
        Issuer::new("published", "ES256"),
    ];
    let emulator = Emulator::quick();
    let gateway = Gateway::start(config(&emulator, "info", &issuers));
    let path = gateway.config_path();
    let good = std::fs::read_to_string(&path).unwrap();
    let secrets = [
        PEPPER,
        OTHER_PEPPER,
        SIGNING_SECRET,
        TOKEN_SECRET,
        UPSTREAM_KEY,
        ADMIN_TOKEN,
    ];
    let mut hidden = Hidden::default();
    for secret in secrets {
        hidden.add("a secret", secret);
    }
    let run = |what: &str, configuration: &str, succeeds: bool| {
        std::fs::write(&path, configuration).unwrap();
        for more in [&["check"][..], &["check", "--diff"]] {
            let mut command = tidegate();
            command.args(more).arg("-c").arg(&path);
            let output = command.env("OLD_PEPPER", OTHER_PEPPER).output().unwrap();
            assert_eq!(output.status.success(), succeeds, "{what}: {output:?}");
            for text in [&output.stdout, &output.stderr] {
                hidden.look_into(what, &String::from_utf8_lossy(text));
            }
        }
        // It shows where values are from, wrong ones as well.
        let explained = tidegate()
            .args(["check", "--explain", "all", "-c"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&explained.stdout);
        assert!(text.contains("tenants"), "{what}: {explained:?}");
        hidden.look_into(what, &text);
        hidden.look_into(what, &String::from_utf8_lossy(&explained.stderr));
    };
    run("the configuration as it is", &good, true);
    // Other secrets than those in use.
    for (name, text) in [("pepper", OTHER_PEPPER), ("shared.secret", SIGNING_SECRET)] {
        std::fs::write(gateway.folder().join(name), text).unwrap();
    }
    run("changed secrets", &good, true);
    // Secrets that stand where none may stand, in clear text.
    for (reference, secret) in [
        ("${file:pepper}", PEPPER),
        ("${file:shared.secret}", TOKEN_SECRET),
        ("${file:signer.secret}", SIGNING_SECRET),
        ("${file:admin.token}", ADMIN_TOKEN),
    ] {
        run(
            "a secret in clear text",
            &good.replace(reference, secret),
            false,
        );
    }
    // And such that are too short, twice the same, or no text.
    for (name, content) in [
        ("pepper", b"short-but-secret".to_vec()),
        ("shared.secret", b"short-but-secret".to_vec()),
        ("signer.secret", b"\xffshort-but-secret-no-text".to_vec()),
        ("shared.secret", issuers[0].public_pem()),
        (
            "one.pem",
            b"-----BEGIN PRIVATE KEY-----\nshort-but-secret\n".to_vec(),
        ),
    ] {
        let path = gateway.folder().join(name);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        for more in [
            &["check"][..],
            &["check", "--diff"],
            &["check", "--explain", "all"],
        ] {
            let mut command = tidegate();
            command.args(more).arg("-c").arg(gateway.config_path());
            let output = command.env("OLD_PEPPER", OTHER_PEPPER).output().unwrap();
            let told = format!("{output:?}");
            hidden.look_into(name, &told);
            assert!(!told.contains("short-but-secret"), "{name}: {told}");
        }
        std::fs::write(&path, before).unwrap();
    }
}
