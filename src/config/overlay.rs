//! Lays one configuration over another: a base, and what is different in this environment.
//!
//! Maps merge key by key. A list whose items have a name of their own (`id`, else `address`, else
//! `url`; the schema says which) merges item by item: known ones in their place, new ones at the
//! end. Everything else is replaced as a whole. Null takes a key away, back to its default, and
//! `$remove: true` beside an item's name takes the item away. Where any JSON may stand, null is a
//! value. What was replaced is remembered, for `check --explain`.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::PathBuf;

use super::mistake::{Mistake, quoted};
use super::position::{Content, Entry, Node, Place};
use super::schema::Spot;

/// Beside an item's name: takes the item away. A `$` cannot begin a key of ours.
pub const REMOVE: &str = "$remove";

/// Mistakes after which a file is not looked at any further.
const MAX_MISTAKES: usize = 100;

/// A single value, or a list of them, that is no longer in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Buried {
    pub was: Node,
    /// Where the replacement, or the order to remove it, stands.
    pub by: Place,
}

/// What overlays replaced or took away, by the path that [`key_path`] and [`item_path`] make.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct History(HashMap<String, Vec<Buried>>);

impl History {
    /// What stood at `path`, oldest first.
    pub fn at(&self, path: &str) -> &[Buried] {
        self.0.get(path).map_or(&[], Vec::as_slice)
    }

    /// Everything that is no longer in force, by path.
    pub fn all(&self) -> impl Iterator<Item = (&str, &[Buried])> {
        let all = self.0.iter();
        all.map(|(path, buried)| (path.as_str(), buried.as_slice()))
    }

    /// Did anything stand at `path`, or below it?
    pub fn has(&self, path: &str) -> bool {
        let is_below = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        let mut known = self.0.keys().filter_map(|known| known.strip_prefix(path));
        known.any(is_below)
    }

    /// Notes each single value in `old`.
    fn bury(&mut self, spot: Spot<'_>, path: &str, old: Node, by: Place) {
        if is_leaf(&old) {
            let at = self.0.entry(path.to_owned()).or_default();
            at.push(Buried { was: old, by });
            return;
        }
        for (path, spot, value) in children(spot, path, old) {
            self.bury(spot, &path, value, by);
        }
    }
}

/// Is this a value that is shown in one piece: no map, and no list of maps or lists?
pub fn is_leaf(node: &Node) -> bool {
    let single = |node: &Node| !matches!(node.content, Content::List(_) | Content::Map(_));
    match &node.content {
        Content::List(items) => items.iter().all(single),
        Content::Map(entries) => entries.is_empty(),
        _ => true,
    }
}

