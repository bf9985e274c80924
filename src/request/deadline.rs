//! How long does the client want to wait at most? Read from a header of ours; what becomes of it is
//! decided with the other deadlines.

use std::time::Duration;

use http::header::HeaderMap;

use super::refusal::{Code, Refusal};

/// The header in which a client says so.
pub const HEADER: &str = "x-tidegate-timeout";

/// Less would refuse what is served.
const LEAST: Duration = Duration::from_millis(100);
/// No deadline is longer.
const MOST: Duration = Duration::from_secs(24 * 3_600);
/// No number that is meant needs more; also leading zeros count.
const MOST_DIGITS: usize = 9;

/// The client's deadline for its request, 100 ms to 24 h; `None` if it names none.
///
/// # Errors
/// 400 for anything but one duration of 100 ms or more: `30s`, `1500ms`, `2m`, or plain seconds as
/// `30` and `1.5`. More than 24 h is taken for 24 h.
pub fn told(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let time = value.to_str().ok().and_then(duration);
    match time.filter(|time| *time >= LEAST && values.next().is_none()) {
        Some(time) => Ok(Some(time.min(MOST))),
        None => Err(Refusal::new(
            Code::InvalidRequest,
            "The header x-tidegate-timeout takes one duration of at least 100ms, such as 30s, \
             1500ms, 2m, or 30 for seconds.",
        )),
    }
}

fn duration(text: &str) -> Option<Duration> {
    if let Some(millis) = text.strip_suffix("ms") {
        return number(millis).map(Duration::from_millis);
    }
    if let Some(seconds) = text.strip_suffix('s') {
        return number(seconds).map(Duration::from_secs);
    }
    if let Some(minutes) = text.strip_suffix('m') {
        return number(minutes).map(|minutes| Duration::from_secs(minutes * 60));
    }
    match text.split_once('.') {
        None => number(text).map(Duration::from_secs),
        Some((seconds, fraction)) => {
            let digits = u32::try_from(fraction.len()).ok()?;
            let fraction = number(fraction)?;
            let nanos = fraction * 1_000_000_000 / 10u64.checked_pow(digits)?;
            Some(Duration::from_secs(number(seconds)?) + Duration::from_nanos(nanos))
        }
    }
}

/// Digits and nothing else: no sign, no space.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let short = text.len() <= MOST_DIGITS;
    (digits && short).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(values: &[&[u8]]) -> Result<Option<Duration>, Refusal> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        told(&headers)
    }

    #[test]
    fn a_duration_is_read_with_its_unit_or_as_seconds() {
        for (text, millis) in [
            ("30s", 30_000),
            ("1500ms", 1_500),
            ("2m", 120_000),
            ("30", 30_000),
            ("1.5", 1_500),
            ("0.1", 100),
            ("0.25", 250),
            ("100ms", 100),
            ("007", 7_000),
            // No deadline is longer than a day.
            ("1440m", 86_400_000),
            ("999999999m", 86_400_000),
            ("86400.000000001", 86_400_000),
        ] {
            let expected = Some(Duration::from_millis(millis));
            assert_eq!(read(&[text.as_bytes()]), Ok(expected), "{text}");
        }
        assert_eq!(read(&[]), Ok(None));
    }

    #[test]
    fn anything_else_is_refused_by_the_headers_name() {
        for text in [
            "",
            " ",
            "0",
            "0s",
            "99ms",
            "0.099",
            "-1",
            "+1",
            "1e3",
            "1h",
            "1 s",
            "s",
            "ms",
            "m",
            "1.",
            ".5",
            "1.5s",
            "1,5",
            "1.5.0",
            "NaN",
            "inf",
            "30S",
            "0x10",
            "1000000000",
            "1.0000000000",
            "30s, 5s",
            "３０",
        ] {
            let refusal = read(&[text.as_bytes()]).unwrap_err();
            assert_eq!(refusal.code, Code::InvalidRequest, "{text}");
            assert!(refusal.message.contains(HEADER), "{text}");
        }
        assert!(read(&[b"30\xff"]).is_err());
    }

    #[test]
    fn two_deadlines_are_refused_even_if_they_agree() {
        assert!(read(&[b"30s", b"30s"]).is_err());
        assert!(read(&[b"30s", b""]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_within_bounds(text in "[0-9.ms]{0,14}|.{0,6}") {
            let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else {
                return Ok(());
            };
            let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), value)]);
            if let Ok(Some(time)) = told(&headers) {
                prop_assert!(time >= LEAST && time <= MOST);
            }
        }
    }
}
