//! "Did you mean": the nearest of the names that are allowed, if one is near enough to be meant.

/// Names longer than this, in characters, are not compared.
const MAX_LENGTH: usize = 40;

/// Among more names than this nothing is suggested: it would cost more than it helps.
const MAX_NAMES: usize = 200;

/// The name nearest to `found`: at most two edits away, and fewer for short names.
pub fn nearest<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found: Vec<char> = found.chars().take(MAX_LENGTH + 1).collect();
    if found.len() > MAX_LENGTH {
        return None;
    }
    let tolerated = if found.len() < 4 { 1 } else { 2 };
    let rated = names
        .into_iter()
        .take(MAX_NAMES)
        .filter(|name| name.len() <= MAX_LENGTH);
    let rated = rated.map(|name| (edits(&found, name), name));
    rated
        .filter(|(edits, _)| *edits <= tolerated)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// `; did you mean "x"?`, or nothing.
pub fn hint<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(found, names)
        .map(|name| format!("; did you mean {name:?}?"))
        .unwrap_or_default()
}

/// Insertions, deletions and replacements between the two (Levenshtein), row by row.
fn edits(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, b) in b.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = Vec::with_capacity(row.len());
        next.push(left);
        for (a, above) in a.iter().zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(*a != b);
            left = replaced.min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_what_was_meant() {
        let names = ["id", "models", "enabled", "credentials"];
        assert_eq!(nearest("modles", names), Some("models"));
        assert_eq!(nearest("model", names), Some("models"));
        assert_eq!(nearest("ids", names), Some("id"));
        assert_eq!(nearest("plan", names), None);
        assert_eq!(nearest(&"x".repeat(10_000), names), None);
        assert_eq!(edits(&['k', 'i', 't'], "sitting"), 5);
        assert_eq!(edits(&[], "ab"), 2);
    }
}
