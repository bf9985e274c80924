//! `identity` and what stands under `tenants[].credentials`: how callers prove who they are, as
//! written. All of it reloads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Required;
use crate::config::secret::SecretText;
use crate::config::text::{DurationText, TimestampText};

/// Two weeks: long enough that a rotation can be planned.
pub const WARN_BEFORE_EXPIRY: DurationText = seconds(14 * 24 * 3600);
/// A program with a wrong key tries once or twice a second; nobody with a right one fails so often.
pub const FAILED_ATTEMPTS_PER_MINUTE: u32 = 60;
/// Clocks that are kept by NTP differ by less; the rest is for a request on a slow link.
pub const SIGNED_PAST: DurationText = seconds(300);
pub const SIGNED_FUTURE: DurationText = seconds(30);
/// Some 32 MiB, for 3,000 signed requests a second at a window of five minutes.
pub const MAX_NONCES: usize = 1_000_000;
/// So that one key alone cannot fill it.
pub const MAX_NONCES_PER_KEY: usize = 200_000;
/// As the usual libraries have it.
pub const LEEWAY: DurationText = seconds(30);
/// Tokens that live longer are keys in disguise.
pub const MAX_LIFETIME: DurationText = seconds(24 * 3600);
/// Identity providers announce a new key hours before they use it.
pub const JWKS_REFRESH: DurationText = seconds(300);

const fn seconds(count: u64) -> DurationText {
    DurationText(Duration::from_secs(count))
}

/// How callers prove who they are.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// Secrets that API keys are hashed with, by name: a hash `hmac-sha256:NAME:…` uses one.
    pub peppers: BTreeMap<String, SecretText>,
    /// From when on the end of a credential or certificate is warned about; at most 8760h.
    pub warn_before_expiry: DurationText,
    /// Failed attempts that a client address has in a minute before it is only heard with
    /// credentials that it used with success before. 0: no limit.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub failed_attempts_per_minute: u32,
    pub signed_requests: SignedRequests,
    /// Whose signed tokens (JWT) are taken.
    pub tokens: Vec<TokenIssuer>,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            peppers: BTreeMap::new(),
            warn_before_expiry: WARN_BEFORE_EXPIRY,
            failed_attempts_per_minute: FAILED_ATTEMPTS_PER_MINUTE,
            signed_requests: SignedRequests::default(),
            tokens: Vec::new(),
        }
    }
}

/// What signed requests are held against.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SignedRequests {
    /// How old a timestamp may be; at most 1h.
    pub past: DurationText,
    /// How far ahead of our clock a timestamp may be; at most 1h.
    pub future: DurationText,
    /// Nonces remembered over all keys, some 32 bytes each. Changes need a restart.
    #[schemars(range(min = 1000, max = 100_000_000))]
    pub max_nonces: usize,
    /// Nonces remembered for one key. Changes need a restart.
    #[schemars(range(min = 100, max = 100_000_000))]
    pub max_nonces_per_key: usize,
}

impl Default for SignedRequests {
    fn default() -> Self {
        Self {
            past: SIGNED_PAST,
            future: SIGNED_FUTURE,
            max_nonces: MAX_NONCES,
            max_nonces_per_key: MAX_NONCES_PER_KEY,
        }
    }
}

/// An identity provider whose signed tokens prove who is calling.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id, issuer, audiences, algorithm, keys, tenant"))]
pub struct TokenIssuer {
    /// Stable name, seen in logs and metrics.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// What the claim `iss` says, letter by letter.
    pub issuer: String,
    /// The claim `aud` names at least one of these.
    #[schemars(length(min = 1))]
    pub audiences: Vec<String>,
    /// How its tokens are signed. The token has no say in it.
    pub algorithm: TokenAlgorithm,
    pub keys: TokenKeys,
    /// Which tenant a token belongs to.
    pub tenant: TokenTenant,
    /// How far the two clocks may differ; at most 1h.
    pub leeway: DurationText,
    /// From issue to expiry at most; at most 8760h. 0s: no limit.
    pub max_lifetime: DurationText,
    /// Claims that must be there: null asks for any value, a text or number for that one. A list
    /// of texts, or words in one text as in `scope`, must hold it.
    pub required_claims: BTreeMap<String, Value>,
    /// A claim that lists the public models its bearer may use, of those the tenant may.
    pub models_claim: Option<String>,
}

