//! Decides how exact decimal numbers and amounts of money are written. Whether a price, a rate or a
//! limit makes sense is [`super::check`]'s business.
//!
//! Nothing here is computed in binary floating point: 0.003 is three thousandths. A number that
//! YAML has already read as a float is taken by its shortest decimal form, which is what was
//! written as long as it has no more than 15 digits.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::text::TextError;

/// What a decimal number must look like, for a person.
pub const DECIMAL_FORM: &str =
    "a decimal number of at most 12 digits after the point, such as 0.15, not negative";

/// What an amount of money must look like, for a person.
pub const MONEY_FORM: &str =
    "an amount of at most 9 digits after the point and an ISO 4217 code, such as 5 USD or 0.50 EUR";

/// One, in the unit of [`DecimalText`].
pub const ONE: u128 = 1_000_000_000_000;

/// Digits after the point that [`ONE`] holds.
const DECIMALS: usize = 12;

/// Digits before the point. Whatever is larger is a mistake.
const MAX_WHOLE_DIGITS: usize = 12;

/// Digits that every decimal number keeps on its way through a float (`f64::DIGITS`).
const FLOAT_DIGITS: usize = f64::DIGITS as usize;

/// Pico-units in the nano-unit that amounts of money are kept in.
const PICO_IN_NANO: u128 = 1_000;

/// A decimal number as the file has it, a number or text, in 10⁻¹²; below 10²⁴.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DecimalText(pub u128);

/// An amount of money as the file has it: `5 USD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoneyText {
    /// In 10⁻⁹ of the currency; below 10²¹.
    pub nanos: u128,
    /// Three capital letters.
    pub currency: String,
}

/// Reads digits, and a point with digits after it if there is one.
pub fn parse_decimal(text: &str) -> Result<u128, TextError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(TextError::Form);
    }
    let (whole, fraction) = (
        whole.trim_start_matches('0'),
        fraction.trim_end_matches('0'),
    );
    if whole.len() > MAX_WHOLE_DIGITS {
        return Err(TextError::TooLarge);
    }
    if fraction.len() > DECIMALS {
        return Err(TextError::TooFine);
    }
    let padded = format!("0{whole}{fraction:0<DECIMALS$}");
    padded.parse().map_err(|_| TextError::TooLarge)
}

/// Reads what YAML took for a number.
pub fn parse_decimal_number(number: &serde_json::Number) -> Result<u128, TextError> {
    match (number.as_u64(), number.as_f64()) {
        (Some(whole), _) => parse_decimal(&whole.to_string()),
        (None, Some(float)) => parse_float(float),
        (None, None) => Err(TextError::Form),
    }
}

fn parse_float(number: f64) -> Result<u128, TextError> {
    // Display has the shortest digits that mean this float, and never an exponent.
    let text = number.to_string();
    let value = parse_decimal(&text)?;
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if digits.trim_matches('0').len() > FLOAT_DIGITS {
        return Err(TextError::TooFine);
    }
    Ok(value)
}

/// Prints a decimal number in the form [`parse_decimal`] reads.
pub fn format_decimal(value: u128) -> String {
    let (whole, fraction) = (value / ONE, value % ONE);
    let fraction = format!("{fraction:0DECIMALS$}");
    match fraction.trim_end_matches('0') {
        "" => whole.to_string(),
        fraction => format!("{whole}.{fraction}"),
    }
}

/// Reads an amount and a code with one space between.
pub fn parse_money(text: &str) -> Result<MoneyText, TextError> {
    let (amount, currency) = text.split_once(' ').ok_or(TextError::Form)?;
    if !is_currency(currency) {
        return Err(TextError::Form);
    }
    let picos = parse_decimal(amount)?;
    if !picos.is_multiple_of(PICO_IN_NANO) {
        return Err(TextError::TooFine);
    }
    Ok(MoneyText {
        nanos: picos / PICO_IN_NANO,
        currency: currency.to_owned(),
    })
}

/// Prints nano-units of a currency in the form [`parse_money`] reads.
pub fn format_money(nanos: u128, currency: &str) -> String {
    let amount = format_decimal(nanos.saturating_mul(PICO_IN_NANO));
    format!("{amount} {currency}")
}

/// Has it the form of an ISO 4217 code? Which codes there are is not known here: they come and go.
pub fn is_currency(code: &str) -> bool {
    code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase())
}

