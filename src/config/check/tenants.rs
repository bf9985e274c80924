//! The rules of `tenants`: who they are, what they may use, how they prove it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Check;
use crate::config::file::{self, File};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::nearest::hint;
use crate::config::settings::{AllowedModels, ApiKey, Credential, Tenant, TenantId};

/// What must be unique over all tenants, and where it stands.
#[derive(Default)]
struct Seen<'f> {
    tenants: HashMap<&'f str, String>,
    keys: HashMap<&'f str, String>,
    hashes: HashMap<[u8; 32], String>,
}

impl Check<'_, '_> {
    pub(super) fn tenants(&mut self, file: &File) -> Vec<Arc<Tenant>> {
        let path = KeyPath::Root.key("tenants");
        if file.tenants.is_empty() {
            self.report.warning(
                path,
                "there are no tenants",
                "every request will be refused",
            );
        }
        let mut seen = Seen::default();
        let tenants = file.tenants.iter().enumerate();
        tenants
            .map(|(index, tenant)| {
                Arc::new(self.tenant(tenant, file, &mut seen, path.index(index)))
            })
            .collect()
    }

    fn tenant<'f>(
        &mut self,
        written: &'f file::Tenant,
        file: &File,
        seen: &mut Seen<'f>,
        path: KeyPath<'_>,
    ) -> Tenant {
        self.id(&written.id, path.key("id"));
        self.unique(
            &mut seen.tenants,
            &written.id,
            &quoted(&written.id),
            path.key("id"),
        );
        let list = path.key("credentials");
        let credentials = written.credentials.iter().enumerate();
        let credentials = credentials.filter_map(|(index, credential)| {
            let item = list.index(index);
            self.api_key(&credential.api_key, seen, item.key("api_key"))
                .map(Credential::ApiKey)
        });
        let credentials = credentials.collect();
        Tenant {
            id: TenantId::new(&written.id),
            enabled: written.enabled,
            models: self.allowed_models(&written.models, file, path.key("models")),
            balance: written.balance,
            files: written.files,
            credentials,
        }
    }

    fn allowed_models(
        &mut self,
        written: &[String],
        file: &File,
        path: KeyPath<'_>,
    ) -> AllowedModels {
        if written.iter().any(|name| name == "*") {
            if written.len() > 1 {
                self.report.mistake(
                    path,
                    "\"*\" beside other names",
                    "\"*\" stands for all models and alone",
                );
            }
            return AllowedModels::All;
        }
        let mut names = HashSet::new();
        for (index, name) in written.iter().enumerate() {
            if self.report.is_full() {
                break;
            }
            let path = path.index(index);
            if !file.models.contains_key(name) {
                let hint = hint(name, file.models.keys().map(String::as_str));
                let allowed = format!("names of `models` may stand here, or \"*\" for all{hint}");
                self.report.mistake(
                    path,
                    format!("no model has the name {}", quoted(name)),
                    allowed,
                );
            }
            if !names.insert(name.clone()) {
                self.report.mistake(
                    path,
                    format!("{} a second time", quoted(name)),
                    "once is enough",
                );
            }
        }
        AllowedModels::Listed(names)
    }

    fn api_key<'f>(
        &mut self,
        written: &'f file::ApiKey,
        seen: &mut Seen<'f>,
        path: KeyPath<'_>,
    ) -> Option<ApiKey> {
        self.id(&written.id, path.key("id"));
        self.unique(
            &mut seen.keys,
            &written.id,
            &quoted(&written.id),
            path.key("id"),
        );
        let Some(hash) = sha256(&written.hash) else {
            // Someone may have put the key itself here, so it is not quoted.
            let allowed =
                "expected sha256: and 64 hexadecimal digits, as `tidegate key new` prints them";
            self.report.mistake(
                path.key("hash"),
                "text that is not a hash (not shown)",
                allowed,
            );
            return None;
        };
        self.unique(&mut seen.hashes, hash, "this hash", path.key("hash"));
        if hash.iter().all(|byte| Some(byte) == hash.first()) {
            let advice = "no key fits it; `tidegate key new` makes a key and its hash";
            self.report.warning(
                path.key("hash"),
                "a hash that only holds the place of one",
                advice,
            );
        }
        Some(ApiKey {
            id: written.id.clone(),
            hash,
        })
    }
}

/// Reads `sha256:` and 64 hexadecimal digits.
fn sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:")?;
    if digits.len() != 64 {
        return None;
    }
    let nibble = |digit: &u8| {
        char::from(*digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = nibble(high)? << 4 | nibble(low)?;
    }
    Some(hash)
}
