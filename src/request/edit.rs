//! Decides which bytes of a scanned request change before an attempt, for the
//! stage that fits a request to an upstream. What is not named here stays byte
//! for byte as the tenant wrote it. It must not know why a field is set.
//!
//! Each edit belongs to one top-level field, or to one member inside it. A later
//! edit takes the place of every earlier one it would collide with (the same
//! member; the whole field against a member inside it), so edits never overlap.

use crate::json::{self, Braces};
use crate::request::scan::{Fields, Nested};
use bytes::Bytes;
use std::ops::Range;

/// One JSON value, known to be well-formed, ready to be written into a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(Box<str>);

impl From<&serde_json::Value> for JsonText {
    fn from(value: &serde_json::Value) -> Self {
        JsonText(value.to_string().into())
    }
}

impl From<&str> for JsonText {
    /// The JSON string that says `text`.
    fn from(text: &str) -> Self {
        JsonText(json::quoted(text).into())
    }
}

impl From<bool> for JsonText {
    fn from(value: bool) -> Self {
        JsonText(value.to_string().into())
    }
}

impl From<u64> for JsonText {
    fn from(value: u64) -> Self {
        JsonText(value.to_string().into())
    }
}

impl JsonText {
    /// The JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What happens at a place of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// These bytes are replaced.
    Value(Range<usize>),
    /// A member is inserted before the closing brace.
    Before(Braces),
}

impl Place {
    fn span(&self) -> Range<usize> {
        match self {
            Place::Value(span) => span.clone(),
            Place::Before(braces) => braces.close..braces.close,
        }
    }
}

#[derive(Debug, Clone)]
struct Edit {
    field: Box<str>,
    /// The member inside the field; `None` for the whole field.
    member: Option<&'static str>,
    place: Place,
    text: String,
}

/// Edits of one body. They fit the body whose [`Fields`] they were made with and
/// no other.
#[derive(Debug, Clone, Default)]
#[must_use = "edits change nothing until they are applied"]
pub struct Edits {
    edits: Vec<Edit>,
}

impl Edits {
    /// No edits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the body stays as it is.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Asks for another model. Nothing happens if it is the one already asked
    /// for; a body without a model gets one.
    pub fn replace_model(&mut self, fields: &Fields<'_>, name: &str) {
        if fields.model.as_ref().is_some_and(|m| m.value == name) {
            self.forget("model", None);
            return;
        }
        self.set(fields, "model", &JsonText::from(name));
    }

    /// Asks for the usage of a stream, whatever the caller said about it.
    pub fn ask_for_usage(&mut self, fields: &Fields<'_>) {
        let options = fields.stream_options.as_ref();
        if options.is_some_and(|options| options.include_usage == Some(true)) {
            self.forget("stream_options", None);
            return;
        }
        let value = options.map(|options| &options.value);
        let inner = options.and_then(|options| options.include_usage_span.clone());
        let on = JsonText::from(true);
        self.set_inside(fields, "stream_options", value, "include_usage", inner, &on);
    }

    /// Sets `metadata.user_id`, where the Anthropic format has the user.
    pub fn set_metadata_user_id(&mut self, fields: &Fields<'_>, user_id: &str) {
        let metadata = fields.metadata.as_ref();
        let value = metadata.map(|metadata| &metadata.value);
        let inner = metadata.and_then(|metadata| metadata.user_id_span.clone());
        let user_id = JsonText::from(user_id);
        self.set_inside(fields, "metadata", value, "user_id", inner, &user_id);
    }

    /// Sets a top-level field. Where the body has it more than once, all are set,
    /// so that no parser can prefer one that was not.
    pub fn set(&mut self, fields: &Fields<'_>, key: &str, json: &JsonText) {
        self.forget(key, None);
        let before = self.edits.len();
        for span in fields.spans(key) {
            self.edits.push(Edit {
                field: key.into(),
                member: None,
                place: Place::Value(span),
                text: json.as_str().to_owned(),
            });
        }
        if self.edits.len() == before {
            self.edits.push(Edit {
                field: key.into(),
                member: None,
                place: Place::Before(whole(fields)),
                text: format!("{}:{}", json::quoted(key), json.as_str()),
            });
        }
    }

