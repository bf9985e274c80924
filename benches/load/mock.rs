//! A tiny upstream. It answers in DeepSeek's shape from prepared parts, one write an event as a
//! model server does, and so cheaply that it does not set the pace. The built-in emulator reads
//! every body as JSON and lets hyper gather events into fewer writes; `--upstream emulator` has it.
//!
//! It understands the part of the emulator's orders of faults that the scenarios use.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval};

use crate::Outcome;

/// Orders and flags are looked for in so much of a body's beginning and end.
const EDGE: usize = 1024;
/// Marks the time of sending in a paced event, in nanoseconds since 1970.
pub const STAMP: &str = "\"content\":\"@";

const HEAD: &str = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: mock\r\nvary: origin\r\nx-ds-trace-id: 7d0b9f6f3c1e4d0f8a5b2c1d0e9f8a7b\r\naccess-control-allow-credentials: true\r\n";
const ENVELOPE: &str = r#"{"id":"0b9c6f3e-1f0e-4d8f-9a5b-2c1d0e9f8a7b","object":"chat.completion.chunk","created":1767225600,"model":"deepseek-flash","system_fingerprint":"fp_7e3a9c51d0_prod0820_fp8_kvcache","choices":["#;
const USAGE: &str = r#"{"prompt_tokens":310,"completion_tokens":63,"total_tokens":373,"prompt_tokens_details":{"cached_tokens":256},"prompt_cache_hit_tokens":256,"prompt_cache_miss_tokens":54}"#;
const WORDS: &[&str] = &[
    "The",
    " quick",
    " brown",
    " fox",
    " \\\"jumps\\\"",
    " over",
    " the",
    " lazy",
    " dog",
    ".\\n",
    " 你好",
    " 1",
];

/// What a request asks this upstream to do.
#[derive(Debug, Clone, Copy, Default)]
struct Order {
    stream: bool,
    usage: bool,
    tokens: usize,
    delay: Duration,
    stall_after: Option<usize>,
}

impl Order {
    fn read(body: &[u8]) -> Self {
        let head = body.get(..EDGE).unwrap_or(body);
        let tail = body.get(body.len().saturating_sub(EDGE)..).unwrap_or(body);
        let says = |text: &str| {
            [head, tail]
                .iter()
                .any(|part| memmem::find(part, text.as_bytes()).is_some())
        };
        let mut order = Self {
            stream: says("\"stream\":true"),
            usage: says("\"include_usage\":true"),
            tokens: 24,
            ..Self::default()
        };
        let text = String::from_utf8_lossy(tail);
        let faults = text
            .split_once("[[fault:")
            .and_then(|(_, rest)| rest.split_once("]]"));
        for (name, value) in faults
            .iter()
            .flat_map(|(list, _)| list.split(','))
            .filter_map(|word| word.split_once('='))
        {
            match (
                name,
                value.parse::<usize>(),
                value.strip_suffix("ms").map(str::parse),
            ) {
                ("tokens", Ok(count), _) => order.tokens = count,
                ("stall_after", Ok(count), _) => order.stall_after = Some(count),
                ("token_delay", _, Some(Ok(ms))) => order.delay = Duration::from_millis(ms),
                _ => {}
            }
        }
        order
    }
}

/// Listens on the address; never returns.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let address: SocketAddr = arguments.next().ok_or("no address to listen on")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                // A proxy that leaves in the middle of an answer is nothing to report.
                let _ = attend(stream).await;
            });
        }
    })
}

async fn attend(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let Some((head, length)) = read_head(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        while buffer.len() < head + length {
            buffer.reserve((head + length - buffer.len()).min(64 << 10));
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let order = Order::read(buffer.get(head..head + length).unwrap_or_default());
        buffer.drain(..head + length);
        buffer.shrink_to(64 << 10);
        if order.stream {
            play(&mut stream, order).await?;
        } else {
            stream.write_all(whole().as_bytes()).await?;
        }
    }
}

/// The lengths of head and body; `None` at the end of the connection.
async fn read_head(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(usize, usize)>> {
    loop {
        if let Some(end) = memmem::find(buffer, b"\r\n\r\n") {
            let head =
                String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|value| value.trim().parse().ok());
            return Ok(Some((end + 4, length.unwrap_or(0))));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// An answer in one piece.
fn whole() -> String {
    let text: String = WORDS.iter().cycle().take(24).copied().collect();
    let body = format!(
        r#"{{"id":"0b9c6f3e-1f0e-4d8f-9a5b-2c1d0e9f8a7b","object":"chat.completion","created":1767225600,"model":"deepseek-flash","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"logprobs":null,"finish_reason":"stop"}}],"usage":{USAGE},"system_fingerprint":"fp_7e3a9c51d0_prod0820_fp8_kvcache"}}"#
    );
    format!(
        "{HEAD}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn play(stream: &mut TcpStream, order: Order) -> io::Result<()> {
    let head = format!(
        "{HEAD}content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut clock = (!order.delay.is_zero()).then(|| interval(order.delay));
    if let Some(clock) = &mut clock {
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    for (sent, number) in (0..order.tokens + 2).enumerate() {
        if order.stall_after == Some(sent) {
            // Silence until the other side leaves.
            stream.read_u8().await?;
            return Ok(());
        }
        if let Some(clock) = &mut clock {
            clock.tick().await;
        }
        stream
            .write_all(chunk(&event(order, number)).as_bytes())
            .await?;
    }
    if order.usage {
        let last = format!("data: {ENVELOPE}],\"usage\":{USAGE}}}\n\n");
        stream.write_all(chunk(&last).as_bytes()).await?;
    }
    stream
        .write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes())
        .await
}

/// The role, a token, or the finish: all but the usage and the end mark.
fn event(order: Order, number: usize) -> String {
    let null_usage = if order.usage { ",\"usage\":null" } else { "" };
    let (delta, finish) = match number {
        0 => (r#"{"role":"assistant","content":""}"#.to_owned(), "null"),
        last if last == order.tokens + 1 => (r#"{"content":""}"#.to_owned(), "\"stop\""),
        _ if !order.delay.is_zero() => (format!("{{{STAMP}{}\"}}", nanos()), "null"),
        token => {
            let word = WORDS.get(token % WORDS.len()).copied().unwrap_or_default();
            (format!("{{\"content\":\"{word}\"}}"), "null")
        }
    };
    format!(
        "data: {ENVELOPE}{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]{null_usage}}}\n\n"
    )
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// Now, as the stamps have it.
pub fn nanos() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
