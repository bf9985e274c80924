//! `tidegate run`: serves until told to stop.

use std::path::Path;

use super::{Exit, complain, complain_of};
use crate::server::assemble::{self, StartError};

pub(super) fn run(config: &Path) -> Exit {
    match assemble::run(config) {
        Ok(()) => Exit::Success,
        Err(StartError::Config(mistakes)) => complain_of(&mistakes),
        Err(error @ (StartError::Certificate(_) | StartError::Snapshot(_))) => {
            complain(&error.to_string());
            Exit::Misconfigured
        }
        Err(error) => {
            complain(&error.to_string());
            Exit::Failure
        }
    }
}
