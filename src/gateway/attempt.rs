//! One try at an upstream: choosing it, reaching it, asking it. Waiting for it is in
//! [`super::waiting`]; how it went is judged in [`super::verdict`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Version};
use pingora::http::RequestHeader;
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;

use super::Gateway;
use super::intake::{altered, refit};
use super::verdict::{refused, unreachable};
use crate::config::settings::FailureClass;
use crate::context::{Attempt, Context, Outbound, Stage, Step};
use crate::request::forward::{self, Length, Outgoing};
use crate::request::refusal::{Code, Refusal};
use crate::request::surface::{FileCall, Surface};
use crate::routing::route::Variant;
use crate::upstream::addresses::Visit;
use crate::upstream::clocks::Progress;
use crate::upstream::peer::Distrust;
use crate::upstream::pool::{Chosen, EndpointSlot, Lane, NoChoice, Wish};
use crate::upstream::queue::NotServed;
use crate::upstream::signing;

/// What a client is asked to wait when every account is at its ceiling, at least and at most.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// What of a body is written over HTTP/2 at one time, in bytes. Meanwhile Pingora looks at nothing
/// else.
const PIECE: usize = 64 << 10;
/// By how much silence is given up later where nobody looks at the clock.
const BEHIND_THE_CLOCK: Duration = Duration::from_millis(500);

impl Gateway {
    /// Holds an account and an endpoint and names the address to connect to; waits for them if it
    /// must, in the line of the first variant that lets it.
    pub(super) async fn choose(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        if let Some(until) = ctx.attempts.pause_until.take() {
            self.pause(session, ctx, until).await?;
        }
        let mut turned_away = None;
        loop {
            let now = Instant::now();
            if ctx.is_over(now) {
                ctx.refusal = Some(out_of_time());
                return Err(refused(ctx));
            }
            if let Some(peer) = self.seek(ctx, now) {
                self.metrics.own_work("choose", now.elapsed());
                return Ok(peer);
            }
            let Some(Variant { lane, .. }) = ctx.variant() else {
                // A failure of an earlier attempt says more than "nothing is left".
                let no = turned_away.map_or_else(|| closed(ctx.attempts.reopens), at_ceiling);
                ctx.refusal.get_or_insert(no);
                return Err(refused(ctx));
            };
            match self.wait_for_place(session, ctx, &lane).await? {
                // Switched off meanwhile: whoever waits behind hears of it in the same way.
                Ok(_) if self.is_off(&lane) => ctx.attempts.next_lane(),
                Ok(chosen) => {
                    if let Some(peer) = self.start(ctx, &lane, chosen, Instant::now()) {
                        return Ok(peer);
                    }
                }
                Err(why) => {
                    turned_away = sooner(turned_away, why);
                    ctx.attempts.next_lane();
                }
            }
        }
    }

    /// Takes a free place with the first variant that has one. If none has, the context is left at
    /// the first one that is only full, or behind the last one.
    fn seek(&self, ctx: &mut Context, now: Instant) -> Option<Box<HttpPeer>> {
        let mut full = None;
        while let Some(variant) = ctx.variant() {
            // One that is merely full is passed over for those that take what was rate limited.
            let full_before = full.is_some().then_some(FailureClass::RateLimited);
            let failed = ctx.attempts.failed.or(full_before);
            let entered = ctx.attempts.asked == Some(ctx.attempts.lane);
            let fits = entered || variant.follows(failed);
            if !fits || !ctx.has_files_at(&variant.lane) || self.is_off(&variant.lane) {
                ctx.attempts.next_lane();
                continue;
            }
            let wish = ctx.wish_for(&variant.lane);
            match variant.lane.choose(&wish, now) {
                Ok(chosen) => {
                    if let Some(peer) = self.start(ctx, &variant.lane, chosen, now) {
                        return Some(peer);
                    }
                    continue;
                }
                Err(NoChoice::Full) if full.is_none() => {
                    full = Some((ctx.attempts.lane, ctx.attempts.tried.clone()));
                }
                Err(NoChoice::Closed { retry_in }) => {
                    let reopens = ctx.attempts.reopens.unwrap_or(retry_in);
                    ctx.attempts.reopens = Some(reopens.min(retry_in));
                }
                Err(NoChoice::Full | NoChoice::Exhausted) => {}
            }
            ctx.attempts.next_lane();
        }
        if let Some((lane, tried)) = full {
            ctx.attempts.lane = lane;
            ctx.attempts.tried = tried;
        }
        None
    }

    /// Has an operator switched it off?
    pub(super) fn is_off(&self, lane: &Lane) -> bool {
        self.switches.upstream_is_off(&lane.pool.settings.id)
    }

