//! Decides from whose address a request comes: the peer's, or the one a trusted proxy names. Pure;
//! knows nothing of what an address may do.
//!
//! Every proxy adds at the right the address it was asked from. So the list can be believed from its
//! right end as far as trusted proxies wrote it, that is up to the first address that is not one of
//! theirs; whatever stands left of that, a client may have made up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderMap;
use http::header::FORWARDED;

use crate::config::networks::Networks;
use crate::config::settings::Forwarding;

/// The longest list that is read, over all field lines. Real ones have one to five elements.
const MOST_ELEMENTS: usize = 50;

/// Why the header a trusted proxy sent does not say who the client is. Answer 400: the client wrote
/// it, or the proxy is set up wrongly, and to guess would let the one pass for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forged {
    #[error("the forwarding header does not name the client's address")]
    Unreadable,
    #[error("the forwarding header has more than 50 elements")]
    TooLong,
}

/// The address a request comes from. IPv4 addresses mapped into IPv6 are given as IPv4.
///
/// If the peer is trusted and sends no header, or if all addresses in it are trusted, the request is
/// the trusted network's own: the peer's, or the leftmost address counts.
///
/// # Errors
/// Only if the peer is trusted. If what stands where the client's address should be is no address
/// (empty, `unknown`, obfuscated, garbage), if it is unclear where elements end (RFC 7239), or if
/// there are more than 50 of them.
pub fn effective(
    peer: IpAddr,
    headers: &HeaderMap,
    trusted: &Networks,
    header: Forwarding,
) -> Result<IpAddr, Forged> {
    let peer = peer.to_canonical();
    if !trusted.contains(peer) {
        return Ok(peer);
    }
    let mut path = Path::new(trusted);
    match header {
        Forwarding::XForwardedFor => {
            for line in headers.get_all("x-forwarded-for") {
                for element in line.as_bytes().split(|b| *b == b',') {
                    path.add(loose_node(element.trim_ascii()))?;
                }
            }
        }
        Forwarding::Forwarded => {
            for line in headers.get_all(FORWARDED) {
                add_elements(line.as_bytes(), &mut path)?;
            }
        }
    }
    path.end().map(|client| client.unwrap_or(peer))
}

/// The walk from right to left, done from left to right in one pass: what would stop it is the last
/// element that is not a trusted address.
struct Path<'t> {
    trusted: &'t Networks,
    elements: usize,
    leftmost: Option<IpAddr>,
    stop: Option<Result<IpAddr, Forged>>,
}

impl<'t> Path<'t> {
    fn new(trusted: &'t Networks) -> Self {
        Self {
            trusted,
            elements: 0,
            leftmost: None,
            stop: None,
        }
    }

    /// Adds an element at the right; `None` is one that names no address.
    fn add(&mut self, node: Option<IpAddr>) -> Result<(), Forged> {
        self.elements += 1;
        if self.elements > MOST_ELEMENTS {
            return Err(Forged::TooLong);
        }
        match node {
            Some(address) if self.trusted.contains(address) => {
                self.leftmost.get_or_insert(address);
            }
            _ => self.stop = Some(node.ok_or(Forged::Unreadable)),
        }
        Ok(())
    }

    /// The client's address; none if there were no elements.
    fn end(self) -> Result<Option<IpAddr>, Forged> {
        self.stop.transpose().map(|stop| stop.or(self.leftmost))
    }
}

/// An element of `X-Forwarded-For`. No document says how; these forms are in use.
fn loose_node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    match text.parse::<Ipv6Addr>() {
        Ok(address) => Some(IpAddr::V6(address).to_canonical()),
        Err(_) => node(text, false),
    }
}

/// A node of RFC 7239 §6: IPv4, or IPv6 in brackets, and perhaps a port, which is dropped.
fn node(text: &str, hidden_ports: bool) -> Option<IpAddr> {
    let (address, port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, after) = inner.split_once(']')?;
            let address = IpAddr::V6(address.parse::<Ipv6Addr>().ok()?);
            if after.is_empty() {
                return Some(address.to_canonical());
            }
            (address, after.strip_prefix(':')?)
        }
        None => {
            let (address, port) = text.split_once(':').unwrap_or((text, "0"));
            (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
        }
    };
    let numeric = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    (numeric || (hidden_ports && is_obfuscated(port))).then(|| address.to_canonical())
}

/// RFC 7239 §6.3: an underscore and at least one more character.
fn is_obfuscated(port: &str) -> bool {
    port.strip_prefix('_').is_some_and(|name| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    })
}

/// Adds the elements of one line of `Forwarded` (RFC 7239 §4).
///
/// A line that departs from the grammar anywhere is refused whole. That is what protects the right
/// end: a client could leave a quotation mark open, so that what a proxy adds reads as quoted and
/// what it quotes as elements. But then either a mark stays open at the end, or something stands
/// behind a closing mark, and neither is in the grammar.
fn add_elements(mut line: &[u8], path: &mut Path<'_>) -> Result<(), Forged> {
    loop {
        let (element, rest) = element(line).ok_or(Forged::Unreadable)?;
        path.add(element)?;
        match rest.split_first() {
            None => return Ok(()),
            Some((b',', after)) => line = after,
            Some(_) => return Err(Forged::Unreadable),
        }
    }
}

/// One element and the rest of the line, from the comma on. None if it is not of the grammar; the
/// address is none if `for` is missing, there twice, or no address.
fn element(mut rest: &[u8]) -> Option<(Option<IpAddr>, &[u8])> {
    let mut address = None;
    let mut told = false;
    loop {
        rest = rest.trim_ascii_start();
        if !matches!(rest.first(), None | Some(b',' | b';')) {
            let (name, value, after) = pair(rest)?;
            if name.eq_ignore_ascii_case(b"for") {
                address = std::str::from_utf8(value)
                    .ok()
                    .and_then(|value| node(value, true))
                    .filter(|_| !told);
                told = true;
            }
            rest = after.trim_ascii_start();
        }
        match rest.split_first() {
            Some((b';', after)) => rest = after,
            _ => return Some((address, rest)),
        }
    }
}

/// `name=value`, and the rest. A quoted value is given as it stands, for no address needs a
/// backslash.
fn pair(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = token(text)?;
    let rest = rest.strip_prefix(b"=")?;
    let (value, rest) = match rest.strip_prefix(b"\"") {
        Some(inside) => quoted(inside)?,
        None => token(rest)?,
    };
    Some((name, value, rest))
}

/// RFC 9110 §5.6.2.
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_part = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let length = text.iter().take_while(|b| is_part(b)).count();
    let (token, rest) = text.split_at_checked(length)?;
    (!token.is_empty()).then_some((token, rest))
}

/// RFC 9110 §5.6.4, from behind the opening mark.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    let end = text.iter().position(|b| {
        let closes = *b == b'"' && !escaped;
        escaped = *b == b'\\' && !escaped;
        closes
    })?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

#[cfg(test)]
mod tests;
