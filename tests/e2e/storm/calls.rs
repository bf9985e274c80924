//! What the storm's clients ask for, by chance from a seed, and what they see of it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::world::{self, Bounds};
use super::{Aftermath, CLIENTS};
use crate::support::*;

/// While one process takes the other's place nobody listens.
const REPLACED: Duration = Duration::from_secs(30);

/// Numbers by chance: SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let place = self.below(of.len() as u64);
        &of[usize::try_from(place).unwrap()]
    }
}

/// When a client loses patience.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    Never,
    After(Duration),
    AfterPieces(u64),
}

/// One request before it is sent.
pub struct Caller {
    tenant: String,
    request: Request,
    spoilt: bool,
    leaves: Leaves,
    /// After a refusal.
    waits: Duration,
}

/// What a client saw.
#[derive(Debug, Clone)]
pub struct Seen {
    left: bool,
    spoilt: bool,
    /// `None` if there was no answer.
    status: Option<u16>,
    whole: bool,
}

/// Spoil streams and answers in one piece alike, before a byte of the answer or by its usage alone.
const FAULTS: [&str; 9] = [
    "status=429,retry_after=0,times=1",
    "status=500,times=1",
    "status=503,times=1",
    "reset,times=1",
    "status=503",
    "status=500,times=2",
    "usage=none",
    "bad_usage=huge",
    "cut_after=14",
];
/// Spoil a stream in its middle.
const FAULTS_OF_STREAMS: [&str; 3] = ["cut_after=12", "end_after=16", "error_after=14"];

impl Caller {
    pub fn new(seed: u64, number: usize) -> Self {
        let mut dice = Dice(seed ^ (number as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
        let place = usize::try_from(dice.below(world::TENANTS as u64)).unwrap();
        let tenant = world::tenant_id(place);
        let stream = dice.percent(60);
        let leaves = match dice.below(100) {
            0..5 => Leaves::After(Duration::from_millis(dice.below(30))),
            5..12 if stream => Leaves::AfterPieces(dice.below(12)),
            _ => Leaves::Never,
        };
        // Who leaves is not spoilt as well: then nobody could say whose fault an end was.
        let spoilt = matches!(leaves, Leaves::Never) && dice.percent(25);
        let mut text = if !spoilt && dice.percent(30) {
            // Asked before: the emulator has it in its cache.
            "What is the use of all this? ".repeat(8)
        } else {
            format!("Storm, question {number}. ")
        };
        if dice.percent(1) {
            // Long enough to be under way when one process takes the other's place.
            text.push_str(&format!("[[fault:token_delay=30ms,tokens=60,id={number}]]"));
        } else if spoilt {
            let fault = if stream && dice.percent(40) {
                dice.one(&FAULTS_OF_STREAMS)
            } else {
                dice.one(&FAULTS)
            };
            text.push_str(&format!("[[fault:{fault},id={number}]]"));
        }
        text.push_str(&"Why? ".repeat(usize::try_from(dice.below(40)).unwrap()));
        let bounds = world::bounds_of_plan(world::plan_of(place));
        let request = request(&mut dice, &text, stream, &bounds).key(&tenant);
        Self {
            tenant,
            request,
            spoilt,
            leaves,
            waits: Duration::from_millis(dice.below(50)),
        }
    }

    pub fn ask(&self, address: SocketAddr) -> Seen {
        let mut wire = eventually("somebody listens", REPLACED, || {
            Wire::try_connect(address).ok()
        });
        let mut seen = Seen {
            left: !matches!(self.leaves, Leaves::Never),
            spoilt: self.spoilt,
            status: None,
            whole: false,
        };
        if wire.try_send(&self.request.to_bytes()).is_err() {
            return seen;
        }
        match self.leaves {
            Leaves::Never => {
                if let Some(answer) = wire.try_answer() {
                    seen.status = Some(answer.status);
                    seen.whole = answer.ending == Ending::Whole;
                    let authentic = answer.status != 401 && answer.status != 403;
                    assert!(authentic, "{}: {}", self.tenant, answer.text());
                    if answer.status == 429 {
                        std::thread::sleep(self.waits);
                    }
                }
            }
            Leaves::After(time) => std::thread::sleep(time),
            Leaves::AfterPieces(most) => {
                if let Some(mut stream) = wire.try_stream() {
                    seen.status = Some(stream.status);
                    (0..most)
                        .take_while(|_| stream.next_piece().is_some())
                        .count();
                }
            }
        }
        seen
    }
}

fn request(dice: &mut Dice, text: &str, stream: bool, bounds: &Bounds) -> Request {
    let model = match dice.below(10) {
        0..6 => "deepseek-flash",
        6..8 => "deepseek-v4-pro",
        _ => "deepseek-chat",
    };
    // Every other request says how much it wants at most; some say it tightly. Where answers are
    // limited all do: only then it is certain beforehand what fits.
    let certain = bounds.completion_per_day.is_some();
    let most = match dice.below(4) {
        0 => Some(20 + dice.below(20)),
        1 => Some(100 + dice.below(400)),
        _ if certain => Some(50),
        _ => None,
    };
    let (path, field, body) = match dice.below(10) {
        0..5 => ("/v1/chat/completions", "max_tokens", chat(text)),
        5..8 => ("/anthropic/v1/messages", "max_tokens", message(text)),
        _ => ("/v1/responses", "max_output_tokens", response(text)),
    };
    let mut body: Value = with(body, "model", json!(model));
    if stream {
        body["stream"] = json!(true);
    }
    if let Some(most) = most {
        body[field] = json!(most);
    }
    Request::post(path, &body)
}

/// No client was left without an answer, but for connections that the first process had not taken
/// yet when it left; and what nobody spoilt was whole.
pub(super) fn assert_all_came_to_an_end(aftermath: &Aftermath) {
    let stayed = || aftermath.seen.iter().filter(|seen| !seen.left);
    let unanswered = stayed().filter(|seen| seen.status.is_none()).count();
    assert!(unanswered <= CLIENTS, "{unanswered} without an answer");
    let broken = stayed().filter(|seen| !seen.spoilt && seen.status.is_some() && !seen.whole);
    assert_eq!(broken.count(), 0);
    let served = stayed().filter(|seen| seen.status == Some(200)).count();
    let all = aftermath.seen.len();
    eprintln!("served whole or in part {served} of {all}, {unanswered} without an answer");
    assert!(served * 3 > all, "{served} of {all}");
}
