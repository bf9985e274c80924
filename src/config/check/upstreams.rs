//! The rules of `upstreams`: where they are, how to reach them, whose account pays.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;

use super::resilience::affinity;
use super::server::tls_version;
use super::url::{self, is_host};
use super::{ABOVE_ZERO, Check};
use crate::config::file::{self, File, Surface};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::settings::{
    Account, AccountId, Dialect, Endpoint, Governor, Health, TlsFiles, Upstream, UpstreamId,
    UpstreamProtocol, UpstreamTls,
};

/// Probes and look-ups more often than this are traffic of their own.
pub(super) const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// What an upstream can do: as written, or as its dialect has it.
pub(super) fn surfaces(written: &file::Upstream) -> Vec<Surface> {
    use Surface::{Balance, Chat, Completions, Embeddings, Files, Messages, Responses};
    match (&written.surfaces, written.dialect) {
        (Some(written), _) => written.clone(),
        (None, file::Dialect::DeepSeek) => {
            vec![Chat, Completions, Messages, Responses, Files, Balance]
        }
        (None, file::Dialect::OpenAi | file::Dialect::Enveloped) => {
            vec![Chat, Completions, Embeddings, Responses, Messages]
        }
    }
}

fn surface_name(surface: Surface) -> &'static str {
    match surface {
        Surface::Chat => "chat",
        Surface::Completions => "completions",
        Surface::Embeddings => "embeddings",
        Surface::Messages => "messages",
        Surface::Responses => "responses",
        Surface::Files => "files",
        Surface::Balance => "balance",
    }
}

impl Check<'_, '_> {
    pub(super) fn upstreams(&mut self, file: &File) -> Vec<Arc<Upstream>> {
        let path = KeyPath::Root.key("upstreams");
        let variants = file
            .models
            .values()
            .flat_map(|model| model.variants.iter().flatten());
        let mut used: HashMap<&str, HashSet<&str>> = HashMap::new();
        for variant in variants {
            used.entry(&variant.upstream)
                .or_default()
                .insert(&variant.model);
        }
        let nothing = HashSet::new();
        let mut seen = HashMap::new();
        let mut upstreams = Vec::new();
        for (index, written) in file.upstreams.iter().enumerate() {
            let path = path.index(index);
            self.id(&written.id, path.key("id"));
            self.unique(&mut seen, &written.id, &quoted(&written.id), path.key("id"));
            let models = used.get(written.id.as_str()).unwrap_or(&nothing);
            let named = [&file.files, &file.balance]
                .into_iter()
                .flatten()
                .any(|by| by.upstream == written.id);
            if models.is_empty() && !named {
                self.report.warning(
                    path,
                    "no model uses this upstream",
                    "it is probed and otherwise idle",
                );
            }
            upstreams.push(Arc::new(self.upstream(written, models, path)));
        }
        upstreams
    }

    fn upstream(
        &mut self,
        written: &file::Upstream,
        models: &HashSet<&str>,
        path: KeyPath<'_>,
    ) -> Upstream {
        if written.protocol == file::Protocol::Http2 && !written.tls.pins.is_empty() {
            let allowed =
                "expected http1: HTTP/2 begins to speak before the upstream's key can be looked at";
            self.report.mistake(
                path.key("protocol"),
                "http2 together with tls.pins",
                allowed,
            );
        }
        Upstream {
            id: UpstreamId::new(&written.id),
            dialect: match written.dialect {
                file::Dialect::DeepSeek => Dialect::DeepSeek,
                file::Dialect::OpenAi => Dialect::OpenAi,
                file::Dialect::Enveloped => Dialect::Enveloped,
            },
            auth: self.auth(written, &surfaces(written), path.key("auth")),
            protocol: match written.protocol {
                file::Protocol::Http1 => UpstreamProtocol::Http1,
                file::Protocol::Http2 => UpstreamProtocol::Http2,
            },
            tls: self.upstream_tls(&written.tls, path.key("tls")),
            timeouts: self.timeouts(&written.timeouts, path.key("timeouts")),
            idle_timeout: self.duration(written.idle_timeout, ABOVE_ZERO, path.key("idle_timeout")),
            dns_refresh: self.duration(
                written.dns_refresh,
                LEAST_INTERVAL,
                path.key("dns_refresh"),
            ),
            health: self.health(written, path.key("health")),
            surfaces: self.surfaces(written, path.key("surfaces")),
            envelope: self.envelope(written, path.key("envelope")),
            governor: self.governor(written.governor.as_ref(), path.key("governor")),
            outlier: self.outlier(written.outlier.as_ref(), path.key("outlier")),
            breaker: self.breaker(written.breaker.as_ref(), path.key("breaker")),
            affinity: affinity(written.affinity.as_ref()),
            credit: self.credit(written, path.key("credit")),
            endpoints: self.endpoints(written, path.key("endpoints")),
            accounts: self.accounts(written, models, path.key("accounts")),
        }
    }

