//! One client's connection: the bytes, the clocks Pingora does not keep, and the account of abuse.
//!
//! Pingora limits each read of a request head but not the head as a whole, keeps no cap on resets,
//! and closes at once over unread bytes. [`Connection`] stands between the socket and Pingora and
//! closes those gaps: a whole-head deadline on every request, a lingering close so that a refusal
//! is not lost to a reset, and an end for HTTP/2 peers that open streams only to reset them.
//! [`ConnectionState`] is the part that request hooks can see.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::task::AtomicWaker;
use openssl::ssl::{Ssl as SslHandle, SslAcceptor};
use parking_lot::Mutex;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, SslStream, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use prometheus::IntCounterVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::proof::{ClientTrust, Shown};
use super::resets::Resets;
use super::transport::Transport;
use crate::request::refusal::{Code, Family, Refusal};

/// One TCP segment: a response head and the first event go out together, nothing waits for more.
const WRITE_BUFFER: usize = 1460;
/// RFC 9113 §3.4.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long, and for how many bytes, a closed connection still takes in what the peer sends.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 << 20;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// A head is due: the deadline runs.
    Head = 0,
    /// Between requests: Pingora's keep-alive clock runs; the first byte begins a head.
    Idle = 1,
    /// A request is being served.
    Busy = 2,
    /// HTTP/2: Pingora's idle clock and h2's own limits run.
    Multiplexed = 3,
}

/// What request hooks may know of, and tell to, the connection they run on.
pub struct ConnectionState {
    /// The other end: the socket's peer, or whom a trusted PROXY header names in its place.
    pub peer: SocketAddr,
    /// Which listener took it in, in the order of the configuration.
    pub listener: usize,
    /// What the handshake showed of the client.
    shown: OnceLock<Shown>,
    phase: AtomicU8,
    linger: AtomicBool,
    killed: AtomicBool,
    reader: AtomicWaker,
    resets: Mutex<Resets>,
}

impl ConnectionState {
    pub fn new(peer: SocketAddr, listener: usize) -> Arc<Self> {
        Arc::new(Self {
            peer,
            listener,
            shown: OnceLock::new(),
            phase: AtomicU8::new(Phase::Head as u8),
            linger: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            resets: Mutex::new(Resets::default()),
        })
    }

    /// The state of the connection a session runs on, if [`Connection`] carries it.
    pub fn of(digest: Option<&pingora::protocols::Digest>) -> Option<&Arc<Self>> {
        digest?
            .proxy_digest
            .as_ref()?
            .user_data
            .as_ref()?
            .downcast_ref::<Arc<Self>>()
    }

    /// The certificate that the client showed, if it did.
    pub fn shown(&self) -> Option<&Shown> {
        self.shown.get()
    }

    /// A head has come in whole.
    pub fn begin_request(&self, multiplexed: bool) {
        self.set(if multiplexed {
            Phase::Multiplexed
        } else {
            Phase::Busy
        });
    }

    /// A request is over; on HTTP/2 `reset_early` says that the client reset it unanswered. Ends
    /// the connection when it does little else.
    pub fn end_request(&self, now: Instant, reset_early: bool) {
        if self.phase() != Phase::Multiplexed {
            self.set(Phase::Idle);
            return;
        }
        if self.resets.lock().record(now, reset_early) {
            self.killed.store(true, Ordering::Release);
            self.reader.wake();
        }
    }

    /// The answer will close the connection while the client may still be sending.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Release);
    }

    fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Head,
            1 => Phase::Idle,
            2 => Phase::Busy,
            _ => Phase::Multiplexed,
        }
    }
}

/// A client's socket as Pingora reads and writes it.
pub struct Connection {
    io: Transport,
    /// Bytes that were looked at and not taken, and how many of them are used up.
    peeked: Vec<u8>,
    taken: usize,
    h2c: bool,
    /// Heads that Pingora's parser refused.
    bad_heads: IntCounterVec,
    state: Arc<ConnectionState>,
    head_timeout: Duration,
    head_began: Instant,
    head_timer: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
    established: std::time::SystemTime,
    socket_digest: Arc<SocketDigest>,
    proxy_digest: Arc<ProxyDigest>,
}

/// The end of a connection, step by step.
struct Closing {
    until: Pin<Box<Sleep>>,
    left: usize,
}

