//! Which account a conversation belongs to, so that it finds its prefix in the account's cache
//! again (kv_cache page: a hit costs a thirtieth, and caches are the accounts' own).
//!
//! By weighted rendezvous hashing: each account has a score for each key, and the highest wins. So
//! all hosts agree without asking each other, and an account that comes or goes moves only its own
//! conversations. By chance alone some accounts get a fifth too many; a new conversation whose
//! first account has had more than its share lately goes to the second, and is remembered there.
//! Whether the account can take it is for [`super::balance`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Conversations that are remembered; a power of two. Forgetting one costs a prefix at most.
const REMEMBERED: usize = 16 * 1024;
/// The part of an entry that names the account; the rest is the key's.
const ACCOUNT: u64 = 0xFFFF;
/// Conversations after which those before count half.
const RECENT: u64 = 512;
/// How many more than the second the first may have been given: so many, and one part in so many.
/// Narrower, hosts that meet the same conversations in another order agree on fewer.
const SLACK: u64 = 4;
const MARGIN: u64 = 8;

/// An account among those to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Made of its name.
    pub seed: u64,
    /// 0 for somebody who is there and gets nothing new.
    pub weight: u32,
}

/// Where the conversations of one upstream's model are.
#[derive(Debug, Default)]
pub struct Affinity {
    /// One for each conversation; 0 for none. Most upstreams have one account, and no use for it.
    homes: OnceLock<Box<[AtomicU64]>>,
    given: Mutex<Given>,
}

/// New conversations that each account was given lately.
#[derive(Debug, Default)]
struct Given {
    by_seed: Vec<(u64, u64)>,
    sum: u64,
}

impl Affinity {
    /// The index of the account that the conversation with this key belongs to; `None` without any.
    pub fn home(&self, key: u64, accounts: &[Candidate]) -> Option<usize> {
        let homes = || (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect();
        let homes = self.homes.get_or_init(homes);
        let slot = homes.get(usize::try_from(key).ok()? % REMEMBERED)?;
        let known = slot.load(Ordering::Relaxed);
        // Zero is nobody's.
        let own = mix(key) & !ACCOUNT | 1 << 16;
        if known & !ACCOUNT == own
            && let Some(home) = accounts
                .iter()
                .position(|it| tag(it.seed) == known & ACCOUNT)
        {
            return Some(home);
        }
        let home = self.settle(key, accounts)?;
        let seed = accounts.get(home)?.seed;
        slot.store(own | tag(seed), Ordering::Relaxed);
        Some(home)
    }

    fn settle(&self, key: u64, accounts: &[Candidate]) -> Option<usize> {
        let (first, second) = best_two(key, accounts)?;
        let mut given = self.given.lock();
        let home = match second {
            Some(second) if given.has_more(accounts.get(first)?, accounts.get(second)?) => second,
            _ => first,
        };
        given.give(accounts.get(home)?.seed);
        Some(home)
    }
}

impl Given {
    fn of(&self, seed: u64) -> u64 {
        let found = self.by_seed.iter().find(|(of, _)| *of == seed);
        found.map_or(0, |(_, count)| *count)
    }

    /// Has `one`, for its weight, had clearly more than `other`?
    fn has_more(&self, one: &Candidate, other: &Candidate) -> bool {
        let share = |it: &Candidate, count: u64| count * 1_000 / u64::from(it.weight.max(1));
        let (own, others) = (self.of(one.seed), self.of(other.seed));
        share(one, own) > share(other, others + SLACK + others / MARGIN)
    }

