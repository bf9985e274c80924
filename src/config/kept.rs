//! What is kept in the state directory: the configuration in use, so that `tidegate check --diff`
//! can tell what a reload would change; and the last good copy of what was fetched, for a start
//! while its source is away. Files are kept as they were written: references stay references, and
//! no secret is among them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::mistake::{Mistake, whole_file};
use super::source::{self, MAX_BYTES, Written};
use super::{Loaded, process_environment, schema};

/// The name of the configuration in use.
const RUNNING: &str = "running.json";

/// A file of the configuration in use. JSON gives every text back byte by byte.
#[derive(Serialize, Deserialize)]
struct Entry {
    layer: usize,
    file: String,
    /// Absolute; none for what was fetched.
    folder: Option<String>,
    text: String,
}

/// The files of a configuration as one text.
pub(super) fn text(written: &[Written]) -> String {
    let entries = written.iter().map(|file| Entry {
        layer: file.layer,
        file: file.name.display().to_string(),
        folder: file.base.as_deref().map(absolute),
        text: file.text.clone(),
    });
    serde_json::to_string_pretty(&entries.collect::<Vec<_>>()).unwrap_or_default()
}

fn absolute(folder: &Path) -> String {
    let here = Path::new(".");
    let folder = if folder.as_os_str().is_empty() {
        here
    } else {
        folder
    };
    let absolute = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    absolute.display().to_string()
}

/// Keeps the configuration in use.
///
/// # Errors
/// If the state directory cannot be made or written to.
pub fn keep(state_dir: &Path, text: &str) -> io::Result<()> {
    write(&state_dir.join(RUNNING), text.as_bytes())
}

/// Reads it again, with its paths relative to where they were.
///
/// # Errors
/// If there is none, or a secret or file it refers to has gone since.
pub fn load(state_dir: &Path) -> Result<Loaded, Vec<Mistake>> {
    let path = state_dir.join(RUNNING);
    let written = running(&path).map_err(|cause| {
        let found = format!("cannot be read: {cause}");
        let allowed = "a running gateway keeps its configuration there";
        vec![whole_file(&path, found, allowed)]
    })?;
    let schema = schema::value();
    let source = source::assemble(written, &schema)?;
    super::judge(source, &schema, &process_environment)
}

fn running(path: &Path) -> io::Result<Vec<Written>> {
    // Escapes and names come on top of the texts.
    let (bytes, _) = read(path, MAX_BYTES.saturating_mul(6))?;
    let entries: Vec<Entry> = serde_json::from_slice(&bytes)?;
    let written = entries.into_iter().map(|entry| Written {
        layer: entry.layer,
        name: entry.file.into(),
        base: entry.folder.map(PathBuf::from),
        text: entry.text,
    });
    Ok(written.collect())
}

/// The last good copy of a configuration that was fetched.
#[derive(Debug, Clone)]
pub struct Copy(PathBuf);

impl Copy {
    /// The one of the source at `url`, in `folder`. The URL is not readable off its name.
    pub fn of(folder: &Path, url: &str) -> Self {
        let hash = Sha256::digest(url.as_bytes());
        let name = hash.iter().take(8).map(|byte| format!("{byte:02x}"));
        let name: String = name.collect();
        Self(folder.join(format!("remote-{name}.yaml")))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Keeps `bytes`, whole or not at all, readable for this user alone.
    ///
    /// # Errors
    /// If the folder cannot be made or written to.
    pub fn keep(&self, bytes: &[u8]) -> io::Result<()> {
        write(&self.0, bytes)
    }

    /// Reads it, and when it was kept.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn load(&self) -> io::Result<(Vec<u8>, SystemTime)> {
        read(&self.0, MAX_BYTES)
    }
}

fn read(path: &Path, most: u64) -> io::Result<(Vec<u8>, SystemTime)> {
    let file = File::open(path)?;
    let modified = file.metadata()?.modified()?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other("too large"));
    }
    Ok((bytes, modified))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // Left behind by a crash, perhaps with other permissions.
    match fs::remove_file(&fresh) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::MINIMAL;
    use super::*;
    use crate::config::Layer;
    use crate::config::diff::diff;

    #[test]
    fn what_was_kept_means_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("tidegate.yaml");
        let over = folder.path().join("over/a.yaml");
        fs::create_dir(folder.path().join("over")).unwrap();
        fs::write(&config, MINIMAL).unwrap();
        fs::write(&over, "server: {state_dir: here}\nretry: {attempts: 3}\n").unwrap();
        let layers = [Layer::Path(config), Layer::Path(over)];
        let loaded = crate::config::load_with(&layers, &|_| Some("sk-1".into())).unwrap();
        assert_eq!(
            loaded.settings.server.state_dir,
            folder.path().join("over/here")
        );
        let state = folder.path().join("state");
        keep(&state, &loaded.kept).unwrap();
        keep(&state, &loaded.kept).unwrap();
        let kept = fs::read_to_string(state.join(RUNNING)).unwrap();
        assert!(!kept.contains("sk-1"));
        let schema = schema::value();
        let source = source::assemble(running(&state.join(RUNNING)).unwrap(), &schema).unwrap();
        let again = super::super::judge(source, &schema, &|_| Some("sk-1".into())).unwrap();
        assert!(diff(&loaded.settings, &again.settings).is_empty());
        assert_eq!(loaded.digest, again.digest);
    }

    #[test]
    fn nothing_kept_is_said_with_its_place() {
        let mistakes = load(Path::new("/nonexistent/state")).unwrap_err();
        assert!(mistakes[0].to_string().contains("running.json"));
    }

    #[test]
    fn a_copy_is_for_this_user_alone_and_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let url = "https://config.corp/tidegate.yaml?token=hidden";
        let copy = Copy::of(&folder.path().join("state"), url);
        assert!(copy.load().is_err());
        for text in ["a: 1\r\n", "b: 2\t\u{2028}\n"] {
            copy.keep(text.as_bytes()).unwrap();
            assert_eq!(copy.load().unwrap().0, text.as_bytes());
        }
        let mode = fs::metadata(copy.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!copy.path().display().to_string().contains("hidden"));
        let other = Copy::of(&folder.path().join("state"), "https://config.corp/");
        assert_ne!(copy.path(), other.path());
    }
}
