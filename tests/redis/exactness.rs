//! Several hosts, one limit: never one more than allowed, and every reservation comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use tidegate::admission::store_redis::{Verdict, Wait};
use tidegate::config::settings::RedisNodes;

use crate::support::*;

const HOSTS: usize = 3;
const TASKS: usize = 30;
const ROUNDS: usize = 20;

async fn hosts(server: &Server) -> Vec<Host> {
    join_all(["a", "b", "c"].map(|name| Host::at(server, name))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_never_given_twice_and_all_come_back() {
    const PLACES: u64 = 7;
    let server = Server::start(&[]);
    let hosts = hosts(&server).await;
    let wanted = ask(vec![concurrency(PLACES), hourly(u64::MAX, u64::MAX, 3)]);
    let (inside, highest, granted) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let tasks = (0..HOSTS * TASKS).map(|task| {
        let (counts, wanted) = (hosts[task % HOSTS].counts.clone(), wanted.clone());
        let (inside, highest, granted) = (inside.clone(), highest.clone(), granted.clone());
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let asking = counts.reserve(wanted.clone());
                if (task + round) % 5 == 0 {
                    // Its caller leaves: at once, before or while Redis decides.
                    let _ =
                        tokio::time::timeout(std::time::Duration::from_micros(300), asking).await;
                    continue;
                }
                if let Verdict::Granted { reservation, .. } = asking.await.unwrap() {
                    highest.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    granted.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    reservation.settle(&[1, 2]);
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    assert!(highest.load(Ordering::SeqCst) <= PLACES);
    assert!(granted.load(Ordering::SeqCst) >= PLACES);
    in_time("every place came back", async || {
        let standing = hosts[0].standing(&wanted).await;
        standing.iter().all(|one| one.held == 0).then_some(())
    })
    .await;
    assert!(hosts.iter().all(|host| host.counts.state().open == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_spent_to_the_last_unit_and_not_beyond() {
    const BUDGET: u64 = 1000;
    let server = Server::start(&[]);
    let hosts = hosts(&server).await;
    let wanted = ask(vec![daily(BUDGET, 3)]);
    let spent = Arc::new(AtomicU64::new(0));
    let tasks = (0..HOSTS * TASKS).map(|task| {
        let (counts, wanted, spent) = (
            hosts[task % HOSTS].counts.clone(),
            wanted.clone(),
            spent.clone(),
        );
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                if let Verdict::Granted { reservation, .. } =
                    counts.reserve(wanted.clone()).await.unwrap()
                {
                    let used = (task + round) as u64 % 4;
                    spent.fetch_add(used, Ordering::SeqCst);
                    reservation.settle(&[used]);
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    for host in &hosts {
        host.told().await;
    }
    // Singly, until nothing fits.
    let one = ask(vec![daily(BUDGET, 1)]);
    while let Some(reservation) = hosts[0].grant(&one).await {
        spent.fetch_add(1, Ordering::SeqCst);
        reservation.settle(&[1]);
        hosts[0].told().await;
    }
    assert_eq!(spent.load(Ordering::SeqCst), BUDGET);
    let standing = hosts[1].standing(&one).await[0];
    assert_eq!((standing.used, standing.held), (BUDGET, 0));
    assert_eq!(standing.wait, Wait::Window);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_gives_its_burst_once_and_the_rest_evenly() {
    let server = Server::start(&[]);
    let hosts = hosts(&server).await;
    let bucket = |demand| {
        let mut part = hourly(36_000, 7, demand); // ten per second
        part.counter.name = "bucket".into();
        ask(vec![part])
    };
    let began = std::time::Instant::now();
    let mut granted = 0;
    let mut told = std::time::Duration::ZERO;
    while granted < 15 {
        match hosts[granted % HOSTS]
            .counts
            .reserve(bucket(1))
            .await
            .unwrap()
        {
            Verdict::Granted { reservation, .. } => {
                granted += 1;
                reservation.settle(&[1]);
                hosts[(granted - 1) % HOSTS].told().await;
            }
            Verdict::Refused { by, standings } => {
                assert_eq!(by, 0);
                let Wait::Leak(wait) = standings[0].wait else {
                    panic!("{standings:?}");
                };
                assert!(!wait.is_zero() && wait <= std::time::Duration::from_millis(100));
                told += wait;
                tokio::time::sleep(wait).await;
            }
        }
    }
    // Eight beyond the burst, a tenth of a second each.
    assert!(
        began.elapsed() >= std::time::Duration::from_millis(795),
        "{:?}",
        began.elapsed()
    );
    assert!(told <= began.elapsed());
    let never = hosts[0].counts.reserve(bucket(8)).await.unwrap();
    assert!(
        matches!(never, Verdict::Refused { standings, .. } if standings[0].wait == Wait::Never)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn seven_of_seven_per_second_fit_although_a_seventh_of_a_second_is_no_whole_number() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![hourly(7, 7, 1)]);
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(host.grant(&wanted).await.unwrap());
    }
    assert!(host.grant(&wanted).await.is_none());
    assert_eq!(host.standing(&wanted).await[0].wait, Wait::Release);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_one_round_trip() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let wanted = ask(vec![
        concurrency(1000),
        daily(100_000, 1),
        hourly(100_000, 100_000, 1),
        part("second", hourly(90_000, 90_000, 1).counter.rule, 1),
        shadow(part("third", hourly(1, 1, 1).counter.rule, 1)),
    ]);
    let calls = || {
        let stats = server.cli(&["info", "commandstats"]);
        let of = |name: &str| -> u64 {
            let line = stats
                .lines()
                .find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
            line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
        };
        (of("evalsha"), of("script|load"), of("eval"))
    };
    let mut held = Vec::new();
    let before = calls();
    for _ in 0..100 {
        held.push(host.grant(&wanted).await.unwrap());
    }
    let after = calls();
    // A sign of life may fall into it.
    assert!(
        (100..=101).contains(&(after.0 - before.0)),
        "{before:?} {after:?}"
    );
    assert_eq!((after.1, after.2), (before.1, before.2));

    // A server that forgot its scripts is taught them within the same reservation.
    server.cli(&["script", "flush"]);
    held.push(host.grant(&wanted).await.unwrap());
    assert_eq!(host.counts.state().errors, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_or_nothing_and_a_shadow_never_refuses() {
    let server = Server::start(&[]);
    let host = Host::at(&server, "a").await;
    let tight = part("tight", daily(1, 1).counter.rule, 1);
    let held = host.grant(&ask(vec![tight.clone()])).await.unwrap();
    let both = ask(vec![concurrency(5), tight.clone()]);
    match host.counts.reserve(both.clone()).await.unwrap() {
        Verdict::Refused { by, standings } => {
            assert_eq!(by, 1);
            assert_eq!(standings[0].held, 0);
            assert_eq!((standings[1].held, standings[1].wait), (1, Wait::Release));
        }
        granted => panic!("{granted:?}"),
    }
    let with_shadow = ask(vec![concurrency(5), shadow(tight)]);
    match host.counts.reserve(with_shadow).await.unwrap() {
        Verdict::Granted {
            reservation,
            standings,
        } => {
            assert!(standings[0].fits && !standings[1].fits);
            assert_eq!(standings[1].held, 2, "it is counted");
            drop(reservation);
        }
        refused => panic!("{refused:?}"),
    }
    drop(held);
    host.told().await;
    assert!(host.standing(&both).await.iter().all(|one| one.held == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_begins_anew_and_a_clock_that_is_behind_counts_into_it() {
    let server = Server::start(&[]);
    let host = Host::join(&settings(RedisNodes::One(server.address())), "a").await;
    let of = |window, demand| {
        let rule = tidegate::admission::store_redis::Rule::Calendar { window, amount: 10 };
        ask(vec![part("daily", rule, demand)])
    };
    host.grant(&of(1000, 10)).await.unwrap().settle(&[10]);
    host.told().await;
    assert!(host.grant(&of(1000, 1)).await.is_none());
    let next = host.grant(&of(2000, 4)).await.unwrap();
    next.settle(&[4]);
    host.told().await;
    assert!(
        host.grant(&of(1000, 7)).await.is_none(),
        "into the newer one"
    );
    host.grant(&of(1000, 6)).await.unwrap().settle(&[6]);
    host.told().await;
    let standing = host.standing(&of(1000, 0)).await[0];
    assert_eq!((standing.used, standing.window), (10, 2000));
}
