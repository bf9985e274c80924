//! The rules of `identity` and of `tenants[].credentials`: what proves who is calling.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Check, url};
use crate::config::file::{self, File};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::nearest::hint;
use crate::config::secret::{HASH_FORM, Secret};
use crate::config::settings::{
    Accepted, ApiKey, CertificateName, Credential, Identity, KeyHash, SignedRequest,
    SignedRequests, TenantId, TokenAlgorithm, TokenIssuer, TokenKeys, Validity,
};
use crate::config::text::TimestampText;

/// A year; beyond it a warning is only noise, and a token only a key.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// A key set that is asked for more often is load, less often news that comes late.
const LEAST_REFRESH: Duration = Duration::from_secs(1);
const MOST_REFRESH: Duration = Duration::from_secs(24 * 3600);
/// RFC 7518 §3.2 asks for as many bits as the hash has; a signed request's secret is no different.
const LEAST_SECRET: usize = 32;
/// A SPIFFE id has at most 2048 bytes (SPIFFE-ID §2.3), a DNS name 253.
const MOST_NAME: usize = 2048;

/// What must be unique over all tenants, and where it stands.
#[derive(Default)]
pub(super) struct SeenCredentials<'f> {
    keys: HashMap<&'f str, String>,
    signers: HashMap<&'f str, String>,
    hashes: HashMap<[u8; 32], String>,
    secrets: HashMap<[u8; 32], String>,
    certificates: HashMap<CertificateName, String>,
}

impl Check<'_, '_> {
    pub(super) fn identity(&mut self, file: &File) -> Identity {
        let path = KeyPath::Root.key("identity");
        let written = &file.identity;
        let mut peppers = BTreeMap::new();
        for (name, text) in &written.peppers {
            let path = path.key("peppers");
            let path = path.key(name);
            self.id(name, path);
            if let Some(secret) = self.long_secret(text, path) {
                peppers.insert(name.clone(), secret);
            }
        }
        Identity {
            peppers,
            warn_before_expiry: self.between(
                written.warn_before_expiry,
                Duration::ZERO,
                YEAR,
                path.key("warn_before_expiry"),
            ),
            failed_attempts_per_minute: written.failed_attempts_per_minute,
            signed_requests: self.signed_requests(&written.signed_requests, path),
            tokens: self.token_issuers(file, path.key("tokens")),
        }
    }

    fn signed_requests(
        &mut self,
        written: &file::SignedRequests,
        path: KeyPath<'_>,
    ) -> SignedRequests {
        let path = path.key("signed_requests");
        if written.max_nonces_per_key > written.max_nonces {
            let allowed = "one key can have no more than all of them";
            self.report.mistake(
                path.key("max_nonces_per_key"),
                "more than max_nonces",
                allowed,
            );
        }
        SignedRequests {
            past: self.seconds(written.past, SECOND, HOUR, path.key("past")),
            future: self.seconds(written.future, Duration::ZERO, HOUR, path.key("future")),
            max_nonces: written.max_nonces,
            max_nonces_per_key: written.max_nonces_per_key,
        }
    }

    fn token_issuers(&mut self, file: &File, path: KeyPath<'_>) -> Vec<Arc<TokenIssuer>> {
        let (mut ids, mut issuers) = (HashMap::new(), HashMap::new());
        let mut found = Vec::new();
        for (index, written) in file.identity.tokens.iter().enumerate() {
            let path = path.index(index);
            self.id(&written.id, path.key("id"));
            self.unique(&mut ids, &written.id, &quoted(&written.id), path.key("id"));
            self.unique(
                &mut issuers,
                &written.issuer,
                &quoted(&written.issuer),
                path.key("issuer"),
            );
            for (key, text) in [
                ("issuer", &written.issuer),
                ("tenant.claim", &written.tenant.claim),
            ] {
                if text.is_empty() {
                    self.report
                        .mistake(path.key(key), "empty", "expected a text");
                }
            }
            if let Some(issuer) = self.token_issuer(written, file, path) {
                found.push(Arc::new(issuer));
            }
        }
        found
    }

