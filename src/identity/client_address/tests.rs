use super::*;
use crate::config::networks::parse_network;
use Forged::{TooLong, Unreadable};
use Forwarding::{Forwarded, XForwardedFor};
use http::HeaderValue;
use proptest::prelude::*;

const PROXY: &str = "10.0.0.1";

fn trusted() -> Networks {
    ["10.0.0.0/8", "2001:db8:ffff::/48"]
        .map(|text| parse_network(text).unwrap())
        .into_iter()
        .collect()
}

fn asked(peer: &str, header: Forwarding, lines: &[&[u8]]) -> Result<IpAddr, Forged> {
    let name = match header {
        XForwardedFor => "x-forwarded-for",
        Forwarded => "forwarded",
    };
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(name, HeaderValue::from_bytes(line).unwrap());
    }
    effective(peer.parse().unwrap(), &headers, &trusted(), header)
}

fn text(header: Forwarding, line: &str) -> Result<String, Forged> {
    asked(PROXY, header, &[line.as_bytes()]).map(|address| address.to_string())
}

#[test]
fn an_untrusted_peer_speaks_for_itself_only() {
    for line in [
        &b"6.6.6.6"[..],
        b"garbage",
        b"\xff",
        b"10.0.0.1",
        b"for=6.6.6.6",
        b"",
    ] {
        for header in [XForwardedFor, Forwarded] {
            let found = asked("192.0.2.1", header, &[line]).unwrap();
            assert_eq!(found.to_string(), "192.0.2.1");
        }
    }
    let mapped = asked("::ffff:192.0.2.1", XForwardedFor, &[b"6.6.6.6"]).unwrap();
    assert_eq!(mapped.to_string(), "192.0.2.1");
}

#[test]
fn a_trusted_peer_without_the_header_speaks_for_itself() {
    assert_eq!(asked(PROXY, Forwarded, &[]).unwrap().to_string(), PROXY);
    let mapped = asked("::ffff:10.0.0.1", Forwarded, &[]).unwrap();
    assert_eq!(mapped.to_string(), PROXY);
}

#[test]
fn the_header_that_is_not_configured_is_not_looked_at() {
    let mut headers = HeaderMap::new();
    headers.append("forwarded", HeaderValue::from_static("for=6.6.6.6"));
    headers.append("x-forwarded-for", HeaderValue::from_static("7.7.7.7"));
    let peer = PROXY.parse().unwrap();
    let by = |header| {
        effective(peer, &headers, &trusted(), header)
            .unwrap()
            .to_string()
    };
    assert_eq!(by(Forwarded), "6.6.6.6");
    assert_eq!(by(XForwardedFor), "7.7.7.7");
}

#[test]
fn x_forwarded_for_is_walked_from_the_right() {
    for (line, client) in [
        ("192.0.2.7", "192.0.2.7"),
        ("6.6.6.6, 192.0.2.7", "192.0.2.7"),
        ("6.6.6.6,192.0.2.7 ,\t10.1.1.1, 10.2.2.2", "192.0.2.7"),
        ("garbage, , unknown, 192.0.2.7, 10.1.1.1", "192.0.2.7"),
        ("10.3.3.3, 10.1.1.1, 10.2.2.2", "10.3.3.3"),
        ("192.0.2.7:4711", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:80, [2001:db8:ffff::1]:80", "2001:db8::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:192.0.2.7]:1, ::ffff:10.0.0.1", "192.0.2.7"),
    ] {
        assert_eq!(text(XForwardedFor, line).as_deref(), Ok(client), "{line}");
    }
}

#[test]
fn forwarded_is_walked_from_the_right() {
    for (line, client) in [
        ("for=192.0.2.7", "192.0.2.7"),
        ("FOR=192.0.2.7;Proto=https", "192.0.2.7"),
        ("proto=https; for=\"192.0.2.7:4711\" ; by=_gw", "192.0.2.7"),
        ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
        ("For=\"[2001:DB8::1]\",for=10.0.0.2", "2001:db8::1"),
        ("for=\"192.0.2.7:_hidden-1.x\"", "192.0.2.7"),
        (
            "for=6.6.6.6, for=192.0.2.7;host=\"a, for=5.5.5.5;\\\"\", for=10.0.0.2",
            "192.0.2.7",
        ),
        ("for=unknown, for=_secret, , for=192.0.2.7;", "192.0.2.7"),
        ("for=10.0.0.3, for=10.0.0.2", "10.0.0.3"),
    ] {
        assert_eq!(text(Forwarded, line).as_deref(), Ok(client), "{line}");
    }
}

#[test]
fn field_lines_count_in_their_order() {
    let lines: &[&[u8]] = &[b"6.6.6.6", b"192.0.2.7, 10.0.0.2", b"10.0.0.3"];
    let found = asked(PROXY, XForwardedFor, lines).unwrap();
    assert_eq!(found.to_string(), "192.0.2.7");
    let lines: &[&[u8]] = &[b"for=6.6.6.6", b"for=192.0.2.7", b"for=10.0.0.3"];
    let found = asked(PROXY, Forwarded, lines).unwrap();
    assert_eq!(found.to_string(), "192.0.2.7");
}

