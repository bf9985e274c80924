//! Decides how a report looks: a table for people, CSV for spreadsheets, JSON for programs.
//!
//! All three show the same columns. Money is exact in CSV and JSON, and rounded to six decimals in
//! the table.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::journal::Counts;
use super::report::Report;

/// What a column holds of a group.
enum Figure {
    Count(u64),
    /// A share, 0 to 1; nothing where there was nothing to have a share of.
    Rate(Option<f64>),
    Money(super::Money),
}

/// The columns behind those that a report is grouped by.
const COLUMNS: [&str; 11] = [
    "requests",
    "cut",
    "estimated",
    "unpriced",
    "prompt_tokens",
    "cached_tokens",
    "cache_hit_rate",
    "completion_tokens",
    "reasoning_tokens",
    "cost",
    "saved",
];

fn figures(counts: &Counts) -> [Figure; COLUMNS.len()] {
    [
        Figure::Count(counts.requests),
        Figure::Count(counts.cut),
        Figure::Count(counts.estimated),
        Figure::Count(counts.unpriced),
        Figure::Count(counts.prompt),
        Figure::Count(counts.cached),
        Figure::Rate(hit_rate(counts)),
        Figure::Count(counts.completion),
        Figure::Count(counts.reasoning),
        Figure::Money(counts.cost),
        Figure::Money(counts.saved),
    ]
}

/// The share of prompt tokens that came from the provider's cache, to four decimals.
fn hit_rate(counts: &Counts) -> Option<f64> {
    let share = u128::from(counts.cached).saturating_mul(10_000);
    let share = share.checked_div(u128::from(counts.prompt))?;
    Some(f64::from(u16::try_from(share.min(10_000)).unwrap_or(10_000)) / 10_000.0)
}

/// A table with aligned columns, and a line of totals if there is more than one group.
pub fn table(report: &Report, currency: &str) -> String {
    let dimensions = report.by().iter().map(|dimension| dimension.name());
    let heads = COLUMNS.iter().map(|column| match *column {
        "cost" | "saved" => format!("{column} {currency}").trim_end().to_owned(),
        column => column.trim_end_matches("_tokens").replace('_', " "),
    });
    let left = report.by().len();
    let mut lines = vec![dimensions.map(str::to_owned).chain(heads).collect()];
    for (values, counts) in report.groups() {
        lines.push(table_line(&values, counts));
    }
    if lines.len() > 2 {
        let mut values = vec![""; left];
        if let Some(first) = values.first_mut() {
            *first = "total";
        }
        lines.push(table_line(&values, report.total()));
    }
    aligned(&lines, left)
}

fn table_line(values: &[&str], counts: &Counts) -> Vec<String> {
    // A name with a line break or an escape sequence must not draw over others.
    let clean = |value: &&str| value.replace(|c: char| c.is_control(), "\u{fffd}");
    let figures = figures(counts).map(|figure| match figure {
        Figure::Count(count) => count.to_string(),
        Figure::Rate(Some(rate)) => format!("{:.1}%", rate * 100.0),
        Figure::Rate(None) => "-".to_owned(),
        Figure::Money(money) => money.to_string(),
    });
    values.iter().map(clean).chain(figures).collect()
}

/// The first `left` columns to the left, the others to the right.
fn aligned(lines: &[Vec<String>], left: usize) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let _ = if column < left {
                write!(row, "{gap}{cell:<width$}")
            } else {
                write!(row, "{gap}{cell:>width$}")
            };
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

/// RFC 4180: lines end with CR LF, the first names the columns. A cell that a spreadsheet would take
/// for a formula begins with an apostrophe.
pub fn csv(report: &Report, currency: &str) -> String {
    let dimensions = report.by().iter().map(|dimension| dimension.name());
    let heads: Vec<_> = dimensions.chain(COLUMNS).chain(["currency"]).collect();
    let mut text = heads.join(",") + "\r\n";
    for (values, counts) in report.groups() {
        let figures = figures(counts).map(|figure| match figure {
            Figure::Count(count) => count.to_string(),
            Figure::Rate(Some(rate)) => format!("{rate:.4}"),
            Figure::Rate(None) => String::new(),
            Figure::Money(money) => format!("{money:.9}"),
        });
        let cells = values.iter().map(|value| csv_cell(value));
        let cells = cells.chain(figures).chain([csv_cell(currency)]);
        text += &cells.collect::<Vec<_>>().join(",");
        text += "\r\n";
    }
    text
}

