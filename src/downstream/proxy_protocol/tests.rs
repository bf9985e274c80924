use super::*;
use proptest::prelude::*;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

fn origin(bytes: &[u8]) -> Result<Origin, Invalid> {
    match parse(bytes) {
        Parsed::Header { origin, length } => {
            assert_eq!(length, bytes.len());
            Ok(origin)
        }
        Parsed::Invalid(why) => Err(why),
        Parsed::Incomplete { missing } => panic!("{missing} bytes missing of {bytes:?}"),
    }
}

fn from(text: &str) -> Origin {
    Origin::Client(text.parse().unwrap())
}

/// Version 2 with everything chosen by the test.
fn second(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
    bytes.extend(block);
    bytes
}

/// 192.0.2.1:4711 to 192.0.2.2:443, and additions.
fn over_tcp4(additions: &[u8]) -> Vec<u8> {
    let mut block = vec![192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x67, 0x01, 0xbb];
    block.extend(additions);
    second(0x21, 0x11, &block)
}

fn with_checksum(additions: &[u8]) -> Vec<u8> {
    let mut all = vec![CRC32C, 0, 4, 0, 0, 0, 0];
    all.extend(additions);
    let mut bytes = over_tcp4(&all);
    let sum = crc32c(&bytes, &(0..0));
    bytes[31..35].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn lines_of_version_1_are_read() {
    for (line, expected) in [
        (
            "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n",
            from("192.0.2.1:4711"),
        ),
        ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", from("0.0.0.0:0")),
        (
            "PROXY TCP6 2001:DB8::1 ::1 65535 443\r\n",
            from("[2001:db8::1]:65535"),
        ),
        ("PROXY TCP6 :: :: 0 0\r\n", from("[::]:0")),
        (
            "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n",
            from("192.0.2.1:1"),
        ),
        ("PROXY UNKNOWN\r\n", Origin::Local),
        ("PROXY UNKNOWN \r\n", Origin::Local),
        ("PROXY UNKNOWN what \0 ever\r\n", Origin::Local),
    ] {
        assert_eq!(origin(line.as_bytes()), Ok(expected), "{line}");
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LONGEST_LINE - 16));
    assert_eq!(longest.len(), 107);
    assert_eq!(origin(longest.as_bytes()), Ok(Origin::Local));
}

#[test]
fn lines_of_any_other_form_are_refused() {
    for line in [
        "PROXY TCP4 192.0.2.1 192.0.2.2 4711\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443 \r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443 1\r\n",
        "PROXY TCP4  192.0.2.1 192.0.2.2 4711 443\r\n",
        "PROXY TCP4 192.0.2.1\t192.0.2.2 4711 443\r\n",
        "PROXY TCP4 192.0.2.01 192.0.2.2 4711 443\r\n",
        "PROXY TCP4 192.0.2.256 192.0.2.2 4711 443\r\n",
        "PROXY TCP4 192.0.513 192.0.2.2 4711 443\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2 4711 443\r\n",
        "PROXY TCP4 ::1 ::1 4711 443\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.2 4711 443\r\n",
        "PROXY TCP6 [::1] ::1 4711 443\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 4711 443\r\n",
        "PROXY TCP6 00001::1 ::1 4711 443\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 04711 443\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +471 443\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 4711 00\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 4711 65536\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2  443\r\n",
    ] {
        assert_eq!(origin(line.as_bytes()), Err(Invalid::Address), "{line}");
    }
    for line in [
        "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\rX",
        "PROXY UNKNOWN a\nb\r\n",
        "PROXY UNKNOWN\rb\r\n",
        "PROXY TCP4 \r\r\n",
    ] {
        assert_eq!(origin(line.as_bytes()), Err(Invalid::Line), "{line}");
    }
    for line in [
        "PROXY\r\n",
        "PROXY \r\n",
        "proxy TCP4",
        "PROXY  TCP4",
        "PROXY TCP5 ",
        "PROXY TCP4\r\n",
        "PROXY tcp4",
        "PROXY UNKNOWNX",
        "PROXY UNIX",
        "POST / HTTP/1.1\r\n",
        "GET /",
        "\x16\x03\x01",
        "PRI * HTTP/2.0\r\n\r\n",
        "\r\n\r\nX",
        "\0",
        "\n",
        " PROXY",
    ] {
        assert_eq!(origin(line.as_bytes()), Err(Invalid::NoHeader), "{line}");
    }
    let too_long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LONGEST_LINE - 15));
    assert_eq!(parse(too_long.as_bytes()), Parsed::Invalid(Invalid::Line));
    assert_eq!(
        parse(&too_long.as_bytes()[..106]),
        Parsed::Invalid(Invalid::Line)
    );
}

