//! Files of an account, kept in memory within caps, and the multipart form in
//! which they arrive. It knows no routes and no keys.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use uuid::Uuid;

use super::journal::now_ms;
use super::refusal::Refusal;

/// Most files of an account (DeepSeek's harness: 10,000).
const MAX_FILES: usize = 10_000;
/// All files of an account; the real 25 GiB would not fit a test machine.
const MAX_BYTES: usize = 256 << 20;
/// Most parts of one form.
const MAX_PARTS: usize = 16;
/// Longest header block of a part, and longest plain field.
const MAX_HEAD_BYTES: usize = 4096;
/// DeepSeek files_api page: an hour to 30 days.
const LIFETIME_SECONDS: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

struct File {
    name: String,
    purpose: String,
    created: u64,
    expires: Option<u64>,
    content: Bytes,
}

impl File {
    fn to_json(&self, id: &str) -> Value {
        json!({
            "id": id,
            "object": "file",
            "bytes": self.content.len(),
            "created_at": self.created,
            "expires_at": self.expires,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        })
    }
}

#[derive(Default)]
struct Shelf {
    /// By the order of their arrival, which their ids do not tell.
    files: BTreeMap<u64, (String, File)>,
    bytes: usize,
    next: u64,
}

impl Shelf {
    fn find(&self, id: &str) -> Option<(u64, &File)> {
        let found = self.files.iter().find(|(_, (known, _))| known == id);
        found.map(|(number, (_, file))| (*number, file))
    }

    fn take(&mut self, number: u64) {
        if let Some((_, file)) = self.files.remove(&number) {
            self.bytes = self.bytes.saturating_sub(file.content.len());
        }
    }

    fn drop_expired(&mut self, now: u64) {
        let expired = |file: &File| file.expires.is_some_and(|at| at <= now);
        let gone: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, (_, file))| expired(file))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.take(number);
        }
    }
}

/// The files of one account.
#[derive(Default)]
pub(super) struct Cabinet(Mutex<Shelf>);

impl Cabinet {
    /// Keeps the file of a multipart form and shows it.
    pub(super) fn upload(&self, content_type: &str, body: &Bytes) -> Result<Value, Refusal> {
        let form = Form::read(content_type, body)?;
        let Some((name, content)) = form.file else {
            return Err(Refusal::bad(
                "The form has no part named 'file' with a filename",
            ));
        };
        let Some(purpose) = form.purpose.filter(|purpose| !purpose.is_empty()) else {
            return Err(Refusal::bad("The form has no part named 'purpose'"));
        };
        if form
            .lifetime
            .is_some_and(|seconds| !LIFETIME_SECONDS.contains(&seconds))
        {
            return Err(Refusal::invalid(
                "Invalid expires_after[seconds] value, the valid range is [3600, 2592000]",
            ));
        }
        let created = now_ms() / 1000;
        let expires = form.lifetime.map(|seconds| created + seconds);
        let file = File {
            name,
            purpose,
            created,
            expires,
            content,
        };
        let mut shelf = self.0.lock();
        shelf.drop_expired(created);
        if shelf.files.len() >= MAX_FILES || shelf.bytes + file.content.len() > MAX_BYTES {
            return Err(Refusal::bad("The storage of this account is full"));
        }
        let id = format!("file-api-{}", Uuid::new_v4().simple());
        let shown = file.to_json(&id);
        shelf.bytes += file.content.len();
        shelf.next += 1;
        let number = shelf.next;
        shelf.files.insert(number, (id, file));
        Ok(shown)
    }

    /// All files, newest first.
    pub(super) fn list(&self) -> Value {
        let shelf = self.0.lock();
        let data: Vec<Value> = shelf
            .files
            .values()
            .rev()
            .map(|(id, file)| file.to_json(id))
            .collect();
        json!({ "object": "list", "data": data, "has_more": false })
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.0.lock().find(id).is_some()
    }

    pub(super) fn show(&self, id: &str) -> Result<Value, Refusal> {
        let shelf = self.0.lock();
        shelf
            .find(id)
            .map(|(_, file)| file.to_json(id))
            .ok_or_else(|| missing(id))
    }

    pub(super) fn content(&self, id: &str) -> Result<Bytes, Refusal> {
        let shelf = self.0.lock();
        shelf
            .find(id)
            .map(|(_, file)| file.content.clone())
            .ok_or_else(|| missing(id))
    }

    pub(super) fn delete(&self, id: &str) -> Result<Value, Refusal> {
        let mut shelf = self.0.lock();
        let (number, _) = shelf.find(id).ok_or_else(|| missing(id))?;
        shelf.take(number);
        Ok(json!({ "id": id, "object": "file", "deleted": true }))
    }
}

pub(super) fn no_such_file(id: &str) -> String {
    format!("No such File object: {id}")
}

/// The refusal of a file that is not the account's.
fn missing(id: &str) -> Refusal {
    Refusal::not_found(no_such_file(id))
}

#[derive(Debug, Default)]
struct Form {
    file: Option<(String, Bytes)>,
    purpose: Option<String>,
    lifetime: Option<u64>,
}

