//! `tidegate demo`: gateway, emulated DeepSeek and a tenant, in one process, with lines to try.

use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::runtime::Runtime;

use super::key::{hash_text, new_key};
use super::{Exit, bold, complain, print, run};
use crate::emulator::{self, DEFAULT_KEY, EmulatorConfig};
use crate::server::assemble::Start;
use crate::server::sources::Sources;

#[derive(Args)]
pub(super) struct Options {
    /// Port of the gateway; if it is taken, a free one
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// Port of the admin listener; if it is taken, a free one
    #[arg(long, default_value_t = 9080, value_name = "PORT")]
    admin_port: u16,
}

/// Where the demo runs.
struct Stage {
    folder: PathBuf,
    gateway: SocketAddr,
    admin: SocketAddr,
    emulator: SocketAddr,
}

pub(super) fn demo(options: &Options) -> Exit {
    match prepare(options) {
        Ok((config, words)) => {
            print(&words);
            run::serve(Start {
                sources: Sources::file(config),
                poll: Duration::ZERO,
            })
        }
        Err(cause) => {
            complain(&format!("cannot prepare the demo: {cause}"));
            Exit::Failure
        }
    }
}

/// Starts the emulator and writes a configuration that leads to it.
fn prepare(options: &Options) -> io::Result<(PathBuf, String)> {
    let stage = Stage {
        gateway: free(options.port)?,
        admin: free(options.admin_port)?,
        emulator: start_emulator()?,
        folder: private_folder()?,
    };
    let made = new_key("demo", Some("demo".to_owned())).map_err(io::Error::other)?;
    write_private(&stage.folder.join("upstream.key"), DEFAULT_KEY)?;
    let config = stage.folder.join("tidegate.yaml");
    std::fs::write(&config, configuration(&stage, &hash_text(&made.hash))?)?;
    let words = words(&stage, &config, made.key.expose());
    Ok((config, words))
}

/// A new folder that no other user can have prepared.
fn private_folder() -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let name = format!("tidegate-demo-{}", uuid::Uuid::new_v4().simple());
    let folder = std::env::temp_dir().join(name);
    std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

/// For this user's eyes only, as a key should be.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

fn free(port: u16) -> io::Result<SocketAddr> {
    let wanted = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    wanted
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?
        .local_addr()
}

/// In a thread of its own: the gateway brings its own runtimes.
fn start_emulator() -> io::Result<SocketAddr> {
    let (started, address) = sync_channel(1);
    std::thread::Builder::new()
        .name("emulator".to_owned())
        .spawn(move || {
            let runtime = match Runtime::new() {
                Ok(runtime) => runtime,
                Err(cause) => return drop(started.send(Err(cause))),
            };
            runtime.block_on(async move {
                match emulator::bind(EmulatorConfig::default()).await {
                    Ok(emulator) => {
                        let _ = started.send(Ok(emulator.address()));
                        emulator.serve(std::future::pending()).await;
                    }
                    Err(cause) => drop(started.send(Err(cause))),
                }
            });
        })?;
    address.recv().map_err(io::Error::other)?
}

fn configuration(stage: &Stage, hash: &str) -> io::Result<String> {
    let value = json!({
        "server": {
            "state_dir": stage.folder.join("state"),
            "listeners": [{"address": stage.gateway.to_string(), "h2c": true}],
            "admin": {"address": stage.admin.to_string()},
            "shutdown_grace": "5s",
        },
        "logging": {"format": "text", "level": "info"},
        // Enough for any trying out, and few enough to see how it shrinks.
        "plans": {"demo": {
            "max_concurrent": 20,
            "cost_per_day": "5 USD",
            "text": {"requests_per_minute": 120, "requests_per_day": 10_000, "tokens_per_minute": 1_000_000},
        }},
        "accounting": {"prices": [
            {"upstream": "deepseek", "model": "deepseek-flash", "cache_hit": "0.003", "cache_miss": "0.15", "output": "0.60"},
            {"upstream": "deepseek", "model": "deepseek-v4-pro", "cache_hit": "0.022", "cache_miss": "0.66", "output": "1.98"},
        ]},
        "tenants": [{
            "id": "demo", "plan": "demo", "models": ["*"], "balance": true, "files": true,
            "credentials": [{"api_key": {"id": "demo", "hash": hash}}],
        }],
        "upstreams": [{
            "id": "deepseek",
            "endpoints": [{"url": format!("http://{}", stage.emulator)}],
            "accounts": [{"id": "main", "api_key": "${file:upstream.key}"}],
        }],
        "models": {
            "deepseek-flash": {"variants": [{"upstream": "deepseek", "model": "deepseek-flash"}]},
            "deepseek-v4-pro": {"variants": [{"upstream": "deepseek", "model": "deepseek-v4-pro"}]},
            "deepseek-chat": {"alias": "deepseek-flash", "set": {"thinking": {"type": "disabled"}}},
            "deepseek-reasoner": {"alias": "deepseek-flash", "set": {"thinking": {"type": "enabled"}}},
        },
    });
    serde_yaml::to_string(&value).map_err(io::Error::other)
}

fn words(stage: &Stage, config: &Path, key: &str) -> String {
    let gateway = format!("http://{}", stage.gateway);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}",
        bold("tidegate demo: a gateway, an emulated DeepSeek behind it, and a tenant \"demo\".")
    );
    let _ = writeln!(text, "\n{}\n", bold("A streamed answer with curl:"));
    let _ = writeln!(
        text,
        "curl -N {gateway}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
         -d '{{\"model\": \"deepseek-chat\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'"
    );
    let _ = writeln!(text, "\n{}\n", bold("The OpenAI SDK (pip install openai):"));
    let _ = writeln!(
        text,
        "from openai import OpenAI\n\
         client = OpenAI(base_url=\"{gateway}/v1\", api_key=\"{key}\")\n\
         answer = client.chat.completions.create(model=\"deepseek-flash\", messages=[{{\"role\": \"user\", \"content\": \"Hello\"}}])\n\
         print(answer.choices[0].message.content, answer.usage)"
    );
    let _ = writeln!(text, "\n{}\n", bold("Look inside:"));
    let _ = writeln!(text, "metrics        curl http://{}/metrics", stage.admin);
    let _ = writeln!(text, "readiness      curl http://{}/readyz", stage.admin);
    let _ = writeln!(
        text,
        "upstream       curl http://{}/_emulator/journal",
        stage.emulator
    );
    let _ = writeln!(text, "configuration  {}", config.display());
    let _ = writeln!(text, "\nCtrl-C ends it. The log follows.\n");
    text
}
