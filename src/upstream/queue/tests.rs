use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;

use tokio::task::JoinSet;

use super::super::pool::{Pool, Registry};
use super::*;
use crate::config::settings::{
    Account, AccountId, Dialect, Endpoint, Governor, Queue, Upstream, UpstreamAuth, UpstreamId,
    UpstreamProtocol, UpstreamTimeouts, UpstreamTls,
};

const MODEL: &str = "m";
const SOON: Duration = Duration::from_secs(20);

/// An upstream with accounts of these ceilings and endpoints of these limits.
pub fn upstream(ceilings: &[u32], limits: &[Option<u32>]) -> Upstream {
    let second = Duration::from_secs(1);
    let endpoint = |(index, limit): (usize, &Option<u32>)| Endpoint {
        url: format!("http://127.0.0.1:{}", index + 1),
        tls: false,
        host: "127.0.0.1".to_owned(),
        port: 1,
        base_path: String::new(),
        priority: 0,
        weight: 1,
        max_concurrent: *limit,
    };
    let account = |(index, ceiling): (usize, &u32)| Account {
        id: AccountId::new(&format!("a{index}")),
        api_key: None,
        key_id: String::new(),
        max_concurrent: BTreeMap::from([MODEL, "n"].map(|model| (model.to_owned(), *ceiling))),
        priority: 0,
        weight: 1,
    };
    Upstream {
        id: UpstreamId::new("u"),
        dialect: Dialect::OpenAi,
        auth: UpstreamAuth::Key {
            header: "authorization".to_owned(),
            scheme: "Bearer".to_owned(),
        },
        protocol: UpstreamProtocol::Http1,
        tls: UpstreamTls::default(),
        timeouts: UpstreamTimeouts {
            connect: second,
            connect_total: second,
            read: second,
            write: second,
            first_byte: second,
            queued: second,
            first_content: second,
            gap: second,
            total: second,
        },
        idle_timeout: second,
        dns_refresh: second,
        health: None,
        surfaces: Vec::new(),
        envelope: None,
        governor: Some(Governor {
            floor: 1,
            decrease_percent: 50,
            recovery: second,
            slow_factor: 3,
        }),
        outlier: None,
        breaker: None,
        affinity: None,
        credit: None,
        endpoints: limits.iter().enumerate().map(endpoint).collect(),
        accounts: ceilings.iter().enumerate().map(account).collect(),
    }
}

pub fn lanes(registry: &Registry, upstream: Upstream, max_length: usize) -> [Arc<Lane>; 2] {
    let queue = Queue {
        max_length,
        max_wait: SOON,
        keep_alive: None,
    };
    let pool = Pool::new(Arc::new(upstream), registry, Instant::now()).unwrap();
    [MODEL, "n"].map(|model| Arc::new(pool.lane(registry, model, &queue)))
}

fn lane(ceilings: &[u32], max_length: usize) -> Arc<Lane> {
    let [lane, _] = lanes(
        &Registry::default(),
        upstream(ceilings, &[None]),
        max_length,
    );
    lane
}

fn who(tenant: &str) -> Waiter {
    Waiter {
        tenant: TenantId::new(tenant),
        weight: 1,
        priority: Priority::Normal,
    }
}

fn choose(lane: &Arc<Lane>) -> Result<Chosen, NoChoice> {
    lane.choose(&Wish::default(), Instant::now())
}

fn wait(lane: &Arc<Lane>, tenant: &str) -> Waiting {
    try_wait(lane, tenant, SOON).unwrap()
}

fn try_wait(lane: &Arc<Lane>, tenant: &str, time: Duration) -> Result<Waiting, NotServed> {
    let now = Instant::now();
    lane.wait(who(tenant), &Wish::default(), now + time, now)
}

fn in_flight(lane: &Lane) -> u32 {
    lane.loads().map(|(_, in_flight, _)| in_flight).sum()
}

