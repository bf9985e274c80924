//! The rules of `server.store`: a Redis that can be reached, and what happens when it cannot.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Check;
use super::url::{host_and_port, is_private};
use crate::config::file;
use crate::config::mistake::{KeyPath, quoted};
use crate::config::settings::{FailMode, RedisNodes, RedisStore, Store};

/// A reservation stands in the way of every request.
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// Bytes of a prefix, which each key has once.
const MAX_PREFIX: usize = 64;

impl Check<'_, '_> {
    pub(super) fn store(&mut self, written: &file::Store, path: KeyPath<'_>) -> Store {
        match written {
            file::Store::Own(file::OwnStore::Local) => Store::Local,
            file::Store::Shared(shared) => match self.redis(&shared.redis, path.key("redis")) {
                Some(redis) => Store::Redis(redis),
                None => Store::Local,
            },
        }
    }

    fn redis(&mut self, written: &file::Redis, path: KeyPath<'_>) -> Option<RedisStore> {
        let nodes = self.nodes(written, path);
        if written.username.is_some() && written.password.is_none() {
            let allowed = "a user of Redis's ACL has a password here";
            self.report
                .mistake(path.key("password"), "missing beside username", allowed);
        }
        let password = written.password.as_ref();
        let password = password.and_then(|text| self.secret(text, path.key("password")));
        let ca: Option<PathBuf> = written.ca.as_ref().map(|ca| self.path(ca, path.key("ca")));
        if ca.is_some() && !written.tls {
            let allowed = "add `tls: true`, or there is nothing that it would verify";
            self.report
                .mistake(path.key("ca"), "`ca` without `tls`", allowed);
        }
        if written.cluster.is_some() && written.database != 0 {
            let allowed = "a cluster has database 0 alone";
            self.report
                .mistake(path.key("database"), written.database.to_string(), allowed);
        }
        self.prefix(&written.prefix, path.key("prefix"));
        let (least, most) = TIMEOUT;
        let timeout = self.between(written.timeout, least, most, path.key("timeout"));
        let fail = self.fail_mode(written, path);
        Some(RedisStore {
            nodes: nodes?,
            username: written.username.clone(),
            password,
            tls: written.tls,
            ca,
            database: written.database,
            prefix: written.prefix.clone(),
            timeout,
            fail,
        })
    }

    /// Exactly one of the three ways to find a server.
    fn nodes(&mut self, written: &file::Redis, path: KeyPath<'_>) -> Option<RedisNodes> {
        let master = path.key("master");
        if written.master.is_some() && written.sentinels.is_none() {
            let found = "`master` without `sentinels`";
            self.report
                .mistake(master, found, "it is sentinels that know it");
        }
        match (&written.node, &written.sentinels, &written.cluster) {
            (Some(node), None, None) => {
                self.node(node, written.tls, path.key("node"));
                Some(RedisNodes::One(node.clone()))
            }
            (None, Some(sentinels), None) => {
                self.node_list(sentinels, written.tls, path.key("sentinels"));
                let name = written.master.as_deref().unwrap_or_default();
                let plain = name.bytes().all(|b| b.is_ascii_graphic());
                if name.is_empty() || !plain {
                    let allowed = "expected the name that the sentinels know the master by";
                    self.report.mistake(master, quoted(name), allowed);
                }
                Some(RedisNodes::Sentinel {
                    nodes: sentinels.clone(),
                    master: name.to_owned(),
                })
            }
            (None, None, Some(nodes)) => {
                self.node_list(nodes, written.tls, path.key("cluster"));
                Some(RedisNodes::Cluster(nodes.clone()))
            }
            (None, None, None) => {
                let found = "neither `node` nor `sentinels` nor `cluster`";
                let allowed = "one of the three says where Redis is";
                self.report.mistake(path, found, allowed);
                None
            }
            _ => {
                let found = "more than one of `node`, `sentinels` and `cluster`";
                let allowed = "only one of the three says where Redis is";
                self.report.mistake(path, found, allowed);
                None
            }
        }
    }

    fn node_list(&mut self, nodes: &[String], tls: bool, path: KeyPath<'_>) {
        let mut seen = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            self.unique(&mut seen, node, &quoted(node), path.index(index));
            self.node(node, tls, path.index(index));
        }
    }

    fn node(&mut self, node: &str, tls: bool, path: KeyPath<'_>) {
        // A URL may hold a password, so what is not understood is not quoted.
        let Ok((host, Some(_))) = host_and_port(node) else {
            let allowed = "expected host:port, such as 127.0.0.1:6379, and no redis://";
            self.report
                .mistake(path, "an address of another form (not shown)", allowed);
            return;
        };
        if !tls && !is_private(host) {
            let found = format!("{host} without `tls`, and not known to be in a private network");
            let advice = "its password and who uses how much would travel in the clear";
            self.report.warning(path, found, advice);
        }
    }

    fn prefix(&mut self, prefix: &str, path: KeyPath<'_>) {
        // Braces decide where in a cluster a key goes.
        let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'{' | b'}');
        if prefix.len() > MAX_PREFIX || !prefix.bytes().all(allowed) {
            let expected = "expected up to 64 printable characters, without spaces and braces";
            self.report.mistake(path, quoted(prefix), expected);
        }
    }

    fn fail_mode(&mut self, written: &file::Redis, path: KeyPath<'_>) -> FailMode {
        match (written.fail, written.hosts) {
            (file::Fail::Open, _) => FailMode::Open,
            (file::Fail::Closed, _) => FailMode::Closed,
            (file::Fail::LocalShare, Some(hosts)) => FailMode::LocalShare { hosts },
            (file::Fail::LocalShare, None) => {
                let allowed =
                    "`fail: local-share` needs to know among how many hosts limits are shared";
                self.report.mistake(path.key("hosts"), "missing", allowed);
                FailMode::LocalShare { hosts: 1 }
            }
        }
    }
}
