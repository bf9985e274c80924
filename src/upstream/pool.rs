//! One upstream as a request sees it: settings of one configuration joined with the running state
//! that outlives it.
//!
//! [`Registry`] owns the state, keyed by ids; [`Pool`] is rebuilt on every reload and points into
//! it. Everything a request would otherwise build anew (credential header, authority, peer
//! options) is made here once.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;

use super::account::{AccountState, Places};
use super::affinity::{self, Affinity};
use super::balance::Standing;
use super::breaker::SharedBreaker;
use super::budget::RetryBudget;
pub use super::chosen::{Chosen, Outcome};
use super::endpoint::{EndpointState, Watch};
use super::gate::{Reason, Terms};
use super::health::Thresholds;
pub use super::lane::{Lane, NoChoice, Tried, Wish};
use super::peer::{PeerError, PeerTemplate};
use super::queue::{Line, Lines};
use super::signing::{self, Signer};
use super::transitions::{Kind, Teller, Transitions};
use crate::config::secret::Secret;
use crate::config::settings::{
    Account, AccountId, Endpoint, Queue, Upstream, UpstreamAuth, UpstreamId,
};

/// Failures of live connections that take an endpoint out when no active check says otherwise.
const UNWATCHED_THRESHOLDS: Thresholds = Thresholds {
    healthy_after: 1,
    unhealthy_after: 3,
};

/// Without checks and without rules for outliers, an endpoint is tried again after this.
const UNWATCHED_PAUSE: Duration = Duration::from_secs(10);

type AccountKey = (UpstreamId, AccountId);

/// The state of all accounts and endpoints ever configured, by id.
#[derive(Default)]
pub struct Registry {
    places: Mutex<HashMap<(AccountKey, String), Arc<Places>>>,
    affinities: Mutex<HashMap<(UpstreamId, String), Arc<Affinity>>>,
    lines: Mutex<HashMap<UpstreamId, Arc<Lines>>>,
    budgets: Mutex<HashMap<UpstreamId, Arc<RetryBudget>>>,
    accounts: Mutex<HashMap<AccountKey, Arc<AccountState>>>,
    endpoints: Mutex<HashMap<(UpstreamId, String), Arc<EndpointState>>>,
    /// By the endpoint's URL and the model.
    breakers: Mutex<HashMap<(UpstreamId, String, String), Arc<SharedBreaker>>>,
    transitions: Mutex<HashMap<UpstreamId, Arc<Transitions>>>,
    /// Idle connections kept to enveloped endpoints; 0 for Pingora's default.
    idle_connections: usize,
    /// Tells configured secrets apart without keeping them.
    fingerprints: RandomState,
    /// What connects to enveloped endpoints; all others are reached by Pingora's proxy.
    connector: OnceLock<Arc<Connector>>,
}

impl Registry {
    /// A registry of nothing yet, for a process that keeps so many idle connections.
    pub fn keeping(idle_connections: usize) -> Self {
        Self {
            idle_connections,
            ..Self::default()
        }
    }

    fn connector(&self) -> Arc<Connector> {
        let make = || {
            let idle = self.idle_connections;
            let options = (idle > 0).then(|| ConnectorOptions::new(idle));
            Arc::new(Connector::new(options))
        };
        self.connector.get_or_init(make).clone()
    }

    /// `ceiling` is the configured one, for places that nobody has asked for before.
    fn places(
        &self,
        account: &AccountKey,
        model: &str,
        ceiling: Option<u32>,
        now: Instant,
    ) -> Arc<Places> {
        self.places
            .lock()
            .entry((account.clone(), model.to_owned()))
            .or_insert_with(|| Arc::new(Places::new(ceiling, now)))
            .clone()
    }

    fn line(&self, upstream: &UpstreamId, model: &str) -> Arc<Line> {
        let lines = self
            .lines
            .lock()
            .entry(upstream.clone())
            .or_default()
            .clone();
        lines.of(model)
    }

    fn affinity(&self, upstream: &UpstreamId, model: &str) -> Arc<Affinity> {
        let mut affinities = self.affinities.lock();
        let key = (upstream.clone(), model.to_owned());
        affinities.entry(key).or_default().clone()
    }

