//! How many tokens a request will take, before anybody has counted them.
//!
//! The prompt: characters by class, each with the ratio of DeepSeek's tokenizer (docs page
//! token_usage, and measured: English prose 0.22 tokens a character, code 0.45, Chinese 0.61), times
//! what the model's own counts have shown. The completion: what the caller allows, or what the
//! model's answers usually take. Both learn from every answer that tells its usage.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::amounts::MOST_TOKENS;

/// Bytes that are looked at; of a longer text, so many in evenly spread pieces.
const MOST_LOOKED_AT: usize = 64 * 1024;
const PIECES: usize = 16;
/// What an inline picture counts beside its bytes, which are not text. The real price depends on
/// its size (token_usage page); learning sets it right for those who send many.
const TOKENS_PER_PICTURE: u64 = 1_000;
/// A megabyte of a picture counts as 16 Ki tokens at least.
const BYTES_PER_PICTURE_TOKEN: u64 = 64;
const MARK: &[u8] = b";base64,";
/// `data:image/` and a media type's rest, in bytes.
const MOST_MEDIA_TYPE: usize = 64;
/// Roles and separators.
const TOKENS_PER_REQUEST: u64 = 16;

/// In thousandths of a token per character.
const PROSE: u64 = 230;
const DENSE: u64 = 500;
const WIDE: u64 = 620;
/// Letters of other alphabets.
const FOREIGN: u64 = 400;

/// What a prompt looks like, before learning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prompt {
    pub tokens: u64,
    /// There are pictures in it, whose price nobody knows: nothing is to be learned from it.
    pub pictures: bool,
}

/// A prompt that stands as JSON in these pieces of the body.
pub fn prompt<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Prompt {
    let mut prompt = Prompt {
        tokens: TOKENS_PER_REQUEST,
        pictures: false,
    };
    for text in texts {
        prompt.add(text);
    }
    prompt.tokens = prompt.tokens.min(MOST_TOKENS);
    prompt
}

impl Prompt {
    /// Counts a text without the pictures in it: `data:image/…;base64,` and what is base64 after it.
    fn add(&mut self, text: &[u8]) {
        let mut rest = text;
        let mut passed = 0;
        while let Some(at) = memchr::memmem::find(rest.get(passed..).unwrap_or_default(), MARK) {
            let (before, after) = rest.split_at(passed + at);
            if !is_picture(before) {
                // Somebody writes about pictures.
                passed += at + MARK.len();
                continue;
            }
            let data = after.get(MARK.len()..).unwrap_or_default();
            let length = data.iter().take_while(|byte| is_base64(**byte)).count();
            // By its bytes as well, or a text without blanks could pass for a picture.
            let picture = TOKENS_PER_PICTURE.max(length as u64 / BYTES_PER_PICTURE_TOKEN);
            self.tokens += sampled(before) + picture;
            self.pictures = true;
            rest = data.get(length..).unwrap_or_default();
            passed = 0;
        }
        self.tokens += sampled(rest);
    }
}

/// Does a text end in the beginning of a picture's address (RFC 2397)?
fn is_picture(before: &[u8]) -> bool {
    let end = before.get(before.len().saturating_sub(MOST_MEDIA_TYPE)..);
    end.is_some_and(|end| memchr::memmem::rfind(end, b"data:image/").is_some())
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'\\')
}

fn sampled(text: &[u8]) -> u64 {
    if text.len() <= MOST_LOOKED_AT {
        return Classes::of(text).tokens();
    }
    let piece = MOST_LOOKED_AT / PIECES;
    let stride = (text.len() - piece) / (PIECES - 1);
    let pieces = (0..PIECES).filter_map(|number| {
        let from = number * stride;
        text.get(from..from + piece)
    });
    let looked_at: u64 = pieces.map(|piece| Classes::of(piece).tokens()).sum();
    looked_at * text.len() as u64 / (PIECES * piece) as u64
}

/// Characters by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Classes {
    letters: u64,
    /// Digits and signs, of which code, tables and JSON are full.
    signs: u64,
    wide: u64,
    foreign: u64,
}

