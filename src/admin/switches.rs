//! `/switches` and `/drains`: what operators have switched off or drained, and their ways to do so
//! and to take it back. A change holds at once and leaves an audit line; 200 says that it outlives
//! the process as well.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use log::{info, warn};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Desk, json as answer, quoted, text};
use crate::config::nearest::hint;
use crate::config::settings::Settings;
use crate::routing::switches::{Entry, MOST_AUTHOR, MOST_REASON, Note, Switches, Target, Version};
use crate::telemetry::metrics::Metrics;

/// A change is a few words.
const MOST_BODY: usize = 4 * 1024;
/// What there is of a kind is listed up to so many names.
const MOST_LISTED: usize = 20;
/// The database is written several times a second; longer means that it cannot be.
const KEEP: Duration = Duration::from_secs(2);

const WAYS: &str = "GET /switches; PUT or DELETE /switches/{tenant|model|upstream}/NAME, \
     /drains/accounts/UPSTREAM/ACCOUNT, /drains/endpoints/UPSTREAM?url=URL.\n";
const FORM: &str = "Send {\"state\": \"off\", \"reason\": TEXT, \"by\": NAME}; a drain has no state, \
     and may have the endpoint's \"url\".\n";

/// What an operator asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Change {
    state: Option<State>,
    /// Of the endpoint, if it is not in the path's query.
    url: Option<String>,
    reason: String,
    /// Who it is, for those who look later.
    by: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Off,
    On,
}

/// A "no" of the admin API.
type No = (StatusCode, Cow<'static, str>);

/// What is meant by a path, before the body is known.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    kind: &'static str,
    part_of: String,
    /// Nothing if the body says it.
    name: Option<String>,
}

/// All that is off or drained, for operators.
pub fn report(switches: &Switches, settings: &Settings) -> Value {
    let entries = switches.list();
    entries.iter().map(|entry| shown(entry, settings)).collect()
}

/// Sets the gauges of what is off or drained.
pub fn refresh(metrics: &Metrics, switches: &Switches) {
    metrics.switched_off.reset();
    for (target, _) in switches.list() {
        let labels = [target.kind(), &target.to_string()];
        metrics.switched_off.with_label_values(&labels).set(1);
    }
}

fn shown((target, note): &Entry, settings: &Settings) -> Value {
    json!({
        "kind": target.kind(),
        "upstream": target.part_of(),
        "name": target.name(),
        "state": if target.is_drain() { "drained" } else { "off" },
        "since": note.since.to_string(),
        "by": note.author,
        "from": note.from,
        "reason": note.reason,
        "known": target.is_known(settings),
    })
}

