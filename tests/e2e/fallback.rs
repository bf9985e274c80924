//! When the first variant of a model cannot answer: another upstream with its own name for the
//! model, by what the first one failed with, and at last the configured answer.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::emulator::EmulatorConfig;

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";

struct Two {
    first: Emulator,
    second: Emulator,
    gateway: Gateway,
}

/// A provider with two accounts, and behind it an engine of our own with one model.
fn two(change: impl FnOnce(Config) -> Config) -> Two {
    let first = Emulator::start(Emulator::with_accounts(2));
    let second = Emulator::start(EmulatorConfig {
        self_hosted: true,
        ..Emulator::with_accounts(2)
    });
    let accounts: Vec<_> = second.accounts().to_vec();
    let slots: Vec<_> = accounts
        .iter()
        .map(|(name, _)| json!({"id": name, "api_key": format!("${{file:{name}.key}}")}))
        .collect();
    let config = Config::for_emulator(&first)
        .set(
            "/upstreams/-",
            json!({
                "id": "own", "dialect": "openai", "endpoints": [{"url": second.url()}],
                "accounts": slots, "outlier": false, "breaker": false, "surfaces": ["chat"],
            }),
        )
        .set(
            "/models/deepseek-flash/variants/-",
            json!({"upstream": "own", "model": "own-small"}),
        )
        .set(
            "/retry",
            json!({"base_backoff": "1ms", "budget_reserve": 1000}),
        )
        .set("/upstreams/0/outlier", json!(false))
        .set("/upstreams/0/breaker", json!(false));
    let gateway = Gateway::start(change(config));
    Two {
        first,
        second,
        gateway,
    }
}

impl Two {
    fn line(&self, answer: &Answer) -> Value {
        let id = answer.header("x-request-id").unwrap_or_default();
        self.gateway.access_line(id)
    }
}

