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

/// What is to be different about an account.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    balance: Option<String>,
    key: Option<String>,
}

/// Carries out an order to the emulator.
pub(super) fn answer(world: &World, control: Control, body: &Bytes) -> Result<Act, Refusal> {
    match control {
        Control::OrderFaults => {
            let order: Order =
                serde_json::from_slice(body).map_err(|e| Refusal::order(&e.to_string()))?;
            let account = match &order.account {
                None => None,
                Some(name) => Some(world.account(name).ok_or_else(no_such_account)?),
            };
            world
                .desk
                .place(account.map(|account| account.name.as_str()), &order.faults)
                .map_err(|error| Refusal::order(&error.to_string()))?;
        }
        Control::ClearFaults => world.desk.clear(),
        Control::ShowFaults => {}
        Control::ShowAccounts => return Ok(Act::json(&accounts(world))),
        Control::SetAccount(name) => {
            let change: Change =
                serde_json::from_slice(body).map_err(|e| Refusal::order(&e.to_string()))?;
            let account = world.account(&name).ok_or_else(no_such_account)?;
            if let Some(balance) = change.balance {
                account.set_balance(balance);
            }
            if let Some(key) = change.key {
                world.set_key(&account.name, key);
            }
            return Ok(Act::json(&accounts(world)));
        }
        Control::Journal(form, since) => {
            let list = world.journal.to_json(form, since);
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

fn no_such_account() -> Refusal {
    Refusal::order("there is no such account")
}

fn accounts(world: &World) -> Value {
    let shown = world.accounts.iter().map(|account| {
        json!({
            "name": account.name,
            "balance": account.balance(),
            "can_pay": account.can_pay(),
        })
    });
    shown.collect()
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
