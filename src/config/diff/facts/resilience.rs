//! Facts of what is done about failures: what is tried again, who is left out, which clocks run.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Fact, Restart, Things, none, text};
use crate::config::money::format_money;
use crate::config::settings::{
    Affinity, Breaker, Credit, Deadlines, Degraded, FailureClass, Outlier, Retry, UpstreamTimeouts,
    Variant,
};
use crate::config::text::format_duration;

impl Things<'_> {
    pub(super) fn retry(&mut self, retry: &Retry) {
        let Retry {
            attempts,
            deadline,
            base_backoff,
            max_backoff,
            budget_percent,
            budget_reserve,
            on,
            hold_head,
        } = retry;
        let facts = vec![
            ("attempts", text(attempts)),
            ("deadline", duration(*deadline)),
            ("base_backoff", duration(*base_backoff)),
            ("max_backoff", duration(*max_backoff)),
            ("budget_percent", text(budget_percent)),
            ("budget_reserve", text(budget_reserve)),
            ("on", Fact::Set(words(on).map(str::to_owned).collect())),
            ("hold_head", duration(*hold_head)),
        ];
        self.add("retry", None, Restart::Never, facts);
    }
}

pub(super) fn outlier(outlier: Option<&Outlier>) -> Fact<'static> {
    let Some(Outlier {
        consecutive_failures,
        error_percent,
        min_requests,
        window,
        slow_factor,
        ejection,
        max_ejection,
        max_ejected_percent,
        probes,
        ramp,
    }) = outlier
    else {
        return none();
    };
    let [window, ejection, max_ejection, ramp] =
        [window, ejection, max_ejection, ramp].map(|time| format_duration(*time));
    text(format!(
        "from {consecutive_failures} in a row, {error_percent} % of {min_requests} in {window} or {slow_factor} times the time on, \
         out for {ejection} to {max_ejection}, {max_ejected_percent} % at most, back by {probes} over {ramp}"
    ))
}

pub(super) fn breaker(breaker: Option<&Breaker>) -> Fact<'static> {
    let Some(Breaker {
        error_percent,
        min_requests,
        window,
        open,
        probes,
    }) = breaker
    else {
        return none();
    };
    let [window, open] = [window, open].map(|time| format_duration(*time));
    text(format!(
        "from {error_percent} % of {min_requests} in {window} on, open for {open}, back by {probes}"
    ))
}

pub(super) fn affinity(affinity: Option<&Affinity>) -> Fact<'static> {
    affinity.map_or_else(none, |Affinity { bound_percent }| {
        text(format!("up to {bound_percent} % of an even share"))
    })
}

/// Both facts are there in any case, so that like is compared with like.
pub(super) fn credit(credit: Option<&Credit>) -> [(&'static str, Fact<'static>); 2] {
    let (interval, marks) = match credit {
        None => (none(), BTreeSet::new()),
        Some(Credit {
            interval,
            low_water,
        }) => {
            let marks = low_water.iter();
            let marks = marks.map(|(currency, nanos)| format_money(*nanos, currency));
            (duration(*interval), marks.collect())
        }
    };
    [
        ("credit.interval", interval),
        ("credit.low_water", Fact::Set(marks)),
    ]
}

pub(super) fn timeouts(timeouts: &UpstreamTimeouts) -> Vec<(&'static str, Fact<'static>)> {
    let UpstreamTimeouts {
        connect,
        connect_total,
        read,
        write,
        first_byte,
        queued,
        first_content,
        gap,
        total,
    } = timeouts;
    vec![
        ("timeouts.connect", duration(*connect)),
        ("timeouts.connect_total", duration(*connect_total)),
        ("timeouts.read", duration(*read)),
        ("timeouts.write", duration(*write)),
        ("timeouts.first_byte", duration(*first_byte)),
        ("timeouts.queued", duration(*queued)),
        ("timeouts.first_content", duration(*first_content)),
        ("timeouts.gap", duration(*gap)),
        ("timeouts.total", duration(*total)),
    ]
}

pub(super) fn deadlines(deadlines: &Deadlines) -> [(&'static str, Fact<'static>); 5] {
    let Deadlines {
        first_byte,
        queued,
        first_content,
        gap,
        total,
    } = deadlines;
    let clock = |time: &Option<Duration>| time.map_or_else(none, duration);
    [
        ("deadlines.first_byte", clock(first_byte)),
        ("deadlines.queued", clock(queued)),
        ("deadlines.first_content", clock(first_content)),
        ("deadlines.gap", clock(gap)),
        ("deadlines.total", clock(total)),
    ]
}

/// In their order, which is that of the fallback.
pub(super) fn variants(variants: &[Variant]) -> Fact<'static> {
    let told = variants.iter().map(|variant| {
        let Variant {
            upstream,
            model,
            on,
        } = variant;
        let on = on.as_ref().map(|on| words(on).collect::<Vec<_>>());
        let on = on.map(|words| format!(" on {}", words.join(" ")));
        format!("{upstream}/{model}{}", on.unwrap_or_default())
    });
    text(told.collect::<Vec<_>>().join(", "))
}

pub(super) fn degraded(degraded: Option<&Degraded>) -> Fact<'static> {
    // Quoted, since a line break would look like another change.
    degraded.map_or_else(none, |Degraded { text: answer }| {
        text(format!("{answer:?}"))
    })
}

fn words(classes: &BTreeSet<FailureClass>) -> impl Iterator<Item = &'static str> {
    classes.iter().map(|class| class.as_str())
}

fn duration(duration: Duration) -> Fact<'static> {
    text(format_duration(duration))
}
