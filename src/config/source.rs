//! Gathers the files of a configuration into one tree: for each layer of the command line a file, a
//! folder whose `*.yaml` files are merged, or a text that was fetched; later layers are laid over
//! earlier ones by the rules of [`super::overlay`].
//!
//! The rule of merging within a folder: its files (not of folders in it, not hidden ones) are taken
//! in the order of their names. Maps merge key by key, lists are appended, and everything else may
//! stand in one file only: the same scalar twice is a mistake even if both say the same, because
//! one of the two will be changed some day. A key without a value counts as absent.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::mistake::{KeyPath, Mistake, Report, whole_file};
use super::overlay::{self, History};
use super::position::{Content, Entry, MAX_VALUES, Node, Place, parse};
use super::schema::Spot;

/// Bytes of all files together. A hundred tenants are some 30 KiB.
pub const MAX_BYTES: u64 = 16 << 20;

/// Files in a folder.
const MAX_FILES: usize = 1_000;

/// Layers on a command line. A base, a region and an environment are three.
pub const MAX_LAYERS: usize = 16;

/// What one `-c` names.
#[derive(Debug, Clone)]
pub enum Layer {
    /// A file or a folder.
    Path(PathBuf),
    /// A text that came from elsewhere. Relative paths in it have no meaning.
    Text {
        /// As it is told in messages.
        name: String,
        bytes: Arc<[u8]>,
    },
}

/// One file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Which layer it belongs to; counts up.
    pub layer: usize,
    pub name: PathBuf,
    /// Relative paths in it start here; none if they have no meaning.
    pub base: Option<PathBuf>,
    pub text: String,
}

/// What was read.
#[derive(Debug)]
pub struct Source {
    /// The files in the order in which they were taken; [`Place::file`] counts in it.
    pub files: Vec<PathBuf>,
    /// The same files as they were.
    pub written: Vec<Written>,
    pub root: Node,
    /// What later layers replaced.
    pub history: History,
    /// SHA-256 over names and contents, in hexadecimal.
    pub digest: String,
}

/// Reads the layers and makes one tree of them.
pub fn read(layers: &[Layer], schema: &Value) -> Result<Source, Vec<Mistake>> {
    assemble(gather(layers)?, schema)
}

/// Reads the files of all layers.
fn gather(layers: &[Layer]) -> Result<Vec<Written>, Vec<Mistake>> {
    let mut left = MAX_BYTES;
    let mut all: Vec<Written> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        if number >= MAX_LAYERS {
            let allowed = format!("at most {MAX_LAYERS}");
            return Err(vec![whole_file(layer.name(), "too many layers", allowed)]);
        }
        let files = match layer {
            Layer::Path(path) => files_of(path)?,
            Layer::Text { name, .. } => vec![PathBuf::from(name)],
        };
        for name in files {
            let (bytes, base) = match layer {
                Layer::Path(_) => (read_bytes(&name, left)?, name.parent().map(Path::to_owned)),
                Layer::Text { bytes, .. } => (bytes.to_vec(), None),
            };
            left = left
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| too_large(&name))?;
            all.push(Written {
                layer: number,
                text: utf8(bytes, &name)?,
                base,
                name,
            });
        }
    }
    Ok(all)
}

impl Layer {
    fn name(&self) -> &Path {
        match self {
            Self::Path(path) => path,
            Self::Text { name, .. } => Path::new(name),
        }
    }
}

/// The files that `path` stands for: itself, or those in it.
///
/// # Errors
/// If it cannot be looked at, or is a folder without a configuration.
pub fn files_of(path: &Path) -> Result<Vec<PathBuf>, Vec<Mistake>> {
    let about = std::fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if about.is_dir() {
        list(path)
    } else {
        Ok(vec![path.to_owned()])
    }
}

