//! Decides what a secret is and where it may come from: the environment, a file, or a systemd
//! credential, named by a reference. Nothing else in this crate reads the process environment, and
//! nothing here puts a secret, or what stands where a reference should, into a message.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::position::{Content, Node};

/// Bytes of a file that holds one secret. A key has hundreds; more means the wrong file was named.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// What may stand where a secret is wanted, for a person.
pub const REFERENCE_FORM: &str = "a reference: ${env:NAME}, ${file:PATH} or ${credential:NAME}; a secret itself may not stand in the file";

/// What may stand where the hash of a key is wanted, for a person.
pub const HASH_FORM: &str = "sha256: and 64 hexadecimal digits, or hmac-sha256:PEPPER: and 64 hexadecimal digits, as `tidegate key new` and `key hash` print them";

/// A value that must not be seen. It is wiped from memory when dropped, compared in constant time
/// (its length is not hidden), and printed as `Secret(***)`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret that was made or received elsewhere.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The value itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

/// What the file has where a secret is wanted: a reference if all is well, a secret pasted by
/// mistake if not; so it is never printed either.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Text that stands where a secret is wanted, outside the file.
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(***)")
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl JsonSchema for SecretText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^\$\{(env:[A-Za-z_][A-Za-z0-9_]*|file:[^}]+|credential:[^}/]+)\}$",
            "x-tidegate-kind": "secret",
        })
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `${env:NAME}`
    Env(String),
    /// `${file:PATH}`
    File(PathBuf),
    /// `${credential:NAME}`
    Credential(String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "${{env:{name}}}"),
            Self::File(path) => write!(f, "${{file:{}}}", path.display()),
            Self::Credential(name) => write!(f, "${{credential:{name}}}"),
        }
    }
}

/// Why there is no secret. No variant carries a secret or what was found in its place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("text that is not a reference (not shown)")]
    NotAReference,
    #[error("{0}: the variable is not set")]
    Unset(Reference),
    #[error(
        "{0}: CREDENTIALS_DIRECTORY is not set; it is systemd that sets it, from LoadCredential="
    )]
    NoCredentials(Reference),
    #[error("{0}: a relative path, in a file that came over the network")]
    Relative(Reference),
    #[error("{0}: cannot be read: {1}")]
    Unreadable(Reference, String),
    #[error("{0}: not a regular file")]
    NotAFile(Reference),
    #[error("{0}: larger than 64 KiB")]
    TooLarge(Reference),
    #[error("{0}: empty")]
    Empty(Reference),
    #[error("{0}: begins or ends with white space")]
    Padded(Reference),
    #[error("{0}: holds characters that are not printable ASCII; a header could not carry it")]
    Unprintable(Reference),
}

/// A secret that was found, and whether others on this machine can find it as well.
#[derive(Debug)]
pub struct Resolved {
    pub secret: Secret,
    /// The file that any user of the machine may read, if it came from such a one.
    pub world_readable: Option<PathBuf>,
}

/// Reads one environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Where references are looked up.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// By file of the configuration: where relative paths in it start, which is its folder. None if
    /// it has none, since it came from elsewhere.
    pub bases: &'a [Option<PathBuf>],
    pub environment: Environment<'a>,
}

/// Does `text` look like a reference? Used to refuse references where none is understood.
pub fn looks_like_reference(text: &str) -> bool {
    ["${env:", "${file:", "${credential:"]
        .iter()
        .any(|start| text.starts_with(start))
        && text.ends_with('}')
}

