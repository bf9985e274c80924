//! From a request head to a known caller, a known route and a body ready to go: enter, identify,
//! route. Or to an answer of our own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora::{Error, ErrorType, OrErr, Result};
use pingora_proxy::Session;

use super::Gateway;
use super::admit::expected;
use crate::config::settings::{OnDisconnect, Tenant};
use crate::context::{Context, Expected, Outbound, Routed, Stage};
use crate::downstream::connection::ConnectionState;
use crate::identity::directory::Identity;
use crate::identity::reason::Reason;
use crate::identity::signed_request::SignatureError;
use crate::identity::signed_request::body::{self as signed_body, HeldBack};
use crate::request::body::{self, BodyError, BodyLimits};
use crate::request::deadline;
use crate::request::edit::Edits;
use crate::request::forward;
use crate::request::head::{self, Framing, Head};
use crate::request::refusal::{Code, Refusal};
use crate::request::scan::{self, Fields};
use crate::request::stand_in::{self, Terms};
use crate::request::surface::{self, FileCall, Surface};
use crate::routing::affinity;
use crate::routing::route::{self, Route, Variant};
use crate::upstream::pool::Lane;

/// Bodies of refused requests up to this size are read, so that the connection can go on.
const DRAIN_LIMIT: u64 = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// What becomes of a request that was taken in.
enum Passage {
    /// It goes upstream.
    Forward,
    /// This is the answer.
    Answer(String),
}

