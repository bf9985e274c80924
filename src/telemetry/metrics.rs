//! Every metric the gateway exports, in one list.
//!
//! Names begin with `tidegate_`, units are base units, labels are bounded: tenants, models,
//! upstreams, accounts and endpoints come from the configuration, everything else from closed
//! lists. What a client sends never becomes a label.

use std::fmt::Display;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds; from a cached answer to the longest thinking.
const LONG_BUCKETS: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
];
/// Seconds between two pieces of a stream.
const GAP_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];
/// Seconds of our own work.
const OVERHEAD_BUCKETS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1,
];

/// Seconds of one write to the embedded database.
const STORE_BUCKETS: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

/// Why a connection was closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedConnection {
    /// `max_connections`.
    Total,
    /// `max_connections_per_ip`.
    PerAddress,
    /// From a proxy that must introduce its clients, and did not.
    ProxyHeader,
}

impl RefusedConnection {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::PerAddress => "per_address",
            Self::ProxyHeader => "proxy_header",
        }
    }
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $make:expr;)*) => {
        /// The handles; cheap to read, shared by everything that counts.
        pub struct Metrics {
            registry: Registry,
            $($(#[$doc])* pub $field: $kind,)*
        }

        impl Metrics {
            /// Registers everything.
            ///
            /// # Errors
            /// If two metrics have one name, which a test rules out.
            pub fn new() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $(let $field = $make?; register(&registry, &$field)?;)*
                Ok(Self { registry, $($field,)* })
            }
        }
    };
}

