//! Facts of those who call: listeners, tenants, and how they prove who they are.

use std::collections::BTreeSet;

use super::{Fact, Restart, Things, none, optional, path, resilience, text, tls_files, version};
use crate::config::settings::{
    Accepted, AllowedModels, ApiKey, CertificateName, ClientCertificates, Credential, Identity,
    KeyHash, Listener, ListenerTls, SignedRequest, SignedRequests, Tenant, TokenIssuer, TokenKeys,
    Validity,
};
use crate::config::text::format_duration;

impl<'a> Things<'a> {
    pub(super) fn listener(&mut self, listener: &'a Listener) {
        let Listener {
            address,
            h2c,
            tls,
            accept,
            anonymous_tenant,
            trusted_proxies,
            forwarded_by,
            proxy_protocol_from,
        } = listener;
        let anonymous = anonymous_tenant.as_ref().map(|tenant| tenant.as_str());
        let facts = vec![
            ("h2c", text(h2c)),
            (
                "tls",
                tls.as_ref().map_or_else(none, |tls| text(tls_text(tls))),
            ),
            ("accept", accepted(*accept)),
            ("anonymous_tenant", optional(anonymous)),
            ("trusted_proxies", text(format!("{trusted_proxies:?}"))),
            ("forwarded_by", text(format!("{forwarded_by:?}"))),
            (
                "proxy_protocol_from",
                text(format!("{proxy_protocol_from:?}")),
            ),
        ];
        self.add(
            format!("listener {address}"),
            None,
            Restart::As("server.listeners"),
            facts,
        );
    }

    pub(super) fn identity(&mut self, identity: &'a Identity) {
        let Identity {
            peppers,
            warn_before_expiry,
            failed_attempts_per_minute,
            signed_requests:
                SignedRequests {
                    past,
                    future,
                    max_nonces,
                    max_nonces_per_key,
                },
            tokens,
        } = identity;
        let facts = vec![
            (
                "warn_before_expiry",
                text(format_duration(*warn_before_expiry)),
            ),
            (
                "failed_attempts_per_minute",
                text(failed_attempts_per_minute),
            ),
            ("signed_requests.past", text(format_duration(*past))),
            ("signed_requests.future", text(format_duration(*future))),
        ];
        self.add("identity", None, Restart::Never, facts);
        let facts = vec![
            ("max_nonces", text(max_nonces)),
            ("max_nonces_per_key", text(max_nonces_per_key)),
        ];
        let restart = Restart::EachKey("identity.signed_requests");
        self.add("signed requests", None, restart, facts);
        for (name, pepper) in peppers {
            let facts = vec![("secret", Fact::Secret(Some(pepper)))];
            self.add(format!("pepper {name}"), None, Restart::Never, facts);
        }
        tokens.iter().for_each(|issuer| self.token_issuer(issuer));
    }

    fn token_issuer(&mut self, written: &'a TokenIssuer) {
        let TokenIssuer {
            id,
            issuer,
            audiences,
            algorithm,
            keys,
            tenant_claim,
            tenant_map,
            leeway,
            max_lifetime,
            required_claims,
            models_claim,
        } = written;
        let pairs = tenant_map.iter().flatten();
        let required = required_claims.iter().map(|(claim, value)| match value {
            Some(value) => format!("{claim}={value}"),
            None => claim.clone(),
        });
        let (source, secret) = match keys {
            TokenKeys::File(file) => (path(file), None),
            TokenKeys::Url { url, refresh, ca } => {
                let ca = ca.as_ref().map(|ca| format!(" by {}", ca.display()));
                let every = format_duration(*refresh);
                // A query may hold a token.
                let url = url.split('?').next().unwrap_or_default();
                (
                    text(format!("{url} every {every}{}", ca.unwrap_or_default())),
                    None,
                )
            }
            TokenKeys::Secret(secret) => (text("a secret"), Some(secret)),
        };
        let facts = vec![
            ("issuer", text(issuer)),
            ("audiences", Fact::Set(audiences.iter().cloned().collect())),
            ("algorithm", text(format!("{algorithm:?}"))),
            ("keys", source),
            ("secret", Fact::Secret(secret)),
            ("tenant.claim", text(tenant_claim)),
            (
                "tenant.map",
                Fact::Set(
                    pairs
                        .map(|(value, tenant)| format!("{value}={tenant}"))
                        .collect(),
                ),
            ),
            ("leeway", text(format_duration(*leeway))),
            (
                "max_lifetime",
                max_lifetime.map_or_else(none, |time| text(format_duration(time))),
            ),
            ("required_claims", Fact::Set(required.collect())),
            ("models_claim", optional(models_claim.as_deref())),
        ];
        self.add(format!("token issuer {id}"), None, Restart::Never, facts);
    }

