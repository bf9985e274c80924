//! `server`: the process as written. All of it needs a restart to change.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Required;
use super::identity::CredentialKind;
use super::store::{OwnStore, Store};
use crate::config::networks::NetworkText;
use crate::config::secret::SecretText;
use crate::config::text::{DurationText, SizeText};

/// Where the FHS and systemd's `StateDirectory=` put state.
pub const STATE_DIR: &str = "/var/lib/tidegate";
/// Ten minutes, the longest that DeepSeek lets a request wait for its first content.
pub const SHUTDOWN_GRACE: DurationText = seconds(600);
/// None: who runs behind a load balancer sets the time it takes to notice.
pub const SHUTDOWN_PAUSE: DurationText = seconds(0);
/// Connections per worker thread. A burst of this many finds them warm; an idle one costs some KiB.
pub const UPSTREAM_IDLE_CONNECTIONS: usize = 512;

/// Never: a file that is saved is not always meant to count yet.
pub const WATCH_CONFIGURATION: DurationText = seconds(0);
/// A renewed certificate is in use within seconds, and a look at a dozen files costs nothing.
pub const WATCH_FILES: DurationText = seconds(10);

/// A chat with a context of a million tokens, and pictures inline, is well below.
pub const MAX_REQUEST_BODY: SizeText = mebibytes(32);
/// DeepSeek's limit of one file is 100 MiB; the rest is for multipart framing.
pub const MAX_FILE_UPLOAD: SizeText = mebibytes(128);
/// 32 of the largest bodies, or ten thousand ordinary ones, at one time.
pub const MAX_BUFFERED_BODIES: SizeText = mebibytes(1024);
/// Four times what the usual servers allow, since signed tokens and trace baggage are long.
pub const MAX_HEAD: SizeText = SizeText(64 * 1024);
/// Fields; nginx, Apache and Go proxies stop at about 100 as well.
pub const MAX_HEAD_FIELDS: usize = 100;
/// RFC 9110 §4.1 recommends to support at least 8000 octets.
pub const MAX_TARGET: SizeText = SizeText(8 * 1024);
/// Slow enough for a bad mobile link, fast enough against a client that sends a byte at a time.
pub const HEAD_TIMEOUT: DurationText = seconds(10);
/// 32 MiB in it is 4.5 Mbit/s.
pub const BODY_TIMEOUT: DurationText = seconds(60);
/// Longer than the pause between two questions of a program, shorter than a NAT forgets.
pub const IDLE_TIMEOUT: DurationText = seconds(60);
/// A client that reads nothing for this long has gone or means harm.
pub const WRITE_TIMEOUT: DurationText = seconds(30);
/// Two round trips on any link, with room.
pub const TLS_HANDSHAKE_TIMEOUT: DurationText = seconds(10);
/// Often enough that connections spread again after an upgrade, too rare to cost anything.
pub const REQUESTS_PER_CONNECTION: u32 = 1_000;
/// At some 50 KiB for an open stream half a GiB in all.
pub const MAX_CONNECTIONS: usize = 10_000;
/// One address is one service here, or one proxy in front; both stay below.
pub const MAX_CONNECTIONS_PER_IP: usize = 256;
/// Twice the connections: an HTTP/2 connection carries many, and past it memory is the next to go.
pub const MAX_REQUESTS: usize = 20_000;
/// A quarter of all: one address with HTTP/2 cannot take the process for itself.
pub const MAX_REQUESTS_PER_IP: usize = 5_000;
/// No limit: many services call from behind one address, and only the operator knows how many.
pub const MAX_REQUESTS_PER_SECOND_PER_IP: u32 = 0;

const fn seconds(count: u64) -> DurationText {
    DurationText(Duration::from_secs(count))
}

const fn mebibytes(count: u64) -> SizeText {
    SizeText(count << 20)
}

