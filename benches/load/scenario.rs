//! The scenarios, and how each is measured: the proxies take turns within each run, and only their
//! own processor time (user and kernel) or resident memory counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{Answer, Connection};
use crate::stage::{Stage, Target, Way};
use crate::{Failure, Outcome, Plan, say};

/// Events of a stream as the client sees them: role, tokens, finish, end mark.
pub const EVENTS: usize = 66;
/// Tokens of such a stream.
const TOKENS: usize = EVENTS - 3;
/// Events of an open stream before it falls silent.
const OPENING: usize = 8;
const PACE: Duration = Duration::from_millis(20);
/// A key of ours by its shape, that nobody has.
const WRONG_KEY: &[u8; 32] = &[9; 32];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    Request,
    Refused,
    Burst,
    Paced,
    Open,
    Upload,
    Latency,
}

impl Scenario {
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Refused,
        Self::Burst,
        Self::Paced,
        Self::Open,
        Self::Upload,
        Self::Latency,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Refused => "refused",
            Self::Burst => "burst",
            Self::Paced => "paced",
            Self::Open => "open",
            Self::Upload => "upload",
            Self::Latency => "latency",
        }
    }

    /// Reads `request,burst`.
    pub fn list(text: &str) -> Outcome<Vec<Self>> {
        text.split(',')
            .map(|name| {
                Self::ALL
                    .into_iter()
                    .find(|scenario| scenario.name() == name)
                    .ok_or_else(|| Failure::from(format!("no scenario is called {name}")))
            })
            .collect()
    }

    fn connections(self) -> usize {
        match self {
            Self::Request | Self::Refused => 64,
            Self::Burst => 16,
            Self::Paced => 100,
            Self::Upload => 4,
            Self::Open | Self::Latency => 1,
        }
    }

    /// What one answer counts for: requests, or the events of a stream.
    fn units(self) -> usize {
        match self {
            Self::Burst | Self::Paced => EVENTS,
            _ => 1,
        }
    }

    fn status(self) -> u16 {
        if self == Self::Refused { 401 } else { 200 }
    }

    fn request(self, target: &Target) -> Vec<u8> {
        let wrong = tidegate::identity::api_key::make("nobody", WRONG_KEY);
        let key = if self == Self::Refused {
            wrong.key.expose()
        } else {
            &target.key
        };
        let body = match self {
            Self::Request | Self::Refused | Self::Latency => body(1024, false, "tokens=24"),
            Self::Burst => body(1024, true, &format!("burst=1,tokens={TOKENS}")),
            Self::Paced => body(
                1024,
                true,
                &format!("token_delay={}ms,tokens={TOKENS}", PACE.as_millis()),
            ),
            Self::Open => body(
                1024,
                true,
                &format!("burst=1,tokens={TOKENS},stall_after={OPENING}"),
            ),
            Self::Upload => body(1 << 20, false, "tokens=24"),
        };
        post(key, &body)
    }
}

