//! Settings as a flat list of named things with facts, which is the form that can be compared.

mod callers;
mod providers;
mod resilience;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::config::secret::Secret;
use crate::config::settings::{
    Admin, Limits, Logging, Server, Settings, TlsFiles, TlsVersion, UpstreamId,
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
        accounting,
        queue,
        plans,
        groups,
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
    things.retry(retry);
    things.identity(identity);
    things.accounting(accounting);
    things.queue(queue);
    plans.values().for_each(|plan| things.plan(plan));
    groups.values().for_each(|group| things.group(group));
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
            store,
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
        self.store(store);
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
        max_requests,
        max_requests_per_ip,
        max_requests_per_second_per_ip,
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
        ("max_requests", text(max_requests)),
        ("max_requests_per_ip", text(max_requests_per_ip)),
        (
            "max_requests_per_second_per_ip",
            text(max_requests_per_second_per_ip),
        ),
    ]
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
