//! Every surface, both directions: what a tenant sends reaches the upstream as it was meant, what
//! the upstream answers reaches the tenant, and nothing else does.

use serde_json::{Value, json};
use tidegate::emulator::EmulatorConfig;

use crate::support::*;

/// Names of the header fields of a journal entry, sorted.
fn field_names(call: &Value) -> Vec<&str> {
    let pairs = call["request_headers"].as_array().unwrap().iter();
    let mut names: Vec<_> = pairs.map(|pair| pair[0].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

fn body_of(call: &Value) -> Value {
    serde_json::from_str(call["body"].as_str().unwrap()).unwrap()
}

#[test]
fn each_surface_is_answered_whole_and_streamed() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let completion = json!({"model": "deepseek-flash", "prompt": "fn main() {", "suffix": "}"});
    for (path, body, upstream_path, content) in [
        (
            "/v1/chat/completions",
            chat("hello"),
            "/chat/completions",
            "/choices/0/message/content",
        ),
        (
            "/chat/completions",
            chat("hello"),
            "/chat/completions",
            "/choices/0/message/content",
        ),
        (
            "/beta/chat/completions",
            chat("hello"),
            "/beta/chat/completions",
            "/choices/0/message/content",
        ),
        (
            "/beta/completions",
            completion.clone(),
            "/beta/completions",
            "/choices/0/text",
        ),
        (
            "/v1/completions",
            completion,
            "/beta/completions",
            "/choices/0/text",
        ),
        (
            "/anthropic/v1/messages",
            message("hello"),
            "/anthropic/v1/messages",
            "/content/0/type",
        ),
        (
            "/v1/messages",
            message("hello"),
            "/anthropic/v1/messages",
            "/content/0/type",
        ),
        (
            "/v1/responses",
            response("hello"),
            "/responses",
            "/output/0/type",
        ),
    ] {
        emulator.forget_calls();
        let answer = gateway.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(
            answer.json().pointer(content).is_some(),
            "{path}: {}",
            answer.text()
        );
        assert_eq!(emulator.call()["path"], upstream_path);

        let answer = gateway.post(path, &with(body, "stream", json!(true)));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.ending, Ending::Whole);
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("text/event-stream"), "{path}: {kind}");
        assert!(answer.events().len() > 3, "{path}: {}", answer.text());
        assert!(
            answer.events().iter().all(|event| event["error"].is_null()),
            "{path}"
        );
    }
}

