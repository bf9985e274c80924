//! What a host holds belongs to it, and ends with it.

use tidegate::admission::store_redis::Rule;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_host_held_is_free_again() {
    let server = Server::start(&[]);
    let (alive, dead) = (
        Host::at(&server, "alive").await,
        Host::at(&server, "dead").await,
    );
    let wanted = ask(vec![concurrency(2), daily(100, 40)]);
    let kept = alive.grant(&wanted).await.unwrap();
    let lost = dead.grant(&wanted).await.unwrap();
    dead.die();
    assert!(alive.grant(&wanted).await.is_none());
    // Its last sign of life was long ago.
    server.cli(&["zadd", "{tidegate:tenant/acme}:hosts", "1", "dead"]);
    let standing = alive.standing(&wanted).await;
    assert_eq!((standing[0].held, standing[1].held), (1, 40));
    let again = alive.grant(&wanted).await.unwrap();
    // It was not dead after all: what it gives back now is no longer its own, what it used counts.
    lost.settle(&[1, 7]);
    assert!(dead.counts.finish(SOON).await);
    let standing = alive.standing(&wanted).await;
    assert_eq!(
        (standing[0].held, standing[1].held, standing[1].used),
        (2, 80, 7)
    );
    drop((kept, again));
    alive.told().await;
    assert!(
        alive
            .standing(&wanted)
            .await
            .iter()
            .all(|one| one.held == 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_restarts_begins_with_nothing_held() {
    let server = Server::start(&[]);
    let other = Host::at(&server, "other").await;
    let wanted = ask(vec![concurrency(3)]);
    let kept = other.grant(&wanted).await.unwrap();
    let before = Host::at(&server, "gateway").await;
    let lost = [
        before.grant(&wanted).await.unwrap(),
        before.grant(&wanted).await.unwrap(),
    ];
    before.die();
    let after = Host::at(&server, "gateway").await;
    assert_eq!(other.standing(&wanted).await[0].held, 3);
    let mine = after.grant(&wanted).await;
    // The first question already finds the places of its former self empty, or takes one of them.
    let mine = match mine {
        Some(mine) => mine,
        None => after.grant(&wanted).await.unwrap(),
    };
    assert_eq!(other.standing(&wanted).await[0].held, 2);
    drop((mine, kept));
    after.told().await;
    other.told().await;
    assert_eq!(other.standing(&wanted).await[0].held, 0);
    std::mem::forget(lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_back_locks_nobody_out() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![hourly(3_600_000, 10, 10)]); // a thousand per second
    host.grant(&wanted).await.unwrap().settle(&[10]);
    host.told().await;
    // As it looks after the clock went back by years: everything was written in the future.
    let key = "{tidegate:tenant/acme}";
    server.cli(&["hset", key, "hourly", "0 10000000 9007199254740000 0"]);
    server.cli(&[
        "zadd",
        "{tidegate:tenant/acme}:hosts",
        "9007199254740000",
        "a",
    ]);
    let _held = in_time("it leaks by the new clock", async || {
        host.grant(&wanted).await
    })
    .await;
    let beat: f64 = server
        .cli(&["zscore", "{tidegate:tenant/acme}:hosts", "a"])
        .parse()
        .unwrap();
    assert!(beat < 9e15);
}

/// With the window of a host whose clock is years ahead.
fn daily_ahead(amount: u64, demand: u64) -> tidegate::admission::store_redis::Ask {
    let window = 1 << 40;
    ask(vec![part(
        "daily",
        Rule::Calendar { window, amount },
        demand,
    )])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_clock_is_far_ahead_neither_resets_a_budget_nor_locks_anyone_out() {
    let server = Server::start(&[]);
    let (right, ahead) = (
        Host::at(&server, "right").await,
        Host::at(&server, "ahead").await,
    );
    right
        .grant(&ask(vec![daily(10, 6)]))
        .await
        .unwrap()
        .settle(&[6]);
    right.told().await;
    assert!(ahead.grant(&daily_ahead(10, 6)).await.is_none());
    ahead.grant(&daily_ahead(10, 3)).await.unwrap().settle(&[3]);
    ahead.told().await;
    let standing = right.standing(&ask(vec![daily(10, 1)])).await[0];
    assert_eq!((standing.used, standing.window), (9, 1000));
    assert!(right.grant(&ask(vec![daily(10, 2)])).await.is_none());
    // The next window begins as ever, by the others' clocks.
    let next = part(
        "daily",
        Rule::Calendar {
            window: 2000,
            amount: 10,
        },
        10,
    );
    assert!(right.grant(&ask(vec![next])).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_from_the_far_future_gives_way_to_the_one_of_now() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let key = "{tidegate:tenant/acme}";
    server.cli(&["hset", key, "daily", "0 10 2082758400 0"]); // 2036
    let wanted = ask(vec![daily(10, 4)]);
    host.grant(&wanted).await.unwrap().settle(&[4]);
    host.told().await;
    let standing = host.standing(&wanted).await[0];
    assert_eq!((standing.used, standing.window), (4, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_ends_tells_what_waits() {
    let server = Server::start(&[]);
    let (leaving, other) = (
        Host::at(&server, "leaving").await,
        Host::at(&server, "other").await,
    );
    let wanted = ask(vec![daily(100, 10)]);
    let held = leaving.grant(&wanted).await.unwrap();
    leaving.die();
    held.settle(&[9]);
    assert!(leaving.counts.finish(SOON).await);
    let standing = other.standing(&wanted).await[0];
    assert_eq!((standing.used, standing.held), (9, 0));
}
