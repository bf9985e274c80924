//! Plans, groups and the queue: what they mean, and what may not be written.

use super::*;
use crate::config::settings::{
    CutCharge, LimitKey, OnDisconnect, Plan, PlanId, Priority, Quantity, Surfaces, Window,
};

const TENANTS: &str = "tenants:\n";

/// [`MINIMAL`] with this before its tenants.
fn with(text: &str) -> String {
    MINIMAL.replace(TENANTS, &format!("{text}\n{TENANTS}"))
}

/// The plan `p`, of which this is all that is written.
fn plan(text: &str) -> Plan {
    let settings = settings_of(&with(&format!("plans: {{ p: {text} }}")));
    Plan::clone(&settings.plans[&PlanId::new("p")])
}

/// `chat/*/requests_per_minute 60/30`, and `~` for shadow.
fn limits(plan: &Plan) -> Vec<String> {
    let limits = plan.limits.iter().map(|limit| {
        let shadow = if limit.shadow { " ~" } else { "" };
        format!("{} {}/{}{shadow}", limit.key, limit.amount, limit.burst)
    });
    limits.collect()
}

#[test]
fn who_names_no_plan_has_the_limits_of_a_new_account() {
    let settings = settings_of(MINIMAL);
    let plan = &settings.tenants[0].plan;
    assert_eq!(
        limits(plan),
        [
            "text/*/requests_per_minute 60/60",
            "text/*/requests_per_day 1000/1000",
            "embeddings/*/requests_per_minute 30/30",
            "embeddings/*/requests_per_day 500/500",
        ]
    );
    assert_eq!(
        (plan.weight, plan.priority, plan.cut, plan.on_disconnect),
        (
            1,
            Priority::Normal,
            CutCharge::Estimate,
            OnDisconnect::Cancel
        )
    );
    assert_eq!(settings.plans[&PlanId::new("default")], *plan);
    assert!(settings.groups.is_empty() && settings.tenants[0].group.is_none());

    let written = settings_of(&with("plans: { default: { max_concurrent: 3 } }"));
    assert_eq!(
        limits(&written.tenants[0].plan),
        ["all/*/max_concurrent 3/3"]
    );
    assert_eq!(limits(&plan_of_nothing()), [""; 0]);
}

fn plan_of_nothing() -> Plan {
    plan("{}")
}

#[test]
fn a_limit_holds_where_it_is_written_at_any_of_four_levels() {
    let plan = plan(
        "{ tokens_per_month: 5, chat: { requests_per_second: { limit: 9, burst: 2 }, cost_per_day: 0.5 USD },
           models: { flash: { max_concurrent: { limit: 2, shadow: true }, messages: { uncached_prompt_tokens_per_hour: 7 } } },
           weight: 1000, priority: high, cut_charge: reported, on_disconnect: drain, drain_timeout: 5s }",
    );
    assert_eq!(
        limits(&plan),
        [
            "all/*/tokens_per_month 5/5",
            "chat/*/requests_per_second 9/2",
            "chat/*/cost_per_day 500000000/500000000",
            "all/flash/max_concurrent 2/2 ~",
            "messages/flash/uncached_prompt_tokens_per_hour 7/7",
        ]
    );
    assert_eq!(plan.weight, 1000);
    assert_eq!(plan.priority, Priority::High);
    assert_eq!(plan.cut, CutCharge::Reported);
    assert_eq!(
        plan.on_disconnect,
        OnDisconnect::Drain(Duration::from_secs(5))
    );
}

#[test]
fn the_name_of_every_limit_is_the_key_it_is_written_by() {
    let schema = schema::value();
    let keys = schema["$defs"]["SurfaceLimits"]["properties"]
        .as_object()
        .unwrap();
    assert_eq!(keys.len(), 23);
    for key in keys.keys() {
        let amount = if key.starts_with("cost") {
            "1 USD"
        } else {
            "1"
        };
        let plan = plan(&format!("{{ embeddings: {{ {key}: {amount} }} }}"));
        assert_eq!(
            plan.limits[0].key.to_string(),
            format!("embeddings/*/{key}")
        );
    }
}

#[test]
fn a_plan_in_shadow_enforces_none_of_its_limits() {
    let plan = plan("{ shadow: true, requests_per_day: 5, text: { tokens_per_minute: 1 } }");
    assert!(plan.limits.iter().all(|limit| limit.shadow));
    assert_eq!(plan.limits.len(), 2);
}

