//! Decides whether the claims of a token whose signature is good hold under an issuer's rules
//! (RFC 7519 §4.1), and answers for claims by name. It must not know keys or signatures.

use serde_json::{Map, Value};

use super::{Algorithm, TokenError};

/// The end of the year 9999. A date beyond it is a mistake (milliseconds, mostly) or an attack.
const MAX_DATE: i64 = 253_402_300_799;

/// What a token of one issuer must satisfy.
#[derive(Debug, Clone)]
pub struct Rules {
    /// `iss`, byte for byte.
    pub issuer: String,
    /// `aud` must name one of these. If there are none, a token that has an `aud` is refused: it
    /// is not meant for us (RFC 7519 §4.1.3).
    pub audiences: Vec<String>,
    /// The one algorithm, whatever a token says.
    pub algorithm: Algorithm,
    /// How far the issuer's clock may be from ours, in seconds; added at both ends.
    pub leeway_seconds: u64,
    /// Longest time from `iat` (without one: `nbf`) to `exp`, in seconds, leeway not counted. If
    /// set, a token that has neither is refused.
    pub max_lifetime_seconds: Option<u64>,
    /// Claims that must be there, by the paths of [`Claims::get`], and the value they must have.
    /// An array has it if an item is it; a `scope` or `scp` in one string (RFC 8693 §4.2) has it
    /// if a word is it; any other claim must be equal.
    pub required: Vec<(String, Option<Value>)>,
}

/// The claims of a token that passed its rules.
#[derive(Clone, PartialEq)]
pub struct Claims {
    /// The first second, in Unix time, at which the token is refused: `exp` and the leeway.
    pub expires: i64,
    claims: Value,
}

impl Claims {
    /// A claim, unless it is null. `path` is, in this order,
    /// - a claim's exact name (`https://example.com/tenant`),
    /// - beginning with `/`, a JSON pointer (RFC 6901: `/resource_access/my.client/roles`),
    /// - names joined by dots, each but the last that of an object (`realm_access.roles`); what is
    ///   left of the path may itself be a name with dots.
    pub fn get(&self, path: &str) -> Option<&Value> {
        find(&self.claims, path)
    }

