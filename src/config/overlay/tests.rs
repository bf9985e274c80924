use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::position::parse;
use crate::config::schema;

fn read(number: usize, text: &str) -> Node {
    let name = format!("{number}.yaml");
    parse(text, Path::new(&name), number).unwrap()
}

fn laid(texts: &[&str]) -> Result<(Node, History), Vec<Mistake>> {
    let schema = schema::value();
    let files: Vec<PathBuf> = (0..texts.len())
        .map(|n| format!("{n}.yaml").into())
        .collect();
    let mut history = History::default();
    let mut root = read(0, texts[0]);
    for (number, text) in texts.iter().enumerate().skip(1) {
        let above = read(number, text);
        lay(Spot::root(&schema), &mut root, above, &files, &mut history)?;
    }
    Ok((root, history))
}

fn result(texts: &[&str]) -> serde_json::Value {
    laid(texts).unwrap().0.to_json()
}

#[test]
fn maps_merge_and_scalars_and_plain_lists_are_replaced() {
    assert_eq!(
        result(&[
            "server: {threads: 2, limits: {max_head: 1KiB, max_target: 1KiB}}\nmodels: {a: {variants: [1, 2]}}",
            "server: {limits: {max_head: 2KiB}, shutdown_grace: 1s}\nmodels: {a: {variants: [3]}, b: {alias: a}}",
        ]),
        json!({
            "server": {"threads": 2, "limits": {"max_head": "2KiB", "max_target": "1KiB"}, "shutdown_grace": "1s"},
            "models": {"a": {"variants": [3]}, "b": {"alias": "a"}},
        })
    );
}

#[test]
fn lists_of_named_items_merge_item_by_item() {
    let base = "\
tenants: [{id: a, models: [x]}, {id: b, models: [x]}]
server: {listeners: [{address: '127.0.0.1:1'}]}
upstreams: [{id: u, endpoints: [{url: 'http://h', weight: 1}], accounts: [{id: m, api_key: k}]}]";
    let over = "\
tenants: [{id: c, models: [y]}, {id: b, enabled: false}]
server: {listeners: [{address: '127.0.0.1:1', h2c: true}]}
upstreams: [{id: u, endpoints: [{url: 'http://i'}, {url: 'http://h', weight: 2}], accounts: [{id: m, api_key: l}]}]";
    assert_eq!(
        result(&[base, over]),
        json!({
            "tenants": [
                {"id": "a", "models": ["x"]},
                {"id": "b", "models": ["x"], "enabled": false},
                {"id": "c", "models": ["y"]},
            ],
            "server": {"listeners": [{"address": "127.0.0.1:1", "h2c": true}]},
            "upstreams": [{
                "id": "u",
                "endpoints": [{"url": "http://h", "weight": 2}, {"url": "http://i"}],
                "accounts": [{"id": "m", "api_key": "l"}],
            }],
        })
    );
}

#[test]
fn null_takes_a_key_away_but_is_a_value_where_any_json_may_stand() {
    assert_eq!(
        result(&[
            "retry: {attempts: 3}\nlogging: {level: info}\nmodels: {a: {set: {stop: x, t: {u: 1, v: 2}}}}",
            "retry: null\nlogging: {level: null, access: ~}\nfiles: {upstream: null}\nmodels: {a: {set: {stop: null, t: {u: 3}}}}",
        ]),
        json!({
            "logging": {},
            "files": {},
            "models": {"a": {"set": {"stop": null, "t": {"u": 3}}}},
        })
    );
    assert_eq!(
        result(&["retry: {attempts: 3}", "# nothing"]),
        json!({"retry": {"attempts": 3}})
    );
}

#[test]
fn an_item_is_taken_away_by_name_and_may_come_back_as_another() {
    let base = "tenants: [{id: a, models: [x]}, {id: b, models: [x]}]";
    assert_eq!(
        result(&[base, "tenants: [{id: a, $remove: true}]"]),
        json!({"tenants": [{"id": "b", "models": ["x"]}]})
    );
    let anew = "tenants: [{id: a, $remove: true}, {id: a, enabled: false}]";
    assert_eq!(
        result(&[base, anew]),
        json!({"tenants": [{"id": "b", "models": ["x"]}, {"id": "a", "enabled": false}]})
    );
}

#[test]
fn an_order_to_remove_that_is_not_clear_or_finds_nothing_is_a_mistake() {
    let base = "tenants: [{id: a}]";
    for (over, about) in [
        ("tenants:\n- {id: b, $remove: true}", "no id is \"b\""),
        ("tenants:\n- {id: a, $remove: false}", "not clear"),
        (
            "tenants:\n- {id: a, $remove: true, enabled: false}",
            "not clear",
        ),
        ("tenants:\n- {$remove: true}", "not clear"),
        (
            "upstreams:\n- {id: u, accounts: [{id: m, $remove: true}]}",
            "no id is \"m\"",
        ),
    ] {
        let mistakes = laid(&[base, over]).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{over}");
        let told = mistakes[0].to_string();
        assert!(told.contains(about), "{told}");
        assert!(told.starts_with("1.yaml:2: "), "{told}");
    }
}

