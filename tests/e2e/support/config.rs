//! Configurations for the tests: a small complete one, changed by JSON pointers.

use std::fmt::Write;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tidegate::identity::api_key;

use super::{Emulator, tidegate};

/// The token of the admin listener.
pub const ADMIN_TOKEN: &str = "admin-token-of-the-tests";

/// A configuration before it has ports.
///
/// Tenants: `acme` may do everything; `limited` may use `deepseek-flash` and neither files nor
/// balance; `closed` is disabled. Their keys are [`key`]`("acme")` and so on. One upstream
/// `deepseek` with the emulator's accounts. All of them have the plan `unlimited`, and so has whoever
/// names none. Listeners and the admin listener get their addresses
/// when the gateway starts.
#[derive(Clone)]
pub struct Config {
    pub value: Value,
    pub(super) files: Vec<(String, Vec<u8>)>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) arguments: Vec<String>,
    /// Command and arguments in front of the binary.
    wrapper: Vec<String>,
}

/// The key with the readable id `id`; the same in every test.
pub fn key(id: &str) -> String {
    api_key::make(id, &[7; 32]).key.expose().to_owned()
}

/// The line of the configuration by which a tenant is known by [`key`]`(id)`.
fn credential(id: &str) -> Value {
    let mut hash = "sha256:".to_owned();
    for byte in api_key::make(id, &[7; 32]).hash {
        write!(hash, "{byte:02x}").unwrap();
    }
    json!({"api_key": {"id": id, "hash": hash}})
}

/// A tenant `id` that may use every model and shows [`key`]`(id)`.
pub fn tenant(id: &str) -> Value {
    json!({
        "id": id, "plan": "unlimited", "models": ["*"], "balance": true, "files": true,
        "credentials": [credential(id)],
    })
}

fn step_into<'a>(value: &'a mut Value, step: &str) -> &'a mut Value {
    if !value.is_array() {
        return &mut value[step];
    }
    let items = value.as_array_mut().unwrap();
    let index = if step == "-" {
        items.push(Value::Null);
        items.len() - 1
    } else {
        step.parse().unwrap()
    };
    &mut value[index]
}

impl Config {
    /// Leads to one emulator with its accounts.
    pub fn for_emulator(emulator: &Emulator) -> Self {
        Self::for_urls(&[emulator.url()], emulator.accounts())
    }

    /// Leads to these endpoints with these accounts (name, key).
    pub fn for_urls(urls: &[String], accounts: &[(String, String)]) -> Self {
        let endpoints: Vec<_> = urls.iter().map(|url| json!({"url": url})).collect();
        let mut files = vec![("admin.token".to_owned(), ADMIN_TOKEN.into())];
        let mut slots = Vec::new();
        for (name, key) in accounts {
            files.push((format!("{name}.key"), key.clone().into_bytes()));
            slots.push(json!({"id": name, "api_key": format!("${{file:{name}.key}}")}));
        }
        let limited = json!({
            "id": "limited", "plan": "unlimited", "models": ["deepseek-flash"],
            "credentials": [credential("limited")],
        });
        let closed = json!({
            "id": "closed", "plan": "unlimited", "enabled": false, "models": ["*"],
            "credentials": [credential("closed")],
        });
        let value = json!({
            "server": {
                "threads": 2,
                "state_dir": "state",
                "listeners": [{"h2c": true}],
                "admin": {"token": "${file:admin.token}"},
                "shutdown_grace": "10s",
            },
            "plans": {"unlimited": {}, "default": {}},
            "tenants": [tenant("acme"), limited, closed],
            "upstreams": [{
                "id": "deepseek", "endpoints": endpoints, "accounts": slots,
                // Nobody but the tests asks for balances, unless a test wants it.
                "credit": false,
            }],
            "models": {
                "deepseek-flash": {"variants": [{"upstream": "deepseek", "model": "deepseek-flash"}]},
                "deepseek-v4-pro": {"variants": [{"upstream": "deepseek", "model": "deepseek-v4-pro"}]},
                "deepseek-chat": {"alias": "deepseek-flash", "set": {"thinking": {"type": "disabled"}}},
                "deepseek-reasoner": {"alias": "deepseek-flash", "set": {"thinking": {"type": "enabled"}}},
            },
        });
        Self {
            value,
            files,
            environment: Vec::new(),
            arguments: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// Sets the value at a JSON pointer; missing maps on the way are made, `-` appends to a list.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut at = &mut self.value;
        for step in pointer.trim_start_matches('/').split('/') {
            at = step_into(at, step);
        }
        *at = value;
        self
    }

    /// For tests that order many faults: nobody is left out for them, and retries are not counted.
    /// What the provider says of an account (401 to 403, 429) still holds.
    #[must_use]
    pub fn unguarded(self) -> Self {
        self.set("/upstreams/0/outlier", json!(false))
            .set("/upstreams/0/breaker", json!(false))
            .set("/retry/budget_reserve", json!(1000))
            .set("/retry/base_backoff", json!("1ms"))
    }

    /// The emulator's accounts are asked in their order: the next one only when the one before it
    /// cannot answer, whatever the conversation, and nobody is left out for what it failed with.
    #[must_use]
    pub fn asked_in_turn(self, emulator: &Emulator) -> Self {
        let guards = ["affinity", "outlier"];
        let plain = guards.into_iter().fold(self, |config, guard| {
            config.set(&format!("/upstreams/0/{guard}"), json!(false))
        });
        (1..emulator.accounts().len()).fold(plain, |config, account| {
            let pointer = format!("/upstreams/0/accounts/{account}/priority");
            config.set(&pointer, json!(account))
        })
    }

    /// Sets one of `server.limits`.
    #[must_use]
    pub fn limit(self, name: &str, value: impl Into<Value>) -> Self {
        self.set(&format!("/server/limits/{name}"), value.into())
    }

    /// Puts a file beside the configuration.
    #[must_use]
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// Sets an environment variable of the gateway's process.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds to the command line of `run`; `{folder}` stands for the configuration's folder.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        self.arguments.extend(arguments);
        self
    }

    /// Starts the binary by a command that execs what follows it.
    #[must_use]
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The binary, with what stands before it.
    pub(super) fn command(&self) -> Command {
        let binary = tidegate();
        let Some((first, rest)) = self.wrapper.split_first() else {
            return binary;
        };
        let mut command = Command::new(first);
        command.args(rest).arg(binary.get_program());
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command
    }

    /// Number of listeners for tenants.
    pub(super) fn listeners(&self) -> usize {
        self.value["server"]["listeners"].as_array().unwrap().len()
    }

    /// Writes the configuration to `path` and its files beside it, with the addresses filled in.
    pub(super) fn write(&self, path: &Path, listeners: &[SocketAddr], admin: SocketAddr) {
        let folder = path.parent().unwrap();
        for (name, content) in &self.files {
            let file = folder.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        }
        let mut value = self.value.clone();
        for (index, address) in listeners.iter().enumerate() {
            value["server"]["listeners"][index]["address"] = json!(address.to_string());
        }
        value["server"]["admin"]["address"] = json!(admin.to_string());
        let text = serde_yaml::to_string(&value).unwrap();
        std::fs::write(path, text).unwrap();
    }
}
