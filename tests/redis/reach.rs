//! Ways to a Redis: TLS, sentinels, a cluster.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tidegate::admission::store_redis::{ConnectError, RedisCounts};
use tidegate::config::secret::Secret;
use tidegate::config::settings::RedisNodes;

use crate::operators::documented_rule;
use crate::support::*;

/// An authority's certificate, and a leaf of it with its key, for `localhost`.
fn certificates(name: &str) -> (String, String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    (ca, leaf.pem(), leaf_key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_authority_and_the_name_are_verified() {
    let folder = tempfile::TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (ca, certificate, key) = certificates("ours");
    let (stranger, ..) = certificates("stranger");
    for (name, text) in [
        ("ca", ca.clone()),
        ("cert", certificate),
        ("key", key),
        ("other", stranger.clone()),
        ("both", stranger + &ca),
        ("none", String::new()),
    ] {
        fs::write(at(name), text).unwrap();
    }
    let port = free_port();
    let server = Server::start_at(
        port,
        &["--port", "0", "--tls-port", &port.to_string()],
        &[
            "--tls-cert-file",
            &at("cert"),
            "--tls-key-file",
            &at("key"),
            "--tls-ca-cert-file",
            &at("ca"),
            "--tls-auth-clients",
            "no",
        ],
    );
    let mut store = settings(RedisNodes::One(format!("localhost:{}", server.port)));
    store.tls = true;
    store.ca = Some(at("both").into());
    let host = Host::join(&store, "a").await;
    assert!(host.grant(&ask(vec![concurrency(1)])).await.is_some());

    for (nodes, ca) in [
        (format!("localhost:{port}"), "other"),
        (format!("127.0.0.1:{port}"), "ca"),
    ] {
        store.nodes = RedisNodes::One(nodes);
        store.ca = Some(at(ca).into());
        let counts = RedisCounts::connect(&store, "b").unwrap();
        assert!(counts.probe().await.is_err());
        let error = counts.state().last_error.unwrap();
        assert!(error.contains("certificate"), "{error}");
    }
    for ca in ["none", "absent"] {
        store.ca = Some(at(ca).into());
        let error = RedisCounts::connect(&store, "b").err().unwrap();
        assert!(matches!(error, ConnectError::Ca { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_each_root_on_one_node() {
    let nodes: Vec<_> = (0..3)
        .map(|_| Server::start(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]))
        .collect();
    let mut create = vec!["--cluster".to_owned(), "create".to_owned()];
    create.extend(nodes.iter().map(Server::address));
    create.push("--cluster-yes".to_owned());
    let create: Vec<_> = create.iter().map(String::as_str).collect();
    let printed = nodes[0].cli(&create);
    for node in &nodes {
        eventually(&format!("a cluster: {printed}"), || {
            node.cli(&["cluster", "info"])
                .contains("cluster_state:ok")
                .then_some(())
        });
    }
    let mut store = settings(RedisNodes::Cluster(vec![
        nodes[0].address(),
        nodes[1].address(),
    ]));
    let rule = documented_rule();
    let mut allow = vec!["acl", "setuser", "tidegate"];
    allow.extend(rule.iter().map(String::as_str));
    for node in &nodes {
        assert_eq!(node.cli(&allow), "OK");
        assert_eq!(
            node.cli(&["acl", "setuser", "tidegate", "+cluster|slots", "+ping"]),
            "OK"
        );
    }
    store.username = Some("tidegate".to_owned());
    store.password = Some(Secret::new("hunter2".to_owned()));
    let (a, b) = (Host::join(&store, "a").await, Host::join(&store, "b").await);
    for number in 0..30 {
        let mut wanted = ask(vec![concurrency(2), daily(10, 5)]);
        wanted.root = format!("tenant/{number}").into();
        let held = (
            a.grant(&wanted).await.unwrap(),
            b.grant(&wanted).await.unwrap(),
        );
        assert!(a.grant(&wanted).await.is_none());
        held.0.settle(&[1, 4]);
        held.1.settle(&[1, 3]);
        a.told().await;
        b.told().await;
        let standing = b.standing(&wanted).await;
        assert_eq!((standing[0].held, standing[1].used), (0, 7), "{number}");
    }
    let sizes: Vec<u64> = nodes
        .iter()
        .map(|node| node.cli(&["dbsize"]).parse().unwrap())
        .collect();
    assert!(
        sizes.iter().all(|&size| size > 0),
        "on all nodes: {sizes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_name_the_master_and_its_successor() {
    let mut master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    eventually("the replica follows", || {
        replica
            .cli(&["info", "replication"])
            .contains("master_link_status:up")
            .then_some(())
    });
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("sentinel.conf");
    let port = free_port();
    let lines = format!(
        "port {port}\nsentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n",
        master.port
    );
    fs::write(&file, lines).unwrap();
    let sentinel = Server::start_at(port, &[file.to_str().unwrap(), "--sentinel"], &[]);
    let store = settings(RedisNodes::Sentinel {
        nodes: vec!["127.0.0.1:1".to_owned(), sentinel.address()],
        master: "main".to_owned(),
    });
    let host = Host::join(&store, "a").await;
    let wanted = ask(vec![daily(10, 5)]);
    host.grant(&wanted).await.unwrap().settle(&[5]);
    host.told().await;
    eventually("the sentinel knows the replica", || {
        sentinel
            .cli(&["sentinel", "replicas", "main"])
            .contains(&replica.port.to_string())
            .then_some(())
    });
    eventually("replicated", || {
        (replica
            .cli(&["hget", "{tidegate:tenant/acme}", "daily"])
            .starts_with("0 5"))
        .then_some(())
    });
    master.kill();
    let held = in_time("the replica took over", async || {
        match host.counts.reserve(wanted.clone()).await {
            Ok(tidegate::admission::store_redis::Verdict::Granted { reservation, .. }) => {
                Some(reservation)
            }
            _ => None,
        }
    })
    .await;
    drop(held);
    assert_eq!(host.standing(&wanted).await[0].used, 5);
}