#[tokio::test]
async fn a_freed_place_goes_to_whoever_waits_and_not_to_a_newcomer() {
    let lane = lane(&[1], 10);
    let held = choose(&lane).unwrap();
    assert_eq!(choose(&lane).unwrap_err(), NoChoice::Full);
    let waiting = wait(&lane, "a");
    assert_eq!(lane.observed().waiting, 1);
    drop(held);
    assert_eq!(choose(&lane).unwrap_err(), NoChoice::Full);
    let held = waiting.await.unwrap();
    assert_eq!((in_flight(&lane), lane.observed().waiting), (1, 0));
    drop(held);
    assert!(choose(&lane).is_ok());
}

#[tokio::test]
async fn a_waiter_that_leaves_loses_nothing_for_the_others() {
    let lane = lane(&[1], 10);
    let held = choose(&lane).unwrap();
    let (first, second, third) = (wait(&lane, "a"), wait(&lane, "a"), wait(&lane, "a"));
    drop(first);
    drop(held);
    // Granted by now, and never asked for.
    drop(second);
    let held = third.await.unwrap();
    assert_eq!(in_flight(&lane), 1);
    drop(held);
    let observed = lane.observed();
    assert_eq!((in_flight(&lane), observed.waiting), (0, 0));
    assert_eq!((observed.left, observed.granted), (2, 1));
}

#[tokio::test]
async fn one_with_two_hundred_waiting_delays_the_others_by_their_fair_share_only() {
    let lane = lane(&[10], 1000);
    let mut held: Vec<_> = (0..10).map(|_| choose(&lane).unwrap()).collect();
    let (sender, mut order) = tokio::sync::mpsc::channel(300);
    let mut tasks = JoinSet::new();
    let crowd = std::iter::repeat_n(0, 200);
    for tenant in crowd.chain(1..=9) {
        let (waiting, sender) = (wait(&lane, &format!("t{tenant}")), sender.clone());
        tasks.spawn(async move {
            let served = (tenant, waiting.await.unwrap());
            sender.send(served).await.unwrap();
        });
    }
    let mut served = Vec::new();
    for _ in 0..209 {
        drop(held.remove(0));
        let (tenant, chosen) = order.recv().await.unwrap();
        served.push(tenant);
        held.push(chosen);
    }
    for tenant in 1..=9 {
        assert!(served[..10].contains(&tenant), "{served:?}");
    }
}

#[tokio::test]
async fn a_full_queue_and_a_hopeless_wait_are_told_apart() {
    let lane = lane(&[1], 2);
    let held = choose(&lane).unwrap();
    lane.line.held_for(Duration::from_secs(10));
    let _first = wait(&lane, "a");
    let hopeless = try_wait(&lane, "a", Duration::from_secs(15)).map(|_| ());
    let wait_of_two = Duration::from_secs(20);
    assert_eq!(hopeless, Err(NotServed::TooLong { wait: wait_of_two }));
    let _second = wait(&lane, "b");
    let full = try_wait(&lane, "a", Duration::from_secs(900)).map(|_| ());
    assert!(matches!(full, Err(NotServed::QueueFull { .. })), "{full:?}");
    drop(held);
    let observed = lane.observed();
    assert_eq!((observed.too_long, observed.queue_full), (1, 1));
}

#[tokio::test]
async fn who_is_next_is_not_turned_away_by_a_mean() {
    let lane = lane(&[1], 2);
    let held = choose(&lane).unwrap();
    lane.line.held_for(Duration::from_secs(3_600));
    let next = try_wait(&lane, "a", SOON).unwrap();
    drop(held);
    assert!(next.await.is_ok());
}

#[tokio::test]
async fn one_who_fills_the_queue_gives_way_to_those_who_have_none_in_it() {
    let lane = lane(&[1], 4);
    let held = choose(&lane).unwrap();
    let mut crowd: Vec<_> = (0..4).map(|_| wait(&lane, "crowd")).collect();
    let alone = wait(&lane, "alone");
    let newest = crowd.pop().unwrap().await;
    assert!(
        matches!(newest, Err(NotServed::QueueFull { .. })),
        "{newest:?}"
    );
    let more = try_wait(&lane, "crowd", SOON).map(|_| ());
    assert!(matches!(more, Err(NotServed::QueueFull { .. })), "{more:?}");
    let observed = lane.observed();
    assert_eq!((observed.waiting, observed.queue_full), (4, 2));
    drop(held);
    let first = crowd.remove(0);
    drop(first.await.unwrap());
    drop(alone.await.unwrap());
    drop(crowd);
    assert_eq!((in_flight(&lane), lane.observed().waiting), (0, 0));
    assert_eq!(lane.line.waiting_anywhere.load(Ordering::Relaxed), 0);
}

