//! What a provider says is left of an account: whatever it sends, what is read of it can be shown.

use std::collections::{BTreeMap, BTreeSet};

use tidegate::upstream::credit::{Funds, Heard, Verdict, read};

pub fn check(data: &[u8]) {
    let Ok(report) = read(data) else { return };
    let currencies: BTreeSet<_> = report.balances.iter().map(|it| &it.currency).collect();
    assert_eq!(currencies.len(), report.balances.len());
    assert!(report.balances.len() <= 8);
    for balance in &report.balances {
        let text = balance.text();
        let (amount, currency) = text.split_once(' ').unwrap();
        assert_eq!(currency, balance.currency);
        let units: f64 = amount.parse().unwrap();
        assert!((units - balance.units()).abs() <= units.abs() * 1e-9);
    }
    // Said twice, it is no news; and nobody is left out for having something.
    let (funds, marks) = (Funds::default(), BTreeMap::new());
    let (first, _) = funds.hear(Heard::Report(report.clone()), &marks);
    let (second, news) = funds.hear(Heard::Report(report.clone()), &marks);
    assert_eq!(first == Verdict::Unpaid, !report.available);
    assert_eq!(second == Verdict::Nothing, report.available);
    assert!(news.is_empty());
}