impl Classes {
    fn of(text: &[u8]) -> Self {
        let mut classes = Self::default();
        // Short runs, so that the counts fit in bytes: the compiler then takes many at once.
        for run in text.chunks(usize::from(u8::MAX)) {
            let (mut letters, mut ascii, mut wide, mut following) = (0u8, 0u8, 0u8, 0u8);
            for byte in run {
                let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
                letters += u8::from(letter | (*byte == b' '));
                ascii += u8::from(*byte < 0x80);
                // Characters by their first byte (RFC 3629); what follows belongs to it. From E3 on
                // stand Chinese, Japanese and Korean, then symbols.
                following += u8::from(byte & 0xc0 == 0x80);
                wide += u8::from(*byte >= 0xe3);
            }
            let [letters, ascii, wide, following] =
                [letters, ascii, wide, following].map(u64::from);
            classes.letters += letters;
            classes.signs += ascii - letters;
            classes.wide += wide;
            classes.foreign += run.len() as u64 - ascii - wide - following;
        }
        classes
    }

    fn tokens(self) -> u64 {
        // A sign among many letters is punctuation and costs little more than they do; where signs
        // are dense, each is half a token.
        let ascii = self.letters + self.signs;
        let dense = self.signs * 5 > ascii;
        let signs = if dense { DENSE } else { PROSE + PROSE / 2 };
        let letters = if dense { PROSE + PROSE / 2 } else { PROSE };
        let thousandths =
            self.letters * letters + self.signs * signs + self.wide * WIDE + self.foreign * FOREIGN;
        thousandths.div_ceil(1000)
    }
}

/// Answers after which what was learned counts more than what was configured.
const ENOUGH: u32 = 20;
/// Weight of the newest answer in the mean.
const NEWEST: f64 = 1.0 / 32.0;
/// Deviations above the mean that a reservation allows for.
const MARGIN: f64 = 2.0;
/// What a ratio may be at least and at most, whatever upstreams say.
const RATIO: std::ops::RangeInclusive<f64> = 0.2..=5.0;
/// Buckets of completion lengths: powers of the square root of two, up to [`MOST_TOKENS`].
const LENGTHS: usize = 45;
/// Samples after which old ones count half.
const HALVING: u32 = 1024;
/// Of a hundred answers, so many fit in what is reserved.
const FITTING: u32 = 90;

/// What a model's answers to one tenant have shown: what others ask is no guide, and could be meant
/// to mislead. Requests read what follows from it without a lock; a sample
/// that finds the lock taken is left out.
#[derive(Debug)]
pub struct Learned {
    state: Mutex<Experience>,
    /// Bits of an `f64`: real prompt tokens per estimated one, likely and with the margin.
    likely: AtomicU64,
    safe: AtomicU64,
    /// Completion tokens to reserve; 0 until enough answers were seen.
    usual: AtomicU64,
}

/// The same as plain data, as it is written down.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Experience {
    samples: u32,
    /// Real prompt tokens per estimated one.
    ratio: f64,
    deviation: f64,
    /// Completions by length, for requests that named no maximum.
    lengths: Vec<u32>,
    completions: u32,
}

impl Default for Experience {
    fn default() -> Self {
        Self {
            samples: 0,
            ratio: 1.0,
            deviation: 0.1,
            lengths: vec![0; LENGTHS],
            completions: 0,
        }
    }
}

impl Default for Learned {
    fn default() -> Self {
        Self::from(Experience::default())
    }
}

impl From<Experience> for Learned {
    fn from(experience: Experience) -> Self {
        let mut experience = experience;
        experience.lengths.resize(LENGTHS, 0);
        let sane = |value: f64, other: f64| if value.is_finite() { value } else { other };
        experience.ratio = sane(experience.ratio, 1.0).clamp(*RATIO.start(), *RATIO.end());
        experience.deviation = sane(experience.deviation, 0.1).clamp(0.0, 2.0);
        let learned = Self {
            likely: AtomicU64::new(0),
            safe: AtomicU64::new(0),
            usual: AtomicU64::new(0),
            state: Mutex::new(experience),
        };
        learned.publish(&learned.state.lock());
        learned
    }
}

