//! A raw HTTP/1.1 client: writes what it is told, reads what comes, and knows when the answer was
//! whole.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket as Socket2, Type};

use super::tls::TlsStream;
use super::{Request, SOON};

/// Longest head that is read.
const MAX_HEAD: usize = 64 * 1024;

/// Header fields as they came, names in lower case.
pub type Fields = Vec<(String, String)>;

enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

/// One connection.
pub struct Wire {
    socket: Socket,
    /// Received and not yet consumed.
    received: Vec<u8>,
}

/// How an answer's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As its framing says.
    Whole,
    /// Before its framing says, or by a reset.
    Broken,
}

/// A piece of a body, and when it came.
#[derive(Debug)]
pub struct Piece {
    pub at: Instant,
    pub bytes: Vec<u8>,
}

/// An answer with its body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Fields,
    /// Statuses of informational answers that came before.
    pub interim: Vec<u16>,
    pub body: Vec<u8>,
    pub ending: Ending,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The `code` of the gateway's error object, in either family.
    pub fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The `data:` payloads of an event stream.
    pub fn data(&self) -> Vec<String> {
        let text = self.text();
        let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.map(str::to_owned).collect()
    }

    /// The payloads that are JSON.
    pub fn events(&self) -> Vec<Value> {
        let data = self.data();
        data.iter()
            .filter_map(|data| serde_json::from_str(data).ok())
            .collect()
    }
}

impl Wire {
    pub fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).unwrap()
    }

    /// Connects, or says that nobody listens.
    pub fn try_connect(to: SocketAddr) -> io::Result<Self> {
        let tcp = TcpStream::connect_timeout(&to, SOON)?;
        Ok(Self::over(Socket::Plain(tcp)))
    }

    /// From one of this machine's own addresses.
    pub fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        let socket = Socket2::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect_timeout(&to.into(), SOON).unwrap();
        Self::over(Socket::Plain(socket.into()))
    }

    /// Sends `beginning` and then shakes hands as [`connect_tls`](Self::connect_tls) does.
    pub fn connect_tls_after(beginning: &[u8], to: SocketAddr) -> Result<Self, String> {
        let tls = super::tls::connect_after(beginning, to, b"\x08http/1.1")?;
        Ok(Self::over(Socket::Tls(Box::new(tls))))
    }

    /// Shakes hands as an HTTP/1.1 client that believes every certificate.
    pub fn connect_tls(to: SocketAddr) -> Self {
        super::tls::Client::new().wire(to)
    }

    /// Over a handshake that is done.
    pub fn over_tls(tls: TlsStream) -> Self {
        Self::over(Socket::Tls(Box::new(tls)))
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: &Request) -> Answer {
        self.send(&request.to_bytes());
        self.answer()
    }

    fn over(socket: Socket) -> Self {
        let wire = Self {
            socket,
            received: Vec::new(),
        };
        wire.tcp().set_nodelay(true).unwrap();
        wire.patience(Duration::from_secs(30));
        wire
    }

    fn tcp(&self) -> &TcpStream {
        match &self.socket {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(tls) => tls.get_ref(),
        }
    }

    /// How long one read or write may take before the test fails.
    pub fn patience(&self, limit: Duration) {
        self.tcp().set_read_timeout(Some(limit)).unwrap();
        self.tcp().set_write_timeout(Some(limit)).unwrap();
    }

    /// Writes all of it.
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// Writes all of it, or as much as the other side takes.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.socket {
            Socket::Plain(tcp) => tcp.write_all(bytes),
            Socket::Tls(tls) => tls.write_all(bytes),
        }
    }

    /// Waits for `100 Continue`, then writes all of it.
    pub fn send_after_continue(&mut self, bytes: &[u8]) {
        let (status, _) = self.head().expect("the connection ended");
        assert_eq!(status, 100);
        self.send(bytes);
    }

    /// Reads once more; false at the end or after a reset, a panic when nothing comes in time.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        let read = match &mut self.socket {
            Socket::Plain(tcp) => tcp.read(&mut buffer),
            Socket::Tls(tls) => tls.read(&mut buffer),
        };
        match read {
            Ok(0) => false,
            Ok(count) => {
                self.received.extend_from_slice(&buffer[..count]);
                true
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                panic!("nothing came in time")
            }
            Err(_) => false,
        }
    }

    /// Reads a head up to its blank line; `None` if the connection ends before.
    fn head(&mut self) -> Option<(u16, Fields)> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.received, b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.received.len() < MAX_HEAD, "an endless head");
            if !self.receive() {
                return None;
            }
        };
        let head: Vec<u8> = self.received.drain(..end).collect();
        let text = String::from_utf8(head).unwrap();
        let mut lines = text.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_owned()));
        Some((status, headers.collect()))
    }

    /// Reads an answer, or `None` if the connection ends without one.
    pub fn try_answer(&mut self) -> Option<Answer> {
        let (status, headers, interim) = self.final_head()?;
        let mut body = Body::of(status, &headers);
        let mut bytes = Vec::new();
        let ending = loop {
            match body.next(self) {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => break Ending::Whole,
                Err(Broken) => break Ending::Broken,
            }
        };
        Some(Answer {
            status,
            headers,
            interim,
            body: bytes,
            ending,
        })
    }

    /// Reads an answer; panics if the connection ends without one.
    pub fn answer(&mut self) -> Answer {
        self.try_answer()
            .expect("the connection ended without an answer")
    }

    /// Reads the head of an answer whose body is then read piece by piece.
    pub fn stream(self) -> Stream {
        self.try_stream()
            .expect("the connection ended without an answer")
    }

    /// The same, or `None` if the connection ends without an answer.
    pub fn try_stream(mut self) -> Option<Stream> {
        let (status, headers, _) = self.final_head()?;
        let body = Body::of(status, &headers);
        Some(Stream {
            wire: self,
            status,
            headers,
            body,
            ending: None,
        })
    }

    fn final_head(&mut self) -> Option<(u16, Fields, Vec<u16>)> {
        let mut interim = Vec::new();
        loop {
            let (status, headers) = self.head()?;
            if status >= 200 {
                return Some((status, headers, interim));
            }
            interim.push(status);
        }
    }

    /// Whether an answer, or the end of the connection, is there already. Waits for nothing.
    pub fn has_something(&self) -> bool {
        let tcp = self.tcp();
        tcp.set_nonblocking(true).unwrap();
        let there = tcp.peek(&mut [0]).is_ok();
        tcp.set_nonblocking(false).unwrap();
        there
    }

    /// Whether the other side ends the connection within `limit` without sending anything more.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.tcp().set_read_timeout(Some(limit)).unwrap();
        let mut byte = [0; 1];
        let read = match &mut self.socket {
            Socket::Plain(tcp) => tcp.read(&mut byte),
            Socket::Tls(tls) => tls.read(&mut byte),
        };
        match read {
            Ok(count) => count == 0 && self.received.is_empty(),
            Err(e) => !matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ),
        }
    }
}

