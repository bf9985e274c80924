//! What is told of a configuration that cannot be used: where, what, and what would be right. Every
//! step of the pipeline reports through [`Report`], so that a person sees all mistakes at once, in
//! the order of the file.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use super::position::{Node, Place};

/// Mistakes that are reported before the rest is cut off. Past some hundred nobody reads on, and a
/// hostile file shall not make us write a book about it.
const MAX_MISTAKES: usize = 500;

/// Longest piece of the file that is quoted back, in characters.
const MAX_QUOTED: usize = 60;

/// Something in the configuration that is wrong, or, as a warning, suspicious.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub file: PathBuf,
    /// 1-based; none if the mistake concerns the file as a whole.
    pub line: Option<usize>,
    /// `tenants[0].credentials[1].api_key.hash`; empty for the file as a whole.
    pub path: String,
    /// What stands there. Never a secret, nor what stands where a secret should.
    pub found: String,
    /// What may stand there, or why this may not.
    pub allowed: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.found)?;
        if !self.allowed.is_empty() {
            write!(f, "; {}", self.allowed)?;
        }
        Ok(())
    }
}

/// The way to a value, as a chain on the caller's stack: the walk goes past every value of the file,
/// and only the few that are wrong need their path written down.
#[derive(Debug, Clone, Copy)]
pub enum KeyPath<'a> {
    Root,
    Key(&'a KeyPath<'a>, &'a str),
    Index(&'a KeyPath<'a>, usize),
}

impl<'a> KeyPath<'a> {
    pub fn key(&'a self, key: &'a str) -> KeyPath<'a> {
        KeyPath::Key(self, key)
    }

    pub fn index(&'a self, index: usize) -> KeyPath<'a> {
        KeyPath::Index(self, index)
    }
}

impl fmt::Display for KeyPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPath::Root => Ok(()),
            KeyPath::Key(parent, key) => {
                parent.fmt(f)?;
                write_key(f, key, matches!(parent, KeyPath::Root))
            }
            KeyPath::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Adds `key` to a path: `.key`, or `["a.b"]` where a dot would mislead.
pub fn write_key(out: &mut impl Write, key: &str, first: bool) -> fmt::Result {
    let plain = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !plain {
        return write!(out, "[{}]", quoted(key));
    }
    let dot = if first { "" } else { "." };
    write!(out, "{dot}{key}")
}

/// A piece of the file for a message: in quotes, escaped, cut to a readable length.
pub fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_QUOTED).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// Where the steps of the pipeline put what they find.
pub struct Report<'a> {
    files: &'a [PathBuf],
    root: &'a Node,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl<'a> Report<'a> {
    /// A report on the tree `root` that was read from `files`, of which there is at least one.
    pub fn new(files: &'a [PathBuf], root: &'a Node) -> Self {
        Self {
            files,
            root,
            mistakes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Reports a mistake at `path`; its line is that of the nearest value that exists.
    pub fn mistake(
        &mut self,
        path: KeyPath<'_>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        if !self.is_full() {
            let place = self.root.locate(&path);
            self.mistake_at(place, path, found, allowed);
        }
    }

    /// Reports a mistake at `path` whose place is known.
    pub fn mistake_at(
        &mut self,
        place: Place,
        path: KeyPath<'_>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        if !self.is_full() {
            let mistake = self.entry(place, path, found.into(), allowed.into());
            self.mistakes.push(mistake);
        }
    }

    /// Reports what is allowed and yet hardly meant.
    pub fn warning(
        &mut self,
        path: KeyPath<'_>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        if self.warnings.len() < MAX_MISTAKES {
            let place = self.root.locate(&path);
            let warning = self.entry(place, path, found.into(), advice.into());
            self.warnings.push(warning);
        }
    }

    /// The number of the file in which the value at `path` stands.
    pub fn file_of(&self, path: &KeyPath<'_>) -> usize {
        self.root.locate(path).file
    }

    /// Is there any mistake?
    pub fn has_mistakes(&self) -> bool {
        !self.mistakes.is_empty()
    }

    /// Are there so many that looking for more is idle?
    pub fn is_full(&self) -> bool {
        self.mistakes.len() >= MAX_MISTAKES
    }

    /// All mistakes and all warnings, each in the order of the file.
    pub fn finish(mut self) -> (Vec<Mistake>, Vec<Mistake>) {
        let full = self.is_full();
        self.mistakes.sort_by(in_file_order);
        self.warnings.sort_by(in_file_order);
        if full {
            let file = self.files.first().cloned().unwrap_or_default();
            self.mistakes.push(whole_file(
                &file,
                "too many mistakes",
                "mend these first, there are more",
            ));
        }
        (self.mistakes, self.warnings)
    }

    fn entry(&self, place: Place, path: KeyPath<'_>, found: String, allowed: String) -> Mistake {
        let file = self.files.get(place.file).cloned().unwrap_or_default();
        Mistake {
            file,
            line: Some(place.line),
            path: path.to_string(),
            found,
            allowed,
        }
    }
}

/// A mistake that has no line.
pub fn whole_file(file: &Path, found: impl Into<String>, allowed: impl Into<String>) -> Mistake {
    Mistake {
        file: file.to_owned(),
        line: None,
        path: String::new(),
        found: found.into(),
        allowed: allowed.into(),
    }
}

fn in_file_order(a: &Mistake, b: &Mistake) -> std::cmp::Ordering {
    (&a.file, a.line).cmp(&(&b.file, b.line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_one_would_write_it() {
        let tenants = KeyPath::Root.key("tenants");
        let first = tenants.index(0);
        assert_eq!(first.key("plam").to_string(), "tenants[0].plam");
        assert_eq!(
            KeyPath::Root.key("models").key("a.b/c").to_string(),
            "models[\"a.b/c\"]"
        );
    }

    #[test]
    fn a_mistake_is_one_line_with_place_cause_and_cure() {
        let mistake = Mistake {
            file: "tidegate.yaml".into(),
            line: Some(12),
            path: "tenants[0].plam".into(),
            found: "unknown key".into(),
            allowed: "allowed here: id, models".into(),
        };
        assert_eq!(
            mistake.to_string(),
            "tidegate.yaml:12: tenants[0].plam: unknown key; allowed here: id, models"
        );
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert!(quoted(&"x".repeat(1000)).chars().count() < 70);
    }
}
