//! TLS towards clients: one acceptor per listener, rebuilt on reload and when its files change,
//! the last good one kept.
//!
//! OpenSSL through Pingora's handshake. Ciphers and curves are Mozilla's levels as the `openssl`
//! crate ships them. Several certificates are told apart by the name that the client asks for.
//!
//! A client certificate that is not to be trusted does not end the handshake: the client is told
//! by a 401 in its own dialect instead of an alert that no SDK shows ([`ClientProof`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::ssl::{
    AlpnError, NameType, SniError, SslAcceptor, SslAcceptorBuilder, SslContext, SslFiletype,
    SslMethod, SslOptions, SslRef, SslVerifyMode, SslVersion,
};
use openssl::x509::store::{X509Lookup, X509StoreBuilder};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509Name, X509Ref};

use crate::config::settings::{
    CipherPolicy, ClientCertificates, ListenerTls, TlsFiles, TlsVersion,
};

/// ALPN wire names, best first.
const ALPN: &[u8] = b"\x02h2\x08http/1.1";
/// Sessions are only taken up by those who began them; asked for where clients are verified.
const SESSION_CONTEXT: &[u8] = b"tidegate";

/// Why a listener's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot use the certificate {path}: {cause}")]
    Certificate { path: PathBuf, cause: ErrorStack },
    #[error("cannot use the private key {path}: {cause}")]
    PrivateKey { path: PathBuf, cause: ErrorStack },
    #[error("the private key {key} does not belong to the certificate {certificate}")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("the certificate {0} has expired")]
    Expired(PathBuf),
    #[error("cannot use the client authorities {path}: {cause}")]
    ClientCa { path: PathBuf, cause: ErrorStack },
    #[error("cannot use the revocation lists {path}: {cause}")]
    Crl { path: PathBuf, cause: ErrorStack },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] ErrorStack),
}

/// A certificate that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub path: PathBuf,
    /// Unix seconds.
    pub not_after: i64,
}

/// A listener's TLS as its files have it at one moment.
pub struct Fresh {
    acceptor: SslAcceptor,
    pub certificates: Vec<Served>,
}

impl Fresh {
    /// Reads the files.
    ///
    /// # Errors
    /// If they cannot be used. An expired certificate can, see [`Fresh::expired`].
    pub fn read(tls: &ListenerTls) -> Result<Self, CertificateError> {
        let mut names = HashMap::new();
        let mut certificates = Vec::new();
        let mut first = None;
        for files in &tls.certificates {
            let mut builder = builder(tls)?;
            let leaf = load(&mut builder, files)?;
            certificates.push(Served {
                path: files.certificate.clone(),
                not_after: unix_seconds(leaf.not_after())?,
            });
            match first {
                None => first = Some(builder),
                Some(_) => {
                    let context = builder.build().into_context();
                    for name in dns_names(&leaf) {
                        names.entry(name).or_insert_with(|| context.clone());
                    }
                }
            }
        }
        let mut builder = match first {
            Some(builder) => builder,
            None => builder(tls)?,
        };
        if !names.is_empty() {
            builder.set_servername_callback(move |ssl, _| choose(&names, ssl));
        }
        Ok(Self {
            acceptor: builder.build(),
            certificates,
        })
    }

    /// The first certificate whose time is over.
    pub fn expired(&self, now: i64) -> Option<&Path> {
        let mut served = self.certificates.iter();
        served
            .find(|served| served.not_after <= now)
            .map(|served| served.path.as_path())
    }
}

/// A listener's TLS, replaceable while connections come in.
pub struct Acceptor {
    current: ArcSwap<Fresh>,
}

impl Acceptor {
    pub fn new(fresh: Fresh) -> Self {
        Self {
            current: ArcSwap::from_pointee(fresh),
        }
    }

    /// Serves the next handshakes with `fresh`; running connections keep what they have.
    pub fn replace(&self, fresh: Fresh) {
        self.current.store(Arc::new(fresh));
    }

    pub fn current(&self) -> Arc<Fresh> {
        self.current.load_full()
    }
}

impl std::ops::Deref for Fresh {
    type Target = SslAcceptor;
    fn deref(&self) -> &SslAcceptor {
        &self.acceptor
    }
}

fn builder(tls: &ListenerTls) -> Result<SslAcceptorBuilder, CertificateError> {
    let mut builder = match tls.policy {
        CipherPolicy::Intermediate => {
            SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?
        }
        CipherPolicy::Modern => SslAcceptor::mozilla_modern_v5(SslMethod::tls_server())?,
    };
    builder.set_min_proto_version(Some(match tls.min_version {
        TlsVersion::V1_2 => SslVersion::TLS1_2,
        TlsVersion::V1_3 => SslVersion::TLS1_3,
    }))?;
    builder.set_options(SslOptions::NO_RENEGOTIATION);
    builder.set_session_id_context(SESSION_CONTEXT)?;
    builder.set_alpn_select_callback(|_, offered| {
        openssl::ssl::select_next_proto(ALPN, offered).ok_or(AlpnError::NOACK)
    });
    if let Some(clients) = &tls.clients {
        ask_clients(&mut builder, clients)?;
    }
    Ok(builder)
}

