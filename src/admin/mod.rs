//! The operators' listener: is it alive, is it ready, what does it count, how does it stand.
//!
//! Its own small HTTP/1.1 server, apart from the proxy, so that it still answers when the proxy is
//! full or draining. `/healthz`, `/readyz` and `/metrics` are open; everything else needs the token.

mod limits;
mod states;
mod status;
mod switches;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::admission::counting::Counting;
use crate::config::secret::Secret;
use crate::routing::switches::Switches;
use crate::snapshot::Current;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::readiness::Readiness;

/// Operators and scrapers are few.
const MAX_CONNECTIONS: usize = 64;
/// Characters of a name that is told back.
const MOST_QUOTED: usize = 80;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Then the peer has to come again: one that does not read must not keep its place.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

pub struct AdminService {
    socket: parking_lot::Mutex<Option<TcpListener>>,
    desk: Arc<Desk>,
}

/// What answers need.
struct Desk {
    token: Option<Secret>,
    current: Current,
    counting: Arc<Counting>,
    switches: Arc<Switches>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    /// Held over one answer of metrics: what is copied there is first set to nothing.
    exporting: parking_lot::Mutex<()>,
}

impl AdminService {
    pub fn new(
        socket: TcpListener,
        token: Option<Secret>,
        current: Current,
        counting: Arc<Counting>,
        switches: Arc<Switches>,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
    ) -> Self {
        let desk = Arc::new(Desk {
            token,
            current,
            counting,
            switches,
            metrics,
            readiness,
            exporting: parking_lot::Mutex::default(),
        });
        Self {
            socket: parking_lot::Mutex::new(Some(socket)),
            desk,
        }
    }
}

#[async_trait]
impl BackgroundService for AdminService {
    /// Goes on through a drain: load balancers ask `/readyz` until the very end.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let Some(socket) = self.socket.lock().take() else {
            return;
        };
        let listener = match tokio::net::TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(cause) => {
                warn!("Cannot serve the admin listener. cause=\"{cause}\"");
                return;
            }
        };
        if let Ok(address) = listener.local_addr() {
            info!("Listening for operators. address={address}");
        }
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let Ok((socket, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let desk = self.desk.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let desk = desk.clone();
                    async move { Ok::<_, Infallible>(desk.answer(request, peer).await) }
                });
                let mut server = http1::Builder::new();
                server
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT);
                // A peer that breaks off is its own affair.
                let served = server.serve_connection(TokioIo::new(socket), service);
                let _ = tokio::time::timeout(CONNECTION_TIME, served).await;
                drop(place);
            });
        }
    }
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        if let Some(asked) = path.strip_prefix("/limits/") {
            return if self.may_ask(&request) {
                self.limits(asked, request, peer).await
            } else {
                unauthorized()
            };
        }
        if is_of_switches(&path) {
            return if self.may_ask(&request) {
                self.switches(request, peer).await
            } else {
                unauthorized()
            };
        }
        if request.method() != Method::GET {
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                "Only GET is answered here.\n",
            );
        }
        match &*path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.readiness.is_ready() => text(StatusCode::OK, "ready\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/metrics" => self.metrics(),
            _ if !self.may_ask(&request) => unauthorized(),
            "/status" => self.status(),
            _ => text(
                StatusCode::NOT_FOUND,
                "There is /healthz, /readyz, /metrics, /status, /limits/TENANT, /switches and /drains.\n",
            ),
        }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let snapshot = self.current.load();
        let mut report = status::report(&snapshot, self.readiness.is_ready(), Instant::now());
        if let Some(report) = report.as_object_mut() {
            let switches = switches::report(&self.switches, &snapshot.settings);
            report.insert("switches".to_owned(), switches);
        }
        json(report)
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let _one_at_a_time = self.exporting.lock();
        status::refresh(&self.metrics, &self.current.load(), Instant::now());
        switches::refresh(&self.metrics, &self.switches);
        if let Some(counts) = self.counting.shared() {
            status::refresh_shared(&self.metrics, counts);
        }
        let mut answer = Response::new(Full::new(Bytes::from(self.metrics.text())));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }

    fn may_ask(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else {
            return false;
        };
        let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let shown = value
            .as_bytes()
            .strip_prefix(b"Bearer ")
            .unwrap_or_default();
        shown.ct_eq(token.expose().as_bytes()).into()
    }
}

/// A path below these, or one of them.
fn is_of_switches(path: &str) -> bool {
    let is_below = |rest: &str| rest.is_empty() || rest.starts_with('/');
    ["/switches", "/drains"]
        .iter()
        .any(|ours| path.strip_prefix(ours).is_some_and(is_below))
}

/// As it was asked for, or a part of it.
fn quoted(asked: &str) -> String {
    let short: String = asked.chars().take(MOST_QUOTED).collect();
    format!("{short:?}")
}

fn unauthorized() -> Response<Full<Bytes>> {
    let mut answer = text(
        StatusCode::UNAUTHORIZED,
        "Send \"Authorization: Bearer\" with the admin token.\n",
    );
    answer
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

fn text(status: StatusCode, words: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(words.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    answer
}

fn json(value: serde_json::Value) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_only_begins_like_ours_is_not_ours() {
        for (path, ours) in [
            ("/switches", true),
            ("/switches/tenant/a", true),
            ("/drains/accounts/u/a", true),
            ("/switchesX", false),
            ("/drain", false),
        ] {
            assert_eq!(is_of_switches(path), ours, "{path}");
        }
    }
}
