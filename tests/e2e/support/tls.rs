//! TLS for the clients of the tests, and certificates for the gateway.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{
    AlpnError, Ssl, SslAcceptor, SslConnector, SslConnectorBuilder, SslMethod, SslStream,
    SslVerifyMode, SslVersion, select_next_proto,
};
use openssl::x509::X509;
use tempfile::TempDir;
use tidegate::emulator::{Duplex, TlsHandshake};

use super::authority::Leaf;
use super::{Request, Wire};

pub type TlsStream = SslStream<TcpStream>;

pub const HTTP1: &[u8] = b"\x08http/1.1";
pub const HTTP2: &[u8] = b"\x02h2";

/// A fresh self-signed certificate for `localhost` and its key, both PEM.
pub fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A client that believes every certificate, put together step by step.
pub struct Client {
    builder: SslConnectorBuilder,
    name: String,
}

impl Client {
    pub fn new() -> Self {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        Self {
            builder,
            name: "localhost".to_owned(),
        }
    }

    /// Shows a certificate when it is asked for one.
    #[must_use]
    pub fn shows(mut self, leaf: &Leaf) -> Self {
        self.builder.set_certificate(&leaf.certificate()).unwrap();
        self.builder.set_private_key(&leaf.private_key()).unwrap();
        self
    }

    /// The name that it asks for in the handshake.
    #[must_use]
    pub fn asks_for(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Speaks this version only, and forgives it every weakness.
    #[must_use]
    pub fn only(mut self, version: SslVersion) -> Self {
        self.builder
            .set_cipher_list("ALL:@SECLEVEL=0")
            .and_then(|()| self.builder.set_min_proto_version(Some(version)))
            .and_then(|()| self.builder.set_max_proto_version(Some(version)))
            .unwrap();
        self
    }

    /// The handshake's settings; `alpn` is in wire form.
    pub fn ssl(mut self, alpn: &[u8]) -> Ssl {
        self.builder.set_alpn_protos(alpn).unwrap();
        let configuration = self.builder.build().configure().unwrap();
        configuration
            .verify_hostname(false)
            .into_ssl(&self.name)
            .unwrap()
    }

    /// Connects and shakes hands.
    pub fn connect(self, to: SocketAddr, alpn: &[u8]) -> Result<TlsStream, String> {
        let tcp = TcpStream::connect(to).map_err(|e| e.to_string())?;
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut tls = SslStream::new(self.ssl(alpn), tcp).unwrap();
        tls.connect().map_err(|e| e.to_string())?;
        Ok(tls)
    }

    /// Connects for HTTP/1.1.
    pub fn wire(self, to: SocketAddr) -> Wire {
        Wire::over_tls(self.connect(to, HTTP1).unwrap())
    }

    /// The certificate that it is shown, DER.
    pub fn certificate_of(self, server: SocketAddr) -> Vec<u8> {
        let tls = self.connect(server, HTTP1).unwrap();
        tls.ssl().peer_certificate().unwrap().to_der().unwrap()
    }
}

/// Connects and shakes hands.
pub fn connect(to: SocketAddr, alpn: &[u8]) -> Result<TlsStream, String> {
    connect_after(b"", to, alpn)
}

/// Connects, sends `beginning` in the clear, and shakes hands.
pub fn connect_after(beginning: &[u8], to: SocketAddr, alpn: &[u8]) -> Result<TlsStream, String> {
    let mut tcp = TcpStream::connect(to).map_err(|e| e.to_string())?;
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    tcp.write_all(beginning).map_err(|e| e.to_string())?;
    let mut tls = SslStream::new(Client::new().ssl(alpn), tcp).unwrap();
    tls.connect().map_err(|e| e.to_string())?;
    Ok(tls)
}

/// The certificate that the gateway shows, DER.
pub fn shown_certificate(to: SocketAddr) -> Vec<u8> {
    Client::new().certificate_of(to)
}

/// DER of a PEM certificate.
pub fn der(pem: &str) -> Vec<u8> {
    openssl::x509::X509::from_pem(pem.as_bytes())
        .unwrap()
        .to_der()
        .unwrap()
}

/// `openssl s_client` with a memory: it takes its last session up again if the server lets it.
///
/// A program of its own, because resuming is `unsafe` in the `openssl` crate.
pub struct Resuming {
    folder: TempDir,
    version: &'static str,
    shows: bool,
}

/// How a connection of [`Resuming`] went.
pub struct Visit {
    /// Whether the server took the session up.
    pub resumed: bool,
    pub status: u16,
    pub text: String,
}

impl Resuming {
    /// `version` as the program's option has it, such as `-tls1_3`.
    pub fn new(version: &'static str, leaf: Option<&Leaf>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let Some(leaf) = leaf {
            std::fs::write(folder.path().join("leaf.pem"), &leaf.pem).unwrap();
            std::fs::write(folder.path().join("leaf.key"), &leaf.key).unwrap();
        }
        Self {
            folder,
            version,
            shows: leaf.is_some(),
        }
    }

    /// Makes one request on a connection of its own.
    pub fn visit(&self, to: SocketAddr, name: &str, request: Request) -> Visit {
        let request = request.header("connection", "close");
        let path = |name: &str| self.folder.path().join(name);
        std::fs::write(path("request"), request.to_bytes()).unwrap();
        let mut program = Command::new("openssl");
        program
            .args(["s_client", "-ign_eof", self.version, "-servername", name])
            .args(["-connect", &to.to_string(), "-sess_out"])
            .arg(path("session"));
        if self.shows {
            program.arg("-cert").arg(path("leaf.pem"));
            program.arg("-key").arg(path("leaf.key"));
        }
        if path("session").exists() {
            program.arg("-sess_in").arg(path("session"));
        }
        let request = std::fs::File::open(path("request")).unwrap();
        let output = program
            .stdin(Stdio::from(request))
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = text.split("HTTP/1.1 ").nth(1).map(|rest| &rest[..3]);
        Visit {
            resumed: text.lines().any(|line| line.starts_with("Reused, ")),
            status: status.and_then(|code| code.parse().ok()).unwrap_or(0),
            text,
        }
    }
}

/// How an emulator shakes hands: with this certificate, TLS 1.2 at most, either HTTP by ALPN.
pub fn handshake(certificate: &str, private_key: &str) -> TlsHandshake {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    let certificate = X509::from_pem(certificate.as_bytes()).unwrap();
    let private_key = PKey::private_key_from_pem(private_key.as_bytes()).unwrap();
    builder.set_certificate(&certificate).unwrap();
    builder.set_private_key(&private_key).unwrap();
    builder
        .set_max_proto_version(Some(SslVersion::TLS1_2))
        .unwrap();
    builder.set_alpn_select_callback(|_, offered| {
        select_next_proto(b"\x02h2\x08http/1.1", offered).ok_or(AlpnError::NOACK)
    });
    let context = builder.build().into_context();
    TlsHandshake::new(move |stream| {
        let ssl = Ssl::new(&context).unwrap();
        Box::pin(async move {
            let mut tls = pingora::protocols::tls::SslStream::new(ssl, stream)
                .map_err(std::io::Error::other)?;
            tls.accept().await.map_err(std::io::Error::other)?;
            Ok(Box::new(tls) as Box<dyn Duplex>)
        })
    })
}
