//! Decides what the tokens of one answer cost, and what the provider's cache saved.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use crate::config::settings::Rates;
use crate::relay::usage::Usage;

/// Pico-units of a rate in one nano-unit of money.
const PICO_IN_NANO: u128 = 1_000;
/// Decimals of a nano-unit.
const DECIMALS: usize = 9;

/// An amount in nano-units (10⁻⁹) of the accounting currency; sums saturate.
///
/// Shown with six decimals, or as many as asked for up to nine, which are exact; rounded half up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Money(u64);

impl Money {
    pub const ZERO: Self = Self(0);

    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn nanos(self) -> u64 {
        self.0
    }
}

impl Add for Money {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Money {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(6).min(DECIMALS);
        let scale = |digits: usize| (0..digits).fold(1u128, |scale, _| scale.saturating_mul(10));
        let cut = scale(DECIMALS.saturating_sub(decimals));
        let rounded = u128::from(self.0).saturating_add(cut / 2) / cut;
        let one = scale(decimals);
        match decimals {
            0 => write!(f, "{rounded}"),
            _ => write!(f, "{}.{:0decimals$}", rounded / one, rounded % one),
        }
    }
}

/// What an answer cost: tokens from the cache, other tokens of the prompt, and all of the answer,
/// each at its rate. Rounded up once, to a whole nano-unit.
pub fn cost(rates: Rates, usage: &Usage) -> Money {
    let cached = usage.cached.min(usage.prompt);
    let missed = usage.prompt.saturating_sub(cached);
    let picos = [
        (cached, rates.cache_hit),
        (missed, rates.cache_miss),
        (usage.completion, rates.output),
    ];
    // Each product is below 2¹²⁸ and the sum saturates, far beyond what money holds.
    let picos = picos
        .iter()
        .map(|&(tokens, rate)| u128::from(tokens).saturating_mul(u128::from(rate)))
        .fold(0u128, u128::saturating_add);
    money(picos.div_ceil(PICO_IN_NANO))
}

/// How much more it would have cost without the provider's cache. Rounded down.
pub fn saved(rates: Rates, usage: &Usage) -> Money {
    let cached = u128::from(usage.cached.min(usage.prompt));
    let less = u128::from(rates.cache_miss.saturating_sub(rates.cache_hit));
    money(cached.saturating_mul(less) / PICO_IN_NANO)
}

fn money(nanos: u128) -> Money {
    Money(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// deepseek-flash in USD, off peak.
    const FLASH: Rates = Rates {
        cache_hit: 3_000,
        cache_miss: 150_000,
        output: 600_000,
    };

    fn usage(prompt: u64, cached: u64, completion: u64) -> Usage {
        Usage {
            prompt,
            cached,
            completion,
            reasoning: 0,
        }
    }

    #[test]
    fn a_million_of_each_costs_what_the_price_list_says() {
        let million = usage(2_000_000, 1_000_000, 1_000_000);
        assert_eq!(cost(FLASH, &million).to_string(), "0.753000");
        assert_eq!(saved(FLASH, &million).to_string(), "0.147000");
    }

    #[test]
    fn a_part_of_a_nano_is_charged_once_and_not_for_each_kind_of_token() {
        let rates = Rates {
            cache_hit: 1,
            cache_miss: 1,
            output: 1,
        };
        assert_eq!(cost(rates, &usage(2, 1, 1)), Money::from_nanos(1));
        assert_eq!(cost(rates, &usage(0, 0, 0)), Money::ZERO);
        assert_eq!(cost(rates, &usage(1_000, 0, 1)), Money::from_nanos(2));
        assert_eq!(saved(FLASH, &usage(0, 0, 9)), Money::ZERO);
    }

    #[test]
    fn a_cache_that_costs_more_saves_nothing() {
        let rates = Rates {
            cache_hit: 5_000,
            cache_miss: 1_000,
            output: 0,
        };
        assert_eq!(saved(rates, &usage(10, 10, 0)), Money::ZERO);
    }

    #[test]
    fn absurd_counts_cost_the_most_there_is() {
        let rates = Rates {
            cache_hit: u64::MAX,
            cache_miss: u64::MAX,
            output: u64::MAX,
        };
        let all = usage(u64::MAX, 7, u64::MAX);
        assert_eq!(cost(rates, &all), Money::from_nanos(u64::MAX));
        assert_eq!(cost(rates, &all) + Money::from_nanos(1), cost(rates, &all));
    }

    #[test]
    fn amounts_are_shown_with_six_decimals_or_as_many_as_asked_for() {
        let amount = Money::from_nanos(1_234_567_891);
        assert_eq!(amount.to_string(), "1.234568");
        assert_eq!(format!("{amount:.9}"), "1.234567891");
        assert_eq!(format!("{amount:.2}"), "1.23");
        assert_eq!(format!("{amount:.0}"), "1");
        assert_eq!(Money::from_nanos(999_999_999).to_string(), "1.000000");
        let most = Money::from_nanos(u64::MAX);
        assert_eq!(format!("{most:.12}"), "18446744073.709551615");
    }

    proptest! {
        #[test]
        fn rounding_adds_less_than_a_nano(
            prompt in 0u64..1 << 40, cached in 0u64..1 << 40, completion in 0u64..1 << 40,
            hit in 0u64..1 << 20, miss in 0u64..1 << 20, output in 0u64..1 << 20,
        ) {
            let rates = Rates { cache_hit: hit, cache_miss: miss, output };
            let usage = usage(prompt, cached.min(prompt), completion);
            let exact = u128::from(usage.cached) * u128::from(hit)
                + u128::from(prompt - usage.cached) * u128::from(miss)
                + u128::from(completion) * u128::from(output);
            let charged = u128::from(cost(rates, &usage).nanos()) * 1_000;
            prop_assert!(charged >= exact && charged - exact < 1_000);
        }

        #[test]
        fn what_was_saved_is_what_it_would_have_cost_more(
            prompt in 0u64..1 << 40, cached in 0u64..1 << 40,
            hit in 0u64..1 << 10, more in 0u64..1 << 20,
        ) {
            let rates = Rates { cache_hit: hit, cache_miss: hit + more, output: 0 };
            let with = usage(prompt, cached.min(prompt), 0);
            let without = usage(prompt, 0, 0);
            let difference = cost(rates, &without).nanos() - cost(rates, &with).nanos();
            prop_assert!(difference.abs_diff(saved(rates, &with).nanos()) <= 1);
        }
    }
}
