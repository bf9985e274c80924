//! Request heads: whether a head is clean enough, how its body ends, and which entry it asks for.
//!
//! Input: a byte that chooses the version, then a head as it is sent.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use tidegate::config::settings::Dialect;
use tidegate::request::head::{self, Framing, Head, HeadLimits};
use tidegate::request::refusal::Family;
use tidegate::request::surface;

const LIMITS: HeadLimits = HeadLimits {
    max_head: 2_000,
    max_fields: 20,
    max_target: 500,
};

pub fn check(data: &[u8]) {
    let (mode, raw) = super::choice(data);
    let version = match mode % 3 {
        0 => Version::HTTP_11,
        1 => Version::HTTP_10,
        _ => Version::HTTP_2,
    };
    let mut lines = raw.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let mut start = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
    let method = Method::from_bytes(start.next().unwrap_or_default());
    let (Ok(method), Some(target)) = (method, start.next()) else {
        return;
    };
    classified(&method, target);
    let Some(fields) = lines
        .take_while(|line| !line.is_empty())
        .map(field)
        .collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &fields {
        headers.append(name, value.clone());
    }
    // As Pingora has it: beside a transfer coding the length is gone.
    if headers.contains_key(header::TRANSFER_ENCODING) && version != Version::HTTP_2 {
        headers.remove(header::CONTENT_LENGTH);
    }
    let head = Head {
        method: &method,
        version,
        target,
        headers: &headers,
        raw: (version != Version::HTTP_2).then_some(raw),
    };
    match head::check(&head, LIMITS) {
        Ok(framing) => {
            assert!(raw.len() <= LIMITS.max_head || version == Version::HTTP_2);
            assert!(target.len() <= LIMITS.max_target && headers.len() <= LIMITS.max_fields);
            framed(framing, version, &fields);
        }
        Err(refusal) => assert!(refusal.status().is_client_error() || refusal.close),
    }
}

fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
    Some((name, value))
}

/// Nobody else can find another end of the body than we do.
fn framed(framing: Framing, version: Version, fields: &[(HeaderName, HeaderValue)]) {
    let all = |name: HeaderName| {
        let own = fields.iter().filter(move |(other, _)| *other == name);
        own.map(|(_, value)| value.as_bytes()).collect::<Vec<_>>()
    };
    let lengths = all(header::CONTENT_LENGTH);
    let codings = all(header::TRANSFER_ENCODING);
    match framing {
        Framing::Open if version == Version::HTTP_2 => {
            assert!(lengths.is_empty() && codings.is_empty());
        }
        Framing::Open => {
            assert_eq!(version, Version::HTTP_11);
            assert!(lengths.is_empty());
            assert!(matches!(codings[..], [one] if one.eq_ignore_ascii_case(b"chunked")));
        }
        Framing::Length(length) => {
            assert!(codings.is_empty());
            let [text] = lengths[..] else {
                panic!("{lengths:?}");
            };
            assert_eq!(
                std::str::from_utf8(text)
                    .ok()
                    .and_then(|text| text.parse().ok()),
                Some(length)
            );
        }
        Framing::None => {
            assert!(codings.is_empty());
            assert!(
                lengths.is_empty() || lengths.iter().all(|text| text.iter().all(|b| *b == b'0'))
            );
        }
    }
    if version == Version::HTTP_11 {
        assert_eq!(all(header::HOST).len(), 1);
    }
}

/// No odd byte of a target travels on.
fn classified(method: &Method, target: &[u8]) {
    match surface::classify(method, target) {
        Ok(entry) => {
            for dialect in [Dialect::DeepSeek, Dialect::OpenAi] {
                let path = entry.surface.upstream_path(dialect);
                assert!(path.starts_with('/') && !path.contains(".."));
                let odd = |b: u8| !b.is_ascii_graphic() || b"%#\\".contains(&b);
                assert!(!path.bytes().any(odd), "{path}");
            }
        }
        Err(refusal) => {
            let body = refusal.body(Family::OpenAi, "id");
            assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok());
        }
    }
}
