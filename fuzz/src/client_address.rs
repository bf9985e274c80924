//! From whose address a request comes, by what proxies say.
//!
//! Input: a byte that chooses the field, then its lines.

use std::net::IpAddr;
use std::sync::LazyLock;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use tidegate::config::networks::{Networks, parse_network};
use tidegate::config::settings::Forwarding;
use tidegate::identity::client_address::{Forged, effective};

static TRUSTED: LazyLock<Networks> = LazyLock::new(|| {
    ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]
        .map(|text| parse_network(text).expect("a network"))
        .into_iter()
        .collect()
});

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn check(data: &[u8]) {
    let (mode, rest) = super::choice(data);
    let (name, field) = if mode & 1 == 0 {
        (
            HeaderName::from_static("x-forwarded-for"),
            Forwarding::XForwardedFor,
        )
    } else {
        (FORWARDED, Forwarding::Forwarded)
    };
    let lines: Vec<&[u8]> = rest.split(|byte| *byte == b'\n').collect();
    let Some(headers) = headers(&name, &lines) else {
        return;
    };
    let stranger = address("::ffff:203.0.113.1");
    assert_eq!(
        effective(stranger, &headers, &TRUSTED, field),
        Ok(stranger.to_canonical()),
        "nobody else is believed"
    );
    if let Ok(found) = effective(address("10.0.0.1"), &headers, &TRUSTED, field) {
        assert_eq!(found, found.to_canonical());
    }
    believed(&name, field, &lines);
}

/// Whatever a client writes, what our proxies add at the right counts, or nothing does.
fn believed(name: &HeaderName, field: Forwarding, lines: &[&[u8]]) {
    let added: &[(&str, &str)] = match field {
        Forwarding::XForwardedFor => &[
            ("198.51.100.4", "198.51.100.4"),
            ("198.51.100.4, 10.1.2.3", "198.51.100.4"),
            ("2a00::4:1", "2a00::4:1"),
        ],
        Forwarding::Forwarded => &[
            ("for=198.51.100.4", "198.51.100.4"),
            ("for=198.51.100.4;proto=https, for=10.1.2.3", "198.51.100.4"),
            ("for=\"[2a00::4:1]:4711\";by=\"_x\"", "2a00::4:1"),
        ],
    };
    for (text, client) in added {
        let own_line = [lines, &[text.as_bytes()]].concat();
        let mut same_line = lines.to_vec();
        let last = same_line.pop().unwrap_or_default();
        let last = [last, b", ", text.as_bytes()].concat();
        same_line.push(&last);
        for lines in [own_line, same_line] {
            let Some(headers) = headers(name, &lines) else {
                continue;
            };
            match effective(address("10.0.0.1"), &headers, &TRUSTED, field) {
                Ok(found) => assert_eq!(found, address(client), "{headers:?}"),
                Err(Forged::TooLong) => {}
                Err(Forged::Unreadable) => assert_eq!(field, Forwarding::Forwarded),
            }
        }
    }
}

fn headers(name: &HeaderName, lines: &[&[u8]]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(name, HeaderValue::from_bytes(line).ok()?);
    }
    Some(headers)
}
