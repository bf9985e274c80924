//! Invents the answer: deterministic text, reasoning or a tool call for what
//! was asked, and its usage. It knows no wire format and no time.

use serde_json::{Map, Value, json};

use super::prompt::{Ask, Choice, Tool};
use super::usage::Usage;

/// Most words of the user's message that are repeated.
const MAX_ECHO_WORDS: usize = 12;
/// Characters of tool arguments that make one fragment.
const ARGUMENT_CHARACTERS: usize = 6;
const REASONING: &[&str] = &[
    "The",
    " user",
    " said",
    " something",
    ",",
    " so",
    " I",
    " repeat",
    " it",
    " and",
    " go",
    " on",
    " calmly",
    ".",
];
const FILLER: &[&str] = &[
    " The", " tide", " comes", " in", " and", " the", " tide", " goes", " out", ",", " and",
    " the", " gate", " stays", " open", ".",
];

/// A text in pieces as they are streamed: one per token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fragments {
    text: String,
    ends: Vec<usize>,
}

impl Fragments {
    fn push(&mut self, piece: &str) {
        self.text.push_str(piece);
        self.ends.push(self.text.len());
    }

    fn truncate(&mut self, tokens: usize) {
        self.ends.truncate(tokens);
        self.text.truncate(self.ends.last().copied().unwrap_or(0));
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().scan(0, |start, end| {
            let piece = self.text.get(*start..*end);
            *start = *end;
            piece
        })
    }
}

/// What comes after the reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Text(Fragments),
    Call { name: String, arguments: Fragments },
}

/// An invented answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Absent when thinking is off.
    pub reasoning: Option<Fragments>,
    pub said: Said,
    /// In OpenAI's vocabulary.
    pub finish: String,
}

impl Answer {
    /// The answer to `ask`, `tokens` long without the reasoning; `finish`
    /// replaces the reason it would have.
    pub(super) fn invent(ask: &Ask, tokens: usize, finish: Option<&str>) -> Self {
        let mut reasoning = ask.thinking.then(|| repeat(REASONING, (tokens / 3).max(4)));
        let called = called_tool(ask);
        let mut said = match called {
            Some(tool) => Said::Call {
                name: tool.name.clone(),
                arguments: chop(&arguments(tool, &ask.last.text)),
            },
            None => Said::Text(speak(ask, tokens)),
        };
        let mut natural = if called.is_some() {
            "tool_calls"
        } else {
            "stop"
        };
        if let Some(most) = ask.max_tokens
            && cut(&mut reasoning, &mut said, most)
        {
            natural = "length";
        }
        let finish = finish.unwrap_or(natural).to_owned();
        Self {
            reasoning,
            said,
            finish,
        }
    }

    /// The text without reasoning; empty for a tool call.
    pub(super) fn text(&self) -> &str {
        match &self.said {
            Said::Text(text) => text.text(),
            Said::Call { .. } => "",
        }
    }

    /// Everything the model generated, in tokens.
    pub(super) fn tokens(&self) -> usize {
        let said = match &self.said {
            Said::Text(text) => text.len(),
            Said::Call { arguments, .. } => arguments.len(),
        };
        said + self.reasoning.as_ref().map_or(0, Fragments::len)
    }

    pub(super) fn usage(&self, prompt: usize, hit: usize) -> Usage {
        Usage {
            prompt,
            hit: hit.min(prompt),
            completion: self.tokens(),
            reasoning: self.reasoning.as_ref().map(Fragments::len),
        }
    }
}

/// Keeps at most `most` tokens of both; true when something was lost.
fn cut(reasoning: &mut Option<Fragments>, said: &mut Said, most: usize) -> bool {
    let thought = reasoning.as_ref().map_or(0, Fragments::len);
    if let Some(reasoning) = reasoning {
        reasoning.truncate(most);
    }
    let spoken = match said {
        Said::Text(text) => text,
        Said::Call { arguments, .. } => arguments,
    };
    let lost = thought + spoken.len() > most;
    spoken.truncate(most.saturating_sub(thought));
    lost
}

fn called_tool(ask: &Ask) -> Option<&Tool> {
    let asked = || ask.last.from_user && ask.last.text.to_ascii_lowercase().contains("tool");
    match &ask.choice {
        Choice::Never => None,
        Choice::Named(name) => ask.tools.iter().find(|tool| tool.name == *name),
        Choice::Auto if !asked() => None,
        Choice::Auto | Choice::Required => {
            let named = ask
                .tools
                .iter()
                .find(|tool| ask.last.text.contains(&tool.name));
            named.or(ask.tools.first())
        }
    }
}

fn repeat(words: &[&str], tokens: usize) -> Fragments {
    let mut fragments = Fragments::default();
    for word in words.iter().cycle().take(tokens) {
        fragments.push(word);
    }
    fragments
}

