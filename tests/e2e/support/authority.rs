//! A certificate authority for the tests: certificates of every kind, good and bad, and lists of
//! the revoked ones.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sha::sha256;
use openssl::x509::X509;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// An authority that issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate, PEM.
    pub pem: String,
    /// The private key, PEM.
    pub key: String,
    serial: SerialNumber,
}

/// When a certificate counts, seen from now.
#[derive(Clone, Copy)]
pub enum Term {
    Years,
    Over,
    Ahead,
    /// It began long ago and ends after this.
    Ends(Duration),
}

impl Term {
    /// Begin and end, since 1970.
    fn bounds(self) -> (Duration, Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        match self {
            Self::Years => (now - DAY, now + 1000 * DAY),
            Self::Over => (now - 2 * DAY, now - DAY),
            Self::Ahead => (now + DAY, now + 2 * DAY),
            Self::Ends(after) => (now - DAY, now + after),
        }
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// Its own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate in force. Names with `://` are URIs, those that begin with `cn:` go into the
    /// subject, all others are addresses or DNS names.
    pub fn issue(&self, names: &[&str]) -> Leaf {
        self.issue_for(names, Term::Years)
    }

    pub fn issue_for(&self, names: &[&str], term: Term) -> Leaf {
        self.sign(names, term, KeyPair::generate().unwrap())
    }

    /// As [`Authority::issue`], with a key that clients of twenty years ago would take.
    pub fn issue_rsa(&self, names: &[&str]) -> Leaf {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let pem = String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        self.sign(names, Term::Years, KeyPair::from_pem(&pem).unwrap())
    }

    fn sign(&self, names: &[&str], term: Term, key: KeyPair) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            if let Some(name) = name.strip_prefix("cn:") {
                params.distinguished_name.push(DnType::CommonName, name);
            } else if name.contains("://") {
                let uri = SanType::URI((*name).try_into().unwrap());
                params.subject_alt_names.push(uri);
            } else if let Ok(address) = name.parse() {
                params.subject_alt_names.push(SanType::IpAddress(address));
            } else {
                let name = SanType::DnsName((*name).try_into().unwrap());
                params.subject_alt_names.push(name);
            }
        }
        let (from, until) = term.bounds();
        params.not_before = date_time_ymd(1970, 1, 1) + from;
        params.not_after = date_time_ymd(1970, 1, 1) + until;
        let serial = SerialNumber::from_slice(&uuid::Uuid::new_v4().as_bytes()[1..]);
        params.serial_number = Some(serial.clone());
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            pem: certificate.pem(),
            key: key.serialize_pem(),
            serial,
        }
    }

    /// The list of these, PEM.
    pub fn revoke(&self, revoked: &[&Leaf]) -> String {
        self.revoke_until(revoked, Term::Years)
    }

    pub fn revoke_until(&self, revoked: &[&Leaf], term: Term) -> String {
        let (from, until) = term.bounds();
        let entries = revoked.iter().map(|leaf| RevokedCertParams {
            serial_number: leaf.serial.clone(),
            revocation_time: date_time_ymd(1970, 1, 1) + from,
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 1) + from,
            next_update: date_time_ymd(1970, 1, 1) + until,
            crl_number: SerialNumber::from(revoked.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs: entries.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

impl Leaf {
    pub fn certificate(&self) -> X509 {
        X509::from_pem(self.pem.as_bytes()).unwrap()
    }

    pub fn private_key(&self) -> PKey<Private> {
        PKey::private_key_from_pem(self.key.as_bytes()).unwrap()
    }

    pub fn der(&self) -> Vec<u8> {
        self.certificate().to_der().unwrap()
    }

    /// As `client_certificate.fingerprint` takes it.
    pub fn fingerprint(&self) -> String {
        let hex = sha256(&self.der()).map(|byte| format!("{byte:02x}"));
        format!("sha256:{}", hex.concat())
    }

    /// As `tls.pins` takes it.
    pub fn pin(&self) -> String {
        let key = self.private_key().public_key_to_der().unwrap();
        format!("sha256//{}", STANDARD.encode(sha256(&key)))
    }
}
