//! TLS towards clients: one acceptor per listener, rebuilt on reload, the last good one kept.
//!
//! OpenSSL through Pingora's handshake. TLS 1.2 and 1.3 only; the cipher choice is Mozilla's
//! "intermediate v5" as the `openssl` crate ships it.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use openssl::ssl::{AlpnError, SslAcceptor, SslFiletype, SslMethod, SslOptions, SslVersion};

use crate::config::settings::{ListenerTls, TlsVersion};

/// ALPN wire names, best first.
const ALPN: &[u8] = b"\x02h2\x08http/1.1";

/// Why a listener's certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot use the certificate {path}: {cause}")]
    Certificate {
        path: PathBuf,
        cause: openssl::error::ErrorStack,
    },
    #[error("cannot use the private key {path}: {cause}")]
    PrivateKey {
        path: PathBuf,
        cause: openssl::error::ErrorStack,
    },
    #[error("the private key {key} does not belong to the certificate {certificate}")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] openssl::error::ErrorStack),
}

/// A listener's TLS, replaceable while connections come in.
pub struct Acceptor {
    current: ArcSwap<SslAcceptor>,
}

impl Acceptor {
    /// # Errors
    /// If the files cannot be used.
    pub fn new(tls: &ListenerTls) -> Result<Self, CertificateError> {
        Ok(Self {
            current: ArcSwap::from_pointee(build(tls)?),
        })
    }

    /// Reads a listener's files without using them yet.
    ///
    /// # Errors
    /// If the files cannot be used.
    pub fn read(tls: &ListenerTls) -> Result<SslAcceptor, CertificateError> {
        build(tls)
    }

    /// Serves the next handshakes with `fresh`; running connections keep what they have.
    pub fn replace(&self, fresh: SslAcceptor) {
        self.current.store(Arc::new(fresh));
    }

    pub fn current(&self) -> Arc<SslAcceptor> {
        self.current.load_full()
    }
}

fn build(tls: &ListenerTls) -> Result<SslAcceptor, CertificateError> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(match tls.min_version {
        TlsVersion::V1_2 => SslVersion::TLS1_2,
        TlsVersion::V1_3 => SslVersion::TLS1_3,
    }))?;
    builder.set_options(SslOptions::NO_RENEGOTIATION);
    builder
        .set_certificate_chain_file(&tls.certificate)
        .map_err(|cause| CertificateError::Certificate {
            path: tls.certificate.clone(),
            cause,
        })?;
    builder
        .set_private_key_file(&tls.private_key, SslFiletype::PEM)
        .map_err(|cause| CertificateError::PrivateKey {
            path: tls.private_key.clone(),
            cause,
        })?;
    builder
        .check_private_key()
        .map_err(|_| CertificateError::Mismatch {
            certificate: tls.certificate.clone(),
            key: tls.private_key.clone(),
        })?;
    builder.set_alpn_select_callback(|_, offered| {
        openssl::ssl::select_next_proto(ALPN, offered).ok_or(AlpnError::NOACK)
    });
    Ok(builder.build())
}
