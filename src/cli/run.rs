//! `tidegate run`: serves until told to stop.

use std::time::Duration;

use clap::Args;

use super::sources::Configuration;
use super::{Exit, complain, complain_of};
use crate::config::text::{DURATION_FORM, parse_duration};
use crate::server::assemble::{self, Start, StartError};

/// A poll more often than this is traffic of its own.
const LEAST_POLL: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    configuration: Configuration,
    /// How often https:// configurations are asked for changes; 0s: on SIGHUP only
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = poll)]
    config_poll: Duration,
}

fn poll(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(often) if often.is_zero() || often >= LEAST_POLL => Ok(often),
        Ok(_) => Err("expected 0s, or at least 1s".to_owned()),
        Err(why) => Err(format!("{why}; expected {DURATION_FORM}")),
    }
}

pub(super) fn run(options: Options) -> Exit {
    match options.configuration.sources() {
        Ok(sources) => serve(Start {
            sources,
            poll: options.config_poll,
        }),
        Err(exit) => exit,
    }
}

pub(super) fn serve(start: Start) -> Exit {
    match assemble::run(start) {
        Ok(()) => Exit::Success,
        Err(StartError::Config(mistakes)) => complain_of(&mistakes),
        Err(StartError::Source(cause)) => super::sources::complain_of_source(&cause),
        Err(
            error @ (StartError::Certificate(_) | StartError::Snapshot(_) | StartError::Redis(_)),
        ) => {
            complain(&error.to_string());
            Exit::Misconfigured
        }
        Err(error) => {
            complain(&error.to_string());
            Exit::Failure
        }
    }
}
