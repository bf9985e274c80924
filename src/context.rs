//! One request's story, told as it happens: what came in, how far it got, what is being tried, what
//! went back.
//!
//! Stages read what earlier ones left and write their own part; nothing here decides.

mod answer;
mod attempts;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Version};
use jiff::Timestamp;
use pingora_limits::inflight::Guard;
use pingora_proxy::Session;

use crate::admission::estimate::{Learned, Prompt};
use crate::admission::lease::Lease;
use crate::downstream::connection::ConnectionState;
use crate::downstream::in_flight::RequestGuard;
use crate::identity::directory::Identity;
use crate::identity::signed_request::body::HeldBack;
use crate::relay::usage::Usage;
use crate::request::body::Share;
use crate::request::rate::RateLimits;
use crate::request::refusal::{Family, Refusal};
use crate::request::stand_in::Behind;
use crate::request::surface::Surface;
use crate::routing::route::{Route, Variant};
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Shown;
use crate::upstream::breaker::Caller;
use crate::upstream::clocks::Clocks;
use crate::upstream::pool::{Lane, Wish};

pub use answer::{Answer, Resumption, Watch};
pub use attempts::{Attempt, Attempts, Broken, Names, Place, Step, Try};

/// A request whose client leaves it less time is in a hurry.
const HURRY: Duration = Duration::from_secs(2);

/// Everything known of one request.
pub struct Context {
    pub snapshot: Arc<Snapshot>,
    pub started: Instant,
    pub request_id: HeaderValue,
    /// The same as a number.
    pub request_number: u128,
    pub family: Family,
    pub connection: Option<Arc<ConnectionState>>,
    /// Whose address it is after trusted proxies were believed; known with the identity.
    pub client: Option<IpAddr>,
    /// As the client spoke it.
    pub protocol: Version,
    /// How long the whole request may take, if the client said so.
    pub client_deadline: Option<Duration>,
    /// Where the conversation's prefix is likely to be found again.
    pub affinity: Option<u64>,
    /// The body refers to files of the upstream's account.
    pub names_files: bool,
    /// Bytes of the request body, once it was read whole.
    pub body_bytes: Option<usize>,
    _in_flight: RequestGuard,
    /// Keeps the request in the gauge of its surface.
    pub shown: Option<Shown>,
    pub stage: Stage,
    /// Keeps the request in the count of its address.
    pub of_address: Option<Guard>,
    /// The room it holds in its tenant's limits.
    pub admitted: Option<Admitted>,
    pub attempts: Attempts,
    pub answer: Answer,
    /// Why the request was refused or failed, once it was.
    pub refusal: Option<Refusal>,
    pub client_gone: bool,
    /// The client behind the session that stands in for its own, where one does.
    pub behind: Option<Behind>,
}

/// How far the request has come.
pub enum Stage {
    Received,
    /// The path is known.
    Entered(Surface),
    /// The caller is known.
    Identified(Surface, Identity),
    /// It is known what serves it.
    Routed(Box<Routed>),
}

/// A request on its way to an upstream.
pub struct Routed {
    pub surface: Surface,
    pub identity: Identity,
    /// `None` for calls that name no model.
    pub route: Option<Arc<Route>>,
    /// Where attempts may go, best first.
    pub variants: Vec<Variant>,
    pub body: Outbound,
    pub expected: Expected,
    pub stream: bool,
    /// Usage was asked for by us alone: the extra chunk is taken out again.
    pub strip_usage: bool,
}

/// What a request will take, as far as its body says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// Estimated without what was learned.
    pub prompt: Prompt,
    /// Completion tokens that the request, or its route, allows; `None` if neither says.
    pub most_output: Option<u64>,
    /// Answers asked for at once, at least 1.
    pub choices: u64,
}

/// What was taken in the tenant's limits.
pub struct Admitted {
    /// `None` once it is settled.
    pub lease: Option<Lease>,
    /// What the model's answers have shown to the tenant.
    pub learned: Arc<Learned>,
    /// How the limits stood after it.
    pub shown: RateLimits,
    /// When; prices are those of this moment.
    pub at: Timestamp,
    /// Keeps the request in the gauge that leases are held against.
    pub counted: Shown,
}

