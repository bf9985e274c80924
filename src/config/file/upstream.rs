//! `upstreams`: the providers as written. All of it reloads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Required;
use super::deadlines::Timeouts;
use super::envelope::Envelope;
use super::resilience::{
    Affinity, AffinityRules, Breaker, BreakerRules, Credit, Outlier, OutlierRules,
};
use super::server::TlsVersion;
use crate::config::secret::SecretText;
use crate::config::text::DurationText;

/// The header and scheme of RFC 6750, which DeepSeek and OpenAI share.
pub const AUTH_HEADER: &str = "authorization";
pub const AUTH_SCHEME: &str = "Bearer";
/// Our own form of signed requests, so that one tidegate can stand behind another.
pub const SIGNED_MESSAGE: &str =
    "TG-HMAC-SHA256\n{method}\n{path}\n{query}\n{timestamp}\n{nonce}\n{body_sha256}";
pub const SIGNED_HEADER: &str = "TG-HMAC-SHA256 id={key_id}, timestamp={timestamp}, nonce={nonce}, digest={body_sha256}, signature={signature}";

/// Below the idle limit of the load balancers that providers stand behind (60 to 75 s).
pub const IDLE_TIMEOUT: DurationText = seconds(60);
/// Cloud load balancers announce 60 s; half of that is soon enough to follow a move.
pub const DNS_REFRESH: DurationText = seconds(30);
/// Small enough that a dead endpoint is out after half a minute, rare enough not to be traffic.
pub const HEALTH_INTERVAL: DurationText = seconds(10);
/// Half the interval, so that probes do not overlap.
pub const HEALTH_TIMEOUT: DurationText = seconds(5);
/// One answer shows that it is back; real requests tell the rest.
pub const HEALTHY_AFTER: u32 = 1;
/// Three, so that one lost packet takes nothing out.
pub const UNHEALTHY_AFTER: u32 = 3;
/// All endpoints alike, and all accounts.
pub const WEIGHT: u32 = 1;
/// Fewer places would tell too little of what the account can bear.
pub const GOVERNOR_FLOOR: u32 = 4;
/// Percent, between a half, which empties the account for one odd answer, and a tenth, which
/// draws a row of 429s.
pub const GOVERNOR_DECREASE: u32 = 30;
/// From one place to the next: a hundred places come back in under two minutes.
pub const GOVERNOR_RECOVERY: DurationText = seconds(1);
/// Times the usual time to first content. Long prompts alone take two or three times as long.
pub const GOVERNOR_SLOW_FACTOR: u32 = 4;

const fn seconds(count: u64) -> DurationText {
    DurationText(Duration::from_secs(count))
}

