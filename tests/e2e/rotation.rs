//! Each secret and certificate can be exchanged while fifty clients are at work, and none of them
//! notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tidegate::emulator::{EmulatedAccount, EmulatorConfig};

use crate::support::authority::{Authority, Leaf};
use crate::support::tls::Client;
use crate::support::*;

const CLIENTS: usize = 50;
/// Generous: it only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(90);

/// How the clients come.
#[derive(Clone)]
struct Manner {
    to: SocketAddr,
    tls: bool,
    /// The certificate they show.
    leaf: Option<Leaf>,
    /// The key they send.
    key: Option<String>,
}

impl Manner {
    fn plain(gateway: &Gateway) -> Self {
        Self {
            to: gateway.address(),
            tls: false,
            leaf: None,
            key: Some(key("acme")),
        }
    }

    fn tls(gateway: &Gateway) -> Self {
        Self {
            to: gateway.listener(1),
            tls: true,
            ..Self::plain(gateway)
        }
    }

    fn connect(&self) -> Wire {
        if !self.tls {
            return Wire::connect(self.to);
        }
        let client = self.leaf.iter().fold(Client::new(), Client::shows);
        client.wire(self.to)
    }

    /// A stream of some tenths of a second.
    fn request(&self) -> Request {
        let body = chat_stream("[[fault:token_delay=20ms,tokens=10]]");
        let request = Request::post("/v1/chat/completions", &body);
        match &self.key {
            Some(key) => request.header("authorization", &format!("Bearer {key}")),
            None => request,
        }
    }

    /// What one request, on a connection of its own, is answered.
    fn status(&self) -> u16 {
        self.connect().ask(&self.request()).status
    }
}

struct Shared {
    manner: Mutex<(u64, Manner)>,
    over: AtomicBool,
    /// Answers by client, each whole.
    good: Vec<AtomicU64>,
    bad: Mutex<Vec<String>>,
}

/// Clients that ask without a pause: every other one on a connection that it keeps.
struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(manner: Manner) -> Self {
        let shared = Arc::new(Shared {
            manner: Mutex::new((0, manner)),
            over: AtomicBool::new(false),
            good: (0..CLIENTS).map(|_| AtomicU64::new(0)).collect(),
            bad: Mutex::default(),
        });
        let client = |number| {
            let shared = shared.clone();
            std::thread::spawn(move || work(&shared, number))
        };
        let clients = (0..CLIENTS).map(client).collect();
        let load = Self { shared, clients };
        load.goes_on();
        load
    }

    /// Waits until each client has had two more answers: the second was asked for after now.
    fn goes_on(&self) {
        let counts = || -> Vec<u64> {
            let good = self.shared.good.iter();
            good.map(|count| count.load(Ordering::Acquire)).collect()
        };
        let before = counts();
        eventually("each client goes on", PATIENCE, || {
            let bad = self.shared.bad.lock();
            assert!(bad.is_empty(), "{bad:#?}");
            let ended = self.clients.iter().any(JoinHandle::is_finished);
            assert!(!ended, "a client got no connection or no answer");
            let now = counts();
            let further = before.iter().zip(&now).all(|(old, new)| new >= &(old + 2));
            further.then_some(())
        });
    }

    /// Each client does so from its next request on, the keeping ones on a new connection.
    fn change(&self, change: impl FnOnce(&mut Manner)) {
        let mut manner = self.shared.manner.lock();
        manner.0 += 1;
        change(&mut manner.1);
    }

    /// How they come now.
    fn manner(&self) -> Manner {
        self.shared.manner.lock().1.clone()
    }

    fn end(self, gateway: &Gateway) {
        self.goes_on();
        self.shared.over.store(true, Ordering::Release);
        for client in self.clients {
            client.join().unwrap();
        }
        assert_eq!(*self.shared.bad.lock(), Vec::<String>::new());
        let served = gateway.metric("tidegate_requests_total", &[]);
        assert_eq!(gateway.metric("tidegate_refusals_total", &[]), 0.0);
        assert!(served >= (CLIENTS * 6) as f64, "{served}");
    }
}

fn work(shared: &Shared, number: usize) {
    let mut kept: Option<(u64, Wire)> = None;
    while !shared.over.load(Ordering::Acquire) {
        let (version, manner) = shared.manner.lock().clone();
        let mut wire = match kept.take() {
            Some((of, wire)) if of == version => wire,
            _ => manner.connect(),
        };
        let answer = wire.ask(&manner.request());
        let whole = answer.status == 200
            && answer.ending == Ending::Whole
            && answer.data().last().is_some_and(|last| last == "[DONE]");
        if whole {
            shared.good[number].fetch_add(1, Ordering::AcqRel);
        } else {
            let text = format!("{} {:?}: {}", answer.status, answer.ending, answer.text());
            shared.bad.lock().push(text);
        }
        if number.is_multiple_of(2) && answer.header("connection") != Some("close") {
            kept = Some((version, wire));
        }
    }
}

fn credentials(ids: &[&str]) -> Value {
    let of = |id: &&str| tenant(id)["credentials"][0].clone();
    ids.iter().map(of).collect()
}

