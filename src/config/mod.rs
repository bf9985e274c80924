//! Decides what a configuration means and whether it can be used, for `run`, `check` and reload.
//!
//! A pipeline, one file each: [`source`] reads files and folders, [`position`] keeps the line of
//! every value, [`overlay`] lays an environment over its base, [`shape`] holds it against the schema
//! of [`file`], [`check`] applies the rules and builds [`settings`], which is all that the rest of
//! the crate sees. [`mistake`] collects what is wrong on the way; [`secret`] follows references;
//! [`text`], [`money`] and [`calendar`] know how values are written; [`diff`] tells what a reload
//! changes, [`explain`] where a value comes from, [`whereabouts`] where state is kept, [`admin`]
//! where operators reach the gateway. It must not know of sockets, Pingora, or whether a gateway is
//! running.

pub mod admin;
mod calendar;
mod check;
pub mod diff;
pub mod explain;
pub mod file;
pub mod kept;
mod mistake;
pub mod money;
pub mod nearest;
pub mod networks;
mod overlay;
mod position;
pub mod regular;
pub mod schema;
pub mod secret;
pub mod settings;
mod shape;
mod source;
pub mod text;
mod way;
pub mod whereabouts;

use std::path::PathBuf;

use serde_json::Value;

pub use mistake::Mistake;
pub use secret::{Environment, process_environment};
pub use settings::Settings;
pub use source::{Layer, MAX_BYTES, MAX_LAYERS, files_of};

use mistake::Report;
use secret::Sources;
use source::Source;

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    pub settings: Settings,
    /// What is allowed and yet hardly meant, in the order of the file.
    pub warnings: Vec<Mistake>,
    /// The files that its secrets were read from.
    pub secret_files: Vec<PathBuf>,
    /// The files that were read, in the order in which they were taken.
    pub files: Vec<PathBuf>,
    /// SHA-256 over the names and contents of these files, in hexadecimal. Secrets are not part of
    /// it: one may change behind an unchanged digest.
    pub digest: String,
    /// The whole of it as one file, for [`kept::keep`].
    pub kept: String,
}

/// Reads the configuration in `layers`, later ones laid over earlier ones. If it cannot be used: all
/// mistakes, in the order of the files, at least one.
///
/// Structure comes first: as long as keys and types are wrong, the rules behind them are not
/// tried, since most of what they would find follows from that.
pub fn load(layers: &[Layer]) -> Result<Loaded, Vec<Mistake>> {
    load_with(layers, &process_environment)
}

/// As [`load`], with another environment for `${env:…}` and `${credential:…}`.
pub fn load_with(layers: &[Layer], environment: Environment<'_>) -> Result<Loaded, Vec<Mistake>> {
    let schema = schema::value();
    judge(source::read(layers, &schema)?, &schema, environment)
}

/// Holds what was read against the schema and the rules.
fn judge(
    source: Source,
    schema: &Value,
    environment: Environment<'_>,
) -> Result<Loaded, Vec<Mistake>> {
    let mut report = Report::new(&source.files, &source.root);
    shape::walk(schema, &source.root, &mut report);
    if report.has_mistakes() {
        return Err(report.finish().0);
    }
    let file: file::File = serde_yaml::from_value(source.root.to_yaml()).map_err(|e| {
        let file = source.files.first().cloned().unwrap_or_default();
        vec![mistake::whole_file(
            &file,
            format!("cannot be understood: {e}"),
            "",
        )]
    })?;
    let bases = source.written.iter().map(|file| file.base.clone());
    let bases: Vec<_> = bases.collect();
    let sources = Sources {
        bases: &bases,
        environment,
    };
    let settings = check::check(&file, &sources, &mut report);
    let (mistakes, warnings) = report.finish();
    match settings {
        Some(settings) => Ok(Loaded {
            settings,
            warnings,
            kept: kept::text(&source.written),
            secret_files: sources.files_in(&source.root),
            files: source.files,
            digest: source.digest,
        }),
        None => Err(mistakes),
    }
}

#[cfg(test)]
mod tests;
