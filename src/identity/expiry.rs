//! Which credentials come to their end soon, for those who have to make new ones.

use crate::config::settings::{Credential, CredentialKind, Tenant, TenantId};

/// A credential that has an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub tenant: TenantId,
    pub kind: CredentialKind,
    pub id: String,
    /// Unix seconds.
    pub not_after: i64,
}

/// All credentials in use that have an end, in the order of the configuration.
pub fn endings<'a>(tenants: impl IntoIterator<Item = &'a Tenant>) -> impl Iterator<Item = Ending> {
    tenants
        .into_iter()
        .filter(|tenant| tenant.enabled)
        .flat_map(|tenant| {
            tenant.credentials.iter().filter_map(|credential| {
                let (kind, id, validity) = match credential {
                    Credential::ApiKey(key) => (CredentialKind::ApiKey, &key.id, &key.validity),
                    Credential::SignedRequest(signer) => {
                        (CredentialKind::SignedRequest, &signer.id, &signer.validity)
                    }
                    Credential::ClientCertificate(_) => return None,
                };
                let end = validity.not_after.filter(|_| validity.enabled)?;
                Some(Ending {
                    tenant: tenant.id.clone(),
                    kind,
                    id: id.clone(),
                    not_after: end.as_second(),
                })
            })
        })
}
