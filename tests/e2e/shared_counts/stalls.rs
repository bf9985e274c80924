//! Redis is there and says nothing, or has forgotten everything.

use super::*;

#[test]
fn a_redis_that_stalls_holds_nobody_up_for_longer_than_the_timeout() {
    for (fail, expected) in [(open(), 200), (closed(), 503)] {
        let plan = json!({"requests_per_day": 1_000});
        let stage = Stage::with(&[], plan, &fail, |config| {
            config.set("/server/store/redis/timeout", json!("200ms"))
        });
        assert_eq!(stage.ask(2), [200; 2]);
        let gateway = &stage.gateways[0];
        stage.redis.signal("-STOP");
        // Late answers in a row open the circuit, one of five or the background's.
        let mut heard: Vec<_> = (0..5).map(|_| ask(gateway, &hello())).collect();
        assert!(!is_up(gateway));
        assert!(failures(gateway, "slow") >= 1.0);
        gateway.logged(&["redis:", "limits follow `fail`"]);
        let began = Instant::now();
        heard.extend((0..20).map(|_| ask(gateway, &hello())));
        let spared = began.elapsed();
        assert!(spared < Duration::from_secs(2), "{spared:?}");
        assert_eq!(count(&heard, expected), 25);
        assert!(
            heard
                .iter()
                .all(|heard| heard.after < Duration::from_secs(1))
        );
        stage.redis.signal("-CONT");
        all_know(&stage.gateways, true);
        let used = if expected == 200 { 27 } else { 2 };
        assert_eq!(stage.used(DAY), used);
    }
}

#[test]
fn an_idle_gateway_finds_out_that_redis_came_back_empty_before_a_request_does() {
    let mut stage = Stage::new(json!({"requests_per_day": 1_000}), &closed());
    assert_eq!(stage.ask(2), [200; 2]);
    stage.redis.kill();
    all_know(&stage.gateways, false);
    stage.redis.restart();
    all_know(&stage.gateways, true);
    assert_eq!(stage.ask(2), [200; 2]);
}

#[test]
fn after_a_flush_what_is_under_way_is_claimed_anew() {
    let plan = json!({"max_concurrent": 1, "requests_per_day": 10});
    let stage = Stage::new(plan, &closed());
    let [first, second] = &stage.gateways;
    let held = hold(first, &stalling());
    assert_eq!(status(second), 429);
    stage.redis.cli(&["flushall"]);
    eventually("it is claimed", SOON, || {
        (standing(second, "acme", PLACES)["reserved"] == 1).then_some(())
    });
    assert_eq!(status(second), 429);
    first.logged(&["the counts of tenant/acme are gone and begin anew"]);
    drop(held);
    assert_eq!(stage.used(DAY), 0);
    assert_eq!(status(second), 200);
    assert_eq!(stage.used(DAY), 1);
    assert_eq!(status(first), 200);
}