    fn budget(&self, upstream: &UpstreamId, now: Instant) -> Arc<RetryBudget> {
        let mut budgets = self.budgets.lock();
        let make = || Arc::new(RetryBudget::new(now));
        budgets.entry(upstream.clone()).or_insert_with(make).clone()
    }

    /// The state of an account, if there was ever such a one.
    pub fn account(&self, upstream: &str, account: &str) -> Option<Arc<AccountState>> {
        let key = (UpstreamId::new(upstream), AccountId::new(account));
        self.accounts.lock().get(&key).cloned()
    }

    /// The state of an endpoint, if there was ever such a one.
    pub fn endpoint_of(&self, upstream: &str, url: &str) -> Option<Arc<EndpointState>> {
        let key = (UpstreamId::new(upstream), url.to_owned());
        self.endpoints.lock().get(&key).cloned()
    }

    fn transitions(&self, upstream: &UpstreamId) -> Arc<Transitions> {
        self.transitions
            .lock()
            .entry(upstream.clone())
            .or_insert_with(|| Arc::new(Transitions::new(upstream.clone())))
            .clone()
    }

    fn teller(&self, kind: Kind, upstream: &UpstreamId, name: &str) -> Teller {
        Teller {
            kind,
            name: name.into(),
            transitions: self.transitions(upstream),
        }
    }

    fn account_state(&self, account: &AccountKey, now: Instant) -> Arc<AccountState> {
        let (upstream, id) = account;
        let make = || {
            let teller = self.teller(Kind::Account, upstream, id.as_str());
            Arc::new(AccountState::new(teller, now))
        };
        let mut accounts = self.accounts.lock();
        accounts.entry(account.clone()).or_insert_with(make).clone()
    }

    fn endpoint(
        &self,
        upstream: &UpstreamId,
        endpoint: &Endpoint,
        now: Instant,
    ) -> Arc<EndpointState> {
        let key = (upstream.clone(), endpoint.url.clone());
        let make = || {
            let teller = self.teller(Kind::Endpoint, upstream, &endpoint.url);
            let state = EndpointState::new(teller, now);
            state.configure(endpoint.max_concurrent);
            Arc::new(state)
        };
        self.endpoints
            .lock()
            .entry(key)
            .or_insert_with(make)
            .clone()
    }

    fn breaker(
        &self,
        upstream: &UpstreamId,
        url: &str,
        model: &str,
        now: Instant,
    ) -> Arc<SharedBreaker> {
        let key = (upstream.clone(), url.to_owned(), model.to_owned());
        let make = || {
            let name = format!("{url} {model}");
            let teller = self.teller(Kind::Breaker, upstream, name.trim_end());
            Arc::new(SharedBreaker::new(teller, now))
        };
        let mut breakers = self.breakers.lock();
        breakers.entry(key).or_insert_with(make).clone()
    }
}

/// An upstream ready for use.
pub struct Pool {
    pub settings: Arc<Upstream>,
    pub accounts: Vec<AccountSlot>,
    pub endpoints: Vec<EndpointSlot>,
    /// What has changed, for metrics.
    pub transitions: Arc<Transitions>,
    /// How many retries it may still be sent.
    pub budget: Arc<RetryBudget>,
    /// How an account that has left comes back.
    pub(super) terms: Terms,
    watch: Watch,
    pub(super) turn: AtomicUsize,
    /// Another one for each process, so that hosts do not draw alike.
    pub(super) seed: u64,
    /// Rests of its places are measured from here.
    since: Instant,
}

pub struct AccountSlot {
    pub id: AccountId,
    pub state: Arc<AccountState>,
    /// Lower is preferred.
    pub priority: u32,
    /// Share among accounts of one priority.
    pub weight: u32,
    /// What conversations find it by.
    pub(super) seed: u64,
    credential: Credential,
}

/// What shows an upstream whose request it is. Values are marked sensitive.
enum Credential {
    Nothing,
    /// The same for every request.
    Field([(HeaderName, HeaderValue); 1]),
    Signer(Signer),
}

