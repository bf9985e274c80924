//! Reads the configuration from disk: one file, or a folder whose `*.yaml` files are merged.
//!
//! The rule of merging: the files of a folder (not of folders in it, not hidden ones) are taken in
//! the order of their names. Maps merge key by key, lists are appended, and everything else may
//! stand in one file only: the same scalar twice is a mistake even if both say the same, because
//! one of the two will be changed some day. A key without a value counts as absent.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::mistake::{KeyPath, Mistake, Report, whole_file};
use super::position::{Content, Entry, Node, Place, parse};

/// Bytes of all files together. A hundred tenants are some 30 KiB.
pub const MAX_BYTES: u64 = 16 << 20;

/// Files in a folder.
const MAX_FILES: usize = 1_000;

/// What was read.
#[derive(Debug)]
pub struct Source {
    /// The files in the order in which they were taken; [`Place::file`] counts in it.
    pub files: Vec<PathBuf>,
    /// Relative paths in the configuration start here.
    pub base: PathBuf,
    pub root: Node,
    /// SHA-256 over names and contents, in hexadecimal.
    pub digest: String,
}

/// Reads the file or folder `path`.
pub fn read(path: &Path) -> Result<Source, Vec<Mistake>> {
    let is_folder = std::fs::metadata(path)
        .map_err(|e| unreadable(path, &e))?
        .is_dir();
    let files = if is_folder {
        list(path)?
    } else {
        vec![path.to_owned()]
    };
    let base = if is_folder {
        path
    } else {
        path.parent().unwrap_or(Path::new(""))
    };
    let mut digest = Sha256::new();
    let mut left = MAX_BYTES;
    let mut roots = Vec::new();
    let mut mistakes = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let text = read_text(file, left)?;
        left = left.saturating_sub(text.len() as u64);
        digest.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        digest.update([0]);
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(&text);
        match parse(&text, file, number) {
            Ok(root) => roots.push(root),
            Err(found) => mistakes.extend(found),
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let root = merge_all(&files, roots)?;
    let digest = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Source {
        base: base.to_owned(),
        root,
        digest,
        files,
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Vec<Mistake> {
    vec![whole_file(path, format!("cannot be read: {error}"), "")]
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Vec<Mistake>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| unreadable(folder, &e))? {
        let path = entry.map_err(|e| unreadable(folder, &e))?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "yaml") && path.is_file() {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(vec![whole_file(
                folder,
                "too many files",
                format!("at most {MAX_FILES}"),
            )]);
        }
    }
    if files.is_empty() {
        return Err(vec![whole_file(
            folder,
            "no file in this folder ends in .yaml",
            "",
        )]);
    }
    files.sort();
    Ok(files)
}

fn read_text(file: &Path, left: u64) -> Result<String, Vec<Mistake>> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|e| unreadable(file, &e))?;
    opened
        .take(left.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(file, &e))?;
    if bytes.len() as u64 > left {
        return Err(vec![whole_file(
            file,
            "too large",
            "a configuration has at most 16MiB in all its files",
        )]);
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = e
            .as_bytes()
            .get(..e.utf8_error().valid_up_to())
            .unwrap_or_default();
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        let mistake = whole_file(
            file,
            "a byte that is not UTF-8",
            "the file has to be UTF-8 text",
        );
        vec![Mistake {
            line: Some(line),
            ..mistake
        }]
    })
}

fn merge_all(files: &[PathBuf], roots: Vec<Node>) -> Result<Node, Vec<Mistake>> {
    let mut all = roots.into_iter();
    let empty = Node {
        place: Place { file: 0, line: 1 },
        content: Content::Null,
    };
    let mut root = all.next().unwrap_or(empty.clone());
    let mut clashes = Vec::new();
    for other in all {
        // The path of a clash is told by the later file, so the report looks into that one's tree.
        let tree = other.clone();
        let mut report = Report::new(files, &tree);
        merge(&mut root, other, KeyPath::Root, &mut report, files);
        clashes.extend(report.finish().0);
    }
    if clashes.is_empty() {
        Ok(root)
    } else {
        Err(clashes)
    }
}

