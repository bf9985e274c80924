//! How a try at an upstream went, before the client saw anything: good, again elsewhere, or a no.

use std::time::{Duration, Instant};

use http::{StatusCode, header};
use log::debug;
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;

use super::Gateway;
use crate::context::{Attempt, Context, Outbound};
use crate::request::forward;
use crate::request::refusal::{Code, Refusal};
use crate::request::surface::Surface;
use crate::upstream::account::{Pause, pause_after};
use crate::upstream::enveloped::Cut;
use crate::upstream::peer::Distrust;
use crate::upstream::probe;
use crate::upstream::retry::{self, Choice, Failure};

/// What a client is asked to wait when an upstream is in trouble.
const TROUBLE_WAIT: Duration = Duration::from_secs(2);

/// A pooled connection that breaks within this time was dead already; later, the upstream may have
/// worked on the request, and been paid for it.
const STALE_WINDOW: Duration = Duration::from_secs(1);
/// Dead pooled connections that one request may run into.
const MAX_STALE: u32 = 3;

impl Gateway {
    pub(super) fn not_connected(&self, ctx: &mut Context, error: Box<Error>) -> Box<Error> {
        let refusal = unreachable().detail(format!("no connection: {}", error.etype().as_str()));
        self.attempt_failed(ctx, Failure::Connect, refusal, error)
    }

    /// Good, again elsewhere, or a no: decided from the upstream's status alone.
    pub(super) fn judge_head(&self, head: &ResponseHeader, ctx: &mut Context) -> Result<()> {
        if let Some(attempt) = &mut ctx.attempts.current {
            attempt.answered = true;
        }
        let stray = ctx.answer.opened && head.status.is_success() && !is_stream(head);
        let why = stray.then_some("an answer in one piece where a stream was begun");
        if let Some(why) = nonsense(head, answers_in_json(ctx)).or(why) {
            let refusal = Refusal::new(Code::UpstreamError, "The upstream's answer made no sense.");
            let error = forward::not_trusted(why);
            return Err(self.attempt_failed(ctx, Failure::Garbage, refusal.detail(why), error));
        }
        ctx.answer.upstream_trace = head
            .headers
            .get(forward::UPSTREAM_TRACE)
            .and_then(|value| value.to_str().ok())
            .map(|text| text.chars().take(64).collect());
        let status = head.status.as_u16();
        let retry_after = retry_after(head);
        if let (Some(pause), Some(attempt)) =
            (pause_after(status, retry_after), &ctx.attempts.current)
        {
            let now = Instant::now();
            match pause {
                Pause::Account(pause) => attempt.rest_account(now, pause),
                Pause::Model(pause) => attempt.tell_rate_limited(now, pause),
            }
        }
        if is_empty(head) && answers_in_json(ctx) {
            return Err(self.empty_answer(ctx, status, retry_after));
        }
        if let Some(attempt) = &ctx.attempts.current
            && !attempt.lane.pool.is_watched()
            && let Some(slot) = attempt.endpoint_slot()
        {
            probe::record(&attempt.lane.pool, slot, true, "answered");
        }
        if head.status.is_success() {
            return Ok(());
        }
        let Some(refusal) = refusal_for(status, retry_after) else {
            // The request's own fault: the upstream's words help, see gateway/answer.rs.
            return Ok(());
        };
        let error =
            Error::explain(ErrorType::HTTPStatus(status), "an upstream's refusal").into_up();
        Err(self.attempt_failed(ctx, Failure::Status(status), refusal, error))
    }

    /// An answer without a body where one must be: an engine's bare 404, or a 200 that says nothing.
    fn empty_answer(
        &self,
        ctx: &mut Context,
        status: u16,
        retry_after: Option<Duration>,
    ) -> Box<Error> {
        let error = Error::explain(ErrorType::HTTPStatus(status), "an empty answer").into_up();
        let refusal = refusal_for(status, retry_after).unwrap_or_else(|| match status {
            400.. => super::answer::upstream_error(status, b"", std::iter::empty()),
            _ => Refusal::new(Code::UpstreamError, "The upstream's answer was empty."),
        });
        let failure = if status < 400 {
            Failure::Garbage
        } else {
            Failure::Status(status)
        };
        self.attempt_failed(ctx, failure, refusal, error)
    }

