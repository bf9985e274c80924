//! Is this request head clean enough to act on?
//!
//! Decides from the head alone, before anything costs: sizes, framing, Host. Pingora's parser has
//! accepted the head by now; what it lets through that an edge should not is refused here
//! (RFC 9112 §§2.2, 3.2, 6.1–6.3; RFC 9113 §8). Whatever leaves doubt about where the next request
//! starts closes the connection.

use http::header::{self, HeaderMap};
use http::{Method, Version};

use super::refusal::{Code, Refusal};

/// What the decision needs; borrowed from the session.
#[derive(Debug)]
pub struct Head<'a> {
    pub method: &'a Method,
    pub version: Version,
    /// The request target as sent.
    pub target: &'a [u8],
    pub headers: &'a HeaderMap,
    /// The head's bytes as sent; `None` for HTTP/2.
    pub raw: Option<&'a [u8]>,
}

/// The caps that [`check`] applies.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    pub max_head: usize,
    pub max_fields: usize,
    pub max_target: usize,
}

/// How the body's end is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    /// Exactly this many bytes.
    Length(u64),
    /// HTTP/1.1 chunked, or HTTP/2 without a length.
    Open,
}

/// Checks the head and tells how its body is framed.
///
/// # Errors
/// 400, 414, 415, 417, 431 or 501; with [`Refusal::close`] where framing is in doubt.
pub fn check(head: &Head<'_>, limits: HeadLimits) -> Result<Framing, Refusal> {
    sizes(head, limits)?;
    if let Some(raw) = head.raw {
        raw_bytes(raw, head.headers)?;
    }
    host(head)?;
    let framing = framing(head)?;
    coding(head.headers)?;
    Ok(framing)
}

fn sizes(head: &Head<'_>, limits: HeadLimits) -> Result<(), Refusal> {
    if head.target.len() > limits.max_target {
        return Err(Refusal::closing(
            Code::TargetTooLong,
            format!(
                "The request target is longer than {} bytes.",
                limits.max_target
            ),
        ));
    }
    if head.headers.len() > limits.max_fields {
        return Err(Refusal::closing(
            Code::HeadTooLarge,
            format!(
                "The request has more than {} header fields.",
                limits.max_fields
            ),
        ));
    }
    // RFC 9113 §6.5.2 counts 32 bytes of overhead per field; the same sum serves HTTP/1.
    let size = head.raw.map_or_else(
        || {
            head.headers
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len() + 32)
                .sum()
        },
        <[u8]>::len,
    );
    if size > limits.max_head {
        return Err(Refusal::closing(
            Code::HeadTooLarge,
            format!("The request head is larger than {} bytes.", limits.max_head),
        ));
    }
    Ok(())
}

/// What only the bytes as sent can show: bare line feeds, and a length that Pingora has dropped
/// from the headers because a transfer coding stood beside it.
fn raw_bytes(raw: &[u8], headers: &HeaderMap) -> Result<(), Refusal> {
    let bare = memchr::memchr_iter(b'\n', raw).any(|at| at == 0 || raw.get(at - 1) != Some(&b'\r'));
    if bare {
        return Err(Refusal::closing(
            Code::BadRequest,
            "Lines of the request head must end with CR LF.",
        ));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && names_length(raw) {
        return Err(Refusal::closing(
            Code::BadRequest,
            "A request with both Content-Length and Transfer-Encoding is refused; send one of them.",
        ));
    }
    Ok(())
}

fn names_length(raw: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    memchr::memchr_iter(b'\n', raw).any(|at| {
        let line = raw.get(at + 1..).unwrap_or_default();
        line.get(..NAME.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(NAME))
    })
}

fn host(head: &Head<'_>) -> Result<(), Refusal> {
    if head.version == Version::HTTP_11 && head.headers.get_all(header::HOST).iter().count() != 1 {
        return Err(Refusal::closing(
            Code::BadRequest,
            "An HTTP/1.1 request carries exactly one Host header.",
        ));
    }
    Ok(())
}

fn framing(head: &Head<'_>) -> Result<Framing, Refusal> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if codings.next().is_some() || (coding.is_some() && head.version != Version::HTTP_11) {
        return Err(Refusal::closing(
            Code::BadRequest,
            "Transfer-Encoding must appear once, in HTTP/1.1 only.",
        ));
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Refusal::closing(
            Code::BadRequest,
            "Content-Length must appear once.",
        ));
    }
    match (coding, length) {
        (Some(coding), _) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Ok(Framing::Open)
        }
        (Some(_), _) => Err(Refusal::closing(
            Code::UnsupportedFraming,
            "The only transfer coding taken here is \"chunked\".",
        )),
        (None, Some(length)) => digits(length.as_bytes()).map(|length| match length {
            0 => Framing::None,
            length => Framing::Length(length),
        }),
        // HTTP/2 ends a stream by a flag (RFC 9113 §8.1); HTTP/1 without either has no body.
        (None, None) if head.version == Version::HTTP_2 => Ok(Framing::Open),
        (None, None) => Ok(Framing::None),
    }
}

/// Digits only: no sign, no list, nothing that two parsers could read differently.
fn digits(value: &[u8]) -> Result<u64, Refusal> {
    let refuse = || {
        Refusal::closing(
            Code::BadRequest,
            "Content-Length must be one decimal number.",
        )
    };
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(refuse());
    }
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(refuse)
}

