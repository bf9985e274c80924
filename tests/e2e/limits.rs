//! What plans promise, as tenants and operators see it: who is refused, in which words, what is
//! counted, and that everything held comes back.

mod addresses;
mod concurrency;
mod operators;
mod refusals;
mod reloads;
mod scopes;
mod settlement;
mod usage;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/anthropic/v1/messages";

/// A gateway whose tenant `acme` has this plan. It is about noon there, so that no day ends meanwhile.
fn stage(plan: Value) -> (Emulator, Gateway) {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(config(&emulator, plan));
    (emulator, gateway)
}

fn config(emulator: &Emulator, plan: Value) -> Config {
    Config::for_emulator(emulator)
        .set("/accounting/time_zone", json!(noon()))
        .set("/plans/tested", plan)
        .set("/tenants/0/plan", json!("tested"))
}

/// A time zone in which it is about noon.
pub fn noon() -> String {
    let hour = Timestamp::now().as_second().rem_euclid(86_400) / 3_600;
    // The sign of these names says how far behind UTC they are.
    let behind = hour - 12;
    format!("Etc/GMT{behind:+}")
}

/// What `/limits/TENANT` says.
pub fn report(gateway: &Gateway, tenant: &str) -> Value {
    let answer = operate(gateway, &Request::get(&format!("/limits/{tenant}")));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

pub fn operate(gateway: &Gateway, request: &Request) -> Answer {
    let request = request.clone().bearer(ADMIN_TOKEN);
    request.send(gateway.admin())
}

/// How one limit of a tenant, or of its group, stands.
pub fn standing(gateway: &Gateway, tenant: &str, limit: &str) -> Value {
    let report = report(gateway, tenant);
    let limits = report["limits"].as_array().unwrap();
    let found = limits.iter().find(|one| one["limit"] == limit);
    found
        .unwrap_or_else(|| panic!("no {limit} in {report:#}"))
        .clone()
}

/// The same, once nothing is under way any more.
fn settled(gateway: &Gateway, tenant: &str, limit: &str) -> Value {
    eventually("all that was reserved is given back", SOON, || {
        let report = report(gateway, tenant);
        let mut limits = report["limits"].as_array().unwrap().iter();
        let free = limits.all(|limit| limit["reserved"] == 0);
        (free && report["requests_under_way"] == 0).then_some(())
    });
    standing(gateway, tenant, limit)
}

fn used(gateway: &Gateway, limit: &str) -> u64 {
    settled(gateway, "acme", limit)["used"].as_u64().unwrap()
}

pub fn assert_refused(answer: &Answer, code: &str, limit: &str) {
    let text = answer.text();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, code),
        "{text}"
    );
    assert_eq!(answer.json()["error"]["limit"]["name"], limit, "{text}");
}

fn seconds(answer: &Answer, name: &str) -> u64 {
    answer.header(name).unwrap().parse().unwrap()
}
