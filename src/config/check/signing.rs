//! The rules of `upstreams[].auth`: the key in a field, or requests signed with it.

use super::Check;
use crate::config::file::{self, Surface};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::settings::{
    Encoding, Signing, Template, TemplatePart, TimestampUnit, UpstreamAuth,
};

/// Headers whose meaning is fixed; a key put there would break the message (RFC 9110, RFC 9112).
const RESERVED_HEADERS: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
];

impl Check<'_, '_> {
    pub(super) fn auth(
        &mut self,
        upstream: &file::Upstream,
        surfaces: &[Surface],
        path: KeyPath<'_>,
    ) -> UpstreamAuth {
        let written = &upstream.auth;
        if let Some(signing) = &written.signing {
            return UpstreamAuth::Signing(self.signing(
                signing,
                upstream,
                surfaces,
                path.key("signing"),
            ));
        }
        let header = self.field_name(&written.header, path.key("header"));
        if !written.scheme.is_empty() && !is_token(&written.scheme) {
            self.report.mistake(
                path.key("scheme"),
                quoted(&written.scheme),
                "expected one word, or \"\" for none",
            );
        }
        UpstreamAuth::Key {
            header,
            scheme: written.scheme.clone(),
        }
    }

    fn signing(
        &mut self,
        written: &file::Signing,
        upstream: &file::Upstream,
        surfaces: &[Surface],
        path: KeyPath<'_>,
    ) -> Signing {
        if upstream
            .accounts
            .iter()
            .all(|account| account.api_key.is_none())
        {
            let allowed = "give the upstream's accounts an api_key";
            self.report.mistake(path, "no key to sign with", allowed);
        }
        let message = self.template(&written.message, false, path.key("message"));
        let headers: Vec<(String, Template)> = written
            .headers
            .iter()
            .map(|(name, text)| {
                let path = path.key("headers");
                let path = path.key(name);
                (self.field_name(name, path), self.template(text, true, path))
            })
            .collect();
        let sends = |part: TemplatePart| {
            headers
                .iter()
                .any(|(_, template)| template.0.contains(&part))
        };
        if !sends(TemplatePart::Signature) {
            let allowed = "one of the fields must hold {signature}";
            self.report
                .mistake(path.key("headers"), "no signature", allowed);
        }
        for (part, name) in [
            (TemplatePart::Timestamp, "{timestamp}"),
            (TemplatePart::Nonce, "{nonce}"),
        ] {
            if message.0.contains(&part) && !sends(part) {
                let found = format!("{name} is signed and not sent");
                let allowed = "nobody could check the signature; add it to a field";
                self.report.mistake(path.key("headers"), found, allowed);
            }
        }
        if !message.0.contains(&TemplatePart::Timestamp) {
            let found = "a signature without {timestamp}";
            self.report.warning(
                path.key("message"),
                found,
                "whoever sees it can use it for ever",
            );
        }
        let signs_body = message.0.contains(&TemplatePart::BodySha256);
        if (signs_body || sends(TemplatePart::BodySha256)) && surfaces.contains(&Surface::Files) {
            let allowed = "an upload passes through before its end is seen; leave the surface files or {body_sha256} out";
            self.report
                .mistake(path, "{body_sha256} on an upstream with files", allowed);
        }
        Signing {
            message,
            headers,
            encoding: match written.encoding {
                file::Encoding::Hex => Encoding::Hex,
                file::Encoding::Base64 => Encoding::Base64,
            },
            timestamp: match written.timestamp {
                file::TimestampUnit::Seconds => TimestampUnit::Seconds,
                file::TimestampUnit::Milliseconds => TimestampUnit::Milliseconds,
            },
        }
    }

    fn field_name(&mut self, written: &str, path: KeyPath<'_>) -> String {
        let name = written.to_ascii_lowercase();
        if !is_token(&name) {
            let allowed = "expected the name of a header field";
            self.report.mistake(path, quoted(written), allowed);
        } else if RESERVED_HEADERS.contains(&name.as_str()) {
            self.report
                .mistake(path, quoted(written), "that field has a meaning of its own");
        }
        name
    }

    fn template(&mut self, text: &str, in_header: bool, path: KeyPath<'_>) -> Template {
        let printable = |b: u8| (b' '..=b'~').contains(&b);
        if in_header && !text.bytes().all(printable) {
            let allowed = "a header field holds printable ASCII";
            self.report.mistake(path, quoted(text), allowed);
        }
        match take_apart(text) {
            Ok(Template(parts)) if !in_header && parts.contains(&TemplatePart::Signature) => {
                let allowed = "a signature cannot sign itself";
                self.report
                    .mistake(path, "{signature} in the message", allowed);
                Template(parts)
            }
            Ok(template) => template,
            Err(unknown) => {
                let allowed = "{key_id} {method} {path} {query} {host} {timestamp} {nonce} {body_sha256} {signature} are known";
                self.report.mistake(path, quoted(&unknown), allowed);
                Template(Vec::new())
            }
        }
    }
}

/// Splits a text at its placeholders; gives back one that is not known.
fn take_apart(text: &str) -> Result<Template, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        if !before.is_empty() {
            parts.push(TemplatePart::Text(before.to_owned()));
        }
        let (name, after) = after.split_once('}').ok_or_else(|| format!("{{{after}"))?;
        parts.push(match name {
            "key_id" => TemplatePart::KeyId,
            "method" => TemplatePart::Method,
            "path" => TemplatePart::Path,
            "query" => TemplatePart::Query,
            "host" => TemplatePart::Host,
            "timestamp" => TemplatePart::Timestamp,
            "nonce" => TemplatePart::Nonce,
            "body_sha256" => TemplatePart::BodySha256,
            "signature" => TemplatePart::Signature,
            unknown => return Err(format!("{{{unknown}}}")),
        });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(TemplatePart::Text(rest.to_owned()));
    }
    Ok(Template(parts))
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.len() <= 128 && text.bytes().all(allowed)
}
