//! How things stand, as JSON for operators and as gauges for the scraper. Reads, decides nothing;
//! names ids, never a credential.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::states;
use crate::admission::store_redis::RedisCounts;
use crate::config::settings::{Credential, CredentialKind, Tenant, Validity};
use crate::identity::expiry;
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;
use crate::upstream::pool::{Lane, Pool};

/// The answer to `/status`.
pub fn report(snapshot: &Snapshot, ready: bool, now: Instant) -> Value {
    let upstreams: Vec<_> = snapshot
        .pools
        .iter()
        .map(|pool| upstream(snapshot, pool, now))
        .collect();
    let tenants: Vec<_> = snapshot
        .settings
        .tenants
        .iter()
        .map(|tenant| {
            json!({
                "id": tenant.id.as_str(),
                "enabled": tenant.enabled,
                "models": snapshot.routes.allowed(|name| tenant.models.allows(name)),
                "credentials": credentials(snapshot, tenant),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": ready,
        "upstreams": upstreams,
        "tenants": tenants,
    })
}

/// By id, with their times; what they are made of is known to nobody here.
fn credentials(snapshot: &Snapshot, tenant: &Tenant) -> Vec<Value> {
    let entry = |kind: CredentialKind, id: &str, validity: Option<&Validity>| {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let last_used = snapshot.directory.last_use(kind, id);
        json!({
            "kind": kind.as_str(),
            "id": id,
            "enabled": validity.is_none_or(|validity| validity.enabled),
            "not_before": validity.and_then(|validity| time(validity.not_before)),
            "not_after": validity.and_then(|validity| time(validity.not_after)),
            "last_used": last_used.and_then(|seconds| time(Timestamp::from_second(seconds).ok())),
        })
    };
    tenant
        .credentials
        .iter()
        .map(|credential| match credential {
            Credential::ApiKey(key) => entry(CredentialKind::ApiKey, &key.id, Some(&key.validity)),
            Credential::SignedRequest(signer) => entry(
                CredentialKind::SignedRequest,
                &signer.id,
                Some(&signer.validity),
            ),
            Credential::ClientCertificate(name) => {
                entry(CredentialKind::ClientCertificate, &name.to_string(), None)
            }
        })
        .collect()
}

fn upstream(snapshot: &Snapshot, pool: &Pool, now: Instant) -> Value {
    let loads: Vec<_> = snapshot
        .lanes()
        .filter(|lane| lane.pool.settings.id == pool.settings.id)
        .flat_map(|lane| {
            let loads = lane.loads().zip(lane.rests(now));
            loads.map(|((account, in_flight, ceiling), resting)| {
                json!({"account": account.as_str(), "model": lane.model, "in_flight": in_flight, "ceiling": ceiling, "resting": resting})
            })
        })
        .collect();
    json!({
        "id": pool.settings.id.as_str(),
        "endpoints": states::endpoints(pool, now),
        "accounts": states::accounts(snapshot, pool, now),
        "breakers": states::breakers(snapshot, pool, now),
        "in_flight": loads,
    })
}

/// When credentials end, for alerts.
fn refresh_credentials(metrics: &Metrics, snapshot: &Snapshot) {
    metrics.credential_expiry.reset();
    let ahead = snapshot.settings.identity.warn_before_expiry.as_secs();
    let horizon = Timestamp::now().as_second().saturating_add_unsigned(ahead);
    let tenants = snapshot.settings.tenants.iter().map(|tenant| &**tenant);
    let mut soon = 0;
    for ending in expiry::endings(tenants) {
        let labels = [ending.tenant.as_str(), ending.kind.as_str(), &ending.id];
        let gauge = metrics.credential_expiry.with_label_values(&labels);
        gauge.set(ending.not_after as f64);
        soon += i64::from(ending.not_after <= horizon);
    }
    metrics.credentials_expiring.set(soon);
    let held = i64::try_from(snapshot.directory.nonces_held()).unwrap_or(i64::MAX);
    metrics.nonces_held.set(held);
}

/// What is known of those who wait for a lane's places, and of what it learned. The totals are kept
/// where they are counted; here they are only copied.
fn refresh_line(metrics: &Metrics, lane: &Lane) {
    let (upstream, model) = (lane.pool.settings.id.as_str(), lane.model.as_str());
    let observed = lane.observed();
    let waiting = i64::try_from(observed.waiting).unwrap_or(i64::MAX);
    let length = metrics.queue_length.with_label_values(&[upstream, model]);
    length.set(waiting);
    for (outcome, count) in [
        ("granted", observed.granted),
        ("client_gone", observed.left),
        ("queue_full", observed.queue_full),
        ("shed", observed.shed),
        ("too_long", observed.too_long),
        ("late", observed.late),
        ("exhausted", observed.exhausted),
        ("closed", observed.closed),
    ] {
        let labels = [upstream, model, outcome];
        metrics
            .queue_outcomes
            .with_label_values(&labels)
            .inc_by(count);
    }
    for (account, governed) in lane.governed() {
        let labels = [upstream, account.as_str(), model];
        if let Some(learned) = governed.learned {
            let gauge = metrics.account_ceiling_learned.with_label_values(&labels);
            gauge.set(i64::from(learned));
        }
        for (cause, count) in [
            ("rate_limited", governed.rate_limited),
            ("slow", governed.slow),
        ] {
            let [upstream, account, model] = labels;
            let labels = [upstream, account, model, cause];
            let decreases = &metrics.account_ceiling_decreases;
            decreases.with_label_values(&labels).inc_by(count);
        }
    }
}

/// How the counts in Redis are, for the scraper.
pub fn refresh_shared(metrics: &Metrics, counts: &RedisCounts) {
    let state = counts.state();
    metrics.shared_counts_up.set(i64::from(state.up));
    let waiting = i64::try_from(state.queued).unwrap_or(i64::MAX);
    metrics.shared_counts_waiting.set(waiting);
    metrics.shared_counts_failures.reset();
    for (kind, count) in [
        ("slow", state.slow),
        ("away", state.away),
        ("error", state.errors),
        ("emptied", state.emptied),
        ("lost", state.lost),
    ] {
        let failures = &metrics.shared_counts_failures;
        failures.with_label_values(&[kind]).inc_by(count);
    }
}

/// Sets the gauges that are read from the running state.
pub fn refresh(metrics: &Metrics, snapshot: &Snapshot, now: Instant) {
    metrics.upstream_healthy.reset();
    metrics.endpoint_addresses.reset();
    metrics.addresses_passed_over.reset();
    metrics.account_in_flight.reset();
    metrics.account_ceiling.reset();
    metrics.account_ceiling_learned.reset();
    metrics.account_ceiling_decreases.reset();
    metrics.queue_length.reset();
    metrics.queue_outcomes.reset();
    metrics.upstream_unverified.reset();
    refresh_credentials(metrics, snapshot);
    states::refresh(metrics, snapshot, now);
    for pool in &snapshot.pools {
        if pool.settings.tls.unverified {
            let labels = [pool.settings.id.as_str()];
            metrics
                .upstream_unverified
                .with_label_values(&labels)
                .set(1);
        }
        for slot in &pool.endpoints {
            let labels = [pool.settings.id.as_str(), slot.settings.url.as_str()];
            let healthy = pool.is_used(slot, now);
            metrics
                .upstream_healthy
                .with_label_values(&labels)
                .set(i64::from(healthy));
            let addresses = &slot.state.addresses;
            for (gauge, count) in [
                (&metrics.endpoint_addresses, addresses.count()),
                (&metrics.addresses_passed_over, addresses.resting()),
            ] {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                gauge.with_label_values(&labels).set(count);
            }
        }
    }
    for lane in snapshot.lanes() {
        refresh_line(metrics, lane);
        for (account, in_flight, ceiling) in lane.loads() {
            let labels = [
                lane.pool.settings.id.as_str(),
                account.as_str(),
                lane.model.as_str(),
            ];
            metrics
                .account_in_flight
                .with_label_values(&labels)
                .set(i64::from(in_flight));
            if let Some(ceiling) = ceiling {
                metrics
                    .account_ceiling
                    .with_label_values(&labels)
                    .set(i64::from(ceiling));
            }
        }
    }
}
