//! Decides what an unquoted word means: the core schema of YAML 1.2 (§10.3.2), less what JSON and
//! people would both misread: a number with a leading zero stays text, and a number that no `f64`
//! or 64-bit integer holds is refused.

use serde_json::Number;

use super::Content;

/// The meaning of the plain scalar `text`, or why it has none.
pub fn resolve(text: &str) -> Result<Content, &'static str> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Content::Null),
        "true" | "True" | "TRUE" => return Ok(Content::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Content::Bool(false)),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err("a number that is not finite");
    }
    if let Some(number) = with_radix(text) {
        return number.map(|n| Content::Number(n.into()));
    }
    if !looks_like_number(unsigned) {
        return Ok(Content::Text(text.to_owned()));
    }
    let bare = text.strip_prefix('+').unwrap_or(text);
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        let unsigned_number = bare.parse::<u64>().map(Number::from);
        let number = unsigned_number.or_else(|_| bare.parse::<i64>().map(Number::from));
        return number
            .map(Content::Number)
            .map_err(|_| "an integer beyond 64 bits");
    }
    let float = bare.parse::<f64>().ok().and_then(Number::from_f64);
    float
        .map(Content::Number)
        .ok_or("a number too large to hold")
}

/// `0x1f` and `0o17`.
fn with_radix(text: &str) -> Option<Result<u64, &'static str>> {
    let (digits, radix) = match text.split_at_checked(2)? {
        ("0x", digits) => (digits, 16),
        ("0o", digits) => (digits, 8),
        _ => return None,
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    Some(u64::from_str_radix(digits, radix).map_err(|_| "an integer beyond 64 bits"))
}

/// `[0-9]+`, `[0-9]+(\.[0-9]*)?` or `\.[0-9]+`, with an exponent if any; no superfluous zero.
fn looks_like_number(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (
            mantissa,
            Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)),
        ),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let some_digit = !whole.is_empty() || !fraction.is_empty();
    let padded = whole.len() > 1 && whole.starts_with('0');
    let exponent_is_one = exponent.is_none_or(|e| !e.is_empty() && digits(e));
    some_digit && !padded && digits(whole) && digits(fraction) && exponent_is_one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_yaml_1_2_says() {
        let json = |text: &str| match resolve(text).unwrap() {
            Content::Null => "null".to_owned(),
            Content::Bool(b) => b.to_string(),
            Content::Number(n) => n.to_string(),
            Content::Text(t) => format!("{t:?}"),
            _ => unreachable!(),
        };
        for (text, expected) in [
            ("", "null"),
            ("~", "null"),
            ("True", "true"),
            ("no", "\"no\""),
            ("on", "\"on\""),
            ("12", "12"),
            ("-3", "-3"),
            ("+3", "3"),
            ("0x1f", "31"),
            ("0o17", "15"),
            ("1.5", "1.5"),
            ("1e3", "1000.0"),
            (".5", "0.5"),
            ("007", "\"007\""),
            ("1_000", "\"1_000\""),
            ("1.2.3", "\"1.2.3\""),
            ("12:30", "\"12:30\""),
            ("-", "\"-\""),
            (".", "\".\""),
            ("e5", "\"e5\""),
            ("0x", "\"0x\""),
            ("0.7", "0.7"),
            ("é", "\"é\""),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
        for text in [
            ".inf",
            "-.INF",
            ".nan",
            "1e999",
            "99999999999999999999",
            "0xfffffffffffffffff",
        ] {
            assert!(resolve(text).is_err(), "{text}");
        }
    }
}
