//! Fetches the key sets of token issuers in the background, so that no request waits for one.
//!
//! When a set is due is decided in [`crate::identity::token::refresh`]; a set that cannot be had or
//! used leaves the last good one in place, however old it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::HeaderMap;
use log::{info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::reload::seconds_now;
use crate::config::settings::{TokenIssuer, TokenKeys};
use crate::fetch::{Client, FetchError, Fetched, Location, Validators};
use crate::identity::issuer;
use crate::identity::standing::Standing;
use crate::identity::token::refresh::Schedule;
use crate::identity::token::{KeySet, KeySetError, MAX_SET_BYTES};
use crate::snapshot::Current;
use crate::telemetry::metrics::Metrics;

/// How soon an unknown key is asked after.
const TICK: Duration = Duration::from_millis(250);

pub struct KeySets {
    pub current: Current,
    pub standing: Arc<Standing>,
    pub metrics: Arc<Metrics>,
}

/// What is known of one issuer's source.
struct Source {
    schedule: Schedule,
    /// Of the set in use, for a conditional question.
    validators: Validators,
    /// The issuer as configured when this was made.
    settings: Arc<TokenIssuer>,
    /// Told once until it is well again.
    ill: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Keys(#[from] KeySetError),
}

/// A source that the configuration names.
struct Followed {
    settings: Arc<TokenIssuer>,
    /// None while it is being asked.
    idle: Option<Source>,
}

#[async_trait]
impl BackgroundService for KeySets {
    /// Asks every source that is due. None waits for another one, nor the shutdown for any.
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut sources = HashMap::new();
        let mut asked = FuturesUnordered::new();
        loop {
            self.follow_settings(&mut sources);
            let now = Instant::now();
            for followed in sources.values_mut() {
                if self.is_due(followed, now)
                    && let Some(source) = followed.idle.take()
                {
                    asked.push(self.visit(source));
                }
            }
            tokio::select! {
                changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
                Some(source) = asked.next() => put_back(&mut sources, source),
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }
}

/// What was configured anew while it was asked has another source by now.
fn put_back(sources: &mut HashMap<String, Followed>, source: Source) {
    let followed = sources.get_mut(&source.settings.id);
    if let Some(followed) = followed.filter(|known| Arc::ptr_eq(&known.settings, &source.settings))
    {
        followed.idle = Some(source);
    }
}

impl KeySets {
    fn follow_settings(&self, sources: &mut HashMap<String, Followed>) {
        let snapshot = self.current.load_full();
        let issuers = &snapshot.settings.identity.tokens;
        sources.retain(|id, followed| {
            let known = &followed.settings;
            issuers.iter().any(|issuer| {
                issuer.id == *id && issuer.keys == known.keys && issuer.algorithm == known.algorithm
            })
        });
        for issuer in issuers {
            if let TokenKeys::Url { refresh, .. } = &issuer.keys {
                sources
                    .entry(issuer.id.clone())
                    .or_insert_with(|| Followed {
                        settings: issuer.clone(),
                        idle: Some(Source {
                            schedule: Schedule::new(*refresh, Instant::now()),
                            validators: Validators::default(),
                            settings: issuer.clone(),
                            ill: false,
                        }),
                    });
            }
        }
    }

    fn is_due(&self, followed: &mut Followed, now: Instant) -> bool {
        let Some(source) = &mut followed.idle else {
            return false;
        };
        let shared = self.standing.source(&followed.settings);
        if shared.take_wanted() {
            source.schedule.unknown_key_seen(now);
        }
        source.schedule.due(now)
    }

    /// Asks once, and says how it went.
    async fn visit(&self, mut source: Source) -> Source {
        let issuer = source.settings.clone();
        let TokenKeys::Url { url, ca, .. } = &issuer.keys else {
            return source;
        };
        let shared = self.standing.source(&issuer);
        let fetched = self.fetch(&mut source, url, ca.as_deref()).await;
        let result = match fetched {
            Ok(keys) => {
                source.schedule.succeeded(Instant::now());
                let when = self
                    .metrics
                    .key_set_fetched
                    .with_label_values(&[&issuer.id]);
                when.set(seconds_now());
                let keys = keys.filter(|keys| {
                    let current = shared.keys();
                    current.is_none_or(|current| !current.same_keys(keys))
                });
                if let Some(keys) = keys {
                    let (usable, skipped) = (keys.usable(), keys.skipped());
                    info!(
                        "Took over a key set. issuer={} keys={usable} skipped={skipped}",
                        issuer.id
                    );
                    shared.replace(keys);
                } else if source.ill {
                    info!("The key set is back. issuer={}", issuer.id);
                }
                source.ill = false;
                "ok"
            }
            Err(why) => {
                source.schedule.failed(Instant::now(), jitter());
                if !std::mem::replace(&mut source.ill, true) {
                    let kept = if shared.keys().is_some() {
                        "the last good one stays"
                    } else {
                        "tokens of this issuer are refused until it comes"
                    };
                    warn!(
                        "Cannot get a key set; {kept}. issuer={} cause=\"{why}\"",
                        issuer.id
                    );
                }
                "failed"
            }
        };
        self.metrics
            .key_set_fetches
            .with_label_values(&[&issuer.id, result])
            .inc();
        source
    }

    /// `None` if the set is the one in use.
    async fn fetch(
        &self,
        source: &mut Source,
        url: &str,
        ca: Option<&std::path::Path>,
    ) -> Result<Option<KeySet>, Failure> {
        let location = Location::parse(url)?;
        let client = Client::new(ca)?;
        let most = MAX_SET_BYTES as u64;
        let answer = client
            .get(&location, &HeaderMap::new(), &source.validators, most)
            .await?;
        match answer {
            Fetched::Unchanged => Ok(None),
            Fetched::Document { bytes, validators } => {
                let algorithm = issuer::algorithm(source.settings.algorithm);
                let keys = KeySet::from_jwks(&bytes, algorithm)?;
                source.validators = validators;
                Ok(Some(keys))
            }
        }
    }
}

/// From 0 to 1, so that many gateways do not come back in step.
fn jitter() -> f64 {
    let (bits, _) = uuid::Uuid::new_v4().as_u64_pair();
    bits as f64 / u64::MAX as f64
}
