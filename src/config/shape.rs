//! Holds the file against its schema and reports every mistake of structure at once: unknown and
//! missing keys, wrong types, words that are not among the allowed, durations, sizes, dates and money
//! that cannot be read, numbers out of range, references where none is understood.
//!
//! It reads the part of JSON Schema that our own types produce, and no more. The schema is the only
//! source of what is allowed; this module knows no key. What stands where a secret or a hash
//! belongs is never quoted.

use serde_json::Value;

use super::calendar::{DATE_FORM, HOURS_FORM, parse_date, parse_hours};
use super::mistake::{KeyPath, Report, quoted};
use super::money::{DECIMAL_FORM, MONEY_FORM, parse_decimal, parse_decimal_number, parse_money};
use super::nearest::hint;
use super::networks::{NETWORK_FORM, parse_network};
use super::position::{Content, Entry, Node};
use super::schema::choices;
use super::secret::{HASH_FORM, REFERENCE_FORM, looks_like_reference};
use super::text::{
    DURATION_FORM, SIZE_FORM, TIMESTAMP_FORM, parse_duration, parse_size, parse_timestamp,
};

/// Reports where `root` is not what `schema` allows.
pub fn walk(schema: &Value, root: &Node, report: &mut Report<'_>) {
    Walk { schema, report }.value(schema, root, KeyPath::Root);
}

struct Walk<'s, 'r, 'f> {
    schema: &'s Value,
    report: &'r mut Report<'f>,
}

impl<'s> Walk<'s, '_, '_> {
    fn value(&mut self, schema: &'s Value, node: &Node, path: KeyPath<'_>) {
        if self.report.is_full() {
            return;
        }
        let choices = choices(self.schema, schema);
        let Some(schema) = choices
            .iter()
            .copied()
            .find(|choice| admits(choice, &node.content))
        else {
            self.wrong_type(&choices, node, path);
            return;
        };
        match &node.content {
            Content::Map(entries) => self.map(schema, node, entries, path),
            Content::List(items) => self.list(schema, node, items, path),
            Content::Text(text) => self.text(schema, node, text, path),
            Content::Number(_) => self.number(schema, node, path),
            Content::Null | Content::Bool(_) => {}
        }
    }

    fn map(&mut self, schema: &'s Value, node: &Node, entries: &[Entry], path: KeyPath<'_>) {
        let properties = schema.get("properties");
        let additional = schema.get("additionalProperties");
        for entry in entries {
            if self.report.is_full() {
                return;
            }
            let path = path.key(&entry.key);
            match properties.and_then(|p| p.get(&entry.key)).or(additional) {
                Some(Value::Bool(false)) => self.unknown_key(schema, entry, path),
                Some(schema) => self.value(schema, &entry.value, path),
                None => self.no_references(&entry.value, path),
            }
        }
        for key in schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if node.get(key).is_none() {
                self.report.mistake_at(
                    node.place,
                    path.key(key),
                    "missing",
                    "this key is required",
                );
            }
        }
        if entries.is_empty() && schema.get("minProperties").is_some() {
            self.report
                .mistake(path, "an empty map", "at least one entry is needed");
        }
    }

    fn unknown_key(&mut self, schema: &'s Value, entry: &Entry, path: KeyPath<'_>) {
        let known = schema.get("properties").and_then(Value::as_object);
        let known: Vec<&str> = known
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect();
        let allowed = format!(
            "allowed here: {}{}",
            known.join(", "),
            hint(&entry.key, known.iter().copied())
        );
        self.report
            .mistake_at(entry.place, path, "unknown key", allowed);
    }

    fn list(&mut self, schema: &'s Value, node: &Node, items: &[Node], path: KeyPath<'_>) {
        if items.is_empty() && schema.get("minItems").is_some() {
            self.report.mistake_at(
                node.place,
                path,
                "an empty list",
                "at least one entry is needed",
            );
        }
        for (index, item) in items.iter().enumerate() {
            match schema.get("items") {
                Some(schema) => self.value(schema, item, path.index(index)),
                None => self.no_references(item, path.index(index)),
            }
        }
    }

    fn text(&mut self, schema: &'s Value, node: &Node, text: &str, path: KeyPath<'_>) {
        let (why, form) = match kind(schema) {
            Some("secret") => return,
            Some("duration") => (why_not(parse_duration(text)), DURATION_FORM),
            Some("size") => (why_not(parse_size(text)), SIZE_FORM),
            Some("timestamp") => (why_not(parse_timestamp(text)), TIMESTAMP_FORM),
            Some("network") => (why_not(parse_network(text)), NETWORK_FORM),
            Some("decimal") => (why_not(parse_decimal(text)), DECIMAL_FORM),
            Some("money") => (why_not(parse_money(text)), MONEY_FORM),
            Some("date") => (why_not(parse_date(text)), DATE_FORM),
            Some("hours") => (why_not(parse_hours(text)), HOURS_FORM),
            _ => return self.plain_text(schema, node, text, path),
        };
        if let Some(why) = why {
            let found = format!("{} {why}", quoted(text));
            self.report
                .mistake_at(node.place, path, found, expected(form));
        }
    }

    fn plain_text(&mut self, schema: &'s Value, node: &Node, text: &str, path: KeyPath<'_>) {
        let words = words(schema);
        if !words.is_empty() && !words.contains(&text) {
            let allowed = format!(
                "{}{}",
                expected(&describe(schema)),
                hint(text, words.iter().copied())
            );
            self.report
                .mistake_at(node.place, path, quoted(text), allowed);
        } else if looks_like_reference(text) {
            self.reference(node, path);
        }
    }

    fn number(&mut self, schema: &'s Value, node: &Node, path: KeyPath<'_>) {
        let Content::Number(number) = &node.content else {
            return;
        };
        if kind(schema) == Some("decimal") {
            if let Some(why) = why_not(parse_decimal_number(number)) {
                let found = format!("{number} {why}");
                self.report
                    .mistake_at(node.place, path, found, expected(DECIMAL_FORM));
            }
            return;
        }
        let Some(value) = number.as_f64() else { return };
        let limit = |key| schema.get(key).and_then(Value::as_f64);
        if limit("minimum").is_some_and(|min| value < min)
            || limit("maximum").is_some_and(|max| value > max)
        {
            self.report.mistake_at(
                node.place,
                path,
                number.to_string(),
                expected(&describe(schema)),
            );
        }
    }

    fn wrong_type(&mut self, choices: &[&'s Value], node: &Node, path: KeyPath<'_>) {
        let hidden = choices
            .iter()
            .any(|choice| matches!(kind(choice), Some("secret" | "hash")));
        let mut forms: Vec<String> = choices
            .iter()
            .map(|choice| describe(choice))
            .filter(|form| !form.is_empty())
            .collect();
        forms.dedup();
        let mut allowed = expected(&forms.join(", or "));
        if let Content::Number(number) = &node.content {
            let number = number.to_string();
            if choices
                .iter()
                .any(|choice| words(choice).contains(&number.as_str()))
            {
                allowed = format!(
                    "text is wanted here, and without quotes this is a number: write \"{number}\""
                );
            }
        }
        self.report
            .mistake_at(node.place, path, found(&node.content, hidden), allowed);
    }

    /// Anything goes here, but a reference would be passed on as it stands, which nobody means.
    fn no_references(&mut self, node: &Node, path: KeyPath<'_>) {
        match &node.content {
            Content::Text(text) if looks_like_reference(text) => self.reference(node, path),
            Content::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.no_references(item, path.index(index));
                }
            }
            Content::Map(entries) => {
                for entry in entries {
                    self.no_references(&entry.value, path.key(&entry.key));
                }
            }
            _ => {}
        }
    }

    fn reference(&mut self, node: &Node, path: KeyPath<'_>) {
        let allowed =
            "references are followed only where a secret is wanted; write the value itself";
        self.report
            .mistake_at(node.place, path, "a reference", allowed);
    }
}