metrics! {
    /// Finished requests by tenant, public model, surface and HTTP status.
    requests: IntCounterVec = counters("requests_total", "Finished requests.", &["tenant", "model", "surface", "status"]);
    /// Requests refused by the gateway or failed behind it, by error code.
    refusals: IntCounterVec = counters("refusals_total", "Requests answered with an error of the gateway, by its code.", &["surface", "code"]);
    authentication_failures: IntCounterVec = counters("authentication_failures_total", "Refused credentials by reason.", &["reason"]);
    /// Tries at an upstream by how they ended.
    attempts: IntCounterVec = counters("attempts_total", "Attempts at upstreams by outcome.", &["upstream", "account", "outcome"]);
    requests_in_flight: IntGaugeVec = gauges("requests_in_flight", "Requests being served.", &["surface"]);
    request_duration: HistogramVec = histograms("request_duration_seconds", "Head received to answer complete.", &["surface", "model"], LONG_BUCKETS);
    time_to_first_token: HistogramVec = histograms("time_to_first_token_seconds", "Head received to first content of a streamed answer.", &["model", "upstream"], LONG_BUCKETS);
    time_between_chunks: HistogramVec = histograms("time_between_chunks_seconds", "Gap between pieces of a streamed answer.", &["model"], GAP_BUCKETS);
    tokens: IntCounterVec = counters("tokens_total", "Tokens as the upstream reported them; prompt includes cached, completion includes reasoning.", &["tenant", "model", "kind"]);
    usage_missing: IntCounterVec = counters("usage_missing_total", "Answers that ended without reporting usage.", &["upstream"]);
    overhead: HistogramVec = histograms("overhead_seconds", "The gateway's own work, waits left out, by phase.", &["phase"], OVERHEAD_BUCKETS);
    usage_nonsensical: IntCounterVec = counters("usage_nonsensical_total", "Answers whose reported usage cannot be; estimated instead.", &["upstream"]);
    usage_estimated: IntCounterVec = counters("usage_estimated_total", "Answers charged by an estimate, since their usage was not told.", &["tenant", "model", "upstream"]);
    cost: CounterVec = float_counters("cost_total", "What answers cost by the price table, in the accounting currency.", &["tenant", "model", "upstream"]);
    cache_savings: CounterVec = float_counters("cache_savings_total", "What answers would have cost more without the provider's cache, in the accounting currency.", &["tenant", "model", "upstream"]);
    limit_refusals: IntCounterVec = counters("limit_refusals_total", "Requests that a limit refused, or in shadow mode would have refused.", &["subject", "limit", "mode"]);
    admitted: IntGauge = gauge("requests_admitted", "Requests under way that have passed their tenant's limits.");
    leases_open: IntGauge = gauge("leases_open", "Requests that hold room in their tenant's limits.");
    leases_unmatched: IntGauge = gauge("leases_unmatched", "Leases without a request under way; anything but 0 for long is a leak.");
    leases_overdue: IntGauge = gauge("leases_overdue", "Leases held for longer than accounting.lease_warning.");
    ledger_pending: IntGauge = gauge("ledger_pending_rows", "Rows of the ledger that are not written yet.");
    ledger_merged: IntGauge = gauge("ledger_merged_rows", "Rows of the ledger that lost their model and account since the start, because too many waited to be written.");
    store_healthy: IntGauge = gauge("store_healthy", "1 while counts can be written to the database.");
    store_errors: IntCounterVec = counters("store_errors_total", "Failures of the database of counts, by what was done and what kind of trouble it is.", &["operation", "kind"]);
    store_replaced: IntCounter = counter("store_replaced_total", "Times that the database of counts was moved aside because it could not be used.");
    store_write: Histogram = histogram("store_write_seconds", "One write to the database of counts.", STORE_BUCKETS);
    switched_off: IntGaugeVec = gauges("switched_off", "1 for what an operator has switched off or drained.", &["kind", "name"]);
    switch_changes: IntCounterVec = counters("switch_changes_total", "Switches and drains that an operator has set or taken back.", &["kind", "action"]);
    streams_interrupted: IntCounterVec = counters("streams_interrupted_total", "Answers that broke off after content was sent.", &["upstream", "reason"]);
    client_disconnects: IntCounterVec = counters("client_disconnects_total", "Requests whose client left before the answer was complete.", &["surface"]);
    certificate_expiry: GaugeVec = float_gauges("certificate_expiry_timestamp_seconds", "When a listener's certificate expires.", &["listener", "certificate"]);
    certificate_reloads: IntCounterVec = counters("certificate_reloads_total", "Changes of a listener's TLS files that were seen, by result.", &["result"]);
    credential_expiry: GaugeVec = float_gauges("credential_expiry_timestamp_seconds", "When a tenant's credential ends, for those that do.", &["tenant", "kind", "credential"]);
    credentials_expiring: IntGauge = gauge("credentials_expiring", "Credentials that end within identity.warn_before_expiry or have ended.");
    key_set_fetches: IntCounterVec = counters("key_set_fetches_total", "Fetches of an issuer's key set by result.", &["issuer", "result"]);
    key_set_fetched: GaugeVec = float_gauges("key_set_timestamp_seconds", "When the source of the key set in use last answered.", &["issuer"]);
    nonces_held: IntGauge = gauge("signed_request_nonces", "Nonces remembered against replays.");
    retries: IntCounterVec = counters("upstream_retries_total", "Attempts that were followed by another one, by what they failed with.", &["upstream", "reason"]);
    retries_stopped: IntCounterVec = counters("upstream_retries_stopped_total", "Failed attempts that were not followed by another one, by why not.", &["upstream", "reason"]);
    deadlines: IntCounterVec = counters("upstream_deadlines_total", "Attempts that were given up at a deadline, by which one.", &["upstream", "deadline"]);
    resumed: IntCounterVec = counters("streams_resumed_total", "Broken streams that went on elsewhere, by the upstream where they broke.", &["upstream"]);
    degraded: IntCounterVec = counters("degraded_answers_total", "Requests that got the configured answer in place of a model's.", &["tenant", "model"]);
    upstream_pin_mismatches: IntCounterVec = counters("upstream_pin_mismatches_total", "Connections given up because the upstream's key is none of the pinned.", &["upstream", "endpoint"]);
    upstream_unverified: IntGaugeVec = gauges("upstream_tls_unverified", "1 for an upstream whose certificate is not verified (development only).", &["upstream"]);
    connections_open: IntGauge = gauge("connections_open", "Client connections.");
    connections_refused: IntCounterVec = counters("connections_refused_total", "Client connections closed at once, by cap.", &["reason"]);
    buffered_bytes: IntGauge = gauge("request_body_buffer_bytes", "Request bodies held in memory.");
    upstream_healthy: IntGaugeVec = gauges("upstream_endpoint_healthy", "1 if the endpoint is used, 0 if it is out.", &["upstream", "endpoint"]);
    endpoint_state: IntGaugeVec = gauges("endpoint_state", "1 for the state that the endpoint is in, 0 for the others.", &["upstream", "endpoint", "state"]);
    account_state: IntGaugeVec = gauges("account_state", "1 for the state that the account is in, 0 for the others.", &["upstream", "account", "state"]);
    breaker_state: IntGaugeVec = gauges("breaker_state", "1 for the state that the breaker of an endpoint and model is in, 0 for the others.", &["upstream", "endpoint", "model", "state"]);
    upstream_transitions: IntCounterVec = counters("upstream_transitions_total", "Changes of state of accounts, endpoints and breakers, by what they came to and why.", &["upstream", "kind", "name", "to", "reason"]);
    endpoint_addresses: IntGaugeVec = gauges("upstream_endpoint_addresses", "Addresses known for the endpoint.", &["upstream", "endpoint"]);
    addresses_passed_over: IntGaugeVec = gauges("upstream_endpoint_addresses_passed_over", "Addresses of the endpoint that could not be reached when last tried.", &["upstream", "endpoint"]);
    account_in_flight: IntGaugeVec = gauges("account_in_flight", "Requests in flight per account and upstream model.", &["upstream", "account", "model"]);
    account_ceiling: IntGaugeVec = gauges("account_ceiling", "Configured ceiling of concurrent requests.", &["upstream", "account", "model"]);
    account_ceiling_learned: IntGaugeVec = gauges("account_ceiling_learned", "Ceiling of concurrent requests as it was learned, where it is below the configured one.", &["upstream", "account", "model"]);
    account_ceiling_decreases: IntCounterVec = counters("account_ceiling_decreases_total", "Times that a learned ceiling came down, by cause.", &["upstream", "account", "model", "cause"]);
    account_balance: GaugeVec = float_gauges("account_balance", "What the provider says is left, in units of the currency.", &["upstream", "account", "currency"]);
    account_balance_low: IntGaugeVec = gauges("account_balance_low", "1 if less is left than upstreams[].credit.low_water.", &["upstream", "account", "currency"]);
    balance_polls: IntCounterVec = counters("account_balance_polls_total", "Questions to the provider for an account's balance, by result.", &["upstream", "account", "result"]);
    queue_length: IntGaugeVec = gauges("queue_length", "Requests that wait for a place at an account.", &["upstream", "model"]);
    queue_outcomes: IntCounterVec = counters("queue_outcomes_total", "What became of requests that found no free place.", &["upstream", "model", "outcome"]);
    queue_wait: HistogramVec = histograms("queue_wait_seconds", "Time in line, of requests that stood in one.", &["model"], LONG_BUCKETS);
    shared_counts_up: IntGauge = gauge("shared_counts_up", "1 while Redis answers; 0 also where none is configured.");
    shared_counts_waiting: IntGauge = gauge("shared_counts_waiting", "Counters and reservations that Redis is still to be told of.");
    shared_counts_failures: IntCounterVec = counters("shared_counts_failures_total", "Questions to Redis that failed, and counts that were lost, by kind.", &["kind"]);
    reloads: IntCounterVec = counters("config_reloads_total", "Reloads by result and by what asked for them.", &["result", "trigger"]);
    last_reload: Gauge = float_gauge("config_last_reload_timestamp_seconds", "When the configuration in use was taken over.");
    source_polls: IntCounterVec = counters("config_source_polls_total", "Questions to the sources that the configuration is fetched from, by result.", &["result"]);
    source_answer: Gauge = float_gauge("config_source_last_answer_timestamp_seconds", "When all sources that the configuration is fetched from last answered.");
    log_lines_dropped: IntCounter = counter("log_lines_dropped_total", "Log lines lost because the writer fell behind.");
    ready: IntGauge = gauge("ready", "1 while /readyz says yes.");
    build_info: GaugeVec = float_gauges("build_info", "Always 1; the build in its labels.", &["version"]);
}

