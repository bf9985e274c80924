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
use super::finish::gave_up;
use super::upstream_error::{client_fault, failed_response};
use super::upstream_head::is_stream;
use super::verdict::DEADLINE;
use crate::config::settings::FailureClass;
use crate::context::{Answer, Context, Routed, Step, Watch};
use crate::relay::answer::AnswerScanner;
use crate::relay::event::Shape;
use crate::relay::sse::Scanner;
use crate::request::forward;
use crate::request::surface::Surface;
use crate::upstream::clocks::Late;
use crate::upstream::pool::Outcome;

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
            Watch::Stream(scanner) if scanner.seen().ended => scanner.feed(piece),
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
        // The error itself is told in our words: its own may be another dialect's, and hold what is
        // no tenant's business.
        let error_at = scanner.error_at().unwrap_or(0).min(out.len());
        let failed = seen.error.is_some() && !seen.failed_at_end;
        let out = match seen.failed_at_end {
            true => {
                let told = failed_response(&out.slice(error_at..), ctx.request_id());
                join(out.slice(..error_at), Some(told))
            }
            false => out,
        };
        if ctx.answer.begun {
            if progress {
                ctx.moved(Step::Content, now);
            }
            return match failed {
                true => self.failed_in_stream(ctx, out.slice(..error_at)),
                false => self.write_down(ctx, out),
            };
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
        if told {
            let before = ctx.answer.prelude.pass(out.slice(..error_at), true);
            return self.failed_in_stream(ctx, before);
        }
        let out = ctx.answer.prelude.pass(out, true);
        self.write_down(ctx, out)
    }
}

impl Context {
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

pub(super) fn join(first: Bytes, second: Option<Bytes>) -> Bytes {
    match second {
        Some(second) if first.is_empty() => second,
        Some(second) if !second.is_empty() => [first, second].concat().into(),
        Some(_) | None => first,
    }
}
