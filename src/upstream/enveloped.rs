//! Reaches upstreams that put their answers into an envelope, in such a way that
//! the rest of the gateway does not notice: the edge of [`crate::relay::envelope`].
//!
//! Pingora sends an answer's head on before it sees the body, and in an envelope
//! the body says what the status should have been. So Pingora is connected to a
//! `Line`, a connection inside this process. At its other end one request
//! is asked for real (`exchange`), and its answer written down with the right
//! status and without the envelope. Verdict, retry, relay and scanners work on
//! that as on any other answer.
//!
//! The real connection is made while Pingora connects, so whatever keeps it from
//! being made is a failure to connect, as it should be. What breaks later breaks
//! the line with a [`Cut`], which says how. Nothing runs beside the request: the
//! work is done while Pingora reads and writes, and dropping the line ends it.

mod exchange;
mod far;
mod line;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::connectors::http::Connector;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::{Error, ErrorType, Result};

use self::exchange::Terms;
use self::far::Far;
use self::line::Line;
use super::peer::{Distrust, PeerTemplate};
use crate::config::settings::{Envelope, UpstreamTimeouts};
use crate::relay::envelope::Rules;

/// Bytes of a request, and of an answer, on the line at one time.
const WINDOW: usize = 64 * 1024;
/// How long an answer's head waits for what the body says. A server that keeps a
/// request waiting sends signs of life, and they should not be kept from a client
/// for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the connection behind the line broke, or what came over it that was no HTTP.
#[derive(Debug, Clone, thiserror::Error)]
#[error("behind the envelope: {}", kind.as_str())]
pub struct Cut {
    pub kind: ErrorType,
    /// Whether the connection had served before, so that it may have been dead.
    pub reused: bool,
}

impl Cut {
    /// The cut that caused this error, if one did.
    pub fn behind(error: &Error) -> Option<&Self> {
        let cause: &(dyn std::error::Error + 'static) = error.root_cause();
        let broken = cause.downcast_ref::<std::io::Error>()?;
        broken.get_ref()?.downcast_ref()
    }
}

/// Connects to the enveloped endpoints that one template describes.
pub struct Enveloped {
    template: PeerTemplate,
    connector: Arc<Connector>,
    rules: Arc<Rules>,
    write_timeout: Duration,
    patience: Duration,
}

impl Enveloped {
    /// `template` leads to the endpoint itself. `connector` keeps its connections.
    pub fn new(
        template: PeerTemplate,
        connector: Arc<Connector>,
        envelope: &Envelope,
        timeouts: &UpstreamTimeouts,
    ) -> Self {
        let rules = Rules {
            success: envelope.success.clone(),
            statuses: envelope.statuses.clone().into_iter().collect(),
        };
        Self {
            template,
            connector,
            rules: Arc::new(rules),
            write_timeout: timeouts.write,
            // Silence on the line must not be taken for silence of the upstream.
            patience: PATIENCE.min(timeouts.read / 2),
        }
    }
}

impl fmt::Debug for Enveloped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enveloped").finish_non_exhaustive()
    }
}

#[async_trait]
impl L4Connect for Enveloped {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let address = address
            .as_inet()
            .ok_or_else(|| Error::explain(ErrorType::ConnectError, "not an internet address"))?;
        let peer = self.template.direct(*address);
        let (mut session, reused) = self.connector.get_http_session(&peer).await?;
        self.template
            .check_tls(session.digest())
            .map_err(Distrust::into_error)?;
        session.set_write_timeout(Some(self.write_timeout));
        let far = Far::new(session, reused, peer, self.connector.clone());
        let terms = Terms {
            rules: self.rules.clone(),
            patience: self.patience,
        };
        let (near, end) = tokio::io::duplex(WINDOW);
        let line = Line::new(near, exchange::run(end, far, terms));
        Ok(Stream::from(VirtualSocketStream::new(Box::new(line))))
    }
}

#[cfg(test)]
mod tests;
