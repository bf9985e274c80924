//! The corridor: one request walks through it, hook by hook, in the order in which Pingora calls.
//!
//! Nothing is decided here. Each hook hands over to the stage that decides and carries out what it
//! said; the thin edges of the stages that need Pingora's session stand in the files below.
//!
//! ```text
//! early_request_filter   clocks of this connection
//! request_filter         enter → identify → route → admit    gateway/intake.rs
//! upstream_peer          choose account and endpoint         gateway/attempt.rs
//!                        or wait for them                    gateway/waiting.rs
//! connected_to_upstream  TLS version, before a byte is sent
//! upstream_request_filter  the upstream's head, built anew
//! request_body_filter    the body, whole or passing through
//! upstream_response_filter  good, again elsewhere, or a no   gateway/verdict.rs
//! response_filter        the tenant's head, built anew       gateway/answer.rs
//! response_body_filter   each event as soon as it is there   gateway/answer.rs
//! fail_to_proxy          an honest error                     gateway/ending.rs
//! logging                charge, settle and record           gateway/record.rs
//! ```

mod admit;
mod again;
mod answer;
mod attempt;
mod charge;
mod ending;
mod finish;
pub mod guessing;
mod identify;
mod intake;
mod overload;
mod record;
mod resume;
mod upstream_error;
mod upstream_head;
mod verdict;
mod waiting;

use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use log::debug;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use tokio::sync::mpsc;

use crate::admission::counting::Counting;
use crate::context::{Context, Watch};
use crate::downstream::in_flight::Requests;
use crate::ledger::journal::Journal;
use crate::request::body::BodyBudget;
use crate::routing::switches::Switches;
use crate::snapshot::Current;
use crate::telemetry::metrics::Metrics;
use guessing::Guessing;
pub use overload::Overload;

/// What all requests share.
pub struct Gateway {
    pub current: Current,
    pub metrics: Arc<Metrics>,
    pub in_flight: Arc<Requests>,
    pub bodies: Arc<BodyBudget>,
    pub guessing: Guessing,
    pub overload: Overload,
    pub counting: Arc<Counting>,
    pub journal: Arc<Journal>,
    pub switches: Arc<Switches>,
    /// Seeded at random, for fingerprints of what callers show.
    pub hasher: RandomState,
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::new(
            self.current.load_full(),
            Instant::now(),
            self.in_flight.enter(),
        )
    }

    /// None of Pingora's modules are used; the default would cost a boxed one per request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<()> {
        self.begin(session, ctx);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        self.take_in(session, ctx).await
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        self.choose(session, ctx).await
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Context,
        error: Box<Error>,
    ) -> Box<Error> {
        self.not_connected(ctx, error)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        digest: Option<&Digest>,
        ctx: &mut Context,
    ) -> Result<()> {
        self.check_connection(ctx, digest)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        self.build_request(session, head, ctx)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        self.put_body(body, end, ctx)
    }

    /// Pingora offers a line to a session of ours while the upstream speaks HTTP/2.
    async fn custom_forwarding(
        &self,
        _session: &mut Session,
        ctx: &mut Context,
        _to_upstream: Option<mpsc::Sender<Bytes>>,
        to_session: mpsc::Sender<Bytes>,
    ) -> Result<()> {
        if let (Some(behind), Some(attempt)) = (&ctx.behind, &ctx.attempts.current) {
            let timeouts = &attempt.lane.pool.settings.timeouts;
            let left = ctx
                .ends_by()
                .map(|end| end.saturating_duration_since(Instant::now()));
            let write = left.map_or(timeouts.write, |left| timeouts.write.min(left));
            behind.watch_upload(to_session, write);
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        self.judge_head(session, head, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        self.build_answer(session, head, ctx)?;
        ctx.expect_end();
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Option<Duration>> {
        self.relay(session, body, end, ctx)?;
        if end {
            ctx.saw_end();
        }
        Ok(None)
    }

    /// Trailers are dropped: nothing of ours needs them, and they are one more way around a head.
    /// But they are the end of a body that has had no other.
    fn upstream_response_trailer_filter(
        &self,
        session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Context,
    ) -> Result<()> {
        trailers.clear();
        // Here, since an error of the next filter would be lost.
        let mut last = None;
        self.relay(session, &mut last, true, ctx)?;
        ctx.answer.last = last;
        ctx.saw_end();
        Ok(())
    }

    /// What is returned ends the body in the trailers' place.
    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut HeaderMap,
        ctx: &mut Context,
    ) -> Result<Option<Bytes>> {
        Ok(ctx.answer.last.take())
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        error: Box<Error>,
        ctx: &mut Context,
        reused: bool,
    ) -> Box<Error> {
        self.broken_off(ctx, error, reused)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Context,
    ) -> FailToProxy {
        self.give_up(session, error, ctx).await
    }

    /// Pingora's own warnings name a request by its path, which is the client's text.
    fn request_summary(&self, _session: &Session, ctx: &Context) -> String {
        format!("request_id={}", ctx.request_id())
    }

    /// Attempts are counted and logged by the stages; Pingora's warnings would repeat it.
    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Context,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    /// Every failure has its line in the access log; Pingora's own would be a second one.
    fn suppress_error_log(&self, _session: &Session, ctx: &Context, error: &Error) -> bool {
        debug!(
            "Request failed. request_id={} cause={}",
            ctx.request_id(),
            error.etype().as_str()
        );
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        self.record(session, error, ctx);
    }
}

impl Context {
    /// From here on an answer's end counts only if it was looked at.
    fn expect_end(&self) {
        if let Some(behind) = &self.behind {
            behind.finished(matches!(self.answer.watch, Watch::Nothing));
        }
    }

    fn saw_end(&self) {
        if let Some(behind) = &self.behind {
            behind.finished(true);
        }
    }
}
