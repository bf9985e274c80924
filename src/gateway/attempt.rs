//! One try at an upstream: choosing it, reaching it, asking it, and judging how it answers before
//! the client sees anything.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, header};
use log::debug;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;

use super::Gateway;
use super::intake::refit;
use crate::context::{Attempt, Context, Outbound, Stage};
use crate::request::forward::{self, Length, Outgoing};
use crate::request::refusal::{Code, Refusal};
use crate::request::surface::{FileCall, Surface};
use crate::upstream::account::pause_after;
use crate::upstream::pool::NoChoice;
use crate::upstream::probe;
use crate::upstream::retry::{self, Choice, Failure};

/// What a client is asked to wait when every account is at its ceiling.
const FULL_WAIT: Duration = Duration::from_secs(1);
/// What it is asked to wait when an upstream is in trouble.
const TROUBLE_WAIT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Holds an account and an endpoint and names the address to connect to.
    pub(super) fn choose(&self, ctx: &mut Context) -> Result<Box<HttpPeer>> {
        let now = Instant::now();
        let lanes = ctx
            .routed()
            .map(|routed| routed.lanes.clone())
            .unwrap_or_default();
        let mut full = false;
        while let Some(lane) = lanes.get(ctx.attempts.lane) {
            let chosen = match lane.choose(&ctx.attempts.tried, now) {
                Ok(chosen) => chosen,
                Err(reason) => {
                    full |= reason == NoChoice::Full;
                    ctx.attempts.next_lane();
                    continue;
                }
            };
            let slot = lane.pool.endpoints.get(chosen.endpoint);
            let Some((slot, address)) =
                slot.and_then(|slot| Some((slot, slot.state.next_address()?)))
            else {
                ctx.attempts.tried.endpoints.push(chosen.endpoint);
                continue;
            };
            let peer = slot.template.at(address);
            if ctx.attempts.made == 0 {
                let ready = ctx.routed().map_or(ctx.started, |routed| routed.ready);
                self.metrics
                    .own_work("admit", now.saturating_duration_since(ready));
            }
            ctx.attempts.made += 1;
            ctx.attempts.current = Some(Attempt {
                chosen,
                lane: lane.clone(),
                began: now,
                sent: false,
            });
            return Ok(Box::new(peer));
        }
        // A failure of an earlier attempt says more than "nothing is left".
        ctx.refusal
            .get_or_insert_with(|| if full { at_ceiling() } else { unreachable() });
        Err(refused(ctx))
    }

    pub(super) fn not_connected(&self, ctx: &mut Context, error: Box<Error>) -> Box<Error> {
        let refusal = unreachable().detail(format!("no connection: {}", error.etype().as_str()));
        self.attempt_failed(ctx, Failure::Connect, refusal, error)
    }

    /// TLS must be as new as configured before the credential goes out.
    pub(super) fn check_connection(
        &self,
        ctx: &mut Context,
        digest: Option<&Digest>,
    ) -> Result<()> {
        let slot = ctx
            .attempts
            .current
            .as_ref()
            .and_then(|attempt| attempt.lane.pool.endpoints.get(attempt.chosen.endpoint));
        if slot.is_none_or(|slot| slot.template.check_tls(digest)) {
            return Ok(());
        }
        Error::e_explain(
            ErrorType::TLSHandshakeFailure,
            "the upstream's TLS version is older than allowed",
        )
        .map_err(Error::into_up)
    }

    /// The head that goes upstream.
    pub(super) fn build_request(
        &self,
        session: &Session,
        head: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let (Some(attempt), Stage::Routed(routed)) = (&mut ctx.attempts.current, &mut ctx.stage)
        else {
            return Error::e_explain(ErrorType::InternalError, "an attempt without a route");
        };
        let pool = &attempt.lane.pool;
        let endpoint = pool.endpoints.get(attempt.chosen.endpoint);
        let endpoint = endpoint.ok_or_else(|| {
            Error::explain(ErrorType::InternalError, "an attempt without an endpoint")
        })?;
        let account = pool.accounts.get(attempt.chosen.account);
        let lane_index = ctx.attempts.lane;
        let (length, content_type) = match &mut routed.body {
            Outbound::None => (Length::None, None),
            Outbound::Through { length, .. } => {
                (length.map_or(Length::Unknown, Length::Known), None)
            }
            Outbound::Whole { bytes, lane, .. } => {
                if *lane != lane_index {
                    *bytes = refit(bytes, &attempt.lane);
                    *lane = lane_index;
                }
                (
                    Length::Known(bytes.len() as u64),
                    Some(HeaderValue::from_static("application/json")),
                )
            }
        };
        let path = format!(
            "{}{}",
            endpoint.settings.base_path,
            routed.surface.upstream_path(pool.settings.dialect)
        );
        let credential = account
            .and_then(|account| account.credential.as_ref())
            .map(|(name, value)| (name, value));
        let outgoing = Outgoing {
            method: method(&routed.surface),
            path: &path,
            authority: &endpoint.authority,
            credential,
            length,
            content_type,
            request_id: &ctx.request_id,
        };
        *head = forward::request_head(head.version, &session.req_header().headers, &outgoing)?;
        attempt.sent = true;
        Ok(())
    }

    /// Puts the whole body in the place of what Pingora replays, or counts what passes through.
    pub(super) fn put_body(&self, body: &mut Option<Bytes>, ctx: &mut Context) -> Result<()> {
        let Stage::Routed(routed) = &mut ctx.stage else {
            return Ok(());
        };
        match &mut routed.body {
            Outbound::None => {}
            Outbound::Whole { bytes, .. } => *body = Some(bytes.clone()),
            Outbound::Through { left, .. } => {
                let piece = body.as_ref().map_or(0, Bytes::len) as u64;
                let Some(rest) = left.checked_sub(piece) else {
                    ctx.refusal = Some(Refusal::closing(
                        Code::BodyTooLarge,
                        "The file is larger than an upload may be.",
                    ));
                    return Err(refused(ctx));
                };
                *left = rest;
            }
        }
        Ok(())
    }

    /// Good, again elsewhere, or a no: decided from the upstream's status alone.
    pub(super) fn judge_head(&self, head: &ResponseHeader, ctx: &mut Context) -> Result<()> {
        if head.status == StatusCode::CONTINUE {
            return Ok(());
        }
        if forward::is_unasked(head.status) {
            let error = forward::not_trusted("an informational answer nobody asked for");
            let refusal = Refusal::new(Code::UpstreamError, "The upstream's answer made no sense.");
            return Err(self.attempt_failed(ctx, Failure::Garbage, refusal, error));
        }
        ctx.answer.upstream_trace = head
            .headers
            .get(forward::UPSTREAM_TRACE)
            .and_then(|value| value.to_str().ok())
            .map(|text| text.chars().take(64).collect());
        let status = head.status.as_u16();
        if head.status.is_success() {
            if let Some(attempt) = &ctx.attempts.current {
                attempt
                    .account_slot()
                    .inspect(|account| account.rest.wake());
            }
            return Ok(());
        }
        let retry_after = retry_after(head);
        if let (Some(pause), Some(attempt)) =
            (pause_after(status, retry_after), &ctx.attempts.current)
        {
            attempt
                .account_slot()
                .inspect(|account| account.rest.rest(Instant::now(), pause));
        }
        let Some(refusal) = refusal_for(status, retry_after) else {
            // The request's own fault: the upstream's words help, see gateway/answer.rs.
            return Ok(());
        };
        let error =
            Error::explain(ErrorType::HTTPStatus(status), "an upstream's refusal").into_up();
        Err(self.attempt_failed(ctx, Failure::Status(status), refusal, error))
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
        let stale = reused && is_stale(&error);
        error.retry.decide_reuse(false);
        let begun = session
            .response_written()
            .is_some_and(|head| !head.status.is_informational());
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
        let (failure, refusal) = match error.etype() {
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
            ctx.refusal.get_or_insert(refusal.detail(error.to_string()));
            error.set_retry(false);
            return error;
        }
        self.attempt_failed(ctx, failure, refusal.detail(error.to_string()), error)
    }

    /// Ends the attempt and decides, into the error's flag, whether there will be another.
    fn attempt_failed(
        &self,
        ctx: &mut Context,
        failure: Failure,
        refusal: Refusal,
        mut error: Box<Error>,
    ) -> Box<Error> {
        debug!(
            "Attempt failed. request_id={} failure={} cause=\"{error}\"",
            ctx.request_id(),
            failure.as_str()
        );
        let again = self.may_go_on(ctx, failure);
        if let (Some(avoid), Some(attempt)) = (
            retry::next(failure).filter(|_| again),
            &ctx.attempts.current,
        ) {
            let pool = &attempt.lane.pool;
            let addresses = attempt
                .endpoint_slot()
                .map_or(0, |slot| slot.state.address_count());
            let choice = Choice {
                accounts: pool.accounts.len(),
                endpoints: pool.endpoints.len(),
                addresses,
            };
            retry::set_aside(&mut ctx.attempts.tried, avoid, &attempt.chosen, choice);
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

    fn may_go_on(&self, ctx: &Context, failure: Failure) -> bool {
        let Some(routed) = ctx.routed() else {
            return false;
        };
        let allowed = ctx.snapshot.settings.retry.attempts;
        // A stale connection cost nothing, so it is not counted; a pool can hold several.
        let within = ctx.attempts.made < allowed
            || (failure == Failure::StaleConnection && ctx.attempts.made < allowed + 2);
        let sent = ctx
            .attempts
            .current
            .as_ref()
            .is_some_and(|attempt| attempt.sent);
        let repeatable = !matches!(routed.body, Outbound::Through { .. }) || !sent;
        within && repeatable && retry::next(failure).is_some()
    }

    /// Gives the account's and the endpoint's places back and counts how the attempt ended.
    pub(super) fn end_attempt(&self, ctx: &mut Context, outcome: &str) {
        if let Some(attempt) = ctx.attempts.current.take() {
            let account = attempt
                .account_slot()
                .map_or("", |account| account.id.as_str());
            let upstream = attempt.lane.pool.settings.id.as_str();
            self.metrics
                .attempts
                .with_label_values(&[upstream, account, outcome])
                .inc();
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

fn unreachable() -> Refusal {
    Refusal::new(
        Code::UpstreamUnavailable,
        "No upstream can be reached at the moment; try again shortly.",
    )
    .retry_after(TROUBLE_WAIT)
}

fn at_ceiling() -> Refusal {
    Refusal::new(
        Code::Overloaded,
        "All upstream accounts are busy; try again in a moment.",
    )
    .retry_after(FULL_WAIT)
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
        504 => Refusal::new(
            Code::UpstreamTimeout,
            "The upstream did not answer in time.",
        ),
        400..=499 => return None,
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

/// Whole seconds only; the date form of RFC 9110 §10.2.3 was never seen from these upstreams.
fn retry_after(head: &ResponseHeader) -> Option<Duration> {
    let text = head.headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The other side had closed a pooled connection: nothing of the request was taken.
fn is_stale(error: &Error) -> bool {
    matches!(
        error.etype(),
        ErrorType::ConnectionClosed
            | ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::H2Error
    )
}

fn method(surface: &Surface) -> Method {
    match surface {
        Surface::Files(FileCall::Delete { .. }) => Method::DELETE,
        Surface::Files(
            FileCall::List { .. } | FileCall::Read { .. } | FileCall::Content { .. },
        )
        | Surface::Models { .. }
        | Surface::Balance => Method::GET,
        _ => Method::POST,
    }
}

/// HTTP/2 or not, for the log.
pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "h2",
        Version::HTTP_10 => "http/1.0",
        _ => "http/1.1",
    }
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