impl Desk {
    pub(super) async fn switches(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let (path, method) = (request.uri().path(), request.method().clone());
        if path == "/switches" && method == Method::GET {
            let snapshot = self.current.load();
            return answer(json!({"switches": report(&self.switches, &snapshot.settings)}));
        }
        let off = method == Method::PUT;
        let place = place(path, request.uri().query());
        let Some(place) = place.filter(|_| off || method == Method::DELETE) else {
            return text(StatusCode::METHOD_NOT_ALLOWED, WAYS);
        };
        let body = Limited::new(request.into_body(), MOST_BODY).collect();
        let Ok(body) = body.await.map(http_body_util::Collected::to_bytes) else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "That is too long.\n");
        };
        let done = match self.judge(&place, &body, off) {
            Ok((target, off, change)) => self.carry_out(target, off, change, peer).await,
            Err(no) => Err(no),
        };
        done.unwrap_or_else(|(status, words)| text(status, words.into_owned()))
    }

    fn judge(&self, place: &Place, body: &[u8], off: bool) -> Result<(Target, bool, Change), No> {
        let change = read(body, place, off)?;
        let off = off && change.state != Some(State::On);
        if off && change.reason.trim().is_empty() {
            let words = "A \"reason\" is needed, for those who look later.\n";
            return Err((StatusCode::BAD_REQUEST, words.into()));
        }
        let snapshot = self.current.load();
        let target = target(place, &change, &snapshot.settings, &self.switches, off)?;
        Ok((target, off, change))
    }

    async fn carry_out(
        &self,
        target: Target,
        off: bool,
        change: Change,
        peer: SocketAddr,
    ) -> Result<Response<Full<Bytes>>, No> {
        if self.counting.book.is_handed_over() {
            let words = "This process is leaving and another one serves; ask that one.\n";
            return Err((StatusCode::CONFLICT, words.into()));
        }
        let action = match (target.is_drain(), off) {
            (true, true) => "drain",
            (true, false) => "undrain",
            (false, true) => "off",
            (false, false) => "on",
        };
        let kind = target.kind();
        info!(
            target: "audit",
            "A switch was set by an operator. action={action} kind={kind} name={target} from={peer} by={:?} reason={:?}",
            change.by,
            change.reason,
        );
        let changes = &self.metrics.switch_changes;
        changes.with_label_values(&[kind, action]).inc();
        let version = if off {
            let note = Note {
                since: Timestamp::now(),
                author: change.by,
                from: peer.to_string(),
                reason: change.reason,
            };
            Some(self.switches.set(target.clone(), note))
        } else {
            self.switches.clear(&target)
        };
        // Who waits for a place may now have another way.
        self.current.load().pump(std::time::Instant::now());
        let kept = self.is_kept(version).await;
        if !kept {
            warn!(
                "A switch holds, but could not be kept yet; it is lost if the process ends before. action={action} kind={kind} name={target}"
            );
        }
        Ok(self.changed(&target, kept))
    }

    /// What did not change is as much kept as the last change was.
    async fn is_kept(&self, version: Option<Version>) -> bool {
        let version = version.or_else(|| self.switches.unkept().map(|(version, _)| version));
        match version {
            Some(version) => tokio::time::timeout(KEEP, self.switches.kept(version))
                .await
                .is_ok(),
            None => true,
        }
    }

    fn changed(&self, target: &Target, kept: bool) -> Response<Full<Bytes>> {
        let snapshot = self.current.load();
        let mut value = match self.switches.get(target) {
            Some(note) => shown(&(target.clone(), note), &snapshot.settings),
            None => json!({
                "kind": target.kind(),
                "upstream": target.part_of(),
                "name": target.name(),
                "state": "on",
            }),
        };
        if let Some(value) = value.as_object_mut() {
            value.insert("kept".to_owned(), json!(kept));
        }
        let mut answer = answer(value);
        if !kept {
            *answer.status_mut() = StatusCode::ACCEPTED;
        }
        answer
    }
}

/// What a path means; nothing if it is none of ours.
fn place(path: &str, query: Option<&str>) -> Option<Place> {
    let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let of = |kind, part_of: &str, name: Option<&str>| {
        let name = match name {
            Some(name) => Some(decoded(name)?),
            None => None,
        };
        let part_of = decoded(part_of)?;
        let named = name.as_deref() != Some("");
        named.then_some(Place {
            kind,
            part_of,
            name,
        })
    };
    if let Some(rest) = path.strip_prefix("/drains/") {
        let (what, rest) = rest.split_once('/')?;
        return match what {
            "accounts" => {
                let (upstream, account) = rest.split_once('/')?;
                of("account", upstream, Some(account))
            }
            "endpoints" => {
                let parts = query.unwrap_or_default().split('&');
                let url = parts.filter_map(|part| part.strip_prefix("url=")).next();
                of("endpoint", rest, url)
            }
            _ => None,
        };
    }
    let (kind, name) = path.strip_prefix("/switches/")?.split_once('/')?;
    let known = ["tenant", "model", "upstream"];
    let kind = known.into_iter().find(|known| *known == kind)?;
    of(kind, "", Some(name))
}

fn read(body: &[u8], place: &Place, off: bool) -> Result<Change, No> {
    let no = |words: String| Err((StatusCode::BAD_REQUEST, words.into()));
    let change = match body {
        [] => Change::default(),
        body => match serde_json::from_slice::<Change>(body) {
            Ok(change) => change,
            Err(_) => return no(FORM.to_owned()),
        },
    };
    let drain = matches!(place.kind, "account" | "endpoint");
    let stateless = drain || !off;
    if stateless && change.state.is_some() || !stateless && change.state.is_none() {
        return no(FORM.to_owned());
    }
    if change.url.is_some() && (place.kind != "endpoint" || place.name.is_some()) {
        return no(FORM.to_owned());
    }
    for (name, value, most) in [
        ("reason", &change.reason, MOST_REASON),
        ("by", &change.by, MOST_AUTHOR),
    ] {
        if value.chars().count() > most || value.chars().any(char::is_control) {
            return no(format!(
                "\"{name}\" is at most {most} characters, in one line.\n"
            ));
        }
    }
    Ok(change)
}

