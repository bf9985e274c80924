//! Reads a JSON object whose member names differ at every depth, for token parts and key sets
//! (RFC 7515 §4, RFC 7519 §4, RFC 7517 §4). It knows no name.
//!
//! serde_json's own map keeps the last of two equal names without a word. Two readers that choose
//! differently see two different tokens, so here equal names are a refusal.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deepest nesting accepted, the object itself counted. Real tokens have four levels.
pub const MAX_NESTING: u32 = 32;

/// The object that `bytes` are; `None` if they are anything else, or not UTF-8, nested too deeply,
/// or if a name occurs twice in one object.
pub fn read(bytes: &[u8]) -> Option<Map<String, Value>> {
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let value = Strict {
        levels: MAX_NESTING,
    }
    .deserialize(&mut source)
    .ok()?;
    source.end().ok()?;
    match value {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

/// Builds a value that may hold `levels` further levels of containers.
#[derive(Clone, Copy)]
struct Strict {
    levels: u32,
}

impl Strict {
    fn inside<E: Error>(self) -> Result<Strict, E> {
        let levels = self.levels.checked_sub(1);
        let levels = levels.ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Strict { levels })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not a number"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut items = Vec::new();
        while let Some(item) = source.next_element_seed(inside)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut members = Map::new();
        while let Some(name) = source.next_key::<String>()? {
            let value = source.next_value_seed(inside)?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a name occurs twice"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_twice_is_refused_at_any_depth_and_however_it_is_written() {
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"a":1,"b":2,"a":3}}"#,
            r#"{"x":[[{"a":1,"a":3}]]}"#,
        ] {
            assert!(read(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(read(br#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}"#).is_some());
    }

    #[test]
    fn only_one_whole_object_is_read() {
        for bad in [
            "",
            "1",
            "null",
            "[]",
            "\"a\"",
            "{",
            "{}x",
            "{} {}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":01}",
            "{\"a\":NaN}",
            "{\"a\":1e400}",
            "\u{feff}{}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\n\"}",
        ] {
            assert!(read(bad.as_bytes()).is_none(), "{bad:?}");
        }
        assert!(read(b"{\"a\":\"\xff\"}").is_none());
        assert!(read(b" {\"a\": [1, -2, 3.5, true, null, \"x\"]}\r\n").is_some());
    }

    #[test]
    fn nesting_is_read_to_its_bound_and_not_beyond() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!("{{\"a\":{open}{close}}}")
        };
        assert!(read(nested(31).as_bytes()).is_some());
        assert!(read(nested(32).as_bytes()).is_none());
        assert!(read(nested(100_000).as_bytes()).is_none());
        assert!(read("{\"a\":".repeat(100_000).as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_serde_json_reads(text in "\\{(\"[ab]\":[\\[\\]{}1,\"a:]{0,6},?){0,4}\\}") {
            if let Some(members) = read(text.as_bytes()) {
                let theirs: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(Value::Object(members), theirs);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
