//! What the provider says is left of an account's money: how its answer reads, and what is new in
//! it. Pure: [`asking`] asks, and what follows for the account is done by who asked.

pub mod asking;

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::config::money;

/// Currencies of one account; each becomes a label.
const MOST_CURRENCIES: usize = 8;
/// Amounts of money are kept in nano-units; decimals are read in pico-units.
const PICO_IN_NANO: u128 = 1_000;

/// What the provider has said (get-user-balance page).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Is there enough for calls?
    pub available: bool,
    /// One for each currency.
    pub balances: Vec<Balance>,
}

/// What is left in one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// ISO 4217.
    pub currency: String,
    /// In 10⁻⁹ of the currency, rounded towards zero; below zero if something is owed.
    pub nanos: i128,
}

/// Why an answer says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is not the JSON of a balance")]
    Form,
    #[error("a currency is none")]
    Currency,
    #[error("a currency stands there twice")]
    Twice,
    #[error("an amount is no decimal number")]
    Amount,
    #[error("it has too many currencies")]
    TooMany,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Report(Report),
    /// The key was refused. Requests show by themselves whether it is.
    Refused,
    /// No answer, or none that says anything, and why.
    Failed(String),
}

/// What follows for the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is left.
    Unpaid,
    /// Something is there that was not there before.
    Paid,
    /// It stays as it is.
    Nothing,
}

/// What is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Less is left than the mark, in nano-units.
    Low {
        balance: Balance,
        mark: u128,
    },
    /// No longer.
    Enough {
        balance: Balance,
        mark: u128,
    },
    Refused,
    Failed(String),
    /// It answers again.
    Answers,
}

/// How an amount stands to its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub balance: Balance,
    /// `None` where there is no mark.
    pub low: Option<bool>,
}

/// What is known of an account's money.
#[derive(Debug, Default)]
pub struct Funds(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    report: Option<Report>,
    /// Currencies that were last seen below their mark.
    low: BTreeSet<String>,
    luck: Luck,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Luck {
    #[default]
    Answered,
    Refused,
    Failed,
}

#[derive(Deserialize)]
struct Answer {
    is_available: bool,
    balance_infos: Vec<Info>,
}

#[derive(Deserialize)]
struct Info {
    currency: String,
    total_balance: String,
}

/// Reads the body of a good answer.
///
/// # Errors
/// If it is not what the provider documents; then nothing of it is believed.
pub fn read(body: &[u8]) -> Result<Report, Unreadable> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| Unreadable::Form)?;
    if answer.balance_infos.len() > MOST_CURRENCIES {
        return Err(Unreadable::TooMany);
    }
    let mut balances: Vec<Balance> = Vec::with_capacity(answer.balance_infos.len());
    for info in answer.balance_infos {
        if !money::is_currency(&info.currency) {
            return Err(Unreadable::Currency);
        }
        if balances.iter().any(|known| known.currency == info.currency) {
            return Err(Unreadable::Twice);
        }
        balances.push(Balance {
            nanos: amount(&info.total_balance)?,
            currency: info.currency,
        });
    }
    Ok(Report {
        available: answer.is_available,
        balances,
    })
}

fn amount(text: &str) -> Result<i128, Unreadable> {
    let (text, sign) = match text.strip_prefix('-') {
        Some(text) => (text, -1),
        None => (text, 1),
    };
    let picos = money::parse_decimal(text).map_err(|_| Unreadable::Amount)?;
    let nanos = i128::try_from(picos / PICO_IN_NANO).map_err(|_| Unreadable::Amount)?;
    Ok(sign * nanos)
}

impl Balance {
    /// Is it below this many nano-units?
    fn is_below(&self, mark: u128) -> bool {
        u128::try_from(self.nanos).map_or(true, |nanos| nanos < mark)
    }

    /// In units of the currency, for gauges.
    pub fn units(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// For people: `12.5 USD`.
    pub fn text(&self) -> String {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let amount = money::format_money(self.nanos.unsigned_abs(), &self.currency);
        format!("{sign}{amount}")
    }
}

impl Report {
    fn left_in(&self, currency: &str) -> i128 {
        let mut balances = self.balances.iter();
        let found = balances.find(|balance| balance.currency == currency);
        found.map_or(0, |balance| balance.nanos)
    }

