//! A header for the configuration's source as the command line has it: a name, and a value by
//! reference, since a command line is seen by everyone on the machine. No value, and nothing that
//! stands where a reference should, is in any message.

use std::path::PathBuf;

use http::{HeaderName, HeaderValue};

use super::SourceError;
use crate::config::process_environment;
use crate::config::secret::{self, SecretText};

/// Characters of the word before a reference.
const MAX_SCHEME: usize = 32;

/// What a header of the command line must look like, for a person.
pub const HEADER_FORM: &str = "expected 'Name: ${credential:NAME}', with any reference and one word before it if needed, such as 'Authorization: Bearer ${file:/run/token}'";

/// A header field whose value is a secret, perhaps with a word before it.
#[derive(Debug)]
pub struct Header {
    name: HeaderName,
    scheme: Option<String>,
    secret: SecretText,
}

impl Header {
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Reads `Name: ${…}` or `Name: Word ${…}`.
    ///
    /// # Errors
    /// If it is anything else, above all the secret itself.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let (name, value) = text.split_once(':').ok_or(SourceError::Header)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes());
        let name = name.map_err(|_| SourceError::Header)?;
        let (scheme, reference) = match value.trim().split_once(' ') {
            Some((scheme, reference)) if !scheme.starts_with("${") => {
                (Some(scheme), reference.trim())
            }
            _ => (None, value.trim()),
        };
        let is_word =
            |word: &str| word.len() <= MAX_SCHEME && word.bytes().all(|b| b.is_ascii_graphic());
        if !secret::is_reference(reference) || !scheme.is_none_or(is_word) {
            return Err(SourceError::Header);
        }
        Ok(Self {
            name,
            scheme: scheme.map(str::to_owned),
            secret: SecretText::new(reference.to_owned()),
        })
    }

    /// Follows the reference.
    ///
    /// # Errors
    /// If there is no such secret.
    pub fn value(&self) -> Result<HeaderValue, SourceError> {
        let sources = secret::Sources {
            bases: &[Some(PathBuf::new())],
            environment: &process_environment,
        };
        let found = sources.resolve(&self.secret, 0);
        let found = found.map_err(|cause| SourceError::Secret {
            name: self.name.clone(),
            cause,
        })?;
        let scheme = self.scheme.as_deref().unwrap_or_default();
        let space = if scheme.is_empty() { "" } else { " " };
        let text = format!("{scheme}{space}{}", found.secret.expose());
        let mut value = HeaderValue::try_from(text).map_err(|_| SourceError::Header)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_taken_by_reference_only_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "sk-hidden\n").unwrap();
        let reference = format!("${{file:{}}}", path.display());
        for (text, value) in [
            (format!("X-Consul-Token: {reference}"), "sk-hidden"),
            (
                format!("authorization:Bearer {reference} "),
                "Bearer sk-hidden",
            ),
        ] {
            let header = Header::parse(&text).unwrap();
            let found = header.value().unwrap();
            assert_eq!(found.to_str().unwrap(), value);
            assert!(!format!("{header:?} {found:?}").contains("hidden"));
        }
        for text in [
            "Authorization: Bearer sk-hidden",
            "Authorization: sk-hidden",
            "Authorization ${env:X}",
            "Bad Name: ${env:X}",
            "X: a b ${env:hidden}",
            "X: ${env:X} hidden",
            "X: ${env:X}${env:hidden}",
            "X:",
            "",
        ] {
            let error = Header::parse(text).unwrap_err();
            assert!(!error.to_string().contains("hidden"), "{error}");
        }
        let missing = Header::parse("X: ${file:/nonexistent/token}").unwrap();
        let error = missing.value().unwrap_err().to_string();
        assert!(
            error.contains("x") && error.contains("/nonexistent/token"),
            "{error}"
        );
    }
}
