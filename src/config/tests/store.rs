//! Where counts are kept: what it means, and what may not be written.

use super::*;
use crate::config::settings::{FailMode, RedisNodes, Store};

const SERVER: &str = "server:\n";

fn with(redis: &str) -> String {
    MINIMAL.replace(
        SERVER,
        &format!("{SERVER}  store: {{ redis: {{ {redis} }} }}\n"),
    )
}

#[test]
fn counts_are_kept_here_unless_a_redis_is_named() {
    assert_eq!(settings_of(MINIMAL).server.store, Store::Local);
    let text = MINIMAL.replace(SERVER, &format!("{SERVER}  store: local\n"));
    assert_eq!(settings_of(&text).server.store, Store::Local);
}

#[test]
fn redis_is_a_node_or_sentinels_or_a_cluster() {
    let read = |text: &str| match settings_of(&with(text)).server.store.clone() {
        Store::Redis(redis) => redis,
        Store::Local => panic!("{text}"),
    };
    let one = read("node: '[::1]:6379', fail: closed");
    assert_eq!(one.nodes, RedisNodes::One("[::1]:6379".to_owned()));
    assert_eq!(
        (one.prefix.as_str(), one.database, one.tls, one.fail),
        ("tidegate", 0, false, FailMode::Closed)
    );
    assert_eq!(one.timeout, Duration::from_millis(5));
    assert_eq!((one.username, one.password, one.ca), (None, None, None));

    let sentinels = read(
        "sentinels: ['s1:26379', 's2:26379'], master: m, username: u, password: '${env:KEY}', database: 3, fail: open",
    );
    assert_eq!(
        sentinels.nodes,
        RedisNodes::Sentinel {
            nodes: vec!["s1:26379".to_owned(), "s2:26379".to_owned()],
            master: "m".to_owned()
        }
    );
    assert_eq!(sentinels.password.unwrap().expose(), "sk-one");
    assert_eq!((sentinels.database, sentinels.fail), (3, FailMode::Open));

    let cluster = read(
        "cluster: ['r.example.com:6380'], tls: true, ca: /ca.pem, timeout: 1s, prefix: '', fail: local-share, hosts: 2",
    );
    assert_eq!(
        cluster.nodes,
        RedisNodes::Cluster(vec!["r.example.com:6380".to_owned()])
    );
    assert_eq!(cluster.ca.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(cluster.fail, FailMode::LocalShare { hosts: 2 });
}

#[test]
fn each_rule_of_the_store_is_kept() {
    for (redis, about) in [
        ("fail: open", "neither `node` nor"),
        (
            "node: 'a:1', cluster: ['b:1'], fail: open",
            "more than one of",
        ),
        ("node: 'a:1'", "fail: missing"),
        (
            "node: 'a:1', fail: shut",
            "one of open, closed, local-share",
        ),
        ("node: 'a:1', fail: local-share", "hosts: missing"),
        ("node: 'a:1', fail: local-share, hosts: 0", "from 1 to"),
        ("node: a, fail: open", "expected host:port"),
        ("node: 'a:0', fail: open", "expected host:port"),
        ("node: 'redis://u:hidden@a:1', fail: open", "not shown"),
        ("cluster: [], fail: open", "an empty list"),
        ("cluster: ['a:1', 'a:1'], fail: open", "a second time"),
        (
            "cluster: ['a:1'], database: 1, fail: open",
            "database 0 alone",
        ),
        ("sentinels: ['a:1'], fail: open", "the master by"),
        ("node: 'a:1', master: m, fail: open", "without `sentinels`"),
        ("node: 'a:1', password: secret, fail: open", "not shown"),
        (
            "node: 'a:1', username: u, fail: open",
            "missing beside username",
        ),
        ("node: 'a:1', ca: c.pem, fail: open", "`ca` without `tls`"),
        (
            "node: 'a:1', timeout: 2s, fail: open",
            "more than 0 and at most 1s",
        ),
        (
            "node: 'a:1', timeout: 0s, fail: open",
            "more than 0 and at most 1s",
        ),
        ("node: 'a:1', prefix: 'a b', fail: open", "printable"),
        ("node: 'a:1', prefix: '{a}', fail: open", "braces"),
        (
            "node: 'a:1', pasword: '${env:KEY}', fail: open",
            "did you mean \"password\"",
        ),
    ] {
        let to = format!("{SERVER}  store: {{ redis: {{ {redis} }} }}\n");
        refused(SERVER, &to, about);
        assert!(!mistakes(&with(redis)).join("\n").contains("hidden"));
    }
    for (store, about) in [
        ("store: remote", "expected one of local"),
        ("store: {}", "redis: missing"),
        ("store: 1", "one of local, or a map"),
    ] {
        refused(SERVER, &format!("{SERVER}  {store}\n"), about);
    }
}

#[test]
fn a_redis_over_an_open_network_without_tls_is_a_warning() {
    let warnings = |text: &str| lines(&load_text(&with(text)).unwrap().warnings);
    let told = warnings("node: 'redis.example.com:6379', fail: open");
    assert!(
        told.len() == 1 && told[0].contains("without `tls`"),
        "{told:?}"
    );
    assert_eq!(
        warnings("node: 'redis.example.com:6379', tls: true, fail: open"),
        [""; 0]
    );
    assert_eq!(warnings("node: '10.0.0.7:6379', fail: open"), [""; 0]);
}
