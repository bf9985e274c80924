//! The rules of `accounting`: prices that can be computed with, at hours that there are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;

use super::Check;
use crate::config::calendar::{HoursText, format_hours};
use crate::config::file::{self, File};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::money::{DecimalText, ONE, format_decimal, is_currency, times};
use crate::config::nearest::hint;
use crate::config::settings::{Accounting, PeakHours, Price, Rates, UpstreamId};

/// Tokens that a price is for.
const TOKENS: u128 = 1_000_000;
/// Of a million tokens, in units of a currency, and of a unit in another: far from anything meant.
const MOST_UNITS: u128 = 1_000_000;
/// A unit for a token, in pico-units. Costs of any answer then fit in 128 bits.
const MOST_RATE: u128 = ONE;

const DAY: Duration = Duration::from_secs(86_400);
const LEAST_LEASE_WARNING: Duration = Duration::from_secs(1);

const CURRENCY_FORM: &str = "expected the three capital letters of ISO 4217, such as USD";

/// How far a name may be from one that is suggested.
const NEAR: usize = 2;

const WEEK: [(file::Day, Weekday); 7] = [
    (file::Day::Mon, Weekday::Monday),
    (file::Day::Tue, Weekday::Tuesday),
    (file::Day::Wed, Weekday::Wednesday),
    (file::Day::Thu, Weekday::Thursday),
    (file::Day::Fri, Weekday::Friday),
    (file::Day::Sat, Weekday::Saturday),
    (file::Day::Sun, Weekday::Sunday),
];

impl Check<'_, '_> {
    pub(super) fn accounting(&mut self, file: &File) -> Accounting {
        let path = KeyPath::Root.key("accounting");
        let written = &file.accounting;
        self.currencies(written, path);
        let hours = self.peak_hours(&written.peak_hours, path.key("peak_hours"));
        Accounting {
            time_zone: self.time_zone(&written.time_zone, path.key("time_zone")),
            currency: Arc::from(written.currency.as_str()),
            prices: self.prices(file, &hours, path.key("prices")),
            keep: DAY.saturating_mul(written.keep_days),
            lease_warning: self.duration(
                written.lease_warning,
                LEAST_LEASE_WARNING,
                path.key("lease_warning"),
            ),
        }
    }

    fn currencies(&mut self, written: &file::Accounting, path: KeyPath<'_>) {
        if !is_currency(&written.currency) {
            let found = quoted(&written.currency);
            self.report
                .mistake(path.key("currency"), found, CURRENCY_FORM);
        }
        let exchange = path.key("exchange");
        for (currency, rate) in &written.exchange {
            let path = exchange.key(currency);
            if !is_currency(currency) {
                self.report.mistake(path, quoted(currency), CURRENCY_FORM);
            }
            if *currency == written.currency {
                let allowed = "currencies other than `currency` stand here";
                self.report
                    .mistake(path, "the rate of the currency itself", allowed);
            }
            if rate.0 == 0 || rate.0 > MOST_UNITS * ONE {
                let allowed = format!("expected more than 0 and at most {MOST_UNITS}");
                self.report.mistake(path, format_decimal(rate.0), allowed);
            }
        }
    }

    /// What one unit of `currency` is worth, in 10⁻¹² of the one that accounting is in.
    pub(super) fn exchange_rate(
        &mut self,
        currency: &str,
        file: &File,
        path: KeyPath<'_>,
    ) -> Option<u128> {
        let accounting = &file.accounting;
        if currency == accounting.currency {
            return Some(ONE);
        }
        if let Some(rate) = accounting.exchange.get(currency) {
            // One that is too large is a mistake of its own.
            return Some(rate.0.min(MOST_UNITS * ONE));
        }
        let known = std::iter::once(&accounting.currency).chain(accounting.exchange.keys());
        let hint = hint(currency, known.map(String::as_str));
        let found = format!("no exchange rate for {}", quoted(currency));
        let allowed = format!(
            "add what 1 {currency} is worth in {} to `accounting.exchange`{hint}",
            accounting.currency
        );
        self.report.mistake(path, found, allowed);
        None
    }

    fn time_zone(&mut self, name: &str, path: KeyPath<'_>) -> TimeZone {
        match TimeZone::get(name) {
            Ok(zone) if !zone.is_unknown() => zone,
            _ => {
                let allowed = format!(
                    "expected an IANA name such as UTC or Asia/Shanghai{}",
                    near_zone(name)
                );
                self.report.mistake(path, quoted(name), allowed);
                TimeZone::UTC
            }
        }
    }

