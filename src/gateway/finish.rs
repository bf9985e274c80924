//! The upstream says that its answer is all there. Was it?

use std::time::Instant;

use bytes::Bytes;
use pingora::{Error, ErrorType, Result};

use super::Gateway;
use super::answer::join;
use super::upstream_error::{failed_response, keys, upstream_error};
use crate::config::settings::FailureClass;
use crate::context::{Context, Watch};
use crate::relay::answer::Answer;
use crate::relay::event::{FinishReason, Seen};
use crate::upstream::pool::Outcome;

impl Gateway {
    /// What goes out of the last fragment, and what becomes of the answer.
    ///
    /// # Errors
    /// If it is not whole and another attempt may go on, or nothing can tell the client any more.
    pub(super) fn finish(&self, out: Bytes, ctx: &mut Context) -> Result<Bytes> {
        let streamed = ctx.is_streamed();
        let (out, fault) = match &mut ctx.answer.watch {
            Watch::Nothing => (out, None),
            Watch::Error { .. } => (self.finish_error(ctx)?, None),
            Watch::Whole(scanner) => {
                let fault = fault_of_whole(scanner.seen(), streamed);
                (join(ctx.answer.withheld.finish(), Some(out)), fault)
            }
            Watch::Stream(_) => self.finish_stream(out, ctx)?,
        };
        if ctx.answer.interrupted {
            return Ok(out);
        }
        let Some(fault) = fault else {
            let held = self.last_written(ctx)?;
            self.succeed(ctx);
            return Ok(join(out, held));
        };
        if ctx.answer.begun {
            return self.broke_off(out, ctx, fault);
        }
        if fault == FailureClass::NoResources && matches!(ctx.answer.watch, Watch::Whole(_)) {
            return self.settle_for_part(out, ctx);
        }
        Err(self.fail_in_answer(ctx, fault))
    }

    /// The upstream's no, in our words.
    fn finish_error(&self, ctx: &mut Context) -> Result<Bytes> {
        let Watch::Error { status, gathered } = &ctx.answer.watch else {
            return Ok(Bytes::new());
        };
        let refusal = upstream_error(*status, gathered, keys(ctx.attempts.current.as_ref()));
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
            let error = Error::explain(ErrorType::ConnectionClosed, "too late for a status");
            return Err(error.into_up());
        }
        Ok(Bytes::from(told))
    }

    /// What is left of a stream, and what was wrong with it.
    fn finish_stream(
        &self,
        mut out: Bytes,
        ctx: &mut Context,
    ) -> Result<(Bytes, Option<FailureClass>)> {
        let begun = ctx.answer.begun;
        let Watch::Stream(scanner) = &mut ctx.answer.watch else {
            return Ok((out, None));
        };
        let unfinished = scanner.unfinished();
        let mut rest = scanner.finish();
        let fault = fault_of_stream(scanner.seen(), begun);
        let says_so = fault.is_none() && scanner.seen().failed_at_end;
        let unread = scanner.error_at().is_some();
        if fault.is_some() || (unread && says_so) {
            // What has no blank line is no event: it does not go out before what we say of it.
            let mut last = rest.take();
            if unread && !ctx.passes_whole_events() {
                let long = out.split_off(out.len().saturating_sub(unfinished));
                last = last.or(Some(long));
            }
            let last = last.filter(|_| says_so);
            rest = last.map(|event| failed_response(&event, ctx.request_id()));
        }
        let rest = join(ctx.answer.prelude.finish().unwrap_or_default(), rest);
        let rest = self.write_down(ctx, rest)?;
        Ok((join(out, Some(rest)), fault))
    }

    /// The upstream told of a failure in a stream of which the client has part, or has after what
    /// came `before` that.
    ///
    /// # Errors
    /// If another attempt goes on.
    pub(super) fn failed_in_stream(&self, ctx: &mut Context, before: Bytes) -> Result<Bytes> {
        let before = self.write_down(ctx, before)?;
        if ctx.answer.interrupted {
            return Ok(before);
        }
        self.broke_off(before, ctx, FailureClass::ErrorInAnswer)
    }

    /// It ends as it should not, and the client has part of it.
    fn broke_off(&self, out: Bytes, ctx: &mut Context, fault: FailureClass) -> Result<Bytes> {
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
        Err(error.into_up())
    }

    /// Part of an answer that says so itself is better than none, if there is no other attempt.
    fn settle_for_part(&self, out: Bytes, ctx: &mut Context) -> Result<Bytes> {
        let answer = std::mem::take(&mut ctx.answer);
        ctx.answer.opened = answer.opened;
        let error = self.fail_in_answer(ctx, FailureClass::NoResources);
        if error.retry() {
            return Err(error);
        }
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
            Watch::Stream(scanner) if scanner.seen().failed_at_end => {
                self.failed_after_content(ctx, FailureClass::ErrorInAnswer);
                return;
            }
            watch if gave_up(watch) => {
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

/// What is wrong with an answer in one piece, where one was asked for or a stream.
fn fault_of_whole(seen: &Answer, streamed: bool) -> Option<FailureClass> {
    match &seen.error {
        _ if !seen.begun => Some(FailureClass::Cut),
        _ if seen.foreign => Some(FailureClass::Garbage),
        _ if !seen.complete => Some(FailureClass::Cut),
        Some(_) => Some(FailureClass::ErrorInAnswer),
        None if seen.finish_reason.is_some_and(FinishReason::is_failure) => {
            Some(FailureClass::NoResources)
        }
        None if streamed || !seen.answers => Some(FailureClass::Garbage),
        None => None,
    }
}

/// What is wrong with a stream. Once the client has of it, its own end may tell of a failure.
fn fault_of_stream(seen: &Seen, begun: bool) -> Option<FailureClass> {
    match seen.ended {
        false if seen.foreign => Some(FailureClass::Garbage),
        _ if seen.error.is_some() && !(begun && seen.failed_at_end) => {
            Some(FailureClass::ErrorInAnswer)
        }
        false => Some(FailureClass::Cut),
        // An end to nothing.
        true if !seen.first_content && seen.finish_reason.is_none() => Some(FailureClass::Garbage),
        true => None,
    }
}

/// A proper end that is a failure all the same (`finish_reason`, create-chat-completion page).
pub(super) fn gave_up(watch: &Watch) -> bool {
    let reason = match watch {
        Watch::Stream(scanner) => scanner.seen().finish_reason,
        Watch::Whole(scanner) => scanner.seen().finish_reason,
        Watch::Nothing | Watch::Error { .. } => None,
    };
    reason.is_some_and(FinishReason::is_failure)
}
