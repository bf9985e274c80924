//! The provider's own account of what is left: who has nothing is out before a tenant meets it and
//! back soon after it was paid; what runs low is told once; bad answers change nothing.

use serde_json::json;

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";

fn config(emulator: &Emulator) -> Config {
    let credit = json!({"interval": "1s", "low_water": {"CNY": 50}});
    Config::for_emulator(emulator).set("/upstreams/0/credit", credit)
}

fn stage(accounts: usize) -> (Emulator, Gateway) {
    let emulator = Emulator::start(Emulator::with_accounts(accounts));
    let gateway = Gateway::start(config(&emulator));
    (emulator, gateway)
}

fn state(gateway: &Gateway, account: usize) -> String {
    let account = &gateway.status()["upstreams"][0]["accounts"][account];
    account["state"].as_str().unwrap().to_owned()
}

fn comes_to(gateway: &Gateway, account: usize, states: &[&str]) {
    eventually(&format!("the account is {states:?}"), SOON, || {
        states.contains(&&*state(gateway, account)).then_some(())
    });
}

fn of_account(gateway: &Gateway, metric: &str, account: &str) -> f64 {
    let label = format!("account=\"{account}\"");
    gateway.metric(metric, &[&label, "currency=\"CNY\""])
}

fn polls(gateway: &Gateway, result: &str) -> f64 {
    let label = format!("result=\"{result}\"");
    gateway.metric("tidegate_account_balance_polls_total", &[&label])
}

/// Generations that an account was asked for.
fn asked(emulator: &Emulator, account: &str) -> usize {
    let calls = emulator.calls();
    let calls = calls
        .iter()
        .filter(|call| call["path"] == CHAT || call["path"] == "/chat/completions");
    calls.filter(|call| call["account"] == account).count()
}

#[test]
fn an_account_without_money_is_out_before_a_tenant_meets_it_and_back_when_paid() {
    let (emulator, gateway) = stage(2);
    comes_to(&gateway, 0, &["good"]);
    emulator.set_balance("account-1", "0.00");
    comes_to(&gateway, 0, &["unpaid"]);
    emulator.forget_calls();
    for _ in 0..10 {
        assert!(gateway.is_serving());
    }
    assert_eq!(asked(&emulator, "account-1"), 0);
    assert_eq!(asked(&emulator, "account-2"), 10);
    emulator.set_balance("account-1", "100.00");
    comes_to(&gateway, 0, &["probing"]);
    eventually("the account serves again", SOON, || {
        assert!(gateway.is_serving());
        (asked(&emulator, "account-1") > 0).then_some(())
    });
    comes_to(&gateway, 0, &["ramping", "good"]);
}

