//! How a try at an upstream went, before the client saw anything: good, again elsewhere, or a no.

use std::time::{Duration, Instant};

use log::debug;
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType, Result, RetryType};
use pingora_proxy::Session;

use super::Gateway;
use super::answer::head_is_out;
use super::attempt::out_of_time;
use super::upstream_error::{keys, upstream_error};
use super::upstream_head::{answers_in_json, is_empty, is_stream, nonsense, retry_after};
use crate::config::settings::FailureClass;
use crate::context::{Attempt, Context, Step, Watch};
use crate::request::forward;
use crate::request::refusal::{Code, Refusal};
use crate::request::stand_in::Behind;
use crate::upstream::clocks::Late;
use crate::upstream::enveloped::Cut;
use crate::upstream::peer::Distrust;
use crate::upstream::pool::Outcome;
use crate::upstream::probe;
use crate::upstream::retry::{self, Cause};

/// What a client is asked to wait when an upstream is in trouble.
const TROUBLE_WAIT: Duration = Duration::from_secs(2);

/// A pooled connection that breaks within this time was dead already; later, the upstream may have
/// worked on the request, and been paid for it.
const STALE_WINDOW: Duration = Duration::from_secs(1);
/// Long enough for a connection: a packet that was lost once is sent again after a second.
const FAIR_TIME: Duration = Duration::from_millis(1_500);
/// Timers may go off a little before their time.
const ROUNDING: Duration = Duration::from_millis(2);

/// A deadline of ours was over. No name of Pingora's: for that it would give up a whole HTTP/2
/// connection, with everybody on it.
pub(super) const DEADLINE: &str = "Deadline";
/// What came does not fit to what the client has.
pub(super) const MISFIT: &str = "Misfit";

/// What an attempt failed with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub class: FailureClass,
    /// As the upstream answered.
    pub status: Option<u16>,
    pub retry_after: Option<Duration>,
}

impl From<FailureClass> for Failure {
    fn from(class: FailureClass) -> Self {
        Self {
            class,
            status: None,
            retry_after: None,
        }
    }
}

impl Gateway {
    pub(super) fn not_connected(&self, ctx: &mut Context, error: Box<Error>) -> Box<Error> {
        let slow = matches!(
            error.etype(),
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout
        );
        let now = Instant::now();
        if slow && ctx.is_over(now + ROUNDING) {
            // It was given no more than what the request had left: no fault of the endpoint's. But
            // where that was long enough for a connection, another address is the better one.
            let attempt = ctx.attempts.current.as_ref();
            let patient = |it: &&Attempt| now.saturating_duration_since(it.began) >= FAIR_TIME;
            if let Some(attempt) = attempt.filter(patient) {
                attempt.failed_at_address_alone(FailureClass::Connect, now);
            }
            return self.out_of_its_time(ctx, error, FailureClass::Deadline);
        }
        let refusal = unreachable().detail(format!("no connection: {}", error.etype().as_str()));
        let class = match error.etype() {
            ErrorType::TLSHandshakeFailure
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::TLSWantX509Lookup
            | ErrorType::InvalidCert => FailureClass::Tls,
            _ if Distrust::behind(&error).is_some() => FailureClass::Tls,
            _ => FailureClass::Connect,
        };
        self.attempt_failed(ctx, class.into(), refusal, error)
    }