/// Codings and expectations that would hide the body from us.
fn coding(headers: &HeaderMap) -> Result<(), Refusal> {
    let compressed = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if compressed {
        return Err(Refusal::closing(
            Code::UnsupportedEncoding,
            "Compressed request bodies are not taken; send plain JSON.",
        ));
    }
    let unmet = headers
        .get_all(header::EXPECT)
        .iter()
        .any(|expect| !expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if unmet {
        return Err(Refusal::closing(
            Code::ExpectationFailed,
            "The only expectation met here is \"100-continue\".",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        max_head: 65_536,
        max_fields: 100,
        max_target: 8_192,
    };

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, value.parse().unwrap());
        }
        map
    }

    fn verdict(
        version: Version,
        fields: &[(&str, &str)],
        raw: Option<&[u8]>,
    ) -> Result<Framing, Refusal> {
        let headers = headers(fields);
        let head = Head {
            method: &Method::POST,
            version,
            target: b"/v1/chat/completions",
            headers: &headers,
            raw,
        };
        check(&head, LIMITS)
    }

    fn h1(fields: &[(&str, &str)]) -> Result<Framing, Refusal> {
        let fields: Vec<_> = std::iter::once(("host", "h"))
            .chain(fields.iter().copied())
            .collect();
        verdict(Version::HTTP_11, &fields, None)
    }

    #[test]
    fn each_clean_framing_is_told_apart() {
        assert_eq!(
            h1(&[("content-length", "12")]).unwrap(),
            Framing::Length(12)
        );
        assert_eq!(h1(&[("content-length", "0")]).unwrap(), Framing::None);
        assert_eq!(
            h1(&[("transfer-encoding", "Chunked")]).unwrap(),
            Framing::Open
        );
        assert_eq!(h1(&[]).unwrap(), Framing::None);
        assert_eq!(verdict(Version::HTTP_2, &[], None).unwrap(), Framing::Open);
    }

    #[test]
    fn doubtful_framing_is_refused_and_closes() {
        for fields in [
            &[("content-length", "1"), ("content-length", "1")][..],
            &[("content-length", "1, 1")],
            &[("content-length", "+1")],
            &[("content-length", "-1")],
            &[("content-length", " 1")],
            &[("content-length", "0x1")],
            &[("content-length", "9223372036854775808")],
            &[("transfer-encoding", "chunked, chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            &[("transfer-encoding", "identity")],
        ] {
            let refusal = h1(fields).unwrap_err();
            assert!(refusal.close, "{fields:?}");
        }
        assert!(
            verdict(Version::HTTP_10, &[("transfer-encoding", "chunked")], None)
                .unwrap_err()
                .close
        );
    }

    #[test]
    fn a_length_dropped_by_the_parser_is_found_in_the_raw_head() {
        let raw = b"POST / HTTP/1.1\r\nHost: h\r\nCONTENT-length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        let refusal = verdict(
            Version::HTTP_11,
            &[("host", "h"), ("transfer-encoding", "chunked")],
            Some(raw),
        )
        .unwrap_err();
        assert!(refusal.close && refusal.message.contains("both"));
    }

    #[test]
    fn a_bare_line_feed_is_refused() {
        let raw = b"GET / HTTP/1.1\nHost: h\r\n\r\n";
        assert!(
            verdict(Version::HTTP_11, &[("host", "h")], Some(raw))
                .unwrap_err()
                .close
        );
    }

    #[test]
    fn http_1_1_needs_exactly_one_host() {
        assert!(verdict(Version::HTTP_11, &[], None).is_err());
        assert!(verdict(Version::HTTP_11, &[("host", "a"), ("host", "a")], None).is_err());
        assert!(verdict(Version::HTTP_10, &[], None).is_ok());
    }

    #[test]
    fn sizes_are_capped_each_with_its_own_status() {
        let headers = headers(&[("host", "h")]);
        let long = vec![b'a'; 8_193];
        let head = |target, raw| Head {
            method: &Method::GET,
            version: Version::HTTP_11,
            target,
            headers: &headers,
            raw,
        };
        assert_eq!(
            check(&head(&long, None), LIMITS).unwrap_err().code,
            Code::TargetTooLong
        );
        let big = vec![b'a'; 65_537];
        assert_eq!(
            check(&head(b"/", Some(&big)), LIMITS).unwrap_err().code,
            Code::HeadTooLarge
        );
        let many: Vec<_> = (0..101).map(|i| (format!("x-{i}"), "v")).collect();
        let many: Vec<_> = many.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(h1(&many).unwrap_err().code, Code::HeadTooLarge);
    }

    #[test]
    fn compressed_bodies_and_unknown_expectations_are_refused() {
        assert_eq!(
            h1(&[("content-encoding", "gzip")]).unwrap_err().code,
            Code::UnsupportedEncoding
        );
        assert!(h1(&[("content-encoding", "identity")]).is_ok());
        assert_eq!(
            h1(&[("expect", "200-ok")]).unwrap_err().code,
            Code::ExpectationFailed
        );
        assert!(h1(&[("expect", "100-Continue")]).is_ok());
    }
}