fn merge(
    into: &mut Node,
    from: Node,
    path: KeyPath<'_>,
    report: &mut Report<'_>,
    files: &[PathBuf],
) {
    if into.content == Content::Null {
        *into = from;
        return;
    }
    match (&mut into.content, from.content) {
        (_, Content::Null) => {}
        (Content::Map(entries), Content::Map(added)) => {
            merge_maps(entries, added, path, report, files)
        }
        (Content::List(items), Content::List(added)) => items.extend(added),
        _ => {
            let file = files
                .get(into.place.file)
                .map(|file| file.display().to_string())
                .unwrap_or_default();
            let allowed = format!(
                "it stands in {file}:{} already; only maps and lists merge",
                into.place.line
            );
            report.mistake_at(
                from.place,
                path,
                "a value that another file gives too",
                allowed,
            );
        }
    }
}

fn merge_maps(
    entries: &mut Vec<Entry>,
    added: Vec<Entry>,
    path: KeyPath<'_>,
    report: &mut Report<'_>,
    files: &[PathBuf],
) {
    let known: std::collections::HashMap<String, usize> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| (entry.key.clone(), index))
        .collect();
    for entry in added {
        let present = known
            .get(&entry.key)
            .and_then(|index| entries.get_mut(*index));
        match present {
            Some(present) => merge(
                &mut present.value,
                entry.value,
                path.key(&entry.key),
                report,
                files,
            ),
            None => entries.push(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn the_files_of_a_folder_merge_maps_and_append_lists() {
        let folder = folder(&[
            ("a.yaml", "m: {x: 1}\nl: [1]\nempty:\n"),
            ("b.yaml", "m: {y: 2}\nl: [2]\nempty: 3\n"),
            ("c.yaml", "# nothing\n"),
            (".hidden.yaml", "m: {x: 9}"),
            ("notes.txt", "m: {x: 9}"),
        ]);
        let source = read(folder.path()).unwrap();
        assert_eq!(
            source.root.to_json(),
            serde_json::json!({"m": {"x": 1, "y": 2}, "l": [1, 2], "empty": 3})
        );
        assert_eq!(source.base, folder.path());
        let path = KeyPath::Root;
        assert_eq!(
            source.root.locate(&path.key("m").key("y")),
            Place { file: 1, line: 1 }
        );
    }

    #[test]
    fn the_same_scalar_in_two_files_is_a_mistake_that_names_both() {
        let folder = folder(&[("a.yaml", "m: {x: 1}\n"), ("b.yaml", "\nm: {x: 1}\n")]);
        let mistakes = read(folder.path()).unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert_eq!(
            (mistakes[0].line, mistakes[0].path.as_str()),
            (Some(2), "m.x")
        );
        assert!(mistakes[0].file.ends_with("b.yaml"));
        assert!(mistakes[0].allowed.contains("a.yaml:1"), "{}", mistakes[0]);
    }

    #[test]
    fn a_file_that_is_missing_too_large_or_not_text_is_refused() {
        let folder = folder(&[("empty.txt", "")]);
        let told = |path: &Path| read(path).unwrap_err()[0].to_string();
        assert!(told(&folder.path().join("none.yaml")).contains("cannot be read"));
        assert!(told(folder.path()).contains("no file"));
        std::fs::write(folder.path().join("b.yaml"), b"a: 1\nb: \xff").unwrap();
        assert!(told(&folder.path().join("b.yaml")).contains(":2: a byte that is not UTF-8"));
        std::fs::write(
            folder.path().join("b.yaml"),
            vec![b'#'; MAX_BYTES as usize + 1],
        )
        .unwrap();
        assert!(told(&folder.path().join("b.yaml")).contains("too large"));
    }

    #[test]
    fn the_digest_tells_whether_anything_changed() {
        let folder = folder(&[("a.yaml", "a: 1")]);
        let before = read(folder.path()).unwrap().digest;
        assert_eq!(before, read(folder.path()).unwrap().digest);
        std::fs::write(folder.path().join("a.yaml"), "a: 2").unwrap();
        assert_ne!(before, read(folder.path()).unwrap().digest);
    }
}
