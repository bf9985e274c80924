use std::time::Duration;

use jiff::civil::{Date, Time, Weekday, date, time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::config::settings::PeakHours;

fn rates(one: u64) -> Rates {
    Rates {
        cache_hit: one,
        cache_miss: one,
        output: one,
    }
}

fn accounting(prices: Vec<Price>) -> Accounting {
    Accounting {
        time_zone: TimeZone::UTC,
        currency: Arc::from("USD"),
        prices,
        keep: Duration::from_secs(1),
        lease_warning: Duration::from_secs(1),
    }
}

fn price(from: &str, base: u64, peak: Option<(Arc<PeakHours>, Rates)>) -> Price {
    Price {
        upstream: UpstreamId::new("deepseek"),
        model: "deepseek-flash".to_owned(),
        from: from.parse().unwrap(),
        base: rates(base),
        peak,
    }
}

fn prices(list: Vec<Price>) -> ModelPrices {
    PriceTable::new(&accounting(list)).of(&UpstreamId::new("deepseek"), "deepseek-flash")
}

fn hours(zone: &str, days: &[Weekday], hours: &[(Time, Time)], holidays: &[Date]) -> PeakHours {
    PeakHours {
        name: "peak".to_owned(),
        time_zone: TimeZone::get(zone).unwrap(),
        days: days.to_vec(),
        hours: hours.to_vec(),
        holidays: holidays.to_vec(),
    }
}

const WORKDAYS: [Weekday; 5] = [
    Weekday::Monday,
    Weekday::Tuesday,
    Weekday::Wednesday,
    Weekday::Thursday,
    Weekday::Friday,
];

const EVERY_DAY: [Weekday; 7] = [
    Weekday::Monday,
    Weekday::Tuesday,
    Weekday::Wednesday,
    Weekday::Thursday,
    Weekday::Friday,
    Weekday::Saturday,
    Weekday::Sunday,
];

/// Those of DeepSeek, with one holiday.
fn beijing() -> PeakHours {
    hours(
        "Asia/Shanghai",
        &WORKDAYS,
        &[
            (time(9, 0, 0, 0), time(12, 0, 0, 0)),
            (time(14, 0, 0, 0), time(18, 0, 0, 0)),
        ],
        &[date(2026, 10, 1)],
    )
}

fn at(prices: &ModelPrices, now: &str) -> Option<u64> {
    let found = prices.rates_at(now.parse().unwrap());
    found.map(|rates| rates.output)
}

#[test]
fn the_latest_price_that_has_begun_counts() {
    let both = prices(vec![
        price("2026-11-01T00:00:00Z", 7, None),
        price("2026-01-01T00:00:00Z", 5, None),
    ]);
    assert_eq!(at(&both, "2025-12-31T23:59:59Z"), None);
    assert_eq!(at(&both, "2026-01-01T00:00:00Z"), Some(5));
    assert_eq!(at(&both, "2026-10-31T23:59:59.999999999Z"), Some(5));
    assert_eq!(at(&both, "2026-11-01T00:00:00Z"), Some(7));
    assert_eq!(at(&both, "2126-11-01T00:00:00Z"), Some(7));
}

#[test]
fn a_model_without_a_price_has_no_rates() {
    let table = PriceTable::new(&accounting(vec![price("2026-01-01T00:00:00Z", 5, None)]));
    for (upstream, model) in [("other", "deepseek-flash"), ("deepseek", "other")] {
        let none = table.of(&UpstreamId::new(upstream), model);
        assert_eq!(at(&none, "2026-06-01T00:00:00Z"), None);
    }
}

#[test]
fn peak_begins_and_ends_on_the_minute_in_its_own_zone() {
    let peak = Some((Arc::new(beijing()), rates(2)));
    let prices = prices(vec![price("2026-01-01T00:00:00Z", 1, peak)]);
    for (now, expected) in [
        ("2026-11-02T00:59:59.999999999Z", 1), // Monday
        ("2026-11-02T01:00:00Z", 2),
        ("2026-11-02T03:59:59Z", 2),
        ("2026-11-02T04:00:00Z", 1),
        ("2026-11-02T06:00:00Z", 2),
        ("2026-11-02T10:00:00Z", 1),
        ("2026-11-01T02:00:00Z", 1), // Sunday
        ("2026-10-01T02:00:00Z", 1), // a holiday, a Thursday
        ("2026-10-02T02:00:00Z", 2),
    ] {
        assert_eq!(at(&prices, now), Some(expected), "{now}");
    }
}

#[test]
fn a_clock_that_steps_back_finds_the_price_of_then() {
    let peak = Some((Arc::new(beijing()), rates(2)));
    let prices = prices(vec![
        price("2026-01-01T00:00:00Z", 1, peak),
        price("2026-12-01T00:00:00Z", 9, None),
    ]);
    assert_eq!(at(&prices, "2026-12-05T00:00:00Z"), Some(9));
    assert_eq!(at(&prices, "2026-11-02T02:00:00Z"), Some(2));
    assert_eq!(at(&prices, "2026-11-02T00:00:00Z"), Some(1));
    assert_eq!(at(&prices, "2025-11-02T00:00:00Z"), None);
    assert_eq!(at(&prices, "2026-11-02T02:00:00Z"), Some(2));
}

#[test]
fn midnight_as_the_end_is_the_end_of_the_day() {
    let late = hours(
        "UTC",
        &WORKDAYS,
        &[(time(22, 0, 0, 0), Time::midnight())],
        &[],
    );
    let peak = Some((Arc::new(late), rates(2)));
    let prices = prices(vec![price("2026-01-01T00:00:00Z", 1, peak)]);
    assert_eq!(at(&prices, "2026-11-06T23:59:59Z"), Some(2)); // Friday
    assert_eq!(at(&prices, "2026-11-07T00:00:00Z"), Some(1));
}

#[test]
fn the_hour_that_comes_twice_is_peak_twice_and_the_missing_one_is_missing() {
    let night = hours(
        "Europe/Berlin",
        &EVERY_DAY,
        &[(time(2, 0, 0, 0), time(3, 0, 0, 0))],
        &[],
    );
    let peak = Some((Arc::new(night), rates(2)));
    let prices = prices(vec![price("2026-01-01T00:00:00Z", 1, peak)]);
    for (now, expected) in [
        ("2026-10-24T23:59:59Z", 1), // 01:59:59 summer time
        ("2026-10-25T00:00:00Z", 2), // 02:00 summer time
        ("2026-10-25T00:59:59Z", 2),
        ("2026-10-25T01:00:00Z", 2), // 02:00 again
        ("2026-10-25T02:00:00Z", 1),
        ("2026-03-29T00:59:59Z", 1), // 01:59:59, and a second later 03:00
        ("2026-03-29T01:00:00Z", 1),
    ] {
        assert_eq!(at(&prices, now), Some(expected), "{now}");
    }
}

#[test]
fn threads_that_ask_at_an_edge_all_get_their_own_answer() {
    let peak = Some((Arc::new(beijing()), rates(2)));
    let prices = prices(vec![price("2026-01-01T00:00:00Z", 1, peak)]);
    let edge: Timestamp = "2026-11-02T01:00:00Z".parse().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4i64 {
            let prices = prices.clone();
            scope.spawn(move || {
                for step in 0..2_000i64 {
                    let nanos = (step * 7 + thread) % 11 - 5;
                    let now = edge + SignedDuration::from_nanos(nanos);
                    let expected = if nanos < 0 { 1 } else { 2 };
                    let found = prices.rates_at(now).map(|rates| rates.output);
                    assert_eq!(found, Some(expected));
                }
            });
        }
    });
}

