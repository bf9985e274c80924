//! `tidegate check`: everything that `run` would find wrong, without running.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use super::sources::Configuration;
use super::{Exit, complain, complain_of, print};
use crate::admission::book::Book;
use crate::admission::store_redis::RedisCounts;
use crate::config::explain::ExplainError;
use crate::config::settings::Store;
use crate::config::{self, Layer, Loaded, Settings, diff};
use crate::identity::standing::Standing;
use crate::server::tls::Fresh;
use crate::snapshot::Snapshot;
use crate::upstream::pool::Registry;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    configuration: Configuration,
    /// Show what a reload would change in the running gateway
    #[arg(long)]
    diff: bool,
    /// Show where each effective value comes from, at KEY and below it, such as server.limits or
    /// tenants[search].models; "all" shows everything. May be given several times
    #[arg(long, value_name = "KEY", conflicts_with = "diff")]
    explain: Vec<String>,
}

pub(super) fn check(options: Options) -> Exit {
    let layers = match options.configuration.read() {
        Ok(layers) => layers,
        Err(exit) => return exit,
    };
    if !options.explain.is_empty() {
        return explain(&layers, &options.explain);
    }
    let loaded = match config::load(&layers) {
        Ok(loaded) => loaded,
        Err(mistakes) => return complain_of(&mistakes),
    };
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    let Loaded {
        settings,
        files,
        digest,
        ..
    } = loaded;
    let settings = Arc::new(settings);
    if let Err(problems) = try_files(&settings) {
        problems.iter().for_each(|problem| complain(problem));
        return Exit::Misconfigured;
    }
    if options.diff {
        return show_difference(&settings);
    }
    print(&summary(&settings, files.len(), &digest))
}

/// Tells where values come from; the rules behind the structure are left alone, and so are secrets.
fn explain(layers: &[Layer], keys: &[String]) -> Exit {
    match config::explain::explain(layers, keys) {
        Ok(text) => print(&text),
        Err(ExplainError::Mistakes(mistakes)) => complain_of(&mistakes),
        Err(ExplainError::Unknown(why)) => {
            complain(&why);
            Exit::Misconfigured
        }
    }
}

/// Opens what the configuration names: certificates, keys and CAs are read as `run` would.
fn try_files(settings: &Arc<Settings>) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    for tls in settings
        .server
        .listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref())
    {
        if let Err(cause) = Fresh::read(tls) {
            problems.push(cause.to_string());
        }
    }
    if let Store::Redis(redis) = &settings.server.store
        && let Err(cause) = RedisCounts::connect(redis, "check")
    {
        problems.push(format!("server.store.redis: {cause}"));
    }
    let standing = Arc::new(Standing::new(&settings.identity.signed_requests));
    let registry = Registry::default();
    if let Err(cause) = Snapshot::new(
        settings.clone(),
        &registry,
        &standing,
        &Book::default(),
        Instant::now(),
    ) {
        problems.push(cause.to_string());
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// Compares with what the gateway that shares this state directory keeps there.
fn show_difference(settings: &Settings) -> Exit {
    let running = match config::kept::load(&settings.server.state_dir) {
        Ok(loaded) => loaded.settings,
        Err(mistakes) => return complain_of(&mistakes),
    };
    let difference = diff::diff(&running, settings);
    let mut text = String::new();
    for change in &difference.changed {
        let _ = writeln!(text, "{change}");
    }
    for key in &difference.needs_restart {
        let _ = writeln!(text, "needs a restart: {key}");
    }
    if text.is_empty() {
        text.push_str("no difference\n");
    }
    print(&text)
}

fn summary(settings: &Settings, files: usize, digest: &str) -> String {
    let mut text = String::new();
    let listeners: Vec<_> = settings
        .server
        .listeners
        .iter()
        .map(|listener| {
            let kind = match (&listener.tls, listener.h2c) {
                (Some(_), _) => " (TLS)",
                (None, true) => " (h2c)",
                (None, false) => "",
            };
            format!("{}{kind}", listener.address)
        })
        .collect();
    let admin = settings
        .server
        .admin
        .as_ref()
        .map_or("none".to_owned(), |admin| admin.address.to_string());
    let _ = writeln!(
        text,
        "The configuration is valid: {files} file(s), digest {}.",
        digest.get(..12).unwrap_or(digest)
    );
    let _ = writeln!(text, "  listeners  {}", listeners.join(", "));
    let _ = writeln!(text, "  admin      {admin}");
    let _ = writeln!(text, "  tenants    {}", settings.tenants.len());
    for upstream in &settings.upstreams {
        let _ = writeln!(
            text,
            "  upstream   {}: {} account(s), {} endpoint(s)",
            upstream.id,
            upstream.accounts.len(),
            upstream.endpoints.len()
        );
    }
    let mut names: Vec<_> = settings.models.keys().map(String::as_str).collect();
    names.sort_unstable();
    let _ = writeln!(text, "  models     {}", names.join(", "));
    text
}
