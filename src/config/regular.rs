//! Reads a file that the configuration names: a regular one, of bounded size. A FIFO would wait for
//! a writer that never comes, and a device has no end.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Bytes of a file with certificates or keys; the largest bundles of roots have half of it.
pub const MOST_BYTES: u64 = 1 << 20;

/// # Errors
/// If it cannot be read, is no regular file, or larger than [`MOST_BYTES`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    check(path)?;
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Error::new(ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(bytes)
}

/// The same judgement without reading, for those who open the file themselves.
///
/// # Errors
/// As [`read`].
pub fn check(path: &Path) -> Result<()> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    if about.len() > MOST_BYTES {
        return Err(Error::new(ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read(&path).unwrap(), b"text");
        std::fs::write(&path, vec![b'a'; MOST_BYTES as usize + 1]).unwrap();
        assert!(read(&path).is_err());
        assert!(read(folder.path()).is_err());
        assert!(read(Path::new("/dev/zero")).is_err());
    }
}
