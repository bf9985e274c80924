//! The rules of `plans`, `groups` and `queue`: limits that can hold, of models that there are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{ABOVE_ZERO, Check};
use crate::config::file::{self, Amount, File, SurfaceLimits};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::money::{MoneyText, times};
use crate::config::nearest::hint;
use crate::config::settings::{
    CutCharge, DEFAULT_PLAN, Group, GroupId, Limit, LimitKey, OnDisconnect, Plan, PlanId, Priority,
    Queue, Surfaces,
};

/// A thousand million units, in nano-units: sums of many stay within 64 bits.
pub(super) const MOST_MONEY: u128 = 1_000_000_000 * 1_000_000_000;

/// Comments more often are traffic of their own, and more rarely keep nothing alive.
const LEAST_KEEP_ALIVE: Duration = Duration::from_secs(1);
const MOST_KEEP_ALIVE: Duration = Duration::from_secs(600);

/// What tenants may be given.
pub(super) struct Plans {
    pub all: BTreeMap<PlanId, Arc<Plan>>,
    pub groups: BTreeMap<GroupId, Arc<Group>>,
    /// For whom no other was named, and in place of one that is not there.
    default: Arc<Plan>,
}

impl Check<'_, '_> {
    pub(super) fn plans(&mut self, file: &File) -> Plans {
        let path = KeyPath::Root.key("plans");
        let aliases = aliases(file);
        let mut all = BTreeMap::new();
        for (name, written) in &file.plans {
            let path = path.key(name);
            self.id(name, path);
            all.insert(
                PlanId::new(name),
                Arc::new(self.plan(name, written, file, path)),
            );
            self.uncounted_aliases(written, &aliases, path);
        }
        let default = match all.get(&PlanId::new(DEFAULT_PLAN)) {
            Some(written) => Arc::clone(written),
            None => {
                let built_in = file::Plan::built_in();
                let plan = self.plan(DEFAULT_PLAN, &built_in, file, path);
                Arc::new(plan)
            }
        };
        all.insert(default.id.clone(), Arc::clone(&default));
        let mut plans = Plans {
            all,
            groups: BTreeMap::new(),
            default,
        };
        self.groups(file, &mut plans);
        plans
    }

    fn groups(&mut self, file: &File, plans: &mut Plans) {
        let path = KeyPath::Root.key("groups");
        let mut seen = HashMap::new();
        for (index, written) in file.groups.iter().enumerate() {
            let path = path.index(index);
            self.id(&written.id, path.key("id"));
            self.unique(&mut seen, &written.id, &quoted(&written.id), path.key("id"));
            let group = Group {
                id: GroupId::new(&written.id),
                plan: self.known_plan(&written.plan, plans, path.key("plan")),
            };
            plans.groups.insert(group.id.clone(), Arc::new(group));
        }
    }

    pub(super) fn known_plan(&mut self, name: &str, plans: &Plans, path: KeyPath<'_>) -> Arc<Plan> {
        if let Some(plan) = plans.all.get(&PlanId::new(name)) {
            return Arc::clone(plan);
        }
        if !self.report.is_full() {
            let hint = hint(name, plans.all.keys().map(PlanId::as_str));
            let found = format!("no plan has the name {}", quoted(name));
            let allowed = format!("names of `plans` may stand here{hint}");
            self.report.mistake(path, found, allowed);
        }
        Arc::clone(&plans.default)
    }

    pub(super) fn known_group(
        &mut self,
        id: &str,
        plans: &Plans,
        path: KeyPath<'_>,
    ) -> Option<Arc<Group>> {
        let group = plans.groups.get(&GroupId::new(id)).map(Arc::clone);
        if group.is_none() && !self.report.is_full() {
            let hint = hint(id, plans.groups.keys().map(GroupId::as_str));
            let found = format!("no group has the id {}", quoted(id));
            let allowed = format!("ids of `groups` may stand here{hint}");
            self.report.mistake(path, found, allowed);
        }
        group
    }

    fn plan(&mut self, name: &str, written: &file::Plan, file: &File, path: KeyPath<'_>) -> Plan {
        let mut limits = Vec::new();
        let mut scope = Scope {
            file,
            shadow: written.shadow,
            model: None,
            limits: &mut limits,
        };
        self.add_limits(&mut scope, Surfaces::All, written.limits(), path);
        self.surfaces_of(&mut scope, plan_surfaces(written), path);
        let models = path.key("models");
        for (model, written) in &written.models {
            let path = models.key(model);
            self.limited_model(model, file, path);
            scope.model = Some(Arc::from(model.as_str()));
            self.add_limits(&mut scope, Surfaces::All, written.limits(), path);
            self.surfaces_of(&mut scope, model_surfaces(written), path);
        }
        let drain = self.duration(written.drain_timeout, ABOVE_ZERO, path.key("drain_timeout"));
        Plan {
            id: PlanId::new(name),
            limits,
            weight: written.weight,
            priority: match written.priority {
                file::Priority::High => Priority::High,
                file::Priority::Normal => Priority::Normal,
                file::Priority::Low => Priority::Low,
            },
            cut: match written.cut_charge {
                file::CutCharge::Estimate => CutCharge::Estimate,
                file::CutCharge::Reported => CutCharge::Reported,
            },
            on_disconnect: match written.on_disconnect {
                file::OnDisconnect::Cancel => OnDisconnect::Cancel,
                file::OnDisconnect::Drain => OnDisconnect::Drain(drain),
            },
        }
    }

