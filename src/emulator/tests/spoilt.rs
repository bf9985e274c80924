//! Answers that are none: what comes in their place, and heads that are wrong.

use super::*;

async fn struck(stand: &Stand, body: &Value, order: &str) -> Answered {
    stand
        .post_with("/chat/completions", body, &[("x-emulator-fault", order)])
        .await
}

/// Everything that comes on a connection of its own until it ends, or until it has
/// been silent for a while; true when it ended.
async fn received(stand: &Stand, body: &Value, order: &str) -> (Vec<u8>, bool) {
    let header = format!("x-emulator-fault: {order}\r\n");
    let mut line = stand.raw("/chat/completions", &header, body).await;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let silence = Duration::from_millis(150);
    loop {
        match tokio::time::timeout(silence, line.read(&mut buffer)).await {
            Err(_) => return (bytes, false),
            Ok(Ok(0) | Err(_)) => return (bytes, true),
            Ok(Ok(read)) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

/// The announced length and the bytes after the head.
fn measured(bytes: &[u8]) -> (usize, usize) {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: "));
    (length.unwrap().parse().unwrap(), body.len())
}

async fn ended(stand: &Stand) -> Value {
    stand.entry(|entry| !entry["outcome"].is_null()).await
}

#[tokio::test]
async fn an_html_page_comes_in_place_of_an_answer_or_of_an_error() {
    let stand = start(quick()).await;
    for (body, order, status) in [
        (ask("hi"), "html", 200),
        (stream("hi"), "html", 200),
        (ask("hi"), "html,status=502", 502),
    ] {
        let told = struck(&stand, &body, order).await;
        assert_eq!(
            (told.status, &told.headers["content-type"]),
            (status, &"text/html".parse().unwrap())
        );
        assert!(told.text.starts_with("<html>"));
        assert_eq!(ended(&stand).await["outcome"], "fault");
    }
}

#[tokio::test]
async fn an_empty_answer_has_a_head_alone() {
    let stand = start(quick()).await;
    for body in [ask("hi"), stream("hi")] {
        let told = struck(&stand, &body, "empty").await;
        assert_eq!((told.status, told.text.as_str()), (200, ""));
        assert!(told.whole);
    }
}

#[tokio::test]
async fn a_body_is_compressed_though_nobody_asked() {
    let stand = start(quick()).await;
    for body in [ask("hi"), stream("hi")] {
        let (bytes, _) = received(&stand, &body, "gzip").await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("\r\ncontent-encoding: gzip\r\n"));
        assert!(memchr::memmem::find(&bytes, &[0x1f, 0x8b, 8]).is_some());
    }
}

#[tokio::test]
async fn a_length_is_announced_that_is_not_sent() {
    let stand = start(quick()).await;
    for body in [ask("hi"), stream("hi")] {
        let (bytes, closed) = received(&stand, &body, "length=+7").await;
        let (length, sent) = measured(&bytes);
        assert!(length == sent + 7 && closed);
        assert_eq!(ended(&stand).await["outcome"], "fault");
        let (bytes, closed) = received(&stand, &body, "length=-7").await;
        let (length, sent) = measured(&bytes);
        assert!(length + 7 == sent && !closed);
    }
}

#[tokio::test]
async fn a_wrong_length_goes_with_a_queue_and_a_break() {
    let stand = start(quick()).await;
    let order = "length=+7,queue=30ms,reset_after=0";
    let (bytes, closed) = received(&stand, &stream("hi"), order).await;
    assert!(closed && bytes.ends_with(b": keep-alive\n\n"));
}

#[tokio::test]
async fn noise_is_no_http_and_has_no_status() {
    let stand = start(quick()).await;
    let (bytes, closed) = received(&stand, &ask("hi"), "noise").await;
    assert!(!bytes.starts_with(b"HTTP") && !bytes.is_empty() && !closed);
    let entry = ended(&stand).await;
    assert_eq!(
        (&entry["status"], &entry["outcome"]),
        (&Value::Null, &json!("fault"))
    );
    assert_eq!(entry["usage"], Value::Null);
}

#[tokio::test]
async fn a_head_never_ends_slowly_or_quickly() {
    let stand = start(quick()).await;
    for order in ["endless_head", "endless_head=5ms"] {
        let header = format!("x-emulator-fault: {order}\r\n");
        let mut line = stand.raw("/chat/completions", &header, &ask("hi")).await;
        let mut bytes = Vec::new();
        while bytes.len() < 1000 {
            assert!(line.read_buf(&mut bytes).await.unwrap() > 0);
        }
        assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert!(memchr::memmem::find(&bytes, b"\r\n\r\n").is_none());
        drop(line);
        assert_eq!(ended(&stand).await["outcome"], "client_gone");
    }
}

#[tokio::test]
async fn an_informational_status_is_followed_by_silence() {
    let stand = start(quick()).await;
    for status in [101, 103] {
        let order = format!("status={status}");
        let (bytes, closed) = received(&stand, &ask("hi"), &order).await;
        let start = format!("HTTP/1.1 {status} ");
        assert!(bytes.starts_with(start.as_bytes()) && bytes.ends_with(b"\r\n\r\n"));
        assert!(!closed);
    }
}

#[tokio::test]
async fn a_head_is_late_and_nothing_else_is() {
    let stand = start(quick()).await;
    for (body, order, status) in [
        (ask("hi"), "head=60ms", 200),
        (stream("hi"), "head=60ms", 200),
        (ask("hi"), "head=60ms,status=503", 503),
    ] {
        let begun = std::time::Instant::now();
        let told = struck(&stand, &body, order).await;
        assert_eq!(told.status, status);
        assert!(begun.elapsed() >= Duration::from_millis(60));
    }
}

#[tokio::test]
async fn nothing_is_said_and_the_stream_ends_properly() {
    let stand = start(quick()).await;
    let told = struck(&stand, &stream("hi"), "no_content").await;
    assert!(told.whole && told.data().last() == Some(&"[DONE]"));
    let deltas: Vec<Value> = told
        .events()
        .iter()
        .map(|event| event["choices"][0]["delta"].clone())
        .collect();
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "content": ""}),
            json!({"content": ""})
        ]
    );
    let message = struck(&stand, &ask("hi"), "no_content").await.json();
    assert_eq!(message["choices"][0]["message"]["content"], "");
    let order = "queue=20ms,no_content,finish=insufficient_system_resource";
    let told = struck(&stand, &stream("hi"), order).await;
    let last = told.events().pop().unwrap();
    assert_eq!(
        last["choices"][0]["finish_reason"],
        "insufficient_system_resource"
    );
    assert!(told.text.starts_with(": keep-alive"));
}

