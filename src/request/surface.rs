//! Which API entry a request uses, decided from the method and the raw path and nothing else.
//!
//! Paths are compared byte for byte: no decoding, no merging of slashes, no dot segments. What is
//! not in the list below does not exist. What goes upstream is a constant path per surface and
//! dialect, so no byte of the client's target is ever forwarded, but for a file's id and the
//! listing parameters of `/v1/files`, both from a closed alphabet.

use http::Method;

use super::refusal::{Code, Family, Refusal};
use crate::config::settings::Dialect;

/// An entry of the API, as tenants know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Surface {
    Chat {
        beta: bool,
    },
    Completions {
        beta: bool,
    },
    Embeddings,
    Messages,
    Responses,
    Files(FileCall),
    /// Answered from configuration.
    Models {
        id: Option<String>,
    },
    Balance,
}

/// One call of the files API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileCall {
    Upload,
    /// The query as sent, already checked.
    List {
        query: String,
    },
    Read {
        id: String,
    },
    Content {
        id: String,
    },
    Delete {
        id: String,
    },
}

/// A path that exists, with the family whose error format its callers expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub surface: Surface,
    pub family: Family,
}

impl Surface {
    /// The name used in metrics, logs and `surfaces:` of the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chat { .. } => "chat",
            Self::Completions { .. } => "completions",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::Responses => "responses",
            Self::Files(_) => "files",
            Self::Models { .. } => "models",
            Self::Balance => "balance",
        }
    }

    /// Is the request body a JSON object that names a model?
    pub fn routes_by_model(&self) -> bool {
        matches!(
            self,
            Self::Chat { .. }
                | Self::Completions { .. }
                | Self::Embeddings
                | Self::Messages
                | Self::Responses
        )
    }

    /// The path below the endpoint's base path.
    pub fn upstream_path(&self, dialect: Dialect) -> String {
        let fixed = match (self, dialect) {
            (Self::Chat { beta: true }, Dialect::DeepSeek) => "/beta/chat/completions",
            (Self::Chat { .. }, _) => "/chat/completions",
            // DeepSeek serves fill-in-the-middle under /beta only (guides/fim_completion).
            (Self::Completions { .. }, Dialect::DeepSeek) => "/beta/completions",
            (Self::Completions { .. }, Dialect::OpenAi | Dialect::Enveloped) => "/completions",
            (Self::Embeddings, _) => "/embeddings",
            (Self::Messages, Dialect::DeepSeek) => "/anthropic/v1/messages",
            (Self::Messages, Dialect::OpenAi | Dialect::Enveloped) => "/messages",
            (Self::Responses, _) => "/responses",
            (Self::Models { .. }, _) => "/models",
            (Self::Balance, _) => "/user/balance",
            (Self::Files(call), _) => return call.upstream_path(),
        };
        fixed.to_owned()
    }
}

impl FileCall {
    fn upstream_path(&self) -> String {
        match self {
            Self::Upload => "/files".to_owned(),
            Self::List { query } if query.is_empty() => "/files".to_owned(),
            Self::List { query } => format!("/files?{query}"),
            Self::Read { id } | Self::Delete { id } => format!("/files/{id}"),
            Self::Content { id } => format!("/files/{id}/content"),
        }
    }
}

/// The error format for a path, whether or not it exists.
pub fn family(path: &[u8]) -> Family {
    if path.starts_with(b"/anthropic/") || path == b"/v1/messages" {
        Family::Anthropic
    } else {
        Family::OpenAi
    }
}

/// Finds the entry for a request.
///
/// # Errors
/// 404 for a path that is not in the list, 405 for a method the path does not take.
pub fn classify(method: &Method, raw_target: &[u8]) -> Result<Entry, Refusal> {
    let split = memchr::memchr(b'?', raw_target);
    let (path, query) = match split.and_then(|at| raw_target.split_at_checked(at)) {
        Some((path, query)) => (path, query.get(1..).unwrap_or_default()),
        None => (raw_target, &[][..]),
    };
    let family = family(path);
    let (surface, allowed) = match path {
        b"/v1/chat/completions" | b"/chat/completions" => {
            (Surface::Chat { beta: false }, Method::POST)
        }
        b"/beta/chat/completions" => (Surface::Chat { beta: true }, Method::POST),
        b"/v1/completions" | b"/completions" => {
            (Surface::Completions { beta: false }, Method::POST)
        }
        b"/beta/completions" => (Surface::Completions { beta: true }, Method::POST),
        b"/v1/embeddings" | b"/embeddings" => (Surface::Embeddings, Method::POST),
        b"/anthropic/v1/messages" | b"/v1/messages" => (Surface::Messages, Method::POST),
        b"/v1/responses" | b"/responses" => (Surface::Responses, Method::POST),
        b"/v1/models" | b"/models" | b"/beta/models" | b"/anthropic/v1/models" => {
            (Surface::Models { id: None }, Method::GET)
        }
        b"/user/balance" => (Surface::Balance, Method::GET),
        _ => return below(method, path, query, family),
    };
    require(method, &allowed)?;
    Ok(Entry { surface, family })
}

/// Paths that carry an id.
fn below(method: &Method, path: &[u8], query: &[u8], family: Family) -> Result<Entry, Refusal> {
    if let Some(id) = path
        .strip_prefix(b"/v1/models/")
        .or_else(|| path.strip_prefix(b"/anthropic/v1/models/"))
    {
        require(method, &Method::GET)?;
        let id = model_id(id).ok_or_else(unknown_path)?;
        return Ok(Entry {
            surface: Surface::Models { id: Some(id) },
            family,
        });
    }
    let rest = path
        .strip_prefix(b"/v1/files")
        .or_else(|| path.strip_prefix(b"/files"))
        .ok_or_else(unknown_path)?;
    let call = file_call(method, rest, query)?;
    Ok(Entry {
        surface: Surface::Files(call),
        family,
    })
}