/// Whatever is off may be switched on again; nothing can be switched off that is not there.
fn target(
    place: &Place,
    change: &Change,
    settings: &Settings,
    switches: &Switches,
    off: bool,
) -> Result<Target, No> {
    let Some(name) = place.name.as_ref().or(change.url.as_ref()) else {
        let words = "Which endpoint? Name its \"url\".\n";
        return Err((StatusCode::BAD_REQUEST, words.into()));
    };
    let made = |name: &str| Target::from_parts(place.kind, &place.part_of, name);
    let Some(asked) = made(name) else {
        return Err((StatusCode::NOT_FOUND, WAYS.into()));
    };
    if asked.is_known(settings) || (!off && switches.get(&asked).is_some()) {
        return Ok(asked);
    }
    let peers = asked.peers(settings);
    if place.kind == "endpoint" {
        let bare = |url: &str| url.trim_end_matches('/').to_owned();
        let same = peers.iter().find(|peer| bare(peer) == bare(name));
        if let Some(target) = same.and_then(|url| made(url)) {
            return Ok(target);
        }
    }
    Err((
        StatusCode::NOT_FOUND,
        unknown(place, name, &peers, settings).into(),
    ))
}

fn unknown(place: &Place, name: &str, peers: &[&str], settings: &Settings) -> String {
    let Place { kind, part_of, .. } = place;
    let near = hint(name, peers.iter().copied());
    if part_of.is_empty() {
        return format!("There is no {kind} {}{near}\n", quoted(name));
    }
    if peers.is_empty() {
        let upstreams = settings.upstreams.iter();
        let near = hint(part_of, upstreams.map(|upstream| upstream.id.as_str()));
        return format!("There is no upstream {}{near}\n", quoted(part_of));
    }
    let some: Vec<_> = peers.iter().take(MOST_LISTED).copied().collect();
    format!(
        "Upstream {part_of} has no {kind} {}{near} It has: {}\n",
        quoted(name),
        some.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: &'static str, part_of: &str, name: Option<&str>) -> Option<Place> {
        Some(Place {
            kind,
            part_of: part_of.to_owned(),
            name: name.map(str::to_owned),
        })
    }

    #[test]
    fn a_path_names_one_thing_however_odd_its_name_is() {
        assert_eq!(
            place("/switches/tenant/a", None),
            at("tenant", "", Some("a"))
        );
        let model = at("model", "", Some("org/model:7b"));
        assert_eq!(place("/switches/model/org/model:7b", None), model);
        assert_eq!(place("/switches/model/org%2Fmodel%3A7b", None), model);
        let account = at("account", "one", Some("main"));
        assert_eq!(place("/drains/accounts/one/main", None), account);
        let endpoint = at("endpoint", "one", Some("http://a:1/b"));
        let query = Some("x=1&url=http%3A%2F%2Fa:1/b");
        assert_eq!(place("/drains/endpoints/one", query), endpoint);
        assert_eq!(
            place("/drains/endpoints/one", None),
            at("endpoint", "one", None)
        );
        for path in [
            "/switches",
            "/switches/tenant",
            "/switches/tenant/",
            "/switches/account/main",
            "/switches/tenant/%ff",
            "/drains/accounts/one",
            "/drains/accounts/one/",
            "/drains/tenants/a",
            "/drains",
        ] {
            assert_eq!(place(path, None), None, "{path}");
        }
    }

    #[test]
    fn a_body_says_what_it_must_and_no_more() {
        let tenant = at("tenant", "", Some("a")).unwrap();
        let endpoint = at("endpoint", "one", None).unwrap();
        let judged = |place: &Place, body: &str, off| read(body.as_bytes(), place, off).is_ok();
        assert!(judged(&tenant, r#"{"state": "off", "reason": "r"}"#, true));
        assert!(judged(&tenant, "", false));
        assert!(judged(&tenant, r#"{"reason": "r", "by": "ann"}"#, false));
        assert!(judged(&endpoint, r#"{"url": "u", "reason": "r"}"#, true));
        for (place, body) in [
            (&tenant, ""),
            (&tenant, r#"{"reason": "r"}"#),
            (&tenant, r#"{"state": "gone"}"#),
            (&tenant, r#"{"state": "off", "why": "r"}"#),
            (&tenant, r#"{"state": "off", "url": "u"}"#),
            (&tenant, r#"{"state": "off", "reason": "a\nb"}"#),
            (&endpoint, r#"{"state": "off"}"#),
        ] {
            assert!(!judged(place, body, true), "{body}");
        }
        let long = |count| {
            let reason = "é".repeat(count);
            judged(
                &tenant,
                &format!(r#"{{"state": "off", "reason": "{reason}"}}"#),
                true,
            )
        };
        assert!(long(MOST_REASON) && !long(MOST_REASON + 1));
    }
}
