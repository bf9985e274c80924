//! `tidegate switch`, `drain` and `undrain`: switches tenants, models and upstreams of the running
//! gateway off and on, and takes accounts and endpoints out of use. The gateway judges; this only
//! sends what was meant.

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::operator::{AccessOptions, Gateway, Problem};
use super::{Exit, complain, print};
use crate::config::process_environment;

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Serve nothing of a tenant, under a model's name, or from an upstream, until it is on again
    #[command(after_long_help = "Examples:\n  \
        tidegate switch off tenant search --reason 'a loop in their code'\n  \
        tidegate switch off model deepseek-v4-pro --reason 'odd answers, ticket 4711'\n  \
        tidegate switch off upstream backup --reason 'prices doubled'\n\n\
        It holds at once, over reloads and restarts; requests under way end as they would. Tenants are \
        told that it is off, never why.")]
    Off {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        access: AccessOptions,
    },
    /// Serve it again
    On {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        why: WhyNot,
        #[command(flatten)]
        access: AccessOptions,
    },
    /// Show all that is off or drained: since when, by whom and why
    List {
        #[command(flatten)]
        access: AccessOptions,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

#[derive(Args)]
pub(super) struct What {
    /// What it is
    #[arg(value_name = "KIND", value_enum)]
    kind: Kind,
    /// Its name in the configuration; a model is switched by the name that tenants ask for
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Tenant,
    Model,
    Upstream,
}

/// What a drain is of.
#[derive(Subcommand)]
pub(super) enum Place<W: Args> {
    /// An account, as UPSTREAM/ACCOUNT
    Account {
        /// Its upstream and its id, such as deepseek/main
        #[arg(value_name = "UPSTREAM/ACCOUNT", value_parser = pair)]
        account: (String, String),
        #[command(flatten)]
        why: W,
        #[command(flatten)]
        access: AccessOptions,
    },
    /// An endpoint of an upstream, by its URL in the configuration
    Endpoint {
        /// The upstream's id
        #[arg(value_name = "UPSTREAM")]
        upstream: String,
        /// As the configuration has it
        #[arg(value_name = "URL")]
        url: String,
        #[command(flatten)]
        why: W,
        #[command(flatten)]
        access: AccessOptions,
    },
}

#[derive(Args)]
pub(super) struct Why {
    /// Why, for those who look later; at most 200 characters
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who does it [default: your login name]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Args)]
pub(super) struct WhyNot {
    /// Why, for the gateway's log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who does it [default: your login name]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// The gateway's answer as it is
    Json,
}

/// One change, as it goes to the gateway.
struct Order {
    method: Method,
    path: String,
    body: Value,
}

/// What the gateway says of one thing.
#[derive(Debug, Deserialize)]
struct Entry {
    kind: String,
    upstream: Option<String>,
    name: String,
    state: String,
    #[serde(default)]
    since: String,
    #[serde(default)]
    by: String,
    #[serde(default)]
    reason: String,
    #[serde(default = "yes")]
    known: bool,
    #[serde(default = "yes")]
    kept: bool,
}

fn yes() -> bool {
    true
}

pub(super) fn switch(verb: Verb) -> Exit {
    match verb {
        Verb::Off { what, why, access } => {
            let body = json!({"state": "off", "reason": why.reason, "by": author(why.by)});
            let path = what.path();
            change(&access, &order(Method::PUT, path, body))
        }
        Verb::On { what, why, access } => {
            let body = json!({"reason": why.reason, "by": author(why.by)});
            let path = what.path();
            change(&access, &order(Method::DELETE, path, body))
        }
        Verb::List { access, format } => list(&access, format),
    }
}

pub(super) fn drain(place: Place<Why>) -> Exit {
    let words = |why: Why| json!({"reason": why.reason, "by": author(why.by)});
    let (access, order) = of_place(Method::PUT, place, words);
    change(&access, &order)
}

pub(super) fn undrain(place: Place<WhyNot>) -> Exit {
    let words = |why: WhyNot| json!({"reason": why.reason, "by": author(why.by)});
    let (access, order) = of_place(Method::DELETE, place, words);
    change(&access, &order)
}

fn of_place<W: Args>(
    method: Method,
    place: Place<W>,
    words: impl Fn(W) -> Value,
) -> (AccessOptions, Order) {
    match place {
        Place::Account {
            account: (upstream, account),
            why,
            access,
        } => {
            let path = format!("/drains/accounts/{}/{}", coded(&upstream), coded(&account));
            (access, order(method, path, words(why)))
        }
        Place::Endpoint {
            upstream,
            url,
            why,
            access,
        } => {
            let path = format!("/drains/endpoints/{}?url={}", coded(&upstream), coded(&url));
            (access, order(method, path, words(why)))
        }
    }
}

fn order(method: Method, path: String, body: Value) -> Order {
    Order { method, path, body }
}

