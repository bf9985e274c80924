//! What goes back: the head built anew, each fragment watched on its way, and an honest word when
//! the answer does not come to its proper end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{StatusCode, Version, header};
use jiff::Timestamp;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::{FailToProxy, Session};

use super::Gateway;
use super::verdict::is_stream;
use crate::context::{Attempt, Context, Routed, Watch};
use crate::relay::answer::AnswerScanner;
use crate::relay::event::{FinishReason, Shape};
use crate::relay::sse::Scanner;
use crate::request::forward;
use crate::request::refusal::{Code, Refusal};
use crate::request::surface::Surface;

/// Stands where a key stood.
const HIDDEN: &str = "[key]";
/// An upstream's error body is read up to here; more is no error message.
const ERROR_BODY_LIMIT: usize = 64 * 1024;

/// How long the last word before a reset may take to get out.
const LAST_WORD: Duration = Duration::from_millis(20);

impl Gateway {
    /// The head for the tenant, and who is to watch the body.
    pub(super) fn build_answer(
        &self,
        session: &Session,
        head: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let status = match head.status.as_u16() {
            // Under a head that was sent before, an error is an event.
            _ if ctx.answer.opened => StatusCode::OK,
            status @ 400.. => client_fault(status).status(),
            _ => head.status,
        };
        if !ctx.client_left() {
            ctx.answer.status = status.as_u16();
        }
        ctx.answer.first_content = None;
        ctx.answer.last_piece = None;
        ctx.refusal = None;
        ctx.answer.watch = watch(head, ctx.routed());
        ctx.answer.gaps = match &ctx.answer.watch {
            Watch::Stream(_) => Some(self.metrics.gaps(ctx.model().unwrap_or_default())),
            _ => None,
        };
        let keep_length = matches!(ctx.answer.watch, Watch::Nothing | Watch::Whole(_));
        let mut answer = forward::answer_head(head, ctx.family, &ctx.request_id, keep_length)?;
        if session.req_header().version == Version::HTTP_10 {
            // HTTP/1.0 knows no chunks (RFC 9112 §7.1): the connection's end is the body's.
            answer.remove_header(&header::TRANSFER_ENCODING);
        }
        answer.set_status(status)?;
        if let Some(admitted) = &ctx.admitted {
            admitted
                .shown
                .put(&mut answer, ctx.family, Timestamp::now())?;
        }
        if matches!(ctx.answer.watch, Watch::Error { .. }) {
            answer.insert_header(header::CONTENT_TYPE, "application/json")?;
            answer.insert_header(forward::SHOULD_RETRY, "false")?;
        }
        *head = answer;
        Ok(())
    }

    /// Watches one fragment. What could go out goes out: the scanner hands back the same bytes but
    /// for an event of ours that it takes out.
    pub(super) fn relay(
        &self,
        session: &Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        let now = Instant::now();
        check_clocks(ctx, now)?;
        if session.response_written().is_some() {
            // There is no other attempt from here on: a long stream need not hold its question.
            ctx.let_go_of_body();
        }
        let piece = body.take().unwrap_or_default();
        if let Some(gaps) = &ctx.answer.gaps
            && !piece.is_empty()
            && let Some(last) = ctx.answer.last_piece.replace(now)
        {
            gaps.observe(now.saturating_duration_since(last).as_secs_f64());
        }
        let out = match &mut ctx.answer.watch {
            Watch::Nothing => piece,
            Watch::Whole(scanner) => {
                scanner.feed(&piece);
                piece
            }
            Watch::Stream(scanner) => {
                let out = scanner.feed(piece);
                if ctx.answer.first_content.is_none() && scanner.seen().first_content {
                    ctx.answer.first_content = Some(now);
                    if let Some(attempt) = &ctx.attempts.current {
                        attempt.tell_first_content(now);
                    }
                }
                out
            }
            Watch::Error { gathered, .. } => {
                let room = ERROR_BODY_LIMIT
                    .saturating_sub(gathered.len())
                    .min(piece.len());
                gathered.extend_from_slice(piece.get(..room).unwrap_or_default());
                Bytes::new()
            }
        };
        let out = if end { self.finish(out, ctx)? } else { out };
        *body = Some(out);
        Ok(())
    }

    /// The upstream says that this was all. Was it?
    fn finish(&self, out: Bytes, ctx: &mut Context) -> Result<Bytes> {
        let (out, proper) = match &mut ctx.answer.watch {
            Watch::Nothing => (out, true),
            Watch::Error { status, gathered } => {
                let attempt = ctx.attempts.current.as_ref();
                let refusal = upstream_error(*status, gathered, keys(attempt));
                let id = ctx.request_id.to_str().unwrap_or_default();
                let told = match ctx.answer.opened {
                    true => refusal.event(ctx.family, id),
                    false => refusal.body(ctx.family, id),
                };
                ctx.refusal = Some(refusal);
                (Bytes::from(told), true)
            }
            Watch::Whole(scanner) => {
                if !scanner.seen().complete {
                    return Error::e_explain(
                        ErrorType::ConnectionClosed,
                        "the answer ended in the middle of its JSON",
                    )
                    .map_err(Error::into_up);
                }
                (out, true)
            }
            Watch::Stream(scanner) => {
                let out = join(out, scanner.finish());
                (out, scanner.seen().ended)
            }
        };
        if proper {
            ctx.answer.complete = true;
            let outcome = match &ctx.answer.watch {
                Watch::Error { .. } => "client_error",
                _ if gave_up(&ctx.answer.watch) => "gave_up",
                _ => "ok",
            };
            self.end_attempt(ctx, outcome);
            return Ok(out);
        }
        self.end_attempt(ctx, "cut");
        let told = ctx.tell_interruption();
        Ok(join(out, told))
    }

