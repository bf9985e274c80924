//! When the upstream does not say what an answer took, or says nonsense, or breaks off.

use serde_json::json;

use super::*;

const TOKENS: &str = "all/*/tokens_per_month";
const ESTIMATED: &str = "tidegate_usage_estimated_total";

fn plan() -> Value {
    json!({"tokens_per_month": 1_000_000})
}

/// Asks for an answer under this fault, in each way, and gives what it was charged.
fn charged(gateway: &Gateway, fault: &str) -> Vec<(&'static str, Answer, u64)> {
    let text = format!("[[fault:{fault}]] hello, how are you?");
    let bodies = [
        (CHAT, chat(&text)),
        (CHAT, chat_stream(&text)),
        (MESSAGES, message(&text)),
        (MESSAGES, message_stream(&text)),
    ];
    let mut charges = Vec::new();
    for (path, body) in bodies {
        let before = used(gateway, TOKENS);
        let answer = gateway.stream(path, &body).rest();
        charges.push((path, answer, used(gateway, TOKENS) - before));
    }
    charges
}

#[test]
fn usage_that_is_missing_or_nonsense_is_estimated_and_locks_nobody_out() {
    let (_emulator, gateway) = stage(plan());
    let real: Vec<_> = charged(&gateway, "tokens=40")
        .into_iter()
        .map(|charge| charge.2)
        .collect();
    assert_eq!(gateway.metric(ESTIMATED, &[]), 0.0);
    for fault in [
        "usage=none",
        "bad_usage=negative",
        "bad_usage=huge",
        "bad_usage=text",
    ] {
        let before = gateway.metric(ESTIMATED, &[]);
        let charges = charged(&gateway, &format!("tokens=40,{fault}"));
        for ((path, answer, charge), real) in charges.iter().zip(&real) {
            assert_eq!(answer.status, 200);
            // Of the right order: neither a gift nor a fine.
            let fair = real / 4..=real * 8;
            assert!(
                fair.contains(charge),
                "{fault} on {path}: {charge} for {real}"
            );
            let line = gateway.access_line(answer.header("x-request-id").unwrap());
            assert_eq!(line["usage_estimated"], true, "{fault}: {line}");
        }
        assert_eq!(gateway.metric(ESTIMATED, &[]), before + 4.0, "{fault}");
    }
    let nonsense = gateway.metric(
        "tidegate_usage_nonsensical_total",
        &["upstream=\"deepseek\""],
    );
    assert!(nonsense >= 4.0, "{nonsense}");
    // More cached tokens than there were tokens: the cached ones are cut to the prompt.
    for (path, answer, charge) in charged(&gateway, "tokens=40,bad_usage=inverted") {
        assert_eq!(answer.status, 200);
        assert!(charge < 5_000, "{path}: {charge}");
    }
    assert!(gateway.is_serving());
}

#[test]
fn a_stream_that_is_cut_is_charged_by_what_passed() {
    let (emulator, gateway) = stage(plan());
    let body = chat_stream("[[fault:tokens=400,cut_after=50]] hello, how are you?");
    let answer = gateway.stream(CHAT, &body).rest();
    assert!(!answer.text().contains("[DONE]"));
    let charge = used(&gateway, TOKENS);
    let billed = emulator.call()["usage"].clone();
    let billed = billed["prompt"].as_u64().unwrap() + billed["completion"].as_u64().unwrap();
    assert!(
        (billed / 2..=billed * 2).contains(&charge),
        "{charge} for {billed}"
    );
    assert_eq!(gateway.metric(ESTIMATED, &["tenant=\"acme\""]), 1.0);
    let line = gateway.access_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["usage_estimated"], true);
}

#[test]
fn a_client_that_leaves_is_charged_by_what_passed() {
    let (_emulator, gateway) = stage(plan());
    let body = chat_stream("[[fault:tokens=400,stall_after=30]] hello, how are you?");
    let mut stream = gateway.stream(CHAT, &body);
    stream.read_until("data: ");
    drop(stream);
    let charge = used(&gateway, TOKENS);
    assert!((2..400).contains(&charge), "{charge}");
}

#[test]
fn a_plan_may_charge_cut_answers_by_what_was_reported_alone() {
    let (_emulator, gateway) = stage(with(plan(), "cut_charge", json!("reported")));
    let body = chat_stream("[[fault:tokens=400,cut_after=50]] hello, how are you?");
    assert!(!gateway.stream(CHAT, &body).rest().text().contains("[DONE]"));
    assert_eq!(used(&gateway, TOKENS), 0);
    // In the Anthropic format the prompt is told at the start.
    let body = message_stream("[[fault:tokens=400,cut_after=50]] hello, how are you?");
    gateway.stream(MESSAGES, &body).rest();
    let prompt = used(&gateway, TOKENS);
    assert!((1..100).contains(&prompt), "{prompt}");
}

#[test]
fn an_answer_that_never_began_costs_no_tokens() {
    let (_emulator, gateway) = stage(plan());
    for fault in [
        "status=500",
        "reset",
        "status=503",
        "queue=100ms,end_after=0",
    ] {
        let body = chat_stream(&format!("[[fault:{fault}]] hello"));
        gateway.stream(CHAT, &body).rest();
        assert_eq!(used(&gateway, TOKENS), 0, "{fault}");
    }
}
