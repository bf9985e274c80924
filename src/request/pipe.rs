//! Puts an internal session in the place of a client's, so that Pingora can send a body whose
//! length nobody announced.
//!
//! Pingora's own subrequest session is a pair of channels with an HTTP/1.1 face. It takes the
//! client session's place inside the request; the client's session moves into a task that carries
//! the answer from the channels to the client, and the client's departure the other way. Every
//! hook runs as for any other request. The client's HTTP/1.1 connection closes afterwards.
//!
//! Only length-less bodies above 64 KiB come this way; SDKs announce lengths.

use std::time::Duration;

use bytes::Bytes;
use http::{Version, header};
use log::debug;
use pingora::protocols::http::subrequest::server::{HttpSession as PipeSession, SubrequestHandle};
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;

/// What stands for the body inside Pingora; see [`super::body`].
const MARKER: &[u8] = b"{";

/// How long the last word before a reset may take to get out.
const LAST_WORD: Duration = Duration::from_millis(20);

/// Exchanges the session, the body of which has been read to its end. `keep` is held until the
/// client has its answer.
///
/// # Errors
/// If Pingora does not take the request head it has parsed before, which would be a defect.
pub async fn exchange(session: &mut Session, keep: impl Send + 'static) -> Result<()> {
    // The internal session parses the head anew, as HTTP/1.1; Pingora would write "HTTP/2" there.
    session.req_header_mut().set_version(Version::HTTP_11);
    let (mut pipe, handle) = PipeSession::new_from_session(&session.downstream_session);
    pipe.read_request().await?;
    // The head was taken as it came in; its framing is now the marker's.
    pipe.req_header_mut()
        .remove_header(&header::TRANSFER_ENCODING);
    pipe.req_header_mut()
        .insert_header(header::CONTENT_LENGTH, MARKER.len())?;
    let mut client = std::mem::replace(
        &mut *session.downstream_session,
        ServerSession::Subrequest(pipe),
    );
    client.set_keepalive(None);
    session.enable_retry_buffering();
    let marker = HttpTask::Body(Some(Bytes::from_static(MARKER)), true);
    if handle.tx.send(marker).await.is_err() {
        return Error::e_explain(
            ErrorType::InternalError,
            "the exchanged session takes no body",
        );
    }
    while session.read_request_body().await?.is_some() {}
    tokio::spawn(async move {
        carry(client, handle).await;
        drop(keep);
    });
    Ok(())
}

/// Carries the answer to the client until it is complete, the request gives up, or the client goes.
async fn carry(mut client: ServerSession, handle: SubrequestHandle) {
    let SubrequestHandle { tx, mut rx, .. } = handle;
    let complete = loop {
        tokio::select! {
            biased;
            task = rx.recv() => match task {
                None => break false,
                Some(task) => match client.response_duplex_vec(vec![task]).await {
                    Ok(false) => {}
                    Ok(true) => break true,
                    Err(cause) => {
                        debug!("Cannot carry an answer on. cause=\"{cause}\"");
                        break false;
                    }
                },
            },
            // Only ever ends with an error: the client left, or sent what it should not.
            _ = client.read_body_or_idle(true) => break false,
        }
    };
    // Dropping both channels is how the request learns that the client is gone.
    drop((tx, rx));
    if complete {
        let _ = client.finish().await;
    } else {
        let_out(&client).await;
        client.shutdown().await;
    }
}

/// Before a stream is reset: an HTTP/2 reset throws away what is still queued, so the connection's
/// task gets a moment to send the last word.
pub async fn let_out(client: &ServerSession) {
    if matches!(client, ServerSession::H2(_)) {
        tokio::time::sleep(LAST_WORD).await;
    }
}
