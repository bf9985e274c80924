//! Reads YAML into a tree in which every value knows its line. There is one parser and one tree:
//! the values that the gateway runs on and the lines in its messages cannot come apart.
//!
//! It decides what of YAML is understood: the core schema of YAML 1.2 (so `no` is text), anchors,
//! aliases and `<<` merges; no tags but `!!str`, no second document, no key twice. It knows no key.

mod build;
mod scalar;

use serde_json::Number;
#[cfg(test)]
use serde_json::{Map, Value};

use super::mistake::KeyPath;

pub use build::{MAX_VALUES, parse};

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the files that were read.
    pub file: usize,
    /// 1-based.
    pub line: usize,
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub place: Place,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; keys are unique.
    Map(Vec<Entry>),
}

/// A key, its place, and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub value: Node,
}

impl Node {
    /// The value of `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// The entries of a map; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The place of `path`: of the key where there is one, else of the nearest thing that exists.
    pub fn locate(&self, path: &KeyPath<'_>) -> Place {
        self.follow(path)
            .map_or_else(|near| near, |(place, _)| place)
    }

    fn follow(&self, path: &KeyPath<'_>) -> Result<(Place, &Node), Place> {
        match path {
            KeyPath::Root => Ok((self.place, self)),
            KeyPath::Key(parent, key) => {
                let (place, node) = self.follow(parent)?;
                let entry = node
                    .entries()
                    .iter()
                    .find(|entry| entry.key == *key)
                    .ok_or(place)?;
                Ok((entry.place, &entry.value))
            }
            KeyPath::Index(parent, index) => {
                let (place, node) = self.follow(parent)?;
                let Content::List(items) = &node.content else {
                    return Err(place);
                };
                let item = items.get(*index).ok_or(place)?;
                Ok((item.place, item))
            }
        }
    }

    /// The same without places, for comparing.
    #[cfg(test)]
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(value) => Value::Number(value.clone()),
            Content::Text(value) => Value::String(value.clone()),
            Content::List(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Content::Map(entries) => {
                let pairs = entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// The same in the form that typed deserialisation takes.
    pub fn to_yaml(&self) -> serde_yaml::Value {
        use serde_yaml::Value as Yaml;
        match &self.content {
            Content::Null => Yaml::Null,
            Content::Bool(value) => Yaml::Bool(*value),
            Content::Number(value) => number(value),
            Content::Text(value) => Yaml::String(value.clone()),
            Content::List(items) => Yaml::Sequence(items.iter().map(Node::to_yaml).collect()),
            Content::Map(entries) => {
                let pairs = entries
                    .iter()
                    .map(|entry| (Yaml::String(entry.key.clone()), entry.value.to_yaml()));
                Yaml::Mapping(pairs.collect())
            }
        }
    }

    /// How large it is, itself included.
    pub fn size(&self) -> Size {
        let (own, inner) = match &self.content {
            Content::Text(text) => (text.len(), Size::default()),
            Content::List(items) => (0, items.iter().map(Node::size).collect()),
            Content::Map(entries) => {
                let keys = entries.iter().map(|entry| entry.key.len()).sum();
                let values = entries.iter().map(|entry| entry.value.size());
                (keys, values.collect())
            }
            _ => (0, Size::default()),
        };
        Size {
            values: inner.values.saturating_add(1),
            bytes: inner.bytes.saturating_add(own),
            depth: inner.depth.saturating_add(1),
        }
    }
}

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub values: usize,
    /// Of texts and keys.
    pub bytes: usize,
    /// Lists and maps within each other, and the value in the innermost.
    pub depth: usize,
}

impl FromIterator<Size> for Size {
    fn from_iter<T: IntoIterator<Item = Size>>(sizes: T) -> Self {
        sizes.into_iter().fold(Self::default(), |sum, size| Self {
            values: sum.values.saturating_add(size.values),
            bytes: sum.bytes.saturating_add(size.bytes),
            depth: sum.depth.max(size.depth),
        })
    }
}

fn number(number: &serde_json::Number) -> serde_yaml::Value {
    let whole = number.as_u64().map(serde_yaml::Number::from);
    let whole = whole.or_else(|| number.as_i64().map(serde_yaml::Number::from));
    whole
        .or_else(|| number.as_f64().map(serde_yaml::Number::from))
        .map_or(serde_yaml::Value::Null, serde_yaml::Value::Number)
}

#[cfg(test)]
mod tests;