#[test]
fn balances_are_in_the_metrics_and_what_runs_low_is_told_once() {
    let (emulator, gateway) = stage(2);
    emulator.set_balance("account-2", "-0.50");
    eventually("both balances are known", SOON, || {
        let balance = |name| of_account(&gateway, "tidegate_account_balance", name);
        (balance("account-1") > 0.0 && balance("account-2") == -0.5).then_some(())
    });
    emulator.set_balance("account-1", "49.99");
    let low = || of_account(&gateway, "tidegate_account_balance_low", "account-1");
    eventually("it is low", SOON, || (low() == 1.0).then_some(()));
    assert_eq!(
        of_account(&gateway, "tidegate_account_balance", "account-1"),
        49.99
    );
    let line = gateway.logged(&["Little is left", "account=account-1"]);
    for word in ["49.99 CNY", "50 CNY", "upstream=deepseek"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let before = polls(&gateway, "ok");
    eventually("it was asked again", SOON, || {
        (polls(&gateway, "ok") >= before + 4.0).then_some(())
    });
    let told = || {
        let log = gateway.log();
        let lines = log.iter().filter(|line| line.contains("Little is left"));
        lines.filter(|line| line.contains("account-1")).count()
    };
    assert_eq!(told(), 1);
    let account = &gateway.status()["upstreams"][0]["accounts"][0];
    assert_eq!(
        account["balance"],
        json!([{"currency": "CNY", "left": "49.99 CNY", "low": true}])
    );
    // It still serves: low is no reason to leave money unused.
    assert_eq!(account["state"], "good");
    emulator.set_balance("account-1", "50.00");
    gateway.logged(&["Enough is left", "account=account-1"]);
    assert_eq!(low(), 0.0);
}

#[test]
fn an_answer_that_says_nothing_changes_nothing_and_is_told_once() {
    let (emulator, gateway) = stage(1);
    eventually("it was asked", SOON, || {
        (polls(&gateway, "ok") > 0.0).then_some(())
    });
    let balance = of_account(&gateway, "tidegate_account_balance", "account-1");
    emulator.order(Some("account-1"), "status=500,everywhere");
    eventually("it failed twice", SOON, || {
        (polls(&gateway, "failed") >= 2.0).then_some(())
    });
    assert_eq!(
        of_account(&gateway, "tidegate_account_balance", "account-1"),
        balance
    );
    emulator.order(Some("account-1"), "");
    gateway.logged(&["tells an account's balance again"]);
    assert_eq!(state(&gateway, 0), "good");
    let log = gateway.log();
    let told = log
        .iter()
        .filter(|line| line.contains("does not tell an account's balance"));
    assert_eq!(told.count(), 1);
}

#[test]
fn an_account_that_gets_no_answer_delays_neither_the_others_nor_the_checks() {
    let emulator = Emulator::start(Emulator::with_accounts(2));
    emulator.order(Some("account-2"), "stall,everywhere");
    // Checks are made with the key of the first account.
    let health = json!({"interval": "1s"});
    let gateway = Gateway::start(config(&emulator).set("/upstreams/0/health", health));
    eventually("patience with the second one ends", SOON, || {
        (polls(&gateway, "failed") >= 1.0).then_some(())
    });
    assert!(polls(&gateway, "ok") >= 3.0);
    let journal = Request::get("/_emulator/journal").send(emulator.address());
    let journal = journal.json();
    let checks = journal.as_array().unwrap().iter();
    let checks = checks.filter(|call| call["path"] == "/models").count();
    assert!(checks >= 3, "{checks}");
    gateway.logged(&["does not tell", "account=account-2", "no answer in time"]);
}

#[test]
fn a_key_that_is_refused_there_is_left_to_the_requests_to_judge() {
    let (emulator, gateway) = stage(2);
    eventually("both were asked", SOON, || {
        (polls(&gateway, "ok") >= 2.0).then_some(())
    });
    emulator.set_key("account-1", "sk-another");
    gateway.logged(&["refuses the key", "account=account-1"]);
    assert!(polls(&gateway, "refused") >= 1.0);
    assert_eq!(state(&gateway, 0), "good");
}

#[test]
fn each_account_is_asked_with_its_own_key_and_not_more_often_than_it_should() {
    let (emulator, gateway) = stage(2);
    eventually("both were asked", SOON, || {
        (polls(&gateway, "ok") >= 4.0).then_some(())
    });
    let calls = emulator.calls();
    let balances: Vec<_> = calls
        .iter()
        .filter(|call| call["path"] == "/user/balance")
        .collect();
    for (name, key) in emulator.accounts() {
        let own = balances
            .iter()
            .filter(|call| call["account"] == json!(name));
        let bearer = format!("Bearer {key}");
        let own: Vec<_> = own.collect();
        assert!(own.len() >= 2, "{name}");
        assert!(
            own.iter()
                .all(|call| header_of(call, "authorization") == Some(&bearer))
        );
    }
}

#[test]
fn an_upstream_without_credit_is_not_asked() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    assert!(gateway.is_serving());
    let balances = emulator
        .calls()
        .iter()
        .filter(|call| call["path"] == "/user/balance")
        .count();
    assert_eq!(balances, 0);
    assert_eq!(polls(&gateway, "ok"), 0.0);
    assert_eq!(
        gateway.status()["upstreams"][0]["accounts"][0]["balance"],
        json!(null)
    );
}
