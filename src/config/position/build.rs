//! Builds the tree from the parser's events, on a stack of its own, so that no nesting exhausts
//! ours. Values are counted as they come, aliases for what they stand for.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Content, Entry, Node, Place, Size, scalar};
use crate::config::mistake::{Mistake, quoted, write_key};

/// Lists and maps within each other. The deepest place of our own keys is 6; `set` may go deeper.
const MAX_DEPTH: usize = 64;

/// Values in a file, aliases expanded: some ten thousand tenants, and no bomb of aliases.
pub const MAX_VALUES: usize = 1_000_000;

/// Bytes of texts and keys that aliases may stand for: a long text can be named a million times.
const MAX_ALIASED: usize = 64 << 20;

/// Reads `text`, the `number`th file, into a tree. Duplicate keys and the like are reported
/// together; what is not YAML ends the reading at once.
pub fn parse(text: &str, file: &Path, number: usize) -> Result<Node, Vec<Mistake>> {
    let mut builder = Builder::new(file, number);
    if let Err(stop) = builder.run(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        builder.report(stop.line, stop.found, stop.allowed);
    }
    if !builder.mistakes.is_empty() {
        return Err(builder.mistakes);
    }
    let place = Place {
        file: number,
        line: 1,
    };
    Ok(builder.root.unwrap_or(Node {
        place,
        content: Content::Null,
    }))
}

/// A mistake after which there is no telling what the rest means.
struct Stop {
    line: usize,
    found: String,
    allowed: String,
}

impl Stop {
    fn new(line: usize, found: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            line,
            found: found.into(),
            allowed: allowed.into(),
        }
    }
}

/// A list or map that is not finished.
struct Open {
    line: usize,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        lines: HashMap<String, usize>,
        key: Option<PendingKey>,
        merges: Vec<Node>,
    },
}

struct PendingKey {
    name: String,
    line: usize,
    /// `<<`, not in quotes.
    merge: bool,
}

struct Builder<'a> {
    file: &'a Path,
    number: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, Size)>,
    values: usize,
    aliased: usize,
    documents: usize,
    root: Option<Node>,
    mistakes: Vec<Mistake>,
}

impl<'a> Builder<'a> {
    fn new(file: &'a Path, number: usize) -> Self {
        Self {
            file,
            number,
            open: Vec::new(),
            anchors: HashMap::new(),
            values: 0,
            aliased: 0,
            documents: 0,
            root: None,
            mistakes: Vec::new(),
        }
    }