    fn token_issuer(
        &mut self,
        written: &file::TokenIssuer,
        file: &File,
        path: KeyPath<'_>,
    ) -> Option<TokenIssuer> {
        let algorithm = match written.algorithm {
            file::TokenAlgorithm::Hs256 => TokenAlgorithm::Hs256,
            file::TokenAlgorithm::Rs256 => TokenAlgorithm::Rs256,
            file::TokenAlgorithm::Es256 => TokenAlgorithm::Es256,
            file::TokenAlgorithm::EdDsa => TokenAlgorithm::EdDsa,
        };
        let max_lifetime = self.seconds(
            written.max_lifetime,
            Duration::ZERO,
            YEAR,
            path.key("max_lifetime"),
        );
        let required_claims = written
            .required_claims
            .iter()
            .map(|(claim, value)| (claim.clone(), (!value.is_null()).then(|| value.clone())));
        Some(TokenIssuer {
            id: written.id.clone(),
            issuer: written.issuer.clone(),
            audiences: written.audiences.clone(),
            algorithm,
            tenant_claim: written.tenant.claim.clone(),
            tenant_map: self.tenant_map(&written.tenant, file, path.key("tenant")),
            leeway: self.seconds(written.leeway, Duration::ZERO, HOUR, path.key("leeway")),
            max_lifetime: (!max_lifetime.is_zero()).then_some(max_lifetime),
            required_claims: required_claims.collect(),
            models_claim: written.models_claim.clone(),
            keys: self.token_keys(&written.keys, algorithm, path.key("keys"))?,
        })
    }

    fn tenant_map(
        &mut self,
        written: &file::TokenTenant,
        file: &File,
        path: KeyPath<'_>,
    ) -> Option<BTreeMap<String, TenantId>> {
        if written.map.is_empty() {
            return None;
        }
        let path = path.key("map");
        for (value, tenant) in &written.map {
            self.known_tenant(tenant, file, path.key(value));
        }
        let map = written.map.iter();
        Some(
            map.map(|(value, tenant)| (value.clone(), TenantId::new(tenant)))
                .collect(),
        )
    }

    pub(super) fn known_tenant(&mut self, id: &str, file: &File, path: KeyPath<'_>) {
        if file.tenants.iter().any(|tenant| tenant.id == id) {
            return;
        }
        let hint = hint(id, file.tenants.iter().map(|tenant| tenant.id.as_str()));
        self.report.mistake(
            path,
            format!("no tenant has the id {}", quoted(id)),
            format!("ids of `tenants` may stand here{hint}"),
        );
    }

    fn token_keys(
        &mut self,
        written: &file::TokenKeys,
        algorithm: TokenAlgorithm,
        path: KeyPath<'_>,
    ) -> Option<TokenKeys> {
        let keys = match (&written.file, &written.url, &written.secret) {
            (Some(file), None, None) => TokenKeys::File(self.path(file, path.key("file"))),
            (None, Some(url), None) => self.key_url(url, written, path)?,
            (None, None, Some(secret)) => {
                TokenKeys::Secret(self.long_secret(secret, path.key("secret"))?)
            }
            _ => {
                let allowed = "exactly one of file, url and secret says where the keys are";
                self.report.mistake(path, "not one source", allowed);
                return None;
            }
        };
        let shared = matches!(keys, TokenKeys::Secret(_));
        if shared != (algorithm == TokenAlgorithm::Hs256) {
            // A public key used as a shared secret is the oldest trick on these tokens.
            let allowed = "HS256 goes with a secret, and no other algorithm does";
            self.report
                .mistake(path, "keys that do not fit the algorithm", allowed);
        }
        Some(keys)
    }

    fn key_url(
        &mut self,
        text: &str,
        written: &file::TokenKeys,
        path: KeyPath<'_>,
    ) -> Option<TokenKeys> {
        let refresh = self.between(
            written.refresh,
            LEAST_REFRESH,
            MOST_REFRESH,
            path.key("refresh"),
        );
        let ca = written.ca.as_ref().map(|ca| self.path(ca, path.key("ca")));
        let path = path.key("url");
        // A query may choose among the key sets of one provider.
        let before = text.split('?').next().unwrap_or_default();
        match url::parse(before) {
            Ok(endpoint) if endpoint.tls || url::is_loopback(&endpoint.host) => {
                Some(TokenKeys::Url {
                    url: text.to_owned(),
                    refresh,
                    ca,
                })
            }
            Ok(_) => {
                let allowed = "who can change the keys on their way can be anyone; use https://";
                self.report.mistake(path, "http://", allowed);
                None
            }
            Err(why) => {
                self.report.mistake(path, why.to_string(), url::FORM);
                None
            }
        }
    }