#[tokio::test]
async fn the_first_event_says_the_role_and_nothing_else() {
    let stand = start(quick()).await;
    let told = struck(&stand, &stream("hi"), "reset_after=1").await;
    let events = told.events();
    assert!(!told.whole);
    assert_eq!(events.len(), 1);
    let delta = &events[0]["choices"][0]["delta"];
    assert_eq!(
        (&delta["role"], &delta["content"]),
        (&json!("assistant"), &Value::Null)
    );
    let told = struck(&stand, &stream("hi"), "error_first").await;
    assert_eq!(told.events().len(), 1);
    assert!(told.events()[0]["error"].is_object());
}

#[tokio::test]
async fn one_event_is_large_and_one_comes_too_late() {
    let stand = start(quick()).await;
    let told = struck(
        &stand,
        &stream("hi"),
        "event_bytes=5000000,after_done=70000",
    )
    .await;
    let events = told.data();
    assert!(told.whole && events.iter().any(|data| data.len() > 5_000_000));
    let (_, late) = told.text.split_once("data: [DONE]\n\n").unwrap();
    assert_eq!(late.len(), 70_000);
    assert_eq!(ended(&stand).await["outcome"], "complete");
}

#[tokio::test]
async fn everything_is_struck_when_ordered_so_probes_of_health_included() {
    let stand = start(quick()).await;
    stand
        .order(&json!({"account": "emulator", "faults": "html,everywhere"}))
        .await;
    for path in ["/models", "/user/balance", "/health"] {
        let told = stand.get(path).await;
        assert!(told.text.starts_with("<html>"), "{path}");
    }
    let keyless = stand.call(Method::GET, "/health", &[], "").await;
    assert_eq!((keyless.status, keyless.text.as_str()), (200, ""));
    stand
        .order(&json!({"faults": "status=503,everywhere"}))
        .await;
    let keyless = stand.call(Method::GET, "/health", &[], "").await;
    assert_eq!(keyless.status, 503);
}

#[tokio::test]
async fn on_http2_what_is_no_http_resets_its_stream_and_spares_the_others() {
    let stand = start(quick()).await;
    let mut sender = stand.over_http2().await;
    let url = format!("http://{}/chat/completions", stand.address);
    for order in ["noise", "endless_head", "length=+1", "status=101"] {
        let body = ask(&format!("[[fault:{order}]]")).to_string();
        let struck = request(Method::POST, &url, &[KEY, JSON], &body);
        assert!(sender.send_request(struck).await.is_err(), "{order}");
        assert_eq!(ended(&stand).await["outcome"], "fault", "{order}");
    }
    let fine = request(Method::POST, &url, &[KEY, JSON], &ask("hi").to_string());
    assert_eq!(sender.send_request(fine).await.unwrap().status(), 200);
}
