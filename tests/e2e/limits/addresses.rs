//! Before anybody is known, addresses are held to a pace.

use super::*;

#[test]
fn an_address_that_begins_too_many_requests_is_refused_before_it_is_known() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).limit("max_requests_per_second_per_ip", 3);
    let gateway = Gateway::start(config);
    let request = Request::post(CHAT, &chat("hello")).bearer("tg_nobody_knows");
    let answers: Vec<_> = (0..40).map(|_| request.send(gateway.address())).collect();
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == 429)
        .collect();
    assert!(
        refused.len() >= 20,
        "{} of {}",
        refused.len(),
        answers.len()
    );
    for answer in &refused {
        assert_eq!(answer.code(), "too_many_requests_from_address");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    let failures = gateway.metric("tidegate_authentication_failures_total", &[]);
    assert_eq!(failures, (answers.len() - refused.len()) as f64);
    // It passes.
    eventually("the address is heard again", SOON, || {
        gateway.is_serving().then_some(())
    });
}
