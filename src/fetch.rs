//! Fetches one document over HTTPS, for whoever has to follow it: the configuration, key sets.
//!
//! It decides how far a source is trusted: certificates are verified, plain HTTP goes to this
//! machine only, sizes and times are bounded, redirects stay with the same origin, and no proxy is
//! taken from the environment. It knows nothing of what the document means. What may hold a
//! credential (header values, the query of a URL) is in none of its messages.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Response, Url, tls};

/// From the look-up of the name to the end of the TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// The whole of it, to the last byte.
const TOTAL: Duration = Duration::from_secs(30);
/// A bucket that adds a slash needs one.
const MAX_REDIRECTS: usize = 3;
/// Bytes of a validator; a longer one is not remembered. RFC 9110 §8.8.3 sets no limit.
const MAX_VALIDATOR: usize = 1024;
/// Bytes of a CA bundle; all roots of a system are a quarter of it.
const MAX_CA: u64 = 1 << 20;
/// Characters of a cause that comes from below.
const MAX_CAUSE: usize = 200;

/// Where a document is: an `https://` URL, or `http://` to this machine. Printed without its query,
/// which may hold a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Location(Url);

/// Why there is no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The location cannot be used at all; waiting changes nothing.
    #[error("{0}")]
    Location(&'static str),
    #[error("the CA bundle {path} cannot be used: {cause}")]
    Ca { path: PathBuf, cause: String },
    #[error("no connection: {0}")]
    Connect(String),
    #[error("no complete answer within {} s", TOTAL.as_secs())]
    Timeout,
    #[error("redirected away from its origin, or too often; not followed")]
    Redirected,
    #[error("answered with {0}")]
    Status(u16),
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// By what a document is told from a later one; empty before the first answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

/// What a source had to say.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The document is the one that the validators came with.
    Unchanged,
    Document {
        bytes: Vec<u8>,
        validators: Validators,
    },
}

/// Asks sources that one set of authorities vouches for. Each question has a connection of its own:
/// they are rare, and a kept one would be dead by the next.
#[derive(Clone)]
pub struct Client(reqwest::Client);

impl Location {
    /// Does `text` mean something that is fetched, rather than a file?
    pub fn is_meant(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|s| s.eq_ignore_ascii_case("https") || s.eq_ignore_ascii_case("http"))
    }

    /// # Errors
    /// If it is no URL that may be asked. The text is not part of the error.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        let no = |why| Err(FetchError::Location(why));
        let Ok(mut url) = Url::parse(text) else {
            return no("not a URL");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return no("a user name or password may not stand in the URL (not shown)");
        }
        match url.scheme() {
            "https" => {}
            "http" if is_this_machine(&url) => {}
            "http" => return no("http:// is for this machine alone; use https://"),
            _ => return no("not an https:// URL"),
        }
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// Is it at the same origin as `other`: scheme, host and port?
    pub fn is_beside(&self, other: &Self) -> bool {
        self.0.origin() == other.0.origin()
    }

    /// The whole URL, query included. Not to be printed.
    pub fn exact(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.0.origin().ascii_serialization();
        let query = self.0.query().map_or("", |_| "?…");
        write!(f, "{origin}{}{query}", self.0.path())
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

fn is_this_machine(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    // RFC 6761 §6.3: the name never leads elsewhere.
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    host == "localhost" || address.is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

impl Client {
    /// `ca` is a PEM bundle that replaces the system's roots; it is read now.
    ///
    /// # Errors
    /// If the bundle cannot be used.
    pub fn new(ca: Option<&Path>) -> Result<Self, FetchError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .use_native_tls()
            .min_tls_version(tls::Version::TLS_1_2)
            .http1_only()
            .no_proxy()
            .referer(false)
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT)
            .timeout(TOTAL)
            .redirect(Policy::custom(stay_with_origin));
        if let Some(path) = ca {
            builder = builder.tls_built_in_root_certs(false);
            for certificate in authorities(path)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let client = builder.build().map_err(|e| FetchError::Ca {
            path: ca.unwrap_or(Path::new("(the system's)")).to_owned(),
            cause: cause(&e),
        })?;
        Ok(Self(client))
    }

    /// Asks for the document at `location`, with `headers` that may hold credentials. At most
    /// `max_bytes` of it are held in memory.
    ///
    /// # Errors
    /// If there is no answer of 200 or 304 that is complete, in time, and not too large.
    pub async fn get(
        &self,
        location: &Location,
        headers: &HeaderMap,
        validators: &Validators,
        max_bytes: u64,
    ) -> Result<Fetched, FetchError> {
        let mut headers = headers.clone();
        validators.put_into(&mut headers);
        let conditional = !validators.is_empty();
        let request = self.0.get(location.0.clone()).headers(headers);
        let mut answer = request.send().await.map_err(failure)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if conditional => return Ok(Fetched::Unchanged),
            status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                return Err(FetchError::Redirected);
            }
            status => return Err(FetchError::Status(status.as_u16())),
        }
        let validators = Validators::of(&answer);
        let bytes = read(&mut answer, max_bytes).await?;
        Ok(Fetched::Document { bytes, validators })
    }
}