#[test]
fn what_cannot_be_understood_is_refused() {
    for line in [
        "",
        ",",
        "192.0.2.7,",
        "unknown",
        "_x",
        "192.0.2.7, garbage, 10.0.0.2",
        "192.0.2",
        "192.0.2.07",
        "192.0.2.7:",
        "192.0.2.7:x",
        "192.0.2.7:+80",
        "192.0.2.7:65536",
        "192.0.2.7:80:80",
        "192.0.2.7:_x",
        "[192.0.2.7]",
        "[::1",
        "::1]",
        "[::1]80",
        "[::1]:",
        "[::1]x",
        "fe80::1%eth0",
        "\"192.0.2.7\"",
        "192.0.2.7 10.0.0.2",
        "unix:",
        "localhost",
    ] {
        assert_eq!(text(XForwardedFor, line), Err(Unreadable), "{line}");
    }
    for line in [
        "",
        ",",
        "for=192.0.2.7,",
        ";",
        "for",
        "for=",
        "for=\"",
        "for=\"192.0.2.7",
        "=1",
        "for=192.0.2.7:80",
        "for=[::1]",
        "for=\"::1\"",
        "for=unknown",
        "for=_x",
        "for=\"\"",
        "for=\"192.0.2.\\7\"",
        "for=\"192.0.2.7\"x",
        "for=192.0.2.7 x",
        "for =192.0.2.7",
        "for= 192.0.2.7",
        "by=192.0.2.7",
        "for=192.0.2.7;for=192.0.2.7",
        "192.0.2.7",
        "for=x;for=192.0.2.7",
        "for=\"192.0.2.7:_\"",
        "for=\"192.0.2.7:_\u{e9}\"",
        "for=\"x, for=192.0.2.7",
        "for=\"x, for=192.0.2.7;host=\"a.example\"",
        "for=\"x, for=192.0.2.7;host=\",for=6.6.6.6;x=\"",
    ] {
        assert_eq!(text(Forwarded, line), Err(Unreadable), "{line}");
    }
    assert_eq!(asked(PROXY, XForwardedFor, &[b"\xff"]), Err(Unreadable));
    assert_eq!(
        asked(PROXY, XForwardedFor, &[b"6.6.6.6", b""]),
        Err(Unreadable)
    );
}

#[test]
fn a_list_without_end_is_refused() {
    let list = |count| vec!["10.0.0.2"; count].join(",");
    assert_eq!(text(XForwardedFor, &list(50)).as_deref(), Ok("10.0.0.2"));
    assert_eq!(text(XForwardedFor, &list(51)), Err(TooLong));
    let list = list(51).replace("10", "for=10");
    assert_eq!(text(Forwarded, &list), Err(TooLong));
    let lines = vec![&b"10.0.0.2"[..]; 51];
    assert_eq!(asked(PROXY, XForwardedFor, &lines), Err(TooLong));
}

/// What proxies add for the client 192.0.2.7, in forms that are in use.
fn honest(header: Forwarding) -> impl Strategy<Value = String> {
    let choices = match header {
        XForwardedFor => [
            "192.0.2.7",
            "192.0.2.7:4711, 10.0.0.2",
            "::ffff:192.0.2.7, [2001:db8:ffff::2]:80, 10.1.1.1",
            "[::ffff:192.0.2.7]",
        ],
        Forwarded => [
            "for=192.0.2.7",
            "for=\"192.0.2.7:4711\";host=\";for=6.6.6.6;x=\";by=\",for=6.6.6.6\", for=10.0.0.2",
            "for=192.0.2.7;host=\"a\\\",for=6.6.6.6,\\\"\", for=\"[2001:db8:ffff::2]:80\"",
            "host=\",\";for=192.0.2.7;by=\",\"",
        ],
    };
    prop::sample::select(choices.to_vec()).prop_map(str::to_owned)
}

/// What a client may send to be taken for another.
fn dishonest() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "for=",
        "6.6.6.6",
        "10.0.0.9",
        "\"",
        "\\",
        ",",
        ";",
        "=",
        " ",
        "host=",
        "[::6]",
        "x",
        "unknown",
        "\\\"",
        "for=6.6.6.6",
        "for=\"",
    ]);
    prop_oneof![
        proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat()),
        "[ -~]{0,60}",
    ]
}

proptest! {
    #[test]
    fn no_client_chooses_its_address_in_x_forwarded_for(
        forged in dishonest(),
        honest in honest(XForwardedFor),
    ) {
        let client: IpAddr = "192.0.2.7".parse().unwrap();
        let joined = format!("{forged},{honest}");
        prop_assert_eq!(asked(PROXY, XForwardedFor, &[joined.as_bytes()]), Ok(client));
        let lines = [forged.as_bytes(), honest.as_bytes()];
        prop_assert_eq!(asked(PROXY, XForwardedFor, &lines), Ok(client));
    }

    #[test]
    fn no_client_chooses_its_address_in_forwarded(
        forged in dishonest(),
        honest in honest(Forwarded),
    ) {
        let client: IpAddr = "192.0.2.7".parse().unwrap();
        let joined = format!("{forged}, {honest}");
        for lines in [vec![joined.as_bytes()], vec![forged.as_bytes(), honest.as_bytes()]] {
            let found = asked(PROXY, Forwarded, &lines);
            prop_assert!(found == Ok(client) || found == Err(Unreadable), "{:?}", found);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(line in proptest::collection::vec(32..=255_u8, 0..80)) {
        let line: Vec<u8> = line.into_iter().filter(|b| *b != 127).collect();
        let _ = asked(PROXY, XForwardedFor, &[&line]);
        let _ = asked(PROXY, Forwarded, &[&line]);
    }
}
