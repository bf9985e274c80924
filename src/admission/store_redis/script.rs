//! Puts questions to Redis as calls of its scripts, and reads the answers. It knows the order of keys
//! and arguments, which the `.lua` files beside it state, and nothing of connections.

use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{RedisResult, Script, ScriptInvocation};

use super::ask::{Counter, Part, Raw};
use super::outbox::{Batch, News};

const PRELUDE: &str = include_str!("prelude.lua");

/// A host that was silent for so long is dead, and holds nothing.
pub const LIVENESS: Duration = Duration::from_secs(15);
/// How long Redis remembers the id of a reservation. Longer than [`LIVENESS`]: after that, what the
/// host held is given up as a whole.
const MARK_LIFE: Duration = Duration::from_secs(40);

/// The scripts, and what all calls of this process have in common.
pub(super) struct Scripts {
    reserve: Script,
    settle: Script,
    operate: Script,
    mend: Script,
    prefix: String,
    host: String,
    incarnation: String,
}

/// Reserve, or only look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Reserve,
    Show,
}

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Grant(u64),
    Reset,
}

/// What Redis said to a reservation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub outcome: Outcome,
    pub news: News,
    pub counters: Vec<Raw>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Granted,
    Refused,
    /// It came after it had been given up.
    Void,
}

impl Scripts {
    pub fn new(prefix: &str, host: &str, incarnation: &str) -> Self {
        let script = |body: &str| Script::new(&format!("{PRELUDE}{body}"));
        Self {
            reserve: script(include_str!("reserve.lua")),
            settle: script(include_str!("settle.lua")),
            operate: script(include_str!("operate.lua")),
            mend: script(include_str!("mend.lua")),
            prefix: escaped(prefix),
            host: host.to_owned(),
            incarnation: incarnation.to_owned(),
        }
    }

    /// So that the first questions need no second try.
    ///
    /// # Errors
    /// If Redis does not take them.
    pub async fn load(&self, link: &mut impl ConnectionLike) -> RedisResult<()> {
        for script in [&self.reserve, &self.settle, &self.operate, &self.mend] {
            script.load_async(link).await?;
        }
        Ok(())
    }

    pub async fn reserve(
        &self,
        link: &mut impl ConnectionLike,
        purpose: Purpose,
        root: &str,
        id: &str,
        parts: &[Part],
    ) -> RedisResult<Option<Reply>> {
        let mut call = self.call(&self.reserve, root);
        call.key(format!("{}:mark:{id}", self.root(root)));
        call.arg(match purpose {
            Purpose::Reserve => "reserve",
            Purpose::Show => "show",
        });
        call.arg(millis(MARK_LIFE));
        for part in parts {
            let rule = part.counter.rule;
            call.arg(&*part.counter.name)
                .arg(rule.kind().as_str())
                .arg(part.demand())
                .arg(rule.amount())
                .arg(rule.bound())
                .arg(rule.period())
                .arg(u8::from(part.counter.shadow));
        }
        let numbers: Vec<i64> = call.invoke_async(link).await?;
        Ok(Reply::read(&numbers, parts.len()))
    }

    pub async fn settle(&self, link: &mut impl ConnectionLike, batch: &Batch) -> RedisResult<News> {
        let mut call = self.call(&self.settle, &batch.root);
        call.arg(batch.sequence)
            .arg(millis(MARK_LIFE))
            .arg(if batch.renew { batch.generation } else { 0 })
            .arg(batch.claims.len() + batch.moves.len());
        for (counter, held) in &batch.claims {
            call.arg(&**counter)
                .arg("+")
                .arg(*held)
                .arg(batch.generation)
                .arg(0)
                .arg(0);
        }
        for (key, one) in &batch.moves {
            call.arg(&*key.counter)
                .arg(one.kind.as_str())
                .arg(one.release)
                .arg(key.generation)
                .arg(one.used)
                .arg(key.window);
        }
        for abandoned in &batch.abandoned {
            call.arg(&*abandoned.id).arg(abandoned.held.len());
            for (counter, demand) in &abandoned.held {
                call.arg(&**counter).arg(*demand);
            }
        }
        let (epoch, generation) = call.invoke_async(link).await?;
        Ok(News { epoch, generation })
    }

