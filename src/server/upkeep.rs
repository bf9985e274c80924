//! What goes on in the background while requests are served: names are resolved anew, endpoints
//! asked after their health, learned ceilings raised, those who wait looked after. Follows the
//! configuration in use; pools that a reload brought are taken up at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::{join, join_all, join3};
use pingora::connectors::http::Connector;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use prometheus::IntCounterVec;
use tokio::sync::Notify;

use super::credit::CreditWatch;
use super::lifecycle::upstreams_known;
use crate::admission::store_redis::RedisCounts;
use crate::config::settings::UpstreamId;
use crate::snapshot::Current;
use crate::telemetry::readiness::Readiness;
use crate::upstream::pool::Pool;
use crate::upstream::{discovery, probe};

/// How finely the schedules are kept.
const TICK: Duration = Duration::from_millis(250);
/// After a start or a reload names are resolved again so soon, then each time after twice as long,
/// up to the usual: one that was not found is not missed for the whole of it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Readiness waits so long for the first answer of Redis, good or bad.
const FIRST_PROBE: Duration = Duration::from_secs(2);

pub struct Upkeep {
    pub current: Current,
    pub readiness: Arc<Readiness>,
    /// Rung after a reload.
    pub reloaded: Arc<Notify>,
    pub pin_mismatches: IntCounterVec,
    pub credit: CreditWatch,
    /// The counts in Redis, if that is where they are.
    pub shared: Option<Arc<RedisCounts>>,
}

/// When an upstream's turn comes.
#[derive(Clone, Copy)]
struct Due {
    resolve: Instant,
    /// From that to the next one, at most.
    pause: Duration,
    check: Instant,
}

#[async_trait]
impl BackgroundService for Upkeep {
    async fn start(&self, shutdown: ShutdownWatch) {
        // A slow name server or balance must not keep those who wait from a place. They are looked
        // after until the process ends: some still wait while others are let finish.
        let credit = self.credit.run(shutdown.clone());
        join3(self.ask_around(shutdown), self.pump(), credit).await;
    }
}

impl Upkeep {
    /// Looks for places that came free without anybody giving them back.
    async fn pump(&self) {
        loop {
            self.current.load().pump(Instant::now());
            tokio::time::sleep(TICK).await;
        }
    }

    async fn ask_around(&self, mut shutdown: ShutdownWatch) {
        let connector = Connector::new(None);
        let mut due = HashMap::new();
        loop {
            let pools = self.current.load().pools.clone();
            join(
                self.round(&pools, &connector, &mut due),
                self.counts_tried(),
            )
            .await;
            upstreams_known(&self.readiness);
            tokio::select! {
                changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
                () = self.reloaded.notified() => due.clear(),
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Whoever is ready can ask Redis, if it is there: else `fail: closed` would refuse the first
    /// requests.
    async fn counts_tried(&self) {
        if let Some(counts) = &self.shared {
            counts.tried(FIRST_PROBE).await;
        }
    }

    /// Does what is due; upstreams do not wait for each other.
    async fn round(
        &self,
        pools: &[Arc<Pool>],
        connector: &Connector,
        due: &mut HashMap<UpstreamId, Due>,
    ) {
        let now = Instant::now();
        let work = pools.iter().map(|pool| {
            let at = due.entry(pool.settings.id.clone()).or_insert(Due {
                resolve: now,
                pause: FIRST_PAUSE,
                check: now,
            });
            let resolve = at.resolve <= now;
            let check = at.check <= now;
            if resolve {
                at.resolve = now + at.pause.min(pool.settings.dns_refresh);
                at.pause = at.pause.saturating_mul(2);
            }
            if check {
                at.check = now
                    + pool
                        .settings
                        .health
                        .as_ref()
                        .map_or(pool.settings.dns_refresh, |health| health.interval);
            }
            async move {
                if resolve {
                    discovery::resolve(pool).await;
                }
                if check {
                    probe::check(pool, connector, &self.pin_mismatches).await;
                }
            }
        });
        join_all(work).await;
    }
}