fn file_call(method: &Method, rest: &[u8], query: &[u8]) -> Result<FileCall, Refusal> {
    if rest.is_empty() {
        return match *method {
            Method::POST => Ok(FileCall::Upload),
            Method::GET => Ok(FileCall::List {
                query: list_query(query)?,
            }),
            _ => Err(method_not_allowed("GET or POST")),
        };
    }
    let rest = rest.strip_prefix(b"/").ok_or_else(unknown_path)?;
    if let Some(id) = rest.strip_suffix(b"/content") {
        require(method, &Method::GET)?;
        return Ok(FileCall::Content {
            id: file_id(id).ok_or_else(unknown_path)?,
        });
    }
    let id = file_id(rest).ok_or_else(unknown_path)?;
    match *method {
        Method::GET => Ok(FileCall::Read { id }),
        Method::DELETE => Ok(FileCall::Delete { id }),
        _ => Err(method_not_allowed("GET or DELETE")),
    }
}

fn require(method: &Method, allowed: &Method) -> Result<(), Refusal> {
    if method == allowed {
        Ok(())
    } else {
        Err(method_not_allowed(allowed.as_str()))
    }
}

fn method_not_allowed(allowed: &str) -> Refusal {
    Refusal::new(
        Code::MethodNotAllowed,
        format!("This path takes {allowed}."),
    )
}

fn unknown_path() -> Refusal {
    Refusal::new(
        Code::UnknownPath,
        "There is nothing at this path. Use /v1/chat/completions, /v1/responses, /v1/models, /v1/files, \
         /beta/completions or /anthropic/v1/messages.",
    )
}

/// `file-api-…` and its like: at most 128 of `[A-Za-z0-9_-]`.
fn file_id(bytes: &[u8]) -> Option<String> {
    let valid = (1..=128).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    valid.then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// A public model name as the configuration allows it.
fn model_id(bytes: &[u8]) -> Option<String> {
    let valid = (1..=128).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/'));
    valid.then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// Listing parameters (`limit`, `after`, `order`, `purpose`), from an alphabet without escapes.
fn list_query(query: &[u8]) -> Result<String, Refusal> {
    let clean = query.len() <= 512
        && query
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'=' | b'&'));
    if clean {
        return Ok(String::from_utf8_lossy(query).into_owned());
    }
    Err(Refusal::new(
        Code::BadRequest,
        "The query of a file listing may hold letters, digits and - _ = & only, at most 512 of them.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn post(path: &str) -> Result<Entry, Refusal> {
        classify(&Method::POST, path.as_bytes())
    }

    #[test]
    fn sdk_paths_are_found_with_and_without_the_version() {
        for path in ["/v1/chat/completions", "/chat/completions"] {
            assert_eq!(post(path).unwrap().surface, Surface::Chat { beta: false });
        }
        assert_eq!(
            post("/anthropic/v1/messages?beta=true").unwrap().family,
            Family::Anthropic
        );
        assert_eq!(
            post("/beta/completions").unwrap().surface,
            Surface::Completions { beta: true }
        );
    }

    #[test]
    fn anything_but_the_exact_bytes_is_unknown() {
        for path in [
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/v1/chat/../chat/completions",
            "/v1/chat%2fcompletions",
            "/V1/chat/completions",
            "/v1/chat/completions;x",
            "/",
            "",
            "*",
            "http://h/v1/chat/completions",
            "/v1/filesx",
            "/v1/files/",
            "/v1/files/../x",
            "/v1/files/a/content/b",
            "/v1/files/%61",
        ] {
            assert_eq!(post(path).unwrap_err().code, Code::UnknownPath, "{path}");
        }
    }

    #[test]
    fn a_wrong_method_is_told_the_right_one() {
        let refusal = classify(&Method::GET, b"/v1/chat/completions").unwrap_err();
        assert_eq!(refusal.code, Code::MethodNotAllowed);
        assert!(refusal.message.contains("POST"));
    }

    #[test]
    fn upstream_paths_are_the_ones_each_dialect_documents() {
        let path = |surface: Surface, dialect| surface.upstream_path(dialect);
        assert_eq!(
            path(Surface::Completions { beta: false }, Dialect::DeepSeek),
            "/beta/completions"
        );
        assert_eq!(
            path(Surface::Messages, Dialect::DeepSeek),
            "/anthropic/v1/messages"
        );
        assert_eq!(
            path(Surface::Chat { beta: true }, Dialect::OpenAi),
            "/chat/completions"
        );
        let list = classify(&Method::GET, b"/v1/files?limit=2&after=file-api-1")
            .unwrap()
            .surface;
        assert_eq!(
            path(list, Dialect::DeepSeek),
            "/files?limit=2&after=file-api-1"
        );
    }

    proptest! {
        #[test]
        fn no_target_panics_and_no_odd_byte_travels(target in prop::collection::vec(any::<u8>(), 0..80), tail in ".{0,40}") {
            for base in ["", "/v1/files", "/v1/files/", "/v1/models/"] {
                let bytes = [base.as_bytes(), &target, tail.as_bytes()].concat();
                for method in [Method::GET, Method::POST, Method::DELETE] {
                    if let Ok(entry) = classify(&method, &bytes) {
                        let path = entry.surface.upstream_path(Dialect::DeepSeek);
                        prop_assert!(path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'%' | b'#' | b'\\')));
                        prop_assert!(!path.contains(".."));
                    }
                }
            }
        }
    }
}
