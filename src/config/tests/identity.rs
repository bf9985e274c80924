//! What is refused of `identity`, credentials, listeners and upstream authentication.

use super::*;
use crate::config::settings::{
    CertificateName, Credential, Forwarding, KeyHash, TemplatePart, TokenKeys, UpstreamAuth,
};

const LONG: &str = "${env:LONG_ONE}";

fn with(from: &str, to: &str) -> String {
    let text = MINIMAL.replacen(from, to, 1);
    assert_ne!(text, MINIMAL, "{from} is not there");
    text
}

fn credentials(list: &str) -> String {
    let start = MINIMAL.find("credentials: ").unwrap();
    let end = MINIMAL[start..].find('\n').unwrap() + start;
    format!(
        "{}credentials: {list}{}",
        &MINIMAL[..start],
        &MINIMAL[end..]
    )
}

fn issuer(rest: &str) -> String {
    let issuer = "id: corp, issuer: https://corp, audiences: [us], tenant: { claim: tenant }";
    with(
        "tenants:",
        &format!("identity: {{ tokens: [{{ {issuer}, {rest} }}] }}\ntenants:"),
    )
}

fn auth(auth: &str) -> String {
    with(
        "  - id: deepseek\n",
        &format!("  - id: deepseek\n    surfaces: [chat]\n    auth: {auth}\n"),
    )
}

#[test]
fn what_is_doubtful_about_who_may_call_is_refused() {
    let hash = "sha256:000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f";
    let signer = |id: &str, secret: &str| {
        format!("{{ signed_request: {{ id: {id}, secret: \"{secret}\" }} }}")
    };
    let cases = [
        (credentials("[{}]"), "not one credential"),
        (
            credentials(&format!(
                "[{{ api_key: {{ id: k, hash: \"{hash}\" }}, client_certificate: {{ common_name: a }} }}]"
            )),
            "not one credential",
        ),
        (
            credentials(
                "[{ api_key: { id: k, hash: \"hmac-sha256:none:000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f\" } }]",
            ),
            "no pepper has the name",
        ),
        (
            credentials(&format!(
                "[{{ api_key: {{ id: k, hash: \"{hash}\", not_before: 2027-01-01T00:00:00Z, not_after: 2026-01-01T00:00:00Z }} }}]"
            )),
            "not later than not_before",
        ),
        (
            credentials(&format!("[{}]", signer("s", "${env:KEY}"))),
            "a secret of 6 bytes",
        ),
        (
            credentials(&format!("[{}, {}]", signer("s", LONG), signer("t", LONG))),
            "this secret a second time",
        ),
        (credentials("[{ client_certificate: {} }]"), "not one name"),
        (
            credentials("[{ client_certificate: { san_dns: \"*.corp\" } }]"),
            "\"*.corp\"",
        ),
        (
            credentials("[{ client_certificate: { fingerprint: abc } }]"),
            "\"abc\"",
        ),
        (issuer("algorithm: RS256, keys: {}"), "not one source"),
        (
            issuer(&format!("algorithm: RS256, keys: {{ secret: \"{LONG}\" }}")),
            "keys that do not fit the algorithm",
        ),
        (
            issuer("algorithm: HS256, keys: { file: k.pem }"),
            "keys that do not fit the algorithm",
        ),
        (
            issuer("algorithm: RS256, keys: { url: \"http://corp.example/keys\" }"),
            "http://",
        ),
        (
            issuer("algorithm: RS256, keys: { url: \"https://corp.example/k\", refresh: 1ms }"),
            "1ms",
        ),
        (
            with(
                "tenants:",
                "identity: { signed_requests: { max_nonces: 1000, max_nonces_per_key: 2000 } }\ntenants:",
            ),
            "more than max_nonces",
        ),
        (
            with(
                "{ address: \"127.0.0.1:8080\" }",
                "{ address: \"127.0.0.1:8080\", accept: [client_certificate] }",
            ),
            "client_certificate on a listener that asks for none",
        ),
        (
            with(
                "{ address: \"127.0.0.1:8080\" }",
                "{ address: \"127.0.0.1:8080\", anonymous_tenant: b }",
            ),
            "no tenant has the id \"b\"",
        ),
        (
            with(
                "{ address: \"127.0.0.1:8080\" }",
                "{ address: \"127.0.0.1:8080\", trusted_proxies: [10.0.0.1/8] }",
            ),
            "10.0.0.0/8",
        ),
        (auth("{ signing: { message: \"{nobody}\" } }"), "{nobody}"),
        (
            auth("{ signing: { message: \"{signature}\" } }"),
            "{signature} in the message",
        ),
        (
            auth("{ signing: { headers: { x-key: \"{key_id}\" } } }"),
            "no signature",
        ),
        (
            auth("{ signing: { headers: { x-sign: \"{signature}\" } } }"),
            "{timestamp} is signed and not sent",
        ),
        (
            auth("{ signing: {} }").replace("[chat]", "[chat, files]"),
            "{body_sha256} on an upstream with files",
        ),
        (
            auth("{ signing: { headers: { host: \"{signature}\" } } }"),
            "\"host\"",
        ),
        (
            with(
                "  - id: deepseek\n",
                "  - id: deepseek\n    tls: { pins: [sha256//abc] }\n",
            ),
            "sha256//abc",
        ),
        (
            with(
                "  - id: deepseek\n",
                "  - id: deepseek\n    tls: { client_key: key.pem }\n",
            ),
            "one without the other",
        ),
        (
            with(
                "  - id: deepseek\n",
                "  - id: deepseek\n    tls: { verify: false }\n",
            ),
            "only under `profile: development`",
        ),
    ];
    for (text, expected) in cases {
        let told = mistakes(&text).join("\n");
        assert!(told.contains(expected), "{expected}:\n{told}\n{text}");
        assert!(!told.contains("long-0123"), "{told}");
    }
}

