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

use super::{Desk, json as answer, quoted, text};
use crate::admission::allowance::{Rule, Side};
use crate::admission::clock::Now;
use crate::admission::counting::{Counting, Stand};
use crate::admission::store_redis::StoreError;
use crate::config::nearest::hint;
use crate::config::settings::{Limit, TenantId, Window};
use crate::snapshot::Snapshot;

/// A change is a few words.
const MOST_BODY: usize = 4 * 1024;
/// Limits that are named when one is not known.
const MOST_LISTED: usize = 20;

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
fn entry(stand: &Stand<'_>) -> Value {
    let Limit {
        key, burst, shadow, ..
    } = &*stand.rule.limit;
    let standing = &stand.standing;
    json!({
        "subject": &*stand.side.subject.name.0,
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
    })
}

/// Who is asked, and when.
struct Asked<'a> {
    snapshot: &'a Snapshot,
    counting: &'a Counting,
    now: Now,
}

impl Asked<'_> {
    /// How the limits of a tenant stand.
    async fn report(&self, tenant: &str) -> Response<Full<Bytes>> {
        let snapshot = self.snapshot;
        let mut tenants = snapshot.settings.tenants.iter();
        let known = tenants.find(|known| known.id.as_str() == tenant);
        let known = known.and_then(|known| Some((known, snapshot.allowance(&known.id)?)));
        let Some((tenant, allowance)) = known else {
            return no_tenant(snapshot, tenant);
        };
        let stands = match self.counting.standings(allowance, &self.now).await {
            Ok(stands) => stands,
            Err(cause) => return not_told(cause),
        };
        let limits: Vec<_> = stands.iter().map(entry).collect();
        let own = allowance.sides.first();
        let under_way = own.map_or(0, |side| side.subject.look().live().count());
        answer(json!({
            "tenant": tenant.id.as_str(),
            "plan": tenant.plan.id.as_str(),
            "group": tenant.group.as_ref().map(|group| group.id.as_str()),
            "currency": &*snapshot.settings.accounting.currency,
            "requests_under_way": under_way,
            "limits": limits,
        }))
    }

    /// Carries out a change and writes it into the log.
    async fn ease(
        &self,
        tenant: &str,
        verb: &str,
        change: &Change,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let snapshot = self.snapshot;
        if self.counting.book.is_handed_over() {
            return text(
                StatusCode::CONFLICT,
                "This process is leaving and another one counts; ask that one.\n",
            );
        }
        let Some(allowance) = snapshot.allowance(&TenantId::new(tenant)) else {
            return no_tenant(snapshot, tenant);
        };
        let Some(side) = allowance.sides.get(usize::from(change.group)) else {
            return text(StatusCode::NOT_FOUND, "The tenant is in no group.\n");
        };
        let (rules, granted) = match judge(side, verb, change) {
            Ok(judged) => judged,
            Err(refused) => return *refused,
        };
        for rule in &rules {
            let (counting, now) = (self.counting, &self.now);
            let done = match granted {
                Some(amount) => counting.grant(allowance, side, rule, amount, now).await,
                None => counting.reset(allowance, side, rule, now).await,
            };
            // Redis may have done it although nobody heard so.
            let result = if done.is_ok() { "done" } else { "unknown" };
            info!(
                target: "audit",
                "A limit was eased by an operator. action={verb} subject={} limit={} amount={} result={result} from={peer} reason={:?}",
                side.subject.name,
                rule.limit.key,
                granted.unwrap_or(0),
                change.reason,
            );
            if let Err(cause) = done {
                return not_told(cause);
            }
        }
        self.report(tenant).await
    }
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
        let here = Asked {
            snapshot: &snapshot,
            counting: &self.counting,
            now: self.counting.now(&snapshot.calendar),
        };
        let (tenant, verb) = asked.split_once('/').unwrap_or((asked, ""));
        match (request.method(), verb) {
            (&Method::GET, "") => here.report(tenant).await,
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
                here.ease(tenant, verb, &change, peer).await
            }
            _ => text(
                StatusCode::METHOD_NOT_ALLOWED,
                "GET /limits/TENANT, POST /limits/TENANT/grant, POST /limits/TENANT/reset.\n",
            ),
        }
    }
}

/// The limits that are meant, and what is granted on top of the one; nothing for a reset.
type Meant<'s> = (Vec<&'s Rule>, Option<u64>);

