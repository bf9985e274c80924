//! When do results in a row change what is thought of an endpoint? Pure counting; the questions are
//! asked by [`super::probe`], connections of live traffic come from [`super::chosen`].

/// Thresholds of consecutive results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    pub healthy_after: u32,
    pub unhealthy_after: u32,
}

/// What a result changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    BecameHealthy,
    BecameUnhealthy,
}

/// One endpoint's record. New endpoints are taken for healthy until shown otherwise.
#[derive(Debug)]
pub struct Record {
    healthy: bool,
    /// Results in a row that contradict `healthy`.
    against: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            healthy: true,
            against: 0,
        }
    }
}

impl Record {
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Counts one result, of a check or of live traffic.
    pub fn record(&mut self, good: bool, thresholds: Thresholds) -> Option<Transition> {
        if good == self.healthy {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let needed = if good {
            thresholds.healthy_after
        } else {
            thresholds.unhealthy_after
        };
        if self.against < needed {
            return None;
        }
        self.healthy = good;
        self.against = 0;
        Some(if good {
            Transition::BecameHealthy
        } else {
            Transition::BecameUnhealthy
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        healthy_after: 2,
        unhealthy_after: 3,
    };

    #[test]
    fn it_takes_a_row_of_results_to_change_and_one_good_one_breaks_the_row() {
        let mut record = Record::default();
        for good in [false, false, true, false, false] {
            assert_eq!(record.record(good, THRESHOLDS), None);
        }
        assert_eq!(
            record.record(false, THRESHOLDS),
            Some(Transition::BecameUnhealthy)
        );
        assert_eq!(record.record(true, THRESHOLDS), None);
        assert_eq!(record.record(false, THRESHOLDS), None);
        assert_eq!(record.record(true, THRESHOLDS), None);
        assert_eq!(
            record.record(true, THRESHOLDS),
            Some(Transition::BecameHealthy)
        );
    }
}