    pub(super) fn accepted(
        &mut self,
        written: Option<&Vec<file::CredentialKind>>,
        path: KeyPath<'_>,
    ) -> Accepted {
        let Some(kinds) = written else {
            return Accepted::ALL;
        };
        let mut seen = HashMap::new();
        for (index, kind) in kinds.iter().enumerate() {
            let shown = format!("{kind:?}");
            self.unique(&mut seen, shown.clone(), &shown, path.index(index));
        }
        let has = |kind| kinds.contains(&kind);
        Accepted {
            api_key: has(file::CredentialKind::ApiKey),
            token: has(file::CredentialKind::Token),
            signed_request: has(file::CredentialKind::SignedRequest),
            client_certificate: has(file::CredentialKind::ClientCertificate),
        }
    }

    pub(super) fn credential<'f>(
        &mut self,
        written: &'f file::Credential,
        file: &File,
        seen: &mut SeenCredentials<'f>,
        path: KeyPath<'_>,
    ) -> Option<Credential> {
        match written {
            file::Credential {
                api_key: Some(key),
                signed_request: None,
                client_certificate: None,
            } => self
                .api_key(key, file, seen, path.key("api_key"))
                .map(Credential::ApiKey),
            file::Credential {
                api_key: None,
                signed_request: Some(signer),
                client_certificate: None,
            } => self
                .signer(signer, seen, path.key("signed_request"))
                .map(Credential::SignedRequest),
            file::Credential {
                api_key: None,
                signed_request: None,
                client_certificate: Some(certificate),
            } => self
                .client_certificate(certificate, seen, path.key("client_certificate"))
                .map(Credential::ClientCertificate),
            _ => {
                let allowed =
                    "exactly one of api_key, signed_request and client_certificate makes an entry";
                self.report.mistake(path, "not one credential", allowed);
                None
            }
        }
    }

    fn api_key<'f>(
        &mut self,
        written: &'f file::ApiKey,
        file: &File,
        seen: &mut SeenCredentials<'f>,
        path: KeyPath<'_>,
    ) -> Option<ApiKey> {
        self.id(&written.id, path.key("id"));
        let shown = quoted(&written.id);
        self.unique(&mut seen.keys, &written.id, &shown, path.key("id"));
        let path_of_hash = path.key("hash");
        let Some(hash) = key_hash(&written.hash) else {
            // Someone may have put the key itself here, so it is not quoted.
            self.report.mistake(
                path_of_hash,
                "text that is not a hash (not shown)",
                format!("expected {HASH_FORM}"),
            );
            return None;
        };
        let bytes = match &hash {
            KeyHash::Sha256(bytes) => bytes,
            KeyHash::Peppered { pepper, hash } => {
                if !file.identity.peppers.contains_key(pepper) {
                    let hint = hint(pepper, file.identity.peppers.keys().map(String::as_str));
                    self.report.mistake(
                        path_of_hash,
                        format!("no pepper has the name {}", quoted(pepper)),
                        format!("names of `identity.peppers` may stand here{hint}"),
                    );
                }
                hash
            }
        };
        self.unique(&mut seen.hashes, *bytes, "this hash", path_of_hash);
        if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
            let advice = "no key fits it; `tidegate key new` makes a key and its hash";
            self.report.warning(
                path_of_hash,
                "a hash that only holds the place of one",
                advice,
            );
        }
        let validity = self.validity(written.enabled, written.not_before, written.not_after, path);
        Some(ApiKey {
            id: written.id.clone(),
            hash,
            validity,
        })
    }

    fn signer<'f>(
        &mut self,
        written: &'f file::SignedRequest,
        seen: &mut SeenCredentials<'f>,
        path: KeyPath<'_>,
    ) -> Option<SignedRequest> {
        self.id(&written.id, path.key("id"));
        let shown = quoted(&written.id);
        self.unique(&mut seen.signers, &written.id, &shown, path.key("id"));
        let validity = self.validity(written.enabled, written.not_before, written.not_after, path);
        let secret = self.long_secret(written.secret.as_ref()?, path.key("secret"))?;
        // The key id is not signed: with one secret for two, either could pass for the other.
        let print = <[u8; 32]>::from(Sha256::digest(secret.expose().as_bytes()));
        self.unique(&mut seen.secrets, print, "this secret", path.key("secret"));
        Some(SignedRequest {
            id: written.id.clone(),
            secret,
            validity,
        })
    }

    fn validity(
        &mut self,
        enabled: bool,
        not_before: Option<TimestampText>,
        not_after: Option<TimestampText>,
        path: KeyPath<'_>,
    ) -> Validity {
        if let (Some(begin), Some(end)) = (not_before, not_after)
            && end <= begin
        {
            self.report.mistake(
                path.key("not_after"),
                "not later than not_before",
                "it would never count",
            );
        }
        Validity {
            enabled,
            not_before: not_before.map(|time| time.0),
            not_after: not_after.map(|time| time.0),
        }
    }

    fn client_certificate(
        &mut self,
        written: &file::ClientCertificate,
        seen: &mut SeenCredentials<'_>,
        path: KeyPath<'_>,
    ) -> Option<CertificateName> {
        let names = [
            ("san_uri", &written.san_uri),
            ("san_dns", &written.san_dns),
            ("common_name", &written.common_name),
            ("fingerprint", &written.fingerprint),
        ];
        let mut given = names
            .into_iter()
            .filter_map(|(key, text)| Some((key, text.as_deref()?)));
        let (Some((key, text)), None) = (given.next(), given.next()) else {
            let allowed =
                "exactly one of san_uri, san_dns, common_name and fingerprint names a certificate";
            self.report.mistake(path, "not one name", allowed);
            return None;
        };
        let path = path.key(key);
        let name = match key {
            "san_uri" => text
                .contains(':')
                .then(|| CertificateName::SanUri(text.to_owned())),
            "san_dns" => {
                url::is_host(text).then(|| CertificateName::SanDns(text.to_ascii_lowercase()))
            }
            "common_name" => Some(CertificateName::CommonName(text.to_owned())),
            _ => sha256(text).map(CertificateName::Fingerprint),
        };
        let Some(name) = name.filter(|_| !text.is_empty() && text.len() <= MOST_NAME) else {
            let allowed = "expected a URI, a DNS name without wildcard, a common name, or sha256: and 64 hexadecimal digits";
            self.report.mistake(path, quoted(text), allowed);
            return None;
        };
        let shown = name.to_string();
        self.unique(&mut seen.certificates, name.clone(), &shown, path);
        Some(name)
    }

    /// A secret that a hash is keyed with.
    fn long_secret(
        &mut self,
        text: &crate::config::secret::SecretText,
        path: KeyPath<'_>,
    ) -> Option<Secret> {
        let secret = self.secret(text, path)?;
        if secret.expose().len() < LEAST_SECRET {
            let found = format!("a secret of {} bytes", secret.expose().len());
            let allowed = "expected at least 32; `openssl rand -hex 32` makes one";
            self.report.mistake(path, found, allowed);
        }
        Some(secret)
    }
}

fn key_hash(text: &str) -> Option<KeyHash> {
    if let Some(rest) = text.strip_prefix("hmac-sha256:") {
        let (pepper, digits) = rest.split_once(':')?;
        return Some(KeyHash::Peppered {
            pepper: pepper.to_owned(),
            hash: digits32(digits)?,
        });
    }
    sha256(text).map(KeyHash::Sha256)
}

/// Reads `sha256:` and 64 hexadecimal digits.
fn sha256(text: &str) -> Option<[u8; 32]> {
    digits32(text.strip_prefix("sha256:")?)
}

fn digits32(digits: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    hex::decode_to_slice(digits, &mut hash).ok()?;
    Some(hash)
}
