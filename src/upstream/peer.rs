//! How to reach an endpoint: addresses, TLS and deadlines in the form Pingora's connector takes.
//!
//! All TLS towards upstreams is set up here. Pingora's own lower bound is TLS 1.0 and cannot be
//! raised from outside, so the negotiated version is checked before the first byte of a request is
//! sent ([`PeerTemplate::check_tls`]). Pingora's pool key leaves out CA and ALPN; whatever it
//! leaves out goes into `group_key`, so that a reload which changes them opens new connections.

use std::any::Any;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::pkey::PKey;
use openssl::x509::X509;
use pingora::connectors::http::Connector;
use pingora::protocols::tls::{CaType, TlsRef};
use pingora::protocols::{ALPN, Digest};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy, PeerOptions};
use pingora::utils::tls::CertKey;
use pingora::{Error, ErrorType};
use sha2::{Digest as _, Sha256};

use zeroize::Zeroizing;

use super::enveloped::Enveloped;
use crate::config::regular;
use crate::config::settings::{
    Endpoint, Envelope, TlsFiles, TlsVersion, Upstream, UpstreamProtocol, UpstreamTimeouts,
};

/// Streams on one upstream HTTP/2 connection; Pingora's default of 1 would not multiplex.
const MAX_H2_STREAMS: usize = 100;

/// What went wrong while preparing an upstream's TLS.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("cannot read the CA file {path}: {cause}")]
    CaUnreadable {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("the CA file {path} holds no usable PEM certificate")]
    CaInvalid { path: PathBuf },
    #[error("cannot use the client certificate {path}: {cause}")]
    Client { path: PathBuf, cause: String },
}

/// Everything about an endpoint's connections but the address.
#[derive(Clone)]
pub struct PeerTemplate {
    /// The connection inside the process by which answers lose their envelope.
    line: Option<Arc<Enveloped>>,
    tls: bool,
    server_name: String,
    options: PeerOptions,
    group_key: u64,
    min_version: TlsVersion,
    client: Option<Arc<CertKey>>,
    /// SHA-256 of the public keys it may have; empty for any.
    pins: Vec<Pin>,
}

/// SHA-256 of a SubjectPublicKeyInfo (RFC 7469 §2.4).
pub type Pin = [u8; 32];

/// Why a connection that was made is not used; the cause of the error that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error("the upstream's TLS version is older than allowed")]
    OldTls,
    #[error("the upstream's public key is none of the pinned")]
    WrongPin,
}

impl Distrust {
    /// The distrust that an error came from, however often it was wrapped.
    pub fn behind(error: &Error) -> Option<Self> {
        let cause = error.root_cause();
        cause.downcast_ref::<Self>().copied()
    }

    pub fn into_error(self) -> Box<Error> {
        Error::because(ErrorType::TLSHandshakeFailure, self.to_string(), self).into_up()
    }
}

impl PeerTemplate {
    /// # Errors
    /// If the private CA cannot be read.
    pub fn new(upstream: &Upstream, endpoint: &Endpoint) -> Result<Self, PeerError> {
        let mut options = PeerOptions::new();
        options.connection_timeout = Some(upstream.timeouts.connect);
        options.total_connection_timeout = Some(upstream.timeouts.connect_total);
        options.read_timeout = Some(upstream.timeouts.read);
        options.write_timeout = Some(upstream.timeouts.write);
        options.idle_timeout = Some(upstream.idle_timeout);
        options.alpn = match (upstream.protocol, endpoint.tls) {
            (UpstreamProtocol::Http1, _) => ALPN::H1,
            (UpstreamProtocol::Http2, true) => ALPN::H2H1,
            // Without TLS there is nothing to negotiate: prior knowledge.
            (UpstreamProtocol::Http2, false) => ALPN::H2,
        };
        options.max_h2_streams = MAX_H2_STREAMS;
        // Nothing of the client's head is forwarded, so there is nothing to strip; judging its
        // `Connection` would cost an upstream connection first.
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy {
            strip_connection_nominated: false,
            ..HttpUpstreamRequestPolicy::deny_upgrades()
        };
        options.ca = upstream.tls.ca.as_deref().map(read_ca).transpose()?;
        if upstream.tls.unverified {
            options.verify_cert = false;
            options.verify_hostname = false;
        }
        if !upstream.tls.pins.is_empty() {
            options.upstream_tls_handshake_complete_hook = Some(Arc::new(|tls| {
                let pin = public_key_pin(tls)?;
                Some(Arc::new(pin) as Arc<dyn Any + Send + Sync>)
            }));
        }
        let client = upstream.tls.client.as_ref().map(read_client).transpose()?;
        let server_name = upstream
            .tls
            .server_name
            .clone()
            .unwrap_or_else(|| endpoint.host.clone());
        let mut hasher = std::hash::DefaultHasher::new();
        upstream.protocol.hash(&mut hasher);
        for certificate in options.ca.iter().flat_map(|ca| ca.iter()) {
            certificate.to_der().unwrap_or_default().hash(&mut hasher);
        }
        // A connection whose key was never looked at must not be taken from the pool.
        upstream.tls.pins.hash(&mut hasher);
        upstream.tls.unverified.hash(&mut hasher);
        Ok(Self {
            line: None,
            tls: endpoint.tls,
            server_name,
            options,
            group_key: hasher.finish(),
            min_version: upstream.tls.min_version.unwrap_or(TlsVersion::V1_2),
            client: client.map(Arc::new),
            pins: upstream.tls.pins.clone(),
        })
    }

