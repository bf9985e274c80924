//! The last word on a request that failed: an honest status while nothing was sent, a configured
//! answer in place of a model's, or the truth inside the stream, which then has no proper end.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use jiff::Timestamp;
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorSource, Result};
use pingora_proxy::{FailToProxy, Session};

use super::Gateway;
use super::answer::head_is_out;
use super::answer::join;
use crate::context::{Context, Watch};
use crate::request::degraded::{self, Asked};
use crate::request::forward;
use crate::request::refusal::{Code, Refusal};

/// How long the last word before a reset may take to get out.
const LAST_WORD: Duration = Duration::from_millis(20);

impl Gateway {
    /// The last word on a request that failed: a refusal if nothing was sent yet, the truth inside
    /// the stream if something was.
    pub(super) async fn give_up(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Context,
    ) -> FailToProxy {
        self.end_attempt(ctx, "failed");
        ctx.put_client_back(session);
        if *error.esource() == ErrorSource::Downstream || ctx.client_left() {
            ctx.client_gone = true;
            return closed(0);
        }
        if ctx.answer.begun && ctx.answer.complete {
            // The upstream broke off after the stream's own end.
            let held = self.last_written(ctx).ok().flatten();
            let _ = session.write_response_body(held, true).await;
            let_out(&session.downstream_session).await;
            return closed(ctx.answer.status);
        }
        if ctx.answer.begun && !ctx.answer.interrupted && !head_is_out(session) {
            // All of it came with the break, and none of it was passed on.
            ctx.attempts.broken.clear();
            ctx.forget_answer();
            ctx.refusal.get_or_insert_with(|| {
                Refusal::new(Code::UpstreamError, "The upstream broke the connection.")
            });
        }
        if ctx.answer.begun {
            if ctx.answer.interrupted {
                // The stream says so itself, and was broken off after it.
                let_out(&session.downstream_session).await;
            } else if let Some(event) = ctx.tell_interruption() {
                // Best effort; the connection is closed without a proper end either way.
                let _ = session.write_response_body(Some(event), false).await;
                let_out(&session.downstream_session).await;
            }
            return closed(0);
        }
        // Keep-alives may have let the head out since this attempt's head came.
        ctx.answer.opened |= head_is_out(session);
        match self.degrade(session, ctx).await {
            Ok(false) => {}
            Ok(true) => return closed(StatusCode::OK.as_u16()),
            Err(_) => return closed(0),
        }
        let refusal = ctx.refusal.take().unwrap_or_else(|| {
            Refusal::new(Code::Internal, "The gateway failed to handle this request.")
                .detail(error.etype().as_str())
        });
        if ctx.answer.opened {
            tell_under_head(session, ctx, refusal).await;
            return closed(0);
        }
        // After a failed attempt Pingora closes, whatever is returned here: the head must say so.
        let refusal = Refusal {
            close: true,
            ..refusal
        };
        let status = refusal.status().as_u16();
        let told = self.refuse(session, ctx, refusal).await.is_ok();
        closed(if told { status } else { 0 })
    }

    /// Answers with what is configured for the case that nobody who serves the model is left; false
    /// if nothing is, or if the failure is not the upstreams'.
    ///
    /// # Errors
    /// If the client cannot be written to.
    async fn degrade(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        let theirs = |refusal: &Refusal| is_the_upstreams(refusal.code);
        if !ctx.refusal.as_ref().is_some_and(theirs) {
            return Ok(false);
        }
        let Some(routed) = ctx.routed() else {
            return Ok(false);
        };
        let Some((route, text)) = routed
            .route
            .as_ref()
            .and_then(|route| Some((route, route.degraded.as_ref()?)))
        else {
            return Ok(false);
        };
        let asked = Asked {
            surface: &routed.surface,
            model: &route.model,
            request_id: ctx.request_id(),
            stream: routed.stream,
            include_usage: routed.stream && !routed.strip_usage,
            now: u64::try_from(Timestamp::now().as_second()).unwrap_or(0),
        };
        let Some(answer) = degraded::answer(text, &asked) else {
            return Ok(false);
        };
        let labels = [routed.identity.tenant.id.as_str(), route.model.as_str()];
        self.metrics.degraded.with_label_values(&labels).inc();
        if !ctx.answer.opened {
            let length = answer.body.len();
            let (family, id) = (ctx.family, &ctx.request_id);
            let mut head = forward::own_head(StatusCode::OK, family, id, length)?;
            head.insert_header(header::CONTENT_TYPE, answer.content_type)?;
            head.insert_header(degraded::HEADER, degraded::STATIC)?;
            if let Some(admitted) = &ctx.admitted {
                admitted.shown.put(&mut head, family, Timestamp::now())?;
            }
            // After a failed attempt Pingora closes, and the head must say so.
            session.set_keepalive(None);
            session.write_response_header(Box::new(head), false).await?;
        }
        ctx.answer.status = StatusCode::OK.as_u16();
        ctx.answer.degraded = true;
        session.write_response_body(Some(answer.body), true).await?;
        ctx.answer.complete = true;
        Ok(true)
    }
}

