//! The built-in emulator, run inside the test process.

use std::net::SocketAddr;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::emulator::{self, EmulatedAccount, EmulatorConfig};
use tokio::sync::oneshot;

use super::{Request, SOON, eventually};

/// A running emulator; it stops when it is dropped.
pub struct Emulator {
    address: SocketAddr,
    accounts: Vec<(String, String)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Starts one in a thread of its own.
    pub fn start(config: EmulatorConfig) -> Self {
        let accounts = config
            .accounts
            .iter()
            .map(|account| (account.name.clone(), account.key.clone()))
            .collect();
        let (started, address) = sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let emulator = emulator::bind(config).await.unwrap();
                started.send(emulator.address()).unwrap();
                emulator
                    .serve(async {
                        let _ = stopped.await;
                    })
                    .await;
            });
        });
        Self {
            address: address.recv().unwrap(),
            accounts,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// One account, answers at once.
    pub fn quick() -> Self {
        Self::start(Self::with_accounts(1))
    }

    /// `count` accounts `account-1` with key `sk-upstream-1` and so on; answers at once.
    pub fn with_accounts(count: usize) -> EmulatorConfig {
        EmulatorConfig {
            accounts: (1..=count)
                .map(|n| EmulatedAccount::new(format!("sk-upstream-{n}"), format!("account-{n}")))
                .collect(),
            token_delay: Duration::ZERO,
            first_token_delay: Duration::ZERO,
            keep_alive: Duration::from_millis(50),
            ..EmulatorConfig::default()
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://host:port`, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Name and key of each account.
    pub fn accounts(&self) -> &[(String, String)] {
        &self.accounts
    }

    /// What was asked, oldest first, each with the body; health probes left out.
    pub fn calls(&self) -> Vec<Value> {
        let journal = Request::get("/_emulator/journal?full=1").send(self.address);
        let entries = journal.json();
        let entries = entries.as_array().unwrap().iter();
        entries
            .filter(|entry| entry["path"] != "/models")
            .cloned()
            .collect()
    }

    /// The one call there was.
    pub fn call(&self) -> Value {
        let calls = self.calls();
        assert_eq!(calls.len(), 1, "{calls:#?}");
        calls[0].clone()
    }

    /// The last call, once it satisfies `ready`.
    pub fn call_once(&self, what: &str, ready: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, || {
            self.calls().last().filter(|call| ready(call)).cloned()
        })
    }

    /// The last call, once it has ended in `outcome`.
    pub fn call_ended(&self, outcome: &str) -> Value {
        self.call_once(&format!("a call that ends {outcome}"), |call| {
            call["outcome"] == outcome
        })
    }

    pub fn forget_calls(&self) {
        Request::new("DELETE", "/_emulator/journal").send(self.address);
    }

    /// Requests being generated, over all accounts and models.
    pub fn in_flight(&self) -> u64 {
        let counts = Request::get("/_emulator/inflight")
            .send(self.address)
            .json();
        let accounts = counts.as_object().unwrap().values();
        accounts
            .flat_map(|models| models.as_object().unwrap().values())
            .map(|count| count.as_u64().unwrap())
            .sum()
    }

    /// Orders faults, for one account by its name or for all; `""` takes the order away.
    pub fn order(&self, account: Option<&str>, faults: &str) {
        let order = json!({"account": account, "faults": faults});
        let answer = Request::post("/_emulator/faults", &order).send(self.address);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Gives an account another balance; at zero or below it refuses with 402.
    pub fn set_balance(&self, account: &str, amount: &str) {
        self.change(account, &json!({"balance": amount}));
    }

    /// Gives an account another key; its old one is refused with 401.
    pub fn set_key(&self, account: &str, key: &str) {
        self.change(account, &json!({"key": key}));
    }

    fn change(&self, account: &str, change: &Value) {
        let path = format!("/_emulator/accounts/{account}");
        let answer = Request::post(&path, change).send(self.address);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Stops and waits until the port is free.
    pub fn stop(mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A header of a journal entry, if it came exactly once.
pub fn header_of<'a>(call: &'a Value, name: &str) -> Option<&'a str> {
    let mut values = call["request_headers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pair| pair[0] == name)
        .map(|pair| pair[1].as_str().unwrap());
    let first = values.next();
    values.next().is_none().then_some(first).flatten()
}
