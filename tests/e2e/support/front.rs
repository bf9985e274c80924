//! A TLS front before the emulator, which knows what arrived: how many handshakes, which client
//! certificates, and each byte that was said after them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslAcceptorBuilder, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use parking_lot::Mutex;
use pingora::protocols::tls::SslStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::authority::{Authority, Leaf};
use super::{Emulator, eventually};

/// A running front; it stops when it is dropped.
pub struct TlsFront {
    address: SocketAddr,
    seen: Arc<Seen>,
    _runtime: Runtime,
}

struct Seen {
    acceptor: Mutex<SslAcceptor>,
    connections: AtomicUsize,
    handshakes: AtomicUsize,
    bytes: AtomicU64,
    names: Mutex<Vec<Option<String>>>,
    shown: Mutex<Vec<Option<Vec<u8>>>>,
    exchanged: Notify,
}

impl TlsFront {
    pub fn start(emulator: &Emulator, leaf: &Leaf) -> Self {
        Self::with(emulator, leaf, |_| {})
    }

    /// Lets only clients in that show a certificate of this authority.
    pub fn for_clients_of(emulator: &Emulator, leaf: &Leaf, clients: &Authority) -> Self {
        Self::with(emulator, leaf, |builder| {
            let mut store = X509StoreBuilder::new().unwrap();
            let authority = openssl::x509::X509::from_pem(clients.pem().as_bytes());
            store.add_cert(authority.unwrap()).unwrap();
            builder.set_verify_cert_store(store.build()).unwrap();
            builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        })
    }

    /// Takes whatever versions and ciphers `set` leaves.
    pub fn with(
        emulator: &Emulator,
        leaf: &Leaf,
        set: impl FnOnce(&mut SslAcceptorBuilder),
    ) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            acceptor: Mutex::new(acceptor(leaf, set)),
            connections: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            names: Mutex::default(),
            shown: Mutex::default(),
            exchanged: Notify::new(),
        });
        let (to, sees) = (emulator.address(), seen.clone());
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(forward(tcp, to, sees.clone()));
            }
        });
        Self {
            address,
            seen,
            _runtime: runtime,
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Shows another certificate from now on. No connection is left that was shown the old one.
    pub fn present(&self, leaf: &Leaf) {
        *self.seen.acceptor.lock() = acceptor(leaf, |_| {});
        // Ours and the listener's; every connection has one more.
        eventually(
            "old connections have ended",
            Duration::from_secs(10),
            || {
                self.seen.exchanged.notify_waiters();
                (Arc::strong_count(&self.seen) == 2).then_some(())
            },
        );
    }

    /// Connections, whatever became of them.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Acquire)
    }

    /// Connections on which both sides were content.
    pub fn handshakes(&self) -> usize {
        self.seen.handshakes.load(Ordering::Acquire)
    }

    /// What was said in them, decrypted.
    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::Acquire)
    }

    /// The name that the last client asked for.
    pub fn asked_for(&self) -> Option<String> {
        self.seen.names.lock().last().cloned().flatten()
    }

    /// The certificate that the last client showed, DER.
    pub fn was_shown(&self) -> Option<Vec<u8>> {
        self.seen.shown.lock().last().cloned().flatten()
    }
}

fn acceptor(leaf: &Leaf, set: impl FnOnce(&mut SslAcceptorBuilder)) -> SslAcceptor {
    // The old level, so that a test may narrow it down to versions long gone.
    let mut builder = SslAcceptor::mozilla_intermediate(SslMethod::tls_server()).unwrap();
    builder.set_certificate(&leaf.certificate()).unwrap();
    builder.set_private_key(&leaf.private_key()).unwrap();
    builder.set_session_id_context(b"front").unwrap();
    builder.set_alpn_select_callback(|_, offered| {
        openssl::ssl::select_next_proto(b"\x02h2\x08http/1.1", offered).ok_or(AlpnError::NOACK)
    });
    set(&mut builder);
    builder.build()
}

async fn forward(tcp: TcpStream, to: SocketAddr, seen: Arc<Seen>) {
    seen.connections.fetch_add(1, Ordering::AcqRel);
    let ssl = Ssl::new(seen.acceptor.lock().context()).unwrap();
    let mut tls = SslStream::new(ssl, tcp).unwrap();
    if tls.accept().await.is_err() {
        return;
    }
    let ssl = tls.ssl();
    let name = ssl.servername(openssl::ssl::NameType::HOST_NAME);
    seen.names.lock().push(name.map(str::to_owned));
    let shown = ssl.peer_certificate().map(|shown| shown.to_der().unwrap());
    seen.shown.lock().push(shown);
    seen.handshakes.fetch_add(1, Ordering::AcqRel);
    let Ok(upstream) = TcpStream::connect(to).await else {
        return;
    };
    let (mut from_emulator, mut to_emulator) = upstream.into_split();
    let (mut from_gateway, mut to_gateway) = tokio::io::split(tls);
    let answers = async move {
        let _ = tokio::io::copy(&mut from_emulator, &mut to_gateway).await;
        let _ = to_gateway.shutdown().await;
    };
    let requests = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from_gateway.read(&mut buffer).await {
            seen.bytes.fetch_add(count as u64, Ordering::AcqRel);
            if to_emulator.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = seen.exchanged.notified() => {}
        ((), ()) = async { tokio::join!(answers, requests) } => {}
    }
}
