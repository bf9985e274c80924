//! The pipeline as a whole: what is accepted, and what a person is told otherwise.
mod accounting;
mod hostile;
mod identity;
mod plans;
mod resilience;
mod shipped;
mod store;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::settings::{Dialect, Profile};
use super::*;

/// The least that is accepted without a warning.
pub(super) const MINIMAL: &str = r#"
server:
  listeners: [{ address: "127.0.0.1:8080" }]
tenants:
  - id: a
    models: [flash]
    credentials: [{ api_key: { id: k, hash: "sha256:000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f" } }]
upstreams:
  - id: deepseek
    endpoints: [{ url: "https://api.deepseek.com" }]
    accounts: [{ id: main, api_key: "${env:KEY}" }]
models:
  flash: { variants: [{ upstream: deepseek, model: deepseek-flash }] }
"#;

fn environment(name: &str) -> Option<OsString> {
    let value = match name {
        "KEY" | "DEEPSEEK_API_KEY" => "sk-one",
        "OTHER"
        | "TIDEGATE_ADMIN_TOKEN"
        | "DEEPSEEK_SECOND_API_KEY"
        | "ARK_API_KEY"
        | "TIDEGATE_REDIS_PASSWORD" => "sk-two",
        "LONG_ONE" => "long-0123456789abcdef0123456789abcdef",
        "TIDEGATE_PEPPER" => "pepper-0123456789abcdef0123456789abcdef",
        "BATCH_TOKEN_SECRET" => "batch-0123456789abcdef0123456789abcdef",
        "EXAMPLE_SIGNING_SECRET" => "example-0123456789abcdef0123456789abcdef",
        "CORP_SIGNING_KEY" => "corp-0123456789abcdef0123456789abcdef",
        _ => return None,
    };
    Some(value.into())
}

fn load_text(text: &str) -> Result<Loaded, Vec<Mistake>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.yaml");
    std::fs::write(&file, text).unwrap();
    load_path(&file)
}

fn load_path(path: &Path) -> Result<Loaded, Vec<Mistake>> {
    load_with(&[Layer::Path(path.to_owned())], &environment)
}

/// The settings in `text`, which must be right.
pub(super) fn settings_of(text: &str) -> Settings {
    load_text(text)
        .unwrap_or_else(|mistakes| panic!("{}", lines(&mistakes).join("\n")))
        .settings
}

/// Mistakes as a person reads them, without the folder.
fn lines(mistakes: &[Mistake]) -> Vec<String> {
    let named = |m: &Mistake| Mistake {
        file: m.file.file_name().unwrap().into(),
        ..m.clone()
    };
    mistakes.iter().map(|m| named(m).to_string()).collect()
}

fn mistakes(text: &str) -> Vec<String> {
    lines(&load_text(text).expect_err("this must be refused"))
}

/// Asserts that `MINIMAL` with `from` replaced has exactly one mistake, which tells `about`.
fn refused(from: &str, to: &str, about: &str) {
    assert!(MINIMAL.contains(from), "{from}");
    let told = mistakes(&MINIMAL.replace(from, to));
    assert_eq!(told.len(), 1, "{to}: {told:#?}");
    assert!(told[0].contains(about), "{to}: {}", told[0]);
}

#[test]
fn the_least_configuration_gets_all_defaults_and_no_warning() {
    let loaded = load_text(MINIMAL).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.digest.len(), 64);
    let settings = loaded.settings;
    assert_eq!(settings.server.limits.max_request_body, 32 << 20);
    assert_eq!(settings.retry.attempts, 3);
    assert_eq!(settings.profile, Profile::Production);
    assert_eq!(settings.server.watch_configuration, Duration::ZERO);
    let upstream = &settings.upstreams[0];
    assert_eq!(upstream.dialect, Dialect::DeepSeek);
    assert_eq!(
        upstream.surfaces,
        [
            "chat",
            "completions",
            "messages",
            "responses",
            "files",
            "balance"
        ]
    );
    assert_eq!(upstream.health.as_ref().unwrap().path, "/models");
    assert_eq!(
        upstream.accounts[0].api_key.as_ref().unwrap().expose(),
        "sk-one"
    );
    assert_eq!(settings.files, Some(upstream.id.clone()));
    assert!(
        settings.tenants[0].models.allows("flash") && !settings.tenants[0].models.allows("pro")
    );
}

