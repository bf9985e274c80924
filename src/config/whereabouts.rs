//! Finds the state directory that a configuration names, for those who only look into it. Rules
//! behind the structure are not tried and no reference is followed: whoever reads a report need not
//! be able to read secrets.

use std::path::PathBuf;

use super::file::STATE_DIR;
use super::mistake::{Mistake, Report};
use super::position::Content;
use super::source::{self, Layer};
use super::{schema, shape};

/// The state directory of the configuration in `layers`.
///
/// # Errors
/// If the files cannot be read or their structure is wrong: all mistakes.
pub fn state_dir(layers: &[Layer]) -> Result<PathBuf, Vec<Mistake>> {
    let schema = schema::value();
    let source = source::read(layers, &schema)?;
    let mut report = Report::new(&source.files, &source.root);
    shape::walk(&schema, &source.root, &mut report);
    if report.has_mistakes() {
        return Err(report.finish().0);
    }
    let server = source.root.get("server");
    let Some(named) = server.and_then(|server| server.get("state_dir")) else {
        return Ok(STATE_DIR.into());
    };
    let Content::Text(path) = &named.content else {
        return Ok(STATE_DIR.into());
    };
    let file = source.written.get(named.place.file);
    let base = file.and_then(|file| file.base.clone());
    Ok(base.unwrap_or_default().join(path))
}

#[cfg(test)]
mod tests {
    use super::super::tests::MINIMAL;
    use super::*;

    #[test]
    fn it_is_found_beside_its_file_without_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base.yaml");
        let over = folder.path().join("over/a.yaml");
        std::fs::create_dir(folder.path().join("over")).unwrap();
        std::fs::write(&base, MINIMAL).unwrap();
        std::fs::write(&over, "server: {state_dir: here}\n").unwrap();
        let layers = [Layer::Path(base), Layer::Path(over)];
        assert_eq!(state_dir(&layers[..1]).unwrap(), PathBuf::from(STATE_DIR));
        let found = state_dir(&layers).unwrap();
        assert_eq!(found, folder.path().join("over/here"));
    }

    #[test]
    fn a_file_of_another_structure_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        std::fs::write(&path, "server: {state_dri: here}\n").unwrap();
        let mistakes = state_dir(&[Layer::Path(path)]).unwrap_err();
        assert!(mistakes[0].to_string().contains("state_dri"));
    }
}
