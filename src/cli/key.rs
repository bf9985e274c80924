//! `tidegate key`: makes the keys that tenants hold and the lines that the configuration holds.

use std::fmt::Write;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::sources::Configuration;
use super::{Exit, bold, complain, complain_of, print};
use crate::config;
use crate::config::settings::{Credential, KeyHash, Settings, Validity};
use crate::config::text::parse_duration;
use crate::identity::api_key::{self, NewKey, Pepper};

/// Long enough for a change freeze, short enough that an old key does not live on for ever.
const OVERLAP: &str = "168h";
/// A key has some 60 bytes.
const MOST_INPUT: u64 = 4096;

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
        #[command(flatten)]
        pepper: PepperChoice,
    },
    /// Hash a key that is read from standard input, for the tenant's `credentials`
    Hash {
        #[command(flatten)]
        pepper: PepperChoice,
    },
    /// Make the successor of a key: shows it once, with the lines for both while they overlap
    Rotate {
        #[command(flatten)]
        configuration: Configuration,
        /// The id of the key that is to be replaced
        #[arg(long, value_name = "ID")]
        key: String,
        /// The new key's readable id; made up if absent
        #[arg(long, value_name = "ID", value_parser = id)]
        id: Option<String>,
        /// How long the old key goes on working
        #[arg(long, value_name = "DURATION", default_value = OVERLAP, value_parser = duration)]
        overlap: Duration,
    },
}

/// Which of `identity.peppers` the hash is made with.
#[derive(Args)]
pub(super) struct PepperChoice {
    /// Name of the pepper in `identity.peppers`; without it the hash is a plain SHA-256
    #[arg(long, value_name = "NAME", value_parser = id, requires = "pepper_file")]
    pepper: Option<String>,
    /// The file that holds it
    #[arg(long, value_name = "PATH", requires = "pepper")]
    pepper_file: Option<PathBuf>,
}

/// The line to paste, as the configuration takes it.
#[derive(Serialize)]
struct Line<'a> {
    api_key: ApiKey<'a>,
}

#[derive(Serialize)]
struct ApiKey<'a> {
    id: &'a str,
    hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<String>,
}

pub(super) fn key(verb: Verb) -> Exit {
    let shown = match verb {
        Verb::New { tenant, id, pepper } => new(&tenant, id, &pepper),
        Verb::Hash { pepper } => hash(&pepper),
        Verb::Rotate {
            configuration,
            key,
            id,
            overlap,
        } => match configuration.read().map(|layers| config::load(&layers)) {
            Ok(Ok(loaded)) => rotate(&loaded.settings, &key, id, overlap),
            Ok(Err(mistakes)) => return complain_of(&mistakes),
            Err(exit) => return exit,
        },
    };
    match shown {
        Ok(text) => print(&text),
        Err(why) => {
            complain(&why);
            Exit::Failure
        }
    }
}

fn new(tenant: &str, id: Option<String>, pepper: &PepperChoice) -> Result<String, String> {
    let made = new_key(tenant, id).map_err(no_random)?;
    let hash = match pepper.read()? {
        Some((name, pepper)) => peppered_text(&name, &pepper, made.key.expose()),
        None => hash_text(&made.hash),
    };
    let mut text = present(&made);
    let _ = writeln!(
        text,
        "{}",
        bold(&format!("The line for `credentials` of tenant {tenant}:"))
    );
    let _ = writeln!(text, "\n{}", line(&made.id, &hash, None, None));
    Ok(text)
}

fn hash(pepper: &PepperChoice) -> Result<String, String> {
    let mut text = zeroize::Zeroizing::new(String::new());
    std::io::stdin()
        .lock()
        .take(MOST_INPUT)
        .read_to_string(&mut text)
        .map_err(|cause| format!("cannot read standard input: {cause}"))?;
    let key = text.trim();
    // The key itself is not quoted: what is wrong with it can be said without it.
    let id = api_key::id(key).map_err(|cause| cause.to_string())?;
    let hash = match pepper.read()? {
        Some((name, pepper)) => peppered_text(&name, &pepper, key),
        None => hash_text(&api_key::hash(key)),
    };
    Ok(line(id, &hash, None, None))
}