fn judge<'s>(
    side: &'s Side,
    verb: &str,
    change: &Change,
) -> Result<Meant<'s>, Box<Response<Full<Bytes>>>> {
    let name = change.limit.as_deref();
    let wanted = |rule: &&Rule| name.is_none_or(|name| rule.limit.key.to_string() == name);
    let rules: Vec<_> = side.all().filter(wanted).collect();
    if rules.is_empty() {
        return Err(Box::new(no_limit(side, name.unwrap_or("*"))));
    }
    match (verb, rules.as_slice(), change.amount) {
        ("reset", _, None) => Ok((rules, None)),
        ("grant", [rule], Some(amount)) if amount > 0 && name.is_some() => {
            if matches!(rule.limit.key.window, Window::Day | Window::Month) {
                return Ok((rules, Some(amount)));
            }
            Err(Box::new(text(
                StatusCode::CONFLICT,
                "Only limits of a day or a month can be extended; this one can be reset.\n",
            )))
        }
        _ => Err(Box::new(text(
            StatusCode::BAD_REQUEST,
            "A grant names one limit and an amount above 0; a reset has no amount.\n",
        ))),
    }
}

fn not_told(cause: StoreError) -> Response<Full<Bytes>> {
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("The counts that the hosts share cannot be asked: {cause}.\n"),
    )
}

fn no_tenant(snapshot: &Snapshot, asked: &str) -> Response<Full<Bytes>> {
    let tenants = snapshot.settings.tenants.iter();
    let near = hint(asked, tenants.map(|tenant| tenant.id.as_str()));
    let words = format!("There is no tenant {}{near}\n", quoted(asked));
    text(StatusCode::NOT_FOUND, words)
}

