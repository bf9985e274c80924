//! Settings as a flat list of named things with facts, which is the form that can be compared.

mod callers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::config::secret::Secret;
use crate::config::settings::{
    Account, Admin, Endpoint, Envelope, Health, Limits, Logging, Model, Retry, Server, Settings,
    TlsFiles, TlsVersion, Upstream, UpstreamAuth, UpstreamId, UpstreamTimeouts, UpstreamTls,
};
use crate::config::text::{format_duration, format_size};

/// One side of a comparison.
#[derive(Debug, PartialEq)]
pub enum Fact<'a> {
    Text(String),
    Set(BTreeSet<String>),
    Secret(Option<&'a Secret>),
    Hash(&'a [u8; 32]),
}

/// Something with a name of its own.
pub struct Thing<'a> {
    /// The thing that this one comes and goes with.
    pub part_of: Option<String>,
    pub restart: Restart,
    pub facts: Vec<(&'static str, Fact<'a>)>,
}

/// Which changes of a thing need a restart.
#[derive(Debug, Clone, Copy)]
pub enum Restart {
    Never,
    /// Each fact, under this prefix.
    EachKey(&'static str),
    /// Any, reported as this key.
    As(&'static str),
    /// `logging.format` alone.
    LogFormat,
}

impl Restart {
    /// The key to report when the thing as a whole came or went.
    pub fn whole(self) -> Option<&'static str> {
        match self {
            Self::Never | Self::LogFormat => None,
            Self::EachKey(key) | Self::As(key) => Some(key),
        }
    }

    /// The key to report when the fact `key` changed.
    pub fn key(self, key: &str) -> Option<String> {
        match self {
            Self::Never => None,
            Self::EachKey(prefix) => Some(format!("{prefix}.{key}")),
            Self::As(name) => Some(name.to_owned()),
            Self::LogFormat => (key == "format").then(|| "logging.format".to_owned()),
        }
    }
}

/// Everything in `settings`, by name.
pub fn things(settings: &Settings) -> BTreeMap<String, Thing<'_>> {
    let Settings {
        profile,
        server,
        logging,
        retry,
        identity,
        tenants,
        upstreams,
        models,
        files,
        balance,
        accounting: _,
        queue: _,
        plans: _,
        groups: _,
    } = settings;
    let mut things = Things(BTreeMap::new());
    things.server(server);
    let facts = vec![("profile", text(format!("{profile:?}").to_lowercase()))];
    things.add("configuration", None, Restart::Never, facts);
    let Logging {
        level,
        format,
        access,
    } = logging;
    let facts = vec![
        ("level", text(level.as_str().to_lowercase())),
        ("format", text(format!("{format:?}").to_lowercase())),
        ("access", text(access)),
    ];
    things.add("logging", None, Restart::LogFormat, facts);
    let Retry { attempts } = retry;
    things.add(
        "retry",
        None,
        Restart::Never,
        vec![("attempts", text(attempts))],
    );
    things.identity(identity);
    tenants.iter().for_each(|tenant| things.tenant(tenant));
    upstreams
        .iter()
        .for_each(|upstream| things.upstream(upstream));
    models.values().for_each(|model| things.model(model));
    for (name, upstream) in [("files", files), ("balance", balance)] {
        let upstream = upstream.as_ref().map(UpstreamId::as_str);
        things.add(
            name,
            None,
            Restart::Never,
            vec![("upstream", optional(upstream))],
        );
    }
    things.0
}

struct Things<'a>(BTreeMap<String, Thing<'a>>);

impl<'a> Things<'a> {
    fn add(
        &mut self,
        name: impl Into<String>,
        part_of: Option<&str>,
        restart: Restart,
        facts: Vec<(&'static str, Fact<'a>)>,
    ) {
        self.0.insert(
            name.into(),
            Thing {
                part_of: part_of.map(str::to_owned),
                restart,
                facts,
            },
        );
    }

    fn server(&mut self, server: &'a Server) {
        let Server {
            threads,
            state_dir,
            listeners,
            admin,
            shutdown_grace,
            shutdown_pause,
            upstream_idle_connections,
            watch_configuration,
            watch_files,
            store: _,
            limits,
        } = server;
        let facts = vec![
            ("threads", text(threads)),
            ("state_dir", path(state_dir)),
            ("shutdown_grace", text(format_duration(*shutdown_grace))),
            ("shutdown_pause", text(format_duration(*shutdown_pause))),
            ("upstream_idle_connections", text(upstream_idle_connections)),
            (
                "watch_configuration",
                text(format_duration(*watch_configuration)),
            ),
            ("watch_files", text(format_duration(*watch_files))),
        ];
        self.add("server", None, Restart::EachKey("server"), facts);
        self.add(
            "limits",
            None,
            Restart::EachKey("server.limits"),
            limit_facts(limits),
        );
        listeners
            .iter()
            .for_each(|listener| self.listener(listener));
        if let Some(Admin { address, token }) = admin {
            let facts = vec![
                ("address", text(address)),
                ("token", Fact::Secret(token.as_ref())),
            ];
            self.add("admin", None, Restart::EachKey("server.admin"), facts);
        }
    }

