//! A real `redis-server` for tests, shared by the two programs that need one.
#![allow(dead_code, reason = "each of the programs uses a part of it")]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest wait for its port.
const START: Duration = Duration::from_secs(20);
/// Arguments of those that say themselves what they keep.
const KEEPS: [&str; 2] = ["--sentinel", "--appendonly"];

/// A `redis-server` on a free port, which ends with the test.
pub struct Server {
    child: Child,
    pub port: u16,
    pub folder: TempDir,
    arguments: Vec<String>,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        Self::at(free_port(), arguments)
    }

    pub fn at(port: u16, arguments: &[&str]) -> Self {
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
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(began.elapsed() < START, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Again, at the same port; empty, unless it was told to keep its data.
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
        .args(
            if arguments.iter().any(|one| KEEPS.contains(&one.as_str())) {
                &[][..]
            } else {
                &["--save", "", "--appendonly", "no"]
            },
        )
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
