//! Decides from what files look like on disk whether the configuration is to be read again. A change
//! counts once it has settled, so that a file that is being written is not read; and it counts
//! once, whether or not it could be used.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long files must look the same before they count. Editors and `cp` are done within it.
pub const SETTLE: Duration = Duration::from_millis(500);

/// What tells a file from a later one without reading it. The inode follows links, so a link that
/// was turned to another file is seen too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// How some files looked at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

impl Stamps {
    /// Looks at `paths` now. What is not there is noted as such.
    pub fn of(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self::since(&Self::default(), paths)
    }

    /// The same for `paths`, but as they looked in `before` where they were looked at then.
    pub fn since(before: &Self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let stamps = paths.into_iter().map(|path| {
            let known = before.0.get(&path).cloned();
            let stamp = known.unwrap_or_else(|| stamp(&path));
            (path, stamp)
        });
        Self(stamps.collect())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: about.dev(),
        inode: about.ino(),
        size: about.size(),
        modified: (about.mtime(), about.mtime_nsec()),
        changed: (about.ctime(), about.ctime_nsec()),
    })
}

/// What a look has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Same,
    /// Something changed; look again after [`SETTLE`].
    Settling,
    /// Something changed and has settled.
    Changed,
}

/// Compares each look with the last one that counted.
#[derive(Debug)]
pub struct Watch {
    counted: Stamps,
    settling: Option<Stamps>,
}

impl Watch {
    /// `stamps` are of the files as they were read.
    pub fn new(stamps: Stamps) -> Self {
        Self {
            counted: stamps,
            settling: None,
        }
    }

    pub fn look(&mut self, found: Stamps) -> Look {
        if found == self.counted {
            self.settling = None;
            return Look::Same;
        }
        if self.settling.as_ref() == Some(&found) {
            *self = Self::new(found);
            return Look::Changed;
        }
        self.settling = Some(found);
        Look::Settling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(size: u64) -> Stamps {
        let stamp = Stamp {
            device: 1,
            inode: 1,
            size,
            modified: (0, 0),
            changed: (0, 0),
        };
        Stamps(BTreeMap::from([(PathBuf::from("a"), Some(stamp))]))
    }

    #[test]
    fn a_change_counts_once_and_only_after_it_has_settled() {
        let mut watch = Watch::new(stamps(1));
        let sizes = [1, 2, 3, 4, 4, 4, 4, 5, 4, 5, 5];
        let looks: Vec<_> = sizes.map(|size| watch.look(stamps(size))).to_vec();
        use Look::{Changed, Same, Settling};
        assert_eq!(
            looks,
            [
                Same, Settling, Settling, Settling, Changed, Same, Same, Settling, Same, Settling,
                Changed
            ]
        );
    }

    #[test]
    fn a_file_that_comes_goes_or_is_replaced_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let look = || Stamps::of([path.clone()]);
        let none = look();
        std::fs::write(&path, "a: 1").unwrap();
        let first = look();
        assert_ne!(none, first);
        assert_eq!(first, look());
        let other = folder.path().join("b.yaml");
        std::fs::write(&other, "a: 1").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(first, look());
        let both = Stamps::since(&first, [path.clone(), other.clone()]);
        assert_eq!(Stamps::since(&both, [path.clone()]), first);
        assert_eq!(both.0[&other], None);
    }
}
