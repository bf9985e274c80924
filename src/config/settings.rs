//! The configuration as it is meant: checked, immutable, and the only form the rest of the crate
//! sees. Whatever reaches this module cannot be wrong any more; [`super::check`] has seen to that.
//!
//! A running gateway holds one [`Settings`] behind an atomic pointer; a request pins the one it
//! began with. Nothing here is mutable, nothing here counts: counters, pools and health live in
//! the modules that own them, keyed by the ids below, so that a reload keeps them.

mod accounting;
mod identity;
mod plans;
mod resilience;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::networks::Networks;
use super::secret::Secret;
pub use accounting::{
    Accounting, FailMode, PeakHours, Price, Rates, RedisNodes, RedisStore, Store,
};
pub use identity::{
    Accepted, AllowedModels, ApiKey, CertificateName, Credential, CredentialKind, Identity,
    KeyHash, SignedRequest, SignedRequests, Tenant, TokenAlgorithm, TokenIssuer, TokenKeys,
    Validity,
};
pub use plans::{
    CutCharge, DEFAULT_PLAN, Group, GroupId, Limit, LimitKey, OnDisconnect, Plan, PlanId, Priority,
    Quantity, Queue, Surfaces, Window,
};
pub use resilience::{
    Affinity, Breaker, Credit, Deadlines, Degraded, FailureClass, Outlier, Retry,
};

