//! A stream that broke after content goes on elsewhere, in the same answer, where that is wanted and
//! can be done without the client being able to be misled: by prefix completion
//! (chat_prefix_completion page), from exactly what the client has.

use std::time::Instant;

use bytes::Bytes;
use log::debug;
use pingora::{Error, ErrorType, Result};

use super::Gateway;
use super::verdict::{Failure, MISFIT};
use crate::config::settings::{Dialect, FailureClass};
use crate::context::{Broken, Context, Outbound, Place, Resumption, Stage, Watch};
use crate::relay::resume::Rewriter;
use crate::relay::sse::Scanner;
use crate::relay::usage::Usage;
use crate::request::continuation::{Said, continuation};
use crate::request::stand_in::Behind;
use crate::request::surface::Surface;

impl Context {
    /// Begins to write down what the client gets of a stream, if it may be gone on with later.
    pub(super) fn note_for_resumption(&mut self) {
        let wanted = self.routed().filter(|routed| {
            let most = routed.route.as_ref().map_or(0, |route| route.resume);
            most > 0 && matches!(routed.surface, Surface::Chat { beta: false })
        });
        let question = wanted.and_then(|routed| match &routed.body {
            Outbound::Whole { bytes, .. } => Some(bytes.clone()),
            Outbound::None | Outbound::Through { .. } => None,
        });
        if let (Some(question), Watch::Stream(_)) = (question, &self.answer.watch)
            && self.answer.resumption.is_none()
        {
            let given = self.behind.as_ref().map_or(0, Behind::taken);
            self.answer.resumption = Some(Box::new(Resumption::new(question, given)));
        }
    }

    /// Writes down what goes out, until it is sure to have been passed on.
    pub(super) fn give_out(&mut self, out: &Bytes) {
        let Some(resumption) = &mut self.answer.resumption else {
            return;
        };
        let taken = self.behind.as_ref().map_or(0, Behind::taken);
        let mut unsure: usize = resumption.unsure.iter().map(Bytes::len).sum();
        while let Some(oldest) = resumption.unsure.front()
            && resumption.given + oldest.len() <= taken + unsure
        {
            unsure -= oldest.len();
            resumption.unsure.pop_front();
        }
        resumption.given += out.len();
        resumption.unsure.push_back(out.clone());
    }

    /// Keeps what the client is to have of a fragment that cannot be sent, since the stream broke
    /// with it.
    pub(super) fn owe(&mut self, out: Bytes) {
        if let Some(resumption) = &mut self.answer.resumption {
            let owed = std::mem::take(&mut resumption.owed);
            resumption.owed = super::answer::join(owed, Some(out));
        }
    }

    /// Is the beginning of an event kept until all of it is there?
    pub(super) fn passes_whole_events(&self) -> bool {
        let resumption = self.answer.resumption.as_ref();
        resumption.is_some_and(|it| it.rewriter.is_some() || it.transcript.is_open())
    }

    /// Is the attempt one that goes on with a stream?
    pub(super) fn is_resumed(&self) -> bool {
        self.answer
            .resumption
            .as_ref()
            .is_some_and(|it| it.made > 0)
    }
}

impl Gateway {
    /// Writes down what goes to the client, and makes the second stream look like the rest of the
    /// first one.
    ///
    /// # Errors
    /// If the upstream has told of its failure, and another one is to go on; or if the rest does
    /// not fit to what the client has.
    pub(super) fn write_down(&self, ctx: &mut Context, out: Bytes) -> Result<Bytes> {
        let Some(resumption) = &mut ctx.answer.resumption else {
            return Ok(out);
        };
        let out = match &mut resumption.rewriter {
            Some(rewriter) => rewriter.pass(out).map_err(|unfit| misfit(&unfit))?,
            None => out,
        };
        let out = resumption.transcript.pass(out);
        let out = super::answer::join(std::mem::take(&mut resumption.owed), Some(out));
        if !resumption.transcript.failed() {
            return Ok(out);
        }
        if self.resume(ctx, FailureClass::ErrorInAnswer) {
            ctx.owe(out);
            let why = "the upstream told of a failure in mid-stream";
            return Err(Error::explain(ErrorType::ConnectionClosed, why).into_up());
        }
        Ok(self.interrupt(ctx, out, FailureClass::ErrorInAnswer))
    }

    /// What was held back of a stream that has come to its proper end.
    ///
    /// # Errors
    /// If the rest does not fit to what the client has.
    pub(super) fn last_written(&self, ctx: &mut Context) -> Result<Option<Bytes>> {
        let Some(resumption) = &mut ctx.answer.resumption else {
            return Ok(None);
        };
        let rest = match &mut resumption.rewriter {
            Some(rewriter) => rewriter.finish().map_err(|unfit| misfit(&unfit))?,
            None => None,
        };
        let passed = rest.map(|rest| resumption.transcript.pass(rest));
        let held = resumption.transcript.finish();
        Ok(passed
            .map(|passed| super::answer::join(passed, held.clone()))
            .or(held))
    }