    /// Is there more than before, in any currency?
    fn has_grown_since(&self, before: &Self) -> bool {
        let mut balances = self.balances.iter();
        balances.any(|balance| balance.nanos > before.left_in(&balance.currency))
    }
}

impl Funds {
    /// Takes what came of asking, with the marks in nano-units by currency. What follows for the
    /// account, and what is new; a failure changes nothing of what is known.
    ///
    /// An account that live traffic has found unpaid is tried again when there is *more* than
    /// before, not because the provider goes on saying that there is enough: it would be asked every
    /// few seconds for nothing.
    pub fn hear(&self, heard: Heard, marks: &BTreeMap<String, u128>) -> (Verdict, Vec<News>) {
        let mut inner = self.0.lock();
        let mut news = Vec::new();
        let luck = match heard {
            Heard::Report(_) => Luck::Answered,
            Heard::Refused => Luck::Refused,
            Heard::Failed(_) => Luck::Failed,
        };
        let changed = std::mem::replace(&mut inner.luck, luck) != luck;
        let report = match heard {
            Heard::Report(report) => report,
            Heard::Refused => {
                news.extend(changed.then_some(News::Refused));
                return (Verdict::Nothing, news);
            }
            Heard::Failed(why) => {
                news.extend(changed.then_some(News::Failed(why)));
                return (Verdict::Nothing, news);
            }
        };
        news.extend(changed.then_some(News::Answers));
        inner.compare(&report, marks, &mut news);
        let is_news = inner
            .report
            .as_ref()
            .is_none_or(|before| !before.available || report.has_grown_since(before));
        let verdict = match (report.available, is_news) {
            (false, _) => Verdict::Unpaid,
            (true, true) => Verdict::Paid,
            (true, false) => Verdict::Nothing,
        };
        inner.report = Some(report);
        (verdict, news)
    }

