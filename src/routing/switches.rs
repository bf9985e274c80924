//! What operators have switched off while the gateway runs, or drained: by whom, since when and
//! why. Outlives reloads; where it is kept over a restart is not known here.
//!
//! A request asks what is off, and pays one atomic load while nothing is. Drains act through the
//! running state of accounts and endpoints, so no request asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::config::settings::{Settings, TenantId, UpstreamId};
use crate::upstream::pool::Registry;

/// Characters of a reason.
pub const MOST_REASON: usize = 200;
/// Characters of the name that an operator gives.
pub const MOST_AUTHOR: usize = 80;

/// What can be switched off or drained.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Tenant(Arc<str>),
    /// A public name; an alias of it is another one.
    Model(Arc<str>),
    /// With it every variant that leads to it.
    Upstream(Arc<str>),
    Account {
        upstream: Arc<str>,
        account: Arc<str>,
    },
    Endpoint {
        upstream: Arc<str>,
        url: Arc<str>,
    },
}

/// Who did it, when and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub since: Timestamp,
    /// As the operator says; may be empty.
    pub author: String,
    /// The address it came from.
    pub from: String,
    /// At most [`MOST_REASON`] characters; for operators alone.
    pub reason: String,
}

/// A target and what is noted of it.
pub type Entry = (Target, Note);

/// How many changes there were, the one that is meant included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64);

/// All that is off or drained.
pub struct Switches {
    /// Nothing is looked up while this is false.
    any: AtomicBool,
    off: ArcSwap<Off>,
    inner: Mutex<Inner>,
    registry: Arc<Registry>,
}

/// What requests ask for. A handful at most, so it is looked through.
#[derive(Default)]
struct Off {
    tenants: Vec<Arc<str>>,
    models: Vec<Arc<str>>,
    upstreams: Vec<Arc<str>>,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<Target, Note>,
    /// What was changed since the start: it says more than what was kept before.
    touched: BTreeSet<Target>,
    version: u64,
    /// The version that is kept; `None` if nobody knows.
    kept: Option<u64>,
    waiting: Vec<Waker>,
}

impl Target {
    /// The word for what it is: in paths, labels, and where it is kept.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenant",
            Self::Model(_) => "model",
            Self::Upstream(_) => "upstream",
            Self::Account { .. } => "account",
            Self::Endpoint { .. } => "endpoint",
        }
    }

    /// The upstream it is a part of.
    pub fn part_of(&self) -> Option<&str> {
        match self {
            Self::Tenant(_) | Self::Model(_) | Self::Upstream(_) => None,
            Self::Account { upstream, .. } | Self::Endpoint { upstream, .. } => Some(upstream),
        }
    }

    /// Its own name.
    pub fn name(&self) -> &str {
        match self {
            Self::Tenant(name) | Self::Model(name) | Self::Upstream(name) => name,
            Self::Account { account, .. } => account,
            Self::Endpoint { url, .. } => url,
        }
    }

    /// From its three parts, as they are kept; `None` for a kind that this version does not know.
    pub fn from_parts(kind: &str, part_of: &str, name: &str) -> Option<Self> {
        let (upstream, name): (Arc<str>, Arc<str>) = (part_of.into(), name.into());
        Some(match kind {
            "tenant" => Self::Tenant(name),
            "model" => Self::Model(name),
            "upstream" => Self::Upstream(name),
            "account" => Self::Account {
                upstream,
                account: name,
            },
            "endpoint" => Self::Endpoint {
                upstream,
                url: name,
            },
            _ => return None,
        })
    }

    /// A drain lets what is under way end and sends nothing new; it is no switch.
    pub fn is_drain(&self) -> bool {
        self.part_of().is_some()
    }

    /// The names of its kind in the configuration: what it could have meant.
    pub fn peers<'s>(&self, settings: &'s Settings) -> Vec<&'s str> {
        let upstream = |id: &str| settings.upstreams.iter().find(|it| it.id.as_str() == id);
        match self {
            Self::Tenant(_) => settings.tenants.iter().map(|it| it.id.as_str()).collect(),
            Self::Model(_) => {
                let mut names: Vec<_> = settings.models.keys().map(String::as_str).collect();
                names.sort_unstable();
                names
            }
            Self::Upstream(_) => settings.upstreams.iter().map(|it| it.id.as_str()).collect(),
            Self::Account { upstream: id, .. } => upstream(id).map_or_else(Vec::new, |upstream| {
                upstream.accounts.iter().map(|it| it.id.as_str()).collect()
            }),
            Self::Endpoint { upstream: id, .. } => upstream(id).map_or_else(Vec::new, |upstream| {
                upstream
                    .endpoints
                    .iter()
                    .map(|it| it.url.as_str())
                    .collect()
            }),
        }
    }

    /// Is there such a one in the configuration? If not, it stays switched and does nothing.
    pub fn is_known(&self, settings: &Settings) -> bool {
        self.peers(settings).contains(&self.name())
    }
}

