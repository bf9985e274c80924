//! Reads the base URL of an endpoint: less than RFC 3986 allows, since each thing left out (user
//! names, queries, fragments, escapes) is a way to mean something else than what is read here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::settings::Endpoint;

/// What a URL must look like, for a person.
pub const FORM: &str = "expected http:// or https://, a host, and if needed a port and a path";

/// Why a URL is refused. None carries the URL: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("a URL without http:// or https://")]
    Scheme,
    #[error("a URL with a user name or password (not shown); keys belong to `accounts`")]
    UserInfo,
    #[error("a URL with a query or fragment")]
    Query,
    #[error("a URL whose host is neither a name nor an IP address")]
    Host,
    #[error("a URL whose port is not 1 to 65535")]
    Port,
    #[error("a URL whose path is not plain")]
    Path,
}

/// Reads `text`; priority and weight are left at 0 and 1.
pub fn parse(text: &str) -> Result<Endpoint, UrlError> {
    let lower = |prefix: &str| {
        text.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let (tls, scheme) = match () {
        () if lower("https://") => (true, "https://"),
        () if lower("http://") => (false, "http://"),
        () => return Err(UrlError::Scheme),
    };
    let rest = text.get(scheme.len()..).unwrap_or_default();
    if rest.contains(['?', '#']) {
        return Err(UrlError::Query);
    }
    let slash = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(slash).ok_or(UrlError::Host)?;
    if rest.contains('@') {
        return Err(UrlError::UserInfo);
    }
    let (host, port) = host_and_port(authority)?;
    let base_path = path.strip_suffix('/').unwrap_or(path);
    if !base_path.is_empty() && !is_path(base_path) {
        return Err(UrlError::Path);
    }
    let usual = if tls { 443 } else { 80 };
    Ok(Endpoint {
        url: text.strip_suffix('/').unwrap_or(text).to_owned(),
        tls,
        host: host.to_ascii_lowercase(),
        port: port.unwrap_or(usual),
        base_path: base_path.to_owned(),
        priority: 0,
        weight: 1,
        max_concurrent: None,
    })
}

/// The host, without brackets, and the port if there is one.
pub fn host_and_port(authority: &str) -> Result<(&str, Option<u16>), UrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let (address, after) = inner.split_once(']').ok_or(UrlError::Host)?;
            address.parse::<Ipv6Addr>().map_err(|_| UrlError::Host)?;
            let port = if after.is_empty() {
                None
            } else {
                Some(after.strip_prefix(':').ok_or(UrlError::Port)?)
            };
            (address, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if !host.contains(':') && !is_host(host) {
        return Err(UrlError::Host);
    }
    let port = port.map(|port| {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        port.parse::<u16>()
            .ok()
            .filter(|port| digits && *port != 0)
            .ok_or(UrlError::Port)
    });
    Ok((host, port.transpose()?))
}

/// A host name (RFC 1123, with the underscore that container networks use) or an IPv4 address.
pub fn is_host(host: &str) -> bool {
    if host.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        let allowed = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (1..=63).contains(&label.len())
            && allowed
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What ends in a number is an address to some resolvers (WHATWG URL, "ends in a number").
    let number = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x"));
    name.len() <= 253 && !number && name.split('.').all(label)
}

/// A path that begins with `/` and that no server will read in two ways: no escapes, no empty
/// segments, no dots as segments.
pub fn is_path(path: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,;=/".contains(&b);
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    path.len() <= 1024
        && path.bytes().all(allowed)
        && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Is `host` sure to be this machine or in a network of the operator's own? Names without a dot and
/// names below the endings that are reserved for that (RFC 6761, RFC 6762, ICANN's `.internal`,
/// Kubernetes' `.svc`) are taken as such.
pub fn is_private(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => is_private_v4(ip),
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(ip) => is_private_v4(ip),
            None => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        },
        Err(_) => {
            let name = host.strip_suffix('.').unwrap_or(host);
            let endings = [
                ".localhost",
                ".local",
                ".internal",
                ".svc",
                ".svc.cluster.local",
                ".test",
            ];
            !name.contains('.') || endings.iter().any(|ending| name.ends_with(ending))
        }
    }
}

/// This machine itself.
pub fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host == "localhost",
    }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let shared = matches!(ip.octets(), [100, 64..=127, ..]); // RFC 6598
    ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_comes_apart_into_what_a_connection_needs() {
        for (text, tls, host, port, path) in [
            (
                "https://api.deepseek.com",
                true,
                "api.deepseek.com",
                443,
                "",
            ),
            (
                "https://API.DeepSeek.com/",
                true,
                "api.deepseek.com",
                443,
                "",
            ),
            ("http://127.0.0.1:8000/v1/", false, "127.0.0.1", 8000, "/v1"),
            ("HTTPS://[::1]:8443/a/b", true, "::1", 8443, "/a/b"),
            ("http://vllm_1:80", false, "vllm_1", 80, ""),
        ] {
            let found = parse(text).unwrap();
            assert_eq!(
                (
                    found.tls,
                    found.host.as_str(),
                    found.port,
                    found.base_path.as_str()
                ),
                (tls, host, port, path),
                "{text}"
            );
        }
        assert_eq!(parse("https://a.b/").unwrap().url, "https://a.b");
    }

    #[test]
    fn anything_that_could_mean_something_else_is_refused() {
        for (text, why) in [
            ("api.deepseek.com", UrlError::Scheme),
            ("ftp://a", UrlError::Scheme),
            ("https://u:p@a", UrlError::UserInfo),
            ("https://a/?k=v", UrlError::Query),
            ("https://a#b", UrlError::Query),
            ("https://", UrlError::Host),
            ("https:///v1", UrlError::Host),
            ("https://a b", UrlError::Host),
            ("https://1.2.3", UrlError::Host),
            ("https://0x7f", UrlError::Host),
            ("https://[::1", UrlError::Host),
            ("https://::1", UrlError::Host),
            ("https://a:0", UrlError::Port),
            ("https://a:99999", UrlError::Port),
            ("https://a:+80", UrlError::Port),
            ("https://a:", UrlError::Port),
            ("https://a/%2e", UrlError::Path),
            ("https://a/../b", UrlError::Path),
            ("https://a//b", UrlError::Path),
            ("https://-a", UrlError::Host),
            ("https://a/b@c", UrlError::UserInfo),
            ("https://é", UrlError::Host),
        ] {
            assert_eq!(parse(text).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn only_hosts_of_ones_own_are_private() {
        for host in [
            "localhost",
            "vllm",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "127.9.9.9",
            "::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "a.internal",
            "a.ns.svc",
            "100.64.0.1",
        ] {
            assert!(is_private(host), "{host}");
        }
        for host in [
            "api.deepseek.com",
            "8.8.8.8",
            "2001:db8::1",
            "::ffff:8.8.8.8",
            "172.32.0.1",
            "internal.com",
            "100.128.0.1",
        ] {
            assert!(!is_private(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(https?://)?.*") {
            let _ = parse(&text);
        }
    }
}
