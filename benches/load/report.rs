//! The figures as a Markdown table against the targets of the design, and as JSON for comparison
//! between versions.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::scenario::{EVENTS, Figures, Quantiles, Results, Scenario};
use crate::stage::Way;
use crate::{Outcome, Plan};

/// What is held to a ratio to the bare proxy: the first target and the one after it.
const RATIOS: &[(Scenario, &str, f64, f64)] = &[
    (
        Scenario::Request,
        "µs/request, 1 KB, 64 connections",
        1.35,
        1.15,
    ),
    (Scenario::Burst, "µs/chunk in a burst", 1.3, 0.7),
    (Scenario::Paced, "µs/chunk at 20 ms", 1.12, 1.05),
    (Scenario::Open, "KiB per open stream", 1.1, 0.6),
    (Scenario::Upload, "µs per 1 MiB body", 1.2, 1.08),
];
/// Idle resident memory, in MiB.
const IDLE_MIB: f64 = 20.0;
/// A refusal's share of a served request.
const REFUSED_SHARE: f64 = 0.1;

/// One line of the table.
struct Row {
    name: String,
    bare: Option<f64>,
    tidegate: f64,
    ratio: f64,
    first: f64,
    second: Option<f64>,
}

pub fn markdown(plan: &Plan, results: &Results) -> String {
    let mut text = format!(
        "Medians of {} interleaved runs; streams of {EVENTS} events; upstream: {:?}.\n\n",
        plan.runs, plan.upstream
    );
    text.push_str(
        "| | bare Pingora | tidegate | ratio | first target | then |\n|---|---|---|---|---|---|\n",
    );
    for row in rows(results) {
        let bare = row
            .bare
            .map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
        let second = row
            .second
            .map_or_else(|| "–".to_owned(), |limit| verdict(row.ratio, limit));
        let _ = writeln!(
            text,
            "| {} | {bare} | {:.1} | {:.2} | {} | {second} |",
            row.name,
            row.tidegate,
            row.ratio,
            verdict(row.ratio, row.first)
        );
    }
    let latencies: Vec<_> = results.iter().filter_map(added).collect();
    if !latencies.is_empty() {
        text.push_str(
            "\n| µs | direct p50 / p99 | bare adds | tidegate adds |\n|---|---|---|---|\n",
        );
    }
    for scenario in [Scenario::Latency, Scenario::Paced] {
        let of = |way| {
            latencies
                .iter()
                .find(|(found, at, _)| *found == scenario && *at == way)
                .map(|(_, _, value)| *value)
        };
        let (Some(direct), Some(bare), Some(ours)) =
            (of(Way::Direct), of(Way::Bare), of(Way::Tidegate))
        else {
            continue;
        };
        let name = if scenario == Scenario::Paced {
            "an event on its way, at 20 ms"
        } else {
            "a request, one connection"
        };
        let plus = |value: Quantiles| {
            format!(
                "{:+.0} / {:+.0}",
                value.p50 - direct.p50,
                value.p99 - direct.p99
            )
        };
        let _ = writeln!(
            text,
            "| {name} | {:.0} / {:.0} | {} | {} |",
            direct.p50,
            direct.p99,
            plus(bare),
            plus(ours)
        );
    }
    text
}

fn verdict(value: f64, limit: f64) -> String {
    if value <= limit {
        format!("≤ {limit} met")
    } else {
        format!(
            "≤ {limit} **missed** by {:.0} %",
            (value / limit - 1.0) * 100.0
        )
    }
}

