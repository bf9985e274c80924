//! Who is out of line with its peers? Pure: what each of a group has shown comes in, a reason to
//! leave somebody out comes back.
//!
//! Nobody is out of line alone. Where the peers do no better, it is the endpoint or the provider
//! that is ill, which is for [`super::breaker`] to find.

use std::time::Duration;

use super::gate::Reason;
use super::window::Tally;
use crate::config::settings::Outlier;

/// First content within this is never slow, whatever the peers do.
const NEVER_SLOW: Duration = Duration::from_secs(1);
/// The peers' share of failures may be at most one in so many of one's own.
const CLEARLY: u64 = 2;
/// Failures in a row of one that is just back.
const WHILE_RAMPING: u32 = 2;

/// What one of a group has shown lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Failures in a row.
    pub streak: u32,
    pub tally: Tally,
    /// What first content takes; `None` if too little was seen.
    pub pace: Option<Duration>,
    /// Left out already, or tried again: no peer to be measured by.
    pub out: bool,
    /// Out for being out of line, not by the operator, the provider or checks.
    pub ejected: bool,
    /// Just back: little is needed to leave again.
    pub ramping: bool,
}

/// Could it be out of line, if its peers do better? Much cheaper to ask.
pub fn is_suspect(rules: &Outlier, look: &Look) -> bool {
    let much = look.tally.total() >= rules.min_requests;
    has_streak(rules, look)
        || (much && look.tally.is_above(rules.error_percent))
        || look.pace.is_some_and(|pace| pace > NEVER_SLOW)
}

/// Why `own` of the group is out of line, if it is.
pub fn out_of_line(rules: &Outlier, own: usize, group: &[Look]) -> Option<Reason> {
    let look = group.get(own).filter(|look| !look.out)?;
    let peers = || peers(own, group);
    if has_streak(rules, look) && fare_well(peers()) {
        return Some(Reason::Failures);
    }
    let much = look.tally.total() >= rules.min_requests;
    if much && look.tally.is_above(rules.error_percent) && fail_less(rules, look.tally, peers()) {
        return Some(Reason::Errors);
    }
    is_slow(look, peers(), rules.slow_factor, 1).then_some(Reason::Slow)
}

/// Would first content after so long be out of line for `own` of the group, wherever it stands?
pub fn would_be_slow(rules: &Outlier, own: usize, pace: Duration, group: &[Look]) -> bool {
    let look = Look {
        pace: Some(pace),
        ..Look::default()
    };
    is_slow(&look, peers(own, group), rules.slow_factor, 1)
}

/// Why `own` of the group is on its way to being out of line, if it is: half as much is enough.
/// Unlike being left out, an error share needs no better peers for that.
pub fn strained(rules: &Outlier, own: usize, group: &[Look]) -> Option<Reason> {
    let look = group.get(own).filter(|look| !look.out)?;
    let tally = look.tally;
    if tally.total() >= rules.min_requests && tally.is_above(rules.error_percent / 2) {
        return Some(Reason::Errors);
    }
    is_slow(look, peers(own, group), rules.slow_factor, 2).then_some(Reason::Slow)
}

/// May one more of the group be left out? Whoever is out for another reason takes nothing from the
/// share, but the last one that is in stays.
pub fn may_leave(rules: &Outlier, group: &[Look]) -> bool {
    let count = |which: fn(&Look) -> bool| group.iter().filter(|look| which(look)).count();
    let percent = usize::try_from(rules.max_ejected_percent.min(100)).unwrap_or(0);
    let most = group.len().saturating_mul(percent) / 100;
    count(|look| look.ejected) < most && count(|look| !look.out) > 1
}

fn has_streak(rules: &Outlier, look: &Look) -> bool {
    let needed = match look.ramping {
        true => rules.consecutive_failures.min(WHILE_RAMPING),
        false => rules.consecutive_failures,
    };
    look.streak >= needed
}

fn peers(own: usize, group: &[Look]) -> impl Iterator<Item = &Look> {
    let peers = group.iter().enumerate();
    peers
        .filter(move |(index, look)| *index != own && !look.out)
        .map(|(_, look)| look)
}

/// Has at least half of those that were heard of just succeeded?
fn fare_well<'a>(peers: impl Iterator<Item = &'a Look>) -> bool {
    let (mut heard, mut well) = (0_usize, 0_usize);
    for peer in peers.filter(|peer| peer.tally.total() > 0) {
        heard += 1;
        well += usize::from(peer.streak == 0);
    }
    heard > 0 && well * 2 >= heard
}

/// Is the share of failures of all peers together clearly below one's own, with enough seen?
fn fail_less<'a>(rules: &Outlier, own: Tally, peers: impl Iterator<Item = &'a Look>) -> bool {
    let all = peers.fold(Tally::default(), |sum, peer| sum.plus(peer.tally));
    let [bad, total] = [own.bad, own.total()].map(u64::from);
    let [their_bad, their_total] = [all.bad, all.total()].map(u64::from);
    their_total >= u64::from(rules.min_requests / 4).max(1)
        && their_bad * total * CLEARLY <= bad * their_total
}

