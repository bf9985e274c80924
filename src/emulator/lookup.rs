//! Answers what is looked up rather than generated: models, balance and files.
//! The request was read and its key accepted in `exchange`.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::account::Account;
use super::exchange::{Act, acted, struck, struck_by_name};
use super::fault::Faults;
use super::refusal::Refusal;
use super::route::FileRoute;
use super::ticket::Ticket;
use super::world::World;
use super::{chat, models, script};

/// A JSON answer, unless faults strike.
fn listed(
    world: &World,
    account: &Account,
    carried: Option<&str>,
    ticket: &Ticket,
    body: impl FnOnce() -> Result<Value, Refusal>,
) -> Result<Act, Refusal> {
    let carried: Vec<&str> = carried.into_iter().collect();
    let faults = struck(world, account, &carried, false, ticket)?;
    looked_up(Bytes::from(body()?.to_string()), &faults)
}

fn looked_up(body: Bytes, faults: &Faults) -> Result<Act, Refusal> {
    let at_once = script::Tempo::at_once().under(faults);
    Ok(acted(
        script::whole(body, 0, at_once, faults, chat::error_body),
        faults,
    ))
}

/// That the server lives. It asks for no key: orders for all strike it, and with a
/// key those for its account.
pub(super) fn health(world: &World, headers: &HeaderMap) -> Result<Act, Refusal> {
    let account = world.authenticate(headers).ok();
    let name = account.map_or("", |account| account.name.as_str());
    let faults = struck_by_name(world, name, &[], false, &Ticket::default())?;
    Ok(Act {
        content_type: "",
        ..looked_up(Bytes::new(), &faults)?
    })
}

/// An operation on the account's files.
pub(super) fn file(
    world: &World,
    account: &Account,
    carried: Option<&str>,
    route: &FileRoute,
    headers: &HeaderMap,
    body: &Bytes,
    ticket: &Ticket,
) -> Result<Act, Refusal> {
    let cabinet = &account.cabinet;
    if let FileRoute::Content(id) = route {
        let carried: Vec<&str> = carried.into_iter().collect();
        let faults = struck(world, account, &carried, false, ticket)?;
        let act = looked_up(cabinet.content(id)?, &faults)?;
        return Ok(Act {
            content_type: "application/octet-stream",
            ..act
        });
    }
    listed(world, account, carried, ticket, || match route {
        FileRoute::Upload => {
            let kind = headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok());
            cabinet.upload(kind.unwrap_or_default(), body)
        }
        FileRoute::List => Ok(cabinet.list()),
        FileRoute::Show(id) | FileRoute::Content(id) => cabinet.show(id),
        FileRoute::Delete(id) => cabinet.delete(id),
    })
}

/// The models: DeepSeek's two, or those a self-hosted emulator's accounts name.
pub(super) fn models(
    world: &World,
    account: &Account,
    carried: Option<&str>,
    ticket: &Ticket,
) -> Result<Act, Refusal> {
    let names: Vec<&str> = if world.self_hosted {
        world.accounts.iter().flat_map(Account::models).collect()
    } else {
        vec![models::FLASH, models::PRO]
    };
    let data: Vec<Value> = names
        .iter()
        .map(|id| json!({ "id": id, "object": "model", "owned_by": "deepseek" }))
        .collect();
    listed(world, account, carried, ticket, || {
        Ok(json!({ "object": "list", "data": data }))
    })
}

/// The account's balance, amounts as strings.
pub(super) fn balance(
    world: &World,
    account: &Account,
    carried: Option<&str>,
    ticket: &Ticket,
) -> Result<Act, Refusal> {
    let amount = account.balance();
    let balance = json!({
        "is_available": account.can_pay(),
        "balance_infos": [{
            "currency": "CNY",
            "total_balance": amount,
            "granted_balance": "0.00",
            "topped_up_balance": amount,
        }],
    });
    listed(world, account, carried, ticket, || Ok(balance))
}
