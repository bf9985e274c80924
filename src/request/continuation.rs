//! Decides what a chat request looks like that asks an upstream to go on from the
//! part of an answer that a client already has: DeepSeek's prefix completion,
//! under its beta path. It must not know how that part was gathered.
//!
//! The assistant's words are appended to `messages`; what the tenant wrote stays
//! byte for byte.

use crate::json;
use crate::request::scan::{self, Fields};
use bytes::Bytes;
use std::ops::Range;

/// What the client has of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said<'a> {
    /// The text so far; not empty.
    pub content: &'a str,
    /// The reasoning before it, whole.
    pub reasoning: Option<&'a str>,
    /// Tokens of both. Where only events were counted there may have been more,
    /// and the answer as a whole may exceed the caller's limit by the difference.
    pub tokens: u64,
}

/// Why a request cannot be continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has no messages, or is no request at all.
    #[error("the request has no messages")]
    NoMessages,
    /// Its last message is itself the beginning of an answer.
    #[error("the request ends with a prefix of its own")]
    OwnPrefix,
    /// It offers tools: the model may have been about to call one.
    #[error("the request offers tools")]
    Tools,
    /// It asks for several choices or for probabilities of tokens.
    #[error("the request asks for more than one text")]
    MoreThanText,
    /// Nothing is left of the tokens that the caller allowed, or their limit
    /// cannot be read.
    #[error("no tokens are left to continue with")]
    NoTokensLeft,
}

impl Unfit {
    /// The word in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoMessages => "no_messages",
            Self::OwnPrefix => "own_prefix",
            Self::Tools => "tools",
            Self::MoreThanText => "more_than_text",
            Self::NoTokensLeft => "no_tokens_left",
        }
    }
}

/// The body that asks for the rest. `body` is the tenant's chat request; what is
/// edited in it for an upstream has to be edited in the result anew.
///
/// # Errors
/// Why there is no such request.
pub fn continuation(body: &[u8], said: &Said<'_>) -> Result<Bytes, Unfit> {
    let fields = scan::scan(body).map_err(|_| Unfit::NoMessages)?;
    asks_for_one_text(&fields)?;
    let mut splices = vec![words(&fields, said)?];
    for key in ["max_tokens", "max_completion_tokens"] {
        for span in fields.spans(key) {
            let value = fields.bytes(&span).unwrap_or_default();
            if value == b"null" {
                continue;
            }
            let rest = std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.parse::<u64>().ok())
                .and_then(|allowed| allowed.checked_sub(said.tokens))
                .filter(|rest| *rest > 0)
                .ok_or(Unfit::NoTokensLeft)?;
            splices.push((span, rest.to_string()));
        }
    }
    splices.sort_by_key(|(span, _)| span.start);
    let added: usize = splices.iter().map(|(_, text)| text.len()).sum();
    let mut out = Vec::with_capacity(body.len() + added);
    let mut at = 0;
    for (span, text) in splices {
        out.extend_from_slice(body.get(at..span.start).unwrap_or_default());
        out.extend_from_slice(text.as_bytes());
        at = span.end;
    }
    out.extend_from_slice(body.get(at..).unwrap_or_default());
    Ok(Bytes::from(out))
}

fn asks_for_one_text(fields: &Fields<'_>) -> Result<(), Unfit> {
    let says = |key: &str, nothing: &[&[u8]]| {
        fields.spans(key).any(|span| {
            let value = fields.bytes(&span).unwrap_or_default();
            value != b"null" && !nothing.contains(&value)
        })
    };
    let empty = |key: &str| {
        fields.spans(key).all(|span| {
            let value = fields.bytes(&span).unwrap_or_default();
            value == b"null" || (value.starts_with(b"[") && json::items(value).next().is_none())
        })
    };
    if !empty("tools") || !empty("functions") {
        return Err(Unfit::Tools);
    }
    if says("n", &[b"1"]) || says("logprobs", &[b"false"]) || says("top_logprobs", &[b"0"]) {
        return Err(Unfit::MoreThanText);
    }
    Ok(())
}

