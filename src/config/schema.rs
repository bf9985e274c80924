//! The JSON Schema of the file, for editors and for our own walks: one source for what is allowed,
//! what is shown while typing, and what is told afterwards.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::File;

/// Deepest chain of `$ref` and `anyOf`; ours is 3.
const MAX_REFERENCES: usize = 16;

/// Keys by which the items of a list are told apart, if their schema requires one of them.
const IDENTITIES: [&str; 3] = ["id", "address", "url"];

/// The schema (draft 2020-12), with descriptions and defaults.
pub fn value() -> Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<File>()
        .to_value()
}

/// The same as text for a file that editors read.
pub fn text() -> String {
    format!("{:#}\n", value())
}

/// What `schema` comes down to when `$ref` and `anyOf` are followed within `root`.
pub fn choices<'s>(root: &'s Value, schema: &'s Value) -> Vec<&'s Value> {
    let mut found = Vec::new();
    follow(root, schema, MAX_REFERENCES, &mut found);
    found
}

fn follow<'s>(root: &'s Value, schema: &'s Value, depth: usize, found: &mut Vec<&'s Value>) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = reference
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer));
        if let Some(target) = target {
            follow(root, target, depth, found);
        }
    } else if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        for choice in any {
            follow(root, choice, depth, found);
        }
    } else {
        found.push(schema);
    }
}

/// A place in the schema, for walks that go along a tree.
#[derive(Debug, Clone, Copy)]
pub struct Spot<'s> {
    root: &'s Value,
    /// None where the schema says nothing: any JSON may stand there, or an unknown key.
    at: Option<&'s Value>,
}

impl<'s> Spot<'s> {
    /// The place of the whole file.
    pub fn root(schema: &'s Value) -> Self {
        Self {
            root: schema,
            at: Some(schema),
        }
    }

    /// May anything stand here? Then null is a value like any other.
    pub fn is_open(self) -> bool {
        self.at.is_none()
    }

    fn choices(self) -> Vec<&'s Value> {
        self.at.map_or_else(Vec::new, |at| choices(self.root, at))
    }

    fn at(self, at: Option<&'s Value>) -> Self {
        let at = at.filter(|at| !at.is_boolean());
        Self {
            root: self.root,
            at,
        }
    }

    /// What may stand under `key` of a map here.
    pub fn key(self, key: &str) -> Self {
        let choices = self.choices();
        let named = choices
            .iter()
            .find_map(|choice| choice.get("properties")?.get(key));
        let any = || {
            choices
                .iter()
                .find_map(|choice| choice.get("additionalProperties"))
        };
        self.at(named.or_else(any))
    }

    /// Is `key` one that the schema names here?
    pub fn names(self, key: &str) -> bool {
        self.properties().contains(&key)
    }

    /// The keys that the schema names here, in its order.
    pub fn properties(self) -> Vec<&'s str> {
        let maps = self.choices().into_iter();
        maps.filter_map(|choice| choice.get("properties")?.as_object())
            .flat_map(|properties| properties.keys().map(String::as_str))
            .collect()
    }

    /// What the items of a list here may be.
    pub fn item(self) -> Self {
        let choices = self.choices();
        self.at(choices.iter().find_map(|choice| choice.get("items")))
    }

    /// The key that tells the items of a list here apart, if there is one.
    pub fn identity(self) -> Option<&'static str> {
        let required: Vec<&Value> = self
            .item()
            .choices()
            .into_iter()
            .filter_map(|choice| choice.get("required")?.as_array())
            .flatten()
            .collect();
        let is_required = |name: &&str| required.iter().any(|key| key.as_str() == Some(*name));
        IDENTITIES.into_iter().find(is_required)
    }

    /// Is it a map of a fixed shape, which stands with its defaults where the file has none?
    pub fn is_section(self) -> bool {
        let choices = self.choices();
        matches!(choices.as_slice(), [only] if only.get("properties").is_some())
    }

    /// `secret`, `hash`, `duration` and the like.
    pub fn kind(self) -> Option<&'s str> {
        self.choices()
            .into_iter()
            .find_map(|choice| choice.get("x-tidegate-kind")?.as_str())
    }

    /// Is it one of many keys of which few are written, so that the others are not worth a line?
    pub fn is_quiet(self) -> bool {
        let quiet = self.at.and_then(|at| at.get("x-tidegate-quiet"));
        quiet == Some(&Value::Bool(true))
    }

    /// What holds where the file says nothing; none if that depends, or is nothing.
    pub fn default(self) -> Option<&'s Value> {
        let default = self.at?.get("default");
        default.filter(|default| !default.is_null())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_told_apart_by_what_their_items_must_have() {
        let schema = value();
        let root = Spot::root(&schema);
        let upstream = root.key("upstreams").item();
        for (list, identity) in [
            (root.key("tenants"), Some("id")),
            (root.key("upstreams"), Some("id")),
            (upstream.key("accounts"), Some("id")),
            (upstream.key("endpoints"), Some("url")),
            (upstream.key("surfaces"), None),
            (root.key("server").key("listeners"), Some("address")),
            (root.key("models").key("any").key("variants"), None),
            (root.key("tenants").item().key("models"), None),
        ] {
            assert_eq!(list.identity(), identity, "{list:?}");
        }
    }

    #[test]
    fn where_any_json_may_stand_the_schema_ends() {
        let schema = value();
        let set = Spot::root(&schema).key("models").key("any").key("set");
        assert!(!set.is_open());
        assert!(set.key("anything").is_open());
        assert!(Spot::root(&schema).key("unknown").is_open());
    }

    #[test]
    fn no_key_of_ours_looks_like_an_order_to_remove() {
        let text = value().to_string();
        assert!(!text.contains(crate::config::overlay::REMOVE));
    }
}
