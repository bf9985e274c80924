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
use super::way::{Way, is_at_or_below};

/// Beside an item's name: takes the item away. A `$` cannot begin a key of ours.
pub const REMOVE: &str = "$remove";

/// Bytes of ways and values that are remembered. Beyond, `--explain` no longer tells what was
/// replaced; some ten thousand tenants are below.
const MAX_HISTORY: usize = 16 << 20;

/// Mistakes after which a file is not looked at any further.
const MAX_MISTAKES: usize = 100;

/// A single value, or a list of them, that is no longer in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Buried {
    pub was: Node,
    /// Where the replacement, or the order to remove it, stands.
    pub by: Place,
}

/// What overlays replaced or took away, by its way.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct History {
    buried: HashMap<String, Vec<Buried>>,
    bytes: usize,
}

impl History {
    /// What stood at `way`, oldest first.
    pub fn at(&self, way: &str) -> &[Buried] {
        self.buried.get(way).map_or(&[], Vec::as_slice)
    }

    /// Everything that is no longer in force, by its way.
    pub fn all(&self) -> impl Iterator<Item = (&str, &[Buried])> {
        let all = self.buried.iter();
        all.map(|(way, buried)| (way.as_str(), buried.as_slice()))
    }

    /// Did anything stand at `way`, or below it?
    pub fn has(&self, way: &str) -> bool {
        self.buried.keys().any(|known| is_at_or_below(known, way))
    }

    /// Notes each single value in `old`.
    fn bury(&mut self, spot: Spot<'_>, way: Way<'_>, old: &Node, by: Place) {
        if self.bytes > MAX_HISTORY {
            return;
        }
        match &old.content {
            Content::Map(entries) if !is_leaf(old) => {
                for entry in entries {
                    let way = way.key(&entry.key);
                    self.bury(spot.key(&entry.key), way, &entry.value, by);
                }
            }
            Content::List(items) if !is_leaf(old) => {
                let identity = spot.identity();
                for (index, item) in items.iter().enumerate() {
                    let name = name_or_index(item, identity, index);
                    self.bury(spot.item(), way.item(&name), item, by);
                }
            }
            _ => {
                let way = way.to_string();
                self.bytes = self.bytes.saturating_add(way.len() + old.size().bytes);
                let was = old.clone();
                self.buried.entry(way).or_default().push(Buried { was, by });
            }
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

/// What an item is called in a way.
pub fn name_or_index(item: &Node, identity: Option<&str>, index: usize) -> String {
    let name = identity.and_then(|key| name_of(item, key));
    name.unwrap_or_else(|| index.to_string())
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
    overlay.lay(schema, Way::Top, below, above);
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
    fn lay(&mut self, spot: Spot<'_>, way: Way<'_>, below: &mut Node, above: Node) -> Laid {
        let by = above.place;
        match (&mut below.content, above.content) {
            (Content::Map(entries), Content::Map(added)) if !spot.is_open() => {
                self.maps(spot, way, entries, added);
                Laid::Merged
            }
            (Content::List(items), Content::List(added)) if spot.identity().is_some() => {
                self.items(spot, way, items, added);
                Laid::Merged
            }
            (_, content) => {
                let above = Node { place: by, content };
                let above = self.fresh(spot, way, above);
                let old = std::mem::replace(below, above);
                if old.content != Content::Null {
                    self.history.bury(spot, way, &old, by);
                }
                Laid::Replaced
            }
        }
    }

    /// A value that stands in the overlay alone: the same rules, with nothing below.
    fn fresh(&mut self, spot: Spot<'_>, way: Way<'_>, mut node: Node) -> Node {
        match &mut node.content {
            Content::Map(entries) if !spot.is_open() => {
                let added = std::mem::take(entries);
                self.maps(spot, way, entries, added);
            }
            Content::List(items) if spot.identity().is_some() => {
                let added = std::mem::take(items);
                self.items(spot, way, items, added);
            }
            _ => {}
        }
        node
    }

    fn maps(&mut self, spot: Spot<'_>, way: Way<'_>, entries: &mut Vec<Entry>, added: Vec<Entry>) {
        let known = entries.iter().enumerate();
        let known: HashMap<String, usize> = known
            .map(|(index, entry)| (entry.key.clone(), index))
            .collect();
        let mut removed = HashSet::new();
        for entry in added {
            let index = known.get(&entry.key).copied();
            let (way, spot) = (way.key(&entry.key), spot.key(&entry.key));
            let present = index.and_then(|index| entries.get_mut(index));
            if entry.value.content == Content::Null && !spot.is_open() {
                if let (Some(index), Some(present)) = (index, present) {
                    removed.insert(index);
                    self.history.bury(spot, way, &present.value, entry.place);
                }
                continue;
            }
            match present {
                Some(present) => {
                    if self.lay(spot, way, &mut present.value, entry.value) == Laid::Replaced {
                        present.place = entry.place;
                    }
                }
                None => {
                    let value = self.fresh(spot, way, entry.value);
                    let (key, place) = (entry.key, entry.place);
                    entries.push(Entry { key, place, value });
                }
            }
        }
        retain(entries, &removed);
    }

    fn items(&mut self, spot: Spot<'_>, way: Way<'_>, items: &mut Vec<Node>, added: Vec<Node>) {
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
            let called = name_or_index(&item, Some(identity), index);
            let way = way.item(&called);
            // Each is known once: the same name a second time is left for the rules to find.
            let present = name.as_ref().and_then(|name| known.remove(name));
            if item.get(REMOVE).is_some() {
                self.judge_removal(identity, way, &item, present);
                if let Some((index, old)) = present.and_then(|i| Some((i, items.get(i)?))) {
                    removed.insert(index);
                    self.history.bury(spot.item(), way, old, item.place);
                }
                continue;
            }
            match present.and_then(|index| items.get_mut(index)) {
                Some(present) => {
                    if let Content::Map(entries) = &mut item.content {
                        entries.retain(|entry| entry.key != identity);
                    }
                    self.lay(spot.item(), way, present, item);
                }
                None => {
                    let item = self.fresh(spot.item(), way, item);
                    items.push(item);
                }
            }
        }
        retain(items, &removed);
    }

    fn judge_removal(&mut self, identity: &str, way: Way<'_>, item: &Node, present: Option<usize>) {
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
                path: way.to_string(),
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