impl What {
    fn path(&self) -> String {
        let kind = match self.kind {
            Kind::Tenant => "tenant",
            Kind::Model => "model",
            Kind::Upstream => "upstream",
        };
        format!("/switches/{kind}/{}", coded(&self.name))
    }
}

fn coded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn author(named: Option<String>) -> String {
    let login = || process_environment("USER")?.into_string().ok();
    named.or_else(login).unwrap_or_default()
}

fn pair(text: &str) -> Result<(String, String), String> {
    let named = |part: &str| !part.is_empty() && !part.contains('/');
    match text.split_once('/') {
        Some((upstream, account)) if named(upstream) && named(account) => {
            Ok((upstream.to_owned(), account.to_owned()))
        }
        _ => Err("an account is named with its upstream, such as deepseek/main".to_owned()),
    }
}

fn change(access: &AccessOptions, order: &Order) -> Exit {
    let sent = |gateway: Gateway| {
        let answer = gateway.ask(order.method.clone(), &order.path, Some(&order.body))?;
        serde_json::from_str::<Entry>(&answer).map_err(|_| foreign())
    };
    match access.open().map(sent) {
        Ok(Ok(entry)) => {
            if !entry.kept {
                complain(
                    "it holds, but the gateway cannot write it into its state_dir at the moment: it is \
                     lost if the process ends before it can",
                );
            }
            let Entry { kind, state, .. } = &entry;
            print(&format!("{kind} {} is {state}\n", entry.full_name()))
        }
        Ok(Err(problem)) => told(&problem),
        Err(exit) => exit,
    }
}

fn list(access: &AccessOptions, format: Format) -> Exit {
    let asked = |gateway: Gateway| {
        let answer = gateway.ask(Method::GET, "/switches", None)?;
        match format {
            Format::Json => Ok(format!("{answer}\n")),
            Format::Table => table(&answer),
        }
    };
    match access.open().map(asked) {
        Ok(Ok(text)) => print(&text),
        Ok(Err(problem)) => told(&problem),
        Err(exit) => exit,
    }
}

fn told(Problem(exit, why): &Problem) -> Exit {
    complain(why);
    *exit
}

fn foreign() -> Problem {
    Problem::passing("the gateway's answer is none that this version understands")
}

fn table(answer: &str) -> Result<String, Problem> {
    #[derive(Deserialize)]
    struct Answer {
        switches: Vec<Entry>,
    }
    let answer: Answer = serde_json::from_str(answer).map_err(|_| foreign())?;
    if answer.switches.is_empty() {
        return Ok("nothing is switched off or drained\n".to_owned());
    }
    let head = ["KIND", "NAME", "STATE", "SINCE", "BY", "REASON"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(answer.switches.iter().map(Entry::cells));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    Ok(text)
}

impl Entry {
    fn full_name(&self) -> String {
        match &self.upstream {
            Some(upstream) => format!("{upstream}/{}", self.name),
            None => self.name.clone(),
        }
    }

    fn cells(&self) -> [String; 6] {
        // To the second.
        let since = self.since.split('.').next().unwrap_or_default();
        let since = format!("{}Z", since.trim_end_matches('Z'));
        let gone = if self.known {
            ""
        } else {
            " (not in the configuration)"
        };
        [
            self.kind.clone(),
            self.full_name(),
            self.state.clone(),
            since,
            self.by.clone(),
            format!("{}{gone}", self.reason),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_off_since_when_by_whom_and_why() {
        let answer = r#"{"switches": [
            {"kind": "tenant", "upstream": null, "name": "search", "state": "off", "new": 1,
             "since": "2026-11-25T13:00:00.123Z", "by": "ann", "from": "127.0.0.1:1",
             "reason": "a loop", "known": true},
            {"kind": "account", "upstream": "deepseek", "name": "old", "state": "drained",
             "since": "2026-11-25T13:00:00Z", "by": "", "from": "127.0.0.1:1",
             "reason": "key leaked", "known": false}]}"#;
        let expected = "\
KIND     NAME          STATE    SINCE                 BY   REASON
tenant   search        off      2026-11-25T13:00:00Z  ann  a loop
account  deepseek/old  drained  2026-11-25T13:00:00Z       key leaked (not in the configuration)
";
        assert_eq!(table(answer).map_err(|it| it.1), Ok(expected.to_owned()));
        let none = table(r#"{"switches": []}"#).map_err(|it| it.1);
        assert_eq!(none, Ok("nothing is switched off or drained\n".to_owned()));
        assert!(table("<html>").is_err());
    }

    #[test]
    fn an_account_is_named_with_its_upstream() {
        let (upstream, account) = pair("deepseek/main").unwrap();
        assert_eq!((&*upstream, &*account), ("deepseek", "main"));
        for text in ["main", "/main", "deepseek/", "a/b/c", ""] {
            assert!(pair(text).is_err(), "{text}");
        }
    }
}