/// A provider with its addresses and accounts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id, endpoints"))]
pub struct Upstream {
    /// Stable name, seen in metrics and logs.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// Whose API it speaks. `enveloped` is OpenAI's with each answer and each event of a stream in
    /// `{"code", "data", "msg"}`, as company-internal gateways have it.
    pub dialect: Dialect,
    pub auth: Auth,
    /// HTTP/2 is spoken by ALPN over TLS and by prior knowledge without.
    pub protocol: Protocol,
    pub tls: UpstreamTls,
    pub timeouts: Timeouts,
    /// How long an unused connection is kept.
    pub idle_timeout: DurationText,
    /// How often host names are resolved anew; at least 100ms.
    pub dns_refresh: DurationText,
    /// Probes that take a dead endpoint out. `false` or null: none.
    pub health: Option<Health>,
    /// What it can do. Without it: for `deepseek` chat, completions, messages, responses, files and
    /// balance; for `openai` and `enveloped` chat, completions, embeddings, responses and messages.
    pub surfaces: Option<Vec<Surface>>,
    pub envelope: Envelope,
    /// Learning of ceilings below the accounts' `max_concurrent`. `false` or null: none.
    pub governor: Option<Governor>,
    /// Leaving out accounts and endpoints whose traffic shows that they are ill. `false` or null:
    /// none.
    pub outlier: Option<Outlier>,
    /// Sending an endpoint nothing for a model that fails there. `false` or null: never.
    pub breaker: Option<Breaker>,
    /// Keeping conversations at the account whose prompt cache has them. `false` or null: no.
    pub affinity: Option<Affinity>,
    /// Watching what is left of the accounts. `false`: no. Without it: for `deepseek` with keys and
    /// the surface `balance`; other dialects have none.
    pub credit: Option<Credit>,
    /// Its addresses.
    #[schemars(length(min = 1))]
    pub endpoints: Vec<Endpoint>,
    /// Its billing units. Required for `deepseek`; without it, `openai` and `enveloped` have one
    /// account named `default` that sends no key.
    pub accounts: Vec<Account>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            id: String::new(),
            dialect: Dialect::DeepSeek,
            auth: Auth::default(),
            protocol: Protocol::Http1,
            tls: UpstreamTls::default(),
            timeouts: Timeouts::default(),
            idle_timeout: IDLE_TIMEOUT,
            dns_refresh: DNS_REFRESH,
            health: Some(Health::Probe(Probe::default())),
            surfaces: None,
            envelope: Envelope::default(),
            governor: Some(Governor::Rules(GovernorRules::default())),
            outlier: Some(Outlier::Rules(OutlierRules::default())),
            breaker: Some(Breaker::Rules(BreakerRules::default())),
            affinity: Some(Affinity::Rules(AffinityRules::default())),
            credit: None,
            endpoints: Vec::new(),
            accounts: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    DeepSeek,
    OpenAi,
    Enveloped,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http1,
    Http2,
}

/// An entry of the API.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Surface {
    Chat,
    Completions,
    Embeddings,
    Messages,
    Responses,
    Files,
    Balance,
}

/// Where the account's key goes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Name of the header field.
    pub header: String,
    /// Put before the key with a space between; "" for none.
    pub scheme: String,
    /// Sign each request with the account's key instead of sending the key.
    pub signing: Option<Signing>,
}

/// How requests to a company's own gateway are signed: HMAC-SHA256 with the account's `api_key`.
/// Placeholders: {key_id} {method} {path} {query} {host} {timestamp} {nonce} {body_sha256}, and in
/// `headers` {signature}. The defaults are the form of docs/signed-requests.md.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Signing {
    /// What is signed.
    pub message: String,
    /// Header fields that are sent, with their values.
    pub headers: BTreeMap<String, String>,
    /// How signature and digest are written.
    pub encoding: Encoding,
    /// What {timestamp} counts.
    pub timestamp: TimestampUnit,
}

impl Default for Signing {
    fn default() -> Self {
        Self {
            message: SIGNED_MESSAGE.to_owned(),
            headers: BTreeMap::from([(AUTH_HEADER.to_owned(), SIGNED_HEADER.to_owned())]),
            encoding: Encoding::Hex,
            timestamp: TimestampUnit::Seconds,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    Hex,
    Base64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimestampUnit {
    Seconds,
    Milliseconds,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            header: AUTH_HEADER.to_owned(),
            scheme: AUTH_SCHEME.to_owned(),
            signing: None,
        }
    }
}

/// How an `https://` endpoint is trusted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTls {
    /// PEM bundle that replaces the system's roots. Relative to this file.
    pub ca: Option<PathBuf>,
    /// Name asked for and verified in place of the URL's host; needed where that is an address.
    pub server_name: Option<String>,
    /// The oldest TLS that is spoken.
    pub min_version: TlsVersion,
    /// Allow `http://` to hosts that are not in a private network. Keys and prompts then travel in
    /// the clear.
    pub plaintext: bool,
    /// PEM file with the certificate we show, and its chain. Relative to this file.
    pub client_certificate: Option<PathBuf>,
    /// PEM file with its key. Relative to this file.
    pub client_key: Option<PathBuf>,
    /// Public keys that the upstream's certificate may have: `sha256//` and the SHA-256 of its
    /// SubjectPublicKeyInfo in base64. Several, so that keys can be exchanged. Without it, any key
    /// that the authorities vouch for. Not with HTTP/2, which speaks before the key is seen.
    pub pins: Vec<String>,
    /// Off: certificate and name are not verified. Only under `profile: development`.
    pub verify: bool,
}