/// The values in a map or list with their paths.
fn children<'s>(spot: Spot<'s>, path: &str, node: Node) -> Vec<(String, Spot<'s>, Node)> {
    match node.content {
        Content::Map(entries) => entries
            .into_iter()
            .map(|entry| {
                let path = key_path(path, &entry.key);
                (path, spot.key(&entry.key), entry.value)
            })
            .collect(),
        Content::List(items) => {
            let identity = spot.identity();
            let paths = items.iter().enumerate().map(|(index, item)| {
                let name = identity.and_then(|key| name_of(item, key));
                item_path(path, &name.unwrap_or_else(|| index.to_string()))
            });
            let paths: Vec<String> = paths.collect();
            let items = paths.into_iter().zip(items);
            items
                .map(|(path, item)| (path, spot.item(), item))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// `path` and a key of the map there.
pub fn key_path(path: &str, key: &str) -> String {
    let dot = if path.is_empty() { "" } else { "." };
    if is_plain(key) {
        format!("{path}{dot}{key}")
    } else {
        format!("{path}[{key:?}]")
    }
}

/// `path` and the name, or else the index, of an item of the list there.
pub fn item_path(path: &str, name: &str) -> String {
    if is_plain(name) {
        format!("{path}[{name}]")
    } else {
        format!("{path}[{name:?}]")
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The name of a list's item, if it has one. A URL with a password is a mistake, and as a name it
/// would be shown, so it is none.
pub fn name_of(item: &Node, identity: &str) -> Option<String> {
    match &item.get(identity)?.content {
        Content::Text(text) if has_password(text) => None,
        Content::Text(text) => Some(text.clone()),
        Content::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Is it a URL with a user name, and perhaps a password?
pub fn has_password(text: &str) -> bool {
    let authority = text.split_once("://").map(|(_, rest)| rest);
    let authority = authority.and_then(|rest| rest.split(['/', '?', '#']).next());
    authority.is_some_and(|authority| authority.contains('@'))
}

/// Lays `above`, read from one of `files`, over `below`.
///
/// # Errors
/// If an order to remove is not clear, or there is nothing to remove.
pub fn lay(
    schema: Spot<'_>,
    below: &mut Node,
    above: Node,
    files: &[PathBuf],
    history: &mut History,
) -> Result<(), Vec<Mistake>> {
    if above.content == Content::Null {
        return Ok(());
    }
    let mut overlay = Overlay {
        files,
        history,
        mistakes: Vec::new(),
    };
    overlay.lay(schema, "", below, above);
    if overlay.mistakes.is_empty() {
        Ok(())
    } else {
        Err(overlay.mistakes)
    }
}

/// Did a value take the other's place, or become part of it?
#[derive(Clone, Copy, PartialEq)]
enum Laid {
    Merged,
    Replaced,
}

struct Overlay<'a> {
    files: &'a [PathBuf],
    history: &'a mut History,
    mistakes: Vec<Mistake>,
}

impl Overlay<'_> {
    fn lay(&mut self, spot: Spot<'_>, path: &str, below: &mut Node, above: Node) -> Laid {
        let by = above.place;
        match (&mut below.content, above.content) {
            (Content::Map(entries), Content::Map(added)) if !spot.is_open() => {
                self.maps(spot, path, entries, added);
                Laid::Merged
            }
            (Content::List(items), Content::List(added)) if spot.identity().is_some() => {
                self.items(spot, path, items, added);
                Laid::Merged
            }
            (_, content) => {
                let above = Node { place: by, content };
                let above = self.fresh(spot, path, above);
                let old = std::mem::replace(below, above);
                if old.content != Content::Null {
                    self.history.bury(spot, path, old, by);
                }
                Laid::Replaced
            }
        }
    }

    /// A value that stands in the overlay alone: the same rules, with nothing below.
    fn fresh(&mut self, spot: Spot<'_>, path: &str, mut node: Node) -> Node {
        match &mut node.content {
            Content::Map(entries) if !spot.is_open() => {
                let added = std::mem::take(entries);
                self.maps(spot, path, entries, added);
            }
            Content::List(items) if spot.identity().is_some() => {
                let added = std::mem::take(items);
                self.items(spot, path, items, added);
            }
            _ => {}
        }
        node
    }

    fn maps(&mut self, spot: Spot<'_>, path: &str, entries: &mut Vec<Entry>, added: Vec<Entry>) {
        let known = entries.iter().enumerate();
        let known: HashMap<String, usize> = known
            .map(|(index, entry)| (entry.key.clone(), index))
            .collect();
        let mut removed = HashSet::new();
        for entry in added {
            let index = known.get(&entry.key).copied();
            let (path, spot) = (key_path(path, &entry.key), spot.key(&entry.key));
            let present = index.and_then(|index| entries.get_mut(index));
            if entry.value.content == Content::Null && !spot.is_open() {
                if let (Some(index), Some(present)) = (index, present) {
                    removed.insert(index);
                    let old = present.value.clone();
                    self.history.bury(spot, &path, old, entry.place);
                }
                continue;
            }
            match present {
                Some(present) => {
                    if self.lay(spot, &path, &mut present.value, entry.value) == Laid::Replaced {
                        present.place = entry.place;
                    }
                }
                None => {
                    let value = self.fresh(spot, &path, entry.value);
                    entries.push(Entry { value, ..entry });
                }
            }
        }
        retain(entries, &removed);
    }

    fn items(&mut self, spot: Spot<'_>, path: &str, items: &mut Vec<Node>, added: Vec<Node>) {
        let Some(identity) = spot.identity() else {
            return;
        };
        let mut known = HashMap::new();
        for (index, item) in items.iter().enumerate() {
            if let Some(name) = name_of(item, identity) {
                known.entry(name).or_insert(index);
            }
        }
        let mut removed = HashSet::new();
        for (index, mut item) in added.into_iter().enumerate() {
            let name = name_of(&item, identity);
            let path = item_path(path, name.as_deref().unwrap_or(&index.to_string()));
            // Each is known once: the same name a second time is left for the rules to find.
            let present = name.as_ref().and_then(|name| known.remove(name));
            if item.get(REMOVE).is_some() {
                self.judge_removal(identity, &path, &item, present);
                if let Some((index, old)) = present.and_then(|i| Some((i, items.get(i)?.clone()))) {
                    removed.insert(index);
                    self.history.bury(spot.item(), &path, old, item.place);
                }
                continue;
            }
            match present.and_then(|index| items.get_mut(index)) {
                Some(present) => {
                    if let Content::Map(entries) = &mut item.content {
                        entries.retain(|entry| entry.key != identity);
                    }
                    self.lay(spot.item(), &path, present, item);
                }
                None => {
                    let item = self.fresh(spot.item(), &path, item);
                    items.push(item);
                }
            }
        }
        retain(items, &removed);
    }

    fn judge_removal(&mut self, identity: &str, path: &str, item: &Node, present: Option<usize>) {
        let is_true = |node: &Node| node.content == Content::Bool(true);
        let clear = item.entries().len() == 2
            && item.get(identity).is_some()
            && item.get(REMOVE).is_some_and(is_true);
        let mut allowed = String::new();
        let found = if !clear {
            let _ = write!(
                allowed,
                "write `{{ {identity}: …, {REMOVE}: true }}` and nothing else"
            );
            "an order to remove that is not clear".to_owned()
        } else if present.is_none() {
            let _ = write!(allowed, "the files before this one have no such item");
            let name = name_of(item, identity).unwrap_or_default();
            format!("nothing to remove: no {identity} is {}", quoted(&name))
        } else {
            return;
        };
        if self.mistakes.len() < MAX_MISTAKES {
            let file = self.files.get(item.place.file).cloned();
            self.mistakes.push(Mistake {
                file: file.unwrap_or_default(),
                line: Some(item.place.line),
                path: path.to_owned(),
                found,
                allowed,
            });
        }
    }
}

fn retain<T>(all: &mut Vec<T>, removed: &HashSet<usize>) {
    if !removed.is_empty() {
        let mut index = 0..;
        all.retain(|_| index.next().is_none_or(|index| !removed.contains(&index)));
    }
}

#[cfg(test)]
mod tests;
