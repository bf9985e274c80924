//! Finds the addresses behind endpoint names, in the background; a request never waits for DNS.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use log::{debug, warn};

use super::pool::{EndpointSlot, Pool};

/// A resolver that has not answered by then counts as failed; the last addresses stay.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Resolves every endpoint of a pool and hands the addresses to its state.
pub async fn resolve(pool: &Pool) {
    join_all(pool.endpoints.iter().map(resolve_endpoint)).await;
}

async fn resolve_endpoint(slot: &EndpointSlot) {
    let endpoint = &slot.settings;
    if endpoint.host.parse::<IpAddr>().is_ok() {
        return;
    }
    let host = endpoint.host.as_str();
    let lookup = tokio::net::lookup_host((host, endpoint.port));
    match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
        Ok(Ok(found)) => {
            let addresses = order(found.collect());
            debug!(
                "Resolved endpoint. host={host} addresses={}",
                addresses.len()
            );
            slot.state.addresses.set(&addresses);
        }
        Ok(Err(cause)) => {
            warn!(
                "Cannot resolve endpoint, keeping its last addresses. host={host} cause=\"{cause}\""
            );
        }
        Err(_) => {
            warn!("Cannot resolve endpoint in time, keeping its last addresses. host={host}");
        }
    }
}

/// Sorted and without repeats, so that an unchanged answer changes nothing.
fn order(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reordered_answer_is_the_same_answer() {
        let [a, b]: [SocketAddr; 2] =
            ["10.0.0.1:1".parse().unwrap(), "10.0.0.2:1".parse().unwrap()];
        assert_eq!(order(vec![b, a, b]), order(vec![a, b]));
    }
}
