//! Embeddings as a self-hosted server gives them; DeepSeek itself has none.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::models;
use super::prompt::Ask;
use super::refusal::Refusal;
use super::usage::{Telling, Usage};

const DEFAULT_DIMENSIONS: usize = 8;
const MAX_DIMENSIONS: usize = 4096;
/// Most inputs of one request.
const MAX_INPUTS: usize = 2048;
/// Most numbers in one answer (some 40 MiB of JSON).
const MAX_NUMBERS: usize = 1 << 21;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[derive(Deserialize)]
struct EmbeddingRequest {
    model: String,
    input: Value,
    dimensions: Option<usize>,
    encoding_format: Option<String>,
    user: Option<String>,
}

/// A request that was understood: the model to count, and the answer to give.
#[derive(Debug)]
pub(super) struct Embedded {
    pub ask: Ask,
    pub usage: Usage,
    body: Value,
}

impl Embedded {
    /// The answer in one piece.
    pub(super) fn whole(mut self, telling: Telling) -> Bytes {
        telling.tell_in(
            &mut self.body,
            &self.usage,
            |usage| json!({ "prompt_tokens": usage.prompt, "total_tokens": usage.total() }),
        );
        Bytes::from(self.body.to_string())
    }
}

/// Reads a request and answers it.
pub(super) fn embed(body: &[u8], self_hosted: bool) -> Result<Embedded, Refusal> {
    let request: EmbeddingRequest =
        serde_json::from_slice(body).map_err(|e| Refusal::unreadable(&e))?;
    let model = models::served(&request.model, self_hosted)?;
    let dimensions = request.dimensions.unwrap_or(DEFAULT_DIMENSIONS);
    let inputs = inputs(&request.input);
    if inputs.is_empty() || inputs.len() > MAX_INPUTS {
        return Err(Refusal::invalid(
            "Invalid input value, 1 to 2048 texts are supported",
        ));
    }
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) || dimensions * inputs.len() > MAX_NUMBERS {
        return Err(Refusal::invalid("Invalid dimensions value"));
    }
    let mut ask = Ask::new(model, request.user)?;
    let packed = request.encoding_format.as_deref() == Some("base64");
    let mut data = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.iter().enumerate() {
        ask.hear(&[input]);
        let numbers = vector(input, dimensions);
        let embedding = if packed {
            json!(base64(&numbers))
        } else {
            json!(numbers)
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": embedding }));
    }
    let usage = Usage {
        prompt: ask.chain.tokens(),
        ..Usage::default()
    };
    let body = json!({
        "object": "list",
        "data": data,
        "model": ask.model,
    });
    Ok(Embedded { ask, usage, body })
}

/// A text, texts, token numbers, or lists of them.
fn inputs(input: &Value) -> Vec<String> {
    match input {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) if items.iter().all(Value::is_number) && !items.is_empty() => {
            vec![input.to_string()]
        }
        Value::Array(items) => items
            .iter()
            .take(MAX_INPUTS + 1)
            .map(|item| {
                item.as_str()
                    .map_or_else(|| item.to_string(), str::to_owned)
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Numbers from -1 to 1 that depend on the text alone.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut state = text.bytes().fold(0x9e37_79b9_u32, |state, byte| {
        (state ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Sixteen bits are exact in an f32.
        let [high, low, ..] = state.to_be_bytes();
        f32::from(i16::from_be_bytes([high, low])) / 32_768.0
    };
    (0..dimensions).map(|_| next()).collect()
}

/// Little-endian floats in base64, as OpenAI's SDK for Python asks by default.
fn base64(numbers: &[f32]) -> String {
    let bytes: Vec<u8> = numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| chunk.get(index).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let letter = usize::try_from(digit)
                .ok()
                .and_then(|digit| ALPHABET.get(digit));
            text.push(if place > chunk.len() {
                '='
            } else {
                letter.map_or('=', |l| char::from(*l))
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_depend_on_the_text_alone() {
        let of = |input: Value| {
            let body = json!({"model": "m", "input": input}).to_string();
            let embedded = embed(body.as_bytes(), true).unwrap();
            serde_json::from_slice::<Value>(&embedded.whole(Telling::default())).unwrap()
        };
        let two = of(json!(["a", "b"]));
        assert_eq!(two["data"].as_array().unwrap().len(), 2);
        assert_eq!(
            two["data"][1]["embedding"],
            of(json!("b"))["data"][0]["embedding"]
        );
        assert_ne!(two["data"][0]["embedding"], two["data"][1]["embedding"]);
        assert!(two["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
    }

    #[test]
    fn base64_has_little_endian_floats() {
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, 1.0, 1.0]), "AACAPwAAgD8AAIA/");
    }

    #[test]
    fn no_input_and_too_many_numbers_are_refused() {
        assert!(embed(br#"{"model":"m","input":[]}"#, true).is_err());
        assert!(embed(br#"{"model":"m","input":"x","dimensions":5000}"#, true).is_err());
    }
}
