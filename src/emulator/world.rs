//! Everything a running emulator knows: its accounts by key, its tempo, its
//! journal and its orders of faults.

use std::collections::HashMap;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::RwLock;

use super::EmulatorConfig;
use super::account::Account;
use super::desk::Desk;
use super::fault::MAX_TOKENS;
use super::journal::Journal;
use super::refusal::Refusal;
use super::script::Tempo;

pub(super) struct World {
    pub accounts: Vec<Account>,
    keys: RwLock<HashMap<String, usize>>,
    pub tempo: Tempo,
    pub tokens: usize,
    pub embeddings: bool,
    pub self_hosted: bool,
    pub enveloped: bool,
    pub journal: Journal,
    pub desk: Desk,
}

impl World {
    pub(super) fn new(config: EmulatorConfig) -> Self {
        let keys = config
            .accounts
            .iter()
            .enumerate()
            .map(|(index, account)| (account.key.clone(), index))
            .collect();
        let accounts = config.accounts.into_iter().map(Account::new).collect();
        Self {
            accounts,
            keys: RwLock::new(keys),
            tempo: Tempo {
                first_token: config.first_token_delay,
                token_delay: config.token_delay,
                keep_alive: config.keep_alive,
                queue_limit: config.queue_limit,
            },
            tokens: config.tokens.min(MAX_TOKENS),
            embeddings: config.embeddings,
            self_hosted: config.self_hosted,
            enveloped: config.enveloped,
            journal: Journal::new(config.journal),
            desk: Desk::default(),
        }
    }

    /// The account of a request's key: Bearer first, then `x-api-key`. A
    /// self-hosted emulator asks for no key and serves all by its first account.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<&Account, Refusal> {
        let key = key(headers);
        let known = key.and_then(|key| self.by_key(key));
        let anyone = self.accounts.first().filter(|_| self.self_hosted);
        match (known.or(anyone), key) {
            (Some(account), _) => Ok(account),
            (None, Some(key)) => Err(Refusal::wrong_key(key)),
            (None, None) => Err(Refusal::no_key()),
        }
    }

    fn by_key(&self, key: &str) -> Option<&Account> {
        let index = self.keys.read().get(key).copied();
        index.and_then(|index| self.accounts.get(index))
    }

    /// Gives the account of this name another key; the old one is wrong from now on.
    pub(super) fn set_key(&self, name: &str, key: String) {
        let of = self
            .accounts
            .iter()
            .position(|account| account.name == name);
        if let Some(index) = of {
            let mut keys = self.keys.write();
            keys.retain(|_, known| *known != index);
            keys.insert(key, index);
        }
    }

    /// An account by its name or its key.
    pub(super) fn account(&self, name_or_key: &str) -> Option<&Account> {
        let named = self
            .accounts
            .iter()
            .find(|account| account.name == name_or_key);
        named.or_else(|| self.by_key(name_or_key))
    }
}

fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).map(|value| {
        let value = value.to_str().unwrap_or_default();
        match value.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
            _ => value,
        }
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}