impl Metrics {
    /// The Prometheus text exposition of everything.
    pub fn text(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * 1024);
        // Writing to memory fails only for families that could not have been registered.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        out
    }

    pub fn connection_refused(&self, reason: RefusedConnection) {
        self.connections_refused
            .with_label_values(&[reason.as_str()])
            .inc();
    }

    /// Heads that the parser refused, before any hook ran.
    pub fn bad_heads(&self) -> IntCounterVec {
        self.refusals.clone()
    }

    /// A limit refused a request.
    pub fn limit_refused(&self, subject: &str, limit: &impl Display) {
        let labels = [subject, &limit.to_string(), "enforced"];
        self.limit_refusals.with_label_values(&labels).inc();
    }

    /// A limit in shadow mode would have refused a request.
    pub fn would_refuse(&self, subject: &str, limit: &impl Display) {
        let labels = [subject, &limit.to_string(), "shadow"];
        self.limit_refusals.with_label_values(&labels).inc();
    }

    pub fn own_work(&self, phase: &str, spent: Duration) {
        self.overhead
            .with_label_values(&[phase])
            .observe(spent.as_secs_f64());
    }

    /// Shows a request as being served.
    pub fn show_in_flight(&self, surface: &str) -> Shown {
        let gauge = self.requests_in_flight.with_label_values(&[surface]);
        gauge.inc();
        Shown(gauge)
    }

    /// Shows a request as admitted.
    pub fn show_admitted(&self) -> Shown {
        self.admitted.inc();
        Shown(self.admitted.clone())
    }

    /// The gap histogram of a stream, resolved once so that a chunk costs no look-up.
    pub fn gaps(&self, model: &str) -> Histogram {
        self.time_between_chunks.with_label_values(&[model])
    }
}

