//! When accounts are asked what is left of their money, and what follows: an account without any is
//! out before a tenant meets it, and operators hear of what runs low.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use log::{info, warn};
use pingora::connectors::http::Connector;
use pingora::server::ShutdownWatch;

use crate::config::money::format_money;
use crate::config::settings::{AccountId, Credit, UpstreamId};
use crate::snapshot::Current;
use crate::telemetry::metrics::Metrics;
use crate::upstream::credit::asking::ask;
use crate::upstream::credit::{Heard, News, Verdict};
use crate::upstream::gate::Reason;
use crate::upstream::pool::{AccountSlot, Pool};

/// How finely the schedule is kept.
const TICK: Duration = Duration::from_millis(250);
/// An account that cannot pay is asked this often, so that it is soon used again.
const WHILE_UNPAID: Duration = Duration::from_secs(5);
/// Where no endpoint was there to be asked, it is looked again so soon.
const WHILE_UNREACHABLE: Duration = Duration::from_secs(1);

/// Asks the accounts of every upstream that has a balance to ask for.
pub struct CreditWatch {
    pub current: Current,
    pub metrics: Arc<Metrics>,
}

type Key = (UpstreamId, AccountId);

/// When an account was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    UnderWay,
    At(Instant),
    /// Then nobody was there to ask.
    InVain(Instant),
}

/// What came of asking the account at this place of the pool; nothing if there was nobody to ask.
struct Done {
    pool: Arc<Pool>,
    account: usize,
    heard: Option<Heard>,
}

impl CreditWatch {
    /// Asks until the process is told to stop. Accounts do not wait for each other.
    pub async fn run(&self, mut shutdown: ShutdownWatch) {
        let connector = Connector::new(None);
        let mut asked: HashMap<Key, Asked> = HashMap::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            for (pool, account) in self.due(&mut asked) {
                under_way.push(self.ask(pool, account, &connector));
            }
            let next = async {
                match under_way.next().await {
                    Some(done) => done,
                    None => pending().await,
                }
            };
            tokio::select! {
                changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
                done = next => self.take(done, &mut asked),
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Those whose turn it is; they count as being asked from here on.
    fn due(&self, asked: &mut HashMap<Key, Asked>) -> Vec<(Arc<Pool>, usize)> {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut known = HashMap::with_capacity(asked.len());
        for pool in &self.current.load().pools {
            let Some(credit) = &pool.settings.credit else {
                continue;
            };
            for (index, account) in pool.accounts.iter().enumerate() {
                let key = (pool.settings.id.clone(), account.id.clone());
                let before = asked.get(&key).copied();
                if before.is_none_or(|before| is_due(before, account, credit, now)) {
                    due.push((pool.clone(), index));
                    known.insert(key, Asked::UnderWay);
                } else if let Some(before) = before {
                    known.insert(key, before);
                }
            }
        }
        *asked = known;
        due
    }

    async fn ask(&self, pool: Arc<Pool>, account: usize, connector: &Connector) -> Done {
        let mismatches = &self.metrics.upstream_pin_mismatches;
        let heard = match pool.accounts.get(account) {
            Some(slot) => ask(&pool, slot, connector, mismatches).await,
            None => None,
        };
        Done {
            pool,
            account,
            heard,
        }
    }

    fn take(&self, done: Done, asked: &mut HashMap<Key, Asked>) {
        let Done {
            pool,
            account,
            heard,
        } = done;
        let (Some(slot), Some(credit)) = (pool.accounts.get(account), &pool.settings.credit) else {
            return;
        };
        let key = (pool.settings.id.clone(), slot.id.clone());
        let now = Instant::now();
        if let Some(asked) = asked.get_mut(&key) {
            *asked = match &heard {
                Some(_) => Asked::At(now),
                None => Asked::InVain(now),
            };
        }
        let Some(heard) = heard else {
            return;
        };
        let result = match &heard {
            Heard::Report(_) => "ok",
            Heard::Refused => "refused",
            Heard::Failed(_) => "failed",
        };
        let labels = [key.0.as_str(), key.1.as_str(), result];
        self.metrics.balance_polls.with_label_values(&labels).inc();
        let (verdict, news) = slot.state.funds.hear(heard, &credit.low_water);
        match verdict {
            Verdict::Unpaid => slot.state.set_unpaid(now),
            Verdict::Paid => slot.state.paid_again(now),
            Verdict::Nothing => {}
        }
        news.into_iter().for_each(|news| tell(&key, news));
    }
}

fn is_due(before: Asked, account: &AccountSlot, credit: &Credit, now: Instant) -> bool {
    let unpaid = || account.state.condition.shown().reason == Some(Reason::Unpaid);
    waits(before, credit.interval, unpaid)
        .is_some_and(|(since, pause)| now.saturating_duration_since(since) >= pause)
}

/// From when on, and how long; `None` while the answer is awaited.
fn waits(
    before: Asked,
    interval: Duration,
    unpaid: impl FnOnce() -> bool,
) -> Option<(Instant, Duration)> {
    match before {
        Asked::UnderWay => None,
        Asked::InVain(at) => Some((at, interval.min(WHILE_UNREACHABLE))),
        Asked::At(at) if unpaid() => Some((at, interval.min(WHILE_UNPAID))),
        Asked::At(at) => Some((at, interval)),
    }
}

fn tell((upstream, account): &Key, news: News) {
    match news {
        News::Low { balance, mark } => warn!(
            "Little is left of an account's money. upstream={upstream} account={account} left=\"{}\" low_water=\"{}\"",
            balance.text(),
            format_money(mark, &balance.currency)
        ),
        News::Enough { balance, mark } => info!(
            "Enough is left of an account's money again. upstream={upstream} account={account} left=\"{}\" low_water=\"{}\"",
            balance.text(),
            format_money(mark, &balance.currency)
        ),
        News::Refused => warn!(
            "The provider does not tell an account's balance: it refuses the key. Requests show whether it still serves. upstream={upstream} account={account}"
        ),
        News::Failed(why) => warn!(
            "The provider does not tell an account's balance. upstream={upstream} account={account} cause={why:?}"
        ),
        News::Answers => info!(
            "The provider tells an account's balance again. upstream={upstream} account={account}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_could_not_be_asked_is_not_due_at_once() {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        assert_eq!(waits(Asked::UnderWay, minute, || true), None);
        for (before, unpaid, pause) in [
            (Asked::InVain(now), false, WHILE_UNREACHABLE),
            (Asked::InVain(now), true, WHILE_UNREACHABLE),
            (Asked::At(now), true, WHILE_UNPAID),
            (Asked::At(now), false, minute),
        ] {
            assert_eq!(waits(before, minute, || unpaid), Some((now, pause)));
        }
    }
}
