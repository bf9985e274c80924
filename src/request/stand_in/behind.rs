//! What the gateway and the session that stands in for a client's tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use parking_lot::Mutex;
use pingora::protocols::http::ServerSession;
use pingora_proxy::Session;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::clock::{Clock, Doubt};
use super::upload::Upload;
use super::vacate;

/// What the request knows of the client behind the session that stands in for it.
pub struct Behind(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) at_work: AtomicBool,
    pub(super) left: AtomicBool,
    /// There is something for the client: its head need not be held back.
    pub(super) open: AtomicBool,
    pub(super) clock: Clock,
    /// Bytes of answers that came here to be passed on.
    pub(super) taken: AtomicUsize,
    /// What comes next is the last, and must not end as if it were whole.
    pub(super) broken: AtomicBool,
    /// The gateway has seen the end of the answer, or does not look at it.
    pub(super) finished: AtomicBool,
    /// In how many pieces an attempt gets the body.
    pub(super) pieces: AtomicUsize,
    /// The attempt's upstream speaks HTTP/2, and may not have the body yet.
    pub(super) over_http2: AtomicBool,
    /// A body on its way over HTTP/2.
    pub(super) upload: Mutex<Option<Upload>>,
    /// The client's session, when nothing stands in its place any more.
    pub(super) back: Mutex<Option<ServerSession>>,
}

impl Shared {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at_work: AtomicBool::new(false),
            left: AtomicBool::new(false),
            open: AtomicBool::new(false),
            clock: Clock::new(now),
            taken: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            finished: AtomicBool::new(true),
            pieces: AtomicUsize::new(1),
            over_http2: AtomicBool::new(false),
            upload: Mutex::default(),
            back: Mutex::default(),
        }
    }

    /// Is the attempt's body on its way still? Then this is part of the answer to it.
    pub(super) fn answers_early(&self) -> bool {
        if !self.over_http2.load(Ordering::Acquire) {
            return false;
        }
        let mut upload = self.upload.lock();
        upload.as_mut().map(Upload::answers).is_some()
    }

    /// The attempt's body is not on its way any more.
    pub(super) fn uploaded(&self) {
        if self.over_http2.load(Ordering::Acquire) {
            self.over_http2.store(false, Ordering::Release);
            self.upload.lock().take();
        }
    }
}

impl Behind {
    /// Whether an upstream is at work on the request: only then is there something to read on.
    pub fn at_work(&self, is: bool) {
        self.0.at_work.store(is, Ordering::Release);
    }

    /// An attempt begins, at an upstream that speaks this version and is sent the body in so many
    /// pieces.
    pub fn begin_attempt(&self, version: Version, pieces: usize) {
        self.0.upload.lock().take();
        self.0.pieces.store(pieces, Ordering::Release);
        let over_http2 = version == Version::HTTP_2;
        self.0.over_http2.store(over_http2, Ordering::Release);
    }

    /// By this line Pingora is reached while the attempt's body is on its way over HTTP/2, one write
    /// of which may take so long.
    pub fn watch_upload(&self, line: Sender<Bytes>, patience: Duration) {
        *self.0.upload.lock() = Some(Upload::new(line, patience));
    }

    /// The client left, and what came afterwards did not reach it.
    pub fn has_left(&self) -> bool {
        self.0.left.load(Ordering::Acquire)
    }

    /// Whether there is something for the client: what comes now is not held back any more.
    pub fn open(&self, is: bool) {
        self.0.open.store(is, Ordering::Release);
    }

    /// An upstream is waited for from now on, until `end` at the latest.
    pub fn begin_wait(&self, end: std::time::Instant) {
        self.0.clock.begin(end);
    }

    /// There was content; what comes after it is waited for anew.
    pub fn begin_wait_anew(&self) {
        self.0.clock.begin_anew();
    }

    /// Until when the next sign is waited for. What the client holds up itself puts it off, as long
    /// as the same is waited for.
    pub fn wait_until(&self, deadline: std::time::Instant) {
        self.0.clock.wait_until(deadline);
    }

    /// No upstream is waited for any more.
    pub fn wait_for_nobody(&self) {
        self.0.clock.rest();
    }

    /// Beside the deadline there is a doubt, or no longer.
    pub fn doubt(&self, doubt: Option<Doubt>) {
        self.0.clock.doubt(doubt);
    }

    /// Was it given up by a doubt? True once for each time.
    pub fn was_doubted(&self) -> bool {
        self.0.clock.was_doubted()
    }

    /// Was the deadline over? True once for each time.
    pub fn was_late(&self) -> bool {
        self.0.clock.was_late()
    }

    /// Breaks the answer off after what goes out next: its body gets no proper end.
    pub fn break_off(&self) {
        self.0.broken.store(true, Ordering::Release);
    }

    /// Whether the end of the answer was seen by whoever looks at it. An end that was not is none:
    /// Pingora's filters are shown bodies, and over HTTP/2 an answer may end with something else.
    pub fn finished(&self, is: bool) {
        self.0.finished.store(is, Ordering::Release);
    }

    /// How many bytes of the answer's body came here to be passed on. Pingora shows several pieces
    /// to its filters before it passes them on together, and none of them if one is an error.
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Acquire)
    }

    /// Puts the client's own session back, unless there is no client any more. May be asked twice.
    pub fn step_aside(&self, session: &mut Session) {
        if self.has_left() || !session.downstream_session.is_custom() {
            return;
        }
        drop(vacate(session));
        if let Some(client) = self.0.back.lock().take() {
            *session.downstream_session = client;
        }
    }
}