#[test]
fn the_same_name_twice_in_one_overlay_is_left_for_the_rules_to_find() {
    let merged = result(&[
        "tenants: [{id: a}]",
        "tenants: [{id: a, files: true}, {id: a, balance: true}]",
    ]);
    assert_eq!(
        merged,
        json!({"tenants": [{"id": "a", "files": true}, {"id": "a", "balance": true}]})
    );
}

#[test]
fn each_value_keeps_its_own_place_and_what_it_replaced_is_known() {
    let (root, history) = laid(&[
        "retry:\n  attempts: 2\ntenants:\n- id: a\n  models: [x]\n- id: b",
        "tenants:\n- id: a\n  models: [y]\n- {id: b, $remove: true}\nretry: {attempts: 3}",
        "retry: {attempts: 4}",
    ])
    .unwrap();
    let place = |file, line| Place { file, line };
    let tenant = root.get("tenants").unwrap();
    let Content::List(items) = &tenant.content else {
        panic!("{tenant:?}")
    };
    assert_eq!(items[0].get("id").unwrap().place, place(0, 4));
    assert_eq!(items[0].get("models").unwrap().place, place(1, 3));
    let told = |path: &str| -> Vec<_> {
        let buried = history.at(path).iter();
        buried
            .map(|buried| (buried.was.to_json(), buried.was.place, buried.by))
            .collect()
    };
    assert_eq!(
        told("retry.attempts"),
        [
            (json!(2), place(0, 2), place(1, 5)),
            (json!(3), place(1, 5), place(2, 1))
        ]
    );
    assert_eq!(
        told("tenants[a].models"),
        [(json!(["x"]), place(0, 5), place(1, 3))]
    );
    assert_eq!(
        told("tenants[b].id"),
        [(json!("b"), place(0, 6), place(1, 4))]
    );
    assert_eq!(told("tenants[a].id"), []);
}

#[test]
fn what_is_remembered_is_bounded() {
    let long = "k".repeat(100_000);
    let values: String = (0..10_000).map(|n| format!("v{n}: 1, ")).collect();
    let base = format!("models: {{m: {{set: {{{long}: {{{values}}}}}}}}}");
    let (root, history) = laid(&[&base, "models: null"]).unwrap();
    assert_eq!(root.to_json(), json!({}));
    let remembered: usize = history.all().map(|(way, _)| way.len()).sum();
    assert!(
        remembered > 1_000_000 && remembered < MAX_HISTORY + 200_000,
        "{remembered}"
    );
}

/// Pieces of configurations in which keys of every kind come together, without nulls and removals.
fn document() -> impl Strategy<Value = String> {
    let number = 0..4u32;
    let tenant = ("[abc]", number.clone()).prop_map(|(id, n)| format!("{{id: {id}, x{n}: {n}}}"));
    let tenants = proptest::collection::vec(tenant, 0..4).prop_map(|all| {
        let mut seen = HashSet::new();
        let all = all.into_iter();
        let all: Vec<_> = all.filter(|t| seen.insert(t[..6].to_owned())).collect();
        format!("tenants: [{}]\n", all.join(", "))
    });
    let limits = ("[a-c]", number.clone())
        .prop_map(|(key, n)| format!("server: {{limits: {{{key}: {n}}}, y{n}: [{n}]}}\n"));
    let models = ("[mn]", number)
        .prop_map(|(name, n)| format!("models: {{{name}: {{set: {{k: {{v{n}: {n}}}}}}}}}\n"));
    (
        proptest::option::of(tenants),
        proptest::option::of(limits),
        proptest::option::of(models),
    )
        .prop_map(|(a, b, c)| [a, b, c].into_iter().flatten().collect())
}

proptest! {
    #[test]
    fn nothing_laid_over_changes_nothing(base in document()) {
        let (root, history) = laid(&[&base, ""]).unwrap();
        prop_assert_eq!(root, read(0, &base));
        prop_assert_eq!(history, History::default());
    }

    #[test]
    fn the_same_laid_over_itself_is_the_same(base in document()) {
        prop_assert_eq!(result(&[&base, &base]), read(0, &base).to_json());
    }

    #[test]
    fn without_removals_it_does_not_matter_which_two_are_laid_first(
        a in document(), b in document(), c in document()
    ) {
        let (later, _) = laid(&[&b, &c]).unwrap();
        let later = serde_json::to_string(&later.to_json()).unwrap();
        let later = if later == "null" { "" } else { &later };
        prop_assert_eq!(result(&[&a, &b, &c]), result(&[&a, later]));
    }

    #[test]
    fn no_pair_of_documents_makes_it_panic(
        a in "[-?:,\\[\\]{}&*! \nax$]{0,40}", b in "(tenants|server|models): [-?:,\\[\\]{}&*! \nid$remov~]{0,40}"
    ) {
        let files = [PathBuf::from("0.yaml"), PathBuf::from("1.yaml")];
        if let (Ok(mut a), Ok(b)) = (parse(&a, &files[0], 0), parse(&b, &files[1], 1)) {
            let schema = schema::value();
            let _ = lay(Spot::root(&schema), &mut a, b, &files, &mut History::default());
        }
    }
}
