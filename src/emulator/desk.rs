//! Decides which faults strike a request: those it carries itself, completed by
//! the orders standing for its account and for all. It also counts `times`.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::fault::{FaultError, Faults};

/// Most distinct orders whose `times` are counted; beyond, counting starts anew.
const MAX_COUNTED: usize = 4096;

/// An order that stands until its times are used up or it is replaced.
#[derive(Debug, Clone)]
struct Standing {
    text: String,
    faults: Faults,
    left: Option<u32>,
}

impl Standing {
    fn take(&mut self) -> Option<&Faults> {
        match &mut self.left {
            None => {}
            Some(0) => return None,
            Some(left) => *left -= 1,
        }
        Some(&self.faults)
    }
}

#[derive(Default)]
struct Orders {
    all: Option<Standing>,
    accounts: BTreeMap<String, Standing>,
    counted: HashMap<String, u32>,
}

/// Where orders of faults are kept.
#[derive(Default)]
pub(super) struct Desk(Mutex<Orders>);

impl Desk {
    /// Places an order for an account, or for all; an empty one takes it away.
    pub(super) fn place(&self, account: Option<&str>, order: &str) -> Result<(), FaultError> {
        let faults = Faults::parse(order)?;
        let empty = order.trim().is_empty();
        let left = faults.times;
        let standing = (!empty).then(|| Standing {
            text: order.to_owned(),
            faults,
            left,
        });
        let mut orders = self.0.lock();
        match (account, standing) {
            (None, standing) => orders.all = standing,
            (Some(account), None) => {
                orders.accounts.remove(account);
            }
            (Some(account), Some(standing)) => {
                orders.accounts.insert(account.to_owned(), standing);
            }
        }
        Ok(())
    }

    pub(super) fn clear(&self) {
        *self.0.lock() = Orders::default();
    }

    pub(super) fn to_json(&self) -> Value {
        let orders = self.0.lock();
        let shown = |standing: &Standing| json!({ "faults": standing.text, "left": standing.left });
        let accounts: BTreeMap<&String, Value> = orders
            .accounts
            .iter()
            .map(|(account, standing)| (account, shown(standing)))
            .collect();
        json!({ "all": orders.all.as_ref().map(shown), "accounts": accounts })
    }

    /// The faults of one request. `carried` are the orders in its header and
    /// prompt, the more special first; `generates` is false for lists and files.
    pub(super) fn faults(
        &self,
        account: &str,
        carried: &[&str],
        generates: bool,
    ) -> Result<Faults, FaultError> {
        let mut faults = Faults::default();
        let mut orders = self.0.lock();
        for order in carried {
            let read = Faults::parse(order)?;
            if orders.live(order, read.times) {
                faults = faults.or(&read);
            }
        }
        let Orders { all, accounts, .. } = &mut *orders;
        for standing in accounts.get_mut(account).into_iter().chain(all.as_mut()) {
            if !generates && !standing.faults.everywhere {
                continue;
            }
            if let Some(general) = standing.take() {
                faults = faults.or(general);
            }
        }
        Ok(faults)
    }
}

impl Orders {
    /// Whether a carried order still strikes. Counted by its text over all
    /// accounts, so that a gateway's retry at another account counts as the next.
    fn live(&mut self, order: &str, times: Option<u32>) -> bool {
        let Some(times) = times else {
            return true;
        };
        if self.counted.len() >= MAX_COUNTED && !self.counted.contains_key(order) {
            self.counted.clear();
        }
        let used = self.counted.entry(order.to_owned()).or_insert(0);
        if *used >= times {
            return false;
        }
        *used += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(desk: &Desk, account: &str, carried: &[&str]) -> Option<u16> {
        desk.faults(account, carried, true).unwrap().status
    }

    #[test]
    fn times_count_a_carried_order_over_all_accounts() {
        let desk = Desk::default();
        let order = ["status=503,times=2"];
        assert_eq!(status(&desk, "a", &order), Some(503));
        assert_eq!(status(&desk, "b", &order), Some(503));
        assert_eq!(status(&desk, "a", &order), None);
        assert_eq!(
            status(&desk, "a", &["status=503,times=2,id=other"]),
            Some(503)
        );
        desk.clear();
        assert_eq!(status(&desk, "a", &order), Some(503));
    }

    #[test]
    fn standing_orders_strike_their_account_until_used_up_or_taken_away() {
        let desk = Desk::default();
        desk.place(Some("a"), "status=500,times=1").unwrap();
        desk.place(None, "status=503").unwrap();
        assert_eq!(status(&desk, "a", &[]), Some(500));
        assert_eq!(status(&desk, "a", &[]), Some(503));
        assert_eq!(status(&desk, "b", &["status=429"]), Some(429));
        desk.place(None, "").unwrap();
        assert_eq!(status(&desk, "b", &[]), None);
        assert!(desk.place(None, "nonsense").is_err());
    }

    #[test]
    fn standing_orders_spare_lists_unless_they_say_everywhere() {
        let desk = Desk::default();
        desk.place(None, "status=503").unwrap();
        assert_eq!(desk.faults("a", &[], false).unwrap().status, None);
        desk.place(None, "status=503,everywhere").unwrap();
        assert_eq!(desk.faults("a", &[], false).unwrap().status, Some(503));
    }

    #[test]
    fn the_counters_stay_bounded() {
        let desk = Desk::default();
        for id in 0..10_000 {
            status(&desk, "a", &[&format!("status=503,times=1,id={id}")]);
        }
        assert!(desk.0.lock().counted.len() <= MAX_COUNTED);
    }
}