/// The process itself. Everything in it needs a restart to change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("listeners"))]
pub struct Server {
    /// Worker threads. Without it, as many as the machine offers to this process.
    #[schemars(range(min = 1, max = 256))]
    pub threads: Option<usize>,
    /// The one directory that is written to. Relative to this file.
    pub state_dir: PathBuf,
    /// Where tenants connect.
    #[schemars(length(min = 1))]
    pub listeners: Vec<Listener>,
    /// Where operators connect: health, readiness, metrics, status. Without it there is none.
    pub admin: Option<Admin>,
    /// How long streams may go on after SIGTERM before they are cut; at most 24h.
    pub shutdown_grace: DurationText,
    /// How long the listeners stay open after readiness was withdrawn; at most 24h.
    pub shutdown_pause: DurationText,
    /// Idle upstream connections kept per worker thread.
    #[schemars(range(min = 0, max = 65536))]
    pub upstream_idle_connections: usize,
    /// How often the configuration's files, and files that secrets come from, are looked at, and
    /// all of it reloaded if one changed; 100ms to 24h. 0s: on SIGHUP only.
    pub watch_configuration: DurationText,
    /// How often certificates, keys, authorities and revocation lists of listeners are looked at,
    /// and taken over if they changed; 0s: on reload only.
    pub watch_files: DurationText,
    /// Where the counts of limits are kept: `local`, or a map with `redis`.
    pub store: Store,
    pub limits: Limits,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: None,
            state_dir: STATE_DIR.into(),
            listeners: Vec::new(),
            admin: None,
            shutdown_grace: SHUTDOWN_GRACE,
            shutdown_pause: SHUTDOWN_PAUSE,
            upstream_idle_connections: UPSTREAM_IDLE_CONNECTIONS,
            watch_configuration: WATCH_CONFIGURATION,
            watch_files: WATCH_FILES,
            store: Store::Own(OwnStore::Local),
            limits: Limits::default(),
        }
    }
}

/// One socket that tenants connect to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("address"))]
pub struct Listener {
    /// IP address and port, such as 127.0.0.1:8080 or [::]:8443.
    pub address: String,
    /// Accept HTTP/2 without TLS, by prior knowledge. Not together with `tls`.
    pub h2c: bool,
    /// TLS, with HTTP/1.1 and HTTP/2. Without it the listener speaks plain HTTP.
    pub tls: Option<ListenerTls>,
    /// Kinds of credentials that are taken here. Without it, all.
    #[schemars(length(min = 1))]
    pub accept: Option<Vec<CredentialKind>>,
    /// The tenant that requests without any credential count as. Without it they are refused.
    pub anonymous_tenant: Option<String>,
    /// Networks of proxies in front whose word on the client's address is taken.
    pub trusted_proxies: Vec<NetworkText>,
    /// The field in which trusted proxies say it. The other one is ignored.
    pub forwarded_by: Forwarding,
    /// Networks whose connections begin with a PROXY protocol header, version 1 or 2. From there
    /// one is required; from elsewhere one is no HTTP.
    pub proxy_protocol_from: Vec<NetworkText>,
}

/// `forwarded` is RFC 7239's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub enum Forwarding {
    #[default]
    #[serde(rename = "x-forwarded-for")]
    XForwardedFor,
    #[serde(rename = "forwarded")]
    Forwarded,
}

/// Certificates and what is asked of clients. The files are read again on each reload, and when
/// they change.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("certificate, private_key"))]
pub struct ListenerTls {
    /// PEM file with the chain, leaf first. Serves every name that no other certificate has.
    /// Relative to this file.
    pub certificate: PathBuf,
    /// PEM file. Relative to this file.
    pub private_key: PathBuf,
    /// Further certificates, each for the names it holds.
    pub more_certificates: Vec<TlsFiles>,
    /// Which ciphers and curves: Mozilla's `intermediate` or `modern` (TLS 1.3 alone).
    pub policy: CipherPolicy,
    /// The oldest TLS that is spoken.
    pub min_version: TlsVersion,
    /// PEM bundle of the authorities whose client certificates are taken. Relative to this file.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must show one. Without it, it must.
    pub client_certificates: Option<ClientCertificates>,
    /// PEM file with certificate revocation lists, one for each of the client authorities.
    /// Relative to this file.
    pub client_crl: Option<PathBuf>,
}