#[test]
fn blocks_of_version_2_are_read() {
    let mut v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)
        .octets()
        .to_vec();
    v6.extend(Ipv6Addr::LOCALHOST.octets());
    v6.extend([0x12, 0x67, 1, 0xbb]);
    let mut mapped = Ipv4Addr::new(192, 0, 2, 1)
        .to_ipv6_mapped()
        .octets()
        .to_vec();
    mapped.extend([0; 20]);
    for (bytes, expected) in [
        (over_tcp4(b""), from("192.0.2.1:4711")),
        (second(0x21, 0x12, &[1; 12]), from("1.1.1.1:257")),
        (second(0x21, 0x21, &v6), from("[2001:db8::1]:4711")),
        (second(0x21, 0x22, &v6), from("[2001:db8::1]:4711")),
        (second(0x21, 0x21, &mapped), from("192.0.2.1:0")),
        (second(0x21, 0x31, &[1; 216]), Origin::Local),
        (second(0x21, 0x32, &[1; 216]), Origin::Local),
        (second(0x21, 0x00, b""), Origin::Local),
        (second(0x21, 0x10, b"skipped"), Origin::Local),
        (second(0x20, 0x00, b""), Origin::Local),
        (second(0x20, 0x11, &[1; 12]), Origin::Local),
        (second(0x20, 0xff, b"skipped"), Origin::Local),
        (
            over_tcp4(&[4, 0, 0, 0xe0, 0, 2, 1, 2]),
            from("192.0.2.1:4711"),
        ),
        (
            over_tcp4(&[&[4, 0x0f, 0xf1][..], &[0; 4081]].concat()),
            from("192.0.2.1:4711"),
        ),
        (with_checksum(b""), from("192.0.2.1:4711")),
        (with_checksum(&[4, 0, 1, 9]), from("192.0.2.1:4711")),
    ] {
        assert_eq!(origin(&bytes), Ok(expected), "{bytes:?}");
    }
}

#[test]
fn blocks_of_any_other_form_are_refused() {
    let mut altered = with_checksum(&[4, 0, 1, 9]);
    altered[16] ^= 1;
    let twice = over_tcp4(&[CRC32C, 0, 4, 0, 0, 0, 0, CRC32C, 0, 4, 0, 0, 0, 0]);
    for (bytes, why) in [
        (second(0x11, 0x11, &[0; 12]), Invalid::Version),
        (second(0x31, 0x11, &[0; 12]), Invalid::Version),
        (second(0x01, 0x11, &[0; 12]), Invalid::Version),
        (second(0x22, 0x11, &[0; 12]), Invalid::Command),
        (second(0x2f, 0x11, &[0; 12]), Invalid::Command),
        (second(0x21, 0x41, &[0; 12]), Invalid::Family),
        (second(0x21, 0x13, &[0; 12]), Invalid::Family),
        (second(0x21, 0x03, &[0; 12]), Invalid::Family),
        (second(0x21, 0x11, &[0; 11]), Invalid::TooShort),
        (second(0x21, 0x21, &[0; 35]), Invalid::TooShort),
        (second(0x21, 0x31, &[0; 215]), Invalid::TooShort),
        (second(0x20, 0x00, &[0; 4097]), Invalid::TooLong),
        (over_tcp4(&[4]), Invalid::Addition),
        (over_tcp4(&[4, 0]), Invalid::Addition),
        (over_tcp4(&[4, 0, 1]), Invalid::Addition),
        (over_tcp4(&[4, 0xff, 0xff, 1]), Invalid::Addition),
        (over_tcp4(&[CRC32C, 0, 3, 0, 0, 0]), Invalid::Addition),
        (over_tcp4(&[CRC32C, 0, 4, 0, 0, 0, 0]), Invalid::Checksum),
        (twice, Invalid::Addition),
        (altered, Invalid::Checksum),
    ] {
        assert_eq!(origin(&bytes), Err(why), "{bytes:?}");
    }
}