    pub async fn operate(
        &self,
        link: &mut impl ConnectionLike,
        root: &str,
        counter: &Counter,
        operation: Operation,
    ) -> RedisResult<()> {
        let (verb, amount) = match operation {
            Operation::Grant(amount) => ("grant", amount),
            Operation::Reset => ("reset", 0),
        };
        let mut call = self.call(&self.operate, root);
        call.arg(verb)
            .arg(&*counter.name)
            .arg(counter.rule.kind().as_str())
            .arg(counter.rule.window())
            .arg(amount);
        let _: (u64, u64) = call.invoke_async(link).await?;
        Ok(())
    }

    /// Removes keys of a root that hold something else than ours; all its counts begin anew then.
    /// Answers how many there were.
    pub async fn mend(&self, link: &mut impl ConnectionLike, root: &str) -> RedisResult<u64> {
        self.call(&self.mend, root).invoke_async(link).await
    }

    fn call<'a>(&self, script: &'a Script, root: &str) -> ScriptInvocation<'a> {
        let root = self.root(root);
        let mut call = script.key(root.as_str());
        call.key(format!("{root}:hosts"));
        call.key(format!("{root}:host:{}", self.host));
        call.arg(&self.host)
            .arg(&self.incarnation)
            .arg(u64::try_from(LIVENESS.as_micros()).unwrap_or(u64::MAX));
        call
    }

    /// The hash tag makes a cluster keep all keys of a root on one node.
    fn root(&self, root: &str) -> String {
        format!("{{{}:{}}}", self.prefix, escaped(root))
    }
}

impl Reply {
    /// `None` if it is no answer of this script.
    fn read(numbers: &[i64], parts: usize) -> Option<Self> {
        let mut numbers = numbers.iter().map(|&n| u64::try_from(n).unwrap_or(0));
        let outcome = match numbers.next()? {
            0 => Outcome::Refused,
            1 => Outcome::Granted,
            _ => Outcome::Void,
        };
        let news = News {
            epoch: numbers.next()?,
            generation: numbers.next()?,
        };
        let mut counters = Vec::with_capacity(parts);
        for _ in 0..parts {
            counters.push(Raw {
                fits: numbers.next()? == 1,
                held: numbers.next()?,
                a: numbers.next()?,
                b: numbers.next()?,
                c: numbers.next()?,
            });
        }
        Some(Self {
            outcome,
            news,
            counters,
        })
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A brace inside would end or empty the hash tag.
fn escaped(name: &str) -> String {
    name.replace('%', "%25")
        .replace('{', "%7B")
        .replace('}', "%7D")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_root_have_one_hash_tag_whatever_its_name() {
        let tag = |prefix: &str, root: &str| {
            let scripts = Scripts::new(prefix, "host", "1");
            let key = format!("{}:mark:x}}{{y", scripts.root(root));
            // Redis Cluster specification, "Hash tags": between the first { and the first } after it.
            let open = key.find('{').unwrap();
            let close = key[open..].find('}').unwrap() + open;
            key[open + 1..close].to_owned()
        };
        assert_eq!(tag("tidegate", "tenant/acme"), "tidegate:tenant/acme");
        assert_eq!(tag("}", "a}b{c"), "%7D:a%7Db%7Bc");
        assert_ne!(tag("p", "a%7D"), tag("p", "a}"));
    }

    #[test]
    fn a_short_answer_is_none_and_negative_numbers_are_nothing() {
        assert_eq!(Reply::read(&[1, 2, 3, 1, 1, 1, 1], 1), None);
        let reply = Reply::read(&[0, 2, 3, 0, -1, 5, 6, 7], 1).unwrap();
        assert_eq!(reply.outcome, Outcome::Refused);
        assert_eq!(reply.counters[0].held, 0);
        assert_eq!(reply.counters[0].c, 7);
    }
}