    /// What was said last, beside the marks; `None` if nothing was ever said.
    pub fn shown(&self, marks: &BTreeMap<String, u128>) -> Option<Vec<Shown>> {
        let inner = self.0.lock();
        let balances = inner.report.as_ref()?.balances.iter();
        let shown = balances.map(|balance| Shown {
            balance: balance.clone(),
            low: marks
                .get(&balance.currency)
                .map(|mark| balance.is_below(*mark)),
        });
        Some(shown.collect())
    }
}

impl Inner {
    fn compare(&mut self, report: &Report, marks: &BTreeMap<String, u128>, news: &mut Vec<News>) {
        self.low.retain(|currency| marks.contains_key(currency));
        for balance in &report.balances {
            let Some(&mark) = marks.get(&balance.currency) else {
                continue;
            };
            let balance = balance.clone();
            if balance.is_below(mark) {
                if self.low.insert(balance.currency.clone()) {
                    news.push(News::Low { balance, mark });
                }
            } else if self.low.remove(&balance.currency) {
                news.push(News::Enough { balance, mark });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(available: bool, total: &str) -> String {
        format!(
            r#"{{"is_available": {available}, "balance_infos": [{{"currency": "USD",
            "total_balance": "{total}", "granted_balance": "0.00", "topped_up_balance": "{total}"}}]}}"#
        )
    }

    fn report(available: bool, total: &str) -> Report {
        read(answer(available, total).as_bytes()).unwrap()
    }

    fn hear(funds: &Funds, report: Report) -> (Verdict, Vec<News>) {
        let marks = BTreeMap::from([("USD".to_owned(), 10_000_000_000)]);
        funds.hear(Heard::Report(report), &marks)
    }

    #[test]
    fn amounts_are_exact_decimals_also_below_zero() {
        for (text, nanos) in [
            ("110.00", 110_000_000_000),
            ("0.00", 0),
            ("-0.02", -20_000_000),
            ("0.000000000999", 0),
            ("3", 3_000_000_000),
        ] {
            assert_eq!(report(true, text).balances[0].nanos, nanos, "{text}");
        }
        assert_eq!(report(true, "-0.02").balances[0].text(), "-0.02 USD");
        assert_eq!(report(true, "12.50").balances[0].text(), "12.5 USD");
    }

    #[test]
    fn an_answer_that_is_not_as_documented_is_not_believed() {
        let info = |currency: &str, total: &str| {
            format!(r#"{{"currency": "{currency}", "total_balance": "{total}"}}"#)
        };
        let with = |infos: &[String]| {
            let infos = infos.join(",");
            let body = format!(r#"{{"is_available": true, "balance_infos": [{infos}]}}"#);
            read(body.as_bytes()).map(|report| report.balances.len())
        };
        let usd = info("USD", "1.00");
        assert_eq!(with(&[]), Ok(0));
        assert_eq!(with(&[usd.clone(), info("CNY", "2.00")]), Ok(2));
        assert_eq!(with(&[usd.clone(), usd.clone()]), Err(Unreadable::Twice));
        assert_eq!(with(&[info("usd", "1")]), Err(Unreadable::Currency));
        for amount in ["", "many", "1e3", "--1", "1,5", "9999999999999"] {
            assert_eq!(with(&[info("USD", amount)]), Err(Unreadable::Amount));
        }
        let many: Vec<_> = (b'A'..=b'I')
            .map(|letter| info(&format!("AA{}", letter as char), "1"))
            .collect();
        assert_eq!(with(&many), Err(Unreadable::TooMany));
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"is_available": true}"#,
            r#"{"is_available": "yes", "balance_infos": []}"#,
            r#"{"is_available": true, "balance_infos": [{"currency": "USD", "total_balance": 1.5}]}"#,
        ] {
            assert_eq!(read(body.as_bytes()), Err(Unreadable::Form), "{body}");
        }
    }

    #[test]
    fn an_account_is_unpaid_while_the_provider_says_so_and_paid_when_there_is_more() {
        let funds = Funds::default();
        for (available, total, verdict) in [
            (true, "20", Verdict::Paid),
            (true, "19", Verdict::Nothing),
            (true, "19", Verdict::Nothing),
            (false, "0", Verdict::Unpaid),
            (false, "0", Verdict::Unpaid),
            (true, "0", Verdict::Paid),
            (true, "0", Verdict::Nothing),
            (true, "0.01", Verdict::Paid),
        ] {
            let (heard, _) = hear(&funds, report(available, total));
            assert_eq!(heard, verdict, "{available} {total}");
        }
    }

    #[test]
    fn the_mark_is_told_once_when_it_is_crossed_and_once_when_there_is_enough_again() {
        let funds = Funds::default();
        let told = |total: &str| hear(&funds, report(true, total)).1;
        assert!(told("10").is_empty());
        assert!(matches!(told("9.99").as_slice(), [News::Low { .. }]));
        assert!(told("5").is_empty());
        assert!(told("-1").is_empty());
        assert!(matches!(told("10.00").as_slice(), [News::Enough { .. }]));
        assert!(told("11").is_empty());
    }

    #[test]
    fn a_failure_changes_nothing_and_is_told_once() {
        let funds = Funds::default();
        let marks = BTreeMap::from([("USD".to_owned(), 10_000_000_000)]);
        hear(&funds, report(false, "5"));
        let before = funds.shown(&marks);
        let failed = || funds.hear(Heard::Failed("status 500".to_owned()), &marks);
        let (verdict, news) = failed();
        assert_eq!(verdict, Verdict::Nothing);
        assert_eq!(news, [News::Failed("status 500".to_owned())]);
        assert!(failed().1.is_empty());
        let refused = funds.hear(Heard::Refused, &marks);
        assert_eq!(refused, (Verdict::Nothing, vec![News::Refused]));
        assert_eq!(funds.shown(&marks), before);
        let (verdict, news) = hear(&funds, report(true, "5"));
        assert_eq!((verdict, news), (Verdict::Paid, vec![News::Answers]));
    }

    #[test]
    fn what_has_no_mark_is_shown_and_never_low() {
        let funds = Funds::default();
        assert_eq!(funds.shown(&BTreeMap::new()), None);
        hear(&funds, report(true, "5"));
        let shown = funds.shown(&BTreeMap::new()).unwrap();
        assert_eq!((shown[0].balance.units(), shown[0].low), (5.0, None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
        }

        #[test]
        fn every_amount_is_read_as_it_was_written(cents in -1_000_000_000i64..1_000_000_000) {
            let sign = if cents < 0 { "-" } else { "" };
            let whole = cents.unsigned_abs();
            let text = format!("{sign}{}.{:02}", whole / 100, whole % 100);
            let nanos = report(true, &text).balances[0].nanos;
            prop_assert_eq!(nanos, i128::from(cents) * 10_000_000);
        }
    }
}