impl AccountSlot {
    /// The fields that carry the credential in this request.
    pub fn credential(
        &self,
        request: signing::Request<'_>,
    ) -> Cow<'_, [(HeaderName, HeaderValue)]> {
        match &self.credential {
            Credential::Nothing => Cow::Borrowed(&[]),
            Credential::Field(field) => Cow::Borrowed(field),
            Credential::Signer(signer) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let mut buffer = uuid::Uuid::encode_buffer();
                let nonce = uuid::Uuid::new_v4().simple().encode_lower(&mut buffer);
                Cow::Owned(signer.sign(request, now.unwrap_or_default(), nonce))
            }
        }
    }
}

pub struct EndpointSlot {
    pub settings: Endpoint,
    pub state: Arc<EndpointState>,
    pub template: PeerTemplate,
    pub authority: HeaderValue,
}

/// Why a pool could not be built.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("upstream {upstream}: {cause}")]
    Peer {
        upstream: UpstreamId,
        cause: PeerError,
    },
    #[error("upstream {upstream}: the credential of account {account} cannot stand in a header")]
    Credential {
        upstream: UpstreamId,
        account: AccountId,
    },
    #[error("upstream {upstream}: \"{value}\" cannot stand in a header")]
    Header { upstream: UpstreamId, value: String },
}

impl Pool {
    /// Joins settings with state.
    ///
    /// # Errors
    /// If a file named by the settings cannot be used, or a text cannot stand in a header.
    pub fn new(
        settings: Arc<Upstream>,
        registry: &Registry,
        now: Instant,
    ) -> Result<Arc<Self>, PoolError> {
        let mut accounts = Vec::with_capacity(settings.accounts.len());
        for account in &settings.accounts {
            let key = (settings.id.clone(), account.id.clone());
            let credential = match &account.api_key {
                Some(secret) => credential(&settings, account, secret)?,
                None => Credential::Nothing,
            };
            let state = registry.account_state(&key, now);
            // Another key may be a good one.
            let secret = account.api_key.as_ref().map(Secret::expose);
            let fingerprint = registry.fingerprints.hash_one((secret, &account.key_id));
            let mends = [Reason::Refused, Reason::Unpaid];
            state.condition.configure(fingerprint, &mends, now);
            accounts.push(AccountSlot {
                id: account.id.clone(),
                state,
                priority: account.priority,
                weight: account.weight,
                seed: affinity::seed(account.id.as_str()),
                credential,
            });
        }
        let mut endpoints = Vec::with_capacity(settings.endpoints.len());
        for endpoint in &settings.endpoints {
            let template =
                PeerTemplate::new(&settings, endpoint).map_err(|cause| PoolError::Peer {
                    upstream: settings.id.clone(),
                    cause,
                })?;
            let template = match &settings.envelope {
                Some(envelope) => {
                    template.enveloped(registry.connector(), envelope, &settings.timeouts)
                }
                None => template,
            };
            let state = registry.endpoint(&settings.id, endpoint, now);
            // So may be the key that others are pinned to; checks would find that out themselves.
            let mends: &[Reason] = match settings.health {
                Some(_) => &[],
                None => &[Reason::Pin],
            };
            let fingerprint = registry.fingerprints.hash_one(&settings.tls.pins);
            state.condition.configure(fingerprint, mends, now);
            if let Ok(address) = endpoint.host.parse() {
                // Nothing to resolve: usable at once.
                state.set_addresses(vec![SocketAddr::new(address, endpoint.port)]);
            }
            endpoints.push(EndpointSlot {
                settings: endpoint.clone(),
                state,
                template,
                authority: authority(&settings.id, endpoint)?,
            });
        }
        Ok(Arc::new(Self {
            transitions: registry.transitions(&settings.id),
            terms: Terms::of(settings.outlier.as_ref()),
            watch: watch(&settings),
            budget: registry.budget(&settings.id, now),
            settings,
            accounts,
            endpoints,
            turn: AtomicUsize::new(0),
            seed: uuid::Uuid::new_v4().as_u64_pair().1,
            since: now,
        }))
    }

