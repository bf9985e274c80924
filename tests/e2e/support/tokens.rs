//! Token issuers of the tests: they sign whatever they are told to, by OpenSSL.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::bn::BigNumContext;
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use serde_json::{Value, json};

/// Whom the tokens are for.
pub const AUDIENCE: &str = "tidegate-tests";

/// Unix seconds.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Somebody who signs tokens.
pub struct Issuer {
    pub id: &'static str,
    pub algorithm: &'static str,
    key: PKey<Private>,
}

impl Issuer {
    /// With a fresh key pair; `algorithm` is `RS256`, `ES256` or `EdDSA`.
    pub fn new(id: &'static str, algorithm: &'static str) -> Self {
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = match algorithm {
            "RS256" => PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
            "ES256" => PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap(),
            _ => PKey::generate_ed25519().unwrap(),
        };
        Self { id, algorithm, key }
    }

    /// With a secret, for `HS256`.
    pub fn with_secret(id: &'static str, secret: &[u8]) -> Self {
        Self {
            id,
            algorithm: "HS256",
            key: PKey::hmac(secret).unwrap(),
        }
    }

    /// What its tokens have in `iss`.
    pub fn name(&self) -> String {
        format!("https://id.example/{}", self.id)
    }

    /// How it stands in `identity.tokens`, with its keys from `keys`.
    pub fn settings(&self, keys: Value) -> Value {
        json!({
            "id": self.id, "issuer": self.name(), "audiences": [AUDIENCE],
            "algorithm": self.algorithm, "keys": keys, "tenant": {"claim": "tenant"},
        })
    }

    pub fn public_pem(&self) -> Vec<u8> {
        self.key.public_key_to_pem().unwrap()
    }

    /// The public key as a JSON Web Key.
    pub fn jwk(&self, kid: &str) -> Value {
        let mut jwk = match self.algorithm {
            "RS256" => {
                let rsa = self.key.rsa().unwrap();
                json!({"kty": "RSA", "n": encode(rsa.n().to_vec()), "e": encode(rsa.e().to_vec())})
            }
            "ES256" => {
                let key = self.key.ec_key().unwrap();
                let point = key.public_key();
                let form = openssl::ec::PointConversionForm::UNCOMPRESSED;
                let mut context = BigNumContext::new().unwrap();
                let bytes = point.to_bytes(key.group(), form, &mut context).unwrap();
                json!({"kty": "EC", "crv": "P-256", "x": encode(&bytes[1..33]), "y": encode(&bytes[33..])})
            }
            _ => {
                let x = self.key.raw_public_key().unwrap();
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(x)})
            }
        };
        jwk["kid"] = json!(kid);
        jwk["use"] = json!("sig");
        jwk
    }

    /// Claims of a good token for `tenant`, ten minutes long.
    pub fn claims(&self, tenant: &str) -> Value {
        json!({
            "iss": self.name(), "aud": AUDIENCE, "sub": "robot-7", "tenant": tenant,
            "iat": now(), "exp": now() + 600,
        })
    }

    /// The usual header.
    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm, "typ": "JWT"})
    }

    /// A good token for `tenant`.
    pub fn token(&self, tenant: &str) -> String {
        self.sign(&self.header(), &self.claims(tenant))
    }

    /// A good token for `tenant` that names its key.
    pub fn token_by(&self, kid: &str, tenant: &str) -> String {
        let header = super::with(self.header(), "kid", json!(kid));
        self.sign(&header, &self.claims(tenant))
    }

    /// Signs with its own key, whatever the header says.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = self.signature(&message);
        format!("{message}.{}", encode(signature))
    }

    /// In the form of RFC 7518 §3.
    fn signature(&self, message: &str) -> Vec<u8> {
        let mut signer = match self.algorithm {
            "EdDSA" => Signer::new_without_digest(&self.key).unwrap(),
            _ => Signer::new(MessageDigest::sha256(), &self.key).unwrap(),
        };
        let signature = signer.sign_oneshot_to_vec(message.as_bytes()).unwrap();
        if self.algorithm != "ES256" {
            return signature;
        }
        let pair = EcdsaSig::from_der(&signature).unwrap();
        let mut flat = pair.r().to_vec_padded(32).unwrap();
        flat.extend(pair.s().to_vec_padded(32).unwrap());
        flat
    }
}

/// A JSON Web Key Set.
pub fn key_set(keys: &[Value]) -> Vec<u8> {
    json!({"keys": keys}).to_string().into_bytes()
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
