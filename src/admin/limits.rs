//! `/limits/TENANT`: how a tenant's limits stand, and an operator's two ways to ease one: a grant
//! for the current day or month, and a reset. Each change leaves an audit line.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use log::info;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Desk, json as answer, text};
use crate::admission::allowance::{Rule, Side};
use crate::admission::clock::Now;
use crate::config::settings::{Limit, TenantId, Window};
use crate::snapshot::Snapshot;

/// A change is a few words.
const MOST_BODY: usize = 4 * 1024;

/// What an operator asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    /// The limit's name as `/limits/TENANT` shows it; for a reset, all of them without it.
    limit: Option<String>,
    /// What is granted, in the limit's unit.
    amount: Option<u64>,
    /// Of the tenant's group instead of its own.
    #[serde(default)]
    group: bool,
    /// For the audit line.
    #[serde(default)]
    reason: String,
}

/// How one limit stands, as JSON.
fn standing(side: &Side, rule: &Rule, now: &Now) -> Option<Value> {
    let mut counts = side.subject.look();
    let counter = counts.counter(rule.place)?;
    let standing = counter.standing(&rule.limit, now);
    let Limit {
        key, burst, shadow, ..
    } = &*rule.limit;
    Some(json!({
        "subject": &*side.subject.name.0,
        "limit": key.to_string(),
        "quantity": key.quantity.as_str(),
        "window": key.window.as_str(),
        "allowed": standing.limit,
        "burst": key.window.period().map(|_| burst),
        "used": standing.used,
        "reserved": standing.held,
        "remaining": standing.remaining(),
        "reset_seconds": standing.reset.as_secs_f64().ceil() as u64,
        "shadow": shadow,
    }))
}

/// The answer to `GET /limits/TENANT`; `None` if there is no such tenant.
pub fn report(snapshot: &Snapshot, tenant: &str, now: &Now) -> Option<Value> {
    let tenant = snapshot
        .settings
        .tenants
        .iter()
        .find(|known| known.id.as_str() == tenant)?;
    let allowance = snapshot.allowance(&tenant.id)?;
    let limits = allowance.sides.iter().flat_map(|side| {
        let rules = side.all();
        rules.filter_map(move |rule| standing(side, rule, now))
    });
    let limits: Vec<_> = limits.collect();
    let own = allowance.sides.first();
    let under_way = own.map_or(0, |side| side.subject.look().live().count());
    Some(json!({
        "tenant": tenant.id.as_str(),
        "plan": tenant.plan.id.as_str(),
        "group": tenant.group.as_ref().map(|group| group.id.as_str()),
        "currency": &*snapshot.settings.accounting.currency,
        "requests_under_way": under_way,
        "limits": limits,
    }))
}

impl Desk {
    /// `asked` is what follows `/limits/`.
    pub(super) async fn limits(
        &self,
        asked: &str,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let snapshot = self.current.load_full();
        let now = self.counting.now(&snapshot.calendar);
        let (tenant, verb) = asked.split_once('/').unwrap_or((asked, ""));
        match (request.method(), verb) {
            (&Method::GET, "") => match report(&snapshot, tenant, &now) {
                Some(report) => answer(report),
                None => text(StatusCode::NOT_FOUND, "There is no such tenant.\n"),
            },
            (&Method::POST, "grant" | "reset") => {
                let body = Limited::new(request.into_body(), MOST_BODY).collect();
                let Ok(body) = body.await.map(http_body_util::Collected::to_bytes) else {
                    return text(StatusCode::PAYLOAD_TOO_LARGE, "That is too long.\n");
                };
                let Ok(change) = serde_json::from_slice::<Change>(&body) else {
                    return text(
                        StatusCode::BAD_REQUEST,
                        "Send {\"limit\": NAME, \"amount\": NUMBER, \"group\": false, \"reason\": TEXT}; \
                         a reset has no amount.\n",
                    );
                };
                self.change(&snapshot, tenant, verb, &change, &now, peer)
            }
            _ => text(
                StatusCode::METHOD_NOT_ALLOWED,
                "GET /limits/TENANT, POST /limits/TENANT/grant, POST /limits/TENANT/reset.\n",
            ),
        }
    }

    fn change(
        &self,
        snapshot: &Snapshot,
        tenant: &str,
        verb: &str,
        change: &Change,
        now: &Now,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let Some(allowance) = snapshot.allowance(&TenantId::new(tenant)) else {
            return text(StatusCode::NOT_FOUND, "There is no such tenant.\n");
        };
        let Some(side) = allowance.sides.get(usize::from(change.group)) else {
            return text(StatusCode::NOT_FOUND, "The tenant is in no group.\n");
        };
        let wanted = |rule: &&Rule| {
            let name = change.limit.as_deref();
            name.is_none_or(|name| rule.limit.key.to_string() == name)
        };
        let rules: Vec<_> = side.all().filter(wanted).collect();
        if rules.is_empty() {
            return text(
                StatusCode::NOT_FOUND,
                "There is no such limit; GET /limits/TENANT lists them.\n",
            );
        }
        let granted = match (verb, rules.as_slice(), change.amount) {
            ("reset", _, None) => None,
            ("grant", [rule], Some(amount)) if amount > 0 && change.limit.is_some() => {
                if !matches!(rule.limit.key.window, Window::Day | Window::Month) {
                    return text(
                        StatusCode::CONFLICT,
                        "Only limits of a day or a month can be extended; this one can be reset.\n",
                    );
                }
                Some(amount)
            }
            _ => {
                return text(
                    StatusCode::BAD_REQUEST,
                    "A grant names one limit and an amount above 0; a reset has no amount.\n",
                );
            }
        };
        let mut counts = side.subject.change();
        for rule in &rules {
            let window = rule.limit.key.window;
            if let Some(counter) = counts.counter(rule.place) {
                match granted {
                    Some(amount) => {
                        counter.grant(window, amount, now);
                    }
                    None => counter.reset(window, now),
                }
            }
        }
        drop(counts);
        for rule in &rules {
            info!(
                target: "audit",
                "A limit was eased by an operator. action={verb} subject={} limit={} amount={} from={peer} reason={:?}",
                side.subject.name,
                rule.limit.key,
                granted.unwrap_or(0),
                change.reason,
            );
        }
        match report(snapshot, tenant, now) {
            Some(report) => answer(report),
            None => text(StatusCode::NOT_FOUND, "There is no such tenant.\n"),
        }
    }
}