#[test]
fn an_engine_of_ones_own_needs_neither_account_nor_key() {
    let settings = settings_of(&MINIMAL.replace(
        r#"endpoints: [{ url: "https://api.deepseek.com" }]
    accounts: [{ id: main, api_key: "${env:KEY}" }]"#,
        "dialect: openai\n    endpoints: [{ url: 'http://10.0.0.7:8000/v1/' }]\n    health: false",
    ));
    let upstream = &settings.upstreams[0];
    assert_eq!(
        (
            upstream.accounts[0].id.as_str(),
            &upstream.accounts[0].api_key
        ),
        ("default", &None)
    );
    assert_eq!(
        (
            upstream.endpoints[0].base_path.as_str(),
            upstream.endpoints[0].port
        ),
        ("/v1", 8000)
    );
    assert_eq!(upstream.health, None);
    assert_eq!((settings.files, settings.balance), (None, None));
}

#[test]
fn an_alias_has_its_targets_variants_and_the_last_word_on_what_is_set() {
    let settings = settings_of(&MINIMAL.replace(
        "  flash: { ",
        "  chat: { alias: flash, set: { z: {b: 1, a: [1.5, null]}, t: 2 } }\n  flash: { set: { t: 1, s: x }, ",
    ));
    let chat = &settings.models["chat"];
    assert_eq!(chat.variants, settings.models["flash"].variants);
    let set: Vec<_> = chat
        .set
        .iter()
        .map(|(field, json)| (field.as_str(), json.to_string()))
        .collect();
    assert_eq!(
        set,
        [
            ("s", r#""x""#.to_owned()),
            ("z", r#"{"b":1,"a":[1.5,null]}"#.to_owned()),
            ("t", "2".to_owned())
        ]
    );
}

#[test]
fn all_mistakes_of_structure_are_told_at_once_with_line_and_cure() {
    let told = mistakes(
        r#"server:
  listners: []
  threads: 500
  limits: { head_timeout: 30, max_head: 64Kib }
logging: { level: warning, acces: yes }
tenants:
  - modles: [flash]
    id: a
    credentials: []
upstreams: [{ id: u, endpoints: [{ url: x, weight: 0 }], tls: { min_version: 1.2 }, health: sometimes, accounts: [{ id: m, api_key: [sk-hidden] }] }]
"#,
    );
    let expected = [
        "tidegate.yaml:2: server.listeners: missing; this key is required",
        "tidegate.yaml:1: models: missing; this key is required",
        "tidegate.yaml:2: server.listners: unknown key; allowed here: threads, state_dir, listeners, admin, shutdown_grace, shutdown_pause, upstream_idle_connections, watch_configuration, watch_files, store, limits; did you mean \"listeners\"?",
        "tidegate.yaml:3: server.threads: 500; expected a whole number from 1 to 256",
        "tidegate.yaml:4: server.limits.head_timeout: the number 30; expected a duration such as 250ms, 30s, 10m or 1h30m",
        "tidegate.yaml:4: server.limits.max_head: \"64Kib\" is not of that form; expected a size such as 512B, 64KiB, 8MiB or 1GiB",
        "tidegate.yaml:5: logging.level: \"warning\"; expected one of error, warn, info, debug, trace",
        "tidegate.yaml:5: logging.acces: unknown key; allowed here: level, format, access; did you mean \"access\"?",
        "tidegate.yaml:7: tenants[0].modles: unknown key; allowed here: id, enabled, models, balance, files, credentials, accept, allow_from, plan, group, deadlines; did you mean \"models\"?",
        "tidegate.yaml:7: tenants[0].models: missing; this key is required",
        "tidegate.yaml:10: upstreams[0].endpoints[0].weight: 0; expected a whole number from 1 to 1000",
        "tidegate.yaml:10: upstreams[0].tls.min_version: the number 1.2; text is wanted here, and without quotes this is a number: write \"1.2\"",
        "tidegate.yaml:10: upstreams[0].health: \"sometimes\"; expected true or false, or a map",
        "tidegate.yaml:10: upstreams[0].accounts[0].api_key: a list; expected a reference: ${env:NAME}, ${file:PATH} or ${credential:NAME}; a secret itself may not stand in the file",
    ];
    let (mut told, mut expected) = (told, expected.map(str::to_owned).to_vec());
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
}

#[test]
fn all_mistakes_of_meaning_are_told_at_once() {
    let told = mistakes(
        &MINIMAL
            .replace("[flash]", "[flsh, '*x', flash, flash]")
            .replace("https://api", "http://api")
            .replace("${env:KEY}", "sk-live-0123456789")
            .replace("sha256:", "md5:")
            .replace(
                "models:\n  flash",
                "models:\n  'a b': { alias: c }\n  c: { alias: flash }\n  d: {}\n  flash",
            ),
    );
    for about in [
        "did you mean \"flash\"",
        "\"*x\"",
        "a second time",
        "http:// to api.deepseek.com",
        "not shown",
        "sha256:",
        "\"a b\"",
        "an alias itself",
        "neither",
    ] {
        assert!(
            told.iter().any(|line| line.contains(about)),
            "{about}: {told:#?}"
        );
    }
    assert!(
        !told
            .iter()
            .any(|line| line.contains("sk-live") || line.contains("0001020304")),
        "{told:#?}"
    );
}

#[test]
fn each_rule_of_the_server_is_kept() {
    let server = "server:\n";
    for (key, about) in [
        ("  limits: { idle_timeout: 0s }\n", "more than 0"),
        ("  limits: { idle_timeout: 25h }\n", "24h"),
        (
            "  limits: { max_request_body: 2GiB, max_buffered_bodies: 4GiB }\n",
            "at most 1GiB",
        ),
        (
            "  limits: { max_buffered_bodies: 1MiB }\n",
            "at least max_request_body",
        ),
        ("  limits: { max_head: 0B, max_target: 0B }\n", ""),
        ("  limits: { max_head: 1KiB }\n", "more than max_head"),
        ("  limits: { max_connections: -1 }\n", "from 1 to"),
        ("  limits: { max_connections: 1.5 }\n", "a whole number"),
        (
            "  admin: { address: '127.0.0.1:8080' }\n",
            "is a listener's address",
        ),
        ("  admin: { address: 'localhost:1' }\n", "an IP address"),
        (
            "  admin: { address: '127.0.0.1:1', token: '${env:NONE}' }\n",
            "${env:NONE}: the variable is not set",
        ),
        (
            "  state_dir: '${env:HOME}'\n",
            "references are followed only",
        ),
        ("  shutdown_grace: 30h\n", "0s to 24h"),
        ("  watch_configuration: 1ms\n", "100ms to 24h"),
    ] {
        if about.is_empty() {
            assert_eq!(
                mistakes(&MINIMAL.replace(server, &format!("{server}{key}"))).len(),
                2
            );
        } else {
            refused(server, &format!("{server}{key}"), about);
        }
    }
    let listener = r#"{ address: "127.0.0.1:8080" }"#;
    refused(
        listener,
        &format!("{listener}, {listener}"),
        "a second time",
    );
    refused(
        listener,
        r#"{ address: "127.0.0.1:1", h2c: true, tls: { certificate: c, private_key: k } }"#,
        "h2c together",
    );
}

#[test]
fn each_rule_of_tenants_and_models_is_kept() {
    refused("id: a", "id: A", "1 to 64");
    refused("[flash]", "[]", "empty list");
    refused("[flash]", "['*', flash]", "alone");
    refused("[flash]", "[flash, flash]", "second time");
    let hash = "sha256:000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f";
    let key = format!("{{ api_key: {{ id: k, hash: \"{hash}\" }} }}");
    refused(
        &key,
        &format!(
            "{key}, {{ api_key: {{ id: k, hash: 'sha256:{}' }} }}",
            "1a".repeat(32)
        ),
        "\"k\" a second time; it is taken by tenants[0].credentials[0].api_key.id",
    );
    refused(
        &key,
        &format!("{key}, {{ api_key: {{ id: l, hash: '{hash}' }} }}"),
        "this hash a second time",
    );
    refused(
        "upstream: deepseek,",
        "upstream: deepsek,",
        "did you mean \"deepseek\"",
    );
    refused("{ variants: [{ ", "{ alias: x, variants: [{ ", "beside");
    refused("model: deepseek-flash", "model: ''", "printable");
    for field in ["model", "stream", "messages", "stream_options"] {
        refused(
            "{ variants: [{ ",
            &format!("{{ set: {{ {field}: 1 }}, variants: [{{ "),
            field,
        );
    }
    refused(
        "{ variants: [{ ",
        "{ set: { a: ['${env:KEY}'] }, variants: [{ ",
        "references are followed only",
    );
}

#[test]
fn each_rule_of_upstreams_is_kept() {
    let id = "- id: deepseek\n";
    for (key, about) in [
        ("    auth: { header: 'a b' }\n", "header field"),
        ("    auth: { header: Host }\n", "meaning of its own"),
        ("    auth: { scheme: 'a b' }\n", "one word"),
        ("    tls: { server_name: 'a/b' }\n", "host name"),
        ("    timeouts: { connect: 7s }\n", "less than connect"),
        ("    timeouts: { first_content: 1h }\n", "more than total"),
        ("    dns_refresh: 1ms\n", "100ms to 24h"),
        ("    health: { path: models }\n", "begins with /"),
        ("    surfaces: []\n", "empty list"),
        ("    surfaces: [chat, chat]\n", "second time"),
        ("    surfaces: [chat, chats]\n", "did you mean \"chat\""),
    ] {
        refused(id, &format!("{id}{key}"), about);
    }
    refused(
        "https://api.deepseek.com",
        "https://user:hidden@api.deepseek.com",
        "not shown",
    );
    refused(
        "{ url: \"https://api.deepseek.com\" }",
        "{ url: 'https://a.b' }, { url: 'https://a.b/' }",
        "second time",
    );
    refused(", api_key: \"${env:KEY}\"", "", "needs a key");
    refused(
        "[{ id: main, api_key: \"${env:KEY}\" }]",
        "[]",
        "at least one",
    );
    refused(
        "id: main,",
        "id: main, max_concurrent: { flash: 1 },",
        "no variant uses",
    );
    refused(
        "id: main,",
        "id: main, max_concurrent: { deepseek-flash: 0 },",
        "from 1 to",
    );
    refused(
        "models:\n",
        "files: { upstream: x }\nmodels:\n",
        "no upstream has the id",
    );
    let balance = MINIMAL.replace(
        "models:\n  flash",
        "balance: { upstream: deepseek }\nmodels:\n  flash",
    );
    let told = mistakes(&balance.replace(id, &format!("{id}    surfaces: [chat]\n")));
    assert!(
        told.len() == 1 && told[0].contains("has no surface balance"),
        "{told:?}"
    );
}

#[test]
fn codes_of_an_envelope_are_numbers_or_words() {
    let text = MINIMAL
        .replace("- id: deepseek\n", "- id: deepseek\n    dialect: enveloped\n    envelope: { success: [0, ok], statuses: { 10012: 429, '-1': 503 } }\n");
    let upstream = settings_of(&text).upstreams[0].clone();
    assert_eq!(upstream.health.as_ref().unwrap().path, "/health");
    assert!(
        upstream
            .surfaces
            .iter()
            .any(|surface| surface == "embeddings")
    );
    let envelope = upstream.envelope.as_ref().unwrap();
    assert_eq!(envelope.success, ["0", "ok"]);
    assert_eq!(envelope.statuses["10012"], 429);
    assert_eq!(envelope.statuses["-1"], 503);
    let plain = settings_of(MINIMAL).upstreams[0].clone();
    assert_eq!(plain.envelope, None);
    let id = "- id: deepseek\n";
    for (written, about) in [
        ("success: []", "at least one"),
        ("success: [0, '0']", "a second time"),
        ("success: [0.5]", "a whole number, or text"),
        ("success: ['']", "1 to 64"),
        ("statuses: { '7': 200 }", "from 400 to 599"),
        ("statuses: { '0': 429 }", "one or the other"),
    ] {
        let to = format!("{id}    dialect: enveloped\n    envelope: {{ {written} }}\n");
        refused(id, &to, about);
    }
    refused(
        id,
        &format!("{id}    envelope: {{ success: [1] }}\n"),
        "only dialect enveloped",
    );
}

#[test]
fn what_is_hardly_meant_is_a_warning() {
    let text = MINIMAL
        .replace("127.0.0.1:8080", "0.0.0.0:8080")
        .replace("models:\n", "models:\n  unused: { alias: flash }\n")
        .replace(
            "000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f",
            &"ab".repeat(32),
        );
    let warnings = lines(&load_text(&text).unwrap().warnings);
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
    for (warning, about) in
        warnings
            .iter()
            .zip(["plain HTTP", "holds the place", "no tenant may use"])
    {
        assert!(warning.contains(about), "{warning}");
    }
}

#[test]
fn a_folder_of_files_is_one_configuration_with_lines_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (server, rest) = MINIMAL.split_at(MINIMAL.find("tenants:").unwrap());
    std::fs::write(folder.path().join("server.yaml"), server).unwrap();
    std::fs::write(folder.path().join("tenants.yaml"), rest).unwrap();
    assert_eq!(load_path(folder.path()).unwrap().files.len(), 2);
    std::fs::write(
        folder.path().join("tenants.yaml"),
        rest.replace("[flash]", "[other]"),
    )
    .unwrap();
    let told = lines(&load_path(folder.path()).unwrap_err());
    assert!(
        told[0].starts_with("tenants.yaml:3: tenants[0].models[0]: no model"),
        "{told:?}"
    );
}

#[test]
fn a_flood_of_mistakes_is_cut_off() {
    let keys: String = (0..20_000).map(|i| format!("k{i}: 1\n")).collect();
    let told = mistakes(&keys);
    assert!(told.len() <= 501 && told.last().unwrap().contains("too many mistakes"));
}

#[test]
fn an_empty_file_is_told_what_it_lacks() {
    assert_eq!(mistakes(""), ["tidegate.yaml:1: nothing; expected a map"]);
}

#[test]
fn a_mistake_in_an_overlay_names_its_file_and_paths_start_at_the_file_that_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let (base, over) = (
        folder.path().join("base.yaml"),
        folder.path().join("eu/over.yaml"),
    );
    std::fs::create_dir(folder.path().join("eu")).unwrap();
    std::fs::write(folder.path().join("eu/key"), "sk-eu").unwrap();
    std::fs::write(
        &base,
        MINIMAL.replace("server:\n", "server:\n  state_dir: state\n"),
    )
    .unwrap();
    let load = |text: &str| {
        std::fs::write(&over, text).unwrap();
        load_with(
            &[Layer::Path(base.clone()), Layer::Path(over.clone())],
            &environment,
        )
    };
    let accounts =
        "upstreams:\n- id: deepseek\n  accounts:\n  - {id: main, api_key: '${file:key}'}\n";
    let settings = load(accounts).unwrap().settings;
    assert_eq!(settings.server.state_dir, folder.path().join("state"));
    let key = settings.upstreams[0].accounts[0].api_key.as_ref();
    assert_eq!(key.unwrap().expose(), "sk-eu");

    let told =
        lines(&load("tenants:\n- id: a\n  models: [flsh]\nretry: {attempts: 9}").unwrap_err());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("over.yaml:4: retry.attempts: 9"),
        "{told:?}"
    );
    let told = lines(&load("tenants:\n- id: a\n  models: [flsh]\n").unwrap_err());
    assert!(
        told[0].starts_with("over.yaml:3: tenants[0].models[0]: no model"),
        "{told:?}"
    );
    // A key that the overlay takes away is missing in the file that has the map.
    let told = lines(&load("tenants: [{id: a, models: null}]").unwrap_err());
    assert!(
        told[0].starts_with("base.yaml:6: tenants[0].models: missing"),
        "{told:?}"
    );
}

#[test]
fn a_fetched_text_may_name_absolute_paths_only() {
    let load = |text: &str| {
        let name = "https://config.corp/tidegate.yaml".to_owned();
        let bytes = text.as_bytes().into();
        load_with(&[Layer::Text { name, bytes }], &environment)
    };
    assert!(load(MINIMAL).is_ok());
    let text = MINIMAL
        .replace("server:\n", "server:\n  state_dir: state\n")
        .replace("${env:KEY}", "${file:key}");
    let told = load(&text).unwrap_err();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter()
            .all(|m| m.to_string().contains("write an absolute path")),
        "{told:?}"
    );
    assert!(
        told[0]
            .to_string()
            .starts_with("https://config.corp/tidegate.yaml:3:"),
        "{}",
        told[0]
    );
}
