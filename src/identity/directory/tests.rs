//! Who is let in by what, and with which reason everybody else is not.

mod signed;

use std::fmt::Write;

use http::HeaderValue;
use openssl::x509::X509;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::{Value, json};

use super::*;
use crate::config;
use crate::identity::credential::Doubt;

const NOW: i64 = 1_767_225_600; // 2026-01-01T00:00:00Z
const SECRET: &str = "secret-0123456789abcdef0123456789abcdef";
const PEPPER: &str = "pepper-0123456789abcdef0123456789abcdef";
const URL: &str = "https://id.example/keys";
const ISSUER: &str = "https://id.example";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn key(id: &str) -> String {
    api_key::make(id, &[7; 32]).key.expose().to_owned()
}

fn stored(id: &str, more: Value) -> Value {
    let mut key = json!({"id": id, "hash": format!("sha256:{}", hex(&api_key::hash(&key(id))))});
    for (name, value) in more.as_object().unwrap() {
        key[name] = value.clone();
    }
    json!({"api_key": key})
}

fn peppered(id: &str, pepper: &str) -> Value {
    let pepper = Pepper::new(&Secret::new(pepper.to_owned())).unwrap();
    let hash = format!("hmac-sha256:cellar:{}", hex(&pepper.hash(&key(id))));
    json!({"api_key": {"id": id, "hash": hash}})
}

fn signer(id: &str, more: Value) -> Value {
    let mut signer = json!({"id": id, "secret": format!("${{env:{id}}}")});
    for (name, value) in more.as_object().unwrap() {
        signer[name] = value.clone();
    }
    json!({"signed_request": signer})
}

fn certificate(kind: &str, name: &str) -> Value {
    json!({"client_certificate": {kind: name}})
}

fn tenant(id: &str, credentials: Value) -> Value {
    json!({"id": id, "models": ["*"], "credentials": credentials})
}

/// The tenants of most tests.
fn tenants() -> Value {
    let one = json!([
        stored("a", json!({})),
        stored("b", json!({})),
        stored("off", json!({"enabled": false})),
        stored("early", json!({"not_before": "2026-01-01T00:00:01Z"})),
        stored("begun", json!({"not_before": "2026-01-01T00:00:00Z"})),
        stored("late", json!({"not_after": "2026-01-01T00:00:00Z"})),
        stored("last", json!({"not_after": "2026-01-01T00:00:01Z"})),
        peppered("hot", PEPPER),
        peppered("stolen", SECRET),
        signer("s1", json!({})),
        signer("s_off", json!({"enabled": false})),
        signer("s_late", json!({"not_after": "2025-12-31T23:59:59Z"})),
        certificate("san_uri", "spiffe://corp/one"),
        certificate("common_name", "one"),
    ]);
    let mut closed = tenant("closed", json!([stored("c", json!({}))]));
    closed["enabled"] = json!(false);
    let mut picky = tenant(
        "picky",
        json!([stored("p", json!({})), certificate("san_dns", "picky.corp")]),
    );
    picky["accept"] = json!(["client_certificate", "token"]);
    let mut near = tenant("near", json!([stored("n", json!({}))]));
    near["allow_from"] = json!(["10.0.0.0/8", "2001:db8::/32"]);
    json!([
        tenant("one", one),
        closed,
        picky,
        near,
        tenant("two", json!([certificate("san_uri", "spiffe://corp/two")]))
    ])
}

fn settings(tenants: &Value) -> Settings {
    let issuer = json!({
        "id": "corp", "issuer": ISSUER, "audiences": ["tidegate"], "algorithm": "EdDSA",
        "keys": {"url": URL}, "tenant": {"claim": "team", "map": {"first": "one", "p": "picky"}},
        "models_claim": "models",
    });
    let text = json!({
        "server": {"listeners": [{"address": "127.0.0.1:8080"}]},
        "identity": {"peppers": {"cellar": "${env:PEPPER}"}, "tokens": [issuer]},
        "tenants": tenants,
        "upstreams": [{
            "id": "deepseek", "endpoints": [{"url": "https://api.deepseek.com"}],
            "accounts": [{"id": "main", "api_key": "${env:KEY}"}],
        }],
        "models": {"flash": {"variants": [{"upstream": "deepseek", "model": "deepseek-flash"}]}},
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.yaml");
    std::fs::write(&file, serde_yaml::to_string(&text).unwrap()).unwrap();
    let environment = |name: &str| match name {
        "KEY" => Some("sk-one".into()),
        "PEPPER" => Some(PEPPER.into()),
        // No two key ids may have the same.
        id => Some(format!("{SECRET}-{id}").into()),
    };
    let layers = [config::Layer::Path(file)];
    config::load_with(&layers, &environment).unwrap().settings
}

/// All of a caller but its headers.
struct Around<'a> {
    query: &'static str,
    certificate: Option<&'a CertificateNames>,
    address: IpAddr,
    accept: Accepted,
    anonymous: Option<&'a TenantId>,
    now: i64,
}

impl Default for Around<'_> {
    fn default() -> Self {
        Self {
            query: "",
            certificate: None,
            address: IpAddr::from([192, 0, 2, 1]),
            accept: Accepted::ALL,
            anonymous: None,
            now: NOW,
        }
    }
}

