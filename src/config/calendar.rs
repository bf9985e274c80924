//! Decides how dates, and hours of a day, are written. It knows no time zone and no holiday.

use std::borrow::Cow;

use jiff::civil::{Date, Time};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::text::{TextError, written_as_text};

/// What a date must look like, for a person.
pub const DATE_FORM: &str = "a date such as 2026-10-01";

/// What a span of hours must look like, for a person.
pub const HOURS_FORM: &str = "hours of one day such as 09:00-12:00; the end of the day is 24:00";

/// A date as the file has it: `2026-10-01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DateText(pub Date);

/// Hours as the file has them, `09:00-12:00`: from, up to but not at. [`Time::midnight`] as the
/// end is 24:00.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoursText(pub (Time, Time));

/// Reads a date of this form alone, of the several that ISO 8601 has.
pub fn parse_date(text: &str) -> Result<Date, TextError> {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else {
        return Err(TextError::Form);
    };
    let (year, month, day) = (digits(year, 4)?, digits(month, 2)?, digits(day, 2)?);
    let (Ok(month), Ok(day)) = (i8::try_from(month), i8::try_from(day)) else {
        return Err(TextError::Form);
    };
    Date::new(year, month, day).map_err(|_| TextError::Form)
}

/// Prints a date in the form [`parse_date`] reads.
pub fn format_date(date: Date) -> String {
    date.to_string()
}

/// Reads hours; whether the second is later is [`super::check`]'s question.
pub fn parse_hours(text: &str) -> Result<(Time, Time), TextError> {
    let (from, to) = text.split_once('-').ok_or(TextError::Form)?;
    let to = if to == "24:00" {
        Time::midnight()
    } else {
        match parse_time(to)? {
            // It would be taken for the end of the day, and is its beginning.
            midnight if midnight == Time::midnight() => return Err(TextError::Form),
            time => time,
        }
    };
    Ok((parse_time(from)?, to))
}

/// Prints hours in the form [`parse_hours`] reads.
pub fn format_hours((from, to): (Time, Time)) -> String {
    let time = |time: Time| format!("{:02}:{:02}", time.hour(), time.minute());
    let end = if to == Time::midnight() {
        "24:00".to_owned()
    } else {
        time(to)
    };
    format!("{}-{end}", time(from))
}

fn parse_time(text: &str) -> Result<Time, TextError> {
    let (hour, minute) = text.split_once(':').ok_or(TextError::Form)?;
    let (hour, minute) = (digits(hour, 2)?, digits(minute, 2)?);
    let (Ok(hour), Ok(minute)) = (i8::try_from(hour), i8::try_from(minute)) else {
        return Err(TextError::Form);
    };
    Time::new(hour, minute, 0, 0).map_err(|_| TextError::Form)
}

fn digits(text: &str, count: usize) -> Result<i16, TextError> {
    if text.len() != count || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(TextError::Form);
    }
    text.parse().map_err(|_| TextError::Form)
}

written_as_text!(
    DateText,
    "Date",
    "date",
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    DATE_FORM,
    parse_date,
    format_date
);
written_as_text!(
    HoursText,
    "Hours",
    "hours",
    "^([01][0-9]|2[0-3]):[0-5][0-9]-(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$",
    HOURS_FORM,
    parse_hours,
    format_hours
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_and_hours_have_one_form() {
        for text in ["2026-10-01", "2024-02-29", "0001-01-01"] {
            assert_eq!(parse_date(text).map(format_date).as_deref(), Ok(text));
        }
        for text in [
            "2026-1-1",
            "2026-02-29",
            "20261001",
            "2026-10-01T00:00",
            "01.10.2026",
            "+026-10-01",
            "",
        ] {
            assert_eq!(parse_date(text), Err(TextError::Form), "{text}");
        }
        for text in ["09:00-12:00", "00:00-24:00", "23:59-24:00", "12:00-09:00"] {
            assert_eq!(parse_hours(text).map(format_hours).as_deref(), Ok(text));
        }
        for text in [
            "9:00-12:00",
            "09:00",
            "09-12",
            "24:00-24:00",
            "09:00-25:00",
            "09:00-24:01",
            "22:00-00:00",
            "09:60-12:00",
            "09:00–12:00",
            "",
        ] {
            assert_eq!(parse_hours(text), Err(TextError::Form), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = parse_date(&text);
            let _ = parse_hours(&text);
        }
    }
}
