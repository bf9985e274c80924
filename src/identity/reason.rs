//! Why a caller was not let in: a word for metrics and the log, and what the caller is told.
//!
//! Who has not proven anything learns nothing: a wrong key, an unknown one and a forged token get
//! the same words. Who has is told what to mend: that the credential has expired, or that the
//! tenant may not call from there.

use std::time::Duration;

use super::credential::Doubt;
use super::signed_request::SignatureError;
use super::token::TokenError;
use crate::request::refusal::{Code, Refusal};

/// What a caller that sends too many nonces is asked to wait.
const NONCES_WAIT: Duration = Duration::from_secs(30);

/// Why a credential was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Missing,
    Doubtful(Doubt),
    /// The listener does not take this kind.
    KindNotTaken,
    NotAKey,
    UnknownId,
    WrongSecret,
    CredentialDisabled,
    TenantDisabled,
    NotYetValid,
    Expired,
    /// The listener asks for a client certificate.
    NoCertificate,
    /// A client certificate that is not to be trusted, and why, in OpenSSL's words.
    BadCertificate(&'static str),
    UnknownIssuer,
    /// No key set was ever fetched for this issuer.
    NoKeys,
    Token(TokenError),
    Signature(SignatureError),
    /// Genuine, and nobody's.
    NoTenant,
    /// Two credentials, or two names in a certificate, that lead to different tenants.
    TwoIdentities,
    /// The tenant does not take this kind.
    KindNotAllowed,
    AddressNotAllowed,
    /// Too many failures from this address.
    Throttled(Duration),
}

impl Reason {
    /// The word in `tidegate_authentication_failures_total` and in the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing_credential",
            Self::Doubtful(Doubt::Ambiguous) => "ambiguous",
            Self::Doubtful(Doubt::Scheme) => "unknown_scheme",
            Self::Doubtful(Doubt::Unreadable) => "unreadable",
            Self::KindNotTaken => "kind_not_taken",
            Self::NotAKey => "not_a_key",
            Self::UnknownId => "unknown_id",
            Self::WrongSecret => "wrong_secret",
            Self::CredentialDisabled => "credential_disabled",
            Self::TenantDisabled => "tenant_disabled",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate(_) => "bad_certificate",
            Self::UnknownIssuer => "unknown_issuer",
            Self::NoKeys => "no_keys",
            Self::Token(error) => error.as_str(),
            Self::Signature(error) => error.as_str(),
            Self::NoTenant => "no_tenant",
            Self::TwoIdentities => "two_identities",
            Self::KindNotAllowed => "kind_not_allowed",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::Throttled(_) => "throttled",
        }
    }

    /// Is this an attempt that may have been a guess? A missing credential and a genuine one that
    /// does not count are none.
    pub fn may_be_a_guess(&self) -> bool {
        match self {
            Self::Doubtful(_)
            | Self::KindNotTaken
            | Self::NotAKey
            | Self::UnknownId
            | Self::WrongSecret
            | Self::BadCertificate(_)
            | Self::UnknownIssuer => true,
            Self::Token(error) => !error.proven(),
            Self::Signature(error) => !error.proven(),
            _ => false,
        }
    }

    /// What the caller is told.
    pub fn refuse(&self) -> Refusal {
        let refusal = match self {
            Self::Missing => Refusal::new(
                Code::MissingCredential,
                "No credential was sent. Put your gateway key in \"Authorization: Bearer <key>\" or \"x-api-key\".",
            ),
            Self::NoCertificate => Refusal::new(
                Code::MissingCredential,
                "This address asks for a client certificate; configure one in the client.",
            ),
            Self::BadCertificate(why) => {
                return Refusal::new(
                    Code::InvalidCredential,
                    "The client certificate is not accepted here; get one that is in force, from an authority of this gateway's.",
                )
                .detail(format!("bad_certificate: {why}"));
            }
            Self::Doubtful(Doubt::Ambiguous) | Self::TwoIdentities => Refusal::new(
                Code::InvalidCredential,
                "More than one credential was sent; send exactly one.",
            ),
            Self::Doubtful(Doubt::Scheme) => Refusal::new(
                Code::InvalidCredential,
                "The Authorization header must read \"Bearer <key>\" or \"TG-HMAC-SHA256 …\".",
            ),
            Self::NotYetValid | Self::Expired => outside_its_time(),
            Self::Token(TokenError::Expired | TokenError::NotYetValid) => outside_its_time(),
            Self::Signature(SignatureError::Stale | SignatureError::Future) => Refusal::new(
                Code::ExpiredCredential,
                "The signature is right, but its timestamp is too far from the gateway's clock; sign with the current time.",
            ),
            Self::Signature(SignatureError::Replayed) => Refusal::new(
                Code::ReplayedRequest,
                "This signed request was sent before; sign each request with a nonce of its own.",
            ),
            Self::Signature(SignatureError::WrongDigest) => Refusal::closing(
                Code::DigestMismatch,
                "The body is not the one that was signed.",
            ),
            Self::Signature(SignatureError::NoncesFull) => Refusal::new(
                Code::TooManySignedRequests,
                "More signed requests came in the clock window than can be remembered; slow down.",
            )
            .retry_after(NONCES_WAIT),
            Self::NoTenant => Refusal::new(
                Code::NotAllowed,
                "The credential is genuine but belongs to no tenant of this gateway.",
            ),
            Self::KindNotAllowed => Refusal::new(
                Code::NotAllowed,
                "The tenant does not take this kind of credential.",
            ),
            Self::AddressNotAllowed => Refusal::new(
                Code::AddressNotAllowed,
                "The tenant may not call from this address.",
            ),
            Self::Throttled(wait) => Refusal::new(
                Code::TooManyFailedAttempts,
                "Too many attempts from this address failed; wait, and check the credential.",
            )
            .retry_after(*wait),
            _ => Refusal::new(
                Code::InvalidCredential,
                "The credential is not valid here. Check that it is complete and meant for this gateway.",
            ),
        };
        refusal.detail(self.as_str())
    }
}

fn outside_its_time() -> Refusal {
    Refusal::new(
        Code::ExpiredCredential,
        "The credential is genuine, but this is not the time in which it counts; get a new one.",
    )
}
