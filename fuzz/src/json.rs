//! The JSON walk, held against serde_json.
//!
//! Input: a text.

use serde::de::IgnoredAny;
use serde_json::Value;
use tidegate::json::{self, Fault, MAX_DEPTH, Walk};

pub fn check(data: &[u8]) {
    let _ = json::count(data);
    let _ = json::pick(data, ["model"]);
    let _ = json::items(data).count();
    let mut walk = Walk::new(data, 0);
    let walked = walk.value(0);
    walk.blank();
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let theirs = serde_json::from_str::<IgnoredAny>(text).is_ok();
    let whole = walk.peek().is_none();
    match walked {
        Ok(span) => {
            assert_eq!(whole, theirs, "{text}");
            if whole {
                understood(text, &text[span]);
            }
        }
        Err(Fault::TooDeep) => {
            let openings = text.bytes().filter(|byte| b"[{".contains(byte)).count();
            assert!(openings > MAX_DEPTH as usize);
        }
        Err(Fault::Malformed { offset, .. }) => {
            assert!(offset <= data.len());
            assert!(!theirs, "{text}");
        }
    }
    assert_eq!(
        json::text(json::quoted(text).as_bytes()).as_deref(),
        Some(text)
    );
}

/// What is taken out of a well-formed value is what another reader finds there.
fn understood(text: &str, value: &str) {
    assert_eq!(value, text.trim_matches([' ', '\t', '\r', '\n']));
    if value.starts_with('"') {
        let theirs = serde_json::from_str::<String>(value).ok();
        assert_eq!(json::text(value.as_bytes()).as_deref(), theirs.as_deref());
    }
    let picked = json::pick(text.as_bytes(), ["model", "a", ""]);
    assert_eq!(picked.is_some(), value.starts_with('{'));
    let read =
        |part: &[u8]| serde_json::from_slice::<Value>(part).expect("a part of what was read");
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(members)) => {
            let names = ["model", "a", ""];
            for (name, ours) in names.into_iter().zip(picked.into_iter().flatten()) {
                assert_eq!(
                    ours.map(read).as_ref(),
                    members.get(name),
                    "{name} of {text}"
                );
            }
        }
        Ok(Value::Array(theirs)) => {
            let ours: Vec<Value> = json::items(value.as_bytes()).map(read).collect();
            assert_eq!(ours, theirs);
        }
        Ok(Value::Number(number)) => {
            if let Some(count) = number.as_u64() {
                assert_eq!(json::count(value.as_bytes()), Some(count));
            }
        }
        _ => {}
    }
}
