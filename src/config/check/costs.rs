//! Finds what costs nothing for want of a price although somebody's costs are limited.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Check;
use super::plans::Plans;
use crate::config::file::File;
use crate::config::mistake::KeyPath;
use crate::config::settings::{GroupId, Plan, PlanId, Quantity};

impl Check<'_, '_> {
    /// Tells which upstream models cost nothing although somebody's costs are limited.
    pub(super) fn unpriced(&mut self, file: &File, plans: &Plans) {
        let prices = &file.accounting.prices;
        let priced: HashSet<(&str, &str)> = prices
            .iter()
            .map(|price| (price.upstream.as_str(), price.model.as_str()))
            .collect();
        let mut told = HashSet::new();
        for (name, plan) in limited_costs(file, plans) {
            // An alias has the variants of its target.
            let alias = file.models.get(name).and_then(|model| model.alias.as_ref());
            let name = alias.map_or(name, String::as_str);
            let variants = file
                .models
                .get(name)
                .and_then(|model| model.variants.as_ref());
            let models = KeyPath::Root.key("models");
            let model = models.key(name);
            let list = model.key("variants");
            for (index, variant) in variants.into_iter().flatten().enumerate() {
                let pair = (variant.upstream.as_str(), variant.model.as_str());
                if !priced.contains(&pair) && told.insert(pair) {
                    let found = format!("no price, and the plan {plan} limits costs");
                    let advice = "it costs nothing, and never reaches the limit; add it to `accounting.prices`";
                    self.report.warning(list.index(index), found, advice);
                }
            }
        }
    }
}

/// What a plan says of costs.
#[derive(Default)]
struct Costs<'p> {
    /// Limits those of all models together.
    whole: bool,
    /// Limits those of these.
    models: HashSet<&'p str>,
    /// A tenant that may use every model has the plan.
    open: bool,
}

impl<'p> Costs<'p> {
    fn of(plan: &'p Plan) -> Self {
        let mut costs = Self::default();
        let keys = plan.limits.iter().map(|limit| &limit.key);
        for key in keys.filter(|key| key.quantity == Quantity::Cost) {
            match &key.model {
                Some(model) => drop(costs.models.insert(model)),
                None => costs.whole = true,
            }
        }
        costs
    }
}

/// The public models that tenants may use under a limit of costs, each with a plan that has one.
/// Many tenants with many models are looked at in one pass.
fn limited_costs<'f>(file: &'f File, plans: &'f Plans) -> BTreeMap<&'f str, &'f PlanId> {
    let mut costs: HashMap<&PlanId, Costs<'_>> = HashMap::new();
    let mut found = BTreeMap::new();
    let mut everywhere = None;
    for tenant in &file.tenants {
        let own = plans.all.get(&PlanId::new(&tenant.plan));
        let group = tenant.group.as_ref();
        let group = group.and_then(|group| plans.groups.get(&GroupId::new(group)));
        for plan in own.into_iter().chain(group.map(|group| &group.plan)) {
            let costs = costs.entry(&plan.id).or_insert_with(|| Costs::of(plan));
            let names = tenant.models.iter().map(String::as_str);
            if !names.clone().any(|name| name == "*") {
                let limited = names.filter(|name| costs.whole || costs.models.contains(name));
                found.extend(limited.map(|name| (name, &plan.id)));
            } else if !costs.open {
                costs.open = true;
                found.extend(costs.models.iter().map(|name| (*name, &plan.id)));
                everywhere = everywhere.or(costs.whole.then_some(&plan.id));
            }
        }
    }
    if let Some(plan) = everywhere {
        found.extend(file.models.keys().map(|name| (name.as_str(), plan)));
    }
    found
}
