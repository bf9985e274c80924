//! What a host holds belongs to it, and ends with it.

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