    fn set_inside(
        &mut self,
        fields: &Fields<'_>,
        field: &'static str,
        value: Option<&Nested>,
        member: &'static str,
        inner: Option<Range<usize>>,
        json: &JsonText,
    ) {
        let pair = format!("\"{member}\":{}", json.as_str());
        let braces = value.and_then(|value| value.braces);
        let (member, place, text) = match (inner, braces, value) {
            (Some(inner), _, _) => (Some(member), Place::Value(inner), json.as_str().to_owned()),
            (None, Some(braces), _) => (Some(member), Place::Before(braces), pair),
            (None, None, Some(null)) => {
                let place = Place::Value(null.span.clone());
                (None, place, format!("{{{pair}}}"))
            }
            (None, None, None) => {
                let place = Place::Before(whole(fields));
                (None, place, format!("\"{field}\":{{{pair}}}"))
            }
        };
        self.forget(field, member);
        self.edits.push(Edit {
            field: field.into(),
            member,
            place,
            text,
        });
    }

    /// Drops the edits that an edit of `member` of `field` would collide with.
    fn forget(&mut self, field: &str, member: Option<&str>) {
        self.edits.retain(|edit| {
            let collides = member.is_none() || edit.member.is_none() || edit.member == member;
            !(*edit.field == *field && collides)
        });
    }

    /// Changes `body` in place: it grows once at most, and each byte moves once
    /// at most. Spans beyond `body` (of another body's fields) are left out.
    pub fn apply(self, body: &mut Vec<u8>) {
        let before = body.len();
        let splices = self.splices(before);
        let (mut removed, mut added) = (0, 0);
        for splice in &splices {
            removed += splice.span.len();
            added += splice.text.len();
        }
        let after = before - removed + added;
        if after > before {
            body.resize(after, 0);
        }
        // What moves to the left goes first, front to back, then what moves to
        // the right, back to front: nothing is written over before it has moved.
        let moves = moves(&splices, before);
        for (span, to) in moves.iter().filter(|(span, to)| *to < span.start) {
            body.copy_within(span.clone(), *to);
        }
        for (span, to) in moves.iter().rev().filter(|(span, to)| *to > span.start) {
            body.copy_within(span.clone(), *to);
        }
        let mut ends = moves.iter().map(|(span, to)| to + span.len());
        for splice in &splices {
            let Some(start) = ends.next() else { break };
            if let Some(place) = body.get_mut(start..start + splice.text.len()) {
                place.copy_from_slice(splice.text.as_bytes());
            }
        }
        body.truncate(after);
    }