fn no_limit(side: &Side, asked: &str) -> Response<Full<Bytes>> {
    let names: Vec<_> = side.all().map(|rule| rule.limit.key.to_string()).collect();
    let near = hint(asked, names.iter().map(String::as_str));
    let some: Vec<_> = names.iter().take(MOST_LISTED).map(String::as_str).collect();
    let words = format!(
        "{} has no limit {}{near} GET /limits/TENANT lists them: {}\n",
        side.subject.name,
        quoted(asked),
        some.join(", ")
    );
    text(StatusCode::NOT_FOUND, words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    use futures_util::FutureExt;

    use crate::admission::book::Book;
    use crate::config::{Layer, load};
    use crate::identity::standing::Standing;
    use crate::upstream::pool::Registry;

    const DAY: &str = "all/*/requests_per_day";
    const MINUTE: &str = "chat/*/requests_per_minute";

    fn snapshot() -> (Snapshot, Counting, Now) {
        let text = "\
server: {listeners: [{address: '127.0.0.1:8080'}]}
plans:
  own: {requests_per_day: 10, chat: {requests_per_minute: {limit: 60, burst: 5, shadow: true}}}
  sum: {cost_per_month: 2 USD}
groups: [{id: org, plan: sum}]
tenants:
  - {id: search, plan: own, group: org, models: ['*']}
  - {id: alone, plan: own, models: ['*']}
upstreams:
  - {id: one, dialect: openai, endpoints: [{url: 'http://127.0.0.1:9'}], accounts: [{id: open}]}
models: {flash: {variants: [{upstream: one, model: flash}]}}
";
        let layer = Layer::Text {
            name: "test.yaml".to_owned(),
            bytes: Arc::from(text.as_bytes()),
        };
        let settings = Arc::new(load(&[layer]).unwrap().settings);
        let standing = Arc::new(Standing::new(&settings.identity.signed_requests));
        let registry = Registry::default();
        let counting = Counting::new(Arc::new(Book::default()), None);
        let book = &counting.book;
        let snapshot = Snapshot::new(settings, &registry, &standing, book, Instant::now());
        let snapshot = snapshot.unwrap();
        // 2026-11-25T12:00:00Z.
        let now = snapshot.calendar.at(1_000_000_000_000, 1_795_608_000);
        (snapshot, counting, now)
    }

    fn use_some(snapshot: &Snapshot, limit: &str, amount: u64, now: &Now) {
        let allowance = snapshot.allowance(&TenantId::new("search")).unwrap();
        for side in &allowance.sides {
            for rule in side
                .all()
                .filter(|rule| rule.limit.key.to_string() == limit)
            {
                let mut counts = side.subject.look();
                counts.settle(rule.place, &rule.limit, 0, amount, now);
            }
        }
    }

    fn here<'a>(snapshot: &'a Snapshot, counting: &'a Counting, now: Now) -> Asked<'a> {
        Asked {
            snapshot,
            counting,
            now,
        }
    }

    /// Counts that are here never make anybody wait.
    fn at_once<T>(answer: impl Future<Output = T>) -> T {
        answer.now_or_never().unwrap()
    }

    fn ease(here: &Asked<'_>, tenant: &str, verb: &str, change: &str) -> u16 {
        let change = serde_json::from_str(change).unwrap();
        let peer = "127.0.0.1:1".parse().unwrap();
        let answer = at_once(here.ease(tenant, verb, &change, peer));
        answer.status().as_u16()
    }

    fn ask(here: &Asked<'_>, verb: &str, change: &str) -> u16 {
        ease(here, "search", verb, change)
    }

    fn standing_of(here: &Asked<'_>, limit: &str) -> Value {
        let answer = at_once(here.report("search"));
        let body = at_once(answer.into_body().collect()).unwrap().to_bytes();
        let report: Value = serde_json::from_slice(&body).unwrap();
        let mut limits = report["limits"].as_array().unwrap().iter();
        limits.find(|one| one["limit"] == limit).unwrap().clone()
    }

    #[test]
    fn a_report_says_of_each_limit_how_it_stands() {
        let (snapshot, counting, now) = snapshot();
        let here = here(&snapshot, &counting, now);
        use_some(&snapshot, DAY, 4, &now);
        use_some(&snapshot, MINUTE, 2, &now);
        assert_eq!(
            standing_of(&here, DAY),
            json!({"subject": "tenant/search", "limit": DAY, "quantity": "requests",
                "window": "day", "allowed": 10, "burst": null, "used": 4, "reserved": 0,
                "remaining": 6, "reset_seconds": 12 * 3600, "shadow": false})
        );
        let minute = standing_of(&here, MINUTE);
        assert_eq!(
            (&minute["burst"], &minute["remaining"]),
            (&json!(5), &json!(3))
        );
        assert_eq!(
            (&minute["shadow"], &minute["reset_seconds"]),
            (&json!(true), &json!(2))
        );
        let money = standing_of(&here, "all/*/cost_per_month");
        assert_eq!(money["subject"], "group/org");
        assert_eq!(money["allowed"], 2_000_000_000_u64);
        assert_eq!(
            at_once(here.report("nobody")).status(),
            StatusCode::NOT_FOUND
        );
    }

    #[test]
    fn a_grant_holds_for_its_day_alone() {
        let (snapshot, counting, now) = snapshot();
        let here = here(&snapshot, &counting, now);
        use_some(&snapshot, DAY, 10, &now);
        let grant = format!("{{\"limit\": \"{DAY}\", \"amount\": 5}}");
        assert_eq!(ask(&here, "grant", &grant), 200);
        let day = standing_of(&here, DAY);
        assert_eq!(
            (&day["allowed"], &day["remaining"]),
            (&json!(15), &json!(5))
        );
        let tomorrow = snapshot.calendar.at(now.steady, now.day.end);
        assert_eq!(
            standing_of(
                &Asked {
                    now: tomorrow,
                    ..here
                },
                DAY
            )["allowed"],
            10
        );
    }

    #[test]
    fn a_reset_forgets_the_use_of_the_tenant_and_not_of_its_group() {
        let (snapshot, counting, now) = snapshot();
        let here = here(&snapshot, &counting, now);
        for limit in [DAY, MINUTE, "all/*/cost_per_month"] {
            use_some(&snapshot, limit, 3, &now);
        }
        assert_eq!(ask(&here, "reset", "{}"), 200);
        assert_eq!(standing_of(&here, DAY)["used"], 0);
        assert_eq!(standing_of(&here, MINUTE)["used"], 0);
        assert_eq!(standing_of(&here, "all/*/cost_per_month")["used"], 3);
        assert_eq!(ask(&here, "reset", "{\"group\": true}"), 200);
        assert_eq!(standing_of(&here, "all/*/cost_per_month")["used"], 0);
    }

    #[test]
    fn a_change_that_cannot_be_meant_changes_nothing() {
        let (snapshot, counting, now) = snapshot();
        let here = here(&snapshot, &counting, now);
        for (verb, change, status) in [
            (
                "grant",
                format!("{{\"limit\": \"{MINUTE}\", \"amount\": 5}}"),
                409,
            ),
            ("grant", format!("{{\"limit\": \"{DAY}\"}}"), 400),
            ("grant", "{\"amount\": 5}".to_owned(), 400),
            ("grant", "{\"amount\": 5, \"group\": true}".to_owned(), 400),
            ("reset", "{\"amount\": 5}".to_owned(), 400),
            ("reset", "{\"limit\": \"all/*/nothing\"}".to_owned(), 404),
        ] {
            assert_eq!(ask(&here, verb, &change), status, "{verb} {change}");
        }
        assert_eq!(standing_of(&here, DAY)["allowed"], 10);
        for tenant in ["alone", "nobody"] {
            assert_eq!(ease(&here, tenant, "reset", "{\"group\": true}"), 404);
        }
    }
}
