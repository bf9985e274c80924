//! What an account of the emulated provider has: slots per model, a prefix
//! cache per user id, a balance, files. It knows nothing of HTTP.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::EmulatedAccount;
use super::files::Cabinet;
use super::models;
use super::prompt::Chain;

/// Most prefix boundaries an account remembers; the oldest are forgotten.
const MAX_BOUNDARIES: usize = 65_536;
/// Most models counted apart; a self-hosted emulator accepts any name.
const MAX_LANES: usize = 1024;

/// One account at work.
pub(super) struct Account {
    pub name: String,
    balance: Mutex<String>,
    ceilings: HashMap<String, usize>,
    lanes: Mutex<BTreeMap<String, Arc<Lane>>>,
    prefixes: Mutex<Prefixes>,
    pub cabinet: Cabinet,
}

/// The requests in flight of one account at one model.
struct Lane {
    ceiling: usize,
    busy: AtomicUsize,
    /// Most that were ever busy at one time.
    peak: AtomicUsize,
}

/// How many requests of one model an account has and had at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Concurrency {
    pub model: String,
    pub ceiling: usize,
    pub in_flight: usize,
    pub peak_in_flight: usize,
}

/// A place in a lane; given back on drop.
#[must_use]
pub(super) struct Slot(Arc<Lane>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Account {
    pub(super) fn new(account: EmulatedAccount) -> Self {
        Self {
            name: account.name,
            balance: Mutex::new(account.balance),
            ceilings: account.concurrency,
            lanes: Mutex::default(),
            prefixes: Mutex::default(),
            cabinet: Cabinet::default(),
        }
    }

    pub(super) fn balance(&self) -> String {
        self.balance.lock().clone()
    }

    /// Gives it another balance.
    pub(super) fn set_balance(&self, balance: String) {
        *self.balance.lock() = balance;
    }

    /// False when nothing is left to spend. A balance that is no number counts as some.
    pub(super) fn can_pay(&self) -> bool {
        self.balance
            .lock()
            .trim()
            .parse::<f64>()
            .map_or(true, |left| left > 0.0)
    }

    /// Takes a slot, or says the ceiling that is reached.
    pub(super) fn enter(&self, model: &str) -> Result<Slot, usize> {
        let lane = self.lane(model);
        let entered = lane
            .busy
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |busy| {
                (busy < lane.ceiling).then_some(busy + 1)
            });
        match entered {
            Ok(before) => {
                lane.peak.fetch_max(before + 1, Ordering::AcqRel);
                Ok(Slot(lane))
            }
            Err(_) => Err(lane.ceiling),
        }
    }

    fn lane(&self, model: &str) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(model) {
            return Arc::clone(lane);
        }
        let model = if lanes.len() < MAX_LANES {
            model
        } else {
            "other"
        };
        let ceiling = self
            .ceilings
            .get(model)
            .copied()
            .unwrap_or_else(|| models::ceiling(model));
        let lane = lanes.entry(model.to_owned()).or_insert_with(|| {
            Arc::new(Lane {
                ceiling,
                busy: AtomicUsize::new(0),
                peak: AtomicUsize::new(0),
            })
        });
        Arc::clone(lane)
    }

    /// The models its concurrency names.
    pub(super) fn models(&self) -> impl Iterator<Item = &str> {
        self.ceilings.keys().map(String::as_str)
    }

    /// Requests in flight by model; models never asked for are absent.
    pub(super) fn in_flight(&self) -> BTreeMap<String, usize> {
        let lanes = self.lanes.lock();
        lanes
            .iter()
            .map(|(model, lane)| (model.clone(), lane.busy.load(Ordering::Acquire)))
            .collect()
    }

    /// The concurrency of each model that was asked for.
    pub(super) fn concurrency(&self) -> Vec<Concurrency> {
        let lanes = self.lanes.lock();
        lanes
            .iter()
            .map(|(model, lane)| Concurrency {
                model: model.clone(),
                ceiling: lane.ceiling,
                in_flight: lane.busy.load(Ordering::Acquire),
                peak_in_flight: lane.peak.load(Ordering::Acquire),
            })
            .collect()
    }

    /// Starts the peaks anew from what is in flight.
    pub(super) fn forget_peaks(&self) {
        for lane in self.lanes.lock().values() {
            let busy = lane.busy.load(Ordering::Acquire);
            lane.peak.store(busy, Ordering::Release);
        }
    }

    /// Prompt tokens that the cache holds already; remembers the prompt, and
    /// the prompt with its answer.
    pub(super) fn recall(&self, chain: &Chain, answer: &str) -> usize {
        self.prefixes.lock().recall(chain, answer)
    }
}

/// DeepSeek's kv_cache page: a unit is persisted at the end of a prompt, at the
/// end of an output, and where two prompts were seen to part; only whole units hit.
#[derive(Default)]
struct Prefixes {
    /// True when the boundary is a unit, false when it was only seen.
    units: HashMap<u64, bool>,
    order: VecDeque<u64>,
}

