//! What a client certificate says of its bearer: the names that can lead to a tenant.
//!
//! Whether the certificate is to be trusted was decided in the handshake, against the listener's
//! authorities and revocation lists; here it is only read, once per connection. Knows nothing of
//! tenants.

use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::x509::X509Ref;

use crate::config::settings::CertificateName;

/// One with more names has none but its fingerprint. RFC 5280 sets no bound, we do.
const MOST_NAMES: usize = 100;

/// The names of a verified client certificate, the most telling first: fingerprint, URIs, DNS
/// names, common name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateNames(Vec<CertificateName>);

impl CertificateNames {
    pub fn of(certificate: &X509Ref) -> Self {
        let mut names = Vec::new();
        let fingerprint = certificate.digest(MessageDigest::sha256()).ok();
        let fingerprint = fingerprint.and_then(|digest| <[u8; 32]>::try_from(&*digest).ok());
        names.extend(fingerprint.map(CertificateName::Fingerprint));
        let alternatives = certificate.subject_alt_names();
        let alternatives = || alternatives.iter().flatten();
        names.extend(
            alternatives()
                .filter_map(|name| name.uri())
                .map(|uri| CertificateName::SanUri(uri.to_owned())),
        );
        names.extend(
            alternatives()
                .filter_map(|name| name.dnsname())
                .map(|name| CertificateName::SanDns(name.to_ascii_lowercase())),
        );
        if names.len() > MOST_NAMES {
            // Not to be searched for the one that fits; the fingerprint is the whole of it.
            names.truncate(1);
            return Self(names);
        }
        // Two common names are one too many to choose from.
        let mut subjects = certificate
            .subject_name()
            .entries_by_nid(Nid::COMMONNAME)
            .filter_map(|entry| entry.data().to_string().ok());
        if let (Some(name), None) = (subjects.next(), subjects.next()) {
            names.push(CertificateName::CommonName(name));
        }
        Self(names)
    }

    pub fn iter(&self) -> impl Iterator<Item = &CertificateName> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::x509::X509;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn names(params: CertificateParams) -> CertificateNames {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        CertificateNames::of(&X509::from_der(certificate.der()).unwrap())
    }

    #[test]
    fn all_names_that_can_lead_to_a_tenant_are_read() {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::URI("spiffe://corp/search".try_into().unwrap()),
            SanType::DnsName("Search.Corp.Internal".try_into().unwrap()),
        ];
        params.distinguished_name.push(DnType::CommonName, "search");
        let names = names(params);
        let found: Vec<_> = names.iter().map(ToString::to_string).collect();
        assert!(found[0].starts_with("sha256:"), "{found:?}");
        assert_eq!(
            found[1..],
            [
                "spiffe://corp/search",
                "dns:search.corp.internal",
                "cn:search"
            ]
        );
    }

    #[test]
    fn a_certificate_without_names_has_its_fingerprint() {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        assert_eq!(names(params).iter().count(), 1);
    }
}
