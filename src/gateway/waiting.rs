//! While a request stands in line for a place, or between two attempts: is its client still there,
//! and must it hear something?

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Version;
use jiff::Timestamp;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use tokio::time::{sleep_until, timeout};

use super::Gateway;
use crate::config::settings::{Priority, TenantId};
use crate::context::{Context, Outbound};
use crate::request::forward;
use crate::upstream::pool::{Chosen, Lane};
use crate::upstream::queue::{NotServed, Waiter, Waiting};

/// How long a place is held for a client that must first take what was being said to it.
const LAST_WORD: Duration = Duration::from_secs(1);
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
        let deadline = ctx.ends_by().map_or(deadline, |end| end.min(deadline));
        let waiting = match lane.wait(waiter(ctx), &ctx.wish_for(lane), deadline, began) {
            Ok(waiting) => waiting,
            Err(refused) => return Ok(Err(refused)),
        };
        let served = stand_in_line(session, ctx, waiting).await;
        ctx.attempts.queued += began.elapsed();
        served.map_err(|error| gone(ctx, error))
    }

    /// Lets time pass until the next attempt may begin.
    ///
    /// # Errors
    /// If the client leaves.
    pub(super) async fn pause(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        until: Instant,
    ) -> Result<()> {
        let left = tokio::select! {
            biased;
            left = departure(session) => left,
            () = sleep_until(until.into()) => return Ok(()),
        };
        Err(gone(ctx, left))
    }
}

fn gone(ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
    ctx.client_gone = true;
    error.set_retry(false);
    error.into_down()
}

/// Ends when the client has left, or sent what it should not: Pingora would see it so during an
/// attempt. What is to stream through is not ours to read; such a client is missed when it is
/// written to.
async fn departure(session: &mut Session) -> Box<Error> {
    // A session that stands in for the client's has read it, even where it owes it to an attempt.
    let has_body = session.is_body_done() || session.downstream_session.is_custom();
    match has_body {
        true => {
            let read = session.downstream_session.read_body_or_idle(true).await;
            read.err()
                .unwrap_or_else(|| Error::new(ErrorType::ConnectionClosed))
        }
        false => std::future::pending().await,
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
    let interval = keep_alive(ctx);
    let mut due = interval.map(|interval| Instant::now() + interval);
    loop {
        let silence = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            served = &mut waiting => return Ok(served),
            left = departure(session) => return Err(left),
            () = silence => {}
        }
        if let Some(served) = meanwhile(say_waiting(session, ctx), &mut waiting).await? {
            return Ok(served);
        }
        due = interval.map(|interval| Instant::now() + interval);
    }
}

/// Says something to the client while it waits; what became of the waiting, if it ended meanwhile.
///
/// Half a comment would spoil the stream, so what was begun is ended first. A place is held for
/// that a moment only: others want it.
///
/// # Errors
/// If the client cannot be written to, or does not read while its place waits for it.
async fn meanwhile<T, W>(
    saying: impl Future<Output = Result<()>>,
    waiting: &mut W,
) -> Result<Option<Result<T, NotServed>>>
where
    W: Future<Output = Result<T, NotServed>> + Unpin,
{
    let mut saying = pin!(saying);
    let served = tokio::select! {
        biased;
        said = &mut saying => return said.map(|()| None),
        served = waiting => served,
    };
    match served {
        Ok(place) => match timeout(LAST_WORD, saying).await {
            Ok(said) => said.map(|()| Some(Ok(place))),
            Err(_) => Error::e_explain(
                ErrorType::WriteTimedout,
                "a place has come, and the client does not read",
            ),
        },
        Err(no) => saying.await.map(|()| Some(Err(no))),
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
        let mut head = forward::stream_head(ctx.family, &ctx.request_id)?;
        if let Some(admitted) = &ctx.admitted {
            admitted
                .shown
                .put(&mut head, ctx.family, Timestamp::now())?;
        }
        ctx.answer.opened = true;
        session.write_response_header(Box::new(head), false).await?;
    }
    let comment = Bytes::from_static(COMMENT);
    session.write_response_body(Some(comment), false).await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::sync::oneshot;

    use super::*;

    type Served = Result<oneshot::Sender<()>, NotServed>;

    /// A place that is free when it is dropped.
    fn place() -> (Served, oneshot::Receiver<()>) {
        let (held, free) = oneshot::channel();
        (Ok(held), free)
    }

    #[tokio::test]
    async fn who_is_told_something_goes_on_waiting() {
        let mut waiting = pending::<Served>();
        let told = meanwhile(ready(Ok(())), &mut waiting).await;
        assert!(told.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_place_that_comes_while_something_is_said_is_kept_until_it_is_said() {
        let (served, mut free) = place();
        let (say, said) = oneshot::channel();
        let saying = async { said.await.unwrap() };
        let mut waiting = ready(served);
        let mut both = pin!(meanwhile(saying, &mut waiting));
        assert!(futures_util::poll!(&mut both).is_pending());
        say.send(Ok(())).unwrap();
        let place = both.await.unwrap().unwrap();
        assert!(place.is_ok() && free.try_recv() == Err(oneshot::error::TryRecvError::Empty));
    }

    #[tokio::test]
    async fn a_place_is_not_held_for_a_client_that_does_not_read() {
        let (served, free) = place();
        let began = Instant::now();
        let end = meanwhile(pending(), &mut ready(served)).await;
        assert_eq!(*end.unwrap_err().etype(), ErrorType::WriteTimedout);
        assert!(free.await.is_err() && began.elapsed() < LAST_WORD * 5);
    }

    #[tokio::test]
    async fn a_refusal_is_told_after_what_was_being_said() {
        let no = NotServed::Exhausted;
        let (say, said) = oneshot::channel();
        let saying = async { said.await.unwrap() };
        let mut waiting = ready(Served::Err(no));
        let mut both = pin!(meanwhile(saying, &mut waiting));
        assert!(futures_util::poll!(&mut both).is_pending());
        say.send(Ok(())).unwrap();
        assert_eq!(both.await.unwrap().unwrap().unwrap_err(), no);
    }
}
