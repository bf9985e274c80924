//! Reads the header of HAProxy's PROXY protocol, versions 1 and 2, at the start of a connection: who
//! is at the far end of the proxy. Knows neither which proxies may say so nor how long they may take.
//!
//! Section numbers are those of `proxy-protocol.txt` in HAProxy's documentation. Whether a header is
//! there is never guessed (§2): the caller reads one exactly where the configuration wants one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest line of version 1 with its line end, in bytes (§2.1).
const LONGEST_LINE: usize = 107;

/// The shortest header of any version, in bytes: `PROXY UNKNOWN` and the line end.
const SHORTEST: usize = 15;

/// How a line of version 1 can begin, and how long the shortest such line is, in bytes.
const BEGINNINGS: [(&[u8], usize); 4] = [
    (b"PROXY TCP4 ", 32),
    (b"PROXY TCP6 ", 22),
    (b"PROXY UNKNOWN ", 16),
    (b"PROXY UNKNOWN\r", SHORTEST),
];

/// The first bytes of version 2 (§2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The part of version 2 before the addresses, in bytes.
const FIXED: usize = 16;

/// Addresses and additions of version 2 together, in bytes. Senders are to stay below 536, but some
/// add certificate names and identifiers of their cloud; the format's own limit is 65,535.
const LONGEST_BLOCK: usize = 4096;

/// The type of the addition that holds a checksum of the header (§2.2.3).
const CRC32C: u8 = 0x03;

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client that the proxy speaks for. IPv4 addresses mapped into IPv6 have become IPv4.
    Client(SocketAddr),
    /// The proxy's own (a health check), or a client whose address is no IP address or not told.
    /// The address of the peer counts.
    Local,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header. At least `missing` bytes, never 0, belong to it still.
    Incomplete { missing: usize },
    /// No header, whatever may follow.
    Invalid(Invalid),
    /// A whole header in the first `length` bytes.
    Header { origin: Origin, length: usize },
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the connection does not begin with a PROXY protocol header")]
    NoHeader,
    #[error("the line is longer than 107 bytes or has no proper end")]
    Line,
    #[error("an address or port in the line is not well-formed")]
    Address,
    #[error("the version is not 2")]
    Version,
    #[error("the command is unknown")]
    Command,
    #[error("the address family or transport is unknown")]
    Family,
    #[error("the header is too long")]
    TooLong,
    #[error("the header is too short for its addresses")]
    TooShort,
    #[error("an addition to the header is not well-formed")]
    Addition,
    #[error("the checksum is wrong")]
    Checksum,
}

/// Why there is no header to go by. The connection must be closed (§2).
#[derive(Debug, thiserror::Error)]
pub enum ProxyProtocolError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("the connection ended within the PROXY protocol header")]
    Ended,
    #[error("the PROXY protocol header could not be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads one header, and not a byte of what follows it.
///
/// There is no timer in it. Dropping the future loses what was read, so the connection with it.
///
/// # Errors
/// If the bytes are no header, or the connection ends or fails before the header does.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Origin, ProxyProtocolError> {
    let mut seen: Vec<u8> = Vec::with_capacity(LONGEST_LINE);
    loop {
        let missing = match parse(&seen) {
            Parsed::Header { origin, .. } => return Ok(origin),
            Parsed::Invalid(why) => return Err(why.into()),
            Parsed::Incomplete { missing } => missing,
        };
        // The limit keeps the rest in the socket, where TLS or HTTP will look for it.
        let mut header = (&mut *io).take(missing as u64);
        if header.read_buf(&mut seen).await? == 0 {
            return Err(ProxyProtocolError::Ended);
        }
    }
}

/// Says what the first bytes of a connection are. More bytes never change an answer other than
/// `Incomplete`. Costs little before the header is complete, so it can be asked after every byte.
pub fn parse(bytes: &[u8]) -> Parsed {
    let parsed = match bytes.first() {
        None => Ok(Parsed::Incomplete { missing: SHORTEST }),
        Some(b'P') => line(bytes),
        Some(_) => block(bytes),
    };
    parsed.unwrap_or_else(Parsed::Invalid)
}

