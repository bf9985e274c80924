//! The end of a request: usage settled, metrics counted, one line written. Runs once for every
//! request, however it ended.

use std::time::{Duration, Instant};

use http::Version;
use pingora::{Error, ErrorSource};
use pingora_proxy::Session;

use super::Gateway;
use super::charge::Charge;
use crate::context::{Context, Watch};
use crate::telemetry::access_log::{Ending, Line, TARGET, Tried, millis};

impl Gateway {
    pub(super) fn record(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        let now = Instant::now();
        ctx.put_client_back(session);
        if error.is_some_and(|error| *error.esource() == ErrorSource::Downstream) {
            ctx.client_gone = true;
        }
        self.end_attempt(
            ctx,
            if ctx.answer.complete {
                "ok"
            } else {
                "client_gone"
            },
        );
        // Whatever became of the answer, nobody was there to be told.
        ctx.client_gone |= ctx.client_left();
        let ending = ending(ctx, error.is_some());
        if let Some(connection) = &ctx.connection {
            connection.end_request(now, ending == Ending::ClientGone && ctx.answer.status == 0);
        }
        let charge = self.charge(ctx, session.body_bytes_sent() as u64);
        self.count(ctx, ending, now);
        if ctx.snapshot.settings.logging.access {
            self.line(session, ctx, ending, now, charge.as_ref());
        }
    }

    fn count(&self, ctx: &Context, ending: Ending, now: Instant) {
        let metrics = &self.metrics;
        let surface = ctx.surface().map_or("none", |surface| surface.name());
        let model = ctx.model().unwrap_or_default();
        let tenant = ctx
            .identity()
            .map_or("", |identity| identity.tenant.id.as_str());
        let upstream = ctx
            .attempts
            .last_names()
            .map_or("", |names| names.upstream.as_str());
        let mut buffer = [0u8; 3];
        metrics
            .requests
            .with_label_values(&[
                tenant,
                model,
                surface,
                status_text(ctx.answer.status, &mut buffer),
            ])
            .inc();
        if ctx.attempts.queued > Duration::ZERO {
            let waited = ctx.attempts.queued.as_secs_f64();
            metrics
                .queue_wait
                .with_label_values(&[model])
                .observe(waited);
        }
        let duration = now.saturating_duration_since(ctx.started).as_secs_f64();
        metrics
            .request_duration
            .with_label_values(&[surface, model])
            .observe(duration);
        let told = ending != Ending::ClientGone && !ctx.answer.degraded;
        if let (Some(refusal), true) = (&ctx.refusal, told) {
            metrics
                .refusals
                .with_label_values(&[surface, refusal.code.as_str()])
                .inc();
        }
        match ending {
            Ending::ClientGone => metrics
                .client_disconnects
                .with_label_values(&[surface])
                .inc(),
            Ending::Interrupted => metrics
                .streams_interrupted
                .with_label_values(&[upstream, "cut"])
                .inc(),
            Ending::Complete | Ending::Refused => {}
        }
        if let Some(first) = ctx.answer.first_content {
            let waited = first.saturating_duration_since(ctx.started).as_secs_f64();
            metrics
                .time_to_first_token
                .with_label_values(&[model, upstream])
                .observe(waited);
        }
    }

