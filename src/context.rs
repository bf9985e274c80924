//! One request's story, told as it happens: what came in, how far it got, what is being tried, what
//! went back.
//!
//! Stages read what earlier ones left and write their own part; nothing here decides.

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
use crate::config::settings::{AccountId, UpstreamId};
use crate::downstream::connection::ConnectionState;
use crate::downstream::in_flight::RequestGuard;
use crate::identity::directory::Identity;
use crate::identity::signed_request::body::HeldBack;
use crate::relay::answer::AnswerScanner;
use crate::relay::sse;
use crate::relay::usage::Usage;
use crate::request::body::Share;
use crate::request::rate::RateLimits;
use crate::request::refusal::{Family, Refusal};
use crate::request::stand_in::Behind;
use crate::request::surface::Surface;
use crate::routing::route::Route;
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Shown;
use crate::upstream::gate::Reason;
use crate::upstream::pool::{AccountSlot, Chosen, EndpointSlot, Lane, Tried};

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
    pub lanes: Vec<Arc<Lane>>,
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

/// What was and is being tried.
#[derive(Default)]
pub struct Attempts {
    pub made: u32,
    pub tried: Tried,
    /// Index into [`Routed::lanes`].
    pub lane: usize,
    pub current: Option<Attempt>,
    /// Time spent waiting for places, over all attempts.
    pub queued: Duration,
    /// Attempts that ran into a dead pooled connection; not counted in `made`.
    pub stale: u32,
    /// The last failure may be followed by another attempt.
    pub again: bool,
    /// Where the last ended attempt went, for the record.
    pub last: Option<Names>,
    /// It ended because the client left, with the upstream at work.
    pub left_at_work: bool,
}

/// Where an attempt went, by name.
pub struct Names {
    pub upstream: UpstreamId,
    pub account: AccountId,
    pub endpoint: String,
    /// As the upstream calls it; empty for calls without one.
    pub model: String,
}

/// The try that is under way.
pub struct Attempt {
    pub chosen: Chosen,
    pub lane: Arc<Lane>,
    pub began: Instant,
    /// The request head went out: from here on a failure may have cost money.
    pub sent: bool,
    /// An answer's head came in: the connection was alive.
    pub answered: bool,
}

/// What comes back.
#[derive(Default)]
pub struct Answer {
    /// Status sent to the client; 0 until an answer, an upstream's or ours, is decided.
    pub status: u16,
    /// The head of a stream and comments were sent while the request waited; whatever comes, comes
    /// as events.
    pub opened: bool,
    pub watch: Watch,
    pub first_content: Option<Instant>,
    pub last_piece: Option<Instant>,
    pub gaps: Option<prometheus::Histogram>,
    pub upstream_trace: Option<String>,
    /// The proper end was seen and passed on.
    pub complete: bool,
    pub interrupted: bool,
}

/// Who looks at the answer's bytes.
#[derive(Default)]
pub enum Watch {
    /// Nobody: files, balance.
    #[default]
    Nothing,
    Stream(Box<sse::Scanner>),
    Whole(Box<AnswerScanner>),
    /// An upstream's error, gathered to be told in our words.
    Error {
        status: u16,
        gathered: Vec<u8>,
    },
}

impl Attempts {
    /// Goes on to the next variant, with nothing tried there yet.
    pub fn next_lane(&mut self) {
        self.lane += 1;
        self.tried = Tried::default();
    }
}

impl Attempt {
    pub fn account_slot(&self) -> Option<&AccountSlot> {
        self.lane.pool.accounts.get(self.chosen.account)
    }

    pub fn endpoint_slot(&self) -> Option<&EndpointSlot> {
        self.lane.pool.endpoints.get(self.chosen.endpoint)
    }

    /// The account has answered 429, and is not to be asked for this model for so long.
    pub fn tell_rate_limited(&self, now: Instant, pause: Duration) {
        let (lane, account) = (&self.lane, self.chosen.account);
        lane.rate_limited(account, self.began, now);
        lane.rest(account, now, pause);
    }

    /// Does the account rest for this model, after a 429?
    pub fn rests_for_model(&self, now: Instant) -> bool {
        let mut rests = self.lane.rests(now);
        rests.nth(self.chosen.account).unwrap_or(false)
    }

    /// The account is not to be asked for anything for so long.
    pub fn rest_account(&self, now: Instant, pause: Duration) {
        if let Some(account) = self.account_slot() {
            let until = Some(now + pause);
            let condition = &account.state.condition;
            condition.leave_until(Reason::Refused, "", until, now);
        }
    }

    /// The account has sent its first content.
    pub fn tell_first_content(&self, now: Instant) {
        let took = now.saturating_duration_since(self.began);
        let (lane, account) = (&self.lane, self.chosen.account);
        lane.first_content(account, took, self.began, now);
    }

    pub fn names(&self) -> Names {
        let endpoint = self.lane.pool.endpoints.get(self.chosen.endpoint);
        Names {
            upstream: self.lane.pool.settings.id.clone(),
            account: self
                .account_slot()
                .map_or_else(|| AccountId::new(""), |account| account.id.clone()),
            endpoint: endpoint
                .map(|slot| slot.settings.url.clone())
                .unwrap_or_default(),
            model: self.lane.model.clone(),
        }
    }
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

    /// Gives the body and its share of the memory budget back.
    pub fn let_go_of_body(&mut self) {
        if let Stage::Routed(routed) = &mut self.stage
            && matches!(routed.body, Outbound::Whole { .. })
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
