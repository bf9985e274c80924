//! Asks the provider what is left of an account's money: the edge of [`super`].

use std::time::{Duration, Instant};

use pingora::connectors::http::Connector;
use prometheus::IntCounterVec;

use super::{Heard, read};
use crate::upstream::addresses::Visit;
use crate::upstream::pool::{AccountSlot, EndpointSlot, Pool};
use crate::upstream::probe::{self, Question};

/// The provider's path, below the endpoint's base (get-user-balance page).
const PATH: &str = "/user/balance";
/// For one endpoint, from the connection to the end of its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A balance takes some hundred bytes.
const MOST_BODY: usize = 64 << 10;
/// Endpoints that are asked before it counts as a failure.
const MOST_ENDPOINTS: usize = 2;

/// Asks with the account's own credential at the endpoints that are in, the first ones first.
/// `None` if none is, or their names are not known yet.
pub async fn ask(
    pool: &Pool,
    account: &AccountSlot,
    connector: &Connector,
    mismatches: &IntCounterVec,
) -> Option<Heard> {
    let now = Instant::now();
    let is_in = |slot: &&EndpointSlot| slot.state.addresses.count() > 0 && pool.is_used(slot, now);
    let mut endpoints: Vec<_> = pool.endpoints.iter().filter(is_in).collect();
    endpoints.sort_by_key(|slot| slot.settings.priority);
    let mut failed = None;
    for slot in endpoints.into_iter().take(MOST_ENDPOINTS) {
        let path = format!("{}{PATH}", slot.settings.base_path);
        let question = Question {
            slot,
            address: slot.state.addresses.next(Visit::MayTry, now),
            account: Some(account),
            path: &path,
            patience: PATIENCE,
            most_body: MOST_BODY,
        };
        let asked = probe::ask(pool, &question, connector, mismatches);
        let why = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok((status, body))) => return Some(heard(status, &body)),
            Ok(Err(cause)) => cause.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        failed = Some(Heard::Failed(why));
    }
    failed
}

fn heard(status: u16, body: &[u8]) -> Heard {
    match status {
        200 => read(body).map_or_else(|why| Heard::Failed(why.to_string()), Heard::Report),
        401 | 403 => Heard::Refused,
        status => Heard::Failed(format!("status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_balance_under_200_says_anything_of_the_account() {
        let body = br#"{"is_available": false, "balance_infos": []}"#;
        assert!(matches!(heard(200, body), Heard::Report(_)));
        assert_eq!(heard(401, body), Heard::Refused);
        for (status, body) in [(402, &body[..]), (500, body), (302, body), (200, b"<html>")] {
            assert!(matches!(heard(status, body), Heard::Failed(_)), "{status}");
        }
    }
}