    /// A claim that is a string.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// The strings of a claim that is an array, or the words of one that is a string. None if it
    /// is absent or anything else; items that are no strings are passed over.
    pub fn texts(&self, path: &str) -> Vec<&str> {
        match self.get(path) {
            Some(Value::String(words)) => words.split_ascii_whitespace().collect(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Checks the payload of a token whose signature is good at `now` (Unix seconds).
///
/// # Errors
/// The first [`TokenError`], every one of them [`proven`](TokenError::proven).
pub fn check(payload: Map<String, Value>, rules: &Rules, now: i64) -> Result<Claims, TokenError> {
    check_issuer(&payload, &rules.issuer)?;
    check_audience(&payload, &rules.audiences)?;
    let expires = check_dates(&payload, rules, now)?;
    let claims = Claims {
        expires,
        claims: Value::Object(payload),
    };
    for (path, wanted) in &rules.required {
        let Some(found) = claims.get(path) else {
            return Err(TokenError::MissingClaim(path.clone()));
        };
        if let Some(wanted) = wanted
            && !has(path, found, wanted)
        {
            return Err(TokenError::WrongClaim(path.clone()));
        }
    }
    Ok(claims)
}

fn check_issuer(payload: &Map<String, Value>, issuer: &str) -> Result<(), TokenError> {
    match payload.get("iss") {
        None => Err(missing("iss")),
        Some(Value::String(name)) if name == issuer => Ok(()),
        Some(Value::String(_)) => Err(TokenError::WrongIssuer),
        Some(_) => Err(TokenError::MalformedClaim("iss")),
    }
}

/// RFC 7519 §4.1.3: one string, or an array of strings.
fn check_audience(payload: &Map<String, Value>, ours: &[String]) -> Result<(), TokenError> {
    let named = match payload.get("aud") {
        None if ours.is_empty() => return Ok(()),
        None => return Err(missing("aud")),
        Some(Value::Array(items)) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    if !named.iter().all(Value::is_string) {
        return Err(TokenError::MalformedClaim("aud"));
    }
    let shared = named
        .iter()
        .filter_map(Value::as_str)
        .any(|name| ours.iter().any(|own| own == name));
    if shared {
        Ok(())
    } else {
        Err(TokenError::WrongAudience)
    }
}

/// Gives the first second at which the token is too old.
fn check_dates(payload: &Map<String, Value>, rules: &Rules, now: i64) -> Result<i64, TokenError> {
    let leeway = i64::try_from(rules.leeway_seconds).unwrap_or(i64::MAX);
    let ends = date(payload, "exp")?.ok_or_else(|| missing("exp"))?;
    let begins = date(payload, "nbf")?;
    let issued = date(payload, "iat")?;

    if let Some(longest) = rules.max_lifetime_seconds {
        let start = issued.or(begins).ok_or_else(|| missing("iat"))?;
        let longest = i64::try_from(longest).unwrap_or(i64::MAX);
        if ends.latest.saturating_sub(start.earliest) > longest {
            return Err(TokenError::LifetimeTooLong);
        }
    }
    let expires = ends.earliest.saturating_add(leeway);
    if now >= expires {
        return Err(TokenError::Expired);
    }
    let too_early = |start: Date| start.latest > now.saturating_add(leeway);
    if begins.is_some_and(too_early) || issued.is_some_and(too_early) {
        return Err(TokenError::NotYetValid);
    }
    Ok(expires)
}

/// A `NumericDate` (RFC 7519 §2) in whole seconds. A fraction counts against the caller: rounded
/// down where a token ends and up where it begins.
#[derive(Clone, Copy)]
struct Date {
    earliest: i64,
    latest: i64,
}

fn date(payload: &Map<String, Value>, name: &'static str) -> Result<Option<Date>, TokenError> {
    let number = match payload.get(name) {
        None => return Ok(None),
        Some(Value::Number(number)) => number,
        Some(_) => return Err(TokenError::MalformedClaim(name)),
    };
    let date = if let Some(whole) = number.as_i64() {
        Date {
            earliest: whole,
            latest: whole,
        }
    } else {
        // The casts saturate, and what saturates is out of range.
        let seconds = number.as_f64().unwrap_or(f64::INFINITY);
        Date {
            earliest: seconds.floor() as i64,
            latest: seconds.ceil() as i64,
        }
    };
    if date.earliest < 0 || date.latest > MAX_DATE {
        return Err(TokenError::MalformedClaim(name));
    }
    Ok(Some(date))
}

fn missing(name: &str) -> TokenError {
    TokenError::MissingClaim(name.to_owned())
}

/// Walks once along `path`: what is left of it is looked for as a whole name at each level.
fn find<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    let whole = claims.get(path);
    if whole.is_none() && path.starts_with('/') {
        return claims.pointer(path).filter(|value| !value.is_null());
    }
    let (mut inside, mut left) = (claims, path);
    loop {
        if let Some(found) = inside.get(left) {
            return Some(found).filter(|value| !value.is_null());
        }
        let (name, rest) = left.split_once('.')?;
        inside = inside.get(name)?;
        left = rest;
    }
}

fn has(path: &str, found: &Value, wanted: &Value) -> bool {
    if found == wanted {
        return true;
    }
    let last = path.rsplit(['.', '/']).next();
    match (found, wanted) {
        (Value::Array(items), _) => items.contains(wanted),
        (Value::String(words), Value::String(word)) if matches!(last, Some("scope" | "scp")) => {
            words.split_ascii_whitespace().any(|each| each == word)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn rules() -> Rules {
        Rules {
            issuer: "i".into(),
            audiences: vec!["a".into()],
            algorithm: Algorithm::Hs256,
            leeway_seconds: 0,
            max_lifetime_seconds: None,
            required: Vec::new(),
        }
    }

    fn checked(payload: Value, rules: &Rules, now: i64) -> Result<Claims, TokenError> {
        let Value::Object(payload) = payload else {
            panic!("no object");
        };
        check(payload, rules, now)
    }

    fn with(extra: Value) -> Claims {
        let mut payload = json!({"iss": "i", "aud": "a", "exp": 10});
        for (name, value) in extra.as_object().unwrap() {
            payload[name] = value.clone();
        }
        checked(payload, &rules(), 0).unwrap()
    }

    #[test]
    fn a_claim_is_found_by_name_pointer_or_dotted_path() {
        let claims = with(json!({
            "tenant": "t",
            "https://example.com/tenant": "url",
            "a.b": "exact",
            "a": {"b": "nested", "c": {"d.e": "mixed", "f": [1, "x", null, "y"]}},
            "/p": "slash",
            "nothing": null,
            "scope": " read  write ",
        }));
        assert_eq!(claims.text("tenant"), Some("t"));
        assert_eq!(claims.text("https://example.com/tenant"), Some("url"));
        assert_eq!(claims.text("a.b"), Some("exact"));
        assert_eq!(claims.text("/a/b"), Some("nested"));
        assert_eq!(claims.text("a.c.d.e"), Some("mixed"));
        assert_eq!(claims.text("/a/c/d.e"), Some("mixed"));
        assert_eq!(claims.text("/p"), Some("slash"));
        assert_eq!(claims.texts("a.c.f"), ["x", "y"]);
        assert_eq!(claims.texts("scope"), ["read", "write"]);
        assert_eq!(claims.texts("tenant"), ["t"]);
        for absent in [
            "", ".", "a.", ".a", "a.x", "a.c.f.0", "tenant.x", "nothing", "/", "/q", "exp.1",
        ] {
            assert_eq!(claims.text(absent), None, "{absent}");
            assert!(claims.texts(absent).is_empty(), "{absent}");
        }
        assert_eq!(claims.text("exp"), None);
    }

    #[test]
    fn claims_do_not_print_their_values() {
        let printed = format!("{:?}", with(json!({"tenant": "secret"})));
        assert_eq!(printed, "Claims { expires: 10, .. }");
    }

    #[test]
    fn required_claims_are_present_and_have_their_value() {
        let extra = json!({"s": "ab cd", "n": 1, "l": ["x", 2], "scope": "ab cd", "o": {"scp": "ab", "k": 1}, "z": null});
        let cases: [(&str, Option<Value>, Option<&str>); 17] = [
            ("s", None, None),
            ("s", Some(json!("ab cd")), None),
            ("s", Some(json!("ab")), Some("wrong_claim")),
            ("scope", Some(json!("ab")), None),
            ("scope", Some(json!("ab cd")), None),
            ("scope", Some(json!("b c")), Some("wrong_claim")),
            ("o.scp", Some(json!("ab")), None),
            ("/o/scp", Some(json!("b")), Some("wrong_claim")),
            ("n", Some(json!(1)), None),
            ("n", Some(json!("1")), Some("wrong_claim")),
            ("l", Some(json!("x")), None),
            ("l", Some(json!(2)), None),
            ("l", Some(json!(["x", 2])), None),
            ("l", Some(json!(["x"])), Some("wrong_claim")),
            ("o", Some(json!({"k": 1, "scp": "ab"})), None),
            ("z", None, Some("missing_claim")),
            ("absent", None, Some("missing_claim")),
        ];
        for (path, wanted, reason) in cases {
            let mut payload = json!({"iss": "i", "aud": "a", "exp": 10});
            for (name, value) in extra.as_object().unwrap() {
                payload[name] = value.clone();
            }
            let mut rules = rules();
            rules.required = vec![(path.to_owned(), wanted.clone())];
            let found = checked(payload, &rules, 0).map_err(|error| error.as_str());
            assert_eq!(found.err(), reason, "{path} {wanted:?}");
        }
    }

    #[test]
    fn dates_that_are_absurd_are_refused_without_overflow() {
        for name in ["exp", "nbf", "iat"] {
            for bad in [
                json!(-1),
                json!(-0.5),
                json!(i64::MIN),
                json!(i64::MAX),
                json!(u64::MAX),
                json!(1e300),
                json!(-1e300),
                json!(MAX_DATE + 1),
                json!(253_402_300_799.5),
                json!("10"),
                json!(null),
                json!([10]),
                json!({}),
                json!(true),
            ] {
                let mut payload = json!({"iss": "i", "aud": "a", "exp": 10});
                payload[name] = bad.clone();
                let refused = checked(payload, &rules(), 0).err();
                assert_eq!(
                    refused,
                    Some(TokenError::MalformedClaim(name)),
                    "{name} {bad}"
                );
            }
        }
        let forever = json!({"iss": "i", "aud": "a", "exp": MAX_DATE});
        let mut wide = rules();
        wide.leeway_seconds = u64::MAX;
        assert_eq!(checked(forever, &wide, i64::MIN).unwrap().expires, i64::MAX);
    }

    #[test]
    fn a_fraction_counts_against_the_caller() {
        let mut rules = rules();
        rules.max_lifetime_seconds = Some(10);
        for (iat, exp, now, reason) in [
            (json!(0), json!(10), 9, None),
            (json!(0), json!(10.5), 9, Some("lifetime_too_long")),
            (json!(0.5), json!(10.5), 9, Some("lifetime_too_long")),
            (json!(1.5), json!(10.5), 9, None),
            (json!(1.5), json!(10.5), 10, Some("expired")),
            (json!(1.5), json!(10.5), 1, Some("not_yet_valid")),
            (json!(1.0), json!(1e1), 1, None),
        ] {
            let payload = json!({"iss": "i", "aud": "a", "exp": exp, "iat": iat});
            let found = checked(payload, &rules, now).map_err(|error| error.as_str());
            assert_eq!(found.err(), reason, "{iat} {exp} {now}");
        }
    }

    /// Half seconds, so that the reference needs no floating point.
    #[derive(Debug, Clone, Copy)]
    struct Halves(i64);

    impl Halves {
        fn json(self) -> Value {
            if self.0 % 2 == 0 {
                json!(self.0 / 2)
            } else {
                json!(self.0 as f64 / 2.0)
            }
        }
        fn down(self) -> i64 {
            (0..).find(|second| (second + 1) * 2 > self.0).unwrap()
        }
        fn up(self) -> i64 {
            (0..).find(|second| second * 2 >= self.0).unwrap()
        }
    }

    fn halves() -> impl Strategy<Value = Halves> {
        (0i64..80).prop_map(Halves)
    }

    proptest! {
        #[test]
        fn windows_agree_with_a_reference_that_tries_each_second(
            exp in halves(), nbf in proptest::option::of(halves()), iat in proptest::option::of(halves()),
            leeway in 0u64..5, longest in proptest::option::of(0u64..40),
        ) {
            let mut payload = json!({"iss": "i", "aud": "a", "exp": exp.json()});
            for (name, value) in [("nbf", nbf), ("iat", iat)] {
                if let Some(value) = value {
                    payload[name] = value.json();
                }
            }
            let mut rules = rules();
            rules.leeway_seconds = leeway;
            rules.max_lifetime_seconds = longest;
            for now in 0..60i64 {
                // Reads as the rules do: at some second within the leeway around now, all hold.
                let near = (now - leeway as i64)..=(now + leeway as i64);
                let alive = near.clone().any(|second| second < exp.down());
                let begun = [nbf, iat].into_iter().flatten().all(|start| near.clone().any(|second| second >= start.up()));
                let short = longest.is_none_or(|longest| match iat.or(nbf) {
                    None => false,
                    Some(start) => exp.up() - start.down() <= longest as i64,
                });
                let found = checked(payload.clone(), &rules, now);
                prop_assert_eq!(found.is_ok(), alive && begun && short, "at {}", now);
                match found {
                    Ok(claims) => prop_assert!(now < claims.expires),
                    Err(error) => prop_assert!(error.proven()),
                }
            }
        }

        #[test]
        fn no_path_panics(path in "[a-c./]{0,12}") {
            let claims = with(json!({"a": {"b": {"c": ["a"]}}, "b.c": {"a": 1}}));
            let _ = claims.texts(&path);
        }
    }
}
