//! From a presented credential to the tenant it belongs to.
//!
//! One table for all tenants, keyed by key id: a look-up costs the same for one tenant as for a
//! hundred thousand. For whatever is shaped like a key, [`Directory::identify`]
//! hashes once and compares once, so neither the answer nor its timing tells which part was wrong.

use std::collections::HashMap;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::api_key;
use super::credential::Presented;
use crate::config::settings::{Credential, Tenant};
use crate::request::refusal::{Code, Refusal};

/// A caller whose credential was found good.
#[derive(Debug, Clone)]
pub struct Identity {
    pub tenant: Arc<Tenant>,
    /// Id of the credential, for the log; never the credential.
    pub credential_id: Arc<str>,
}

/// Why a credential was refused: for metrics and the log, not for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NotAKey,
    UnknownId,
    WrongSecret,
    TenantDisabled,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAKey => "not_a_key",
            Self::UnknownId => "unknown_id",
            Self::WrongSecret => "wrong_secret",
            Self::TenantDisabled => "tenant_disabled",
        }
    }
}

struct Entry {
    hash: [u8; 32],
    identity: Identity,
}

/// All credentials of a configuration, ready to be looked up.
pub struct Directory {
    keys: HashMap<String, Entry>,
}

impl Directory {
    pub fn new(tenants: &[Arc<Tenant>]) -> Self {
        let mut keys = HashMap::new();
        for tenant in tenants {
            for Credential::ApiKey(key) in &tenant.credentials {
                let identity = Identity {
                    tenant: tenant.clone(),
                    credential_id: Arc::from(key.id.as_str()),
                };
                keys.insert(
                    key.id.clone(),
                    Entry {
                        hash: key.hash,
                        identity,
                    },
                );
            }
        }
        Self { keys }
    }

    /// Who is this?
    ///
    /// # Errors
    /// The reason, to be counted; the caller gets [`refuse`]'s words, the same for all of them.
    pub fn identify(&self, presented: Presented<'_>) -> Result<Identity, Reason> {
        let Presented::Bearer(text) = presented;
        let id = api_key::id(text).map_err(|_| Reason::NotAKey)?;
        let hash = api_key::hash(text);
        let entry = self.keys.get(id);
        // An unknown id is compared too, against nothing that could match.
        let stored = entry.map_or([0; 32], |entry| entry.hash);
        let matches = bool::from(hash.ct_eq(&stored));
        match entry {
            None => Err(Reason::UnknownId),
            Some(_) if !matches => Err(Reason::WrongSecret),
            Some(entry) if !entry.identity.tenant.enabled => Err(Reason::TenantDisabled),
            Some(entry) => Ok(entry.identity.clone()),
        }
    }
}

/// What a caller with a bad credential is told.
pub fn refuse() -> Refusal {
    Refusal::new(
        Code::InvalidCredential,
        "The key is not valid here. Check that it is complete and meant for this gateway.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{AllowedModels, ApiKey, TenantId};

    fn tenant(id: &str, enabled: bool, keys: &[&api_key::NewKey]) -> Arc<Tenant> {
        let credentials = keys
            .iter()
            .map(|key| {
                Credential::ApiKey(ApiKey {
                    id: key.id.clone(),
                    hash: key.hash,
                })
            })
            .collect();
        Arc::new(Tenant {
            id: TenantId::new(id),
            enabled,
            models: AllowedModels::All,
            balance: false,
            files: true,
            credentials,
        })
    }

    #[test]
    fn each_key_leads_to_its_tenant_and_no_other() {
        let (a, b, c) = (
            api_key::make("a", &[1; 32]),
            api_key::make("b", &[2; 32]),
            api_key::make("c", &[3; 32]),
        );
        let directory =
            Directory::new(&[tenant("one", true, &[&a, &b]), tenant("off", false, &[&c])]);
        let who = |key: &str| directory.identify(Presented::Bearer(key));
        assert_eq!(who(a.key.expose()).unwrap().tenant.id.as_str(), "one");
        assert_eq!(&*who(b.key.expose()).unwrap().credential_id, "b");
        assert_eq!(who(c.key.expose()).unwrap_err(), Reason::TenantDisabled);
        assert_eq!(
            who(api_key::make("a", &[9; 32]).key.expose()).unwrap_err(),
            Reason::WrongSecret
        );
        assert_eq!(
            who(api_key::make("z", &[1; 32]).key.expose()).unwrap_err(),
            Reason::UnknownId
        );
        assert_eq!(who("sk-something").unwrap_err(), Reason::NotAKey);
        let with_nul = format!("{}\0", a.key.expose());
        assert_eq!(who(&with_nul).unwrap_err(), Reason::NotAKey);
    }
}
