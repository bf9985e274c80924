//! What it costs to know a caller: each kind of proof among 10 and among 10,000 tenants, and what
//! surrounds it: the client's address, the memory of failed attempts, the PROXY protocol's header.
//! None of it may grow with the number of tenants.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a bench may stop loudly; it is no interface"
)]

mod tenants;
mod tokens;

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use tidegate::config::networks::{Networks, parse_network};
use tidegate::config::settings::{Accepted, Forwarding, Settings};
use tidegate::downstream::proxy_protocol;
use tidegate::gateway::guessing::Guessing;
use tidegate::identity::certificate::CertificateNames;
use tidegate::identity::directory::{Caller, Directory};
use tidegate::identity::reason::Reason;
use tidegate::identity::signed_request::canonical::Target;
use tidegate::identity::signed_request::{self, body};
use tidegate::identity::standing::Standing;
use tidegate::identity::token::KeySet;
use tidegate::identity::{api_key, client_address, credential};

use tenants::{KEY, PEPPERED, SIGNER};
use tokens::{ALGORITHMS, Issuers};

const SIZES: [u32; 2] = [10, 10_000];
const NOW: i64 = 1_767_225_600;
const TARGET: Target<'_> = Target {
    method: "POST",
    path: "/v1/chat/completions",
    query: "",
};

/// A directory, and what it remembers.
struct Place {
    directory: Directory,
    standing: Arc<Standing>,
    settings: Settings,
}

impl Place {
    fn of(count: u32, issuers: &Issuers) -> Self {
        let settings = tenants::settings(count, issuers);
        let standing = Arc::new(Standing::new(&settings.identity.signed_requests));
        let directory = Directory::new(&settings, standing.clone()).unwrap();
        Self {
            directory,
            standing,
            settings,
        }
    }

    /// Somebody in the middle.
    fn somebody(&self) -> u32 {
        u32::try_from(self.settings.tenants.len() / 2).unwrap()
    }

    fn ask(
        &self,
        headers: &HeaderMap,
        certificate: Option<&CertificateNames>,
        now: i64,
    ) -> Result<(), Reason> {
        let caller = Caller {
            headers: black_box(headers),
            target: TARGET,
            certificate,
            address: IpAddr::from([203, 0, 113, 7]),
            accept: Accepted::ALL,
            anonymous: None,
            now,
        };
        self.directory.identify(&caller).map(drop)
    }

    /// What was verified counts no longer.
    fn forget_tokens(&self) {
        let source = self.standing.source(&self.settings.identity.tokens[0]);
        source.replace(KeySet::from_secret(&[7; 32]).unwrap());
    }
}

/// A head as an SDK sends it, with the credential in its place.
fn head(credential: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "gateway.internal"),
        ("user-agent", "OpenAI/Python 2.8.1"),
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("content-length", "1024"),
        ("x-stainless-lang", "python"),
    ] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    headers.insert(AUTHORIZATION, HeaderValue::from_str(credential).unwrap());
    headers
}

fn bearer(credential: &str) -> HeaderMap {
    head(&format!("Bearer {credential}"))
}

fn identify(c: &mut Criterion) {
    let issuers = Issuers::new();
    for size in SIZES {
        let place = Place::of(size, &issuers);
        keys(c, &place, size);
        verified_tokens(c, &place, &issuers, size);
        new_tokens(c, &place, &issuers, size);
        signed_requests(c, &place, size);
        certificates(c, &place, size);
    }
}

fn keys(c: &mut Criterion, place: &Place, size: u32) {
    let mut group = c.benchmark_group("api key");
    let somebody = place.somebody();
    let wrong = api_key::make(&format!("{KEY}{somebody}"), &[0xee; 32]);
    let cases = [
        ("SHA-256", tenants::key(KEY, somebody), true),
        ("peppered", tenants::key(PEPPERED, somebody), true),
        ("unknown", tenants::key("nobody", somebody), false),
        ("wrong secret", wrong, false),
    ];
    for (name, key, good) in cases {
        let headers = bearer(key.key.expose());
        assert_eq!(place.ask(&headers, None, NOW).is_ok(), good, "{name}");
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.iter(|| place.ask(&headers, None, NOW));
        });
    }
    let foreign = bearer("sk-0123456789abcdef0123456789abcdef");
    group.bench_function(BenchmarkId::new("foreign", size), |b| {
        b.iter(|| place.ask(&foreign, None, NOW));
    });
}

fn verified_tokens(c: &mut Criterion, place: &Place, issuers: &Issuers, size: u32) {
    let mut group = c.benchmark_group("token seen before");
    let token = issuers.token(ALGORITHMS[1], &tenants::name(place.somebody()), NOW);
    assert!((780..820).contains(&token.len()), "{}", token.len());
    let headers = bearer(&token);
    assert_eq!(place.ask(&headers, None, NOW), Ok(()));
    group.bench_function(BenchmarkId::new("RS256", size), |b| {
        b.iter(|| place.ask(&headers, None, NOW));
    });
}

fn new_tokens(c: &mut Criterion, place: &Place, issuers: &Issuers, size: u32) {
    let mut group = c.benchmark_group("new token");
    for algorithm in ALGORITHMS {
        let token = issuers.token(algorithm, &tenants::name(place.somebody()), NOW);
        let headers = bearer(&token);
        let name = tokens::word(algorithm);
        assert_eq!(place.ask(&headers, None, NOW), Ok(()), "{name}");
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.iter_batched(
                || place.forget_tokens(),
                |()| place.ask(&headers, None, NOW),
                BatchSize::PerIteration,
            );
        });
    }
}

