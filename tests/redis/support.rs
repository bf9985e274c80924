//! The stage: a [`Server`] of one's own, [`Host`]s that share it, and limits to try.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate::admission::store_redis::{
    Ask, Counter, Part, RedisCounts, Reservation, Rule, Standing, StoreError, Verdict,
};
use tidegate::config::settings::{FailMode, RedisNodes, RedisStore};
use tokio::task::JoinHandle;

/// Longest wait for something that should come at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// A deadline of reservations that a busy test machine keeps.
pub const PATIENT: Duration = Duration::from_secs(5);

/// A `redis-server` on a free port, which ends with the test.
pub struct Server {
    child: Child,
    pub port: u16,
    pub folder: TempDir,
    arguments: Vec<String>,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        let port = free_port();
        Self::start_at(port, &["--port", &port.to_string()], arguments)
    }

    /// With a port of its own making, as TLS needs it.
    pub fn start_at(port: u16, ports: &[&str], arguments: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let arguments: Vec<String> = ports
            .iter()
            .chain(arguments)
            .map(|&argument| argument.to_owned())
            .collect();
        let child = spawn(folder.path(), &arguments);
        let server = Self {
            child,
            port,
            folder,
            arguments,
        };
        server.wait();
        server
    }

    fn wait(&self) {
        eventually("redis-server listens", || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Again, at the same port, and empty.
    pub fn restart(&mut self) {
        self.child = spawn(self.folder.path(), &self.arguments);
        self.wait();
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What `redis-cli` prints.
    pub fn cli(&self, arguments: &[&str]) -> String {
        cli(self.port, arguments)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn spawn(folder: &Path, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(arguments)
        .args(if arguments.iter().any(|one| one == "--sentinel") {
            &[][..]
        } else {
            &["--save", "", "--appendonly", "no"]
        })
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server: .ci/install test installs it")
}

pub fn free_port() -> u16 {
    // A cluster's node listens at its port + 10000 too.
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        if port < 55_000 {
            return port;
        }
    }
}

/// Asks `look` until it has an answer.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The same without holding up a thread.
pub async fn in_time<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn settings(nodes: RedisNodes) -> RedisStore {
    RedisStore {
        nodes,
        username: None,
        password: None,
        tls: false,
        ca: None::<PathBuf>,
        database: 0,
        prefix: "tidegate".to_owned(),
        timeout: PATIENT,
        fail: FailMode::Closed,
    }
}

/// One process that shares the counts, with its background part.
pub struct Host {
    pub counts: Arc<RedisCounts>,
    background: JoinHandle<()>,
}

impl Host {
    /// Its background part runs, and it is connected.
    pub async fn join(store: &RedisStore, name: &str) -> Self {
        let host = Self::started(store, name);
        let began = Instant::now();
        while !host.counts.state().up {
            let state = host.counts.state();
            assert!(began.elapsed() < SOON, "not connected: {state:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        host
    }

    pub fn started(store: &RedisStore, name: &str) -> Self {
        let counts = RedisCounts::connect(store, name).unwrap();
        let running = counts.clone();
        let background = tokio::spawn(async move { running.run().await });
        Self { counts, background }
    }

    pub async fn at(server: &Server, name: &str) -> Self {
        Self::join(&settings(RedisNodes::One(server.address())), name).await
    }

    /// Dies: no release, no more signs of life.
    pub fn die(&self) {
        self.background.abort();
    }

    pub async fn grant(&self, ask: &Ask) -> Option<Reservation> {
        match self.counts.reserve(ask.clone()).await.unwrap() {
            Verdict::Granted { reservation, .. } => Some(reservation),
            Verdict::Refused { .. } => None,
        }
    }

    pub async fn standing(&self, ask: &Ask) -> Vec<Standing> {
        let counters: Vec<_> = ask.parts.iter().map(|part| part.counter.clone()).collect();
        self.counts.show(&ask.root, &counters).await.unwrap()
    }

    /// All that waits has been told.
    pub async fn told(&self) {
        in_time("told", async || {
            (self.counts.state().queued == 0).then_some(())
        })
        .await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.background.abort();
    }
}

pub fn ask(parts: Vec<Part>) -> Ask {
    Ask {
        root: "tenant/acme".into(),
        parts,
    }
}

pub fn part(name: &str, rule: Rule, demand: u64) -> Part {
    Part {
        counter: Counter {
            name: name.into(),
            rule,
            shadow: false,
        },
        demand,
    }
}

pub fn shadow(mut part: Part) -> Part {
    part.counter.shadow = true;
    part
}

pub fn concurrency(amount: u64) -> Part {
    part("places", Rule::Concurrency { amount }, 1)
}

pub fn daily(amount: u64, demand: u64) -> Part {
    part(
        "daily",
        Rule::Calendar {
            window: 1000,
            amount,
        },
        demand,
    )
}

pub fn hourly(amount: u64, burst: u64, demand: u64) -> Part {
    let period = Duration::from_secs(3600);
    part(
        "hourly",
        Rule::Bucket {
            period,
            amount,
            burst,
        },
        demand,
    )
}

pub fn is_away(error: StoreError) -> bool {
    error == StoreError::Away
}