    fn upstream(&mut self, upstream: &'a Upstream) {
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
            governor: _,
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
            ("surfaces", Fact::Set(surfaces.iter().cloned().collect())),
        ];
        facts.extend(timeout_facts(timeouts));
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
                max_concurrent: _,
            } = endpoint;
            let facts = vec![("priority", text(priority)), ("weight", text(weight))];
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
        } in accounts
        {
            let limits = max_concurrent
                .iter()
                .map(|(model, limit)| format!("{model}={limit}"));
            let facts = vec![
                ("key", Fact::Secret(api_key.as_ref())),
                ("key_id", text(key_id)),
                ("max_concurrent", Fact::Set(limits.collect())),
            ];
            self.add(
                format!("{name} account {id}"),
                Some(name),
                Restart::Never,
                facts,
            );
        }
    }

    fn model(&mut self, model: &Model) {
        let Model {
            name,
            variants,
            set,
            usual_output_tokens: _,
        } = model;
        let variants = variants
            .iter()
            .map(|variant| format!("{}/{}", variant.upstream, variant.model));
        let set = set.iter().map(|(field, value)| format!("{field}={value}"));
        let facts = vec![
            ("variants", Fact::Set(variants.collect())),
            ("set", Fact::Set(set.collect())),
        ];
        self.add(format!("model {name}"), None, Restart::Never, facts);
    }
}

fn limit_facts(limits: &Limits) -> Vec<(&'static str, Fact<'static>)> {
    let Limits {
        max_request_body,
        max_file_upload,
        max_buffered_bodies,
        max_head,
        max_head_fields,
        max_target,
        head_timeout,
        body_timeout,
        idle_timeout,
        write_timeout,
        tls_handshake_timeout,
        requests_per_connection,
        max_connections,
        max_connections_per_ip,
        max_requests: _,
        max_requests_per_ip: _,
        max_requests_per_second_per_ip: _,
    } = limits;
    let size = |bytes: &usize| text(format_size(*bytes as u64));
    vec![
        ("max_request_body", size(max_request_body)),
        ("max_file_upload", text(format_size(*max_file_upload))),
        ("max_buffered_bodies", size(max_buffered_bodies)),
        ("max_head", size(max_head)),
        ("max_head_fields", text(max_head_fields)),
        ("max_target", size(max_target)),
        ("head_timeout", text(format_duration(*head_timeout))),
        ("body_timeout", text(format_duration(*body_timeout))),
        ("idle_timeout", text(format_duration(*idle_timeout))),
        ("write_timeout", text(format_duration(*write_timeout))),
        (
            "tls_handshake_timeout",
            text(format_duration(*tls_handshake_timeout)),
        ),
        ("requests_per_connection", text(requests_per_connection)),
        ("max_connections", text(max_connections)),
        ("max_connections_per_ip", text(max_connections_per_ip)),
    ]
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

fn timeout_facts(timeouts: &UpstreamTimeouts) -> Vec<(&'static str, Fact<'static>)> {
    let UpstreamTimeouts {
        connect,
        connect_total,
        read,
        write,
        first_content,
        total,
    } = timeouts;
    vec![
        ("timeouts.connect", text(format_duration(*connect))),
        (
            "timeouts.connect_total",
            text(format_duration(*connect_total)),
        ),
        ("timeouts.read", text(format_duration(*read))),
        ("timeouts.write", text(format_duration(*write))),
        (
            "timeouts.first_content",
            text(format_duration(*first_content)),
        ),
        ("timeouts.total", text(format_duration(*total))),
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

pub(super) fn tls_files(files: &TlsFiles) -> String {
    let TlsFiles {
        certificate,
        private_key,
    } = files;
    format!("{} with {}", certificate.display(), private_key.display())
}

fn version(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    }
}

fn text(value: impl ToString) -> Fact<'static> {
    Fact::Text(value.to_string())
}

fn optional(value: Option<&str>) -> Fact<'static> {
    value.map_or_else(none, text)
}

fn none() -> Fact<'static> {
    text("none")
}

fn path(path: &Path) -> Fact<'static> {
    text(path.display())
}