impl Default for UpstreamTls {
    /// TLS 1.2: a provider's front decides what it offers, and 1.3 is taken wherever it is.
    fn default() -> Self {
        Self {
            ca: None,
            server_name: None,
            min_version: TlsVersion::V1_2,
            plaintext: false,
            client_certificate: None,
            client_key: None,
            pins: Vec::new(),
            verify: true,
        }
    }
}

/// Health probes, or whether there are any.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Health {
    Switch(bool),
    Probe(Probe),
}

/// A GET that an endpoint answers with a status below 500 if it is alive.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Probe {
    /// From one probe to the next; at least 100ms.
    pub interval: DurationText,
    /// For one probe as a whole.
    pub timeout: DurationText,
    /// Successes in a row that bring an endpoint back.
    #[schemars(range(min = 1, max = 100))]
    pub healthy_after: u32,
    /// Failures in a row that take it out.
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_after: u32,
    /// What is asked for. Without it: `/models` for `deepseek`, `/health` for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Send the first account's key along. Without it: true for `deepseek`, false for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated: Option<bool>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            interval: HEALTH_INTERVAL,
            timeout: HEALTH_TIMEOUT,
            healthy_after: HEALTHY_AFTER,
            unhealthy_after: UNHEALTHY_AFTER,
            path: None,
            authenticated: None,
        }
    }
}

/// How the ceiling of an account's model is learned, or whether it is.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Governor {
    Switch(bool),
    Rules(GovernorRules),
}

/// Places are taken away when the provider refuses (429) or becomes slow, and given back one by
/// one while it does not.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GovernorRules {
    /// Places that are always left, if the configured ceiling has as many.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub floor: u32,
    /// Taken off at a 429, or when first content has become slow.
    #[schemars(range(min = 1, max = 90))]
    pub decrease_percent: u32,
    /// From one place given back to the next; at least 100ms.
    pub recovery: DurationText,
    /// First content that takes this many times its usual time is slow.
    #[schemars(range(min = 2, max = 1000))]
    pub slow_factor: u32,
}

impl Default for GovernorRules {
    fn default() -> Self {
        Self {
            floor: GOVERNOR_FLOOR,
            decrease_percent: GOVERNOR_DECREASE,
            recovery: GOVERNOR_RECOVERY,
            slow_factor: GOVERNOR_SLOW_FACTOR,
        }
    }
}

/// One base URL of an upstream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("url"))]
pub struct Endpoint {
    /// http:// or https://, a host, a port if it is not the usual one, and the path before that of
    /// the API if there is one. http:// only within a private network (see `tls.plaintext`).
    pub url: String,
    /// Lower is preferred; the next priority serves while none of this one is healthy.
    #[schemars(range(min = 0, max = 1000))]
    pub priority: u32,
    /// Share among endpoints of the same priority.
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
    /// Requests at one time, over all accounts. Without it, no limit.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_concurrent: Option<u32>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            url: String::new(),
            priority: 0,
            weight: WEIGHT,
            max_concurrent: None,
        }
    }
}

/// A billing unit of the provider: what it limits.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id"))]
pub struct Account {
    /// Stable name, unique within the upstream.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// The provider's key, by reference. Required for `deepseek`.
    pub api_key: Option<SecretText>,
    /// What {key_id} stands for in `auth.signing`. Without it, the account's id.
    pub key_id: Option<String>,
    /// Requests at one time by upstream model; a model that is not named has no limit.
    #[schemars(extend("additionalProperties" = { "type": "integer", "minimum": 1, "maximum": 1_000_000 }))]
    pub max_concurrent: BTreeMap<String, u32>,
    /// Lower is preferred; the next priority serves while none of this one is fit and has room.
    #[schemars(range(min = 0, max = 1000))]
    pub priority: u32,
    /// Share among accounts of the same priority.
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            id: String::new(),
            api_key: None,
            key_id: None,
            max_concurrent: BTreeMap::new(),
            priority: 0,
            weight: WEIGHT,
        }
    }
}