    /// The edited body in pieces, front to back. Unchanged stretches share the
    /// memory of `body`, so a long body costs nothing and stays whole for another
    /// attempt with other edits.
    pub fn pieces(self, body: &Bytes) -> Vec<Bytes> {
        let splices = self.splices(body.len());
        let mut pieces = Vec::with_capacity(2 * splices.len() + 1);
        let mut at = 0;
        for splice in splices {
            pieces.push(body.slice(at..splice.span.start));
            pieces.push(Bytes::from(splice.text));
            at = splice.span.end;
        }
        pieces.push(body.slice(at..));
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    /// The edits front to back; those inserted at one place in the order in which
    /// they were asked for, commas included.
    fn splices(mut self, len: usize) -> Vec<Splice> {
        self.edits
            .sort_by_key(|edit| (edit.place.span().start, edit.place.span().end));
        let mut splices: Vec<Splice> = Vec::with_capacity(self.edits.len());
        for edit in self.edits {
            let span = edit.place.span();
            let last = splices.last().map(|last| last.span.clone());
            if span.end > len || last.as_ref().is_some_and(|last| last.end > span.start) {
                continue;
            }
            let text = match edit.place {
                Place::Value(_) => edit.text,
                Place::Before(braces) if braces.empty && last.as_ref() != Some(&span) => edit.text,
                Place::Before(_) => format!(",{}", edit.text),
            };
            splices.push(Splice { span, text });
        }
        splices
    }
}

struct Splice {
    span: Range<usize>,
    text: String,
}

/// The stretches between the splices and where each has to go.
fn moves(splices: &[Splice], len: usize) -> Vec<(Range<usize>, usize)> {
    let mut moves = Vec::with_capacity(splices.len() + 1);
    let (mut from, mut to) = (0, 0);
    for splice in splices {
        moves.push((from..splice.span.start, to));
        to += splice.span.start - from + splice.text.len();
        from = splice.span.end;
    }
    moves.push((from..len, to));
    moves
}

fn whole(fields: &Fields<'_>) -> Braces {
    Braces {
        close: fields.end,
        empty: fields.empty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::scan::scan;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn edited(body: &str, ask: impl Fn(&mut Edits, &Fields<'_>)) -> String {
        let fields = scan(body.as_bytes()).unwrap();
        let mut edits = Edits::new();
        ask(&mut edits, &fields);
        let mut bytes = body.as_bytes().to_vec();
        let pieces = edits.clone().pieces(&Bytes::from(bytes.clone())).concat();
        edits.apply(&mut bytes);
        assert_eq!(pieces, bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_model_is_replaced_and_escaped() {
        let body = r#"{"a": 1, "model" :"x", "b":2}"#;
        let to = |name: &'static str| edited(body, |edits, f| edits.replace_model(f, name));
        assert_eq!(to("y\"\n"), r#"{"a": 1, "model" :"y\"\n", "b":2}"#);
        assert_eq!(to("x"), body);
        assert_eq!(
            edited("{}", |edits, f| edits.replace_model(f, "m")),
            r#"{"model":"m"}"#
        );
    }

    #[test]
    fn usage_is_asked_for_whatever_the_caller_said() {
        for (body, expected) in [
            ("{}", r#"{"stream_options":{"include_usage":true}}"#),
            (
                r#"{"a":1 }"#,
                r#"{"a":1 ,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":null}"#,
                r#"{"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":{ }}"#,
                r#"{"stream_options":{ "include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":{"x":1}}"#,
                r#"{"stream_options":{"x":1,"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":false}}"#,
                r#"{"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":null,"x":1}}"#,
                r#"{"stream_options":{"include_usage":true,"x":1}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":true}}"#,
                r#"{"stream_options":{"include_usage":true}}"#,
            ),
        ] {
            assert_eq!(edited(body, |edits, f| edits.ask_for_usage(f)), expected);
        }
    }

    #[test]
    fn inserts_at_one_place_keep_their_order_and_get_their_commas() {
        let both = |edits: &mut Edits, f: &Fields<'_>| {
            edits.set(f, "a", &JsonText::from(1));
            edits.ask_for_usage(f);
            edits.set_metadata_user_id(f, "u");
        };
        let added = r#""a":1,"stream_options":{"include_usage":true},"metadata":{"user_id":"u"}"#;
        assert_eq!(edited("{}", both), format!("{{{added}}}"));
        assert_eq!(edited(r#"{"z":0}"#, both), format!(r#"{{"z":0,{added}}}"#));
    }

    #[test]
    fn a_later_edit_takes_the_place_of_an_earlier_one() {
        let object = JsonText::from(&json!({"x": 1}));
        let body = r#"{"stream_options":{"include_usage":false}}"#;
        let whole_last = edited(body, |edits, f| {
            edits.ask_for_usage(f);
            edits.set(f, "stream_options", &object);
        });
        assert_eq!(whole_last, r#"{"stream_options":{"x":1}}"#);
        let member_last = edited(body, |edits, f| {
            edits.set(f, "stream_options", &object);
            edits.ask_for_usage(f);
        });
        assert_eq!(member_last, r#"{"stream_options":{"include_usage":true}}"#);
        let twice = edited("{}", |edits, f| {
            edits.set(f, "a", &JsonText::from(1));
            edits.set(f, "a", &JsonText::from(2));
        });
        assert_eq!(twice, r#"{"a":2}"#);
    }

    #[test]
    fn every_copy_of_a_field_is_set() {
        let body = r#"{"thinking":1,"thinkin\u0067":{"type":"enabled"}}"#;
        let set = edited(body, |edits, f| {
            edits.set(f, "thinking", &JsonText::from(false));
        });
        assert_eq!(set, r#"{"thinking":false,"thinkin\u0067":false}"#);
    }

    #[test]
    fn edits_of_another_body_do_no_harm() {
        let long = format!(r#"{{"pad":"{}","model":"m"}}"#, "x".repeat(100));
        let mut edits = Edits::new();
        edits.replace_model(&scan(long.as_bytes()).unwrap(), "other");
        let mut short = b"{}".to_vec();
        edits.apply(&mut short);
        assert_eq!(short, b"{}");
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("model".to_owned()),
            Just("stream_options".to_owned()),
            Just("metadata".to_owned()),
            "[a-e]",
            Just("x\"\\\u{1}é".to_owned()),
        ]
    }

    fn value(key: &str, seed: u8) -> Value {
        match key {
            "model" => json!("m".repeat(seed.into())),
            "stream_options" if seed.is_multiple_of(3) => {
                json!({"include_usage": false, "k": seed})
            }
            "stream_options" if seed.is_multiple_of(2) => json!({}),
            "metadata" if seed.is_multiple_of(2) => json!({"k": [1], "user_id": "old"}),
            "stream_options" | "metadata" => Value::Null,
            _ => json!([seed, {"model": "\"},{"}]),
        }
    }

    proptest! {
        #[test]
        fn edits_change_what_they_name_and_nothing_else(
            members in proptest::collection::vec((key(), any::<u8>()), 0..8),
            asks in proptest::collection::vec((0u8..4, key(), any::<u8>()), 0..6),
            pretty: bool,
        ) {
            let object: serde_json::Map<_, _> =
                members.iter().map(|(key, seed)| (key.clone(), value(key, *seed))).collect();
            let body = if pretty {
                serde_json::to_string_pretty(&object).unwrap()
            } else {
                serde_json::to_string(&object).unwrap()
            };
            let fields = scan(body.as_bytes()).unwrap();
            let mut edits = Edits::new();
            let mut touched = std::collections::HashSet::new();
            let mut expected = std::collections::HashMap::new();
            for (which, key, seed) in &asks {
                let key = match which {
                    0 => { edits.replace_model(&fields, "model-x"); expected.insert("model".to_owned(), json!("model-x")); "model".to_owned() }
                    1 => { edits.ask_for_usage(&fields); expected.remove("stream_options"); "stream_options".to_owned() }
                    2 => { edits.set_metadata_user_id(&fields, "new"); expected.remove("metadata"); "metadata".to_owned() }
                    _ => { let v = value(key, *seed); edits.set(&fields, key, &JsonText::from(&v)); expected.insert(key.clone(), v); key.clone() }
                };
                touched.insert(key);
            }
            let mut bytes = body.clone().into_bytes();
            let pieces = edits.clone().pieces(&Bytes::from(bytes.clone())).concat();
            edits.apply(&mut bytes);
            prop_assert_eq!(&pieces, &bytes);
            let after: serde_json::Map<String, Value> = serde_json::from_slice(&bytes).unwrap();
            let again = scan(&bytes).unwrap();
            for (key, value) in &expected {
                prop_assert_eq!(after.get(key), Some(value));
            }
            for member in fields.members() {
                let key = fields.text(&member.key).unwrap();
                if touched.contains(key.as_ref()) { continue }
                let span = again.spans(&key).next().unwrap();
                prop_assert_eq!(again.bytes(&span), fields.bytes(&member.value));
                prop_assert_eq!(after.get(key.as_ref()), object.get(key.as_ref()));
            }
            prop_assert!(after.keys().all(|key| object.contains_key(key) || touched.contains(key)));
        }
    }
}
