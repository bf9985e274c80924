//! Invents the answer: deterministic text, reasoning or a tool call for what
//! was asked, and its usage. It knows no wire format and no time.

use serde_json::{Map, Value, json};

use super::fault::Wording;
use super::prompt::{Ask, Begun, Choice, Tool};
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

    /// What comes after `beginning`, if that is how it begins.
    fn after(&self, beginning: &str) -> Option<Self> {
        let rest = self.text.strip_prefix(beginning)?;
        let ends = self.ends.iter().filter_map(|end| {
            let left = end.checked_sub(beginning.len())?;
            (left > 0).then_some(left)
        });
        Some(Self {
            text: rest.to_owned(),
            ends: ends.collect(),
        })
    }

    /// Adds a token of `bytes` after the first one.
    fn lengthen(&mut self, bytes: usize) {
        let at = self.ends.first().copied().unwrap_or(0);
        self.text.insert_str(at, &"x".repeat(bytes));
        self.ends.iter_mut().skip(1).for_each(|end| *end += bytes);
        self.ends.insert(self.ends.len().min(1), at + bytes);
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
    /// replaces the reason it would have. What the request has of it already is
    /// left out.
    pub(super) fn invent(
        ask: &Ask,
        tokens: usize,
        finish: Option<&str>,
        wording: Option<Wording>,
    ) -> Self {
        let mut reasoning = ask.thinking.then(|| repeat(REASONING, (tokens / 3).max(4)));
        let called = called_tool(ask);
        let mut said = match called {
            Some(tool) => Said::Call {
                name: tool.name.clone(),
                arguments: chop(&arguments(tool, &ask.last.text)),
            },
            None => Said::Text(speak(ask, tokens, ask.continues)),
        };
        match (wording, &mut said) {
            (Some(Wording::None), _) => {
                reasoning = None;
                said = Said::Text(Fragments::default());
            }
            (Some(Wording::Long(bytes)), Said::Text(text)) => text.lengthen(bytes),
            _ => {}
        }
        if let Some(begun) = &ask.begun {
            reasoning = reasoning.and_then(|reasoning| think_on(&reasoning, begun));
            if let Said::Text(text) = &mut said {
                let rest = text.after(&begun.text);
                *text = rest.unwrap_or_else(|| speak(ask, tokens, true));
            }
        }
        let mut natural = match said {
            Said::Call { .. } => "tool_calls",
            Said::Text(_) => "stop",
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

/// The reasoning that is still to be done; text that is there already ends it.
fn think_on(reasoning: &Fragments, begun: &Begun) -> Option<Fragments> {
    let Some(thought) = &begun.reasoning else {
        return Some(reasoning.clone());
    };
    let rest = reasoning.after(thought).filter(|rest| rest.len() > 0);
    rest.filter(|_| begun.text.is_empty())
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

fn speak(ask: &Ask, tokens: usize, continues: bool) -> Fragments {
    let mut text = Fragments::default();
    if !continues {
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
        let answer = Answer::invent(&ask("hello there"), 24, None, None);
        assert_eq!(answer, Answer::invent(&ask("hello there"), 24, None, None));
        assert!(answer.text().starts_with("You said: hello there."));
        assert_eq!((answer.tokens(), answer.finish.as_str()), (24 + 8, "stop"));
    }

    #[test]
    fn max_tokens_count_the_reasoning_first() {
        let mut ask = ask("hello");
        ask.max_tokens = Some(10);
        let answer = Answer::invent(&ask, 24, None, None);
        assert_eq!((answer.tokens(), answer.finish.as_str()), (10, "length"));
        ask.max_tokens = Some(3);
        let answer = Answer::invent(&ask, 24, None, None);
        assert_eq!((answer.text(), answer.usage(1, 0).reasoning), ("", Some(3)));
        ask.max_tokens = Some(32);
        assert_eq!(Answer::invent(&ask, 24, None, None).finish, "stop");
    }

    #[test]
    fn json_mode_answers_json() {
        let mut ask = ask("say \"json\"");
        ask.json = true;
        let answer = Answer::invent(&ask, 24, None, None);
        assert!(serde_json::from_str::<Value>(answer.text()).unwrap()["answer"].is_string());
    }

    #[test]
    fn a_tool_is_called_when_the_user_asks_for_one_or_it_is_forced() {
        let mut ask = ask("use a tool please");
        assert!(matches!(
            Answer::invent(&ask, 9, None, None).said,
            Said::Text(_)
        ));
        ask.tools = vec![weather()];
        let answer = Answer::invent(&ask, 9, None, None);
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
        assert!(matches!(
            Answer::invent(&ask, 9, None, None).said,
            Said::Text(_)
        ));
        ask.choice = Choice::Required;
        assert!(matches!(
            Answer::invent(&ask, 9, None, None).said,
            Said::Call { .. }
        ));
    }

    fn begun(ask: &Ask, text: &str, reasoning: Option<&str>) -> Ask {
        let mut ask = ask.clone();
        ask.begin(Begun {
            text: text.to_owned(),
            reasoning: reasoning.map(str::to_owned),
        });
        ask
    }

    fn thought(answer: &Answer) -> &str {
        answer.reasoning.as_ref().map_or("", Fragments::text)
    }

    #[test]
    fn reasoning_that_is_given_is_not_done_again() {
        let ask = ask("hello there");
        let whole = Answer::invent(&ask, 24, None, None);
        let again = Answer::invent(&begun(&ask, "You said", None), 24, None, None);
        assert_eq!(thought(&again), thought(&whole));
        for reasoning in [thought(&whole), "The user", "something else"] {
            let ask = begun(&ask, "You said", Some(reasoning));
            let rest = Answer::invent(&ask, 24, None, None);
            assert_eq!(rest.reasoning, None);
            assert_eq!(format!("You said{}", rest.text()), whole.text());
        }
        let cut = Answer::invent(&begun(&ask, "", Some("The user sa")), 24, None, None);
        assert_eq!(format!("The user sa{}", thought(&cut)), thought(&whole));
        assert_eq!(cut.text(), whole.text());
    }

    #[test]
    fn a_beginning_that_is_not_its_own_is_gone_on_with_all_the_same() {
        let rest = Answer::invent(&begun(&ask("hello"), "Once upon", None), 24, None, None);
        assert!(rest.text().starts_with(" hello."));
    }

    #[test]
    fn a_long_token_is_one_among_the_others_and_no_content_is_none() {
        let ask = ask("hello there");
        let plain = Answer::invent(&ask, 24, None, None);
        let long = Answer::invent(&ask, 24, None, Some(Wording::Long(5_000_000)));
        assert_eq!(long.tokens(), plain.tokens() + 1);
        let Said::Text(text) = &long.said else {
            panic!("no text");
        };
        let sizes: Vec<usize> = text.iter().map(str::len).collect();
        assert_eq!((sizes[0], sizes[1], sizes[2]), (3, 5_000_000, 5));
        assert_eq!(text.text().replace('x', ""), plain.text());
        let none = Answer::invent(&ask, 24, None, Some(Wording::None));
        assert_eq!((none.tokens(), none.finish.as_str()), (0, "stop"));
    }

    proptest! {
        #[test]
        fn a_beginning_and_what_goes_on_from_it_are_the_whole(
            text in "[a-z 中]{0,60}",
            at in 0_usize..120,
            most in 1_usize..60,
            json in any::<bool>(),
        ) {
            let mut ask = ask(&text);
            (ask.thinking, ask.json) = (false, json);
            let whole = Answer::invent(&ask, 24, None, None);
            let at = whole.text().floor_char_boundary(at);
            let (beginning, end) = whole.text().split_at(at);
            let mut rest = begun(&ask, beginning, None);
            let answer = Answer::invent(&rest, 24, None, None);
            prop_assert_eq!(answer.text(), end);
            rest.max_tokens = Some(most);
            let cut = Answer::invent(&rest, 24, None, None);
            prop_assert_eq!(cut.tokens(), answer.tokens().min(most));
        }

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
            let free = Answer::invent(&ask, tokens, None, None).tokens();
            ask.max_tokens = Some(most);
            let answer = Answer::invent(&ask, tokens, None, None);
            prop_assert_eq!(answer.tokens(), free.min(most));
            prop_assert_eq!(answer.usage(1, 0).completion, free.min(most));
            prop_assert_eq!(answer.finish == "length", free > most);
        }
    }
}
