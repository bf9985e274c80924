//! The background part: connects and reconnects, tells Redis what waits, and gives signs of life. It
//! decides nothing itself; when to probe is in [`super::circuit`], what to tell in [`super::outbox`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::{sleep, sleep_until, timeout};

use super::circuit::Failure;
use super::client::{ANSWER, Link};
use super::outbox::{Batch, Moment};
use super::script::LIVENESS;
use super::{RedisCounts, StoreError, is_rejection};

/// Between two signs of life of what this host holds; two may be lost.
const SIGN: Duration = Duration::from_secs(LIVENESS.as_secs() / 4);
/// To find out who is the master, connect, and load the scripts.
const REACH: Duration = Duration::from_secs(5);
/// Batches under way at one time, each of another root.
const PIPELINE: usize = 64;
/// Between two looks at what is still to be told before the end.
const LAST_LOOK: Duration = Duration::from_millis(5);
/// Where a probe tries whether scripts may write.
const PROBE_ROOT: &str = "probe";

impl RedisCounts {
    /// The background part; never ends. Without it nothing is connected and nothing is settled.
    pub async fn run(&self) {
        let mut sign = Instant::now() + SIGN;
        loop {
            let probe = self.circuit.lock().probe_at();
            let wake = if let Some(due) = probe {
                if due <= Instant::now() {
                    let _ = self.probe().await;
                    continue;
                }
                due
            } else {
                if sign <= Instant::now() {
                    self.sign().await;
                    sign = Instant::now() + SIGN;
                }
                self.tell().await;
                sign
            };
            tokio::select! {
                () = self.bell.notified() => {}
                () = sleep_until(wake.into()) => {}
            }
        }
    }

    /// Tells Redis what still waits, before the process ends; also what `run` is telling it just
    /// now. While Redis is away, it waits for it to come back. Says whether nothing is left.
    pub async fn finish(&self, deadline: Duration) -> bool {
        let telling = async {
            while !self.outbox.lock().is_empty() {
                self.tell().await;
                sleep(LAST_LOOK).await;
            }
        };
        if timeout(deadline, telling).await.is_err() {
            let waiting = self.outbox.lock().len();
            log::error!("redis: the process ends and could not tell what {waiting} counters used");
            return false;
        }
        true
    }

    /// Waits for the end of the first probe that `run` makes, whatever came of it. Says whether it
    /// ended in time.
    pub async fn tried(&self, most: Duration) -> bool {
        let mut tried = self.tried.subscribe();
        timeout(most, tried.wait_for(|tried| *tried)).await.is_ok()
    }

