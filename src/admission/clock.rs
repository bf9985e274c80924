//! The two clocks that limits are measured by, and where days and months begin.
//!
//! Token buckets follow a clock that never steps: it began at the wall clock's time and goes on with
//! the monotonic one. Days and months are people's, so they follow the wall clock, steps and all;
//! [`super::counter`] sees to it that a step gives nobody a second budget.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// A moment as limits see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds; never steps. Close to Unix time, so that what was written down by another
    /// process still means something.
    pub steady: u64,
    /// Unix seconds by the wall clock.
    pub wall: i64,
    pub day: Stretch,
    pub month: Stretch,
}

/// From `start` up to `end`, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub start: i64,
    pub end: i64,
}

impl Stretch {
    fn holds(&self, wall: i64) -> bool {
        (self.start..self.end).contains(&wall)
    }
}

/// Days and months of a time zone. Asking costs a comparison until the day ends.
#[derive(Debug)]
pub struct Calendar {
    zone: TimeZone,
    current: ArcSwap<(Stretch, Stretch)>,
}

impl Calendar {
    pub fn new(zone: TimeZone) -> Self {
        let nothing = Stretch { start: 0, end: 0 };
        Self {
            zone,
            current: ArcSwap::from_pointee((nothing, nothing)),
        }
    }

    /// The moment at these readings of the two clocks.
    pub fn at(&self, steady: u64, wall: i64) -> Now {
        let (day, month) = **self.current.load();
        let (day, month) = if day.holds(wall) && month.holds(wall) {
            (day, month)
        } else {
            let around = (self.day(wall), self.month(wall));
            self.current.store(Arc::new(around));
            around
        };
        Now {
            steady,
            wall,
            day,
            month,
        }
    }

    fn day(&self, wall: i64) -> Stretch {
        let date = self.date(wall);
        self.stretch(date, Span::new().days(1), wall)
    }

    fn month(&self, wall: i64) -> Stretch {
        let date = self.date(wall).first_of_month();
        self.stretch(date, Span::new().months(1), wall)
    }

    fn date(&self, wall: i64) -> Date {
        let at = Timestamp::from_second(wall).unwrap_or_default();
        at.to_zoned(self.zone.clone()).date()
    }

    fn stretch(&self, first: Date, length: Span, wall: i64) -> Stretch {
        let midnight = |date: Date| {
            let zoned = date
                .to_datetime(Time::midnight())
                .to_zoned(self.zone.clone());
            zoned.map(|zoned| zoned.timestamp().as_second())
        };
        let start = midnight(first).unwrap_or(wall);
        let end = first.checked_add(length).and_then(midnight);
        // At the end of what the calendar can say, windows of a second do no harm.
        let end = end
            .ok()
            .filter(|end| *end > wall)
            .unwrap_or(wall.saturating_add(1));
        Stretch { start, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    #[test]
    fn days_and_months_begin_at_the_zones_midnight() {
        let calendar = Calendar::new(TimeZone::get("Asia/Shanghai").unwrap());
        let now = calendar.at(0, unix("2026-11-30T15:59:59Z"));
        assert_eq!(now.day.start, unix("2026-11-29T16:00:00Z"));
        assert_eq!(now.day.end, unix("2026-11-30T16:00:00Z"));
        assert_eq!(now.month.end, now.day.end);
        let later = calendar.at(0, unix("2026-11-30T16:00:00Z"));
        assert_eq!(later.month.start, now.month.end);
        assert_eq!(later.month.end, unix("2026-12-31T16:00:00Z"));
    }

    #[test]
    fn a_day_of_23_hours_ends_when_it_ends_and_clocks_may_step_back() {
        let calendar = Calendar::new(TimeZone::get("Europe/Berlin").unwrap());
        let spring = calendar.at(0, unix("2026-03-29T12:00:00Z"));
        assert_eq!(spring.day.end - spring.day.start, 23 * 3600);
        let before = calendar.at(0, unix("2026-03-28T12:00:00Z"));
        assert_eq!(before.day.end, spring.day.start);
        assert_eq!(calendar.at(0, unix("2026-03-29T12:00:00Z")), spring);
    }

    #[test]
    fn no_reading_of_a_clock_is_too_odd() {
        let calendar = Calendar::new(TimeZone::UTC);
        for wall in [i64::MIN, -1, 0, 253_402_207_200, i64::MAX] {
            let now = calendar.at(0, wall);
            assert!(now.day.end > now.day.start || wall == i64::MAX, "{wall}");
        }
    }
}
