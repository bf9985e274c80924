//! Until when must which sign of life have come? The deadlines of one attempt and of its request,
//! from plain moments; what is a keep-alive and what is content, others say.
//!
//! A stream shows its phases: head, first byte that is no keep-alive, content, the next content. An
//! answer in one piece does not: with many engines not even its head comes before it is whole, and
//! how long that takes depends on its length. So of such an answer only two clocks tell the truth:
//! the total, and a keep-alive that comes after `queued` is over, since the upstream stops sending
//! them when it begins to work (DeepSeek's rate_limit page). Silence is left to the connection's
//! read timeout.

use std::time::{Duration, Instant};

use crate::config::settings::{Deadlines, UpstreamTimeouts};

/// The deadlines that hold for one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    first_byte: Duration,
    queued: Duration,
    first_content: Duration,
    gap: Duration,
    total: Duration,
    probe: Option<Duration>,
    streamed: bool,
}

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// When the request came in.
    pub started_at: Instant,
    /// The whole request went out; before, connecting and writing have deadlines of their own.
    pub sent_at: Option<Instant>,
    /// A final head came.
    pub head_at: Option<Instant>,
    /// The last keep-alive before anything else came.
    pub kept_alive_at: Option<Instant>,
    /// The first byte came that belongs to no keep-alive.
    pub begun_at: Option<Instant>,
    /// Content came, reasoning and tool calls included.
    pub last_content_at: Option<Instant>,
}

/// Which deadline was not met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Late {
    FirstByte,
    /// Nothing but keep-alives came.
    Queued,
    FirstContent,
    Gap,
    /// The request as a whole.
    Total,
    /// The first content of an attempt that tries out whether somebody has recovered.
    Probe,
}

impl Late {
    /// The word in metrics and log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstByte => "first_byte",
            Self::Queued => "queued",
            Self::FirstContent => "first_content",
            Self::Gap => "gap",
            Self::Total => "total",
            Self::Probe => "probe",
        }
    }
}

impl Clocks {
    /// What a tenant is given goes over what its model is, and that over the upstream's, in either
    /// direction. `client` can make the total shorter and nothing longer.
    pub fn new(
        upstream: &UpstreamTimeouts,
        model: &Deadlines,
        tenant: &Deadlines,
        client: Option<Duration>,
        streamed: bool,
    ) -> Self {
        let total = total(upstream.total, model, tenant, client);
        Self {
            first_byte: given(upstream.first_byte, model.first_byte, tenant.first_byte),
            queued: given(upstream.queued, model.queued, tenant.queued),
            first_content: given(
                upstream.first_content,
                model.first_content,
                tenant.first_content,
            ),
            gap: given(upstream.gap, model.gap, tenant.gap),
            total,
            probe: None,
            streamed,
        }
    }

    /// An attempt that tries somebody out is not given the usual time for its first content. It
    /// makes no deadline longer, and none for an answer in one piece.
    #[must_use]
    pub fn with_probe(mut self, first_content: Duration) -> Self {
        self.probe = Some(first_content);
        self
    }

    /// When the request as a whole must have ended.
    pub fn ends(&self, started_at: Instant) -> Instant {
        started_at + self.total
    }

    /// The earliest deadline that holds now, and which it is.
    pub fn next(&self, progress: &Progress) -> (Instant, Late) {
        let mut next = (self.ends(progress.started_at), Late::Total);
        let Some(sent) = progress.sent_at.filter(|_| self.streamed) else {
            return next;
        };
        let mut earlier = |at: Instant, late: Late| {
            if at <= next.0 {
                next = (at, late);
            }
        };
        if let Some(content) = progress.last_content_at {
            earlier(content + self.gap, Late::Gap);
            return next;
        }
        earlier(sent + self.first_content, Late::FirstContent);
        if let Some(probe) = self.probe {
            earlier(sent + probe, Late::Probe);
        }
        if progress.begun_at.is_none() {
            earlier(sent + self.queued, Late::Queued);
        }
        if progress.head_at.is_none() {
            earlier(sent + self.first_byte, Late::FirstByte);
        }
        next
    }

