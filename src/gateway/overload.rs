//! Whether one more request may begin at all, before anybody knows whose it is: the process keeps
//! within what it can serve, and no single client address takes it all. Cheap, and not exact where
//! an estimate will do; what a tenant may use is decided later, and exactly.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use pingora_limits::inflight::{Guard, Inflight};
use pingora_limits::rate::Rate;

use super::guessing::Network;
use crate::config::settings::Priority;
use crate::request::refusal::{Code, Refusal};

const SPAN: Duration = Duration::from_secs(1);
/// Pingora's `Rate` is not safe to begin a new span from two threads at once, so each stands behind
/// a lock; by address, so that requests seldom meet there.
const SHARDS: usize = 16;
/// Rows and columns of each count–min sketch: 16 × 2 spans × 4 × 2,048 counters of 8 bytes are
/// 2 MiB, made with the first request that is counted. With 10,000 busy addresses some 600 share a
/// sketch, and all four rows of one collide with a busier one in fewer than 1 of 100.
const ROWS: usize = 4;
const COLUMNS: usize = 2_048;
/// When the process is full.
const FULL_WAIT: Duration = Duration::from_secs(1);
/// Who is shed comes back later than those who are to find room first.
const SHED_WAIT: Duration = Duration::from_secs(5);

/// A fifth of the requests that the process serves is kept from low, which is shed first.
const KEPT_FROM_LOW: usize = 5;
/// A twentieth is kept from normal: what high needs to come through while the others back off.
const KEPT_FROM_NORMAL: usize = 20;

/// What is counted of requests before they are known.
pub struct Overload {
    begun: OnceLock<Vec<Mutex<Rate>>>,
    in_flight: Inflight,
    hasher: RandomState,
}

/// How much is let in; 0 for no limit where it says so.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Requests of the process.
    pub requests: usize,
    /// Requests that one address may have under way, or 0.
    pub per_address: usize,
    /// Requests that one address may begin in a second, or 0.
    pub per_address_and_second: u32,
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            begun: OnceLock::new(),
            in_flight: Inflight::new(),
            hasher: RandomState::new(),
        }
    }
}

impl Overload {
    /// Lets a request of this address in, or says why not. `in_flight` are the requests of the
    /// process, this one included. The guard is to be held as long as the request lasts.
    ///
    /// # Errors
    /// 503 if the process serves as many as it may, 429 if the address begins or holds too many.
    pub fn enter(
        &self,
        address: IpAddr,
        caps: Caps,
        in_flight: usize,
    ) -> Result<Option<Guard>, Refusal> {
        if in_flight > caps.requests {
            return Err(Refusal::new(
                Code::Overloaded,
                "The gateway serves as many requests as it may; try again in a moment.",
            )
            .retry_after(FULL_WAIT));
        }
        let network = Network::of(address);
        let most = caps.per_address_and_second;
        if most > 0 && self.count(&network) > isize::try_from(most).unwrap_or(isize::MAX) {
            return Err(too_many(
                "Too many requests begin from your address at once.",
            ));
        }
        let most = caps.per_address;
        if most == 0 {
            return Ok(None);
        }
        let (guard, held) = self.in_flight.incr(network, 1);
        if held > isize::try_from(most).unwrap_or(isize::MAX) {
            return Err(too_many("Too many requests of your address are under way."));
        }
        Ok(Some(guard))
    }

    /// How many requests of this network began in the current span, this one included.
    fn count(&self, network: &Network) -> isize {
        let make = || Mutex::new(Rate::new_with_estimator_config(SPAN, ROWS, COLUMNS));
        let shards = self
            .begun
            .get_or_init(|| std::iter::repeat_with(make).take(SHARDS).collect());
        let shard = self.hasher.hash_one(network) as usize % SHARDS;
        shards
            .get(shard)
            .map_or(0, |rate| rate.lock().observe(network, 1))
    }
}

/// Once it is known whose request it is: refused while it is not urgent and the process is nearly
/// full. `most` requests may be under way; `in_flight` are, this one included.
///
/// # Errors
/// 503 for low above four fifths of `most`, for normal above nineteen twentieths.
pub(super) fn shed(priority: Priority, most: usize, in_flight: usize) -> Result<(), Refusal> {
    let (kept, detail) = match priority {
        Priority::High => return Ok(()),
        Priority::Normal => (most / KEPT_FROM_NORMAL, "shed: normal"),
        Priority::Low => (most / KEPT_FROM_LOW, "shed: low"),
    };
    if in_flight <= most - kept {
        return Ok(());
    }
    let message = "The gateway is nearly full and serves what is more urgent; try again shortly.";
    Err(Refusal::new(Code::Overloaded, message)
        .retry_after(SHED_WAIT)
        .detail(detail))
}

fn too_many(message: &'static str) -> Refusal {
    Refusal::new(Code::TooManyRequestsFromAddress, message).retry_after(SPAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(per_address_and_second: u32, per_address: usize) -> Caps {
        Caps {
            requests: 100,
            per_address,
            per_address_and_second,
        }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_full_process_refuses_everybody() {
        let overload = Overload::default();
        let caps = caps(0, 0);
        assert!(overload.enter(address(1), caps, 100).is_ok());
        let refusal = overload.enter(address(1), caps, 101).err().unwrap();
        assert_eq!(refusal.code, Code::Overloaded);
    }

    #[test]
    fn a_process_that_fills_sheds_low_first_and_then_normal() {
        for (in_flight, served) in [
            (80, [true, true, true]),
            (81, [true, true, false]),
            (95, [true, true, false]),
            (96, [true, false, false]),
            (100, [true, false, false]),
        ] {
            let classes = [Priority::High, Priority::Normal, Priority::Low];
            let told = classes.map(|class| shed(class, 100, in_flight).is_ok());
            assert_eq!(told, served, "{in_flight}");
        }
    }

    #[test]
    fn a_process_for_few_requests_sheds_nobody_who_fits() {
        for most in 1..5 {
            assert!(shed(Priority::Low, most, most).is_ok());
            assert!(shed(Priority::Normal, most, most).is_ok());
        }
    }

    #[test]
    fn an_address_that_holds_too_many_waits_for_one_to_end() {
        let overload = Overload::default();
        let caps = caps(0, 2);
        let one = overload.enter(address(1), caps, 1).unwrap();
        let _two = overload.enter(address(1), caps, 1).unwrap();
        assert!(overload.enter(address(1), caps, 1).is_err());
        assert!(overload.enter(address(2), caps, 1).is_ok());
        drop(one);
        assert!(overload.enter(address(1), caps, 1).is_ok());
    }

    #[test]
    fn an_address_that_begins_too_many_is_refused() {
        let overload = Overload::default();
        let caps = caps(10, 0);
        let refused = (0..100).filter(|_| overload.enter(address(1), caps, 1).is_err());
        // At most one new span can have begun meanwhile.
        assert!(refused.count() >= 80);
        assert!(overload.enter(address(2), caps, 1).is_ok());
    }
}
