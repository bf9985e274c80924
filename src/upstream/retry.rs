//! May a failed attempt be tried again, and what must the next one avoid? Pure.
//!
//! Only failures before the client saw anything come here. Statuses and whose fault they are:
//! DeepSeek's error_codes page. A request the upstream calls bad (400, 404, 413, 415, 422) is bad
//! everywhere and is never repeated.

use super::pool::Tried;

/// What went wrong with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or no TLS.
    Connect,
    /// The connection ended before an answer began.
    Reset,
    /// A pooled connection was dead when it was used; the upstream saw nothing.
    StaleConnection,
    /// Nothing came in time.
    Timeout,
    /// A whole answer with a status that is not a success.
    Status(u16),
    /// What came was not HTTP.
    Garbage,
}

impl Failure {
    /// The label in `tidegate_attempts_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect_failed",
            Self::Reset => "reset",
            Self::StaleConnection => "stale_connection",
            Self::Timeout => "timeout",
            Self::Garbage => "garbage",
            Self::Status(401..=403) => "account_refused",
            Self::Status(429) => "rate_limited",
            Self::Status(500..) => "server_error",
            Self::Status(_) => "client_error",
        }
    }

    /// Does it speak against the endpoint's health?
    pub fn blames_endpoint(self) -> bool {
        matches!(self, Self::Connect)
    }
}

/// What the next attempt should do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Avoid {
    Endpoint,
    Account,
    /// The account until it has rested.
    Limited,
    /// Whichever there is another one of.
    Either,
    /// Nothing: the same account and endpoint are fine.
    Nothing,
}

/// May this failure be tried again, and avoiding what? `None` for never.
pub fn next(failure: Failure) -> Option<Avoid> {
    match failure {
        Failure::Connect => Some(Avoid::Endpoint),
        Failure::StaleConnection => Some(Avoid::Nothing),
        Failure::Status(401..=403) => Some(Avoid::Account),
        Failure::Status(429) => Some(Avoid::Limited),
        Failure::Reset | Failure::Status(500..=599) => Some(Avoid::Either),
        Failure::Timeout | Failure::Garbage | Failure::Status(_) => None,
    }
}

/// How much there is to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    pub accounts: usize,
    pub endpoints: usize,
    /// Addresses of the endpoint that was used.
    pub addresses: usize,
    /// Accounts at their limit can be waited for.
    pub queue: bool,
    /// The one that was used rests: it is not chosen before it has.
    pub rests: bool,
}

/// Notes what the next attempt must leave out.
pub fn set_aside(tried: &mut Tried, avoid: Avoid, account: usize, endpoint: usize, choice: Choice) {
    let another = choice.accounts > tried.accounts.len() + 1;
    match avoid {
        Avoid::Nothing => {}
        // It is asked again when it has rested, if no other has taken the request by then.
        Avoid::Limited if choice.queue && (choice.rests || !another) => {}
        Avoid::Account | Avoid::Limited => tried.accounts.push(account),
        // A name with several addresses is several places; the next attempt takes the next one.
        Avoid::Endpoint if choice.endpoints == 1 && choice.addresses > 1 => {}
        Avoid::Endpoint => tried.endpoints.push(endpoint),
        Avoid::Either if another => tried.accounts.push(account),
        Avoid::Either => tried.endpoints.push(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_request_is_never_repeated() {
        for status in [400, 404, 405, 409, 413, 415, 422] {
            assert_eq!(next(Failure::Status(status)), None);
        }
    }

    #[test]
    fn each_failure_avoids_what_caused_it() {
        assert_eq!(next(Failure::Connect), Some(Avoid::Endpoint));
        assert_eq!(next(Failure::Status(429)), Some(Avoid::Limited));
        assert_eq!(next(Failure::Status(402)), Some(Avoid::Account));
        assert_eq!(next(Failure::Status(503)), Some(Avoid::Either));
        assert_eq!(next(Failure::StaleConnection), Some(Avoid::Nothing));
        assert_eq!(next(Failure::Timeout), None);
    }

    #[test]
    fn an_account_at_its_limit_is_left_out_only_if_it_cannot_be_waited_for() {
        for (queue, rests, accounts, left_out) in [
            (true, true, 2, 0),
            (true, true, 1, 0),
            // It need not rest: another one is better, but it is better than none.
            (true, false, 2, 1),
            (true, false, 1, 0),
            (false, true, 1, 1),
        ] {
            let choice = Choice {
                accounts,
                endpoints: 1,
                addresses: 1,
                queue,
                rests,
            };
            let mut tried = Tried::default();
            set_aside(&mut tried, Avoid::Limited, 0, 0, choice);
            assert_eq!(tried.accounts.len(), left_out);
            set_aside(&mut tried, Avoid::Account, 0, 0, choice);
            assert_eq!(tried.accounts.len(), left_out + 1);
        }
    }
}
