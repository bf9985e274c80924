//! Asks endpoints how they are, in the background: the edge of [`super::health`].
//!
//! Hosted APIs are asked for their model list with the first account's credential, self-hosted
//! engines for `/health`. An answer that speaks of the account (401, 402, 403, 429) shows that the
//! endpoint is alive.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use log::error;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::Peer;
use pingora::{Error, ErrorType, Result};
use prometheus::IntCounterVec;

use super::endpoint::Heard;
use super::gate::Reason;
use super::peer::Distrust;
use super::pool::{AccountSlot, EndpointSlot, Pool};
use super::signing;
use crate::config::settings::{Dialect, Health};

/// What an answer to a check may have, in bytes.
const MOST_BODY: usize = 1 << 20;

/// Asks every endpoint of a pool once and records what it hears.
pub async fn check(pool: &Pool, connector: &Connector, mismatches: &IntCounterVec) {
    let Some(health) = &pool.settings.health else {
        return;
    };
    let checks = pool.endpoints.iter().map(|slot| async move {
        let question = Question {
            slot,
            address: slot.state.addresses.next_check(),
            account: pool.accounts.first().filter(|_| health.authenticated),
            path: &path(pool, slot, health),
            patience: health.timeout,
            most_body: MOST_BODY,
        };
        let asked = ask(pool, &question, connector, mismatches);
        let asked = tokio::time::timeout(health.timeout, asked).await;
        let (good, heard) = match asked {
            Ok(Ok((status, _))) => (is_alive(status), format!("status {status}")),
            // The endpoint is well.
            Ok(Err(Unanswered::NotReached(_))) => return,
            Ok(Err(cause)) => (false, cause.to_string()),
            Err(_) => (false, "no answer in time".to_owned()),
        };
        record(pool, slot, good, &heard);
    });
    join_all(checks).await;
}

/// Records a result, of a check or of live traffic.
pub fn record(pool: &Pool, slot: &EndpointSlot, good: bool, heard: &str) {
    let heard = Heard {
        good,
        reason: Reason::Checks,
        text: heard,
    };
    slot.state.record(heard, pool.watch(), Instant::now());
}

/// An upstream has shown a public key that is none of the pinned: counts it, says so, and takes
/// the endpoint out at once, whatever was heard of it before.
pub fn pin_mismatch(pool: &Pool, slot: &EndpointSlot, mismatches: &IntCounterVec) {
    let (upstream, endpoint) = (pool.settings.id.as_str(), slot.settings.url.as_str());
    mismatches.with_label_values(&[upstream, endpoint]).inc();
    error!(
        "Not talking to an upstream whose public key is none of the pinned. upstream={upstream} endpoint={endpoint}"
    );
    let mut watch = pool.watch();
    watch.thresholds.unhealthy_after = 1;
    let heard = Heard {
        good: false,
        reason: Reason::Pin,
        text: "pin mismatch",
    };
    slot.state.record(heard, watch, Instant::now());
}

fn is_alive(status: u16) -> bool {
    matches!(status, 200..=299 | 401..=403 | 429)
}

/// One GET that is none of a tenant's.
pub(super) struct Question<'a> {
    pub slot: &'a EndpointSlot,
    /// Of the endpoint; `None` if its name was never resolved.
    pub address: Option<SocketAddr>,
    /// With whose credential; with none.
    pub account: Option<&'a AccountSlot>,
    pub path: &'a str,
    /// For each read.
    pub patience: Duration,
    /// A longer answer is given up, in bytes.
    pub most_body: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// An address could not be reached; others of the name can.
    #[error("{0}")]
    NotReached(Box<Error>),
    #[error("{0}")]
    Failed(Box<Error>),
}

impl From<Box<Error>> for Unanswered {
    fn from(error: Box<Error>) -> Self {
        Self::Failed(error)
    }
}

/// The status and the body. What it says of the address is noted.
pub(super) async fn ask(
    pool: &Pool,
    question: &Question<'_>,
    connector: &Connector,
    mismatches: &IntCounterVec,
) -> Result<(u16, Vec<u8>), Unanswered> {
    let slot = question.slot;
    let address = question
        .address
        .ok_or_else(|| Error::explain(ErrorType::ConnectError, "the name has not been resolved"))?;
    let mut peer = slot.template.direct(address);
    // Before the question as a whole is given up: where there is no connection, it is the address.
    let most = question.patience.mul_f64(0.9);
    for time in [
        &mut peer.options.connection_timeout,
        &mut peer.options.total_connection_timeout,
    ] {
        *time = Some(time.map_or(most, |time| time.min(most)));
    }
    let began = Instant::now();
    let (mut session, _reused) = match connector.get_http_session(&peer).await {
        Ok(session) => session,
        Err(error) if slot.state.addresses.failed(address, began, Instant::now()) => {
            return Err(Unanswered::NotReached(error));
        }
        Err(error) => return Err(error.into()),
    };
    if let Err(why) = slot.template.check_tls(session.digest()) {
        if why == Distrust::WrongPin {
            pin_mismatch(pool, slot, mismatches);
        }
        return Err(why.into_error().into());
    }
    session.set_read_timeout(Some(question.patience));
    session
        .write_request_header(Box::new(head(question)?))
        .await?;
    session.finish_request_body().await?;
    session.read_response_header().await?;
    slot.state.addresses.reached(address, began, Instant::now());
    let status = session
        .response_header()
        .map_or(0, |head| head.status.as_u16());
    let body = body(&mut session, question.most_body).await?;
    connector
        .release_http_session(session, &peer, peer.idle_timeout())
        .await;
    Ok((status, body))
}

/// Self-hosted engines answer `/health` at the root of the host, beside the API's base path.
fn path(pool: &Pool, slot: &EndpointSlot, health: &Health) -> String {
    match pool.settings.dialect {
        Dialect::DeepSeek => format!("{}{}", slot.settings.base_path, health.path),
        Dialect::OpenAi | Dialect::Enveloped => health.path.clone(),
    }
}

fn head(question: &Question<'_>) -> Result<RequestHeader> {
    let Question { slot, path, .. } = question;
    let mut head = RequestHeader::build_no_case(Method::GET, path.as_bytes(), Some(4))?;
    head.insert_header(http::header::HOST, &slot.authority)?;
    head.insert_header(
        http::header::USER_AGENT,
        concat!("tidegate/", env!("CARGO_PKG_VERSION")),
    )?;
    if let Some(account) = question.account {
        let request = signing::Request {
            method: "GET",
            target: path,
            host: slot.authority.to_str().unwrap_or_default(),
            body: b"",
        };
        for (name, value) in account.credential(request).iter() {
            head.insert_header(name, value)?;
        }
    }
    Ok(head)
}

/// Reads the answer to its end, so that the connection can be used again.
async fn body(session: &mut HttpSession, most: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) = session.read_response_body().await? {
        body.extend_from_slice(&piece);
        if body.len() > most {
            return Error::e_explain(ErrorType::ReadError, "the answer is too long");
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accounts_trouble_is_not_the_endpoints() {
        for status in [200, 204, 401, 402, 403, 429] {
            assert!(is_alive(status));
        }
        for status in [0, 301, 400, 404, 500, 503] {
            assert!(!is_alive(status));
        }
    }
}
