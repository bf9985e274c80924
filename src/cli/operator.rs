//! How the command line reaches a running gateway's operators' listener: where it is, with which
//! token, and what went wrong if it cannot. What is asked there is not known here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Exit, complain, complain_of};
use crate::config::admin::{self, Access, AccessError};
use crate::config::secret::Secret;
use crate::config::{Layer, process_environment};

/// Where the example configurations have it.
const ADDRESS: &str = "127.0.0.1:9080";
const TOKEN: &str = "${env:TIDEGATE_ADMIN_TOKEN}";
/// The gateway has all it needs in memory, or waits two seconds for its disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// A thousand limits with long names.
const MOST_ANSWER: usize = 1 << 20;

/// How the gateway's operators' listener is reached.
#[derive(Args)]
pub(super) struct AccessOptions {
    /// The gateway's admin listener [default: 127.0.0.1:9080, or as in the configuration]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Its token, by reference: ${env:NAME}, ${file:PATH} or ${credential:NAME} [default:
    /// ${env:TIDEGATE_ADMIN_TOKEN}, or as in the configuration]
    // Text, so that the parser does not repeat a secret that was put here by mistake.
    #[arg(long, value_name = "REFERENCE")]
    token: Option<String>,
    /// The gateway's configuration, a YAML file or a folder of them, of which `server.admin` alone
    /// is read. As with `run`, it may be given several times
    #[arg(short, long, value_name = "PATH")]
    config: Vec<PathBuf>,
}

/// What went wrong, and the exit that says so.
pub(super) struct Problem(pub(super) Exit, pub(super) String);

impl Problem {
    pub(super) fn lasting(text: impl Into<String>) -> Self {
        Self(Exit::Misconfigured, text.into())
    }

    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self(Exit::Failure, text.into())
    }
}

impl AccessOptions {
    /// The gateway that is meant; what is wrong has been told.
    pub(super) fn open(&self) -> Result<Gateway, Exit> {
        let fallen = |why: String| {
            complain(&why);
            Exit::Misconfigured
        };
        let written = if self.config.is_empty() {
            None
        } else {
            Some(self.written()?)
        };
        let (address, kept) = match written {
            Some(Access { address, token }) => (Some(address), Some(token)),
            None => (None, None),
        };
        let token = match (&self.token, kept) {
            (Some(reference), _) => named(reference).map_err(fallen)?,
            (None, Some(Some(token))) => token,
            (None, Some(None)) => {
                return Err(fallen(
                    "server.admin has no token, so its gateway takes no orders".to_owned(),
                ));
            }
            (None, None) => named(TOKEN).map_err(fallen)?,
        };
        let address = match self.admin.or(address) {
            Some(address) => address,
            None => ADDRESS
                .parse()
                .map_err(|_| fallen("the default address is none".to_owned()))?,
        };
        Gateway::new(address, token).map_err(|Problem(exit, why)| {
            complain(&why);
            exit
        })
    }

    fn written(&self) -> Result<Access, Exit> {
        let layers: Vec<_> = self.config.iter().cloned().map(Layer::Path).collect();
        admin::access(&layers, &process_environment).map_err(|cause| match cause {
            AccessError::Mistakes(mistakes) => complain_of(&mistakes),
            cause => {
                complain(&cause.to_string());
                Exit::Misconfigured
            }
        })
    }
}

fn named(reference: &str) -> Result<Secret, String> {
    admin::named(reference, &process_environment).map_err(|cause| {
        format!("--token: {cause}; name the admin token as ${{env:NAME}} or ${{file:PATH}}")
    })
}

/// The running gateway, as its operators reach it.
pub(super) struct Gateway {
    address: SocketAddr,
    token: Secret,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Gateway {
    fn new(address: SocketAddr, token: Secret) -> Result<Self, Problem> {
        let failed = |cause: &dyn std::fmt::Display| {
            Problem::passing(format!("cannot ask the gateway: {cause}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|cause| failed(&cause))?;
        // The token goes nowhere but to this address.
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .map_err(|cause| failed(&cause))?;
        Ok(Self {
            address,
            token,
            client,
            runtime,
        })
    }

    /// The text of a good answer. `path` is as it goes over the wire.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<String, Problem> {
        let url = format!("http://{}{path}", self.address);
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let request = request.bearer_auth(self.token.expose());
        let (status, text) = self.runtime.block_on(async {
            let mut answer = request.send().await.map_err(|cause| self.away(&cause))?;
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|cause| self.away(&cause))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > MOST_ANSWER {
                    return Err(Problem::passing("the gateway's answer is too long"));
                }
            }
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            Ok((answer.status(), text))
        })?;
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(text),
            StatusCode::UNAUTHORIZED => Err(Problem::lasting(format!(
                "the gateway at {} takes another admin token, or has none; it is that of \
                 server.admin.token",
                self.address
            ))),
            status if status.is_client_error() => Err(Problem::lasting(text)),
            status => Err(Problem::passing(format!(
                "the gateway at {} answers {status}: {text}",
                self.address
            ))),
        }
    }

    fn away(&self, cause: &reqwest::Error) -> Problem {
        let why = if cause.is_timeout() {
            "does not answer"
        } else if cause.is_connect() {
            "is not there"
        } else {
            "does not answer as a gateway does"
        };
        Problem::passing(format!(
            "the gateway at {} {why}; is it running, and is that its server.admin.address? Another \
             is named by --admin, or read by -c",
            self.address
        ))
    }
}
