//! Puts upstream and proxies on free local ports: the configuration under test, with everything on.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tidegate::emulator::DEFAULT_KEY;
use tidegate::identity::api_key;
use tokio::time::{Instant, sleep};

use crate::client::Connection;
use crate::process::Process;
use crate::{Failure, Outcome, say};

/// Worker threads of each proxy.
pub const THREADS: usize = 2;
/// Idle upstream connections each proxy may keep, per thread.
pub const IDLE_CONNECTIONS: usize = 512;
const START_LIMIT: Duration = Duration::from_secs(20);

/// Who stands behind the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    Mock,
    Emulator,
}

impl Upstream {
    pub fn named(name: &str) -> Outcome<Self> {
        match name {
            "mock" => Ok(Self::Mock),
            "emulator" => Ok(Self::Emulator),
            _ => Err(format!("no upstream is called {name}").into()),
        }
    }
}

/// Where requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct,
    Bare,
    Tidegate,
}

impl Way {
    pub const PROXIES: [Self; 2] = [Self::Bare, Self::Tidegate];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Bare => "bare",
            Self::Tidegate => "tidegate",
        }
    }
}

/// A way that is open.
pub struct Target {
    pub way: Way,
    pub address: SocketAddr,
    /// The credential that is good there.
    pub key: String,
    /// None for the direct way.
    pub process: Option<Process>,
}

/// The upstream, and what it takes to put proxies in front of it.
pub struct Stage {
    folder: TempDir,
    upstream: SocketAddr,
    gateway: String,
    key: api_key::NewKey,
    _upstream: Process,
}

impl Stage {
    pub fn new(upstream: Upstream, gateway: &str) -> Outcome<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-load-")
            .tempdir()?;
        let address = free()?;
        let (listen, own) = (address.to_string(), own_executable()?);
        let log = folder.path().join("upstream.log");
        let emulate = [
            gateway,
            "emulate",
            "--listen",
            &listen,
            "--no-journal",
            "--concurrency",
            "20000",
            "--token-delay",
            "0ms",
            "--first-token-delay",
            "0ms",
        ];
        let process = match upstream {
            Upstream::Mock => Process::start(&[&own, "--as-mock", &listen], &log)?,
            Upstream::Emulator => Process::start(&emulate, &log)?,
        };
        Ok(Self {
            folder,
            upstream: address,
            gateway: gateway.to_owned(),
            key: api_key::make("bench", &[7; 32]),
            _upstream: process,
        })
    }

    /// Starts a proxy afresh and waits until it has answered `probe`.
    pub async fn open(&self, way: Way, probe: impl Fn(&Target) -> Vec<u8>) -> Outcome<Target> {
        let log = self.folder.path().join(format!("{}.log", way.name()));
        let (address, upstream) = (free()?, self.upstream.to_string());
        let target = match way {
            Way::Direct => Target {
                way,
                address: self.upstream,
                key: DEFAULT_KEY.to_owned(),
                process: None,
            },
            Way::Bare => {
                let (own, listen) = (own_executable()?, address.to_string());
                let command = [own.as_str(), "--as-bare", &listen, &upstream];
                Target {
                    way,
                    address,
                    key: DEFAULT_KEY.to_owned(),
                    process: Some(Process::start(&command, &log)?),
                }
            }
            Way::Tidegate => {
                let config = self.configuration(address)?;
                let config = config.to_str().ok_or("the path is no text")?;
                let command = [self.gateway.as_str(), "run", "-c", config];
                Target {
                    way,
                    address,
                    key: self.key.key.expose().to_owned(),
                    process: Some(Process::start(&command, &log)?),
                }
            }
        };
        let request = probe(&target);
        let until = Instant::now() + START_LIMIT;
        loop {
            let failure = match Connection::new(target.address).ask(&request, None).await {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) => format!("status {}", answer.status),
                Err(cause) => cause.to_string(),
            };
            if Instant::now() > until {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                let end: Vec<_> = log.lines().rev().take(5).collect();
                return Err(Failure::from(format!(
                    "{} does not answer: {failure}\n{}",
                    way.name(),
                    end.join("\n")
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
        if let Some(process) = &target.process {
            say(&format!("{} is process {}", way.name(), process.pid()));
        }
        Ok(target)
    }

    /// A configuration with everything that runs by default, and no cap that a bench would meet.
    fn configuration(&self, listen: SocketAddr) -> Outcome<PathBuf> {
        let mut hash = "sha256:".to_owned();
        for byte in self.key.hash {
            write!(hash, "{byte:02x}")?;
        }
        let most = 1_000_000_000_000_u64;
        let value = json!({
            "server": {
                "threads": THREADS,
                // Each process has its own: the one before may still be running.
                "state_dir": self.folder.path().join(format!("state-{}", listen.port())),
                "listeners": [{"address": listen.to_string()}],
                "admin": {"address": free()?.to_string()},
                "upstream_idle_connections": IDLE_CONNECTIONS,
                "limits": {"max_connections": 100_000, "max_connections_per_ip": 100_000, "requests_per_connection": 1_000_000},
            },
            "logging": {"level": "info", "format": "json", "access": true},
            // Refusals are measured, so they must be judged, all from one address.
            "identity": {"failed_attempts_per_minute": 0},
            // Five limits are judged, and none is met.
            "plans": {"bench": {
                "requests_per_minute": most, "requests_per_day": most, "tokens_per_minute": most,
                "max_concurrent": most, "cost_per_month": "100000000 USD",
            }},
            "accounting": {"prices": [{
                "upstream": "deepseek", "model": "deepseek-flash",
                "cache_hit": 0.003, "cache_miss": 0.15, "output": 0.6,
            }]},
            "tenants": [{
                "id": "bench", "plan": "bench", "models": ["*"],
                "credentials": [{"api_key": {"id": self.key.id, "hash": hash}}],
            }],
            "upstreams": [{
                "id": "deepseek",
                "endpoints": [{"url": format!("http://{}", self.upstream)}],
                "accounts": [{"id": "main", "api_key": "${file:upstream.key}", "max_concurrent": {"deepseek-flash": 20_000}}],
            }],
            "models": {"deepseek-flash": {"variants": [{"upstream": "deepseek", "model": "deepseek-flash"}]}},
        });
        std::fs::write(self.folder.path().join("upstream.key"), DEFAULT_KEY)?;
        let path = self.folder.path().join("tidegate.yaml");
        std::fs::write(&path, serde_yaml::to_string(&value)?)?;
        Ok(path)
    }
}

fn own_executable() -> Outcome<String> {
    let path = std::env::current_exe()?;
    Ok(path.to_str().ok_or("the path is no text")?.to_owned())
}

/// An address nobody listens on now.
fn free() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