    /// The last word on a request that failed: a refusal if nothing was sent yet, the truth inside
    /// the stream if something was.
    pub(super) async fn give_up(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Context,
    ) -> FailToProxy {
        self.end_attempt(ctx, "failed");
        let gone = FailToProxy {
            error_code: 0,
            can_reuse_downstream: false,
        };
        ctx.put_client_back(session);
        if *error.esource() == ErrorSource::Downstream || ctx.client_left() {
            ctx.client_gone = true;
            return gone;
        }
        if ctx.has_begun(session.response_written()) {
            if let Some(event) = ctx.tell_interruption() {
                // Best effort; the connection is closed without a proper end either way.
                let _ = session.write_response_body(Some(event), false).await;
                let_out(&session.downstream_session).await;
            }
            return gone;
        }
        let refusal = ctx.refusal.take().unwrap_or_else(|| {
            Refusal::new(Code::Internal, "The gateway failed to handle this request.")
                .detail(error.etype().as_str())
        });
        if ctx.answer.opened {
            // The client was told "200, in a moment": the truth follows as an event, and no end.
            ctx.answer.status = StatusCode::OK.as_u16();
            let event = refusal.event(ctx.family, ctx.request_id());
            ctx.refusal = Some(refusal);
            let event = Some(Bytes::from(event));
            let _ = session.write_response_body(event, false).await;
            let_out(&session.downstream_session).await;
            return gone;
        }
        // After a failed attempt Pingora closes, whatever is returned here: the head must say so.
        let refusal = Refusal {
            close: true,
            ..refusal
        };
        let status = refusal.status().as_u16();
        let told = self.refuse(session, ctx, refusal).await.is_ok();
        FailToProxy {
            error_code: if told { status } else { 0 },
            can_reuse_downstream: false,
        }
    }
}

impl Context {
    /// Is an upstream's answer on its way to the client? What was `written` may be an interim head,
    /// or our own while the request waited.
    pub(super) fn has_begun(&self, written: Option<&ResponseHeader>) -> bool {
        let only_ours = self.answer.opened && self.answer.status == 0;
        !only_ours && written.is_some_and(|head| !head.status.is_informational())
    }

    /// Marks the answer as interrupted; the event that says so, if this is a stream to which
    /// nobody has said it yet.
    fn tell_interruption(&mut self) -> Option<Bytes> {
        self.answer.interrupted = true;
        let Watch::Stream(scanner) = &mut self.answer.watch else {
            return None;
        };
        let held = scanner.finish();
        let said = scanner.seen().error.clone();
        let refusal = Refusal::new(
            Code::StreamInterrupted,
            "The answer broke off; what came before this is incomplete.",
        );
        // An event that was cut in the middle must not swallow ours.
        let event = format!("\n\n{}", refusal.event(self.family, self.request_id()));
        let told = said
            .as_ref()
            .map(|error| format!("upstream said: kind={:?} code={:?}", error.kind, error.code));
        let detail = told.or_else(|| self.refusal.take().and_then(|earlier| earlier.detail));
        self.refusal = Some(Refusal { detail, ..refusal });
        if said.is_some() {
            // The upstream has told the client itself.
            return held;
        }
        Some(join(held.unwrap_or_default(), Some(Bytes::from(event))))
    }
}

/// Deadlines that only show when something arrives; keep-alives see to it that something does.
/// Silence is bounded by the connection's read timeout.
fn check_clocks(ctx: &Context, now: Instant) -> Result<()> {
    let Some(attempt) = &ctx.attempts.current else {
        return Ok(());
    };
    let timeouts = &attempt.lane.pool.settings.timeouts;
    let spent = now.saturating_duration_since(attempt.began);
    let waiting =
        matches!(ctx.answer.watch, Watch::Stream(_)) && ctx.answer.first_content.is_none();
    let late = match (waiting, spent) {
        (_, spent) if spent > timeouts.total => "the whole answer took too long",
        (true, spent) if spent > timeouts.first_content => "the first content took too long",
        _ => return Ok(()),
    };
    Error::e_explain(ErrorType::ReadTimedout, late).map_err(Error::into_up)
}

