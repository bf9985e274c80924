//! Where log lines go: one writer thread behind a bounded queue, so that a slow terminal or pipe
//! never holds up a request. Lines that do not fit are dropped and counted.
//!
//! Two formats: JSON objects for machines, plain text for people. Access lines (see
//! [`super::access_log`]) arrive as finished JSON and are passed on as they are.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use env_logger::{Builder, Target};
use log::{LevelFilter, Record};
use prometheus::IntCounter;

use super::access_log;
use crate::config::settings::{LogFormat, Logging};

/// Lines waiting for the writer; at 500 bytes a line this is 4 MiB.
const QUEUE: usize = 8192;

enum Message {
    Line(Vec<u8>),
    /// Answer when everything before this is written.
    Flush(SyncSender<()>),
}

/// Keeps the way to the writer open; lets the end of the process wait for the last lines.
#[derive(Clone)]
pub struct Flusher(SyncSender<Message>);

impl Flusher {
    /// Waits until all lines so far are written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(limit);
        }
    }
}

struct Queue {
    lines: SyncSender<Message>,
    dropped: IntCounter,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Message::Line(line.to_vec())) {
            self.dropped.inc();
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
    let (lines, queue) = sync_channel(QUEUE);
    std::thread::Builder::new()
        .name("log writer".to_owned())
        .spawn(move || write_out(&queue, io::stderr()))?;
    let format = settings.format;
    Builder::new()
        .filter_level(LevelFilter::Trace)
        .target(Target::Pipe(Box::new(Queue {
            lines: lines.clone(),
            dropped,
        })))
        .format(move |out, record| match format {
            LogFormat::Json => json_line(out, record),
            LogFormat::Text => text_line(out, record),
        })
        .try_init()
        .map_err(io::Error::other)?;
    set_level(settings.level);
    Ok(Flusher(lines))
}

/// Changes how much is logged, from the next line on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

fn write_out(queue: &Receiver<Message>, out: impl Write) {
    let mut out = BufWriter::new(out);
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                // A closed standard error must not end the gateway.
                Message::Line(line) => drop(out.write_all(&line)),
                Message::Flush(done) => {
                    let _ = out.flush();
                    let _ = done.try_send(());
                }
            }
            next = queue.try_recv().ok();
        }
        let _ = out.flush();
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
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
                .into_owned()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let (lines, queue) = sync_channel(QUEUE);
        let kept = Kept::default();
        let out = kept.clone();
        let writer = std::thread::spawn(move || write_out(&queue, out));
        for number in 0..100 {
            lines
                .try_send(Message::Line(format!("{number}\n").into_bytes()))
                .ok()
                .unwrap();
        }
        Flusher(lines.clone()).flush(Duration::from_secs(5));
        let wanted: String = (0..100).map(|number| format!("{number}\n")).collect();
        assert_eq!(kept.text(), wanted);
        drop(lines);
        writer.join().unwrap();
    }

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_waiting() {
        let (lines, _queue) = sync_channel(1);
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let mut queue = Queue {
            lines,
            dropped: dropped.clone(),
        };
        for _ in 0..5 {
            queue.write_all(b"line\n").unwrap();
        }
        assert_eq!(dropped.get(), 4);
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
