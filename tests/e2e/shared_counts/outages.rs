//! Redis is killed in the middle: what holds meanwhile is what the configuration says, and nobody
//! hangs.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Kills Redis under load, waits until both gateways know, and starts it again under load.
fn outage(stage: &mut Stage, request: &Request, meanwhile: impl Fn(&[Gateway; 2])) -> Vec<Heard> {
    let going = AtomicBool::new(true);
    let (gateways, redis, emulator) = (&stage.gateways, &mut stage.redis, &stage.emulator);
    thread::scope(|scope| {
        let load = scope.spawn(|| storm(gateways, 8, request, |_| going.load(Ordering::Relaxed)));
        // Also when something here fails, the load must come to its end.
        let _end = Ending(&going);
        eventually("the load has begun", SOON, || {
            (emulator.calls().len() > 20).then_some(())
        });
        redis.kill();
        all_know(gateways, false);
        meanwhile(gateways);
        redis.restart();
        all_know(gateways, true);
        going.store(false, Ordering::Relaxed);
        load.join().unwrap()
    })
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn open_admits_everybody_and_tells_afterwards_what_was_used() {
    let plan = json!({"requests_per_day": 1_000_000, "max_concurrent": 100});
    let mut stage = Stage::with(&KEEPS, plan, &open(), |config| config);
    let heard = outage(&mut stage, &hello(), |gateways| {
        for gateway in gateways {
            gateway.logged(&["redis:", "limits follow `fail`"]);
            assert!(failures(gateway, "away") > 0.0);
        }
    });
    assert_prompt(&heard);
    assert_eq!(count(&heard, 200), heard.len() as u64);
    assert_eq!(stage.used(DAY), heard.len() as u64);
    for gateway in &stage.gateways {
        gateway.logged(&["redis: back; counts are shared again"]);
        assert_eq!(failures(gateway, "lost"), 0.0);
    }
}

#[test]
fn open_tells_an_emptied_redis_what_was_used_while_it_was_away() {
    let mut stage = Stage::new(json!({"requests_per_day": 20}), &open());
    assert_eq!(stage.ask(20), [200; 20]);
    assert_eq!(stage.ask(2), [429; 2]);
    stage.used(DAY);
    stage.redis.kill();
    // More than the limit.
    assert_eq!(stage.ask(14), [200; 14]);
    all_know(&stage.gateways, false);
    stage.redis.restart();
    all_know(&stage.gateways, true);
    assert_eq!(stage.used(DAY), 14);
    assert_eq!(stage.ask(7), [200, 200, 200, 200, 200, 200, 429]);
    let gone = "the counts of tenant/acme are gone and begin anew";
    stage.gateways[0].logged(&[gone]);
    assert!(failures(&stage.gateways[0], "emptied") >= 1.0);
}

#[test]
fn closed_refuses_whom_a_limit_covers_and_nobody_else() {
    let plan = json!({"requests_per_day": 1_000_000, "max_concurrent": 100});
    let mut stage = Stage::with(&KEEPS, plan, &closed(), |config| {
        config
            .set(
                "/plans/tried",
                json!({"requests_per_day": 1, "shadow": true}),
            )
            .set("/tenants/-", tenant("trying"))
            .set("/tenants/3/plan", json!("tried"))
    });
    let heard = outage(&mut stage, &hello(), |gateways| {
        for gateway in gateways {
            let refused = ask(gateway, &hello()).answer;
            assert_eq!(
                (refused.status, refused.code().as_str()),
                (503, "limits_unavailable"),
                "{}",
                refused.text()
            );
            assert_eq!(refused.header("retry-after"), Some("2"));
            for tenant in ["limited", "trying"] {
                let request = Request::post(CHAT, &chat("hello")).key(tenant);
                let answer = ask(gateway, &request).answer;
                assert_eq!(answer.status, 200, "{tenant}: {}", answer.text());
            }
        }
    });
    assert_prompt(&heard);
    let admitted = count(&heard, 200);
    assert_eq!(admitted + count(&heard, 503), heard.len() as u64);
    assert_eq!(stage.ask(2), [200; 2]);
    assert_eq!(stage.used(DAY), admitted + 2);
}

#[test]
fn a_local_share_is_half_of_each_limit_and_what_was_used_before_is_part_of_it() {
    let fail = json!({"fail": "local-share", "hosts": 2});
    let plan = json!({"requests_per_day": 20, "requests_per_hour": 30});
    let mut stage = Stage::with(&KEEPS, plan, &fail, |config| config);
    let [first, second] = &stage.gateways;
    for _ in 0..4 {
        assert_eq!(status(first), 200);
    }
    stage.used(DAY);
    stage.redis.kill();
    let heard = storm(&stage.gateways, 8, &hello(), |question| question < 5);
    assert_prompt(&heard);
    assert_eq!((count(&heard, 200), count(&heard, 429)), (16, 24));
    let by = |gateway: &Gateway| {
        let calls = stage.emulator.calls();
        let log = gateway.log().join("\n");
        let ids = calls
            .iter()
            .filter_map(|call| header_of(call, "x-request-id"));
        ids.filter(|id| log.contains(*id)).count()
    };
    eventually("each had its ten", SOON, || {
        ([by(first), by(second)] == [10, 10]).then_some(())
    });
    let refused = ask(first, &hello()).answer;
    // The share is used up, not the day: Redis may be back in a moment.
    assert_refused(&refused, "rate_limit_exceeded", DAY);
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(refused.json()["error"]["limit"]["limit"], 10);
    stage.redis.restart();
    all_know(&stage.gateways, true);
    assert_eq!(stage.used(DAY), 20);
    assert_eq!(stage.ask(2), [429; 2]);
}

#[test]
fn a_local_share_of_places_and_buckets_holds_too() {
    let fail = json!({"fail": "local-share", "hosts": 2});
    let plan = json!({"max_concurrent": 6, "requests_per_hour": 20});
    let mut stage = Stage::new(plan, &fail);
    let before = hold(&stage.gateways[0], &stalling());
    stage.redis.kill();
    for (gateway, free) in stage.gateways.iter().zip([2, 3]) {
        let streams: Vec<_> = (0..5).map(|_| hold(gateway, &stalling())).collect();
        let admitted = streams.iter().filter(|stream| stream.status == 200);
        assert_eq!(admitted.count(), free);
        drop(streams);
    }
    drop(before);
    // Three were sent through each, of ten in an hour.
    for gateway in &stage.gateways {
        gateway.wait_until_idle(SOON);
        let admitted = (0..10).filter(|_| status(gateway) == 200).count();
        assert_eq!(admitted, 7);
    }
}