impl Experience {
    /// What [`FITTING`] of a hundred completions fit in; 0 if too few were seen.
    fn usual(&self) -> u64 {
        if self.completions < ENOUGH {
            return 0;
        }
        let counted: u64 = self.lengths.iter().copied().map(u64::from).sum();
        let wanted = counted * u64::from(FITTING) / 100;
        let mut below = 0;
        let bucket = self.lengths.iter().position(|count| {
            below += u64::from(*count);
            below >= wanted
        });
        bucket.map_or(MOST_TOKENS, longest_of)
    }
}

impl Learned {
    /// Tokens to reserve for a prompt of so many estimated ones: rarely too few.
    pub fn prompt(&self, estimated: u64) -> u64 {
        scaled(estimated, f64::from_bits(self.safe.load(Ordering::Relaxed)))
    }

    /// Tokens a prompt has most likely taken, when nobody has counted them.
    pub fn likely_prompt(&self, estimated: u64) -> u64 {
        scaled(
            estimated,
            f64::from_bits(self.likely.load(Ordering::Relaxed)),
        )
    }

    /// Completion tokens to reserve when the request names no maximum; `usual` until enough answers
    /// were seen.
    pub fn completion(&self, usual: u64) -> u64 {
        match self.usual.load(Ordering::Relaxed) {
            0 => usual,
            learned => learned,
        }
    }

    /// An answer told its prompt's tokens; `estimated` is what [`prompt`] said.
    pub fn saw_prompt(&self, estimated: u64, real: u64) {
        let Some(mut state) = self.state.try_lock().filter(|_| estimated > 0) else {
            return;
        };
        let ratio = (real as f64 / estimated as f64).clamp(*RATIO.start(), *RATIO.end());
        // The first answers weigh more, so that the mean is soon where it belongs.
        let weight = NEWEST.max(1.0 / f64::from(state.samples.saturating_add(2)));
        let off = ratio - state.ratio;
        state.ratio += weight * off;
        state.deviation += weight * (off.abs() - state.deviation);
        state.samples = state.samples.saturating_add(1);
        self.publish(&state);
    }

    /// An answer to a request without a maximum came to its end.
    pub fn saw_completion(&self, tokens: u64) {
        let Some(mut state) = self.state.try_lock() else {
            return;
        };
        let bucket = bucket_of(tokens);
        if let Some(count) = state.lengths.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
        state.completions = state.completions.saturating_add(1);
        if state.completions.is_multiple_of(HALVING) {
            state.lengths.iter_mut().for_each(|count| *count /= 2);
        }
        self.publish(&state);
    }

    /// Says what follows from what was seen.
    fn publish(&self, state: &Experience) {
        let safe = state.ratio + MARGIN * state.deviation;
        self.likely.store(state.ratio.to_bits(), Ordering::Relaxed);
        self.safe.store(safe.to_bits(), Ordering::Relaxed);
        self.usual.store(state.usual(), Ordering::Relaxed);
    }

    pub fn experience(&self) -> Experience {
        self.state.lock().clone()
    }
}

fn scaled(tokens: u64, factor: f64) -> u64 {
    ((tokens as f64 * factor).ceil() as u64).min(MOST_TOKENS)
}

fn bucket_of(tokens: u64) -> usize {
    let halves = 2.0 * (tokens.max(1) as f64).log2();
    (halves.ceil() as usize).min(LENGTHS - 1)
}

