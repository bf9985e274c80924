//! `tidegate limits`: asks the running gateway how a tenant's limits stand, and eases them.
//!
//! What is asked stands here, how it is shown in [`table`]. The gateway judges; this only sends what
//! was meant, and says what to do where it cannot.

mod table;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::json;

use self::table::Report;
use super::key::id;
use super::operator::{AccessOptions, Gateway, Problem};
use super::{Exit, complain, print};
use crate::config::money;
use crate::config::nearest::hint;

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Show how each limit of a tenant, and of its group, stands
    Show {
        /// The tenant's id
        #[arg(value_name = "TENANT", value_parser = id)]
        tenant: String,
        #[command(flatten)]
        access: AccessOptions,
        #[command(flatten)]
        shown: Shown,
    },
    /// Allow more for the current day or month, once; leaves a line in the gateway's log
    Grant {
        /// The tenant's id
        #[arg(value_name = "TENANT", value_parser = id)]
        tenant: String,
        /// The limit's name as `show` has it, of a day or a month
        #[arg(long, value_name = "NAME")]
        limit: String,
        /// How much more: requests or tokens, or money such as 2.50 or '2.50 USD'
        #[arg(long, value_name = "N")]
        amount: String,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        access: AccessOptions,
        #[command(flatten)]
        shown: Shown,
    },
    /// Forget what was used; what requests under way have reserved stays. Leaves a line in the
    /// gateway's log
    Reset {
        /// The tenant's id
        #[arg(value_name = "TENANT", value_parser = id)]
        tenant: String,
        /// The limit's name as `show` has it; without it, all of them
        #[arg(long, value_name = "NAME")]
        limit: Option<String>,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        access: AccessOptions,
        #[command(flatten)]
        shown: Shown,
    },
}

/// What both changes have.
#[derive(Args)]
pub(super) struct Change {
    /// Of the tenant's group instead of its own
    #[arg(long)]
    group: bool,
    /// Why, for the gateway's log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Args)]
pub(super) struct Shown {
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// The gateway's answer as it is; money in nano-units of the currency
    Json,
}

pub(super) fn limits(verb: Verb) -> Exit {
    let (access, format) = match &verb {
        Verb::Show { access, shown, .. }
        | Verb::Grant { access, shown, .. }
        | Verb::Reset { access, shown, .. } => (access, shown.format),
    };
    let answer = match access.open() {
        Ok(gateway) => carry_out(&verb, &gateway),
        Err(exit) => return exit,
    };
    match answer.and_then(|answer| show(&answer, format)) {
        Ok(text) => print(&text),
        Err(Problem(exit, why)) => {
            complain(&why);
            exit
        }
    }
}

fn carry_out(verb: &Verb, gateway: &Gateway) -> Result<String, Problem> {
    match verb {
        Verb::Show { tenant, .. } => gateway.ask(Method::GET, &format!("/limits/{tenant}"), None),
        Verb::Grant {
            tenant,
            limit,
            amount,
            change,
            ..
        } => {
            // Looked at first, for the unit that the amount is in.
            let standing =
                Report::parse(&gateway.ask(Method::GET, &format!("/limits/{tenant}"), None)?)
                    .map_err(Problem::passing)?;
            let amount = amount_of(&standing, limit, change.group, amount)?;
            let body = json!({
                "limit": limit, "amount": amount, "group": change.group, "reason": change.reason,
            });
            gateway.ask(
                Method::POST,
                &format!("/limits/{tenant}/grant"),
                Some(&body),
            )
        }
        Verb::Reset {
            tenant,
            limit,
            change,
            ..
        } => {
            let body = json!({"limit": limit, "group": change.group, "reason": change.reason});
            gateway.ask(
                Method::POST,
                &format!("/limits/{tenant}/reset"),
                Some(&body),
            )
        }
    }
}

fn show(answer: &str, format: Format) -> Result<String, Problem> {
    match format {
        Format::Json => Ok(format!("{answer}\n")),
        Format::Table => {
            let report = Report::parse(answer).map_err(Problem::passing)?;
            Ok(report.table())
        }
    }
}

/// What a person means by `text`, in the unit of the limit.
fn amount_of(report: &Report, name: &str, group: bool, text: &str) -> Result<u64, Problem> {
    let own = report.limits.iter().filter(|one| one.is_groups() == group);
    let names = own.clone().map(|one| one.limit.as_str());
    let found = own.clone().find(|one| one.limit == name).ok_or_else(|| {
        let whose = if group { "group" } else { "tenant" };
        let near = hint(name, names.clone());
        let all: Vec<_> = names.collect();
        let listed = if all.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it has {}", all.join(", "))
        };
        Problem::lasting(format!(
            "the {whose} has no limit {name:?}{near} ({listed})"
        ))
    })?;
    if !found.is_money() {
        let amount = text.parse().ok().filter(|amount| *amount > 0);
        return amount.ok_or_else(|| {
            Problem::lasting(format!("--amount: {text:?} is not a whole number above 0"))
        });
    }
    let text = if text.contains(' ') {
        text.to_owned()
    } else {
        format!("{text} {}", report.currency)
    };
    let amount = money::parse_money(&text)
        .map_err(|why| Problem::lasting(format!("--amount: {why}; {}", money::MONEY_FORM)))?;
    if amount.currency != report.currency {
        return Err(Problem::lasting(format!(
            "--amount: this gateway counts in {}, not in {}",
            report.currency, amount.currency
        )));
    }
    let nanos = u64::try_from(amount.nanos).ok().filter(|nanos| *nanos > 0);
    nanos.ok_or_else(|| Problem::lasting("--amount: 0, or more than can be counted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let text = r#"{"tenant": "search", "plan": "p", "group": "g", "currency": "USD",
            "requests_under_way": 0, "limits": [
            {"subject": "tenant/search", "limit": "all/*/requests_per_day", "quantity": "requests",
             "window": "day", "allowed": 10, "used": 1, "reserved": 0, "remaining": 9,
             "reset_seconds": 60, "shadow": false},
            {"subject": "group/g", "limit": "all/*/cost_per_day", "quantity": "cost",
             "window": "day", "allowed": 5, "used": 1, "reserved": 0, "remaining": 4,
             "reset_seconds": 60, "shadow": false}]}"#;
        Report::parse(text).unwrap()
    }

    fn amount(name: &str, group: bool, text: &str) -> Result<u64, String> {
        amount_of(&report(), name, group, text).map_err(|Problem(_, why)| why)
    }

    #[test]
    fn an_amount_is_in_the_unit_of_its_limit() {
        assert_eq!(amount("all/*/requests_per_day", false, "500"), Ok(500));
        assert_eq!(amount("all/*/cost_per_day", true, "2.5"), Ok(2_500_000_000));
        assert_eq!(
            amount("all/*/cost_per_day", true, "0.01 USD"),
            Ok(10_000_000)
        );
    }

    #[test]
    fn an_amount_that_cannot_be_meant_is_refused() {
        for (name, group, text, words) in [
            ("all/*/requests_per_day", false, "2.5", "whole number"),
            ("all/*/requests_per_day", false, "0", "above 0"),
            ("all/*/requests_per_day", false, "-1", "whole number"),
            ("all/*/cost_per_day", true, "2 EUR", "counts in USD"),
            ("all/*/cost_per_day", true, "0", "0, or more"),
            ("all/*/cost_per_day", false, "2", "the tenant has no limit"),
            (
                "all/*/request_per_day",
                false,
                "2",
                "did you mean \"all/*/requests_per_day\"?",
            ),
        ] {
            let told = amount(name, group, text).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
    }
}
