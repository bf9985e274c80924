//! Request bodies: what the scan takes is what any other reader takes, and edits change what they
//! are to change and nothing else.
//!
//! Input: a body.

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tidegate::request::edit::{Edits, JsonText};
use tidegate::request::scan::{self, Fields, ScanError};
use tidegate::routing::affinity;

pub fn check(body: &[u8]) {
    let theirs = serde_json::from_slice::<IgnoredAny>(body).is_ok();
    match scan::scan(body) {
        Ok(fields) => {
            assert!(theirs);
            agreed(body, &fields);
            edited(body, &fields);
        }
        Err(error) => {
            let harmless = match &error {
                ScanError::NotUtf8 { offset } => std::str::from_utf8(&body[..*offset]).is_ok(),
                ScanError::Malformed { expected, .. } => !theirs || expected.contains("whole"),
                ScanError::NotAnObject => begins_otherwise(body),
                _ => true,
            };
            assert!(harmless, "{error}");
            assert!(error.to_string().ends_with('.'));
        }
    }
}

/// Behind the white space of RFC 8259 §2, which is less than ASCII's.
fn begins_otherwise(body: &[u8]) -> bool {
    let first = body.iter().find(|byte| !b" \t\r\n".contains(byte));
    first != Some(&b'{')
}

fn read(body: &[u8]) -> Option<Map<String, Value>> {
    // Numbers without bound and halves of characters are well-formed, and not for every reader.
    serde_json::from_slice(body).ok()
}

fn agreed(body: &[u8], fields: &Fields<'_>) {
    for member in fields.members() {
        assert!(
            fields
                .bytes(&member.value)
                .is_some_and(|value| !value.is_empty())
        );
    }
    let _ = fields.names_files();
    let key = affinity::key("tenant", "model", fields);
    assert_eq!(key, affinity::key("tenant", "model", fields));
    let Some(theirs) = read(body) else {
        return;
    };
    let model = fields.model.as_ref().map(|model| model.value.as_ref());
    assert_eq!(model, theirs.get("model").and_then(Value::as_str));
    assert_eq!(fields.stream, theirs.get("stream").and_then(Value::as_bool));
    let usage = theirs
        .get("stream_options")
        .and_then(|options| options.get("include_usage"));
    let ours = fields.stream_options.as_ref();
    let ours = ours.and_then(|options| options.include_usage);
    assert_eq!(ours, usage.and_then(Value::as_bool));
    let most = theirs.get("max_tokens").and_then(Value::as_u64);
    assert_eq!(fields.max_tokens, most);
    assert_eq!(fields.messages.is_some(), theirs.contains_key("messages"));
    assert_eq!(fields.empty, theirs.is_empty());
}

fn edited(body: &[u8], fields: &Fields<'_>) {
    let mut edits = Edits::new();
    edits.replace_model(fields, "another");
    edits.ask_for_usage(fields);
    edits.set(fields, "user_id", &JsonText::from("somebody"));
    edits.set(fields, "thinking", &JsonText::from(true));
    edits.set_metadata_user_id(fields, "somebody");
    let mut whole = body.to_vec();
    edits.clone().apply(&mut whole);
    let pieces = edits.pieces(&Bytes::copy_from_slice(body));
    assert_eq!(pieces.concat(), whole);

    let again = match scan::scan(&whole) {
        Ok(again) => again,
        Err(ScanError::TooManyFields) => return,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&whole)),
    };
    let model = again.model.as_ref().map(|model| model.value.as_ref());
    assert_eq!(model, Some("another"));
    let options = again.stream_options.as_ref();
    assert_eq!(
        options.and_then(|options| options.include_usage),
        Some(true)
    );
    let metadata = again.metadata.as_ref();
    let user = metadata.and_then(|metadata| metadata.user_id.as_ref());
    assert_eq!(user.map(|user| user.value.as_ref()), Some("somebody"));
    for key in ["user_id", "thinking"] {
        assert!(again.spans(key).next().is_some());
    }
    if let (Some(mut before), Some(mut after)) = (read(body), read(&whole)) {
        for key in ["model", "user_id", "thinking"] {
            before.shift_remove(key);
            after.shift_remove(key);
        }
        for (key, member) in [("stream_options", "include_usage"), ("metadata", "user_id")] {
            let [old, new] = [&mut before, &mut after].map(|all| all.shift_remove(key));
            let [old, new] = [old, new].map(|value| {
                let mut inner = value.and_then(|value| value.as_object().cloned());
                inner.as_mut().map(|inner| inner.shift_remove(member));
                inner.unwrap_or_default()
            });
            assert_eq!(old, new);
        }
        assert_eq!(before, after, "the rest stays");
    }
}
