//! The options that say where the configuration comes from, for `run` and `check` alike.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, complain};
use crate::config::Layer;
use crate::config::file::STATE_DIR;
use crate::server::sources::{Asking, Header, SourceError, Sources};

#[derive(Args)]
pub(super) struct Configuration {
    /// The configuration: a YAML file, a folder of them, or an https:// URL. Given several times,
    /// each is laid over those before it
    #[arg(short, long, value_name = "PATH|URL", required = true)]
    config: Vec<PathBuf>,
    /// PEM bundle that replaces the system's roots for https:// configurations
    #[arg(long, value_name = "FILE")]
    config_ca: Option<PathBuf>,
    /// Header sent with the question for https:// configurations, its value by reference, such as
    /// 'X-Consul-Token: ${credential:consul}'
    #[arg(long, value_name = "HEADER")]
    config_header: Vec<String>,
    /// Folder where the last good copy of https:// configurations is kept, for a start while their
    /// source is away
    #[arg(long, value_name = "FOLDER", default_value = STATE_DIR)]
    config_copies: PathBuf,
}

impl Configuration {
    /// What was named, or an exit after the reason was told.
    pub(super) fn sources(self) -> Result<Sources, Exit> {
        // Read here, since the parser would repeat a value that it refuses, and it may be a secret.
        let headers = self.config_header.iter().map(|text| Header::parse(text));
        let headers = headers.collect::<Result<_, _>>();
        let sources = headers.and_then(|headers| {
            let asking = Asking {
                ca: self.config_ca,
                headers,
                copies: self.config_copies,
            };
            Sources::new(self.config, asking)
        });
        sources.map_err(|cause| complain_of_source(&cause))
    }

    /// What it says now, after the operator was told of what stands in for what; or an exit after
    /// the reason was told.
    pub(super) fn read(self) -> Result<Vec<Layer>, Exit> {
        let reading = self.sources()?.read_now();
        let reading = reading.map_err(|cause| complain_of_source(&cause))?;
        for note in &reading.notes {
            complain(&format!("warning: {}", note.text));
        }
        Ok(reading.layers)
    }
}

pub(super) fn complain_of_source(cause: &SourceError) -> Exit {
    complain(&cause.to_string());
    if cause.is_passing() {
        Exit::Failure
    } else {
        Exit::Misconfigured
    }
}
