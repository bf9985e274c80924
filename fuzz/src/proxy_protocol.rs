//! The PROXY protocol's header at the start of a connection.
//!
//! Input: the bytes of a connection.

use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tidegate::downstream::proxy_protocol::{self, Origin, Parsed, ProxyProtocolError};

/// Of version 2; what is announced beyond it must be refused.
const LONGEST: usize = 16 + 4096;

pub fn check(data: &[u8]) {
    let whole = proxy_protocol::parse(data);
    // At most so many beginnings, so that a long input does not cost its square.
    let step = data.len() / 512 + 1;
    for length in (0..=data.len()).step_by(step) {
        beginning(data, length, whole);
    }
    read(data, whole);
}

/// What the first `length` bytes say must agree with what all of them say.
fn beginning(data: &[u8], length: usize, whole: Parsed) {
    let begun = proxy_protocol::parse(&data[..length]);
    match (begun, whole) {
        (Parsed::Incomplete { missing }, _) => {
            assert!(
                missing > 0 && length + missing <= LONGEST,
                "{length} and {missing}"
            );
            // What turns out too short for a header may have been hoped to be longer.
            if let Parsed::Header { length: full, .. } = whole {
                assert!(length + missing <= full);
            }
        }
        (Parsed::Invalid(_), whole) => assert_eq!(begun, whole),
        (Parsed::Header { length: full, .. }, whole) => {
            assert_eq!(begun, whole);
            assert!((15..=length).contains(&full));
        }
    }
}

/// The reader takes the header and not a byte more, and says the same.
fn read(data: &[u8], whole: Parsed) {
    let mut rest = data;
    let outcome = {
        let mut reading = pin!(proxy_protocol::read(&mut rest));
        match reading
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("a reader of memory need not wait"),
        }
    };
    match (outcome, whole) {
        (
            Ok(origin),
            Parsed::Header {
                origin: parsed,
                length,
            },
        ) => {
            assert_eq!(origin, parsed);
            assert_eq!(data.len() - rest.len(), length);
            plain(origin);
        }
        (Err(ProxyProtocolError::Ended), Parsed::Incomplete { .. })
        | (Err(ProxyProtocolError::Invalid(_)), Parsed::Invalid(_)) => {}
        (outcome, whole) => panic!("{outcome:?}, but {whole:?}"),
    }
}

fn plain(origin: Origin) {
    if let Origin::Client(SocketAddr::V6(address)) = origin {
        assert!(address.ip().to_ipv4_mapped().is_none());
    }
}
