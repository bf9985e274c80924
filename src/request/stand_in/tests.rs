use http::header::TRANSFER_ENCODING;
use pingora::ErrorSource;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::{Receiver, channel};

use super::upload::GRACE;
use super::*;

const DRAIN: Duration = Duration::from_millis(80);
const PATIENCE: Duration = Duration::from_secs(30);

fn terms(drain: Option<Duration>) -> Terms {
    let hold = Duration::ZERO;
    Terms { drain, hold }
}

/// A request that was read, and the client's end of its connection.
async fn request() -> (Session, DuplexStream) {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let head = b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}";
    client.write_all(head).await.unwrap();
    let mut session = Session::new_h1(Box::new(server));
    assert!(session.downstream_session.read_request().await.unwrap());
    while session.read_request_body().await.unwrap().is_some() {}
    (session, client)
}

/// Puts the stand-in there, and takes the body of a first attempt.
async fn stand_in(session: &mut Session, terms: Terms) -> Behind {
    let behind = put(session, terms);
    session.enable_retry_buffering();
    assert_eq!(given(session).await.as_deref(), Some(MARKER));
    behind
}

/// The body, if the attempt has not got it yet.
async fn given(session: &mut Session) -> Option<Bytes> {
    let done = session.is_body_done();
    let waiting = session.downstream_session.read_body_or_idle(done);
    let soon = tokio::time::timeout(Duration::from_millis(10), waiting).await;
    soon.ok().and_then(Result::unwrap)
}

fn head() -> HttpTask {
    let mut head = ResponseHeader::build(200, None).unwrap();
    head.insert_header("content-length", "4").unwrap();
    HttpTask::Header(Box::new(head), false)
}

fn head_without_length() -> Box<ResponseHeader> {
    let mut head = ResponseHeader::build(200, None).unwrap();
    head.insert_header(TRANSFER_ENCODING, "chunked").unwrap();
    Box::new(head)
}

/// Waits until `deadline` for a request that lasts longer than any test.
fn wait_until(behind: &Behind, deadline: Instant) {
    behind.begin_wait(std::time::Instant::now() + Duration::from_secs(86_400));
    behind.wait_until(deadline.into_std());
}

fn piece(text: &'static str, end: bool) -> HttpTask {
    HttpTask::Body(Some(Bytes::from_static(text.as_bytes())), end)
}

fn failure() -> HttpTask {
    HttpTask::Failed(Error::new(ErrorType::ReadError).into_up())
}

async fn departure(session: &mut Session) -> Box<Error> {
    let waiting = session.downstream_session.read_body_or_idle(true);
    waiting.await.unwrap_err()
}

#[tokio::test]
async fn a_client_that_stays_gets_all_and_its_session_comes_back() {
    let (mut session, mut client) = request().await;
    let behind = stand_in(&mut session, terms(Some(DRAIN))).await;
    behind.at_work(true);
    assert!(session.is_body_done() && session.get_retry_buffer().is_none());
    assert!(!session.write_response_tasks(vec![head()]).await.unwrap());
    let rest = vec![piece("ab", false), piece("cd", true)];
    assert!(session.write_response_tasks(rest).await.unwrap());
    behind.step_aside(&mut session);
    behind.step_aside(&mut session);
    assert!(session.as_http1().is_some() && !behind.has_left());
    drop(session);
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("\r\n\r\nabcd"));
}

#[tokio::test]
async fn a_departure_is_kept_back_until_the_drain_is_over() {
    let (mut session, client) = request().await;
    let behind = stand_in(&mut session, terms(Some(DRAIN))).await;
    behind.at_work(true);
    drop(client);
    let left = Instant::now();
    // Pingora asks again and again; the time runs from the departure.
    for _ in 0..3 {
        let waiting = session.downstream_session.read_body_or_idle(true);
        let early = tokio::time::timeout(DRAIN / 8, waiting).await;
        assert!(early.is_err() && behind.has_left());
    }
    assert!(!session.write_response_tasks(vec![head()]).await.unwrap());
    assert!(session.response_written().is_some());
    let end = vec![piece("abcd", true)];
    assert!(session.write_response_tasks(end).await.unwrap());
    assert_eq!(session.body_bytes_sent(), 0);
    departure(&mut session).await;
    assert!(left.elapsed() >= DRAIN && left.elapsed() < DRAIN * 10);
    behind.step_aside(&mut session);
    assert!(session.downstream_session.is_custom());
}