    /// Begins an attempt; `None`, and the endpoint counts as tried, if its address is not known.
    fn start(
        &self,
        ctx: &mut Context,
        lane: &Arc<Lane>,
        chosen: Chosen,
        now: Instant,
    ) -> Option<Box<HttpPeer>> {
        let slot = lane.pool.endpoints.get(chosen.endpoint);
        let visit = visit(ctx, lane, now);
        let address = |slot: &EndpointSlot| slot.state.addresses.next(visit, now);
        let Some((slot, address)) = slot.and_then(|slot| Some((slot, address(slot)?))) else {
            ctx.attempts.tried.endpoints.push(chosen.endpoint);
            return None;
        };
        let mut peer = slot.template.at(address);
        if !ctx.attempts.were_at(lane) {
            lane.pool.budget.first(now);
        }
        ctx.attempts.asked = Some(ctx.attempts.lane);
        ctx.attempts.made += 1;
        ctx.attempts.again = false;
        ctx.refusal = None;
        let mut clocks = ctx.clocks(lane);
        // Nobody listens for the client, or looks at its time, while a connection is made, or over
        // HTTP/2 while a body is written.
        let left = clocks.ends(ctx.started).saturating_duration_since(now);
        let capped = |time: Option<Duration>| Some(time.map_or(left, |time| time.min(left)));
        let options = &mut peer.options;
        options.connection_timeout = capped(options.connection_timeout);
        options.total_connection_timeout = capped(options.total_connection_timeout);
        options.write_timeout = capped(options.write_timeout);
        // Behind the clock, since Pingora gives up a whole connection for it.
        let silence = left.saturating_add(BEHIND_THE_CLOCK);
        options.read_timeout = options.read_timeout.map(|time| time.min(silence));
        if chosen.is_probe() {
            clocks = clocks.with_probe(lane.probe_time(chosen.account, now));
        }
        ctx.attempts.current = Some(Attempt {
            chosen,
            lane: lane.clone(),
            address,
            began: now,
            clocks,
            progress: Progress {
                started_at: ctx.started,
                sent_at: None,
                head_at: None,
                kept_alive_at: None,
                begun_at: None,
                last_content_at: None,
            },
            piece: 0,
            put: 0,
            sent: false,
            answered: false,
        });
        Some(Box::new(peer))
    }

    /// TLS must be as configured before a byte of the request goes out.
    pub(super) fn check_connection(
        &self,
        ctx: &mut Context,
        digest: Option<&Digest>,
    ) -> Result<()> {
        let attempt = ctx.attempts.current.as_ref();
        let Some(slot) = attempt.and_then(Attempt::endpoint_slot) else {
            return Error::e_explain(ErrorType::InternalError, "an attempt without an endpoint");
        };
        slot.template
            .check_tls(digest)
            .map_err(Distrust::into_error)
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
                    *bytes = refit(bytes, &attempt.lane)?;
                    *lane = lane_index;
                }
                (
                    Length::Known(bytes.len() as u64),
                    Some(HeaderValue::from_static("application/json")),
                )
            }
        };
        let surface = match ctx.answer.resumption.as_ref().is_some_and(|it| it.made > 0) {
            true => &Surface::Chat { beta: true },
            false => &routed.surface,
        };
        let path = format!(
            "{}{}",
            endpoint.settings.base_path,
            surface.upstream_path(pool.settings.dialect)
        );
        let method = method(&routed.surface);
        let request = signing::Request {
            method: method.as_str(),
            target: &path,
            host: endpoint.authority.to_str().unwrap_or_default(),
            body: match &routed.body {
                Outbound::Whole { bytes, .. } => bytes,
                Outbound::None | Outbound::Through { .. } => b"",
            },
        };
        let credential = account.map(|account| account.credential(request));
        let outgoing = Outgoing {
            method: method.clone(),
            path: &path,
            authority: &endpoint.authority,
            credential: credential.as_deref().unwrap_or_default(),
            length,
            content_type,
            request_id: &ctx.request_id,
        };
        *head = forward::request_head(head.version, &session.req_header().headers, &outgoing)?;
        attempt.sent = true;
        if let (Some(behind), Outbound::Whole { bytes, .. }) = (&ctx.behind, &routed.body) {
            let whole = head.version != Version::HTTP_2;
            attempt.piece = if whole { bytes.len() } else { PIECE };
            let pieces = bytes.len().div_ceil(attempt.piece.max(1)).max(1);
            behind.begin_attempt(head.version, pieces);
        }
        ctx.moved(Step::Sent, Instant::now());
        doubt(ctx);
        ctx.upstream_at_work(true);
        self.count_as_sent(ctx);
        Ok(())
    }

    /// Puts the body in the place of the markers that Pingora reads, or counts what passes through.
    pub(super) fn put_body(
        &self,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        let Stage::Routed(routed) = &mut ctx.stage else {
            return Ok(());
        };
        match &mut routed.body {
            // What stands for a body that was let go of is none.
            Outbound::None if body.as_ref().is_some_and(|body| !body.is_empty()) => {
                let why = "a body is asked for that is not there any more";
                return Error::e_explain(ErrorType::InternalError, why);
            }
            Outbound::None => {}
            // The answer was over before.
            Outbound::Whole { .. } if body.is_none() => {}
            Outbound::Whole { bytes, .. } => {
                let Some(attempt) = &mut ctx.attempts.current else {
                    return Error::e_explain(ErrorType::InternalError, "a body without an attempt");
                };
                let from = attempt.put.min(bytes.len());
                let piece = if end { bytes.len() } else { attempt.piece };
                attempt.put = from.saturating_add(piece).min(bytes.len());
                *body = Some(bytes.slice(from..attempt.put));
            }
            Outbound::Through { left, check, .. } => {
                let piece = body.as_ref().map_or(0, Bytes::len) as u64;
                let late = |attempt: &Attempt| {
                    attempt.began.elapsed() > attempt.lane.pool.settings.timeouts.total
                };
                if ctx.attempts.current.as_ref().is_some_and(late) {
                    ctx.refusal = Some(Refusal::closing(
                        Code::RequestTimeout,
                        "The upload took too long.",
                    ));
                    return Err(refused(ctx));
                }
                let Some(rest) = left.checked_sub(piece) else {
                    ctx.refusal = Some(Refusal::closing(
                        Code::BodyTooLarge,
                        "The file is larger than an upload may be.",
                    ));
                    return Err(refused(ctx));
                };
                *left = rest;
                if let Some(check) = check {
                    let mut out = check.exchange(body.take().unwrap_or_default());
                    if end {
                        let Some(last) = check.finish() else {
                            ctx.refusal = Some(altered());
                            return Err(refused(ctx));
                        };
                        out = [out, last].concat().into();
                    }
                    // Pingora takes none for the end of the body, and before it leaves an empty
                    // piece out; at the end it would write one, a second last chunk.
                    *body = (!end || !out.is_empty()).then_some(out);
                }
            }
        }
        Ok(())
    }
}

