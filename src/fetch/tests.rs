use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

/// Answers each connection with the next of `answers`, and tells what it was asked.
fn source(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/tidegate.yaml", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            asked.push(String::from_utf8(head).unwrap());
            // The client may have had enough.
            let _ = socket.write_all(answer.as_bytes());
        }
        asked
    });
    (url, thread)
}

fn ok(body: &str, fields: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{fields}\r\n{body}")
}

fn get(url: &str, headers: &HeaderMap, validators: &Validators) -> Result<Fetched, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let location = Location::parse(url)?;
    let client = Client::new(None)?;
    runtime.block_on(client.get(&location, headers, validators, 100))
}

fn plain(url: &str) -> Result<Fetched, FetchError> {
    get(url, &HeaderMap::new(), &Validators::default())
}

#[test]
fn what_a_document_came_with_is_asked_for_the_next_time() {
    let fields = "etag: \"one\"\r\nlast-modified: Sun, 22 Nov 2026 08:00:00 GMT\r\n";
    let unchanged = "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned();
    let (url, asked) = source(vec![ok("a: 1", fields), unchanged]);
    let Ok(Fetched::Document { bytes, validators }) = plain(&url) else {
        panic!()
    };
    assert_eq!(bytes, b"a: 1");
    let again = get(&url, &HeaderMap::new(), &validators);
    assert_eq!(again, Ok(Fetched::Unchanged));
    let asked = asked.join().unwrap();
    assert!(!asked[0].contains("if-"), "{}", asked[0]);
    assert!(
        asked[1].contains("if-none-match: \"one\"\r\n"),
        "{}",
        asked[1]
    );
    assert!(
        asked[1].contains("if-modified-since: Sun, 22 Nov"),
        "{}",
        asked[1]
    );
    assert!(
        !asked[1].to_lowercase().contains("accept-encoding"),
        "{}",
        asked[1]
    );
}

#[test]
fn an_answer_that_is_no_document_is_an_error_of_its_kind() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n60\r\n".to_owned()
        + &"x".repeat(0x60)
        + "\r\n60\r\n"
        + &"x".repeat(0x60);
    for (answer, error) in [
        (ok(&"x".repeat(101), ""), FetchError::TooLarge(100)),
        (chunked, FetchError::TooLarge(100)),
        ("HTTP/1.1 404 x\r\n\r\n".to_owned(), FetchError::Status(404)),
        ("HTTP/1.1 204 x\r\n\r\n".to_owned(), FetchError::Status(204)),
        // Nothing was asked that this could be the answer to.
        ("HTTP/1.1 304 x\r\n\r\n".to_owned(), FetchError::Status(304)),
    ] {
        let (url, _) = source(vec![answer]);
        assert_eq!(plain(&url), Err(error));
    }
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
        "nonsense\r\n\r\n",
        "",
    ] {
        let (url, _) = source(vec![answer.to_owned()]);
        let error = plain(&url).unwrap_err();
        assert!(matches!(error, FetchError::Broken(_)), "{error:?}");
    }
}

#[test]
fn a_redirect_is_followed_within_the_origin_and_no_further() {
    let to =
        |place: &str| format!("HTTP/1.1 302 x\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
    let mut headers = HeaderMap::new();
    headers.insert("x-token", HeaderValue::from_static("t"));
    let (url, asked) = source(vec![to("/other.yaml"), ok("a: 1", "")]);
    assert!(get(&url, &headers, &Validators::default()).is_ok());
    assert!(asked.join().unwrap()[1].contains("x-token: t"));

    let (elsewhere, _) = source(vec![]);
    for place in [elsewhere.as_str(), "https://127.0.0.1/", "ftp://127.0.0.1/"] {
        let (url, _) = source(vec![to(place)]);
        assert_eq!(
            get(&url, &headers, &Validators::default()),
            Err(FetchError::Redirected)
        );
    }
    let (url, _) = source(vec![to("/tidegate.yaml"); 5]);
    assert_eq!(plain(&url), Err(FetchError::Redirected));
}

#[test]
fn only_https_and_this_machine_are_asked_and_no_password_is_taken() {
    for good in [
        "https://config.corp/tidegate.yaml",
        "HTTPS://config.corp",
        "http://127.9.9.9/x",
        "http://[::1]:8500/v1/kv/tidegate?raw",
        "http://localhost:1/",
    ] {
        assert!(
            Location::is_meant(good) && Location::parse(good).is_ok(),
            "{good}"
        );
    }
    for bad in [
        "http://config.corp/",
        "http://10.0.0.1/",
        "http://localhost.evil/",
        "http://127.0.0.1.evil/",
        "ftp://config.corp/",
        "https://user:hidden@config.corp/",
        "https://",
        "file:///etc/passwd",
    ] {
        let error = Location::parse(bad).unwrap_err().to_string();
        assert!(!error.contains("hidden"), "{error}");
    }
    for path in ["conf/base.yaml", "/etc/tidegate", "C:\\x", "a://b"] {
        assert!(!Location::is_meant(path), "{path}");
    }
}

#[test]
fn nothing_that_may_be_a_credential_is_printed() {
    let (url, _) = source(vec![]);
    let url = url + "?accessToken=hidden#hidden";
    let location = Location::parse(&url).unwrap();
    assert!(location.exact().ends_with("?accessToken=hidden"));
    let error = plain(&url).unwrap_err();
    for shown in [
        location.to_string(),
        format!("{location:?}"),
        format!("{error:?} {error}"),
    ] {
        assert!(!shown.contains("hidden"), "{shown}");
    }
    assert!(location.to_string().ends_with("/tidegate.yaml?…"));
}

#[test]
fn a_ca_bundle_that_cannot_be_used_is_told_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    for content in [None, Some(""), Some("nonsense")] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = Client::new(Some(&path)).err().unwrap().to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&path, made.cert.pem()).unwrap();
    assert!(Client::new(Some(&path)).is_ok());
}
