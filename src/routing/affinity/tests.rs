use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::request::scan::scan;

fn key_of(body: &Value) -> Option<u64> {
    key_of_text(&body.to_string())
}

fn key_of_text(body: &str) -> Option<u64> {
    key("tenant", "flash", &scan(body.as_bytes()).unwrap())
}

fn with(mut body: Value, member: &str, value: Value) -> Value {
    body[member] = value;
    body
}

/// A conversation that has come to this turn, for each API.
fn at_turn(turn: usize) -> Vec<Value> {
    let said = |from: usize| {
        (from..turn).flat_map(|number| {
            [
                json!({"role": "assistant", "content": format!("answer {number}")}),
                json!({"role": "user", "content": format!("question {number}")}),
            ]
        })
    };
    let first = json!({"role": "user", "content": "what is \"a\\b\"?"});
    let system = json!({"role": "system", "content": "be brief"});
    let tools = json!([{"type": "function", "function": {"name": "look_up"}}]);
    let messages: Vec<_> = [first].into_iter().chain(said(0)).collect();
    let chat: Vec<_> = [system].into_iter().chain(messages.clone()).collect();
    vec![
        json!({"model": "m", "messages": chat, "tools": tools}),
        json!({"model": "m", "system": "be brief", "messages": messages, "tools": tools}),
        json!({"instructions": "be brief", "input": messages, "tools": tools}),
        json!({"prompt": format!("{}{}", "once upon a time ".repeat(80), "on ".repeat(turn))}),
    ]
}

#[test]
fn a_conversation_has_one_key_at_all_its_turns() {
    for (first, tenth) in at_turn(0).iter().zip(at_turn(10)) {
        assert!(key_of(first).is_some());
        assert_eq!(key_of(first), key_of(&tenth), "{first}");
    }
}

#[test]
fn keys_are_the_same_in_every_build() {
    let keys: Vec<_> = at_turn(0)
        .iter()
        .map(|body| key_of(body).unwrap())
        .collect();
    let known = [
        10_948_661_950_400_515_579,
        8_963_985_568_594_073_970,
        17_885_741_818_912_745_601,
        8_715_778_025_647_309_969,
    ];
    assert_eq!(keys, known);
}

#[test]
fn whatever_begins_otherwise_has_another_key() {
    for body in at_turn(3) {
        let scanned = body.to_string();
        let scanned = scan(scanned.as_bytes()).unwrap();
        let mut keys = vec![
            key("tenant", "flash", &scanned),
            key("other", "flash", &scanned),
            key("tenant", "pro", &scanned),
            key("tenantf", "lash", &scanned),
        ];
        for (member, value) in [
            ("user_id", json!("a")),
            ("user_id", json!("b")),
            ("metadata", json!({"user_id": "c"})),
            ("system", json!("be long")),
            ("instructions", json!("be long")),
            ("tools", json!([{"name": "look_down"}])),
        ] {
            keys.push(key_of(&with(body.clone(), member, value)));
        }
        for member in ["messages", "input"] {
            if let Some(Value::Array(messages)) = body.get(member) {
                let mut messages = messages.clone();
                let user = messages.iter().position(|it| it["role"] == "user");
                messages[user.unwrap()]["content"] = json!("what is \"a\\c\"?");
                keys.push(key_of(&with(body.clone(), member, json!(messages))));
            }
        }
        assert!(keys.iter().all(Option::is_some));
        let different: HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len(), "{body}");
    }
}

#[test]
fn what_clients_move_and_rewrite_changes_nothing() {
    let plain = json!({"system": "be brief", "messages": [
        {"role": "user", "content": "hello"}]});
    let marked = json!({
        "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [
            {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        ]}, {"role": "assistant", "content": "hello yourself"}]});
    assert_eq!(key_of(&plain), key_of(&marked));
    let spaced = serde_json::to_string_pretty(&marked).unwrap();
    assert_eq!(key_of_text(&spaced), key_of(&plain));
    let string = json!({"input": "hello"});
    let listed = json!({"input": [{"role": "user", "content": "hello"}, {"role": "assistant",
        "content": [{"type": "output_text", "text": "yes"}]}]});
    assert_eq!(key_of(&string), key_of(&listed));
}

