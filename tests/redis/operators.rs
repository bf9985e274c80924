//! What operators may do, and how little a Redis user needs to be allowed.

use tidegate::admission::store_redis::{StoreError, Verdict, Wait};
use tidegate::config::secret::Secret;
use tidegate::config::settings::RedisNodes;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_counts_for_its_window_and_a_reset_leaves_what_is_held() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![daily(10, 5)]);
    let counter = &wanted.parts[0].counter;
    host.grant(&wanted).await.unwrap().settle(&[5]);
    let held = host.grant(&wanted).await.unwrap();
    host.told().await;
    assert!(host.grant(&wanted).await.is_none());
    host.counts.grant(&wanted.root, counter, 3).await.unwrap();
    host.counts.grant(&wanted.root, counter, 2).await.unwrap();
    assert_eq!(host.standing(&wanted).await[0].extra, 5);
    drop(host.grant(&wanted).await.unwrap());
    host.told().await;
    host.counts.reset(&wanted.root, counter).await.unwrap();
    let standing = host.standing(&wanted).await[0];
    assert_eq!((standing.used, standing.held, standing.extra), (0, 5, 5));
    drop(held);

    let bucket = hourly(1, 1, 1).counter;
    let refused = host.counts.grant(&wanted.root, &bucket, 1).await;
    assert_eq!(refused, Err(StoreError::NotGrantable));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_has_room_for_requests_that_the_limit_alone_never_had() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![daily(10, 12)]);
    let wait = async || match host.counts.reserve(wanted.clone()).await.unwrap() {
        Verdict::Refused { standings, .. } => standings[0].wait,
        Verdict::Granted { standings, .. } => standings[0].wait,
    };
    assert_eq!(wait().await, Wait::Never);
    let counter = &wanted.parts[0].counter;
    host.counts.grant(&wanted.root, counter, 5).await.unwrap();
    let held = host.grant(&wanted).await.unwrap();
    assert_eq!(wait().await, Wait::Release);
    held.settle(&[12]);
    host.told().await;
    assert_eq!(wait().await, Wait::Window);
}

/// The rule in docs/stores.md, with a password.
pub fn documented_rule() -> Vec<String> {
    let docs = include_str!("../../docs/stores.md");
    let line = docs
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER tidegate "));
    let line = line.expect("docs/stores.md gives the rule");
    line.split_whitespace()
        .map(|word| word.replace("<password>", "hunter2"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_access_rule_is_enough() {
    let server = Server::start(&[]);
    let rule = documented_rule();
    let mut command = vec!["acl", "setuser", "tidegate"];
    command.extend(rule.iter().map(String::as_str));
    assert_eq!(server.cli(&command), "OK");
    let mut store = settings(RedisNodes::One(server.address()));
    store.username = Some("tidegate".to_owned());
    store.password = Some(Secret::new("hunter2".to_owned()));
    let host = Host::join(&store, "a").await;
    let wanted = ask(vec![concurrency(5), daily(10, 5), hourly(10, 10, 1)]);
    host.grant(&wanted).await.unwrap().settle(&[1, 1, 1]);
    host.told().await;
    server.cli(&["zadd", "{tidegate:tenant/acme}:hosts", "1", "a"]);
    drop(host.grant(&wanted).await.unwrap());
    host.counts
        .grant(&wanted.root, &wanted.parts[1].counter, 1)
        .await
        .unwrap();
    host.counts
        .reset(&wanted.root, &wanted.parts[1].counter)
        .await
        .unwrap();
    // Another process in its place, and a reservation that its caller leaves.
    let next = Host::join(&store, "a").await;
    drop(next.grant(&wanted).await.unwrap());
    for _ in 0..20 {
        let asking = next.counts.reserve(wanted.clone());
        let _ = tokio::time::timeout(std::time::Duration::from_micros(200), asking).await;
    }
    next.told().await;
    let state = next.counts.state();
    assert_eq!((state.errors, state.last_error), (0, None));
    // And a key that has to be removed: the rejection is the only error.
    server.cli(&["set", "{tidegate:tenant/acme}", "a string"]);
    next.grant_anew(&wanted).await.settle(&[1, 1, 1]);
    next.told().await;
    let state = next.counts.state();
    assert!(state.emptied == 1 && state.lost == 0, "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_never_shown() {
    let server = Server::start(&["--requirepass", "right"]);
    let mut store = settings(RedisNodes::One(server.address()));
    store.password = Some(Secret::new("wrong-guess".to_owned()));
    let host = Host::started(&store, "a");
    let error = in_time("an error", async || host.counts.state().last_error).await;
    assert!(
        !error.contains("wrong-guess") && !error.is_empty(),
        "{error}"
    );
    assert!(host.counts.reserve(ask(vec![])).await.is_err_and(is_away));
    store.password = Some(Secret::new("right".to_owned()));
    let host = Host::join(&store, "b").await;
    assert!(host.grant(&ask(vec![concurrency(1)])).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_whose_limit_changes_measures_the_same_use_anew() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let old = ask(vec![hourly(100, 100, 30)]);
    host.grant(&old).await.unwrap().settle(&[30]);
    let late = host.grant(&old).await.unwrap();
    host.told().await;
    for (amount, fits) in [(1_000, true), (70, true), (59, false)] {
        let new = ask(vec![hourly(amount, amount, 10)]);
        let standing = host.standing(&new).await[0];
        assert_eq!((standing.used, standing.held), (30, 30), "{amount}");
        let granted = host.grant(&new).await;
        assert_eq!(granted.is_some(), fits, "{amount}");
        drop(granted);
        host.told().await;
    }
    // What was reserved under the old limit is settled under the new one.
    let new = ask(vec![hourly(1_000, 1_000, 1)]);
    host.grant(&new).await.unwrap().settle(&[1]);
    late.settle(&[20]);
    host.told().await;
    let standing = host.standing(&new).await[0];
    assert_eq!((standing.used, standing.held), (51, 0));
}
