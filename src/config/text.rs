//! Decides how durations, sizes and points in time are written, for every file in this crate that reads or prints
//! them. It knows nothing of the keys they stand behind; ranges are [`super::check`]'s.
//!
//! A bare number is refused in both: `timeout: 30` has cost too many people a factor of a thousand.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Units of a duration, long to short, in milliseconds.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of a size in bytes. Formatting takes the first binary unit that divides evenly.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// What a duration must look like, for a person.
pub const DURATION_FORM: &str = "a duration such as 250ms, 30s, 10m or 1h30m";

/// What a size must look like, for a person.
pub const SIZE_FORM: &str = "a size such as 512B, 64KiB, 8MiB or 1GiB";

/// What a point in time must look like, for a person (RFC 3339).
pub const TIMESTAMP_FORM: &str = "a point in time such as 2026-12-31T23:59:59Z";

/// Why a text is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("has no unit")]
    NoUnit,
    #[error("is not of that form")]
    Form,
    #[error("is too large")]
    TooLarge,
    #[error("has more digits than are kept")]
    TooFine,
}

/// A duration as the file has it: `250ms`, `30s`, `10m`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationText(pub Duration);

/// A size as the file has it: `512B`, `64KiB`, `8MiB`, `1GiB`, or decimal `kB`, `MB`, `GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeText(pub u64);

/// A point in time as the file has it: RFC 3339 with an offset or `Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimestampText(pub jiff::Timestamp);

/// Reads a duration: whole numbers with `h`, `m`, `s` or `ms`, each unit once, long before short.
pub fn parse_duration(text: &str) -> Result<Duration, TextError> {
    let mut rest = text;
    let mut units = DURATION_UNITS.iter();
    let mut total: u64 = 0;
    loop {
        let (number, unit, after) = number_and_unit(rest)?;
        let (_, factor) = units
            .find(|(name, _)| *name == unit)
            .ok_or(TextError::Form)?;
        let part = number.checked_mul(*factor).ok_or(TextError::TooLarge)?;
        total = total.checked_add(part).ok_or(TextError::TooLarge)?;
        if after.is_empty() {
            return Ok(Duration::from_millis(total));
        }
        rest = after;
    }
}

/// Reads a size: one whole number and one unit.
pub fn parse_size(text: &str) -> Result<u64, TextError> {
    let (number, unit, after) = number_and_unit(text)?;
    if !after.is_empty() {
        return Err(TextError::Form);
    }
    let (_, factor) = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(TextError::Form)?;
    number.checked_mul(*factor).ok_or(TextError::TooLarge)
}

/// `30sabc` to `(30, "sabc" up to the next digit, the rest)`.
fn number_and_unit(text: &str) -> Result<(u64, &str, &str), TextError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(digits).ok_or(TextError::Form)?;
    if number.is_empty() {
        return Err(TextError::Form);
    }
    if rest.is_empty() {
        return Err(TextError::NoUnit);
    }
    let letters = rest.bytes().take_while(|b| !b.is_ascii_digit()).count();
    let (unit, after) = rest.split_at_checked(letters).ok_or(TextError::Form)?;
    let number = number.parse().map_err(|_| TextError::TooLarge)?;
    Ok((number, unit, after))
}

/// Prints a duration in the form [`parse_duration`] reads, to the millisecond: `1h30m`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, factor) in DURATION_UNITS {
        let count = rest / factor;
        rest %= factor;
        if count > 0 {
            text.push_str(&count.to_string());
            text.push_str(unit);
        }
    }
    text
}

/// Prints a size in the form [`parse_size`] reads: `8MiB`, `1000B`.
pub fn format_size(bytes: u64) -> String {
    let binary = SIZE_UNITS.iter().find(|(unit, factor)| {
        unit.ends_with("iB") && bytes >= *factor && bytes.is_multiple_of(*factor)
    });
    match binary {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// Reads a point in time. Without an offset nobody knows which one is meant, so it is refused.
pub fn parse_timestamp(text: &str) -> Result<jiff::Timestamp, TextError> {
    text.parse().map_err(|_| TextError::Form)
}

/// Prints a point in time in the form [`parse_timestamp`] reads.
pub fn format_timestamp(time: jiff::Timestamp) -> String {
    time.to_string()
}

macro_rules! written_as_text {
    ($type:ident, $name:literal, $kind:literal, $pattern:literal, $form:ident, $parse:path, $format:path) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&$format(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                $parse(&text).map(Self).map_err(|why| de::Error::custom(format!("{why}; expected {}", $form)))
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "x-tidegate-kind": $kind })
            }
        }
    };
}
pub(super) use written_as_text;

written_as_text!(
    DurationText,
    "Duration",
    "duration",
    "^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$",
    DURATION_FORM,
    parse_duration,
    format_duration
);
written_as_text!(
    SizeText,
    "Size",
    "size",
    "^[0-9]+(B|KiB|MiB|GiB|kB|MB|GB)$",
    SIZE_FORM,
    parse_size,
    format_size
);
written_as_text!(
    TimestampText,
    "Timestamp",
    "timestamp",
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?([Zz]|[+-][0-9]{2}:[0-9]{2})$",
    TIMESTAMP_FORM,
    parse_timestamp,
    format_timestamp
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_with_units_only() {
        for (text, millis) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        assert_eq!(parse_duration("30"), Err(TextError::NoUnit));
        for text in [
            "", "s", "1.5s", "-1s", "30m1h", "1s1s", "1 s", "1d", "30S", "30s ", "３0s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_duration("18446744073709551615h"),
            Err(TextError::TooLarge)
        );
    }

    #[test]
    fn sizes_are_read_with_units_only() {
        for (text, bytes) in [
            ("512B", 512),
            ("64KiB", 65_536),
            ("8MiB", 8 << 20),
            ("1GiB", 1 << 30),
            ("1kB", 1_000),
            ("2MB", 2_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "1",
            "MiB",
            "1.5MiB",
            "8MiB1B",
            "1KB",
            "1 MiB",
            "99999999999GiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_point_in_time_needs_an_offset() {
        let end = parse_timestamp("2026-12-31T23:59:59Z").unwrap();
        assert_eq!(parse_timestamp("2027-01-01T00:59:59+01:00"), Ok(end));
        assert_eq!(parse_timestamp(&format_timestamp(end)), Ok(end));
        for text in [
            "2026-12-31",
            "2026-12-31T23:59:59",
            "1798761599",
            "",
            "tomorrow",
        ] {
            assert!(parse_timestamp(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(number in 0..u64::MAX / 4) {
            prop_assert_eq!(parse_size(&format_size(number)), Ok(number));
            let duration = Duration::from_millis(number);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }
    }
}
