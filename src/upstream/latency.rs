//! What first content takes at somebody, as the one number that choosing goes by: the peak EWMA of
//! the latest times, or the silence in which it is waited for now, if that is longer.
//!
//! Bad news counts at once and fades: a higher time replaces the mean, which fades over ten seconds,
//! with traffic or without: who is dear is asked no more, and could not show that it is well again.
//! A silence in which several wait makes somebody who has stalled dear long before a deadline is
//! over.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a peak takes to fade to a third.
const FADING: Duration = Duration::from_secs(10);
/// What was seen longer ago says nothing of now.
const FRESH: Duration = Duration::from_secs(60);
/// In microseconds. What has faded to less is nothing to go by.
const LEAST: f64 = 1_000.0;
/// As many must wait for a silence to say something: one may be a long prompt, or queued there.
const WAITING: u32 = 3;

/// The first contents of one account's model, or of one endpoint.
#[derive(Debug)]
pub struct Latency(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    /// In microseconds; 0 while there is nothing to go by.
    mean: f64,
    /// When the mean last moved.
    moved: Instant,
    awaited: u32,
    /// The last first content, or the first request since nobody waited.
    heard: Instant,
}

impl Latency {
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Seen {
            mean: 0.0,
            moved: now,
            awaited: 0,
            heard: now,
        }))
    }

    /// First content is waited for from now on.
    pub fn began(&self, now: Instant) {
        let mut seen = self.0.lock();
        if seen.awaited == 0 {
            seen.heard = now;
        }
        seen.awaited = seen.awaited.saturating_add(1);
    }

    /// It came, after so long.
    pub fn first_content(&self, took: Duration, now: Instant) {
        let mut seen = self.0.lock();
        seen.awaited = seen.awaited.saturating_sub(1);
        seen.heard = now;
        let sample = micros(took).max(1.0);
        let past = now.saturating_duration_since(seen.moved).as_secs_f64();
        let kept = (-past / FADING.as_secs_f64()).exp();
        seen.mean = match seen.mean {
            mean if sample >= mean || past >= FRESH.as_secs_f64() => sample,
            mean => mean * kept + sample * (1.0 - kept),
        };
        seen.moved = now;
    }

    /// What was seen before is over: it has recovered.
    pub fn forget(&self) {
        self.0.lock().mean = 0.0;
    }

    /// Whoever had waited for it since `began` does so no longer. Of the silence before that nothing
    /// is known: else clients that never wait long would be taken for one that does.
    pub fn ended_without(&self, began: Instant) {
        let mut seen = self.0.lock();
        seen.awaited = seen.awaited.saturating_sub(1);
        seen.heard = seen.heard.max(began);
    }

    /// In microseconds; 0 while there is nothing to go by.
    pub fn estimate(&self, now: Instant) -> u64 {
        let seen = self.0.lock();
        let silence = match seen.awaited {
            0..WAITING => 0.0,
            _ => micros(now.saturating_duration_since(seen.heard)),
        };
        // A silence shorter than the usual is none.
        seen.faded(now).max(silence).min(1e15) as u64
    }
}

impl Seen {
    /// What is left of the mean; 0 if nothing to go by.
    fn faded(&self, now: Instant) -> f64 {
        let past = now.saturating_duration_since(self.moved);
        if past.is_zero() {
            return self.mean;
        }
        let left = self.mean * (-past.as_secs_f64() / FADING.as_secs_f64()).exp();
        if past >= FRESH || left < LEAST {
            return 0.0;
        }
        left
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let start = Instant::now();
        let latency = Latency::new(start);
        assert_eq!(latency.estimate(start), 0);
        let seen = |took: u32, at: Instant| {
            latency.began(at);
            latency.first_content(MS * took, at);
            latency.estimate(at)
        };
        assert_eq!(seen(100, start), 100_000);
        assert_eq!(seen(900, start), 900_000);
        let later = seen(100, start + FADING);
        assert!((300_000..500_000).contains(&later), "{later}");
        assert!(seen(100, start + FADING * 9) < 101_000);
    }

    #[test]
    fn whoever_has_recovered_is_not_held_to_what_it_was() {
        let start = Instant::now();
        let latency = Latency::new(start);
        latency.began(start);
        latency.first_content(MS * 9_000, start);
        latency.began(start);
        latency.forget();
        latency.first_content(MS * 100, start + MS);
        assert_eq!(latency.estimate(start + MS), 100_000);
    }

    #[test]
    fn a_peak_fades_without_traffic_too() {
        let start = Instant::now();
        let latency = Latency::new(start);
        latency.began(start);
        latency.first_content(MS * 20_000, start);
        let later = latency.estimate(start + FADING);
        assert!((7_000_000..7_500_000).contains(&later), "{later}");
        assert_eq!(latency.estimate(start + FRESH), 0);
        latency.began(start + FRESH);
        latency.first_content(MS * 2, start + FRESH);
        assert_eq!(latency.estimate(start + FRESH + FADING), 0);
    }

    #[test]
    fn a_silence_counts_while_several_wait() {
        let start = Instant::now();
        let latency = Latency::new(start);
        latency.began(start + MS * 5_000);
        latency.began(start + MS * 6_900);
        assert_eq!(latency.estimate(start + MS * 7_000), 0);
        latency.began(start + MS * 6_900);
        assert_eq!(latency.estimate(start + MS * 7_000), 2_000_000);
        latency.ended_without(start);
        assert_eq!(latency.estimate(start + MS * 8_000), 0);
    }

    #[test]
    fn clients_that_give_up_early_one_after_the_other_are_no_silence() {
        let start = Instant::now();
        let latency = Latency::new(start);
        let at = |count: u32| start + MS * 100 * count;
        for count in 0..200 {
            latency.began(at(count));
            if count >= 3 {
                // Always four who wait, none of them longer than 300 ms.
                latency.ended_without(at(count - 3));
            }
            assert!(latency.estimate(at(count)) <= 300_000);
        }
    }
}
