//! The emulator's own paths, by which tests order faults and read the journal.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Account;
use super::exchange::{Act, JSON};
use super::refusal::Refusal;
use super::route::Control;
use super::world::World;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    /// Name or key; absent for all accounts.
    account: Option<String>,
    faults: String,
}

/// Carries out an order to the emulator.
pub(super) fn answer(world: &World, control: Control, body: &Bytes) -> Result<Act, Refusal> {
    match control {
        Control::OrderFaults => {
            let order: Order =
                serde_json::from_slice(body).map_err(|e| Refusal::order(&e.to_string()))?;
            let account = match &order.account {
                None => None,
                Some(name) => Some(
                    world
                        .account(name)
                        .ok_or_else(|| Refusal::order("there is no such account"))?,
                ),
            };
            world
                .desk
                .place(account.map(|account| account.name.as_str()), &order.faults)
                .map_err(|error| Refusal::order(&error.to_string()))?;
        }
        Control::ClearFaults => world.desk.clear(),
        Control::ShowFaults => {}
        Control::Journal(form) => {
            let list = world.journal.to_json(form);
            return Ok(Act::plain(StatusCode::OK, JSON, list));
        }
        Control::ClearJournal => {
            world.journal.clear();
            world.accounts.iter().for_each(Account::forget_peaks);
            return Ok(Act::json(&json!([])));
        }
        Control::Totals => return Ok(Act::json(&totals(world))),
        Control::InFlight => {
            let counts: BTreeMap<&str, BTreeMap<String, usize>> = world
                .accounts
                .iter()
                .map(|account| (account.name.as_str(), account.in_flight()))
                .collect();
            return Ok(Act::json(&json!(counts)));
        }
    }
    Ok(Act::json(&world.desk.to_json()))
}

/// Sums of usage, and beside them how full the accounts are and were.
fn totals(world: &World) -> Value {
    let mut concurrency = Vec::new();
    for account in &world.accounts {
        for lane in account.concurrency() {
            concurrency.push(json!({
                "account": account.name,
                "model": lane.model,
                "ceiling": lane.ceiling,
                "in_flight": lane.in_flight,
                "peak_in_flight": lane.peak_in_flight,
            }));
        }
    }
    json!({ "concurrency": concurrency, "calls": world.journal.totals() })
}
