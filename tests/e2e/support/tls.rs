//! TLS for the clients of the tests, and certificates for the gateway.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{
    AlpnError, Ssl, SslAcceptor, SslConnector, SslMethod, SslStream, SslVerifyMode, SslVersion,
    select_next_proto,
};
use openssl::x509::X509;
use tidegate::emulator::{Duplex, TlsHandshake};

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
    let tcp = TcpStream::connect(to).map_err(|e| e.to_string())?;
    tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
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