fn rows(results: &Results) -> Vec<Row> {
    let cost = |scenario, way| find(results, scenario, way).map(|figures| median(&figures.cost));
    let mut rows = Vec::new();
    for (scenario, name, first, second) in RATIOS {
        if let (Some(bare), Some(tidegate)) =
            (cost(*scenario, Way::Bare), cost(*scenario, Way::Tidegate))
        {
            rows.push(Row {
                name: (*name).to_owned(),
                bare: Some(bare),
                tidegate,
                ratio: tidegate / bare,
                first: *first,
                second: Some(*second),
            });
        }
    }
    if let (Some(refused), Some(served)) = (
        cost(Scenario::Refused, Way::Tidegate),
        cost(Scenario::Request, Way::Tidegate),
    ) {
        rows.push(Row {
            name: "µs/refused request (ratio: to a served one)".to_owned(),
            bare: None,
            tidegate: refused,
            ratio: refused / served,
            first: REFUSED_SHARE,
            second: None,
        });
    }
    let idle =
        |way| find(results, Scenario::Open, way).map(|figures| median(&figures.idle_kib) / 1024.0);
    if let (Some(bare), Some(tidegate)) = (idle(Way::Bare), idle(Way::Tidegate)) {
        rows.push(Row {
            name: format!("MiB idle (ratio: to {IDLE_MIB} MiB)"),
            bare: Some(bare),
            tidegate,
            ratio: tidegate / IDLE_MIB,
            first: 1.0,
            second: None,
        });
    }
    rows
}

fn added(figures: &Figures) -> Option<(Scenario, Way, Quantiles)> {
    if !matches!(figures.scenario, Scenario::Latency | Scenario::Paced) {
        return None;
    }
    let of =
        |part: fn(&Quantiles) -> f64| median(&figures.latency.iter().map(part).collect::<Vec<_>>());
    let value = Quantiles {
        p50: of(|quantiles| quantiles.p50),
        p99: of(|quantiles| quantiles.p99),
    };
    (value.p50 > 0.0).then_some((figures.scenario, figures.way, value))
}

fn find(results: &Results, scenario: Scenario, way: Way) -> Option<&Figures> {
    results
        .iter()
        .find(|figures| figures.scenario == scenario && figures.way == way)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle).copied().unwrap_or(f64::NAN);
    match sorted.get(middle.wrapping_sub(1)) {
        Some(lower) if sorted.len().is_multiple_of(2) => (lower + upper) / 2.0,
        _ => upper,
    }
}

/// Writes `bench/load.json` into cargo's target directory, or `load-part.json` if not all was run.
pub fn write_json(plan: &Plan, results: &Results) -> Outcome<PathBuf> {
    let figures: Vec<Value> = results
        .iter()
        .map(|figures| {
            json!({
                "scenario": figures.scenario.name(),
                "way": figures.way.name(),
                "cost": figures.cost,
                "rate": figures.rate,
                "idle_kib": figures.idle_kib,
                "latency_us": figures.latency.iter().map(|q| json!({"p50": q.p50, "p99": q.p99})).collect::<Vec<_>>(),
            })
        })
        .collect();
    let rows: Vec<Value> = rows(results)
        .iter()
        .map(|row| {
            json!({
                "name": row.name, "bare": row.bare, "tidegate": row.tidegate, "ratio": row.ratio,
                "first_target": row.first, "met": row.ratio <= row.first,
                "second_target": row.second, "second_met": row.second.map(|limit| row.ratio <= limit),
            })
        })
        .collect();
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "at": jiff::Timestamp::now().to_string(),
        "cpus": std::thread::available_parallelism()?.get(),
        "runs": plan.runs,
        "seconds": plan.load.as_secs_f64(),
        "streams": plan.streams,
        "upstream": format!("{:?}", plan.upstream).to_ascii_lowercase(),
        "gateway": plan.gateway,
        "quick": plan.quick,
        "table": rows,
        "figures": figures,
    });
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.parent().unwrap_or(&target).join("bench");
    std::fs::create_dir_all(&folder)?;
    // A smoke run must not take the place of a whole one.
    let whole =
        !plan.quick && plan.only == Scenario::ALL && plan.gateway == env!("CARGO_BIN_EXE_tidegate");
    let path = folder.join(if whole { "load.json" } else { "load-part.json" });
    std::fs::write(&path, serde_json::to_string_pretty(&value)?)?;
    Ok(path)
}