async fn read(answer: &mut Response, max_bytes: u64) -> Result<Vec<u8>, FetchError> {
    let too_large = FetchError::TooLarge(max_bytes);
    if answer
        .content_length()
        .is_some_and(|length| length > max_bytes)
    {
        return Err(too_large);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failure)? {
        if (bytes.len() + chunk.len()) as u64 > max_bytes {
            return Err(too_large);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

impl Validators {
    /// Is there nothing to tell documents apart by?
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    fn of(answer: &Response) -> Self {
        let value = |name| {
            let value: Option<&HeaderValue> = answer.headers().get(name);
            value.filter(|value| value.len() <= MAX_VALIDATOR).cloned()
        };
        Self {
            etag: value(ETAG),
            last_modified: value(LAST_MODIFIED),
        }
    }

    /// RFC 9110 §13.1.3: with both, the first alone counts; older servers know the second only.
    fn put_into(&self, headers: &mut HeaderMap) {
        let mut put = |name: HeaderName, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        };
        put(IF_NONE_MATCH, &self.etag);
        put(IF_MODIFIED_SINCE, &self.last_modified);
    }
}

/// A redirect that is not followed comes back as the answer. Headers with credentials never go to
/// another origin this way.
fn stay_with_origin(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let before = attempt.previous();
    let same = before
        .last()
        .is_some_and(|last| last.origin() == attempt.url().origin());
    if same && before.len() <= MAX_REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, FetchError> {
    let unusable = |cause: String| FetchError::Ca {
        path: path.to_owned(),
        cause,
    };
    let length = std::fs::metadata(path).map_err(|e| unusable(e.to_string()))?;
    if !length.is_file() || length.len() > MAX_CA {
        return Err(unusable("not a file of at most 1 MiB".to_owned()));
    }
    let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|e| unusable(cause(&e)))?;
    if found.is_empty() {
        return Err(unusable("no certificate in it".to_owned()));
    }
    Ok(found)
}

fn failure(error: reqwest::Error) -> FetchError {
    if error.is_timeout() {
        FetchError::Timeout
    } else if error.is_redirect() {
        FetchError::Redirected
    } else if error.is_connect() {
        FetchError::Connect(cause(&error))
    } else {
        FetchError::Broken(cause(&error))
    }
}

/// The innermost cause: the outer ones repeat the URL.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    let mut told = "cannot be set up".to_owned();
    while let Some(source) = innermost.source() {
        innermost = source;
        told = innermost.to_string();
    }
    let told = told.chars().map(|c| if c.is_control() { ' ' } else { c });
    told.take(MAX_CAUSE).collect()
}

#[cfg(test)]
mod tests;
