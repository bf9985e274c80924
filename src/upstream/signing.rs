//! Signs requests to company-internal gateways that want a signature in place of a key.
//!
//! HMAC-SHA256 over a text that the configuration composes of the request's parts. Pure: time and
//! nonce are handed in. What the parts may be is checked with the configuration.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use crate::config::secret::Secret;
use crate::config::settings::{Encoding, Signing, Template, TemplatePart, TimestampUnit};

/// What an account signs with.
pub struct Signer {
    key: Secret,
    key_id: String,
    message: Template,
    fields: Vec<(HeaderName, Template)>,
    encoding: Encoding,
    timestamp: TimestampUnit,
}

/// The request as the upstream will see it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    /// With the query, if there is one.
    pub target: &'a str,
    pub host: &'a str,
    /// Empty if there is none.
    pub body: &'a [u8],
}

/// One signature's parts, as texts.
struct Parts<'a> {
    request: Request<'a>,
    key_id: &'a str,
    timestamp: String,
    nonce: &'a str,
    body_sha256: String,
    signature: String,
}

impl Signer {
    /// `None` if a field's name is none.
    pub fn new(signing: &Signing, key: Secret, key_id: &str) -> Option<Self> {
        let fields = signing.headers.iter();
        let fields = fields
            .map(|(name, template)| Some((HeaderName::try_from(name).ok()?, template.clone())));
        Some(Self {
            key,
            key_id: key_id.to_owned(),
            message: signing.message.clone(),
            fields: fields.collect::<Option<_>>()?,
            encoding: signing.encoding,
            timestamp: signing.timestamp,
        })
    }

    /// The fields that carry the signature; `now` is since 1970. A value that cannot stand in a
    /// field is left out, and the upstream will say so.
    pub fn sign(
        &self,
        request: Request<'_>,
        now: Duration,
        nonce: &str,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let timestamp = match self.timestamp {
            TimestampUnit::Seconds => now.as_secs().to_string(),
            TimestampUnit::Milliseconds => now.as_millis().to_string(),
        };
        let digested = self.mentions(&TemplatePart::BodySha256);
        let mut parts = Parts {
            request,
            key_id: &self.key_id,
            timestamp,
            nonce,
            body_sha256: if digested {
                self.written(&Sha256::digest(request.body))
            } else {
                String::new()
            },
            signature: String::new(),
        };
        let message = fill(&self.message, &parts);
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.key.expose().as_bytes()) else {
            return Vec::new();
        };
        mac.update(message.as_bytes());
        parts.signature = self.written(&mac.finalize().into_bytes());
        let fields = self.fields.iter().filter_map(|(name, template)| {
            let mut value = HeaderValue::try_from(fill(template, &parts)).ok()?;
            value.set_sensitive(true);
            Some((name.clone(), value))
        });
        fields.collect()
    }

    fn mentions(&self, part: &TemplatePart) -> bool {
        self.message.0.contains(part)
            || self
                .fields
                .iter()
                .any(|(_, template)| template.0.contains(part))
    }

    fn written(&self, bytes: &[u8]) -> String {
        match self.encoding {
            Encoding::Hex => hex::encode(bytes),
            Encoding::Base64 => STANDARD.encode(bytes),
        }
    }
}

fn fill(template: &Template, parts: &Parts<'_>) -> String {
    let (path, query) = parts
        .request
        .target
        .split_once('?')
        .unwrap_or((parts.request.target, ""));
    template
        .0
        .iter()
        .map(|part| match part {
            TemplatePart::Text(text) => text,
            TemplatePart::KeyId => parts.key_id,
            TemplatePart::Method => parts.request.method,
            TemplatePart::Path => path,
            TemplatePart::Query => query,
            TemplatePart::Host => parts.request.host,
            TemplatePart::Timestamp => &parts.timestamp,
            TemplatePart::Nonce => parts.nonce,
            TemplatePart::BodySha256 => &parts.body_sha256,
            TemplatePart::Signature => &parts.signature,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(1_767_225_600_250);
    const REQUEST: Request<'static> = Request {
        method: "POST",
        target: "/v1/chat/completions?a=b",
        host: "gateway.corp",
        body: b"{}",
    };

    fn signer(message: Vec<TemplatePart>, encoding: Encoding, unit: TimestampUnit) -> Signer {
        let signing = Signing {
            message: Template(message),
            headers: vec![
                ("x-sign".to_owned(), Template(vec![TemplatePart::Signature])),
                (
                    "x-time".to_owned(),
                    Template(vec![
                        TemplatePart::KeyId,
                        TemplatePart::Text("@".to_owned()),
                        TemplatePart::Timestamp,
                    ]),
                ),
            ],
            encoding,
            timestamp: unit,
        };
        Signer::new(&signing, Secret::new("key".to_owned()), "app").unwrap()
    }

    #[test]
    fn the_message_is_composed_of_the_requests_parts() {
        use TemplatePart::{BodySha256, Host, Method, Nonce, Path, Query, Text, Timestamp};
        let line = || Text("\n".to_owned());
        let parts = vec![
            Method,
            line(),
            Host,
            line(),
            Path,
            line(),
            Query,
            line(),
            Timestamp,
            line(),
            Nonce,
            line(),
            BodySha256,
        ];
        let fields = signer(parts, Encoding::Hex, TimestampUnit::Seconds).sign(REQUEST, NOW, "n-1");
        let body = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        let message =
            format!("POST\ngateway.corp\n/v1/chat/completions\na=b\n1767225600\nn-1\n{body}");
        let mut mac = Hmac::<Sha256>::new_from_slice(b"key").unwrap();
        mac.update(message.as_bytes());
        let expected: String = mac
            .finalize()
            .into_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(fields[0].1.to_str().unwrap(), expected);
        assert_eq!(fields[1].1.to_str().unwrap(), "app@1767225600");
        assert!(fields[0].1.is_sensitive());
    }

    #[test]
    fn base64_and_milliseconds_are_what_some_gateways_want() {
        let signer = signer(
            vec![TemplatePart::Timestamp],
            Encoding::Base64,
            TimestampUnit::Milliseconds,
        );
        let fields = signer.sign(REQUEST, NOW, "n");
        assert_eq!(fields[0].1.len(), 44);
        assert_eq!(fields[1].1.to_str().unwrap(), "app@1767225600250");
    }
}
