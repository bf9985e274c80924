//! Decides what a method and a path mean. Plain data; no request is read here.

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::entry::Form;

/// A format in which an answer is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surface {
    Chat { beta: bool },
    Completions { beta: bool },
    Messages,
    Responses,
}

/// An operation on files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileRoute {
    List,
    Upload,
    Show(String),
    Delete(String),
    Content(String),
}

/// An operation on the emulator itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    OrderFaults,
    ShowFaults,
    ClearFaults,
    Journal(Form, Since),
    ClearJournal,
    Totals,
    InFlight,
    ShowAccounts,
    /// Changes the account of this name or key.
    SetAccount(String),
}

/// From where on the journal is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Since {
    /// Entries that began at this time or later, in milliseconds since 1970.
    pub began_ms: u64,
    /// Entries with a greater id.
    pub after_id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Generate(Surface),
    Embeddings,
    Models,
    Balance,
    Files(FileRoute),
    Health,
    Control(Control),
}

/// The route, or the status of an empty answer: 404 for a path, 405 for a method.
pub(super) fn find(method: &Method, path: &str, query: Option<&str>) -> Result<Route, StatusCode> {
    if let Some(rest) = path.strip_prefix("/_emulator/") {
        return control(method, rest, query).map(Route::Control);
    }
    let (beta, rest) = match path.strip_prefix("/beta") {
        Some(rest) if rest.starts_with('/') => (true, rest),
        _ => (false, path),
    };
    let rest = match rest.strip_prefix("/v1") {
        Some(inner) if inner.starts_with('/') => inner,
        _ => rest,
    };
    let (wanted, route) = match rest {
        "/chat/completions" => (Method::POST, Route::Generate(Surface::Chat { beta })),
        "/completions" => (Method::POST, Route::Generate(Surface::Completions { beta })),
        _ if beta => return Err(StatusCode::NOT_FOUND),
        "/anthropic/v1/messages" => (Method::POST, Route::Generate(Surface::Messages)),
        "/responses" => (Method::POST, Route::Generate(Surface::Responses)),
        "/embeddings" => (Method::POST, Route::Embeddings),
        "/models" => (Method::GET, Route::Models),
        "/user/balance" => (Method::GET, Route::Balance),
        "/health" => (Method::GET, Route::Health),
        _ => return file(method, rest).map(Route::Files),
    };
    if *method != wanted {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    Ok(route)
}

fn file(method: &Method, path: &str) -> Result<FileRoute, StatusCode> {
    let rest = path.strip_prefix("/files").ok_or(StatusCode::NOT_FOUND)?;
    if rest.is_empty() {
        return match *method {
            Method::GET => Ok(FileRoute::List),
            Method::POST => Ok(FileRoute::Upload),
            _ => Err(StatusCode::METHOD_NOT_ALLOWED),
        };
    }
    let id = rest.strip_prefix('/').ok_or(StatusCode::NOT_FOUND)?;
    if let Some(id) = id.strip_suffix("/content") {
        return match *method {
            Method::GET => Ok(FileRoute::Content(id.to_owned())),
            _ => Err(StatusCode::METHOD_NOT_ALLOWED),
        };
    }
    match *method {
        _ if id.is_empty() || id.contains('/') => Err(StatusCode::NOT_FOUND),
        Method::GET => Ok(FileRoute::Show(id.to_owned())),
        Method::DELETE => Ok(FileRoute::Delete(id.to_owned())),
        _ => Err(StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn control(method: &Method, path: &str, query: Option<&str>) -> Result<Control, StatusCode> {
    let says = |word: &str| query.is_some_and(|query| query.split('&').any(|pair| pair == word));
    let form = match (says("full=1"), says("brief=1")) {
        (true, _) => Form::Full,
        (false, true) => Form::Brief,
        (false, false) => Form::Usual,
    };
    let number = |name: &str| {
        let pairs = query.into_iter().flat_map(|query| query.split('&'));
        let mut values = pairs.filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let value = values.next();
        value.map_or(Ok(0), |value| {
            value.parse().map_err(|_| StatusCode::BAD_REQUEST)
        })
    };
    if let Some(name) = path
        .strip_prefix("accounts/")
        .filter(|name| !name.is_empty())
    {
        let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
        return match *method {
            Method::POST => Ok(Control::SetAccount(name)),
            _ => Err(StatusCode::METHOD_NOT_ALLOWED),
        };
    }
    match (path, method.as_str()) {
        ("accounts", "GET") => Ok(Control::ShowAccounts),
        ("faults", "POST") => Ok(Control::OrderFaults),
        ("faults", "GET") => Ok(Control::ShowFaults),
        ("faults", "DELETE") => Ok(Control::ClearFaults),
        ("journal", "GET") => {
            let since = Since {
                began_ms: number("since_ms")?,
                after_id: number("after")?,
            };
            Ok(Control::Journal(form, since))
        }
        ("journal", "DELETE") => Ok(Control::ClearJournal),
        ("totals", "GET") => Ok(Control::Totals),
        ("inflight", "GET") => Ok(Control::InFlight),
        ("faults" | "journal" | "totals" | "inflight" | "accounts", _) => {
            Err(StatusCode::METHOD_NOT_ALLOWED)
        }
        _ => Err(StatusCode::NOT_FOUND),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Result<Route, StatusCode> {
        find(&Method::GET, path, None)
    }

    fn post(path: &str) -> Result<Route, StatusCode> {
        find(&Method::POST, path, None)
    }

    #[test]
    fn every_surface_answers_with_and_without_v1() {
        for path in [
            "/chat/completions",
            "/completions",
            "/responses",
            "/embeddings",
            "/files",
        ] {
            assert_eq!(post(path), post(&format!("/v1{path}")));
            assert!(post(path).is_ok(), "{path}");
        }
        for path in ["/models", "/user/balance", "/files/file-api-1", "/health"] {
            assert_eq!(get(path), get(&format!("/v1{path}")));
            assert!(get(path).is_ok(), "{path}");
        }
        assert_eq!(
            post("/beta/v1/chat/completions"),
            Ok(Route::Generate(Surface::Chat { beta: true }))
        );
    }

    #[test]
    fn the_journal_is_told_from_a_time_or_an_id_on() {
        let journal = |query| find(&Method::GET, "/_emulator/journal", Some(query));
        let since = Since {
            began_ms: 7,
            after_id: 9,
        };
        assert_eq!(
            journal("brief=1&since_ms=7&after=9"),
            Ok(Route::Control(Control::Journal(Form::Brief, since)))
        );
        assert_eq!(journal("after=x"), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn other_paths_are_404_and_other_methods_405() {
        for path in [
            "/",
            "/v1",
            "/v1/moderations",
            "/beta/models",
            "/betachat/completions",
            "/filesx",
        ] {
            assert_eq!(post(path), Err(StatusCode::NOT_FOUND), "{path}");
        }
        assert_eq!(
            get("/chat/completions"),
            Err(StatusCode::METHOD_NOT_ALLOWED)
        );
        assert_eq!(post("/models"), Err(StatusCode::METHOD_NOT_ALLOWED));
    }
}