#[test]
fn the_models_are_those_of_the_configuration_and_the_tenant_in_both_forms() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let ids = |list: &Value| -> Vec<String> {
        let data = list["data"].as_array().unwrap().iter();
        data.map(|model| model["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let openai = gateway.get("/v1/models").json();
    assert_eq!(openai["object"], "list");
    assert_eq!(
        ids(&openai),
        [
            "deepseek-chat",
            "deepseek-flash",
            "deepseek-reasoner",
            "deepseek-v4-pro"
        ]
    );
    let anthropic = gateway.get("/anthropic/v1/models").json();
    assert_eq!(anthropic["data"][0]["type"], "model");
    assert_eq!(anthropic["last_id"], "deepseek-v4-pro");
    let limited = Request::get("/v1/models")
        .key("limited")
        .send(gateway.address());
    assert_eq!(ids(&limited.json()), ["deepseek-flash"]);

    let one = gateway.get("/v1/models/deepseek-chat");
    assert_eq!(
        (one.status, one.json()["id"].as_str().unwrap()),
        (200, "deepseek-chat")
    );
    assert_eq!(gateway.get("/v1/models/nothing").status, 404);
    let other = Request::get("/v1/models/deepseek-v4-pro").key("limited");
    assert_eq!(other.send(gateway.address()).status, 404);
    assert!(emulator.calls().is_empty());
}

#[test]
fn an_upstream_of_the_openai_dialect_serves_embeddings_under_its_own_base_path_and_key_header() {
    let emulator = Emulator::start(EmulatorConfig {
        embeddings: true,
        self_hosted: true,
        ..Emulator::with_accounts(1)
    });
    let config = Config::for_emulator(&emulator)
        .set(
            "/upstreams/-",
            json!({
                "id": "engine", "dialect": "openai",
                "auth": {"header": "x-api-key", "scheme": ""},
                "endpoints": [{"url": format!("{}/v1", emulator.url())}],
                "accounts": [{"id": "engine", "api_key": "${file:engine.key}"}],
            }),
        )
        .file("engine.key", "sk-upstream-1")
        .set(
            "/models/bge",
            json!({"variants": [{"upstream": "engine", "model": "BAAI/bge-m3"}]}),
        );
    let gateway = Gateway::start(config);
    let body = json!({"model": "bge", "input": ["one", "two"]});
    let answer = gateway.post("/v1/embeddings", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);
    let call = emulator.call();
    assert_eq!(call["path"], "/v1/embeddings");
    assert_eq!(body_of(&call)["model"], "BAAI/bge-m3");
    assert_eq!(header_of(&call, "x-api-key"), Some("sk-upstream-1"));
    assert_eq!(header_of(&call, "authorization"), None);

    let answer = gateway.post(
        "/v1/chat/completions",
        &with(chat("hi"), "model", json!("bge")),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(emulator.calls()[1]["path"], "/v1/chat/completions");
    // DeepSeek itself has no embeddings.
    let wrong = json!({"model": "deepseek-flash", "input": "one"});
    assert_eq!(gateway.post("/v1/embeddings", &wrong).status, 400);
}

#[test]
fn files_go_up_and_down_unread() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    // Not UTF-8, and longer than every buffer on the way.
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let form = [
        b"--cut\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n"
            .as_slice(),
        b"--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\r\n",
        &content,
        b"\r\n--cut--\r\n",
    ]
    .concat();
    let upload = Request::new("POST", "/v1/files")
        .key("acme")
        .header("content-type", "multipart/form-data; boundary=cut")
        .body(form.clone());
    let mut last = String::new();
    for upload in [upload.clone(), upload.chunked(40_000)] {
        let answer = upload.send(gateway.address());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["bytes"], content.len());
        last = answer.json()["id"].as_str().unwrap().to_owned();
        let call = emulator.calls().pop().unwrap();
        assert_eq!(call["body_bytes"], form.len());
        assert_eq!(call["body_fnv"], fnv(&form));
    }
    let list = gateway.get("/v1/files?limit=10&order=asc").json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    let shown = gateway.get(&format!("/v1/files/{last}"));
    assert_eq!(shown.json()["filename"], "a.bin");
    let back = gateway.get(&format!("/v1/files/{last}/content"));
    assert_eq!(back.status, 200);
    assert!(back.body == content, "the content has changed on its way");
    let delete = Request::new("DELETE", &format!("/v1/files/{last}")).key("acme");
    assert_eq!(delete.send(gateway.address()).status, 200);
    assert_eq!(gateway.get(&format!("/v1/files/{last}")).status, 404);
}

#[test]
fn an_upload_over_the_limit_is_refused_by_its_length_and_by_counting() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).limit("max_file_upload", "100KiB");
    let gateway = Gateway::start(config);
    let upload = Request::new("POST", "/v1/files")
        .key("acme")
        .header("content-type", "multipart/form-data; boundary=cut")
        .body(vec![b'x'; 200 * 1024]);
    for upload in [upload.clone(), upload.chunked(10_000)] {
        let answer = upload.send(gateway.address());
        assert_eq!(answer.status, 413, "{}", answer.text());
        assert_eq!(answer.code(), "body_too_large");
    }
    let whole = |call: &Value| call["body_bytes"].as_u64() > Some(100 * 1024);
    assert!(!emulator.calls().iter().any(whole));
    assert!(gateway.is_serving());
}

#[test]
fn files_and_balance_are_for_tenants_who_may() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let balance = gateway.get("/user/balance");
    assert_eq!(balance.status, 200, "{}", balance.text());
    assert_eq!(
        balance.json()["balance_infos"][0]["total_balance"],
        "110.00"
    );
    emulator.forget_calls();
    for path in ["/user/balance", "/v1/files", "/v1/files/file-api-1/content"] {
        let answer = Request::get(path).key("limited").send(gateway.address());
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "not_allowed"),
            "{path}"
        );
    }
    assert!(emulator.calls().is_empty());
}

#[test]
fn a_body_that_needs_no_edit_reaches_the_upstream_byte_for_byte() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let body = "\r\n { \"x_unknown\" : { \"n\" : [ 1.50e+10, 12345678901234567890123, -0 ], \"s\" : \"\\u00e9é\\ud83d\\ude00\" } ,\n\t\
                \"messages\" : [ { \"role\":\"user\" , \"content\" : \"hello \\/ \\\"model\\\": x\" } ],\
                \"model\"\n:\n\"deepseek-flash\" } \n";
    let request = Request::new("POST", "/v1/chat/completions")
        .key("acme")
        .header("content-type", "application/json; charset=utf-8")
        .body(body);
    let answer = request.send(gateway.address());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(emulator.call()["body"], body);
}