#[test]
fn money_of_another_currency_is_converted_when_it_is_read() {
    let text = with(
        "accounting: { currency: CNY, exchange: { USD: 7.1 } }\nplans: { p: { cost_per_month: 100 USD, cost_per_day: 3 CNY } }",
    );
    let settings = settings_of(&text);
    let plan = &settings.plans[&PlanId::new("p")];
    let amounts: Vec<_> = plan.limits.iter().map(|limit| limit.amount).collect();
    assert_eq!(amounts, [3_000_000_000, 710_000_000_000]);
    assert_eq!(
        plan.limits[1].key,
        LimitKey {
            surfaces: Surfaces::All,
            model: None,
            quantity: Quantity::Cost,
            window: Window::Month
        }
    );
    assert_eq!(&*settings.accounting.currency, "CNY");
}

#[test]
fn a_group_has_a_plan_and_its_tenants_are_told_of_it() {
    let text = with("plans: { sum: { tokens_per_day: 9 } }\ngroups: [{ id: g, plan: sum }]")
        .replace("id: a\n", "id: a\n    group: g\n    plan: sum\n");
    let settings = settings_of(&text);
    let group = settings.tenants[0].group.as_ref().unwrap();
    assert_eq!(
        (group.id.as_str(), limits(&group.plan)),
        ("g", vec!["all/*/tokens_per_day 9/9".to_owned()])
    );
    assert_eq!(settings.tenants[0].plan.id.as_str(), "sum");
}

#[test]
fn each_rule_of_plans_is_kept() {
    for (text, about) in [
        ("plans: { Standard: {} }", "1 to 64 of a-z"),
        (
            "plans: { p: { requests_per_minute: 0 } }",
            "from 1 to 1000000000000",
        ),
        (
            "plans: { p: { requests_per_minute: 1000000000001 } }",
            "from 1 to",
        ),
        (
            "plans: { p: { requests_per_minute: 1.5 } }",
            "a whole number",
        ),
        (
            "plans: { p: { requests_per_minute: '60' } }",
            "a whole number",
        ),
        (
            "plans: { p: { requests_per_minutes: 60 } }",
            "did you mean \"requests_per_minute\"",
        ),
        (
            "plans: { p: { requests_per_minute: { burst: 1 } } }",
            "limit: missing",
        ),
        (
            "plans: { p: { requests_per_minute: { limit: 5, burst: 6 } } }",
            "plans.p.requests_per_minute.burst: 6, more than the limit; expected at most 5",
        ),
        (
            "plans: { p: { requests_per_minute: { limit: 5, burst: 0 } } }",
            "from 1 to",
        ),
        (
            "plans: { p: { requests_per_day: { limit: 5, burst: 5 } } }",
            "allowed here: limit, shadow",
        ),
        (
            "plans: { p: { max_concurrent: { limit: 5, burst: 5 } } }",
            "allowed here: limit, shadow",
        ),
        ("plans: { p: { cost_per_day: 5 } }", "such as 5 USD"),
        ("plans: { p: { cost_per_day: 5 usd } }", "such as 5 USD"),
        ("plans: { p: { cost_per_day: 0 USD } }", "more than 0"),
        (
            "plans: { p: { cost_per_day: 1000000001 USD } }",
            "at most 1000000000 USD",
        ),
        (
            "plans: { p: { cost_per_day: 0.0000000001 USD } }",
            "more digits than are kept",
        ),
        (
            "plans: { p: { cost_per_day: 5 EUR } }",
            "no exchange rate for \"EUR\"",
        ),
        (
            "accounting: { exchange: { IRR: 0.00000001 } }\nplans: { p: { cost_per_day: 0.01 IRR } }",
            "more than 0",
        ),
        (
            "plans: { p: { models: { flsh: {} } } }",
            "did you mean \"flash\"",
        ),
        (
            "plans: { p: { models: { deepseek-flash: {} } } }",
            "not those that upstreams have",
        ),
        ("plans: { p: { weight: 0 } }", "from 1 to 1000"),
        (
            "plans: { p: { priority: urgent } }",
            "one of high, normal, low",
        ),
        (
            "plans: { p: { on_disconnect: drain, drain_timeout: 0s } }",
            "more than 0",
        ),
        ("plans: { p: { chat: { chat: {} } } }", "unknown key"),
        (
            "groups: [{ id: g, plan: defalt }]",
            "did you mean \"default\"",
        ),
        ("groups: [{ id: g }]", "plan: missing"),
        (
            "groups: [{ id: g, plan: default }, { id: g, plan: default }]",
            "a second time",
        ),
        ("queue: { max_wait: 0s }", "more than 0"),
        ("queue: { max_length: -1 }", "from 0 to"),
        ("queue: { keep_alive: 0s }", "1s to 10m"),
    ] {
        refused(TENANTS, &format!("{text}\n{TENANTS}"), about);
    }
    refused(
        "id: a\n",
        "id: a\n    plan: defualt\n",
        "did you mean \"default\"",
    );
    refused(
        "id: a\n",
        "id: a\n    group: g\n",
        "no group has the id \"g\"",
    );
}

