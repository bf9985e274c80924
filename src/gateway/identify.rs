//! Who is calling, at the edge: what the connection and the head show is handed to the directory,
//! failures are counted, and addresses that fail too often are heard no more.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::header;
use pingora_proxy::Session;

use super::Gateway;
use crate::config::settings::{Accepted, Listener};
use crate::context::{Context, Stage};
use crate::downstream::proof::ClientProof;
use crate::identity::client_address;
use crate::identity::directory::{Caller, Identity};
use crate::identity::reason::Reason;
use crate::identity::signed_request::canonical::Target;
use crate::request::refusal::{Code, Refusal};

impl Gateway {
    pub(super) fn identify(&self, session: &Session, ctx: &mut Context) -> Result<(), Refusal> {
        let began = Instant::now();
        let address = client_address(session, ctx)?;
        ctx.client = Some(address);
        let identity = self.judge(session, ctx, address).map_err(|reason| {
            self.metrics
                .authentication_failures
                .with_label_values(&[reason.as_str()])
                .inc();
            if reason.may_be_a_guess() {
                self.guessing.failed(address);
            }
            reason.refuse()
        })?;
        if let Stage::Entered(surface) = std::mem::replace(&mut ctx.stage, Stage::Received) {
            ctx.stage = Stage::Identified(surface, identity);
        }
        self.metrics.own_work("identify", began.elapsed());
        Ok(())
    }

    fn judge(&self, session: &Session, ctx: &Context, address: IpAddr) -> Result<Identity, Reason> {
        let proof = ctx
            .connection
            .as_ref()
            .map_or(&ClientProof::None, |connection| connection.proof());
        let fingerprint = self.fingerprint(session, proof);
        let limit = ctx.snapshot.settings.identity.failed_attempts_per_minute;
        if !self.guessing.known(address, fingerprint)
            && let Some(wait) = self.guessing.is_throttled(address, limit)
        {
            return Err(Reason::Throttled(wait));
        }
        let listener = listener(ctx);
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
            accept: listener.map_or(Accepted::ALL, |listener| listener.accept),
            anonymous: listener.and_then(|listener| listener.anonymous_tenant.as_ref()),
            now: now(),
        };
        let identity = ctx.snapshot.directory.identify(&caller)?;
        self.guessing.succeeded(address, fingerprint);
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
    listener: Option<&Listener>,
) -> Result<Option<&'a crate::identity::certificate::CertificateNames>, Reason> {
    let clients = listener
        .and_then(|listener| listener.tls.as_ref())
        .and_then(|tls| tls.clients.as_ref());
    match proof {
        ClientProof::Good(names) => Ok(Some(names)),
        ClientProof::Bad(why) => Err(Reason::BadCertificate(why)),
        ClientProof::None if clients.is_some_and(|clients| clients.required) => {
            Err(Reason::NoCertificate)
        }
        ClientProof::None => Ok(None),
    }
}

fn client_address(session: &Session, ctx: &Context) -> Result<IpAddr, Refusal> {
    let peer = ctx
        .connection
        .as_ref()
        .map_or(IpAddr::from([0, 0, 0, 0]), |connection| {
            connection.peer.ip()
        });
    let Some(listener) = listener(ctx) else {
        return Ok(peer);
    };
    client_address::effective(
        peer,
        &session.req_header().headers,
        &listener.trusted_proxies,
        listener.forwarded_by,
    )
    .map_err(|why| Refusal::new(Code::BadRequest, format!("{why}.")))
}

fn listener(ctx: &Context) -> Option<&Listener> {
    let number = ctx.connection.as_ref()?.listener;
    ctx.snapshot.settings.server.listeners.get(number)
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
