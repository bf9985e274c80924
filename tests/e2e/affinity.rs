//! A conversation goes where its beginning is in the cache: nearly all of the hits that one account
//! would have, and the load even over four. Files hold their chats to their account, illness lets
//! go, and two gateways agree without asking each other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::emulator::EmulatorConfig;

use crate::support::*;

const CONVERSATIONS: usize = 200;
const TURNS: usize = 10;
const WORKERS: usize = 16;
const CHAT: &str = "/v1/chat/completions";

/// A client that sends all that was said so far at each turn, as chat clients do.
#[derive(Clone)]
struct Conversation {
    number: usize,
    turn: usize,
    messages: Vec<Value>,
}

impl Conversation {
    /// All have the same system prompt, as those of one application have.
    fn new(number: usize) -> Self {
        let system = "You are the assistant of a shop. Be brief and kind. ".repeat(20);
        Self {
            number,
            turn: 0,
            messages: vec![json!({"role": "system", "content": system})],
        }
    }

    /// The next turn: asks, and remembers the answer.
    fn go_on(&mut self, wire: &mut Wire) {
        let question = format!("Turn {} of conversation {}. ", self.turn, self.number);
        let question = question.repeat(10);
        self.messages
            .push(json!({"role": "user", "content": question}));
        let body = json!({"model": "deepseek-flash", "messages": self.messages});
        let answer = wire.ask(&Request::post(CHAT, &body).key("acme"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let content = answer["choices"][0]["message"]["content"].clone();
        self.messages
            .push(json!({"role": "assistant", "content": content}));
        self.turn += 1;
    }
}

fn conversations(count: usize) -> Vec<Conversation> {
    (0..count).map(Conversation::new).collect()
}

/// What an emulator was asked, by account.
#[derive(Debug, Default)]
struct Sums {
    calls: BTreeMap<String, u64>,
    cached: u64,
    prompt: u64,
}

fn sums(emulator: &Emulator) -> Sums {
    let totals = Request::get("/_emulator/totals").send(emulator.address());
    let mut sums = Sums::default();
    for line in totals.json()["calls"].as_array().unwrap() {
        let account = line["account"].as_str().unwrap().to_owned();
        let counts = ["whole", "cut", "client_gone", "refused"];
        let calls = counts.map(|count| line[count].as_u64().unwrap());
        let used = |kind: &str| line["usage"][kind].as_u64().unwrap();
        if used("prompt") > 0 {
            *sums.calls.entry(account).or_default() += calls.iter().sum::<u64>();
        }
        sums.cached += used("cached");
        sums.prompt += used("prompt");
    }
    sums
}

/// Lets all conversations come to their end, turn by turn and many at a time.
fn hold(accounts: usize, affinity: bool) -> Sums {
    let emulator = Emulator::start(EmulatorConfig {
        first_token_delay: Duration::from_millis(5),
        ..Emulator::with_accounts(accounts)
    });
    let mut config = Config::for_emulator(&emulator);
    if !affinity {
        config = config.set("/upstreams/0/affinity", json!(false));
    }
    let gateway = Gateway::start(config);
    let waiting = Mutex::new(VecDeque::from(conversations(CONVERSATIONS)));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut wire = gateway.connect();
                let next = || waiting.lock().unwrap().pop_front();
                while let Some(mut conversation) = next() {
                    conversation.go_on(&mut wire);
                    if conversation.turn < TURNS {
                        waiting.lock().unwrap().push_back(conversation);
                    }
                }
            });
        }
    });
    let all = u64::try_from(CONVERSATIONS * TURNS).unwrap();
    eventually("all calls are summed", SOON, || {
        let sums = sums(&emulator);
        (sums.calls.values().sum::<u64>() == all).then_some(sums)
    })
}

#[test]
fn conversations_find_their_prefix_again_and_the_load_stays_even() {
    let one = hold(1, true);
    let with = hold(4, true);
    let without = hold(4, false);
    let share = |sums: &Sums| 100.0 * sums.cached as f64 / one.cached as f64;
    let most = |sums: &Sums| {
        let even = (CONVERSATIONS * TURNS / 4) as f64;
        let most = sums.calls.values().max().copied().unwrap_or_default();
        most as f64 / even
    };
    eprintln!(
        "prompt tokens from the cache: {} of {} at one account; {} at four with affinity ({:.1} %); {} without ({:.1} %)",
        one.cached,
        one.prompt,
        with.cached,
        share(&with),
        without.cached,
        share(&without)
    );
    eprintln!(
        "the most loaded of four had {:.3} times an even share with affinity {:?}, {:.3} without {:?}",
        most(&with),
        with.calls,
        most(&without),
        without.calls
    );
    assert_eq!(one.prompt, with.prompt, "the same was asked");
    assert!(share(&with) >= 95.0, "{:.1} %", share(&with));
    assert!(share(&without) < share(&with) - 10.0);
    assert!(most(&with) <= 1.25, "{:?}", with.calls);
}

/// The account of the last call.
fn last_account(emulator: &Emulator) -> String {
    let call = emulator.call_once("a call that ended", |call| call["outcome"] == "complete");
    call["account"].as_str().unwrap().to_owned()
}