fn longest_of(bucket: usize) -> u64 {
    (2f64.powf(bucket as f64 / 2.0).floor() as u64).min(MOST_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> f64 {
        prompt([text.as_bytes()].into_iter()).tokens as f64 - TOKENS_PER_REQUEST as f64
    }

    #[test]
    fn each_script_has_its_ratio() {
        let prose = "The quick brown fox jumps over the lazy dog and goes on to see the world. ";
        let per_char = |text: &str| of(&text.repeat(50)) / (50 * text.chars().count()) as f64;
        assert!(
            (0.2..0.26).contains(&per_char(prose)),
            "{}",
            per_char(prose)
        );
        let chinese = "今天天气很好，我们去公园散步。";
        assert!((0.55..0.7).contains(&per_char(chinese)));
        let code = "fn main() { let x = vec![1, 2, 3]; println!(\"{:?}\", x[0] + 1); }\n";
        assert!((0.35..0.5).contains(&per_char(code)), "{}", per_char(code));
    }

    proptest! {
        #[test]
        fn every_character_is_in_one_class(text in ".{0,600}") {
            let classes = Classes::of(text.as_bytes());
            let all = classes.letters + classes.signs + classes.wide + classes.foreign;
            prop_assert_eq!(all, text.chars().count() as u64);
            let letters = text.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').count();
            prop_assert_eq!(classes.letters, letters as u64);
            let wide = text.chars().filter(|c| *c >= '\u{3000}').count();
            prop_assert_eq!(classes.wide, wide as u64);
        }
    }

    #[test]
    fn a_picture_is_not_read_as_text() {
        let picture = "A".repeat(640_000);
        let text = format!("[{{\"url\":\"data:image/png;base64,{picture}\"}}, \"word word\"]");
        assert!((10_000.0..10_100.0).contains(&of(&text)), "{}", of(&text));
        assert!(of("\"data:image/png;base64,") <= 1_020.0);
        assert!(prompt([text.as_bytes()].into_iter()).pictures);
    }

    #[test]
    fn a_text_about_pictures_is_a_text() {
        let words = "word ".repeat(10_000);
        let plain = of(&words);
        for text in [
            format!(";base64,{words}"),
            format!("data:text/plain;base64,{words}"),
            format!("data:image/png;base64,{words}"),
        ] {
            assert!(of(&text) >= plain, "{text:.40}");
        }
    }

    #[test]
    fn a_long_text_is_judged_by_samples() {
        let text = "word after word ".repeat(100_000);
        let whole = Classes::of(text.as_bytes()).tokens() as f64;
        assert!((of(&text) / whole - 1.0).abs() < 0.02);
    }

    #[test]
    fn the_ratio_and_the_usual_length_are_learned() {
        let learned = Learned::default();
        for _ in 0..200 {
            learned.saw_prompt(1_000, 1_500);
        }
        let reserved = learned.prompt(1_000);
        assert!((1_490..1_700).contains(&reserved), "{reserved}");
        assert_eq!(learned.completion(2_048), 2_048);
        for number in 0..100 {
            learned.saw_completion(if number % 20 == 0 { 5_000 } else { 300 });
        }
        let usual = learned.completion(2_048);
        assert!((300..=430).contains(&usual), "{usual}");
    }

    #[test]
    fn what_was_learned_survives_being_written_down() {
        let learned = Learned::default();
        (0..50).for_each(|_| learned.saw_completion(100));
        let text = serde_json::to_string(&learned.experience()).unwrap();
        let again = Learned::from(serde_json::from_str::<Experience>(&text).unwrap());
        assert_eq!(again.completion(9), learned.completion(9));
        let odd = Learned::from(serde_json::from_str::<Experience>("{\"lengths\":[1]}").unwrap());
        assert_eq!(odd.completion(9), 9);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_absurd(
            samples in prop::collection::vec((0u64..u64::MAX, 0u64..u64::MAX), 0..200),
            text in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let learned = Learned::default();
            for (estimated, real) in samples {
                learned.saw_prompt(estimated, real);
                learned.saw_completion(real);
            }
            let estimated = prompt([&text[..]].into_iter()).tokens;
            prop_assert!(estimated <= TOKENS_PER_REQUEST + text.len() as u64 + 63 * TOKENS_PER_PICTURE);
            prop_assert!(learned.prompt(estimated) <= estimated.max(1) * 10);
            prop_assert!(learned.completion(5) <= MOST_TOKENS);
        }
    }
}
