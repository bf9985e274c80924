//! Facts of how much may be used: plans, groups and the queue, prices and the store of counts.

use jiff::Timestamp;

use super::{Fact, Restart, Things, none, optional, path, text};
use crate::config::calendar::format_hours;
use crate::config::money::{format_decimal, format_money};
use crate::config::settings::{
    Accounting, Group, Limit, OnDisconnect, PeakHours, Plan, Price, Quantity, Queue, Rates,
    RedisNodes, RedisStore, Store,
};
use crate::config::text::format_duration;

/// Tokens that prices are told for, as they are written.
const TOKENS: u128 = 1_000_000;

/// In seconds.
const DAY: u64 = 86_400;

impl<'a> Things<'a> {
    pub(super) fn accounting(&mut self, accounting: &Accounting) {
        let Accounting {
            time_zone,
            currency,
            prices,
            keep,
            lease_warning,
        } = accounting;
        let facts = vec![
            ("time_zone", optional(time_zone.iana_name())),
            ("currency", text(currency)),
            ("keep_days", text(keep.as_secs() / DAY)),
            ("lease_warning", text(format_duration(*lease_warning))),
        ];
        self.add("accounting", None, Restart::Never, facts);
        prices.iter().for_each(|price| self.price(price));
    }

    fn price(&mut self, price: &Price) {
        let Price {
            upstream,
            model,
            from,
            base,
            peak,
        } = price;
        let (hours, peak) = match peak {
            None => (Fact::Set(Default::default()), none()),
            Some((hours, rates)) => (peak_hours(hours), text(rates_text(rates))),
        };
        let facts = vec![
            ("base", text(rates_text(base))),
            ("peak", peak),
            ("peak_hours", hours),
        ];
        let name = format!("price of {upstream}/{model}");
        let name = if *from == Timestamp::MIN {
            name
        } else {
            format!("{name} from {from}")
        };
        self.add(name, None, Restart::Never, facts);
    }

    pub(super) fn queue(&mut self, queue: &Queue) {
        let Queue {
            max_length,
            max_wait,
            keep_alive,
        } = queue;
        let keep_alive = keep_alive.map(format_duration);
        let facts = vec![
            ("max_length", text(max_length)),
            ("max_wait", text(format_duration(*max_wait))),
            ("keep_alive", optional(keep_alive.as_deref())),
        ];
        self.add("queue", None, Restart::Never, facts);
    }

    pub(super) fn plan(&mut self, plan: &Plan) {
        let Plan {
            id,
            limits,
            weight,
            priority,
            cut,
            on_disconnect,
        } = plan;
        let on_disconnect = match on_disconnect {
            OnDisconnect::Cancel => "cancel".to_owned(),
            OnDisconnect::Drain(time) => format!("drain for {}", format_duration(*time)),
        };
        let facts = vec![
            ("limits", Fact::Set(limits.iter().map(limit_text).collect())),
            ("weight", text(weight)),
            ("priority", text(format!("{priority:?}").to_lowercase())),
            ("cut_charge", text(format!("{cut:?}").to_lowercase())),
            ("on_disconnect", text(on_disconnect)),
        ];
        self.add(format!("plan {id}"), None, Restart::Never, facts);
    }

    pub(super) fn group(&mut self, group: &Group) {
        let Group { id, plan } = group;
        let facts = vec![("plan", text(&plan.id))];
        self.add(format!("group {id}"), None, Restart::Never, facts);
    }

    /// Both kinds have the same facts, so that a change from one to the other compares like with
    /// like.
    pub(super) fn store(&mut self, store: &'a Store) {
        let facts = match store {
            Store::Local => vec![
                ("kind", text("local")),
                ("nodes", none()),
                ("username", none()),
                ("password", Fact::Secret(None)),
                ("tls", none()),
                ("ca", none()),
                ("database", none()),
                ("prefix", none()),
                ("timeout", none()),
                ("fail", none()),
            ],
            Store::Redis(redis) => redis_facts(redis),
        };
        let restart = Restart::As("server.store");
        self.add("store", None, restart, facts);
    }
}

fn redis_facts(redis: &RedisStore) -> Vec<(&'static str, Fact<'_>)> {
    let RedisStore {
        nodes,
        username,
        password,
        tls,
        ca,
        database,
        prefix,
        timeout,
        fail,
    } = redis;
    let nodes = match nodes {
        RedisNodes::One(node) => node.clone(),
        RedisNodes::Sentinel { nodes, master } => {
            format!("{master} by sentinels {}", nodes.join(", "))
        }
        RedisNodes::Cluster(nodes) => format!("cluster {}", nodes.join(", ")),
    };
    vec![
        ("kind", text("redis")),
        ("nodes", text(nodes)),
        ("username", optional(username.as_deref())),
        ("password", Fact::Secret(password.as_ref())),
        ("tls", text(tls)),
        ("ca", ca.as_deref().map_or_else(none, path)),
        ("database", text(database)),
        ("prefix", text(prefix)),
        ("timeout", text(format_duration(*timeout))),
        ("fail", text(format!("{fail:?}"))),
    ]
}

fn limit_text(limit: &Limit) -> String {
    let Limit {
        key,
        amount,
        burst,
        shadow,
    } = limit;
    let told = |amount: u64| match key.quantity {
        Quantity::Cost => format_money(amount.into(), "").trim_end().to_owned(),
        _ => amount.to_string(),
    };
    let mut shown = format!("{key}={}", told(*amount));
    if burst != amount {
        shown.push_str(&format!(" burst {}", told(*burst)));
    }
    if *shadow {
        shown.push_str(" in shadow");
    }
    shown
}

fn rates_text(rates: &Rates) -> String {
    let Rates {
        cache_hit,
        cache_miss,
        output,
    } = rates;
    let million = |rate: &u64| format_decimal(u128::from(*rate).saturating_mul(TOKENS));
    let (hit, miss, output) = (million(cache_hit), million(cache_miss), million(output));
    format!("cache_hit {hit}, cache_miss {miss}, output {output}")
}

fn peak_hours(hours: &PeakHours) -> Fact<'static> {
    let PeakHours {
        name,
        time_zone,
        days,
        hours,
        holidays,
    } = hours;
    let zone = time_zone.iana_name().unwrap_or_default();
    let days = days.iter().map(|day| format!("{day:?}").to_lowercase());
    let hours = hours.iter().map(|span| format_hours(*span));
    let holidays = holidays.iter().map(|date| format!("not {date}"));
    let all = [name.clone(), zone.to_owned()].into_iter();
    Fact::Set(all.chain(days).chain(hours).chain(holidays).collect())
}