/// Do both begin alike, as far as both go?
fn agree(a: &[u8], b: &[u8]) -> bool {
    a.iter().zip(b).all(|(a, b)| a == b)
}

/// Version 1, §2.1.
fn line(bytes: &[u8]) -> Result<Parsed, Invalid> {
    // Until the family shows, more than one beginning fits; the shortest line bounds what is missing.
    let shortest = BEGINNINGS
        .iter()
        .filter(|(beginning, _)| agree(bytes, beginning))
        .map(|(_, shortest)| *shortest)
        .min()
        .ok_or(Invalid::NoHeader)?;
    let window = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = window.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
        if window.len() + 2 > LONGEST_LINE {
            return Err(Invalid::Line);
        }
        let missing = shortest.saturating_sub(bytes.len()).max(2);
        return Ok(Parsed::Incomplete { missing });
    };
    let (line, rest) = window.split_at_checked(end).ok_or(Invalid::Line)?;
    match rest {
        [b'\r'] if window.len() < LONGEST_LINE => Ok(Parsed::Incomplete { missing: 1 }),
        [b'\r', b'\n', ..] => Ok(Parsed::Header {
            origin: origin_of_line(line)?,
            length: end + 2,
        }),
        _ => Err(Invalid::Line),
    }
}

fn origin_of_line(line: &[u8]) -> Result<Origin, Invalid> {
    if line.starts_with(b"PROXY UNKNOWN") {
        return Ok(Origin::Local);
    }
    let text = std::str::from_utf8(line).map_err(|_| Invalid::Address)?;
    let mut fields = text.split(' ').skip(1);
    let fields: [Option<&str>; 6] = std::array::from_fn(|_| fields.next());
    let [
        Some(family),
        Some(source),
        Some(target),
        Some(source_port),
        Some(target_port),
        None,
    ] = fields
    else {
        return Err(Invalid::Address);
    };
    // The standard library refuses leading zeros in IPv4 and groups of more than four digits.
    let address: fn(&str) -> Option<IpAddr> = match family {
        "TCP4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        _ => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    };
    let source = address(source).zip(port(source_port));
    let target = address(target).zip(port(target_port));
    match (source, target) {
        (Some((address, port)), Some(_)) => Ok(client(address, port)),
        _ => Err(Invalid::Address),
    }
}

fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    (plain && canonical).then(|| text.parse().ok()).flatten()
}

fn client(address: IpAddr, port: u16) -> Origin {
    Origin::Client(SocketAddr::new(address.to_canonical(), port))
}

/// Version 2, §2.2.
fn block(bytes: &[u8]) -> Result<Parsed, Invalid> {
    if !agree(bytes, SIGNATURE) {
        return Err(Invalid::NoHeader);
    }
    let mut fixed = bytes.iter().skip(SIGNATURE.len());
    let relayed = match fixed.next() {
        None | Some(0x21) => true,
        Some(0x20) => false,
        Some(other) if other >> 4 != 2 => return Err(Invalid::Version),
        Some(_) => return Err(Invalid::Command),
    };
    let layout = match fixed.next() {
        // The family of the proxy's own connections is ignored, so is all that follows it.
        None => Layout::Unknown,
        Some(_) if !relayed => Layout::Unknown,
        Some(family) => Layout::of(*family)?,
    };
    let (Some(high), Some(low)) = (fixed.next(), fixed.next()) else {
        let missing = FIXED - bytes.len();
        return Ok(Parsed::Incomplete { missing });
    };
    let announced = usize::from(u16::from_be_bytes([*high, *low]));
    if announced > LONGEST_BLOCK {
        return Err(Invalid::TooLong);
    }
    if announced < layout.length() {
        return Err(Invalid::TooShort);
    }
    let length = FIXED + announced;
    let Some(header) = bytes.get(..length) else {
        let missing = length - bytes.len();
        return Ok(Parsed::Incomplete { missing });
    };
    let origin = layout.origin(header)?;
    Ok(Parsed::Header { origin, length })
}