impl<'a> Around<'a> {
    fn caller(self, headers: &'a HeaderMap) -> Caller<'a> {
        Caller {
            headers,
            target: Target {
                method: "POST",
                path: "/v1/chat/completions",
                query: self.query,
            },
            certificate: self.certificate,
            address: self.address,
            accept: self.accept,
            anonymous: self.anonymous,
            now: self.now,
        }
    }
}

struct Stage {
    issuer: Arc<config::settings::TokenIssuer>,
    directory: Directory,
    standing: Arc<Standing>,
}

impl Stage {
    fn new() -> Self {
        let settings = settings(&tenants());
        let standing = Arc::new(Standing::new(&settings.identity.signed_requests));
        let directory = Directory::new(&settings, standing.clone()).unwrap();
        Self {
            issuer: settings.identity.tokens[0].clone(),
            directory,
            standing,
        }
    }

    /// Tenant and name of the credential, or why not; of a caller that `change` makes.
    fn ask<'a>(
        &self,
        fields: &[(&'static str, &str)],
        change: impl FnOnce(&mut Around<'a>),
    ) -> Result<String, Reason> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let mut around = Around::default();
        change(&mut around);
        let identity = self.directory.identify(&around.caller(&headers))?;
        let tenant = identity.tenant.id.as_str();
        Ok(format!("{tenant}/{}", identity.credential_id))
    }

    fn with_key(&self, key: &str) -> Result<String, Reason> {
        self.ask(&[("x-api-key", key)], |_| {})
    }

    fn with_certificate(&self, names: &CertificateNames) -> Result<String, Reason> {
        self.ask(&[], |caller| caller.certificate = Some(names))
    }
}

#[test]
fn each_key_leads_to_its_tenant_and_no_other() {
    let stage = Stage::new();
    let wrong = |id: &str| api_key::make(id, &[9; 32]).key.expose().to_owned();
    for (shown, expected) in [
        (key("a"), Ok("one/a")),
        (key("b"), Ok("one/b")),
        (key("begun"), Ok("one/begun")),
        (key("last"), Ok("one/last")),
        (key("hot"), Ok("one/hot")),
        (key("c"), Err(Reason::TenantDisabled)),
        (key("off"), Err(Reason::CredentialDisabled)),
        (key("early"), Err(Reason::NotYetValid)),
        (key("late"), Err(Reason::Expired)),
        (key("stolen"), Err(Reason::WrongSecret)),
        (wrong("a"), Err(Reason::WrongSecret)),
        (wrong("hot"), Err(Reason::WrongSecret)),
        // Who has the secret alone learns what became of the credential.
        (wrong("late"), Err(Reason::WrongSecret)),
        (wrong("off"), Err(Reason::WrongSecret)),
        (key("z"), Err(Reason::UnknownId)),
        ("sk-something".to_owned(), Err(Reason::NotAKey)),
        (format!("{}0", key("a")), Err(Reason::NotAKey)),
    ] {
        let found = stage.with_key(&shown);
        assert_eq!(found, expected.map(str::to_owned), "{shown}");
    }
}

#[test]
fn the_last_use_of_a_credential_is_known_and_outlives_a_reload() {
    let stage = Stage::new();
    assert_eq!(stage.directory.last_use(CredentialKind::ApiKey, "a"), None);
    stage.with_key(&key("a")).unwrap();
    let _ = stage.with_key(api_key::make("b", &[9; 32]).key.expose());
    let next = Directory::new(&settings(&tenants()), stage.standing.clone()).unwrap();
    assert_eq!(next.last_use(CredentialKind::ApiKey, "a"), Some(NOW));
    assert_eq!(next.last_use(CredentialKind::ApiKey, "b"), None);
    assert_eq!(next.last_use(CredentialKind::SignedRequest, "a"), None);
}

#[test]
fn a_listener_and_a_tenant_take_the_kinds_they_name() {
    let stage = Stage::new();
    let none = Accepted {
        api_key: false,
        token: false,
        signed_request: false,
        client_certificate: false,
    };
    let take = |accept: Accepted, fields: &[(&'static str, &str)]| {
        stage.ask(fields, |caller| caller.accept = accept)
    };
    let good = key("a");
    let fields = [("x-api-key", good.as_str())];
    assert_eq!(take(none, &fields), Err(Reason::KindNotTaken));
    assert_eq!(
        take(
            Accepted {
                api_key: true,
                ..none
            },
            &fields
        ),
        Ok("one/a".to_owned())
    );
    let signed = [("authorization", "TG-HMAC-SHA256 whatever")];
    assert_eq!(
        take(
            Accepted {
                api_key: true,
                ..none
            },
            &signed
        ),
        Err(Reason::KindNotTaken)
    );
    assert_eq!(take(none, &[]), Err(Reason::Missing));
    assert_eq!(stage.with_key(&key("p")), Err(Reason::KindNotAllowed));
    let names = names_of(&["dns:picky.corp"]);
    assert_eq!(
        stage.with_certificate(&names),
        Ok("picky/dns:picky.corp".to_owned())
    );
    // A certificate that the listener does not take is not looked at.
    let unseen = stage.ask(&[], |caller| {
        caller.certificate = Some(&names);
        caller.accept = none;
    });
    assert_eq!(unseen, Err(Reason::Missing));
}

#[test]
fn a_tenant_is_entered_from_its_networks_alone() {
    let stage = Stage::new();
    let near = key("n");
    for (address, lets_in) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("2001:db8:1::1", true),
        ("11.0.0.1", false),
        ("2001:db9::1", false),
        ("127.0.0.1", false),
    ] {
        let found = stage.ask(&[("x-api-key", &near)], |caller| {
            caller.address = address.parse().unwrap();
        });
        let expected = if lets_in {
            Ok("near/n".to_owned())
        } else {
            Err(Reason::AddressNotAllowed)
        };
        assert_eq!(found, expected, "{address}");
    }
}

fn names_of(wanted: &[&str]) -> CertificateNames {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for name in wanted {
        match name.split_once(':') {
            Some(("cn", name)) => params.distinguished_name.push(DnType::CommonName, name),
            Some(("dns", name)) => params
                .subject_alt_names
                .push(SanType::DnsName(name.try_into().unwrap())),
            _ => params
                .subject_alt_names
                .push(SanType::URI((*name).try_into().unwrap())),
        }
    }
    let key = KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    CertificateNames::of(&X509::from_der(made.der()).unwrap())
}

#[test]
fn a_certificate_leads_to_the_tenant_of_its_names_if_they_agree() {
    let stage = Stage::new();
    for (names, expected) in [
        (&["spiffe://corp/one"][..], Ok("one/spiffe://corp/one")),
        (&["cn:one"], Ok("one/cn:one")),
        (
            &["cn:one", "spiffe://corp/one", "dns:elsewhere"],
            Ok("one/spiffe://corp/one"),
        ),
        (&["spiffe://corp/two"], Ok("two/spiffe://corp/two")),
        (
            &["spiffe://corp/one", "spiffe://corp/two"],
            Err(Reason::TwoIdentities),
        ),
        (&["cn:one", "spiffe://corp/two"], Err(Reason::TwoIdentities)),
        (&["spiffe://corp/nobody"], Err(Reason::NoTenant)),
        (&["dns:one", "cn:spiffe://corp/one"], Err(Reason::NoTenant)),
        (&[], Err(Reason::NoTenant)),
    ] {
        let found = stage.with_certificate(&names_of(names));
        assert_eq!(found, expected.map(str::to_owned), "{names:?}");
    }
    let (mine, other, nobody) = (
        names_of(&["spiffe://corp/one"]),
        names_of(&["spiffe://corp/two"]),
        names_of(&["spiffe://corp/nobody"]),
    );
    let good = key("a");
    for (names, expected) in [
        (&mine, Ok("one/a".to_owned())),
        (&nobody, Ok("one/a".to_owned())),
        (&other, Err(Reason::TwoIdentities)),
    ] {
        let both = stage.ask(&[("x-api-key", &good)], |caller| {
            caller.certificate = Some(names)
        });
        assert_eq!(both, expected);
    }
    // A wrong key is not made good by a certificate.
    let wrong = stage.ask(&[("x-api-key", &key("z"))], |caller| {
        caller.certificate = Some(&mine)
    });
    assert_eq!(wrong, Err(Reason::UnknownId));
}

#[test]
fn nobody_is_somebody_only_where_the_listener_says_so() {
    let stage = Stage::new();
    let (one, closed, gone) = (
        TenantId::new("one"),
        TenantId::new("closed"),
        TenantId::new("gone"),
    );
    let nobody = |tenant| stage.ask(&[], |caller| caller.anonymous = tenant);
    assert_eq!(nobody(None), Err(Reason::Missing));
    assert_eq!(nobody(Some(&one)), Ok("one/anonymous".to_owned()));
    assert_eq!(nobody(Some(&closed)), Err(Reason::TenantDisabled));
    assert_eq!(nobody(Some(&gone)), Err(Reason::Missing));
    let wrong = key("z");
    let wrong = stage.ask(&[("x-api-key", &wrong)], |caller| {
        caller.anonymous = Some(&one)
    });
    assert_eq!(wrong, Err(Reason::UnknownId));
    let doubtful = [("authorization", "Basic x")];
    let doubtful = stage.ask(&doubtful, |caller| caller.anonymous = Some(&one));
    assert_eq!(doubtful, Err(Reason::Doubtful(Doubt::Scheme)));
    let unknown = names_of(&["spiffe://corp/nobody"]);
    let shown = stage.ask(&[], |caller| {
        caller.certificate = Some(&unknown);
        caller.anonymous = Some(&one);
    });
    assert_eq!(shown, Ok("one/anonymous".to_owned()));
}
