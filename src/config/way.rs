//! The way to a value by names, as `check --explain` writes and reads it: `tenants[search].models`.
//! Unlike a path in a mistake it names items of lists by what they are called, since overlays and
//! people tell them apart by that, and it is never cut.

use std::fmt;

/// A chain on the caller's stack; only the few ways that are told are written down.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    Top,
    Key(&'a Way<'a>, &'a str),
    /// By name, or else by index.
    Item(&'a Way<'a>, &'a str),
}

impl<'a> Way<'a> {
    pub fn key(&'a self, key: &'a str) -> Way<'a> {
        Way::Key(self, key)
    }

    pub fn item(&'a self, name: &'a str) -> Way<'a> {
        Way::Item(self, name)
    }
}

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Top => Ok(()),
            Way::Key(parent, key) if is_plain(key) => {
                parent.fmt(f)?;
                let dot = if matches!(parent, Way::Top) { "" } else { "." };
                write!(f, "{dot}{key}")
            }
            Way::Item(parent, name) if is_plain(name) => write!(f, "{parent}[{name}]"),
            Way::Key(parent, name) | Way::Item(parent, name) => write!(f, "{parent}[{name:?}]"),
        }
    }
}

fn is_plain(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    !name.is_empty() && name.bytes().all(word)
}

/// Is `way` the same as `top`, or something in it?
pub fn is_at_or_below(way: &str, top: &str) -> bool {
    let rest = way.strip_prefix(top);
    rest.is_some_and(|rest| top.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_reads_as_one_would_write_it() {
        let tenants = Way::Top.key("tenants");
        let search = tenants.item("search");
        assert_eq!(search.key("models").to_string(), "tenants[search].models");
        let models = Way::Top.key("models");
        assert_eq!(models.key("a.b/c").to_string(), "models[\"a.b/c\"]");
        assert!(is_at_or_below("a[b].c", "a[b]") && is_at_or_below("a", ""));
        assert!(!is_at_or_below("ab", "a") && !is_at_or_below("a", "a.b"));
    }
}
