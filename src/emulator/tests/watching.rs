//! The journal, the transports and the end of an emulator.

use super::*;
use crate::emulator::{Duplex, TlsHandshake};

#[tokio::test]
async fn the_journal_tells_what_was_asked_and_how_it_ended() {
    let stand = start(quick()).await;
    let body = with(stream("hi"), "user_id", json!("tenant-1"));
    stand
        .post_with("/v1/chat/completions", &body, &[("x-mark", "1")])
        .await;
    let entry = stand.entry(|entry| !entry["outcome"].is_null()).await;
    for (name, value) in [
        ("account", json!("emulator")),
        ("path", json!("/v1/chat/completions")),
        ("model", json!("deepseek-flash")),
        ("stream", json!(true)),
        ("user_id", json!("tenant-1")),
        ("outcome", json!("complete")),
        ("status", json!(200)),
        ("body", json!(body.to_string())),
        ("body_bytes", json!(body.to_string().len())),
    ] {
        assert_eq!(entry[name], value, "{name}");
    }
    let headers = entry["request_headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-mark", "1"])));
    assert!(headers.contains(&json!(["authorization", "Bearer sk-emulator"])));
    assert!(entry["ended_ms"].as_u64() >= entry["started_ms"].as_u64());
    let short = stand.get("/_emulator/journal").await.json();
    assert!(short[0].get("body").is_none());
    stand
        .call(Method::DELETE, "/_emulator/journal", &[], "")
        .await;
    assert_eq!(stand.get("/_emulator/journal").await.json(), json!([]));
}

#[tokio::test]
async fn refusals_are_in_the_journal_too() {
    let stand = start(quick()).await;
    stand.call(Method::POST, "/v1/nowhere", &[], "x").await;
    let entry = stand.entry(|entry| !entry["outcome"].is_null()).await;
    assert_eq!(
        (&entry["status"], &entry["outcome"]),
        (&json!(404), &json!("refused"))
    );
}

#[tokio::test]
async fn a_client_that_leaves_is_seen_at_once_in_a_stream_and_before_the_head() {
    let stand = start(quick()).await;
    let mut line = stand
        .raw(
            "/chat/completions",
            "",
            &stream("[[fault:token_delay=10s]]"),
        )
        .await;
    read_until(&mut line, "reasoning_content").await;
    let begun = std::time::Instant::now();
    drop(line);
    let entry = stand.entry(|entry| !entry["outcome"].is_null()).await;
    assert_eq!(entry["outcome"], "client_gone");
    assert!(begun.elapsed() < Duration::from_secs(1));

    let line = stand
        .raw("/chat/completions", "", &ask("[[fault:first_token=10s]]"))
        .await;
    stand
        .entry(|entry| entry["model"].is_string() && entry["outcome"].is_null())
        .await;
    drop(line);
    let entry = stand.entry(|entry| !entry["outcome"].is_null()).await;
    assert_eq!(
        (&entry["outcome"], &entry["status"]),
        (&json!("client_gone"), &Value::Null)
    );
}

#[tokio::test]
async fn http2_is_spoken_with_prior_knowledge_and_a_reset_stream_is_a_client_gone() {
    let stand = start(quick()).await;
    let mut sender = stand.over_http2().await;
    let url = format!("http://{}/chat/completions", stand.address);
    let body = stream("hi").to_string();
    let response = sender
        .send_request(request(Method::POST, &url, &[KEY, JSON], &body))
        .await
        .unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(text.ends_with(b"data: [DONE]\n\n"));

    let body = stream("[[fault:stall_after=2]]").to_string();
    let response = sender
        .send_request(request(Method::POST, &url, &[KEY, JSON], &body))
        .await
        .unwrap();
    drop(response);
    let entry = stand.entry(|entry| !entry["outcome"].is_null()).await;
    assert_eq!(entry["outcome"], "client_gone");

    let body = stream("[[fault:cut_after=3]]").to_string();
    let response = sender
        .send_request(request(Method::POST, &url, &[KEY, JSON], &body))
        .await
        .unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn every_connection_goes_through_the_handshake() {
    let tls = TlsHandshake::new(|stream| {
        Box::pin(async move {
            let mut stream = stream;
            // Stands in for a handshake: one byte before the request.
            stream.read_u8().await?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    });
    let stand = start(EmulatorConfig {
        tls: Some(tls),
        ..quick()
    })
    .await;
    let mut line = TcpStream::connect(stand.address).await.unwrap();
    line.write_all(b"!GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(
        read_until(&mut line, "\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_ends_with_the_emulator() {
    let emulator = bind(quick()).await.unwrap();
    let address = emulator.address();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(emulator.serve(async {
        let _ = stopped.await;
    }));
    let mut line = TcpStream::connect(address).await.unwrap();
    for _ in 0..3 {
        line.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut line, "\r\n\r\n").await;
    }
    stop.send(()).unwrap();
    serving.await.unwrap();
    assert_eq!(line.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(TcpStream::connect(address).await.is_err());
}