#[tokio::test]
async fn without_an_upstream_at_work_or_a_drain_a_departure_ends_the_request() {
    for (drain, at_work) in [(Some(Duration::MAX / 4), false), (None, true)] {
        let (mut session, client) = request().await;
        let behind = stand_in(&mut session, terms(drain)).await;
        behind.at_work(at_work);
        drop(client);
        departure(&mut session).await;
        assert!(!behind.has_left());
    }
}

#[tokio::test]
async fn an_upstreams_failure_is_no_departure_and_is_told_in_any_case() {
    let (mut session, client) = request().await;
    let behind = stand_in(&mut session, terms(Some(DRAIN))).await;
    behind.at_work(true);
    let tasks = vec![head(), piece("ab", false), failure()];
    let error = session.write_response_tasks(tasks).await.unwrap_err();
    assert!(*error.etype() == ErrorType::ReadError && !behind.has_left());
    assert_eq!(session.body_bytes_sent(), 2);
    drop(client);
    // The departure shows in the write, and the failure behind it is not lost.
    let tasks = vec![piece("cd", false), failure()];
    let error = session.write_response_tasks(tasks).await.unwrap_err();
    assert!(*error.etype() == ErrorType::ReadError && behind.has_left());
}

fn keep_alive() -> HttpTask {
    piece(": keep-alive\n\n", false)
}

fn holding(hold: Duration) -> Terms {
    Terms { drain: None, hold }
}

async fn got(mut client: DuplexStream, session: Session) -> String {
    drop(session);
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    got
}

#[tokio::test]
async fn a_head_waits_for_content_and_gives_way_to_another() {
    let (mut session, client) = request().await;
    let behind = stand_in(&mut session, holding(Duration::MAX / 4)).await;
    for tasks in [vec![head()], vec![keep_alive()]] {
        assert!(!session.write_response_tasks(tasks).await.unwrap());
    }
    assert!(session.response_written().is_none());
    let mut other = ResponseHeader::build(201, None).unwrap();
    other.insert_header("content-length", "4").unwrap();
    let other = HttpTask::Header(Box::new(other), false);
    assert!(!session.write_response_tasks(vec![other]).await.unwrap());
    behind.open(true);
    let rest = vec![piece("abcd", true)];
    assert!(session.write_response_tasks(rest).await.unwrap());
    behind.step_aside(&mut session);
    let got = got(client, session).await;
    assert!(got.starts_with("HTTP/1.1 201") && got.ends_with("\r\n\r\nabcd"));
}

#[tokio::test]
async fn a_head_that_waited_long_enough_goes_out_without_a_length() {
    let (mut session, client) = request().await;
    let behind = stand_in(&mut session, holding(Duration::ZERO)).await;
    for tasks in [vec![head()], vec![keep_alive()]] {
        assert!(!session.write_response_tasks(tasks).await.unwrap());
    }
    assert!(session.response_written().is_some());
    // The second head, of another attempt, is not written.
    let rest = vec![head(), piece("abcd", true)];
    assert!(session.write_response_tasks(rest).await.unwrap());
    behind.step_aside(&mut session);
    let got = got(client, session).await.to_lowercase();
    assert!(got.starts_with("http/1.1 200") && !got.contains("content-length"));
    assert!(got.contains("transfer-encoding: chunked") && got.matches("http/1.1").count() == 1);
    assert!(got.contains(": keep-alive") && got.contains("abcd"));
}

