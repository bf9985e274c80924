use pingora::protocols::http::client::HttpSession;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::settings::Upstream;

const SECOND: Duration = Duration::from_secs(1);

/// The settings of an enveloped upstream at `address`.
fn settings(address: std::net::SocketAddr) -> Arc<Upstream> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.yaml");
    let text = format!(
        r#"
server: {{ listeners: [{{ address: "127.0.0.1:1" }}] }}
upstreams: [{{ id: u, dialect: enveloped, endpoints: [{{ url: "http://{address}" }}] }}]
models: {{ m: {{ variants: [{{ upstream: u, model: m }}] }} }}
"#
    );
    std::fs::write(&file, text).unwrap();
    let loaded = crate::config::load(&[crate::config::Layer::Path(file)]).unwrap();
    loaded.settings.upstreams[0].clone()
}

/// What connects to it.
fn enveloped(upstream: &Upstream) -> Enveloped {
    Enveloped::new(
        PeerTemplate::new(upstream, &upstream.endpoints[0]).unwrap(),
        Arc::new(Connector::new(None)),
        upstream.envelope.as_ref().unwrap(),
        &upstream.timeouts,
    )
}

/// A line to a listener, a request on it, and the listener's end.
async fn asked() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let enveloped = enveloped(&settings(address));
    let target = SocketAddr::Inet(address);
    let (line, accepted) = tokio::join!(enveloped.connect(&target), listener.accept());
    let (mut line, mut far) = (line.unwrap(), accepted.unwrap().0);
    line.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
        .await
        .unwrap();
    let request = async {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n{}") {
            assert_ne!(far.read_buf(&mut request).await.unwrap(), 0);
        }
    };
    // The work is done while the line is read.
    let mut byte = [0; 1];
    tokio::select! {
        () = request => {}
        read = line.read(&mut byte) => panic!("{read:?}"),
    }
    (line, far)
}

#[tokio::test]
async fn a_dropped_line_closes_the_connection_behind_it() {
    let (line, mut far) = asked().await;
    drop(line);
    let read = tokio::time::timeout(SECOND, far.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_stops_where_it_comes_from() {
    let (mut line, mut far) = asked().await;
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    far.write_all(head).await.unwrap();
    let flood = tokio::spawn(async move {
        let event = b"data: {\"code\":0,\"data\":{\"choices\":[]},\"msg\":\"\"}\n\n".repeat(1_000);
        let mut sent = 0_usize;
        while let Ok(Ok(())) = tokio::time::timeout(SECOND, far.write_all(&event)).await {
            sent += event.len();
            // The kernel's buffers, ours, and room to spare.
            assert!(sent < 64 << 20, "nothing holds it back");
        }
        sent
    });
    let mut begun = [0; 12];
    line.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    assert!(flood.await.unwrap() > 0);
}

#[tokio::test]
async fn a_break_behind_the_line_is_known_at_its_other_end() {
    let (line, far) = asked().await;
    drop(far);
    let mut session = pingora::protocols::http::v1::client::HttpSession::new(Box::new(line) as _);
    session.read_timeout = Some(SECOND);
    let mut session: HttpSession = HttpSession::H1(session);
    let error = session.read_response_header().await.unwrap_err();
    let cut = Cut::behind(&error).unwrap();
    assert!(!cut.reused);
    assert!(
        matches!(cut.kind, ErrorType::ConnectionClosed | ErrorType::ReadError),
        "{cut}"
    );
    assert!(Cut::behind(&Error::explain(ErrorType::ReadError, "else")).is_none());
}
