//! An issuer of tokens for each algorithm: its keys, and tokens of about 800 bytes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use tempfile::TempDir;
use tidegate::config::secret::Secret;
use tidegate::config::settings::{TokenAlgorithm, TokenIssuer, TokenKeys};

pub const ALGORITHMS: [TokenAlgorithm; 4] = [
    TokenAlgorithm::Hs256,
    TokenAlgorithm::Rs256,
    TokenAlgorithm::Es256,
    TokenAlgorithm::EdDsa,
];
const SECRET: &str = "a secret that issuer and gateway share";
const TOKEN_BYTES: usize = 800;

pub fn word(algorithm: TokenAlgorithm) -> &'static str {
    match algorithm {
        TokenAlgorithm::Hs256 => "HS256",
        TokenAlgorithm::Rs256 => "RS256",
        TokenAlgorithm::Es256 => "ES256",
        TokenAlgorithm::EdDsa => "EdDSA",
    }
}

/// The keys, and the folder where the gateway finds the public halves.
pub struct Issuers {
    keys: Vec<(TokenAlgorithm, PKey<Private>)>,
    folder: TempDir,
}

impl Issuers {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = ALGORITHMS.map(|algorithm| (algorithm, key(algorithm)));
        for (algorithm, key) in &keys[1..] {
            let path = folder.path().join(word(*algorithm));
            std::fs::write(path, key.public_key_to_pem().unwrap()).unwrap();
        }
        Self {
            keys: keys.into(),
            folder,
        }
    }

    pub fn settings(&self) -> Vec<Arc<TokenIssuer>> {
        let issuer = |algorithm| TokenIssuer {
            id: word(algorithm).to_ascii_lowercase(),
            issuer: issuer(algorithm),
            audiences: vec!["tidegate".to_owned()],
            algorithm,
            keys: match algorithm {
                TokenAlgorithm::Hs256 => TokenKeys::Secret(Secret::new(SECRET.to_owned())),
                _ => TokenKeys::File(self.folder.path().join(word(algorithm))),
            },
            tenant_claim: "tenant".to_owned(),
            tenant_map: None,
            leeway: Duration::from_secs(30),
            max_lifetime: Some(Duration::from_secs(86_400)),
            required_claims: vec![("role".to_owned(), Some("user".into()))],
            models_claim: None,
        };
        ALGORITHMS
            .map(|algorithm| Arc::new(issuer(algorithm)))
            .into()
    }

    /// A token that is good at `now`, for an hour.
    pub fn token(&self, algorithm: TokenAlgorithm, tenant: &str, now: i64) -> String {
        let (_, key) = self.keys.iter().find(|(own, _)| *own == algorithm).unwrap();
        let bare = token(algorithm, key, tenant, now, "");
        // Four characters for three bytes.
        let filling = "x".repeat((TOKEN_BYTES - bare.len()) * 3 / 4);
        token(algorithm, key, tenant, now, &filling)
    }
}

fn issuer(algorithm: TokenAlgorithm) -> String {
    format!("https://{}.corp.example", word(algorithm))
}

fn key(algorithm: TokenAlgorithm) -> PKey<Private> {
    match algorithm {
        TokenAlgorithm::Hs256 => PKey::hmac(SECRET.as_bytes()).unwrap(),
        TokenAlgorithm::Rs256 => PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
        TokenAlgorithm::Es256 => {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
            PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
        }
        TokenAlgorithm::EdDsa => PKey::generate_ed25519().unwrap(),
    }
}

fn token(
    algorithm: TokenAlgorithm,
    key: &PKey<Private>,
    tenant: &str,
    now: i64,
    filling: &str,
) -> String {
    let header = serde_json::json!({"alg": word(algorithm), "typ": "JWT", "kid": "2026-01"});
    let payload = serde_json::json!({
        "iss": issuer(algorithm), "aud": "tidegate", "sub": "batch@corp.example", "tenant": tenant,
        "iat": now, "nbf": now, "exp": now + 3600, "role": ["user", "admin"], "filling": filling,
    });
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = encode(header.to_string().as_bytes());
    let payload = encode(payload.to_string().as_bytes());
    let signed = format!("{header}.{payload}");
    format!(
        "{signed}.{}",
        encode(&signature(algorithm, key, signed.as_bytes()))
    )
}

fn signature(algorithm: TokenAlgorithm, key: &PKey<Private>, message: &[u8]) -> Vec<u8> {
    if algorithm == TokenAlgorithm::EdDsa {
        let mut signer = Signer::new_without_digest(key).unwrap();
        return signer.sign_oneshot_to_vec(message).unwrap();
    }
    let mut signer = Signer::new(MessageDigest::sha256(), key).unwrap();
    let signature = signer.sign_oneshot_to_vec(message).unwrap();
    if algorithm != TokenAlgorithm::Es256 {
        return signature;
    }
    let pair = EcdsaSig::from_der(&signature).unwrap();
    let halves = [pair.r(), pair.s()].map(|half| half.to_vec_padded(32).unwrap());
    halves.concat()
}
