//! How to reach an endpoint: addresses, TLS and deadlines in the form Pingora's connector takes.
//!
//! All TLS towards upstreams is set up here. Pingora's own lower bound is TLS 1.0 and cannot be
//! raised from outside, so the negotiated version is checked before the first byte of a request is
//! sent ([`PeerTemplate::check_tls`]). Pingora's pool key leaves out CA and ALPN; whatever it
//! leaves out goes into `group_key`, so that a reload which changes them opens new connections.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::x509::X509;
use pingora::connectors::http::Connector;
use pingora::protocols::tls::CaType;
use pingora::protocols::{ALPN, Digest};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy, PeerOptions};

use super::enveloped::Enveloped;
use crate::config::settings::{
    Endpoint, Envelope, TlsVersion, Upstream, UpstreamProtocol, UpstreamTimeouts,
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
        Ok(Self {
            line: None,
            tls: endpoint.tls,
            server_name,
            options,
            group_key: hasher.finish(),
            min_version: upstream.tls.min_version.unwrap_or(TlsVersion::V1_2),
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
        peer
    }

    /// Is the connection's TLS new enough to send a credential over it? A connection inside the
    /// process exists only if the one behind it is.
    pub fn check_tls(&self, digest: Option<&Digest>) -> bool {
        if !self.tls || self.line.is_some() {
            return true;
        }
        let version = digest
            .and_then(|digest| digest.ssl_digest.as_ref())
            .map(|tls| tls.version.as_ref());
        match version {
            Some("TLSv1.3") => true,
            Some("TLSv1.2") => self.min_version == TlsVersion::V1_2,
            _ => false,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that builds peers, from an address that needs no resolving"
)]
fn plain_peer(address: SocketAddr, tls: bool, server_name: String) -> HttpPeer {
    HttpPeer::new(address, tls, server_name)
}

fn read_ca(path: &Path) -> Result<Arc<CaType>, PeerError> {
    let pem = std::fs::read(path).map_err(|cause| PeerError::CaUnreadable {
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
