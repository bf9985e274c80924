//! The pages that list what the code lists say the same as the code.

use std::collections::BTreeSet;

use tidegate::request::refusal::{Code, Family, Fault, Refusal};

fn read(path: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The cells of a page's table rows that begin with a code word.
fn rows(page: &str) -> Vec<Vec<String>> {
    let page = read(page);
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    })
    .collect()
}

#[test]
fn every_metric_is_described_with_its_type_and_labels() {
    let source = read("src/telemetry/metrics.rs")
        .replace("\n        ", " ")
        .replace("\n    );", ");");
    let in_code: BTreeSet<Vec<String>> = source
        .lines()
        .filter_map(|line| {
            let (make, rest) = line.split_once(" = ")?.1.split_once('(')?;
            let kind = ["counter", "gauge", "histogram"]
                .into_iter()
                .find(|kind| make.contains(kind))?;
            let (name, rest) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
            let labels = rest
                .split_once("&[")
                .and_then(|(_, rest)| rest.split_once(']'));
            let labels = labels.map_or(String::new(), |(labels, _)| labels.replace('"', ""));
            let labels = labels
                .split(',')
                .map(str::trim)
                .filter(|label| !label.is_empty());
            let labels = labels.collect::<Vec<_>>().join(", ");
            Some(vec![format!("tidegate_{name}"), kind.to_owned(), labels])
        })
        .collect();
    let described = rows("docs/metrics.md")
        .into_iter()
        .filter(|row| row[0].starts_with("tidegate_"))
        .map(|row| row.into_iter().take(3).collect())
        .collect();
    assert!(in_code.len() > 20, "{in_code:?}");
    assert_eq!(in_code, described);
}

#[test]
fn every_error_code_is_described_as_it_is() {
    let kind = |code, family| {
        let body = Refusal::new(code, "").body(family, "");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        body.pointer("/error/type")
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned()
    };
    let in_code: BTreeSet<Vec<String>> = Code::ALL
        .iter()
        .map(|&code| {
            let fault = match code.fault() {
                Fault::Client => "client",
                Fault::Ours => "us",
                Fault::Upstream => "upstream",
            };
            let retry = if code.may_retry() { "yes" } else { "no" };
            vec![
                code.as_str().to_owned(),
                code.status().as_u16().to_string(),
                fault.to_owned(),
                retry.to_owned(),
                kind(code, Family::OpenAi),
                kind(code, Family::Anthropic),
            ]
        })
        .collect();
    let described = rows("docs/errors.md")
        .into_iter()
        .map(|row| row.into_iter().take(6).collect());
    assert_eq!(in_code, described.collect::<BTreeSet<Vec<_>>>());
}

#[test]
fn every_field_of_the_access_log_is_described_in_its_order() {
    let source = read("src/telemetry/access_log.rs");
    let (_, fields) = source.split_once("pub struct Line<'a> {").unwrap();
    let fields = fields.split_once("\n}\n").unwrap().0.lines();
    let in_code: Vec<_> = fields
        .filter_map(|line| Some(line.strip_prefix("    pub ")?.split_once(':')?.0.to_owned()))
        .collect();
    let described: Vec<_> = rows("docs/access-log.md")
        .into_iter()
        .filter(|row| row.len() == 3)
        .flat_map(|row| row[0].split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(in_code, described);
}

/// The file named in each `<!-- file: … -->`, with the fenced block that follows.
fn embedded(page: &str) -> Vec<(&str, &str)> {
    let marked = page.split("<!-- file: ").skip(1);
    marked
        .map(|rest| {
            let (file, rest) = rest.split_once(" -->\n```").unwrap();
            let (_language, rest) = rest.split_once('\n').unwrap();
            (file, rest.split_once("\n```\n").unwrap().0)
        })
        .collect()
}

#[test]
fn the_clients_that_sign_are_shown_as_they_are() {
    let page = read("docs/signed-requests.md");
    let shown = embedded(&page);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let clients = std::fs::read_dir(root.join("tests/sdk/signing")).unwrap();
    assert_eq!(shown.len(), clients.count());
    for (file, text) in shown {
        assert_eq!(read(file), format!("{text}\n"), "{file}");
    }
}
