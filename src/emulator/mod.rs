//! A stand-in for the DeepSeek API, for the demo, the tests and the benches:
//! its surfaces, errors, pace and limits, and faults on command. Answers are
//! invented from the question alone. It knows nothing of the gateway.
//!
//! Faults are ordered by the header `x-emulator-fault`, by `[[fault:…]]` in the
//! last user message, or for an account or all by `POST /_emulator/faults`
//! with `{"account": …, "faults": "status=503,times=2"}`. An account's money and
//! key are changed by `POST /_emulator/accounts/{name}`. What was asked is told by `GET /_emulator/journal`, `GET /_emulator/totals` and
//! `GET /_emulator/inflight`.

mod account;
mod answer;
mod by_hand;
mod chat;
mod chat_request;
mod completions;
mod control;
mod desk;
mod embeddings;
mod entry;
mod envelope;
mod exchange;
mod fault;
mod files;
mod gzip;
mod journal;
mod line;
mod lookup;
mod messages;
mod meter;
mod models;
mod performance;
mod playback;
mod prompt;
mod refusal;
mod reply;
mod responses;
mod route;
mod script;
mod server;
mod spoil;
#[cfg(test)]
mod tests;
mod ticket;
mod totals;
mod transcript;
mod usage;
mod world;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub use server::{Emulator, bind};

/// Key of the account that an emulator has unless told otherwise.
pub const DEFAULT_KEY: &str = "sk-emulator";

/// What an emulator is to be.
#[derive(Debug, Clone)]
pub struct EmulatorConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The accounts; without one every key is wrong.
    pub accounts: Vec<EmulatedAccount>,
    /// Time between two tokens; zero sends an answer in as few writes as possible.
    pub token_delay: Duration,
    /// Time until the first token.
    pub first_token_delay: Duration,
    /// Tokens of an answer, its reasoning not counted; at most 32,768.
    pub tokens: usize,
    /// Time between two keep-alives of a queued request; at least a millisecond.
    pub keep_alive: Duration,
    /// How long a request may queue before the connection is closed
    /// (DeepSeek rate_limit page: 10 minutes).
    pub queue_limit: Duration,
    /// Entries of the journal, at most 50,000; zero keeps neither entries nor
    /// sums, for benches.
    pub journal: usize,
    /// Offers `/v1/embeddings`, which DeepSeek has not.
    pub embeddings: bool,
    /// Stands in for a self-hosted server: any model, any key or none, and none
    /// of DeepSeek's own rules.
    pub self_hosted: bool,
    /// Stands in for a company-internal gateway: every answer and every event in
    /// `{"code", "data", "msg"}`, and errors under status 200.
    pub enveloped: bool,
    /// Wraps every connection; HTTP/2 is told from HTTP/1.1 by its preface.
    pub tls: Option<TlsHandshake>,
}

impl Default for EmulatorConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            accounts: vec![EmulatedAccount::new(DEFAULT_KEY, "emulator")],
            token_delay: Duration::from_millis(10),
            first_token_delay: Duration::from_millis(50),
            tokens: 24,
            keep_alive: Duration::from_millis(100),
            queue_limit: Duration::from_secs(600),
            journal: journal::MAX_ENTRIES,
            embeddings: false,
            self_hosted: false,
            enveloped: false,
            tls: None,
        }
    }
}

/// An account of the emulated provider.
#[derive(Debug, Clone)]
pub struct EmulatedAccount {
    /// The key by which requests are counted to it.
    pub key: String,
    /// Its name in the journal and in orders of faults.
    pub name: String,
    /// Most requests in flight by model; 500 for `deepseek-v4-pro` and 2,500
    /// for every other unless named.
    pub concurrency: HashMap<String, usize>,
    /// Amount in CNY, like `110.00`; nothing is charged. Zero or less answers 402.
    pub balance: String,
}

impl EmulatedAccount {
    /// An account with a full balance and the documented concurrency.
    pub fn new(key: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            name: name.into(),
            concurrency: HashMap::new(),
            balance: "110.00".to_owned(),
        }
    }
}

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Handshake = dyn Fn(TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Duplex>>> + Send + Sync;

/// Makes a TLS stream of a TCP connection; the emulator links no TLS itself.
#[derive(Clone)]
pub struct TlsHandshake(Arc<Handshake>);

impl TlsHandshake {
    /// `shake` is called for each connection and may take ten seconds.
    pub fn new<F>(shake: F) -> Self
    where
        F: Fn(TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Duplex>>> + Send + Sync + 'static,
    {
        Self(Arc::new(shake))
    }
}

impl fmt::Debug for TlsHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsHandshake")
    }
}
