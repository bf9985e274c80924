//! What goes on in the background while requests are served: names are resolved anew, endpoints
//! asked after their health, learned ceilings raised, those who wait looked after. Follows the
//! configuration in use; pools that a reload brought are taken up at once.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::join3;
use futures_util::stream::FuturesUnordered;
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

/// When an upstream is looked after.
struct Schedule {
    pool: Arc<Pool>,
    names: Turn,
    /// From one turn of the names to the next, at most.
    pause: Duration,
    checks: Turn,
    /// It was resolved and asked once.
    known: bool,
}

/// When something is done next.
struct Turn {
    at: Instant,
    under_way: bool,
}

/// What is done at one time.
#[derive(Clone, Copy)]
struct Work {
    resolve: bool,
    check: bool,
}

impl Turn {
    fn new(at: Instant) -> Self {
        Self {
            at,
            under_way: false,
        }
    }

    /// Does it begin now? Then the next one does after so long.
    fn begins(&mut self, now: Instant, next: Duration) -> bool {
        let begins = self.at <= now && !self.under_way;
        if begins {
            self.at = now + next;
            self.under_way = true;
        }
        begins
    }
}

impl Schedule {
    fn new(pool: &Arc<Pool>, now: Instant) -> Self {
        Self {
            pool: pool.clone(),
            names: Turn::new(now),
            pause: FIRST_PAUSE,
            checks: Turn::new(now),
            known: false,
        }
    }

    /// What is to be done for the pool now, if anything is.
    fn due(&mut self, pool: &Pool, now: Instant) -> Option<Work> {
        let settings = &pool.settings;
        let health = settings.health.as_ref();
        let interval = health.map_or(settings.dns_refresh, |health| health.interval);
        let resolve = self.names.begins(now, self.pause.min(settings.dns_refresh));
        if resolve {
            self.pause = self.pause.saturating_mul(2);
        }
        let check = self.checks.begins(now, interval);
        (resolve || check).then_some(Work { resolve, check })
    }

    fn ended(&mut self, work: Work) {
        self.names.under_way &= !work.resolve;
        self.checks.under_way &= !work.check;
        self.known |= work.check;
    }
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

    /// Upstreams do not wait for each other, nor checks for names that were found before.
    async fn ask_around(&self, mut shutdown: ShutdownWatch) {
        let connector = Connector::new(None);
        let mut schedules: HashMap<UpstreamId, Schedule> = HashMap::new();
        let mut under_way = FuturesUnordered::new();
        let mut counts = pin!(self.counts_tried());
        let mut counts_tried = false;
        loop {
            let (now, pools) = (Instant::now(), self.current.load().pools.clone());
            let mut known = counts_tried;
            for pool in &pools {
                let id = pool.settings.id.clone();
                let schedule = schedules
                    .entry(id)
                    .or_insert_with(|| Schedule::new(pool, now));
                if !Arc::ptr_eq(&schedule.pool, pool) {
                    *schedule = Schedule::new(pool, now);
                }
                if let Some(work) = schedule.due(pool, now) {
                    under_way.push(self.look_after(pool.clone(), work, &connector));
                }
                known &= schedule.known;
            }
            if known {
                upstreams_known(&self.readiness);
            }
            tokio::select! {
                changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
                () = self.reloaded.notified() => schedules.clear(),
                () = &mut counts, if !counts_tried => counts_tried = true,
                Some((pool, work)) = under_way.next() => {
                    let schedule = schedules.get_mut(&pool.settings.id);
                    // What was done for a pool that a reload has replaced counts for nobody.
                    if let Some(schedule) = schedule.filter(|it| Arc::ptr_eq(&it.pool, &pool)) {
                        schedule.ended(work);
                    }
                }
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    async fn look_after(
        &self,
        pool: Arc<Pool>,
        work: Work,
        connector: &Connector,
    ) -> (Arc<Pool>, Work) {
        if work.resolve {
            discovery::resolve(&pool).await;
        }
        if work.check {
            probe::check(&pool, connector, &self.pin_mismatches).await;
        }
        (pool, work)
    }

    /// Whoever is ready can ask Redis, if it is there: else `fail: closed` would refuse the first
    /// requests.
    async fn counts_tried(&self) {
        if let Some(counts) = &self.shared {
            counts.tried(FIRST_PROBE).await;
        }
    }
}
