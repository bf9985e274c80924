//! Many tenants' clients at once, by OpenAI's SDK for Python: `tests/sdk/load.py`, which retries
//! nothing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Deserialize;

use super::key;

/// Where `make setup` puts the SDKs.
const INSTALLED: &str = "target/sdk";

/// How to ask.
#[derive(Debug, Clone)]
pub struct Load {
    pub clients: usize,
    /// Requests a second in all; zero for as many as come.
    pub rate: u32,
    pub during: Duration,
    /// How many of a hundred are streamed.
    pub streamed: u32,
    /// Different questions, each of which has one answer.
    pub questions: usize,
    /// What stands before each question, such as an order of faults.
    pub prompt: String,
    pub model: String,
    /// Longest wait for one answer.
    pub patience: Duration,
}

impl Default for Load {
    /// 50 clients, 200 requests a second, half of them streamed, with short answers. That is half a
    /// core: a streamed answer of 30 chunks costs the SDK some 3 ms of it, and one in one piece
    /// half of that. On a busy machine its own wait for the processor is in the times it tells.
    fn default() -> Self {
        Self {
            clients: 50,
            rate: 200,
            during: Duration::from_secs(10),
            streamed: 50,
            questions: 20,
            prompt: "[[fault:tokens=12]] ".to_owned(),
            model: "deepseek-flash".to_owned(),
            patience: Duration::from_secs(60),
        }
    }
}

/// What one request came to, as the SDK's user sees it.
#[derive(Debug, Clone, Deserialize)]
pub struct Asked {
    pub number: u64,
    /// When it was asked, in milliseconds since 1970.
    pub at_ms: u64,
    pub question: usize,
    pub stream: bool,
    /// The class of the exception.
    pub error: Option<String>,
    /// Its status, if the answer had one.
    pub status: Option<u16>,
    /// Its code, if the error had one.
    pub code: Option<String>,
    pub message: Option<String>,
    /// Time to the first content.
    pub first_ms: Option<f64>,
    pub total_ms: f64,
    pub chunks: usize,
    /// Of the content, without reasoning.
    pub hash: String,
    pub finish: Option<String>,
    pub request_id: Option<String>,
}

impl Asked {
    /// Answered, with an end that says so.
    pub fn is_whole(&self) -> bool {
        self.error.is_none() && self.finish.as_deref() == Some("stop")
    }
}

impl Load {
    /// Begins to ask at `url` as `tenant`.
    pub fn start(&self, url: &str, tenant: &str) -> Running {
        self.start_with_key(url, &key(tenant))
    }

    /// The same with any key, as straight at the emulator.
    pub fn start_with_key(&self, url: &str, key: &str) -> Running {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sdks = root.join(INSTALLED);
        assert!(
            sdks.join("installed").is_file(),
            "the SDKs are not in {}: run `make setup`",
            sdks.display()
        );
        let mut child = Command::new(sdks.join("venv/bin/python"))
            .arg(root.join("tests/sdk/load.py"))
            // SDKs read keys, addresses and proxies from the environment.
            .env_clear()
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env("TIDEGATE_URL", url)
            .env("TIDEGATE_KEY", key)
            .env("LOAD_CLIENTS", self.clients.to_string())
            .env("LOAD_RATE", self.rate.to_string())
            .env("LOAD_SECONDS", self.during.as_secs_f64().to_string())
            .env("LOAD_STREAMED", self.streamed.to_string())
            .env("LOAD_QUESTIONS", self.questions.to_string())
            .env("LOAD_PROMPT", &self.prompt)
            .env("LOAD_MODEL", &self.model)
            .env("LOAD_TIMEOUT", self.patience.as_secs_f64().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let gathered = Arc::clone(&asked);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let one = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                gathered.lock().unwrap().push(one);
            }
        });
        Running {
            child,
            asked,
            reader: Some(reader),
        }
    }
}

/// Clients at work; they stop when this is dropped.
pub struct Running {
    child: Child,
    asked: Arc<Mutex<Vec<Asked>>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    /// What was answered until now.
    pub fn so_far(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until all has been asked, and tells what came of it, in the order of the answers.
    pub fn finish(mut self) -> Vec<Asked> {
        self.reader.take().unwrap().join().unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        self.so_far()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `finish` there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Those that failed, counted by the class of the exception, the status and the code.
pub fn failures(asked: &[Asked]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in asked.iter().filter(|one| one.error.is_some()) {
        let class = one.error.clone().unwrap_or_default();
        let status = one
            .status
            .map_or(String::new(), |status| status.to_string());
        let code = one.code.clone().unwrap_or_default();
        *counts
            .entry(format!("{class} {status} {code}"))
            .or_default() += 1;
    }
    counts
}

/// The time to the first content that `share` of the answered streams kept, in milliseconds;
/// `share` is from 0 to 1.
pub fn first_content(asked: &[Asked], share: f64) -> f64 {
    let streams = asked.iter().filter(|one| one.stream);
    let mut times: Vec<f64> = streams.filter_map(|one| one.first_ms).collect();
    times.sort_by(f64::total_cmp);
    let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or(f64::NAN)
}
