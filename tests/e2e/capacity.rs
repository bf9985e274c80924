//! Thousands of slow streams at one time on one process.

use std::process::Command;
use std::time::{Duration, Instant};

use tidegate::emulator::{EmulatedAccount, EmulatorConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::*;

const STREAMS: usize = 2000;

/// Both ends of every connection on either side of the gateway count, and the emulator's are ours.
fn raise_descriptor_limit() {
    let pid = std::process::id().to_string();
    let raised = Command::new("prlimit")
        .args(["--pid", &pid, "--nofile=16384:"])
        .status();
    assert!(
        raised.is_ok_and(|status| status.success()),
        "prlimit cannot raise the limit of open files"
    );
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[test]
fn two_thousand_slow_streams_are_open_at_once_and_all_end_properly() {
    raise_descriptor_limit();
    let mut account = EmulatedAccount::new("sk-upstream-1", "account-1");
    account
        .concurrency
        .insert("deepseek-flash".to_owned(), 2 * STREAMS);
    let emulator = Emulator::start(EmulatorConfig {
        accounts: vec![account],
        ..Emulator::with_accounts(1)
    });
    let config = Config::for_emulator(&emulator).limit("max_connections_per_ip", 2 * STREAMS);
    let gateway = Gateway::start(config);
    let body = chat_stream("[[fault:token_delay=1s,tokens=10]]");
    let request = Request::post("/v1/chat/completions", &body)
        .key("acme")
        .to_bytes();
    // Warm, so that what is measured is streams and not the first use of things.
    assert!(gateway.is_serving());
    let before = resident(gateway.pid());
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = gateway.address();
    let whole = runtime.spawn(async move {
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(&request).await.unwrap();
            streams.spawn(async move {
                let mut received = Vec::new();
                let mut buffer = [0; 2048];
                while !received.ends_with(b"0\r\n\r\n") {
                    match socket.read(&mut buffer).await {
                        Ok(count) if count > 0 => received.extend_from_slice(&buffer[..count]),
                        _ => return false,
                    }
                }
                let text = String::from_utf8_lossy(&received);
                text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]")
            });
        }
        let mut whole = 0;
        while let Some(ended) = streams.join_next().await {
            whole += usize::from(ended.unwrap());
        }
        whole
    });
    let open = || gateway.metric("tidegate_requests_in_flight", &["surface=\"chat\""]);
    eventually("all streams are open", Duration::from_secs(20), || {
        (open() == STREAMS as f64).then_some(())
    });
    let opened = began.elapsed();
    let held = resident(gateway.pid()).saturating_sub(before);
    assert_eq!(runtime.block_on(whole).unwrap(), STREAMS);
    eprintln!(
        "{STREAMS} streams open after {opened:.1?}, all ended after {:.1?}; {:.1} KiB of resident memory per stream",
        began.elapsed(),
        held as f64 / STREAMS as f64 / 1024.0
    );
    assert!(
        held / STREAMS < 256 * 1024,
        "{held} bytes for {STREAMS} streams"
    );
    eventually("nothing is left", SOON, || (open() == 0.0).then_some(()));
}
