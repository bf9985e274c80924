//! The real binary as a child process, with a configuration in a folder of its own.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use super::config::{ADMIN_TOKEN, Config};
use super::{Answer, Request, SOON, Stream, Wire, eventually};

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Ports are taken below the kernel's ephemeral range, so that no client socket gets in the way.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// The binary under test.
pub fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

/// Whether a process is there and not a zombie.
pub fn process_exists(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// A running gateway; it is killed when this is dropped.
pub struct Gateway {
    child: Mutex<Child>,
    folder: Arc<TempDir>,
    place: Place,
    config: Mutex<Config>,
    log: Arc<Mutex<Vec<String>>>,
}

/// Where a gateway listens, and what its configuration is called.
#[derive(Clone)]
struct Place {
    file: String,
    listeners: Vec<SocketAddr>,
    admin: SocketAddr,
}

impl Gateway {
    /// Starts one and waits until `/readyz` says yes.
    pub fn start(config: Config) -> Self {
        let gateway = Self::launch(config);
        gateway.wait_until_ready();
        gateway
    }

    /// Starts one and waits only until its admin listener answers.
    pub fn launch(config: Config) -> Self {
        for _ in 0..5 {
            if let Some(gateway) = Self::try_launch(config.clone()) {
                return gateway;
            }
        }
        panic!("no free ports");
    }

    /// `None` if somebody else took one of the ports.
    fn try_launch(config: Config) -> Option<Self> {
        let place = Place {
            file: "tidegate.yaml".to_owned(),
            listeners: (0..config.listeners()).map(|_| free_address()).collect(),
            admin: free_address(),
        };
        let gateway = Self::spawn(Arc::new(tempfile::tempdir().unwrap()), place, config);
        if gateway.answers_operators() {
            return Some(gateway);
        }
        std::thread::sleep(Duration::from_millis(50));
        let log = gateway.log().join("\n");
        assert!(
            log.contains("cannot listen"),
            "the gateway did not start:\n{log}"
        );
        None
    }

    /// A second process on the same `state_dir`, with addresses of its own. Waits for nothing.
    pub fn beside(&self) -> Self {
        let place = Place {
            listeners: self
                .place
                .listeners
                .iter()
                .map(|_| free_address())
                .collect(),
            ..self.successors_place()
        };
        self.next(place)
    }

    /// A process that takes this one's place where tenants connect, once it has left there. Operators
    /// find it at an address of its own: the old one is theirs until it ends. Waits for nothing.
    pub fn successor(&self) -> Self {
        self.next(self.successors_place())
    }

    /// The same gateway once more, after this one has ended; waits until it is ready.
    pub fn again(&self) -> Self {
        let gateway = self.next(self.place.clone());
        gateway.wait_until_ready();
        gateway
    }

    fn successors_place(&self) -> Place {
        let admin = free_address();
        Place {
            file: format!("tidegate-{}.yaml", admin.port()),
            listeners: self.place.listeners.clone(),
            admin,
        }
    }

    fn next(&self, place: Place) -> Self {
        Self::spawn(self.folder.clone(), place, self.config.lock().clone())
    }

    fn spawn(folder: Arc<TempDir>, place: Place, config: Config) -> Self {
        let path = folder.path().join(&place.file);
        config.write(&path, &place.listeners, place.admin);
        let mut command = config.command();
        command.args(["run", "-c"]).arg(path);
        let here = folder.path().to_str().unwrap();
        let arguments = config.arguments.iter();
        command.args(arguments.map(|argument| argument.replace("{folder}", here)));
        command.envs(config.environment.iter().cloned());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let sink = log.clone();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| sink.lock().push(line));
        });
        Self {
            child: Mutex::new(child),
            folder,
            place,
            config: Mutex::new(config),
            log,
        }
    }

    /// Whether it came so far that its admin listener answers, or has ended before.
    fn answers_operators(&self) -> bool {
        eventually("the gateway answers its operators", START, || {
            if TcpStream::connect(self.admin()).is_ok() {
                return Some(());
            }
            let ended = self.child.lock().try_wait().unwrap();
            ended.map(|_| ())
        });
        self.is_running()
    }

    /// Waits until `/readyz` says yes.
    pub fn wait_until_ready(&self) {
        eventually("the gateway is ready", START, || {
            assert!(self.is_running(), "it ended: {}", self.log().join("\n"));
            self.is_ready().then_some(())
        });
    }

    pub fn is_running(&self) -> bool {
        self.child.lock().try_wait().unwrap().is_none()
    }

    /// Ends it without a word, and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child.lock();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The first listener for tenants.
    pub fn address(&self) -> SocketAddr {
        self.place.listeners[0]
    }

    /// The listener with this place in the configuration.
    pub fn listener(&self, index: usize) -> SocketAddr {
        self.place.listeners[index]
    }

    pub fn admin(&self) -> SocketAddr {
        self.place.admin
    }

    /// `http://host:port` of the first listener.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().id()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it keeps what must outlive it.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join(&self.place.file)
    }

    /// A raw connection to the first listener.
    pub fn connect(&self) -> Wire {
        Wire::connect(self.address())
    }

    /// POSTs JSON with the key of `acme`.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        Request::post(path, body).key("acme").send(self.address())
    }

    /// GETs with the key of `acme`.
    pub fn get(&self, path: &str) -> Answer {
        Request::get(path).key("acme").send(self.address())
    }

    /// POSTs JSON with the key of `acme` and reads the head of the answer.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        Request::post(path, body).key("acme").stream(self.address())
    }

    /// Whether a simple request is answered well.
    pub fn is_serving(&self) -> bool {
        self.post("/v1/chat/completions", &super::chat("hello"))
            .status
            == 200
    }

    pub fn is_ready(&self) -> bool {
        let readyz = Request::get("/readyz").header("connection", "close");
        let Ok(stream) = TcpStream::connect(self.admin()) else {
            return false;
        };
        drop(stream);
        readyz.send(self.admin()).status == 200
    }

    pub fn metrics(&self) -> String {
        Request::get("/metrics").send(self.admin()).text()
    }

    /// Sum of the samples of `name` whose labels contain all of `labels`, written `key="value"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics();
        let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
        samples
            .filter(|(series, _)| {
                let (known, rest) = series.split_once('{').unwrap_or((series, ""));
                known == name && labels.iter().all(|label| rest.contains(label))
            })
            .map(|(_, value)| value.parse::<f64>().unwrap())
            .sum()
    }

    /// `/status`, with the admin token.
    pub fn status(&self) -> Value {
        let request = Request::get("/status");
        let request = request.header("authorization", &format!("Bearer {ADMIN_TOKEN}"));
        request.send(self.admin()).json()
    }

    /// Everything that was written to standard error so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// The first log line that contains all of `words`, once it is there.
    pub fn logged(&self, words: &[&str]) -> String {
        let what = format!("a log line with {words:?}");
        eventually(&what, SOON, || {
            let log = self.log.lock();
            let fits = |line: &&String| words.iter().all(|word| line.contains(word));
            log.iter().find(fits).cloned()
        })
    }

    /// The access line of a request, once it is there.
    pub fn access_line(&self, request_id: &str) -> Value {
        let line = self.logged(&["\"access\"", request_id]);
        serde_json::from_str(&line).unwrap()
    }

    /// Sends a signal by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        let mut kill = Command::new("sh");
        kill.args(["-c", &format!("kill -{name} {}", self.pid())]);
        assert!(kill.status().unwrap().success());
    }

    /// Changes the configuration, makes the gateway read it and waits until it has said `ok` or
    /// `refused`, whichever it is.
    pub fn reload(&self, change: impl FnOnce(Config) -> Config) -> &'static str {
        let changed = change(self.config.lock().clone());
        changed.write(&self.config_path(), &self.place.listeners, self.admin());
        *self.config.lock() = changed;
        self.reload_as_written()
    }

    /// Exchanges files beside the configuration, each at once, as a renewal does. A later
    /// [`Gateway::reload`] writes those of the configuration again.
    pub fn put(&self, files: &[(&str, &str)]) {
        for (name, content) in files {
            let new = self.folder.path().join(format!("{name}.new"));
            std::fs::write(&new, content).unwrap();
            std::fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
            std::fs::rename(new, self.folder.path().join(name)).unwrap();
        }
    }

    /// Makes the gateway read what is in its folder.
    pub fn reload_as_written(&self) -> &'static str {
        let count = |result: &str| {
            let label = format!("result=\"{result}\"");
            self.metric("tidegate_config_reloads_total", &[&label])
        };
        let before = ["ok", "refused"].map(|result| (result, count(result)));
        self.signal("HUP");
        eventually("the reload has a result", SOON, || {
            let changed = before.iter().find(|(result, old)| count(result) > *old);
            changed.map(|(result, _)| *result)
        })
    }

    /// How the process ended, once it has.
    pub fn exit(&self, within: Duration) -> ExitStatus {
        eventually("the gateway exits", within, || {
            self.child.lock().try_wait().unwrap()
        })
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(self) -> ExitStatus {
        self.signal("TERM");
        self.exit(SOON)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let mut child = self.child.lock();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            let log = self.log.lock();
            let from = log.len().saturating_sub(20);
            eprintln!("the gateway's last words:\n{}", log[from..].join("\n"));
        }
    }
}

/// An address nobody listens on, different for each call.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run side by side begin at different places.
    let spread = u16::try_from(std::process::id() % 190).unwrap() * 100;
    let size = PORTS.end - PORTS.start;
    for _ in 0..1000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (spread.wrapping_add(step)) % size;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port");
}
