//! The stage: a [`Server`] of one's own, [`Host`]s that share it, and limits to try.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate::admission::store_redis::{
    Ask, Counter, Part, RedisCounts, Reservation, Rule, Standing, StoreError, Verdict,
};
use tidegate::config::settings::{FailMode, RedisNodes, RedisStore};
use tokio::task::JoinHandle;

pub use crate::server::{Server, free_port};

/// Longest wait for something that should come at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// A deadline of reservations that a busy test machine keeps.
pub const PATIENT: Duration = Duration::from_secs(5);

/// Asks `look` until it has an answer.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The same without holding up a thread.
pub async fn in_time<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn settings(nodes: RedisNodes) -> RedisStore {
    RedisStore {
        nodes,
        username: None,
        password: None,
        tls: false,
        ca: None::<PathBuf>,
        database: 0,
        prefix: "tidegate".to_owned(),
        timeout: PATIENT,
        fail: FailMode::Closed,
    }
}

/// One process that shares the counts, with its background part.
pub struct Host {
    pub counts: Arc<RedisCounts>,
    background: JoinHandle<()>,
}

impl Host {
    /// Its background part runs, and it is connected.
    pub async fn join(store: &RedisStore, name: &str) -> Self {
        let host = Self::started(store, name);
        let began = Instant::now();
        while !host.counts.state().up {
            let state = host.counts.state();
            assert!(began.elapsed() < SOON, "not connected: {state:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        host
    }

    pub fn started(store: &RedisStore, name: &str) -> Self {
        let counts = RedisCounts::connect(store, name).unwrap();
        let running = counts.clone();
        let background = tokio::spawn(async move { running.run().await });
        Self { counts, background }
    }

    pub async fn at(server: &Server, name: &str) -> Self {
        Self::join(&settings(RedisNodes::One(server.address())), name).await
    }

    /// Dies: no release, no more signs of life.
    pub fn die(&self) {
        self.background.abort();
    }

    pub async fn grant(&self, ask: &Ask) -> Option<Reservation> {
        match self.counts.reserve(ask.clone()).await.unwrap() {
            Verdict::Granted { reservation, .. } => Some(reservation),
            Verdict::Refused { .. } => None,
        }
    }

    /// After Redis could not judge for a moment.
    pub async fn grant_anew(&self, ask: &Ask) -> Reservation {
        in_time("granted", async || {
            match self.counts.reserve(ask.clone()).await {
                Ok(Verdict::Granted { reservation, .. }) => Some(reservation),
                _ => None,
            }
        })
        .await
    }

    /// Uses up what it never asked Redis for.
    pub fn use_up(&self, root: &str, counter: &Counter, used: u64) {
        let counter = counter.clone();
        let parts = vec![Part { counter, demand: 0 }];
        let root = root.into();
        self.counts.assume(Ask { root, parts }).settle(&[used]);
    }

    pub async fn standing(&self, ask: &Ask) -> Vec<Standing> {
        let counters: Vec<_> = ask.parts.iter().map(|part| part.counter.clone()).collect();
        self.counts.show(&ask.root, &counters).await.unwrap()
    }

    /// All that waits has been told.
    pub async fn told(&self) {
        in_time("told", async || {
            (self.counts.state().queued == 0).then_some(())
        })
        .await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.background.abort();
    }
}

pub fn ask(parts: Vec<Part>) -> Ask {
    Ask {
        root: "tenant/acme".into(),
        parts,
    }
}

pub fn part(name: &str, rule: Rule, demand: u64) -> Part {
    Part {
        counter: Counter {
            name: name.into(),
            rule,
            shadow: false,
        },
        demand,
    }
}

pub fn shadow(mut part: Part) -> Part {
    part.counter.shadow = true;
    part
}

pub fn concurrency(amount: u64) -> Part {
    part("places", Rule::Concurrency { amount }, 1)
}

pub fn daily(amount: u64, demand: u64) -> Part {
    part(
        "daily",
        Rule::Calendar {
            window: 1000,
            amount,
        },
        demand,
    )
}

pub fn hourly(amount: u64, burst: u64, demand: u64) -> Part {
    let period = Duration::from_secs(3600);
    part(
        "hourly",
        Rule::Bucket {
            period,
            amount,
            burst,
        },
        demand,
    )
}

pub fn is_away(error: StoreError) -> bool {
    error == StoreError::Away
}
