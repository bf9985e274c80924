//! Redis dies, stalls, forgets, and loses answers.

use std::time::{Duration, Instant};

use tidegate::admission::store_redis::{LIVENESS, Standing, StoreError};
use tidegate::config::settings::RedisNodes;

use crate::proxy::Wire;
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_down_at_the_start_is_no_error_and_is_found_later() {
    let mut server = Server::start(&[]);
    server.kill();
    let host = Host::started(&settings(RedisNodes::One(server.address())), "a");
    let wanted = ask(vec![daily(10, 1)]);
    assert!(
        host.counts
            .reserve(wanted.clone())
            .await
            .is_err_and(is_away)
    );
    host.use_up(&wanted.root, &wanted.parts[0].counter, 4);
    server.restart();
    in_time("found", async || host.counts.state().up.then_some(())).await;
    // What was used while it was away was told before anyone could ask.
    assert_eq!(host.standing(&wanted).await[0].used, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_it_comes_back_empty_and_what_was_meanwhile_is_told() {
    let mut server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![concurrency(3), daily(100, 10)]);
    host.grant(&wanted).await.unwrap().settle(&[1, 10]);
    let held = [
        host.grant(&wanted).await.unwrap(),
        host.grant(&wanted).await.unwrap(),
    ];
    host.told().await;
    server.kill();
    in_time("noticed", async || {
        host.counts.reserve(wanted.clone()).await.err()
    })
    .await;
    in_time("the circuit is open", async || {
        (!host.counts.state().up).then_some(())
    })
    .await;
    let began = Instant::now();
    for _ in 0..1000 {
        assert!(
            host.counts
                .reserve(wanted.clone())
                .await
                .is_err_and(is_away)
        );
        host.use_up(&wanted.root, &wanted.parts[1].counter, 2);
    }
    assert!(
        began.elapsed() < PATIENT,
        "a dead Redis costs a request nothing"
    );
    assert!(
        host.counts.state().queued <= 4,
        "merged: {:?}",
        host.counts.state()
    );
    let [first, second] = held;
    first.settle(&[1, 7]);
    server.restart();
    in_time("back", async || host.counts.state().up.then_some(())).await;
    let standing = host.standing(&wanted).await;
    // The request that is still under way holds its place again, although Redis has forgotten it.
    assert_eq!((standing[0].held, standing[1].used), (1, 2007));
    assert_eq!(
        host.counts.state().emptied,
        2,
        "of the tenant, and of the probe"
    );
    // And gives it back, and nothing of others'.
    let big = ask(vec![concurrency(3), daily(10_000, 10)]);
    let new = host.grant(&big).await.unwrap();
    second.settle(&[1, 5]);
    host.told().await;
    let standing = host.standing(&wanted).await;
    assert_eq!(
        (standing[0].held, standing[1].held, standing[1].used),
        (1, 10, 2012)
    );
    drop(new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_is_noticed_and_the_host_goes_on() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![concurrency(2), daily(100, 1)]);
    let before = host.grant(&wanted).await.unwrap();
    server.cli(&["flushall"]);
    let after = host.grant(&wanted).await.unwrap();
    assert_eq!(host.counts.state().emptied, 1);
    host.told().await;
    assert!(
        host.grant(&wanted).await.is_none(),
        "both places are taken again"
    );
    before.settle(&[1, 1]);
    host.told().await;
    let standing = host.standing(&wanted).await;
    assert_eq!((standing[0].held, standing[1].used), (1, 1));
    drop(after);
    host.told().await;
    assert_eq!(host.standing(&wanted).await[0].held, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_redis_costs_a_few_deadlines_and_leaves_nothing_held() {
    let server = Server::start(&[]);
    let mut store = settings(RedisNodes::One(server.address()));
    store.timeout = Duration::from_millis(100);
    let host = Host::join(&store, "a").await;
    let wanted = ask(vec![concurrency(1000)]);
    drop(host.counts.reserve(wanted.clone()).await);
    host.told().await;
    server.signal("-STOP");
    let began = Instant::now();
    let mut slow = 0;
    while host.counts.state().up {
        if host
            .counts
            .reserve(wanted.clone())
            .await
            .is_err_and(|e| e == StoreError::Slow)
        {
            slow += 1;
        }
    }
    assert!((5..=6).contains(&slow), "{slow}");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let began = Instant::now();
    for _ in 0..100 {
        assert!(
            host.counts
                .reserve(wanted.clone())
                .await
                .is_err_and(is_away)
        );
    }
    assert!(began.elapsed() < Duration::from_millis(500));
    server.signal("-CONT");
    in_time("back", async || host.counts.state().up.then_some(())).await;
    let began = Instant::now();
    // The reservations whose time was over may have been granted after all, or come only now.
    in_time("nothing is held", async || {
        let shown = host
            .counts
            .show(&wanted.root, &[wanted.parts[0].counter.clone()])
            .await;
        shown.is_ok_and(|shown| shown[0].held == 0).then_some(())
    })
    .await;
    assert!(began.elapsed() < LIVENESS / 2, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_whose_answer_was_lost_is_given_back() {
    let server = Server::start(&[]);
    let wire = Wire::to(server.port).await;
    let host = Host::join(&settings(RedisNodes::One(wire.address.clone())), "a").await;
    let witness = Host::at(&server, "witness").await;
    let wanted = ask(vec![concurrency(5), daily(100, 10)]);
    for _ in 0..5 {
        in_time("up", async || host.counts.state().up.then_some(())).await;
        wire.lose_an_answer();
        // The background part may lose it first.
        while !wire.has_lost() {
            let _ = host.counts.reserve(wanted.clone()).await;
        }
    }
    let began = Instant::now();
    in_time("given back", async || {
        let standing = witness.standing(&wanted).await;
        standing
            .iter()
            .all(|one| one.held == 0 && one.used == 0)
            .then_some(())
    })
    .await;
    assert!(
        began.elapsed() < LIVENESS / 2,
        "by its id, not with its host"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_comes_after_it_was_given_up_is_refused() {
    let server = Server::start(&[]);
    let wire = Wire::to(server.port).await;
    let host = Host::join(&settings(RedisNodes::One(wire.address.clone())), "a").await;
    let wanted = ask(vec![concurrency(5)]);
    drop(host.grant(&wanted).await);
    host.told().await;
    wire.delay_a_question();
    assert!(host.counts.reserve(wanted.clone()).await.is_err());
    in_time("back, and told", async || {
        let state = host.counts.state();
        (state.up && state.queued == 0).then_some(())
    })
    .await;
    let answers = wire.arrive().await;
    assert_eq!(answers.len(), 1);
    assert!(answers[0].starts_with("*8\r\n:2\r\n"), "{answers:?}");
    assert_eq!(host.standing(&wanted).await[0].held, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_whose_answer_was_lost_is_counted_once() {
    let server = Server::start(&[]);
    let wire = Wire::to(server.port).await;
    let host = Host::join(&settings(RedisNodes::One(wire.address.clone())), "a").await;
    let witness = Host::at(&server, "witness").await;
    let wanted = ask(vec![concurrency(50), daily(100_000, 10)]);
    let mut used = 0;
    for round in 0..20 {
        let held = in_time("granted", async || {
            match host.counts.reserve(wanted.clone()).await {
                Ok(tidegate::admission::store_redis::Verdict::Granted { reservation, .. }) => {
                    Some(reservation)
                }
                _ => None,
            }
        })
        .await;
        host.told().await;
        wire.lose_an_answer();
        held.settle(&[1, round]);
        used += round;
        in_time("told, and lost on the way back", async || {
            (wire.has_lost() && host.counts.state().queued == 0).then_some(())
        })
        .await;
    }
    let standing = witness.standing(&wanted).await;
    assert_eq!(
        (standing[0].held, standing[1].held, standing[1].used),
        (0, 0, used)
    );
    assert!(host.counts.state().away >= 20, "{:?}", host.counts.state());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_ours_is_removed_and_its_root_begins_anew() {
    let server = Server::start(&[]);
    let (host, other) = (Host::at(&server, "a").await, Host::at(&server, "b").await);
    let wanted = ask(vec![concurrency(9), daily(100, 10)]);
    let root = "{tidegate:tenant/acme}";
    for (round, key) in ["", ":hosts", ":host:a", ":host:b"].iter().enumerate() {
        let open = [
            host.grant(&wanted).await.unwrap(),
            host.grant(&wanted).await.unwrap(),
        ];
        let others = other.grant(&wanted).await.unwrap();
        let key = format!("{root}{key}");
        assert_eq!(server.cli(&["set", &key, "a string"]), "OK");
        // Requests are judged again, and each host claims what it holds with its next word.
        for one in [&host, &other, &host] {
            drop(one.grant_anew(&wanted).await);
            one.told().await;
        }
        let state = host.counts.state();
        assert!(state.up && state.lost == 0, "{state:?}");
        assert_eq!(usize::try_from(state.emptied).unwrap(), round + 1, "{key}");
        let standing = host.standing(&wanted).await;
        assert_eq!((standing[0].held, standing[1].held), (3, 30), "{key}");
        let [first, second] = open;
        first.settle(&[1, 3]);
        drop((second, others));
        host.told().await;
        other.told().await;
        let standing = host.standing(&wanted).await;
        let told = (standing[0].held, standing[1].held, standing[1].used);
        assert_eq!(told, (0, 0, 3), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn use_that_waits_for_a_key_that_is_not_ours_is_told_once_it_is_mended() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![daily(100, 10)]);
    let held = host.grant(&wanted).await.unwrap();
    server.cli(&["set", "{tidegate:tenant/acme}", "a string"]);
    held.settle(&[4]);
    host.told().await;
    let standing = host.standing(&wanted).await[0];
    assert_eq!((standing.used, standing.held), (4, 0));
    // So is the key by which it finds out whether Redis can be used at all.
    server.cli(&["set", "{tidegate:probe}", "a string"]);
    let late = Host::at(&server, "late").await;
    assert!(late.counts.state().up);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_none_of_ours_count_as_nothing() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![concurrency(9), daily(100, 10)]);
    let held = host.grant(&wanted).await.unwrap();
    let (root, own) = ("{tidegate:tenant/acme}", "{tidegate:tenant/acme}:host:a");
    for (key, field) in [(root, "daily"), (root, "epoch"), (own, "sequence")] {
        server.cli(&["hset", key, field, "many"]);
        drop(host.grant(&wanted).await.unwrap());
        host.told().await;
    }
    drop(held);
    host.told().await;
    let standing = host.standing(&wanted).await;
    assert_eq!((standing[0].held, standing[1].held), (0, 0));
    for field in ["held daily", "generation"] {
        server.cli(&["hset", own, field, "many"]);
        drop(host.grant(&wanted).await.unwrap());
        host.told().await;
    }
    assert_eq!(host.counts.state().errors, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rejected_batch_let_go_is_let_go_all_the_same() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![concurrency(9), daily(100, 10)]);
    let [ending, staying] = [
        host.grant(&wanted).await.unwrap(),
        host.grant(&wanted).await.unwrap(),
    ];
    host.told().await;
    // It may not look at types, so it cannot mend.
    let user = ["acl", "setuser", "default", "-type"];
    assert_eq!(server.cli(&user), "OK");
    let hosts = "{tidegate:tenant/acme}:hosts";
    server.cli(&["set", hosts, "a string"]);
    ending.settle(&[0, 10]);
    in_time("rejected", async || {
        (host.counts.state().lost == 1).then_some(())
    })
    .await;
    server.cli(&["del", hosts]);
    // Nobody asks meanwhile: it comes up with the next sign of life.
    in_time("let go", async || {
        let standing = host.standing(&wanted).await;
        ((standing[0].held, standing[1].held) == (1, 10)).then_some(())
    })
    .await;
    assert!(host.counts.state().up);
    drop(staying);
    host.told().await;
    assert_eq!(host.standing(&wanted).await[0].held, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_as_good_as_away_until_there_is_room() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![daily(100, 10)]);
    server.cli(&["config", "set", "maxmemory", "1"]);
    assert!(
        host.counts
            .reserve(wanted.clone())
            .await
            .is_err_and(is_away)
    );
    in_time("open", async || (!host.counts.state().up).then_some(())).await;
    server.cli(&["config", "set", "maxmemory", "0"]);
    in_time("back", async || host.counts.state().up.then_some(())).await;
    assert!(host.grant(&wanted).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_lost_of_its_last_moments_is_neither_held_for_ever_nor_given_away() {
    let mut server = Server::start(&["--save", "", "--appendonly", "no"]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![concurrency(5), daily(100, 10)]);
    let early = [
        host.grant(&wanted).await.unwrap(),
        host.grant(&wanted).await.unwrap(),
    ];
    assert_eq!(server.cli(&["save"]), "OK");
    // These words are lost: one reservation ends, two begin.
    let [ending, staying] = early;
    ending.settle(&[1, 10]);
    let late = [
        host.grant(&wanted).await.unwrap(),
        host.grant(&wanted).await.unwrap(),
    ];
    host.told().await;
    server.kill();
    in_time("noticed", async || {
        host.counts.reserve(wanted.clone()).await.err()
    })
    .await;
    server.restart();
    in_time("it is back", async || host.counts.state().up.then_some(())).await;
    let held = |standing: &[Standing]| [standing[0].held, standing[1].held];
    assert_eq!(held(&host.standing(&wanted).await), [3, 30]);
    drop((staying, late));
    host.told().await;
    assert_eq!(held(&host.standing(&wanted).await), [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_admitted_while_redis_was_away_is_held_once_it_is_back() {
    let mut server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![concurrency(3), daily(100, 10)]);
    server.kill();
    in_time("noticed", async || {
        (!host.counts.state().up).then_some(host.counts.reserve(wanted.clone()).await.ok())
    })
    .await;
    let [ended, open, cut] = [(); 3].map(|()| host.counts.assume(wanted.clone()));
    ended.settle(&[0, 5]);
    server.restart();
    in_time("back", async || host.counts.state().up.then_some(())).await;
    let numbers = async || {
        let standing = host.standing(&wanted).await;
        (standing[0].held, standing[1].held, standing[1].used)
    };
    assert_eq!(numbers().await, (2, 20, 5));
    let last = host.grant(&wanted).await.unwrap();
    assert!(host.grant(&wanted).await.is_none(), "all places are taken");
    // One that was admitted because Redis was slow is known to it at once.
    let late = host.counts.assume(wanted.clone());
    host.told().await;
    assert_eq!(numbers().await, (4, 40, 5));
    open.settle(&[0, 7]);
    drop((cut, last, late));
    host.told().await;
    assert_eq!(numbers().await, (0, 0, 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_admitted_unasked_is_held_although_its_root_was_never_asked_for() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![concurrency(3)]);
    let held = host.counts.assume(wanted.clone());
    in_time("held", async || {
        (host.standing(&wanted).await[0].held == 1).then_some(())
    })
    .await;
    drop(held);
    host.told().await;
    assert_eq!(host.standing(&wanted).await[0].held, 0);
}
