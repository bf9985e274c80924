//! Is the gateway ready for requests? One answer for load balancers, the scraper and systemd.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::IntGauge;

/// Ready from the first look at the upstreams until the end begins.
pub struct Readiness {
    upstreams_known: AtomicBool,
    ending: AtomicBool,
    gauge: IntGauge,
}

impl Readiness {
    pub fn new(gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            upstreams_known: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            gauge,
        })
    }

    /// Every upstream was resolved and asked once. True the first time.
    pub fn upstreams_known(&self) -> bool {
        let first = !self.upstreams_known.swap(true, Ordering::AcqRel);
        self.gauge.set(i64::from(self.is_ready()));
        first
    }

    pub fn is_ready(&self) -> bool {
        self.upstreams_known.load(Ordering::Acquire) && !self.ending.load(Ordering::Acquire)
    }

    /// Not any more, and never again.
    pub fn withdraw(&self) {
        self.ending.store(true, Ordering::Release);
        self.gauge.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_once_and_never_comes_back_after_the_end() {
        let gauge = IntGauge::new("ready", "x").unwrap();
        let readiness = Readiness::new(gauge.clone());
        assert!(!readiness.is_ready());
        assert!(readiness.upstreams_known());
        assert!(!readiness.upstreams_known());
        assert!(readiness.is_ready() && gauge.get() == 1);
        readiness.withdraw();
        assert!(!readiness.upstreams_known());
        assert!(!readiness.is_ready() && gauge.get() == 0);
    }
}