fn speak(ask: &Ask, tokens: usize) -> Fragments {
    let mut text = Fragments::default();
    if !ask.continues {
        text.push("You");
        text.push(" said");
        text.push(":");
    }
    for word in ask.last.text.split_whitespace().take(MAX_ECHO_WORDS) {
        text.push(&format!(" {word}"));
    }
    text.push(".");
    for word in FILLER
        .iter()
        .cycle()
        .take(tokens.saturating_sub(text.len()))
    {
        text.push(word);
    }
    text.truncate(tokens);
    if !ask.json {
        return text;
    }
    let mut wrapped = Fragments::default();
    for piece in json!({ "answer": text.text() })
        .to_string()
        .split_inclusive(' ')
    {
        wrapped.push(piece);
    }
    wrapped
}

/// Arguments that fit the tool's schema as far as its first level says.
fn arguments(tool: &Tool, text: &str) -> String {
    let echo: Vec<&str> = text.split_whitespace().take(4).collect();
    let echo = echo.join(" ");
    let properties = tool.parameters.get("properties").and_then(Value::as_object);
    let mut values = Map::new();
    for (name, schema) in properties.into_iter().flatten() {
        let first_of = |list: &str| schema.get(list).and_then(|list| list.get(0)).cloned();
        let kind = schema.get("type").and_then(Value::as_str);
        let value = first_of("enum").unwrap_or_else(|| match kind {
            Some("integer" | "number") => json!(1),
            Some("boolean") => json!(true),
            Some("array") => json!([]),
            Some("object") => json!({}),
            Some("null") => Value::Null,
            _ => json!(echo),
        });
        values.insert(name.clone(), value);
    }
    Value::Object(values).to_string()
}

fn chop(text: &str) -> Fragments {
    let mut fragments = Fragments::default();
    let mut piece = String::new();
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % ARGUMENT_CHARACTERS == 0 {
            fragments.push(&piece);
            piece.clear();
        }
        piece.push(character);
    }
    fragments.push(&piece);
    fragments
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(text: &str) -> Ask {
        let mut ask = Ask::new("m".into(), None).unwrap();
        ask.hear(&[text]);
        ask
    }

    fn weather() -> Tool {
        Tool {
            name: "weather".into(),
            parameters: json!({"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}),
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer_of_the_wanted_length() {
        let answer = Answer::invent(&ask("hello there"), 24, None);
        assert_eq!(answer, Answer::invent(&ask("hello there"), 24, None));
        assert!(answer.text().starts_with("You said: hello there."));
        assert_eq!((answer.tokens(), answer.finish.as_str()), (24 + 8, "stop"));
    }

    #[test]
    fn max_tokens_count_the_reasoning_first() {
        let mut ask = ask("hello");
        ask.max_tokens = Some(10);
        let answer = Answer::invent(&ask, 24, None);
        assert_eq!((answer.tokens(), answer.finish.as_str()), (10, "length"));
        ask.max_tokens = Some(3);
        let answer = Answer::invent(&ask, 24, None);
        assert_eq!((answer.text(), answer.usage(1, 0).reasoning), ("", Some(3)));
        ask.max_tokens = Some(32);
        assert_eq!(Answer::invent(&ask, 24, None).finish, "stop");
    }

    #[test]
    fn json_mode_answers_json() {
        let mut ask = ask("say \"json\"");
        ask.json = true;
        let answer = Answer::invent(&ask, 24, None);
        assert!(serde_json::from_str::<Value>(answer.text()).unwrap()["answer"].is_string());
    }

    #[test]
    fn a_tool_is_called_when_the_user_asks_for_one_or_it_is_forced() {
        let mut ask = ask("use a tool please");
        assert!(matches!(Answer::invent(&ask, 9, None).said, Said::Text(_)));
        ask.tools = vec![weather()];
        let answer = Answer::invent(&ask, 9, None);
        let Said::Call { name, arguments } = &answer.said else {
            panic!("no call");
        };
        assert_eq!(
            (name.as_str(), answer.finish.as_str()),
            ("weather", "tool_calls")
        );
        assert!(arguments.len() > 1);
        let values: Value = serde_json::from_str(arguments.text()).unwrap();
        assert_eq!(values, json!({"city": "use a tool please", "days": 1}));
        assert_eq!(arguments.iter().collect::<String>(), arguments.text());
        ask.last.followed();
        assert!(matches!(Answer::invent(&ask, 9, None).said, Said::Text(_)));
        ask.choice = Choice::Required;
        assert!(matches!(
            Answer::invent(&ask, 9, None).said,
            Said::Call { .. }
        ));
    }

    proptest! {
        #[test]
        fn no_answer_is_longer_than_max_tokens_nor_shorter_without_need(
            text in "[a-z 中]{0,60}",
            tokens in 0_usize..80,
            most in 1_usize..120,
            (thinking, json, tool) in any::<(bool, bool, bool)>(),
        ) {
            let mut ask = ask(&text);
            (ask.thinking, ask.json) = (thinking, json);
            if tool {
                ask.tools = vec![weather()];
                ask.choice = Choice::Required;
            }
            let free = Answer::invent(&ask, tokens, None).tokens();
            ask.max_tokens = Some(most);
            let answer = Answer::invent(&ask, tokens, None);
            prop_assert_eq!(answer.tokens(), free.min(most));
            prop_assert_eq!(answer.usage(1, 0).completion, free.min(most));
            prop_assert_eq!(answer.finish == "length", free > most);
        }
    }
}
