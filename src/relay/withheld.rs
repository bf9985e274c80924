//! An answer in one piece, kept until it is whole: half of its JSON is of no use to anybody, and
//! while nothing of it has gone out, another upstream can still answer in this one's place.

use bytes::Bytes;

/// Larger answers flow as they come.
const MOST: usize = 256 * 1024;

/// What is kept of one answer.
#[derive(Debug, Default)]
pub struct Withheld {
    pieces: Vec<Bytes>,
    size: usize,
    /// Too large to be kept: the rest goes through.
    over: bool,
}

impl Withheld {
    /// Takes a piece in and says what may go out now: blank lines before the JSON, by which an
    /// upstream shows that it is alive, and an answer that has become too large.
    pub fn pass(&mut self, piece: Bytes) -> Bytes {
        let blank = self.pieces.is_empty() && piece.iter().all(u8::is_ascii_whitespace);
        if self.over || blank {
            return piece;
        }
        self.size += piece.len();
        self.pieces.push(piece);
        if self.size <= MOST {
            return Bytes::new();
        }
        self.over = true;
        self.finish()
    }

    /// Does what came go out as it comes?
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// All that was kept. One piece is not copied.
    pub fn finish(&mut self) -> Bytes {
        self.size = 0;
        match self.pieces.len() {
            0 | 1 => self.pieces.pop().unwrap_or_default(),
            _ => std::mem::take(&mut self.pieces).concat().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_go_out_and_the_json_waits_for_its_end() {
        let mut withheld = Withheld::default();
        let mut pass = |text: &'static str| withheld.pass(Bytes::from_static(text.as_bytes()));
        assert_eq!(pass("\n\n"), "\n\n");
        assert_eq!(
            (pass("\n{\"a\""), pass("\n"), pass(":1}")),
            Default::default()
        );
        assert!(!withheld.is_over());
        assert_eq!(withheld.finish(), "\n{\"a\"\n:1}");
        assert_eq!(withheld.finish(), "");
    }

    #[test]
    fn one_piece_is_given_back_as_it_came() {
        let piece = Bytes::from(vec![b'{'; 100]);
        let mut withheld = Withheld::default();
        assert!(withheld.pass(piece.clone()).is_empty());
        assert_eq!(withheld.finish().as_ptr(), piece.as_ptr());
    }

    #[test]
    fn an_answer_too_large_to_be_kept_flows() {
        let piece = Bytes::from(vec![b'x'; MOST / 2 + 1]);
        let mut withheld = Withheld::default();
        assert!(withheld.pass(piece.clone()).is_empty());
        assert_eq!(withheld.pass(piece.clone()).len(), 2 * piece.len());
        assert!(withheld.is_over());
        assert_eq!(withheld.pass(Bytes::from_static(b" ")), " ");
        assert!(withheld.finish().is_empty());
    }
}
