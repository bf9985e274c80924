//! A reload changes a limit of which Redis holds the count.

use super::*;

#[test]
fn a_limit_that_changes_keeps_what_was_used_of_it() {
    const HOUR: &str = "all/*/requests_per_hour";
    let plan = json!({"requests_per_hour": 10, "requests_per_day": 100, "max_concurrent": 5});
    let stage = Stage::new(plan, &closed());
    let [first, second] = &stage.gateways;
    assert_eq!(stage.ask(8), [200; 8]);
    let held = hold(first, &stalling());
    let larger = json!({"requests_per_hour": 100, "requests_per_day": 12, "max_concurrent": 2});
    for gateway in &stage.gateways {
        assert_eq!(
            gateway.reload(|config| config.set("/plans/tested", larger.clone())),
            "ok"
        );
        let hour = standing(gateway, "acme", HOUR);
        assert_eq!(
            (&hour["used"], &hour["allowed"]),
            (&json!(9), &json!(100)),
            "the same use, measured by the new limit"
        );
    }
    // The one of before the reload still has its place.
    let more = hold(second, &stalling());
    assert_eq!(more.status, 200);
    assert_eq!(status(first), 429);
    drop((held, more));
    assert_eq!(stage.used(DAY), 10);
    assert_eq!(stage.ask(3), [200, 200, 429]);
    let smaller = json!({"requests_per_hour": 6, "max_concurrent": 2});
    for gateway in &stage.gateways {
        gateway.reload(|config| config.set("/plans/tested", smaller.clone()));
        assert_eq!(standing(gateway, "acme", HOUR)["used"], 12);
        assert_eq!(standing(gateway, "acme", HOUR)["remaining"], 0);
    }
    assert_eq!(stage.ask(2), [429; 2]);
}
