//! While Redis is there: limits hold to the unit over both gateways, and every place is given.

use super::*;

#[test]
fn a_day_gives_its_last_request_to_one_gateway_and_no_more() {
    let stage = Stage::new(json!({"requests_per_day": 50}), &closed());
    let heard = storm(&stage.gateways, 12, &hello(), |question| question < 10);
    assert_prompt(&heard);
    assert_eq!((count(&heard, 200), count(&heard, 429)), (50, 70));
    assert_eq!(stage.emulator.calls().len(), 50);
    // Each was told how many were left after it, whichever gateway it asked.
    let admitted = heard.iter().filter(|heard| heard.answer.status == 200);
    let mut left: Vec<u64> = admitted
        .map(|heard| {
            let left = heard.answer.header("x-ratelimit-remaining-requests");
            left.unwrap().parse().unwrap()
        })
        .collect();
    left.sort_unstable();
    assert!(left.into_iter().eq(0..50));
    let day = stage.agreed(DAY);
    assert_eq!((&day["used"], &day["remaining"]), (&json!(50), &json!(0)));
    let refused = ask(&stage.gateways[0], &hello()).answer;
    assert_refused(&refused, "insufficient_quota", DAY);
    assert_eq!(refused.json()["error"]["limit"]["used"], 50);
}

#[test]
fn a_minute_gives_its_burst_and_what_has_come_back_since() {
    let plan = json!({"requests_per_minute": {"limit": 120, "burst": 30}});
    let stage = Stage::new(plan, &closed());
    let began = Instant::now();
    let heard = storm(&stage.gateways, 12, &hello(), |_| {
        began.elapsed() < Duration::from_secs(3)
    });
    let refill = began.elapsed().as_secs_f64() * 2.0;
    assert_prompt(&heard);
    let admitted = count(&heard, 200);
    assert_eq!(admitted + count(&heard, 429), heard.len() as u64);
    assert!(admitted as f64 <= 30.0 + refill, "{admitted} {refill}");
    // Everybody kept asking for three seconds: nothing that came back was left lying.
    assert!(admitted >= 30 + 5, "{admitted}");
}

#[test]
fn never_more_at_one_time_than_allowed_over_both() {
    let stage = Stage::new(json!({"max_concurrent": 3}), &closed());
    let slow = chat("[[fault:first_token=40ms]] hello");
    let request = Request::post(CHAT, &slow).key("acme");
    let began = Instant::now();
    let heard = storm(&stage.gateways, 12, &request, |_| {
        began.elapsed() < Duration::from_secs(3)
    });
    assert_prompt(&heard);
    let refused = heard.iter().filter(|heard| heard.answer.status != 200);
    for heard in refused {
        assert_refused(&heard.answer, "rate_limit_exceeded", PLACES);
    }
    let totals = Request::get("/_emulator/totals").send(stage.emulator.address());
    let totals = totals.json();
    let peaks = totals["concurrency"].as_array().unwrap().iter();
    let peaks: Vec<_> = peaks.map(|lane| &lane["peak_in_flight"]).collect();
    assert!(peaks.contains(&&json!(3)), "{peaks:?}");
    assert!(peaks.iter().all(|peak| peak.as_u64() <= Some(3)));
    assert!(count(&heard, 200) > 20);
    assert_eq!(stage.agreed(PLACES)["reserved"], 0);
}

#[test]
fn tokens_of_a_day_are_reserved_over_both_and_settled_by_what_was_used() {
    const TOKENS: &str = "all/*/tokens_per_day";
    let stage = Stage::new(json!({"tokens_per_day": 10_000}), &closed());
    let body = with(stalling(), "max_tokens", json!(900));
    let first = hold(&stage.gateways[0], &body);
    let one = standing(&stage.gateways[1], "acme", TOKENS)["reserved"]
        .as_u64()
        .unwrap();
    assert!((900..1_000).contains(&one), "{one}");
    let streams: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|number| {
                let (gateway, body) = (&stage.gateways[number % 2], &body);
                scope.spawn(move || hold(gateway, body))
            })
            .collect();
        let streams = clients.into_iter().map(|client| client.join().unwrap());
        streams.collect()
    });
    let admitted = streams.iter().filter(|stream| stream.status == 200).count() as u64;
    assert_eq!(admitted + 1, 10_000 / one);
    drop((first, streams));
    // What was cut is charged by its prompt and what passed: far less than was held.
    let cut = stage.used(TOKENS);
    assert!(cut < 1_000, "{cut}");
    let body = with(chat("hello"), "max_tokens", json!(900));
    let request = Request::post(CHAT, &body).key("acme");
    let heard = storm(&stage.gateways, 8, &request, |question| question < 5);
    let answered = heard.iter().filter(|heard| heard.answer.status == 200);
    let used: u64 = answered
        .map(|heard| {
            let usage = &heard.answer.json()["usage"];
            usage["total_tokens"].as_u64().unwrap()
        })
        .sum();
    assert!(used > 0);
    assert_eq!(stage.used(TOKENS), cut + used);
}