/// A request as a current OpenAI SDK writes it.
fn post(key: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway.internal\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\naccept: application/json\r\nuser-agent: OpenAI/Python 2.8.1\r\nx-stainless-lang: python\r\nx-stainless-package-version: 2.8.1\r\nx-stainless-os: Linux\r\nx-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\nx-stainless-retry-count: 0\r\naccept-encoding: gzip, deflate\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A chat request of exactly `size` bytes, with an order for the upstream in its last message.
fn body(size: usize, stream: bool, order: &str) -> String {
    let head = r#"{"model":"deepseek-flash","messages":["#;
    let tail = format!(
        r#"{{"role":"user","content":"Go on. [[fault:{order}]]"}}],"thinking":{{"type":"disabled"}},"stream":{stream},"max_tokens":512,"temperature":0.7}}"#
    );
    let frame = r#"{"role":"system","content":""},"#;
    let mut body = head.to_owned();
    while let left = size.saturating_sub(body.len() + tail.len())
        && left > frame.len()
    {
        // What is left for a next message must be enough for one, or nothing.
        let room = if left > 8192 {
            4096
        } else {
            left - frame.len()
        };
        let text: String = "The quick brown fox jumps over the lazy dog. "
            .chars()
            .cycle()
            .take(room)
            .collect();
        body.push_str(&format!(r#"{{"role":"system","content":"{text}"}},"#));
    }
    body + &tail
}

/// One scenario's figures, run by run.
#[derive(Debug, Clone)]
pub struct Figures {
    pub scenario: Scenario,
    pub way: Way,
    /// Microseconds of processor time per unit, or KiB per open stream.
    pub cost: Vec<f64>,
    /// Units per second of wall time, for a feeling.
    pub rate: Vec<f64>,
    /// KiB after one request, where the process was started for the measurement.
    pub idle_kib: Vec<f64>,
    /// Microseconds: of an answer as a whole, or of an event's way where events are stamped.
    pub latency: Vec<Quantiles>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
}

impl Figures {
    fn new(scenario: Scenario, way: Way) -> Self {
        Self {
            scenario,
            way,
            cost: Vec::new(),
            rate: Vec::new(),
            idle_kib: Vec::new(),
            latency: Vec::new(),
        }
    }
}

pub type Results = Vec<Figures>;

pub async fn run_all(plan: &Plan, stage: &Stage) -> Outcome<Results> {
    let mut ways = Vec::new();
    for way in [Way::Direct, Way::Bare, Way::Tidegate] {
        ways.push(
            stage
                .open(way, |target| Scenario::Request.request(target))
                .await?,
        );
    }
    let mut results = Vec::new();
    for scenario in &plan.only {
        let measured = match scenario {
            Scenario::Open => open_streams(plan, stage).await?,
            _ => loads(plan, *scenario, &ways).await?,
        };
        results.extend(measured);
    }
    Ok(results)
}

async fn loads(plan: &Plan, scenario: Scenario, ways: &[Target]) -> Outcome<Vec<Figures>> {
    let wanted = |target: &&Target| match scenario {
        Scenario::Latency | Scenario::Paced => true,
        Scenario::Refused => target.way == Way::Tidegate,
        _ => target.way != Way::Direct,
    };
    let targets: Vec<_> = ways.iter().filter(wanted).collect();
    let mut figures: Vec<_> = targets
        .iter()
        .map(|target| Figures::new(scenario, target.way))
        .collect();
    for run in 0..plan.runs {
        for (target, figures) in targets.iter().zip(&mut figures) {
            load(scenario, target, plan.load / 8).await?;
            let used = || {
                target
                    .process
                    .as_ref()
                    .map_or(Ok(Duration::ZERO), |process| process.cpu())
            };
            let (before, began) = (used()?, Instant::now());
            let tally = load(scenario, target, plan.load).await?;
            let (spent, wall) = (used()?.saturating_sub(before), began.elapsed());
            let units = (tally.answers * scenario.units()) as f64;
            figures.cost.push(spent.as_secs_f64() * 1e6 / units);
            figures.rate.push(units / wall.as_secs_f64());
            figures.latency.push(quantiles(tally.nanos));
            say(&format!(
                "{} run {}: {} {:.2} µs, {:.0}/s",
                scenario.name(),
                run + 1,
                target.way.name(),
                spent.as_secs_f64() * 1e6 / units,
                units / wall.as_secs_f64()
            ));
        }
    }
    Ok(figures)
}

#[derive(Default)]
struct Tally {
    answers: usize,
    nanos: Vec<u64>,
}

/// Keeps the scenario's connections busy for `time`; each ends with a whole answer.
async fn load(scenario: Scenario, target: &Target, time: Duration) -> Outcome<Tally> {
    let request: Arc<[u8]> = scenario.request(target).into();
    let until = Instant::now() + time;
    let (address, count) = (target.address, scenario.connections());
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let request = request.clone();
        tasks.spawn(async move {
            if scenario == Scenario::Paced {
                // Streams that beat in step would be served in step.
                let share =
                    u32::try_from(number).unwrap_or(0) * PACE / u32::try_from(count).unwrap_or(1);
                sleep(share).await;
            }
            let mut connection = Connection::new(address);
            let mut tally = Tally::default();
            loop {
                let answer = connection.ask(&request, None).await?;
                check(scenario, &answer)?;
                tally.answers += 1;
                match scenario {
                    Scenario::Paced => tally.nanos.extend(answer.delays),
                    _ => tally.nanos.push(u64::try_from(answer.took.as_nanos())?),
                }
                if Instant::now() >= until {
                    return Outcome::Ok(tally);
                }
            }
        });
    }
    let mut total = Tally::default();
    while let Some(done) = tasks.join_next().await {
        let tally = done??;
        total.answers += tally.answers;
        total.nanos.extend(tally.nanos);
    }
    Ok(total)
}

fn check(scenario: Scenario, answer: &Answer) -> Outcome<()> {
    let events = match scenario {
        Scenario::Burst | Scenario::Paced => EVENTS,
        _ => 0,
    };
    if answer.status == scenario.status() && answer.events == events {
        return Ok(());
    }
    Err(format!(
        "{}: status {} with {} events",
        scenario.name(),
        answer.status,
        answer.events
    )
    .into())
}

/// Streams that have begun and fallen silent, against proxies that have done nothing else.
async fn open_streams(plan: &Plan, stage: &Stage) -> Outcome<Vec<Figures>> {
    let mut figures: Vec<_> = Way::PROXIES
        .iter()
        .map(|way| Figures::new(Scenario::Open, *way))
        .collect();
    for run in 0..plan.runs {
        for (way, figures) in Way::PROXIES.into_iter().zip(&mut figures) {
            let target = stage
                .open(way, |target| Scenario::Request.request(target))
                .await?;
            let process = target.process.as_ref().ok_or("a proxy without a process")?;
            sleep(Duration::from_millis(500)).await;
            let idle = process.rss_kib()?;
            let request: Arc<[u8]> = Scenario::Open.request(&target).into();
            let mut held = Vec::with_capacity(plan.streams);
            while held.len() < plan.streams {
                let mut tasks = JoinSet::new();
                for _ in 0..64.min(plan.streams - held.len()) {
                    let (mut connection, request) =
                        (Connection::new(target.address), request.clone());
                    tasks.spawn(async move {
                        connection.ask(&request, Some(OPENING)).await?;
                        Outcome::Ok(connection)
                    });
                }
                while let Some(opened) = tasks.join_next().await {
                    held.push(opened??);
                }
            }
            sleep(Duration::from_secs(1)).await;
            let full = process.rss_kib()?;
            let each = full.saturating_sub(idle) as f64 / held.len() as f64;
            figures.cost.push(each);
            figures.idle_kib.push(idle as f64);
            say(&format!(
                "open run {}: {} {each:.1} KiB per stream, {idle} KiB idle",
                run + 1,
                way.name()
            ));
        }
    }
    Ok(figures)
}

/// In microseconds.
fn quantiles(mut nanos: Vec<u64>) -> Quantiles {
    nanos.sort_unstable();
    let at = |share: usize| {
        nanos
            .get((nanos.len() * share / 100).min(nanos.len().saturating_sub(1)))
            .map_or(0.0, |value| *value as f64 / 1e3)
    };
    Quantiles {
        p50: at(50),
        p99: at(99),
    }
}