/// How a listener wants its connections treated.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    pub h2c: bool,
    pub head_timeout: Duration,
    pub bad_heads: IntCounterVec,
}

impl Connection {
    /// # Errors
    /// If the socket's addresses cannot be read: it is gone already.
    pub fn plain(
        socket: TcpStream,
        state: Arc<ConnectionState>,
        options: ConnectionOptions,
    ) -> io::Result<Self> {
        Self::over(
            Transport::Plain(BufWriter::with_capacity(WRITE_BUFFER, socket)),
            state,
            options,
        )
    }

    /// Shakes hands first. The head's clock starts after it; the handshake's is the caller's.
    /// `trust` is by what the client's certificate is judged, with the generation that `acceptor`
    /// was made with.
    ///
    /// # Errors
    /// If the handshake fails.
    pub async fn tls(
        socket: TcpStream,
        acceptor: &SslAcceptor,
        (trust, generation): (Arc<ClientTrust>, u64),
        state: Arc<ConnectionState>,
        options: ConnectionOptions,
    ) -> io::Result<Self> {
        let ssl = SslHandle::new(acceptor.context())?;
        let mut tls = SslStream::new(ssl, BufWriter::with_capacity(WRITE_BUFFER, socket))
            .map_err(io::Error::other)?;
        tls.accept().await.map_err(io::Error::other)?;
        let ssl = tls.get_ssl();
        if let Some(shown) = ssl.and_then(|ssl| Shown::of(ssl, trust, generation)) {
            let _ = state.shown.set(shown);
        }
        let mut peeked = Vec::new();
        if matches!(tls.selected_alpn_proto(), Some(ALPN::H2)) {
            state.set(Phase::Multiplexed);
            // Pingora waits for the preface without a clock; here it falls under the handshake's.
            peeked = read_preface(&mut tls).await?;
        }
        let connection = Self::over(Transport::Tls(Box::new(tls)), state, options)?;
        Ok(Self {
            peeked,
            ..connection
        })
    }

    fn over(
        io: Transport,
        state: Arc<ConnectionState>,
        options: ConnectionOptions,
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let socket_digest = SocketDigest::from_raw_fd(io.tcp().as_raw_fd());
        let _ = socket_digest.peer_addr.set(Some(state.peer.into()));
        let _ = socket_digest
            .local_addr
            .set(Some(io.tcp().local_addr()?.into()));
        let head = pingora::http::ResponseHeader::build(200, Some(0)).map_err(io::Error::other)?;
        let proxy_digest = ProxyDigest::new(Box::new(head), Some(Box::new(state.clone())));
        Ok(Self {
            io,
            peeked: Vec::new(),
            taken: 0,
            h2c: options.h2c,
            bad_heads: options.bad_heads,
            state,
            head_timeout: options.head_timeout,
            head_began: Instant::now(),
            head_timer: None,
            closing: None,
            established: std::time::SystemTime::now(),
            socket_digest: Arc::new(socket_digest),
            proxy_digest: Arc::new(proxy_digest),
        })
    }

