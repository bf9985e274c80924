//! One keep-alive connection of the load generator: prepared requests out, answers read just far
//! enough to know their status, their events and their end. Every answer is checked; a bench of
//! errors measures nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::mock::{STAMP, nanos};
use crate::{Failure, Outcome};

/// No single answer takes longer than this in any scenario.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

/// What an answer was.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub events: usize,
    pub took: Duration,
    /// Sending to arrival of each stamped event, in nanoseconds.
    pub delays: Vec<u64>,
}

pub struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    raw: Vec<u8>,
    text: Vec<u8>,
}

impl Connection {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
            raw: Vec::new(),
            text: Vec::new(),
        }
    }

    /// Sends the request and reads its answer to the end, or, with `stop_after`, until so many
    /// events have come: the answer then stays open with this connection.
    pub async fn ask(&mut self, request: &[u8], stop_after: Option<usize>) -> Outcome<Answer> {
        timeout(PATIENCE, self.exchange(request, stop_after))
            .await
            .map_err(|_| Failure::from("an answer did not come to its end"))?
    }

    async fn exchange(&mut self, request: &[u8], stop_after: Option<usize>) -> Outcome<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        self.raw.clear();
        self.text.clear();
        let began = Instant::now();
        stream.write_all(request).await?;
        let head = loop {
            self.more(&mut stream).await?;
            if let Some(end) = memmem::find(&self.raw, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let (status, framing, close) = read_head(self.raw.get(..head).unwrap_or_default())?;
        self.raw.drain(..head);
        let mut answer = Answer {
            status,
            ..Answer::default()
        };
        match framing {
            Framing::Length(length) => {
                while self.raw.len() < length {
                    self.more(&mut stream).await?;
                }
            }
            Framing::Chunked => loop {
                let complete = dechunk(&mut self.raw, &mut self.text)?;
                count_events(&mut self.text, &mut answer);
                if complete || stop_after.is_some_and(|count| answer.events >= count) {
                    break;
                }
                self.more(&mut stream).await?;
            },
        }
        answer.took = began.elapsed();
        self.stream = (!close).then_some(stream);
        Ok(answer)
    }

    async fn more(&mut self, stream: &mut TcpStream) -> Outcome<()> {
        self.raw.reserve(4096);
        match stream.read_buf(&mut self.raw).await? {
            0 => Err("the connection closed in the middle of an answer".into()),
            _ => Ok(()),
        }
    }
}

fn read_head(head: &[u8]) -> Outcome<(u16, Framing, bool)> {
    let text = std::str::from_utf8(head)?;
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.ok_or("no status")?.parse()?;
    let (mut framing, mut close) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if name.eq_ignore_ascii_case("content-length") {
            framing = Some(Framing::Length(value.parse()?));
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            framing = Some(Framing::Chunked);
        } else if name.eq_ignore_ascii_case("connection") {
            close = value.eq_ignore_ascii_case("close");
        }
    }
    Ok((status, framing.ok_or("an answer without framing")?, close))
}

/// Moves the payload of whole chunks from `raw` to `text`. True after the last chunk.
fn dechunk(raw: &mut Vec<u8>, text: &mut Vec<u8>) -> Outcome<bool> {
    let mut at = 0;
    let complete = loop {
        let rest = raw.get(at..).unwrap_or_default();
        let Some(line) = memmem::find(rest, b"\r\n") else {
            break false;
        };
        let size = std::str::from_utf8(rest.get(..line).unwrap_or_default())?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        let Some(data) = rest.get(line + 2..line + 2 + size + 2) else {
            break false;
        };
        text.extend_from_slice(data.get(..size).unwrap_or_default());
        at += line + 2 + size + 2;
        if size == 0 {
            break true;
        }
    };
    raw.drain(..at);
    Ok(complete)
}

/// Counts the whole events in `text`, notes how long the stamped ones were under way, and leaves
/// what is unfinished.
fn count_events(text: &mut Vec<u8>, answer: &mut Answer) {
    let mut at = 0;
    let mut now = None;
    while let Some(rest) = text.get(at..)
        && let Some(end) = memmem::find(rest, b"\n\n")
    {
        let event = rest.get(..end).unwrap_or_default();
        if let Some(stamp) = stamp(event) {
            let now = *now.get_or_insert_with(nanos);
            answer.delays.push(now.saturating_sub(stamp));
        }
        answer.events += 1;
        at += end + 2;
    }
    text.drain(..at);
}

fn stamp(event: &[u8]) -> Option<u64> {
    let from = memmem::find(event, STAMP.as_bytes())? + STAMP.len();
    let digits = event
        .get(from..)?
        .split(|byte| !byte.is_ascii_digit())
        .next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
