//! What goes back: the head built anew, each fragment watched on its way, and an honest word when
//! the answer does not come to its proper end.

use std::time::Instant;

use bytes::Bytes;
use http::{StatusCode, Version, header};
use jiff::Timestamp;
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;

use super::Gateway;
use super::upstream_head::is_stream;
use super::verdict::DEADLINE;
use crate::config::settings::FailureClass;
use crate::context::{Answer, Attempt, Context, Routed, Step, Watch};
use crate::relay::answer::AnswerScanner;
use crate::relay::event::{FinishReason, Shape};
use crate::relay::sse::Scanner;
use crate::request::forward;
use crate::request::refusal::{Code, Refusal};
use crate::request::surface::Surface;
use crate::upstream::clocks::Late;
use crate::upstream::pool::Outcome;

/// Stands where a key stood.
const HIDDEN: &str = "[key]";
/// An upstream's error body is read up to here; more is no error message.
const ERROR_BODY_LIMIT: usize = 64 * 1024;

impl Gateway {
    /// The head for the tenant, and who is to watch the body.
    pub(super) fn build_answer(
        &self,
        session: &Session,
        head: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        ctx.answer.opened |= head_is_out(session);
        let status = match head.status.as_u16() {
            // Under a head that was sent before, an error is an event.
            _ if ctx.answer.opened => StatusCode::OK,
            status @ 400.. => client_fault(status).status(),
            _ => head.status,
        };
        if !ctx.client_left() {
            ctx.answer.status = status.as_u16();
        }
        ctx.answer.watch = watch(head, ctx.routed());
        ctx.refusal = None;
        ctx.note_for_resumption();
        // Without a session in the client's place nothing is held back.
        let flows = ctx.behind.is_none() || matches!(ctx.answer.watch, Watch::Nothing);
        if flows {
            ctx.begin_answer();
        }
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
        if ctx.answer.interrupted {
            // The last word is said.
            *body = Some(Bytes::new());
            return Ok(());
        }
        let now = Instant::now();
        self.check_clocks(ctx, now)?;
        if ctx.answer.begun && ctx.answer.resumption.is_none() && head_is_out(session) {
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
                let step = match scanner.seen().begun {
                    true => Step::Content,
                    false => Step::KeepAlive,
                };
                let out = ctx.answer.withheld.pass(piece);
                if ctx.answer.withheld.is_over() {
                    ctx.begin_answer();
                }
                ctx.moved(step, now);
                self.check_clocks(ctx, now)?;
                out
            }
            // What comes after its own end belongs to no answer.
            Watch::Stream(scanner) if scanner.seen().ended => Bytes::new(),
            Watch::Stream(scanner) => {
                let out = scanner.feed(piece);
                self.follow(ctx, out, now)?
            }
            Watch::Error { gathered, .. } => {
                let room = ERROR_BODY_LIMIT
                    .saturating_sub(gathered.len())
                    .min(piece.len());
                gathered.extend_from_slice(piece.get(..room).unwrap_or_default());
                Bytes::new()
            }
        };
        let out = match end && !ctx.answer.interrupted {
            true => self.finish(out, ctx)?,
            false => out,
        };
        ctx.give_out(&out);
        *body = Some(out);
        Ok(())
    }

    /// Deadlines are looked at where the client is listened for: without a session in the client's
    /// place, only here.
    ///
    /// # Errors
    /// If one is over.
    fn check_clocks(&self, ctx: &Context, now: Instant) -> Result<()> {
        let attempt = ctx.attempts.current.as_ref();
        let Some(late) = attempt.and_then(|it| it.clocks.is_late(&it.progress, now)) else {
            return Ok(());
        };
        // That an answer in one piece is queued shows in what came, and that the request's time is
        // over holds for whomever. All else is told from the time that the client takes elsewhere.
        let told_here = match late {
            Late::Total => true,
            Late::Queued => !ctx.is_streamed(),
            Late::FirstByte | Late::FirstContent | Late::Gap | Late::Probe => false,
        };
        if ctx.behind.is_some() && !told_here {
            return Ok(());
        }
        Error::e_explain(ErrorType::Custom(DEADLINE), late.as_str()).map_err(Error::into_up)
    }

    /// What may go out of a stream's fragment that was read, before its content nothing but whole
    /// comments; what it says about the attempt.
    ///
    /// # Errors
    /// If it failed before its content, and may be tried again.
    fn follow(&self, ctx: &mut Context, out: Bytes, now: Instant) -> Result<Bytes> {
        let Watch::Stream(scanner) = &ctx.answer.watch else {
            return Ok(out);
        };
        let seen = scanner.seen();
        let (content, progress) = (seen.first_content, seen.progress);
        let failed = seen.error.is_some() && !ctx.says_how_it_ended();
        // The error itself is told in our words: its own may be another dialect's, and hold what is
        // no tenant's business.
        let error_at = scanner.error_at().unwrap_or(0).min(out.len());
        if ctx.answer.begun {
            if progress {
                ctx.moved(Step::Content, now);
            }
            if failed && ctx.answer.resumption.is_none() {
                let before = out.slice(..error_at);
                return Ok(self.interrupt(ctx, before, FailureClass::ErrorInAnswer));
            }
            return self.write_down(ctx, out);
        }
        let begun = seen.begun;
        let told = failed;
        let failed = match &seen.error {
            _ if content => None,
            Some(_) => Some(FailureClass::ErrorInAnswer),
            None if gave_up(&ctx.answer.watch) => Some(FailureClass::NoResources),
            None => None,
        };
        let step = match begun {
            _ if content => Step::Content,
            true => Step::Begun,
            false => Step::KeepAlive,
        };
        ctx.moved(step, now);
        if !content {
            if let Some(class) = failed {
                return Err(self.fail_in_answer(ctx, class));
            }
            let held = ctx.answer.prelude.pass(out, false);
            if ctx.answer.prelude.is_open() {
                ctx.begin_answer();
            }
            return Ok(held);
        }
        ctx.answer.first_content = Some(now);
        if let Some(attempt) = &mut ctx.attempts.current {
            attempt.chosen.report(Outcome::FirstContent, now);
        }
        ctx.begin_answer();
        if told && ctx.answer.resumption.is_none() {
            let out = ctx.answer.prelude.pass(out.slice(..error_at), true);
            return Ok(self.interrupt(ctx, out, FailureClass::ErrorInAnswer));
        }
        let out = ctx.answer.prelude.pass(out, true);
        self.write_down(ctx, out)
    }

    /// The upstream says that this was all. Was it?
    fn finish(&self, out: Bytes, ctx: &mut Context) -> Result<Bytes> {
        let responses = ctx.surface() == Some(&Surface::Responses);
        let (out, fault) = match &mut ctx.answer.watch {
            Watch::Nothing => (out, None),
            Watch::Error { status, gathered } => {
                let attempt = ctx.attempts.current.as_ref();
                let refusal = upstream_error(*status, gathered, keys(attempt));
                let id = ctx.request_id.to_str().unwrap_or_default();
                let told = match ctx.answer.opened {
                    true => refusal.event(ctx.family, id),
                    false => refusal.body(ctx.family, id),
                };
                ctx.refusal = Some(refusal);
                if ctx.answer.opened && !ctx.is_streamed() {
                    // A 200 that waits for JSON has no place for an error.
                    self.end_attempt(ctx, "client_error");
                    ctx.attempts.again = false;
                    ctx.answer.begun = true;
                    let error =
                        Error::explain(ErrorType::ConnectionClosed, "too late for a status");
                    return Err(error.into_up());
                }
                (Bytes::from(told), None)
            }
            Watch::Whole(scanner) => {
                let seen = scanner.seen();
                let fault = match &seen.error {
                    _ if !seen.begun => Some(FailureClass::Cut),
                    _ if scanner.seen().foreign => Some(FailureClass::Garbage),
                    _ if !seen.complete => Some(FailureClass::Cut),
                    Some(_) => Some(FailureClass::ErrorInAnswer),
                    None if seen.finish_reason.is_some_and(FinishReason::is_failure) => {
                        Some(FailureClass::NoResources)
                    }
                    None => None,
                };
                (join(ctx.answer.withheld.finish(), Some(out)), fault)
            }
            Watch::Stream(scanner) => {
                let unfinished = scanner.unfinished();
                let mut rest = scanner.finish();
                let unread =
                    scanner.error_at().is_some() || rest.as_deref().is_some_and(Scanner::is_error);
                let seen = scanner.seen();
                let error = seen.error.is_some();
                let (ended, foreign) = (seen.ended, seen.foreign);
                let fault = match ended {
                    false if foreign => Some(FailureClass::Garbage),
                    _ if error && !(ended && responses) => Some(FailureClass::ErrorInAnswer),
                    false => Some(FailureClass::Cut),
                    // An end to nothing.
                    true if !seen.first_content && seen.finish_reason.is_none() => {
                        Some(FailureClass::Garbage)
                    }
                    true => None,
                };
                let mut out = out;
                if unread && fault.is_some() && ctx.answer.resumption.is_none() {
                    // An error without its blank line, or half of one: it is told in our words alone.
                    out.truncate(out.len().saturating_sub(unfinished));
                    rest = None;
                }
                let rest = join(ctx.answer.prelude.finish().unwrap_or_default(), rest);
                let rest = self.write_down(ctx, rest)?;
                let out = join(out, Some(rest));
                if ctx.answer.interrupted {
                    return Ok(out);
                }
                (out, fault)
            }
        };
        let Some(fault) = fault else {
            let held = self.last_written(ctx)?;
            self.succeed(ctx);
            return Ok(join(out, held));
        };
        if ctx.answer.begun {
            if self.resume(ctx, fault) {
                ctx.owe(out);
                let error = Error::explain(ErrorType::ConnectionClosed, fault.as_str());
                return Err(error.into_up());
            }
            if matches!(ctx.answer.watch, Watch::Stream(_)) {
                return Ok(self.interrupt(ctx, out, fault));
            }
            self.failed_after_content(ctx, fault);
            let error = Error::explain(ErrorType::ConnectionClosed, "half an answer");
            return Err(error.into_up());
        }
        if fault != FailureClass::NoResources || !matches!(ctx.answer.watch, Watch::Whole(_)) {
            return Err(self.fail_in_answer(ctx, fault));
        }
        let answer = std::mem::take(&mut ctx.answer);
        ctx.answer.opened = answer.opened;
        let error = self.fail_in_answer(ctx, fault);
        if error.retry() {
            return Err(error);
        }
        // Part of an answer that says so itself is better than none.
        ctx.answer = answer;
        ctx.refusal = None;
        ctx.answer.complete = true;
        ctx.begin_answer();
        Ok(out)
    }

    /// Ends a stream that failed after content: what is left of it, and an event that says so.
    pub(super) fn interrupt(&self, ctx: &mut Context, out: Bytes, class: FailureClass) -> Bytes {
        if ctx.answer.interrupted {
            return Bytes::new();
        }
        self.failed_after_content(ctx, class);
        if let Some(behind) = &ctx.behind {
            behind.break_off();
        }
        let told = ctx.tell_interruption();
        join(out, told)
    }

    /// The answer came to its proper end.
    pub(super) fn succeed(&self, ctx: &mut Context) {
        ctx.begin_answer();
        ctx.answer.complete = true;
        ctx.attempts.again = false;
        let outcome = match &ctx.answer.watch {
            Watch::Error { .. } => "client_error",
            _ if gave_up(&ctx.answer.watch) => {
                self.failed_after_content(ctx, FailureClass::NoResources);
                return;
            }
            _ => "ok",
        };
        if let Some(attempt) = &mut ctx.attempts.current {
            attempt.chosen.report(Outcome::Complete, Instant::now());
        }
        self.end_attempt(ctx, outcome);
    }
}

impl Context {
    /// Does the stream's own end say that it failed? Only the Responses API has such ends.
    fn says_how_it_ended(&self) -> bool {
        self.has_ended() && self.surface() == Some(&Surface::Responses)
    }

    /// From here on this answer, and no other, goes to the client.
    pub(super) fn begin_answer(&mut self) {
        self.answer.begun = true;
        if let Some(behind) = &self.behind {
            behind.open(true);
        }
    }

    /// What an attempt that failed before its content left behind.
    pub(super) fn forget_answer(&mut self) {
        let opened = self.answer.opened;
        self.answer = Answer {
            opened,
            ..Answer::default()
        };
    }
}

/// Has the client a final head?
pub(super) fn head_is_out(session: &Session) -> bool {
    let written = session.response_written();
    written.is_some_and(|head| !head.status.is_informational())
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

pub(super) fn shape(surface: &Surface) -> Option<Shape> {
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

pub(super) fn join(first: Bytes, second: Option<Bytes>) -> Bytes {
    match second {
        Some(second) if first.is_empty() => second,
        Some(second) if !second.is_empty() => [first, second].concat().into(),
        Some(_) | None => first,
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
