//! The configuration in use, kept in the state directory, so that `tidegate check --diff` can tell
//! what a reload would change. References stay references: no secret is written.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::mistake::{Mistake, whole_file};
use super::source::Source;
use super::{Loaded, process_environment, source};

/// Its name in the state directory.
const NAME: &str = "running.yaml";
/// Begins the line that says where relative paths start.
const BASE: &str = "# paths are relative to: ";

/// The configuration as one file.
pub(super) fn text(source: &Source) -> String {
    let base = if source.base.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &source.base
    };
    let base = fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
    let yaml = serde_yaml::to_string(&source.root.to_yaml()).unwrap_or_default();
    format!("{BASE}{}\n{yaml}", base.display())
}

/// Writes it, whole or not at all, readable for this user alone.
///
/// # Errors
/// If the state directory cannot be made or written to.
pub fn keep(state_dir: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(state_dir)?;
    let fresh = state_dir.join(format!("{NAME}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(fresh, state_dir.join(NAME))
}

/// Reads it again, with its paths relative to where they were.
///
/// # Errors
/// If there is none, or a secret or file it refers to has gone since.
pub fn load(state_dir: &Path) -> Result<Loaded, Vec<Mistake>> {
    let path = state_dir.join(NAME);
    let text = fs::read_to_string(&path).map_err(|cause| {
        let found = format!("cannot be read: {cause}");
        vec![whole_file(
            &path,
            found,
            "a running gateway keeps its configuration there",
        )]
    })?;
    let base = text.lines().next().and_then(|line| line.strip_prefix(BASE));
    let mut source = source::read(&path)?;
    if let Some(base) = base {
        source.base = PathBuf::from(base);
    }
    super::judge(source, &path, &process_environment)
}

#[cfg(test)]
mod tests {
    use super::super::tests::MINIMAL;
    use super::*;
    use crate::config::diff::diff;

    #[test]
    fn what_was_kept_means_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("tidegate.yaml");
        fs::write(&config, MINIMAL).unwrap();
        let loaded = crate::config::load_with(&config, &|_| Some("sk-1".into())).unwrap();
        let state = folder.path().join("state");
        keep(&state, &loaded.kept).unwrap();
        keep(&state, &loaded.kept).unwrap();
        let kept = fs::read_to_string(state.join(NAME)).unwrap();
        assert!(!kept.contains("sk-1"));
        let mut source = source::read(&state.join(NAME)).unwrap();
        source.base = folder.path().to_owned();
        let again = super::super::judge(source, &config, &|_| Some("sk-1".into())).unwrap();
        assert!(diff(&loaded.settings, &again.settings).is_empty());
    }

    #[test]
    fn nothing_kept_is_said_with_its_place() {
        let mistakes = load(Path::new("/nonexistent/state")).unwrap_err();
        assert!(mistakes[0].to_string().contains("running.yaml"));
    }
}
