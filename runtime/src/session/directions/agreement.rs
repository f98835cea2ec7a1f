//! How near directions are to those that a batch gives.

use super::{Kind, Unfilled};
use nalgebra::DMatrix;

/// The cosine of the angle between directions and those that [`super::solve()`] found, in 64 bits; the least
/// of all groups where each has its own.
///
/// A singular vector is as good as its opposite, so that the sign does not count there. Several directions
/// are compared by what they span: which of two singular vectors comes first may be a matter of rounding.
/// Theirs is the cosine of the largest principal angle.
///
/// `None` where a direction is zero or no number, or the sizes differ.
pub fn agreement(direction: &Unfilled, is: &[f64], solved: &[f32]) -> Option<f64> {
    let (size, rank) = (direction.size(), direction.rank());
    let count = direction.shape.iter().product::<usize>();
    if count == 0 || is.len() != count || solved.len() != count {
        return None;
    }
    let solved: Vec<f64> = solved.iter().map(|&e| f64::from(e)).collect();
    let mut least = f64::INFINITY;
    for (is, solved) in is.chunks(rank * size).zip(solved.chunks(rank * size)) {
        let (is, solved) = (units(is, rank, size)?, units(solved, rank, size)?);
        let products = is * solved.transpose();
        let cosine = match (rank, direction.kind) {
            (1, Kind::Mean) => products.iter().copied().next()?,
            (1, Kind::Singular) => products.iter().copied().next()?.abs(),
            _ => products
                .singular_values()
                .iter()
                .copied()
                .fold(1.0, f64::min),
        };
        least = least.min(cosine);
    }
    Some(least.clamp(-1.0, 1.0))
}

/// Vectors of length 1, one in each row.
fn units(elements: &[f64], rank: usize, size: usize) -> Option<DMatrix<f64>> {
    if elements.len() != rank * size {
        return None;
    }
    let mut matrix = DMatrix::from_row_slice(rank, size, elements);
    for mut row in matrix.row_iter_mut() {
        let norm = row.norm();
        if !norm.is_normal() {
            return None;
        }
        row /= norm;
    }
    Some(matrix)
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

    fn near(found: Option<f64>, wanted: f64) {
        assert!(
            found.is_some_and(|f| (f - wanted).abs() < 1e-12),
            "{found:?}, expected {wanted}"
        );
    }

    #[test]
    fn one_direction_has_a_cosine() {
        let mean = direction(Kind::Mean, &[2], 4, 2);
        near(agreement(&mean, &[3.0, 4.0], &[1.0, 0.0]), 0.6);
        near(agreement(&mean, &[-3.0, 4.0], &[1.0, 0.0]), -0.6);
        let singular = direction(Kind::Singular, &[2], 4, 2);
        near(agreement(&singular, &[-3.0, 4.0], &[1.0, 0.0]), 0.6);
    }

    #[test]
    fn the_least_of_the_groups_counts() {
        let own = direction(Kind::Mean, &[2, 1, 2], 4, 2);
        near(
            agreement(&own, &[1.0, 0.0, 3.0, 4.0], &[1.0, 0.0, 1.0, 0.0]),
            0.6,
        );
    }

    #[test]
    fn several_directions_are_compared_by_their_span() {
        let pair = direction(Kind::Singular, &[2, 3], 6, 2);
        let solved = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        near(
            agreement(&pair, &[0.0, -1.0, 0.0, 1.0, 0.0, 0.0], &solved),
            1.0,
        );
        // One of the two is turned out of the plane.
        near(
            agreement(&pair, &[1.0, 0.0, 0.0, 0.0, 0.6, 0.8], &solved),
            0.6,
        );
    }

    #[test]
    fn what_is_no_direction_has_none() {
        let mean = direction(Kind::Mean, &[2], 4, 2);
        for is in [vec![0.0, 0.0], vec![f64::NAN, 1.0], vec![1.0]] {
            assert_eq!(agreement(&mean, &is, &[1.0, 0.0]), None);
        }
    }
}