#[test]
fn an_alias_and_its_set_change_only_what_they_name() {
    let emulator = Emulator::quick();
    let config = Config::for_emulator(&emulator).set(
        "/models/quiet",
        json!({
            "alias": "deepseek-flash",
            "set": {"temperature": 0.25, "thinking": {"type": "disabled"}, "x": {"deep": ["\"", null]}},
        }),
    );
    let gateway = Gateway::start(config);
    let odd = r#""x_unknown" : [ 1.50e+10 , "\u00e9" ]"#;
    let body = format!(
        r#"{{"temperature":1.5, "model" : "quiet", {odd}, "messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    let request = Request::new("POST", "/v1/chat/completions")
        .key("acme")
        .body(body);
    let answer = request.send(gateway.address());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let call = emulator.call();
    assert!(call["body"].as_str().unwrap().contains(odd));
    let sent = body_of(&call);
    assert_eq!(sent["model"], "deepseek-flash");
    assert_eq!(sent["thinking"], json!({"type": "disabled"}));
    assert_eq!(sent["temperature"], 0.25);
    assert_eq!(sent["x"], json!({"deep": ["\"", null]}));
    assert_eq!(sent["messages"][0]["content"], "hello");
}

#[test]
fn usage_is_asked_for_and_its_chunk_taken_out_again_unless_the_tenant_asked() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let order = "[[fault:usage=trailing]] hello";
    let has_usage_chunk = |answer: &Answer| {
        let events = answer.events();
        events.iter().any(|event| event["choices"] == json!([]))
    };
    for path in ["/v1/chat/completions", "/beta/completions"] {
        let body = match path {
            "/beta/completions" => {
                json!({"model": "deepseek-flash", "prompt": order, "stream": true})
            }
            _ => chat_stream(order),
        };
        for (options, asked) in [
            (None, false),
            (Some(json!({"include_usage": false})), false),
            (Some(json!(null)), false),
            (Some(json!({"include_usage": true})), true),
        ] {
            emulator.forget_calls();
            let body = match options.clone() {
                Some(options) => with(body.clone(), "stream_options", options),
                None => body.clone(),
            };
            let answer = gateway.post(path, &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let sent = body_of(&emulator.call());
            assert_eq!(
                sent["stream_options"]["include_usage"], true,
                "{path} {options:?}"
            );
            assert_eq!(has_usage_chunk(&answer), asked, "{path} {options:?}");
            assert_eq!(answer.data().last().unwrap(), "[DONE]");
            let id = answer.header("x-request-id").unwrap();
            let line = gateway.access_line(id);
            assert!(line["completion_tokens"].as_u64() > Some(0), "{line}");
        }
    }
    // A body that asks already is not touched.
    emulator.forget_calls();
    let body = with(
        chat_stream("hello"),
        "stream_options",
        json!({"include_usage": true}),
    );
    gateway.post("/v1/chat/completions", &body);
    assert_eq!(emulator.call()["body"], body.to_string());
}

#[test]
fn only_listed_fields_the_accounts_key_and_our_host_reach_the_upstream() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let request = Request::post("/v1/messages?beta=true", &message("hello"))
        .header("authorization", &format!("Bearer {}", key("acme")))
        .header("x-api-key", &key("acme"))
        .header("cookie", "session=1")
        .header("x-stainless-lang", "python")
        .header("user-agent", "Anthropic/Python")
        .header("openai-organization", "org")
        .header("x-forwarded-for", "10.1.2.3")
        .header("forwarded", "for=10.1.2.3")
        .header("x-request-id", "chosen-by-the-client")
        .header("x-emulator-fault", "status=500")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .header("proxy-authorization", "Basic x")
        .header("te", "trailers")
        .header("connection", "keep-alive, anthropic-beta")
        .header("upgrade", "websocket")
        .header("anthropic-version", "2023-06-01")
        .header("accept", "application/json");
    let answer = request.send(gateway.address());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let call = emulator.call();
    assert_eq!(
        field_names(&call),
        [
            "accept",
            "anthropic-version",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "x-request-id",
        ]
    );
    assert_eq!(
        header_of(&call, "authorization"),
        Some("Bearer sk-upstream-1")
    );
    assert_eq!(
        header_of(&call, "host").unwrap(),
        emulator.address().to_string()
    );
    assert_eq!(
        header_of(&call, "x-request-id"),
        answer.header("x-request-id")
    );
    assert_ne!(answer.header("x-request-id"), Some("chosen-by-the-client"));
    let everything = call.to_string();
    assert!(!everything.contains(&key("acme")) && !everything.contains("tg_acme"));
}

