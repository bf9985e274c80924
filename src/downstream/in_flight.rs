//! Counts what is in flight and tells when the last request has ended, so that a shutdown ends
//! with it and not with the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The requests of the process.
#[derive(Default)]
pub struct Requests {
    count: AtomicUsize,
    draining: AtomicBool,
    ended: Notify,
}

/// One request under way.
#[must_use]
pub struct RequestGuard(Arc<Requests>);

impl Requests {
    pub fn enter(self: &Arc<Self>) -> RequestGuard {
        self.count.fetch_add(1, Ordering::AcqRel);
        RequestGuard(self.clone())
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// From now on connections close after their request.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Waits until nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_wait_ends_with_the_last_request() {
        let requests = Arc::new(Requests::default());
        let (one, two) = (requests.enter(), requests.enter());
        let waiting = tokio::spawn({
            let requests = requests.clone();
            async move { requests.idle().await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        waiting.await.unwrap();
        requests.idle().await;
    }
}