impl Sources<'_> {
    /// What `path` means in the file with this number; nothing if it is relative to no folder.
    pub fn absolute(&self, path: &Path, file: usize) -> Option<PathBuf> {
        match self.bases.get(file) {
            Some(Some(base)) => Some(base.join(path)),
            _ => path.is_absolute().then(|| path.to_owned()),
        }
    }

    /// The files that `${file:…}` references in `tree` name. Elsewhere than in the place of a secret
    /// a reference is a mistake.
    pub fn files_in(&self, tree: &Node) -> Vec<PathBuf> {
        match &tree.content {
            Content::Text(text) => match parse(text) {
                Some(Reference::File(path)) => {
                    let file = self.absolute(&path, tree.place.file);
                    file.into_iter().collect()
                }
                _ => Vec::new(),
            },
            Content::List(items) => items.iter().flat_map(|i| self.files_in(i)).collect(),
            Content::Map(entries) => {
                let values = entries.iter().map(|entry| &entry.value);
                values.flat_map(|value| self.files_in(value)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Finds the secret that `text` refers to, in the file with this number.
    pub fn resolve(&self, text: &SecretText, file: usize) -> Result<Resolved, SecretError> {
        let reference = parse(&text.0).ok_or(SecretError::NotAReference)?;
        let (value, world_readable) = match &reference {
            Reference::Env(name) => {
                let value = (self.environment)(name)
                    .ok_or_else(|| SecretError::Unset(reference.clone()))?;
                let value = value
                    .into_string()
                    .map_err(|_| SecretError::Unprintable(reference.clone()))?;
                (Zeroizing::new(value), None)
            }
            Reference::File(path) => {
                let path = self
                    .absolute(path, file)
                    .ok_or_else(|| SecretError::Relative(reference.clone()))?;
                read(&path, &reference)?
            }
            Reference::Credential(name) => {
                let folder = (self.environment)("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| SecretError::NoCredentials(reference.clone()))?;
                read(&Path::new(&folder).join(name), &reference)?
            }
        };
        judge(&value, &reference)?;
        Ok(Resolved {
            secret: Secret(value),
            world_readable,
        })
    }
}

/// Is `text` a reference that can be followed?
pub fn is_reference(text: &str) -> bool {
    parse(text).is_some()
}

/// Reads a secret from a file that a command line names, as `${file:…}` would.
pub fn read_file(path: &Path) -> Result<Secret, SecretError> {
    let reference = Reference::File(path.to_owned());
    let (value, _) = read(path, &reference)?;
    judge(&value, &reference)?;
    Ok(Secret(value))
}

/// Reads a reference, or nothing if `text` is not one.
fn parse(text: &str) -> Option<Reference> {
    let (kind, name) = text
        .strip_prefix("${")?
        .strip_suffix('}')?
        .split_once(':')?;
    if name.is_empty() || name.contains(['{', '}']) || name.chars().any(char::is_control) {
        return None;
    }
    match kind {
        "env" => {
            let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            (word && !name.starts_with(|c: char| c.is_ascii_digit()))
                .then(|| Reference::Env(name.to_owned()))
        }
        "file" => Some(Reference::File(PathBuf::from(name))),
        // A credential is a plain name (systemd.exec(5)); anything else would leave its folder.
        "credential" => {
            let plain = !name.contains('/') && name != "." && name != "..";
            plain.then(|| Reference::Credential(name.to_owned()))
        }
        _ => None,
    }
}

fn read(
    path: &Path,
    reference: &Reference,
) -> Result<(Zeroizing<String>, Option<PathBuf>), SecretError> {
    let unreadable =
        |e: std::io::Error| SecretError::Unreadable(reference.clone(), e.kind().to_string());
    // Asked before opening: opening a FIFO would wait for a writer that never comes.
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if !about.is_file() {
        return Err(SecretError::NotAFile(reference.clone()));
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
    let limit = MAX_SECRET_BYTES as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge(reference.clone()));
    }
    let text =
        std::str::from_utf8(&bytes).map_err(|_| SecretError::Unprintable(reference.clone()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    let world_readable = (about.permissions().mode() & 0o004 != 0).then(|| path.to_owned());
    Ok((Zeroizing::new(text.to_owned()), world_readable))
}

fn judge(value: &str, reference: &Reference) -> Result<(), SecretError> {
    if value.is_empty() {
        return Err(SecretError::Empty(reference.clone()));
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(SecretError::Unprintable(reference.clone()));
    }
    if value.trim() != value {
        return Err(SecretError::Padded(reference.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(base: &Path, text: &str) -> Result<Resolved, SecretError> {
        resolve_in(0, base, text)
    }

    fn resolve_in(file: usize, base: &Path, text: &str) -> Result<Resolved, SecretError> {
        let credentials = base.join("credentials");
        let environment = move |name: &str| match name {
            "KEY" => Some(OsString::from("sk-1")),
            "EMPTY" => Some(OsString::new()),
            "LINES" => Some(OsString::from("sk-1\nx: y")),
            "PADDED" => Some(OsString::from("sk-1 ")),
            "CREDENTIALS_DIRECTORY" => Some(credentials.clone().into_os_string()),
            _ => None,
        };
        Sources {
            bases: &[Some(base.to_owned()), None],
            environment: &environment,
        }
        .resolve(&SecretText(text.to_owned()), file)
    }

    #[test]
    fn a_reference_is_followed_to_the_environment_a_file_and_a_credential() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "sk-2\n").unwrap();
        std::fs::create_dir(folder.path().join("credentials")).unwrap();
        std::fs::write(folder.path().join("credentials/key"), "sk-3").unwrap();
        let found = |text| resolve(folder.path(), text).unwrap().secret;
        assert_eq!(found("${env:KEY}").expose(), "sk-1");
        assert_eq!(found("${file:key}").expose(), "sk-2");
        assert_eq!(found("${credential:key}").expose(), "sk-3");
    }

    #[test]
    fn a_file_without_a_folder_may_name_absolute_paths_only() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "sk-2").unwrap();
        let error = resolve_in(1, folder.path(), "${file:key}").unwrap_err();
        assert!(matches!(error, SecretError::Relative(_)));
        let absolute = format!("${{file:{}}}", key.display());
        let found = resolve_in(1, folder.path(), &absolute).unwrap().secret;
        assert_eq!(found.expose(), "sk-2");
    }

    #[test]
    fn a_file_that_everyone_may_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "sk-2").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(
            resolve(folder.path(), "${file:key}")
                .unwrap()
                .world_readable,
            None
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            resolve(folder.path(), "${file:key}")
                .unwrap()
                .world_readable,
            Some(path)
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("large"),
            vec![b'a'; MAX_SECRET_BYTES + 1],
        )
        .unwrap();
        std::fs::write(folder.path().join("two"), "a\nb\n").unwrap();
        std::fs::write(folder.path().join("newline"), "\n").unwrap();
        let error = |text| resolve(folder.path(), text).unwrap_err();
        assert!(matches!(error("${env:NONE}"), SecretError::Unset(_)));
        assert!(matches!(error("${env:EMPTY}"), SecretError::Empty(_)));
        assert!(matches!(error("${env:LINES}"), SecretError::Unprintable(_)));
        assert!(matches!(error("${env:PADDED}"), SecretError::Padded(_)));
        assert!(matches!(error("${file:none}"), SecretError::Unreadable(..)));
        assert!(matches!(error("${file:.}"), SecretError::NotAFile(_)));
        assert!(matches!(error("${file:large}"), SecretError::TooLarge(_)));
        assert!(matches!(error("${file:two}"), SecretError::Unprintable(_)));
        assert!(matches!(error("${file:newline}"), SecretError::Empty(_)));
        for text in [
            "sk-live",
            "",
            "${env:}",
            "${env:A-B}",
            "x${env:KEY}",
            "${vault:a}",
            "${credential:../x}",
            "${env:1}",
        ] {
            assert_eq!(error(text), SecretError::NotAReference, "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_seen_in_any_output() {
        let secret = Secret::new("sk-hidden".to_owned());
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        assert_eq!(
            format!("{:?}", SecretText("sk-hidden".to_owned())),
            "SecretText(***)"
        );
        assert_eq!(secret, Secret::new("sk-hidden".to_owned()));
        assert_ne!(secret, Secret::new("sk-hidden2".to_owned()));
    }

    proptest! {
        #[test]
        fn a_refused_text_is_never_shown(text in "[a-zA-Z0-9]{12,40}") {
            let error = resolve(Path::new("."), &text).unwrap_err();
            prop_assert!(!error.to_string().contains(&text));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
