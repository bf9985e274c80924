//! One token issuer as configured, ready to judge tokens: its rules, where its keys are, and how a
//! token of its leads to a tenant.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::Identity;
use super::reason::Reason;
use super::standing::{KeySource, Standing};
use super::token::{self, Algorithm, Claims, KeySet, Rules, TokenError, Unverified};
use crate::config::regular;
use crate::config::settings::{
    CredentialKind, Tenant, TenantId, TokenAlgorithm, TokenIssuer, TokenKeys,
};

/// Characters of a subject in the log.
const MOST_SUBJECT: usize = 64;

/// Why an issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("token issuer {issuer}: cannot read {path}: {cause}")]
    Unreadable {
        issuer: String,
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("token issuer {issuer}: {cause}")]
    Keys {
        issuer: String,
        cause: token::KeySetError,
    },
}

pub struct Issuer {
    id: String,
    rules: Rules,
    keys: Keys,
    tenant_claim: String,
    tenant_map: Option<BTreeMap<String, TenantId>>,
    models_claim: Option<String>,
    /// Every public model name.
    models: Arc<HashSet<String>>,
}

enum Keys {
    Fixed(KeySet),
    Fetched(Arc<KeySource>),
}

impl Issuer {
    pub fn new(
        settings: &TokenIssuer,
        models: Arc<HashSet<String>>,
        standing: &Standing,
    ) -> Result<Self, IssuerError> {
        let algorithm = algorithm(settings.algorithm);
        let bad = |cause| IssuerError::Keys {
            issuer: settings.id.clone(),
            cause,
        };
        let keys = match &settings.keys {
            TokenKeys::Url { .. } => Keys::Fetched(standing.source(settings)),
            TokenKeys::Secret(secret) => {
                Keys::Fixed(KeySet::from_secret(secret.expose().as_bytes()).map_err(bad)?)
            }
            TokenKeys::File(path) => {
                let bytes = regular::read(path).map_err(|cause| IssuerError::Unreadable {
                    issuer: settings.id.clone(),
                    path: path.clone(),
                    cause,
                })?;
                Keys::Fixed(key_set(&bytes, algorithm).map_err(bad)?)
            }
        };
        Ok(Self {
            id: settings.id.clone(),
            rules: Rules {
                issuer: settings.issuer.clone(),
                audiences: settings.audiences.clone(),
                algorithm,
                leeway_seconds: settings.leeway.as_secs(),
                max_lifetime_seconds: settings.max_lifetime.map(|time| time.as_secs()),
                required: settings.required_claims.clone(),
            },
            keys,
            tenant_claim: settings.tenant_claim.clone(),
            tenant_map: settings.tenant_map.clone(),
            models_claim: settings.models_claim.clone(),
            models,
        })
    }

    /// Judges a token; the identity counts until [`Claims::expires`].
    pub fn identify(
        &self,
        token: Unverified<'_>,
        tenants: &HashMap<TenantId, Arc<Tenant>>,
        now: i64,
    ) -> Result<(Identity, i64), Reason> {
        let claims = match &self.keys {
            Keys::Fixed(keys) => token.verify(&self.rules, keys, now),
            Keys::Fetched(source) => {
                let Some(keys) = source.keys() else {
                    source.want();
                    return Err(Reason::NoKeys);
                };
                token.verify(&self.rules, &keys, now).inspect_err(|error| {
                    if *error == TokenError::UnknownKey {
                        source.want();
                    }
                })
            }
        };
        let claims = claims.map_err(Reason::Token)?;
        let value = claims.text(&self.tenant_claim).ok_or(Reason::NoTenant)?;
        let tenant = match &self.tenant_map {
            Some(map) => map.get(value).and_then(|id| tenants.get(id)),
            None => tenants.get(value),
        };
        let identity = Identity {
            tenant: tenant.ok_or(Reason::NoTenant)?.clone(),
            kind: CredentialKind::Token,
            credential_id: Arc::from(self.name(&claims)),
            models: self.models(&claims),
            body_digest: None,
        };
        Ok((identity, claims.expires))
    }

    /// `issuer/subject`, for the log.
    fn name(&self, claims: &Claims) -> String {
        let subject = claims.text("sub").unwrap_or_default();
        let subject = subject.chars().filter(|c| c.is_ascii_graphic());
        let subject: String = subject.take(MOST_SUBJECT).collect();
        if subject.is_empty() {
            self.id.clone()
        } else {
            format!("{}/{subject}", self.id)
        }
    }

    /// A token without the claim names no model: it narrows to nothing rather than to everything.
    fn models(&self, claims: &Claims) -> Option<Arc<HashSet<String>>> {
        let names = claims.texts(self.models_claim.as_deref()?);
        if names.contains(&"*") {
            return None;
        }
        // Only names that exist: what a token says is remembered, and must not fill the memory.
        let known = names.into_iter().filter(|name| self.models.contains(*name));
        Some(Arc::new(known.map(str::to_owned).collect()))
    }
}

/// The configuration's word in the verifier's terms.
pub fn algorithm(configured: TokenAlgorithm) -> Algorithm {
    match configured {
        TokenAlgorithm::Hs256 => Algorithm::Hs256,
        TokenAlgorithm::Rs256 => Algorithm::Rs256,
        TokenAlgorithm::Es256 => Algorithm::Es256,
        TokenAlgorithm::EdDsa => Algorithm::EdDsa,
    }
}

/// Reads what may be PEM or a key set.
fn key_set(bytes: &[u8], algorithm: Algorithm) -> Result<KeySet, token::KeySetError> {
    if bytes.trim_ascii_start().starts_with(b"{") {
        KeySet::from_jwks(bytes, algorithm)
    } else {
        KeySet::from_pem(bytes, algorithm)
    }
}
