//! Tells where each effective value of a configuration comes from, for `check --explain`: its file
//! and line, what it replaced, or that it is a default. It follows no reference, so it shows no
//! secret and needs none to be there; what stands where a secret or a hash should, and is neither a
//! reference nor a hash, is not shown.

mod key;

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::Value;

use super::mistake::{Mistake, Report};
use super::overlay::{Buried, has_password, is_leaf, name_or_index};
use super::position::{Content, Node, Place};
use super::schema::{self, Spot};
use super::secret::is_reference;
use super::shape;
use super::source::{self, Layer, Source};
use super::way::{Way, is_at_or_below};

/// Stands for every key.
pub const ALL: &str = "all";

/// What is printed of one text at most, in characters.
const MAX_SHOWN: usize = 200;

/// Bytes of the whole explanation. Ten thousand tenants are some 10 MiB.
const MAX_BYTES: usize = 64 << 20;

const HIDDEN: &str = "(not shown)";

/// Why nothing is explained.
#[derive(Debug)]
pub enum ExplainError {
    /// The files cannot be read, or their structure is wrong.
    Mistakes(Vec<Mistake>),
    /// There is no such key; the text says which, and what may be meant.
    Unknown(String),
}

/// One value.
struct Line {
    way: String,
    text: String,
    /// Told to who asks for it by name only.
    quiet: bool,
}

/// Explains `keys`, each with everything below it. A key is written as in mistakes; items of lists
/// may be named by their `id`, `address` or `url`; `""` and [`ALL`] stand for all.
///
/// The rules behind the structure are not tried, so a secret that is not there is no hindrance.
///
/// # Errors
/// If there is nothing to explain: see [`ExplainError`].
pub fn explain(layers: &[Layer], keys: &[String]) -> Result<String, ExplainError> {
    let schema = schema::value();
    let source = source::read(layers, &schema).map_err(ExplainError::Mistakes)?;
    let mut report = Report::new(&source.files, &source.root);
    shape::walk(&schema, &source.root, &mut report);
    if report.has_mistakes() {
        return Err(ExplainError::Mistakes(report.finish().0));
    }
    let spot = Spot::root(&schema);
    let lines = Walk::over(&source, spot).ok_or_else(|| {
        let why = "there is more to explain than anyone would read";
        ExplainError::Unknown(why.to_owned())
    })?;
    let mut text = String::new();
    for key in keys {
        let prefix = match key.as_str() {
            "" | ALL => String::new(),
            _ => key::find(key, spot, &source).map_err(ExplainError::Unknown)?,
        };
        let mut below = lines
            .iter()
            .filter(|line| is_at_or_below(&line.way, &prefix))
            .filter(|line| !line.quiet || line.way == prefix);
        let mut shown: Vec<&Line> = below.by_ref().collect();
        if shown.is_empty() {
            // What could stand there, but for something above it that is not there.
            let mut above = lines
                .iter()
                .filter(|line| is_at_or_below(&prefix, &line.way));
            shown.extend(above.next());
        }
        for line in shown {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{}", line.text);
        }
    }
    Ok(text)
}

struct Walk<'a> {
    source: &'a Source,
    lines: Vec<Line>,
    bytes: usize,
}

impl<'a> Walk<'a> {
    /// All values in the order of the schema, then what overlays took away; nothing if it is too
    /// much.
    fn over(source: &'a Source, spot: Spot<'_>) -> Option<Vec<Line>> {
        let mut walk = Walk {
            source,
            lines: Vec::new(),
            bytes: 0,
        };
        walk.value(spot, Way::Top, &source.root, source.root.place);
        walk.removed(spot);
        (walk.bytes <= MAX_BYTES).then_some(walk.lines)
    }

    fn value(&mut self, spot: Spot<'_>, way: Way<'_>, node: &Node, place: Place) {
        if self.bytes > MAX_BYTES {
            return;
        }
        let named = spot.properties();
        match &node.content {
            Content::Map(entries) if !entries.is_empty() || !named.is_empty() => {
                for key in &named {
                    let (way, spot) = (way.key(key), spot.key(key));
                    match entries.iter().find(|entry| entry.key == *key) {
                        Some(entry) => self.value(spot, way, &entry.value, entry.place),
                        None => self.absent(spot, way),
                    }
                }
                let named: HashSet<_> = named.into_iter().collect();
                let others = entries.iter().filter(|e| !named.contains(e.key.as_str()));
                for entry in others {
                    let way = way.key(&entry.key);
                    self.value(spot.key(&entry.key), way, &entry.value, entry.place);
                }
            }
            Content::List(items) if !is_leaf(node) => {
                let identity = spot.identity();
                for (index, item) in items.iter().enumerate() {
                    let name = name_or_index(item, identity, index);
                    self.value(spot.item(), way.item(&name), item, item.place);
                }
            }
            _ => {
                let shown = show(spot, node);
                let origin = self.told(place);
                self.line(spot, way, &shown, &origin, None);
            }
        }
    }

