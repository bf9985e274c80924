//! The configuration as written: one struct per map of the file, keys and defaults as people see
//! them. The doc comments become the schema's descriptions, which editors show, so they speak to
//! the person who writes the file. What the values mean is [`super::settings`]'s business, whether
//! they make sense is [`super::check`]'s.
//!
//! Every default is a constant here, with its unit and its reason. A key that must be given is
//! named in `Required`; the walk in [`super::shape`] sees to it before these types are filled.

mod accounting;
mod deadlines;
mod envelope;
mod identity;
mod plans;
mod resilience;
mod server;
mod store;
mod upstream;

use std::collections::BTreeMap;

use schemars::transform::Transform;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::networks::NetworkText;
use super::settings::DEFAULT_PLAN;
pub use accounting::{Accounting, Day, Peak, PeakHours, Price};
pub use deadlines::{Deadlines, FIRST_BYTE, FIRST_CONTENT, GAP, QUEUED, Timeouts};
pub use envelope::{Code, Envelope};
pub use identity::{
    ApiKey, ClientCertificate, Credential, CredentialKind, Identity, SignedRequest, SignedRequests,
    TokenAlgorithm, TokenIssuer, TokenKeys, TokenTenant,
};
pub use plans::{
    Amount, CutCharge, Group, ModelLimits, OnDisconnect, Plan, Priority, Queue, SurfaceLimits,
    Written,
};
pub use resilience::{
    Affinity, AffinityRules, Breaker, BreakerRules, ClassText, Credit, CreditRules, Degraded,
    Outlier, OutlierRules, Retry,
};
pub use server::{
    Admin, CipherPolicy, ClientCertificates, Forwarding, Limits, Listener, ListenerTls, STATE_DIR,
    Server, TlsFiles, TlsVersion,
};
pub use store::{Fail, OwnStore, Redis, SharedStore, Store};
pub use upstream::{
    Account, Auth, Dialect, Encoding, Endpoint, Governor, GovernorRules, Health, Probe, Protocol,
    Signing, Surface, TimestampUnit, Upstream, UpstreamTls, WEIGHT,
};

/// Tokens. Half of what DeepSeek's models write to a long question; the real usage is soon known.
pub const USUAL_OUTPUT_TOKENS: u64 = 2_048;

/// The configuration of tidegate. Durations are text such as 250ms, 30s, 1h30m; sizes are text
/// such as 64KiB, 8MiB. Everything except `server` and `logging.format` reloads without a restart.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "tidegate configuration", transform = Required("server, upstreams, models"))]
pub struct File {
    /// What this gateway is for. `production` refuses what is only bearable while developing.
    pub profile: Profile,
    /// The process itself: sockets, threads, limits. Changes need a restart.
    pub server: Server,
    pub logging: Logging,
    pub retry: Retry,
    pub identity: Identity,
    pub accounting: Accounting,
    pub queue: Queue,
    /// How much tenants may use, by name: 1 to 64 of the characters a-z 0-9 _ -, a letter or digit
    /// first. The plan `default` is there without being written: text 60 requests per minute and
    /// 1000 per day, embeddings 30 and 500. If it is written, what is written holds in its place.
    #[schemars(extend("propertyNames" = { "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$" }))]
    pub plans: BTreeMap<String, Plan>,
    /// Tenants that share limits.
    pub groups: Vec<Group>,
    /// Who may use the gateway. Without tenants every request is refused.
    pub tenants: Vec<Tenant>,
    /// The providers behind the gateway.
    #[schemars(length(min = 1))]
    pub upstreams: Vec<Upstream>,
    /// What tenants may ask for: public model name to what serves it. A name has 1 to 128 of the
    /// characters A-Z a-z 0-9 . _ : / -
    #[schemars(extend("minProperties" = 1, "propertyNames" = { "pattern": "^[A-Za-z0-9._:/-]{1,128}$" }))]
    pub models: BTreeMap<String, Model>,
    /// Who serves `/v1/files`. Without it, the first upstream of dialect `deepseek` that has the
    /// surface `files`, if there is one.
    pub files: Option<ServedBy>,
    /// Who serves `/user/balance`. Without it, the first upstream of dialect `deepseek` that has
    /// the surface `balance`, if there is one.
    pub balance: Option<ServedBy>,
}

/// Production, because that is where a forgotten line does harm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    #[default]
    Production,
    Development,
}

/// What is written to standard error.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    /// The least severe level that is written.
    pub level: Level,
    /// One JSON object per line, or text for people. Changes need a restart.
    pub format: LogFormat,
    /// One line for each finished request.
    pub access: bool,
}