impl Default for ListenerTls {
    /// TLS 1.2, because SDKs on old runtimes have nothing newer and RFC 9325 still allows it.
    fn default() -> Self {
        Self {
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            more_certificates: Vec::new(),
            policy: CipherPolicy::Intermediate,
            min_version: TlsVersion::V1_2,
            client_ca: None,
            client_certificates: None,
            client_crl: None,
        }
    }
}

/// A certificate and its key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("certificate, private_key"))]
pub struct TlsFiles {
    /// PEM file with the chain, leaf first. Relative to this file.
    pub certificate: PathBuf,
    /// PEM file. Relative to this file.
    pub private_key: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CipherPolicy {
    Intermediate,
    Modern,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    Required,
    Optional,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
pub enum TlsVersion {
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

/// The operators' socket.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("address"))]
pub struct Admin {
    /// IP address and port; not that of a listener.
    pub address: String,
    /// Bearer token asked for everything but `/healthz`, `/readyz` and `/metrics`; without one
    /// those three are all there is.
    pub token: Option<SecretText>,
}

/// What a client may do to the process.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A request body that is read whole; at most 1GiB. Larger: 413.
    pub max_request_body: SizeText,
    /// An upload to `/v1/files`, which streams through; at most 1024GiB. Larger: 413.
    pub max_file_upload: SizeText,
    /// Request bodies in memory at one time, over all requests; at least `max_request_body`. Beyond: 503.
    pub max_buffered_bodies: SizeText,
    /// A request head; at most 1023KiB. Larger: 431.
    pub max_head: SizeText,
    /// Header fields in a request head. More: 431.
    #[schemars(range(min = 1, max = 256))]
    pub max_head_fields: usize,
    /// A request target; at most `max_head`. Longer: 414.
    pub max_target: SizeText,
    /// From the first byte of a request head (or the accept) to its last.
    pub head_timeout: DurationText,
    /// From the end of the head to the end of the body.
    pub body_timeout: DurationText,
    /// A connection without a request.
    pub idle_timeout: DurationText,
    /// One write to a client that does not read.
    pub write_timeout: DurationText,
    /// A TLS handshake.
    pub tls_handshake_timeout: DurationText,
    /// Requests on one HTTP/1.1 connection before it is closed.
    #[schemars(range(min = 1, max = 1000000))]
    pub requests_per_connection: u32,
    /// Connections in all.
    #[schemars(range(min = 1, max = 1000000))]
    pub max_connections: usize,
    /// Connections from one IP address.
    #[schemars(range(min = 1, max = 1000000))]
    pub max_connections_per_ip: usize,
    /// Requests in flight in the whole process. Beyond: 503.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_requests: usize,
    /// Requests of one client address in flight. 0: no limit. Beyond: 429.
    #[schemars(range(min = 0, max = 10_000_000))]
    pub max_requests_per_ip: usize,
    /// Requests that one client address may begin in a second, before anybody looks whose they are.
    /// 0: no limit. Beyond: 429.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_requests_per_second_per_ip: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_request_body: MAX_REQUEST_BODY,
            max_file_upload: MAX_FILE_UPLOAD,
            max_buffered_bodies: MAX_BUFFERED_BODIES,
            max_head: MAX_HEAD,
            max_head_fields: MAX_HEAD_FIELDS,
            max_target: MAX_TARGET,
            head_timeout: HEAD_TIMEOUT,
            body_timeout: BODY_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            write_timeout: WRITE_TIMEOUT,
            tls_handshake_timeout: TLS_HANDSHAKE_TIMEOUT,
            requests_per_connection: REQUESTS_PER_CONNECTION,
            max_connections: MAX_CONNECTIONS,
            max_connections_per_ip: MAX_CONNECTIONS_PER_IP,
            max_requests: MAX_REQUESTS,
            max_requests_per_ip: MAX_REQUESTS_PER_IP,
            max_requests_per_second_per_ip: MAX_REQUESTS_PER_SECOND_PER_IP,
        }
    }
}