/// Is a value of this type allowed by a schema without `$ref` and `anyOf`?
fn admits(schema: &Value, content: &Content) -> bool {
    let types = types(schema);
    types.is_empty()
        || types.iter().any(|name| match content {
            Content::Null => *name == "null",
            Content::Bool(_) => *name == "boolean",
            Content::Number(number) => {
                *name == "number" || (*name == "integer" && (number.is_i64() || number.is_u64()))
            }
            Content::Text(_) => *name == "string",
            Content::List(_) => *name == "array",
            Content::Map(_) => *name == "object",
        })
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn kind(schema: &Value) -> Option<&str> {
    schema.get("x-tidegate-kind").and_then(Value::as_str)
}

/// The words of an enumeration; none if any text will do.
fn words(schema: &Value) -> Vec<&str> {
    schema
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn why_not<T, E: std::fmt::Display>(read: Result<T, E>) -> Option<String> {
    read.err().map(|why| why.to_string())
}

fn expected(form: &str) -> String {
    format!("expected {form}")
}

/// What a schema allows, for a person; null is not spoken of, leaving the key out says the same.
fn describe(schema: &Value) -> String {
    match kind(schema) {
        Some("duration") => return DURATION_FORM.to_owned(),
        Some("size") => return SIZE_FORM.to_owned(),
        Some("timestamp") => return TIMESTAMP_FORM.to_owned(),
        Some("network") => return NETWORK_FORM.to_owned(),
        Some("decimal") => return DECIMAL_FORM.to_owned(),
        Some("money") => return MONEY_FORM.to_owned(),
        Some("date") => return DATE_FORM.to_owned(),
        Some("hours") => return HOURS_FORM.to_owned(),
        Some("secret") => return REFERENCE_FORM.to_owned(),
        Some("hash") => return HASH_FORM.to_owned(),
        _ => {}
    }
    let words = words(schema);
    if !words.is_empty() {
        return format!("one of {}", words.join(", "));
    }
    let forms = types(schema).into_iter().filter_map(|name| match name {
        "boolean" => Some("true or false".to_owned()),
        "integer" => Some(format!("a whole number{}", range(schema))),
        "number" => Some(format!("a number{}", range(schema))),
        "string" => Some("text".to_owned()),
        "array" => Some("a list".to_owned()),
        "object" => Some("a map".to_owned()),
        _ => None,
    });
    forms.collect::<Vec<_>>().join(" or ")
}

fn range(schema: &Value) -> String {
    match (schema.get("minimum"), schema.get("maximum")) {
        (Some(min), Some(max)) => format!(" from {min} to {max}"),
        (Some(min), None) => format!(" of at least {min}"),
        (None, Some(max)) => format!(" of at most {max}"),
        (None, None) => String::new(),
    }
}

fn found(content: &Content, hidden: bool) -> String {
    match content {
        Content::Null => "nothing".to_owned(),
        Content::List(_) => "a list".to_owned(),
        Content::Map(_) => "a map".to_owned(),
        _ if hidden => "a value of another kind (not shown)".to_owned(),
        Content::Bool(value) => value.to_string(),
        Content::Number(number) => format!("the number {number}"),
        Content::Text(text) => quoted(text),
    }
}
