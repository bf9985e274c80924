//! `tidegate emulate`: the stand-in for the DeepSeek API, alone.

use std::fmt::Write;
use std::net::SocketAddr;

use clap::Args;
use tokio::runtime::Runtime;

use super::{Exit, complain, print};
use crate::config::text::parse_duration;
use crate::emulator::{self, DEFAULT_KEY, EmulatedAccount, EmulatorConfig};

#[derive(Args)]
pub(super) struct Options {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Keys of the emulated accounts, one account each
    #[arg(long = "key", default_values = [DEFAULT_KEY], value_name = "KEY")]
    pub keys: Vec<String>,
    /// Concurrent requests per account and model
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Pause between tokens
    #[arg(long, default_value = "10ms", value_name = "DURATION", value_parser = parse_duration)]
    pub token_delay: std::time::Duration,
    /// Pause before the first token
    #[arg(long, default_value = "50ms", value_name = "DURATION", value_parser = parse_duration)]
    pub first_token_delay: std::time::Duration,
    /// Tokens of an answer
    #[arg(long, default_value_t = 24, value_name = "N")]
    pub tokens: usize,
    /// Offer embeddings, as a self-hosted engine may
    #[arg(long)]
    pub embeddings: bool,
    /// Take any model name and any key, as a self-hosted engine does
    #[arg(long)]
    pub self_hosted: bool,
    /// Answer in {"code", "data", "msg"} and errors under 200, as a company's own gateway may
    #[arg(long)]
    pub enveloped: bool,
    /// Keep no journal of requests; for load
    #[arg(long)]
    pub no_journal: bool,
}

impl Options {
    pub(super) fn config(&self) -> EmulatorConfig {
        let mut accounts: Vec<_> = self
            .keys
            .iter()
            .enumerate()
            .map(|(number, key)| EmulatedAccount::new(key, format!("account-{number}")))
            .collect();
        if let Some(ceiling) = self.concurrency {
            for account in &mut accounts {
                for model in ["deepseek-flash", "deepseek-v4-pro"] {
                    account.concurrency.insert(model.to_owned(), ceiling);
                }
            }
        }
        let defaults = EmulatorConfig::default();
        EmulatorConfig {
            listen: self.listen,
            accounts,
            token_delay: self.token_delay,
            first_token_delay: self.first_token_delay,
            tokens: self.tokens,
            embeddings: self.embeddings,
            self_hosted: self.self_hosted,
            enveloped: self.enveloped,
            journal: if self.no_journal { 0 } else { defaults.journal },
            ..defaults
        }
    }
}

pub(super) fn emulate(options: &Options) -> Exit {
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(cause) => {
            complain(&format!("cannot start: {cause}"));
            return Exit::Failure;
        }
    };
    runtime.block_on(async {
        let emulator = match emulator::bind(options.config()).await {
            Ok(emulator) => emulator,
            Err(cause) => {
                complain(&format!("cannot listen on {}: {cause}", options.listen));
                return Exit::Failure;
            }
        };
        let mut text = String::new();
        let _ = writeln!(text, "The emulated DeepSeek API listens on http://{}", emulator.address());
        let _ = writeln!(text, "Journal: GET /_emulator/journal   Faults: POST /_emulator/faults {{\"faults\": \"status=503,times=2\"}}");
        print(&text);
        emulator.serve(stop()).await;
        Exit::Success
    })
}

async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
