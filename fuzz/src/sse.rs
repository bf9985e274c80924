//! Event streams: how a stream is cut changes neither what goes out nor what is understood.
//!
//! Input: a byte that chooses shape, stripping and cuts, then the stream.

use bytes::Bytes;
use tidegate::relay::event::{Seen, Shape};
use tidegate::relay::sse::Scanner;

pub fn check(data: &[u8]) {
    let (mode, stream) = super::choice(data);
    let shape = super::answer::shape(mode);
    let strip = mode & 4 != 0;
    let whole = run(shape, strip, [stream]);
    let single = run(shape, strip, stream.chunks(1));
    assert_eq!(single, whole);
    assert_eq!(run(shape, strip, super::pieces(stream, mode)), whole);
    let (kept, seen, _) = run(shape, false, [stream]);
    assert_eq!(kept, stream);
    assert_eq!(seen, whole.1, "stripping changes nothing of what is seen");
    let mut left = stream.iter();
    let kept = whole.0.iter().all(|byte| left.any(|other| other == byte));
    assert!(kept, "nothing is added or moved");
    let openai = matches!(shape, Shape::Chat | Shape::Completions);
    assert!(whole.0.len() == stream.len() || (strip && openai));
}

/// What goes out, what was seen, and whether any fragment was progress.
fn run<'a>(
    shape: Shape,
    strip: bool,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<u8>, Seen, bool) {
    let mut scanner = Scanner::new(shape, strip);
    let (mut out, mut progress) = (Vec::new(), false);
    for piece in pieces {
        out.extend_from_slice(&scanner.feed(Bytes::copy_from_slice(piece)));
        progress |= scanner.seen().progress;
    }
    out.extend_from_slice(&scanner.finish().unwrap_or_default());
    let mut seen = scanner.seen().clone();
    progress |= std::mem::take(&mut seen.progress);
    (out, seen, progress)
}