    /// Good, again elsewhere, or a no: decided from the upstream's status alone.
    pub(super) fn judge_head(
        &self,
        session: &Session,
        head: &ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let now = Instant::now();
        if let Some(attempt) = &mut ctx.attempts.current {
            attempt.answered = true;
            attempt.was_reached(now);
        }
        ctx.moved(Step::Head, now);
        let opened = ctx.answer.opened || head_is_out(session);
        let stream = ctx.routed().is_some_and(|routed| routed.stream);
        let stray = if !head.status.is_success() {
            None
        } else if stream && opened && !is_stream(head) {
            Some("an answer in one piece where a stream was begun")
        } else if !stream && answers_in_json(ctx) && is_stream(head) {
            Some("a stream where an answer in one piece was asked for")
        } else {
            None
        };
        if let Some(why) = nonsense(head, answers_in_json(ctx)).or(stray) {
            let refusal = Refusal::new(Code::UpstreamError, "The upstream's answer made no sense.");
            let error = forward::not_trusted(why);
            let failure = FailureClass::Garbage.into();
            return Err(self.attempt_failed(ctx, failure, refusal.detail(why), error));
        }
        ctx.answer.upstream_trace = head
            .headers
            .get(forward::UPSTREAM_TRACE)
            .and_then(|value| value.to_str().ok())
            .map(|text| text.chars().take(64).collect());
        let status = head.status.as_u16();
        let retry_after = retry_after(head);
        let failure = |class| Failure {
            class,
            status: Some(status),
            retry_after,
        };
        let error = |what: &'static str| Error::explain(ErrorType::HTTPStatus(status), what);
        let nothing = is_empty(head) && answers_in_json(ctx);
        let class = match retry::class_of_status(status) {
            Some(class) => class,
            None if nothing && head.status.is_success() => FailureClass::Garbage,
            // What was well before is not bad now: this upstream does not go on with answers.
            None if ctx.is_resumed() && !head.status.is_success() => FailureClass::Garbage,
            // An engine's bare 404: there is no body to wait for.
            None if nothing => return Err(self.bare_no(ctx, status, b"")),
            // Good, or the request's own fault: the upstream's words help, see gateway/answer.rs.
            None => return Ok(()),
        };
        let refusal = refusal_for(class, retry_after).detail(format!("upstream status {status}"));
        let error = error("an upstream's refusal").into_up();
        Err(self.attempt_failed(ctx, failure(class), refusal, error))
    }

    /// The upstream says that the request is bad, and of its reasons no more than there is.
    fn bare_no(&self, ctx: &mut Context, status: u16, said: &[u8]) -> Box<Error> {
        let no = upstream_error(status, said, keys(ctx.attempts.current.as_ref()));
        if let Some(attempt) = &mut ctx.attempts.current {
            attempt.chosen.report(Outcome::Complete, Instant::now());
        }
        self.end_attempt(ctx, "client_error");
        ctx.attempts.again = false;
        ctx.refusal = Some(no);
        Error::explain(ErrorType::HTTPStatus(status), "a refusal without a body").into_up()
    }

    /// An error of either side after the connection was made.
    pub(super) fn broken_off(
        &self,
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
        // A reset is no dead connection, unless the other side says that it did nothing.
        let spared = kind != ErrorType::H2Error || error.retry != RetryType::Decided(false);
        let stale = stale && spared;
        error.retry.decide_reuse(false);
        let late = ctx.behind.as_ref().is_some_and(Behind::was_late);
        if late {
            // It was looked at where the client is listened for, and is not the client's doing.
            error.as_up();
        }
        if *error.esource() == ErrorSource::Downstream {
            ctx.client_gone = true;
            self.end_attempt(ctx, "client_gone");
            return error;
        }
        if ctx.attempts.current.is_none() {
            // Judged already: the verdict on retrying stands in the error.
            error.set_retry(ctx.attempts.again);
            return error;
        }
        if *error.esource() == ErrorSource::Internal && ctx.refusal.is_some() {
            // A refusal of ours in the middle of an attempt: an upload that grew too large.
            self.end_attempt(ctx, "refused");
            error.set_retry(false);
            return error;
        }
        if let Watch::Error { status, gathered } = &mut ctx.answer.watch
            && !ctx.answer.begun
        {
            // Its head has said all that counts; over HTTP/2 it may have been the whole of it.
            let (status, said) = (*status, std::mem::take(gathered));
            return self.bare_no(ctx, status, &said);
        }
        if ctx.answer.begun && ctx.has_ended() {
            // The stream was whole; only its framing was not.
            self.succeed(ctx);
            error.set_retry(false);
            return error;
        }
        let stale = stale && ctx.attempts.stale < retry::MAX_STALE;
        if stale && !late && !ctx.answer.begun {
            return self.connection_was_stale(ctx, error);
        }
        if stale && !late && ctx.is_resumed() {
            ctx.attempts.stale += 1;
            ctx.attempts.made -= 1;
            self.end_attempt(ctx, Cause::StaleConnection.as_str());
            ctx.attempts.again = true;
            error.set_retry(true);
            return error;
        }
        let class = class_of_break(ctx, &kind, late);
        self.broken(ctx, error, &kind, class)
    }

