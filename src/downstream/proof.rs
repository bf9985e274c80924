//! What a client showed of itself in the TLS handshake, and whether it still holds.
//!
//! The handshake goes through whatever certificate is shown, so that a bad one can be answered by
//! an error object in the caller's dialect. The verdict is OpenSSL's. It is asked anew when the
//! listener's authorities or revocation lists have been exchanged, and void when the certificate
//! ends, so neither an open connection nor a resumed session outlives either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::ssl::SslRef;
use openssl::stack::Stack;
use openssl::x509::store::X509Store;
use openssl::x509::{X509, X509StoreContext, X509VerifyResult};
use parking_lot::Mutex;

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

/// Whom a listener believes about its clients; exchangeable while connections are open.
#[derive(Default)]
pub struct ClientTrust {
    store: ArcSwapOption<X509Store>,
    generation: AtomicU64,
}

impl ClientTrust {
    /// From here on every client's certificate is judged by `store`. Gives its generation.
    pub fn replace(&self, store: Option<X509Store>) -> u64 {
        self.store.store(store.map(Arc::new));
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// The certificate that was shown on one connection, with the last verdict on it.
pub struct Shown {
    trust: Arc<ClientTrust>,
    leaf: X509,
    chain: Vec<X509>,
    /// Unix seconds.
    not_after: i64,
    judged: Mutex<(u64, Arc<ClientProof>)>,
}

impl Shown {
    /// Reads a finished handshake, also one that took up an earlier session; `generation` is that
    /// of the authorities it was made with. `None` if no certificate was shown.
    pub fn of(ssl: &SslRef, trust: Arc<ClientTrust>, generation: u64) -> Option<Self> {
        let leaf = ssl.peer_certificate()?;
        let proof = match ssl.verify_result() {
            X509VerifyResult::OK => ClientProof::Good(CertificateNames::of(&leaf)),
            bad => ClientProof::Bad(bad.error_string()),
        };
        let chain = ssl.peer_cert_chain().into_iter().flatten();
        Some(Self {
            chain: chain.map(ToOwned::to_owned).collect(),
            not_after: unix_seconds(leaf.not_after()).unwrap_or(i64::MIN),
            judged: Mutex::new((generation, Arc::new(proof))),
            leaf,
            trust,
        })
    }

    /// The verdict at `now`, in Unix seconds.
    pub fn proof(&self, now: i64) -> Arc<ClientProof> {
        let generation = self.trust.generation();
        let mut judged = self.judged.lock();
        if judged.0 != generation {
            *judged = (generation, Arc::new(self.judge_anew()));
        }
        if now > self.not_after && matches!(*judged.1, ClientProof::Good(_)) {
            judged.1 = Arc::new(ClientProof::Bad("certificate has expired"));
        }
        judged.1.clone()
    }

    fn judge_anew(&self) -> ClientProof {
        let store = self.trust.store.load_full();
        let verdict = store.ok_or("no authorities").and_then(|store| {
            verify(&store, &self.leaf, &self.chain).map_err(|_| "cannot be verified")
        });
        match verdict {
            Ok(X509VerifyResult::OK) => ClientProof::Good(CertificateNames::of(&self.leaf)),
            Ok(bad) => ClientProof::Bad(bad.error_string()),
            Err(why) => ClientProof::Bad(why),
        }
    }
}

fn verify(store: &X509Store, leaf: &X509, chain: &[X509]) -> Result<X509VerifyResult, ErrorStack> {
    let mut untrusted = Stack::new()?;
    for certificate in chain {
        untrusted.push(certificate.clone())?;
    }
    let mut context = X509StoreContext::new()?;
    context.init(store, leaf, &untrusted, |context| {
        let good = context.verify_cert()?;
        // A failure without a reason must not read as success.
        Ok(match context.error() {
            X509VerifyResult::OK if !good => X509VerifyResult::APPLICATION_VERIFICATION,
            verdict => verdict,
        })
    })
}

/// A certificate's time in Unix seconds.
///
/// # Errors
/// If it is no time that OpenSSL understands.
pub fn unix_seconds(time: &Asn1TimeRef) -> Result<i64, ErrorStack> {
    let since = Asn1Time::from_unix(0)?.diff(time)?;
    Ok(i64::from(since.days) * 86_400 + i64::from(since.secs))
}
