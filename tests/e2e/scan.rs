//! A listener as a scanner from outside sees it: with the default policy there is nothing to find.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;

use crate::support::authority::Authority;
use crate::support::*;

/// What `sslscan` found: its XML, one entry per element, attributes by name.
struct Report(Vec<(String, BTreeMap<String, String>)>);

impl Report {
    fn of(address: SocketAddr) -> Self {
        let output = Command::new("sslscan")
            .args([
                "--xml=-",
                "--no-colour",
                "--show-times",
                "--sni-name=localhost",
            ])
            .arg(address.to_string())
            .output()
            .expect("sslscan is installed by .ci/install test");
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let elements = text.split('<').skip(1).map(|element| {
            let element = element.split(['>']).next().unwrap_or_default();
            let (name, rest) = element.split_once(' ').unwrap_or((element, ""));
            // name="value" pairs; no value of sslscan's has a quote in it.
            let parts: Vec<&str> = rest.split('"').collect();
            let pairs = parts.chunks_exact(2);
            let attributes = pairs.map(|pair| {
                let name = pair[0].trim().trim_end_matches('=');
                (name.to_owned(), pair[1].to_owned())
            });
            (name.to_owned(), attributes.collect())
        });
        Self(elements.collect())
    }

    fn all(&self, element: &str) -> impl Iterator<Item = &BTreeMap<String, String>> {
        let found = self.0.iter().filter(move |(name, _)| name == element);
        found.map(|(_, attributes)| attributes)
    }

    /// One attribute of each such element.
    fn values(&self, element: &str, attribute: &str) -> Vec<&str> {
        let found = self.all(element).map(|attributes| &*attributes[attribute]);
        found.collect()
    }
}

#[test]
fn a_scanner_finds_nothing_to_complain_of_with_the_default_policy() {
    let authority = Authority::new("the servers' authority");
    let (elliptic, rsa) = (
        authority.issue(&["localhost"]),
        authority.issue_rsa(&["localhost"]),
    );
    let emulator = Emulator::quick();
    let listener = |name: &str| {
        let (pem, key) = (format!("{name}.pem"), format!("{name}.key"));
        json!({"tls": {"certificate": pem, "private_key": key}})
    };
    let config = Config::for_emulator(&emulator)
        .set("/server/listeners/-", listener("elliptic"))
        .set("/server/listeners/-", listener("rsa"))
        .file("elliptic.pem", elliptic.pem)
        .file("elliptic.key", elliptic.key)
        .file("rsa.pem", rsa.pem)
        .file("rsa.key", rsa.key);
    let gateway = Gateway::start(config);
    for number in [1, 2] {
        let report = Report::of(gateway.listener(number));
        let enabled: Vec<_> = report
            .all("protocol")
            .filter(|protocol| protocol["enabled"] == "1")
            .map(|protocol| format!("{} {}", protocol["type"], protocol["version"]))
            .collect();
        assert_eq!(enabled, ["tls 1.2", "tls 1.3"]);
        // Not reported at all by a scanner that cannot compress.
        assert!(
            report
                .values("compression", "supported")
                .iter()
                .all(|it| *it == "0")
        );
        assert_eq!(report.values("renegotiation", "supported"), ["0"]);
        assert!(
            report
                .values("heartbleed", "vulnerable")
                .iter()
                .all(|it| *it == "0")
        );
        let ciphers: Vec<_> = report.all("cipher").collect();
        assert!(ciphers.len() >= 5, "{ciphers:?}");
        for cipher in &ciphers {
            let name = &*cipher["cipher"];
            let bits: u32 = cipher["bits"].parse().unwrap();
            assert!(bits >= 128, "{name}");
            // An ephemeral key exchange and a cipher that seals.
            let forward_secret = ["TLS_", "ECDHE-", "DHE-"];
            assert!(
                forward_secret.iter().any(|it| name.starts_with(it)),
                "{name}"
            );
            assert!(
                ["GCM", "CHACHA20"].iter().any(|it| name.contains(it)),
                "{name}"
            );
            assert!(
                !matches!(&*cipher["strength"], "weak" | "null" | "anonymous"),
                "{name}"
            );
        }
        let groups = report.values("group", "bits");
        assert!(!groups.is_empty());
        for bits in groups {
            assert!(bits.parse::<u32>().unwrap() >= 112, "{bits}");
        }
        let signatures = report.values("certificate-signature-algorithm", "name");
        assert!(
            signatures.iter().all(|name| !name.contains("sha1")),
            "{signatures:?}"
        );
    }
    assert!(gateway.is_serving());
}