    /// A connection that broke for the upstream's fault, or for a deadline.
    fn broken(
        &self,
        ctx: &mut Context,
        mut error: Box<Error>,
        kind: &ErrorType,
        class: FailureClass,
    ) -> Box<Error> {
        let clock = self.which_clock(ctx, class);
        if clock == Some(Late::Total) {
            return self.out_of_its_time(ctx, error, class);
        }
        let why = clock.map_or(kind.as_str(), Late::as_str).to_owned();
        let refusal = refusal_for(class, None).detail(why);
        if ctx.answer.begun {
            let again = self.resume(ctx, class);
            if !again {
                self.failed_after_content(ctx, class);
                ctx.refusal.get_or_insert(refusal);
            }
            error.set_retry(again);
            return error;
        }
        self.attempt_failed(ctx, class.into(), refusal, error)
    }

    /// The request's own time is over: that is nobody's fault.
    fn out_of_its_time(
        &self,
        ctx: &mut Context,
        mut error: Box<Error>,
        class: FailureClass,
    ) -> Box<Error> {
        self.end_attempt(ctx, class.as_str());
        if !ctx.answer.begun {
            ctx.forget_answer();
        }
        ctx.refusal = Some(out_of_time());
        ctx.attempts.again = false;
        error.set_retry(false);
        error
    }

    /// Which deadline of ours was over, if one was.
    fn which_clock(&self, ctx: &Context, class: FailureClass) -> Option<Late> {
        let attempt = ctx.attempts.current.as_ref();
        let attempt = attempt.filter(|_| class == FailureClass::Deadline)?;
        let clock = attempt
            .clocks
            .is_late(&attempt.progress, Instant::now() + ROUNDING)?;
        let labels = [attempt.lane.pool.settings.id.as_str(), clock.as_str()];
        self.metrics.deadlines.with_label_values(&labels).inc();
        Some(clock)
    }

    /// An answer that failed before any of its content went out; the error's flag says whether
    /// there will be another attempt.
    pub(super) fn fail_in_answer(&self, ctx: &mut Context, class: FailureClass) -> Box<Error> {
        let error = Error::explain(ErrorType::ConnectionClosed, class.as_str()).into_up();
        let refusal = refusal_for(class, None).detail(class.as_str());
        self.attempt_failed(ctx, class.into(), refusal, error)
    }

    /// The attempt failed when there was no way back.
    pub(super) fn failed_after_content(&self, ctx: &mut Context, failure: impl Into<Failure>) {
        let (failure, now) = (failure.into(), Instant::now());
        if let Some(attempt) = &mut ctx.attempts.current {
            attempt.chosen.report(outcome(attempt, failure, now), now);
        }
        self.end_attempt(ctx, failure.class.as_str());
        ctx.attempts.again = false;
    }

    /// Nobody was asked, so nobody is to blame: another connection, to whomever.
    fn connection_was_stale(&self, ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
        let again = self.go_on(ctx, Cause::StaleConnection, None, Instant::now());
        self.end_attempt(ctx, Cause::StaleConnection.as_str());
        ctx.refusal = Some(unreachable());
        ctx.attempts.again = again;
        error.set_retry(again);
        error
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
            failure.class.as_str(),
            error.etype().as_str()
        );
        if Distrust::behind(&error) == Some(Distrust::WrongPin) {
            self.tell_wrong_pin(ctx);
        }
        if ctx.answer.begun {
            // It was to go on with a stream.
            let again = self.resume(ctx, failure);
            if !again {
                self.failed_after_content(ctx, failure);
                ctx.refusal = Some(refusal);
            }
            error.set_retry(again);
            return error;
        }
        let now = Instant::now();
        if let Some(attempt) = &mut ctx.attempts.current {
            attempt.chosen.report(outcome(attempt, failure, now), now);
        }
        let cause = Cause::Class(failure.class);
        let again = self.go_on(ctx, cause, failure.retry_after, now);
        self.end_attempt(ctx, failure.class.as_str());
        ctx.attempts.failed = Some(failure.class);
        ctx.forget_answer();
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