/// What goes upstream as the body.
pub enum Outbound {
    None,
    /// Read whole, edited for `lane`; the share of the memory budget is held until the end.
    Whole {
        bytes: Bytes,
        lane: usize,
        _share: Share,
    },
    /// Streams through unread; `length` if the client announced one, at most `left` more bytes.
    Through {
        length: Option<u64>,
        left: u64,
        /// Of a signed upload.
        check: Option<Box<HeldBack>>,
    },
}

impl Context {
    /// The story begins.
    pub fn new(snapshot: Arc<Snapshot>, started: Instant, in_flight: RequestGuard) -> Self {
        let id = uuid::Uuid::now_v7();
        Self {
            snapshot,
            started,
            request_id: request_id(id),
            request_number: id.as_u128(),
            family: Family::default(),
            connection: None,
            client: None,
            protocol: Version::HTTP_11,
            client_deadline: None,
            affinity: None,
            names_files: false,
            body_bytes: None,
            _in_flight: in_flight,
            shown: None,
            stage: Stage::Received,
            of_address: None,
            admitted: None,
            attempts: Attempts::default(),
            answer: Answer::default(),
            refusal: None,
            client_gone: false,
            behind: None,
        }
    }

    /// The client left, and the answer is read on without it.
    pub fn client_left(&self) -> bool {
        self.behind.as_ref().is_some_and(Behind::has_left)
    }

    /// Puts the client's own session back, so that its connection can go on.
    pub fn put_client_back(&self, session: &mut Session) {
        if let Some(behind) = &self.behind {
            behind.step_aside(session);
        }
    }

    /// Tells whether an upstream is at work, and so whether there is something to be read on.
    pub fn upstream_at_work(&self, is: bool) {
        if let Some(behind) = &self.behind {
            behind.at_work(is);
        }
    }

