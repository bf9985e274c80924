//! From what a caller showed to the tenant it belongs to.
//!
//! One table for each kind of proof, keyed by what the caller names itself by: a look-up costs the
//! same for one tenant as for a hundred thousand. Neither the answer nor its timing tells which
//! part of a wrong credential was wrong: an unknown id is hashed and compared like a known one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use subtle::ConstantTimeEq;

use super::api_key::{self, Pepper};
use super::certificate::CertificateNames;
use super::credential::{self, Presented};
use super::issuer::{Issuer, IssuerError};
use super::reason::Reason;
use super::signed_request::canonical::Target;
use super::signed_request::nonces::Claim;
use super::signed_request::{self, SignatureError, Signed, Window};
use super::standing::{LastUse, Standing};
use super::token::cache::{self, DEFAULT_CAPACITY, Verified};
use super::token::{DEFAULT_MAX_BYTES, TokenError, Unverified};
use crate::config::secret::Secret;
use crate::config::settings::{
    Accepted, CertificateName, Credential, CredentialKind, KeyHash, Settings, Tenant, TenantId,
    Validity,
};

/// A caller whose credential was found good.
#[derive(Debug, Clone)]
pub struct Identity {
    pub tenant: Arc<Tenant>,
    pub kind: CredentialKind,
    /// Names the credential, for the log; never the credential.
    pub credential_id: Arc<str>,
    /// Public models that the credential narrows its bearer to; `None` for all of the tenant's.
    pub models: Option<Arc<std::collections::HashSet<String>>>,
    /// SHA-256 that the body must have.
    pub body_digest: Option<[u8; 32]>,
}

impl Identity {
    /// May this caller use the public model `name`?
    pub fn allows(&self, name: &str) -> bool {
        let narrowed = self.models.as_ref();
        self.tenant.models.allows(name) && narrowed.is_none_or(|models| models.contains(name))
    }
}

/// All that is known of who is calling.
pub struct Caller<'a> {
    pub headers: &'a HeaderMap,
    /// What a signature is over.
    pub target: Target<'a>,
    /// Of the client's verified certificate.
    pub certificate: Option<&'a CertificateNames>,
    pub address: IpAddr,
    /// What the listener takes.
    pub accept: Accepted,
    /// Who counts for nobody in particular on this listener.
    pub anonymous: Option<&'a TenantId>,
    /// Unix seconds.
    pub now: i64,
}

struct Key {
    hash: KeyHash,
    validity: Validity,
    identity: Identity,
    last_use: Arc<LastUse>,
}

struct Signer {
    secret: Secret,
    validity: Validity,
    identity: Identity,
    last_use: Arc<LastUse>,
}

struct Bearer {
    identity: Identity,
    last_use: Arc<LastUse>,
}

/// All credentials of a configuration, ready to be looked up.
pub struct Directory {
    standing: Arc<Standing>,
    tenants: HashMap<TenantId, Arc<Tenant>>,
    keys: HashMap<String, Key>,
    peppers: HashMap<String, Pepper>,
    signers: HashMap<String, Signer>,
    window: Window,
    certificates: HashMap<CertificateName, Bearer>,
    issuers: HashMap<String, Issuer>,
    verified: Verified<Identity>,
    /// What anonymous requests have for a credential in the log.
    anonymous_id: Arc<str>,
}

impl Directory {
    /// # Errors
    /// If a file with an issuer's keys cannot be used.
    pub fn new(settings: &Settings, standing: Arc<Standing>) -> Result<Self, IssuerError> {
        let peppers = settings.identity.peppers.iter();
        let peppers =
            peppers.filter_map(|(name, secret)| Some((name.clone(), Pepper::new(secret)?)));
        let signed = &settings.identity.signed_requests;
        let mut directory = Self {
            tenants: HashMap::new(),
            keys: HashMap::new(),
            peppers: peppers.collect(),
            signers: HashMap::new(),
            window: Window {
                past: whole_seconds(signed.past),
                future: whole_seconds(signed.future),
            },
            certificates: HashMap::new(),
            issuers: HashMap::new(),
            verified: Verified::new(DEFAULT_CAPACITY),
            anonymous_id: Arc::from(CredentialKind::Anonymous.as_str()),
            standing,
        };
        for tenant in &settings.tenants {
            directory.tenants.insert(tenant.id.clone(), tenant.clone());
            for credential in &tenant.credentials {
                directory.add(tenant, credential);
            }
        }
        let models = Arc::new(settings.models.keys().cloned().collect());
        for issuer in &settings.identity.tokens {
            let made = Issuer::new(issuer, Arc::clone(&models), &directory.standing)?;
            directory.issuers.insert(issuer.issuer.clone(), made);
        }
        Ok(directory)
    }