    fn upstream_tls(&mut self, written: &file::UpstreamTls, path: KeyPath<'_>) -> UpstreamTls {
        if !written.verify {
            self.unverified(path.key("verify"));
        }
        if let Some(name) = written.server_name.as_deref().filter(|name| !is_host(name)) {
            self.report.mistake(
                path.key("server_name"),
                quoted(name),
                "expected a host name",
            );
        }
        let ca: Option<PathBuf> = written.ca.as_ref().map(|ca| self.path(ca, path.key("ca")));
        let min_version = Some(tls_version(written.min_version));
        let client = match (&written.client_certificate, &written.client_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate: self.path(certificate, path.key("client_certificate")),
                private_key: self.path(key, path.key("client_key")),
            }),
            (None, None) => None,
            _ => {
                let allowed = "client_certificate and client_key go together";
                self.report.mistake(path, "one without the other", allowed);
                None
            }
        };
        UpstreamTls {
            ca,
            server_name: written.server_name.clone(),
            min_version,
            client,
            pins: self.pins(&written.pins, path.key("pins")),
            unverified: !written.verify,
        }
    }

    /// Whoever is in between reads prompts and takes keys.
    fn unverified(&mut self, path: KeyPath<'_>) {
        let found = "an upstream whose certificate is not verified";
        if self.profile == file::Profile::Development {
            let advice = "anyone on the way can read keys and prompts";
            self.report.warning(path, found, advice);
        } else {
            let allowed =
                "only under `profile: development`; name its authority in `ca`, or pin its key";
            self.report.mistake(path, found, allowed);
        }
    }

    /// `sha256//` and base64, the form that curl and others take.
    fn pins(&mut self, written: &[String], path: KeyPath<'_>) -> Vec<[u8; 32]> {
        let mut seen = HashMap::new();
        let mut pins = Vec::new();
        for (index, text) in written.iter().enumerate() {
            let path = path.index(index);
            let pin = text
                .strip_prefix("sha256//")
                .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
                .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            let Some(pin) = pin else {
                let allowed = "expected sha256// and the 44 characters of base64 that curl's --pinnedpubkey takes";
                self.report.mistake(path, quoted(text), allowed);
                continue;
            };
            self.unique(&mut seen, pin, &quoted(text), path);
            pins.push(pin);
        }
        pins
    }

    fn health(&mut self, upstream: &file::Upstream, path: KeyPath<'_>) -> Option<Health> {
        let standard = file::Probe::default();
        let written = match upstream.health.as_ref()? {
            file::Health::Switch(false) => return None,
            file::Health::Switch(true) => &standard,
            file::Health::Probe(probe) => probe,
        };
        let deepseek = upstream.dialect == file::Dialect::DeepSeek;
        let usual = if deepseek { "/models" } else { "/health" };
        let probe_path = written.path.as_deref().unwrap_or(usual);
        if probe_path != "/" && !url::is_path(probe_path) {
            self.report.mistake(
                path.key("path"),
                quoted(probe_path),
                "expected a path that begins with /",
            );
        }
        Some(Health {
            interval: self.duration(written.interval, LEAST_INTERVAL, path.key("interval")),
            timeout: self.duration(written.timeout, ABOVE_ZERO, path.key("timeout")),
            healthy_after: written.healthy_after,
            unhealthy_after: written.unhealthy_after,
            path: probe_path.to_owned(),
            authenticated: written.authenticated.unwrap_or(deepseek),
        })
    }

    fn governor(
        &mut self,
        written: Option<&file::Governor>,
        path: KeyPath<'_>,
    ) -> Option<Governor> {
        let standard = file::GovernorRules::default();
        let written = match written? {
            file::Governor::Switch(false) => return None,
            file::Governor::Switch(true) => &standard,
            file::Governor::Rules(rules) => rules,
        };
        Some(Governor {
            floor: written.floor,
            decrease_percent: written.decrease_percent,
            recovery: self.duration(written.recovery, LEAST_INTERVAL, path.key("recovery")),
            slow_factor: written.slow_factor,
        })
    }

    fn surfaces(&mut self, written: &file::Upstream, path: KeyPath<'_>) -> Vec<String> {
        let surfaces: Vec<&str> = surfaces(written).into_iter().map(surface_name).collect();
        if surfaces.is_empty() {
            self.report.mistake(
                path,
                "an empty list",
                "an upstream that can do nothing serves nobody",
            );
        }
        let mut seen = HashMap::new();
        for (index, surface) in surfaces.iter().enumerate() {
            self.unique(&mut seen, *surface, surface, path.index(index));
        }
        surfaces.into_iter().map(str::to_owned).collect()
    }

    fn endpoints(&mut self, upstream: &file::Upstream, path: KeyPath<'_>) -> Vec<Endpoint> {
        let mut seen = HashMap::new();
        let mut endpoints = Vec::new();
        for (index, written) in upstream.endpoints.iter().enumerate() {
            let item = path.index(index);
            let path = item.key("url");
            let endpoint = match url::parse(&written.url) {
                Ok(endpoint) => endpoint,
                Err(why) => {
                    // A URL may hold a password, so it is not quoted.
                    self.report.mistake(path, why.to_string(), url::FORM);
                    continue;
                }
            };
            if !endpoint.tls && !upstream.tls.plaintext && !url::is_private(&endpoint.host) {
                let found = format!(
                    "http:// to {}, which is not known to be in a private network",
                    endpoint.host
                );
                let allowed = "keys and prompts would travel in the clear; use https://, or allow it by `tls.plaintext: true`";
                self.report.mistake(path, found, allowed);
            }
            let by_address = endpoint.tls && endpoint.host.parse::<IpAddr>().is_ok();
            if by_address && upstream.tls.server_name.is_none() && upstream.tls.verify {
                self.report.warning(
                    path,
                    "https:// to an address, without `tls.server_name`",
                    "certificates are verified by name, so none will be trusted there",
                );
            }
            self.unique(
                &mut seen,
                endpoint.url.clone(),
                &quoted(&endpoint.url),
                path,
            );
            endpoints.push(Endpoint {
                priority: written.priority,
                weight: written.weight,
                max_concurrent: written.max_concurrent,
                ..endpoint
            });
        }
        endpoints
    }

    fn accounts(
        &mut self,
        upstream: &file::Upstream,
        models: &HashSet<&str>,
        path: KeyPath<'_>,
    ) -> Vec<Account> {
        let deepseek = upstream.dialect == file::Dialect::DeepSeek;
        if upstream.accounts.is_empty() && deepseek {
            self.report.mistake(
                path,
                "there are no accounts",
                "dialect deepseek needs at least one, with its api_key",
            );
        } else if upstream.accounts.is_empty() {
            return vec![Account {
                id: AccountId::new("default"),
                api_key: None,
                key_id: "default".to_owned(),
                max_concurrent: Default::default(),
                priority: 0,
                weight: file::WEIGHT,
            }];
        }
        let mut seen = HashMap::new();
        let mut accounts = Vec::new();
        for (index, written) in upstream.accounts.iter().enumerate() {
            let path = path.index(index);
            self.id(&written.id, path.key("id"));
            self.unique(&mut seen, &written.id, &quoted(&written.id), path.key("id"));
            if deepseek && written.api_key.is_none() {
                self.report.mistake(
                    path.key("api_key"),
                    "missing",
                    "dialect deepseek needs a key for each account",
                );
            }
            let limits = path.key("max_concurrent");
            for model in written
                .max_concurrent
                .keys()
                .filter(|model| !models.contains(model.as_str()))
            {
                let allowed = "upstream models of this upstream's variants may stand here; is it a public name?";
                self.report
                    .mistake(limits.key(model), "no variant uses this model", allowed);
            }
            let api_key = written
                .api_key
                .as_ref()
                .and_then(|key| self.secret(key, path.key("api_key")));
            let max_concurrent = written.max_concurrent.clone();
            accounts.push(Account {
                id: AccountId::new(&written.id),
                api_key,
                key_id: written.key_id.clone().unwrap_or_else(|| written.id.clone()),
                max_concurrent,
                priority: written.priority,
                weight: written.weight,
            });
        }
        accounts
    }
}
