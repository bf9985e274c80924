//! Follows one request from its head to the script of its answer: key, balance,
//! body, faults, slot, answer. Each of these is decided in a file of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use uuid::Uuid;

use super::account::{Account, Slot};
use super::answer::Answer;
use super::entry::Outcome;
use super::fault::Faults;
use super::line::Grip;
use super::meter::{Meter, Pace};
use super::performance::{Broken, Connection, perform};
use super::playback::Playback;
use super::prompt::Ask;
use super::refusal::Refusal;
use super::reply::Reply;
use super::route::{self, Route, Surface};
use super::script::{self, Opening, Script};
use super::spoil::Spoil;
use super::ticket::Ticket;
use super::usage::{Telling, Usage};
use super::world::World;
use super::{
    chat, chat_request, completions, control, embeddings, envelope, files, lookup, messages,
    responses,
};

/// Largest request; the real ceiling is not documented.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Header in which a request orders its own faults.
const FAULT_HEADER: &str = "x-emulator-fault";
pub(super) const JSON: &str = "application/json";
pub(super) const EVENTS: &str = "text/event-stream; charset=utf-8";

/// What is going to be answered.
pub(super) struct Act {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub script: Script,
    pub outcome: Outcome,
    pub retry_after: Option<u64>,
    /// Whether the body's length is left out of the head.
    pub chunked: bool,
    pub reset: bool,
    pub spoil: Spoil,
    /// Absent where nothing is generated.
    pub meter: Option<Meter>,
}

impl Act {
    /// A body that is there at once.
    pub(super) fn plain(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        Self {
            status,
            content_type,
            script: Script {
                opening: Opening::After(Duration::ZERO),
                steps: script::plain(body),
            },
            outcome: Outcome::Complete,
            retry_after: None,
            chunked: false,
            reset: false,
            spoil: Spoil::default(),
            meter: None,
        }
    }

    pub(super) fn json(body: &Value) -> Self {
        Self::plain(StatusCode::OK, JSON, Bytes::from(body.to_string()))
    }

    fn refusal(refusal: &Refusal, anthropic: bool) -> Self {
        let (body, content_type) = refusal.render(anthropic);
        let outcome = if refusal.ordered {
            Outcome::Fault
        } else {
            Outcome::Refused
        };
        let retry_after = refusal.retry_after;
        Self {
            outcome,
            retry_after,
            spoil: Spoil::late(refusal.delay),
            ..Self::plain(refusal.status, content_type, body)
        }
    }
}

/// Answers one request; an error breaks its connection.
pub(super) async fn answer(
    world: Arc<World>,
    grip: Arc<Grip>,
    request: Request<Incoming>,
) -> Result<Response<Playback>, Broken> {
    let (head, body) = request.into_parts();
    let connection = Connection {
        grip,
        version: head.version,
    };
    let path = head.uri.path();
    let route = route::find(&head.method, path, head.uri.query());
    let trace = Uuid::new_v4().simple().to_string();
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    if let Ok(Route::Control(order)) = route {
        let body = body.await.map(|body| body.to_bytes()).unwrap_or_default();
        let act = control::answer(&world, order, &body).unwrap_or_else(|r| Act::refusal(&r, false));
        return perform(act, Ticket::default(), &trace, connection).await;
    }
    if route == Ok(Route::Health) {
        let act = lookup::health(&world, &head.headers).unwrap_or_else(|r| Act::refusal(&r, false));
        return perform(act, Ticket::default(), &trace, connection).await;
    }
    let mut ticket = world
        .journal
        .open(head.method.as_str(), path, &head.headers, &trace);
    if matches!(route, Ok(Route::Generate(_) | Route::Embeddings)) {
        ticket.generates();
    }
    // Read first, judge then: a refusal must not race with the rest of a body.
    let act = match body.await {
        Ok(body) => {
            let body = body.to_bytes();
            world.journal.keep_body(&ticket, &body);
            judge(&world, route, &head.headers, &body, &mut ticket)
        }
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::too_large()),
        Err(_) => return Err(Broken),
    };
    let anthropic = path.starts_with("/anthropic/");
    let mut act = act.unwrap_or_else(|refusal| {
        ticket.refused(refusal.status.as_u16());
        Act::refusal(&refusal, anthropic)
    });
    if let Some(meter) = act.meter.take() {
        ticket.measure(meter);
    }
    if world.enveloped {
        act = envelope::wrap(act);
    }
    perform(act, ticket, &trace, connection).await
}

/// Everything between a whole request and its answer; waits for nothing.
fn judge(
    world: &World,
    route: Result<Route, StatusCode>,
    headers: &HeaderMap,
    body: &Bytes,
    ticket: &mut Ticket,
) -> Result<Act, Refusal> {
    let route = route.map_err(Refusal::empty)?;
    if route == Route::Embeddings && !world.embeddings {
        return Err(Refusal::empty(StatusCode::NOT_FOUND));
    }
    let account = world.authenticate(headers)?;
    ticket.account(&account.name);
    let carried = headers.get(FAULT_HEADER).map(|value| value.to_str());
    let carried = carried
        .transpose()
        .map_err(|_| Refusal::order("the header is no ASCII text"))?;
    match route {
        Route::Generate(surface) => {
            needs_json(headers)?;
            let ask = read(world, surface, body)?;
            let (faults, slot) = admit(world, account, carried, &ask, ticket)?;
            if let Some(slot) = slot {
                ticket.hold(slot);
            }
            Ok(generate(world, account, surface, &ask, &faults))
        }
        Route::Embeddings => {
            needs_json(headers)?;
            let embedded = embeddings::embed(body, world.self_hosted)?;
            let (faults, slot) = admit(world, account, carried, &embedded.ask, ticket)?;
            if let Some(slot) = slot {
                ticket.hold(slot);
            }
            let usage = embedded.usage;
            let body = embedded.whole(Telling::under(&faults));
            Ok(in_one_piece(world, body, usage, &faults, chat::error_body))
        }
        Route::Models => lookup::models(world, account, carried, ticket),
        Route::Balance => lookup::balance(world, account, carried, ticket),
        Route::Files(route) => lookup::file(world, account, carried, &route, headers, body, ticket),
        Route::Health | Route::Control(_) => Err(Refusal::empty(StatusCode::NOT_FOUND)),
    }
}

