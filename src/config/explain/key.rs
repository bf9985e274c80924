//! Finds what a person means by a key such as `server.limits.head_timeout`, `tenants[search].models`
//! or `tenants[0].models`: the path under which the value is told, or the nearest names.

use crate::config::mistake::quoted;
use crate::config::nearest::hint;
use crate::config::overlay::name_of;
use crate::config::position::{Content, Node};
use crate::config::schema::Spot;
use crate::config::source::Source;
use crate::config::way::Way;

/// One step of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step<'k> {
    Key(&'k str),
    /// An index, a name, or a quoted key.
    Bracket(&'k str),
}

/// The path of `key` in `source`, or why there is none.
pub fn find(key: &str, root: Spot<'_>, source: &Source) -> Result<String, String> {
    let steps = steps(key).ok_or_else(|| {
        let form = "expected a key such as server.limits.head_timeout or tenants[search].models";
        format!("{} is not a key; {form}", quoted(key))
    })?;
    let (mut spot, mut node, mut path) = (root, Some(&source.root), String::new());
    for step in steps {
        (spot, node, path) = next(step, spot, node, &path, source)
            .map_err(|why| format!("there is no key {}: {why}", quoted(key)))?;
    }
    Ok(path)
}

/// `path` and a key of the map there.
fn key_path(path: &str, key: &str) -> String {
    let way = Way::Top.key(key).to_string();
    let dot = if path.is_empty() || way.starts_with('[') {
        ""
    } else {
        "."
    };
    format!("{path}{dot}{way}")
}

/// `path` and an item of the list there.
fn item_path(path: &str, name: &str) -> String {
    format!("{path}{}", Way::Top.item(name))
}

type Found<'s, 'n> = (Spot<'s>, Option<&'n Node>, String);

fn next<'s, 'n>(
    step: Step<'_>,
    spot: Spot<'s>,
    node: Option<&'n Node>,
    path: &str,
    source: &Source,
) -> Result<Found<'s, 'n>, String> {
    let (name, in_brackets) = match step {
        Step::Key(name) => (name.to_owned(), false),
        Step::Bracket(name) => (unquoted(name), true),
    };
    if let (true, Some(Content::List(items))) = (in_brackets, node.map(|node| &node.content)) {
        return item(&name, items, spot, path, source);
    }
    let entries = node.map_or(&[][..], Node::entries);
    let entry = entries.iter().find(|entry| entry.key == name);
    let below = key_path(path, &name);
    let removed = item_path(path, &name);
    if entry.is_some() || spot.names(&name) || source.history.has(&below) {
        return Ok((spot.key(&name), entry.map(|entry| &entry.value), below));
    }
    if in_brackets && source.history.has(&removed) {
        return Ok((spot.item(), None, removed));
    }
    let known = spot.properties().into_iter();
    let known = known.chain(entries.iter().map(|entry| entry.key.as_str()));
    let place = if path.is_empty() { "the top" } else { path };
    let hint = hint(&name, known);
    Err(format!("{} is unknown at {place}{hint}", quoted(&name)))
}

/// An item by its name, or else by its index.
fn item<'s, 'n>(
    name: &str,
    items: &'n [Node],
    spot: Spot<'s>,
    path: &str,
    source: &Source,
) -> Result<Found<'s, 'n>, String> {
    let identity = spot.identity();
    let named = |item: &Node| identity.and_then(|key| name_of(item, key));
    let by_name = items
        .iter()
        .find(|item| named(item).as_deref() == Some(name));
    let by_index = || name.parse().ok().and_then(|index: usize| items.get(index));
    if let Some(item) = by_name.or_else(by_index) {
        let name = named(item).unwrap_or_else(|| name.to_owned());
        return Ok((spot.item(), Some(item), item_path(path, &name)));
    }
    let removed = item_path(path, name);
    if source.history.has(&removed) {
        return Ok((spot.item(), None, removed));
    }
    let names: Vec<String> = items.iter().filter_map(named).collect();
    let hint = hint(name, names.iter().map(String::as_str));
    let count = items.len();
    Err(format!(
        "{path} has {count} items and none is {}{hint}",
        quoted(name)
    ))
}

/// What the schema says of a way that was written down.
pub fn spot_of<'s>(path: &str, root: Spot<'s>) -> Spot<'s> {
    let steps = steps(path).unwrap_or_default().into_iter();
    steps.fold(root, |spot, step| match step {
        Step::Key(name) => spot.key(name),
        Step::Bracket(name) if spot.item().is_open() => spot.key(&unquoted(name)),
        Step::Bracket(_) => spot.item(),
    })
}

fn unquoted(text: &str) -> String {
    if text.starts_with('"') {
        serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())
    } else {
        text.to_owned()
    }
}

/// Takes a key apart; nothing if it is none.
fn steps(key: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    let mut rest = key;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            let (inner, after) = after.split_at_checked(end)?;
            steps.push(Step::Bracket(inner));
            rest = after.strip_prefix(']')?;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (name, after) = rest.split_at_checked(end)?;
            if name.is_empty() {
                return None;
            }
            steps.push(Step::Key(name));
            rest = after;
        }
        if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() || after.starts_with(['.', '[']) {
                return None;
            }
            rest = after;
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// Where a bracket closes: at the first `]` after which the key ends or goes on, since a name may
/// hold one (`[http://[::1]:80]`). In quotes, the quotation mark comes before it.
fn closing(text: &str) -> Option<usize> {
    let in_quotes = text.starts_with('"');
    let ends = text.match_indices(']').map(|(at, _)| at);
    let mut ends = ends.filter(|at| {
        let (inner, after) = text.split_at_checked(*at).unwrap_or_default();
        let goes_on = after.len() == 1 || after.starts_with("].") || after.starts_with("][");
        let closed = !in_quotes || (inner.len() > 1 && inner.ends_with('"'));
        goes_on && closed && !inner.is_empty()
    });
    ends.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_taken_apart_as_one_would_read_it() {
        use Step::{Bracket, Key};
        for (text, expected) in [
            ("server", vec![Key("server")]),
            ("a.b[c].d", vec![Key("a"), Key("b"), Bracket("c"), Key("d")]),
            (
                "m[\"a.b]c\"].x",
                vec![Key("m"), Bracket("\"a.b]c\""), Key("x")],
            ),
            (
                "e[http://[::1]:80].w",
                vec![Key("e"), Bracket("http://[::1]:80"), Key("w")],
            ),
            ("e[0][1]", vec![Key("e"), Bracket("0"), Bracket("1")]),
        ] {
            assert_eq!(steps(text), Some(expected), "{text}");
        }
        for text in ["", ".", "a.", "a..b", "a[", "a[]", "a.[b]", "[\"]", "a[b"] {
            assert_eq!(steps(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(key in "[a\\[\\]\".é ]{0,12}") {
            let _ = steps(&key);
        }
    }
}
