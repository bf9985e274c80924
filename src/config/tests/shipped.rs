//! The files we ship are what they say, and the schema says what we do.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::config::settings::AllowedModels;

const REFERENCE: &str = include_str!("../../../conf/reference.yaml");
const EXAMPLE: &str = include_str!("../../../conf/tidegate.yaml");

#[test]
fn the_files_that_we_ship_load_and_warn_of_their_hash_alone() {
    for text in [EXAMPLE, REFERENCE] {
        let loaded = load_text(text).unwrap_or_else(|m| panic!("{}", lines(&m).join("\n")));
        let warnings = lines(&loaded.warnings);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("holds the place"), "{warnings:?}");
        assert_eq!(loaded.settings.tenants[0].models, AllowedModels::All);
        assert_eq!(
            loaded.settings.models["deepseek-chat"].set,
            [(
                "thinking".to_owned(),
                serde_json::json!({"type": "disabled"})
            )]
        );
    }
}

#[test]
fn the_base_stands_alone_and_under_production() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let layer = |name: &str| Layer::Path(conf.join(name));
    let load = |layers: &[Layer]| {
        let loaded = load_with(layers, &environment);
        loaded.unwrap_or_else(|m| panic!("{}", lines(&m).join("\n")))
    };
    let base = load(&[layer("base.yaml")]);
    let both = load(&[layer("base.yaml"), layer("production.yaml")]);
    for (loaded, tenants) in [(&base, 2), (&both, 1)] {
        let told = lines(&loaded.warnings);
        assert_eq!(told.len(), tenants, "{told:?}");
        assert!(
            told.iter().all(|line| line.contains("holds the place")),
            "{told:?}"
        );
        assert_eq!(loaded.settings.tenants.len(), tenants);
    }
    let accounts = &both.settings.upstreams[0].accounts;
    assert_eq!(accounts.len(), 2);
    assert_eq!(
        accounts[0].api_key,
        base.settings.upstreams[0].accounts[0].api_key
    );
    assert_eq!(accounts[0].max_concurrent["deepseek-flash"], 2500);
    let flash = &both.settings.models["deepseek-flash"];
    assert_eq!(flash.variants[1].upstream.as_str(), "ark");
    assert_eq!(both.settings.models["deepseek-v4-pro"].variants.len(), 1);
    assert!(flash.degraded.is_some());
}

#[test]
fn the_reference_says_what_leaving_its_keys_out_means() {
    // The example leaves out all that has a default, but for what is no default in the reference.
    let reference = REFERENCE
        .replace("  threads: 2\n", "")
        .replace("    token: ${env:TIDEGATE_ADMIN_TOKEN}\n", "");
    let mut reference = position::parse(&reference, Path::new("r.yaml"), 0)
        .unwrap()
        .to_json();
    // What stands there to be shown, and has no default.
    reference["server"]["listeners"]
        .as_array_mut()
        .unwrap()
        .truncate(1);
    reference["tenants"][0]["credentials"]
        .as_array_mut()
        .unwrap()
        .truncate(1);
    reference["upstreams"].as_array_mut().unwrap().truncate(1);
    reference["server"]["store"] = "local".into();
    for (parent, key) in [
        ("/identity", "peppers"),
        ("/identity", "tokens"),
        ("/models", "corp-flash"),
        ("/accounting", "exchange"),
        ("/plans", "standard"),
        ("", "groups"),
    ] {
        let parent = reference.pointer_mut(parent).unwrap();
        parent.as_object_mut().unwrap().remove(key).unwrap();
    }
    let reference = serde_yaml::to_string(&reference).unwrap();
    // Nor have the example's plan and its mark of low water.
    let mut example = position::parse(EXAMPLE, Path::new("e.yaml"), 0)
        .unwrap()
        .to_json();
    example.as_object_mut().unwrap().remove("plans").unwrap();
    let tenant = example["tenants"][0].as_object_mut().unwrap();
    tenant.remove("plan").unwrap();
    let upstream = example["upstreams"][0].as_object_mut().unwrap();
    upstream.remove("credit").unwrap();
    let example = serde_yaml::to_string(&example).unwrap();
    let (example, reference) = (settings_of(&example), settings_of(&reference));
    let changes: Vec<_> = diff::diff(&example, &reference)
        .changed
        .iter()
        .map(ToString::to_string)
        .collect();
    // The state directory is absolute in both; relative ones would differ by their folder.
    assert_eq!(changes, [""; 0]);
}