    /// Prepares another attempt that goes on where the stream broke; false if there is none. The
    /// attempt under way has failed with `class`, and is ended.
    pub(super) fn resume(&self, ctx: &mut Context, failure: impl Into<Failure>) -> bool {
        let failure = failure.into();
        let now = Instant::now();
        let body = match self.question_for_the_rest(ctx, now) {
            Ok(body) => body,
            Err(why) => {
                if ctx.answer.resumption.is_some() {
                    debug!(
                        "Not going on with a stream. request_id={} reason={why}",
                        ctx.request_id()
                    );
                }
                return false;
            }
        };
        let used = ctx.attempts.current.as_ref().map(|attempt| {
            let endpoints = attempt.lane.pool.endpoints.len();
            (
                attempt.chosen.account,
                attempt.chosen.endpoint,
                attempt.lane.width(),
                endpoints,
            )
        });
        self.failed_after_content(ctx, failure);
        // Somebody else, if there is somebody.
        if let Some((account, endpoint, accounts, endpoints)) = used {
            let tried = &mut ctx.attempts.tried;
            let unreached = matches!(failure.class, FailureClass::Connect | FailureClass::Tls);
            if endpoints > tried.endpoints.len() + 1 {
                tried.endpoints.push(endpoint);
            }
            if !unreached && accounts > tried.accounts.len() + 1 {
                tried.accounts.push(account);
            }
        }
        self.leave_to_the_next(ctx);
        if let Stage::Routed(routed) = &mut ctx.stage
            && let Outbound::Whole { bytes, lane, .. } = &mut routed.body
        {
            *bytes = body;
            *lane = ctx.attempts.lane;
        }
        let upstream = ctx.attempts.last_names().map(|it| it.upstream.as_str());
        let labels = [upstream.unwrap_or_default()];
        self.metrics.resumed.with_label_values(&labels).inc();
        ctx.attempts.failed = Some(failure.class);
        ctx.attempts.again = true;
        true
    }

    /// The body that asks for the rest, or why there is none.
    fn question_for_the_rest(&self, ctx: &Context, now: Instant) -> Result<Bytes, &'static str> {
        let resumption = ctx.answer.resumption.as_ref().ok_or("off")?;
        let attempt = ctx.attempts.current.as_ref().ok_or("no attempt")?;
        let route = ctx.routed().and_then(|routed| routed.route.as_ref());
        let most = route.map_or(0, |route| route.resume);
        let pool = &attempt.lane.pool;
        if resumption.made >= most {
            return Err("often enough");
        }
        if ctx.client_left() || ctx.client_gone || ctx.is_over(now) {
            return Err("too late");
        }
        if pool.settings.dialect != Dialect::DeepSeek {
            return Err("dialect");
        }
        let partial = resumption.transcript.partial();
        let partial = partial.map_err(|obstacle| obstacle.as_str())?;
        let said = Said {
            content: partial.content,
            reasoning: partial.reasoning,
            tokens: partial.tokens,
        };
        let body = continuation(&resumption.question, &said).map_err(|unfit| unfit.as_str())?;
        if !pool.budget.try_retry(now, &ctx.snapshot.settings.retry) {
            return Err("budget");
        }
        Ok(body)
    }

    /// Leaves everything as the attempt that goes on needs it, and writes the bill of the one that
    /// broke.
    fn leave_to_the_next(&self, ctx: &mut Context) {
        let place = ctx.attempts.last_names().map(Place::from);
        let prompt = ctx.usage().map(|usage| usage.prompt);
        let spoke = ctx.has_spoken();
        let taken = ctx.behind.as_ref().map_or(0, Behind::taken);
        let Some(resumption) = &mut ctx.answer.resumption else {
            return;
        };
        let completion = resumption.transcript.partial().map_or(0, |it| it.tokens);
        if let Some(place) = place {
            let completion = completion.saturating_sub(resumption.billed);
            resumption.billed += completion;
            let usage = Usage {
                prompt: prompt.unwrap_or(0),
                completion,
                ..Usage::default()
            };
            ctx.attempts.broken.push(Broken {
                place,
                usage,
                spoke,
            });
        }
        // What was given out together with the break was not passed on.
        let lost = resumption.given.saturating_sub(taken);
        let unsure: Vec<u8> = resumption.unsure.drain(..).collect::<Vec<_>>().concat();
        let from = unsure.len().saturating_sub(lost);
        let lost = unsure.get(from..).unwrap_or_default();
        resumption.owed = [lost, &resumption.owed].concat().into();
        resumption.given = taken;
        resumption.before = taken;
        resumption.transcript.cut();
        resumption.rewriter = Some(Rewriter::new(&resumption.transcript));
        resumption.made += 1;
        // Nothing has been seen of the stream that is to come.
        if let Some(shape) = super::answer::shape(&Surface::Chat { beta: true }) {
            ctx.answer.watch = Watch::Stream(Box::new(Scanner::new(shape, false)));
        }
    }
}

fn misfit(why: &impl std::fmt::Display) -> Box<Error> {
    Error::explain(ErrorType::Custom(MISFIT), why.to_string()).into_up()
}