#[test]
fn an_upstream_goes_unverified_in_development_alone() {
    let text = with(
        "  - id: deepseek\n",
        "  - id: deepseek\n    tls: { verify: false }\n",
    );
    let loaded = load_text(&format!("profile: development\n{text}")).unwrap();
    assert!(loaded.settings.upstreams[0].tls.unverified);
    assert!(lines(&loaded.warnings)[0].contains("not verified"));
}

#[test]
fn what_proves_a_tenant_is_understood() {
    let text = credentials(&format!(
        "[{{ signed_request: {{ id: s, secret: \"{LONG}\", not_after: 2099-01-01T00:00:00Z }} }}, \
         {{ client_certificate: {{ san_dns: Search.Corp }} }}, \
         {{ api_key: {{ id: k, hash: \"hmac-sha256:p:000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f\" }} }}]"
    ));
    let text = text.replace(
        "tenants:",
        &format!("identity: {{ peppers: {{ p: \"{LONG}\" }} }}\ntenants:"),
    );
    let settings = settings_of(&text);
    let [signer, certificate, key] = &settings.tenants[0].credentials[..] else {
        panic!("three were given");
    };
    assert!(
        matches!(signer, Credential::SignedRequest(signer) if signer.validity.not_after.is_some())
    );
    assert_eq!(
        *certificate,
        Credential::ClientCertificate(CertificateName::SanDns("search.corp".to_owned()))
    );
    assert!(
        matches!(key, Credential::ApiKey(key) if matches!(&key.hash, KeyHash::Peppered { pepper, .. } if pepper == "p"))
    );
}

#[test]
fn an_issuer_and_a_signing_upstream_are_understood() {
    let settings = settings_of(&issuer(
        "algorithm: ES256, keys: { url: \"https://corp.example/keys?p=1\" }, max_lifetime: 0s",
    ));
    let issuer = &settings.identity.tokens[0];
    assert!(matches!(&issuer.keys, TokenKeys::Url { url, .. } if url.ends_with("?p=1")));
    assert_eq!(
        (issuer.max_lifetime, issuer.tenant_map.is_none()),
        (None, true)
    );
    let settings = settings_of(&auth("{ signing: {} }"));
    let UpstreamAuth::Signing(signing) = &settings.upstreams[0].auth else {
        panic!("it signs");
    };
    assert!(signing.message.0.contains(&TemplatePart::BodySha256));
    assert_eq!(
        settings.server.listeners[0].forwarded_by,
        Forwarding::XForwardedFor
    );
}