/// Why it was not taken in.
enum Stop {
    Refused(Refusal),
    Gone(Box<Error>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Gateway {
    /// Sets the clocks that Pingora leaves open.
    pub(super) fn begin(&self, session: &mut Session, ctx: &mut Context) {
        let limits = &ctx.snapshot.settings.server.limits;
        ctx.protocol = session.req_header().version;
        let multiplexed = ctx.protocol == Version::HTTP_2;
        ctx.connection = ConnectionState::of(session.digest()).cloned();
        if let Some(connection) = &ctx.connection {
            connection.begin_request(multiplexed);
        }
        if session.get_keepalive().is_some() {
            // Pingora sets "for ever" whenever it reads a head; 0 would mean the same.
            let seconds = limits.idle_timeout.as_secs().max(1);
            session.set_keepalive((!self.in_flight.is_draining()).then_some(seconds));
        }
        session.set_read_timeout(Some(limits.body_timeout));
        session.set_write_timeout(Some(limits.write_timeout));
    }

    pub(super) async fn take_in(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        match self.receive(session, ctx).await {
            Ok(Passage::Forward) => Ok(false),
            Ok(Passage::Answer(body)) => {
                ctx.answer.status = StatusCode::OK.as_u16();
                ctx.answer.complete = true;
                let head =
                    forward::own_head(StatusCode::OK, ctx.family, &ctx.request_id, body.len())?;
                session.write_response_header(Box::new(head), false).await?;
                session
                    .write_response_body(Some(Bytes::from(body)), true)
                    .await?;
                Ok(true)
            }
            Err(Stop::Refused(refusal)) => {
                self.refuse(session, ctx, refusal).await?;
                Ok(true)
            }
            Err(Stop::Gone(error)) => {
                ctx.client_gone = true;
                Err(error.into_down())
            }
        }
    }

    async fn receive(&self, session: &mut Session, ctx: &mut Context) -> Result<Passage, Stop> {
        let framing = self.enter(session, ctx)?;
        if framing == Framing::Open && ctx.protocol == Version::HTTP_11 {
            // Pingora takes an empty chunk-size line for the last chunk, so after a chunked body
            // nobody can be sure where the next request begins.
            session.set_keepalive(None);
        }
        self.identify(session, ctx)?;
        ctx.client_deadline = deadline::told(&session.req_header().headers)?;
        // What follows may refuse; the log should still say who asked for what, so both stay.
        let Stage::Identified(surface, identity) = &ctx.stage else {
            return Err(Refusal::new(Code::Internal, "The request lost its way.").into());
        };
        let (surface, identity) = (surface.clone(), identity.clone());
        let who = identity.tenant.clone();
        if let Surface::Models { id } = &surface {
            may_be_empty(&identity)?;
            let names = ctx.snapshot.routes.allowed(|name| identity.allows(name));
            return Ok(Passage::Answer(route::model_list(
                &names,
                id.as_deref(),
                ctx.family,
            )?));
        }
        let routed = if surface.routes_by_model() {
            self.route_by_model(session, ctx, framing, &surface, identity)
                .await?
        } else {
            let lane = by_permission(ctx, &who, &surface)?;
            let body = passing_through(session, ctx, &surface, framing, &identity)?;
            if ctx.protocol != Version::HTTP_10
                && session.req_header().headers.contains_key(header::EXPECT)
            {
                session
                    .write_continue_response()
                    .await
                    .map_err(Stop::Gone)?;
            }
            Routed {
                surface,
                identity,
                route: None,
                variants: vec![Variant { lane, on: None }],
                body,
                expected: Expected::default(),
                stream: false,
                strip_usage: false,
            }
        };
        ctx.stage = Stage::Routed(Box::new(routed));
        self.admit(ctx).await?;
        place_stand_in(session, ctx);
        Ok(Passage::Forward)
    }

    /// Is the head clean, and does the path exist?
    fn enter(&self, session: &Session, ctx: &mut Context) -> Result<Framing, Refusal> {
        let request = session.req_header();
        let target = request.raw_path();
        ctx.family = surface::family(
            target
                .split(|byte| *byte == b'?')
                .next()
                .unwrap_or_default(),
        );
        let raw = session
            .as_http1()
            .map(|http1| http1.get_headers_raw_bytes());
        let head = Head {
            method: &request.method,
            version: request.version,
            target,
            headers: &request.headers,
            raw: raw.as_deref(),
        };
        let framing = head::check(&head, ctx.snapshot.head_limits)?;
        let entry = surface::classify(&request.method, target)?;
        ctx.shown = Some(self.metrics.show_in_flight(entry.surface.name()));
        ctx.stage = Stage::Entered(entry.surface);
        Ok(framing)
    }

    /// Reads the body, finds the route in it and fits it to the first upstream.
    async fn route_by_model(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        framing: Framing,
        surface: &Surface,
        identity: Identity,
    ) -> Result<Routed, Stop> {
        let mut body = self.read_body(session, ctx, framing, &identity).await?;
        let ready = Instant::now();
        let fields = scan::scan(&body.bytes)
            .map_err(|cause| Refusal::new(Code::InvalidBody, cause.to_string()))?;
        let model = fields.model.as_ref().ok_or_else(|| {
            Refusal::new(
                Code::InvalidBody,
                "The body names no model. Set \"model\" to one that GET /v1/models lists.",
            )
            .about("model")
        })?;
        let route = ctx.snapshot.routes.find(&identity, &model.value, surface)?;
        if self.switches.model_is_off(&route.model) {
            return Err(Refusal::model_switched_off().into());
        }
        let variants: Vec<_> = route
            .variants
            .iter()
            .filter(|variant| route::serves(&variant.lane, surface))
            .cloned()
            .collect();
        // Embeddings have no streams, and servers pass over the wish for one.
        let stream = fields.stream == Some(true) && *surface != Surface::Embeddings;
        let options = fields.stream_options.as_ref();
        let asked = options.and_then(|options| options.include_usage) == Some(true);
        let strip_usage = stream && !asked && route::asks_for_usage(surface);
        let expected = expected(&fields, &route);
        if *surface != Surface::Embeddings {
            if keeps_homes(&variants) {
                ctx.affinity = affinity::key(identity.tenant.id.as_str(), &route.model, &fields);
            }
            ctx.names_files = ctx.snapshot.files.is_some() && fields.names_files();
        }
        let first = variants.first().map(|first| &*first.lane);
        let edits = edits(&fields, &route, first, strip_usage);
        edits.apply(&mut body.bytes);
        self.metrics.own_work("route", ready.elapsed());
        Ok(Routed {
            surface: surface.clone(),
            identity,
            route: Some(route),
            variants,
            body: Outbound::Whole {
                bytes: Bytes::from(body.bytes),
                lane: 0,
                _share: body.share,
            },
            expected,
            stream,
            strip_usage,
        })
    }

    /// All of the body; if it was signed, as it was signed.
    async fn read_body(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        framing: Framing,
        identity: &Identity,
    ) -> Result<body::Body, Stop> {
        let limits = &ctx.snapshot.settings.server.limits;
        let limits = BodyLimits {
            max: limits.max_request_body,
            timeout: limits.body_timeout,
        };
        let body = body::read(session, framing, limits, &self.bodies)
            .await
            .map_err(|error| match error {
                BodyError::Refused(refusal) => Stop::Refused(refusal),
                BodyError::Gone(error) => Stop::Gone(error),
            })?;
        ctx.body_bytes = Some(body.bytes.len());
        if let Some(expected) = identity.body_digest
            && !signed_body::matches(expected, &body.bytes)
        {
            return Err(altered().into());
        }
        Ok(body)
    }

    /// Says no in the caller's dialect and leaves the connection clean, or closes it.
    pub(super) async fn refuse(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        refusal: Refusal,
    ) -> Result<()> {
        let unread = !session.is_body_done();
        if refusal.close || (unread && !drain(session).await) {
            session.set_keepalive(None);
            if let Some(connection) = &ctx.connection {
                connection.linger();
            }
        }
        let body = refusal.body(ctx.family, ctx.request_id());
        let head = forward::refusal_head(&refusal, ctx.family, &ctx.request_id, body.len())?;
        ctx.answer.status = refusal.status().as_u16();
        ctx.refusal = Some(refusal);
        // The head of an answer to HEAD is all of it (RFC 9110 §9.3.2); HTTP/2 clients insist.
        let bare = session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(head), bare).await?;
        if bare {
            return Ok(());
        }
        session
            .write_response_body(Some(Bytes::from(body)), true)
            .await
    }
}

/// Does any of these send a conversation where its prefix is?
fn keeps_homes(variants: &[Variant]) -> bool {
    let mut upstreams = variants.iter().map(|variant| &variant.lane.pool.settings);
    upstreams.any(|settings| settings.affinity.is_some())
}

/// A body that was read is sent by a session in the client's place.
fn place_stand_in(session: &mut Session, ctx: &mut Context) {
    let Some(routed) = ctx.routed() else { return };
    if !matches!(routed.body, Outbound::Whole { .. }) {
        return;
    }
    let drain = match routed.identity.tenant.plan.on_disconnect {
        OnDisconnect::Drain(time) => Some(time),
        OnDisconnect::Cancel => None,
    };
    let hold = ctx.snapshot.settings.retry.hold_head;
    ctx.behind = Some(stand_in::put(session, Terms { drain, hold }));
}

/// What changes in a body for an upstream: the model's name there, what the public name fixes, and
/// the request for usage.
fn edits(fields: &Fields<'_>, route: &Route, lane: Option<&Lane>, ask_for_usage: bool) -> Edits {
    let mut edits = Edits::new();
    for (key, value) in &route.set {
        edits.set(fields, key, value);
    }
    if let Some(lane) = lane {
        edits.replace_model(fields, &lane.model);
    }
    if ask_for_usage {
        edits.ask_for_usage(fields);
    }
    edits
}

/// Fits a body that was edited for another lane to this one: only the model's name differs.
pub(super) fn refit(bytes: &Bytes, lane: &Lane) -> Result<Bytes> {
    let fields = scan::scan(bytes).or_err(ErrorType::InternalError, "a body of our own making")?;
    let mut edits = Edits::new();
    edits.replace_model(&fields, &lane.model);
    let mut body = bytes.to_vec();
    edits.apply(&mut body);
    Ok(Bytes::from(body))
}

/// Calls without a model: may this tenant make them, and what serves them?
fn by_permission(ctx: &Context, tenant: &Tenant, surface: &Surface) -> Result<Arc<Lane>, Refusal> {
    let (allowed, lane) = match surface {
        Surface::Files(_) => (tenant.files, &ctx.snapshot.files),
        _ => (tenant.balance, &ctx.snapshot.balance),
    };
    if !allowed {
        return Err(Refusal::new(
            Code::NotAllowed,
            format!("Your key may not use this path ({}).", surface.name()),
        ));
    }
    lane.clone().ok_or_else(|| {
        Refusal::new(
            Code::UnknownPath,
            format!(
                "No upstream of this gateway offers this path ({}).",
                surface.name()
            ),
        )
    })
}

/// A body that nobody needs to read.
fn passing_through(
    session: &mut Session,
    ctx: &Context,
    surface: &Surface,
    framing: Framing,
    identity: &Identity,
) -> Result<Outbound, Refusal> {
    if !matches!(surface, Surface::Files(FileCall::Upload)) {
        return match framing {
            Framing::Length(_) => Err(Refusal::new(Code::BadRequest, "This call takes no body.")),
            Framing::Open if !session.is_body_done() => Err(Refusal::closing(
                Code::BadRequest,
                "This call takes no body.",
            )),
            Framing::Open | Framing::None => may_be_empty(identity).map(|()| Outbound::None),
        };
    }
    let max = ctx.snapshot.settings.server.limits.max_file_upload;
    let check = || {
        identity
            .body_digest
            .map(|digest| Box::new(HeldBack::new(digest)))
    };
    match framing {
        Framing::Length(length) if length > max => Err(Refusal::closing(
            Code::BodyTooLarge,
            format!("A file upload may have {max} bytes at most."),
        )),
        Framing::Length(length) => Ok(Outbound::Through {
            length: Some(length),
            left: max,
            check: check(),
        }),
        Framing::Open => Ok(Outbound::Through {
            length: None,
            left: max,
            check: check(),
        }),
        Framing::None => Err(Refusal::new(
            Code::InvalidBody,
            "A file upload needs a body.",
        )),
    }
}

/// A request without a body must have been signed as one.
fn may_be_empty(identity: &Identity) -> Result<(), Refusal> {
    match identity.body_digest {
        Some(expected) if !signed_body::matches(expected, b"") => Err(altered()),
        _ => Ok(()),
    }
}

/// What is said of a body that is not the one that was signed.
pub(super) fn altered() -> Refusal {
    Reason::Signature(SignatureError::WrongDigest).refuse()
}

/// Reads the rest of a small body; false if it is not small or does not come.
async fn drain(session: &mut Session) -> bool {
    let length = session.req_header().headers.get(header::CONTENT_LENGTH);
    let length = length
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if length.is_none_or(|length| length > DRAIN_LIMIT)
        || session.req_header().headers.contains_key(header::EXPECT)
    {
        return false;
    }
    let rest = async { while let Ok(Some(_)) = session.read_request_body().await {} };
    tokio::time::timeout(DRAIN_TIME, rest).await.is_ok() && session.is_body_done()
}