/// The rule of OWASP's page on CSV injection.
fn csv_cell(value: &str) -> String {
    let formula = value.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    let guard = if formula { "'" } else { "" };
    if formula || value.contains(['"', ',', '\r', '\n']) {
        format!("\"{guard}{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

/// An array with one object for each group: counts are integers, money is text.
pub fn json(report: &Report, currency: &str) -> String {
    let groups = report.groups().map(|(values, counts)| {
        let mut object = Map::new();
        for (dimension, value) in report.by().iter().zip(values) {
            object.insert(dimension.name().to_owned(), value.into());
        }
        for (column, figure) in COLUMNS.iter().zip(figures(counts)) {
            let value = match figure {
                Figure::Count(count) => count.into(),
                Figure::Rate(rate) => rate.map_or(Value::Null, Value::from),
                Figure::Money(money) => format!("{money:.9}").into(),
            };
            object.insert((*column).to_owned(), value);
        }
        object.insert("currency".to_owned(), currency.into());
        Value::Object(object)
    });
    let array = Value::Array(groups.collect());
    // `{:#}` of a value cannot fail.
    format!("{array:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::report::{Dimension, tests::row};
    use super::*;
    use jiff::tz::TimeZone;

    fn report(tenants: &[&str]) -> Report {
        let mut report = Report::new(&[Dimension::Tenant, Dimension::Model], TimeZone::UTC);
        for tenant in tenants {
            report.add(&row("2026-11-01T00:00:00Z", tenant, "flash"));
        }
        report
    }

    #[test]
    fn a_table_is_aligned_and_ends_with_the_total() {
        let text = table(&report(&["search", "ads"]), "CNY");
        let expected = "\
tenant  model  requests  cut  estimated  unpriced  prompt  cached  cache hit rate  completion  reasoning  cost CNY  saved CNY
ads     flash         1    0          0         0     100      64           64.0%          10          0  0.000002   0.000001
search  flash         1    0          0         0     100      64           64.0%          10          0  0.000002   0.000001
total                 2    0          0         0     200     128           64.0%          20          0  0.000003   0.000001
";
        assert_eq!(text, expected);
        assert_eq!(table(&report(&["ads"]), "CNY").lines().count(), 2);
        assert_eq!(table(&report(&[]), "CNY").lines().count(), 1);
    }

    #[test]
    fn csv_names_its_columns_and_is_exact() {
        let text = csv(&report(&["search"]), "CNY");
        assert_eq!(
            text,
            "tenant,model,requests,cut,estimated,unpriced,prompt_tokens,cached_tokens,cache_hit_rate,completion_tokens,reasoning_tokens,cost,saved,currency\r\n\
             search,flash,1,0,0,0,100,64,0.6400,10,0,0.000001500,0.000000500,CNY\r\n"
        );
    }

    #[test]
    fn no_name_becomes_a_formula_or_another_cell() {
        for (name, cell) in [
            ("=1+1", "\"'=1+1\""),
            ("-2", "\"'-2\""),
            ("@x", "\"'@x\""),
            ("+x", "\"'+x\""),
            ("\tx", "\"'\tx\""),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("a\r\nb", "\"a\r\nb\""),
            ("plain-name", "plain-name"),
            ("", ""),
        ] {
            assert_eq!(csv_cell(name), cell);
        }
    }

    #[test]
    fn no_name_draws_over_the_table() {
        let text = table(&report(&["a\u{1b}[2J\nb"]), "CNY");
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn json_has_integers_for_tokens_and_text_for_money() {
        let text = json(&report(&["search"]), "CNY");
        let parsed: Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!([{
            "tenant": "search", "model": "flash", "requests": 1, "cut": 0, "estimated": 0,
            "unpriced": 0, "prompt_tokens": 100, "cached_tokens": 64, "cache_hit_rate": 0.64,
            "completion_tokens": 10, "reasoning_tokens": 0, "cost": "0.000001500",
            "saved": "0.000000500", "currency": "CNY",
        }]);
        assert_eq!(parsed, expected);
        assert_eq!(json(&report(&[]), "CNY"), "[]\n");
    }

    #[test]
    fn without_prompts_there_is_no_hit_rate() {
        let mut counts = Counts::default();
        assert_eq!(hit_rate(&counts), None);
        counts.prompt = 3;
        counts.cached = 2;
        assert_eq!(hit_rate(&counts), Some(0.6666));
        counts.cached = u64::MAX;
        assert_eq!(hit_rate(&counts), Some(1.0));
    }
}
