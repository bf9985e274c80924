//! What of a request and of an answer crosses the gateway.
//!
//! Both heads are built anew from parts chosen here, never by stripping what came: a field that is
//! not named in this file does not exist on the other side. So no credential, cookie, forwarded,
//! hop-by-hop, `x-stainless-*` or identity field of a client can reach an upstream, and no cookie,
//! server or account field of an upstream can reach a tenant.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use jiff::Timestamp;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType, Result};

use super::refusal::{Family, Refusal};

/// Request fields that travel as sent.
const REQUEST_FIELDS: [HeaderName; 3] = [
    header::ACCEPT,
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
];

/// Answer fields that travel as sent, besides the body's framing.
const ANSWER_FIELDS: [HeaderName; 3] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
];

/// The id a caller can quote; on every answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same for Anthropic's SDKs.
pub const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// Overrides the SDKs' own rule on retries.
pub const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// DeepSeek's own id of a call; logged, never passed on.
pub const UPSTREAM_TRACE: HeaderName = HeaderName::from_static("x-ds-trace-id");

/// The body's length as the upstream shall see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    None,
    Known(u64),
    /// Chunked on HTTP/1.1.
    Unknown,
}

/// Everything a request to an upstream is made of.
#[derive(Debug)]
pub struct Outgoing<'a> {
    pub method: Method,
    pub path: &'a str,
    /// `host` or `host:port`.
    pub authority: &'a HeaderValue,
    /// Fields that carry the account's credential.
    pub credential: &'a [(HeaderName, HeaderValue)],
    pub length: Length,
    /// `None` takes the client's content type (multipart uploads carry a boundary in it).
    pub content_type: Option<HeaderValue>,
    pub request_id: &'a HeaderValue,
}

/// Builds the upstream's request head.
///
/// # Errors
/// Only if the path is not a valid target, which [`super::surface`] rules out.
pub fn request_head(
    version: Version,
    client: &HeaderMap,
    outgoing: &Outgoing<'_>,
) -> Result<RequestHeader> {
    let mut head =
        RequestHeader::build_no_case(outgoing.method.clone(), outgoing.path.as_bytes(), Some(10))?;
    head.set_version(version);
    head.insert_header(header::HOST, outgoing.authority)?;
    for (name, value) in outgoing.credential {
        head.insert_header(name, value)?;
    }
    let content_type = outgoing
        .content_type
        .as_ref()
        .or_else(|| client.get(header::CONTENT_TYPE));
    match (outgoing.length, content_type) {
        (Length::None, _) | (_, None) => {}
        (_, Some(value)) => head.insert_header(header::CONTENT_TYPE, value)?,
    }
    match outgoing.length {
        Length::Known(length) => {
            head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?
        }
        Length::Unknown if version == Version::HTTP_11 => {
            head.insert_header(header::TRANSFER_ENCODING, "chunked")?
        }
        Length::Unknown | Length::None => {}
    }
    for name in &REQUEST_FIELDS {
        if let Some(value) = client.get(name) {
            head.insert_header(name, value)?;
        }
    }
    head.insert_header(REQUEST_ID, outgoing.request_id)?;
    Ok(head)
}

/// Builds the tenant's answer head from the upstream's. `length` keeps a declared length; a body
/// that may be edited loses it.
///
/// # Errors
/// Never for a head that Pingora has parsed.
pub fn answer_head(
    upstream: &ResponseHeader,
    family: Family,
    request_id: &HeaderValue,
    keep_length: bool,
) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(upstream.status, Some(8))?;
    head.set_version(upstream.version);
    for name in &ANSWER_FIELDS {
        if let Some(value) = upstream.headers.get(name) {
            head.insert_header(name, value)?;
        }
    }
    let bodiless = upstream.status == StatusCode::NO_CONTENT;
    let length = upstream
        .headers
        .get(header::CONTENT_LENGTH)
        .filter(|_| keep_length && !bodiless);
    match length {
        Some(length) => head.insert_header(header::CONTENT_LENGTH, length)?,
        None if bodiless => {}
        None => head.insert_header(header::TRANSFER_ENCODING, "chunked")?,
    }
    identify(&mut head, family, request_id)?;
    Ok(head)
}

/// Builds the head of an answer of our own with a JSON body of `length` bytes.
///
/// # Errors
/// Never for a valid status.
pub fn own_head(
    status: StatusCode,
    family: Family,
    request_id: &HeaderValue,
    length: usize,
) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(status, Some(8))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    identify(&mut head, family, request_id)?;
    Ok(head)
}

/// Builds the head of a stream of events whose end is not known yet.
///
/// # Errors
/// Never.
pub fn stream_head(family: Family, request_id: &HeaderValue) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(StatusCode::OK, Some(8))?;
    head.insert_header(header::CONTENT_TYPE, "text/event-stream")?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    identify(&mut head, family, request_id)?;
    Ok(head)
}