impl Form {
    fn read(content_type: &str, body: &Bytes) -> Result<Self, Refusal> {
        let boundary = boundary(content_type).ok_or_else(Refusal::media_type)?;
        let malformed = || Refusal::bad("Failed to parse the multipart form");
        let mut form = Self::default();
        let parts = parts(body, &boundary).ok_or_else(malformed)?;
        for (start, end) in parts {
            let part = body.get(start..end).ok_or_else(malformed)?;
            let head_bytes = find(part.get(..MAX_HEAD_BYTES).unwrap_or(part), b"\r\n\r\n");
            let (head, content) = head_bytes
                .and_then(|at| part.split_at_checked(at))
                .ok_or_else(malformed)?;
            let content = content.get(4..).ok_or_else(malformed)?;
            let head = String::from_utf8_lossy(head);
            let text = || {
                String::from_utf8_lossy(content.get(..MAX_HEAD_BYTES).unwrap_or(content))
                    .into_owned()
            };
            match parameter(&head, "name").as_deref() {
                Some("file") => {
                    let name = parameter(&head, "filename").ok_or_else(malformed)?;
                    // A copy, so that the request's own buffer can go.
                    form.file = Some((name, Bytes::copy_from_slice(content)));
                }
                Some("purpose") => form.purpose = Some(text()),
                Some("expires_after[seconds]") => {
                    let seconds = text().trim().parse();
                    form.lifetime = Some(seconds.map_err(|_| malformed())?);
                }
                _ => {}
            }
        }
        Ok(form)
    }
}

fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let value = parameters
        .split(';')
        .find_map(|p| p.trim().strip_prefix("boundary="))?;
    let value = value.trim_matches('"');
    // RFC 2046 §5.1.1: 1 to 70 characters.
    (1..=70).contains(&value.len()).then(|| value.to_owned())
}

/// A quoted parameter of `Content-Disposition`.
fn parameter(head: &str, name: &str) -> Option<String> {
    let line = head.split("\r\n").find(|line| {
        line.get(..20)
            .is_some_and(|start| start.eq_ignore_ascii_case("content-disposition:"))
    })?;
    line.split(';').find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then(|| value.trim_matches('"').to_owned())
    })
}

/// Where the parts lie between their delimiter lines, which start after a line
/// break: looking at line starts only keeps this linear in hostile bodies.
fn parts(body: &[u8], boundary: &str) -> Option<Vec<(usize, usize)>> {
    let delimiter = format!("--{boundary}");
    let delimiter = delimiter.as_bytes();
    let mut parts = Vec::new();
    let mut open: Option<usize> = None;
    let mut line = 0;
    loop {
        let rest = body.get(line..)?;
        if let Some(after) = rest.strip_prefix(delimiter) {
            if let Some(start) = open {
                parts.push((start, line.checked_sub(2)?.max(start)));
            }
            if after.starts_with(b"--") {
                return Some(parts);
            }
            if parts.len() >= MAX_PARTS || !after.starts_with(b"\r\n") {
                return None;
            }
            open = Some(line + delimiter.len() + 2);
        }
        line += rest.iter().position(|byte| *byte == b'\n')? + 1;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=xx";

    fn form(content: &str, more: &str) -> Bytes {
        Bytes::from(format!(
            "--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n{more}--xx\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\n{content}\r\n--xx--\r\n"
        ))
    }

    #[test]
    fn a_file_is_kept_shown_listed_and_deleted() {
        let cabinet = Cabinet::default();
        let shown = cabinet.upload(TYPE, &form("line\r\nend", "")).unwrap();
        let id = shown["id"].as_str().unwrap();
        assert!(id.starts_with("file-api-"));
        assert_eq!(
            (&shown["bytes"], &shown["filename"]),
            (&json!(9), &json!("a.txt"))
        );
        assert_eq!(cabinet.content(id).unwrap(), "line\r\nend");
        assert_eq!(cabinet.list()["data"][0], shown);
        cabinet.delete(id).unwrap();
        assert!(cabinet.show(id).is_err() && !cabinet.has(id));
    }

    #[test]
    fn lifetimes_have_a_range_and_end() {
        let cabinet = Cabinet::default();
        let more = |seconds: u64| {
            format!(
                "--xx\r\nContent-Disposition: form-data; name=\"expires_after[seconds]\"\r\n\r\n{seconds}\r\n"
            )
        };
        assert!(cabinet.upload(TYPE, &form("x", &more(60))).is_err());
        let shown = cabinet.upload(TYPE, &form("x", &more(3600))).unwrap();
        assert!(shown["expires_at"].as_u64() > shown["created_at"].as_u64());
        cabinet.0.lock().drop_expired(u64::MAX);
        assert!(cabinet.list()["data"].as_array().unwrap().is_empty());
    }

    #[test]
    fn an_account_has_a_ceiling_of_bytes() {
        let cabinet = Cabinet::default();
        cabinet.0.lock().bytes = MAX_BYTES;
        assert!(cabinet.upload(TYPE, &form("x", "")).is_err());
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let cabinet = Cabinet::default();
        assert!(cabinet.upload("application/json", &form("x", "")).is_err());
        assert!(
            cabinet
                .upload(TYPE, &Bytes::from_static(b"--xx\r\n"))
                .is_err()
        );
        assert!(
            cabinet
                .upload("multipart/form-data; boundary=", &Bytes::new())
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(body in "(--xx|--|\r\n|name=\"file\"|[a-z: ;]){0,60}") {
            let _ = Form::read(TYPE, &Bytes::from(body));
        }
    }
}
