//! Nothing in a file makes the pipeline panic, or lets through what cannot be read afterwards.

use proptest::prelude::*;

use super::*;

const REFERENCE: &str = include_str!("../../../conf/reference.yaml");

/// Without the disk: from text to settings.
fn run(text: &str) {
    let files = [PathBuf::from("t.yaml")];
    let Ok(root) = position::parse(text, &files[0], 0) else {
        return;
    };
    let mut report = Report::new(&files, &root);
    shape::walk(&schema::value(), &root, &mut report);
    if report.has_mistakes() {
        let (mistakes, _) = report.finish();
        assert!(mistakes.iter().all(|m| !m.to_string().is_empty()));
        return;
    }
    let file: file::File =
        serde_yaml::from_value(root.to_yaml()).expect("what the walk lets pass can be read");
    check::check(
        &file,
        &Sources {
            bases: &[Some(PathBuf::new())],
            environment: &environment,
        },
        &mut report,
    );
    let _ = report.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_text_makes_the_pipeline_panic(text in "(?s).{0,300}") {
        run(&text);
    }

    #[test]
    fn no_mutation_of_the_reference_makes_the_pipeline_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[-?:,\\[\\]{}#&*!|>'\"%@` \n\t~a0.]{0,6}"), 1..6)
    ) {
        let mut text: Vec<char> = REFERENCE.chars().collect();
        for (index, cut, insert) in edits {
            let at = index.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, insert.chars());
        }
        run(&text.into_iter().collect::<String>());
    }

    #[test]
    fn no_exchange_of_values_makes_the_pipeline_panic(
        picks in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..10), 1..4)
    ) {
        const VALUES: [&str; 10] = ["null", "true", "-1", "99999999999999999", "1.5", "''", "[]", "{}", "[{}]", "0ms"];
        let mut lines: Vec<String> = REFERENCE.lines().filter(|l| !l.trim_start().starts_with('#')).map(str::to_owned).collect();
        for (index, value) in picks {
            let line = index.get(&lines).clone();
            if let Some((key, _)) = line.split_once(": ") {
                let at = index.index(lines.len());
                lines[at] = format!("{key}: {}", VALUES[value]);
            }
        }
        run(&lines.join("\n"));
    }
}
