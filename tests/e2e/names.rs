//! Upstreams are known by names, and names move: requests follow without noticing, and a name
//! server in trouble changes nothing. Of several addresses behind a name, dead ones are passed over.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tidegate::emulator::EmulatorConfig;

use crate::support::hostile::Deaf;
use crate::support::resolver::{Lookup, Resolver};
use crate::support::*;

const PATH: &str = "/v1/chat/completions";
const HERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Nobody listens there.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn at(address: Ipv4Addr, port: u16) -> Emulator {
    Emulator::start(EmulatorConfig {
        listen: SocketAddr::from((address, port)),
        ..Emulator::with_accounts(1)
    })
}

/// Leads to a name at the emulator's port.
fn by_name(resolver: &Resolver, emulator: &Emulator) -> Config {
    let url = format!("http://upstream.test:{}", emulator.address().port());
    let config = Config::for_urls(&[url], emulator.accounts());
    resolver.for_one(config.set("/upstreams/0/dns_refresh", json!("100ms")))
}

fn is_served(gateway: &Gateway, what: &str) {
    let answer = gateway.post(PATH, &chat("hello"));
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
}

#[test]
fn an_upstream_that_moves_is_followed_under_load() {
    let Some(resolver) = Resolver::start(Lookup::Addresses(vec![HERE])) else {
        return;
    };
    let here = at(HERE, 0);
    let there = at(THERE, here.address().port());
    let gateway = Gateway::start(by_name(&resolver, &here));
    let long = chat_stream("[[fault:tokens=40,token_delay=50ms]] hello");
    let mut stream = gateway.stream(PATH, &long);
    stream.read_until("data: ");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    is_served(&gateway, "under load");
                }
            });
        }
        for address in [THERE, HERE, THERE] {
            resolver.says(Lookup::Addresses(vec![address]));
            let to = if address == HERE { &here } else { &there };
            to.forget_calls();
            eventually("it is asked there", SOON, || {
                (to.calls().len() > 10).then_some(())
            });
        }
        over.store(true, Ordering::Release);
    });
    // What began where the name has left goes on to its end.
    assert!(stream.rest().text().contains("[DONE]"));
    here.forget_calls();
    for _ in 0..10 {
        is_served(&gateway, "after the move");
    }
    assert_eq!(here.calls().len(), 0);
    let line = gateway.access_lines().pop().unwrap();
    assert_eq!(line["attempts"], 1, "{line}");
}

#[test]
fn a_name_server_in_trouble_changes_nothing() {
    let Some(resolver) = Resolver::start(Lookup::Addresses(vec![HERE])) else {
        return;
    };
    let emulator = Emulator::quick();
    let gateway = Gateway::start(by_name(&resolver, &emulator));
    for says in [
        Lookup::NoRecord,
        Lookup::NoSuchName,
        Lookup::ServerFailure,
        Lookup::Silence,
    ] {
        let what = format!("{says:?}");
        resolver.says(says);
        gateway.logged(&["Cannot resolve endpoint", "host=upstream.test"]);
        for _ in 0..5 {
            is_served(&gateway, &what);
        }
    }
    assert_eq!(emulator.calls().len(), 20);
}

#[test]
fn a_start_without_names_is_served_as_soon_as_they_are_there() {
    let Some(resolver) = Resolver::start(Lookup::ServerFailure) else {
        return;
    };
    let emulator = Emulator::quick();
    // Nobody waits for the next turn while there is no address at all.
    let config = by_name(&resolver, &emulator).set("/upstreams/0/dns_refresh", json!("1h"));
    let gateway = Gateway::start(config);
    let refused = gateway.post(PATH, &chat("hello"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    resolver.says(Lookup::Addresses(vec![HERE]));
    eventually("it is served", SOON, || {
        (gateway.post(PATH, &chat("hello")).status == 200).then_some(())
    });
}

#[test]
fn of_several_addresses_the_dead_are_passed_over() {
    let Some(resolver) = Resolver::start(Lookup::Addresses(vec![HERE, NOWHERE, THERE])) else {
        return;
    };
    let here = at(HERE, 0);
    let there = at(THERE, here.address().port());
    let gateway = Gateway::start(by_name(&resolver, &here));
    for _ in 0..60 {
        is_served(&gateway, "with a dead address");
    }
    // Found once, it is not asked again by requests.
    let failed = gateway.metric("tidegate_attempts_total", &["outcome=\"connect\""]);
    assert!(failed <= 1.0, "{failed}");
    // And the load goes to all that are alive.
    let shares = [&here, &there].map(|emulator| emulator.calls().len());
    assert!(shares.iter().all(|share| *share >= 25), "{shares:?}");
}

#[test]
fn an_endpoint_is_well_while_one_of_its_addresses_is() {
    let dead = [3, 4, 5].map(|last| Ipv4Addr::new(127, 0, 0, last));
    let all = [&dead[..], &[THERE]].concat();
    let Some(resolver) = Resolver::start(Lookup::Addresses(all)) else {
        return;
    };
    let there = at(THERE, 0);
    let config = by_name(&resolver, &there)
        .set("/upstreams/0/health", json!(false))
        .set("/retry", json!({"attempts": 4, "base_backoff": "1ms"}));
    let gateway = Gateway::start(config);
    for _ in 0..20 {
        is_served(&gateway, "with one address of four");
    }
    let failed = gateway.metric("tidegate_attempts_total", &["outcome=\"connect\""]);
    let passed_over = "tidegate_upstream_endpoint_addresses_passed_over";
    let healthy = "tidegate_upstream_endpoint_healthy";
    assert_eq!((failed, gateway.metric(passed_over, &[])), (3.0, 3.0));
    assert_eq!(gateway.metric(healthy, &[]), 1.0);
    // It is the endpoint once there is none.
    there.stop();
    let refused = gateway.post(PATH, &chat("hello"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    eventually("the endpoint is out", SOON, || {
        gateway.post(PATH, &chat("hello"));
        (gateway.metric(healthy, &[]) == 0.0).then_some(())
    });
}

#[test]
fn an_address_at_which_no_connection_comes_about_is_found_however_little_time_there_is() {
    let hurried = json!(false);
    let checked = json!({"interval": "500ms", "timeout": "500ms"});
    for health in [hurried, checked] {
        let Some(resolver) = Resolver::start(Lookup::Addresses(vec![HERE, THERE])) else {
            return;
        };
        let deaf = Deaf::new();
        let there = at(THERE, deaf.address().port());
        let asks = !health.is_object();
        let config = by_name(&resolver, &there).set("/upstreams/0/health", health);
        let gateway = Gateway::start(config);
        let ask = || {
            let request = Request::post(PATH, &chat("hello")).key("acme");
            let request = request.header("x-tidegate-timeout", "2s");
            request.send(gateway.address()).status
        };
        eventually("it is passed over", SOON, || {
            if asks {
                assert!([200, 504].contains(&ask()));
            }
            let passed_over = "tidegate_upstream_endpoint_addresses_passed_over";
            (gateway.metric(passed_over, &[]) == 1.0).then_some(())
        });
        assert!((0..10).all(|_| ask() == 200));
        let healthy = gateway.metric("tidegate_upstream_endpoint_healthy", &[]);
        assert_eq!(healthy, 1.0);
    }
}
