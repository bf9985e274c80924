//! The rules of `retry`, of what `upstreams[]` say about failures, and of a model's last answers.
//! What the file means where it says nothing is decided here too, once for the product and its tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::plans::MOST_MONEY;
use super::upstreams::{LEAST_INTERVAL, surfaces};
use super::{ABOVE_ZERO, Check, MAX_DURATION};
use crate::config::file::{self, ClassText, Surface};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::money::{DecimalText, format_decimal, is_currency};
use crate::config::nearest::hint;
use crate::config::settings::{Affinity, Breaker, Credit, Degraded, FailureClass, Outlier, Retry};
use crate::config::text::{DurationText, format_duration};

/// A shorter sample is chance.
const LEAST_WINDOW: Duration = Duration::from_secs(1);
/// What is longer ago says nothing of now.
const MOST_WINDOW: Duration = Duration::from_secs(600);
/// Whoever is to stay out for longer is drained by hand.
const MOST_OUTAGE: Duration = Duration::from_secs(3600);
/// A ramp beyond this is a weight.
const MOST_RAMP: Duration = Duration::from_secs(600);
/// A first wait beyond this is a refusal.
const MOST_BASE_BACKOFF: Duration = Duration::from_secs(60);
/// No caller waits longer for another attempt.
const MOST_BACKOFF: Duration = Duration::from_secs(300);
/// DeepSeek closes who has no content by then.
const MOST_HELD_HEAD: Duration = Duration::from_secs(600);
/// More looks at a balance are traffic of their own.
const LEAST_CREDIT_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a degraded answer: some pages of text.
const MOST_DEGRADED: usize = 16 * 1024;
/// What may stand in braces there.
const PLACEHOLDERS: [&str; 2] = ["model", "request_id"];

/// Pico-units in the nano-unit that money is kept in.
const PICO_IN_NANO: u128 = 1_000;

impl Check<'_, '_> {
    pub(super) fn retry(&mut self, written: &file::Retry) -> Retry {
        let path = KeyPath::Root.key("retry");
        self.duration(written.deadline, ABOVE_ZERO, path.key("deadline"));
        let none = Duration::ZERO;
        let base = path.key("base_backoff");
        self.between(written.base_backoff, none, MOST_BASE_BACKOFF, base);
        let most = path.key("max_backoff");
        self.between(written.max_backoff, none, MOST_BACKOFF, most);
        self.ordered(
            written.base_backoff,
            written.max_backoff,
            "max_backoff",
            base,
        );
        self.between(
            written.hold_head,
            none,
            MOST_HELD_HEAD,
            path.key("hold_head"),
        );
        self.classes(&written.on, path.key("on"));
        written.into()
    }

    pub(super) fn outlier(
        &mut self,
        written: Option<&file::Outlier>,
        path: KeyPath<'_>,
    ) -> Option<Outlier> {
        let rules = match written? {
            file::Outlier::Switch(on) => return on.then(Outlier::default),
            file::Outlier::Rules(rules) => rules,
        };
        self.between(rules.window, LEAST_WINDOW, MOST_WINDOW, path.key("window"));
        let first = path.key("ejection");
        self.between(rules.ejection, LEAST_INTERVAL, MOST_OUTAGE, first);
        let most = path.key("max_ejection");
        self.between(rules.max_ejection, LEAST_INTERVAL, MOST_OUTAGE, most);
        self.ordered(rules.ejection, rules.max_ejection, "max_ejection", first);
        self.between(rules.ramp, Duration::ZERO, MOST_RAMP, path.key("ramp"));
        Some(rules.into())
    }

    pub(super) fn breaker(
        &mut self,
        written: Option<&file::Breaker>,
        path: KeyPath<'_>,
    ) -> Option<Breaker> {
        let rules = match written? {
            file::Breaker::Switch(on) => return on.then(Breaker::default),
            file::Breaker::Rules(rules) => rules,
        };
        self.between(rules.window, LEAST_WINDOW, MOST_WINDOW, path.key("window"));
        self.between(rules.open, LEAST_INTERVAL, MOST_OUTAGE, path.key("open"));
        Some(rules.into())
    }

