//! The first moments, and settings that lead nowhere.

use super::*;

#[test]
fn who_is_ready_has_asked_redis() {
    let emulator = Emulator::quick();
    let redis = start_redis(&[]);
    let plan = json!({"requests_per_day": 1_000});
    redis.signal("-STOP");
    let gateway = Gateway::launch(config(&emulator, &redis, plan, &closed()));
    eventually("the upstream was asked after its health", SOON, || {
        let journal = Request::get("/_emulator/journal").send(emulator.address());
        let entries = journal.json();
        (!entries.as_array().unwrap().is_empty()).then_some(())
    });
    assert!(!gateway.is_ready());
    redis.signal("-CONT");
    eventually("it is ready", SOON, || gateway.is_ready().then_some(()));
    assert!(is_up(&gateway));
    assert_eq!(status(&gateway), 200);
}

#[test]
fn a_redis_that_says_nothing_holds_a_start_up_for_a_moment_only() {
    let emulator = Emulator::quick();
    let redis = start_redis(&[]);
    redis.signal("-STOP");
    let plan = json!({"requests_per_day": 1_000});
    let gateway = Gateway::start(config(&emulator, &redis, plan, &open()));
    assert!(!is_up(&gateway));
    assert_eq!(status(&gateway), 200);
}

#[test]
fn a_redis_that_is_down_stops_no_start() {
    let emulator = Emulator::quick();
    let mut redis = start_redis(&[]);
    redis.kill();
    let plan = json!({"requests_per_day": 1_000});
    let mut gateways = Vec::new();
    for (fail, expected) in [(closed(), 503), (open(), 200)] {
        let gateway = Gateway::start(config(&emulator, &redis, plan.clone(), &fail));
        assert_eq!(status(&gateway), expected);
        assert!(!is_up(&gateway));
        gateway.logged(&["redis: cannot be used", "refused"]);
        gateways.push(gateway);
    }
    redis.restart();
    let gateways = gateways.try_into().ok().unwrap();
    all_know(&gateways, true);
    assert_eq!(agreed(&gateways, DAY)["used"], 1);
    assert!(gateways.iter().all(|gateway| status(gateway) == 200));
}

#[test]
fn a_bundle_of_authorities_that_cannot_be_used_is_found_by_check_and_by_run() {
    let emulator = Emulator::quick();
    let redis = start_redis(&[]);
    let config = config(&emulator, &redis, json!({}), &closed());
    let gateway = Gateway::start(config);
    let path = gateway.config_path();
    let written = std::fs::read_to_string(&path).unwrap();
    for (ca, content) in [("absent.pem", None), ("empty.pem", Some("no certificate"))] {
        if let Some(content) = content {
            std::fs::write(gateway.folder().join(ca), content).unwrap();
        }
        let mut value: Value = serde_yaml::from_str(&written).unwrap();
        value["server"]["store"]["redis"]["tls"] = json!(true);
        value["server"]["store"]["redis"]["ca"] = json!(ca);
        value["server"]["listeners"][0]["address"] = json!(free_address().to_string());
        value["server"]["admin"]["address"] = json!(free_address().to_string());
        let changed = gateway.folder().join("changed.yaml");
        std::fs::write(&changed, serde_yaml::to_string(&value).unwrap()).unwrap();
        for verb in ["check", "run"] {
            let output = tidegate()
                .arg(verb)
                .arg("-c")
                .arg(&changed)
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{verb} {ca}: {told}");
            assert!(told.contains("server.store.redis: the CA bundle"), "{told}");
            assert!(told.contains(ca), "{told}");
        }
    }
}
