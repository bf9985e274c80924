//! Where the configuration comes from: the files and URLs of the command line, in their order. It
//! brings what they say now, and knows of each URL what it said last, what of that was taken over,
//! and where the last good copy is kept for a start while the source is away.
//!
//! What the words mean is not judged here. A bad answer never takes the place of a good one: what
//! is good, the caller says by [`Sources::taken_over`].

mod header;
mod remote;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use log::{Level, log, warn};
use parking_lot::Mutex;

use crate::config::secret::SecretError;
use crate::config::{Layer, MAX_BYTES, MAX_LAYERS, files_of};
use crate::fetch::{Client, FetchError, Location};
use header::HEADER_FORM;
pub use header::Header;
use remote::Remote;

/// Why there is no configuration to read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("at most {MAX_LAYERS} configurations can be laid over each other")]
    TooMany,
    #[error("a configuration cannot be asked for there: {0}")]
    Location(FetchError),
    /// The value is not shown: it may be a secret that was pasted.
    #[error("a header for the configuration cannot be used; {HEADER_FORM}")]
    Header,
    #[error("headers for the configuration would go to several hosts; name one host, or none")]
    SeveralHosts,
    #[error("the header {name} for the configuration: {cause}")]
    Secret {
        name: HeaderName,
        cause: SecretError,
    },
    #[error("{0}")]
    Client(FetchError),
    #[error("{location} cannot be asked: {cause}; nor is there a copy of it at {}", copy.display())]
    Away {
        /// As it is told in messages.
        location: String,
        copy: PathBuf,
        cause: FetchError,
    },
    #[error("cannot set up fetching: {0}")]
    Runtime(#[from] io::Error),
}

impl SourceError {
    /// May it be otherwise the next time, without a change of the command line?
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Runtime(_))
    }
}

/// How URLs are asked.
#[derive(Debug)]
pub struct Asking {
    /// PEM bundle that replaces the system's roots.
    pub ca: Option<PathBuf>,
    pub headers: Vec<Header>,
    /// Where copies are kept.
    pub copies: PathBuf,
}

/// What the command line names.
pub struct Sources {
    origins: Vec<Origin>,
    asking: Asking,
    /// Made anew by each [`Sources::read`], so that a changed CA bundle counts from then on.
    client: Mutex<Option<Client>>,
}

enum Origin {
    Path(PathBuf),
    Remote(Box<Remote>),
}

/// What the sources say.
#[derive(Debug)]
pub struct Reading {
    pub layers: Vec<Layer>,
    /// What the operator has to know of it.
    pub notes: Vec<Note>,
}

/// A line for the log, which may not be there yet.
#[derive(Debug)]
pub struct Note {
    pub level: Level,
    pub text: String,
}

impl Note {
    pub fn write(&self) {
        log!(self.level, "{}", self.text);
    }
}

/// What a poll came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    Unchanged,
    Changed,
    /// At least one source could not be asked, and none has changed.
    Failed,
}

impl Sources {
    /// One file or folder.
    pub fn file(path: PathBuf) -> Self {
        Self {
            origins: vec![Origin::Path(path)],
            asking: Asking {
                ca: None,
                headers: Vec::new(),
                copies: PathBuf::new(),
            },
            client: Mutex::new(None),
        }
    }

    /// What the command line names, in its order.
    ///
    /// # Errors
    /// If a URL or a header cannot be used. Nothing is read or asked yet.
    pub fn new(
        named: impl IntoIterator<Item = PathBuf>,
        asking: Asking,
    ) -> Result<Self, SourceError> {
        let origins = named
            .into_iter()
            .map(|named| match named.to_str() {
                Some(url) if Location::is_meant(url) => {
                    let location = Location::parse(url).map_err(SourceError::Location)?;
                    let remote = Remote::new(location, &asking.copies);
                    Ok(Origin::Remote(Box::new(remote)))
                }
                _ => Ok(Origin::Path(named)),
            })
            .collect::<Result<Vec<_>, SourceError>>()?;
        if origins.len() > MAX_LAYERS {
            return Err(SourceError::TooMany);
        }
        let sources = Self {
            origins,
            asking,
            client: Mutex::new(None),
        };
        if sources.ask_several_hosts() && !sources.asking.headers.is_empty() {
            return Err(SourceError::SeveralHosts);
        }
        Ok(sources)
    }

    /// Is anything of it to be fetched?
    pub fn are_remote(&self) -> bool {
        self.remotes().next().is_some()
    }

    /// A header for one must not go to another.
    fn ask_several_hosts(&self) -> bool {
        let mut hosts = self.remotes().map(|remote| &remote.location);
        let first = hosts.next();
        first.is_some_and(|first| hosts.any(|other| !other.is_beside(first)))
    }

