//! Operators that read or write where integers say.

use super::Tensor;

/// Rows of a table: `table[ids]`, [count, ...] and [...] to [..., ...].
pub(super) fn rows(table: &Tensor, ids: &Tensor) -> Tensor {
    let size: usize = table.shape[1..].iter().product();
    let entries = ids.i().iter().flat_map(|&id| {
        let start = id as usize * size;
        table.f()[start..start + size].iter().copied()
    });
    let shape = [&ids.shape[..], &table.shape[1..]].concat();
    Tensor::floats(&shape, entries.collect())
}

/// GatherElements along the last axis.
pub(super) fn elements(x: &Tensor, places: &Tensor) -> Tensor {
    let entries = along_last(x, places).map(|at| x.f()[at]);
    Tensor::floats(&places.shape, entries.collect())
}

/// ScatterElements along the last axis, added; `round` rounds each sum.
pub(super) fn add_elements(
    x: &Tensor,
    places: &Tensor,
    updates: &Tensor,
    round: impl Fn(f64) -> f64,
) -> Tensor {
    let mut entries = x.f().to_vec();
    for (at, update) in along_last(x, places).zip(updates.f()) {
        entries[at] = round(entries[at] + update);
    }
    Tensor::floats(&x.shape, entries)
}

/// ScatterND of whole rows, added; `round` rounds each sum.
pub(super) fn add_rows(
    x: &Tensor,
    ids: &Tensor,
    updates: &Tensor,
    round: impl Fn(f64) -> f64,
) -> Tensor {
    assert_eq!(ids.shape.last(), Some(&1), "one index for each row");
    let size: usize = x.shape[1..].iter().product();
    let mut entries = x.f().to_vec();
    for (&id, row) in ids.i().iter().zip(updates.f().chunks(size)) {
        let start = id as usize * size;
        for (entry, update) in entries[start..start + size].iter_mut().zip(row) {
            *entry = round(*entry + update);
        }
    }
    Tensor::floats(&x.shape, entries)
}

/// Where in `x` each place along the last axis is; the leading axes are the same.
fn along_last<'a>(x: &Tensor, places: &'a Tensor) -> impl Iterator<Item = usize> + 'a {
    let [width, each] = [x, places].map(|t| t.shape.last().copied().unwrap_or(1));
    let places = places.i().iter().enumerate();
    places.map(move |(index, &place)| index / each * width + place as usize)
}
