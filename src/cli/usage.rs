//! `tidegate usage`: reports from the ledger, also while a gateway writes it.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Exit, complain, complain_of, print};
use crate::config::{Layer, whereabouts};
use crate::database::{self, DatabaseError, Meta, Reader};
use crate::ledger::report::{Dimension, Report};
use crate::ledger::{Period, format};

#[derive(Args)]
#[command(after_long_help = "Examples:\n  \
    tidegate usage -c tidegate.yaml\n  \
    tidegate usage -c tidegate.yaml --by month,tenant --from 2026-01 --to 2026-11\n  \
    tidegate usage --state-dir /var/lib/tidegate --by day,model --from 2026-11-01 --format csv\n  \
    tidegate usage -c tidegate.yaml --by account --format json | jq '.[].cost'\n\n\
    The gateway writes several times a second; what it has not written yet is not in the report. \
    Secrets of the configuration need not be readable. Columns and rules: docs/usage.md.\n\n\
    Exit codes:\n  \
    0  done, also if nothing was used\n  \
    1  the ledger cannot be read: no gateway has run yet, or the file is not yours to read\n  \
    2  the command line or the configuration is wrong; trying again changes nothing")]
pub(super) struct Options {
    /// The configuration whose gateway is meant: a YAML file or a folder of them. May be given
    /// several times, as for `run`. For one at an https:// URL, name the --state-dir
    #[arg(
        short,
        long,
        value_name = "PATH",
        required_unless_present = "state_dir",
        conflicts_with = "state_dir"
    )]
    config: Vec<PathBuf>,
    /// The gateway's server.state_dir, in place of its configuration
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// What to group by, in this order: any of hour, day, month, tenant, model, upstream, account
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "tenant,model"
    )]
    by: Vec<Dimension>,
    /// First day (2026-11-01) or month (2026-11), or an instant (2026-11-01T08:00:00Z) [default:
    /// since this month began]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Last day or month, which counts whole, or an instant, up to which it goes [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How it looks
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people; costs rounded to six decimals, with a line of totals
    Table,
    /// For spreadsheets, RFC 4180; costs exact
    Csv,
    /// For programs: an array of objects; costs exact, as text
    Json,
}

pub(super) fn usage(options: &Options) -> Exit {
    let state_dir = match &options.state_dir {
        Some(folder) => folder.clone(),
        None => {
            let layers = options.config.iter().cloned().map(Layer::Path);
            match whereabouts::state_dir(&layers.collect::<Vec<_>>()) {
                Ok(folder) => folder,
                Err(mistakes) => return complain_of(&mistakes),
            }
        }
    };
    let path = state_dir.join(database::FILE);
    let opened = Reader::open(&path).and_then(|reader| {
        let meta = reader.read_meta()?;
        Ok((reader, meta))
    });
    let (reader, meta) = match opened {
        Ok((reader, meta)) => (reader, meta),
        Err(error) => return failed(&path, &error),
    };
    let (currency, zone) = match kept_in(meta) {
        Ok(kept_in) => kept_in,
        Err(exit) => return exit,
    };
    let (from, to) = (options.from.as_deref(), options.to.as_deref());
    let period = match Period::read(from, to, &zone, Timestamp::now()) {
        Ok(period) => period,
        Err(error) => {
            complain(&error.to_string());
            return Exit::Misconfigured;
        }
    };
    let mut report = Report::new(&options.by, zone);
    if let Err(error) = reader.read_ledger(period, |row| report.add(&row)) {
        return failed(&path, &error);
    }
    print(&match options.format {
        Format::Table => format::table(&report, &currency),
        Format::Csv => format::csv(&report, &currency),
        Format::Json => format::json(&report, &currency),
    })
}

/// The currency and time zone of the ledger. They are its own and not the configuration's, which may
/// have changed since.
fn kept_in(meta: Option<Meta>) -> Result<(String, TimeZone), Exit> {
    // A gateway writes them before its first row, so without them there is nothing to show.
    let Some(meta) = meta else {
        return Ok((String::new(), TimeZone::UTC));
    };
    match TimeZone::get(&meta.time_zone) {
        Ok(zone) => Ok((meta.currency, zone)),
        Err(cause) => {
            complain(&format!("the ledger's time zone is unknown here: {cause}"));
            Err(Exit::Failure)
        }
    }
}

fn failed(path: &Path, error: &DatabaseError) -> Exit {
    match error {
        // SQLite's own words name no file.
        DatabaseError::Sqlite(cause) => complain(&format!("{}: {cause}", path.display())),
        _ => complain(&error.to_string()),
    }
    Exit::Failure
}