    /// As the command line has them, without what may be a credential.
    pub fn names(&self) -> Vec<String> {
        let names = self.origins.iter().map(|origin| match origin {
            Origin::Path(path) => path.display().to_string(),
            Origin::Remote(remote) => remote.location.to_string(),
        });
        names.collect()
    }

    /// The configuration's files on this machine, as far as they can be listed.
    pub fn files(&self) -> Vec<PathBuf> {
        let paths = self.origins.iter().filter_map(|origin| match origin {
            Origin::Path(path) => Some(path),
            Origin::Remote(_) => None,
        });
        paths
            .flat_map(|path| files_of(path).unwrap_or_else(|_| vec![path.clone()]))
            .collect()
    }

    fn remotes(&self) -> impl Iterator<Item = &Remote> {
        self.origins.iter().filter_map(|origin| match origin {
            Origin::Path(_) => None,
            Origin::Remote(remote) => Some(&**remote),
        })
    }

    /// [`Sources::read`] for a caller without a runtime.
    ///
    /// # Errors
    /// As there.
    pub fn read_now(&self) -> Result<Reading, SourceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.read())
    }

    /// Asks every source. One that is away is stood in for by what it last said that was good.
    ///
    /// # Errors
    /// If one is away and was never good, or cannot be asked at all.
    pub async fn read(&self) -> Result<Reading, SourceError> {
        let (mut layers, mut notes) = (Vec::new(), Vec::new());
        if self.are_remote() {
            let client = Client::new(self.asking.ca.as_deref()).map_err(SourceError::Client)?;
            *self.client.lock() = Some(client);
        }
        for origin in &self.origins {
            layers.push(match origin {
                Origin::Path(path) => Layer::Path(path.clone()),
                Origin::Remote(remote) => {
                    let said = self.ask(remote).await?;
                    let bytes = said.or_else(|cause| remote.stand_in(cause, &mut notes))?;
                    remote.layer(bytes)
                }
            });
        }
        Ok(Reading { layers, notes })
    }

    /// Asks every URL whether it has changed, and tells the log of those that cannot be asked: once
    /// for each cause.
    pub async fn poll(&self) -> Polled {
        let (mut changed, mut failed) = (false, false);
        for remote in self.remotes() {
            let before = remote.latest();
            match self.ask(remote).await {
                Ok(Ok(bytes)) => {
                    changed |= before.is_none_or(|before| before != bytes);
                }
                Ok(Err(_)) => failed = true,
                Err(cause) => {
                    failed = true;
                    remote.missed(&cause.to_string());
                }
            }
        }
        match (changed, failed) {
            (true, _) => Polled::Changed,
            (false, true) => Polled::Failed,
            (false, false) => Polled::Unchanged,
        }
    }

    /// What the URLs said last, with the files as they are, without asking; nothing if one of them
    /// has not said anything yet.
    pub fn latest(&self) -> Option<Reading> {
        let layers = self.origins.iter().map(|origin| match origin {
            Origin::Path(path) => Some(Layer::Path(path.clone())),
            Origin::Remote(remote) => Some(remote.layer(remote.latest()?)),
        });
        Some(Reading {
            layers: layers.collect::<Option<_>>()?,
            notes: Vec::new(),
        })
    }

    /// Notes that `reading` is in use: what was fetched is good, and is kept on disk.
    pub fn taken_over(&self, reading: &[Layer]) {
        for (origin, layer) in self.origins.iter().zip(reading) {
            let (Origin::Remote(remote), Layer::Text { bytes, .. }) = (origin, layer) else {
                continue;
            };
            if let Err(cause) = remote.taken_over(bytes) {
                warn!(
                    "Cannot keep a copy of the configuration; a start while its source is away will fail. source={} cause=\"{cause}\"",
                    remote.location
                );
            }
        }
    }

    /// The newest words of a source. The outer error is ours, the inner one the source's.
    async fn ask(&self, remote: &Remote) -> Result<Result<Arc<[u8]>, FetchError>, SourceError> {
        let mut headers = HeaderMap::new();
        for header in &self.asking.headers {
            headers.append(header.name(), header.value()?);
        }
        let known = self.client.lock().clone();
        let client = match known {
            Some(client) => client,
            None => Client::new(self.asking.ca.as_deref()).map_err(SourceError::Client)?,
        };
        let validators = remote.validators();
        let answer = client
            .get(&remote.location, &headers, &validators, MAX_BYTES)
            .await;
        Ok(remote.hear(answer))
    }
}

#[cfg(test)]
mod tests;
