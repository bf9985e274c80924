//! Decides which hours of the ledger a report is about, from what was asked for and the calendar of
//! the accounting time zone.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// Hours that begin in it count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    pub from: Timestamp,
    /// Not included.
    pub to: Timestamp,
}

/// Why there is no such period.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    #[error(
        "{0:?} is no time; expected a day such as 2026-11-01, a month such as 2026-11, or an instant such as 2026-11-01T08:00:00+08:00"
    )]
    Unreadable(String),
    #[error("the period ends at {to}, which is not after its begin at {from}")]
    Empty { from: Timestamp, to: Timestamp },
}

impl Period {
    /// From the beginning of `from` to the end of `to`: a day or month counts whole, in `zone`.
    /// Without `from` since this month began, without `to` without end.
    ///
    /// # Errors
    /// If a text is no time, or nothing lies between the two.
    pub fn read(
        from: Option<&str>,
        to: Option<&str>,
        zone: &TimeZone,
        now: Timestamp,
    ) -> Result<Self, PeriodError> {
        let from = match from {
            Some(text) => Span::read(text, zone)?.begin,
            None => {
                let today = zone.to_datetime(now).date();
                start(today.first_of_month(), zone).unwrap_or(Timestamp::MIN)
            }
        };
        let to = match to {
            Some(text) => Span::read(text, zone)?.end,
            None => Timestamp::MAX,
        };
        if from >= to {
            return Err(PeriodError::Empty { from, to });
        }
        Ok(Self { from, to })
    }
}

/// What one text stands for.
struct Span {
    begin: Timestamp,
    end: Timestamp,
}

impl Span {
    fn read(text: &str, zone: &TimeZone) -> Result<Self, PeriodError> {
        let unreadable = || PeriodError::Unreadable(text.to_owned());
        // By length, since the parser of days takes the day of an instant as well.
        let span = match text.len() {
            7 => format!("{text}-01").parse::<Date>().ok().and_then(|first| {
                let next = first.last_of_month().tomorrow().ok()?;
                Some((start(first, zone)?, start(next, zone)?))
            }),
            10 => text.parse::<Date>().ok().and_then(|day| {
                let next = day.tomorrow().ok()?;
                Some((start(day, zone)?, start(next, zone)?))
            }),
            _ => text.parse::<Timestamp>().ok().map(|at| (at, at)),
        };
        let (begin, end) = span.ok_or_else(unreadable)?;
        Ok(Self { begin, end })
    }
}

/// The first instant of a day, which is not midnight where clocks are turned then.
fn start(day: Date, zone: &TimeZone) -> Option<Timestamp> {
    let start = day.to_zoned(zone.clone()).ok()?.start_of_day().ok()?;
    Some(start.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(from: Option<&str>, to: Option<&str>) -> Result<(String, String), PeriodError> {
        let zone = TimeZone::get("Asia/Shanghai").unwrap();
        // In Shanghai the month has begun.
        let now = "2026-11-30T17:00:00Z".parse().unwrap();
        let period = Period::read(from, to, &zone, now)?;
        Ok((period.from.to_string(), period.to.to_string()))
    }

    #[test]
    fn the_default_is_this_month_in_the_zone() {
        let (from, to) = read(None, None).unwrap();
        assert_eq!(from, "2026-11-30T16:00:00Z");
        assert_eq!(to, Timestamp::MAX.to_string());
    }

    #[test]
    fn days_and_months_count_whole_and_instants_to_the_second() {
        let (from, to) = read(Some("2026-11-01"), Some("2026-11-30")).unwrap();
        assert_eq!(from, "2026-10-31T16:00:00Z");
        assert_eq!(to, "2026-11-30T16:00:00Z");
        assert_eq!(read(Some("2026-11"), Some("2026-11")).unwrap(), (from, to));
        let instants = read(
            Some("2026-11-01T08:00:00+08:00"),
            Some("2026-11-01T02:00:00Z"),
        );
        let (from, to) = instants.unwrap();
        assert_eq!(
            (from.as_str(), to.as_str()),
            ("2026-11-01T00:00:00Z", "2026-11-01T02:00:00Z")
        );
        assert!(read(Some("2026-02"), Some("2026-02")).is_ok());
        assert!(read(Some("2026-12"), Some("2026-12-31")).is_ok());
    }

    #[test]
    fn a_day_that_begins_late_begins_when_it_begins() {
        // Clocks went from 24:00 to 01:00.
        let zone = TimeZone::get("America/Sao_Paulo").unwrap();
        let period = Period::read(
            Some("2018-11-04"),
            Some("2018-11-04"),
            &zone,
            Timestamp::MIN,
        );
        let length = period.map(|period| period.to.duration_since(period.from).as_hours());
        assert_eq!(length, Ok(23));
    }

    #[test]
    fn what_is_no_period_is_refused_with_a_reason() {
        for text in [
            "",
            "yesterday",
            "2026-13",
            "2026-02-30",
            "2026-11-01T00:00",
            "9999-12-31",
            "11/01/2026",
            "ä026-1",
        ] {
            let error = read(Some(text), None).unwrap_err();
            assert_eq!(error, PeriodError::Unreadable(text.to_owned()));
        }
        let error = read(Some("2026-11-02"), Some("2026-11-01")).unwrap_err();
        assert!(error.to_string().contains("not after"));
        assert!(read(None, Some("2026-10")).is_err());
    }
}
