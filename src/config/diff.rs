//! Tells what a reload changes, one line a change, and what of it has to wait for a restart; for the
//! log, for `check --diff` and for the status page. It decides nothing and shows no secret.
//!
//! Both settings are flattened into named things with named facts, and those are compared. The
//! structs are taken apart without `..`, so that a new field cannot be forgotten here.

mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::settings::Settings;
use facts::{Fact, Thing, things};

/// What is different in the new settings.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Diff {
    pub changed: Vec<Change>,
    /// Keys among these that a reload does not apply: `server.threads`, `logging.format`. Sorted.
    pub needs_restart: Vec<String>,
}

impl Diff {
    /// Is there no difference?
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }
}

/// One difference. `what` is a thing such as `tenant search` or `upstream deepseek account main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Added {
        what: String,
    },
    Removed {
        what: String,
    },
    Changed {
        what: String,
        key: String,
        from: String,
        to: String,
    },
    Members {
        what: String,
        key: String,
        added: Vec<String>,
        removed: Vec<String>,
    },
    /// Something that is not shown, such as a key.
    Hidden {
        what: String,
        key: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { what } => write!(f, "added {what}"),
            Self::Removed { what } => write!(f, "removed {what}"),
            Self::Changed {
                what,
                key,
                from,
                to,
            } => write!(f, "{what}: {key} {from} → {to}"),
            Self::Members {
                what,
                key,
                added,
                removed,
            } => {
                write!(f, "{what}: {key}")?;
                added.iter().try_for_each(|name| write!(f, " +{name}"))?;
                removed.iter().try_for_each(|name| write!(f, " −{name}"))
            }
            Self::Hidden { what, key } => write!(f, "{what}: {key} changed"),
        }
    }
}

/// Compares two settings.
pub fn diff(old: &Settings, new: &Settings) -> Diff {
    let (old, new) = (things(old), things(new));
    let mut diff = Diff::default();
    let mut restart = BTreeSet::new();
    for (name, was) in &old {
        match new.get(name) {
            Some(is) => compare(name, was, is, &mut diff.changed, &mut restart),
            None => whole(
                was,
                &new,
                Change::Removed { what: name.clone() },
                &mut diff.changed,
                &mut restart,
            ),
        }
    }
    for (name, is) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
        whole(
            is,
            &old,
            Change::Added { what: name.clone() },
            &mut diff.changed,
            &mut restart,
        );
    }
    diff.needs_restart = restart.into_iter().collect();
    diff
}

/// Notes a thing that is only in one of the settings, unless what it is part of says so already.
fn whole(
    thing: &Thing<'_>,
    other: &BTreeMap<String, Thing<'_>>,
    change: Change,
    changed: &mut Vec<Change>,
    restart: &mut BTreeSet<String>,
) {
    if thing
        .part_of
        .as_ref()
        .is_some_and(|whole| !other.contains_key(whole))
    {
        return;
    }
    changed.push(change);
    restart.extend(thing.restart.whole().map(str::to_owned));
}

fn compare(
    what: &str,
    was: &Thing<'_>,
    is: &Thing<'_>,
    changed: &mut Vec<Change>,
    restart: &mut BTreeSet<String>,
) {
    // Both have the same keys: they come from the same code.
    for ((key, old), (_, new)) in was.facts.iter().zip(&is.facts) {
        if old == new {
            continue;
        }
        let (what, name) = (what.to_owned(), (*key).to_owned());
        changed.push(match (old, new) {
            (Fact::Text(from), Fact::Text(to)) => Change::Changed {
                what,
                key: name,
                from: from.clone(),
                to: to.clone(),
            },
            (Fact::Set(old), Fact::Set(new)) => {
                let added = new.difference(old).cloned().collect();
                let removed = old.difference(new).cloned().collect();
                Change::Members {
                    what,
                    key: name,
                    added,
                    removed,
                }
            }
            _ => Change::Hidden { what, key: name },
        });
        restart.extend(was.restart.key(key));
    }
}

#[cfg(test)]
mod tests;