#[test]
fn a_wrong_header_is_refused_before_it_is_whole() {
    assert_eq!(parse(b"G"), Parsed::Invalid(Invalid::NoHeader));
    assert_eq!(
        parse(&second(0x11, 0, b"")[..13]),
        Parsed::Invalid(Invalid::Version)
    );
    assert_eq!(
        parse(&second(0x21, 0x41, b"")[..14]),
        Parsed::Invalid(Invalid::Family)
    );
    let mut endless = SIGNATURE.to_vec();
    endless.extend([0x21, 0x11, 0xff, 0xff]);
    assert_eq!(parse(&endless), Parsed::Invalid(Invalid::TooLong));
}

#[test]
fn the_checksum_is_the_published_one() {
    assert_eq!(crc32c(b"123456789", &(0..0)), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32], &(0..0)), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32], &(0..32)), 0x8a91_36aa);
}

/// Gives its bytes in pieces of the given lengths, then all there is, and counts what was taken.
struct Pieces<'a> {
    rest: &'a [u8],
    lengths: std::vec::IntoIter<usize>,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.lengths.next().unwrap_or(usize::MAX);
        let count = length.min(self.rest.len()).min(buf.remaining());
        let (piece, rest) = self.rest.split_at(count);
        buf.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// The outcome, and how many bytes were taken.