impl Default for Logging {
    /// `info` and JSON, because it is machines that read the logs of a gateway; access lines on,
    /// because a bill without a trace cannot be explained.
    fn default() -> Self {
        Self {
            level: Level::Info,
            format: LogFormat::Json,
            access: true,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Text,
}

/// Someone who may use the gateway.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("id, models"))]
pub struct Tenant {
    /// Stable name, seen in metrics, logs and the ledger.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,63}$"))]
    pub id: String,
    /// Off: the tenant's credentials are refused, the rest of it stays.
    pub enabled: bool,
    /// The public model names this tenant may use, or ["*"] for all.
    #[schemars(length(min = 1))]
    pub models: Vec<String>,
    /// May read `/user/balance`, which shows what is left of the provider account.
    pub balance: bool,
    /// May use `/v1/files`. Files belong to the upstream's account, not to a tenant: whoever may use
    /// them sees and can delete everybody's.
    pub files: bool,
    /// Ways to prove to be this tenant; any one of them will do. A tenant that is only known by
    /// signed tokens has none here.
    pub credentials: Vec<Credential>,
    /// Kinds of credentials that are taken for this tenant. Without it, all.
    #[schemars(length(min = 1))]
    pub accept: Option<Vec<CredentialKind>>,
    /// Networks that this tenant may call from, such as 10.0.0.0/8. Without it, all.
    #[schemars(length(min = 1))]
    pub allow_from: Option<Vec<NetworkText>>,
    /// Name of one of `plans`: how much this tenant may use.
    pub plan: String,
    /// Id of one of `groups`, whose limits hold besides those of the plan. Without it, none.
    pub group: Option<String>,
    /// Clocks of this tenant's requests, over those of the model.
    pub deadlines: Deadlines,
}

impl Default for Tenant {
    /// The balance is the operator's affair, so it is off; files belong to the account that all
    /// tenants share, so whoever may use them sees everybody's: both are off.
    fn default() -> Self {
        let (id, models, credentials) = (String::new(), Vec::new(), Vec::new());
        Self {
            id,
            enabled: true,
            models,
            balance: false,
            files: false,
            credentials,
            accept: None,
            allow_from: None,
            plan: DEFAULT_PLAN.to_owned(),
            group: None,
            deadlines: Deadlines::default(),
        }
    }
}

/// What serves a public model name: `variants`, or another name by `alias`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Upstream models that serve this name, in the order in which they are asked.
    pub variants: Option<Vec<Variant>>,
    /// Another public name with variants, which then serves this one too.
    pub alias: Option<String>,
    /// Top-level fields that are set in each request's body, over what the client sent. Not
    /// `model`, `stream`, `messages` or `stream_options`.
    pub set: Map<String, Value>,
    /// Completion tokens that are reserved for a request that names no maximum, until the model's
    /// answers have shown what is usual. Without it, 2048; for an alias, that of its target.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub usual_output_tokens: Option<u64>,
    /// Clocks of requests for this model, over those of the upstream. For an alias each that is not
    /// written is that of its target.
    pub deadlines: Deadlines,
    /// Answered when nothing that serves the model is left. Without it, a 503; for an alias, that of
    /// its target.
    pub degraded: Option<Degraded>,
    /// How often a stream that broke is gone on with at another account, by prefix completion; it
    /// needs a variant at an upstream of dialect `deepseek`. Without it, 0: it ends as broken; for an
    /// alias, that of its target.
    #[schemars(range(min = 0, max = 2))]
    pub resume: Option<u32>,
}

/// One upstream model.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("upstream, model"))]
pub struct Variant {
    /// Id of an upstream.
    pub upstream: String,
    /// The name that upstream knows the model by.
    pub model: String,
    /// After which failures of the variants before it this one is asked. Without it, after any. One
    /// whose predecessors cannot be asked at all is asked in any case. Not on the first variant.
    #[schemars(length(min = 1))]
    pub on: Option<Vec<ClassText>>,
}

/// The upstream that serves a surface which belongs to no model.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required("upstream"))]
pub struct ServedBy {
    /// Id of an upstream that has the surface.
    pub upstream: String,
}

/// Marks keys of a struct as required in the schema; the default that serde has for them there
/// is only a place holder. The keys are listed with a comma and a space between (the derive macro reads no
/// array here).
struct Required(&'static str);

impl Transform for Required {
    fn transform(&mut self, schema: &mut Schema) {
        let keys: Vec<&str> = self.0.split(", ").collect();
        schema.insert("required".to_owned(), keys.clone().into());
        let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
            return;
        };
        for key in keys {
            if let Some(property) = properties.get_mut(key).and_then(Value::as_object_mut) {
                property.remove("default");
            }
        }
    }
}
