//! An HTTP/2 client, by prior knowledge or over TLS, that decides itself whether a body announces
//! its length.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pingora::protocols::tls::SslStream;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::Piece;

pub type Body = BoxBody<Bytes, Infallible>;
pub type Sender = SendRequest<Body>;

/// Connects by prior knowledge.
pub async fn connect(to: SocketAddr) -> Sender {
    connect_after(b"", to).await
}

/// Sends `beginning` and then connects by prior knowledge.
pub async fn connect_after(beginning: &[u8], to: SocketAddr) -> Sender {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(beginning).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Connects by prior knowledge as one that takes so many bytes of an answer before it reads.
pub async fn connect_narrow(to: SocketAddr, window: u32) -> Sender {
    let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let builder = builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Connects over TLS and agrees on HTTP/2 by ALPN.
pub async fn connect_tls(to: SocketAddr) -> Sender {
    connect_as(super::tls::Client::new(), to).await
}

/// The same, as this client.
pub async fn connect_as(client: super::tls::Client, to: SocketAddr) -> Sender {
    let stream = TcpStream::connect(to).await.unwrap();
    let mut tls = SslStream::new(client.ssl(super::tls::HTTP2), stream).unwrap();
    tls.connect().await.unwrap();
    let io = TokioIo::new(tls);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// An upstream by prior knowledge; where it is. Its window for a request's body is the standard's.
pub fn serve<F, A>(answer: F) -> String
where
    F: Fn(http::Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                let answer = answer.clone();
                let service = service_fn(move |request| {
                    let answer = answer(request);
                    async { Ok::<_, Infallible>(answer.await) }
                });
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.initial_stream_window_size(65_535);
                tokio::spawn(builder.serve_connection(TokioIo::new(socket), service));
            }
        });
    });
    url
}

/// A body whose length is announced.
pub fn sized(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

/// A body in pieces whose length nobody knows.
pub fn unsized_(bytes: Bytes, size: usize) -> Body {
    let pieces: Vec<_> = (0..bytes.len())
        .step_by(size)
        .map(|at| Ok(Frame::data(bytes.slice(at..bytes.len().min(at + size)))))
        .collect();
    BodyExt::boxed(StreamBody::new(stream::iter(pieces)))
}

/// A body that begins and never goes on.
pub fn stalled(beginning: &'static [u8]) -> Body {
    let beginning = stream::iter([Ok(Frame::data(Bytes::from_static(beginning)))]);
    let body = futures_util::StreamExt::chain(beginning, stream::pending());
    BodyExt::boxed(StreamBody::new(body))
}

/// A POST of JSON with the key of `acme`.
pub fn post(path: &str, body: Body) -> http::Request<Body> {
    http::Request::post(format!("http://gateway{path}"))
        .header("authorization", format!("Bearer {}", super::key("acme")))
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

/// The next piece of a body; `None` at its proper end, an error when it was reset.
pub async fn next_piece(answer: &mut Response<Incoming>) -> Option<Result<Piece, hyper::Error>> {
    loop {
        match answer.body_mut().frame().await? {
            Err(error) => return Some(Err(error)),
            Ok(frame) => {
                if let Ok(bytes) = frame.into_data() {
                    let (at, bytes) = (Instant::now(), bytes.to_vec());
                    return Some(Ok(Piece { at, bytes }));
                }
            }
        }
    }
}

/// All of a body.
pub async fn whole(answer: Response<Incoming>) -> Vec<u8> {
    answer
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
        .to_vec()
}
