//! What a client showed of itself in the TLS handshake.
//!
//! The handshake goes through whatever certificate is shown, so that a bad one can be answered by
//! an error object in the caller's dialect; what is shown here is what OpenSSL made of it.

use openssl::ssl::SslRef;
use openssl::x509::X509VerifyResult;

use crate::identity::certificate::CertificateNames;

/// A client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientProof {
    /// None was asked for, or none was shown.
    None,
    Good(CertificateNames),
    /// One that is not to be trusted, and why, in OpenSSL's words.
    Bad(&'static str),
}

impl ClientProof {
    /// Reads a finished handshake, also one that took up an earlier session.
    pub fn of(ssl: &SslRef) -> Self {
        let Some(certificate) = ssl.peer_certificate() else {
            return Self::None;
        };
        match ssl.verify_result() {
            X509VerifyResult::OK => Self::Good(CertificateNames::of(&certificate)),
            bad => Self::Bad(bad.error_string()),
        }
    }
}