/// `amount`, in any unit, times `rate`, in that of [`DecimalText`]; half a unit is rounded up.
pub fn times(amount: u128, rate: u128) -> u128 {
    amount.saturating_mul(rate).saturating_add(ONE / 2) / ONE
}

impl fmt::Display for MoneyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_money(self.nanos, &self.currency))
    }
}

impl<'de> Deserialize<'de> for DecimalText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DecimalVisitor)
    }
}

struct DecimalVisitor;

impl de::Visitor<'_> for DecimalVisitor {
    type Value = DecimalText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DECIMAL_FORM)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<DecimalText, E> {
        read(parse_decimal(&number.to_string()), DECIMAL_FORM).map(DecimalText)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<DecimalText, E> {
        read(parse_float(number), DECIMAL_FORM).map(DecimalText)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<DecimalText, E> {
        read(parse_decimal(text), DECIMAL_FORM).map(DecimalText)
    }
}

impl<'de> Deserialize<'de> for MoneyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        read(parse_money(&text), MONEY_FORM)
    }
}

fn read<T, E: de::Error>(parsed: Result<T, TextError>, form: &str) -> Result<T, E> {
    parsed.map_err(|why| E::custom(format!("{why}; expected {form}")))
}

impl Serialize for DecimalText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_decimal(self.0))
    }
}

impl JsonSchema for DecimalText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["number", "string"],
            "minimum": 0,
            "pattern": "^[0-9]+([.][0-9]+)?$",
            "x-tidegate-kind": "decimal",
        })
    }
}

impl JsonSchema for MoneyText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Money".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+([.][0-9]{1,9})? [A-Z]{3}$",
            "x-tidegate-kind": "money",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(json: &str) -> Result<u128, TextError> {
        parse_decimal_number(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_number_means_the_decimal_that_was_written() {
        for (json, picos) in [
            ("0.003", 3_000_000_000),
            ("0.1", ONE / 10),
            ("0.000000000001", 1),
            ("1e-12", 1),
            ("1.98", 1_980_000_000_000),
            ("2", 2 * ONE),
            ("1e3", 1_000 * ONE),
            ("0", 0),
            ("0.0", 0),
            ("999999999999", 999_999_999_999 * ONE),
        ] {
            assert_eq!(number(json), Ok(picos), "{json}");
        }
        for (json, why) in [
            ("-1", TextError::Form),
            ("-0.5", TextError::Form),
            ("1e12", TextError::TooLarge),
            ("1000000000000", TextError::TooLarge),
            ("1e300", TextError::TooLarge),
            ("1e-13", TextError::TooFine),
            ("123456789.12345678", TextError::TooFine),
        ] {
            assert_eq!(number(json), Err(why), "{json}");
        }
    }

    #[test]
    fn an_amount_of_money_names_its_currency() {
        for (text, nanos) in [
            ("5 USD", 5_000_000_000),
            ("0.50 EUR", 500_000_000),
            ("0.000000001 CNY", 1),
            ("0 USD", 0),
        ] {
            assert_eq!(parse_money(text).map(|money| money.nanos), Ok(nanos));
        }
        for text in [
            "5", "USD", "5USD", "5  USD", "USD 5", "$5", "5 usd", "5 US", "-5 USD", "5. USD",
            ".5 USD", "5,0 USD", "1e3 USD", " 5 USD", "5 USD ",
        ] {
            assert_eq!(parse_money(text), Err(TextError::Form), "{text}");
        }
        assert_eq!(parse_money("0.0000000001 USD"), Err(TextError::TooFine));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(value in 0..1_000_000_000_000 * ONE) {
            prop_assert_eq!(parse_decimal(&format_decimal(value)), Ok(value));
            let money = MoneyText { nanos: value / 1_000, currency: "USD".to_owned() };
            prop_assert_eq!(parse_money(&money.to_string()), Ok(money));
        }

        #[test]
        fn a_float_of_15_digits_is_the_decimal_that_was_written(
            digits in 1..1_000_000_000_000_000_u64, decimals in 3..=12_usize,
        ) {
            let padded = format!("{digits:0>16}");
            let (whole, fraction) = padded.split_at(16 - decimals);
            let text = format!("{whole}.{fraction}");
            let float: f64 = text.parse().unwrap();
            prop_assert_eq!(parse_float(float), parse_decimal(&text));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*", float in any::<f64>()) {
            let _ = parse_decimal(&text);
            let _ = parse_money(&text);
            let _ = parse_float(float);
        }
    }
}