#[test]
fn odd_shapes_have_a_key_if_they_say_anything() {
    for nothing in [
        json!({}),
        json!({"messages": []}),
        json!({"messages": null}),
        json!({"messages": 7, "tools": [], "system": ""}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{}, [], null, true, 1.5]}),
        json!({"input": ""}),
        json!({"prompt": ""}),
        json!({"prompt": null}),
        json!({"user": "somebody"}),
    ] {
        assert_eq!(key_of(&nothing), None, "{nothing}");
    }
    let some = [
        json!({"messages": "hello"}),
        json!({"messages": ["hello", "there"]}),
        json!({"messages": {"role": "user", "content": "hello"}}),
        json!({"messages": [{"role": "system", "content": "hello"}]}),
        json!({"messages": [{"role": "assistant", "content": "hello"}]}),
        json!({"messages": [{"content": "hello", "role": "user"}]}),
        json!({"messages": [["hello"]]}),
        json!({"messages": [{"role": ["user"], "content": "hello"}]}),
        json!({"messages": [{"role": "user", "content": {"a": [{"b": "hello"}]}}]}),
        json!({"prompt": ["a", "b"]}),
        json!({"prompt": [1, 2]}),
        json!({"system": "hello"}),
        json!({"tools": [{"name": "look_up"}]}),
    ];
    for body in some {
        assert!(key_of(&body).is_some(), "{body}");
    }
}

#[test]
fn the_first_user_message_counts_behind_any_system_prompt() {
    let body = |system: &str, user: &str| {
        json!({"messages": [
            {"role": "system", "content": system},
            {"role": "system", "content": system},
            {"role": "assistant", "content": user.len().to_string()},
            {"content": user, "role": "user"},
            {"role": "assistant", "content": user}]})
    };
    let long = "Be brief. \\n".repeat(100_000);
    assert_ne!(key_of(&body(&long, "one")), key_of(&body(&long, "two")));
    assert_ne!(key_of(&body("a", &long)), key_of(&body("b", &long)));
}

#[test]
fn only_the_beginning_of_a_long_text_counts() {
    let body = |user: String| json!({"messages": [{"role": "user", "content": user}]});
    let long = |length: usize| body("\\\"a".repeat(length));
    assert_eq!(key_of(&long(10_000)), key_of(&long(300_000)));
    assert_ne!(key_of(&long(1_000)), key_of(&long(1_001)));
}

#[test]
fn keys_of_like_conversations_are_spread_evenly() {
    let count = 4_096u64;
    let bodies = (0..count).map(|number| {
        json!({"messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": format!("question {number}")}]})
    });
    let keys: Vec<_> = bodies.map(|body| key_of(&body).unwrap()).collect();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len() as u64, count);
    for bit in 0..64 {
        let set: u64 = keys.iter().map(|key| key >> bit & 1).sum();
        // Six standard deviations.
        assert!(set.abs_diff(count / 2) < 6 * 32, "bit {bit}: {set}");
    }
}

#[test]
fn each_bit_of_a_text_turns_half_of_the_key_over() {
    let hashed = |text: &[u8]| {
        let mut hash = Hash(FACTOR);
        hash.bytes(text);
        hash.finish()
    };
    let text = *b"The quick brown fox jumps.";
    let mut turned = 0;
    for bit in 0..text.len() * 8 {
        let mut other = text;
        other[bit / 8] ^= 1 << (bit % 8);
        let difference = (hashed(&text) ^ hashed(&other)).count_ones();
        assert!((10..=54).contains(&difference), "bit {bit}: {difference}");
        turned += u64::from(difference);
    }
    let mean = turned / (text.len() as u64 * 8);
    assert!((30..=34).contains(&mean), "{mean}");
    assert_ne!(hashed(b"a"), hashed(b"a\0"));
    assert_ne!(hashed(b""), hashed(b"\0"));
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just("user".to_owned()),
        Just("\\\"".to_owned()),
        "\\PC{0,90}"
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let names = prop_oneof![
        Just("role".to_owned()),
        Just("content".to_owned()),
        Just("type".to_owned()),
        Just("cache_control".to_owned()),
        "[a-z\"\\\\]{0,4}"
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((names.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_comes_after_the_first_user_message_never_counts(
        before in proptest::collection::vec(any_value(), 0..4),
        user in any_value(),
        after in proptest::collection::vec(any_value(), 0..4),
        system in any_value(),
        field in prop_oneof![Just("messages"), Just("input")],
    ) {
        let mut messages = before;
        messages.push(json!({"content": user, "role": "user"}));
        let first = json!({"system": system, field: messages});
        messages.extend(after);
        let later = json!({"system": system, field: messages});
        prop_assert_eq!(key_of(&first), key_of(&later));
        let spaced = serde_json::to_string_pretty(&later).unwrap();
        prop_assert_eq!(key_of_text(&spaced), key_of(&later));
    }

    #[test]
    fn any_body_has_one_key_or_none(
        members in proptest::collection::vec((0usize..8, any_value()), 0..8),
    ) {
        let names = ["messages", "input", "prompt", "system", "instructions", "tools", "user", "x"];
        let members = members.into_iter().map(|(name, value)| (names[name].to_owned(), value));
        let body = Value::Object(members.collect());
        prop_assert_eq!(key_of(&body), key_of(&body));
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), most in 0usize..40) {
        let mut hash = Hash(0);
        Head::of(&bytes, most, &mut hash).take_whole();
        Head::of(&bytes, most, &mut hash).take_to_first_user_message();
    }
}