    /// A key that the files do not have.
    fn absent(&mut self, spot: Spot<'_>, way: Way<'_>) {
        if spot.is_section() {
            for key in spot.properties() {
                self.absent(spot.key(key), way.key(key));
            }
            return;
        }
        let removed = Some("removed");
        match spot.default() {
            Some(Value::Object(fields)) if !fields.is_empty() => {
                for (key, value) in fields {
                    let shown = show_default(value);
                    self.line(spot.key(key), way.key(key), &shown, "default", removed);
                }
            }
            default => {
                let shown = default.map_or_else(|| "none".to_owned(), show_default);
                self.line(spot, way, &shown, "default", removed);
                if let Some(line) = self.lines.last_mut() {
                    line.quiet = spot.is_quiet() && self.source.history.at(&line.way).is_empty();
                }
            }
        }
    }

    /// What overlays took away with the map or list around it.
    fn removed(&mut self, root: Spot<'_>) {
        let shown: HashSet<&str> = self.lines.iter().map(|line| line.way.as_str()).collect();
        let gone = self.source.history.all();
        let gone = gone.filter(|(way, _)| !shown.contains(way));
        let mut gone: Vec<_> = gone.filter_map(|(way, b)| Some((way, b.last()?))).collect();
        gone.sort_by_key(|(way, last)| (last.was.place.file, last.was.place.line, *way));
        for (way, last) in gone {
            let before = self.before(key::spot_of(way, root), way, None);
            let origin = self.told(last.by);
            self.push(way.to_owned(), "removed", &origin, &before);
        }
    }

    /// `(was 10s at conf/base.yaml:8)`, the latest first, or nothing.
    fn before(&self, spot: Spot<'_>, way: &str, end: Option<&str>) -> String {
        let buried = self.source.history.at(way);
        let tell = |Buried { was, by }: &Buried| {
            let mut told = format!("{} at {}", show(spot, was), self.told(was.place));
            if let Some(end) = end {
                let _ = write!(told, ", {end} at {}", self.told(*by));
            }
            told
        };
        let told: Vec<_> = buried.iter().rev().map(tell).collect();
        if told.is_empty() {
            return String::new();
        }
        format!(" (was {})", told.join(", before that "))
    }

    fn told(&self, place: Place) -> String {
        let file = self.source.files.get(place.file);
        let file = file.map(|file| file.display().to_string());
        format!("{}:{}", file.unwrap_or_default(), place.line)
    }

    fn line(&mut self, spot: Spot<'_>, way: Way<'_>, value: &str, origin: &str, end: Option<&str>) {
        let way = way.to_string();
        let before = self.before(spot, &way, end);
        self.push(way, value, origin, &before);
    }

    fn push(&mut self, way: String, value: &str, origin: &str, before: &str) {
        let text = format!("{way}: {value}  ← {origin}{before}");
        self.bytes = self.bytes.saturating_add(way.len() + text.len());
        self.lines.push(Line {
            way,
            text,
            quiet: false,
        });
    }
}

/// A value as it stands in the file, if it is fit to be seen.
fn show(spot: Spot<'_>, node: &Node) -> String {
    match &node.content {
        Content::Null => "null".to_owned(),
        Content::Bool(value) => value.to_string(),
        Content::Number(value) => match spot.kind() {
            Some("secret" | "hash") => HIDDEN.to_owned(),
            _ => value.to_string(),
        },
        Content::Text(text) => {
            let hidden = match spot.kind() {
                Some("secret") => !is_reference(text),
                Some("hash") => !ends_in_digest(text),
                _ => has_password(text),
            };
            if hidden {
                HIDDEN.to_owned()
            } else {
                plain(text)
            }
        }
        Content::List(items) => {
            let items = items.iter().map(|item| show(spot.item(), item));
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        // Others are shown value by value.
        Content::Map(_) => "{}".to_owned(),
    }
}

fn show_default(default: &Value) -> String {
    match default {
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// As it is, if it is one short line; else in quotes, escaped and cut.
fn plain(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN).collect();
    let cut = short.len() < text.len();
    if cut {
        short.push('…');
    }
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if cut || text.is_empty() || text.trim() != text || text.contains(odd) {
        format!("{short:?}")
    } else {
        short
    }
}

/// `…:` and 64 hexadecimal digits. Anything else may be the key itself.
fn ends_in_digest(text: &str) -> bool {
    let digest = text.rsplit_once(':').map(|(_, digest)| digest);
    digest.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests;