    pub(super) fn tenant(&mut self, tenant: &'a Tenant) {
        let Tenant {
            id,
            enabled,
            models,
            balance,
            files,
            credentials,
            accept,
            allow_from,
            plan,
            group,
            deadlines,
        } = tenant;
        let name = format!("tenant {id}");
        let models = match models {
            AllowedModels::All => BTreeSet::from(["*".to_owned()]),
            AllowedModels::Listed(names) => names.iter().cloned().collect(),
        };
        let mut facts = vec![
            ("enabled", text(enabled)),
            ("models", Fact::Set(models)),
            ("balance", text(balance)),
            ("files", text(files)),
            ("accept", accepted(*accept)),
            ("plan", text(&plan.id)),
            (
                "group",
                group.as_ref().map_or_else(none, |group| text(&group.id)),
            ),
            (
                "allow_from",
                allow_from
                    .as_ref()
                    .map_or_else(none, |from| text(format!("{from:?}"))),
            ),
        ];
        facts.extend(resilience::deadlines(deadlines));
        for credential in credentials {
            self.credential(credential, &name);
        }
        self.add(name, None, Restart::Never, facts);
    }

    fn credential(&mut self, credential: &'a Credential, tenant: &str) {
        let (name, facts) = match credential {
            Credential::ApiKey(ApiKey { id, hash, validity }) => {
                let (pepper, hash) = match hash {
                    KeyHash::Sha256(hash) => (None, hash),
                    KeyHash::Peppered { pepper, hash } => (Some(pepper.as_str()), hash),
                };
                let mut facts = vec![("hash", Fact::Hash(hash)), ("pepper", optional(pepper))];
                facts.extend(validity_facts(validity));
                (format!("api key {id}"), facts)
            }
            Credential::SignedRequest(SignedRequest {
                id,
                secret,
                validity,
            }) => {
                let mut facts = vec![("secret", Fact::Secret(Some(secret)))];
                facts.extend(validity_facts(validity));
                (format!("signed request {id}"), facts)
            }
            Credential::ClientCertificate(name) => (certificate_name(name), Vec::new()),
        };
        self.add(
            format!("{tenant} {name}"),
            Some(tenant),
            Restart::Never,
            facts,
        );
    }
}

fn certificate_name(name: &CertificateName) -> String {
    format!("client certificate {name}")
}

fn validity_facts(validity: &Validity) -> [(&'static str, Fact<'static>); 3] {
    let Validity {
        enabled,
        not_before,
        not_after,
    } = validity;
    [
        ("enabled", text(enabled)),
        ("not_before", not_before.map_or_else(none, text)),
        ("not_after", not_after.map_or_else(none, text)),
    ]
}

fn accepted(accepted: Accepted) -> Fact<'static> {
    let Accepted {
        api_key,
        token,
        signed_request,
        client_certificate,
    } = accepted;
    let kinds = [
        (api_key, "api_key"),
        (token, "token"),
        (signed_request, "signed_request"),
        (client_certificate, "client_certificate"),
    ];
    let kinds = kinds.into_iter().filter(|(taken, _)| *taken);
    Fact::Set(kinds.map(|(_, name)| name.to_owned()).collect())
}

fn tls_text(tls: &ListenerTls) -> String {
    let ListenerTls {
        certificates,
        policy,
        min_version,
        clients,
    } = tls;
    let certificates: Vec<String> = certificates.iter().map(tls_files).collect();
    let clients = clients
        .as_ref()
        .map(|ClientCertificates { ca, crl, required }| {
            format!(", clients by {ca:?} without {crl:?}, required: {required}")
        });
    format!(
        "{} from {} {policy:?}{}",
        certificates.join(", "),
        version(*min_version),
        clients.unwrap_or_default()
    )
}
