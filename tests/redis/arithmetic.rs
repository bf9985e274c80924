//! Lua counts in doubles. Its arithmetic is compared with exact integers up to the stated bounds.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tidegate::admission::store_redis::ask::{LIMIT, MAX_AMOUNT};

use crate::support::Server;

const PRELUDE: &str = include_str!("../../src/admission/store_redis/prelude.lua");
const HOUR_NS: u64 = 3_600_000_000_000;

#[test]
fn the_cost_is_exact_up_to_the_stated_bounds() {
    let server = Server::start(&[]);
    let client = redis::Client::open(format!("redis://{}", server.address())).unwrap();
    let mut connection = client.get_connection().unwrap();
    let script = redis::Script::new(&format!(
        "{PRELUDE} return text(cost(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])))"
    ));
    let mut cost = |n: u64, period: u64, amount: u64| -> u64 {
        let mut call = script.key("{t}");
        call.key("{t}:hosts").key("{t}:host:h");
        call.arg("h").arg("1").arg(1).arg(n).arg(period).arg(amount);
        let text: String = call.invoke(&mut connection).unwrap();
        text.parse().unwrap()
    };
    let exact = |n: u64, period: u64, amount: u64| {
        let ns = (u128::from(n) * u128::from(period)).div_ceil(u128::from(amount));
        u64::try_from(ns).unwrap_or(LIMIT).min(LIMIT)
    };
    let edges = [
        1,
        2,
        3,
        7,
        59,
        60,
        61,
        999_983,
        1 << 20,
        MAX_AMOUNT - 1,
        MAX_AMOUNT,
    ];
    let periods = [1_000_000_000, 60_000_000_000, HOUR_NS, 24 * HOUR_NS];
    for n in edges.into_iter().chain([0, LIMIT - 1, LIMIT, 2 * LIMIT]) {
        for period in periods {
            for amount in edges {
                assert_eq!(
                    cost(n, period, amount),
                    exact(n, period, amount),
                    "{n} {period} {amount}"
                );
            }
        }
    }
    let mut runner = TestRunner::default();
    let sizes = (0..=40_u32, 0..=40_u32);
    let cases = (sizes, any::<u64>(), any::<u64>(), 0..4_usize).prop_map(|((a, b), n, m, p)| {
        let amount = (m >> (24 + b.min(39))).clamp(1, MAX_AMOUNT);
        (n >> (12 + a), periods[p], amount)
    });
    for _ in 0..5000 {
        use proptest::strategy::ValueTree;
        let (n, period, amount) = cases.new_tree(&mut runner).unwrap().current();
        assert_eq!(
            cost(n, period, amount),
            exact(n, period, amount),
            "{n} {period} {amount}"
        );
    }
}
