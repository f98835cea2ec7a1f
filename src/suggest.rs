//! Names near a name that is not there, for messages.

/// Most names that a message lists.
const SHOWN: usize = 3;

/// The names nearest to `wanted` by edit distance, nearest first, at most three.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let distance = |name: &'a str| (strsim::damerau_levenshtein(wanted, name), name);
    let mut names: Vec<_> = names.into_iter().map(distance).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .take(SHOWN)
        .map(|(_, name)| name)
        .collect()
}
