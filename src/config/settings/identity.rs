//! Who may call and how they prove it, as it is meant.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Deadlines, Group, Plan, TenantId};
use crate::config::networks::Networks;
use crate::config::secret::Secret;

/// What holds for all tenants.
#[derive(Debug, PartialEq)]
pub struct Identity {
    /// By name.
    pub peppers: BTreeMap<String, Secret>,
    pub warn_before_expiry: Duration,
    /// In a minute from one address; 0 for no limit.
    pub failed_attempts_per_minute: u32,
    pub signed_requests: SignedRequests,
    pub tokens: Vec<Arc<TokenIssuer>>,
}

/// The clock window and the memory of signed requests.
#[derive(Debug, Clone, PartialEq)]
pub struct SignedRequests {
    pub past: Duration,
    pub future: Duration,
    pub max_nonces: usize,
    pub max_nonces_per_key: usize,
}

/// An identity provider. Its `issuer` is unique.
#[derive(Debug, PartialEq)]
pub struct TokenIssuer {
    pub id: String,
    pub issuer: String,
    /// At least one.
    pub audiences: Vec<String>,
    pub algorithm: TokenAlgorithm,
    pub keys: TokenKeys,
    pub tenant_claim: String,
    /// Claim value to tenant; `None` if the value is the tenant's id.
    pub tenant_map: Option<BTreeMap<String, TenantId>>,
    pub leeway: Duration,
    /// `None` for no limit.
    pub max_lifetime: Option<Duration>,
    /// Claims that must be there, and what they must hold if that is fixed.
    pub required_claims: Vec<(String, Option<serde_json::Value>)>,
    pub models_claim: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenAlgorithm {
    Hs256,
    Rs256,
    Es256,
    EdDsa,
}

/// Where an issuer's keys come from.
#[derive(Debug, PartialEq)]
pub enum TokenKeys {
    /// PEM or a key set.
    File(PathBuf),
    /// A key set over HTTPS.
    Url {
        url: String,
        refresh: Duration,
        ca: Option<PathBuf>,
    },
    Secret(Secret),
}

/// A kind of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CredentialKind {
    ApiKey,
    Token,
    SignedRequest,
    ClientCertificate,
    /// No proof at all, on a listener that says so.
    Anonymous,
}

impl CredentialKind {
    /// The word in configuration, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Token => "token",
            Self::SignedRequest => "signed_request",
            Self::ClientCertificate => "client_certificate",
            Self::Anonymous => "anonymous",
        }
    }
}

/// Which kinds of proof are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub api_key: bool,
    pub token: bool,
    pub signed_request: bool,
    pub client_certificate: bool,
}

impl Accepted {
    pub const ALL: Self = Self {
        api_key: true,
        token: true,
        signed_request: true,
        client_certificate: true,
    };

    /// Is this kind taken? Who shows nothing is never asked here.
    pub fn takes(self, kind: CredentialKind) -> bool {
        match kind {
            CredentialKind::ApiKey => self.api_key,
            CredentialKind::Token => self.token,
            CredentialKind::SignedRequest => self.signed_request,
            CredentialKind::ClientCertificate => self.client_certificate,
            CredentialKind::Anonymous => true,
        }
    }
}

#[derive(Debug, PartialEq)]
pub struct Tenant {
    pub id: TenantId,
    pub enabled: bool,
    pub models: AllowedModels,
    /// May this tenant read `/user/balance`?
    pub balance: bool,
    /// May this tenant use `/v1/files*`?
    pub files: bool,
    pub credentials: Vec<Credential>,
    pub accept: Accepted,
    /// `None` for everywhere.
    pub allow_from: Option<Networks>,
    pub plan: Arc<Plan>,
    /// Whose limits hold besides.
    pub group: Option<Arc<Group>>,
    /// Clocks of its requests, over those of the model.
    pub deadlines: Deadlines,
}

#[derive(Debug, PartialEq)]
pub enum AllowedModels {
    /// `["*"]`
    All,
    Listed(HashSet<String>),
}

impl AllowedModels {
    /// May a tenant with this list use the public model `name`?
    pub fn allows(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(names) => names.contains(name),
        }
    }
}

/// How a tenant proves who it is. Signed tokens are judged by their issuer.
#[derive(Debug, PartialEq)]
pub enum Credential {
    ApiKey(ApiKey),
    SignedRequest(SignedRequest),
    ClientCertificate(CertificateName),
}

/// What is stored of an API key `tg_<id>_<secret>`: never the key.
#[derive(Debug, PartialEq)]
pub struct ApiKey {
    /// The readable part of the key, unique over all tenants.
    pub id: String,
    pub hash: KeyHash,
    pub validity: Validity,
}

/// What is kept of a key, of the whole text as the client sends it.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyHash {
    Sha256([u8; 32]),
    /// HMAC-SHA256 with the pepper of this name.
    Peppered {
        pepper: String,
        hash: [u8; 32],
    },
}

/// A secret that requests are signed with.
#[derive(Debug, PartialEq)]
pub struct SignedRequest {
    /// Unique over all tenants.
    pub id: String,
    pub secret: Secret,
    pub validity: Validity,
}

/// When a credential counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validity {
    pub enabled: bool,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
}

/// What a client certificate has to show.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CertificateName {
    SanUri(String),
    /// Lower case.
    SanDns(String),
    CommonName(String),
    Fingerprint([u8; 32]),
}

impl std::fmt::Display for CertificateName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SanUri(name) => write!(f, "{name}"),
            Self::SanDns(name) => write!(f, "dns:{name}"),
            Self::CommonName(name) => write!(f, "cn:{name}"),
            Self::Fingerprint(hash) => write!(f, "sha256:{}", hex::encode(hash)),
        }
    }
}
