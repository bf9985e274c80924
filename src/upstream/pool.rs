//! One upstream as a request sees it: settings of one configuration joined with the running state
//! that outlives it.
//!
//! [`Registry`] owns the state, keyed by ids; [`Pool`] is rebuilt on every reload and points into
//! it. Everything a request would otherwise build anew (credential header, authority, peer
//! options) is made here once.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue};

use super::account::AccountState;
use super::affinity;
use super::balance::Standing;
use super::budget::RetryBudget;
pub use super::chosen::{Chosen, Outcome};
use super::endpoint::{EndpointState, Watch};
use super::gate::{Reason, Terms};
use super::health::Thresholds;
pub use super::lane::{Lane, NoChoice, Tried, Wish};
use super::peer::{PeerError, PeerTemplate};
pub use super::registry::Registry;
use super::signing::{self, Signer};
use super::transitions::Transitions;
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
                state
                    .addresses
                    .set(&[SocketAddr::new(address, endpoint.port)]);
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