    /// Reads as `AsyncRead` does, with the clocks and verdicts of this connection applied.
    fn poll_timed_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.state.killed.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "too many streams were reset",
            )));
        }
        let phase = self.state.phase();
        if phase == Phase::Multiplexed {
            self.state.reader.register(cx.waker());
        }
        let before = buf.filled().len();
        let read = if self.taken < self.peeked.len() {
            self.give_back(buf)
        } else {
            Pin::new(&mut self.io).poll_read(cx, buf)
        };
        match (phase, &read) {
            (Phase::Idle, Poll::Ready(Ok(()))) if buf.filled().len() > before => {
                self.state.set(Phase::Head);
                self.head_began = Instant::now();
                self.head_timer = None;
                read
            }
            (Phase::Head, _) if self.head_is_late(cx, read.is_pending()) => {
                // Best effort: the connection closes whether or not this goes out or is read.
                let refusal = Refusal::closing(
                    Code::RequestTimeout,
                    "The request head did not arrive in time.",
                );
                let answer = self.tell(&refusal);
                let _ = Pin::new(&mut self.io).poll_write(cx, &answer);
                let _ = Pin::new(&mut self.io).poll_flush(cx);
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the request head did not come in time",
                )))
            }
            _ => read,
        }
    }

    /// A timer is only armed once a head is slow; most heads come in one read.
    fn head_is_late(&mut self, cx: &mut Context<'_>, waiting: bool) -> bool {
        let left = self.head_timeout.saturating_sub(self.head_began.elapsed());
        if left.is_zero() {
            return true;
        }
        if !waiting {
            return false;
        }
        let timer = self
            .head_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// Counts a refusal that no hook has seen, and words it as a whole HTTP/1.1 answer.
    fn tell(&self, refusal: &Refusal) -> Vec<u8> {
        self.bad_heads
            .with_label_values(&["none", refusal.code.as_str()])
            .inc();
        let request_id = uuid::Uuid::now_v7().simple().to_string();
        let body = refusal.body(Family::OpenAi, &request_id);
        format!(
            "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             x-request-id: {request_id}\r\nconnection: close\r\n\r\n{body}",
            refusal.status(),
            body.len(),
        )
        .into_bytes()
    }

    fn give_back(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = self.peeked.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..count).unwrap_or_default());
        self.taken += count;
        if self.taken >= self.peeked.len() {
            self.peeked = Vec::new();
            self.taken = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes in and throws away what the peer still sends, within bounds: closing over unread bytes
    /// would reset the connection and could take our last answer with it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closing = self.closing.get_or_insert_with(|| Closing {
            until: Box::pin(tokio::time::sleep(LINGER_TIME)),
            left: LINGER_BYTES,
        });
        loop {
            if closing.left == 0 || closing.until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut scratch = [0u8; 4096];
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    closing.left = closing.left.saturating_sub(buf.filled().len())
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_timed_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.state.phase() != Phase::Head {
            return Pin::new(&mut this.io).poll_write(cx, buf);
        }
        // No hook has run, so this is Pingora's own bare answer to a head it cannot parse: the
        // caller gets an error object like any other. It fits the empty write buffer whole.
        let refusal = bad_head(buf);
        let answer = this.tell(&refusal);
        ready!(Pin::new(&mut this.io).poll_write(cx, &answer))?;
        this.state.linger();
        this.state.set(Phase::Busy);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        }
        if self.state.linger.load(Ordering::Acquire) {
            self.poll_linger(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// Reads the HTTP/2 preface, or as much of what comes as could have been one.
async fn read_preface(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut seen = Vec::with_capacity(H2_PREFACE.len());
    while seen.len() < H2_PREFACE.len() && H2_PREFACE.starts_with(&seen) {
        let mut bytes = [0u8; H2_PREFACE.len()];
        let wanted = bytes
            .get_mut(..H2_PREFACE.len() - seen.len())
            .unwrap_or_default();
        let count = io.read(wanted).await?;
        if count == 0 {
            break;
        }
        seen.extend_from_slice(bytes.get(..count).unwrap_or_default());
    }
    Ok(seen)
}

/// What the caller of an unreadable head is told; `pingoras` is the answer that it replaces.
fn bad_head(pingoras: &[u8]) -> Refusal {
    if pingoras.get(9..12) == Some(b"405") {
        return Refusal::closing(Code::MethodNotAllowed, "CONNECT is not taken here.");
    }
    Refusal::closing(Code::BadRequest, "The request head is not valid HTTP/1.1.")
}

#[async_trait]
impl Peek for Connection {
    /// Pingora asks this once, to tell HTTP/2 by prior knowledge from HTTP/1. Where that is not
    /// configured the answer is a buffer of zeroes: certainly not the preface, and no wait.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        buf.fill(0);
        if !self.h2c {
            return Ok(true);
        }
        let seen = read_preface(self).await?;
        if seen == H2_PREFACE {
            self.state.set(Phase::Multiplexed);
        }
        if let Some(front) = buf.get_mut(..seen.len()) {
            front.copy_from_slice(&seen);
        }
        self.peeked = seen;
        self.taken = 0;
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // The peer may be gone already, which is what was wanted.
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        use std::os::fd::AsRawFd;
        self.io.tcp().as_raw_fd()
    }
}

impl Ssl for Connection {
    fn get_ssl(&self) -> Option<&TlsRef> {
        match &self.io {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.get_ssl(),
        }
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        match &self.io {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.get_ssl_digest(),
        }
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match &self.io {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.selected_alpn_proto(),
        }
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.established,
            ..TimingDigest::default()
        })]
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.proxy_digest.clone())
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket_digest.clone())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.state.peer)
            .finish_non_exhaustive()
    }
}