fn rotate(
    settings: &Settings,
    old: &str,
    id: Option<String>,
    overlap: Duration,
) -> Result<String, String> {
    let found = settings.tenants.iter().find_map(|tenant| {
        let key = tenant
            .credentials
            .iter()
            .find_map(|credential| match credential {
                Credential::ApiKey(key) if key.id == old => Some(key),
                _ => None,
            })?;
        Some((tenant, key))
    });
    let (tenant, key) = found.ok_or_else(|| format!("no tenant has a key with the id {old}"))?;
    let made = new_key(tenant.id.as_str(), id).map_err(no_random)?;
    if made.id == old {
        return Err("the new key needs an id of its own".to_owned());
    }
    let (old_hash, new_hash) = match &key.hash {
        KeyHash::Sha256(hash) => (hash_text(hash), hash_text(&made.hash)),
        KeyHash::Peppered { pepper, hash } => {
            let secret = settings.identity.peppers.get(pepper);
            let keyed = secret
                .and_then(Pepper::new)
                .ok_or_else(|| format!("there is no pepper {pepper}"))?;
            let new = peppered_text(pepper, &keyed, made.key.expose());
            (format!("hmac-sha256:{pepper}:{}", hex::encode(hash)), new)
        }
    };
    if !key.validity.enabled {
        return Err(format!(
            "{old} is disabled; `key new` makes a key that replaces none"
        ));
    }
    let end = end_of_overlap(&key.validity, overlap)?;
    let mut text = present(&made);
    let heading = format!(
        "The lines for `credentials` of tenant {}, in place of the one for {old}. \
         Reload, hand the new key over, and delete the old line when it has ended:",
        tenant.id
    );
    let _ = writeln!(text, "{}", bold(&heading));
    let begin = key.validity.not_before.map(|time| time.to_string());
    let _ = write!(text, "\n{}", line(old, &old_hash, begin, Some(end)));
    let _ = writeln!(text, "{}", line(&made.id, &new_hash, None, None));
    Ok(text)
}

/// Never later than the end it has already.
fn end_of_overlap(validity: &Validity, overlap: Duration) -> Result<String, String> {
    let overlap = jiff::SignedDuration::try_from(overlap).map_err(|cause| cause.to_string())?;
    let end = jiff::Timestamp::now()
        .checked_add(overlap)
        .map_err(|cause| cause.to_string())?;
    let end = validity.not_after.map_or(end, |sooner| sooner.min(end));
    jiff::Timestamp::from_second(end.as_second())
        .map(|end| end.to_string())
        .map_err(|cause| cause.to_string())
}

impl PepperChoice {
    fn read(&self) -> Result<Option<(String, Pepper)>, String> {
        let (Some(name), Some(path)) = (&self.pepper, &self.pepper_file) else {
            return Ok(None);
        };
        let secret = config::secret::read_file(path).map_err(|cause| cause.to_string())?;
        let pepper = Pepper::new(&secret).ok_or("the pepper cannot be used")?;
        Ok(Some((name.clone(), pepper)))
    }
}

fn present(made: &NewKey) -> String {
    let heading = bold("The key. It is shown this once and stored nowhere; hand it to the tenant:");
    format!("{heading}\n\n  {}\n\n", made.key.expose())
}

/// Makes a key for a tenant; without an id, one of the tenant's name and four random digits.
pub(super) fn new_key(tenant: &str, id: Option<String>) -> Result<NewKey, getrandom::Error> {
    let mut random = zeroize::Zeroizing::new([0u8; 32]);
    getrandom::fill(&mut *random)?;
    let mut suffix = [0u8; 2];
    getrandom::fill(&mut suffix)?;
    let id = id.unwrap_or_else(|| format!("{}-{:04x}", short(tenant), u16::from_be_bytes(suffix)));
    Ok(api_key::make(&id, &random))
}

fn no_random(cause: getrandom::Error) -> String {
    format!("no random bytes can be had: {cause}")
}

/// The list item, indented to be pasted.
fn line(id: &str, hash: &str, not_before: Option<String>, not_after: Option<String>) -> String {
    let line = [Line {
        api_key: ApiKey {
            id,
            hash,
            not_before,
            not_after,
        },
    }];
    let yaml = serde_yaml::to_string(&line).unwrap_or_default();
    yaml.lines().map(|line| format!("  {line}\n")).collect()
}

/// A hash as the configuration takes it.
pub(super) fn hash_text(hash: &[u8; 32]) -> String {
    format!("sha256:{}", hex::encode(hash))
}

fn peppered_text(name: &str, pepper: &Pepper, key: &str) -> String {
    format!("hmac-sha256:{name}:{}", hex::encode(pepper.hash(key)))
}

fn short(tenant: &str) -> String {
    tenant.chars().take(24).collect()
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .map_err(|why| format!("{why}; expected {}", crate::config::text::DURATION_FORM))
}

/// Ids as the configuration takes them.
pub(super) fn id(text: &str) -> Result<String, String> {
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
        let text = line(
            &made.id,
            &hash_text(&made.hash),
            None,
            Some("2026-12-31T00:00:00Z".to_owned()),
        );
        let parsed: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
        let key = &parsed[0]["api_key"];
        assert_eq!(key["id"], made.id.as_str());
        assert_eq!(key["hash"], hash_text(&made.hash).as_str());
        assert_eq!(key["not_after"], "2026-12-31T00:00:00Z");
        assert_eq!(api_key::id(made.key.expose()), Ok(made.id.as_str()));
    }

    #[test]
    fn an_overlap_never_lengthens_a_keys_life() {
        let sooner: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let validity = Validity {
            enabled: true,
            not_before: None,
            not_after: Some(sooner),
        };
        let end = end_of_overlap(&validity, Duration::from_secs(60)).unwrap();
        assert_eq!(end, sooner.to_string());
    }

    #[test]
    fn only_ids_that_the_configuration_takes_are_taken() {
        for bad in ["", "-a", "A", "a b", "ä", &"a".repeat(65)] {
            assert!(id(bad).is_err());
        }
        assert!(id("search_2-x").is_ok());
    }
}