/// A proper end that is a failure all the same (`finish_reason`, create-chat-completion page).
fn gave_up(watch: &Watch) -> bool {
    let reason = match watch {
        Watch::Stream(scanner) => scanner.seen().finish_reason,
        Watch::Whole(scanner) => scanner.seen().finish_reason,
        Watch::Nothing | Watch::Error { .. } => None,
    };
    reason.is_some_and(FinishReason::is_failure)
}

fn watch(head: &ResponseHeader, routed: Option<&Routed>) -> Watch {
    if !head.status.is_success() {
        return Watch::Error {
            status: head.status.as_u16(),
            gathered: Vec::new(),
        };
    }
    let Some((routed, shape)) = routed.and_then(|routed| Some((routed, shape(&routed.surface)?)))
    else {
        return Watch::Nothing;
    };
    if is_stream(head) {
        Watch::Stream(Box::new(Scanner::new(shape, routed.strip_usage)))
    } else {
        Watch::Whole(Box::new(AnswerScanner::new(shape)))
    }
}

fn shape(surface: &Surface) -> Option<Shape> {
    match surface {
        Surface::Chat { .. } => Some(Shape::Chat),
        Surface::Completions { .. } | Surface::Embeddings => Some(Shape::Completions),
        Surface::Messages => Some(Shape::Messages),
        Surface::Responses => Some(Shape::Responses),
        Surface::Files(_) | Surface::Models { .. } | Surface::Balance => None,
    }
}

/// An upstream's "your request is bad", in our error object: its message helps the tenant, the
/// rest of what it wrote does not concern them.
pub(super) fn upstream_error<'k>(
    status: u16,
    body: &[u8],
    keys: impl Iterator<Item = &'k str>,
) -> Refusal {
    let told: Option<String> = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| {
            let message = value
                .pointer("/error/message")
                .or_else(|| value.get("message"))?;
            let text: String = message.as_str()?.chars().take(2_000).collect();
            Some(without_keys(&text, keys))
        });
    let code = client_fault(status);
    let message =
        told.unwrap_or_else(|| format!("The upstream refused the request with status {status}."));
    Refusal::new(code, message).detail(format!("upstream status {status}"))
}

/// The keys that the upstream of an attempt knows.
fn keys(attempt: Option<&Attempt>) -> impl Iterator<Item = &str> {
    let accounts = attempt.map(|attempt| &attempt.lane.pool.settings.accounts);
    let keys = accounts.into_iter().flatten();
    keys.filter_map(|account| Some(account.api_key.as_ref()?.expose()))
}

/// A text of an upstream's without our keys, and without anything that looks like one: some echo
/// the key they refuse, whole or its end.
fn without_keys<'k>(text: &str, keys: impl Iterator<Item = &'k str>) -> String {
    let known = keys.filter(|key| !key.is_empty());
    let text = known.fold(text.to_owned(), |text, key| text.replace(key, HIDDEN));
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*');
    let is_key =
        |word: &str| (word.starts_with("sk-") && word.len() > 8) || word.starts_with("***");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(if is_key(word) { HIDDEN } else { word });
        let between = after.find(is_part).unwrap_or(after.len());
        let (between, next) = after.split_at(between);
        out.push_str(between);
        rest = next;
    }
    out
}

/// The code, and with it the status, for an upstream's "your request is bad".
fn client_fault(status: u16) -> Code {
    match status {
        404 => Code::NotFound,
        405 => Code::MethodNotAllowed,
        413 => Code::BodyTooLarge,
        415 => Code::UnsupportedEncoding,
        422 => Code::Unprocessable,
        _ => Code::InvalidRequest,
    }
}

/// Before a stream is reset: an HTTP/2 reset throws away what is still queued, so the connection's
/// task gets a moment to send the last word.
async fn let_out(client: &ServerSession) {
    if matches!(client, ServerSession::H2(_)) {
        tokio::time::sleep(LAST_WORD).await;
    }
}

fn join(first: Bytes, second: Option<Bytes>) -> Bytes {
    match second {
        None => first,
        Some(second) if first.is_empty() => second,
        Some(second) => [first, second].concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstreams_message_is_kept_and_its_other_fields_are_not() {
        let refusal = upstream_error(
            400,
            br#"{"error":{"message":"max_tokens is too large","type":"x","trace":"secret"}}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "max_tokens is too large");
        assert_eq!(refusal.code, Code::InvalidRequest);
        let refusal = upstream_error(
            400,
            br#"{"error":{"message":"Your key \"sk-0123456789ab\" (****89ab) is bad"}}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "Your key \"[key]\" ([key]) is bad");
        let refusal = upstream_error(
            400,
            br#"{"error":{"message":"key=sk-0123456789ab, Bearer:zz-own-key\nsk-0123456789ab"}}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "key=[key], Bearer:[key]\n[key]");
        let refusal = upstream_error(422, b"<html>", std::iter::once("zz-own-key"));
        assert!(refusal.message.contains("422"));
        let refusal = upstream_error(
            400,
            br#"{"code":20012,"message":"Model does not exist","data":null}"#,
            std::iter::once("zz-own-key"),
        );
        assert_eq!(refusal.message, "Model does not exist");
    }
}
