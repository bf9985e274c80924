//! Prices, currencies and calendars: what they mean, and what may not be written.

use jiff::civil::{Time, Weekday, date, time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::*;
use crate::config::settings::{Accounting, Rates};

const TENANTS: &str = "tenants:\n";
const PRICE: &str = "upstream: deepseek, model: deepseek-flash";
const RATES: &str = "cache_hit: 0.003, cache_miss: 0.15, output: 0.6";
const HOURS: &str = "peak_hours: [{ id: h, time_zone: Asia/Shanghai, hours: ['09:00-12:00'] }]";

fn with(text: &str) -> String {
    MINIMAL.replace(TENANTS, &format!("accounting: {{ {text} }}\n{TENANTS}"))
}

fn accounting(text: &str) -> Accounting {
    settings_of(&with(text)).accounting
}

#[test]
fn without_prices_days_are_utc_and_nothing_costs() {
    let accounting = settings_of(MINIMAL).accounting;
    assert_eq!(accounting.time_zone, TimeZone::get("UTC").unwrap());
    assert_eq!(&*accounting.currency, "USD");
    assert_eq!(accounting.prices, []);
    assert_eq!(accounting.keep, Duration::from_secs(400 * 86_400));
    assert_eq!(accounting.lease_warning, Duration::from_secs(3600));
}

#[test]
fn a_price_is_exact_whether_number_or_text() {
    for hit in ["0.003", "'0.003'", "3e-3", "0.003000"] {
        let text = format!("prices: [{{ {PRICE}, cache_hit: {hit}, cache_miss: 1, output: 0 }}]");
        let price = accounting(&text).prices[0].clone();
        let base = Rates {
            cache_hit: 3_000,
            cache_miss: 1_000_000,
            output: 0,
        };
        assert_eq!((price.base, price.peak), (base, None));
        assert_eq!(price.from, Timestamp::MIN);
    }
}

#[test]
fn a_price_in_another_currency_is_converted_to_the_nearest_pico_unit() {
    let text = format!(
        "exchange: {{ CNY: 0.14 }}, prices: [{{ {PRICE}, currency: CNY, cache_hit: 0.02, cache_miss: 0.000004, output: 0.000003 }}]"
    );
    let base = accounting(&text).prices[0].base;
    // 0.56 and 0.42 pico-units.
    assert_eq!(
        (base.cache_hit, base.cache_miss, base.output),
        (2_800, 1, 0)
    );
}

#[test]
fn peak_prices_are_a_factor_or_prices_of_their_own() {
    let read = |peak: &str| {
        let text =
            format!("{HOURS}, prices: [{{ {PRICE}, {RATES}, peak: {{ hours: h, {peak} }} }}]");
        accounting(&text).prices[0].peak.clone().unwrap()
    };
    let (hours, double) = read("factor: 2");
    assert_eq!(
        double,
        Rates {
            cache_hit: 6_000,
            cache_miss: 300_000,
            output: 1_200_000
        }
    );
    assert_eq!(
        read("cache_hit: 0.006, cache_miss: 0.3, output: 1.2").1,
        double
    );
    assert_eq!(read("factor: 0.5").1.cache_hit, 1_500);
    assert_eq!(hours.name, "h");
    assert_eq!(hours.days.len(), 7);
}

#[test]
fn peak_hours_are_those_of_a_calendar() {
    let text = format!(
        "peak_hours: [{{ id: h, time_zone: Asia/Shanghai, days: [fri, mon], hours: ['14:00-24:00', '09:00-12:00'], holidays: [2027-10-01, 2027-01-01] }}], \
         prices: [{{ {PRICE}, {RATES}, peak: {{ hours: h, factor: 2 }} }}]"
    );
    let (hours, _) = accounting(&text).prices[0].peak.clone().unwrap();
    assert_eq!(hours.days, [Weekday::Monday, Weekday::Friday]);
    assert_eq!(
        hours.hours,
        [
            (time(9, 0, 0, 0), time(12, 0, 0, 0)),
            (time(14, 0, 0, 0), Time::midnight())
        ]
    );
    assert_eq!(hours.holidays, [date(2027, 1, 1), date(2027, 10, 1)]);
    let noon = date(2027, 1, 1)
        .at(12, 0, 0, 0)
        .to_zoned(hours.time_zone.clone());
    assert_eq!(
        noon.as_ref().map(Zoned::timestamp).unwrap().to_string(),
        "2027-01-01T04:00:00Z"
    );
}

#[test]
fn prices_stand_by_model_and_by_when_they_begin() {
    let text = format!(
        "prices: [{{ {PRICE}, {RATES}, from: 2027-01-01T00:00:00Z }}, {{ {PRICE}, {RATES} }}]"
    );
    let from: Vec<_> = accounting(&text)
        .prices
        .iter()
        .map(|price| price.from)
        .collect();
    assert_eq!(
        from,
        [Timestamp::MIN, "2027-01-01T00:00:00Z".parse().unwrap()]
    );
}

#[test]
fn each_rule_of_accounting_is_kept() {
    let price = |rest: &str| format!("prices: [{{ {PRICE}, {rest} }}]");
    let peak =
        |rest: &str| format!("{HOURS}, prices: [{{ {PRICE}, {RATES}, peak: {{ {rest} }} }}]");
    let hours = |rest: &str| format!("peak_hours: [{{ id: h, time_zone: UTC, {rest} }}]");
    for (text, about) in [
        (
            "time_zone: Asia/Shangai".to_owned(),
            "did you mean \"Asia/Shanghai\"",
        ),
        ("time_zone: UTC+8".to_owned(), "an IANA name"),
        ("currency: usd".to_owned(), "three capital letters"),
        ("exchange: { yuan: 1 }".to_owned(), "three capital letters"),
        (
            "exchange: { USD: 1 }".to_owned(),
            "the rate of the currency itself",
        ),
        ("exchange: { CNY: 0 }".to_owned(), "more than 0"),
        ("exchange: { CNY: -1 }".to_owned(), "not negative"),
        ("exchange: { CNY: 1000001 }".to_owned(), "at most 1000000"),
        ("keep_days: 0".to_owned(), "from 1 to"),
        ("lease_warning: 0s".to_owned(), "1s to 24h"),
        (
            "prices: [{ upstream: deepseek, model: deepseek-flash }]".to_owned(),
            "",
        ),
        (
            format!("prices: [{{ upstream: deepsek, model: x, {RATES} }}]"),
            "did you mean \"deepseek\"",
        ),
        (
            format!("prices: [{{ upstream: deepseek, model: flash, {RATES} }}]"),
            "is it a public name?",
        ),
        (
            format!("prices: [{{ {PRICE}, {RATES} }}, {{ {PRICE}, {RATES} }}]"),
            "a second time",
        ),
        (
            price(&format!("{RATES}, currency: CNY")),
            "add what 1 CNY is worth in USD",
        ),
        (
            price(&format!("{RATES}, from: 2027-01-01")),
            "a point in time",
        ),
        (
            price("cache_hit: -0.1, cache_miss: 1, output: 1"),
            "not negative",
        ),
        (
            price("cache_hit: 0.0000001, cache_miss: 1, output: 1"),
            "six digits",
        ),
        (
            price("cache_hit: 1e-15, cache_miss: 1, output: 1"),
            "more digits than are kept",
        ),
        (
            price("cache_hit: 1, cache_miss: 1, output: 1000001"),
            "at most 1000000 for",
        ),
        (
            price("cache_hit: 1, cache_miss: 1, output: 1e30"),
            "too large",
        ),
        (
            price("cache_hit: free, cache_miss: 1, output: 1"),
            "a decimal number",
        ),
        (
            price("cache_hit: true, cache_miss: 1, output: 1"),
            "a decimal number",
        ),
        (
            peak("hours: g, factor: 2"),
            "no peak hours have the id \"g\"",
        ),
        (peak("hours: h"), "expected factor, or"),
        (
            peak("hours: h, factor: 2, output: 1"),
            "expected factor, or",
        ),
        (
            peak("hours: h, cache_hit: 1, output: 1"),
            "expected factor, or",
        ),
        (peak("hours: h, factor: 0"), "more than 0"),
        (peak("factor: 2"), "hours: missing"),
        (hours("hours: []"), "an empty list"),
        (hours("hours: ['9-12']"), "hours of one day such as"),
        (
            hours("hours: ['12:00-09:00']"),
            "does not end after it begins",
        ),
        (
            hours("hours: ['09:00-09:00']"),
            "does not end after it begins",
        ),
        (hours("hours: ['09:00-12:00', '11:59-13:00']"), "overlaps"),
        (hours("hours: ['00:00-24:00', '23:00-24:00']"), "overlaps"),
        (
            hours("hours: ['09:00-12:00'], days: [mon, mon]"),
            "a second time",
        ),
        (
            hours("hours: ['09:00-12:00'], days: [monday]"),
            "one of mon, tue",
        ),
        (
            hours("hours: ['09:00-12:00'], holidays: [2027-02-29]"),
            "a date such as",
        ),
        (
            hours("hours: ['09:00-12:00'], holidays: [2027-01-01, 2027-01-01]"),
            "a second time",
        ),
    ] {
        if about.is_empty() {
            assert_eq!(mistakes(&with(&text)).len(), 3, "{text}");
        } else {
            refused(
                TENANTS,
                &format!("accounting: {{ {text} }}\n{TENANTS}"),
                about,
            );
        }
    }
    assert_eq!(
        accounting(&hours("hours: ['12:00-13:00', '09:00-12:00']")).prices,
        []
    );
}

#[test]
fn a_limit_of_costs_where_there_is_no_price_is_a_warning() {
    let plans = "plans: { default: { cost_per_day: 5 USD } }\n";
    let told = |text: &str| lines(&load_text(text).unwrap().warnings);
    let limited = MINIMAL.replace(TENANTS, &format!("{plans}{TENANTS}"));
    let warnings = told(&limited);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("models.flash.variants[0]: no price, and the plan default limits"),
        "{warnings:?}"
    );
    let priced = with(&format!("prices: [{{ {PRICE}, {RATES} }}]"))
        .replace(TENANTS, &format!("{plans}{TENANTS}"));
    assert_eq!(told(&priced), [""; 0]);
    // A limit of another model, or a plan that nobody has, is no reason.
    let other = limited
        .replace(
            "cost_per_day: 5 USD",
            "models: { pro: { cost_per_day: 5 USD } }",
        )
        .replace("[flash]", "[flash, free]")
        .replace(
            "  flash: ",
            "  free: { alias: flash }\n  pro: { alias: flash }\n  flash: ",
        );
    assert_eq!(
        told(&other).len(),
        1,
        "that nobody may use pro: {:?}",
        told(&other)
    );
    let unused = limited.replace("default:", "other:");
    assert_eq!(told(&unused), [""; 0]);
    // A group's plan counts, and an alias has its target's variants.
    let group = unused
        .replace(
            TENANTS,
            &format!("groups: [{{ id: g, plan: other }}]\n{TENANTS}"),
        )
        .replace("[flash]", "[chat, flash]\n    group: g")
        .replace("  flash: ", "  chat: { alias: flash }\n  flash: ");
    let warnings = told(&group);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("the plan other limits"),
        "{warnings:?}"
    );
}