#[test]
fn another_upstream_answers_by_its_own_name_for_the_model() {
    let two = two(|config| config);
    two.first.order(None, "status=503");
    for body in [chat("Hello."), chat_stream("Hello.")] {
        let answer = two.gateway.post(CHAT, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let line = two.line(&answer);
        assert_eq!(
            (&line["upstream"], &line["attempts"]),
            (&json!("own"), &json!(3)),
            "{line}"
        );
        assert_eq!(line["model"], "deepseek-flash");
    }
    let asked = two.second.calls();
    assert!(
        asked.iter().all(|call| call["model"] == "own-small"),
        "{asked:?}"
    );
}

#[test]
fn a_variant_is_asked_after_the_failures_it_is_there_for_and_tried_as_any_other() {
    let on = json!(["unavailable"]);
    let two = two(|config| config.set("/models/deepseek-flash/variants/1/on", on));
    two.first.order(None, "status=500");
    let answer = two.gateway.post(CHAT, &chat("Hello."));
    assert_eq!(
        (answer.status, answer.code()),
        (502, "upstream_error".to_owned())
    );
    assert!(two.second.calls().is_empty());
    two.first.order(None, "status=503");
    // What the second one fails with is not what it is there for; its other account is.
    two.second.order(Some("account-1"), "status=500");
    for _ in 0..4 {
        let config = two.gateway.post(CHAT, &chat("Hello."));
        let line = two.line(&config);
        assert!(config.status == 200 || line["attempts"] == 3, "{line}");
        assert_eq!(line["upstream"], "own", "{line}");
    }
}

fn degrading(config: Config) -> Config {
    let text = json!({"text": "{model} rests. {request_id}"});
    config.set("/models/deepseek-flash/degraded", text)
}

#[test]
fn the_configured_answer_comes_in_the_callers_shape_and_says_what_it_is() {
    let two = two(degrading);
    two.first.order(None, "status=503");
    two.second.order(None, "status=500");
    for (path, body, shows) in [
        (CHAT, chat("Hello."), "\"finish_reason\":\"degraded\""),
        (CHAT, chat_stream("Hello."), "data: [DONE]"),
        (
            "/anthropic/v1/messages",
            message("Hello."),
            "\"stop_reason\":\"degraded\"",
        ),
        (
            "/anthropic/v1/messages",
            message_stream("Hello."),
            "event: message_stop",
        ),
        (
            "/v1/responses",
            response("Hello."),
            "\"reason\":\"degraded\"",
        ),
        (
            "/v1/responses",
            with(response("Hello."), "stream", json!(true)),
            "response.incomplete",
        ),
    ] {
        let answer = two.gateway.post(path, &body);
        let case = format!("{path}: {}", answer.text());
        assert_eq!(
            (answer.status, answer.ending),
            (200, Ending::Whole),
            "{case}"
        );
        assert_eq!(
            answer.header("x-tidegate-degraded"),
            Some("static"),
            "{case}"
        );
        let id = answer.header("x-request-id").unwrap();
        assert!(answer.text().contains(shows), "{case}");
        assert!(
            answer
                .text()
                .contains(&format!("deepseek-flash rests. {id}")),
            "{case}"
        );
        let line = two.line(&answer);
        assert_eq!(
            (&line["degraded"], &line["ending"]),
            (&json!(true), &json!("complete")),
            "{line}"
        );
        assert_eq!(line["prompt_tokens"], Value::Null, "{line}");
    }
    two.gateway.wait_until_idle(Duration::from_secs(10));
    two.gateway.wait_until_written();
    assert!(books::ledger(&two.gateway.state_dir()).is_empty());
    // What is the caller's own fault is told as ever.
    let bad = with(chat("Hello."), "max_tokens", json!(-1));
    two.first.order(None, "");
    assert_eq!(two.gateway.post(CHAT, &bad).status, 422);
}

#[test]
fn after_keep_alives_the_configured_answer_comes_as_content() {
    let hold = json!({"hold_head": "0s", "base_backoff": "1ms", "attempts": 1});
    let two = two(|config| degrading(config).set("/retry", hold));
    two.first.order(None, "queue=300ms,cut_after=0");
    let answer = two.gateway.post(CHAT, &chat_stream("Hello."));
    assert_eq!((answer.status, answer.ending), (200, Ending::Whole));
    assert!(answer.text().contains("keep-alive"), "{}", answer.text());
    assert!(
        answer.text().contains("deepseek-flash rests."),
        "{}",
        answer.text()
    );
    assert!(answer.text().contains("\"finish_reason\":\"degraded\""));
}

#[test]
fn a_stream_is_gone_on_with_by_its_own_model_or_by_none() {
    let two = two(|config| {
        config
            .set("/models/deepseek-flash/resume", json!(2))
            .set("/upstreams/0/affinity", json!(false))
    });
    // The second answer to each question is refused: nobody of the first upstream can go on.
    two.first.order(None, "cut_after=8,times=1");
    let question = with(
        chat_stream("Hello."),
        "thinking",
        json!({"type": "disabled"}),
    );
    let answer = two.gateway.post(CHAT, &question);
    assert_eq!(answer.ending, Ending::Whole, "{}", answer.text());
    two.first.order(None, "cut_after=8");
    let answer = two.gateway.post(CHAT, &question);
    assert!(
        answer.text().contains("stream_interrupted"),
        "{}",
        answer.text()
    );
    assert!(two.second.calls().is_empty());
}

#[test]
fn part_of_an_answer_that_says_so_is_given_and_billed_when_nobody_is_left() {
    let two = two(|config| config.set("/retry/attempts", json!(1)));
    two.first.order(None, "finish=insufficient_system_resource");
    let answer = two.gateway.post(CHAT, &chat("Hello."));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let reason = answer.json()["choices"][0]["finish_reason"].clone();
    assert_eq!(reason, "insufficient_system_resource");
    let line = two.line(&answer);
    assert_eq!(line["status"], 200, "{line}");
    assert!(
        line["completion_tokens"]
            .as_u64()
            .is_some_and(|count| count > 0),
        "{line}"
    );
}