    /// Gives the account's and the endpoint's places back and counts how the attempt ended.
    pub(super) fn end_attempt(&self, ctx: &mut Context, outcome: &'static str) {
        let Some(attempt) = ctx.attempts.current.take() else {
            return;
        };
        ctx.upstream_at_work(false);
        if let Some(behind) = &ctx.behind {
            behind.wait_for_nobody();
        }
        let names = attempt.names();
        self.metrics
            .attempts
            .with_label_values(&[names.upstream.as_str(), names.account.as_str(), outcome])
            .inc();
        ctx.attempts.left_at_work = ctx.client_gone && attempt.sent;
        ctx.attempts.ended(names, outcome, attempt.began.elapsed());
    }
}

fn class_of_break(ctx: &Context, kind: &ErrorType, late: bool) -> FailureClass {
    let answered = ctx.attempts.current.as_ref().is_some_and(|it| it.answered);
    match kind {
        _ if late => FailureClass::Deadline,
        ErrorType::Custom(DEADLINE) => FailureClass::Deadline,
        ErrorType::Custom(MISFIT) => FailureClass::Garbage,
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => FailureClass::Deadline,
        ErrorType::InvalidHTTPHeader => FailureClass::Garbage,
        ErrorType::TLSHandshakeFailure => FailureClass::Tls,
        _ if answered => FailureClass::Cut,
        _ => FailureClass::Reset,
    }
}

fn outcome(attempt: &Attempt, failure: Failure, now: Instant) -> Outcome {
    if attempt.failed_at_address_alone(failure.class, now) {
        return Outcome::NotReached;
    }
    Outcome::Failed {
        class: failure.class,
        status: failure.status,
        retry_after: failure.retry_after,
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

/// What a tenant is told about a failure that is not the request's own.
fn refusal_for(class: FailureClass, retry_after: Option<Duration>) -> Refusal {
    let wait = retry_after
        .unwrap_or(TROUBLE_WAIT)
        .min(Duration::from_secs(120));
    let refusal = match class {
        FailureClass::Connect | FailureClass::Tls => unreachable(),
        FailureClass::RateLimited => Refusal::new(
            Code::UpstreamRateLimited,
            "The upstream is at its limit of concurrent requests; try again shortly.",
        ),
        FailureClass::AccountRefused => Refusal::new(
            Code::UpstreamUnavailable,
            "The gateway's upstream account cannot be used at the moment.",
        ),
        FailureClass::Unavailable | FailureClass::NoResources => Refusal::new(
            Code::UpstreamUnavailable,
            "The upstream is overloaded; try again shortly.",
        ),
        FailureClass::GatewayTimeout | FailureClass::Deadline => Refusal::new(
            Code::UpstreamTimeout,
            "The upstream did not answer in time.",
        ),
        FailureClass::Garbage => {
            Refusal::new(Code::UpstreamError, "The upstream's answer made no sense.")
        }
        FailureClass::Reset | FailureClass::Cut => {
            Refusal::new(Code::UpstreamError, "The upstream broke the connection.")
        }
        FailureClass::ServerError | FailureClass::BadGateway | FailureClass::ErrorInAnswer => {
            Refusal::new(
                Code::UpstreamError,
                "The upstream failed to answer this request.",
            )
        }
    };
    refusal.retry_after(wait)
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
    use http::StatusCode;

    use super::*;

    #[test]
    fn an_accounts_trouble_is_ours_and_a_bad_request_is_the_tenants() {
        let refusal = |status| retry::class_of_status(status).map(|class| refusal_for(class, None));
        for status in [401, 402, 403] {
            let refusal = refusal(status).unwrap();
            assert_eq!(refusal.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        for status in [400, 404, 405, 413, 415, 422] {
            assert!(refusal(status).is_none());
        }
        for status in [302, 500] {
            assert_eq!(refusal(status).unwrap().status(), StatusCode::BAD_GATEWAY);
        }
    }

    #[test]
    fn a_long_wait_is_capped_where_sdks_would_give_up() {
        let wait = Some(Duration::from_secs(9_999));
        let refusal = refusal_for(FailureClass::RateLimited, wait);
        assert_eq!(refusal.retry_after_seconds(), Some(120));
    }
}