/// Adds what a refusal says in its head.
///
/// # Errors
/// Never for a valid refusal.
pub fn refusal_head(
    refusal: &Refusal,
    family: Family,
    request_id: &HeaderValue,
    length: usize,
) -> Result<ResponseHeader> {
    let mut head = own_head(refusal.status(), family, request_id, length)?;
    if let Some(seconds) = refusal.retry_after_seconds() {
        head.insert_header(header::RETRY_AFTER, HeaderValue::from(seconds))?;
    }
    if let Some(limit) = &refusal.limit {
        limit.rate.put(&mut head, family, Timestamp::now())?;
    }
    if !refusal.code.may_retry() {
        head.insert_header(SHOULD_RETRY, "false")?;
    }
    if refusal.status() == StatusCode::UNAUTHORIZED {
        // RFC 9110 §15.5.2: a 401 names the scheme that would do.
        head.insert_header(header::WWW_AUTHENTICATE, "Bearer")?;
    }
    Ok(head)
}

fn identify(head: &mut ResponseHeader, family: Family, request_id: &HeaderValue) -> Result<()> {
    head.insert_header(REQUEST_ID, request_id)?;
    if family == Family::Anthropic {
        head.insert_header(ANTHROPIC_REQUEST_ID, request_id)?;
    }
    Ok(())
}

/// An informational answer: we never send `Expect` or `Upgrade`, so each of them is unasked
/// (RFC 9110 §15.2), and a flood of them would pass every clock.
pub fn is_unasked(status: StatusCode) -> bool {
    status.is_informational()
}

/// Is the body's end told in one clear way? A list of lengths, or a length beside a transfer
/// coding, reads differently to different parsers (RFC 9112 §6.3).
pub fn is_framed_clearly(head: &ResponseHeader) -> bool {
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let clear = |length: &HeaderValue| length.as_bytes().iter().all(u8::is_ascii_digit);
    match (lengths.next(), lengths.next()) {
        (None, _) => true,
        (Some(length), None) => {
            clear(length) && !head.headers.contains_key(header::TRANSFER_ENCODING)
        }
        (Some(_), Some(_)) => false,
    }
}

/// The error for an answer that is not HTTP as we asked for it.
pub fn not_trusted(what: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, what).into_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer tg_secret"),
            ("x-api-key", "tg_secret"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-stainless-lang", "python"),
            ("user-agent", "OpenAI/Python"),
            ("openai-organization", "org"),
            ("te", "trailers"),
            ("connection", "x-api-key"),
            ("accept", "text/event-stream"),
            ("content-type", "multipart/form-data; boundary=x"),
            ("anthropic-version", "2023-06-01"),
            ("x-emulator-fault", "status=500"),
        ] {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        map
    }

    #[test]
    fn only_listed_fields_reach_the_upstream() {
        let authority = HeaderValue::from_static("api.deepseek.com");
        let key = HeaderValue::from_static("Bearer sk-real");
        let id = HeaderValue::from_static("r1");
        let outgoing = Outgoing {
            method: Method::POST,
            path: "/chat/completions",
            authority: &authority,
            credential: &[(header::AUTHORIZATION, key)],
            length: Length::Known(7),
            content_type: Some(HeaderValue::from_static("application/json")),
            request_id: &id,
        };
        let head = request_head(Version::HTTP_11, &client(), &outgoing).unwrap();
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "anthropic-version",
                "authorization",
                "content-length",
                "content-type",
                "host",
                "x-request-id"
            ]
        );
        assert_eq!(head.headers[header::AUTHORIZATION], "Bearer sk-real");
        assert_eq!(head.headers[header::CONTENT_TYPE], "application/json");
    }

    #[test]
    fn only_listed_fields_reach_the_tenant() {
        let mut upstream = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("set-cookie", "x"),
            ("server", "openresty"),
            ("x-ds-trace-id", "t"),
            ("eo-log-uuid", "u"),
            ("transfer-encoding", "chunked"),
        ] {
            upstream.insert_header(name, value).unwrap();
        }
        let head = answer_head(
            &upstream,
            Family::Anthropic,
            &HeaderValue::from_static("r1"),
            true,
        )
        .unwrap();
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "content-type",
                "request-id",
                "transfer-encoding",
                "x-request-id"
            ]
        );
    }

    #[test]
    fn a_final_refusal_tells_sdks_not_to_try_again() {
        use crate::request::refusal::Code;
        let refusal = Refusal::new(Code::InvalidCredential, "no");
        let head =
            refusal_head(&refusal, Family::OpenAi, &HeaderValue::from_static("r"), 3).unwrap();
        assert_eq!(head.headers[SHOULD_RETRY], "false");
        assert_eq!(head.headers[header::WWW_AUTHENTICATE], "Bearer");
    }
}
