//! A gateway ends: what it held is free for the other, and what it used is known.

use super::*;

#[test]
fn what_a_killed_gateway_held_is_free_once_it_counts_as_dead() {
    let plan = json!({"max_concurrent": 3, "requests_per_day": 100});
    let stage = Stage::new(plan, &closed());
    let [first, second] = &stage.gateways;
    let own = hold(second, &stalling());
    let held: Vec<_> = (0..2).map(|_| hold(first, &stalling())).collect();
    assert_eq!(status(second), 429);
    assert_eq!(standing(second, "acme", DAY)["used"], 3);
    first.signal("KILL");
    drop(held);
    let killed = Instant::now();
    assert_eq!(status(second), 429);
    eventually("its places are free", Duration::from_secs(25), || {
        (standing(second, "acme", PLACES)["reserved"] == 1).then_some(())
    });
    // Its last sign of life may have been up to four seconds before.
    assert!(killed.elapsed() > Duration::from_secs(10));
    assert_eq!(status(second), 200);
    eventually("who lives keeps its own", SOON, || {
        (standing(second, "acme", PLACES)["reserved"] == 1).then_some(())
    });
    drop(own);
}

#[test]
fn a_gateway_that_ends_tells_its_last_settlements_first() {
    let plan = json!({"max_concurrent": 20, "requests_per_day": 100, "tokens_per_day": 1_000_000});
    let stage = Stage::new(plan, &closed());
    let [first, second] = &stage.gateways;
    let slow = chat("[[fault:first_token=500ms]] hello");
    let request = Request::post(CHAT, &slow).key("acme");
    let tokens: u64 = thread::scope(|scope| {
        let clients: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| ask(first, &request).answer))
            .collect();
        eventually("all are under way", SOON, || {
            (standing(second, "acme", PLACES)["reserved"] == 10).then_some(())
        });
        first.signal("TERM");
        let answers = clients.into_iter().map(|client| client.join().unwrap());
        answers
            .map(|answer| answer.json()["usage"]["total_tokens"].as_u64().unwrap())
            .sum()
    });
    assert!(first.exit(SOON).success());
    for (limit, used) in [(DAY, 10), (PLACES, 0), ("all/*/tokens_per_day", tokens)] {
        let standing = standing(second, "acme", limit);
        assert_eq!(
            (&standing["used"], &standing["reserved"]),
            (&json!(used), &json!(0)),
            "{limit}"
        );
    }
}

#[test]
fn a_gateway_that_ends_while_redis_is_away_waits_a_moment_for_it() {
    let plan = json!({"requests_per_day": 100});
    let mut stage = Stage::with(&KEEPS, plan, &open(), |config| config);
    stage.redis.kill();
    assert_eq!(stage.ask(8), [200; 8]);
    let [first, second] = &stage.gateways;
    first.signal("TERM");
    first.logged(&["Stopped: the last request ended"]);
    stage.redis.restart();
    assert!(first.exit(SOON).success());
    eventually("the other is back", SOON, || is_up(second).then_some(()));
    assert_eq!(standing(second, "acme", DAY)["used"], 8);
}
