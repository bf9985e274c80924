//! Where log lines go: into memory, and from there by a thread of its own, some milliseconds'
//! worth at a time, so that a request never waits for a terminal or a pipe and a line costs no
//! system call. Lines that do not fit are dropped and counted.
//!
//! Two formats: JSON objects for machines, plain text for people. Access lines (see
//! [`super::access_log`]) arrive as finished JSON and are passed on as they are.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use env_logger::{Builder, Target};
use log::{LevelFilter, Record};
use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

use super::access_log;
use crate::config::settings::{LogFormat, Logging};

/// Bytes waiting for the writer; some 8,000 access lines.
const CAPACITY: usize = 4 << 20;
/// How long lines are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(5);

/// Lines on their way to the writer.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Rung when the first line comes in, or a flush is asked for.
    filled: Condvar,
    /// Rung when everything that waited has been written.
    written: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    flush: bool,
    writing: bool,
}

/// Lets the end of the process wait for the last lines.
#[derive(Clone)]
pub struct Flusher(Arc<Queue>);

impl Flusher {
    /// Waits until all lines so far are written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut waiting = self.0.waiting.lock();
        waiting.flush = true;
        self.0.filled.notify_one();
        while !waiting.lines.is_empty() || waiting.writing {
            if self.0.written.wait_until(&mut waiting, until).timed_out() {
                return;
            }
        }
    }
}

/// The end of the queue that env_logger writes to.
struct Inlet {
    queue: Arc<Queue>,
    dropped: IntCounter,
}

impl Write for Inlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.queue.waiting.lock();
        if waiting.lines.len() + line.len() > CAPACITY {
            self.dropped.inc();
            return Ok(line.len());
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if first {
            self.queue.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Installs the process's logger on standard error.
///
/// # Errors
/// If a logger is installed already or the writer thread cannot start.
pub fn install(settings: &Logging, dropped: IntCounter) -> io::Result<Flusher> {
    let queue = Arc::new(Queue::default());
    let outlet = queue.clone();
    std::thread::Builder::new()
        .name("log writer".to_owned())
        .spawn(move || write_out(&outlet, io::stderr()))?;
    let format = settings.format;
    Builder::new()
        // Below info, Pingora and h2 print heads and bodies as they are: credentials and prompts.
        .filter_level(LevelFilter::Info)
        .filter_module("tidegate", LevelFilter::Trace)
        .target(Target::Pipe(Box::new(Inlet {
            queue: queue.clone(),
            dropped,
        })))
        .format(move |out, record| match format {
            _ if is_expected(record) => Ok(()),
            LogFormat::Json => json_line(out, record),
            LogFormat::Text => text_line(out, record),
        })
        .try_init()
        .map_err(io::Error::other)?;
    set_level(settings.level);
    Ok(Flusher(queue))
}

/// Pingora warns of every answer's second head. Where one is due, the first was ours, sent while the
/// request waited.
fn is_expected(record: &Record<'_>) -> bool {
    record.target().starts_with("pingora_core::protocols::http")
        && record
            .args()
            .as_str()
            .is_some_and(|text| text.contains("header is already sent, cannot send again"))
}

/// Changes how much is logged, from the next line on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

fn write_out(queue: &Queue, mut out: impl Write) -> ! {
    let mut batch = Vec::new();
    loop {
        let mut waiting = queue.waiting.lock();
        while waiting.lines.is_empty() {
            waiting.flush = false;
            queue.filled.wait(&mut waiting);
        }
        // More lines may ring meanwhile; only a flush cuts the gathering short.
        let until = Instant::now() + GATHER;
        while !waiting.flush && !queue.filled.wait_until(&mut waiting, until).timed_out() {}
        std::mem::swap(&mut batch, &mut waiting.lines);
        waiting.writing = true;
        drop(waiting);
        // A closed standard error must not end the gateway.
        let _ = out.write_all(&batch).and_then(|()| out.flush());
        batch.clear();
        queue.waiting.lock().writing = false;
        queue.written.notify_all();
    }
}

fn json_line(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    if record.target() == access_log::TARGET {
        return writeln!(out, "{}", record.args());
    }
    let line = serde_json::json!({
        "ts": jiff::Timestamp::now().to_string(),
        "level": record.level().as_str().to_ascii_lowercase(),
        "target": record.target(),
        "message": record.args().to_string(),
    });
    writeln!(out, "{line}")
}

fn text_line(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    writeln!(
        out,
        "{:.3} {:<5} {} {}",
        jiff::Timestamp::now(),
        record.level(),
        record.target(),
        record.args()
    )
}

/// Should text for people be coloured? Only on a terminal, and never against `NO_COLOR`
/// (<https://no-color.org>).
pub fn colour_wanted(stream: &impl IsTerminal, no_color: Option<&std::ffi::OsStr>) -> bool {
    stream.is_terminal() && no_color.is_none_or(std::ffi::OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn inlet(queue: &Arc<Queue>) -> (Inlet, IntCounter) {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        (
            Inlet {
                queue: queue.clone(),
                dropped: dropped.clone(),
            },
            dropped,
        )
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let queue = Arc::new(Queue::default());
        let kept = Kept::default();
        let (outlet, out) = (queue.clone(), kept.clone());
        std::thread::spawn(move || write_out(&outlet, out));
        let (mut inlet, _) = inlet(&queue);
        for number in 0..100 {
            inlet.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        Flusher(queue).flush(Duration::from_secs(5));
        let wanted: String = (0..100).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8(kept.0.lock().clone()).unwrap(), wanted);
    }

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_waiting() {
        let queue = Arc::new(Queue::default());
        let (mut inlet, dropped) = inlet(&queue);
        let line = vec![b'x'; CAPACITY / 2];
        for _ in 0..5 {
            inlet.write_all(&line).unwrap();
        }
        assert_eq!(dropped.get(), 3);
    }

    #[test]
    fn a_flush_of_nothing_does_not_wait() {
        Flusher(Arc::new(Queue::default())).flush(Duration::from_secs(60));
    }

    #[test]
    fn an_access_line_is_passed_on_as_it_is() {
        let mut out = Vec::new();
        let record = Record::builder()
            .target(access_log::TARGET)
            .args(format_args!("{{\"a\":1}}"))
            .build();
        json_line(&mut out, &record).unwrap();
        assert_eq!(out, b"{\"a\":1}\n");
        let mut out = Vec::new();
        let record = Record::builder()
            .target("x")
            .args(format_args!("say \"hi\""))
            .build();
        json_line(&mut out, &record).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["message"], "say \"hi\"");
    }
}
