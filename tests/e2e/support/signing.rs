//! Signed requests of the tests; every part can be made wrong before it is signed.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tidegate::identity::signed_request::{self, body, canonical::Target};

use super::tokens::now;

/// The secret of every key id, unless a test says otherwise.
pub const SIGNING_SECRET: &str = "the-signing-secret-of-the-tests-0001";

/// What is signed, and as whom.
#[derive(Clone)]
pub struct Signing {
    pub id: String,
    pub secret: String,
    pub method: String,
    /// Path, and query behind a question mark.
    pub target: String,
    pub timestamp: i64,
    pub nonce: String,
    pub body: Vec<u8>,
}

impl Signing {
    /// As the key id `signer`, now.
    pub fn new(method: &str, target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            id: "signer".to_owned(),
            secret: SIGNING_SECRET.to_owned(),
            method: method.to_owned(),
            target: target.to_owned(),
            timestamp: now(),
            nonce: fresh_nonce(),
            body: body.into(),
        }
    }

    /// Of a POST of JSON.
    pub fn post(target: &str, body: &Value) -> Self {
        Self::new("POST", target, body.to_string())
    }

    /// The value of `authorization`.
    pub fn header(&self) -> String {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let method = &self.method;
        signed_request::sign(
            &self.id,
            self.secret.as_bytes(),
            Target {
                method,
                path,
                query,
            },
            self.timestamp,
            &self.nonce,
            &body::digest(&self.body),
        )
        .unwrap()
    }
}

/// How a secret stands in `tenants[].credentials`, kept in `NAME.secret` beside the configuration.
pub fn signer(id: &str) -> Value {
    json!({"signed_request": {"id": id, "secret": format!("${{file:{id}.secret}}")}})
}

/// Never the same in one run, and of the right form.
pub fn fresh_nonce() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("nonce-of-the-tests-{number:08}")
}
