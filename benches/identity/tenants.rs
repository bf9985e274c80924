//! Settings with any number of tenants, each of whom has a credential of every kind.

use std::path::Path;
use std::sync::Arc;

use openssl::x509::X509;
use rcgen::{CertificateParams, KeyPair, SanType};
use sha2::{Digest, Sha256};
use tidegate::config;
use tidegate::config::secret::Secret;
use tidegate::config::settings::{
    Accepted, AllowedModels, ApiKey, CertificateName, Credential, DEFAULT_PLAN, KeyHash, Plan,
    PlanId, Settings, SignedRequest, Tenant, TenantId, Validity,
};
use tidegate::identity::api_key::{self, NewKey, Pepper};
use tidegate::identity::certificate::CertificateNames;

use super::tokens::Issuers;

pub const KEY: &str = "key";
pub const PEPPERED: &str = "peppered";
pub const SIGNER: &str = "signer";

const ALWAYS: Validity = Validity {
    enabled: true,
    not_before: None,
    not_after: None,
};

pub fn name(number: u32) -> String {
    format!("tenant{number}")
}

/// The key that a tenant has under this word.
pub fn key(word: &str, number: u32) -> NewKey {
    let id = format!("{word}{number}");
    api_key::make(&id, &Sha256::digest(&id).into())
}

pub fn signing_secret(number: u32) -> Secret {
    Secret::new(format!("a secret for signing, of tenant {number:05}"))
}

fn certificate_name(number: u32) -> String {
    format!("spiffe://corp.example/{}", name(number))
}

pub fn certificate(number: u32) -> CertificateNames {
    let mut params = CertificateParams::new(vec!["service.corp.example".to_owned()]).unwrap();
    let uri = certificate_name(number).as_str().try_into().unwrap();
    params.subject_alt_names.push(SanType::URI(uri));
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    CertificateNames::of(&X509::from_der(certificate.der()).unwrap())
}

/// The shipped example with other tenants, a pepper and token issuers.
pub fn settings(tenants: u32, issuers: &Issuers) -> Settings {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/tidegate.yaml");
    let loaded = config::load_with(&[config::Layer::Path(example)], &|_| {
        Some("sk-example".into())
    })
    .unwrap();
    let mut settings = loaded.settings;
    let pepper = Secret::new("a pepper of thirty-two bytes or more".to_owned());
    let plan = settings.plans[&PlanId::new(DEFAULT_PLAN)].clone();
    settings.tenants = (0..tenants)
        .map(|number| tenant(number, &pepper, &plan))
        .collect();
    settings.identity.peppers.insert("p1".to_owned(), pepper);
    settings.identity.tokens = issuers.settings();
    settings
}

fn tenant(number: u32, pepper: &Secret, plan: &Arc<Plan>) -> Arc<Tenant> {
    let (plain, peppered) = (key(KEY, number), key(PEPPERED, number));
    let plain = ApiKey {
        hash: KeyHash::Sha256(plain.hash),
        id: plain.id,
        validity: ALWAYS,
    };
    let peppered = ApiKey {
        hash: KeyHash::Peppered {
            pepper: "p1".to_owned(),
            hash: Pepper::new(pepper).unwrap().hash(peppered.key.expose()),
        },
        id: peppered.id,
        validity: ALWAYS,
    };
    let signer = SignedRequest {
        id: format!("{SIGNER}{number}"),
        secret: signing_secret(number),
        validity: ALWAYS,
    };
    Arc::new(Tenant {
        id: TenantId::new(&name(number)),
        enabled: true,
        models: AllowedModels::All,
        balance: false,
        files: true,
        credentials: vec![
            Credential::ApiKey(plain),
            Credential::ApiKey(peppered),
            Credential::SignedRequest(signer),
            Credential::ClientCertificate(CertificateName::SanUri(certificate_name(number))),
        ],
        accept: Accepted::ALL,
        allow_from: None,
        plan: plan.clone(),
        group: None,
        deadlines: Default::default(),
    })
}