macro_rules! text_id {
    ($($id:ident),*) => {$(
        impl $id {
            pub fn new(text: &str) -> Self {
                Self(Arc::from(text))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $id {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
use text_id;

/// Everything the gateway was told.
#[derive(Debug)]
pub struct Settings {
    pub profile: Profile,
    pub server: Arc<Server>,
    pub logging: Logging,
    pub retry: Retry,
    pub identity: Identity,
    pub accounting: Accounting,
    pub queue: Queue,
    /// By name; the plan [`DEFAULT_PLAN`] is always there.
    pub plans: BTreeMap<PlanId, Arc<Plan>>,
    /// Tenants that share limits, by name.
    pub groups: BTreeMap<GroupId, Arc<Group>>,
    /// In the order of the file; `TenantId` is unique.
    pub tenants: Vec<Arc<Tenant>>,
    pub upstreams: Vec<Arc<Upstream>>,
    /// Public model name to what serves it. Aliases are already resolved to their target's variants.
    pub models: HashMap<String, Arc<Model>>,
    /// The upstream that serves `/v1/files*`, if any does.
    pub files: Option<UpstreamId>,
    /// The upstream that serves `/user/balance`, if any does.
    pub balance: Option<UpstreamId>,
}

/// What the gateway is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Production,
    /// Some of what `Production` refuses is allowed.
    Development,
}

/// A tenant's stable name: the label in metrics, logs and the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub Arc<str>);

/// An upstream's stable name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub Arc<str>);

/// An account's stable name, unique within its upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(pub Arc<str>);

/// Process-wide settings. All of them need a restart to change.
#[derive(Debug, PartialEq)]
pub struct Server {
    /// Worker threads of the proxy, at least 1.
    pub threads: usize,
    pub state_dir: PathBuf,
    pub listeners: Vec<Listener>,
    pub admin: Option<Admin>,
    /// How long streams may go on after SIGTERM before they are cut.
    pub shutdown_grace: Duration,
    /// How long the listeners stay open after readiness was withdrawn.
    pub shutdown_pause: Duration,
    /// Idle upstream connections kept per worker thread.
    pub upstream_idle_connections: usize,
    /// How often the configuration's files are looked at; zero for never.
    pub watch_configuration: Duration,
    /// How often the listeners' TLS files are looked at; zero for on reload only.
    pub watch_files: Duration,
    pub store: Store,
    pub limits: Limits,
}

/// One downstream listening socket.
#[derive(Debug, PartialEq)]
pub struct Listener {
    pub address: SocketAddr,
    /// HTTP/2 without TLS, by prior knowledge.
    pub h2c: bool,
    pub tls: Option<ListenerTls>,
    /// Kinds of credentials that are taken here.
    pub accept: Accepted,
    /// Who requests without a credential count as; `None` refuses them.
    pub anonymous_tenant: Option<TenantId>,
    pub trusted_proxies: Networks,
    pub forwarded_by: Forwarding,
    /// Connections from here begin with a PROXY protocol header.
    pub proxy_protocol_from: Networks,
}

/// The field in which a trusted proxy tells the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// A listener's TLS; the files are read when it is built, on each reload and when they change.
#[derive(Debug, PartialEq)]
pub struct ListenerTls {
    /// At least one; the first serves every name that no other has.
    pub certificates: Vec<TlsFiles>,
    pub policy: CipherPolicy,
    pub min_version: TlsVersion,
    pub clients: Option<ClientCertificates>,
}

/// PEM files: a chain, leaf first, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

/// What is asked of clients on TLS.
#[derive(Debug, PartialEq)]
pub struct ClientCertificates {
    /// PEM bundle.
    pub ca: PathBuf,
    /// PEM, one list for each authority.
    pub crl: Option<PathBuf>,
    pub required: bool,
}

/// Mozilla's server side TLS levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherPolicy {
    Intermediate,
    Modern,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// The operators' listener: health, readiness, metrics, status.
#[derive(Debug, PartialEq)]
pub struct Admin {
    pub address: SocketAddr,
    /// Bearer token asked for everything but `/healthz`, `/readyz` and `/metrics`; without one
    /// those three are all there is.
    pub token: Option<Secret>,
}

/// Downstream limits; each default is a constant in [`super::file`] with its reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Bytes of a request body that is read whole.
    pub max_request_body: usize,
    /// Bytes of a `/v1/files` upload, which streams through.
    pub max_file_upload: u64,
    /// Bytes of request bodies held in memory at one time by the whole process.
    pub max_buffered_bodies: usize,
    /// Bytes of a request head.
    pub max_head: usize,
    /// Header fields in a request head.
    pub max_head_fields: usize,
    /// Bytes of a request target.
    pub max_target: usize,
    /// First byte of a head (or the accept) to its last.
    pub head_timeout: Duration,
    /// End of the head to the end of the body.
    pub body_timeout: Duration,
    /// A connection without a request.
    pub idle_timeout: Duration,
    /// One write to a client that does not read.
    pub write_timeout: Duration,
    pub tls_handshake_timeout: Duration,
    /// Requests on one HTTP/1.1 connection before it is closed.
    pub requests_per_connection: u32,
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    /// Requests in flight in the whole process.
    pub max_requests: usize,
    /// Requests of one client address in flight; 0 for no limit.
    pub max_requests_per_ip: usize,
    /// Requests that one client address may begin in a second, before anybody knows whose they are;
    /// 0 for no limit.
    pub max_requests_per_second_per_ip: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Logging {
    pub level: log::LevelFilter,
    pub format: LogFormat,
    /// One line per finished request.
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Debug, PartialEq)]
pub struct Upstream {
    pub id: UpstreamId,
    pub dialect: Dialect,
    /// Where the account's credential goes.
    pub auth: UpstreamAuth,
    pub protocol: UpstreamProtocol,
    pub tls: UpstreamTls,
    pub timeouts: UpstreamTimeouts,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How often names are resolved anew.
    pub dns_refresh: Duration,
    pub health: Option<Health>,
    /// What this upstream can do, by surface name: `chat`, `completions`, `embeddings`, `messages`,
    /// `responses`, `files`, `balance`.
    pub surfaces: Vec<String>,
    /// How its envelopes are read; there for [`Dialect::Enveloped`] alone.
    pub envelope: Option<Envelope>,
    /// How ceilings are learned; `None` keeps to the configured ones.
    pub governor: Option<Governor>,
    /// Who is left out because of what its traffic shows; `None` for nobody.
    pub outlier: Option<Outlier>,
    pub breaker: Option<Breaker>,
    pub affinity: Option<Affinity>,
    /// `None` where the provider does not tell what is left, or is not asked.
    pub credit: Option<Credit>,
    pub endpoints: Vec<Endpoint>,
    pub accounts: Vec<Account>,
}

/// How the ceiling of an account's model is learned, below the configured one.
#[derive(Debug, Clone, PartialEq)]
pub struct Governor {
    /// Never below this, at least 1.
    pub floor: u32,
    /// Taken off at a 429 or when first content has become slow; 1 to 90 percent.
    pub decrease_percent: u32,
    /// From one place given back to the next.
    pub recovery: Duration,
    /// First content that takes this many times its usual time is slow, at least 2.
    pub slow_factor: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    DeepSeek,
    OpenAi,
    /// OpenAI's, with each answer and event in `{"code", "data", "msg"}`.
    Enveloped,
}

/// How the codes of envelopes are understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Codes of success as text, at least one.
    pub success: Vec<String>,
    /// Statuses, 400 to 599, by code.
    pub statuses: BTreeMap<String, u16>,
}

/// How an upstream is shown that a request is an account's.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamAuth {
    /// The key itself, in a field.
    Key {
        /// Lower case.
        header: String,
        /// Put before the key with a space; empty for none.
        scheme: String,
    },
    /// A signature made with the key.
    Signing(Signing),
}

/// HMAC-SHA256 request signing; the texts hold placeholders, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Signing {
    pub message: Template,
    /// Field names in lower case.
    pub headers: Vec<(String, Template)>,
    pub encoding: Encoding,
    pub timestamp: TimestampUnit,
}

/// A text with placeholders, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(pub Vec<TemplatePart>);

#[derive(Debug, Clone, PartialEq)]
pub enum TemplatePart {
    Text(String),
    KeyId,
    Method,
    Path,
    Query,
    Host,
    Timestamp,
    Nonce,
    BodySha256,
    Signature,
}

/// How bytes are written in a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Hex,
    Base64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampUnit {
    Seconds,
    Milliseconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamTls {
    /// PEM bundle that replaces the system's roots.
    pub ca: Option<PathBuf>,
    /// Name asked for and verified in place of the URL's host.
    pub server_name: Option<String>,
    /// At least this.
    pub min_version: Option<TlsVersion>,
    /// What we show of ourselves.
    pub client: Option<TlsFiles>,
    /// SHA-256 of the SubjectPublicKeyInfo that the certificate may have; empty for any.
    pub pins: Vec<[u8; 32]>,
    /// Certificate and name are not verified; never in production.
    pub unverified: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTimeouts {
    /// TCP connect.
    pub connect: Duration,
    /// TCP connect and TLS handshake together.
    pub connect_total: Duration,
    /// Silence on the connection, before the head as between bytes. Keep-alives count as life.
    pub read: Duration,
    /// One write to an upstream that does not read.
    pub write: Duration,
    /// Request sent to the head of a streamed answer.
    pub first_byte: Duration,
    /// Request sent to anything but keep-alives.
    pub queued: Duration,
    /// Request sent to first content; keep-alives do not count.
    pub first_content: Duration,
    /// Content to content; keep-alives do not count.
    pub gap: Duration,
    /// The whole attempt.
    pub total: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row that bring an endpoint back.
    pub healthy_after: u32,
    /// Failures in a row that take it out.
    pub unhealthy_after: u32,
    /// Path asked with GET, appended to the endpoint's base path; `/models` for `deepseek`,
    /// for `openai` `/health` at the root of the host.
    pub path: String,
    /// Send the first account's credential along?
    pub authenticated: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// As configured, without a trailing slash; the endpoint's stable name in metrics.
    pub url: String,
    pub tls: bool,
    /// A name or an address, without port and brackets.
    pub host: String,
    pub port: u16,
    /// Begins with `/` unless empty; no trailing slash.
    pub base_path: String,
    /// Lower is preferred.
    pub priority: u32,
    /// Share among endpoints of one priority, at least 1.
    pub weight: u32,
    /// Requests at one time, over all accounts; `None` for no limit.
    pub max_concurrent: Option<u32>,
}

#[derive(Debug, PartialEq)]
pub struct Account {
    pub id: AccountId,
    /// None for a self-hosted engine that asks for no key.
    pub api_key: Option<Secret>,
    /// What signatures name the key by.
    pub key_id: String,
    /// Ceiling of concurrent requests by upstream model name; a model that is not named has none.
    pub max_concurrent: BTreeMap<String, u32>,
    /// Lower is preferred.
    pub priority: u32,
    /// Share among accounts of one priority, at least 1.
    pub weight: u32,
}

/// What a public model name stands for.
#[derive(Debug, PartialEq)]
pub struct Model {
    pub name: String,
    /// At least one.
    pub variants: Vec<Variant>,
    /// Top-level body fields that this name fixes, in the order of the file.
    pub set: Vec<(String, serde_json::Value)>,
    /// Completion tokens that are reserved for a request that names no maximum, until the model's
    /// answers have shown what is usual.
    pub usual_output_tokens: u64,
    pub deadlines: Deadlines,
    /// Answered when nothing that serves the model is left.
    pub degraded: Option<Degraded>,
    /// How often a broken stream is gone on with elsewhere, 0 to 2.
    pub resume: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    pub upstream: UpstreamId,
    /// The name the upstream knows.
    pub model: String,
    /// After which failures of the variants before it this one is asked; `None` for any. One whose
    /// predecessors cannot be asked at all is asked in any case.
    pub on: Option<BTreeSet<FailureClass>>,
}

text_id!(TenantId, UpstreamId, AccountId);

impl std::borrow::Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}