    fn peak_hours(
        &mut self,
        written: &[file::PeakHours],
        path: KeyPath<'_>,
    ) -> BTreeMap<String, Arc<PeakHours>> {
        let mut seen = HashMap::new();
        let mut found = BTreeMap::new();
        for (index, written) in written.iter().enumerate() {
            let path = path.index(index);
            self.id(&written.id, path.key("id"));
            self.unique(&mut seen, &written.id, &quoted(&written.id), path.key("id"));
            let hours = PeakHours {
                name: written.id.clone(),
                time_zone: self.time_zone(&written.time_zone, path.key("time_zone")),
                days: self.days(written.days.as_deref(), path.key("days")),
                hours: self.hours(&written.hours, path.key("hours")),
                holidays: self.holidays(written, path.key("holidays")),
            };
            found.insert(written.id.clone(), Arc::new(hours));
        }
        found
    }

    fn days(&mut self, written: Option<&[file::Day]>, path: KeyPath<'_>) -> Vec<Weekday> {
        let mut seen = HashMap::new();
        for (index, day) in written.into_iter().flatten().enumerate() {
            self.unique(&mut seen, *day, "this day", path.index(index));
        }
        let is_meant = |day: &file::Day| written.is_none_or(|days| days.contains(day));
        let week = WEEK.iter().filter(|(day, _)| is_meant(day));
        week.map(|(_, weekday)| *weekday).collect()
    }

    fn hours(&mut self, written: &[HoursText], path: KeyPath<'_>) -> Vec<(Time, Time)> {
        let mut sorted: Vec<_> = written.iter().map(|hours| hours.0).enumerate().collect();
        sorted.sort_by_key(|(_, (from, _))| *from);
        let mut end_before = None;
        for &(index, span) in &sorted {
            let (from, to) = span;
            let end = minute_of_end(to);
            if minute_of(from) >= end {
                let found = format!("{} does not end after it begins", format_hours(span));
                let allowed = "hours over midnight are two: 22:00-24:00 and 00:00-02:00";
                self.report.mistake(path.index(index), found, allowed);
            } else if end_before.is_some_and(|before| minute_of(from) < before) {
                let found = format!("{} overlaps other hours", format_hours(span));
                self.report
                    .mistake(path.index(index), found, "each hour stands once");
            }
            end_before = end_before.max(Some(end));
        }
        sorted.into_iter().map(|(_, span)| span).collect()
    }

    fn holidays(&mut self, written: &file::PeakHours, path: KeyPath<'_>) -> Vec<Date> {
        let mut seen = HashMap::new();
        let mut dates = Vec::new();
        for (index, date) in written.holidays.iter().enumerate() {
            let shown = date.0.to_string();
            self.unique(&mut seen, shown.clone(), &shown, path.index(index));
            dates.push(date.0);
        }
        dates.sort();
        dates
    }

    fn prices(
        &mut self,
        file: &File,
        hours: &BTreeMap<String, Arc<PeakHours>>,
        path: KeyPath<'_>,
    ) -> Vec<Price> {
        let variants = file.models.values();
        let variants = variants.flat_map(|model| model.variants.iter().flatten());
        let used: HashSet<(&str, &str)> = variants
            .map(|variant| (variant.upstream.as_str(), variant.model.as_str()))
            .collect();
        let mut seen = HashMap::new();
        let mut prices = Vec::new();
        for (index, written) in file.accounting.prices.iter().enumerate() {
            let path = path.index(index);
            let upstream = self.known_upstream(&written.upstream, path.key("upstream"), file);
            let pair = (written.upstream.as_str(), written.model.as_str());
            if upstream.is_some() && !used.contains(&pair) {
                let found = format!("no variant uses {} there", quoted(&written.model));
                let allowed = "upstream models of this upstream's variants may stand here; is it a public name?";
                self.report.mistake(path.key("model"), found, allowed);
            }
            let from = written.from.map_or(Timestamp::MIN, |from| from.0);
            let shown = format!("a price of {} from then on", quoted(&written.model));
            self.unique(&mut seen, (pair, from), &shown, path);
            prices.push(self.price(written, from, file, hours, path));
        }
        prices.sort_by(|a, b| {
            let key = |price: &Price| (price.upstream.clone(), price.model.clone(), price.from);
            key(a).cmp(&key(b))
        });
        prices
    }

