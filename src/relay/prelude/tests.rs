use super::*;
use crate::relay::event::Shape;
use crate::relay::sse::Scanner;
use proptest::prelude::*;

/// Feeds a whole stream in pieces; returns what went out before content, and all.
fn run(shape: Shape, pieces: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
    let (mut scanner, mut prelude) = (Scanner::new(shape, false), Prelude::default());
    let (mut before, mut all) = (Vec::new(), Vec::new());
    for piece in pieces {
        let out = scanner.feed(Bytes::copy_from_slice(piece));
        let content = scanner.seen().first_content;
        let out = prelude.pass(out, content);
        if !content {
            before.extend_from_slice(&out);
        }
        all.extend_from_slice(&out);
    }
    let half = scanner.finish();
    for rest in [prelude.finish(), half] {
        all.extend_from_slice(&rest.unwrap_or_default());
    }
    (before, all)
}

/// What a client makes of a stream: its events, comments left out, and then the
/// comments in any order.
fn understood(stream: &[u8]) -> (Vec<Vec<String>>, Vec<String>) {
    let text = String::from_utf8(stream.to_vec()).unwrap();
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut event, mut comments) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.split('\n') {
        if line.is_empty() && !event.is_empty() {
            events.push(std::mem::take(&mut event));
        } else if line.starts_with(':') {
            comments.push(line.to_owned());
        } else if !line.is_empty() {
            event.push(line.to_owned());
        }
    }
    events.push(event);
    comments.sort_unstable();
    (events, comments)
}

const ROLE: &str =
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const TEXT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";

fn pass(prelude: &mut Prelude, text: &str, content: bool) -> String {
    let out = prelude.pass(Bytes::copy_from_slice(text.as_bytes()), content);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn keep_alives_pass_while_events_wait_for_content() {
    let mut prelude = Prelude::default();
    assert_eq!(pass(&mut prelude, ": a\n\n", false), ": a\n\n");
    assert_eq!(pass(&mut prelude, ROLE, false), "");
    assert_eq!(pass(&mut prelude, ": keep", false), "");
    assert_eq!(
        pass(&mut prelude, "-alive\r\n\r", false),
        ": keep-alive\r\n\r"
    );
    assert_eq!(pass(&mut prelude, "\n", false), "\n");
    assert!(!prelude.is_open());
    assert_eq!(pass(&mut prelude, TEXT, true), [ROLE, TEXT].concat());
    assert!(prelude.is_open());
    assert_eq!(pass(&mut prelude, "dat", true), "dat");
    assert_eq!(prelude.finish(), None);
}

#[test]
fn a_comment_inside_an_event_stays_inside() {
    let mut prelude = Prelude::default();
    assert_eq!(pass(&mut prelude, "event: ping\n: x\n", false), "");
    assert_eq!(pass(&mut prelude, "data: {}\n\n: y\n", false), ": y\n");
    assert_eq!(pass(&mut prelude, "\n\n", false), "\n");
    let held = prelude.finish().unwrap();
    assert_eq!(&held[..], b"event: ping\n: x\ndata: {}\n\n\n");
}

#[test]
fn content_passes_uncopied_where_nothing_waits() {
    let mut prelude = Prelude::default();
    let fragment = Bytes::copy_from_slice([ROLE, TEXT].concat().as_bytes());
    let place = fragment.as_ptr();
    assert_eq!(prelude.pass(fragment, true).as_ptr(), place);
}

#[test]
fn too_much_without_content_opens() {
    let mut prelude = Prelude::default();
    let long = format!("data: {}", "x".repeat(MAX_HELD));
    assert_eq!(pass(&mut prelude, ROLE, false), "");
    assert_eq!(pass(&mut prelude, &long, false), [ROLE, &long].concat());
    assert!(prelude.is_open());
    let mut prelude = Prelude::default();
    let many = ": a\n\n".repeat(MAX_HELD);
    assert_eq!(pass(&mut prelude, &many, false), many);
    assert!(!prelude.is_open(), "comments do not gather");
}

#[test]
fn nothing_goes_ahead_of_a_byte_order_mark() {
    let stream = format!("\u{feff}{ROLE}: a\n\n{TEXT}");
    let pieces: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
    let (before, all) = run(Shape::Chat, &pieces);
    assert_eq!(
        (before.as_slice(), all.as_slice()),
        (&b""[..], stream.as_bytes())
    );
}

#[test]
fn an_answer_without_content_goes_out_at_its_end() {
    let stream = concat!(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: [DONE]\n\n",
    );
    let (before, all) = run(Shape::Chat, &[stream.as_bytes()]);
    assert_eq!(
        (before.as_slice(), all.as_slice()),
        (&b""[..], stream.as_bytes())
    );
}

fn piece() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        4 => Just(": keep-alive"),
        1 => Just(":"),
        3 => Just(""),
        2 => Just("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}"),
        1 => Just("data: {\"choices\":[{\"delta\":{\"content\":\"字\"}}]}"),
        1 => Just("event: ping"),
        1 => Just("id"),
    ];
    (line, prop_oneof![Just("\n"), Just("\r\n"), Just("\r")])
        .prop_map(|(line, end)| [line, end].concat())
}

proptest! {
    #[test]
    fn only_comments_move_and_only_comments_leave_before_content(
        lines in prop::collection::vec(piece(), 0..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream = lines.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> =
            cuts.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
        let (before, all) = run(Shape::Chat, &pieces);
        prop_assert_eq!(all.len(), stream.len());
        prop_assert_eq!(understood(&all), understood(stream.as_bytes()));
        let (events, _) = understood(&before);
        prop_assert_eq!(events, vec![Vec::<String>::new()]);
        // What is no comment has kept its place.
        let rest = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            text.split(['\n', '\r']).filter(|line| !line.is_empty() && !line.starts_with(':')).map(str::to_owned).collect()
        };
        prop_assert_eq!(rest(&all), rest(stream.as_bytes()));
    }
}