/// Does first content take `factor / part` times what the middle one of the peers needs?
fn is_slow<'a>(look: &Look, peers: impl Iterator<Item = &'a Look>, factor: u32, part: u32) -> bool {
    // Nothing is collected for those that are quick.
    let Some(own) = look.pace.filter(|pace| *pace > NEVER_SLOW) else {
        return false;
    };
    let mut paces: Vec<_> = peers.filter_map(|peer| peer.pace).collect();
    paces.sort_unstable();
    let middle = paces.get(paces.len() / 2);
    middle.is_some_and(|middle| own.saturating_mul(part) > middle.saturating_mul(factor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn look(good: u32, bad: u32, streak: u32) -> Look {
        Look {
            streak,
            tally: Tally { good, bad },
            ..Look::default()
        }
    }

    fn paced(millis: u64) -> Look {
        Look {
            pace: Some(Duration::from_millis(millis)),
            ..look(9, 0, 0)
        }
    }

    fn out(look: Look) -> Look {
        Look { out: true, ..look }
    }

    #[test]
    fn a_streak_counts_only_where_the_peers_succeed() {
        let rules = Outlier::default();
        let ill = look(50, 5, 5);
        for (peers, expected) in [
            (vec![look(9, 0, 0), look(9, 0, 0)], true),
            (vec![look(9, 3, 3), look(9, 0, 0)], true),
            // The provider is ill.
            (vec![look(9, 3, 3), look(9, 4, 4)], false),
            // Nobody to be measured by.
            (vec![], false),
            (vec![look(0, 0, 0)], false),
            (vec![out(look(9, 0, 0))], false),
        ] {
            let group: Vec<_> = [ill].into_iter().chain(peers).collect();
            let found = out_of_line(&rules, 0, &group);
            assert_eq!(found, expected.then_some(Reason::Failures), "{group:?}");
        }
        let fewer = [look(50, 4, 4), look(9, 0, 0)];
        assert_eq!(out_of_line(&rules, 0, &fewer), None);
    }

    #[test]
    fn a_share_of_failures_counts_only_against_clearly_better_peers() {
        let rules = Outlier::default();
        for (own, peer, expected) in [
            (look(8, 12, 1), look(20, 0, 0), true),
            (look(8, 12, 1), look(14, 6, 0), true),
            (look(8, 12, 1), look(13, 7, 0), false),
            // Too little was seen, of one's own or of the peers.
            (look(7, 12, 1), look(20, 0, 0), false),
            (look(8, 12, 1), look(4, 0, 0), false),
            // The share is met, not passed.
            (look(10, 10, 1), look(20, 0, 0), false),
        ] {
            let found = out_of_line(&rules, 0, &[own, peer]);
            assert_eq!(
                found,
                expected.then_some(Reason::Errors),
                "{own:?} {peer:?}"
            );
        }
    }

    #[test]
    fn slow_is_who_takes_many_times_what_the_middle_one_does() {
        let rules = Outlier::default();
        let slow = |own, peers: &[u64]| {
            let group: Vec<_> = [own].iter().chain(peers).map(|ms| paced(*ms)).collect();
            out_of_line(&rules, 0, &group)
        };
        assert_eq!(slow(2_600, &[500, 500, 9_000]), Some(Reason::Slow));
        assert_eq!(slow(2_500, &[500, 500, 9_000]), None);
        // However quick the peers are, a second is not slow.
        assert_eq!(slow(1_000, &[1, 1]), None);
        assert_eq!(slow(60_000, &[]), None);
    }

    #[test]
    fn half_of_it_is_a_strain() {
        let rules = Outlier::default();
        for (group, expected) in [
            (vec![look(14, 6, 0)], Some(Reason::Errors)),
            (vec![look(15, 5, 0)], None),
            (vec![paced(1_300), paced(500)], Some(Reason::Slow)),
            (vec![paced(1_200), paced(500)], None),
            (vec![out(look(0, 20, 20))], None),
        ] {
            assert_eq!(strained(&rules, 0, &group), expected, "{group:?}");
        }
    }

    #[test]
    fn who_is_just_back_leaves_after_two_failures() {
        let rules = Outlier::default();
        let back = |streak| Look {
            ramping: true,
            ..look(1, streak, streak)
        };
        let found = |streak| out_of_line(&rules, 0, &[back(streak), look(9, 0, 0)]);
        assert_eq!([found(1), found(2)], [None, Some(Reason::Failures)]);
    }

    #[test]
    fn who_is_drained_takes_nothing_from_the_share_but_the_last_one_stays() {
        let rules = Outlier::default();
        let well = look(9, 0, 0);
        let ejected = Look {
            ejected: true,
            ..out(look(0, 9, 9))
        };
        for (group, expected) in [
            ([out(well), well, well], true),
            ([out(well), out(well), well], false),
            ([ejected, well, well], false),
            ([out(well); 3], false),
        ] {
            assert_eq!(may_leave(&rules, &group), expected, "{group:?}");
        }
    }

    proptest! {
        /// Whatever the group: no more leave than may, and somebody alone never does.
        #[test]
        fn no_more_than_the_share_is_ever_left_out(
            count in 0usize..12,
            percent in 0u32..=100,
        ) {
            let rules = Outlier { max_ejected_percent: percent, ..Outlier::default() };
            let mut group = vec![look(0, 20, 20); count];
            let mut left = 0;
            while may_leave(&rules, &group) {
                group[left].out = true;
                group[left].ejected = true;
                left += 1;
            }
            prop_assert!(left * 100 <= count * percent as usize);
            let alone = [look(0, 100, 100)];
            prop_assert_eq!(out_of_line(&rules, 0, &alone), None);
        }
    }
}