    fn add(&mut self, tenant: &Arc<Tenant>, credential: &Credential) {
        let entry = |kind, id: &str| {
            let identity = Identity {
                tenant: tenant.clone(),
                kind,
                credential_id: Arc::from(id),
                models: None,
                body_digest: None,
            };
            (identity, self.standing.last_use(kind, id))
        };
        match credential {
            Credential::ApiKey(key) => {
                let (identity, last_use) = entry(CredentialKind::ApiKey, &key.id);
                let entry = Key {
                    hash: key.hash.clone(),
                    validity: key.validity.clone(),
                    identity,
                    last_use,
                };
                self.keys.insert(key.id.clone(), entry);
            }
            Credential::SignedRequest(signer) => {
                let (identity, last_use) = entry(CredentialKind::SignedRequest, &signer.id);
                let entry = Signer {
                    secret: signer.secret.clone(),
                    validity: signer.validity.clone(),
                    identity,
                    last_use,
                };
                self.signers.insert(signer.id.clone(), entry);
            }
            Credential::ClientCertificate(name) => {
                let kind = CredentialKind::ClientCertificate;
                let (identity, last_use) = entry(kind, &name.to_string());
                let bearer = Bearer { identity, last_use };
                self.certificates.insert(name.clone(), bearer);
            }
        }
    }

    /// Who is this?
    ///
    /// A certificate that leads to no tenant is none of the caller's proofs: services often show
    /// one to be let onto the network, and a key to say who they are.
    ///
    /// # Errors
    /// The reason, to be counted; [`Reason::refuse`] has the words for the caller.
    pub fn identify(&self, caller: &Caller<'_>) -> Result<Identity, Reason> {
        let presented = credential::extract(caller.headers).map_err(Reason::Doubtful)?;
        if let Some(kind) = presented.kind()
            && !caller.accept.takes(kind)
        {
            return Err(Reason::KindNotTaken);
        }
        let shown = match presented {
            Presented::Nothing => None,
            Presented::ApiKey(text) => Some(self.by_key(text, caller.now)?),
            Presented::Token(text) => Some(self.by_token(text, caller.now)?),
            Presented::Signature(text) => Some(self.by_signature(text, caller)?),
        };
        let certificate = caller
            .certificate
            .filter(|_| caller.accept.client_certificate);
        let certified = match certificate {
            Some(names) => self.by_certificate(names, caller.now)?,
            None => None,
        };
        let identity = match (shown, certified) {
            (Some(shown), Some(certified)) if shown.tenant.id != certified.tenant.id => {
                return Err(Reason::TwoIdentities);
            }
            (Some(identity), _) | (None, Some(identity)) => identity,
            (None, None) => self.nobody(caller)?,
        };
        may_enter(&identity, caller.address)?;
        Ok(identity)
    }

    /// When a credential was last found good, in Unix seconds.
    pub fn last_use(&self, kind: CredentialKind, id: &str) -> Option<i64> {
        self.standing.last_use(kind, id).get()
    }

    pub fn nonces_held(&self) -> usize {
        self.standing.nonces.held()
    }

    fn by_key(&self, text: &str, now: i64) -> Result<Identity, Reason> {
        let id = api_key::id(text).map_err(|_| Reason::NotAKey)?;
        let entry = self.keys.get(id);
        // Every key costs the same, an unknown one included: hashed, and where there are peppers
        // hashed with one of them as well.
        let plain = api_key::hash(text);
        let peppered = match entry.map(|entry| &entry.hash) {
            Some(KeyHash::Peppered { pepper, .. }) => self.peppers.get(pepper),
            _ => self.peppers.values().next(),
        };
        let peppered = peppered.map(|pepper| pepper.hash(text));
        let entry = entry.ok_or(Reason::UnknownId)?;
        let matches = match (&entry.hash, peppered) {
            (KeyHash::Sha256(hash), _) => plain.ct_eq(hash).into(),
            (KeyHash::Peppered { hash, .. }, Some(peppered)) => peppered.ct_eq(hash).into(),
            (KeyHash::Peppered { .. }, None) => false,
        };
        if !matches {
            return Err(Reason::WrongSecret);
        }
        counts(&entry.validity, now)?;
        entry.last_use.mark(now);
        Ok(entry.identity.clone())
    }