/// Three hundred in a second under one key: some 99,000 nonces are remembered.
fn signed_requests(c: &mut Criterion, place: &Place, size: u32) {
    const IN_A_SECOND: i64 = 300;
    let mut group = c.benchmark_group("signed request");
    let id = format!("{SIGNER}{}", place.somebody());
    let secret = tenants::signing_secret(place.somebody());
    let digest = body::digest(b"{}");
    let mut count: i64 = 0;
    let mut next = || {
        count += 1;
        let now = NOW + count / IN_A_SECOND;
        let nonce = signed_request::nonce(&u128::try_from(count).unwrap().to_be_bytes());
        let value = signed_request::sign(
            &id,
            secret.expose().as_bytes(),
            TARGET,
            now,
            &nonce,
            &digest,
        );
        (head(&value.unwrap()), now)
    };
    let (headers, now) = next();
    assert_eq!(place.ask(&headers, None, now), Ok(()));
    group.bench_function(BenchmarkId::new("fresh nonce", size), |b| {
        b.iter_batched(
            &mut next,
            |(headers, now)| place.ask(&headers, None, now),
            BatchSize::SmallInput,
        );
    });
    let (forged, now) = next();
    let value = forged[AUTHORIZATION]
        .to_str()
        .unwrap()
        .replace("signature=", "signature=0");
    let forged = head(&value[..value.len() - 1]);
    assert!(place.ask(&forged, None, now).is_err());
    group.bench_function(BenchmarkId::new("forged", size), |b| {
        b.iter(|| place.ask(&forged, None, now));
    });
}

fn certificates(c: &mut Criterion, place: &Place, size: u32) {
    let mut group = c.benchmark_group("client certificate");
    let names = tenants::certificate(place.somebody());
    let mut headers = head("Bearer x");
    headers.remove(AUTHORIZATION);
    assert_eq!(place.ask(&headers, Some(&names), NOW), Ok(()));
    group.bench_function(BenchmarkId::new("SAN URI", size), |b| {
        b.iter(|| place.ask(&headers, Some(&names), NOW));
    });
}

fn extract(c: &mut Criterion) {
    let mut group = c.benchmark_group("extract");
    let key = bearer(tenants::key(KEY, 1).key.expose());
    let token = bearer(&Issuers::new().token(ALGORITHMS[1], "tenant", NOW));
    for (name, headers) in [("key", key), ("token", token)] {
        group.bench_function(name, |b| {
            b.iter(|| credential::extract(black_box(&headers)).is_ok());
        });
    }
}

fn guessing(c: &mut Criterion) {
    let mut group = c.benchmark_group("guessing");
    let guessing = Guessing::new();
    let address = IpAddr::from([203, 0, 113, 7]);
    guessing.succeeded(address, 7);
    guessing.failed(address);
    group.bench_function("known", |b| {
        b.iter(|| guessing.known(black_box(address), 7));
    });
    group.bench_function("succeeded", |b| {
        b.iter(|| guessing.succeeded(black_box(address), 7));
    });
    group.bench_function("is_throttled", |b| {
        b.iter(|| guessing.is_throttled(black_box(address), 60));
    });
    group.bench_function("failed", |b| {
        b.iter(|| guessing.failed(black_box(address)));
    });
}

fn addresses(c: &mut Criterion) {
    let mut group = c.benchmark_group("client address");
    let trusted: Networks = ["10.0.0.0/8", "192.168.0.0/16", "2001:db8::/32"]
        .map(|text| parse_network(text).unwrap())
        .into_iter()
        .collect();
    let (stranger, proxy) = (IpAddr::from([203, 0, 113, 7]), IpAddr::from([10, 0, 0, 1]));
    let mut headers = bearer("x");
    headers.insert(
        "x-forwarded-for",
        HeaderValue::from_static("203.0.113.9, 10.0.0.2"),
    );
    let forwarded = "for=203.0.113.9;proto=https, for=10.0.0.2";
    headers.insert("forwarded", HeaderValue::from_static(forwarded));
    for (name, peer, field) in [
        ("untrusted peer", stranger, Forwarding::XForwardedFor),
        (
            "X-Forwarded-For, two hops",
            proxy,
            Forwarding::XForwardedFor,
        ),
        ("Forwarded, two hops", proxy, Forwarding::Forwarded),
    ] {
        assert!(client_address::effective(peer, &headers, &trusted, field).is_ok());
        group.bench_function(name, |b| {
            b.iter(|| client_address::effective(black_box(peer), &headers, &trusted, field));
        });
    }
}

fn proxy_header(c: &mut Criterion) {
    let mut group = c.benchmark_group("PROXY header");
    let line = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n".as_slice();
    let block = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(),
        &[203, 0, 113, 7, 192, 0, 2, 1, 0xdc, 4, 1, 0xbb],
    ]
    .concat();
    for (name, header) in [("version 1", line), ("version 2", &block)] {
        let parsed = proxy_protocol::parse(header);
        assert!(matches!(parsed, proxy_protocol::Parsed::Header { .. }));
        group.bench_function(name, |b| {
            b.iter(|| proxy_protocol::parse(black_box(header)));
        });
    }
}

criterion_group!(
    benches,
    identify,
    extract,
    guessing,
    addresses,
    proxy_header
);
criterion_main!(benches);
