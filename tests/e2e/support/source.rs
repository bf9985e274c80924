//! A small HTTPS server that serves one document with an ETag, as a configuration centre does, and
//! can be told to misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::X509;
use parking_lot::Mutex;

use super::tls;

/// What is answered to the next questions.
#[derive(Clone)]
pub enum Says {
    Text(String),
    /// An answer as bytes, from its status line on.
    Raw(String),
}

struct Desk {
    says: Mutex<Says>,
    asked: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

/// A running source; it is away once it is dropped.
pub struct ConfigSource {
    address: SocketAddr,
    /// PEM; what `--config-ca` has to hold.
    pub certificate: String,
    desk: Arc<Desk>,
}

impl ConfigSource {
    pub fn start(text: &str) -> Self {
        let (certificate, key) = tls::certificate();
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        let x509 = X509::from_pem(certificate.as_bytes()).unwrap();
        builder.set_certificate(&x509).unwrap();
        let key = PKey::private_key_from_pem(key.as_bytes()).unwrap();
        builder.set_private_key(&key).unwrap();
        let acceptor = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let desk = Arc::new(Desk {
            says: Mutex::new(Says::Text(text.to_owned())),
            asked: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let source = Self {
            address: listener.local_addr().unwrap(),
            certificate,
            desk: desk.clone(),
        };
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if desk.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let limit = Some(Duration::from_secs(10));
                socket.set_read_timeout(limit).unwrap();
                // A client that does not believe the certificate leaves; so be it.
                if let Ok(mut socket) = acceptor.accept(socket) {
                    let _ = serve(&desk, &mut socket);
                    let _ = socket.shutdown();
                }
            }
        });
        source
    }

    /// `https://localhost:port/tidegate.yaml`.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/tidegate.yaml", self.address.port())
    }

    pub fn says(&self, says: Says) {
        *self.desk.says.lock() = says;
    }

    /// Heads of the questions so far, in lower case.
    pub fn asked(&self) -> Vec<String> {
        self.desk.asked.lock().clone()
    }
}

impl Drop for ConfigSource {
    fn drop(&mut self) {
        self.desk.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread, which closes the socket.
        let _ = std::net::TcpStream::connect(self.address);
    }
}

fn serve(desk: &Desk, socket: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let says = desk.says.lock().clone();
    let answer = match says {
        Says::Raw(answer) => answer,
        Says::Text(text) => {
            let etag = super::fnv(text.as_bytes());
            let length = text.len();
            if head.contains(&format!("if-none-match: \"{etag}\"")) {
                format!("HTTP/1.1 304 Not Modified\r\netag: \"{etag}\"\r\n\r\n")
            } else {
                format!(
                    "HTTP/1.1 200 OK\r\netag: \"{etag}\"\r\ncontent-length: {length}\r\n\r\n{text}"
                )
            }
        }
    };
    desk.asked.lock().push(head);
    socket.write_all(answer.as_bytes())
}