/// The same, slowly and without remembering: the wall clock's reading, word by word.
fn reference(list: &[Price], now: Timestamp) -> Option<Rates> {
    let begun = list.iter().filter(|price| price.from <= now);
    let latest = begun.max_by_key(|price| price.from)?;
    let Some((hours, peak)) = &latest.peak else {
        return Some(latest.base);
    };
    let wall = now.to_zoned(hours.time_zone.clone());
    let off = hours.holidays.contains(&wall.date()) || !hours.days.contains(&wall.weekday());
    let second = |time: Time| {
        i64::from(time.hour()) * 3_600 + i64::from(time.minute()) * 60 + i64::from(time.second())
    };
    let reading = second(wall.time());
    let within = hours.hours.iter().any(|&(from, to)| {
        let end = if to == Time::midnight() {
            86_400
        } else {
            second(to)
        };
        second(from) <= reading && reading < end
    });
    Some(if within && !off { *peak } else { latest.base })
}

fn some_hours() -> impl Strategy<Value = PeakHours> {
    let zone = prop::sample::select(vec![
        "UTC",
        "Asia/Shanghai",
        "Europe/Berlin",
        "America/New_York",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
        "America/Sao_Paulo",
        "Pacific/Apia",
    ]);
    let span = (0i64..1_440, 1i64..1_440).prop_map(|(from, length)| {
        let at = |minute: i64| {
            let (hour, minute) = (minute / 60 % 24, minute % 60);
            time(hour as i8, minute as i8, 0, 0)
        };
        (at(from), at((from + length).min(1_440)))
    });
    let days = prop::sample::subsequence(EVERY_DAY.to_vec(), 0..=7);
    let spans = prop::collection::vec(span, 1..4);
    let holidays = prop::collection::vec((1i16..=12, 1i16..=28), 0..4);
    (zone, days, spans, holidays).prop_map(|(zone, days, spans, holidays)| {
        let holidays: Vec<_> = holidays
            .iter()
            .map(|&(month, day)| date(2026, month as i8, day as i8))
            .collect();
        hours(zone, &days, &spans, &holidays)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_question_is_answered_as_the_wall_clock_says(
        calendar in some_hours(),
        begins in prop::collection::btree_set(0i64..366 * 24 * 60, 1..4),
        steps in prop::collection::vec((-90_000i64..900_000, any::<bool>()), 1..200),
    ) {
        let year: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let peak = Arc::new(calendar);
        let list: Vec<_> = begins.iter().enumerate().map(|(number, minute)| {
            let from = year + SignedDuration::from_secs(minute * 60);
            let base = number as u64 * 2;
            let peak = (number != 1).then(|| (peak.clone(), rates(base + 1)));
            price(&from.to_string(), base, peak)
        }).collect();
        let prices = prices(list.clone());
        let mut now = year;
        for (step, to_the_edge) in steps {
            now += SignedDuration::from_secs(step);
            if to_the_edge {
                // Edges lie on minutes; the last nano before one is where errors would be.
                let second = now.as_second() / 60 * 60;
                now = Timestamp::from_second(second).unwrap() - SignedDuration::from_nanos(1);
            }
            prop_assert_eq!(prices.rates_at(now), reference(&list, now), "{}", now);
        }
    }

    #[test]
    fn nothing_changes_before_the_edge_that_was_told(
        calendar in some_hours(), start in 0i64..366 * 86_400, part in 0.0f64..1.0,
    ) {
        let year: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let now = year + SignedDuration::from_secs(start);
        let (peak, until) = peak::at(&calendar, now);
        prop_assert!(until > now);
        let length = until.duration_since(now).as_nanos() as f64;
        let within = now + SignedDuration::from_nanos((length * part) as i64);
        prop_assert_eq!(peak::at(&calendar, within.min(until - SignedDuration::from_nanos(1))).0, peak);
    }
}
