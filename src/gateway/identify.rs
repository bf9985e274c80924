//! Who is calling, at the edge: what the connection and the head show is handed to the directory,
//! failures are counted, and addresses that fail too often are heard no more.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::header;
use pingora_proxy::Session;

use super::Gateway;
use super::overload::{self, Caps};
use crate::config::settings::Listener;
use crate::context::{Context, Stage};
use crate::downstream::proof::{ClientProof, Shown};
use crate::identity::certificate::CertificateNames;
use crate::identity::client_address;
use crate::identity::directory::{Caller, Identity};
use crate::identity::reason::Reason;
use crate::identity::signed_request::canonical::Target;
use crate::request::refusal::{Code, Refusal};
use crate::snapshot::Snapshot;

impl Gateway {
    pub(super) fn identify(&self, session: &Session, ctx: &mut Context) -> Result<(), Refusal> {
        let began = Instant::now();
        let (connection, snapshot) = (ctx.connection.clone(), ctx.snapshot.clone());
        let listeners = &snapshot.settings.server.listeners;
        let known = connection
            .as_ref()
            .and_then(|connection| Some((connection, listeners.get(connection.listener)?)));
        let Some((connection, listener)) = known else {
            // Nobody knows what would be asked of this caller.
            return Err(Refusal::new(Code::Internal, "The connection is not known."));
        };
        let address = client_address(session, connection.peer.ip(), listener)?;
        ctx.client = Some(address);
        let limits = &snapshot.settings.server.limits;
        let caps = Caps {
            requests: limits.max_requests,
            per_address: limits.max_requests_per_ip,
            per_address_and_second: limits.max_requests_per_second_per_ip,
        };
        ctx.of_address = self.overload.enter(address, caps, self.in_flight.count())?;
        let from = (connection.shown(), listener);
        let identity = self
            .judge(session, &snapshot, from, address)
            .map_err(|reason| {
                self.metrics
                    .authentication_failures
                    .with_label_values(&[reason.as_str()])
                    .inc();
                if reason.may_be_a_guess() {
                    self.guessing.failed(address);
                }
                reason.refuse()
            })?;
        let off = self.switches.tenant_is_off(&identity.tenant.id);
        let priority = identity.tenant.plan.priority;
        overload::shed(priority, caps.requests, self.in_flight.count())?;
        if let Stage::Entered(surface) = std::mem::replace(&mut ctx.stage, Stage::Received) {
            ctx.stage = Stage::Identified(surface, identity);
        }
        if off {
            return Err(Refusal::tenant_switched_off());
        }
        self.metrics.own_work("identify", began.elapsed());
        Ok(())
    }

    fn judge(
        &self,
        session: &Session,
        snapshot: &Snapshot,
        (shown, listener): (Option<&Shown>, &Listener),
        address: IpAddr,
    ) -> Result<Identity, Reason> {
        let now = now();
        let proof = shown.map(|shown| shown.proof(now));
        let proof = proof.as_deref().unwrap_or(&ClientProof::None);
        let limit = snapshot.settings.identity.failed_attempts_per_minute;
        let fingerprint = (limit > 0).then(|| self.fingerprint(session, proof));
        if let Some(fingerprint) = fingerprint
            && !self.guessing.known(address, fingerprint)
            && let Some(wait) = self.guessing.is_throttled(address, limit)
        {
            return Err(Reason::Throttled(wait));
        }
        let request = session.req_header();
        let (path, query) = split(request.raw_path());
        let caller = Caller {
            headers: &request.headers,
            target: Target {
                method: request.method.as_str(),
                path: path?,
                query: query?,
            },
            certificate: certificate(proof, listener)?,
            address,
            accept: listener.accept,
            anonymous: listener.anonymous_tenant.as_ref(),
            now,
        };
        let identity = snapshot.directory.identify(&caller)?;
        if let Some(fingerprint) = fingerprint {
            self.guessing.succeeded(address, fingerprint);
        }
        Ok(identity)
    }

    /// Of whatever the caller shows; a signed request is known by its key id, since its signature
    /// is never the same twice.
    fn fingerprint(&self, session: &Session, proof: &ClientProof) -> u64 {
        let headers = &session.req_header().headers;
        let authorization = headers
            .get(header::AUTHORIZATION)
            .map(|value| value.as_bytes());
        let signer = authorization
            .and_then(|text| std::str::from_utf8(text).ok())
            .and_then(|text| crate::identity::signed_request::parse(text).ok())
            .map(|signed| signed.key_id.as_bytes());
        let mut hasher = self.hasher.build_hasher();
        signer.or(authorization).hash(&mut hasher);
        headers
            .get("x-api-key")
            .map(|value| value.as_bytes())
            .hash(&mut hasher);
        if let ClientProof::Good(names) = proof {
            names.hash(&mut hasher);
        }
        std::hash::Hasher::finish(&hasher)
    }
}

/// The certificate the directory may look at.
fn certificate<'a>(
    proof: &'a ClientProof,
    listener: &Listener,
) -> Result<Option<&'a CertificateNames>, Reason> {
    let clients = listener.tls.as_ref().and_then(|tls| tls.clients.as_ref());
    match proof {
        ClientProof::Good(names) => Ok(Some(names)),
        ClientProof::Bad(why) => Err(Reason::BadCertificate(why)),
        ClientProof::None if clients.is_some_and(|clients| clients.required) => {
            Err(Reason::NoCertificate)
        }
        ClientProof::None => Ok(None),
    }
}

fn client_address(session: &Session, peer: IpAddr, listener: &Listener) -> Result<IpAddr, Refusal> {
    client_address::effective(
        peer,
        &session.req_header().headers,
        &listener.trusted_proxies,
        listener.forwarded_by,
    )
    .map_err(|why| Refusal::new(Code::BadRequest, format!("{why}.")))
}

/// Path and query as sent. Texts, since the head was found clean.
fn split(target: &[u8]) -> (Result<&str, Reason>, Result<&str, Reason>) {
    let mut parts = target.splitn(2, |byte| *byte == b'?');
    let mut next = || {
        let part = parts.next().unwrap_or_default();
        std::str::from_utf8(part)
            .map_err(|_| Reason::Doubtful(crate::identity::credential::Doubt::Unreadable))
    };
    (next(), next())
}

/// Unix seconds.
fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
}
