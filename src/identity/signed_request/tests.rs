use proptest::prelude::*;

use super::*;

const SECRET: &[u8] = b"a-secret-for-examples-and-nothing-else";
const NONCE: &str = "0123456789abcdef";
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn header() -> String {
    format!(
        "TG-HMAC-SHA256 id=s1, timestamp=1767225600, nonce={NONCE}, digest={ZEROS}, signature={ZEROS}"
    )
}

fn well_formed(header: &str) -> bool {
    parse(header).is_ok()
}

#[test]
fn a_header_is_taken_apart() {
    let header = header();
    let signed = parse(&header).unwrap();
    assert_eq!((signed.key_id, signed.nonce), ("s1", NONCE));
    assert_eq!((signed.timestamp, signed.digest), (1_767_225_600, [0; 32]));
}

#[test]
fn spaces_order_and_the_schemes_case_do_not_matter() {
    let header = header();
    let (_, list) = header.split_once(' ').unwrap();
    let mut parameters: Vec<&str> = list.split(", ").collect();
    for separator in [",", ", ", " ,", "  ,   "] {
        parameters.rotate_left(1);
        let list = parameters.join(separator);
        for scheme in ["TG-HMAC-SHA256 ", "tg-hmac-sha256 ", "Tg-Hmac-Sha256   "] {
            let other = format!("{scheme}{list}  ");
            assert_eq!(parse(&other), parse(&header), "{other}");
        }
    }
}

#[test]
fn only_the_scheme_itself_matches() {
    for yes in ["TG-HMAC-SHA256", "tg-hmac-sha256 ", "TG-HMAC-SHA256 id=s1"] {
        assert!(scheme_matches(yes), "{yes}");
    }
    for no in [
        "",
        "Bearer x",
        "TG-HMAC-SHA25",
        "TG-HMAC-SHA2567 id=s1",
        "TG-HMAC-SHA256,id=s1",
        " TG-HMAC-SHA256 ",
        "ÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄ",
    ] {
        assert!(!scheme_matches(no), "{no}");
    }
}

#[test]
fn whatever_departs_from_the_form_is_malformed() {
    let good = header();
    let long = "a".repeat(65);
    let changed = [
        ("TG-HMAC-SHA256 ", "Bearer "),
        ("id=s1", "id="),
        ("id=s1", "id"),
        ("id=s1", "id=s 1"),
        ("id=s1", "id=\"s1\""),
        ("id=s1", "id=ß1"),
        ("id=s1", "ID=s1"),
        ("id=s1", "id =s1"),
        ("id=s1", "id= s1"),
        ("id=s1", &format!("id={long}")),
        ("id=s1", "id=s1, id=s1"),
        ("id=s1", "id=s1, id=s2"),
        ("id=s1, ", ""),
        ("id=s1, ", "id=s1,, "),
        ("id=s1, ", "id=s1; "),
        ("id=s1, ", "id=s1,\t"),
        ("id=s1, ", "id=s1, realm=x, "),
        ("timestamp=1767225600", "timestamp="),
        ("timestamp=1767225600", "timestamp=-1"),
        ("timestamp=1767225600", "timestamp=+1"),
        ("timestamp=1767225600", "timestamp=01767225600"),
        ("timestamp=1767225600", "timestamp=00"),
        ("timestamp=1767225600", "timestamp=1767225600.5"),
        ("timestamp=1767225600", "timestamp=1e9"),
        ("timestamp=1767225600", "timestamp=1767225600000"),
        ("timestamp=1767225600", "timestamp=99999999999999999999"),
        ("timestamp=1767225600", "timestamp=١"),
        (NONCE, "0123456789abcde"),
        (NONCE, "0123456789abcde="),
        (NONCE, "0123456789abcde.f"),
        (NONCE, &long),
        ("digest=0", "digest=A"),
        ("digest=0", "digest=g"),
        ("digest=0", "digest="),
        ("digest=0", "digest=00"),
        ("signature=0", "signature="),
        ("signature=0", "signature=00"),
        ("signature=0", "signature=F"),
    ];
    assert!(well_formed(&good));
    for (old, new) in changed {
        let bad = good.replacen(old, new, 1);
        assert_ne!(bad, good, "{old}");
        assert_eq!(parse(&bad), Err(SignatureError::Malformed), "{bad}");
    }
    for bad in [
        format!("{good},"),
        format!("{good}, "),
        format!("{good}\n"),
        format!("{good}x"),
    ] {
        assert_eq!(parse(&bad), Err(SignatureError::Malformed), "{bad}");
    }
    for bad in [
        "",
        "TG-HMAC-SHA256",
        "TG-HMAC-SHA256 ",
        "TG-HMAC-SHA256 ,,,,",
    ] {
        assert_eq!(parse(bad), Err(SignatureError::Malformed), "{bad}");
    }
}

