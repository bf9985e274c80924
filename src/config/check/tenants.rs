//! The rules of `tenants`: who they are, what they may use, how they prove it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Check;
use super::identity::SeenCredentials;
use super::plans::Plans;
use crate::config::file::{self, File};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::nearest::hint;
use crate::config::settings::{AllowedModels, Tenant, TenantId};

/// What must be unique over all tenants, and where it stands.
#[derive(Default)]
struct Seen<'f> {
    tenants: HashMap<&'f str, String>,
    credentials: SeenCredentials<'f>,
}

impl Check<'_, '_> {
    pub(super) fn tenants(&mut self, file: &File, plans: &Plans) -> Vec<Arc<Tenant>> {
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
                Arc::new(self.tenant(tenant, file, plans, &mut seen, path.index(index)))
            })
            .collect()
    }

    fn tenant<'f>(
        &mut self,
        written: &'f file::Tenant,
        file: &File,
        plans: &Plans,
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
            self.credential(credential, file, &mut seen.credentials, list.index(index))
        });
        let credentials = credentials.collect();
        if written.credentials.is_empty() && !is_reached_otherwise(&written.id, file) {
            self.report.warning(
                path,
                "a tenant without credentials",
                "nobody can call as this tenant: no token issuer and no anonymous listener leads to it",
            );
        }
        let allow_from = written.allow_from.as_ref();
        Tenant {
            id: TenantId::new(&written.id),
            enabled: written.enabled,
            models: self.allowed_models(&written.models, file, path.key("models")),
            balance: written.balance,
            files: written.files,
            credentials,
            accept: self.accepted(written.accept.as_ref(), path.key("accept")),
            allow_from: allow_from.map(|networks| networks.iter().map(|text| text.0).collect()),
            plan: self.known_plan(&written.plan, plans, path.key("plan")),
            group: written
                .group
                .as_ref()
                .and_then(|group| self.known_group(group, plans, path.key("group"))),
            deadlines: self.deadlines(
                &written.deadlines,
                &file::Deadlines::default(),
                path.key("deadlines"),
            ),
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
}

/// Does a signed token or a listener without credentials lead to this tenant?
fn is_reached_otherwise(id: &str, file: &File) -> bool {
    let by_token = file.identity.tokens.iter().any(|issuer| {
        let map = &issuer.tenant.map;
        map.is_empty() || map.values().any(|tenant| tenant == id)
    });
    let listeners = &file.server.listeners;
    by_token
        || listeners
            .iter()
            .any(|listener| listener.anonymous_tenant.as_deref() == Some(id))
}
