//! How much of a line each class of priority may fill, so that the lowest is turned away first.

use crate::config::settings::Priority;

/// Half of the line is kept from low: what is not urgent can come back, and a crowd of it is not in
/// the way of what is.
const KEPT_FROM_LOW: usize = 2;
/// A fifth of it is kept from normal, which is what most are: room for high without a wait for
/// others to leave.
const KEPT_FROM_NORMAL: usize = 5;

/// How long the line may be for one more of this class; a line of one is open to all.
pub(super) fn of(max_length: usize, priority: Priority) -> usize {
    match priority {
        Priority::High => max_length,
        Priority::Normal => max_length - max_length / KEPT_FROM_NORMAL,
        Priority::Low => max_length - max_length / KEPT_FROM_LOW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_a_class_the_less_of_the_line_it_fills() {
        let classes = [Priority::High, Priority::Normal, Priority::Low];
        for (max_length, most) in [
            (0, [0, 0, 0]),
            (1, [1, 1, 1]),
            (2, [2, 2, 1]),
            (6, [6, 5, 3]),
            (1_000, [1_000, 800, 500]),
        ] {
            assert_eq!(classes.map(|class| of(max_length, class)), most);
        }
    }
}