#[test]
fn the_longest_header_fits_and_padding_has_an_end() {
    let longest = sign(
        &"k".repeat(MAX_KEY_ID),
        SECRET,
        TARGET,
        999_999_999_999,
        &"n".repeat(*NONCE_LENGTH.end()),
        &[255; 32],
    )
    .unwrap();
    assert_eq!(longest.len(), 327);
    assert!(well_formed(&longest));
    assert!(well_formed(&format!("{longest:MAX_HEADER$}")));
    assert!(!well_formed(&format!("{longest:0$}", MAX_HEADER + 1)));
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let sign = |id, timestamp, nonce| super::sign(id, SECRET, TARGET, timestamp, nonce, &[0; 32]);
    assert!(sign("s1", 0, NONCE).is_ok());
    for (id, timestamp, nonce) in [
        ("", 0, NONCE),
        ("a,b", 0, NONCE),
        ("s1", -1, NONCE),
        ("s1", 1_000_000_000_000, NONCE),
        ("s1", i64::MIN, NONCE),
        ("s1", 0, "short"),
        ("s1", 0, "with a line\nfeed in it"),
    ] {
        assert_eq!(sign(id, timestamp, nonce), Err(SignatureError::Malformed));
    }
    assert!(is_nonce(&nonce(&[0; 16])) && is_nonce(&nonce(&[255; 16])));
}

#[test]
fn both_ends_of_the_window_are_inside() {
    let window = Window::default();
    let now = 1_000_000;
    assert_eq!(window.within(now, now), Ok(()));
    assert_eq!(window.within(now - 300, now), Ok(()));
    assert_eq!(window.within(now - 301, now), Err(SignatureError::Stale));
    assert_eq!(window.within(now + 30, now), Ok(()));
    assert_eq!(window.within(now + 31, now), Err(SignatureError::Future));
}

#[test]
fn the_window_does_not_overflow() {
    let widest = Window {
        past: u32::MAX,
        future: u32::MAX,
    };
    for window in [Window::default(), widest] {
        assert_eq!(
            window.within(i64::MIN, i64::MAX),
            Err(SignatureError::Stale)
        );
        assert_eq!(
            window.within(i64::MAX, i64::MIN),
            Err(SignatureError::Future)
        );
        assert_eq!(window.within(i64::MIN, i64::MIN), Ok(()));
        assert_eq!(window.within(i64::MAX, i64::MAX), Ok(()));
    }
}

#[test]
fn a_signed_request_never_prints_what_could_be_sent_again() {
    let header = sign("s1", SECRET, TARGET, 1, NONCE, &[0; 32]).unwrap();
    let shown = format!("{:?}", parse(&header).unwrap());
    assert_eq!(shown, "Signed { key_id: \"s1\", timestamp: 1, .. }");
}

#[test]
fn every_reason_has_its_own_word() {
    let words: std::collections::HashSet<_> = SignatureError::ALL
        .iter()
        .map(|reason| reason.as_str())
        .collect();
    assert_eq!(words.len(), SignatureError::ALL.len());
}

const TARGET: Target<'_> = Target {
    method: "POST",
    path: "/v1/files",
    query: "",
};

/// Another text of the same kind of characters.
fn alter(text: &str, at: &prop::sample::Index, by: u8) -> String {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.is_empty() {
        return "A".to_owned();
    }
    let at = at.index(bytes.len());
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let place = letters
        .iter()
        .position(|letter| *letter == bytes[at])
        .unwrap_or(0);
    bytes[at] = letters[(place + 1 + usize::from(by) % 25) % 26];
    String::from_utf8(bytes).unwrap()
}

prop_compose! {
    fn request()(
        method in "[A-Z]{1,7}",
        path in "/[!-~]{0,40}",
        query in "[!-~]{0,40}",
        timestamp in 0i64..1_000_000_000_000,
        nonce in "[A-Za-z0-9_-]{16,64}",
        digest: [u8; 32],
        secret in prop::collection::vec(any::<u8>(), 1..100),
    ) -> (String, String, String, i64, String, [u8; 32], Vec<u8>) {
        (method, path, query, timestamp, nonce, digest, secret)
    }
}

