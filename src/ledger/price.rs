//! Decides what a token of an upstream's model costs at an instant: the latest price that has begun,
//! at peak or not. It must not know what was used.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use super::peak;
use crate::config::settings::{Accounting, Price, Rates, UpstreamId};

/// All prices of a configuration.
#[derive(Debug, Default)]
pub struct PriceTable {
    models: HashMap<UpstreamId, HashMap<String, ModelPrices>>,
}

/// The prices of one upstream's model, cheap to clone. Clones share what they found last.
#[derive(Debug, Clone, Default)]
pub struct ModelPrices(Arc<Prices>);

#[derive(Debug, Default)]
struct Prices {
    /// By the instant from which they hold.
    prices: Vec<Price>,
    /// The answer of the last question, for as long as it stands.
    found: ArcSwapOption<Section>,
}

/// A stretch of time in which the rates are the same.
#[derive(Debug)]
struct Section {
    from: Timestamp,
    /// Not included.
    until: Timestamp,
    rates: Option<Rates>,
}

impl PriceTable {
    /// Sorts the prices by what they are for. Of two that begin together the later in the list
    /// counts.
    pub fn new(accounting: &Accounting) -> Self {
        let mut lists: HashMap<UpstreamId, HashMap<String, Vec<Price>>> = HashMap::new();
        for price in &accounting.prices {
            let models = lists.entry(price.upstream.clone()).or_default();
            models
                .entry(price.model.clone())
                .or_default()
                .push(price.clone());
        }
        let models = lists.into_iter().map(|(upstream, models)| {
            let models = models.into_iter();
            let models = models.map(|(model, prices)| (model, ModelPrices::new(prices)));
            (upstream, models.collect())
        });
        Self {
            models: models.collect(),
        }
    }

    /// The prices of `model`, as the upstream calls it; without a price, ones that say nothing.
    pub fn of(&self, upstream: &UpstreamId, model: &str) -> ModelPrices {
        let models = self.models.get(upstream);
        models
            .and_then(|models| models.get(model))
            .cloned()
            .unwrap_or_default()
    }
}

impl ModelPrices {
    fn new(mut prices: Vec<Price>) -> Self {
        prices.sort_by_key(|price| price.from);
        Self(Arc::new(Prices {
            prices,
            found: ArcSwapOption::empty(),
        }))
    }

    /// The rates at `now`, or nothing while no price has begun. Asked for each request: but at an
    /// edge it costs one atomic load and two comparisons.
    pub fn rates_at(&self, now: Timestamp) -> Option<Rates> {
        if let Some(section) = &*self.0.found.load()
            && section.from <= now
            && now < section.until
        {
            return section.rates;
        }
        let section = self.0.section(now);
        let rates = section.rates;
        self.0.found.store(Some(Arc::new(section)));
        rates
    }
}

impl Prices {
    /// From `now` on. What was before is left open: if the clock steps back, it is asked again.
    fn section(&self, now: Timestamp) -> Section {
        let begun = self.prices.partition_point(|price| price.from <= now);
        let next = self.prices.get(begun).map(|price| price.from);
        let mut until = next.unwrap_or(Timestamp::MAX);
        let price = begun.checked_sub(1).and_then(|last| self.prices.get(last));
        let rates = price.map(|price| match &price.peak {
            None => price.base,
            Some((hours, at_peak)) => {
                let (peak, edge) = peak::at(hours, now);
                until = until.min(edge);
                if peak { *at_peak } else { price.base }
            }
        });
        Section {
            from: now,
            until,
            rates,
        }
    }
}

#[cfg(test)]
mod tests;