fn try_wait_in_class(lane: &Arc<Lane>, priority: Priority) -> Result<Waiting, NotServed> {
    let who = Waiter {
        priority,
        ..who(&format!("{priority:?}"))
    };
    let now = Instant::now();
    lane.wait(who, &Wish::default(), now + SOON, now)
}

#[tokio::test]
async fn as_the_line_fills_low_is_turned_away_first_then_normal_and_high_last() {
    let lane = lane(&[1], 10);
    let _held = choose(&lane).unwrap();
    let mut waiting = Vec::new();
    for (class, most) in [
        (Priority::Low, 5),
        (Priority::Normal, 8),
        (Priority::High, 10),
    ] {
        while let Ok(one_more) = try_wait_in_class(&lane, class) {
            waiting.push(one_more);
        }
        assert_eq!(lane.observed().waiting, most, "{class:?}");
    }
    let observed = lane.observed();
    assert_eq!((observed.shed, observed.queue_full), (2, 1));
}

#[tokio::test]
async fn nobody_takes_the_place_of_a_higher_class() {
    let lane = lane(&[1], 4);
    let _held = choose(&lane).unwrap();
    let high = || try_wait_in_class(&lane, Priority::High).unwrap();
    let _crowd: Vec<_> = (0..4).map(|_| high()).collect();
    for class in [Priority::Normal, Priority::Low] {
        let refused = try_wait_in_class(&lane, class).err();
        assert!(matches!(refused, Some(NotServed::QueueFull { .. })));
    }
    assert_eq!(lane.observed().waiting, 4);
}

#[tokio::test]
async fn in_its_part_of_the_line_a_low_crowd_gives_way_to_who_is_as_low() {
    let lane = lane(&[1], 8);
    let _held = choose(&lane).unwrap();
    let low = || try_wait_in_class(&lane, Priority::Low);
    let mut crowd: Vec<_> = (0..4).map(|_| low().unwrap()).collect();
    assert!(matches!(low().err(), Some(NotServed::Shed { .. })));
    let alone = Waiter {
        priority: Priority::Low,
        ..who("alone")
    };
    let now = Instant::now();
    let _alone = lane.wait(alone, &Wish::default(), now + SOON, now).unwrap();
    assert!(crowd.pop().unwrap().await.is_err());
    assert_eq!(lane.observed().waiting, 4);
}

#[tokio::test]
async fn nobody_gives_way_to_one_who_could_not_be_served_in_time() {
    let lane = lane(&[1], 2);
    let _held = choose(&lane).unwrap();
    lane.line.held_for(Duration::from_secs(10));
    let _crowd = (wait(&lane, "crowd"), wait(&lane, "crowd"));
    let hasty = try_wait(&lane, "alone", Duration::from_secs(5)).map(|_| ());
    assert!(matches!(hasty, Err(NotServed::TooLong { .. })), "{hasty:?}");
    assert_eq!(
        (lane.observed().waiting, lane.observed().queue_full),
        (2, 0)
    );
}

#[tokio::test]
async fn who_waits_too_long_is_told_so_and_no_longer_waits() {
    let lane = lane(&[1], 10);
    let _held = choose(&lane).unwrap();
    let waiting = try_wait(&lane, "a", Duration::from_millis(30)).unwrap();
    let late = waiting.await.unwrap_err();
    assert!(matches!(late, NotServed::Late { .. }));
    assert_eq!(lane.observed().waiting, 0);
}

#[tokio::test]
async fn a_waiter_is_not_given_what_it_has_tried_and_others_need_not_wait_for_it() {
    let lane = lane(&[1, 1], 10);
    let (first, second) = (choose(&lane).unwrap(), choose(&lane).unwrap());
    let mut tried = Tried::default();
    tried.accounts.push(first.account);
    let now = Instant::now();
    let picky = lane
        .wait(who("a"), &Wish::beside(tried.clone()), now + SOON, now)
        .unwrap();
    let plain = wait(&lane, "b");
    let (of_first, of_second) = (first.account, second.account);
    drop(first);
    let held = plain.await.unwrap();
    assert_eq!(held.account, of_first);
    drop(second);
    assert_eq!(picky.await.unwrap().account, of_second);
    // Nothing left to try is said at once.
    tried.accounts.push(of_second);
    let nothing = lane
        .wait(who("a"), &Wish::beside(tried.clone()), now + SOON, now)
        .unwrap();
    assert_eq!(nothing.await.unwrap_err(), NotServed::Exhausted);
    drop(held);
}