/// The name, that of its upstream before it: `deepseek/main`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part_of() {
            Some(upstream) => write!(f, "{upstream}/{}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}

impl Switches {
    /// Nothing is off. Drains act on what the registry has.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            any: AtomicBool::new(false),
            off: ArcSwap::default(),
            inner: Mutex::new(Inner {
                kept: Some(0),
                ..Inner::default()
            }),
            registry,
        }
    }

    /// Is nothing of this tenant's to be served?
    pub fn tenant_is_off(&self, tenant: &TenantId) -> bool {
        self.is_off(|off| &off.tenants, tenant.as_str())
    }

    /// Is nothing to be served under this public name?
    pub fn model_is_off(&self, model: &str) -> bool {
        self.is_off(|off| &off.models, model)
    }

    /// Is nothing new to be sent to this upstream?
    pub fn upstream_is_off(&self, upstream: &UpstreamId) -> bool {
        self.is_off(|off| &off.upstreams, upstream.as_str())
    }

    fn is_off(&self, names: impl Fn(&Off) -> &Vec<Arc<str>>, name: &str) -> bool {
        self.any.load(Ordering::Relaxed) && names(&self.off.load()).iter().any(|off| **off == *name)
    }

    /// Switches off, or drains; what was noted before gives way, but for since when. It holds at
    /// once.
    pub fn set(&self, target: Target, mut note: Note) -> Version {
        let mut inner = self.inner.lock();
        if let Some(before) = inner.entries.get(&target) {
            note.since = before.since;
        }
        inner.touched.insert(target.clone());
        self.act(&target, true);
        inner.entries.insert(target, note);
        self.changed(&mut inner)
    }

    /// Switches on again, or lets take new requests; `None` if it was never otherwise.
    pub fn clear(&self, target: &Target) -> Option<Version> {
        let mut inner = self.inner.lock();
        inner.entries.remove(target)?;
        inner.touched.insert(target.clone());
        self.act(target, false);
        Some(self.changed(&mut inner))
    }

    /// What is noted of a target, if it is off or drained.
    pub fn get(&self, target: &Target) -> Option<Note> {
        self.inner.lock().entries.get(target).cloned()
    }

    /// All that is off or drained, in a fixed order.
    pub fn list(&self) -> Vec<Entry> {
        entries(&self.inner.lock())
    }

    /// Takes over what was kept before. What was changed since the start stays as it is.
    pub fn restore(&self, kept: Vec<Entry>) {
        let mut inner = self.inner.lock();
        for (target, note) in kept {
            if !inner.touched.contains(&target) {
                self.act(&target, true);
                inner.entries.insert(target, note);
            }
        }
        self.publish(&inner);
    }

    /// Drains what a new configuration has brought, if it was drained before.
    pub fn follow(&self) {
        let inner = self.inner.lock();
        for target in inner.entries.keys() {
            self.act(target, true);
        }
    }

    /// All that is off or drained, if that is not what is kept.
    pub fn unkept(&self) -> Option<(Version, Vec<Entry>)> {
        let inner = self.inner.lock();
        let unkept = inner.kept != Some(inner.version);
        unkept.then(|| (Version(inner.version), entries(&inner)))
    }

    /// So much of it is kept now.
    pub fn note_kept(&self, version: Version) {
        let mut inner = self.inner.lock();
        inner.kept = Some(version.0);
        inner.waiting.drain(..).for_each(Waker::wake);
    }

    /// Nothing of it is kept any more.
    pub fn keep_again(&self) {
        self.inner.lock().kept = None;
    }

    /// Waits until that version, or a later one, is kept; that may be never.
    pub async fn kept(&self, version: Version) {
        std::future::poll_fn(|context| {
            let mut inner = self.inner.lock();
            if inner.kept >= Some(version.0) {
                return Poll::Ready(());
            }
            inner.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn changed(&self, inner: &mut Inner) -> Version {
        inner.version += 1;
        self.publish(inner);
        Version(inner.version)
    }

    /// Shows requests what is off. Before `any`, so that nobody looks into an older picture.
    fn publish(&self, inner: &Inner) {
        let mut off = Off::default();
        for target in inner.entries.keys() {
            match target {
                Target::Tenant(name) => off.tenants.push(name.clone()),
                Target::Model(name) => off.models.push(name.clone()),
                Target::Upstream(name) => off.upstreams.push(name.clone()),
                Target::Account { .. } | Target::Endpoint { .. } => {}
            }
        }
        let any = !(off.tenants.is_empty() && off.models.is_empty() && off.upstreams.is_empty());
        self.off.store(Arc::new(off));
        self.any.store(any, Ordering::Release);
    }

    /// Drains act on the running state. One that is not there yet is found by [`Switches::follow`].
    fn act(&self, target: &Target, drained: bool) {
        match target {
            Target::Account { upstream, account } => {
                if let Some(state) = self.registry.account(upstream, account) {
                    state.drain(drained);
                }
            }
            Target::Endpoint { upstream, url } => {
                if let Some(state) = self.registry.endpoint_of(upstream, url) {
                    state.drain(drained);
                }
            }
            Target::Tenant(_) | Target::Model(_) | Target::Upstream(_) => {}
        }
    }
}

fn entries(inner: &Inner) -> Vec<Entry> {
    let entries = inner.entries.iter();
    entries
        .map(|(target, note)| (target.clone(), note.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
