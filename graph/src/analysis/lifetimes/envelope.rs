//! Which of many expressions can be their maximum.

use crate::dim::Dim;
use std::collections::BTreeMap;

/// Those that no other one is never below. Takes a comparison for each pair.
pub fn undominated(expressions: Vec<Dim>) -> Vec<Dim> {
    let mut kept: Vec<Dim> = Vec::new();
    for expression in expressions {
        if !kept.iter().any(|k| k.dominates(&expression)) {
            kept.retain(|k| !expression.dominates(k));
            kept.push(expression);
        }
    }
    kept
}

/// Those that are the maximum somewhere, of expressions a·s + b in one symbol s ≥ 0: the upper envelope of lines, by
/// their slopes. `None` where an expression has another form.
pub fn of_lines(expressions: &[Dim]) -> Option<Vec<Dim>> {
    let mut symbols = expressions.iter().flat_map(Dim::symbols);
    let symbol = symbols.next()?;
    if symbols.any(|other| other != symbol) {
        return None;
    }
    let value = |expression: &Dim, at| expression.eval(&BTreeMap::from([(symbol.clone(), at)]));
    let mut lines = Vec::with_capacity(expressions.len());
    for expression in expressions {
        let start = value(expression, 0)?;
        let slope = value(expression, 1)?.checked_sub(start)?;
        let line = Dim::from(slope) * Dim::symbol(&symbol) + Dim::from(start);
        if line != *expression {
            return None;
        }
        lines.push((slope, start, expression));
    }
    lines.sort_by_key(|&(slope, start, _)| (slope, start));
    let mut kept: Vec<(i64, i64, &Dim)> = Vec::new();
    for line in lines {
        // Lines before it that are not above it at 0 are nowhere above it.
        while kept.last().is_some_and(|last| last.1 <= line.1) {
            kept.pop();
        }
        while let [.., before, last] = kept[..]
            && is_below(last, before, line)
        {
            kept.pop();
        }
        kept.push(line);
    }
    Some(kept.into_iter().map(|(_, _, line)| line.clone()).collect())
}

/// Whether a line is nowhere above the higher of two, of which one has a smaller slope and one a larger.
///
/// Where `before` and `after` meet, at s = (b₁ - b₃) / (a₃ - a₁), the line is a₂ s + b₂.
fn is_below(line: (i64, i64, &Dim), before: (i64, i64, &Dim), after: (i64, i64, &Dim)) -> bool {
    let [(a1, b1), (a2, b2), (a3, b3)] =
        [before, line, after].map(|(slope, start, _)| (i128::from(slope), i128::from(start)));
    // Factors have 65 bits at most; where a product does not fit, the line stays, which is no error.
    let rise = (a2 - a1).checked_mul(b1 - b3);
    let fall = (b1 - b2).checked_mul(a3 - a1);
    matches!((rise, fall), (Some(rise), Some(fall)) if rise <= fall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Vec<Dim> {
        texts.iter().map(|text| Dim::parse(text)).collect()
    }

    #[test]
    fn lines_that_are_never_the_highest_go() {
        // They meet at 2, 6 and 20; the second passes below where the first and the third meet.
        let lines = parsed(&[
            "10",
            "batch + 4",
            "2*batch + 6",
            "3*batch",
            "4*batch - 20",
            "batch",
        ]);
        let kept = of_lines(&lines).unwrap_or_default();
        assert_eq!(
            kept,
            parsed(&["10", "2*batch + 6", "3*batch", "4*batch - 20"])
        );
    }

    #[test]
    fn three_lines_through_one_point_are_two() {
        let lines = parsed(&["6", "batch + 3", "2*batch"]);
        assert_eq!(of_lines(&lines), Some(parsed(&["6", "2*batch"])));
    }

    #[test]
    fn the_maximum_is_that_of_all_lines() {
        let mut bits = 1u64;
        let mut number = |below: u64| {
            bits = bits
                .wrapping_mul(0x5851_F42D_4C95_7F2D)
                .wrapping_add(0x1405_7B7E_F767_814F);
            ((bits >> 33) % below) as i64
        };
        for _ in 0..200 {
            let line = |a: i64, b: i64| Dim::from(a) * Dim::parse("s") + Dim::from(b);
            let lines: Vec<Dim> = (0..12).map(|_| line(1 + number(20), number(60))).collect();
            let kept = of_lines(&lines).unwrap_or_default();
            for at in 0..40 {
                let sizes = BTreeMap::from([("s".into(), at)]);
                let highest = |lines: &[Dim]| lines.iter().filter_map(|l| l.eval(&sizes)).max();
                assert_eq!(highest(&kept), highest(&lines), "{lines:?} at {at}");
            }
        }
    }

    #[test]
    fn other_forms_are_compared_in_pairs() {
        for other in ["s*s", "s + t", "Max(s, 4)"] {
            assert_eq!(of_lines(&parsed(&["s", other])), None, "{other}");
        }
        assert_eq!(of_lines(&parsed(&["4"])), None);
        let kept = undominated(parsed(&["s", "s + t", "s*s"]));
        assert_eq!(kept, parsed(&["s + t", "s*s"]));
    }
}
