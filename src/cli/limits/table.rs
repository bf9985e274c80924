//! A tenant's limits as a table that people read: aligned, with times and money in their own words.

use std::fmt::Write;

use serde::Deserialize;

use crate::config::money::format_money;

/// The gateway's answer. What newer gateways add is left out.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    tenant: String,
    plan: String,
    group: Option<String>,
    pub(super) currency: String,
    requests_under_way: u64,
    pub(super) limits: Vec<Line>,
}

/// How one limit stands.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    subject: String,
    pub(super) limit: String,
    quantity: String,
    window: String,
    allowed: u64,
    used: u64,
    reserved: u64,
    remaining: u64,
    reset_seconds: u64,
    shadow: bool,
}

const HEADINGS: [&str; 8] = [
    "LIMIT",
    "OF",
    "ALLOWED",
    "USED",
    "RESERVED",
    "REMAINING",
    "RESET IN",
    "",
];
/// These stand to the left of their columns; numbers to the right.
const TEXT_COLUMNS: [usize; 3] = [0, 1, 7];

impl Report {
    /// # Errors
    /// If `answer` is not what a gateway says of limits.
    pub(super) fn parse(answer: &str) -> Result<Self, String> {
        serde_json::from_str(answer)
            .map_err(|cause| format!("the answer is not one of a tidegate gateway: {cause}"))
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!("tenant {}, plan {}", self.tenant, self.plan);
        if let Some(group) = &self.group {
            let _ = write!(text, ", group {group}");
        }
        let _ = writeln!(text, ", requests under way: {}", self.requests_under_way);
        if self.limits.is_empty() {
            text.push_str("no limits\n");
            return text;
        }
        let lines = self.limits.iter().map(|line| line.cells(&self.currency));
        let rows: Vec<[String; 8]> = std::iter::once(HEADINGS.map(str::to_owned))
            .chain(lines)
            .collect();
        let widths: Vec<usize> = (0..HEADINGS.len())
            .map(|column| {
                let cells = rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        text.push('\n');
        for row in &rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let width = *width;
                let _ = if TEXT_COLUMNS.contains(&column) {
                    write!(line, "{cell:<width$}  ")
                } else {
                    write!(line, "{cell:>width$}  ")
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

impl Line {
    pub(super) fn is_money(&self) -> bool {
        self.quantity == "cost"
    }

    pub(super) fn is_groups(&self) -> bool {
        self.subject.starts_with("group/")
    }

    fn cells(&self, currency: &str) -> [String; 8] {
        let amount = |amount: u64| {
            if self.is_money() {
                format_money(u128::from(amount), currency)
            } else {
                amount.to_string()
            }
        };
        // What is held at one time has no reset of its own.
        let reset = match self.window.as_str() {
            "day" | "month" | "second" | "minute" | "hour" => readable(self.reset_seconds),
            _ => "-".to_owned(),
        };
        [
            self.limit.clone(),
            if self.is_groups() { "group" } else { "tenant" }.to_owned(),
            amount(self.allowed),
            amount(self.used),
            amount(self.reserved),
            amount(self.remaining),
            reset,
            if self.shadow { "shadow" } else { "" }.to_owned(),
        ]
    }
}

/// The two largest units: `26s`, `4m 10s`, `7h 5m`, `12d 3h`.
fn readable(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, hours, ..) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_money_and_times_can_be_read() {
        let answer = r#"{"tenant": "search", "plan": "standard", "group": "research",
            "currency": "USD", "requests_under_way": 2, "new": 1, "limits": [
            {"subject": "tenant/search", "limit": "chat/*/requests_per_minute",
             "quantity": "requests", "window": "minute", "allowed": 60, "burst": 60, "used": 3,
             "reserved": 1, "remaining": 56, "reset_seconds": 3, "shadow": false},
            {"subject": "group/research", "limit": "all/*/cost_per_month", "quantity": "cost",
             "window": "month", "allowed": 5000000000, "burst": null, "used": 1234567,
             "reserved": 0, "remaining": 4998765433, "reset_seconds": 1047600, "shadow": true}]}"#;
        let table = Report::parse(answer).unwrap().table();
        let expected = "\
tenant search, plan standard, group research, requests under way: 2

LIMIT                       OF      ALLOWED             USED  RESERVED        REMAINING  RESET IN
chat/*/requests_per_minute  tenant       60                3         1               56        3s
all/*/cost_per_month        group     5 USD  0.001234567 USD     0 USD  4.998765433 USD    12d 3h  shadow
";
        assert_eq!(table, expected);
    }

    #[test]
    fn a_tenant_without_limits_is_told_so() {
        let answer = r#"{"tenant": "a", "plan": "p", "group": null, "currency": "USD",
            "requests_under_way": 0, "limits": []}"#;
        assert!(Report::parse(answer).unwrap().table().contains("no limits"));
        assert!(Report::parse("<html>").is_err());
    }

    #[test]
    fn a_wait_is_told_in_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (250, "4m 10s"),
            (25_500, "7h 5m"),
            (1_047_600, "12d 3h"),
        ] {
            assert_eq!(readable(seconds), text);
        }
    }
}