/// Makes one tree of files that were read.
pub fn assemble(written: Vec<Written>, schema: &Value) -> Result<Source, Vec<Mistake>> {
    let files: Vec<PathBuf> = written.iter().map(|file| file.name.clone()).collect();
    let mut digest = Sha256::new();
    let mut values = 0_usize;
    let mut layers: Vec<Vec<Node>> = Vec::new();
    let mut mistakes = Vec::new();
    let mut layer = 0;
    for (number, file) in written.iter().enumerate() {
        if file.layer != layer || layers.is_empty() {
            // Where one layer ends and the next begins makes a difference.
            digest.update(if layers.is_empty() { &[][..] } else { &[0xff] });
            layer = file.layer;
            layers.push(Vec::new());
        }
        let name = file.name.file_name().unwrap_or_default();
        digest.update(name.as_encoded_bytes());
        digest.update([0]);
        digest.update((file.text.len() as u64).to_be_bytes());
        digest.update(&file.text);
        match parse(&file.text, &file.name, number) {
            Ok(root) => {
                values = values.saturating_add(root.size().values);
                if let Some(roots) = layers.last_mut() {
                    roots.push(root);
                }
            }
            Err(found) => mistakes.extend(found),
        }
        if values > MAX_VALUES {
            let allowed = format!("at most {MAX_VALUES} in all files together");
            mistakes.push(whole_file(&file.name, "too many values", allowed));
        }
        if values > MAX_VALUES || mistakes.len() > 500 {
            break;
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let mut history = History::default();
    let mut layers = layers.into_iter();
    let mut root = merge_all(&files, layers.next().unwrap_or_default())?;
    for roots in layers {
        let above = merge_all(&files, roots)?;
        overlay::lay(Spot::root(schema), &mut root, above, &files, &mut history)?;
    }
    let digest = digest.finalize();
    let digest = hex::encode(digest);
    Ok(Source {
        files,
        written,
        root,
        history,
        digest,
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

fn read_bytes(file: &Path, left: u64) -> Result<Vec<u8>, Vec<Mistake>> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|e| unreadable(file, &e))?;
    opened
        .take(left.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(file, &e))?;
    if bytes.len() as u64 > left {
        return Err(too_large(file));
    }
    Ok(bytes)
}

fn too_large(file: &Path) -> Vec<Mistake> {
    let allowed = "a configuration has at most 16MiB in all its files";
    vec![whole_file(file, "too large", allowed)]
}

fn utf8(bytes: Vec<u8>, file: &Path) -> Result<String, Vec<Mistake>> {
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

    fn read_path(path: &Path) -> Result<Source, Vec<Mistake>> {
        read(&[Layer::Path(path.to_owned())], &Value::Null)
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
        let source = read_path(folder.path()).unwrap();
        assert_eq!(
            source.root.to_json(),
            serde_json::json!({"m": {"x": 1, "y": 2}, "l": [1, 2], "empty": 3})
        );
        assert_eq!(source.written[2].base.as_deref(), Some(folder.path()));
        let path = KeyPath::Root;
        assert_eq!(
            source.root.locate(&path.key("m").key("y")),
            Place { file: 1, line: 1 }
        );
    }

    #[test]
    fn the_same_scalar_in_two_files_is_a_mistake_that_names_both() {
        let folder = folder(&[("a.yaml", "m: {x: 1}\n"), ("b.yaml", "\nm: {x: 1}\n")]);
        let mistakes = read_path(folder.path()).unwrap_err();
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
        let told = |path: &Path| read_path(path).unwrap_err()[0].to_string();
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
        let before = read_path(folder.path()).unwrap().digest;
        assert_eq!(before, read_path(folder.path()).unwrap().digest);
        std::fs::write(folder.path().join("a.yaml"), "a: 2").unwrap();
        assert_ne!(before, read_path(folder.path()).unwrap().digest);
    }

    #[test]
    fn layers_are_laid_over_each_other_and_each_file_has_a_folder_of_its_own() {
        let (base, over) = (
            folder(&[("a.yaml", "retry: {attempts: 1}\ntenants: [{id: a}]\n")]),
            folder(&[("b.yaml", "retry: {attempts: 2}\n"), ("c.yaml", "files:\n")]),
        );
        let layers = [
            Layer::Path(base.path().join("a.yaml")),
            Layer::Path(over.path().to_owned()),
            Layer::Text {
                name: "https://config.corp/d.yaml".to_owned(),
                bytes: Arc::from(&b"tenants: [{id: b}]"[..]),
            },
        ];
        let schema = crate::config::schema::value();
        let source = read(&layers, &schema).unwrap();
        assert_eq!(
            source.root.to_json(),
            serde_json::json!({"retry": {"attempts": 2}, "tenants": [{"id": "a"}, {"id": "b"}]})
        );
        let bases: Vec<_> = source.written.iter().map(|w| w.base.as_deref()).collect();
        assert_eq!(
            bases,
            [
                Some(base.path()),
                Some(over.path()),
                Some(over.path()),
                None
            ]
        );
        assert_ne!(source.digest, read(&layers[..2], &schema).unwrap().digest);
        assert!(read(&vec![layers[0].clone(); MAX_LAYERS + 1], &schema).is_err());
    }

    #[test]
    fn a_text_from_elsewhere_is_bounded_like_a_file() {
        let text = |bytes: Vec<u8>| {
            let name = "https://config.corp/d.yaml".to_owned();
            let bytes = bytes.into();
            read(&[Layer::Text { name, bytes }], &Value::Null).unwrap_err()[0].to_string()
        };
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..30 {
            let of = format!("*a{}, ", i - 1).repeat(10);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", of.trim_end_matches(", ")));
        }
        assert!(text(bomb.into()).contains("too many values"));
        assert!(!text(vec![b'['; 100_000]).is_empty());
        assert!(text(vec![b'#'; MAX_BYTES as usize + 1]).contains("too large"));
        assert!(text(vec![b'a', b':', 0xff]).contains("d.yaml:1: a byte that is not UTF-8"));
    }

    #[test]
    fn values_are_counted_over_all_files() {
        let many = format!("l: [{}]\n", "1,".repeat(400_000));
        let folder = folder(&[("a.yaml", &many), ("b.yaml", &many), ("c.yaml", &many)]);
        let mistakes = read_path(folder.path()).unwrap_err();
        assert!(mistakes[0].to_string().contains("too many values"));
    }
}
