//! Decides fast whether an event is one more delta of the kind seen before: the
//! same bytes but for the text of one string. For the SSE scanner, which learns
//! the pattern from deltas it has judged the slow way; a match is never the only
//! proof, only a repetition of one. It must not know what a delta means.

/// Longest delta that is worth a pattern.
const MAX_LEARNT: usize = 2048;
/// Patterns learnt without one match between them before learning stops: some
/// servers write a new number into each event.
const MAX_FUTILE: u32 = 8;

/// A delta with a hole where its text was.
#[derive(Debug, Default)]
pub(super) struct Pattern {
    /// The delta up to the text and on from it.
    around: Vec<u8>,
    /// Where the text was. 0 before anything has been learnt.
    hole: usize,
    futile: u32,
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// The same but for the text.
    Same,
    /// Perhaps, but the text needs a closer look.
    Unclear,
    /// Something else.
    Different,
}

impl Pattern {
    /// Compares `data` with the pattern. The text may hold anything but quotation
    /// marks and a backslash at its end: so it cannot reach out of its string.
    #[inline]
    pub fn compare(&mut self, data: &[u8]) -> Match {
        let Some((head, tail)) = self.around.split_at_checked(self.hole) else {
            return Match::Different;
        };
        if self.hole == 0 {
            return Match::Different;
        }
        let text = data
            .strip_prefix(head)
            .and_then(|rest| rest.strip_suffix(tail));
        let Some(text) = text else {
            return Match::Different;
        };
        if text.last() == Some(&b'\\') || memchr::memchr(b'"', text).is_some() {
            return Match::Unclear;
        }
        self.futile = 0;
        Match::Same
    }

    /// Whether another pattern is worth the walk that finds its text.
    pub fn wants(&self, data: &[u8]) -> bool {
        self.futile < MAX_FUTILE && data.len() <= MAX_LEARNT
    }

    /// Learns the delta `data`. `text` is the inside of one of its strings, a
    /// slice of `data`.
    pub fn learn(&mut self, data: &[u8], text: Option<&[u8]>) {
        self.futile += 1;
        self.hole = 0;
        let Some(text) = text else { return };
        let start = text.as_ptr().addr().wrapping_sub(data.as_ptr().addr());
        let (Some(head), Some(tail)) = (data.get(..start), data.get(start + text.len()..)) else {
            return;
        };
        self.around.clear();
        self.around.extend_from_slice(head);
        self.around.extend_from_slice(tail);
        self.hole = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_may_differ() {
        let delta = br#"{"c":"text","usage":null}"#;
        let mut pattern = Pattern::default();
        assert_eq!(pattern.compare(delta), Match::Different);
        pattern.learn(delta, Some(&delta[6..10]));
        for (data, expected) in [
            (r#"{"c":"","usage":null}"#, Match::Same),
            (r#"{"c":"other\n","usage":null}"#, Match::Same),
            (r#"{"c":"x\\","usage":null}"#, Match::Unclear),
            (
                r#"{"c":"x","usage":{},"c":"y","usage":null}"#,
                Match::Unclear,
            ),
            (r#"{"c":"x","usage":{}}"#, Match::Different),
            (r#"{"c":"usage":null}"#, Match::Different),
            (r#"{"d":"x","usage":null}"#, Match::Different),
        ] {
            assert_eq!(pattern.compare(data.as_bytes()), expected, "{data}");
        }
    }

    #[test]
    fn learning_stops_where_nothing_repeats() {
        let mut pattern = Pattern::default();
        for number in 0..8 {
            let delta = format!(r#"{{"n":{number},"c":"x"}}"#);
            assert!(pattern.wants(delta.as_bytes()));
            pattern.learn(delta.as_bytes(), Some(&delta.as_bytes()[12..13]));
        }
        assert!(!pattern.wants(b"{}"));
    }
}