/// An answer that is still coming.
pub struct Stream {
    wire: Wire,
    pub status: u16,
    pub headers: Fields,
    body: Body,
    pub ending: Option<Ending>,
}

impl Stream {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The next piece of the body; `None` once it has ended, and `ending` says how.
    pub fn next_piece(&mut self) -> Option<Piece> {
        match self.body.next(&mut self.wire) {
            Ok(Some(bytes)) => {
                return Some(Piece {
                    at: Instant::now(),
                    bytes,
                });
            }
            Ok(None) => self.ending = Some(Ending::Whole),
            Err(Broken) => self.ending = Some(Ending::Broken),
        }
        None
    }

    /// Reads until `wanted` is there, and returns everything up to here.
    pub fn read_until(&mut self, wanted: &str) -> String {
        let mut text = String::new();
        while !text.contains(wanted) {
            let piece = self.next_piece();
            let piece = piece.unwrap_or_else(|| panic!("ended before {wanted:?}: {text}"));
            text.push_str(&String::from_utf8_lossy(&piece.bytes));
        }
        text
    }

    /// Reads to the end.
    pub fn rest(mut self) -> Answer {
        let mut body = Vec::new();
        while let Some(piece) = self.next_piece() {
            body.extend_from_slice(&piece.bytes);
        }
        Answer {
            status: self.status,
            headers: self.headers,
            interim: Vec::new(),
            body,
            ending: self.ending.unwrap(),
        }
    }
}

struct Broken;

/// Where the end of a body is.
enum Body {
    Left(usize),
    Chunk { left: usize },
    ChunkSize,
    Ended,
    UntilClose,
}

impl Body {
    fn of(status: u16, headers: &[(String, String)]) -> Self {
        if status == 204 || status == 304 {
            return Self::Ended;
        }
        if find(headers, "transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            return Self::ChunkSize;
        }
        match find(headers, "content-length") {
            Some(length) => Self::Left(length.parse().unwrap()),
            None => Self::UntilClose,
        }
    }

    /// The next decoded bytes; `Ok(None)` at the proper end.
    fn next(&mut self, wire: &mut Wire) -> Result<Option<Vec<u8>>, Broken> {
        loop {
            match self {
                Self::Ended | Self::Left(0) => return Ok(None),
                Self::UntilClose => {
                    if wire.received.is_empty() && !wire.receive() {
                        return Ok(None);
                    }
                    return Ok(Some(std::mem::take(&mut wire.received)));
                }
                Self::Left(left) => {
                    let bytes = take(wire, *left)?;
                    *left -= bytes.len();
                    return Ok(Some(bytes));
                }
                Self::Chunk { left: 0 } => {
                    line(wire)?;
                    *self = Self::ChunkSize;
                }
                Self::Chunk { left } => {
                    let bytes = take(wire, *left)?;
                    *left -= bytes.len();
                    return Ok(Some(bytes));
                }
                Self::ChunkSize => {
                    let size = line(wire)?;
                    let size = usize::from_str_radix(size.trim(), 16).map_err(|_| Broken)?;
                    if size > 0 {
                        *self = Self::Chunk { left: size };
                        continue;
                    }
                    while !line(wire)?.is_empty() {}
                    *self = Self::Ended;
                }
            }
        }
    }
}

fn take(wire: &mut Wire, most: usize) -> Result<Vec<u8>, Broken> {
    if wire.received.is_empty() && !wire.receive() {
        return Err(Broken);
    }
    let count = wire.received.len().min(most);
    Ok(wire.received.drain(..count).collect())
}

fn line(wire: &mut Wire) -> Result<String, Broken> {
    loop {
        if let Some(at) = memchr::memmem::find(&wire.received, b"\r\n") {
            let line: Vec<u8> = wire.received.drain(..at + 2).collect();
            return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
        }
        if !wire.receive() {
            return Err(Broken);
        }
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut values = headers.iter().filter(|(known, _)| known == name);
    let first = values.next()?;
    assert!(values.next().is_none(), "{name} came twice");
    Some(&first.1)
}
