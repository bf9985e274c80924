//! Processes that end when the bench does, however it ends, and what they have used so far.
//!
//! Each runs below a guard (this executable again) in a process group of its own, so that an
//! interrupt reaches the bench alone. The guard's standard input is a pipe from the bench: when it
//! closes, even because the bench was killed, the guard kills what it guards.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Failure, Outcome};

/// A running process and its guard.
pub struct Process {
    guard: Child,
    pid: u32,
}

impl Process {
    /// Starts `command`; what it writes to standard error goes to the file `log`.
    pub fn start(command: &[&str], log: &Path) -> Outcome<Self> {
        let mut guard = Command::new(std::env::current_exe()?)
            .arg("--as-guard")
            .args(command)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(log)?)
            .spawn()?;
        let mut line = String::new();
        let read = match guard.stdout.take() {
            Some(out) => BufReader::new(out).read_line(&mut line),
            None => Ok(0),
        };
        let mut process = Self { guard, pid: 0 };
        read?;
        process.pid = line
            .trim()
            .parse()
            .map_err(|_| Failure::from(format!("cannot start {command:?}")))?;
        Ok(process)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Processor time of all threads so far, in user and kernel mode.
    pub fn cpu(&self) -> Outcome<Duration> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            nanos += number(text.split_ascii_whitespace().next())?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Resident memory now, in KiB.
    pub fn rss_kib(&self) -> Outcome<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        number(line.and_then(|rest| rest.split_ascii_whitespace().next()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn number(text: Option<&str>) -> Outcome<u64> {
    let text = text.ok_or("a process told nothing about itself: is it gone?")?;
    Ok(text.parse()?)
}

/// The guard: starts the command, tells its process id, and kills it when standard input closes.
pub fn guard(mut command: impl Iterator<Item = String>) -> Outcome<()> {
    let program = command.next().ok_or("nothing to guard")?;
    let mut child = Command::new(program)
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let told = writeln!(io::stdout().lock(), "{}", child.id());
    if told.is_ok() {
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}