#[test]
fn every_key_of_the_schema_stands_in_the_reference_with_its_default() {
    let schema = schema::value();
    let file = position::parse(REFERENCE, Path::new("reference.yaml"), 0)
        .unwrap()
        .to_json();
    let mut shown = BTreeSet::new();
    visit(&schema, &schema, &file, "File", &mut shown);
    let all = std::iter::once(("File", &schema)).chain(
        schema["$defs"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(n, s)| (n.as_str(), s)),
    );
    for (name, schema) in all {
        for key in schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
        {
            // The keys of limits are the same at all levels, and shown at the first.
            let limits_below = ["SurfaceLimits", "ModelLimits"].contains(&name);
            let above = limits_below && shown.contains(&format!("Plan.{key}"));
            assert!(
                above || shown.contains(&format!("{name}.{key}")),
                "{name}.{key} is missing in reference.yaml"
            );
        }
    }
}

/// Walks file and schema together; notes `Struct.key`, and compares with the default if there is one.
fn visit(root: &Value, schema: &Value, value: &Value, name: &str, shown: &mut BTreeSet<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return visit(root, &root["$defs"][name], value, name, shown);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any
            .iter()
            .for_each(|schema| visit(root, schema, value, name, shown));
    }
    for item in value.as_array().into_iter().flatten() {
        visit(root, &schema["items"], item, name, shown);
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        let Some(property) = schema["properties"].get(key) else {
            visit(root, &schema["additionalProperties"], value, name, shown);
            continue;
        };
        shown.insert(format!("{name}.{key}"));
        let default = &property["default"];
        // A list that is empty by default is filled to be shown.
        let empty = default.as_array().is_some_and(Vec::is_empty) && value.is_array();
        if !default.is_null() && !value.is_object() && !empty {
            let (value, default) = (comparable(property, value), comparable(property, default));
            assert_eq!(
                value, default,
                "{name}.{key} in reference.yaml is not the default"
            );
        }
        visit(root, property, value, name, shown);
    }
}

/// 60s and 1m are the same.
fn comparable(property: &Value, value: &Value) -> Value {
    match (property["x-tidegate-kind"].as_str(), value.as_str()) {
        (Some("duration"), Some(text)) => {
            text::format_duration(text::parse_duration(text).unwrap()).into()
        }
        _ => value.clone(),
    }
}

#[test]
fn editors_judge_by_the_schema_as_we_do() {
    let schema = schema::value();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let json = |text: &str| {
        position::parse(text, Path::new("t.yaml"), 0)
            .unwrap()
            .to_json()
    };
    for text in [EXAMPLE, REFERENCE, MINIMAL] {
        let errors: Vec<_> = validator
            .iter_errors(&json(text))
            .map(|e| e.to_string())
            .collect();
        assert_eq!(errors, [""; 0]);
    }
    for (from, to) in [
        ("server:", "servr:"),
        ("id: a", "id: A"),
        ("sha256:", "md5:"),
        ("${env:KEY}", "sk"),
        ("[flash]", "[]"),
        ("flash:", "'a b':"),
    ] {
        assert!(
            !validator.is_valid(&json(&MINIMAL.replace(from, to))),
            "{to}"
        );
        assert!(load_text(&MINIMAL.replace(from, to)).is_err(), "{to}");
    }
}

#[test]
fn our_reader_and_another_agree_on_the_files_that_we_ship() {
    for text in [EXAMPLE, REFERENCE, MINIMAL] {
        let other: Value = serde_yaml::from_str(text).unwrap();
        assert_eq!(
            position::parse(text, Path::new("t.yaml"), 0)
                .unwrap()
                .to_json(),
            other
        );
    }
}
