//! What first content takes at somebody, as the one number that choosing goes by: the peak EWMA of
//! the latest times, or the silence in which it is waited for now, if that is longer.
//!
//! Bad news counts at once and fades: a higher time replaces the mean, which fades over ten seconds,
//! with traffic or without: who is dear is asked no more, and could not show that it is well again.
//! A silence in which several wait makes somebody who has stalled dear long before a deadline is
//! over.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::silence::Silence;

/// How long a peak takes to fade to a third.
const FADING: Duration = Duration::from_secs(10);
/// What was seen longer ago says nothing of now.
const FRESH: Duration = Duration::from_secs(60);
/// In microseconds. What has faded to less is nothing to go by.
const LEAST: f64 = 1_000.0;

/// The first contents of one account's model, or of one endpoint.
#[derive(Debug)]
pub struct Latency(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    /// In microseconds; 0 while there is nothing to go by.
    mean: f64,
    /// When the mean last moved.
    moved: Instant,
    silence: Silence,
}

impl Latency {
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Seen {
            mean: 0.0,
            moved: now,
            silence: Silence::new(now),
        }))
    }

    /// First content is waited for from now on.
    pub fn began(&self, now: Instant) {
        self.0.lock().silence.began(now);
    }

    /// It came, to whoever had waited for it since `began`.
    pub fn first_content(&self, began: Instant, now: Instant) {
        let mut seen = self.0.lock();
        seen.silence.broken(began, now);
        let sample = micros(now.saturating_duration_since(began)).max(1.0);
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

    /// Whoever had waited for it since `began` does so no longer.
    pub fn ended_without(&self, began: Instant) {
        self.0.lock().silence.left(began);
    }

    /// In microseconds; 0 while there is nothing to go by.
    pub fn estimate(&self, now: Instant) -> u64 {
        let seen = self.0.lock();
        let silence = seen.silence.lasts(now).map_or(0.0, micros);
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
            let began = at - MS * took;
            latency.began(began);
            latency.first_content(began, at);
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
        let at = |ms: u32| start + MS * ms;
        latency.began(start);
        latency.first_content(start, at(9_000));
        latency.began(at(9_000));
        latency.forget();
        latency.first_content(at(9_000), at(9_100));
        assert_eq!(latency.estimate(at(9_100)), 100_000);
    }

    #[test]
    fn a_peak_fades_without_traffic_too() {
        let began = Instant::now();
        let latency = Latency::new(began);
        latency.began(began);
        let start = began + MS * 20_000;
        latency.first_content(began, start);
        let later = latency.estimate(start + FADING);
        assert!((7_000_000..7_500_000).contains(&later), "{later}");
        assert_eq!(latency.estimate(start + FRESH), 0);
        latency.began(start + FRESH);
        latency.first_content(start + FRESH, start + FRESH + MS * 2);
        assert_eq!(latency.estimate(start + FRESH + FADING), 0);
    }

    #[test]
    fn a_silence_counts_while_several_wait() {
        let start = Instant::now();
        let latency = Latency::new(start);
        let began = [5_000, 6_000, 6_500].map(|ms| start + MS * ms);
        latency.began(began[0]);
        latency.began(began[1]);
        assert_eq!(latency.estimate(start + MS * 7_000), 0);
        latency.began(began[2]);
        assert_eq!(latency.estimate(start + MS * 8_000), 1_500_000);
        latency.ended_without(began[0]);
        assert_eq!(latency.estimate(start + MS * 8_000), 0);
    }
}
