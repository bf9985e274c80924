//! Decides how rows of the ledger are grouped and added up for somebody who wants to know who used
//! what. It must not know where rows come from or how a report is shown.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::journal::{Counts, Row};

/// What rows can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    Hour,
    Day,
    Month,
    Tenant,
    Model,
    Upstream,
    Account,
}

impl Dimension {
    pub const ALL: [Self; 7] = [
        Self::Hour,
        Self::Day,
        Self::Month,
        Self::Tenant,
        Self::Model,
        Self::Upstream,
        Self::Account,
    ];

    /// As it is asked for and as its column is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
            Self::Tenant => "tenant",
            Self::Model => "model",
            Self::Upstream => "upstream",
            Self::Account => "account",
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is nothing of this name to group by.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected any of hour, day, month, tenant, model, upstream, account")]
pub struct UnknownDimension;

impl FromStr for Dimension {
    type Err = UnknownDimension;

    fn from_str(text: &str) -> Result<Self, UnknownDimension> {
        let known = Self::ALL.into_iter().find(|known| known.name() == text);
        known.ok_or(UnknownDimension)
    }
}

/// Rows added up.
#[derive(Debug)]
pub struct Report {
    by: Vec<Dimension>,
    zone: TimeZone,
    groups: BTreeMap<Vec<Cell>, Counts>,
    total: Counts,
}

/// The value of a dimension. Hours are ordered by their begin: their text is not in order where
/// clocks are turned back.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    begin: i64,
    text: String,
}

impl Report {
    /// An empty one. A dimension named twice counts once. Days and months are those of `zone`.
    pub fn new(by: &[Dimension], zone: TimeZone) -> Self {
        let mut once = Vec::with_capacity(by.len());
        for dimension in by {
            if !once.contains(dimension) {
                once.push(*dimension);
            }
        }
        Self {
            by: once,
            zone,
            groups: BTreeMap::new(),
            total: Counts::default(),
        }
    }

    /// Adds a row to its group.
    pub fn add(&mut self, row: &Row) {
        let group = self.by.iter().map(|dimension| self.cell(*dimension, row));
        let group = group.collect();
        self.groups.entry(group).or_default().add(&row.counts);
        self.total.add(&row.counts);
    }

    pub fn by(&self) -> &[Dimension] {
        &self.by
    }

    /// Each group's values, in the order of [`Report::by`], and its sums. Sorted by the values.
    pub fn groups(&self) -> impl Iterator<Item = (Vec<&str>, &Counts)> {
        self.groups.iter().map(|(group, counts)| {
            let values = group.iter().map(|cell| cell.text.as_str());
            (values.collect(), counts)
        })
    }

    /// The sums of all groups.
    pub fn total(&self) -> &Counts {
        &self.total
    }

    fn cell(&self, dimension: Dimension, row: &Row) -> Cell {
        let begin = row.key.hour.start();
        let time = |format: &str| {
            let begin = Timestamp::from_second(begin).unwrap_or(Timestamp::MAX);
            begin
                .to_zoned(self.zone.clone())
                .strftime(format)
                .to_string()
        };
        let (begin, text) = match dimension {
            Dimension::Hour => (begin, time("%Y-%m-%dT%H:%M%:z")),
            Dimension::Day => (0, time("%Y-%m-%d")),
            Dimension::Month => (0, time("%Y-%m")),
            Dimension::Tenant => (0, row.key.tenant.to_string()),
            Dimension::Model => (0, row.key.model.to_string()),
            Dimension::Upstream => (0, row.key.upstream.to_string()),
            Dimension::Account => (0, row.key.account.to_string()),
        };
        Cell { begin, text }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::cost::Money;
    use super::super::journal::{Hour, Key};
    use super::*;

    /// A row of one answer, in the hour that begins at `hour`.
    pub(crate) fn row(hour: &str, tenant: &str, model: &str) -> Row {
        let hour: Timestamp = hour.parse().unwrap();
        Row {
            key: Key {
                hour: Hour::starting_at(hour.as_second()),
                tenant: tenant.into(),
                model: model.into(),
                upstream: "deepseek".into(),
                account: "main".into(),
            },
            counts: Counts {
                requests: 1,
                prompt: 100,
                cached: 64,
                completion: 10,
                cost: Money::from_nanos(1_500),
                saved: Money::from_nanos(500),
                ..Counts::default()
            },
        }
    }

    fn report(by: &[Dimension], zone: &str, rows: &[Row]) -> Report {
        let mut report = Report::new(by, TimeZone::get(zone).unwrap());
        rows.iter().for_each(|row| report.add(row));
        report
    }

    fn groups(report: &Report) -> Vec<(String, u64)> {
        let groups = report.groups();
        let groups = groups.map(|(values, counts)| (values.join(" "), counts.requests));
        groups.collect()
    }

    #[test]
    fn rows_are_added_up_by_what_was_asked_for() {
        let rows = [
            row("2026-11-01T00:00:00Z", "search", "flash"),
            row("2026-11-01T01:00:00Z", "search", "flash"),
            row("2026-11-01T01:00:00Z", "search", "pro"),
            row("2026-11-01T01:00:00Z", "ads", "pro"),
        ];
        use Dimension::{Model, Tenant};
        let both = report(&[Tenant, Model, Tenant], "UTC", &rows);
        let expected = [("ads pro", 1), ("search flash", 2), ("search pro", 1)];
        let expected = expected.map(|(name, requests)| (name.to_owned(), requests));
        assert_eq!(groups(&both), expected);
        assert_eq!(both.total().requests, 4);
        assert_eq!(both.total().cost, Money::from_nanos(6_000));
        let all = report(&[], "UTC", &rows);
        assert_eq!(groups(&all), [(String::new(), 4)]);
    }

    #[test]
    fn days_and_months_are_those_of_the_zone() {
        let rows = [
            row("2026-10-31T15:00:00Z", "a", "m"),
            row("2026-10-31T16:00:00Z", "a", "m"),
        ];
        let days = report(&[Dimension::Month, Dimension::Day], "Asia/Shanghai", &rows);
        let expected = [("2026-10 2026-10-31", 1), ("2026-11 2026-11-01", 1)];
        assert_eq!(
            groups(&days),
            expected.map(|(name, requests)| (name.to_owned(), requests))
        );
    }

    #[test]
    fn the_hour_that_comes_twice_is_two_hours_in_order() {
        let rows = [
            row("2026-10-25T01:00:00Z", "a", "m"),
            row("2026-10-25T00:00:00Z", "a", "m"),
        ];
        let hours = report(&[Dimension::Hour], "Europe/Berlin", &rows);
        let expected = [("2026-10-25T02:00+02:00", 1), ("2026-10-25T02:00+01:00", 1)];
        assert_eq!(
            groups(&hours),
            expected.map(|(name, requests)| (name.to_owned(), requests))
        );
    }

    #[test]
    fn every_dimension_is_known_by_its_name() {
        for dimension in Dimension::ALL {
            assert_eq!(dimension.name().parse(), Ok(dimension));
            assert!(UnknownDimension.to_string().contains(dimension.name()));
        }
        assert_eq!("Tenant".parse::<Dimension>(), Err(UnknownDimension));
    }
}