    fn price(
        &mut self,
        written: &file::Price,
        from: Timestamp,
        file: &File,
        hours: &BTreeMap<String, Arc<PeakHours>>,
        path: KeyPath<'_>,
    ) -> Price {
        let currency = written.currency.as_ref();
        let currency = currency.unwrap_or(&file.accounting.currency);
        let exchange = self.exchange_rate(currency, file, path.key("currency"));
        let exchange = exchange.unwrap_or(ONE);
        let mut rate = |price, key| self.rate(price, exchange, path.key(key));
        let base = Rates {
            cache_hit: rate(written.cache_hit, "cache_hit"),
            cache_miss: rate(written.cache_miss, "cache_miss"),
            output: rate(written.output, "output"),
        };
        let peak = written.peak.as_ref();
        let peak = peak.and_then(|peak| self.peak(peak, base, exchange, hours, path.key("peak")));
        Price {
            upstream: UpstreamId::new(&written.upstream),
            model: written.model.clone(),
            from,
            base,
            peak,
        }
    }

    fn peak(
        &mut self,
        written: &file::Peak,
        base: Rates,
        exchange: u128,
        hours: &BTreeMap<String, Arc<PeakHours>>,
        path: KeyPath<'_>,
    ) -> Option<(Arc<PeakHours>, Rates)> {
        let known = hours.get(&written.hours).map(Arc::clone);
        if known.is_none() {
            let hint = hint(&written.hours, hours.keys().map(String::as_str));
            let found = format!("no peak hours have the id {}", quoted(&written.hours));
            let allowed = format!("ids of `accounting.peak_hours` may stand here{hint}");
            self.report.mistake(path.key("hours"), found, allowed);
        }
        let own = (written.cache_hit, written.cache_miss, written.output);
        let rates = match (written.factor, own) {
            (Some(factor), (None, None, None)) => self.raised(base, factor, path.key("factor")),
            (None, (Some(hit), Some(miss), Some(output))) => Rates {
                cache_hit: self.rate(hit, exchange, path.key("cache_hit")),
                cache_miss: self.rate(miss, exchange, path.key("cache_miss")),
                output: self.rate(output, exchange, path.key("output")),
            },
            _ => {
                let found = "neither `factor` alone nor all three prices";
                let allowed = "expected factor, or cache_hit, cache_miss and output";
                self.report.mistake(path, found, allowed);
                base
            }
        };
        known.map(|hours| (hours, rates))
    }

    /// Pico-units for a token, from units for a million.
    fn rate(&mut self, price: DecimalText, exchange: u128, path: KeyPath<'_>) -> u64 {
        if price.0 > MOST_UNITS * ONE {
            let allowed = format!("expected at most {MOST_UNITS} for a million tokens");
            self.report.mistake(path, format_decimal(price.0), allowed);
            return 0;
        }
        if !price.0.is_multiple_of(TOKENS) {
            let allowed = "expected at most six digits after the point";
            self.report.mistake(path, format_decimal(price.0), allowed);
        }
        self.at_most(times(price.0 / TOKENS, exchange), path)
    }

    fn raised(&mut self, base: Rates, factor: DecimalText, path: KeyPath<'_>) -> Rates {
        if factor.0 == 0 || factor.0 > MOST_UNITS * ONE {
            let allowed = format!("expected more than 0 and at most {MOST_UNITS}");
            self.report.mistake(path, format_decimal(factor.0), allowed);
            return base;
        }
        let mut raise = |rate: u64| self.at_most(times(rate.into(), factor.0), path);
        Rates {
            cache_hit: raise(base.cache_hit),
            cache_miss: raise(base.cache_miss),
            output: raise(base.output),
        }
    }

    fn at_most(&mut self, rate: u128, path: KeyPath<'_>) -> u64 {
        if rate > MOST_RATE {
            let found = "more than one unit of `accounting.currency` for a token";
            let allowed = "prices are for a million tokens; is one given for fewer?";
            self.report.mistake(path, found, allowed);
        }
        u64::try_from(rate.min(MOST_RATE)).unwrap_or_default()
    }
}

fn minute_of(time: Time) -> u16 {
    u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs())
}

/// Midnight is the end of the day.
fn minute_of_end(time: Time) -> u16 {
    match minute_of(time) {
        0 => 24 * 60,
        minute => minute,
    }
}

/// Among some six hundred names only those like it are compared.
fn near_zone(name: &str) -> String {
    let first = name.chars().next().map(|c| c.to_ascii_lowercase());
    let names: Vec<_> = jiff::tz::db().available().collect();
    let like = names.iter().map(|known| known.as_str()).filter(|known| {
        known.len().abs_diff(name.len()) <= NEAR
            && known.chars().next().map(|c| c.to_ascii_lowercase()) == first
    });
    hint(name, like)
}