#[test]
fn however_a_request_ends_its_room_is_free_for_the_other_gateway() {
    let plan = json!({"max_concurrent": 100, "tokens_per_day": 1_000_000, "requests_per_day": 100});
    let stage = Stage::new(plan, &closed());
    let mut sent = 0;
    for fault in [
        "status=500",
        "status=422",
        "reset",
        "cut_after=2",
        "error_after=2",
        "garbage=0",
    ] {
        for gateway in &stage.gateways {
            let body = chat_stream(&format!("[[fault:{fault}]] hello"));
            let request = Request::post(CHAT, &body).key("acme");
            assert_prompt(&[ask(gateway, &request)]);
            sent += 1;
        }
    }
    let (first, second) = (&stage.gateways[0], &stage.gateways[1]);
    let mut leaver = first.connect();
    let stalled = Request::post(CHAT, &chat("[[fault:stall]]")).key("acme");
    leaver.send(&stalled.to_bytes());
    eventually("it is under way", SOON, || {
        (standing(second, "acme", PLACES)["reserved"] == 1).then_some(())
    });
    drop((leaver, hold(second, &stalling())));
    // What found no model took nothing.
    let unknown = with(chat("hello"), "model", json!("no-such-model"));
    assert_ne!(first.post(CHAT, &unknown).status, 200);
    assert_eq!(stage.used(DAY), sent + 2);
    assert_eq!(stage.agreed(PLACES)["reserved"], 0);
}

#[test]
fn a_groups_limit_holds_over_tenants_and_gateways() {
    let plan = json!({"requests_per_day": 1_000});
    let stage = Stage::with(&[], plan, &closed(), |config| {
        config
            .set(
                "/plans/sum",
                json!({"requests_per_day": 40, "max_concurrent": 30}),
            )
            .set("/groups", json!([{"id": "org", "plan": "sum"}]))
            .set("/tenants/0/group", json!("org"))
            .set("/tenants/1/group", json!("org"))
    });
    let heard = thread::scope(|scope| {
        let storms = ["acme", "limited"].map(|tenant| {
            let gateways = &stage.gateways;
            let request = Request::post(CHAT, &chat("hello")).key(tenant);
            scope.spawn(move || storm(gateways, 6, &request, |question| question < 6))
        });
        storms.map(|storm| storm.join().unwrap())
    });
    let admitted = heard.each_ref().map(|heard| count(heard, 200));
    assert_eq!(admitted[0] + admitted[1], 40, "{admitted:?}");
    stage.agreed(DAY);
    let report = report(&stage.gateways[1], "acme");
    let uses = report["limits"].as_array().unwrap().iter();
    let uses = uses.filter(|limit| limit["limit"] == DAY);
    let uses: Vec<_> = uses
        .map(|limit| (limit["subject"].as_str().unwrap(), limit["used"].as_u64()))
        .collect();
    assert_eq!(
        uses,
        [("tenant/acme", Some(admitted[0])), ("group/org", Some(40))]
    );
}

#[test]
fn of_several_limits_that_refuse_the_longest_is_told() {
    let plan = json!({"requests_per_hour": 4, "requests_per_day": 4, "max_concurrent": 9});
    let stage = Stage::new(plan, &closed());
    assert_eq!(stage.ask(4), [200; 4]);
    let refused = ask(&stage.gateways[1], &hello()).answer;
    assert_refused(&refused, "insufficient_quota", DAY);
}

#[test]
fn a_request_asks_once_and_settles_in_the_background_in_batches() {
    let stage = Stage::new(
        json!({"requests_per_day": 10_000, "requests_per_minute": 10_000, "tokens_per_day": 10_000_000,
            "max_concurrent": 100}),
        &closed(),
    );
    let calls = |command: &str| -> u64 {
        let statistics = stage.redis.cli(&["info", "commandstats"]);
        let line = statistics
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    let before = ["evalsha", "set", "eval"].map(calls);
    let heard = storm(&stage.gateways, 16, &hello(), |question| question < 15);
    assert_eq!(count(&heard, 200), 240);
    assert_eq!(stage.used(DAY), 240);
    let after = ["evalsha", "set", "eval"].map(calls);
    // Each reservation that is granted sets its mark, and nothing else sets.
    assert_eq!(after[1] - before[1], 240);
    assert_eq!(after[2], before[2]);
    // A request is settled twice, as one that was sent and with what it used: one by one that were
    // 480. Looks and signs of life are few.
    let background = after[0] - before[0] - 240;
    assert!(background < 400, "{background}");
    // Who has no limits asks nobody.
    let before = calls("evalsha");
    let unlimited = Request::post(CHAT, &chat("hello")).key("limited");
    let heard = storm(&stage.gateways, 4, &unlimited, |question| question < 10);
    assert_eq!(count(&heard, 200), 40);
    assert!(calls("evalsha") - before < 5);
}