impl Default for TokenIssuer {
    fn default() -> Self {
        Self {
            id: String::new(),
            issuer: String::new(),
            audiences: Vec::new(),
            algorithm: TokenAlgorithm::Rs256,
            keys: TokenKeys::default(),
            tenant: TokenTenant::default(),
            leeway: LEEWAY,
            max_lifetime: MAX_LIFETIME,
            required_claims: BTreeMap::new(),
            models_claim: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
pub enum TokenAlgorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// Where an issuer's keys come from: exactly one of `file`, `url` and `secret`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenKeys {
    /// PEM public keys or certificates, or a JSON Web Key Set. Relative to this file.
    pub file: Option<PathBuf>,
    /// A JSON Web Key Set over HTTPS (http:// to this machine only).
    pub url: Option<String>,
    /// The shared secret of HS256, at least 32 bytes.
    pub secret: Option<SecretText>,
    /// How often the URL is asked; 1s to 24h. An unknown key id asks sooner, at a bounded rate.
    pub refresh: DurationText,
    /// PEM bundle that replaces the system's roots for the URL. Relative to this file.
    pub ca: Option<PathBuf>,
}

impl Default for TokenKeys {
    fn default() -> Self {
        Self {
            file: None,
            url: None,
            secret: None,
            refresh: JWKS_REFRESH,
            ca: None,
        }
    }
}

/// How a token leads to a tenant.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("claim"))]
pub struct TokenTenant {
    /// The claim to look at; dots lead into claims that are maps.
    pub claim: String,
    /// Claim value to tenant id. Without it the value is the tenant's id.
    pub map: BTreeMap<String, String>,
}

/// A kind of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    ApiKey,
    Token,
    SignedRequest,
    ClientCertificate,
}

/// A way to prove to be a tenant: exactly one of the three.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Credential {
    /// An API key, as `tidegate key new` prints it.
    pub api_key: Option<ApiKey>,
    /// A shared secret that requests are signed with; see docs/signed-requests.md.
    pub signed_request: Option<SignedRequest>,
    /// A client certificate, on listeners with a `client_ca`.
    pub client_certificate: Option<ClientCertificate>,
}

/// What is kept of an API key: its name and its hash, never the key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id, hash"))]
pub struct ApiKey {
    /// The readable part of the key `tg_<id>_<secret>`; unique over all tenants.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// SHA-256 of the whole key, `sha256:` and 64 hexadecimal digits; or its HMAC-SHA256 with one
    /// of `identity.peppers`, `hmac-sha256:NAME:` and 64 hexadecimal digits.
    #[schemars(regex(pattern = r"^(sha256:|hmac-sha256:[a-z0-9][a-z0-9_-]{0,63}:)[0-9a-fA-F]{64}$"), extend("x-tidegate-kind" = "hash"))]
    pub hash: String,
    /// Off: refused, and its place kept.
    pub enabled: bool,
    /// Refused before this time.
    pub not_before: Option<TimestampText>,
    /// Refused from this time on.
    pub not_after: Option<TimestampText>,
}

impl Default for ApiKey {
    fn default() -> Self {
        Self {
            id: String::new(),
            hash: String::new(),
            enabled: true,
            not_before: None,
            not_after: None,
        }
    }
}

/// A secret that requests are signed with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id, secret"))]
pub struct SignedRequest {
    /// The key id that requests name; unique over all tenants.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// At least 32 bytes.
    pub secret: Option<SecretText>,
    /// Off: refused, and its place kept.
    pub enabled: bool,
    /// Refused before this time.
    pub not_before: Option<TimestampText>,
    /// Refused from this time on.
    pub not_after: Option<TimestampText>,
}

impl Default for SignedRequest {
    fn default() -> Self {
        Self {
            id: String::new(),
            secret: None,
            enabled: true,
            not_before: None,
            not_after: None,
        }
    }
}

/// What a client certificate shows: exactly one of the four, unique over all tenants.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientCertificate {
    /// A URI among the subject alternative names, such as `spiffe://corp/search`.
    pub san_uri: Option<String>,
    /// A DNS name among the subject alternative names; no wildcards.
    pub san_dns: Option<String>,
    /// The common name of the subject. Old; a subject alternative name is the better choice.
    pub common_name: Option<String>,
    /// SHA-256 of the certificate (DER): `sha256:` and 64 hexadecimal digits.
    pub fingerprint: Option<String>,
}