proptest! {
    #[test]
    fn what_is_signed_is_read_back_and_found_good(
        (method, path, query, timestamp, nonce, digest, secret) in request(), id in "[A-Za-z0-9._-]{1,64}"
    ) {
        let target = Target { method: &method, path: &path, query: &query };
        let header = sign(&id, &secret, target, timestamp, &nonce, &digest).unwrap();
        prop_assert!(scheme_matches(&header));
        let signed = parse(&header).unwrap();
        prop_assert_eq!(signed.key_id, id.as_str());
        prop_assert_eq!(signed.timestamp, timestamp);
        prop_assert_eq!(signed.nonce, nonce.as_str());
        prop_assert_eq!(signed.digest, digest);
        prop_assert!(signed.verify(&secret, target));
        // And from what was read the same header is made.
        let again = sign(signed.key_id, &secret, target, signed.timestamp, signed.nonce, &signed.digest);
        prop_assert_eq!(again, Ok(header.clone()));
    }

    #[test]
    fn any_change_breaks_the_signature(
        (method, path, query, timestamp, nonce, digest, secret) in request(),
        at: prop::sample::Index, by in 1u8..,
    ) {
        let target = Target { method: &method, path: &path, query: &query };
        let header = sign("s1", &secret, target, timestamp, &nonce, &digest).unwrap();
        let signed = parse(&header).unwrap();

        let altered = |part: &str| alter(part, &at, by);
        let for_target = |target| signed.verify(&secret, target);
        let (other_method, other_path, other_query) = (altered(&method), altered(&path), altered(&query));
        let methods = for_target(Target { method: &other_method, ..target });
        let paths = for_target(Target { path: &other_path, ..target });
        let queries = for_target(Target { query: &other_query, ..target });
        prop_assert!(!methods && !paths && !queries);

        let flipped = |mut bytes: [u8; 32]| { bytes[at.index(32)] ^= by; bytes };
        let other_nonce = altered(&nonce);
        for other in [
            Signed { nonce: &other_nonce, ..signed },
            Signed { timestamp: timestamp ^ i64::from(by), ..signed },
            Signed { digest: flipped(digest), ..signed },
            Signed { signature: flipped(signed.signature), ..signed },
        ] {
            prop_assert!(!other.verify(&secret, target));
        }
        let mut other = secret.clone();
        other[at.index(secret.len())] ^= by;
        prop_assert!(!signed.verify(&other, target));
    }

    #[test]
    fn moving_text_between_path_and_query_breaks_the_signature(text in "/[!-~]{1,40}", cut: prop::sample::Index, other: prop::sample::Index) {
        let (cut, other) = (cut.index(text.len()), other.index(text.len()));
        let target = |at| { let (path, query) = text.split_at(at); Target { path, query, ..TARGET } };
        let header = sign("s1", SECRET, target(cut), 1, NONCE, &[0; 32]).unwrap();
        prop_assert_eq!(parse(&header).unwrap().verify(SECRET, target(other)), cut == other);
    }

    #[test]
    fn a_header_with_one_byte_changed_is_the_same_or_no_good(at: prop::sample::Index, byte in 32u8..127) {
        let good = sign("s1", SECRET, TARGET, 1_767_225_600, NONCE, &[7; 32]).unwrap();
        let mut bad = good.clone().into_bytes();
        let at = at.index(bad.len());
        bad[at] = byte;
        let bad = String::from_utf8(bad).unwrap();
        let accepted = parse(&bad).is_ok_and(|signed| signed.key_id == "s1" && signed.verify(SECRET, TARGET));
        prop_assert_eq!(accepted, parse(&bad) == parse(&good));
    }

    #[test]
    fn no_text_is_too_odd_to_be_refused(text in any::<String>(), list in "(TG-HMAC-SHA256)?[ ,=a-fids0-9Ä\u{0}-]{0,600}") {
        for text in [text, list] {
            scheme_matches(&text);
            if parse(&text).is_ok() {
                prop_assert!(text.len() <= MAX_HEADER && scheme_matches(&text));
            }
        }
    }

    #[test]
    fn parameters_in_any_mixture_never_panic(picked in prop::collection::vec(prop::sample::select(vec![
        "id=s1", "id=", "timestamp=1", "timestamp=-", "nonce=0123456789abcdef", "nonce=",
        "digest=0000000000000000000000000000000000000000000000000000000000000000",
        "signature=0000000000000000000000000000000000000000000000000000000000000000", "x=1", "=", "",
    ]), 0..8)) {
        let header = format!("{SCHEME} {}", picked.join(", "));
        let good = |name: &str| picked.iter().filter(|one| one.starts_with(name) && one.len() > name.len()).count() == 1;
        let names = ["id=", "timestamp=", "nonce=", "digest=", "signature="];
        let complete = picked.len() == 5 && names.into_iter().all(good) && !picked.contains(&"timestamp=-");
        prop_assert_eq!(parse(&header).is_ok(), complete);
    }
}
