//! Where counts are asked and told, at the edge: reads the clocks, and knows whether this process
//! counts by itself or together with other hosts.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::book::Book;
use super::clock::{Calendar, Now};

/// What is counted, and by which clock.
pub struct Counting {
    pub book: Arc<Book>,
    began: Instant,
    /// Nanoseconds since 1970 at `began`.
    epoch: u64,
}

impl Counting {
    pub fn new(book: Arc<Book>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            book,
            began: Instant::now(),
            epoch: since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
        }
    }

    /// [`Now::steady`] of this moment.
    pub fn steady(&self) -> u64 {
        let since = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.epoch.saturating_add(since)
    }

    /// This moment by both clocks.
    pub fn now(&self, calendar: &Calendar) -> Now {
        calendar.at(self.steady(), Timestamp::now().as_second())
    }
}