/// A request in a gauge, until it is dropped.
#[must_use]
pub struct Shown(IntGauge);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn register(
    registry: &Registry,
    collector: &(impl Collector + Clone + 'static),
) -> Result<(), prometheus::Error> {
    registry.register(Box::new(collector.clone()))
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("tidegate_{name}"), help)
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(opts(name, help), labels)
}

fn float_counters(
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<CounterVec, prometheus::Error> {
    CounterVec::new(opts(name, help), labels)
}

fn counter(name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    IntCounter::with_opts(opts(name, help))
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(opts(name, help), labels)
}

fn gauge(name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    IntGauge::with_opts(opts(name, help))
}

fn float_gauges(name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    GaugeVec::new(opts(name, help), labels)
}

fn float_gauge(name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    Gauge::with_opts(opts(name, help))
}

fn histograms(
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> Result<HistogramVec, prometheus::Error> {
    let opts = HistogramOpts {
        common_opts: opts(name, help),
        buckets: buckets.to_vec(),
    };
    HistogramVec::new(opts, labels)
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
    Histogram::with_opts(HistogramOpts {
        common_opts: opts(name, help),
        buckets: buckets.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_are_unique_and_the_text_parses_line_by_line() {
        let metrics = Metrics::new().unwrap();
        metrics.build_info.with_label_values(&["0.0.0"]).set(1.0);
        metrics.connection_refused(RefusedConnection::Total);
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(text.contains("tidegate_connections_refused_total{reason=\"total\"} 1"));
        assert!(
            text.lines()
                .all(|line| line.starts_with('#') || line.starts_with("tidegate_"))
        );
    }
}