#[tokio::test]
async fn who_waits_when_all_that_are_left_go_out_is_told_so_at_once() {
    let lane = lane(&[1], 10);
    let _held = choose(&lane).unwrap();
    let waiting = wait(&lane, "a");
    lane.pool.accounts[0].state.set_unpaid(Instant::now());
    lane.pump(Instant::now());
    let closed = waiting.await.unwrap_err();
    assert!(matches!(closed, NotServed::Closed { wait } if wait > SOON));
}

#[tokio::test]
async fn many_who_wait_for_another_account_do_not_hide_one_who_can_take_this() {
    let lane = lane(&[1, 1], 1000);
    let (first, second) = (choose(&lane).unwrap(), choose(&lane).unwrap());
    let mut tried = Tried::default();
    tried.accounts.push(first.account);
    let now = Instant::now();
    let picky: Vec<_> = (0..200)
        .map(|_| {
            lane.wait(who("a"), &Wish::beside(tried.clone()), now + SOON, now)
                .unwrap()
        })
        .collect();
    let newcomer = wait(&lane, "a");
    let free = first.account;
    drop(first);
    assert_eq!(newcomer.await.unwrap().account, free);
    drop((second, picky));
    assert_eq!((in_flight(&lane), lane.observed().waiting), (0, 0));
}

#[tokio::test]
async fn places_that_nobody_gives_back_are_found_by_looking() {
    let registry = Registry::default();
    let [lane, _] = lanes(&registry, upstream(&[1], &[None]), 10);
    let held = choose(&lane).unwrap();
    let waiting = wait(&lane, "a");
    // A reload with another ceiling; who waits has the configuration of before.
    let [newer, _] = lanes(&registry, upstream(&[2], &[None]), 10);
    assert_eq!(newer.observed().waiting, 1);
    newer.pump(Instant::now());
    let second = waiting.await.unwrap();
    assert_eq!(in_flight(&newer), 2);
    drop((held, second));
    assert_eq!(in_flight(&newer), 0);
}

#[tokio::test]
async fn an_endpoints_limit_holds_over_all_models_and_frees_them_all() {
    let registry = Registry::default();
    let [first, second] = lanes(&registry, upstream(&[5], &[Some(1)]), 10);
    let held = choose(&first).unwrap();
    assert_eq!(choose(&second).unwrap_err(), NoChoice::Full);
    let waiting = wait(&second, "a");
    drop(held);
    let held = waiting.await.unwrap();
    assert_eq!(choose(&first).unwrap_err(), NoChoice::Full);
    drop(held);
    assert!(choose(&first).is_ok());
}

#[test]
fn a_429_lowers_the_ceiling_and_pumping_raises_it_again() {
    let lane = lane(&[10], 10);
    let held: Vec<_> = (0..10).map(|_| choose(&lane).unwrap()).collect();
    let now = Instant::now();
    assert!(lane.rate_limited(0, now, now + Duration::from_millis(1)));
    assert_eq!(lane.loads().next().unwrap().2, Some(5));
    assert_eq!(choose(&lane).unwrap_err(), NoChoice::Full);
    let mut at = now;
    for _ in 0..7 {
        at += Duration::from_secs(1);
        lane.pump(at);
    }
    assert_eq!(lane.loads().next().unwrap().2, Some(10));
    let (_, governed) = lane.governed().next().unwrap();
    assert_eq!((governed.rate_limited, governed.learned), (1, None));
    drop(held);
}