    pub(super) fn credit(
        &mut self,
        upstream: &file::Upstream,
        path: KeyPath<'_>,
    ) -> Option<Credit> {
        let deepseek = upstream.dialect == file::Dialect::DeepSeek;
        let rules = match &upstream.credit {
            None => {
                let keys = upstream.accounts.iter().any(|a| a.api_key.is_some());
                let tells = deepseek && keys && surfaces(upstream).contains(&Surface::Balance);
                return tells.then(Credit::default);
            }
            Some(file::Credit::Switch(false)) => return None,
            Some(file::Credit::Switch(true)) => &file::CreditRules::default(),
            Some(file::Credit::Rules(rules)) => rules,
        };
        if !deepseek {
            let found = "given for another dialect";
            let allowed = "only dialect deepseek tells what is left of an account";
            self.report.mistake(path, found, allowed);
        }
        let interval = path.key("interval");
        self.between(
            rules.interval,
            LEAST_CREDIT_INTERVAL,
            MAX_DURATION,
            interval,
        );
        let marks = path.key("low_water");
        for (currency, mark) in &rules.low_water {
            self.low_water(currency, *mark, marks.key(currency));
        }
        Some(rules.into())
    }

    fn low_water(&mut self, currency: &str, mark: DecimalText, path: KeyPath<'_>) {
        if !is_currency(currency) {
            let allowed = "expected the three capital letters of ISO 4217, such as USD";
            self.report.mistake(path, quoted(currency), allowed);
        }
        let fits = mark.0.is_multiple_of(PICO_IN_NANO) && mark.0 <= MOST_MONEY * PICO_IN_NANO;
        if mark.0 == 0 || !fits {
            let allowed = "expected more than 0 and at most 1000000000, with at most 9 digits after the point";
            self.report.mistake(path, format_decimal(mark.0), allowed);
        }
    }

    /// Each class once.
    pub(super) fn classes(&mut self, written: &[ClassText], path: KeyPath<'_>) {
        let mut seen = HashMap::new();
        for (index, class) in written.iter().enumerate() {
            self.unique(&mut seen, *class, class.0.as_str(), path.index(index));
        }
    }

    pub(super) fn degraded(&mut self, written: &file::Degraded, path: KeyPath<'_>) -> Degraded {
        let path = path.key("text");
        let text = &written.text;
        if text.is_empty() || text.len() > MOST_DEGRADED {
            let found = format!("{} bytes", text.len());
            let allowed = "expected 1 byte to 16KiB of text";
            self.report.mistake(path, found, allowed);
        }
        let unknown: BTreeSet<&str> = placeholders(text)
            .filter(|name| !PLACEHOLDERS.contains(name))
            .collect();
        for name in unknown {
            let hint = hint(name, PLACEHOLDERS);
            let found = format!("the placeholder {}", quoted(&format!("{{{name}}}")));
            let allowed = format!("{{model}} and {{request_id}} may stand here{hint}");
            self.report.mistake(path, found, allowed);
        }
        written.into()
    }

    /// `on` of the variant at `index`: what comes before it, and what is tried again at all.
    pub(super) fn variant_classes(
        &mut self,
        index: usize,
        written: &file::Variant,
        retry: &file::Retry,
        path: KeyPath<'_>,
    ) {
        let Some(classes) = &written.on else { return };
        let path = path.key("on");
        if index == 0 {
            let found = "classes of failures on the first variant";
            let allowed = "nothing comes before it; write them on the variant that is to step in";
            self.report.mistake(path, found, allowed);
        }
        self.classes(classes, path);
        let never = classes.iter().filter(|class| !retry.on.contains(class));
        let never: Vec<_> = never.map(|class| class.0.as_str()).collect();
        if !never.is_empty() {
            let found = format!("{}, not among `retry.on`", never.join(", "));
            let advice = "what is not tried again leads to no other variant";
            self.report.warning(path, found, advice);
        }
        if retry.attempts == 1 {
            let found = "classes of failures, while `retry.attempts` is 1";
            let advice = "after the first failure no other variant is asked";
            self.report.warning(path, found, advice);
        }
    }

