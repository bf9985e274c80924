//! The running state of all that was ever configured, by its names: what outlives a reload. Decides
//! nothing; [`super::pool`] joins it with one configuration.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;

use super::account::{AccountState, Places};
use super::affinity::Affinity;
use super::breaker::SharedBreaker;
use super::budget::RetryBudget;
use super::endpoint::EndpointState;
use super::queue::{Line, Lines};
use super::transitions::{Kind, Teller, Transitions};
use crate::config::settings::{AccountId, Endpoint, UpstreamId};

pub(super) type AccountKey = (UpstreamId, AccountId);

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
    pub(super) fingerprints: RandomState,
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

    pub(super) fn connector(&self) -> Arc<Connector> {
        let make = || {
            let idle = self.idle_connections;
            let options = (idle > 0).then(|| ConnectorOptions::new(idle));
            Arc::new(Connector::new(options))
        };
        self.connector.get_or_init(make).clone()
    }

    /// `ceiling` is the configured one, for places that nobody has asked for before.
    pub(super) fn places(
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

    pub(super) fn line(&self, upstream: &UpstreamId, model: &str) -> Arc<Line> {
        let lines = self
            .lines
            .lock()
            .entry(upstream.clone())
            .or_default()
            .clone();
        lines.of(model)
    }

    /// Where the conversations of an upstream's model are.
    pub(super) fn affinity(&self, upstream: &UpstreamId, model: &str) -> Arc<Affinity> {
        let mut affinities = self.affinities.lock();
        let key = (upstream.clone(), model.to_owned());
        affinities.entry(key).or_default().clone()
    }

    pub(super) fn budget(&self, upstream: &UpstreamId, now: Instant) -> Arc<RetryBudget> {
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

    pub(super) fn transitions(&self, upstream: &UpstreamId) -> Arc<Transitions> {
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

    pub(super) fn account_state(&self, account: &AccountKey, now: Instant) -> Arc<AccountState> {
        let (upstream, id) = account;
        let make = || {
            let teller = self.teller(Kind::Account, upstream, id.as_str());
            Arc::new(AccountState::new(teller, now))
        };
        let mut accounts = self.accounts.lock();
        accounts.entry(account.clone()).or_insert_with(make).clone()
    }

    pub(super) fn endpoint(
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

    pub(super) fn breaker(
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
