//! From the file as written to the settings as meant: every rule that structure alone cannot show.
//! A mistake is reported and stepped over with a stand-in, so that one run finds all of them;
//! settings come out only if there were none.

mod accounting;
mod costs;
mod deadlines;
mod envelope;
mod identity;
mod listeners;
mod models;
mod plans;
mod resilience;
mod server;
mod signing;
mod store;
mod tenants;
mod upstreams;
mod url;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::file::{self, File, Surface};
use super::mistake::{KeyPath, Report, quoted};
use super::nearest::hint;
use super::secret::{REFERENCE_FORM, Secret, SecretError, SecretText, Sources};
use super::settings::{LogFormat, Logging, Profile, Settings, UpstreamId};
use super::text::{DurationText, SizeText, format_duration, format_size};

/// The longest duration that may be configured. Whoever means "never" shall not find out by a
/// process that waits for a week.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// What a file without a folder must do.
const NO_FOLDER: &str = "write an absolute path";

/// Builds the settings, or reports why there are none. `report` also takes warnings.
pub fn check<'a>(
    file: &'a File,
    sources: &'a Sources<'_>,
    report: &'a mut Report<'_>,
) -> Option<Settings> {
    let upstreams = file
        .upstreams
        .iter()
        .map(|upstream| (upstream.id.as_str(), upstream))
        .collect();
    let mut check = Check {
        sources,
        report,
        upstreams,
        profile: file.profile,
    };
    let plans = check.plans(file);
    check.unpriced(file, &plans);
    let settings = Settings {
        profile: match file.profile {
            file::Profile::Production => Profile::Production,
            file::Profile::Development => Profile::Development,
        },
        server: Arc::new(check.server(file)),
        logging: logging(&file.logging),
        retry: check.retry(&file.retry),
        identity: check.identity(file),
        accounting: check.accounting(file),
        queue: check.queue(&file.queue),
        tenants: check.tenants(file, &plans),
        plans: plans.all,
        groups: plans.groups,
        upstreams: check.upstreams(file),
        models: check.models(file),
        files: check.served_by("files", file.files.as_ref(), Surface::Files, file),
        balance: check.served_by("balance", file.balance.as_ref(), Surface::Balance, file),
    };
    (!report.has_mistakes()).then_some(settings)
}

struct Check<'a, 'r> {
    sources: &'a Sources<'a>,
    report: &'a mut Report<'r>,
    /// By id, so that a long list of references is not a walk through a long list of upstreams each.
    upstreams: HashMap<&'a str, &'a file::Upstream>,
    /// What is forgiven.
    profile: file::Profile,
}

