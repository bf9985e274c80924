use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use super::*;

fn asking(copies: &Path, headers: &[&str]) -> Asking {
    Asking {
        ca: None,
        headers: headers.iter().map(|h| Header::parse(h).unwrap()).collect(),
        copies: copies.to_owned(),
    }
}

fn sources(named: &[&str], copies: &Path) -> Sources {
    let named = named.iter().map(PathBuf::from);
    Sources::new(named, asking(copies, &[])).unwrap()
}

fn text(layer: &Layer) -> &[u8] {
    match layer {
        Layer::Text { bytes, .. } => bytes,
        Layer::Path(path) => panic!("{path:?}"),
    }
}

/// Answers once for each of `answers`, then is away.
fn source(answers: Vec<&'static str>) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "http://{}/t.yaml?key=hidden",
        listener.local_addr().unwrap()
    );
    let thread = std::thread::spawn(move || {
        for answer in answers {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            socket.write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, thread)
}

const ONE: &str = "HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 4\r\n\r\na: 1";
const TWO: &str = "HTTP/1.1 200 OK\r\netag: \"2\"\r\ncontent-length: 4\r\n\r\na: 2";
const SAME: &str = "HTTP/1.1 304 Not Modified\r\n\r\n";

fn poll(sources: &Sources) -> Polled {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(sources.poll())
}

#[test]
fn the_command_line_is_judged_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |named: &[&str], headers: &[&str]| {
        let named = named.iter().map(PathBuf::from);
        let error = Sources::new(named, asking(folder.path(), headers)).err();
        error.unwrap()
    };
    assert!(matches!(
        refused(&["http://config.corp/a"], &[]),
        SourceError::Location(_)
    ));
    assert!(matches!(
        refused(&["a.yaml"; MAX_LAYERS + 1], &[]),
        SourceError::TooMany
    ));
    let hosts = ["https://a.corp/x", "b.yaml", "https://b.corp/x"];
    assert!(matches!(
        refused(&hosts, &["X: ${env:X}"]),
        SourceError::SeveralHosts
    ));
    let beside = ["https://a.corp/x?hidden", "b.yaml", "https://a.corp/y"];
    let sources = Sources::new(
        beside.iter().map(PathBuf::from),
        asking(folder.path(), &["X: ${env:X}"]),
    );
    let names = sources.unwrap().names();
    assert_eq!(names, ["https://a.corp/x?…", "b.yaml", "https://a.corp/y"]);
}

#[test]
fn a_source_that_is_away_is_stood_in_for_by_what_was_good() {
    let folder = tempfile::tempdir().unwrap();
    let (url, thread) = source(vec![ONE]);
    let first = sources(&[&url], folder.path());
    let reading = first.read_now().unwrap();
    assert_eq!(text(&reading.layers[0]), b"a: 1");
    assert!(reading.notes.is_empty());
    // Not in use yet, so nothing is kept.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    first.taken_over(&reading.layers);
    thread.join().unwrap();

    let reading = first.read_now().unwrap();
    assert_eq!(text(&reading.layers[0]), b"a: 1");
    assert_eq!(reading.notes[0].level, Level::Warn);

    let second = sources(&[&url], folder.path());
    let reading = second.read_now().unwrap();
    assert_eq!(text(&reading.layers[0]), b"a: 1");
    let note = &reading.notes[0];
    assert_eq!(note.level, Level::Error);
    assert!(
        note.text.contains("age=") && !note.text.contains("hidden"),
        "{}",
        note.text
    );

    let elsewhere = tempfile::tempdir().unwrap();
    let third = sources(&[&url], elsewhere.path());
    let error = third.read_now().unwrap_err();
    assert!(
        error.is_passing() && !error.to_string().contains("hidden"),
        "{error}"
    );
}

#[test]
fn a_poll_tells_whether_anything_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let (url, thread) = source(vec![ONE, SAME, ONE, TWO, TWO, SAME]);
    let sources = sources(&[&url], folder.path());
    sources.taken_over(&sources.read_now().unwrap().layers);
    // Not modified, then another answer that says the same.
    assert_eq!(poll(&sources), Polled::Unchanged);
    assert_eq!(poll(&sources), Polled::Unchanged);
    assert_eq!(poll(&sources), Polled::Changed);
    assert_eq!(text(&sources.latest().unwrap().layers[0]), b"a: 2");
    // It was not taken over, say because it is bad, and is not told again.
    assert_eq!(poll(&sources), Polled::Unchanged);
    assert_eq!(poll(&sources), Polled::Unchanged);
    thread.join().unwrap();
    assert_eq!(poll(&sources), Polled::Failed);
    // What stands in is what was good, not what was new.
    assert_eq!(text(&sources.read_now().unwrap().layers[0]), b"a: 1");
}
