//! While a request stands in line for a place: is its client still there, and must it hear something?

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Version;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use tokio::time::sleep_until;

use super::Gateway;
use crate::config::settings::{Priority, TenantId};
use crate::context::{Context, Outbound};
use crate::request::forward;
use crate::upstream::pool::{Chosen, Lane};
use crate::upstream::queue::{NotServed, Waiter, Waiting};

/// Says in a stream that it is alive; no parser of events shows it to anybody.
const COMMENT: &[u8] = b": waiting\n\n";

impl Gateway {
    /// Waits in the lane's line until there is a place, or there is no point in waiting.
    ///
    /// # Errors
    /// If the client leaves; its place in the line is given up at once.
    pub(super) async fn wait_for_place(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        lane: &Arc<Lane>,
    ) -> Result<Result<Chosen, NotServed>> {
        let began = Instant::now();
        let left = ctx.snapshot.settings.queue.max_wait;
        let deadline = began + left.saturating_sub(ctx.attempts.queued);
        let waiting = match lane.wait(waiter(ctx), &ctx.attempts.tried, deadline, began) {
            Ok(waiting) => waiting,
            Err(refused) => return Ok(Err(refused)),
        };
        let served = stand_in_line(session, ctx, waiting).await;
        ctx.attempts.queued += began.elapsed();
        served.map_err(|mut error| {
            ctx.client_gone = true;
            error.set_retry(false);
            error.into_down()
        })
    }
}

fn waiter(ctx: &Context) -> Waiter {
    let tenant = ctx.identity().map(|identity| &identity.tenant);
    Waiter {
        tenant: tenant.map_or_else(|| TenantId::new(""), |tenant| tenant.id.clone()),
        weight: tenant.map_or(1, |tenant| tenant.plan.weight),
        priority: tenant.map_or(Priority::Normal, |tenant| tenant.plan.priority),
    }
}

async fn stand_in_line(
    session: &mut Session,
    ctx: &mut Context,
    mut waiting: Waiting,
) -> Result<Result<Chosen, NotServed>> {
    // What is to stream through is not ours to read; such a client is missed when it is written to.
    let watched = session.is_body_done();
    let interval = keep_alive(ctx);
    let mut due = interval.map(|interval| Instant::now() + interval);
    loop {
        let gone = async {
            match watched {
                true => session.downstream_session.read_body_or_idle(true).await,
                false => std::future::pending().await,
            }
        };
        let silence = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            served = &mut waiting => return Ok(served),
            gone = gone => {
                // Also if it sent what it should not: Pingora would see it so during an attempt.
                return Err(gone.err().unwrap_or_else(|| Error::new(ErrorType::ConnectionClosed)));
            }
            () = silence => {}
        }
        say_waiting(session, ctx).await?;
        due = interval.map(|interval| Instant::now() + interval);
    }
}

/// How often the client must hear something, if it can.
fn keep_alive(ctx: &Context) -> Option<Duration> {
    let routed = ctx.routed()?;
    // HTTP/1.0 has no chunks: where our stream ends could not be told from a broken one.
    let can = routed.stream
        && matches!(routed.body, Outbound::Whole { .. })
        && ctx.protocol != Version::HTTP_10;
    let interval = ctx.snapshot.settings.queue.keep_alive;
    interval.filter(|_| can)
}

/// A comment, and before the first one the head of the answer that is to come.
async fn say_waiting(session: &mut Session, ctx: &mut Context) -> Result<()> {
    if !ctx.answer.opened {
        let head = forward::stream_head(ctx.family, &ctx.request_id)?;
        ctx.answer.opened = true;
        session.write_response_header(Box::new(head), false).await?;
    }
    let comment = Bytes::from_static(COMMENT);
    session.write_response_body(Some(comment), false).await
}
