//! The emulator's own paths, by which tests order faults and read the journal.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::exchange::Act;
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
        Control::Journal { full } => return Ok(Act::json(&world.journal.to_json(full))),
        Control::ClearJournal => {
            world.journal.clear();
            return Ok(Act::json(&json!([])));
        }
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
