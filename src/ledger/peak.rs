//! Decides whether an instant lies in a provider's peak hours, and until when that answer stands.

use jiff::Timestamp;
use jiff::civil::Time;

use crate::config::settings::PeakHours;

/// Is `now` at peak, and up to which instant does nothing change? The instant is later than `now`;
/// it may be one at which nothing changes either, such as midnight.
///
/// Hours are those on the wall: where clocks are turned back an hour of peak comes twice, where they
/// are turned forward it may be missing, as it is for those who read the provider's page.
pub(super) fn at(hours: &PeakHours, now: Timestamp) -> (bool, Timestamp) {
    let offset = hours.time_zone.to_offset(now);
    let local = offset.to_datetime(now);
    let (date, time) = (local.date(), local.time());
    let counts = hours.days.contains(&date.weekday()) && !hours.holidays.contains(&date);
    let within = |&(from, to): &(Time, Time)| from <= time && (time < to || to == Time::midnight());
    let peak = counts && hours.hours.iter().any(within);

    // Up to the next shift of the clocks the offset stays, and edges are found without the zone.
    let edges = hours.hours.iter().flat_map(|&(from, to)| [from, to]);
    let edge = match edges.filter(|edge| *edge > time).min() {
        Some(edge) => Ok(date.to_datetime(edge)),
        None => date
            .tomorrow()
            .map(|date| date.to_datetime(Time::midnight())),
    };
    let edge = edge.and_then(|edge| offset.to_timestamp(edge));
    let edge = edge.unwrap_or(Timestamp::MAX);
    let shift = hours.time_zone.following(now).next();
    let until = shift.map_or(edge, |shift| shift.timestamp().min(edge));
    (peak, until)
}
