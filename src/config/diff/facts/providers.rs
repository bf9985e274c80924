//! Facts of those who answer: upstreams, their endpoints and accounts, and the models they serve.

use super::{Fact, Restart, Things, none, optional, path, resilience, text, tls_files, version};
use crate::config::settings::{
    Account, Endpoint, Envelope, Governor, Health, Model, Upstream, UpstreamAuth, UpstreamTls,
};
use crate::config::text::format_duration;

impl<'a> Things<'a> {
    pub(super) fn upstream(&mut self, upstream: &'a Upstream) {
        let Upstream {
            id,
            dialect,
            auth,
            protocol,
            tls:
                UpstreamTls {
                    ca,
                    server_name,
                    min_version,
                    client,
                    pins,
                    unverified,
                },
            timeouts,
            idle_timeout,
            dns_refresh,
            health,
            surfaces,
            envelope,
            governor,
            outlier,
            breaker,
            affinity,
            credit,
            endpoints,
            accounts,
        } = upstream;
        let name = format!("upstream {id}");
        let mut facts = vec![
            ("dialect", text(format!("{dialect:?}").to_lowercase())),
            ("auth", text(auth_text(auth))),
            ("protocol", text(format!("{protocol:?}").to_lowercase())),
            ("tls.ca", ca.as_deref().map_or_else(none, path)),
            ("tls.server_name", optional(server_name.as_deref())),
            ("tls.min_version", optional(min_version.map(version))),
            (
                "tls.client_certificate",
                client
                    .as_ref()
                    .map_or_else(none, |files| text(tls_files(files))),
            ),
            (
                "tls.pins",
                Fact::Set(pins.iter().map(hex::encode).collect()),
            ),
            ("tls.verify", text(!unverified)),
            ("idle_timeout", text(format_duration(*idle_timeout))),
            ("dns_refresh", text(format_duration(*dns_refresh))),
            ("health", health.as_ref().map_or_else(none, health_fact)),
            (
                "governor",
                governor.as_ref().map_or_else(none, governor_fact),
            ),
            ("outlier", resilience::outlier(outlier.as_ref())),
            ("breaker", resilience::breaker(breaker.as_ref())),
            ("affinity", resilience::affinity(affinity.as_ref())),
            ("surfaces", Fact::Set(surfaces.iter().cloned().collect())),
        ];
        facts.extend(resilience::credit(credit.as_ref()));
        facts.extend(resilience::timeouts(timeouts));
        facts.extend(envelope_facts(envelope.as_ref()));
        self.endpoints(endpoints, &name);
        self.accounts(accounts, &name);
        self.add(name, None, Restart::Never, facts);
    }

    fn endpoints(&mut self, endpoints: &[Endpoint], name: &str) {
        for endpoint in endpoints {
            // The other fields are read from the URL.
            let Endpoint {
                url,
                tls: _,
                host: _,
                port: _,
                base_path: _,
                priority,
                weight,
                max_concurrent,
            } = endpoint;
            let facts = vec![
                ("priority", text(priority)),
                ("weight", text(weight)),
                ("max_concurrent", max_concurrent.map_or_else(none, text)),
            ];
            self.add(
                format!("{name} endpoint {url}"),
                Some(name),
                Restart::Never,
                facts,
            );
        }
    }

    fn accounts(&mut self, accounts: &'a [Account], name: &str) {
        for Account {
            id,
            api_key,
            key_id,
            max_concurrent,
            priority,
            weight,
        } in accounts
        {
            let limits = max_concurrent
                .iter()
                .map(|(model, limit)| format!("{model}={limit}"));
            let facts = vec![
                ("key", Fact::Secret(api_key.as_ref())),
                ("key_id", text(key_id)),
                ("max_concurrent", Fact::Set(limits.collect())),
                ("priority", text(priority)),
                ("weight", text(weight)),
            ];
            self.add(
                format!("{name} account {id}"),
                Some(name),
                Restart::Never,
                facts,
            );
        }
    }

    pub(super) fn model(&mut self, model: &Model) {
        let Model {
            name,
            variants,
            set,
            usual_output_tokens,
            deadlines,
            degraded,
            resume,
        } = model;
        let set = set.iter().map(|(field, value)| format!("{field}={value}"));
        let mut facts = vec![
            ("variants", resilience::variants(variants)),
            ("set", Fact::Set(set.collect())),
            ("usual_output_tokens", text(usual_output_tokens)),
            ("degraded", resilience::degraded(degraded.as_ref())),
            ("resume", text(resume)),
        ];
        facts.extend(resilience::deadlines(deadlines));
        self.add(format!("model {name}"), None, Restart::Never, facts);
    }
}

/// Both facts are there for every dialect, so that a change of dialect compares like with like.
fn envelope_facts(envelope: Option<&Envelope>) -> [(&'static str, Fact<'static>); 2] {
    let (success, statuses) = match envelope {
        None => Default::default(),
        Some(Envelope { success, statuses }) => {
            let status = |(code, status): (&String, &u16)| format!("{code}={status}");
            (
                success.iter().cloned().collect(),
                statuses.iter().map(status).collect(),
            )
        }
    };
    [
        ("envelope.success", Fact::Set(success)),
        ("envelope.statuses", Fact::Set(statuses)),
    ]
}

fn health_fact(health: &Health) -> Fact<'static> {
    let Health {
        interval,
        timeout,
        healthy_after,
        unhealthy_after,
        path,
        authenticated,
    } = health;
    let key = if *authenticated { " with key" } else { "" };
    text(format!(
        "{path}{key} every {} within {}, up after {healthy_after}, down after {unhealthy_after}",
        format_duration(*interval),
        format_duration(*timeout),
    ))
}

fn auth_text(auth: &UpstreamAuth) -> String {
    match auth {
        UpstreamAuth::Key { header, scheme } => format!("key in {header} {scheme:?}"),
        UpstreamAuth::Signing(signing) => format!("{signing:?}"),
    }
}

fn governor_fact(governor: &Governor) -> Fact<'static> {
    let Governor {
        floor,
        decrease_percent,
        recovery,
        slow_factor,
    } = governor;
    text(format!(
        "down {decrease_percent} % to {floor}, up every {}, slow from {slow_factor} times on",
        format_duration(*recovery),
    ))
}