impl Prefixes {
    fn recall(&mut self, chain: &Chain, answer: &str) -> usize {
        let boundaries = chain.boundaries();
        let known = boundaries
            .iter()
            .rev()
            .find(|boundary| self.units.get(&boundary.hash) == Some(&true));
        let hit = known.map_or(0, |boundary| boundary.tokens);
        for boundary in boundaries {
            let seen_before = self.units.contains_key(&boundary.hash);
            self.learn(boundary.hash, seen_before);
        }
        if let Some(last) = boundaries.last() {
            self.learn(last.hash, true);
        }
        self.learn(chain.after(answer), true);
        hit
    }

    fn learn(&mut self, hash: u64, unit: bool) {
        if let Some(known) = self.units.get_mut(&hash) {
            *known |= unit;
            return;
        }
        if self.order.len() >= MAX_BOUNDARIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.units.remove(&oldest);
        }
        self.units.insert(hash, unit);
        self.order.push_back(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(ceiling: usize) -> Account {
        Account::new(EmulatedAccount {
            concurrency: HashMap::from([("deepseek-flash".to_owned(), ceiling)]),
            ..EmulatedAccount::new("sk-x", "x")
        })
    }

    fn chain(user: &str, texts: &[&str]) -> Chain {
        let mut chain = Chain::new("m", user);
        for text in texts {
            chain.push("user", &[text]);
        }
        chain
    }

    #[test]
    fn slots_end_at_the_ceiling_and_come_back_on_drop() {
        let account = account(1);
        let slot = account.enter("deepseek-flash").unwrap();
        assert_eq!(account.enter("deepseek-flash").err(), Some(1));
        assert!(account.enter("deepseek-v4-pro").is_ok());
        drop(slot);
        assert!(account.enter("deepseek-flash").is_ok());
        assert_eq!(account.in_flight().get("deepseek-flash"), Some(&0));
    }

    #[test]
    fn the_peak_stays_until_it_is_forgotten() {
        let account = account(3);
        let peak = || account.concurrency()[0].peak_in_flight;
        let first = account.enter("deepseek-flash").unwrap();
        let second = account.enter("deepseek-flash").unwrap();
        drop(second);
        assert_eq!(peak(), 2);
        account.forget_peaks();
        assert_eq!(peak(), 1);
        drop(first);
        assert_eq!(peak(), 1);
    }

    #[test]
    fn a_conversation_that_goes_on_hits_its_own_prefix() {
        let account = account(1);
        assert_eq!(
            account.recall(&chain("", &["a long question"]), "an answer"),
            0
        );
        let mut next = chain("", &["a long question"]);
        next.push("assistant", &["an answer"]);
        let whole = next.tokens();
        next.push("user", &["and more"]);
        assert_eq!(account.recall(&next, "x"), whole);
    }

    #[test]
    fn an_answer_that_was_gone_on_with_is_known_whole_by_the_next_turn() {
        let account = account(1);
        let mut begun = chain("", &["a question"]);
        begun.begin("an ans", "");
        account.recall(&begun, "wer");
        let mut next = chain("", &["a question"]);
        next.push("assistant", &["an answer"]);
        let whole = next.tokens();
        next.push("user", &["and more"]);
        assert_eq!(account.recall(&next, "x"), whole);
    }

    #[test]
    fn two_hundred_conversations_of_ten_turns_miss_only_what_is_new() {
        let account = account(1);
        for turn in 0..10 {
            for conversation in 0..200 {
                let mut chain = Chain::new("m", "");
                chain.push("system", &["the same for all"]);
                let mut known = 0;
                for past in 0..=turn {
                    chain.push("user", &[&format!("question {past} of {conversation}")]);
                    if past < turn {
                        chain.push("assistant", &[&format!("answer {past}")]);
                        known = chain.tokens();
                    }
                }
                let hit = account.recall(&chain, &format!("answer {turn}"));
                assert!(turn == 0 || hit == known, "{turn}, {conversation}");
            }
        }
        assert!(account.prefixes.lock().units.len() * 10 < MAX_BOUNDARIES);
    }

    #[test]
    fn a_common_prefix_hits_from_the_third_request_on() {
        let account = account(1);
        let first = chain("", &["system"]).tokens();
        assert_eq!(account.recall(&chain("", &["system", "b"]), "x"), 0);
        assert_eq!(account.recall(&chain("", &["system", "c"]), "x"), 0);
        assert_eq!(account.recall(&chain("", &["system", "d"]), "x"), first);
    }

    #[test]
    fn user_ids_do_not_share_a_cache() {
        let account = account(1);
        account.recall(&chain("one", &["text"]), "x");
        assert_eq!(account.recall(&chain("two", &["text"]), "x"), 0);
        assert!(account.recall(&chain("one", &["text"]), "x") > 0);
    }

    #[test]
    fn the_cache_forgets_the_oldest() {
        let mut prefixes = Prefixes::default();
        for hash in 0..70_000 {
            prefixes.learn(hash, true);
        }
        assert_eq!(prefixes.units.len(), MAX_BOUNDARIES);
        assert!(!prefixes.units.contains_key(&0));
    }
}
