use std::path::Path;

use super::*;
use crate::config::mistake::Mistake;
use proptest::prelude::*;

fn read(text: &str) -> Result<Node, Vec<Mistake>> {
    parse(text, Path::new("t.yaml"), 0)
}

fn line(node: &Node, path: KeyPath<'_>) -> usize {
    node.locate(&path).line
}

#[test]
fn every_value_knows_its_line() {
    let node = read("a: 1\nb:\n  - x\n  - c: 2\n    d: [1,\n        2]\n").unwrap();
    let b = KeyPath::Root.key("b");
    assert_eq!(line(&node, KeyPath::Root.key("a")), 1);
    assert_eq!(line(&node, b), 2);
    assert_eq!(line(&node, b.index(1)), 4);
    assert_eq!(line(&node, b.index(1).key("d").index(1)), 6);
    assert_eq!(line(&node, b.index(1).key("missing").key("deeper")), 4);
}

#[test]
fn anchors_aliases_and_merges_are_expanded() {
    let node = read(
        "base: &b {x: 1, y: 2}\none: *b\ntwo: {<<: *b, y: 3}\nthree:\n  <<: [{z: 1}, *b]\n  x: 0\n",
    )
    .unwrap();
    let expected = serde_json::json!({
        "base": {"x": 1, "y": 2}, "one": {"x": 1, "y": 2}, "two": {"y": 3, "x": 1}, "three": {"x": 0, "z": 1, "y": 2},
    });
    assert_eq!(node.to_json(), expected);
}

#[test]
fn every_duplicate_key_is_reported_with_both_lines() {
    let mistakes = read("a: 1\nb: {c: 1, c: 2}\nl:\n- d: 1\n  d: 2\na: 2\n").unwrap_err();
    let told: Vec<_> = mistakes
        .iter()
        .map(|m| (m.line.unwrap(), m.path.as_str()))
        .collect();
    assert_eq!(told, [(2, "b.c"), (5, "l[0].d"), (6, "a")]);
    assert!(
        mistakes[2].to_string().contains("line 1"),
        "{}",
        mistakes[2]
    );
}

#[test]
fn what_is_not_understood_is_refused_with_its_line() {
    for (text, at, about) in [
        ("a: [1", 2, "not YAML"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: !secret x\n", 1, "tag"),
        ("\n? [a]\n: 1\n", 2, "as a key"),
        ("a: .inf\n", 1, "finite"),
        ("a: {<<: 1}\n", 1, "<<"),
    ] {
        let mistakes = read(text).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
        assert!(mistakes[0].to_string().contains(about), "{}", mistakes[0]);
        assert_eq!(mistakes[0].line, Some(at), "{text} {}", mistakes[0]);
    }
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..30 {
        let of = format!("*a{}, ", i - 1).repeat(10);
        text.push_str(&format!("a{i}: &a{i} [{}]\n", of.trim_end_matches(", ")));
    }
    assert!(
        read(&text).unwrap_err()[0]
            .to_string()
            .contains("too many values")
    );
}

#[test]
fn a_long_text_named_again_and_again_is_refused() {
    let long = "x".repeat(1 << 20);
    let text = format!("a: &a {long}\nl: [{}]\n", "*a, ".repeat(100_000));
    let told = read(&text).unwrap_err()[0].to_string();
    assert!(told.contains("too much text"), "{told}");
    let text = format!("a: &a {{? {long} : 1}}\nl: [{}]\n", "*a, ".repeat(100_000));
    assert!(
        read(&text).unwrap_err()[0]
            .to_string()
            .contains("too much text")
    );
}

#[test]
fn depth_is_counted_through_aliases() {
    let nested = |inner: &str| format!("{}{inner}{}", "[".repeat(60), "]".repeat(60));
    let mut text = format!("a0: &a0 {}\n", nested("x"));
    assert!(read(&text).is_ok());
    for i in 1..100 {
        text.push_str(&format!(
            "a{i}: &a{i} {}\n",
            nested(&format!("*a{}", i - 1))
        ));
    }
    let told = read(&text).unwrap_err()[0].to_string();
    assert!(told.contains("nested too deeply"), "{told}");
    assert!(read("a: &a [[x]]\nb: {c: [*a]}\n").is_ok());
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    let text = "[".repeat(100_000);
    assert!(!read(&text).unwrap_err().is_empty());
    let text = "- ".repeat(100_000);
    assert!(!read(&text).unwrap_err().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_mix_of_yaml_signs_makes_the_reader_panic(text in "[-?:,\\[\\]{}#&*!|>'\"%@` \n\t\\r<~a0.]{0,60}") {
        let _ = read(&text);
    }
}
