//! What an order does to an answer as a whole once it is made: what comes in its
//! place, and what is wrong about its head. Pure; it knows no socket.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::by_hand::Manual;
use super::exchange::Act;
use super::fault::{Faults, Instead};
use super::gzip;
use super::refusal::{HTML, PAGE};
use super::script::{self, Step};

/// How an answer is spoilt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spoil {
    /// Silence before everything else.
    pub delay: Duration,
    instead: Option<Instead>,
    /// An informational status, which no answer follows.
    informational: Option<u16>,
    pub gzip: bool,
    length: Option<i64>,
}

impl Spoil {
    pub(super) fn under(faults: &Faults) -> Self {
        Self {
            delay: faults.head.unwrap_or_default(),
            instead: faults.instead,
            informational: faults.status.filter(|status| *status < 200),
            gzip: faults.gzip,
            length: faults.length,
        }
    }

    /// Nothing but a delay.
    pub(super) fn late(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// Whether the answer is not needed, so that no work is done for it.
    pub(super) fn replaces(&self) -> bool {
        self.instead.is_some() || self.informational.is_some()
    }

    /// The act as it is then; what hyper would not write is in [`manual`](Self::manual).
    pub(super) fn apply(&self, mut act: Act) -> Act {
        match self.instead {
            Some(Instead::Page) => {
                act.content_type = HTML;
                act.chunked = false;
                act.script.steps = script::plain(Bytes::from_static(PAGE));
            }
            Some(Instead::Nothing) => {
                act.chunked = false;
                act.script.steps = Vec::new();
            }
            _ if self.gzip => gzip::pack(&mut act.script.steps),
            _ => {}
        }
        act
    }

    /// What has to be written by hand, if anything; `steps` and `headers` are the
    /// answer's, and `steps` are taken if they are part of it.
    pub(super) fn manual(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        steps: &mut Vec<Step>,
    ) -> Option<Manual> {
        if let Some(status) = self.informational {
            return Some(Manual::Informational(status));
        }
        match (self.instead, self.length) {
            (Some(Instead::Noise), _) => Some(Manual::Noise),
            (Some(Instead::EndlessHead(every)), _) => Some(Manual::EndlessHead(every)),
            (_, Some(more)) => Some(Manual::Answer {
                head: head(status, headers, announced(steps, more)),
                steps: std::mem::take(steps),
                ends_short: more > 0,
            }),
            _ => None,
        }
    }
}

/// The length to announce: `more` bytes than are sent, at least none.
fn announced(steps: &[Step], more: i64) -> usize {
    let sent = steps.iter().map(|step| match step {
        Step::Send(bytes, _) => bytes.len(),
        _ => 0,
    });
    let sent: usize = sent.sum();
    let more = isize::try_from(more).unwrap_or_default();
    sent.saturating_add_signed(more)
}

fn head(status: StatusCode, headers: &HeaderMap, length: usize) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(format!("content-length: {length}\r\n\r\n").as_bytes());
    head
}
