//! Gives an answer that has been decided: waits for its head, dresses it, and hands
//! its body to whoever plays it, hyper or the socket itself.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, SERVER, SET_COOKIE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};
use thiserror::Error;

use super::by_hand::Seized;
use super::entry::Outcome;
use super::exchange::{Act, EVENTS};
use super::line::Grip;
use super::playback::Playback;
use super::script::Opening;
use super::ticket::Ticket;

const TRACE_HEADER: HeaderName = HeaderName::from_static("x-ds-trace-id");

/// hyper is to give up the connection, or on HTTP/2 the stream.
#[derive(Debug, Error)]
#[error("the emulator was ordered to break or take this connection")]
pub(super) struct Broken;

/// On what an exchange is answered.
pub(super) struct Connection {
    pub grip: Arc<Grip>,
    pub version: Version,
}

/// Waits as the act wants, then gives its head with a body that plays the rest.
pub(super) async fn perform(
    act: Act,
    mut ticket: Ticket,
    trace: &str,
    connection: Connection,
) -> Result<Response<Playback>, Broken> {
    let Connection { grip, version } = connection;
    let spoil = act.spoil;
    if !spoil.delay.is_zero() {
        tokio::time::sleep(spoil.delay).await;
    }
    if act.reset {
        ticket.settle(Outcome::Fault);
        grip.break_off();
        return Err(Broken);
    }
    match act.script.opening {
        // The client's leaving drops this future, and the ticket with it.
        Opening::Never => never(ticket).await,
        _ if spoil.replaces() => {}
        Opening::Queued => {}
        Opening::After(wait) => {
            ticket.begin();
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }
    let mut act = spoil.apply(act);
    let headers = dressed(&act, trace);
    if let Some(manual) = spoil.manual(act.status, &headers, &mut act.script.steps) {
        if version == Version::HTTP_2 {
            // There a stream is reset: the connection is not this exchange's own.
            ticket.settle(Outcome::Fault);
            return Err(Broken);
        }
        if let Some(status) = manual.status(act.status) {
            ticket.status(status.as_u16());
        }
        let outcome = act.outcome;
        grip.seize(Seized {
            manual,
            ticket,
            outcome,
        });
        return Err(Broken);
    }
    ticket.status(act.status.as_u16());
    let mut body = Playback::new(act.script.steps, ticket, act.outcome, grip);
    if act.chunked {
        body = body.chunked();
    }
    let mut response = Response::new(body);
    *response.status_mut() = act.status;
    *response.headers_mut() = headers;
    Ok(response)
}

async fn never(ticket: Ticket) -> ! {
    let _held = ticket;
    match std::future::pending::<Infallible>().await {}
}

/// The headers that every answer of the real API has.
fn dressed(act: &Act, trace: &str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(SERVER, HeaderValue::from_static("openresty"));
    if let Ok(value) = HeaderValue::try_from(trace) {
        headers.insert(TRACE_HEADER, value);
    }
    let cookie = format!("edge_session={trace}; Path=/; HttpOnly; Max-Age=1800");
    if let Ok(value) = HeaderValue::try_from(cookie) {
        headers.insert(SET_COOKIE, value);
    }
    if !act.content_type.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(act.content_type));
    }
    if act.content_type == EVENTS {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    if act.spoil.gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(seconds) = act.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    headers
}
