//! TLS towards clients: one acceptor per listener, rebuilt on reload and when its files change,
//! the last good one kept.
//!
//! OpenSSL through Pingora's handshake. Ciphers are Mozilla's levels as the `openssl` crate ships
//! them, curves Mozilla's too. Several certificates are told apart by the name that the client asks for.
//!
//! A client certificate that is not to be trusted does not end the handshake: the client is told
//! by a 401 in its own dialect instead of an alert that no SDK shows (`downstream/proof.rs`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{
    AlpnError, NameType, SniError, SslAcceptor, SslAcceptorBuilder, SslContext, SslFiletype,
    SslMethod, SslOptions, SslRef, SslVerifyMode, SslVersion,
};
use openssl::stack::Stack;
use openssl::x509::store::{X509Lookup, X509Store, X509StoreBuilder};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509PurposeId, X509Ref};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::config::regular;
use crate::config::settings::{
    CipherPolicy, ClientCertificates, ListenerTls, TlsFiles, TlsVersion,
};
use crate::downstream::proof::{ClientTrust, unix_seconds};

/// ALPN wire names, best first.
const ALPN: &[u8] = b"\x02h2\x08http/1.1";
/// Mozilla's curves (Server Side TLS 5.7), and before them, where OpenSSL has it, the hybrid that
/// is not broken by a quantum computer of later years.
const GROUPS: &str = "?X25519MLKEM768:X25519:P-256:P-384";
/// Sessions are only taken up by those who began them; asked for where clients are verified.
const SESSION_CONTEXT: &[u8] = b"tidegate";

/// Why a listener's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("cannot use the certificate {path}: {cause}")]
    Certificate { path: PathBuf, cause: ErrorStack },
    #[error("cannot use the private key {path}: {cause}")]
    PrivateKey { path: PathBuf, cause: ErrorStack },
    #[error("the private key {key} does not belong to the certificate {certificate}")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("cannot use the client authorities {path}: {cause}")]
    ClientCa { path: PathBuf, cause: ErrorStack },
    #[error("cannot use the revocation lists {path}: {cause}")]
    Crl { path: PathBuf, cause: ErrorStack },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] ErrorStack),
}

/// Whose certificate serves a name; `None` for the first, which is in place already.
type Names = HashMap<String, Option<SslContext>>;

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
    /// To judge clients again after the handshake.
    clients: Option<X509Store>,
}

impl Fresh {
    /// Reads the files.
    ///
    /// # Errors
    /// If they cannot be used. An expired certificate can, see [`Fresh::expired`].
    pub fn read(tls: &ListenerTls) -> Result<Self, CertificateError> {
        let mut names: Names = HashMap::new();
        let mut certificates = Vec::new();
        let mut first = None;
        for files in &tls.certificates {
            let mut builder = builder(tls)?;
            let leaf = load(&mut builder, files)?;
            certificates.push(Served {
                path: files.certificate.clone(),
                not_after: unix_seconds(leaf.not_after())?,
            });
            let context = match first {
                None => {
                    first = Some(builder);
                    None
                }
                Some(_) => Some(builder.build().into_context()),
            };
            for name in dns_names(&leaf) {
                names.entry(name).or_insert_with(|| context.clone());
            }
        }
        let mut builder = match first {
            Some(builder) => builder,
            None => builder(tls)?,
        };
        if names.values().any(Option::is_some) {
            builder.set_servername_callback(move |ssl, _| choose(&names, ssl));
        }
        let clients = tls.clients.as_ref().map(client_store).transpose()?;
        Ok(Self {
            acceptor: builder.build(),
            certificates,
            clients,
        })
    }
}

/// A listener's TLS, replaceable while connections come in.
pub struct Acceptor {
    /// With the generation of `trust` that it was made with.
    current: ArcSwap<(SslAcceptor, u64)>,
    served: Mutex<Vec<Served>>,
    trust: Arc<ClientTrust>,
}

impl Acceptor {
    pub fn new(fresh: Fresh) -> Self {
        let trust = Arc::new(ClientTrust::default());
        let generation = trust.replace(fresh.clients);
        Self {
            current: ArcSwap::from_pointee((fresh.acceptor, generation)),
            served: Mutex::new(fresh.certificates),
            trust,
        }
    }

    /// Serves the next handshakes with `fresh`; running connections keep what they have, but their
    /// clients are judged anew.
    pub fn replace(&self, fresh: Fresh) {
        let generation = self.trust.replace(fresh.clients);
        self.current.store(Arc::new((fresh.acceptor, generation)));
        *self.served.lock() = fresh.certificates;
    }