    /// An error of either side after the connection was made.
    pub(super) fn broken_off(
        &self,
        session: &Session,
        ctx: &mut Context,
        mut error: Box<Error>,
        reused: bool,
    ) -> Box<Error> {
        // Connections that were pooled and died unnoticed; the flag must be decided in any case.
        let fresh = |attempt: &Attempt| !attempt.answered && attempt.began.elapsed() < STALE_WINDOW;
        let cut = Cut::behind(&error).cloned();
        let reused = reused || cut.as_ref().is_some_and(|cut| cut.reused);
        let kind = cut.map_or_else(|| error.etype().clone(), |cut| cut.kind);
        let stale = reused && is_stale(&kind) && ctx.attempts.current.as_ref().is_some_and(fresh);
        error.retry.decide_reuse(false);
        let begun = ctx.has_begun(session.response_written());
        if *error.esource() == ErrorSource::Downstream {
            ctx.client_gone = true;
            self.end_attempt(ctx, "client_gone");
            return error;
        }
        if ctx.attempts.current.is_none() {
            // Judged already: the verdict on retrying stands in the error.
            error.set_retry(ctx.attempts.again && !begun);
            return error;
        }
        if *error.esource() == ErrorSource::Internal && ctx.refusal.is_some() {
            // A refusal of ours in the middle of an attempt: an upload that grew too large.
            self.end_attempt(ctx, "refused");
            error.set_retry(false);
            return error;
        }
        let (failure, refusal) = match kind {
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => (
                Failure::Timeout,
                Refusal::new(
                    Code::UpstreamTimeout,
                    "The upstream did not answer in time.",
                )
                .retry_after(TROUBLE_WAIT),
            ),
            ErrorType::InvalidHTTPHeader => (
                Failure::Garbage,
                Refusal::new(Code::UpstreamError, "The upstream's answer made no sense."),
            ),
            ErrorType::TLSHandshakeFailure => (Failure::Connect, unreachable()),
            _ if stale && !begun => (Failure::StaleConnection, unreachable()),
            _ => (
                Failure::Reset,
                Refusal::new(Code::UpstreamError, "The upstream broke the connection.")
                    .retry_after(TROUBLE_WAIT),
            ),
        };
        if begun {
            self.end_attempt(ctx, failure.as_str());
            ctx.refusal.get_or_insert(refusal.detail(kind.as_str()));
            error.set_retry(false);
            return error;
        }
        self.attempt_failed(ctx, failure, refusal.detail(kind.as_str()), error)
    }

    /// Ends the attempt and decides, into the error's flag, whether there will be another.
    fn attempt_failed(
        &self,
        ctx: &mut Context,
        failure: Failure,
        refusal: Refusal,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // The error's text may hold the upstream's head as it came, and so whatever it echoes.
        debug!(
            "Attempt failed. request_id={} failure={} cause={}",
            ctx.request_id(),
            failure.as_str(),
            error.etype().as_str()
        );
        if Distrust::behind(&error) == Some(Distrust::WrongPin) {
            self.tell_wrong_pin(ctx);
        }
        let again = self.may_go_on(ctx, failure);
        if failure == Failure::StaleConnection && again {
            ctx.attempts.stale += 1;
            ctx.attempts.made -= 1;
        }
        if let (Some(avoid), Some(attempt)) = (
            retry::next(failure).filter(|_| again),
            &ctx.attempts.current,
        ) {
            let pool = &attempt.lane.pool;
            let addresses = attempt
                .endpoint_slot()
                .map_or(0, |slot| slot.state.address_count());
            let choice = Choice {
                accounts: attempt.lane.width(),
                endpoints: pool.endpoints.len(),
                addresses,
                queue: attempt.lane.is_queued_for(),
                rests: attempt.rests_for_model(Instant::now()),
            };
            let (account, endpoint) = (attempt.chosen.account, attempt.chosen.endpoint);
            retry::set_aside(&mut ctx.attempts.tried, avoid, account, endpoint, choice);
        }
        if failure.blames_endpoint()
            && let Some(attempt) = &ctx.attempts.current
            && let Some(slot) = attempt.endpoint_slot()
        {
            probe::record(&attempt.lane.pool, slot, false, failure.as_str());
        }
        self.end_attempt(ctx, failure.as_str());
        ctx.refusal = Some(refusal);
        ctx.attempts.again = again;
        error.set_retry(again);
        error
    }

    /// Somebody else answers in the upstream's place, or its key was exchanged unannounced.
    fn tell_wrong_pin(&self, ctx: &Context) {
        let attempt = ctx.attempts.current.as_ref();
        let Some((attempt, slot)) = attempt.and_then(|it| Some((it, it.endpoint_slot()?))) else {
            return;
        };
        let mismatches = &self.metrics.upstream_pin_mismatches;
        probe::pin_mismatch(&attempt.lane.pool, slot, mismatches);
    }

    fn may_go_on(&self, ctx: &Context, failure: Failure) -> bool {
        let Some(routed) = ctx.routed() else {
            return false;
        };
        let allowed = ctx.snapshot.settings.retry.attempts;
        // A stale connection cost nothing, so it does not count as an attempt.
        let within = match failure {
            Failure::StaleConnection => ctx.attempts.stale < MAX_STALE,
            _ => ctx.attempts.made < allowed,
        };
        let sent = ctx
            .attempts
            .current
            .as_ref()
            .is_some_and(|attempt| attempt.sent);
        let repeatable = !matches!(routed.body, Outbound::Through { .. }) || !sent;
        // The answer's head is on its way to the client, even if its bytes are not.
        let begun = ctx.answer.status != 0;
        let wanted = !ctx.client_left();
        within && repeatable && !begun && wanted && retry::next(failure).is_some()
    }

