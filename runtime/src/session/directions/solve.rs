//! Directions from sums and moments of sub-tokens, in 64 bits.

use super::{Kind, Unfilled};
use nalgebra::{DMatrix, SymmetricEigen};

/// What was measured of one activation, summed over batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments(Vec<f64>);

impl Moments {
    /// Adds the measurement of a batch.
    pub fn add(&mut self, batch: &[f32]) {
        self.0.resize(batch.len(), 0.0);
        for (sum, entry) in self.0.iter_mut().zip(batch) {
            *sum += f64::from(*entry);
        }
    }

    /// What [`super::measuring`] measures of a batch, in 64 bits; `rows` are the tokens, D numbers each.
    pub fn of<'a>(direction: &Unfilled, rows: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let size = direction.size();
        let square = size * size;
        let mut found = match direction.kind {
            Kind::Mean => vec![0.0; direction.features],
            Kind::Singular => vec![0.0; direction.sets() * square],
        };
        for row in rows {
            if direction.kind == Kind::Mean {
                found.iter_mut().zip(row).for_each(|(sum, e)| *sum += e);
                continue;
            }
            // The last one may be shorter: what is missing is padding.
            for (group, sub_token) in row.chunks(size.max(1)).enumerate() {
                let set = if direction.by_group() { group } else { 0 };
                let Some(moments) = found.get_mut(set * square..(set + 1) * square) else {
                    continue;
                };
                for (sums, left) in moments.chunks_mut(size).zip(sub_token) {
                    let sums = sums.iter_mut().zip(sub_token);
                    sums.for_each(|(sum, right)| *sum += left * right);
                }
            }
        }
        Moments(found)
    }
}

/// An activation that is no number somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

/// The directions, in the order of the constant's elements: unit vectors, orthogonal within a set.
///
/// Of a mean whose norm is below the least normal 32-bit number, all entries are 1/√M. A singular vector
/// points to where its entry of largest magnitude is positive; which vector is meant is not determined
/// where singular values are equal.
///
/// # Errors
/// [`NotFinite`] where the measurement is no number.
pub fn solve(direction: &Unfilled, moments: &Moments) -> Result<Vec<f32>, NotFinite> {
    if !moments.0.iter().all(|e| e.is_finite()) {
        return Err(NotFinite);
    }
    let (size, sets) = (direction.size(), direction.sets());
    let mut found = Vec::with_capacity(direction.shape.iter().product());
    match direction.kind {
        Kind::Mean => {
            for set in 0..sets {
                let mut sum = vec![0.0; size];
                let own = |group: usize| !direction.by_group() || group == set;
                for (group, sub_token) in moments.0.chunks(size).enumerate() {
                    if own(group) {
                        sum.iter_mut().zip(sub_token).for_each(|(s, e)| *s += e);
                    }
                }
                unit(&mut sum);
                found.extend(sum);
            }
        }
        Kind::Singular => {
            for set in moments.0.chunks(size * size).take(sets) {
                leading_eigenvectors(set, size, direction.rank(), &mut found);
            }
        }
    }
    Ok(found.into_iter().map(|e| e as f32).collect())
}

fn unit(vector: &mut [f64]) {
    let norm = vector.iter().map(|e| e * e).sum::<f64>().sqrt();
    let even = 1.0 / (vector.len() as f64).sqrt();
    for entry in vector {
        *entry = match norm < f64::from(f32::MIN_POSITIVE) {
            true => even,
            false => *entry / norm,
        };
    }
}

/// Appends the eigenvectors of the moments with the largest eigenvalues, the first right singular vectors of
/// what was measured: unit vectors, of which the entry of largest magnitude is positive.
///
/// `moments` is a symmetric matrix of `size` rows, all of its entries finite.
pub fn leading_eigenvectors(moments: &[f64], size: usize, rank: usize, found: &mut Vec<f64>) {
    let solved = SymmetricEigen::new(DMatrix::from_row_slice(size, size, moments));
    let mut order: Vec<usize> = (0..size).collect();
    // Equal ones keep their order.
    order.sort_by(|&a, &b| solved.eigenvalues[b].total_cmp(&solved.eigenvalues[a]));
    for &place in order.iter().take(rank) {
        let vector = solved.eigenvectors.column(place);
        let largest = { vector.iter() }.fold(0.0f64, |largest, &entry| {
            match entry.abs() > largest.abs() {
                true => entry,
                false => largest,
            }
        });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        found.extend(vector.iter().map(|entry| sign * entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(kind: Kind, shape: &[usize], features: usize, groups: usize) -> Unfilled {
        Unfilled {
            name: "v".to_owned(),
            shape: shape.to_vec(),
            kind,
            input: "x".to_owned(),
            features,
            groups,
        }
    }

    /// The sums and products that [`super::super::measuring`] describes, of a batch of two tokens.
    #[test]
    fn moments_are_those_of_the_sub_tokens() {
        let rows = [[1.0, 2.0, 3.0], [-4.0, 5.0, 6.0]];
        let of = |kind, shape: &[usize]| {
            Moments::of(
                &direction(kind, shape, 3, 2),
                rows.iter().map(|row| &row[..]),
            )
            .0
        };
        assert_eq!(of(Kind::Mean, &[2]), [-3.0, 7.0, 9.0]);
        // Sub-tokens 1 2, 3 _, -4 5, 6 _.
        assert_eq!(of(Kind::Singular, &[2]), [62.0, -18.0, -18.0, 29.0]);
        let own = [17.0, -18.0, -18.0, 29.0, 45.0, 0.0, 0.0, 0.0];
        assert_eq!(of(Kind::Singular, &[2, 1, 2]), own);
    }

    fn moments(batch: &[f32]) -> Moments {
        let mut moments = Moments::default();
        moments.add(batch);
        moments
    }

    #[test]
    fn a_mean_sums_the_sub_tokens() {
        // Five features in two groups of three: 1 2 3 and 4 5 _.
        let sums = moments(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let v = solve(&direction(Kind::Mean, &[3], 5, 2), &sums).unwrap_or_default();
        let norm = (25.0f64 + 49.0 + 9.0).sqrt();
        assert_eq!(v, [5.0, 7.0, 3.0].map(|e: f64| (e / norm) as f32));
        let own = solve(&direction(Kind::Mean, &[2, 1, 3], 5, 2), &sums).unwrap_or_default();
        let norm = 41.0f64.sqrt();
        assert_eq!(own[3..], [4.0, 5.0, 0.0].map(|e: f64| (e / norm) as f32));
    }

    #[test]
    fn a_mean_of_zeros_is_even() {
        let v = solve(&direction(Kind::Mean, &[4], 4, 1), &moments(&[0.0; 4]));
        assert_eq!(v, Ok(vec![0.5; 4]));
    }

    #[test]
    fn singular_vectors_come_largest_first() {
        // Sub-tokens 3·(0.6, 0.8) and 1·(-0.8, 0.6).
        let sum = moments(&[
            0.36 * 9.0 + 0.64,
            0.48 * 9.0 - 0.48,
            0.48 * 9.0 - 0.48,
            0.64 * 9.0 + 0.36,
        ]);
        let v = solve(&direction(Kind::Singular, &[2, 2], 4, 2), &sum).unwrap_or_default();
        for (found, wanted) in v.iter().zip([0.6, 0.8, 0.8, -0.6]) {
            assert!((found - wanted).abs() < 1e-6, "{v:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let v = solve(&direction(Kind::Mean, &[1], 1, 1), &moments(&[f32::NAN]));
        assert_eq!(v, Err(NotFinite));
    }
}
