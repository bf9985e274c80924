//! A real connection to an upstream for one request. It goes back to its pool
//! after a whole exchange, and else is closed.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header;
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, Result};

use super::Cut;

pub(super) struct Far {
    /// Taken when it goes back.
    session: Option<HttpSession>,
    peer: HttpPeer,
    connector: Arc<Connector>,
    reused: bool,
    /// The request did not go out whole.
    pub spoiled: bool,
    /// Reading has come to the answer's end.
    ended: bool,
}

impl Far {
    pub fn new(
        session: HttpSession,
        reused: bool,
        peer: HttpPeer,
        connector: Arc<Connector>,
    ) -> Self {
        Self {
            session: Some(session),
            peer,
            connector,
            reused,
            spoiled: false,
            ended: false,
        }
    }

    fn session(&mut self) -> Result<&mut HttpSession> {
        self.session
            .as_mut()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "the connection went back"))
    }

    /// Sends the head as Pingora wrote it, without what HTTP/2 does not know (RFC 9113 §8.2.2).
    pub async fn send_head(&mut self, head: &RequestHeader) -> Result<()> {
        let session = self.session()?;
        let mut head = Box::new(head.clone());
        if matches!(session, HttpSession::H2(_)) {
            head.remove_header(&header::TRANSFER_ENCODING);
            head.remove_header(&header::CONNECTION);
        }
        session.write_request_header(head).await
    }

    /// Sends a piece of the body.
    pub async fn send(&mut self, piece: Bytes) -> Result<()> {
        if piece.is_empty() {
            // Between two chunks Pingora reads nothing; written as a chunk it would be the last.
            return Ok(());
        }
        self.session()?.write_request_body(piece, false).await
    }

    /// Ends the body.
    pub async fn finish(&mut self) -> Result<()> {
        self.session()?.finish_request_body().await
    }

    /// Reads the answer's head. Gives up nothing if it is dropped half way.
    pub async fn read_head(&mut self) -> Result<()> {
        self.session()?.read_response_header().await
    }

    /// The answer's head, once it was read.
    pub fn head(&mut self) -> Result<ResponseHeader> {
        let head = self.session()?.response_header().cloned();
        head.ok_or_else(|| Error::explain(ErrorType::InternalError, "no head was read"))
    }

    /// Reads a piece of the answer's body. Gives up nothing if it is dropped half way.
    pub async fn read(&mut self) -> Result<Option<Bytes>> {
        let piece = self.session()?.read_response_body().await?;
        self.ended |= piece.is_none();
        Ok(piece)
    }

    /// Whether the whole answer was read. HTTP/1.1 shows it with the last piece; h2 shows it then
    /// for a stream that broke, too.
    pub fn is_done(&mut self) -> bool {
        match &mut self.session {
            Some(HttpSession::H1(session)) => self.ended || session.is_body_done(),
            _ => self.ended,
        }
    }

    /// Gives the connection back, if the exchange on it was whole.
    pub async fn release(&mut self) {
        if self.spoiled || !self.is_done() {
            return;
        }
        if let Some(session) = self.session.take() {
            self.connector
                .release_http_session(session, &self.peer, self.peer.idle_timeout())
                .await;
        }
    }

    /// The cut that an error of this connection makes.
    pub fn cut(&self, error: &Error) -> Cut {
        Cut {
            kind: error.etype().clone(),
            reused: self.reused,
        }
    }
}

impl Drop for Far {
    /// An HTTP/1.1 connection is closed by dropping it. Of an HTTP/2 connection only the stream
    /// ends (h2 resets what is dropped unfinished), and the pool must hear of that.
    fn drop(&mut self) {
        let Some(session @ HttpSession::H2(_)) = self.session.take() else {
            return;
        };
        // While the runtime shuts down there is no pool to go back to.
        if tokio::runtime::Handle::try_current().is_ok() {
            let idle = self.peer.idle_timeout();
            let back = self
                .connector
                .release_http_session(session, &self.peer, idle);
            // Nothing is waited for in there with HTTP/2.
            let _ = back.now_or_never();
        }
    }
}