#[tokio::test]
async fn what_we_say_ourselves_takes_the_place_of_a_head_that_waits() {
    let (mut session, client) = request().await;
    let behind = stand_in(&mut session, holding(Duration::MAX / 4)).await;
    let tasks = vec![head(), keep_alive()];
    assert!(!session.write_response_tasks(tasks).await.unwrap());
    let mut ours = ResponseHeader::build(503, None).unwrap();
    ours.insert_header("content-length", "0").unwrap();
    let written = session.write_response_header(Box::new(ours), true).await;
    written.unwrap();
    behind.step_aside(&mut session);
    assert!(got(client, session).await.starts_with("HTTP/1.1 503"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_given_up_at_the_deadline_and_not_before() {
    let (mut session, _client) = request().await;
    let behind = stand_in(&mut session, terms(None)).await;
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let set = |after: u32| wait_until(&behind, start + second * after);
    set(10);
    let waiting = session.downstream_session.read_body_or_idle(true);
    assert!(tokio::time::timeout(second * 2, waiting).await.is_err());
    // Nearer, then put off while the alarm is set.
    set(4);
    let waiting = session.downstream_session.read_body_or_idle(true);
    assert!(tokio::time::timeout(second, waiting).await.is_err());
    set(6);
    assert_eq!(
        *departure(&mut session).await.etype(),
        ErrorType::ReadTimedout
    );
    let took = start.elapsed().as_secs_f64();
    assert!((5.9..6.1).contains(&took), "{took}");
    assert!(behind.was_late() && !behind.was_late());
    behind.wait_for_nobody();
    let waiting = session.downstream_session.read_body_or_idle(true);
    assert!(tokio::time::timeout(second * 99, waiting).await.is_err());
}

#[tokio::test]
async fn the_head_of_an_attempt_that_failed_gives_way_to_the_next_ones() {
    let (mut session, client) = request().await;
    let behind = stand_in(&mut session, holding(Duration::MAX / 4)).await;
    let mut failed = ResponseHeader::build(200, None).unwrap();
    failed.insert_header("content-length", "2").unwrap();
    let tasks = vec![HttpTask::Header(Box::new(failed), false)];
    assert!(!session.write_response_tasks(tasks).await.unwrap());
    // All of the next one in one go.
    let rest = vec![head(), piece("abcd", true)];
    assert!(session.write_response_tasks(rest).await.unwrap());
    behind.step_aside(&mut session);
    let got = got(client, session).await.to_ascii_lowercase();
    assert!(
        got.contains("content-length: 4") && got.ends_with("abcd"),
        "{got}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_upstream_is_given_up_before_its_deadline_once_a_doubt_says_so() {
    let (mut session, _client) = request().await;
    let behind = stand_in(&mut session, terms(None)).await;
    let start = Instant::now();
    let second = Duration::from_secs(1);
    wait_until(&behind, start + second * 60);
    let from = (start + second * 5).into_std();
    behind.doubt(Some(Box::new(move |now| now >= from)));
    let departed = departure(&mut session).await;
    assert_eq!(*departed.etype(), ErrorType::ReadTimedout);
    // Looked at again after a quarter of what was waited.
    let took = start.elapsed().as_secs_f64();
    assert!((5.0..6.5).contains(&took), "{took}");
    assert!(behind.was_late() && behind.was_doubted() && !behind.was_doubted());
    behind.doubt(Some(Box::new(|_| true)));
    behind.doubt(None);
    let waiting = session.downstream_session.read_body_or_idle(true);
    assert!(tokio::time::timeout(second * 40, waiting).await.is_err());
    assert!(!behind.was_doubted());
}

#[tokio::test]
async fn an_end_that_nobody_has_seen_is_none() {
    let trailers = || HttpTask::Trailer(Some(Box::default()));
    for end in [trailers(), HttpTask::Done] {
        let (mut session, client) = request().await;
        let behind = stand_in(&mut session, holding(Duration::ZERO)).await;
        behind.finished(false);
        behind.open(true);
        let head = HttpTask::Header(Box::new(ResponseHeader::build(200, None).unwrap()), false);
        let tasks = vec![head, piece("ab", false), end];
        let error = session.write_response_tasks(tasks).await.unwrap_err();
        assert_eq!(*error.etype(), ErrorType::ConnectionClosed);
        assert_eq!(*error.esource(), ErrorSource::Upstream);
        behind.step_aside(&mut session);
        assert!(got(client, session).await.ends_with("ab"));
    }
    // A head that is all there is waits for another's.
    let (mut session, _client) = request().await;
    let behind = stand_in(&mut session, holding(Duration::ZERO)).await;
    behind.finished(false);
    let only = HttpTask::Header(Box::new(ResponseHeader::build(200, None).unwrap()), true);
    let written = session.write_response_tasks(vec![only]).await;
    assert!(written.is_err() && session.response_written().is_none());
    behind.finished(true);
    behind.open(true);
    let rest = vec![head(), piece("abcd", false), trailers()];
    assert!(session.write_response_tasks(rest).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_does_not_come_before_its_time() {
    for nanos in [1, 999, 1_001, 999_999, 1_000_001, 7_654_321_987] {
        let (mut session, _client) = request().await;
        let behind = stand_in(&mut session, terms(None)).await;
        let at = Instant::now() + Duration::from_nanos(nanos);
        wait_until(&behind, at);
        departure(&mut session).await;
        assert!(behind.was_late() && Instant::now() >= at, "{nanos}");
    }
}

#[tokio::test]
async fn a_head_does_not_count_what_was_left_out_while_it_waited() {
    let (mut session, client) = request().await;
    let behind = stand_in(&mut session, holding(Duration::MAX / 4)).await;
    for tasks in [vec![head(), piece("\n", false)], vec![piece("\n", false)]] {
        assert!(!session.write_response_tasks(tasks).await.unwrap());
    }
    behind.open(true);
    let rest = vec![piece("cd", true)];
    assert!(session.write_response_tasks(rest).await.unwrap());
    behind.step_aside(&mut session);
    let got = got(client, session).await.to_ascii_lowercase();
    assert!(!got.contains("content-length"), "{got}");
    assert!(got.ends_with("2\r\ncd\r\n0\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let head = b"POST / HTTP/1.0\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}";
    client.write_all(head).await.unwrap();
    let mut session = Session::new_h1(Box::new(server));
    assert!(session.downstream_session.read_request().await.unwrap());
    while session.read_request_body().await.unwrap().is_some() {}
    let behind = stand_in(&mut session, terms(None)).await;
    behind.open(true);
    let mut head = ResponseHeader::build(200, None).unwrap();
    head.insert_header(TRANSFER_ENCODING, "chunked").unwrap();
    let tasks = vec![HttpTask::Header(Box::new(head), false), piece("abcd", true)];
    assert!(session.write_response_tasks(tasks).await.unwrap());
    behind.step_aside(&mut session);
    let got = got(client, session).await.to_ascii_lowercase();
    assert!(
        !got.contains("chunked") && got.ends_with("\r\n\r\nabcd"),
        "{got}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_slow_client_takes_is_not_the_upstreams() {
    let (mut session, mut client) = request().await;
    let behind = stand_in(&mut session, terms(None)).await;
    let second = Duration::from_secs(1);
    behind.open(true);
    let deadline = Instant::now() + second * 2;
    wait_until(&behind, deadline);
    let large = HttpTask::Body(Some(Bytes::from(vec![b'x'; 100 << 10])), false);
    let tasks = vec![HttpTask::Header(head_without_length(), false), large];
    let reads = tokio::spawn(async move {
        tokio::time::sleep(second * 5).await;
        let mut got = vec![0; 100 << 10];
        client.read_exact(&mut got).await.unwrap();
        client
    });
    assert!(!session.write_response_tasks(tasks).await.unwrap());
    let _client = reads.await.unwrap();
    let since = Instant::now();
    // A sign that is none of content sets the same deadline again.
    behind.wait_until(deadline.into_std());
    departure(&mut session).await;
    let took = since.elapsed().as_secs_f64();
    assert!((1.5..2.1).contains(&took), "{took}");
    assert!(behind.was_late());
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_cannot_lengthen_its_own_request() {
    let (mut session, mut client) = request().await;
    let behind = stand_in(&mut session, terms(None)).await;
    let second = Duration::from_secs(1);
    behind.open(true);
    let end = Instant::now() + second * 4;
    behind.begin_wait(end.into_std());
    behind.wait_until((Instant::now() + second * 2).into_std());
    let large = HttpTask::Body(Some(Bytes::from(vec![b'x'; 100 << 10])), false);
    let reads = tokio::spawn(async move {
        tokio::time::sleep(second * 3).await;
        let mut got = vec![0; 100 << 10];
        client.read_exact(&mut got).await.unwrap();
        client
    });
    let tasks = vec![HttpTask::Header(head_without_length(), false), large];
    assert!(!session.write_response_tasks(tasks).await.unwrap());
    let _client = reads.await.unwrap();
    departure(&mut session).await;
    let late = Instant::now().duration_since(end);
    assert!(behind.was_late() && late < second / 10, "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_left_when_its_request_is_over() {
    let (mut session, _client) = request().await;
    let behind = stand_in(&mut session, terms(None)).await;
    session.set_write_timeout(Some(Duration::from_secs(30)));
    behind.open(true);
    let end = Instant::now() + Duration::from_secs(4);
    behind.begin_wait(end.into_std());
    let large = HttpTask::Body(Some(Bytes::from(vec![b'x'; 100 << 10])), false);
    let tasks = vec![HttpTask::Header(head_without_length(), false), large];
    let error = session.write_response_tasks(tasks).await.unwrap_err();
    assert_eq!(error.etype(), &ErrorType::WriteTimedout);
    let late = Instant::now().duration_since(end);
    assert!(late < Duration::from_millis(10), "{late:?}");
}

#[tokio::test]
async fn each_attempt_is_given_the_body_once() {
    let (mut session, _client) = request().await;
    let _behind = put(&mut session, terms(None));
    // Before an attempt there is only the client to be listened for.
    assert!(session.is_body_done() && given(&mut session).await.is_none());
    for _ in 0..3 {
        session.enable_retry_buffering();
        assert!(!session.is_body_done());
        assert_eq!(given(&mut session).await.as_deref(), Some(MARKER));
        assert!(session.is_body_done());
        assert_eq!(given(&mut session).await, None);
    }
}

/// What Pingora holds of a session while a body is on its way over HTTP/2.
async fn upload(session: &mut Session, patience: Duration) -> (Behind, Ear, Receiver<Bytes>) {
    let behind = put(session, terms(None));
    behind.begin_attempt(Version::HTTP_2, 1);
    let (line, messages) = channel(2);
    behind.watch_upload(line, patience);
    session.enable_retry_buffering();
    let shared = behind.0.clone();
    assert!(session.read_body_or_idle(false).await.unwrap().is_some());
    (behind, Ear(shared), messages)
}

#[tokio::test]
async fn between_the_pieces_of_a_body_the_clock_is_looked_at() {
    let (mut session, _client) = request().await;
    let behind = put(&mut session, terms(None));
    behind.begin_attempt(Version::HTTP_2, 100);
    session.enable_retry_buffering();
    wait_until(&behind, Instant::now() + Duration::from_millis(20));
    let mut pieces = 0;
    let error = loop {
        match session.read_body_or_idle(false).await {
            Ok(piece) => assert_eq!(piece.as_deref(), Some(MARKER)),
            Err(error) => break error,
        }
        pieces += 1;
        assert!(!session.is_body_done());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(*error.etype() == ErrorType::ReadTimedout && behind.was_late());
    assert!((1..50).contains(&pieces), "{pieces}");
}

#[tokio::test]
async fn the_rest_of_a_body_is_nobodys_once_the_answer_is_over() {
    let (mut session, _client) = request().await;
    let behind = put(&mut session, terms(None));
    behind.begin_attempt(Version::HTTP_2, 3);
    session.enable_retry_buffering();
    assert!(given(&mut session).await.is_some());
    let tasks = vec![head(), piece("abcd", true)];
    assert!(session.write_response_tasks(tasks).await.unwrap());
    assert!(session.read_body_or_idle(false).await.unwrap().is_none());
    assert!(session.is_body_done());
}

#[tokio::test]
async fn only_over_http2_does_pingora_get_an_ear() {
    let (mut session, _client) = request().await;
    let behind = put(&mut session, terms(None));
    for (version, ear) in [(Version::HTTP_2, true), (Version::HTTP_11, false)] {
        behind.begin_attempt(version, 1);
        let seat = session.downstream_session.as_custom_mut().unwrap();
        assert_eq!(seat.take_custom_message_writer().is_some(), ear);
    }
}

#[tokio::test]
async fn a_body_that_got_through_leaves_the_line() {
    let (mut session, _client) = request().await;
    let (_behind, mut ear, mut messages) = upload(&mut session, Duration::ZERO).await;
    assert_eq!(given(&mut session).await, None);
    let message = messages.recv().await.unwrap();
    ear.write_custom_message(message).await.unwrap();
    assert!(messages.recv().await.is_none());
}

#[tokio::test]
async fn a_body_that_the_upstream_closed_its_ear_to_waits_for_the_answer() {
    let (mut session, _client) = request().await;
    let (_behind, mut ear, mut messages) = upload(&mut session, PATIENCE).await;
    let message = messages.recv().await.unwrap();
    ear.write_custom_message(message).await.unwrap();
    let quiet = tokio::time::timeout(DRAIN, messages.recv()).await;
    assert!(quiet.is_err(), "nothing to wait for");
    assert!(!session.write_response_tasks(vec![head()]).await.unwrap());
    let end = vec![piece("abcd", true)];
    assert!(session.write_response_tasks(end).await.unwrap());
    assert!(messages.recv().await.is_none());
}

#[tokio::test]
async fn an_upstream_that_only_stopped_taking_is_given_up() {
    let (mut session, _client) = request().await;
    let (_behind, mut ear, mut messages) = upload(&mut session, Duration::ZERO).await;
    let message = messages.recv().await.unwrap();
    ear.write_custom_message(message).await.unwrap();
    let warned = Instant::now();
    let message = messages.recv().await.unwrap();
    assert!(warned.elapsed() > Duration::from_millis(500));
    let error = ear.write_custom_message(message).await.unwrap_err();
    assert_eq!(*error.etype(), ErrorType::WriteTimedout);
    assert_eq!(*error.esource(), ErrorSource::Upstream);
}

#[tokio::test]
async fn who_answers_without_taking_the_body_is_given_up_by_the_clock_alone() {
    let (mut session, mut client) = request().await;
    let (behind, mut ear, mut messages) = upload(&mut session, Duration::ZERO).await;
    let deadline = Instant::now() + GRACE * 5 / 2;
    wait_until(&behind, deadline);
    let task = HttpTask::Header(head_without_length(), false);
    let tasks = vec![task, piece("ab", false)];
    session.write_response_tasks(tasks).await.unwrap();
    let told = loop {
        let message = messages.recv().await.unwrap();
        if let Err(told) = ear.write_custom_message(message).await {
            break told;
        }
    };
    assert_eq!(*told.etype(), ErrorType::ReadTimedout);
    assert!(Instant::now() > deadline && behind.was_late());
    behind.step_aside(&mut session);
    drop(session);
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    let told = got.to_ascii_lowercase();
    assert!(told.contains("\r\nconnection: close\r\n"), "{got}");
}
