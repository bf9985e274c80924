//! What the gateway costs next to a bare Pingora: processor time and memory of the proxy process
//! alone, in one run, on one machine, over the scenarios of [`scenario`].
//!
//! `cargo bench --bench load -- [--quick] [--runs N] [--seconds N] [--streams N] [--only LIST]
//! [--upstream mock|emulator] [--gateway PATH]`. Three further modes (`--as-…`) are the processes it starts itself.
#![allow(missing_docs, reason = "an executable, not an interface")]

mod bare;
mod client;
mod mock;
mod process;
mod report;
mod scenario;
mod stage;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use scenario::Scenario;
use stage::{Stage, Upstream};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome<T> = Result<T, Failure>;

/// What was asked for on the command line.
#[derive(Debug, Clone)]
pub struct Plan {
    pub runs: usize,
    /// Load on one proxy in one run of one scenario.
    pub load: Duration,
    /// Open streams of the memory scenario.
    pub streams: usize,
    pub only: Vec<Scenario>,
    pub upstream: Upstream,
    /// The tidegate executable: the one built with the bench, or another to compare it with.
    pub gateway: String,
    pub quick: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let done = match arguments.next().as_deref() {
        Some("--as-guard") => process::guard(arguments),
        Some("--as-mock") => mock::run(arguments),
        Some("--as-bare") => bare::run(arguments),
        _ => bench(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            say(&format!("load bench: {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Outcome<()> {
    let plan = plan(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Nothing may keep a machine busy for longer than this, whatever hangs.
    let limit = Duration::from_secs(if plan.quick { 180 } else { 1800 });
    let results = runtime.block_on(async {
        tokio::time::timeout(limit, measure(&plan))
            .await
            .map_err(|_| Failure::from("out of time"))?
    })?;
    let json = report::write_json(&plan, &results)?;
    let text = report::markdown(&plan, &results);
    writeln!(std::io::stdout().lock(), "{text}")?;
    say(&format!("written: {}", json.display()));
    Ok(())
}

async fn measure(plan: &Plan) -> Outcome<scenario::Results> {
    let stage = Stage::new(plan.upstream, &plan.gateway)?;
    scenario::run_all(plan, &stage).await
}

fn plan(mut arguments: impl Iterator<Item = String>) -> Outcome<Plan> {
    let mut plan = Plan {
        runs: 3,
        load: Duration::from_secs(5),
        streams: 2000,
        only: Scenario::ALL.to_vec(),
        upstream: Upstream::Mock,
        gateway: env!("CARGO_BIN_EXE_tidegate").to_owned(),
        quick: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| Failure::from(format!("{argument} needs a value")))
        };
        match argument.as_str() {
            // cargo says that this is a bench.
            "--bench" => {}
            "--quick" => {
                plan.quick = true;
                plan.runs = 1;
                plan.load = Duration::from_millis(800);
                plan.streams = 300;
            }
            "--runs" => plan.runs = value()?.parse::<usize>()?.clamp(1, 21),
            "--seconds" => plan.load = Duration::from_secs(value()?.parse::<u64>()?.clamp(1, 60)),
            "--streams" => plan.streams = value()?.parse::<usize>()?.clamp(10, 10_000),
            "--only" => plan.only = Scenario::list(&value()?)?,
            "--gateway" => plan.gateway = value()?,
            "--upstream" => plan.upstream = Upstream::named(&value()?)?,
            unknown => return Err(format!("unknown argument {unknown}").into()),
        }
    }
    Ok(plan)
}

/// Progress goes to standard error, the table to standard output.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
