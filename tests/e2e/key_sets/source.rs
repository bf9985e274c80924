//! A small HTTP server that publishes a key set, or misbehaves as it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What it does with whoever asks.
#[derive(Clone)]
pub enum Answer {
    /// A whole document.
    Document(Vec<u8>),
    Status(&'static str),
    RedirectTo(String),
    /// Something that is not HTTP.
    Garbage,
    /// A document that says it is, or is, far too large.
    Huge {
        announced: bool,
    },
    /// A document that ends before its announced length.
    Half(Vec<u8>),
    /// The connection is closed at once.
    Close,
    /// Nothing, until it is told otherwise.
    Silence,
    /// A byte now and then, until it is told otherwise.
    Trickle,
}

/// Everything it knows; shared with the threads that answer.
struct State {
    answer: Mutex<Answer>,
    /// When each request came, and whether it was conditional.
    asked: Mutex<Vec<(Instant, bool)>>,
    stop: AtomicBool,
}

/// A running source; its port is free again when it is dropped.
pub struct Source {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    pub fn start(answer: Answer) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), answer)
    }

    pub fn start_at(address: SocketAddr, answer: Answer) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            answer: Mutex::new(answer),
            asked: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || serve(&shared, socket.unwrap()));
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// From now on; connections that wait are closed.
    pub fn answer(&self, answer: Answer) {
        *self.state.answer.lock() = answer;
    }

    /// When it was asked.
    pub fn asked(&self) -> Vec<Instant> {
        self.state.asked.lock().iter().map(|(at, _)| *at).collect()
    }

    /// How often it was asked for something newer than what is known.
    pub fn asked_conditionally(&self) -> usize {
        let asked = self.state.asked.lock();
        asked.iter().filter(|(_, conditional)| *conditional).count()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        self.answer(Answer::Close);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(state: &State, mut socket: TcpStream) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while memchr::memmem::find(&request, b"\r\n\r\n").is_none() {
        match socket.read(&mut buffer) {
            Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).to_lowercase();
    let answer = state.answer.lock().clone();
    let tag = match &answer {
        Answer::Document(keys) => crate::support::fnv(keys),
        _ => String::new(),
    };
    let conditional = request.contains("if-none-match:");
    state.asked.lock().push((Instant::now(), conditional));
    let known = conditional && request.contains(&format!("\"{tag}\""));
    let _ = write(state, &mut socket, answer, &tag, known);
}

fn write(
    state: &State,
    socket: &mut TcpStream,
    answer: Answer,
    tag: &str,
    known: bool,
) -> std::io::Result<()> {
    let mut head = |status: &str, fields: &str| {
        write!(
            socket,
            "HTTP/1.1 {status}\r\nconnection: close\r\n{fields}\r\n"
        )
    };
    match answer {
        Answer::Document(_) if known => head("304 Not Modified", ""),
        Answer::Document(keys) => {
            let length = keys.len();
            head(
                "200 OK",
                &format!("etag: \"{tag}\"\r\ncontent-length: {length}\r\n"),
            )?;
            socket.write_all(&keys)
        }
        Answer::Half(keys) => {
            head("200 OK", &format!("content-length: {}\r\n", keys.len()))?;
            socket.write_all(&keys[..keys.len() / 2])
        }
        Answer::Status(status) => head(status, "content-length: 0\r\n"),
        Answer::RedirectTo(url) => head(
            "302 Found",
            &format!("location: {url}\r\ncontent-length: 0\r\n"),
        ),
        Answer::Garbage => socket.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n"),
        Answer::Huge { announced: true } => head("200 OK", "content-length: 99999999999\r\n"),
        Answer::Huge { announced: false } => {
            head("200 OK", "transfer-encoding: chunked\r\n")?;
            let piece = format!("{:x}\r\n{}\r\n", 65_536, " ".repeat(65_536));
            // Ends when the other side has had enough.
            for _ in 0..1000 {
                socket.write_all(piece.as_bytes())?;
            }
            Ok(())
        }
        Answer::Close => Ok(()),
        Answer::Silence => wait(state, || Ok(())),
        Answer::Trickle => {
            head("200 OK", "content-length: 1000\r\n")?;
            wait(state, || socket.write_all(b" "))
        }
    }
}

/// Until it is told otherwise.
fn wait(state: &State, mut act: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    while matches!(*state.answer.lock(), Answer::Silence | Answer::Trickle) {
        act()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