/// Who waits for the first content of somebody that is left out as slow meanwhile asks another
/// instead, if it may: the deadlines are for those who are slow alone.
fn doubt(ctx: &Context) {
    let (Some(behind), Some(attempt)) = (&ctx.behind, &ctx.attempts.current) else {
        return;
    };
    let rules = &ctx.snapshot.settings.retry;
    let may = ctx.attempts.made < rules.attempts && rules.on.contains(&FailureClass::Deadline);
    let Some(stuck) = attempt.chosen.stuck().filter(|_| may) else {
        return;
    };
    let Wish { tried, pinned, .. } = ctx.wish_for(&attempt.lane);
    if pinned.is_some() {
        return;
    }
    let (snapshot, until) = (ctx.snapshot.clone(), ctx.started + rules.deadline);
    behind.doubt(Some(Box::new(move |now| {
        now < until && stuck.gives_up(&tried, now, &snapshot.settings.retry)
    })));
}

/// Nobody who serves the model may be asked at the moment.
fn closed(reopens: Option<Duration>) -> Refusal {
    let wait = reopens.unwrap_or(SHORTEST_WAIT);
    unreachable().retry_after(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT))
}

/// The time that the request had is over, and nobody is at work on it.
pub(super) fn out_of_time() -> Refusal {
    Refusal::new(
        Code::UpstreamTimeout,
        "No upstream answered within the time that this request may take.",
    )
    .detail("total")
}

/// Of those who turned a request away, the one that would have served it first.
fn sooner(before: Option<NotServed>, after: NotServed) -> Option<NotServed> {
    let both = before.into_iter().chain([after]);
    let full = both.filter(|why| why.wait().is_some());
    full.min_by_key(|why| why.wait())
}

fn at_ceiling(why: NotServed) -> Refusal {
    let wait = why.wait().unwrap_or_default();
    Refusal::new(
        Code::Overloaded,
        "All upstream accounts are busy; try again in a moment.",
    )
    .retry_after(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT))
    .detail(format!("queue: {}", why.as_str()))
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

/// Only a request's first attempt finds out whether an address can be reached again, with all the
/// time that a connection is given: it should lose no more than that.
fn visit(ctx: &Context, lane: &Lane, now: Instant) -> Visit {
    let needs = lane.pool.settings.timeouts.connect_total;
    let hurries = ctx.ends_by().is_some_and(|end| now + needs > end);
    match ctx.attempts.made == 0 && !hurries {
        true => Visit::MayTry,
        false => Visit::Sure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_to_come_back_when_the_soonest_of_all_lines_may_have_room() {
        let [short, long] = [3, 9].map(Duration::from_secs);
        let full = NotServed::QueueFull { wait: long };
        let late = NotServed::Late { wait: short };
        assert_eq!(sooner(None, NotServed::Exhausted), None);
        assert_eq!(sooner(None, full), Some(full));
        assert_eq!(sooner(Some(full), NotServed::Exhausted), Some(full));
        assert_eq!(sooner(Some(full), late), Some(late));
        assert_eq!(sooner(Some(late), full), Some(late));
        assert_eq!(at_ceiling(late).retry_after_seconds(), Some(3));
    }
}
