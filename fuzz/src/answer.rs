//! Answers in one piece: how one is cut changes nothing of what is understood.
//!
//! Input: a byte that chooses shape and cuts, then the answer.

use tidegate::relay::answer::{Answer, AnswerScanner};
use tidegate::relay::event::Shape;

pub fn shape(mode: u8) -> Shape {
    match mode & 3 {
        0 => Shape::Chat,
        1 => Shape::Completions,
        2 => Shape::Messages,
        _ => Shape::Responses,
    }
}

pub fn check(data: &[u8]) {
    let (mode, answer) = super::choice(data);
    let whole = run(mode, [answer]);
    assert_eq!(run(mode, answer.chunks(1)), whole);
    assert_eq!(run(mode, super::pieces(answer, mode)), whole);
    let object =
        serde_json::from_slice::<serde_json::Value>(answer).is_ok_and(|answer| answer.is_object());
    assert!(whole.complete || !object, "an object is found complete");
}

fn run<'a>(mode: u8, pieces: impl IntoIterator<Item = &'a [u8]>) -> Answer {
    let mut scanner = AnswerScanner::new(shape(mode));
    for piece in pieces {
        scanner.feed(piece);
    }
    scanner.seen().clone()
}
