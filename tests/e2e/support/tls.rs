//! TLS for the clients of the tests, and certificates for the gateway.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use openssl::ssl::{Ssl, SslConnector, SslMethod, SslStream, SslVerifyMode};

pub type TlsStream = SslStream<TcpStream>;

/// A fresh self-signed certificate for `localhost` and its key, both PEM.
pub fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// The settings of a client that believes every certificate. `alpn` is in wire form.
pub fn client(alpn: &[u8]) -> Ssl {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_alpn_protos(alpn).unwrap();
    let configuration = builder.build().configure().unwrap();
    configuration
        .verify_hostname(false)
        .into_ssl("localhost")
        .unwrap()
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
    let mut tls = SslStream::new(client(alpn), tcp).unwrap();
    tls.connect().map_err(|e| e.to_string())?;
    Ok(tls)
}

/// The certificate that the gateway shows, DER.
pub fn shown_certificate(to: SocketAddr) -> Vec<u8> {
    let tls = connect(to, b"\x08http/1.1").unwrap();
    tls.ssl().peer_certificate().unwrap().to_der().unwrap()
}

/// DER of a PEM certificate.
pub fn der(pem: &str) -> Vec<u8> {
    openssl::x509::X509::from_pem(pem.as_bytes())
        .unwrap()
        .to_der()
        .unwrap()
}