    fn run(&mut self, text: &str) -> Result<(), Stop> {
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let (event, span) = event
                .map_err(|e| Stop::new(e.marker().line(), format!("not YAML: {}", e.info()), ""))?;
            if event == Event::StreamEnd {
                break;
            }
            self.event(event, span.start.line())?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), Stop> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Stop::new(
                        line,
                        "a second document",
                        "one file holds one document",
                    ));
                }
            }
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor);
                let size = known.map(|(_, size)| *size).ok_or_else(|| {
                    Stop::new(
                        line,
                        "an alias without an anchor",
                        "anchors stand before their aliases",
                    )
                })?;
                // Judged before it is copied.
                self.copies(size, line)?;
                let node = self.anchors.get(&anchor).map(|(node, _)| node.clone());
                if let Some(node) = node {
                    self.value(node, line, false)?;
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, line)?;
                let plain = style == ScalarStyle::Plain;
                let content = match tag {
                    None if plain => scalar::resolve(&text).map_err(|found| {
                        Stop::new(line, found, "write a number of ordinary size")
                    })?,
                    None => Content::Text(text.into_owned()),
                    Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {
                        Content::Text(text.into_owned())
                    }
                    Some(_) => return Err(a_tag(line)),
                };
                let merge = plain && content == Content::Text("<<".to_owned());
                self.named(anchor, self.node(content, line), line, merge)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(anchor, tag.is_some(), line, OpenKind::List(Vec::new()))?
            }
            Event::MappingStart(anchor, tag) => {
                let kind = OpenKind::Map {
                    entries: Vec::new(),
                    lines: HashMap::new(),
                    key: None,
                    merges: Vec::new(),
                };
                self.begin(anchor, tag.is_some(), line, kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(line)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn begin(
        &mut self,
        anchor: usize,
        tagged: bool,
        line: usize,
        kind: OpenKind,
    ) -> Result<(), Stop> {
        if tagged {
            return Err(a_tag(line));
        }
        if matches!(
            self.open.last(),
            Some(Open {
                kind: OpenKind::Map { key: None, .. },
                ..
            })
        ) {
            return Err(Stop::new(
                line,
                "a list or map as a key",
                "keys are plain text",
            ));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(line));
        }
        self.count(1, line)?;
        self.open.push(Open { line, anchor, kind });
        Ok(())
    }

    fn end(&mut self, line: usize) -> Result<(), Stop> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let content = match open.kind {
            OpenKind::List(items) => Content::List(items),
            OpenKind::Map {
                mut entries,
                lines,
                merges,
                ..
            } => {
                merge(&mut entries, lines.into_keys().collect(), merges);
                Content::Map(entries)
            }
        };
        let node = self.node(content, open.line);
        self.named(open.anchor, node, line, false)
    }

    /// A finished value that may carry an anchor.
    fn named(&mut self, anchor: usize, node: Node, line: usize, merge: bool) -> Result<(), Stop> {
        if anchor != 0 {
            let size = node.size();
            self.copies(size, line)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        self.value(node, line, merge)
    }

    /// Puts a finished value where it belongs: into the list or map around it, or as a key.
    fn value(&mut self, node: Node, line: usize, merge: bool) -> Result<(), Stop> {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map {
                key: key @ None, ..
            } => {
                *key = Some(PendingKey {
                    name: key_text(node.content, line)?,
                    line,
                    merge,
                });
            }
            OpenKind::Map {
                entries,
                lines,
                key,
                merges,
            } => {
                let Some(PendingKey {
                    name,
                    line: key_line,
                    merge,
                }) = key.take()
                else {
                    return Ok(());
                };
                if merge {
                    return collect_merges(node, key_line, merges);
                }
                if let Some(first) = lines.get(&name).copied() {
                    let found = format!("{} stands here a second time", quoted(&name));
                    self.report_under(
                        &name,
                        key_line,
                        found,
                        format!("it stands on line {first} already"),
                    );
                    return Ok(());
                }
                lines.insert(name.clone(), key_line);
                let place = Place {
                    file: self.number,
                    line: key_line,
                };
                entries.push(Entry {
                    key: name,
                    place,
                    value: node,
                });
            }
        }
        Ok(())
    }

    fn count(&mut self, more: usize, line: usize) -> Result<(), Stop> {
        self.values = self.values.saturating_add(more);
        if self.values > MAX_VALUES {
            return Err(Stop::new(
                line,
                "too many values",
                format!("at most {MAX_VALUES}, aliases counted as what they stand for"),
            ));
        }
        Ok(())
    }

    /// A value of this size is about to stand here once more.
    fn copies(&mut self, size: Size, line: usize) -> Result<(), Stop> {
        self.count(size.values, line)?;
        self.aliased = self.aliased.saturating_add(size.bytes);
        if self.aliased > MAX_ALIASED {
            let allowed = "anchors and aliases may stand for at most 64MiB of text";
            return Err(Stop::new(line, "too much text", allowed));
        }
        // One level of it is the value itself.
        if self.open.len().saturating_add(size.depth) > MAX_DEPTH + 1 {
            return Err(too_deep(line));
        }
        Ok(())
    }

    fn node(&self, content: Content, line: usize) -> Node {
        Node {
            place: Place {
                file: self.number,
                line,
            },
            content,
        }
    }

    fn report(&mut self, line: usize, found: String, allowed: String) {
        self.push(String::new(), line, found, allowed);
    }

    fn report_under(&mut self, key: &str, line: usize, found: String, allowed: String) {
        // A hundred duplicates are enough to know that the file was pasted twice.
        if self.mistakes.len() >= 100 {
            return;
        }
        let mut path = String::new();
        for open in &self.open {
            // Writing to a String does not fail.
            let _ = match &open.kind {
                OpenKind::List(items) => {
                    std::fmt::Write::write_fmt(&mut path, format_args!("[{}]", items.len()))
                }
                OpenKind::Map { key: Some(key), .. } => {
                    let first = path.is_empty();
                    write_key(&mut path, &key.name, first)
                }
                OpenKind::Map { key: None, .. } => Ok(()),
            };
        }
        let first = path.is_empty();
        let _ = write_key(&mut path, key, first);
        self.push(path, line, found, allowed);
    }

    fn push(&mut self, path: String, line: usize, found: String, allowed: String) {
        self.mistakes.push(Mistake {
            file: self.file.to_owned(),
            line: Some(line),
            path,
            found,
            allowed,
        });
    }
}

fn too_deep(line: usize) -> Stop {
    Stop::new(
        line,
        "lists and maps nested too deeply",
        format!("at most {MAX_DEPTH} levels"),
    )
}

fn a_tag(line: usize) -> Stop {
    Stop::new(line, "a tag", "tags (`!name`) are not used here")
}

fn key_text(content: Content, line: usize) -> Result<String, Stop> {
    match content {
        Content::Text(text) => Ok(text),
        Content::Bool(value) => Ok(value.to_string()),
        Content::Number(number) => Ok(number.to_string()),
        Content::Null => Ok("null".to_owned()),
        Content::List(_) | Content::Map(_) => Err(Stop::new(
            line,
            "a list or map as a key",
            "keys are plain text",
        )),
    }
}

fn collect_merges(node: Node, line: usize, merges: &mut Vec<Node>) -> Result<(), Stop> {
    match node.content {
        Content::Map(_) => merges.push(node),
        Content::List(items)
            if items
                .iter()
                .all(|item| matches!(item.content, Content::Map(_))) =>
        {
            merges.extend(items);
        }
        _ => {
            return Err(Stop::new(
                line,
                "`<<` with something else than a map",
                "`<<` takes a map or a list of maps",
            ));
        }
    }
    Ok(())
}

/// Adds what `<<` names: keys that stand in the map itself win, then the first source that has one.
fn merge(entries: &mut Vec<Entry>, mut known: HashSet<String>, merges: Vec<Node>) {
    for source in merges {
        let Content::Map(added) = source.content else {
            continue;
        };
        for entry in added {
            if known.insert(entry.key.clone()) {
                entries.push(entry);
            }
        }
    }
}