#[test]
fn two_gateways_send_a_conversation_to_the_same_account() {
    let emulator = Emulator::start(Emulator::with_accounts(4));
    let gateways = [(); 2].map(|()| Gateway::start(Config::for_emulator(&emulator)));
    let mut wires = [gateways[0].connect(), gateways[1].connect()];
    let mut all = conversations(CONVERSATIONS);
    let accounts = |all: &mut Vec<Conversation>, wire: &mut Wire| {
        emulator.forget_calls();
        for conversation in all.iter_mut() {
            conversation.go_on(wire);
        }
        let calls = emulator.calls();
        let accounts = calls.iter().map(|call| call["account"].as_str().unwrap());
        accounts.map(str::to_owned).collect::<Vec<_>>()
    };
    let first = accounts(&mut all, &mut wires[0]);
    let again = accounts(&mut all, &mut wires[0]);
    assert_eq!(first, again, "a conversation stays");
    // The other one meets them in another order, which is the worst case: each gateway keeps the
    // load even by what it has seen itself.
    all.reverse();
    let mut other = accounts(&mut all, &mut wires[1]);
    other.reverse();
    let agreed = first.iter().zip(&other).filter(|(one, other)| one == other);
    let agreed = agreed.count();
    eprintln!("two gateways agree on {agreed} of {CONVERSATIONS} conversations");
    assert!(agreed * 100 >= CONVERSATIONS * 85, "{agreed}");
}

/// A question about a file, for each API that can ask one.
fn about_file(number: usize, id: &str) -> [(&'static str, Value); 2] {
    let text = format!("Question {number}: what is in it?");
    let chat = json!([{"role": "user", "content": [
        {"type": "text", "text": text}, {"type": "file", "file": {"file_id": id}}]}]);
    let input = json!([{"role": "user", "content": [
        {"type": "input_text", "text": text}, {"type": "input_file", "file_id": id}]}]);
    [
        (CHAT, json!({"model": "deepseek-flash", "messages": chat})),
        (
            "/v1/responses",
            json!({"model": "deepseek-flash", "input": input}),
        ),
    ]
}

#[test]
fn a_chat_about_a_file_goes_to_the_account_that_has_it_and_to_no_other() {
    let emulator = Emulator::start(Emulator::with_accounts(3));
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let form = "--cut\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nhello\r\n--cut--\r\n";
    let upload = Request::new("POST", "/v1/files").key("acme");
    let upload = upload.header("content-type", "multipart/form-data; boundary=cut");
    let file = upload.body(form).send(gateway.address()).json();
    let id = file["id"].as_str().unwrap();
    let accounts = || {
        let calls = emulator.calls();
        let accounts = calls.iter().map(|call| call["account"].as_str().unwrap());
        accounts.map(str::to_owned).collect::<Vec<_>>()
    };
    let holder = accounts().pop().unwrap();
    emulator.forget_calls();
    for number in 0..12 {
        for (path, body) in about_file(number, id) {
            let answer = gateway.post(path, &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    let asked = accounts();
    assert_eq!(asked.len(), 24);
    assert!(asked.iter().all(|account| *account == holder), "{asked:?}");
    // Others go where their keys say.
    emulator.forget_calls();
    for number in 0..12 {
        let text = format!("Question {number}: what is \"file_id\": 7?");
        assert_eq!(gateway.post(CHAT, &chat(&text)).status, 200);
    }
    assert!(accounts().iter().any(|account| *account != holder));
    // Nobody else has the file, so nobody else is asked.
    emulator.order(Some(&holder), "status=503");
    emulator.forget_calls();
    for (path, body) in about_file(0, id) {
        let answer = gateway.post(path, &body);
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    let asked = accounts();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|account| *account == holder), "{asked:?}");
}

#[test]
fn an_account_has_its_conversations_back_when_it_is_well_again() {
    let emulator = Emulator::start(Emulator::with_accounts(3));
    let outlier = json!({"ejection": "1s", "max_ejection": "1s", "ramp": "1s"});
    let config = Config::for_emulator(&emulator)
        .set("/upstreams/0/outlier", outlier)
        .set("/upstreams/0/health", json!({"interval": "1s"}));
    let gateway = Gateway::start(config);
    let mut wire = gateway.connect();
    let mut all = conversations(24);
    let mut turn = || {
        let mut homes = Vec::new();
        for conversation in &mut all {
            conversation.go_on(&mut wire);
            homes.push(last_account(&emulator));
        }
        homes
    };
    let well = turn();
    let out = well[0].clone();
    emulator.set_balance(&out, "0.00");
    let ill = turn();
    assert!(ill.iter().all(|account| *account != out), "{ill:?}");
    for (before, after) in well.iter().zip(&ill) {
        assert!(*before == out || before == after, "only its own move");
    }
    assert_eq!(turn(), ill, "who moved stays where it is meanwhile");
    emulator.set_balance(&out, "110.00");
    eventually("the account is good", Duration::from_secs(30), || {
        // Somebody has to ask for it to be tried.
        gateway.is_serving();
        let accounts = gateway.status()["upstreams"][0]["accounts"].clone();
        let mut accounts = accounts.as_array().unwrap().iter();
        let good = accounts.any(|account| account["id"] == *out && account["state"] == "good");
        good.then_some(())
    });
    assert_eq!(turn(), well);
}
