//! What of an answer must not reach the client yet, or not as Pingora has it.

use std::sync::atomic::Ordering;

use http::Version;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use tokio::time::Instant;

use super::StandIn;

impl StandIn {
    /// Leaves out what must not reach the client yet: a head without content, and what only shows
    /// that the upstream is alive.
    pub(super) fn hold_back(&mut self, tasks: Vec<HttpTask>) -> Vec<HttpTask> {
        if self.is_out() {
            return tasks;
        }
        let open = self.shared.open.load(Ordering::Acquire);
        let says =
            |task: &HttpTask| matches!(task, HttpTask::Body(Some(piece), _) if !piece.is_empty());
        let told = open || tasks.iter().any(HttpTask::is_end);
        let early = !told && Instant::now() >= self.hold_until && tasks.iter().any(says);
        if tasks
            .iter()
            .any(|task| matches!(task, HttpTask::Header(..)))
        {
            // An earlier attempt's, which failed before its content.
            self.held = None;
        }
        if !told && !early {
            let dropped = tasks.iter().any(says);
            for task in tasks {
                if let HttpTask::Header(head, _) = task {
                    self.held = Some(head);
                }
            }
            if let Some(mut head) = self.held.take() {
                // What is left out was counted in its length.
                if dropped {
                    self.unbound(&mut head);
                }
                self.held = Some(head);
            }
            return Vec::new();
        }
        let mut out = Vec::with_capacity(tasks.len() + 1);
        out.extend(self.held.take().map(|head| HttpTask::Header(head, false)));
        out.extend(tasks);
        if early {
            for task in &mut out {
                if let HttpTask::Header(head, _) = task {
                    self.unbound(head);
                }
            }
        }
        out
    }

    /// Takes a head's length away: the body is not, or may yet not be, the one it is of.
    fn unbound(&self, head: &mut ResponseHeader) {
        if head.remove_header(&CONTENT_LENGTH).is_some()
            && self.client.req_header().version == Version::HTTP_11
        {
            // One static value for another: it cannot fail.
            let _ = head.insert_header(TRANSFER_ENCODING, "chunked");
        }
    }

    /// Has the client seen a final head?
    fn is_out(&self) -> bool {
        let written = self.client.response_written();
        written.is_some_and(|head| !head.status.is_informational())
    }
}

/// Takes an end off a task; false if it was nothing else.
pub(super) fn leave_open(task: &mut HttpTask) -> bool {
    match task {
        HttpTask::Body(_, end) | HttpTask::Header(_, end) => {
            *end = false;
            true
        }
        HttpTask::Trailer(_) | HttpTask::Done => false,
        _ => true,
    }
}

/// HTTP/1.0 knows no chunks (RFC 9112 §7.1), and Pingora puts them into the head of an answer that
/// came over HTTP/2, after all filters.
pub(super) fn unchunk(task: &mut HttpTask) {
    if let HttpTask::Header(head, _) = task {
        head.remove_header(&TRANSFER_ENCODING);
    }
}
