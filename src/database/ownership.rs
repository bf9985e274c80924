//! Decides which process may admit requests on a `state_dir`, who else lives on it, and whether
//! somebody waits to take over.
//!
//! All by locks of the operating system (`flock`) on files in that folder: they end with the process
//! that holds them, however it ends, so nothing of a dead one is ever in the way. The folder must be
//! on a file system of this host.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const OWNER: &str = "tidegate.lock";
const SUCCESSOR: &str = "successor.lock";
const PROCESS: &str = "process-";
const ENDING: &str = ".lock";

/// The right to admit on a `state_dir`, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Ownership {
    _lock: File,
}

impl Ownership {
    /// Takes it, unless another process has it.
    ///
    /// # Errors
    /// If the folder or the lock in it cannot be made.
    pub fn try_take(state_dir: &Path) -> io::Result<Option<Self>> {
        let lock = try_lock(state_dir, OWNER)?;
        if let Some(mut file) = lock.as_ref() {
            // For people who look; nothing reads it.
            let _ = file.set_len(0);
            let _ = writeln!(file, "{}", std::process::id());
        }
        Ok(lock.map(|lock| Self { _lock: lock }))
    }
}

/// Shows that this process waits for the [`Ownership`], until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Successor {
    _lock: File,
}

impl Successor {
    /// Shows it, unless another process waits as well. That another one just looked can also be in
    /// the way: whoever goes on waiting tries again.
    ///
    /// # Errors
    /// If the folder or the lock in it cannot be made.
    pub fn announce(state_dir: &Path) -> io::Result<Option<Self>> {
        let lock = try_lock(state_dir, SUCCESSOR)?;
        Ok(lock.map(|lock| Self { _lock: lock }))
    }

    /// Does a process wait? For the owner, which then finishes what it has and lets go.
    ///
    /// # Errors
    /// If the folder or the lock in it cannot be made.
    pub fn is_waiting(state_dir: &Path) -> io::Result<bool> {
        Ok(try_lock(state_dir, SUCCESSOR)?.is_none())
    }
}

/// Shows that a process lives on a `state_dir`, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Alive {
    _lock: File,
    path: PathBuf,
}

impl Alive {
    /// Shows it under an id of `a-z`, `0-9` and `-` that no other process ever has, such as a UUID.
    ///
    /// # Errors
    /// If the id is none, another living process has it, or its file cannot be made.
    pub fn mark(state_dir: &Path, id: &str) -> io::Result<Self> {
        let path = path_of(state_dir, id)?;
        if is_alive(state_dir, id)? {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        fs::create_dir_all(state_dir)?;
        // Locked before it can be seen: else somebody who looks would take it for a dead one's.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let file = open(Path::new(&fresh))?;
        file.try_lock()?;
        fs::rename(&fresh, &path)?;
        Ok(Self { _lock: file, path })
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        // While the lock is still held. If it stays, the next who looks removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Does the process of this id live? If not, its file is removed.
///
/// # Errors
/// If the id is none, or its file cannot be looked at.
pub fn is_alive(state_dir: &Path, id: &str) -> io::Result<bool> {
    let path = path_of(state_dir, id)?;
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(cause) => return Err(cause),
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(cause)) => Err(cause),
        Ok(()) => {
            match fs::remove_file(&path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            Ok(false)
        }
    }
}

/// The ids of all processes that live on a `state_dir`, in order. Files of dead ones are removed.
///
/// # Errors
/// If the folder or a file in it cannot be looked at.
pub fn living(state_dir: &Path) -> io::Result<Vec<String>> {
    let mut living = Vec::new();
    for entry in fs::read_dir(state_dir)? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| {
            let id = name.strip_prefix(PROCESS)?.strip_suffix(ENDING)?;
            is_id(id).then_some(id)
        });
        if let Some(id) = id
            && is_alive(state_dir, id)?
        {
            living.push(id.to_owned());
        }
    }
    living.sort_unstable();
    Ok(living)
}

/// Locks a file that is never removed, so that all who lock it lock the same.
fn try_lock(state_dir: &Path, name: &str) -> io::Result<Option<File>> {
    fs::create_dir_all(state_dir)?;
    let file = open(&state_dir.join(name))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(cause)) => Err(cause),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn path_of(state_dir: &Path, id: &str) -> io::Result<PathBuf> {
    if !is_id(id) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(state_dir.join(format!("{PROCESS}{id}{ENDING}")))
}

fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&id.len()) && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn one_owner_at_a_time_and_the_next_when_it_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("new/state");
        let first = Ownership::try_take(&state).unwrap().unwrap();
        assert!(Ownership::try_take(&state).unwrap().is_none());
        let text = fs::read_to_string(state.join(OWNER)).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
        drop(first);
        assert!(Ownership::try_take(&state).unwrap().is_some());
    }

    #[test]
    fn of_many_that_want_it_one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(8);
        let owners = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let taken = Ownership::try_take(folder.path()).unwrap();
                        barrier.wait();
                        taken.is_some()
                    })
                })
                .collect();
            let owners = tries.into_iter().map(|thread| thread.join().unwrap());
            owners.filter(|owner| *owner).count()
        });
        assert_eq!(owners, 1);
    }

    #[test]
    fn a_successor_is_seen_while_it_waits() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Successor::is_waiting(folder.path()).unwrap());
        let waiting = Successor::announce(folder.path()).unwrap().unwrap();
        assert!(Successor::is_waiting(folder.path()).unwrap());
        assert!(Successor::announce(folder.path()).unwrap().is_none());
        drop(waiting);
        assert!(!Successor::is_waiting(folder.path()).unwrap());
    }

    #[test]
    fn a_process_lives_until_its_mark_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_alive(folder.path(), "a-1").unwrap());
        let one = Alive::mark(folder.path(), "a-1").unwrap();
        let two = Alive::mark(folder.path(), "b-2").unwrap();
        assert!(is_alive(folder.path(), "a-1").unwrap());
        let again = Alive::mark(folder.path(), "a-1").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(living(folder.path()).unwrap(), ["a-1", "b-2"]);
        drop(one);
        assert_eq!(living(folder.path()).unwrap(), ["b-2"]);
        drop(two);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_a_dead_process_left_is_nobodys_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "process-dead-1.lock",
            "process-dead-2.lock",
            OWNER,
            SUCCESSOR,
        ] {
            fs::write(folder.path().join(name), "4711\n").unwrap();
        }
        assert!(!is_alive(folder.path(), "dead-1").unwrap());
        assert!(living(folder.path()).unwrap().is_empty());
        assert_eq!(names(folder.path()), [SUCCESSOR, OWNER]);
        assert!(!Successor::is_waiting(folder.path()).unwrap());
        assert!(Ownership::try_take(folder.path()).unwrap().is_some());
        let reborn = Alive::mark(folder.path(), "dead-1").unwrap();
        assert!(is_alive(folder.path(), "dead-1").unwrap());
        drop(reborn);
    }

    #[test]
    fn an_id_is_no_path() {
        let folder = tempfile::tempdir().unwrap();
        for id in ["", "../x", "a/b", "A", "a.b", &"a".repeat(65)] {
            let error = Alive::mark(folder.path(), id).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_and_no_ownership() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Ownership::try_take(&file.join("state")).is_err());
        assert!(Successor::is_waiting(&file.join("state")).is_err());
    }
}
