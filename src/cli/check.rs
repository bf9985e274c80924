//! `tidegate check`: everything that `run` would find wrong, without running.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::{Exit, complain, complain_of, print};
use crate::config::{self, Loaded, Settings, diff};
use crate::server::tls::Acceptor;
use crate::snapshot::Snapshot;
use crate::upstream::pool::Registry;

pub(super) fn check(path: &Path, diff: bool) -> Exit {
    let loaded = match config::load(&[config::Layer::Path(path.to_owned())]) {
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
    if diff {
        return show_difference(&settings);
    }
    print(&summary(&settings, files.len(), &digest))
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
        if let Err(cause) = Acceptor::read(tls) {
            problems.push(cause.to_string());
        }
    }
    if let Err(cause) = Snapshot::new(settings.clone(), &Registry::default(), Instant::now()) {
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