/// A gateway with a second listener that has TLS, `tls` added to its settings.
fn with_tls(emulator: &Emulator, server: &Leaf, tls: Value) -> Config {
    let mut settings = json!({"certificate": "cert.pem", "private_key": "key.pem"});
    let wanted = tls.as_object().unwrap().clone();
    settings.as_object_mut().unwrap().extend(wanted);
    Config::for_emulator(emulator)
        .set("/server/listeners/-", json!({"tls": settings}))
        .set("/server/watch_files", json!("200ms"))
        .file("cert.pem", server.pem.clone())
        .file("key.pem", server.key.clone())
}

#[test]
fn a_tenants_key_is_rotated_under_load() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let rotate = |ids: &[&str]| {
        let result =
            gateway.reload(|config| config.set("/tenants/0/credentials", credentials(ids)));
        assert_eq!(result, "ok");
    };
    let load = Load::start(Manner::plain(&gateway));
    let old = load.manner();
    rotate(&["acme", "acme-2"]);
    load.goes_on();
    load.change(|manner| manner.key = Some(key("acme-2")));
    load.goes_on();
    rotate(&["acme-2"]);
    load.end(&gateway);
    gateway.logged(&["\"access\"", "\"credential\":\"acme-2\"", "\"status\":200"]);
    assert_eq!(old.status(), 401);
}

#[test]
fn an_upstreams_key_is_rotated_under_load() {
    let account = |name: &str| EmulatedAccount::new(format!("sk-{name}"), name);
    let emulator = Emulator::start(EmulatorConfig {
        accounts: vec![account("old"), account("new")],
        ..Emulator::with_accounts(0)
    });
    let accounts = json!([{"id": "main", "api_key": "${file:main.key}"}]);
    let config = Config::for_emulator(&emulator)
        .set("/upstreams/0/accounts", accounts)
        .file("main.key", "sk-old");
    let gateway = Gateway::start(config);
    // A call that has just come in has no account yet.
    let all_of = |name: &str| {
        let calls = emulator.calls();
        let mut accounts = calls.iter().filter_map(|call| call["account"].as_str());
        accounts.all(|account| account == name)
    };
    let load = Load::start(Manner::plain(&gateway));
    assert!(all_of("old"));
    assert_eq!(
        gateway.reload(|config| config.file("main.key", "sk-new")),
        "ok"
    );
    load.goes_on();
    emulator.forget_calls();
    load.goes_on();
    assert!(all_of("new"));
    // The provider takes the old key away.
    emulator.order(Some("old"), "status=401");
    load.end(&gateway);
    assert!(all_of("new"));
}

#[test]
fn the_servers_certificate_is_rotated_under_load() {
    let emulator = Emulator::quick();
    let authority = Authority::new("the servers' authority");
    let [first, second, third] = [(); 3].map(|()| authority.issue(&["localhost"]));
    let gateway = Gateway::start(with_tls(&emulator, &first, json!({})));
    let load = Load::start(Manner::tls(&gateway));
    let shown = || tls::shown_certificate(gateway.listener(1));
    let put = |leaf: &Leaf| gateway.put(&[("cert.pem", &leaf.pem), ("key.pem", &leaf.key)]);
    assert!(shown() == first.der());
    put(&second);
    eventually("the second is shown", SOON, || {
        (shown() == second.der()).then_some(())
    });
    load.goes_on();
    put(&third);
    assert_eq!(gateway.reload_as_written(), "ok");
    assert!(shown() == third.der());
    load.end(&gateway);
}

#[test]
fn the_clients_authority_is_rotated_under_load() {
    let emulator = Emulator::quick();
    let server = Authority::new("the servers' authority").issue(&["localhost"]);
    let [old, new] = ["old", "new"].map(Authority::new);
    let name = "spiffe://corp/load";
    let [old_leaf, new_leaf] = [&old, &new].map(|authority| authority.issue(&[name]));
    let config = with_tls(&emulator, &server, json!({"client_ca": "clients.pem"}))
        .set(
            "/tenants/0/credentials/-",
            json!({"client_certificate": {"san_uri": name}}),
        )
        .file("clients.pem", old.pem());
    let gateway = Gateway::start(config);
    let with_old = Manner {
        leaf: Some(old_leaf),
        key: None,
        ..Manner::tls(&gateway)
    };
    let with_new = Manner {
        leaf: Some(new_leaf.clone()),
        ..with_old.clone()
    };
    let load = Load::start(with_old.clone());
    gateway.put(&[("clients.pem", &[old.pem(), new.pem()].concat())]);
    let name = "tidegate_certificate_reloads_total";
    eventually("both are taken", SOON, || {
        (gateway.metric(name, &["result=\"ok\""]) >= 1.0).then_some(())
    });
    load.goes_on();
    load.change(|manner| manner.leaf = Some(new_leaf));
    load.goes_on();
    gateway.put(&[("clients.pem", new.pem())]);
    assert_eq!(gateway.reload_as_written(), "ok");
    load.end(&gateway);
    assert_eq!((with_new.status(), with_old.status()), (200, 401));
}