    /// Judges clients by `fresh` and leaves the certificates as they are.
    pub fn replace_trust(&self, fresh: Fresh) {
        self.trust.replace(fresh.clients);
    }

    pub fn current(&self) -> Arc<(SslAcceptor, u64)> {
        self.current.load_full()
    }

    /// The certificates in service.
    pub fn served(&self) -> Vec<Served> {
        self.served.lock().clone()
    }

    /// By what clients are judged.
    pub fn trust(&self) -> &Arc<ClientTrust> {
        &self.trust
    }
}

/// The first certificate whose time is over at `now`, in Unix seconds.
pub fn expired(certificates: &[Served], now: i64) -> Option<&Path> {
    certificates
        .iter()
        .find(|served| served.not_after <= now)
        .map(|served| served.path.as_path())
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
    builder.set_groups_list(GROUPS)?;
    // Our order, but whoever asks for ChaCha20 first has no AES in hardware and gets it.
    builder.set_options(
        SslOptions::NO_RENEGOTIATION
            | SslOptions::CIPHER_SERVER_PREFERENCE
            | SslOptions::PRIORITIZE_CHACHA,
    );
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
    let mut chain = X509::stack_from_pem(&read(certificate)?)
        .map_err(bad_certificate)?
        .into_iter();
    let leaf = chain
        .next()
        .ok_or_else(|| bad_certificate(ErrorStack::get()))?;
    builder.set_certificate(&leaf).map_err(bad_certificate)?;
    for authority in chain {
        builder
            .add_extra_chain_cert(authority)
            .map_err(bad_certificate)?;
    }
    let bad_key = |cause| CertificateError::PrivateKey {
        path: private_key.clone(),
        cause,
    };
    // OpenSSL would ask the terminal for the passphrase of an encrypted key.
    let pem = Zeroizing::new(read(private_key)?);
    let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0)).map_err(bad_key)?;
    if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
        return Err(CertificateError::Mismatch {
            certificate: certificate.clone(),
            key: private_key.clone(),
        });
    }
    builder.set_private_key(&key).map_err(bad_key)?;
    Ok(leaf)
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    regular::read(path).map_err(|cause| CertificateError::Unreadable {
        path: path.to_owned(),
        cause,
    })
}

/// Asks clients for a certificate and remembers the verdict on it; what follows from the verdict
/// is for the request to decide.
fn ask_clients(
    builder: &mut SslAcceptorBuilder,
    clients: &ClientCertificates,
) -> Result<(), CertificateError> {
    let mut names = Stack::new()?;
    for authority in authorities(clients)? {
        names.push(authority.subject_name().to_owned()?)?;
    }
    builder.set_client_ca_list(names);
    builder.set_verify_cert_store(client_store(clients)?)?;
    builder.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
    Ok(())
}

fn authorities(clients: &ClientCertificates) -> Result<Vec<X509>, CertificateError> {
    let bad = |cause| CertificateError::ClientCa {
        path: clients.ca.clone(),
        cause,
    };
    let authorities = X509::stack_from_pem(&read(&clients.ca)?).map_err(bad)?;
    if authorities.is_empty() {
        return Err(bad(ErrorStack::get()));
    }
    Ok(authorities)
}

/// By what clients' certificates are judged. With revocation lists, every authority of a chain
/// must have one: a revoked intermediate takes all with it.
fn client_store(clients: &ClientCertificates) -> Result<X509Store, CertificateError> {
    let mut store = X509StoreBuilder::new()?;
    for authority in authorities(clients)? {
        store.add_cert(authority)?;
    }
    store.set_purpose(X509PurposeId::SSL_CLIENT)?;
    if let Some(crl) = &clients.crl {
        regular::check(crl).map_err(|cause| CertificateError::Unreadable {
            path: crl.clone(),
            cause,
        })?;
        store
            .add_lookup(X509Lookup::file())?
            .load_crl_file(crl, SslFiletype::PEM)
            .map_err(|cause| CertificateError::Crl {
                path: crl.clone(),
                cause,
            })?;
        store.set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL)?;
    }
    Ok(store.build())
}

/// The certificate for the name that is asked for: exact, then by wildcard, then the first.
fn choose(names: &Names, ssl: &mut SslRef) -> Result<(), SniError> {
    let Some(asked) = ssl.servername(NameType::HOST_NAME) else {
        return Ok(());
    };
    let asked = asked.to_ascii_lowercase();
    let wildcard = || {
        let (_, parent) = asked.split_once('.')?;
        names.get(&format!("*.{parent}"))
    };
    if let Some(Some(context)) = names.get(&asked).or_else(wildcard) {
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
            expired(&fresh.certificates, 1_700_000_000),
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
