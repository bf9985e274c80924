//! One picture of the configuration, made ready for requests: every name resolved, every table
//! built, every header value made.
//!
//! A request pins the snapshot it began with; a reload puts a new one in its place and both live
//! until the last request of the old one ends. What counts or remembers lives in
//! [`crate::upstream::pool::Registry`] and is shared by all snapshots.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::admission::allowance::{Allowance, Part};
use crate::admission::book::Book;
use crate::admission::clock::Calendar;
use crate::admission::subject::SubjectName;
use crate::config::settings::{
    FailMode, GroupId, Limit, LimitKey, Plan, Settings, Store, TenantId, UpstreamId,
};
use crate::identity::directory::Directory;
use crate::identity::issuer::IssuerError;
use crate::identity::standing::Standing;
use crate::ledger::price::PriceTable;
use crate::request::edit::JsonText;
use crate::request::head::HeadLimits;
use crate::routing::route::{self, Route, Routes};
use crate::upstream::pool::{Lane, Pool, PoolError, Registry};

/// Why settings cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

type Allowances = HashMap<TenantId, Allowance>;

pub struct Snapshot {
    pub settings: Arc<Settings>,
    pub directory: Directory,
    pub routes: Routes,
    /// In the order of the configuration.
    pub pools: Vec<Arc<Pool>>,
    /// Every upstream model that anything leads to, once.
    lanes: Vec<Arc<Lane>>,
    /// What serves `/v1/files*`.
    pub files: Option<Arc<Lane>>,
    /// What serves `/user/balance`.
    pub balance: Option<Arc<Lane>>,
    pub head_limits: HeadLimits,
    /// Where days and months of limits begin.
    pub calendar: Calendar,
    pub prices: PriceTable,
    allowances: Allowances,
    /// What this host keeps to while Redis is away, if that is wanted.
    shares: Allowances,
}

/// The place where the snapshot in use is found.
pub type Current = Arc<ArcSwap<Snapshot>>;

impl Snapshot {
    /// # Errors
    /// If a file named by the settings cannot be used.
    pub fn new(
        settings: Arc<Settings>,
        registry: &Registry,
        standing: &Arc<Standing>,
        book: &Book,
        now: Instant,
    ) -> Result<Self, SnapshotError> {
        let mut pools = Vec::with_capacity(settings.upstreams.len());
        for upstream in &settings.upstreams {
            pools.push(Pool::new(upstream.clone(), registry, now)?);
        }
        let by_id: HashMap<&UpstreamId, &Arc<Pool>> =
            pools.iter().map(|pool| (&pool.settings.id, pool)).collect();
        let mut lanes: HashMap<(UpstreamId, String), Arc<Lane>> = HashMap::new();
        let mut lane = |upstream: &UpstreamId, model: &str| {
            let pool = by_id.get(upstream)?;
            let key = (upstream.clone(), model.to_owned());
            Some(
                lanes
                    .entry(key)
                    .or_insert_with(|| Arc::new(pool.lane(registry, model, &settings.queue)))
                    .clone(),
            )
        };
        let routes = settings.models.values().map(|model| Route {
            model: model.name.clone(),
            variants: model
                .variants
                .iter()
                .filter_map(|variant| {
                    let lane = lane(&variant.upstream, &variant.model)?;
                    let on = variant.on.clone().map(Arc::new);
                    Some(route::Variant { lane, on })
                })
                .collect(),
            set: model
                .set
                .iter()
                .map(|(key, value)| (key.clone(), JsonText::from(value)))
                .collect(),
            most_output: most_output(&model.set),
            usual_output: model.usual_output_tokens,
            deadlines: model.deadlines,
            degraded: model.degraded.clone(),
            resume: model.resume,
        });
        let routes = Routes::new(routes.collect::<Vec<_>>());
        let of_account = |upstream: &Option<UpstreamId>| {
            let pool = by_id.get(upstream.as_ref()?)?;
            Some(Arc::new(
                pool.lane_of_first_account(registry, &settings.queue),
            ))
        };
        let files = of_account(&settings.files);
        let balance = of_account(&settings.balance);
        let limits = &settings.server.limits;
        let head_limits = HeadLimits {
            max_head: limits.max_head,
            max_fields: limits.max_head_fields,
            max_target: limits.max_target,
        };
        let directory = Directory::new(&settings, standing.clone())?;
        let lanes = lanes.into_values().collect();
        let (allowances, shares) = allowances(&settings, book);
        Ok(Self {
            directory,
            routes,
            pools,
            lanes,
            files,
            balance,
            head_limits,
            calendar: Calendar::new(settings.accounting.time_zone.clone()),
            prices: PriceTable::new(&settings.accounting),
            allowances,
            shares,
            settings,
        })
    }

    /// What this host gives a tenant while Redis is away.
    pub fn share(&self, tenant: &TenantId) -> Option<&Allowance> {
        self.shares.get(tenant)
    }

    /// What a tenant of this configuration may use.
    pub fn allowance(&self, tenant: &TenantId) -> Option<&Allowance> {
        self.allowances.get(tenant)
    }

    /// The limit of this key, if a tenant or group of this name has it.
    pub fn limit(&self, subject: &SubjectName, key: &LimitKey) -> Option<&Limit> {
        let find = |plan: &'_ Arc<Plan>| plan.limits.iter().position(|limit| limit.key == *key);
        let plan = match subject.0.split_once('/')? {
            ("tenant", id) => {
                let mut tenants = self.settings.tenants.iter();
                &tenants.find(|tenant| tenant.id.as_str() == id)?.plan
            }
            (_, id) => &self.settings.groups.get(&GroupId::new(id))?.plan,
        };
        plan.limits.get(find(plan)?)
    }

    /// Every upstream model that anything leads to, once, in no order.
    pub fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes.iter()
    }

    /// Holds the places of all upstreams to this configuration, gives learned ceilings their time
    /// to rise, and serves those who wait. To be called when it comes into use, and several times a
    /// second.
    pub fn pump(&self, now: Instant) {
        let unnamed = self.files.iter().chain(&self.balance);
        for lane in self.lanes.iter().chain(unnamed) {
            lane.pump(now);
        }
    }
}

/// The fields by which the surfaces bound an answer's tokens.
const MOST_OUTPUT: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// What a route's own fields allow, each by itself.
fn most_output(set: &[(String, serde_json::Value)]) -> [Option<u64>; 3] {
    MOST_OUTPUT.map(|field| {
        let (_, value) = set.iter().find(|(key, _)| key == field)?;
        value.as_u64()
    })
}

/// What each tenant may use; and what this host gives it while Redis is away.
fn allowances(settings: &Settings, book: &Book) -> (Allowances, Allowances) {
    let all = |part: Part| -> Allowances {
        let tenants = settings.tenants.iter();
        tenants
            .map(|tenant| (tenant.id.clone(), Allowance::new(tenant, book, part)))
            .collect()
    };
    match &settings.server.store {
        Store::Local => (all(Part::Whole), HashMap::new()),
        Store::Redis(redis) => {
            let shares = match redis.fail {
                FailMode::LocalShare { hosts } => all(Part::OneOf(hosts)),
                FailMode::Open | FailMode::Closed => HashMap::new(),
            };
            (all(Part::Shared), shares)
        }
    }
}