#[test]
fn a_429_rests_an_account_for_the_model_that_was_asked_for_alone() {
    let registry = Registry::default();
    let [first, second] = lanes(&registry, upstream(&[5], &[None]), 10);
    let now = Instant::now();
    let minute = Duration::from_secs(60);
    first.rest(0, now, minute);
    let rests = |lane: &Lane, at| lane.rests(at).any(|rests| rests);
    assert_eq!((rests(&first, now), rests(&second, now)), (true, false));
    // It outlives a reload, and ends by itself.
    let [newer, _] = lanes(&registry, upstream(&[5], &[None]), 10);
    assert!(newer.rests(now).all(|resting| resting));
    assert!(!rests(&newer, now + minute));
    newer.pool.accounts[0].state.set_unpaid(now);
    let closed = choose(&second).unwrap_err();
    assert!(matches!(closed, NoChoice::Closed { .. }));
}

#[tokio::test]
async fn an_account_at_its_limit_is_waited_for_until_it_has_rested() {
    let lane = lane_resting(Duration::from_secs(7), Instant::now());
    assert_eq!(choose(&lane).unwrap_err(), NoChoice::Full);
    // Whoever has not so much time need not wait for it.
    let hasty = try_wait(&lane, "a", Duration::from_secs(3)).map(|_| ());
    let Err(NotServed::TooLong { wait: told }) = hasty else {
        panic!("{hasty:?}");
    };
    assert!(told > Duration::from_secs(3) && told <= Duration::from_secs(7));
    let began = Instant::now();
    let short = lane_resting(Duration::from_millis(40), began);
    let mut waiting = wait(&short, "a");
    let chosen = loop {
        tokio::select! {
            biased;
            served = &mut waiting => break served,
            () = tokio::time::sleep(Duration::from_millis(2)) => short.pump(Instant::now()),
        }
    };
    assert!(chosen.is_ok() && began.elapsed() >= Duration::from_millis(39));
}

fn lane_resting(pause: Duration, now: Instant) -> Arc<Lane> {
    let lane = lane(&[5], 10);
    lane.rest(0, now, pause);
    lane
}

/// Many tasks that come, wait, leave at any moment and hold for a while; whatever they do, the
/// ceilings hold and every place comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_place_is_given_twice_or_lost_whoever_leaves_when() {
    const CEILINGS: [u32; 2] = [3, 2];
    let registry = Registry::default();
    let lanes = lanes(&registry, upstream(&CEILINGS, &[Some(4), Some(3)]), 10_000);
    let most = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let mut tasks = JoinSet::new();
    for number in 0..3_000u64 {
        let index = usize::from(number % 5 == 0);
        let (lane, most) = (lanes[index].clone(), most.clone());
        tasks.spawn(async move {
            let dice = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let chosen = match choose(&lane) {
                Ok(chosen) => chosen,
                Err(_) => {
                    // However slow the machine, nobody is refused.
                    let long = Duration::from_secs(24 * 3600);
                    let waiting = try_wait(&lane, &format!("t{}", dice % 7), long).unwrap();
                    if dice % 3 == 0 {
                        // Leaves at some moment, with or without a place.
                        let patience = Duration::from_micros(dice % 3_000);
                        let _ = tokio::time::timeout(patience, waiting).await;
                        return 0;
                    }
                    waiting.await.unwrap()
                }
            };
            for (index, (_, in_flight, _)) in lane.loads().enumerate() {
                most[index].fetch_max(in_flight, Ordering::Relaxed);
            }
            for _ in 0..dice % 5 {
                tokio::task::yield_now().await;
            }
            drop(chosen);
            1
        });
    }
    let all = async {
        let mut served = 0;
        while let Some(one) = tasks.join_next().await {
            served += one.unwrap();
        }
        served
    };
    let served = tokio::time::timeout(Duration::from_secs(60), all).await;
    assert!(served.expect("somebody waits for ever") >= 2_000);
    for (index, ceiling) in CEILINGS.into_iter().enumerate() {
        assert!(most[index].load(Ordering::Relaxed) <= ceiling);
    }
    for lane in &lanes {
        assert_eq!((in_flight(lane), lane.observed().waiting), (0, 0));
        assert!(
            lane.pool
                .endpoints
                .iter()
                .all(|slot| slot.state.in_flight() == 0)
        );
        assert_eq!(lane.line.waiting_anywhere.load(Ordering::Relaxed), 0);
    }
}