/// Nobody who serves the model could be asked, or answered.
fn is_the_upstreams(code: Code) -> bool {
    matches!(
        code,
        Code::UpstreamUnavailable
            | Code::UpstreamError
            | Code::UpstreamTimeout
            | Code::UpstreamRateLimited
            | Code::Overloaded
    )
}

impl Context {
    /// Has a stream come to its proper end, whatever its framing says?
    pub(super) fn has_ended(&self) -> bool {
        matches!(&self.answer.watch, Watch::Stream(scanner) if scanner.seen().ended)
    }

    /// Marks the answer as interrupted; the event that says so, if this is a stream to which
    /// nobody has said it yet.
    pub(super) fn tell_interruption(&mut self) -> Option<Bytes> {
        self.answer.interrupted = true;
        let resumption = self.answer.resumption.as_mut();
        let owed = resumption.map(|it| std::mem::take(&mut it.owed));
        let owed = owed.unwrap_or_default();
        let Watch::Stream(scanner) = &mut self.answer.watch else {
            return None;
        };
        // Half an event does not go out before ours.
        drop(scanner.finish());
        let said = scanner.seen().error.clone();
        let refusal = Refusal::new(
            Code::StreamInterrupted,
            "The answer broke off; what came before this is incomplete.",
        );
        // An event that was cut in the middle must not swallow ours.
        let event = format!("\n\n{}", refusal.event(self.family, self.request_id()));
        let told = said.as_ref().map(|error| {
            format!(
                "upstream said: kind={} code={}",
                word(&error.kind),
                word(&error.code)
            )
        });
        let detail = told.or_else(|| self.refusal.take().and_then(|earlier| earlier.detail));
        self.refusal = Some(Refusal { detail, ..refusal });
        Some(join(owed, Some(Bytes::from(event))))
    }
}

/// The client was told so much, or nothing (0); its connection is not used again.
fn closed(status: u16) -> FailToProxy {
    FailToProxy {
        error_code: status,
        can_reuse_downstream: false,
    }
}

/// The client was told "200, in a moment": the truth follows as an event, and no end.
async fn tell_under_head(session: &mut Session, ctx: &mut Context, refusal: Refusal) {
    ctx.answer.status = StatusCode::OK.as_u16();
    let event = refusal.event(ctx.family, ctx.request_id());
    ctx.refusal = Some(refusal);
    // Where JSON was promised there is no place for an error but the broken connection.
    if ctx.is_streamed() {
        let event = Some(Bytes::from(event));
        let _ = session.write_response_body(event, false).await;
    }
    let_out(&session.downstream_session).await;
}

/// Before a stream is reset: an HTTP/2 reset throws away what is still queued, so the connection's
/// task gets a moment to send the last word.
async fn let_out(client: &ServerSession) {
    if matches!(client, ServerSession::H2(_)) {
        tokio::time::sleep(LAST_WORD).await;
    }
}

/// A word of an upstream's for the log, if it looks like one of an API's: what else it says may be
/// our key.
fn word(said: &Option<Box<str>>) -> &str {
    let plain = |said: &&str| {
        said.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    said.as_deref().filter(plain).unwrap_or("-")
}