#[test]
fn no_cookie_server_or_account_field_of_the_upstream_reaches_the_tenant() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    for (path, body) in [
        ("/v1/chat/completions", chat("hello")),
        ("/v1/chat/completions", chat_stream("hello")),
        ("/v1/chat/completions", chat("[[fault:status=400]]")),
        ("/anthropic/v1/messages", message_stream("hello")),
        ("/v1/responses", response("hello")),
    ] {
        let answer = gateway.post(path, &body);
        let allowed = [
            "content-type",
            "content-length",
            "transfer-encoding",
            "cache-control",
            "date",
            "connection",
            "keep-alive",
            "x-request-id",
            "request-id",
            "x-should-retry",
        ];
        for (name, value) in &answer.headers {
            assert!(allowed.contains(&name.as_str()), "{path}: {name}: {value}");
        }
    }
}

#[test]
fn every_answer_has_a_request_id_of_its_own_and_anthropics_callers_get_theirs() {
    let emulator = Emulator::quick();
    let gateway = Gateway::start(Config::for_emulator(&emulator));
    let key_of = |id: &str| format!("Bearer {}", key(id));
    let requests = [
        Request::post("/v1/chat/completions", &chat("a")).header("authorization", &key_of("acme")),
        Request::post("/v1/chat/completions", &chat("a")),
        Request::post("/v1/chat/completions", &chat("[[fault:status=503]]")).key("acme"),
        Request::get("/v1/models").key("acme"),
        Request::get("/nowhere"),
        Request::new("DELETE", "/v1/chat/completions"),
        Request::post("/anthropic/v1/messages", &message("a")).key("acme"),
        Request::post("/v1/messages", &message("a")),
        Request::get("/anthropic/v1/models").key("acme"),
        Request::post("/v1/messages", &message("[[fault:status=500]]")).key("acme"),
    ];
    let mut seen = std::collections::HashSet::new();
    for (index, request) in requests.iter().enumerate() {
        let answer = request.send(gateway.address());
        let id = answer.header("x-request-id").unwrap().to_owned();
        let anthropic = answer.header("request-id").map(str::to_owned);
        assert_eq!(
            anthropic.is_some(),
            index >= 6,
            "{index}: {}",
            answer.text()
        );
        assert!(anthropic.is_none_or(|other| other == id));
        if answer.status >= 400 {
            assert!(answer.text().contains(&id), "{}", answer.text());
        }
        assert_eq!(gateway.access_line(&id)["status"], answer.status);
        assert!(seen.insert(id));
    }
}

#[test]
fn several_listeners_serve_side_by_side_each_its_own_protocols() {
    let emulator = Emulator::quick();
    let (certificate, private_key) = tls::certificate();
    let files = json!({"certificate": "cert.pem", "private_key": "key.pem"});
    let listeners = json!([{}, {"h2c": true}, {"tls": files}]);
    let config = Config::for_emulator(&emulator)
        .set("/server/listeners", listeners)
        .file("cert.pem", certificate)
        .file("key.pem", private_key);
    let gateway = Gateway::start(config);
    let request = Request::post("/v1/chat/completions", &chat("hello")).key("acme");
    for index in [0, 1] {
        assert_eq!(request.send(gateway.listener(index)).status, 200);
    }
    let mut wire = Wire::connect_tls(gateway.listener(2));
    wire.send(&request.to_bytes());
    assert_eq!(wire.answer().status, 200);
    // HTTP/2 by prior knowledge only where it is configured.
    let mut wire = Wire::connect(gateway.listener(0));
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert_eq!(wire.answer().status, 400);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for mut sender in [
            h2::connect(gateway.listener(1)).await,
            h2::connect_tls(gateway.listener(2)).await,
        ] {
            let body = h2::sized(chat("hello").to_string().into());
            let request = h2::post("/v1/chat/completions", body);
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.headers().contains_key("x-request-id"));
        }
    });
    assert_eq!(emulator.calls().len(), 5);
}