fn read_in_pieces(bytes: &[u8], lengths: Vec<usize>) -> (Result<Origin, Option<Invalid>>, usize) {
    let mut io = Pieces {
        rest: bytes,
        lengths: lengths.into_iter(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let outcome = runtime
        .block_on(read(&mut io))
        .map_err(|error| match error {
            ProxyProtocolError::Invalid(why) => Some(why),
            ProxyProtocolError::Ended => None,
            ProxyProtocolError::Io(error) => panic!("{error}"),
        });
    (outcome, bytes.len() - io.rest.len())
}

#[test]
fn an_end_within_the_header_is_told_from_a_wrong_one() {
    assert_eq!(read_in_pieces(b"", vec![]).0, Err(None));
    assert_eq!(read_in_pieces(b"PROXY TCP4 1", vec![]).0, Err(None));
    assert_eq!(
        read_in_pieces(b"HEAD / HTTP/1.1", vec![]).0,
        Err(Some(Invalid::NoHeader))
    );
}

/// A header that a proxy might send, and what it says.
fn any_header() -> impl Strategy<Value = (Vec<u8>, Origin)> {
    let v4 = any::<(u32, u32, u16, u16)>();
    let v6 = any::<(u128, u128, u16, u16)>();
    let additions = proptest::collection::vec(
        (4..=255_u8, proptest::collection::vec(any::<u8>(), 0..40)),
        0..8,
    );
    let additions = additions.prop_map(|list| {
        list.into_iter()
            .fold(Vec::new(), |mut bytes, (kind, value)| {
                bytes.extend([kind, 0, value.len() as u8]);
                bytes.extend(value);
                bytes
            })
    });
    prop_oneof![
        v4.prop_map(|(from, to, port, to_port)| {
            let (from, to) = (Ipv4Addr::from(from), Ipv4Addr::from(to));
            let line = format!("PROXY TCP4 {from} {to} {port} {to_port}\r\n");
            (line.into_bytes(), client(from.into(), port))
        }),
        v6.prop_map(|(from, to, port, to_port)| {
            let (from, to) = (Ipv6Addr::from(from), Ipv6Addr::from(to));
            let line = format!("PROXY TCP6 {from} {to} {port} {to_port}\r\n");
            (line.into_bytes(), client(from.into(), port))
        }),
        "[^\r\n]{0,22}".prop_map(|junk| {
            (
                format!("PROXY UNKNOWN {junk}\r\n").into_bytes(),
                Origin::Local,
            )
        }),
        Just((b"PROXY UNKNOWN\r\n".to_vec(), Origin::Local)),
        (v4, additions.clone(), any::<bool>()).prop_map(|(ends, additions, sum)| {
            let (from, to, port, to_port) = ends;
            let mut block = [from.to_be_bytes(), to.to_be_bytes()].concat();
            block.extend([port.to_be_bytes(), to_port.to_be_bytes()].concat());
            if sum {
                block.extend([CRC32C, 0, 4, 0, 0, 0, 0]);
            }
            block.extend(additions);
            let mut bytes = second(0x21, 0x11, &block);
            if sum {
                let sum = crc32c(&bytes, &(0..0));
                bytes[31..35].copy_from_slice(&sum.to_be_bytes());
            }
            (bytes, client(Ipv4Addr::from(from).into(), port))
        }),
        (v6, additions).prop_map(|((from, to, port, to_port), additions)| {
            let mut block = [from.to_be_bytes(), to.to_be_bytes()].concat();
            block.extend([port.to_be_bytes(), to_port.to_be_bytes()].concat());
            block.extend(additions);
            (
                second(0x21, 0x21, &block),
                client(Ipv6Addr::from(from).into(), port),
            )
        }),
        proptest::collection::vec(any::<u8>(), 0..300)
            .prop_map(|block| (second(0x20, 0, &block), Origin::Local)),
    ]
}

fn any_lengths() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1..12_usize, 0..400)
}

proptest! {
    #[test]
    fn a_header_is_read_in_any_pieces_and_nothing_beyond_it(
        (header, expected) in any_header(),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        lengths in any_lengths(),
    ) {
        let all = [header.clone(), tail].concat();
        prop_assert_eq!(parse(&all), Parsed::Header { origin: expected, length: header.len() });
        prop_assert_eq!(read_in_pieces(&all, lengths), (Ok(expected), header.len()));
        for cut in 0..header.len() {
            match parse(&header[..cut]) {
                Parsed::Incomplete { missing } => {
                    prop_assert!(missing > 0 && cut + missing <= header.len());
                }
                other => prop_assert!(false, "{other:?} after {cut} bytes"),
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_change_its_mind_or_read_too_far(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            (any_header(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
                |((mut header, _), index, byte)| {
                    let index = index.index(header.len());
                    header[index] = byte;
                    header
                },
            ),
            "PROXY (TCP4|TCP6|UNKNOWN)[ 0-9a-f.:\r\n]{0,110}".prop_map(String::into_bytes),
        ],
        lengths in any_lengths(),
    ) {
        let whole = parse(&bytes);
        let first = (0..=bytes.len())
            .map(|cut| parse(&bytes[..cut]))
            .find(|parsed| !matches!(parsed, Parsed::Incomplete { .. }));
        prop_assert_eq!(first.unwrap_or(whole), whole);
        let (outcome, taken) = read_in_pieces(&bytes, lengths);
        match whole {
            Parsed::Header { origin, length } => {
                prop_assert_eq!((outcome, taken), (Ok(origin), length));
            }
            Parsed::Invalid(why) => prop_assert_eq!(outcome, Err(Some(why))),
            Parsed::Incomplete { .. } => prop_assert_eq!(outcome, Err(None)),
        }
    }
}