fn load(builder: &mut SslAcceptorBuilder, files: &TlsFiles) -> Result<X509, CertificateError> {
    let TlsFiles {
        certificate,
        private_key,
    } = files;
    let bad_certificate = |cause| CertificateError::Certificate {
        path: certificate.clone(),
        cause,
    };
    builder
        .set_certificate_chain_file(certificate)
        .map_err(bad_certificate)?;
    builder
        .set_private_key_file(private_key, SslFiletype::PEM)
        .map_err(|cause| CertificateError::PrivateKey {
            path: private_key.clone(),
            cause,
        })?;
    builder
        .check_private_key()
        .map_err(|_| CertificateError::Mismatch {
            certificate: certificate.clone(),
            key: private_key.clone(),
        })?;
    let pem = std::fs::read(certificate).unwrap_or_default();
    X509::from_pem(&pem).map_err(bad_certificate)
}

/// Asks clients for a certificate and remembers the verdict on it; what follows from the verdict
/// is for the request to decide.
fn ask_clients(
    builder: &mut SslAcceptorBuilder,
    clients: &ClientCertificates,
) -> Result<(), CertificateError> {
    let bad_ca = |cause| CertificateError::ClientCa {
        path: clients.ca.clone(),
        cause,
    };
    let names = X509Name::load_client_ca_file(&clients.ca).map_err(bad_ca)?;
    builder.set_client_ca_list(names);
    let mut store = X509StoreBuilder::new()?;
    store
        .add_lookup(X509Lookup::file())?
        .load_cert_file(&clients.ca, SslFiletype::PEM)
        .map_err(bad_ca)?;
    let authorities = std::fs::read(&clients.ca).unwrap_or_default();
    for authority in X509::stack_from_pem(&authorities).map_err(bad_ca)? {
        // One that is in already is no mistake.
        let _ = store.add_cert(authority);
    }
    if let Some(crl) = &clients.crl {
        store
            .add_lookup(X509Lookup::file())?
            .load_crl_file(crl, SslFiletype::PEM)
            .map_err(|cause| CertificateError::Crl {
                path: crl.clone(),
                cause,
            })?;
        store.set_flags(X509VerifyFlags::CRL_CHECK)?;
    }
    builder.set_verify_cert_store(store.build())?;
    builder.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
    Ok(())
}

/// The certificate for the name that is asked for: exact, then by wildcard, then the first.
fn choose(names: &HashMap<String, SslContext>, ssl: &mut SslRef) -> Result<(), SniError> {
    let Some(asked) = ssl.servername(NameType::HOST_NAME) else {
        return Ok(());
    };
    let asked = asked.to_ascii_lowercase();
    let wildcard = || {
        let (_, parent) = asked.split_once('.')?;
        names.get(&format!("*.{parent}"))
    };
    if let Some(context) = names.get(&asked).or_else(wildcard) {
        ssl.set_ssl_context(context)
            .map_err(|_| SniError::ALERT_FATAL)?;
    }
    Ok(())
}

/// Lower case, wildcards as written; the common name if there is no other (RFC 9525 §6.3 would
/// not have it, yet such certificates are still made for internal hosts).
fn dns_names(leaf: &X509Ref) -> Vec<String> {
    let alternatives = leaf.subject_alt_names();
    let names: Vec<String> = alternatives
        .iter()
        .flatten()
        .filter_map(|name| name.dnsname())
        .map(str::to_ascii_lowercase)
        .collect();
    if !names.is_empty() {
        return names;
    }
    leaf.subject_name()
        .entries_by_nid(Nid::COMMONNAME)
        .filter_map(|entry| entry.data().to_string().ok())
        .map(|name| name.to_ascii_lowercase())
        .collect()
}

fn unix_seconds(time: &Asn1TimeRef) -> Result<i64, ErrorStack> {
    let since = Asn1Time::from_unix(0)?.diff(time)?;
    Ok(i64::from(since.days) * 86_400 + i64::from(since.secs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn write(folder: &Path, name: &str, sans: &[&str], until: i32) -> TlsFiles {
        let sans: Vec<String> = sans.iter().map(|san| (*san).to_owned()).collect();
        let mut params = CertificateParams::new(sans).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let files = TlsFiles {
            certificate: folder.join(format!("{name}.pem")),
            private_key: folder.join(format!("{name}.key")),
        };
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.private_key, key.serialize_pem()).unwrap();
        files
    }

    fn tls(certificates: Vec<TlsFiles>) -> ListenerTls {
        ListenerTls {
            certificates,
            policy: CipherPolicy::Intermediate,
            min_version: TlsVersion::V1_2,
            clients: None,
        }
    }

    #[test]
    fn an_expired_certificate_is_told_apart_from_one_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let good = write(folder.path(), "good", &["a.test"], 2099);
        let old = write(folder.path(), "old", &["b.test"], 2021);
        let fresh = Fresh::read(&tls(vec![good.clone(), old.clone()])).unwrap();
        assert_eq!(
            fresh.expired(1_700_000_000),
            Some(old.certificate.as_path())
        );
        assert_eq!(fresh.certificates[0].not_after, 4_070_908_800);
        let mixed = TlsFiles {
            private_key: old.private_key,
            ..good
        };
        let error = Fresh::read(&tls(vec![mixed])).err().unwrap();
        assert!(
            matches!(
                error,
                CertificateError::PrivateKey { .. } | CertificateError::Mismatch { .. }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_certificate_is_served_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let files = write(folder.path(), "a", &["A.test", "*.b.test"], 2099);
        let pem = std::fs::read(files.certificate).unwrap();
        let leaf = X509::from_pem(&pem).unwrap();
        assert_eq!(dns_names(&leaf), ["a.test", "*.b.test"]);
    }
}
