//! HTTP/1.1 requests put together by hand.

use std::net::SocketAddr;

use serde_json::Value;

use super::wire::{Answer, Stream, Wire};

/// A request as it will be written; nothing is added that is not shown here but `host` and the
/// body's framing.
#[derive(Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    /// Size of the chunks, if the body goes out chunked.
    chunks: Option<usize>,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: None,
            chunks: None,
        }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST of JSON.
    pub fn post(path: &str, body: &Value) -> Self {
        Self::new("POST", path)
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Shows the key with the readable id `id` as a bearer token.
    #[must_use]
    pub fn key(self, id: &str) -> Self {
        let value = format!("Bearer {}", super::key(id));
        self.header("authorization", &value)
    }

    /// Shows `value` as a bearer token.
    #[must_use]
    pub fn bearer(self, value: &str) -> Self {
        self.header("authorization", &format!("Bearer {value}"))
    }

    /// Whatever it shows to say who is calling.
    pub fn credentials(&self) -> impl Iterator<Item = &str> {
        let shown = self.headers.iter().filter(|(name, _)| {
            name.eq_ignore_ascii_case("authorization") || name.eq_ignore_ascii_case("x-api-key")
        });
        shown.map(|(_, value)| value.as_str())
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sends the body in chunks of this many bytes instead of announcing its length.
    #[must_use]
    pub fn chunked(mut self, size: usize) -> Self {
        self.chunks = Some(size);
        self
    }

    /// The head with its blank line.
    pub fn head(&self) -> Vec<u8> {
        let mut text = format!(
            "{} {} HTTP/1.1\r\nhost: gateway\r\n",
            self.method, self.path
        );
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        match (&self.body, self.chunks) {
            (Some(_), Some(_)) => text.push_str("transfer-encoding: chunked\r\n"),
            (Some(body), None) => text.push_str(&format!("content-length: {}\r\n", body.len())),
            (None, _) => {}
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// The body as it is framed.
    pub fn framed_body(&self) -> Vec<u8> {
        let body = self.body.clone().unwrap_or_default();
        let Some(size) = self.chunks else {
            return body;
        };
        let mut framed = Vec::with_capacity(body.len() + body.len() / size * 8 + 16);
        for chunk in body.chunks(size) {
            framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
        }
        framed.extend_from_slice(b"0\r\n\r\n");
        framed
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        [self.head(), self.framed_body()].concat()
    }

    /// Sends it on a connection of its own and reads the answer.
    pub fn send(&self, to: SocketAddr) -> Answer {
        let mut wire = Wire::connect(to);
        wire.send(&self.to_bytes());
        wire.answer()
    }

    /// Sends it on a connection of its own and reads the head of the answer.
    pub fn stream(&self, to: SocketAddr) -> Stream {
        let mut wire = Wire::connect(to);
        wire.send(&self.to_bytes());
        wire.stream()
    }
}