    /// One attempt to connect, to tell what waits, and to open the way for requests. `run` does it
    /// when it is due; at the start one may wait for the first.
    ///
    /// # Errors
    /// If Redis is not to be used yet; `state` tells why.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let _one = self.probing.lock().await;
        if self.link.load().is_some() {
            return Ok(());
        }
        let result = self.reach().await;
        let good = result.is_ok();
        if let Ok(link) = &result {
            self.link.store(Some(Arc::new(link.clone())));
        }
        if self.circuit.lock().probed(good, Instant::now()) {
            log::info!("redis: back; counts are shared again");
        }
        if !self.tried.send_replace(true) && !good {
            let last = self.tally.last.lock().clone().unwrap_or_default();
            log::warn!("redis: cannot be used; limits follow `fail` until it can: {last}");
        }
        result.map(|_| ())
    }

    async fn reach(&self) -> Result<Link, StoreError> {
        let connecting = async {
            let mut link = self.connector.connect().await?;
            self.scripts.load(&mut link).await?;
            Ok(link)
        };
        let mut link = match timeout(REACH, connecting).await {
            Ok(connected) => connected.map_err(|error| self.failure(&error))?,
            Err(_) => return Err(self.too_slow()),
        };
        // May scripts write, and does it answer within a request's deadline?
        let sign = Batch::sign_of_life(&Arc::from(PROBE_ROOT));
        match timeout(self.deadline, self.scripts.settle(&mut link, &sign)).await {
            Ok(Ok(news)) => self.heard(&sign.root, news),
            Ok(Err(error)) => {
                if is_rejection(&error) {
                    // For the next probe.
                    self.mend(&mut link, &sign.root).await;
                }
                return Err(self.failure(&error));
            }
            Err(_) => return Err(self.too_slow()),
        }
        self.outbox.lock().reconnected(Instant::now());
        // Before anyone asks, Redis knows what was used while it was away, and what is held.
        self.tell_over(&link, true).await?;
        Ok(link)
    }

    async fn tell(&self) {
        let Some(link) = self.link.load_full() else {
            return;
        };
        if self.tell_over(&link, false).await.is_err() {
            self.cut(Failure::Away);
        }
    }

    async fn sign(&self) {
        let Some(link) = self.link.load_full() else {
            return;
        };
        let signs = self.outbox.lock().signs(SIGN, Instant::now());
        // Also if nothing is held: so the next request need not be the one to find Redis gone.
        let probe = Batch::sign_of_life(&Arc::from(PROBE_ROOT));
        let signs: Vec<_> = signs.into_iter().chain([probe]).map(Arc::new).collect();
        for some in signs.chunks(PIPELINE) {
            if self.send_all(&link, some).await.is_err() {
                self.cut(Failure::Away);
                return;
            }
        }
    }

    async fn tell_over(&self, link: &Link, away: bool) -> Result<(), StoreError> {
        loop {
            let moment = Moment {
                now: Instant::now(),
                away,
            };
            let batches = self.outbox.lock().take(PIPELINE, moment);
            if batches.is_empty() {
                return Ok(());
            }
            self.send_all(link, &batches).await?;
        }
    }

    /// At once: the connection pipelines them.
    async fn send_all(&self, link: &Link, batches: &[Arc<Batch>]) -> Result<(), StoreError> {
        join_all(batches.iter().map(|batch| self.send(link.clone(), batch)))
            .await
            .into_iter()
            .collect()
    }

    async fn send(&self, mut link: Link, batch: &Batch) -> Result<(), StoreError> {
        let unsent = Unsent {
            counts: self,
            batch,
        };
        match timeout(ANSWER, self.scripts.settle(&mut link, batch)).await {
            Ok(Ok(news)) => {
                std::mem::forget(unsent);
                self.heard(&batch.root, news);
                self.outbox.lock().delivered(batch);
                Ok(())
            }
            Ok(Err(error)) if is_rejection(&error) => {
                let _ = self.failure(&error);
                if self.mend(&mut link, &batch.root).await {
                    // It is told again: the scripts look at these keys before they change anything.
                    return Ok(());
                }
                // Told again it would be rejected again, and hold everything else up.
                std::mem::forget(unsent);
                self.outbox.lock().rejected(batch);
                log::error!("redis: use of {} is lost, rejected: {error}", batch.root);
                Ok(())
            }
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(_) => Err(self.too_slow()),
        }
    }

    /// Removes what stands where the counts of a root should be. Says whether there was something.
    async fn mend(&self, link: &mut Link, root: &Arc<str>) -> bool {
        let removed = match timeout(ANSWER, self.scripts.mend(link, root)).await {
            Ok(Ok(removed)) => removed,
            Ok(Err(error)) => {
                let _ = self.failure(&error);
                0
            }
            Err(_) => {
                let _ = self.too_slow();
                0
            }
        };
        if removed == 0 {
            return false;
        }
        self.tally.emptied.fetch_add(1, Ordering::Relaxed);
        self.outbox.lock().removed(root);
        log::error!(
            "redis: {removed} keys of {root} held something else and are removed; its counts begin anew"
        );
        true
    }
}

/// A batch of which nobody knows whether it arrived, also if whoever sent it was cancelled.
struct Unsent<'a> {
    counts: &'a RedisCounts,
    batch: &'a Batch,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.counts.outbox.lock().failed(self.batch);
    }
}