impl<'a> Check<'a, '_> {
    /// The upstream of a surface that belongs to no model: the one named, or else the first of
    /// dialect `deepseek` that has it.
    fn served_by(
        &mut self,
        key: &str,
        written: Option<&file::ServedBy>,
        surface: Surface,
        file: &File,
    ) -> Option<UpstreamId> {
        let has = |upstream: &file::Upstream| upstreams::surfaces(upstream).contains(&surface);
        let Some(written) = written else {
            let mut deepseek = file
                .upstreams
                .iter()
                .filter(|u| u.dialect == file::Dialect::DeepSeek);
            return deepseek
                .find(|upstream| has(upstream))
                .map(|upstream| UpstreamId::new(&upstream.id));
        };
        let parent = KeyPath::Root.key(key);
        let path = parent.key("upstream");
        let upstream = self.known_upstream(&written.upstream, path, file)?;
        if !has(upstream) {
            let found = format!(
                "upstream {} has no surface {key}",
                quoted(&written.upstream)
            );
            self.report.mistake(
                path,
                found,
                "name one that has it, or add it to its `surfaces`",
            );
        }
        Some(UpstreamId::new(&written.upstream))
    }

    fn known_upstream(
        &mut self,
        id: &str,
        path: KeyPath<'_>,
        file: &File,
    ) -> Option<&'a file::Upstream> {
        let upstream = self.upstreams.get(id).copied();
        if upstream.is_none() && !self.report.is_full() {
            let hint = hint(
                id,
                file.upstreams.iter().map(|upstream| upstream.id.as_str()),
            );
            self.report.mistake(
                path,
                format!("no upstream has the id {}", quoted(id)),
                format!("ids of `upstreams` may stand here{hint}"),
            );
        }
        upstream
    }

    fn secret(&mut self, text: &SecretText, path: KeyPath<'_>) -> Option<Secret> {
        let file = self.report.file_of(&path);
        match self.sources.resolve(text, file) {
            Ok(resolved) => {
                if let Some(file) = resolved.world_readable {
                    let found = format!("every user of this machine may read {}", file.display());
                    self.report.warning(path, found, "chmod o-r");
                }
                Some(resolved.secret)
            }
            Err(why) => {
                let allowed = match why {
                    SecretError::NotAReference => format!("expected {REFERENCE_FORM}"),
                    SecretError::Relative(_) => NO_FOLDER.to_owned(),
                    _ => "the secret must be there when the configuration is read".to_owned(),
                };
                self.report.mistake(path, why.to_string(), allowed);
                None
            }
        }
    }

    /// A duration of at least `least` and at most [`MAX_DURATION`].
    fn duration(&mut self, value: DurationText, least: Duration, path: KeyPath<'_>) -> Duration {
        self.between(value, least, MAX_DURATION, path)
    }

    /// A duration of at least `least` and at most `most`.
    fn between(
        &mut self,
        value: DurationText,
        least: Duration,
        most: Duration,
        path: KeyPath<'_>,
    ) -> Duration {
        if value.0 < least || value.0 > most {
            let most = format_duration(most);
            let allowed = if least == ABOVE_ZERO {
                format!("expected more than 0 and at most {most}")
            } else {
                format!("expected {} to {most}", format_duration(least))
            };
            self.report.mistake(path, format_duration(value.0), allowed);
        }
        value.0
    }

    /// As [`Check::between`], where finer than seconds is not kept.
    fn seconds(
        &mut self,
        value: DurationText,
        least: Duration,
        most: Duration,
        path: KeyPath<'_>,
    ) -> Duration {
        if value.0.subsec_nanos() > 0 {
            let allowed = "expected whole seconds";
            self.report.mistake(path, format_duration(value.0), allowed);
        }
        self.between(value, least, most, path)
    }

    /// A size of 1 to `most` bytes.
    fn size(&mut self, value: SizeText, most: u64, path: KeyPath<'_>) -> u64 {
        if value.0 == 0 || value.0 > most {
            self.report.mistake(
                path,
                format_size(value.0),
                format!("expected more than 0 and at most {}", format_size(most)),
            );
        }
        value.0
    }

    fn path(&mut self, written: &std::path::Path, path: KeyPath<'_>) -> PathBuf {
        if written.as_os_str().as_encoded_bytes().contains(&0) {
            self.report
                .mistake(path, "a path with a NUL", "no file has such a name");
        }
        if written.as_os_str().is_empty() {
            self.report
                .mistake(path, "an empty path", "expected the path of a file");
        }
        let file = self.report.file_of(&path);
        let absolute = self.sources.absolute(written, file);
        absolute.unwrap_or_else(|| {
            let found = "a relative path, in a file that came over the network";
            self.report.mistake(path, found, NO_FOLDER);
            written.to_owned()
        })
    }

    fn id(&mut self, id: &str, path: KeyPath<'_>) {
        let first = id.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let rest = id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if !first || !rest || id.len() > 64 {
            let allowed = "expected 1 to 64 of a-z 0-9 _ -, beginning with a letter or digit";
            self.report.mistake(path, quoted(id), allowed);
        }
    }

    /// Remembers that `value` stands at `path`, and reports if it stood somewhere before.
    fn unique<T: std::hash::Hash + Eq>(
        &mut self,
        seen: &mut HashMap<T, String>,
        value: T,
        shown: &str,
        path: KeyPath<'_>,
    ) {
        if let Some(first) = seen.get(&value) {
            self.report.mistake(
                path,
                format!("{shown} a second time"),
                format!("it is taken by {first}"),
            );
        } else {
            seen.insert(value, path.to_string());
        }
    }
}

/// The smallest duration there is in the file; with it as the least, 0 is refused.
const ABOVE_ZERO: Duration = Duration::from_millis(1);

fn logging(written: &file::Logging) -> Logging {
    let level = match written.level {
        file::Level::Error => log::LevelFilter::Error,
        file::Level::Warn => log::LevelFilter::Warn,
        file::Level::Info => log::LevelFilter::Info,
        file::Level::Debug => log::LevelFilter::Debug,
        file::Level::Trace => log::LevelFilter::Trace,
    };
    let format = match written.format {
        file::LogFormat::Json => LogFormat::Json,
        file::LogFormat::Text => LogFormat::Text,
    };
    Logging {
        level,
        format,
        access: written.access,
    }
}