    /// Which deadline has passed, if one has. Where the client held up an earlier one until the
    /// request's own time was over, it is that.
    pub fn is_late(&self, progress: &Progress, now: Instant) -> Option<Late> {
        let (at, late) = self.next(progress);
        let ends = self.ends(progress.started_at);
        if now >= ends && at < ends {
            return Some(Late::Total);
        }
        if now >= at {
            return Some(late);
        }
        self.is_queued_too_long(progress).then_some(Late::Queued)
    }

    /// An answer in one piece is known to be queued at the moment of a keep-alive, and only then.
    fn is_queued_too_long(&self, progress: &Progress) -> bool {
        let (Some(sent), Some(kept_alive)) = (progress.sent_at, progress.kept_alive_at) else {
            return false;
        };
        !self.streamed && progress.begun_at.is_none() && kept_alive >= sent + self.queued
    }
}

/// How long a request may take as a whole at this upstream, over all attempts and waits.
pub fn total(
    upstream: Duration,
    model: &Deadlines,
    tenant: &Deadlines,
    client: Option<Duration>,
) -> Duration {
    let total = given(upstream, model.total, tenant.total);
    client.map_or(total, |client| client.min(total))
}

fn given(upstream: Duration, model: Option<Duration>, tenant: Option<Duration>) -> Duration {
    tenant.or(model).unwrap_or(upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const UPSTREAM: UpstreamTimeouts = UpstreamTimeouts {
        connect: seconds(1),
        connect_total: seconds(1),
        read: seconds(1),
        write: seconds(1),
        first_byte: seconds(10),
        queued: seconds(60),
        first_content: seconds(90),
        gap: seconds(20),
        total: seconds(1_000),
    };

    const UNSET: Deadlines = Deadlines {
        first_byte: None,
        queued: None,
        first_content: None,
        gap: None,
        total: None,
    };

    fn clocks(streamed: bool) -> Clocks {
        Clocks::new(&UPSTREAM, &UNSET, &UNSET, None, streamed)
    }

    /// Moments in seconds after the request came in: sent, head, anything, content.
    fn progress(start: Instant, moments: [Option<u64>; 4]) -> Progress {
        let [sent_at, head_at, begun_at, last_content_at] =
            moments.map(|at| at.map(|at| start + seconds(at)));
        Progress {
            started_at: start,
            sent_at,
            head_at,
            kept_alive_at: None,
            begun_at,
            last_content_at,
        }
    }

    #[test]
    fn in_each_phase_the_earliest_deadline_that_holds_is_the_next() {
        let start = Instant::now();
        for (moments, streamed, at, late) in [
            // Nothing sent: connecting has its own.
            ([None; 4], true, 1_000, Late::Total),
            ([Some(5), None, None, None], true, 15, Late::FirstByte),
            // Head, and perhaps keep-alives.
            ([Some(5), Some(6), None, None], true, 65, Late::Queued),
            // The role, but nothing said.
            (
                [Some(5), Some(6), Some(7), None],
                true,
                95,
                Late::FirstContent,
            ),
            ([Some(5), Some(6), Some(7), Some(8)], true, 28, Late::Gap),
            ([Some(5), Some(6), Some(7), Some(500)], true, 520, Late::Gap),
            (
                [Some(5), Some(6), Some(7), Some(990)],
                true,
                1_000,
                Late::Total,
            ),
            // A second attempt that is sent late.
            ([Some(995), None, None, None], true, 1_000, Late::Total),
            // In one piece it says nothing until it is whole.
            ([Some(5), None, None, None], false, 1_000, Late::Total),
            (
                [Some(5), Some(6), Some(7), Some(8)],
                false,
                1_000,
                Late::Total,
            ),
        ] {
            let progress = progress(start, moments);
            let clocks = clocks(streamed);
            let deadline = start + seconds(at);
            assert_eq!(clocks.next(&progress), (deadline, late), "{moments:?}");
            let just_before = deadline - Duration::from_nanos(1);
            assert_eq!(clocks.is_late(&progress, just_before), None);
            assert_eq!(clocks.is_late(&progress, deadline), Some(late));
        }
    }

    #[test]
    fn keep_alives_move_no_deadline_of_a_stream() {
        let start = Instant::now();
        let before = progress(start, [Some(0), Some(1), None, None]);
        let after = Progress {
            kept_alive_at: Some(start + seconds(50)),
            ..before
        };
        assert_eq!(clocks(true).next(&before), clocks(true).next(&after));
    }

    #[test]
    fn an_answer_in_one_piece_is_late_in_the_queue_only_while_it_says_that_it_waits() {
        let start = Instant::now();
        let at_work = Progress {
            kept_alive_at: Some(start + seconds(59)),
            ..progress(start, [Some(0), Some(1), None, None])
        };
        assert_eq!(clocks(false).is_late(&at_work, start + seconds(500)), None);
        let queued = Progress {
            kept_alive_at: Some(start + seconds(60)),
            ..at_work
        };
        let now = start + seconds(60);
        assert_eq!(clocks(false).is_late(&queued, now), Some(Late::Queued));
        let begun = Progress {
            begun_at: Some(start + seconds(60)),
            ..queued
        };
        assert_eq!(clocks(false).is_late(&begun, now), None);
    }

    #[test]
    fn the_tenants_deadline_goes_over_the_models_and_that_over_the_upstreams() {
        let start = Instant::now();
        let sent = progress(start, [Some(0), Some(0), Some(0), None]);
        let with = |first_content| Deadlines {
            first_content,
            ..UNSET
        };
        for (model, tenant, at) in [
            (None, None, 90),
            (Some(30), None, 30),
            (Some(300), None, 300),
            (Some(30), Some(200), 200),
            (Some(300), Some(20), 20),
            (None, Some(20), 20),
        ] {
            let (model, tenant) = (with(model.map(seconds)), with(tenant.map(seconds)));
            let clocks = Clocks::new(&UPSTREAM, &model, &tenant, None, true);
            let expected = (start + seconds(at), Late::FirstContent);
            assert_eq!(clocks.next(&sent), expected);
        }
    }

    #[test]
    fn a_client_can_only_shorten_the_total() {
        let start = Instant::now();
        let tenant = Deadlines {
            total: Some(seconds(100)),
            ..UNSET
        };
        for (client, ends) in [(None, 100), (Some(7), 7), (Some(5_000), 100)] {
            let client = client.map(seconds);
            let clocks = Clocks::new(&UPSTREAM, &UNSET, &tenant, client, true);
            assert_eq!(clocks.ends(start), start + seconds(ends));
        }
    }

    #[test]
    fn a_probe_has_less_time_for_its_first_content_and_never_more() {
        let start = Instant::now();
        let begun = progress(start, [Some(0), Some(1), Some(2), None]);
        let next = |probe, streamed| clocks(streamed).with_probe(seconds(probe)).next(&begun);
        assert_eq!(next(5, true), (start + seconds(5), Late::Probe));
        assert_eq!(next(500, true), (start + seconds(90), Late::FirstContent));
        assert_eq!(next(5, false), (start + seconds(1_000), Late::Total));
        let said = progress(start, [Some(0), Some(1), Some(2), Some(3)]);
        let clocks = clocks(true).with_probe(seconds(5));
        assert_eq!(clocks.next(&said), (start + seconds(23), Late::Gap));
    }

    #[test]
    fn of_deadlines_at_one_moment_the_most_telling_is_named() {
        let start = Instant::now();
        let same = seconds(60);
        let upstream = UpstreamTimeouts {
            first_byte: same,
            queued: same,
            first_content: same,
            total: same,
            ..UPSTREAM
        };
        let clocks = Clocks::new(&upstream, &UNSET, &UNSET, None, true);
        for (head, begun, late) in [
            (None, None, Late::FirstByte),
            (Some(1), None, Late::Queued),
            (Some(1), Some(2), Late::FirstContent),
        ] {
            let progress = progress(start, [Some(0), head, begun, None]);
            assert_eq!(clocks.next(&progress), (start + same, late));
        }
    }
}