/// What stands behind the fixed part, by the family and transport byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Nobody says where additions would begin, and nothing in it counts: it is skipped unread.
    Unknown,
    V4,
    V6,
    Unix,
}

impl Layout {
    /// Datagrams are taken like streams: a proxy that speaks QUIC to its client names the client so,
    /// and to count the proxy's address in its place could open a door.
    fn of(byte: u8) -> Result<Self, Invalid> {
        match (byte >> 4, byte & 0x0f) {
            (4.., _) | (_, 3..) => Err(Invalid::Family),
            (0, _) | (_, 0) => Ok(Self::Unknown),
            (1, _) => Ok(Self::V4),
            (2, _) => Ok(Self::V6),
            _ => Ok(Self::Unix),
        }
    }

    /// Of the addresses, in bytes.
    fn length(self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::V4 => 12,
            Self::V6 => 36,
            Self::Unix => 216,
        }
    }

    /// Reads a whole header.
    fn origin(self, header: &[u8]) -> Result<Origin, Invalid> {
        if self == Self::Unknown {
            return Ok(Origin::Local);
        }
        check_additions(header, FIXED + self.length())?;
        let origin = match self {
            Self::V4 => address_and_port(header, 8).map(|(address, port)| {
                let address: [u8; 4] = address;
                client(IpAddr::from(address), port)
            }),
            Self::V6 => address_and_port(header, 32).map(|(address, port)| {
                let address: [u8; 16] = address;
                client(IpAddr::from(address), port)
            }),
            Self::Unix | Self::Unknown => Some(Origin::Local),
        };
        origin.ok_or(Invalid::TooShort)
    }
}

/// The source's address, and its port behind the `addresses` bytes of both addresses.
fn address_and_port<const N: usize>(header: &[u8], addresses: usize) -> Option<([u8; N], u16)> {
    let address = header.get(FIXED..)?.first_chunk()?;
    let port = header.get(FIXED + addresses..)?.first_chunk()?;
    Some((*address, u16::from_be_bytes(*port)))
}

/// Additions (type, length, value) must fill the header exactly. Only a checksum is looked into.
fn check_additions(header: &[u8], begin: usize) -> Result<(), Invalid> {
    let mut at = begin;
    let mut checksum: Option<Range<usize>> = None;
    while at < header.len() {
        let Some([kind, high, low, ..]) = header.get(at..) else {
            return Err(Invalid::Addition);
        };
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([*high, *low]));
        at = value.end;
        if at > header.len() {
            return Err(Invalid::Addition);
        }
        if *kind == CRC32C && (value.len() != 4 || checksum.replace(value).is_some()) {
            return Err(Invalid::Addition);
        }
    }
    let Some(place) = checksum else { return Ok(()) };
    let stated = header.get(place.clone()).and_then(<[u8]>::first_chunk);
    if stated.is_some_and(|stated| u32::from_be_bytes(*stated) == crc32c(header, &place)) {
        Ok(())
    } else {
        Err(Invalid::Checksum)
    }
}

/// CRC-32C (RFC 4960, appendix B) of the bytes, those in `zeroed` taken as zero. Bit by bit: the
/// header of a connection is short, and most carry no checksum.
fn crc32c(bytes: &[u8], zeroed: &Range<usize>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let rest = bytes
        .iter()
        .enumerate()
        .fold(u32::MAX, |rest, (index, byte)| {
            let byte = if zeroed.contains(&index) { 0 } else { *byte };
            (0..8).fold(rest ^ u32::from(byte), |rest, _| {
                (rest >> 1) ^ if rest & 1 == 1 { POLYNOMIAL } else { 0 }
            })
        });
    !rest
}

#[cfg(test)]
mod tests;