    /// Gives the account's and the endpoint's places back and counts how the attempt ended.
    pub(super) fn end_attempt(&self, ctx: &mut Context, outcome: &str) {
        if let Some(attempt) = ctx.attempts.current.take() {
            ctx.upstream_at_work(false);
            let account = attempt
                .account_slot()
                .map_or("", |account| account.id.as_str());
            let upstream = attempt.lane.pool.settings.id.as_str();
            self.metrics
                .attempts
                .with_label_values(&[upstream, account, outcome])
                .inc();
            ctx.attempts.left_at_work = ctx.client_gone && attempt.sent;
            ctx.attempts.last = Some(attempt.names());
        }
    }
}

/// The error that ends a request whose refusal stands in the context.
pub(super) fn refused(ctx: &Context) -> Box<Error> {
    let status = ctx
        .refusal
        .as_ref()
        .map_or(500, |refusal| refusal.status().as_u16());
    Error::explain(ErrorType::HTTPStatus(status), "refused").into_in()
}

pub(super) fn unreachable() -> Refusal {
    Refusal::new(
        Code::UpstreamUnavailable,
        "No upstream can be reached at the moment; try again shortly.",
    )
    .retry_after(TROUBLE_WAIT)
}

/// What a tenant is told about a status that is not the request's fault; `None` if it is.
fn refusal_for(status: u16, retry_after: Option<Duration>) -> Option<Refusal> {
    let wait = retry_after
        .unwrap_or(TROUBLE_WAIT)
        .min(Duration::from_secs(120));
    let refusal = match status {
        429 => Refusal::new(
            Code::UpstreamRateLimited,
            "The upstream is at its limit of concurrent requests; try again shortly.",
        ),
        401..=403 => Refusal::new(
            Code::UpstreamUnavailable,
            "The gateway's upstream account cannot be used at the moment.",
        ),
        503 | 529 => Refusal::new(
            Code::UpstreamUnavailable,
            "The upstream is overloaded; try again shortly.",
        ),
        408 | 425 | 504 => Refusal::new(
            Code::UpstreamTimeout,
            "The upstream did not answer in time.",
        ),
        200..=299 | 400..=499 => return None,
        _ => Refusal::new(
            Code::UpstreamError,
            "The upstream failed to answer this request.",
        ),
    };
    Some(
        refusal
            .retry_after(wait)
            .detail(format!("upstream status {status}")),
    )
}

/// A declared length of nothing.
fn is_empty(head: &ResponseHeader) -> bool {
    head.headers
        .get(header::CONTENT_LENGTH)
        .is_some_and(|length| length.as_bytes() == b"0")
}

/// Why an answer's head is not to be trusted, if it is not.
fn nonsense(head: &ResponseHeader, in_json: bool) -> Option<&'static str> {
    if forward::is_unasked(head.status) {
        return Some("an informational answer nobody asked for");
    }
    if !forward::is_framed_clearly(head) {
        return Some("an answer whose length is not clear");
    }
    if is_encoded(head) {
        return Some("an encoded answer nobody asked for");
    }
    if in_json && head.status.is_success() && head.status != StatusCode::OK {
        return Some("a success without the answer that belongs to it");
    }
    None
}

pub(super) fn is_stream(head: &ResponseHeader) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/event-stream"))
}

/// We ask for plain answers: what is compressed could not be watched.
fn is_encoded(head: &ResponseHeader) -> bool {
    head.headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn answers_in_json(ctx: &Context) -> bool {
    ctx.surface().is_some_and(Surface::routes_by_model)
}

/// Whole seconds only; the date form of RFC 9110 §10.2.3 was never seen from these upstreams.
fn retry_after(head: &ResponseHeader) -> Option<Duration> {
    let text = head.headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The other side had closed a pooled connection: nothing of the request was taken.
fn is_stale(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::ConnectionClosed
            | ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::H2Error
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accounts_trouble_is_ours_and_a_bad_request_is_the_tenants() {
        for status in [401, 402, 403] {
            assert_eq!(
                refusal_for(status, None).unwrap().status(),
                StatusCode::SERVICE_UNAVAILABLE
            );
        }
        for status in [400, 404, 405, 413, 415, 422] {
            assert!(refusal_for(status, None).is_none());
        }
        assert_eq!(
            refusal_for(500, None).unwrap().status(),
            StatusCode::BAD_GATEWAY
        );
        assert_eq!(
            refusal_for(302, None).unwrap().status(),
            StatusCode::BAD_GATEWAY
        );
    }

    #[test]
    fn a_long_wait_is_capped_where_sdks_would_give_up() {
        let refusal = refusal_for(429, Some(Duration::from_secs(9_999))).unwrap();
        assert_eq!(refusal.retry_after_seconds(), Some(120));
    }
}