#[test]
fn who_waits_is_told_what_the_queue_says() {
    let queue = settings_of(MINIMAL).queue;
    assert_eq!(
        (queue.max_length, queue.max_wait, queue.keep_alive),
        (1000, Duration::from_secs(30), None)
    );
    let text = with("queue: { max_length: 0, max_wait: 5s, keep_alive: 10s }");
    let queue = settings_of(&text).queue;
    assert_eq!(
        (queue.max_length, queue.keep_alive),
        (0, Some(Duration::from_secs(10)))
    );
}

#[test]
fn a_limit_that_an_alias_goes_around_is_a_warning() {
    let text = with("plans: { p: { models: { flash: { requests_per_day: 1 } } } }")
        .replace("[flash]", "['*']")
        .replace("  flash: ", "  chat: { alias: flash }\n  flash: ");
    let warnings = lines(&load_text(&text).unwrap().warnings);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("plans.p.models.flash: \"chat\" is an alias of it"));
    let both = text.replace("models: { flash: {", "models: { chat: {}, flash: {");
    assert_eq!(load_text(&both).unwrap().warnings, []);
}

#[test]
fn a_governor_learns_unless_it_is_switched_off() {
    let id = "- id: deepseek\n";
    let governor = |text: &str| {
        let text = MINIMAL.replace(id, &format!("{id}{text}"));
        settings_of(&text).upstreams[0].governor.clone()
    };
    let standard = governor("").unwrap();
    assert_eq!(
        (
            standard.floor,
            standard.decrease_percent,
            standard.slow_factor,
            standard.recovery
        ),
        (4, 30, 4, Duration::from_secs(1))
    );
    assert_eq!(governor("    governor: true\n"), Some(standard));
    assert_eq!(governor("    governor: false\n"), None);
    assert_eq!(governor("    governor: null\n"), None);
    assert_eq!(governor("    governor: { floor: 1 }\n").unwrap().floor, 1);
    for (text, about) in [
        ("{ floor: 0 }", "from 1 to"),
        ("{ decrease_percent: 91 }", "from 1 to 90"),
        ("{ slow_factor: 1 }", "from 2 to"),
        ("{ recovery: 10ms }", "100ms to 24h"),
    ] {
        refused(id, &format!("{id}    governor: {text}\n"), about);
    }
}

#[test]
fn an_alias_has_the_usual_length_of_its_target_unless_it_has_its_own() {
    let text = MINIMAL.replace(
        "  flash: { ",
        "  a: { alias: flash }\n  b: { alias: flash, usual_output_tokens: 5 }\n  flash: { usual_output_tokens: 9, ",
    );
    let models = settings_of(&text).models;
    let usual = |name: &str| models[name].usual_output_tokens;
    assert_eq!((usual("flash"), usual("a"), usual("b")), (9, 9, 5));
    assert_eq!(
        settings_of(MINIMAL).models["flash"].usual_output_tokens,
        2_048
    );
    refused(
        "{ variants",
        "{ usual_output_tokens: 0, variants",
        "from 1 to",
    );
}

#[test]
fn ceilings_of_endpoints_and_of_the_process_are_read() {
    let text = MINIMAL
        .replace("deepseek.com\" }", "deepseek.com\", max_concurrent: 7 }")
        .replace(
            "server:\n",
            "server:\n  limits: { max_requests: 9, max_requests_per_second_per_ip: 3 }\n",
        );
    let settings = settings_of(&text);
    assert_eq!(settings.upstreams[0].endpoints[0].max_concurrent, Some(7));
    let limits = &settings.server.limits;
    assert_eq!(
        (limits.max_requests, limits.max_requests_per_second_per_ip),
        (9, 3)
    );
    let limits = &settings_of(MINIMAL).server.limits;
    assert_eq!(
        (limits.max_requests, limits.max_requests_per_second_per_ip),
        (20_000, 0)
    );
}