    fn by_token(&self, text: &str, now: i64) -> Result<Identity, Reason> {
        if text.len() > DEFAULT_MAX_BYTES {
            return Err(Reason::Token(TokenError::TooLarge));
        }
        let fingerprint = cache::digest(text);
        let generation = self.standing.generation();
        if let Some(identity) = self.verified.get(&fingerprint, generation, now) {
            return Ok(identity);
        }
        let token = Unverified::parse(text, DEFAULT_MAX_BYTES).map_err(Reason::Token)?;
        let issuer = token.issuer().map_err(Reason::Token)?;
        let issuer = self.issuers.get(issuer).ok_or(Reason::UnknownIssuer)?;
        let (identity, expires) = issuer.identify(token, &self.tenants, now)?;
        self.verified
            .put(fingerprint, generation, now, expires, identity.clone());
        Ok(identity)
    }

    fn by_signature(&self, text: &str, caller: &Caller<'_>) -> Result<Identity, Reason> {
        let signed = signed_request::parse(text).map_err(Reason::Signature)?;
        let entry = self.signers.get(signed.key_id);
        let secret = entry.map_or(&[0; 32][..], |entry| entry.secret.expose().as_bytes());
        let genuine = signed.verify(secret, caller.target);
        let entry = entry.ok_or(Reason::UnknownId)?;
        if !genuine {
            return Err(Reason::Signature(SignatureError::WrongSignature));
        }
        counts(&entry.validity, caller.now)?;
        self.claim(&signed, caller.now).map_err(Reason::Signature)?;
        entry.last_use.mark(caller.now);
        Ok(Identity {
            body_digest: Some(signed.digest),
            ..entry.identity.clone()
        })
    }

    /// A genuine signature counts once, and only at its time.
    fn claim(&self, signed: &Signed<'_>, now: i64) -> Result<(), SignatureError> {
        self.window.within(signed.timestamp, now)?;
        let nonces = &self.standing.nonces;
        match nonces.claim(
            signed.key_id,
            signed.nonce,
            signed.timestamp,
            self.window,
            now,
        ) {
            Claim::Fresh => Ok(()),
            Claim::Replayed => Err(SignatureError::Replayed),
            Claim::Full => Err(SignatureError::NoncesFull),
        }
    }

    fn by_certificate(
        &self,
        names: &CertificateNames,
        now: i64,
    ) -> Result<Option<Identity>, Reason> {
        let mut found: Option<&Bearer> = None;
        for bearer in names.iter().filter_map(|name| self.certificates.get(name)) {
            match found {
                None => found = Some(bearer),
                Some(first) if first.identity.tenant.id != bearer.identity.tenant.id => {
                    return Err(Reason::TwoIdentities);
                }
                Some(_) => {}
            }
        }
        Ok(found.map(|bearer| {
            bearer.last_use.mark(now);
            bearer.identity.clone()
        }))
    }

    /// No proof at all: somebody only where the listener says so.
    fn nobody(&self, caller: &Caller<'_>) -> Result<Identity, Reason> {
        let anonymous = caller.anonymous.and_then(|id| self.tenants.get(id));
        let Some(tenant) = anonymous else {
            let unknown = caller.certificate.is_some() && caller.accept.client_certificate;
            return Err(if unknown {
                Reason::NoTenant
            } else {
                Reason::Missing
            });
        };
        Ok(Identity {
            tenant: tenant.clone(),
            kind: CredentialKind::Anonymous,
            credential_id: self.anonymous_id.clone(),
            models: None,
            body_digest: None,
        })
    }
}

/// What the tenant says of its own: is it on, does it take this kind, from there?
fn may_enter(identity: &Identity, address: IpAddr) -> Result<(), Reason> {
    let tenant = &identity.tenant;
    if !tenant.enabled {
        return Err(Reason::TenantDisabled);
    }
    if !tenant.accept.takes(identity.kind) {
        return Err(Reason::KindNotAllowed);
    }
    match &tenant.allow_from {
        Some(networks) if !networks.contains(address) => Err(Reason::AddressNotAllowed),
        _ => Ok(()),
    }
}

fn counts(validity: &Validity, now: i64) -> Result<(), Reason> {
    if !validity.enabled {
        return Err(Reason::CredentialDisabled);
    }
    let begun = validity
        .not_before
        .is_none_or(|begin| begin.as_second() <= now);
    let over = validity.not_after.is_some_and(|end| end.as_second() <= now);
    match (begun, over) {
        (_, true) => Err(Reason::Expired),
        (false, _) => Err(Reason::NotYetValid),
        (true, false) => Ok(()),
    }
}

/// The configuration allows an hour at most.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
