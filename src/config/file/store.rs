//! `server.store`: where counts are kept, as written. Changes need a restart.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Required;
use crate::config::secret::SecretText;
use crate::config::text::DurationText;

/// Several products may share a server.
pub const REDIS_PREFIX: &str = "tidegate";
/// Ten times a round trip within a data centre; a request waits no longer for its limits.
pub const REDIS_TIMEOUT: DurationText = DurationText(Duration::from_millis(5));

/// `local`: an embedded database in `state_dir`, for one host. Or a Redis that several hosts share.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Store {
    Own(OwnStore),
    Shared(Box<SharedStore>),
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OwnStore {
    Local,
}

/// A store that several hosts share.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("redis"))]
pub struct SharedStore {
    pub redis: Redis,
}

/// Redis or Valkey: exactly one of `node`, `sentinels` and `cluster`, each as host:port.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("fail"))]
pub struct Redis {
    /// A single server.
    pub node: Option<String>,
    /// Sentinels that know where the master `master` is.
    #[schemars(length(min = 1))]
    pub sentinels: Option<Vec<String>>,
    /// The name that sentinels know the master by.
    pub master: Option<String>,
    /// Some nodes of a cluster; the others are learned from them.
    #[schemars(length(min = 1))]
    pub cluster: Option<Vec<String>>,
    /// User of Redis's ACL. Without it, the default user.
    pub username: Option<String>,
    /// By reference.
    #[serde(skip_serializing)]
    pub password: Option<SecretText>,
    /// TLS, with the certificate verified.
    pub tls: bool,
    /// PEM bundle that replaces the system's roots. Relative to this file.
    pub ca: Option<PathBuf>,
    /// Number of the database; a cluster has 0 alone.
    #[schemars(range(min = 0, max = 65535))]
    pub database: u32,
    /// Put before every key, with a colon; up to 64 characters.
    pub prefix: String,
    /// How long one reservation may take; 1ms to 1s.
    pub timeout: DurationText,
    /// What happens while it is away or slow. `open`: every request is admitted, and told to Redis
    /// later. `closed`: requests that a limit covers are refused. `local-share`: each host keeps to
    /// its equal part of each limit.
    pub fail: Fail,
    /// How many hosts share the limits; required for `local-share`.
    #[schemars(range(min = 1, max = 1000))]
    pub hosts: Option<u32>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            node: None,
            sentinels: None,
            master: None,
            cluster: None,
            username: None,
            password: None,
            tls: false,
            ca: None,
            database: 0,
            prefix: REDIS_PREFIX.to_owned(),
            timeout: REDIS_TIMEOUT,
            fail: Fail::Closed,
            hosts: None,
        }
    }
}

/// Without a default: a free ride, an outage or a guess of shares is for the operator to choose.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fail {
    Open,
    Closed,
    LocalShare,
}
