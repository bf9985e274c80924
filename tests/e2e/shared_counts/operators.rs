//! `tidegate limits` asks the one gateway, and means all of them.

use std::process::Output;

use super::*;

fn command(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = tidegate();
    command.arg("limits").args(arguments);
    command.args(["--admin", &gateway.admin().to_string()]);
    command
        .env("TIDEGATE_ADMIN_TOKEN", ADMIN_TOKEN)
        .output()
        .unwrap()
}

/// The table's row of a limit, by words.
fn row(output: &Output, limit: &str) -> Vec<String> {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let table = String::from_utf8_lossy(&output.stdout);
    let row = table.lines().find(|line| line.starts_with(limit)).unwrap();
    row.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn what_is_eased_through_one_gateway_is_eased_for_all() {
    let stage = Stage::new(
        json!({"requests_per_day": 4, "max_concurrent": 5}),
        &closed(),
    );
    let [first, second] = &stage.gateways;
    assert_eq!(stage.ask(5), [200, 200, 200, 200, 429]);
    let held = stage.agreed(DAY);
    assert_eq!(held["used"], 4);
    let shown = row(&command(second, &["show", "acme"]), DAY);
    assert_eq!(shown[1..6], ["tenant", "4", "4", "0", "0"]);
    let grant = [
        "grant", "acme", "--limit", DAY, "--amount", "3", "--reason", "launch",
    ];
    let granted = row(&command(first, &grant), DAY);
    assert_eq!(granted[1..6], ["tenant", "7", "4", "0", "3"]);
    assert_eq!(row(&command(second, &["show", "acme"]), DAY), granted);
    // Through one alone, though the other was asked for the grant.
    let admitted = (0..5)
        .map(|_| status(second))
        .filter(|status| *status == 200);
    assert_eq!(admitted.count(), 3);
    let place = hold(first, &stalling());
    assert_eq!(place.status, 429);
    let reset = ["reset", "acme", "--limit", DAY, "--reason", "a loop"];
    assert_eq!(row(&command(second, &reset), DAY)[3], "0");
    let place = hold(first, &stalling());
    assert_eq!(place.status, 200);
    // What is held is seen by the other, and outlives a reset.
    let reset = ["reset", "acme", "--reason", "another loop"];
    let places = row(&command(second, &reset), PLACES);
    assert_eq!(places[1..6], ["tenant", "5", "0", "1", "4"]);
    first.logged(&["audit", "action=grant", "launch"]);
    second.logged(&["audit", "action=reset", "another loop"]);
}

#[test]
fn while_redis_is_away_operators_are_told_so() {
    let mut stage = Stage::new(json!({"requests_per_day": 4}), &open());
    assert_eq!(report(&stage.gateways[0], "limited")["limits"], json!([]));
    stage.redis.kill();
    let gateway = &stage.gateways[0];
    let shown = operate(gateway, &Request::get("/limits/acme"));
    assert_eq!(shown.status, 503);
    assert!(shown.text().contains("cannot be asked"), "{}", shown.text());
    let grant = [
        "grant", "acme", "--limit", DAY, "--amount", "3", "--reason", "launch",
    ];
    for arguments in [&["show", "acme"][..], &grant] {
        let output = command(gateway, arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("Redis is away"), "{told}");
    }
    assert!(
        !gateway
            .log()
            .iter()
            .any(|line| line.contains("action=grant"))
    );
}