    /// Spread over all numbers, and another one for each attempt.
    pub fn random(&self) -> u64 {
        // The lower half of the request's number is random; a step of SplitMix64 stirs it.
        let low = self.request_number as u64;
        let state =
            low.wrapping_add(u64::from(self.attempts.made).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The variant that is to be asked next. A stream that is gone on with stays where it is:
    /// another model's words would not be the rest of this one's.
    pub fn variant(&self) -> Option<Variant> {
        let resumption = self.answer.resumption.as_ref();
        let bound = resumption.is_some_and(|it| it.made > 0);
        let lane = self.attempts.lane;
        if bound && self.attempts.asked != Some(lane) {
            return None;
        }
        self.routed()?.variants.get(lane).cloned()
    }

    /// The clocks of an attempt with this lane.
    pub fn clocks(&self, lane: &Lane) -> Clocks {
        let routed = self.routed();
        let model = routed.and_then(|routed| Some(routed.route.as_ref()?.deadlines));
        let tenant = routed.map(|routed| routed.identity.tenant.deadlines);
        let streamed = routed.is_some_and(|routed| routed.stream);
        Clocks::new(
            &lane.pool.settings.timeouts,
            &model.unwrap_or_default(),
            &tenant.unwrap_or_default(),
            self.client_deadline,
            streamed,
        )
    }

    /// What is asked of a lane for this request.
    pub fn wish_for(&self, lane: &Lane) -> Wish {
        let files = self.snapshot.files.as_ref();
        let holds_files = |files: &&Arc<Lane>| files.pool.settings.id == lane.pool.settings.id;
        Wish {
            tried: self.attempts.tried.clone(),
            key: self.affinity,
            // All files lie with the first account of their upstream.
            pinned: (self.names_files && files.filter(holds_files).is_some()).then_some(0),
            streamed: self.is_streamed(),
            hurried: self.client_deadline.is_some_and(|time| {
                let left = (self.started + time).saturating_duration_since(Instant::now());
                left < HURRY
            }),
            caller: self.identity().map(|it| Caller::of(&it.tenant.id)),
        }
    }

    /// Was a stream asked for?
    pub fn is_streamed(&self) -> bool {
        self.routed().is_some_and(|routed| routed.stream)
    }

    /// Could the lane know the files that the request names, if it names any?
    pub fn has_files_at(&self, lane: &Lane) -> bool {
        let files = self.snapshot.files.as_ref().filter(|_| self.names_files);
        files.is_none_or(|files| files.pool.settings.id == lane.pool.settings.id)
    }

    /// Is the time for the request as a whole over?
    pub fn is_over(&self, now: Instant) -> bool {
        self.ends_by().is_some_and(|end| end <= now)
    }

    /// When the request as a whole must be over, with the variant that is asked next.
    pub fn ends_by(&self) -> Option<Instant> {
        let variant = self.variant()?;
        Some(self.clocks(&variant.lane).ends(self.started))
    }

    /// The attempt has moved on, and with it the deadline that is looked at.
    pub fn moved(&mut self, step: Step, now: Instant) {
        let Some(attempt) = &mut self.attempts.current else {
            return;
        };
        let progress = &mut attempt.progress;
        if step == Step::Content
            && progress.last_content_at.is_none()
            && let Some(behind) = &self.behind
        {
            behind.doubt(None);
        }
        match step {
            Step::Sent => progress.sent_at = Some(now),
            Step::Head => progress.head_at = Some(now),
            Step::KeepAlive => progress.kept_alive_at = Some(now),
            Step::Begun => progress.begun_at = progress.begun_at.or(Some(now)),
            Step::Content => {
                progress.begun_at = progress.begun_at.or(Some(now));
                progress.last_content_at = Some(now);
            }
        }
        if let Some(behind) = &self.behind {
            match step {
                Step::Sent => behind.begin_wait(attempt.clocks.ends(self.started)),
                Step::Content => behind.begin_wait_anew(),
                Step::Head | Step::KeepAlive | Step::Begun => {}
            }
            let (deadline, _) = attempt.clocks.next(&attempt.progress);
            behind.wait_until(deadline);
        }
    }

    pub fn surface(&self) -> Option<&Surface> {
        match &self.stage {
            Stage::Received => None,
            Stage::Entered(surface) | Stage::Identified(surface, _) => Some(surface),
            Stage::Routed(routed) => Some(&routed.surface),
        }
    }

    pub fn identity(&self) -> Option<&Identity> {
        match &self.stage {
            Stage::Received | Stage::Entered(_) => None,
            Stage::Identified(_, identity) => Some(identity),
            Stage::Routed(routed) => Some(&routed.identity),
        }
    }

    pub fn routed(&self) -> Option<&Routed> {
        match &self.stage {
            Stage::Routed(routed) => Some(routed),
            _ => None,
        }
    }

    /// Gives the body and its share of the memory budget back, if all of it is on its way.
    pub fn let_go_of_body(&mut self) {
        let put = self.attempts.current.as_ref().map_or(0, |it| it.put);
        if let Stage::Routed(routed) = &mut self.stage
            && let Outbound::Whole { bytes, .. } = &routed.body
            && put >= bytes.len()
        {
            routed.body = Outbound::None;
        }
    }

    /// The public model name, if it is one of the configuration's.
    pub fn model(&self) -> Option<&str> {
        self.routed()?
            .route
            .as_ref()
            .map(|route| route.model.as_str())
    }

    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// Has content of a stream come from the attempt under way, or the last?
    pub fn has_spoken(&self) -> bool {
        matches!(&self.answer.watch, Watch::Stream(scanner) if scanner.seen().first_content)
    }

    pub fn usage(&self) -> Option<Usage> {
        match &self.answer.watch {
            Watch::Stream(scanner) => scanner.seen().usage,
            Watch::Whole(scanner) => scanner.seen().usage,
            Watch::Nothing | Watch::Error { .. } => None,
        }
    }
}

/// Time-ordered and unique; 32 hexadecimal digits.
fn request_id(id: uuid::Uuid) -> HeaderValue {
    let mut buffer = uuid::Uuid::encode_buffer();
    let text: &str = id.simple().encode_lower(&mut buffer);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}