    fn surfaces_of(
        &mut self,
        scope: &mut Scope<'_>,
        surfaces: [(Surfaces, &Option<SurfaceLimits>); 6],
        path: KeyPath<'_>,
    ) {
        for (surfaces, written) in surfaces {
            if let Some(written) = written {
                let path = path.key(surfaces.as_str());
                self.add_limits(scope, surfaces, written.limits(), path);
            }
        }
    }

    fn add_limits<'w>(
        &mut self,
        scope: &mut Scope<'_>,
        surfaces: Surfaces,
        written: impl Iterator<Item = file::Written<'w>>,
        path: KeyPath<'_>,
    ) {
        for limit in written {
            let path = path.key(limit.key);
            let amount = match limit.amount {
                Amount::Count(count) => count,
                Amount::Money(money) => self.money(money, scope.file, path),
            };
            let burst = limit.burst.unwrap_or(amount);
            if burst > amount {
                self.report.mistake(
                    path.key("burst"),
                    format!("{burst}, more than the limit"),
                    format!("expected at most {amount}"),
                );
            }
            scope.limits.push(Limit {
                key: LimitKey {
                    surfaces,
                    model: scope.model.clone(),
                    quantity: limit.quantity,
                    window: limit.window,
                },
                amount,
                burst,
                shadow: limit.shadow || scope.shadow,
            });
        }
    }

    /// Nano-units of the currency of accounting, at least 1.
    fn money(&mut self, written: &MoneyText, file: &File, path: KeyPath<'_>) -> u64 {
        let Some(rate) = self.exchange_rate(&written.currency, file, path) else {
            return 1;
        };
        let nanos = times(written.nanos, rate);
        if nanos == 0 || nanos > MOST_MONEY || written.nanos > MOST_MONEY {
            let currency = &file.accounting.currency;
            let allowed = format!("expected more than 0 and at most 1000000000 {currency}");
            self.report.mistake(path, written.to_string(), allowed);
        }
        u64::try_from(nanos.clamp(1, MOST_MONEY)).unwrap_or(1)
    }

    fn limited_model(&mut self, model: &str, file: &File, path: KeyPath<'_>) {
        if file.models.contains_key(model) || self.report.is_full() {
            return;
        }
        let hint = hint(model, file.models.keys().map(String::as_str));
        let found = format!("no model has the name {}", quoted(model));
        let allowed =
            format!("names of `models` may stand here, not those that upstreams have{hint}");
        self.report.mistake(path, found, allowed);
    }

    /// A limit of a model that can be had under another name is none for whoever knows it.
    fn uncounted_aliases(
        &mut self,
        written: &file::Plan,
        aliases: &Aliases<'_>,
        path: KeyPath<'_>,
    ) {
        let path = path.key("models");
        for target in written.models.keys() {
            let aliases = aliases.get(target.as_str()).into_iter().flatten();
            let mut uncounted = aliases.filter(|alias| !written.models.contains_key(**alias));
            if let Some(alias) = uncounted.next() {
                let found = format!("{} is an alias of it, without limits", quoted(alias));
                let advice =
                    "an alias counts for itself; limit it too, or keep it from the tenants";
                self.report.warning(path.key(target), found, advice);
            }
        }
    }

    pub(super) fn queue(&mut self, written: &file::Queue) -> Queue {
        let path = KeyPath::Root.key("queue");
        let (least, most) = (LEAST_KEEP_ALIVE, MOST_KEEP_ALIVE);
        Queue {
            max_length: written.max_length,
            max_wait: self.duration(written.max_wait, ABOVE_ZERO, path.key("max_wait")),
            keep_alive: written
                .keep_alive
                .map(|often| self.between(often, least, most, path.key("keep_alive"))),
        }
    }
}

/// Public names by the one that they are an alias of.
type Aliases<'f> = HashMap<&'f str, Vec<&'f str>>;

fn aliases(file: &File) -> Aliases<'_> {
    let mut aliases = Aliases::new();
    for (name, model) in &file.models {
        if let Some(target) = &model.alias {
            aliases.entry(target).or_default().push(name);
        }
    }
    aliases
}

/// Where in a plan limits stand.
struct Scope<'a> {
    file: &'a File,
    /// Of the whole plan.
    shadow: bool,
    model: Option<Arc<str>>,
    limits: &'a mut Vec<Limit>,
}

fn plan_surfaces(written: &file::Plan) -> [(Surfaces, &Option<SurfaceLimits>); 6] {
    [
        (Surfaces::Text, &written.text),
        (Surfaces::Chat, &written.chat),
        (Surfaces::Completions, &written.completions),
        (Surfaces::Embeddings, &written.embeddings),
        (Surfaces::Messages, &written.messages),
        (Surfaces::Responses, &written.responses),
    ]
}

fn model_surfaces(written: &file::ModelLimits) -> [(Surfaces, &Option<SurfaceLimits>); 6] {
    [
        (Surfaces::Text, &written.text),
        (Surfaces::Chat, &written.chat),
        (Surfaces::Completions, &written.completions),
        (Surfaces::Embeddings, &written.embeddings),
        (Surfaces::Messages, &written.messages),
        (Surfaces::Responses, &written.responses),
    ]
}