/// The assistant's message, and where in the body it goes.
fn words(fields: &Fields<'_>, said: &Said<'_>) -> Result<(Range<usize>, String), Unfit> {
    let span = fields.messages.clone().ok_or(Unfit::NoMessages)?;
    let messages = fields.bytes(&span).unwrap_or_default();
    let last = json::items(messages).last().ok_or(Unfit::NoMessages)?;
    let [prefix] = json::pick(last, ["prefix"]).ok_or(Unfit::NoMessages)?;
    if prefix.is_some_and(|prefix| !matches!(prefix, b"false" | b"null")) {
        return Err(Unfit::OwnPrefix);
    }
    let content = json::quoted(said.content);
    let reasoning = said
        .reasoning
        .map(|text| format!(r#","reasoning_content":{}"#, json::quoted(text)))
        .unwrap_or_default();
    let message =
        format!(r#",{{"role":"assistant","content":{content},"prefix":true{reasoning}}}"#);
    let bracket = span.end.saturating_sub(1);
    Ok((bracket..bracket, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    const SAID: Said<'_> = Said {
        content: "Hel\"lo\n字😀",
        reasoning: None,
        tokens: 3,
    };

    fn continued(body: &str, said: &Said<'_>) -> Result<String, Unfit> {
        continuation(body.as_bytes(), said).map(|body| String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn the_words_so_far_are_appended_and_nothing_else_changes() {
        let body = r#"{ "model":"m", "messages" : [ {"role":"user","content":"\u0068i"} ] , "stream":true,"x":1e2 }"#;
        let expected = r#"{ "model":"m", "messages" : [ {"role":"user","content":"\u0068i"} ,{"role":"assistant","content":"Hel\"lo\n字😀","prefix":true}] , "stream":true,"x":1e2 }"#;
        assert_eq!(continued(body, &SAID).as_deref(), Ok(expected));
        let said = Said {
            reasoning: Some("hm\\"),
            ..SAID
        };
        let with = r#""prefix":true,"reasoning_content":"hm\\"}]"#;
        assert!(continued(body, &said).unwrap().contains(with));
    }

    #[test]
    fn limits_shrink_by_what_was_said() {
        let body = r#"{"max_tokens":10,"messages":[{"role":"user","content":"x"}],"max_completion_tokens":4}"#;
        let text = continued(body, &SAID).unwrap();
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["max_tokens"], 7);
        assert_eq!(body["max_completion_tokens"], 1);
        let null = r#"{"max_tokens":null,"messages":[{"role":"user","content":"x"}]}"#;
        assert!(
            continued(null, &SAID)
                .unwrap()
                .contains("\"max_tokens\":null")
        );
        for limit in ["3", "2", "0", "-1", "5.5", "\"9\""] {
            let body = format!(r#"{{"messages":[{{"role":"user"}}],"max_tokens":{limit}}}"#);
            assert_eq!(continued(&body, &SAID), Err(Unfit::NoTokensLeft));
        }
    }

    #[test]
    fn what_asks_for_more_than_one_text_is_not_continued() {
        let user = r#"{"role":"user","content":"x"}"#;
        for (rest, why) in [
            (r#""messages":[]"#.to_owned(), Unfit::NoMessages),
            (r#""messages":"x""#.to_owned(), Unfit::NoMessages),
            (r#""messages":["x"]"#.to_owned(), Unfit::NoMessages),
            (r#""prompt":"x""#.to_owned(), Unfit::NoMessages),
            (
                format!(
                    r#""messages":[{user},{{"role":"assistant","content":"a","prefix":true}}]"#
                ),
                Unfit::OwnPrefix,
            ),
            (
                format!(r#""messages":[{user}],"tools":[{{}}]"#),
                Unfit::Tools,
            ),
            (format!(r#""messages":[{user}],"n":2"#), Unfit::MoreThanText),
            (
                format!(r#""messages":[{user}],"logprobs":true"#),
                Unfit::MoreThanText,
            ),
        ] {
            assert_eq!(continued(&format!("{{{rest}}}"), &SAID), Err(why), "{rest}");
        }
        let plain = format!(
            r#"{{"messages":[{user}],"tools":[],"n":1,"logprobs":false,"top_logprobs":null,"stop":["x"],"response_format":{{"type":"json_object"}}}}"#
        );
        assert!(continued(&plain, &SAID).is_ok());
    }

    proptest! {
        #[test]
        fn any_words_arrive_as_they_were_said(content in ".{1,40}", reasoning in prop::option::of(".{1,40}")) {
            let body = r#"{"messages":[{"role":"user","content":"x"}],"a":[1,{"b":2}]}"#;
            let said = Said { content: &content, reasoning: reasoning.as_deref(), tokens: 1 };
            let body: Value = serde_json::from_str(&continued(body, &said).unwrap()).unwrap();
            let last = &body["messages"][1];
            prop_assert_eq!(last["content"].as_str(), Some(content.as_str()));
            prop_assert_eq!(last["prefix"].as_bool(), Some(true));
            prop_assert_eq!(last["reasoning_content"].as_str(), reasoning.as_deref());
            prop_assert_eq!(body["messages"].as_array().map(Vec::len), Some(2));
            prop_assert_eq!(&body["a"], &serde_json::json!([1, {"b": 2}]));
        }
    }
}
