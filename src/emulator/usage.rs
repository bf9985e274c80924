//! What an exchange used, and how that is told: truly, not at all, or as
//! nonsense on command. It knows no wire format; a surface lends its own.

use serde_json::{Value, json};

use super::fault::{Faults, UsagePlace};

/// Added to a cached part that is to be larger than its prompt.
const TOO_MUCH: usize = 1000;

/// Tokens of one exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub prompt: usize,
    /// Part of the prompt that was cached.
    pub hit: usize,
    /// Reasoning included.
    pub completion: usize,
    /// Absent when thinking is off.
    pub reasoning: Option<usize>,
}

impl Usage {
    pub(super) fn miss(&self) -> usize {
        self.prompt.saturating_sub(self.hit)
    }

    pub(super) fn total(&self) -> usize {
        self.prompt.saturating_add(self.completion)
    }

    /// The same exchange when only so many tokens were generated; reasoning came first.
    pub(super) fn after(&self, generated: usize) -> Self {
        let completion = self.completion.min(generated);
        Self {
            completion,
            reasoning: self.reasoning.map(|reasoning| reasoning.min(completion)),
            ..*self
        }
    }
}

/// Usage that no sound provider would tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nonsense {
    /// Every number below zero.
    Negative,
    /// Every number the largest of 64 bits.
    Huge,
    /// Texts in place of numbers.
    Text,
    /// More cached tokens than the prompt has.
    Inverted,
}

impl Nonsense {
    fn replace(self, value: &mut Value) {
        match value {
            Value::Object(fields) => fields.values_mut().for_each(|value| self.replace(value)),
            Value::Number(number) => {
                let true_number = number.as_i64().unwrap_or(i64::MAX);
                *value = match self {
                    Self::Negative => json!(-true_number.max(1)),
                    Self::Huge => json!(u64::MAX),
                    Self::Text => json!("many"),
                    Self::Inverted => return,
                };
            }
            _ => {}
        }
    }
}

/// How the usage of one answer is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Telling {
    missing: bool,
    nonsense: Option<Nonsense>,
}

impl Telling {
    pub(super) fn under(faults: &Faults) -> Self {
        Self {
            missing: faults.usage == Some(UsagePlace::Nowhere),
            nonsense: faults.bad_usage,
        }
    }

    /// Whether a caller learns the truth from it.
    pub(super) fn is_true(self) -> bool {
        !self.missing && self.nonsense.is_none()
    }

    /// The usage in the shape of a surface; `None` when it is to be missing.
    pub(super) fn tell(self, usage: &Usage, shape: impl FnOnce(&Usage) -> Value) -> Option<Value> {
        if self.missing {
            return None;
        }
        let Some(nonsense) = self.nonsense else {
            return Some(shape(usage));
        };
        let mut usage = *usage;
        if nonsense == Nonsense::Inverted {
            usage.hit = usage.prompt.saturating_add(TOO_MUCH);
        }
        let mut told = shape(&usage);
        nonsense.replace(&mut told);
        Some(told)
    }

    /// Puts the usage into an answer's object as its last field.
    pub(super) fn tell_in(
        self,
        place: &mut Value,
        usage: &Usage,
        shape: impl FnOnce(&Usage) -> Value,
    ) {
        if let (Some(told), Some(object)) = (self.tell(usage, shape), place.as_object_mut()) {
            object.insert("usage".to_owned(), told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage {
        prompt: 10,
        hit: 4,
        completion: 7,
        reasoning: Some(3),
    };

    fn told(order: &str) -> Option<Value> {
        let faults = Faults::parse(order).unwrap();
        Telling::under(&faults).tell(
            &USAGE,
            |usage| json!({"prompt": usage.prompt, "details": {"hit": usage.hit}, "kind": "x"}),
        )
    }

    #[test]
    fn without_an_order_the_truth_is_told() {
        let truth = json!({"prompt": 10, "details": {"hit": 4}, "kind": "x"});
        assert_eq!(told(""), Some(truth));
        assert!(Telling::default().is_true());
    }

    #[test]
    fn nonsense_reaches_every_number_and_nothing_else() {
        for (order, number) in [
            ("bad_usage=negative", [json!(-10), json!(-4)]),
            ("bad_usage=huge", [json!(u64::MAX), json!(u64::MAX)]),
            ("bad_usage=text", [json!("many"), json!("many")]),
            ("bad_usage=inverted", [json!(10), json!(1010)]),
        ] {
            let told = told(order).unwrap();
            assert_eq!(
                [&told["prompt"], &told["details"]["hit"]],
                [&number[0], &number[1]]
            );
            assert_eq!(told["kind"], "x");
            assert!(!Telling::under(&Faults::parse(order).unwrap()).is_true());
        }
    }

    #[test]
    fn missing_wins_over_nonsense() {
        assert_eq!(told("usage=none,bad_usage=huge"), None);
    }

    #[test]
    fn a_part_of_an_answer_is_reasoning_first() {
        let of = |tokens| {
            let part = USAGE.after(tokens);
            (part.prompt, part.completion, part.reasoning)
        };
        assert_eq!(of(2), (10, 2, Some(2)));
        assert_eq!(of(5), (10, 5, Some(3)));
        assert_eq!(of(99), (10, 7, Some(3)));
    }
}