fn needs_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let json = kind.is_some_and(|kind| {
        kind.split(';')
            .next()
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON))
    });
    if json {
        Ok(())
    } else {
        Err(Refusal::media_type())
    }
}

fn read(world: &World, surface: Surface, body: &[u8]) -> Result<Ask, Refusal> {
    match surface {
        Surface::Chat { beta } => chat_request::read(body, beta, world.self_hosted),
        Surface::Completions { beta } => completions::read(body, beta, world.self_hosted),
        Surface::Messages => messages::read(body, world.self_hosted),
        Surface::Responses => responses::read(body, world.self_hosted),
    }
}

/// Balance, faults, files and the slot. A request that is about to be broken
/// off before its head takes no slot.
fn admit(
    world: &World,
    account: &Account,
    header: Option<&str>,
    ask: &Ask,
    ticket: &Ticket,
) -> Result<(Faults, Option<Slot>), Refusal> {
    ticket.asked(&ask.model, &ask.user_id, ask.stream);
    if !world.self_hosted && !account.can_pay() {
        return Err(Refusal::no_balance());
    }
    let carried: Vec<&str> = header
        .into_iter()
        .chain(ask.last.orders.iter().map(String::as_str))
        .collect();
    let faults = struck(world, account, &carried, true, ticket)?;
    if let Some(id) = ask.files.iter().find(|id| !account.cabinet.has(id)) {
        return Err(Refusal::bad(files::no_such_file(id)));
    }
    if faults.reset {
        return Ok((faults, None));
    }
    let slot = account
        .enter(&ask.model)
        .map_err(|ceiling| Refusal::too_many(&ask.model, ceiling))?;
    Ok((faults, Some(slot)))
}

/// The faults of this request; the one that is a status is its refusal.
pub(super) fn struck(
    world: &World,
    account: &Account,
    carried: &[&str],
    generates: bool,
    ticket: &Ticket,
) -> Result<Faults, Refusal> {
    struck_by_name(world, &account.name, carried, generates, ticket)
}

/// The same when the account may be none.
pub(super) fn struck_by_name(
    world: &World,
    account: &str,
    carried: &[&str],
    generates: bool,
    ticket: &Ticket,
) -> Result<Faults, Refusal> {
    let faults = world
        .desk
        .faults(account, carried, generates)
        .map_err(|error| Refusal::order(&error.to_string()))?;
    if faults.spoil() {
        ticket.faulted();
    }
    match faults.status {
        Some(status @ 200..) if !faults.stall && !faults.reset && !faults.wild() => {
            Err(Refusal::ordered(status, &faults))
        }
        _ => Ok(faults),
    }
}

fn generate(world: &World, account: &Account, surface: Surface, ask: &Ask, faults: &Faults) -> Act {
    let tokens = faults.tokens.unwrap_or(world.tokens);
    let answer = Answer::invent(ask, tokens, faults.finish.as_deref(), faults.wording);
    let hit = account.recall(&ask.chain, answer.text());
    let reply = Reply::new(ask, answer, hit, faults);
    if !ask.stream {
        let (body, error): (Bytes, fn() -> Bytes) = match surface {
            Surface::Chat { .. } => (chat::whole(&reply), chat::error_body),
            Surface::Completions { .. } => (completions::whole(&reply), chat::error_body),
            Surface::Messages => (messages::whole(&reply), messages::error_body),
            Surface::Responses => (responses::whole(&reply), chat::error_body),
        };
        return in_one_piece(world, body, reply.usage, faults, error);
    }
    let (transcript, error): (_, fn(usize) -> Bytes) = match surface {
        Surface::Chat { .. } => (chat::streamed(&reply), chat::error_event),
        Surface::Completions { .. } => (completions::streamed(&reply), chat::error_event),
        Surface::Messages => (messages::streamed(&reply), messages::error_event),
        Surface::Responses => (responses::streamed(&reply), responses::error_event),
    };
    let script = script::streamed(transcript, world.tempo.under(faults), faults, error);
    Act {
        chunked: true,
        content_type: EVENTS,
        meter: Some(Meter::streamed(reply.usage)),
        ..acted(script, faults)
    }
}

fn in_one_piece(
    world: &World,
    body: Bytes,
    usage: Usage,
    faults: &Faults,
    error: fn() -> Bytes,
) -> Act {
    let tempo = world.tempo.under(faults);
    let script = script::whole(body, usage.completion, tempo, faults, error);
    let pace = Pace {
        first_token: tempo.first_token,
        token_delay: tempo.token_delay,
    };
    Act {
        meter: Some(Meter::in_one_piece(usage, pace)),
        ..acted(script, faults)
    }
}

pub(super) fn acted(script: Script, faults: &Faults) -> Act {
    Act {
        status: StatusCode::OK,
        content_type: JSON,
        script,
        outcome: if faults.spoil() {
            Outcome::Fault
        } else {
            Outcome::Complete
        },
        retry_after: faults.retry_after,
        chunked: false,
        reset: faults.reset,
        spoil: Spoil::under(faults),
        meter: None,
    }
}