    fn line(
        &self,
        session: &Session,
        ctx: &Context,
        ending: Ending,
        now: Instant,
        charge: Option<&Charge>,
    ) {
        if !log::log_enabled!(target: TARGET, log::Level::Info) {
            return;
        }
        let request = session.req_header();
        let identity = ctx.identity();
        let last = ctx.attempts.last_names();
        let since_start = |at: Instant| millis(at.saturating_duration_since(ctx.started));
        let line = Line {
            ts: jiff::Timestamp::now().to_string(),
            level: "info",
            target: TARGET,
            request_id: ctx.request_id(),
            client: ctx
                .client
                .or_else(|| Some(ctx.connection.as_ref()?.peer.ip())),
            authentication: identity.map(|identity| identity.kind.as_str()),
            tenant: identity.map(|identity| identity.tenant.id.as_str()),
            credential: identity.map(|identity| &*identity.credential_id),
            method: known_method(&request.method),
            surface: ctx.surface().map_or("none", |surface| surface.name()),
            model: ctx.model(),
            upstream: last.map(|names| names.upstream.as_str()),
            account: last.map(|names| names.account.as_str()),
            endpoint: last.map(|names| names.endpoint),
            status: ctx.answer.status,
            ending,
            code: ctx.refusal.as_ref().map(|refusal| refusal.code.as_str()),
            detail: ctx
                .refusal
                .as_ref()
                .and_then(|refusal| refusal.detail.as_deref()),
            attempts: ctx.attempts.made,
            tries: tries(ctx),
            degraded: ctx.answer.degraded,
            resumed: ctx.answer.resumption.as_ref().map_or(0, |it| it.made),
            stream: ctx.routed().is_some_and(|routed| routed.stream),
            duration_ms: since_start(now),
            queued_ms: (ctx.attempts.queued > Duration::ZERO).then(|| millis(ctx.attempts.queued)),
            time_to_first_token_ms: ctx.answer.first_content.map(since_start),
            request_bytes: ctx.body_bytes.unwrap_or_else(|| session.body_bytes_read()),
            response_bytes: session.body_bytes_sent(),
            prompt_tokens: None,
            cached_tokens: None,
            completion_tokens: None,
            reasoning_tokens: None,
            usage_estimated: charge.is_some_and(|charge| charge.estimated),
            cost: charge
                .and_then(|charge| charge.cost)
                .map(|cost| cost.to_string()),
            finish_reason: finish_reason(ctx),
            upstream_trace: ctx.answer.upstream_trace.as_deref(),
            protocol: protocol(ctx.protocol),
        };
        line.with_usage(charge.map(|charge| charge.usage)).write();
    }
}

/// Each attempt in its turn, where there was more than one.
fn tries(ctx: &Context) -> Vec<Tried<'_>> {
    let (earlier, last) = (&ctx.attempts.earlier, &ctx.attempts.last);
    if earlier.is_empty() {
        return Vec::new();
    }
    let tries = earlier.iter().chain(last);
    let tried = tries.map(|it| {
        let names = it.place.names();
        Tried {
            upstream: names.upstream.as_str(),
            account: names.account.as_str(),
            endpoint: names.endpoint,
            model: names.model,
            outcome: it.outcome,
            ms: millis(it.took),
        }
    });
    tried.collect()
}

fn ending(ctx: &Context, failed: bool) -> Ending {
    if ctx.client_left() {
        Ending::ClientGone
    } else if ctx.answer.degraded && ctx.answer.complete {
        Ending::Complete
    } else if ctx.answer.interrupted {
        Ending::Interrupted
    } else if ctx.client_gone && ctx.answer.status == 0 {
        // What an earlier attempt left in the context was never told to anybody.
        Ending::ClientGone
    } else if ctx.refusal.is_some() {
        Ending::Refused
    } else if ctx.client_gone {
        Ending::ClientGone
    } else if failed && !ctx.answer.complete {
        Ending::Interrupted
    } else {
        Ending::Complete
    }
}

fn finish_reason(ctx: &Context) -> Option<&'static str> {
    let reason = match &ctx.answer.watch {
        Watch::Stream(scanner) => scanner.seen().finish_reason,
        Watch::Whole(scanner) => scanner.seen().finish_reason,
        Watch::Nothing | Watch::Error { .. } => None,
    };
    reason.map(|reason| reason.as_str())
}

/// The status as a label, without an allocation.
fn status_text(status: u16, buffer: &mut [u8; 3]) -> &str {
    let [hundreds, tens, ones] = buffer;
    let digit = |number: u16| b'0' + u8::try_from(number % 10).unwrap_or(0);
    (*hundreds, *tens, *ones) = (digit(status / 100), digit(status / 10), digit(status));
    std::str::from_utf8(buffer).unwrap_or("000")
}

/// A method as a bounded text: what a client made up is not written down.
fn known_method(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "DELETE" => "DELETE",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// HTTP/2 or not, for the log.
fn protocol(version: Version) -> &'static str {
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
    fn a_status_becomes_three_digits() {
        let mut buffer = [0; 3];
        assert_eq!(status_text(0, &mut buffer), "000");
        assert_eq!(status_text(429, &mut buffer), "429");
    }
}