    /// The places for one of the upstream's models, and the queue for them.
    pub fn lane(self: &Arc<Self>, registry: &Registry, model: &str, queue: &Queue) -> Lane {
        let places = self.settings.accounts.iter().map(|account| {
            let key = (self.settings.id.clone(), account.id.clone());
            let ceiling = account.max_concurrent.get(model).copied();
            registry.places(&key, model, ceiling, self.since)
        });
        let guarded = self.settings.breaker.is_some();
        let breakers = self.endpoints.iter().filter(|_| guarded).map(|slot| {
            let url = &slot.settings.url;
            registry.breaker(&self.settings.id, url, model, self.since)
        });
        Lane {
            pool: self.clone(),
            model: model.to_owned(),
            places: places.collect(),
            breakers: breakers.collect(),
            affinity: registry.affinity(&self.settings.id, model),
            line: registry.line(&self.settings.id, model),
            max_length: queue.max_length,
        }
    }

    /// The places of the first account alone, for what belongs to an account: files, the balance.
    pub fn lane_of_first_account(self: &Arc<Self>, registry: &Registry, queue: &Queue) -> Lane {
        let mut lane = self.lane(registry, "", queue);
        lane.places.truncate(1);
        lane
    }

    /// How its endpoints are watched over.
    pub fn watch(&self) -> Watch {
        self.watch
    }

    pub fn is_watched(&self) -> bool {
        self.watch.checked
    }

    /// May the endpoint be sent anything?
    pub fn is_used(&self, slot: &EndpointSlot, now: Instant) -> bool {
        slot.state.condition.standing(now, self.watch.terms) != Standing::Closed
    }

    /// May the account be asked, as a whole?
    pub fn may_be_asked(&self, slot: &AccountSlot, now: Instant) -> bool {
        slot.state.condition.standing(now, self.terms) != Standing::Closed
    }
}

fn watch(settings: &Upstream) -> Watch {
    let thresholds = settings.health.as_ref().map(|health| Thresholds {
        healthy_after: health.healthy_after,
        unhealthy_after: health.unhealthy_after,
    });
    let terms = Terms::of(settings.outlier.as_ref());
    Watch {
        thresholds: thresholds.unwrap_or(UNWATCHED_THRESHOLDS),
        checked: settings.health.is_some(),
        terms: match settings.outlier {
            Some(_) => terms,
            None => Terms {
                first: UNWATCHED_PAUSE,
                longest: UNWATCHED_PAUSE,
                ..terms
            },
        },
    }
}

fn credential(
    upstream: &Upstream,
    account: &Account,
    secret: &Secret,
) -> Result<Credential, PoolError> {
    let bad = || PoolError::Credential {
        upstream: upstream.id.clone(),
        account: account.id.clone(),
    };
    let (header, scheme) = match &upstream.auth {
        UpstreamAuth::Key { header, scheme } => (header, scheme.as_str()),
        UpstreamAuth::Signing(signing) => {
            let signer = Signer::new(signing, secret.clone(), &account.key_id);
            return signer.map(Credential::Signer).ok_or_else(bad);
        }
    };
    let name = HeaderName::from_bytes(header.as_bytes()).map_err(|_| bad())?;
    let text = match scheme {
        "" => secret.expose().to_owned(),
        scheme => format!("{scheme} {}", secret.expose()),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| bad())?;
    value.set_sensitive(true);
    Ok(Credential::Field([(name, value)]))
}

fn authority(upstream: &UpstreamId, endpoint: &Endpoint) -> Result<HeaderValue, PoolError> {
    let host = if endpoint.host.contains(':') {
        format!("[{}]", endpoint.host)
    } else {
        endpoint.host.clone()
    };
    let default_port = if endpoint.tls { 443 } else { 80 };
    let text = if endpoint.port == default_port {
        host
    } else {
        format!("{host}:{}", endpoint.port)
    };
    HeaderValue::from_str(&text).map_err(|_| PoolError::Header {
        upstream: upstream.clone(),
        value: text,
    })
}
