//! How things stand, as JSON for operators and as gauges for the scraper. Reads, decides nothing;
//! names ids, never a credential.

use std::time::Instant;

use serde_json::{Value, json};

use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;
use crate::upstream::pool::Pool;

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
        .map(|tenant| json!({"id": tenant.id.as_str(), "enabled": tenant.enabled, "models": snapshot.routes.allowed(tenant)}))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": ready,
        "upstreams": upstreams,
        "tenants": tenants,
    })
}

fn upstream(snapshot: &Snapshot, pool: &Pool, now: Instant) -> Value {
    let endpoints: Vec<_> = pool
        .endpoints
        .iter()
        .map(|slot| {
            json!({
                "url": slot.settings.url,
                "priority": slot.settings.priority,
                "healthy": slot.state.is_healthy(now, pool.is_watched()),
                "addresses": slot.state.address_count(),
                "in_flight": slot.state.in_flight(),
            })
        })
        .collect();
    let accounts: Vec<_> = pool
        .accounts
        .iter()
        .map(|account| json!({"id": account.id.as_str(), "resting": account.rest.is_resting(now)}))
        .collect();
    let loads: Vec<_> = snapshot
        .lanes()
        .filter(|lane| lane.pool.settings.id == pool.settings.id)
        .flat_map(|lane| {
            lane.loads().map(|(account, in_flight, ceiling)| {
                json!({"account": account.as_str(), "model": lane.model, "in_flight": in_flight, "ceiling": ceiling})
            })
        })
        .collect();
    json!({"id": pool.settings.id.as_str(), "endpoints": endpoints, "accounts": accounts, "in_flight": loads})
}

/// Sets the gauges that are read from the running state.
pub fn refresh(metrics: &Metrics, snapshot: &Snapshot, now: Instant) {
    metrics.upstream_healthy.reset();
    metrics.endpoint_addresses.reset();
    metrics.account_in_flight.reset();
    metrics.account_ceiling.reset();
    for pool in &snapshot.pools {
        for slot in &pool.endpoints {
            let labels = [pool.settings.id.as_str(), slot.settings.url.as_str()];
            let healthy = slot.state.is_healthy(now, pool.is_watched());
            metrics
                .upstream_healthy
                .with_label_values(&labels)
                .set(i64::from(healthy));
            let addresses = i64::try_from(slot.state.address_count()).unwrap_or(i64::MAX);
            metrics
                .endpoint_addresses
                .with_label_values(&labels)
                .set(addresses);
        }
    }
    for lane in snapshot.lanes() {
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
