//! Upstreams that keep no rules: one that does by hand what a test says on each connection, and
//! one to which no connection comes about.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

/// An upstream whose every connection is played by hand, each in a thread of its own.
///
/// It accepts nothing more when it is dropped; what is being played goes on to its end.
pub struct Hostile {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hostile {
    /// `play` gets each connection, and how many came before it.
    pub fn start(play: impl Fn(&mut Guest, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let (count, end, play) = (Arc::clone(&accepted), Arc::clone(&ended), Arc::new(play));
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if end.load(Ordering::Acquire) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let number = count.fetch_add(1, Ordering::AcqRel);
                let play = Arc::clone(&play);
                std::thread::spawn(move || play(&mut Guest::new(socket), number));
            }
        });
        Self {
            address,
            accepted,
            ended,
            thread: Some(thread),
        }
    }

    /// Answers the first request of each connection with these bytes and closes.
    pub fn always(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |guest, _| {
            guest.request();
            guest.send(&answer);
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://host:port`, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that were ever accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Acquire)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// A connection that was accepted. It is closed when its play is over.
pub struct Guest {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Guest {
    fn new(socket: TcpStream) -> Self {
        let _ = socket.set_nodelay(true);
        Self {
            socket,
            received: Vec::new(),
        }
    }

    /// Reads one request with its body, by its length or in chunks; `None` when the guest leaves
    /// before it is whole.
    pub fn request(&mut self) -> Option<String> {
        let body = self.until(b"\r\n\r\n", 0)?;
        let head = String::from_utf8_lossy(&self.received[..body]).to_ascii_lowercase();
        let mut lines = head.lines();
        let end = if head.contains("\r\ntransfer-encoding: chunked\r\n") {
            self.until(b"0\r\n\r\n", body)?
        } else {
            let length = lines.find_map(|line| line.strip_prefix("content-length:"));
            body + length.map_or(0, |length| length.trim().parse().unwrap())
        };
        while self.received.len() < end {
            self.receive()?;
        }
        let request: Vec<u8> = self.received.drain(..end).collect();
        Some(String::from_utf8_lossy(&request).into_owned())
    }

    /// Where the first `wanted` from `from` on ends.
    fn until(&mut self, wanted: &[u8], from: usize) -> Option<usize> {
        loop {
            let found = memchr::memmem::find(&self.received[from..], wanted);
            if let Some(at) = found {
                return Some(from + at + wanted.len());
            }
            self.receive()?;
        }
    }

    fn receive(&mut self) -> Option<()> {
        let mut buffer = [0; 64 << 10];
        match self.socket.read(&mut buffer) {
            Ok(read @ 1..) => {
                self.received.extend_from_slice(&buffer[..read]);
                Some(())
            }
            _ => None,
        }
    }

    /// Writes all of it; false when the guest has left.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    /// Writes it byte by byte, one in each such time; false when the guest has left.
    pub fn trickle(&mut self, bytes: &[u8], every: Duration) -> bool {
        bytes.chunks(1).all(|byte| {
            std::thread::sleep(every);
            self.send(byte)
        })
    }

    /// When its play is over, the connection ends in a reset instead of a close.
    pub fn reset(&mut self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// Says nothing until the guest leaves; false when it has not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> bool {
        let _ = self.socket.set_read_timeout(Some(limit));
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(1..) => {}
                Ok(0) => return true,
                Err(e) => {
                    return !matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    );
                }
            }
        }
    }
}

/// A port at which no connection comes about and none is refused: its queue is full.
pub struct Deaf {
    listener: Socket,
    _queue: Vec<Socket>,
}

impl Deaf {
    pub fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        // Linux takes one or two more than it was told.
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let connected = socket.connect_timeout(&address, Duration::from_millis(100));
            if connected.is_err() {
                break;
            }
            queue.push(socket);
            assert!(queue.len() < 16, "the queue never fills");
        }
        Self {
            listener,
            _queue: queue,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }

    /// `http://host:port`, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }
}
