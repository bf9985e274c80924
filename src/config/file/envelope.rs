//! `upstreams[].envelope`: how the answers of a company-internal gateway are unwrapped. Reloads.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the envelope `{"code", "data", "msg"}` around each answer is understood. For dialect
/// `enveloped` alone.
#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Envelope {
    /// Codes of success; a number and the same number as text are one.
    #[schemars(length(min = 1))]
    pub success: Vec<Code>,
    /// The HTTP status that a code stands for. Without it: a code that is a status from 400 to 599,
    /// or has five or six digits and begins with one, stands for that; any other for the status
    /// it came with, or for 502 if that is none of an error.
    #[schemars(extend("additionalProperties" = { "type": "integer", "minimum": 400, "maximum": 599 }))]
    pub statuses: BTreeMap<String, u16>,
}

impl Default for Envelope {
    /// The conventions met most: zero, HTTP's own 200, and a word.
    fn default() -> Self {
        Self {
            success: vec![
                Code::Number(0),
                Code::Number(200),
                Code::Word("success".to_owned()),
            ],
            statuses: BTreeMap::new(),
        }
    }
}

/// A gateway's own code.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Code {
    Number(i64),
    Word(String),
}

impl Code {
    /// As the text that codes are compared by.
    pub fn to_text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Word(word) => word.clone(),
        }
    }
}