    /// The same endpoint, asked over connections that take its answers out of their envelope.
    pub fn enveloped(
        self,
        connector: Arc<Connector>,
        envelope: &Envelope,
        timeouts: &UpstreamTimeouts,
    ) -> Self {
        let direct = self.clone();
        let line = Enveloped::new(direct, connector, envelope, timeouts);
        Self {
            line: Some(Arc::new(line)),
            ..self
        }
    }

    /// The peer that a request for one resolved address asks.
    pub fn at(&self, address: SocketAddr) -> HttpPeer {
        let Some(line) = &self.line else {
            return self.direct(address);
        };
        // TLS and HTTP/2 are spoken behind the line.
        let mut peer = plain_peer(address, false, String::new());
        peer.options.read_timeout = self.options.read_timeout;
        peer.options.write_timeout = self.options.write_timeout;
        peer.options.http_upstream_request_policy = self.options.http_upstream_request_policy;
        peer.options.custom_l4 = Some(line.clone());
        peer
    }

    /// The endpoint itself at one resolved address.
    pub fn direct(&self, address: SocketAddr) -> HttpPeer {
        let mut peer = plain_peer(address, self.tls, self.server_name.clone());
        peer.options = self.options.clone();
        peer.group_key = self.group_key;
        peer.client_cert_key = self.client.clone();
        peer
    }

    /// Is the connection's TLS good enough to send a credential over it? A connection inside the
    /// process exists only if the one behind it is.
    ///
    /// # Errors
    /// If its version is too old, or the upstream's key is not a pinned one.
    pub fn check_tls(&self, digest: Option<&Digest>) -> Result<(), Distrust> {
        if !self.tls || self.line.is_some() {
            return Ok(());
        }
        let tls = digest.and_then(|digest| digest.ssl_digest.as_ref());
        let new_enough = match tls.map(|tls| tls.version.as_ref()) {
            Some("TLSv1.3") => true,
            Some("TLSv1.2") => self.min_version == TlsVersion::V1_2,
            _ => false,
        };
        if !new_enough {
            return Err(Distrust::OldTls);
        }
        if self.pins.is_empty() {
            return Ok(());
        }
        let shown = tls.and_then(|tls| tls.extension.get::<Pin>());
        match shown {
            Some(pin) if self.pins.contains(pin) => Ok(()),
            _ => Err(Distrust::WrongPin),
        }
    }
}

/// Of the certificate that the upstream shows.
fn public_key_pin(tls: &TlsRef) -> Option<Pin> {
    let key = tls.peer_certificate()?.public_key().ok()?;
    Some(Sha256::digest(key.public_key_to_der().ok()?).into())
}

fn read_client(files: &TlsFiles) -> Result<CertKey, PeerError> {
    let bad = |path: &Path| {
        let path = path.to_owned();
        move |cause: String| PeerError::Client { path, cause }
    };
    let read = |path: &Path| regular::read(path).map_err(|cause| bad(path)(cause.to_string()));
    let chain = X509::stack_from_pem(&read(&files.certificate)?)
        .map_err(|cause| bad(&files.certificate)(cause.to_string()))?;
    // OpenSSL would ask the terminal for the passphrase of an encrypted key.
    let pem = Zeroizing::new(read(&files.private_key)?);
    let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0))
        .map_err(|cause| bad(&files.private_key)(cause.to_string()))?;
    let leaf = chain
        .first()
        .ok_or_else(|| bad(&files.certificate)("it holds no certificate".to_owned()))?;
    let fits = leaf.public_key().is_ok_and(|public| public.public_eq(&key));
    if !fits {
        let cause = "the key is another certificate's".to_owned();
        return Err(bad(&files.private_key)(cause));
    }
    Ok(CertKey::new(chain, key))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that builds peers, from an address that needs no resolving"
)]
fn plain_peer(address: SocketAddr, tls: bool, server_name: String) -> HttpPeer {
    HttpPeer::new(address, tls, server_name)
}

fn read_ca(path: &Path) -> Result<Arc<CaType>, PeerError> {
    let pem = regular::read(path).map_err(|cause| PeerError::CaUnreadable {
        path: path.to_owned(),
        cause,
    })?;
    match X509::stack_from_pem(&pem) {
        Ok(certificates) if !certificates.is_empty() => {
            Ok(Arc::new(certificates.into_boxed_slice()))
        }
        _ => Err(PeerError::CaInvalid {
            path: path.to_owned(),
        }),
    }
}
