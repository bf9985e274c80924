//! `tidegate key`: makes the keys that tenants hold and the lines that the configuration holds.

use std::fmt::Write;

use clap::Subcommand;
use serde::Serialize;

use super::{Exit, bold, complain, print};
use crate::identity::api_key::{self, NewKey};

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Make a key: shows it once, with the line for the tenant's `credentials`
    New {
        /// The tenant it is for
        #[arg(long, value_name = "ID", value_parser = id)]
        tenant: String,
        /// The key's readable id; made up if absent
        #[arg(long, value_name = "ID", value_parser = id)]
        id: Option<String>,
    },
}

/// The line to paste, as the configuration takes it.
#[derive(Serialize)]
struct Line<'a> {
    api_key: ApiKey<'a>,
}

#[derive(Serialize)]
struct ApiKey<'a> {
    id: &'a str,
    hash: String,
}

pub(super) fn key(verb: Verb) -> Exit {
    let Verb::New { tenant, id } = verb;
    let made = match new_key(&tenant, id) {
        Ok(made) => made,
        Err(cause) => {
            complain(&format!("no random bytes can be had: {cause}"));
            return Exit::Failure;
        }
    };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}",
        bold("The key. It is shown this once and stored nowhere; hand it to the tenant:")
    );
    let _ = writeln!(text, "\n  {}\n", made.key.expose());
    let _ = writeln!(
        text,
        "{}",
        bold(&format!("The line for `credentials` of tenant {tenant}:"))
    );
    let _ = writeln!(text, "\n{}", yaml_line(&made));
    print(&text)
}

/// Makes a key for a tenant; without an id, one of the tenant's name and four random digits.
pub(super) fn new_key(tenant: &str, id: Option<String>) -> Result<NewKey, getrandom::Error> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random)?;
    let mut suffix = [0u8; 2];
    getrandom::fill(&mut suffix)?;
    let id = id.unwrap_or_else(|| format!("{}-{:04x}", short(tenant), u16::from_be_bytes(suffix)));
    Ok(api_key::make(&id, &random))
}

/// The list item, indented to be pasted.
pub(super) fn yaml_line(made: &NewKey) -> String {
    let line = [Line {
        api_key: ApiKey {
            id: &made.id,
            hash: hash_text(&made.hash),
        },
    }];
    let yaml = serde_yaml::to_string(&line).unwrap_or_default();
    yaml.lines().map(|line| format!("  {line}\n")).collect()
}

/// A hash as the configuration takes it.
pub(super) fn hash_text(hash: &[u8; 32]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in hash {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn short(tenant: &str) -> String {
    tenant.chars().take(24).collect()
}

/// Ids as the configuration takes them.
fn id(text: &str) -> Result<String, String> {
    let mut bytes = text.bytes();
    let first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest =
        bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
    if first && rest && text.len() <= 64 {
        return Ok(text.to_owned());
    }
    Err("an id is 1 to 64 of a-z 0-9 _ - and begins with a letter or digit".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_line_is_what_the_configuration_takes() {
        let made = new_key("search", None).unwrap();
        let parsed: serde_yaml::Value = serde_yaml::from_str(&yaml_line(&made)).unwrap();
        assert_eq!(parsed[0]["api_key"]["id"], made.id.as_str());
        assert_eq!(parsed[0]["api_key"]["hash"], hash_text(&made.hash).as_str());
        assert_eq!(api_key::id(made.key.expose()), Ok(made.id.as_str()));
    }

    #[test]
    fn only_ids_that_the_configuration_takes_are_taken() {
        for bad in ["", "-a", "A", "a b", "ä", &"a".repeat(65)] {
            assert!(id(bad).is_err());
        }
        assert!(id("search_2-x").is_ok());
    }
}
