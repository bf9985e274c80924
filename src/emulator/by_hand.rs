//! Writes to a connection what hyper would refuse to: no HTTP, heads without end,
//! lengths that are wrong. It decides nothing about what is written when.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::sleep;

use super::entry::Outcome;
use super::line::{Grip, Line};
use super::script::Step;
use super::ticket::Ticket;

/// A blank line is in it, so that whoever waits for one has what it waits for.
const NOISE: &[u8] = b"\x00\x16\x03\xffSSH-2.0-noise\x80\xfe no HTTP at all\r\n\r\n";
const ENDLESS_BEGINNING: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const ENDLESS_LINE: &[u8] = b"x-endless: and one more line of a head that has no end\r\n";
/// Lines of one write when there is no pause between them.
const LINES_AT_ONCE: usize = 64;

/// What is written.
#[derive(Debug)]
pub(super) enum Manual {
    Noise,
    /// The head with this status, below 200, and silence.
    Informational(u16),
    /// The time between two lines; without one, as fast as they are read.
    EndlessHead(Duration),
    Answer {
        head: Vec<u8>,
        steps: Vec<Step>,
        /// Less is sent than was announced: the connection closes. Otherwise it
        /// stays, with the rest of the answer on it.
        ends_short: bool,
    },
}

impl Manual {
    /// The status that the client sees, of an answer that has this one.
    pub(super) fn status(&self, of_answer: StatusCode) -> Option<StatusCode> {
        match self {
            Self::Noise | Self::EndlessHead(_) => None,
            Self::Informational(status) => StatusCode::from_u16(*status).ok(),
            Self::Answer { .. } => Some(of_answer),
        }
    }
}

/// An exchange that has taken its connection for itself.
pub(super) struct Seized {
    pub manual: Manual,
    pub ticket: Ticket,
    /// What the journal says once everything was written.
    pub outcome: Outcome,
}

/// Plays it until it ends or the client leaves.
pub(super) async fn play(seized: Seized, line: Line) {
    let grip = Arc::clone(line.grip());
    let (from, mut to) = split(line);
    let ended = tokio::select! {
        ended = write(&mut to, seized, &grip) => ended,
        () = until_closed(from) => Ok(()),
    };
    if let Err(error) = ended {
        log::debug!("emulator: connection ended: {error}");
    }
}

async fn until_closed(mut from: impl AsyncRead + Unpin) {
    let mut buffer = [0; 1024];
    while matches!(from.read(&mut buffer).await, Ok(1..)) {}
}

async fn write(to: &mut (impl AsyncWrite + Unpin), seized: Seized, grip: &Grip) -> io::Result<()> {
    let Seized {
        manual,
        mut ticket,
        outcome,
    } = seized;
    match manual {
        Manual::Noise => to.write_all(NOISE).await?,
        Manual::Informational(status) => {
            let upgrade = if status == 101 {
                "connection: upgrade\r\nupgrade: websocket\r\n"
            } else {
                ""
            };
            let head = format!("HTTP/1.1 {status} Emulated\r\n{upgrade}\r\n");
            to.write_all(head.as_bytes()).await?;
        }
        Manual::EndlessHead(every) => endless(to, every).await?,
        Manual::Answer {
            head,
            steps,
            ends_short,
        } => {
            to.write_all(&head).await?;
            let broken = follow(to, steps, &mut ticket, grip).await?;
            if broken || ends_short {
                ticket.settle(Outcome::Fault);
                return to.shutdown().await;
            }
        }
    }
    to.flush().await?;
    ticket.settle(outcome);
    std::future::pending().await
}

async fn endless(to: &mut (impl AsyncWrite + Unpin), every: Duration) -> io::Result<()> {
    to.write_all(ENDLESS_BEGINNING).await?;
    let lines = ENDLESS_LINE.repeat(LINES_AT_ONCE);
    loop {
        if every.is_zero() {
            to.write_all(&lines).await?;
        } else {
            to.write_all(ENDLESS_LINE).await?;
            to.flush().await?;
            sleep(every).await;
        }
    }
}

/// Plays the steps of a body; true when one of them breaks the connection.
async fn follow(
    to: &mut (impl AsyncWrite + Unpin),
    steps: Vec<Step>,
    ticket: &mut Ticket,
    grip: &Grip,
) -> io::Result<bool> {
    for step in steps {
        match step {
            Step::Wait(wait) => sleep(wait).await,
            Step::Begin => ticket.begin(),
            Step::Send(bytes, progress) => {
                ticket.sent(progress);
                to.write_all(&bytes).await?;
                to.flush().await?;
            }
            Step::Cut => return Ok(true),
            Step::Reset => {
                grip.break_off();
                return Ok(true);
            }
            Step::Hang => std::future::pending().await,
        }
    }
    Ok(false)
}