    fn give(&mut self, seed: u64) {
        match self.by_seed.iter_mut().find(|(of, _)| *of == seed) {
            Some((_, count)) => *count += 1,
            None => self.by_seed.push((seed, 1)),
        }
        self.sum += 1;
        if self.sum >= RECENT {
            self.sum /= 2;
            self.by_seed.iter_mut().for_each(|(_, count)| *count /= 2);
            self.by_seed.retain(|(_, count)| *count > 0);
        }
    }
}

/// How well an account suits a key; the same everywhere and always.
pub fn score(key: u64, account: Candidate) -> f64 {
    // Weighted rendezvous hashing: -w / ln(u), u even between 0 and 1.
    let even = (mix(key ^ account.seed) >> 11) as f64 + 0.5;
    let u = even / (1u64 << 53) as f64;
    -f64::from(account.weight.max(1)) / u.ln()
}

fn best_two(key: u64, accounts: &[Candidate]) -> Option<(usize, Option<usize>)> {
    let scored = accounts.iter().enumerate();
    let scored = scored.filter(|(_, account)| account.weight > 0);
    let mut first: Option<(usize, f64)> = None;
    let mut second: Option<(usize, f64)> = None;
    for (index, account) in scored {
        let score = score(key, *account);
        if first.is_none_or(|(_, best)| score > best) {
            second = first.replace((index, score));
        } else if second.is_none_or(|(_, best)| score > best) {
            second = Some((index, score));
        }
    }
    Some((first?.0, second.map(|(index, _)| index)))
}

fn tag(seed: u64) -> u64 {
    mix(seed) & ACCOUNT
}

/// A number spread evenly over all of them (the finish of SplitMix64).
pub fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// The seed of an account, from its name.
pub fn seed(name: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325u64;
    let hash = name.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(weights: &[u32]) -> Vec<Candidate> {
        let account = |(index, weight): (usize, &u32)| Candidate {
            seed: seed(&format!("account-{index}")),
            weight: *weight,
        };
        weights.iter().enumerate().map(account).collect()
    }

    /// Conversations of a seed, by account.
    fn spread(seed: u64, count: u64, accounts: &[Candidate]) -> Vec<u64> {
        let affinity = Affinity::default();
        let mut by_account = vec![0; accounts.len()];
        for number in 0..count {
            let key = mix(seed.wrapping_mul(1_000_003).wrapping_add(number));
            by_account[affinity.home(key, accounts).unwrap()] += 1;
        }
        by_account
    }

    #[test]
    fn conversations_are_spread_evenly_whatever_their_keys() {
        let four = accounts(&[1; 4]);
        for seed in 0..2_000 {
            let spread = spread(seed, 200, &four);
            let most = *spread.iter().max().unwrap();
            assert!(most <= 62, "{seed}: {spread:?}");
        }
    }

    #[test]
    fn weights_are_shares() {
        let spread = spread(7, 4_000, &accounts(&[1, 3]));
        assert!((2_850..=3_150).contains(&spread[1]), "{spread:?}");
    }

    #[test]
    fn a_conversation_stays_and_hosts_nearly_always_agree() {
        let four = accounts(&[1; 4]);
        let (one, other) = (Affinity::default(), Affinity::default());
        let keys: Vec<_> = (0..1_000u64).map(mix).collect();
        let homes: Vec<_> = keys.iter().map(|key| one.home(*key, &four)).collect();
        let again = keys.iter().map(|key| one.home(*key, &four));
        let stayed = again.zip(&homes).filter(|(a, b)| a == *b).count();
        // A few meet in one place of the memory.
        assert!(stayed > 950, "{stayed}");
        let elsewhere = keys.iter().rev().map(|key| other.home(*key, &four));
        let agreed = elsewhere.zip(homes.iter().rev()).filter(|(a, b)| a == *b);
        let agreed = agreed.count();
        assert!(agreed > 900, "{agreed}");
    }

    #[test]
    fn an_account_that_goes_moves_only_its_own_conversations() {
        let four = accounts(&[1; 4]);
        for key in (0..2_000u64).map(mix) {
            let (before, _) = best_two(key, &four).unwrap();
            let (after, _) = best_two(key, &four[..3]).unwrap();
            assert!(before == 3 || before == after);
        }
        assert_eq!(Affinity::default().home(1, &[]), None);
        assert_eq!(Affinity::default().home(1, &four[..1]), Some(0));
    }
}