    /// How often a model's broken streams are gone on with, if one of its `variants` can.
    pub(super) fn resume(&mut self, resume: u32, variants: &[file::Variant], path: KeyPath<'_>) {
        // An upstream that is not known has a mistake of its own.
        let can = |variant: &file::Variant| {
            let upstream = self.upstreams.get(variant.upstream.as_str());
            upstream.is_none_or(|upstream| upstream.dialect == file::Dialect::DeepSeek)
        };
        if resume > 0 && !variants.is_empty() && !variants.iter().any(can) {
            let found = format!("{resume}, and no variant is at an upstream of dialect deepseek");
            let allowed =
                "expected 0: only DeepSeek goes on from a given text, by prefix completion";
            self.report.mistake(path, found, allowed);
        }
    }

    fn ordered(&mut self, value: DurationText, most: DurationText, name: &str, path: KeyPath<'_>) {
        if value > most {
            let found = format!("{}, more than {name}", format_duration(value.0));
            let allowed = format!("expected at most {}", format_duration(most.0));
            self.report.mistake(path, found, allowed);
        }
    }
}

/// How conversations keep to an account.
pub(super) fn affinity(written: Option<&file::Affinity>) -> Option<Affinity> {
    match written? {
        file::Affinity::Switch(on) => on.then(Affinity::default),
        file::Affinity::Rules(rules) => Some(rules.into()),
    }
}

/// Names in braces that look like those of placeholders; other braces are text.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let rest = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        (first && rest).then_some(name)
    })
}

/// The set of `written`.
pub(super) fn class_set(written: &[ClassText]) -> BTreeSet<FailureClass> {
    written.iter().map(|class| class.0).collect()
}

impl From<&file::Retry> for Retry {
    fn from(written: &file::Retry) -> Self {
        Self {
            attempts: written.attempts,
            deadline: written.deadline.0,
            base_backoff: written.base_backoff.0,
            max_backoff: written.max_backoff.0,
            budget_percent: written.budget_percent,
            budget_reserve: written.budget_reserve,
            on: class_set(&written.on),
            hold_head: written.hold_head.0,
        }
    }
}

impl From<&file::OutlierRules> for Outlier {
    fn from(written: &file::OutlierRules) -> Self {
        Self {
            consecutive_failures: written.consecutive_failures,
            error_percent: written.error_percent,
            min_requests: written.min_requests,
            window: written.window.0,
            slow_factor: written.slow_factor,
            ejection: written.ejection.0,
            max_ejection: written.max_ejection.0,
            max_ejected_percent: written.max_ejected_percent,
            probes: written.probes,
            ramp: written.ramp.0,
        }
    }
}

impl From<&file::BreakerRules> for Breaker {
    fn from(written: &file::BreakerRules) -> Self {
        Self {
            error_percent: written.error_percent,
            min_requests: written.min_requests,
            window: written.window.0,
            open: written.open.0,
            probes: written.probes,
        }
    }
}

impl From<&file::AffinityRules> for Affinity {
    fn from(written: &file::AffinityRules) -> Self {
        Self {
            bound_percent: written.bound_percent,
        }
    }
}

impl From<&file::CreditRules> for Credit {
    fn from(written: &file::CreditRules) -> Self {
        let nanos =
            |(currency, mark): (&String, &DecimalText)| (currency.clone(), mark.0 / PICO_IN_NANO);
        Self {
            interval: written.interval.0,
            low_water: written
                .low_water
                .iter()
                .map(nanos)
                .collect::<BTreeMap<_, _>>(),
        }
    }
}

impl From<&file::Degraded> for Degraded {
    fn from(written: &file::Degraded) -> Self {
        Self {
            text: written.text.clone(),
        }
    }
}

/// A file that says nothing, for tests and benches of those who go by the settings.
macro_rules! defaults_of_the_file {
    ($($settings:ty = $file:ty),*) => {$(
        impl Default for $settings {
            fn default() -> Self {
                (&<$file>::default()).into()
            }
        }
    )*};
}

defaults_of_the_file!(
    Retry = file::Retry,
    Outlier = file::OutlierRules,
    Breaker = file::BreakerRules,
    Affinity = file::AffinityRules,
    Credit = file::CreditRules
);
