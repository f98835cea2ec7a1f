//! What a rewritten weight gradient is, in 64 bits, and how far 32-bit arithmetic may be from it.
//!
//! The bounds are those of docs/numerics.md, "Error bounds": no estimates, but the worst case over all
//! orders of summation (Higham, *Accuracy and Stability of Numerical Algorithms*, lemma 3.1 and section
//! 3.5). What lies beyond one of them is no rounding error.

use crate::select::Storage;

/// The unit roundoff of 32-bit floats.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// Bound of the relative error of `n` roundings in any order.
pub fn gamma(n: usize) -> f64 {
    let n = n as f64 * UNIT;
    n / (1.0 - n)
}

/// How numbers of a type are rounded when they are stored: relative to the number, and at least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounding {
    /// The unit roundoff, 0 for 32 bits, whose roundings are counted one by one.
    pub unit: f64,
    /// Half the least positive number.
    pub least: f64,
}

impl Rounding {
    /// 16 bits, of which 11 are digits.
    pub const FLOAT16: Rounding = Rounding {
        unit: 1.0 / 2048.0,
        least: 1.0 / (1u64 << 25) as f64,
    };
    /// 16 bits, of which 8 are digits.
    pub const BFLOAT16: Rounding = Rounding {
        unit: 1.0 / 256.0,
        least: f32::MIN_POSITIVE as f64,
    };

    /// The coarser of two.
    pub fn max(self, other: Rounding) -> Rounding {
        match self.unit >= other.unit {
            true => self,
            false => other,
        }
    }

    fn of(self, most: f64) -> f64 {
        self.unit * most + self.least
    }
}

/// A matrix in 64 bits, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Its rows.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// Its elements.
    pub elements: Vec<f64>,
}

impl Matrix {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Matrix {
            rows,
            columns,
            elements: vec![0.0; rows * columns],
        }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.elements[row * self.columns..][..self.columns]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.elements[row * self.columns..][..self.columns]
    }

    /// The transposed matrix.
    pub fn transposed(&self) -> Matrix {
        let mut turned = Matrix::zeros(self.columns, self.rows);
        for row in 0..self.rows {
            for (column, &element) in self.row(row).iter().enumerate() {
                turned.elements[column * self.rows + row] = element;
            }
        }
        turned
    }
}

/// The directions that sub-tokens are projected on: one or several, for all groups or for each.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    /// M, the features in a sub-token.
    pub size: usize,
    /// R, the directions of a group.
    pub rank: usize,
    /// [R, M], or [G, R, M] where each group has its own.
    pub elements: Vec<f64>,
}

impl Directions {
    /// Directions from a tensor `[M]`, [R, M] or [G, R, M]; `None` where it has another rank.
    pub fn new(shape: &[usize], elements: Vec<f64>) -> Option<Self> {
        let (size, rank) = match *shape {
            [size] => (size, 1),
            [rank, size] | [_, rank, size] => (size, rank),
            _ => return None,
        };
        let whole = size > 0 && rank > 0 && elements.len() == shape.iter().product::<usize>();
        whole.then_some(Directions {
            size,
            rank,
            elements,
        })
    }

    /// One direction of one group.
    pub fn of(&self, group: usize, number: usize) -> &[f64] {
        let all = self.elements.len() / (self.rank * self.size);
        let group = if all > 1 { group % all } else { 0 };
        &self.elements[(group * self.rank + number) * self.size..][..self.size]
    }

    /// By how much the directions miss being unit vectors at right angles, and the bound of that: the
    /// squares, the sum and the root of a unit vector that was rounded, once more to its type.
    pub fn from_orthonormal(&self, rounding: Rounding) -> Deviation {
        let mut deviation = Deviation::default();
        for group in 0..self.elements.len() / (self.rank * self.size) {
            for a in 0..self.rank {
                for b in 0..=a {
                    let (first, second) = (self.of(group, a), self.of(group, b));
                    let dot: f64 = first.iter().zip(second).map(|(a, b)| a * b).sum();
                    let error = match a == b {
                        true => (dot.sqrt() - 1.0).abs(),
                        false => dot.abs(),
                    };
                    let bound =
                        gamma(self.size + 6) + 3.0 * rounding.of(1.0) * (self.size as f64).sqrt();
                    deviation.observe(error, bound);
                }
            }
        }
        deviation
    }
}

/// The largest error of some numbers, measured by the bound of each: that of the number whose error is
/// the largest part of its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deviation {
    /// The absolute error.
    pub error: f64,
    /// Its bound.
    pub tolerance: f64,
}

impl Deviation {
    /// That of something that is no such thing at all.
    pub fn beyond() -> Self {
        Deviation {
            error: f64::INFINITY,
            tolerance: 0.0,
        }
    }

    /// Takes another number into account.
    pub fn observe(&mut self, error: f64, tolerance: f64) {
        let part = |error: f64, tolerance: f64| match error == 0.0 {
            true => 0.0,
            // NaN where a number is none, or both are infinite: as bad as it can be.
            false => Some(error / tolerance)
                .filter(|part| !part.is_nan())
                .unwrap_or(f64::INFINITY),
        };
        let unset = (self.error, self.tolerance) == (0.0, 0.0);
        if unset || part(error, tolerance) > part(self.error, self.tolerance) {
            *self = Deviation { error, tolerance };
        }
    }

    /// Whether the error is within its bound.
    pub fn within(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// X [N, D] cut into sub-tokens: number `m` of group `g` of a token, zero where it is padding.
fn feature(token: &[f64], group: usize, size: usize, m: usize) -> f64 {
    token.get(group * size + m).copied().unwrap_or(0.0)
}

/// The normalised mean over all sub-tokens of X, and by element how far 32 bits may be from it.
///
/// The sum over R rows errs by at most e = γ(R + 1)·Σ|sub-token|. The norm moves by at most ‖e‖; squares,
/// sum and root add γ(M + 3), the quotient one rounding. Where ‖e‖ reaches ‖S‖ the data does not
/// determine the direction, and the bounds are infinite.
pub fn mean_direction(x: &Matrix, groups: usize) -> (Vec<f64>, Vec<f64>) {
    let size = x.columns.div_ceil(groups.max(1));
    let (mut sum, mut magnitude) = (vec![0.0; size], vec![0.0; size]);
    for row in 0..x.rows {
        for group in 0..groups {
            for m in 0..size {
                let number = feature(x.row(row), group, size, m);
                sum[m] += number;
                magnitude[m] += number.abs();
            }
        }
    }
    let norm = |vector: &[f64]| vector.iter().map(|e| e * e).sum::<f64>().sqrt();
    let length = norm(&sum);
    if length == 0.0 {
        return even_direction(size);
    }
    let v: Vec<f64> = sum.iter().map(|e| e / length).collect();
    let errors: Vec<f64> = (magnitude.iter())
        .map(|e| gamma(x.rows * groups + 1) * e)
        .collect();
    let doubt = norm(&errors);
    let left = length - doubt;
    if left <= 0.0 || left.is_nan() {
        return (v, vec![f64::INFINITY; size]);
    }
    let bounds = v.iter().zip(&errors).map(|(v, error)| {
        let moved = (error + v.abs() * doubt) / left;
        moved + gamma(size + 4) * (v.abs() + moved)
    });
    let bounds = bounds.collect();
    (v, bounds)
}

/// The direction with all entries equal, and how far 32 bits may be from it.
pub fn even_direction(size: usize) -> (Vec<f64>, Vec<f64>) {
    let entry = 1.0 / (size as f64).sqrt();
    (vec![entry; size], vec![gamma(3) * entry; size])
}

/// Compares z [N, G·R] with the projections of X's sub-tokens: γ(M)·|X||v|, and what its storage adds.
///
/// # Panics
/// Never: a z of another shape deviates without bound.
pub fn compressed(
    x: &Matrix,
    groups: usize,
    v: &Directions,
    z: &Matrix,
    storage: Storage,
    rounding: Rounding,
) -> Deviation {
    let mut deviation = Deviation::default();
    if (z.rows, z.columns) != (x.rows, groups.saturating_mul(v.rank))
        || groups.saturating_mul(v.size) < x.columns
    {
        return Deviation::beyond();
    }
    for row in 0..x.rows {
        let token = x.row(row);
        let mut projections = Vec::with_capacity(z.columns);
        for place in 0..z.columns {
            let (group, number) = (place / v.rank, place % v.rank);
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for (m, &direction) in v.of(group, number).iter().enumerate() {
                let product = feature(token, group, v.size, m) * direction;
                sum += product;
                magnitude += product.abs();
            }
            projections.push((sum, gamma(v.size) * magnitude));
        }
        let largest = projections.iter().map(|(z, bound)| z.abs() + bound);
        let largest = largest.fold(0.0, f64::max);
        for (&is, (wanted, bound)) in z.row(row).iter().zip(projections) {
            let most = wanted.abs() + bound;
            let bound = bound + stored(storage, most, largest) + 2.0 * rounding.of(most);
            deviation.observe((is - wanted).abs(), bound);
        }
    }
    deviation
}

/// How far storage may move a number below `most` in a row of numbers below `largest`: half the distance
/// of two numbers of 11 or 8 binary digits, or of two steps of 127 to the largest; for the last, its scale
/// and the quotient are rounded, too.
fn stored(storage: Storage, most: f64, largest: f64) -> f64 {
    match storage {
        Storage::Activation => 0.0,
        Storage::Float16 => Rounding::FLOAT16.of(most),
        Storage::BFloat16 => Rounding::BFLOAT16.of(most),
        Storage::Int8 => {
            let step = largest / 127.0 + f64::from(f32::MIN_POSITIVE);
            step * (0.5 + gamma(4)) + gamma(4) * most
        }
    }
}

/// What a weight gradient is made from.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// z [N, G·R], as the gradient reads it.
    pub z: &'a Matrix,
    /// dY [N, O].
    pub dy: &'a Matrix,
    /// The directions.
    pub v: &'a Directions,
    /// G.
    pub groups: usize,
    /// D.
    pub features: usize,
    /// The factor on dW.
    pub scale: f64,
    /// How its numbers are stored.
    pub rounding: Rounding,
}

/// Compares a weight gradient [D, O] with `scale · Σₖ v ⊗ (zᵀ dY)`.
///
/// P = zᵀ dY errs by γ(N)·|z|ᵀ|dY|. Expanding it rounds three times (v·P, the scale, the product's own
/// factor), and once more for each further direction; where the numbers are stored in 16 bits, each of
/// these and P are rounded to that as well.
pub fn gradient(parts: &Parts<'_>, is: &Matrix) -> Deviation {
    let (z, dy, v) = (parts.z, parts.dy, parts.v);
    let outputs = dy.columns;
    if !parts.fit() || (is.rows, is.columns) != (parts.features, outputs) {
        return Deviation::beyond();
    }
    let mut deviation = Deviation::default();
    let (p, magnitude) = product(z, dy);
    for feature in 0..parts.features {
        let group = feature / v.size;
        for output in 0..outputs {
            let terms = (0..v.rank).map(|number| {
                let place = (group * v.rank + number) * outputs + output;
                (number, p.elements[place], magnitude.elements[place])
            });
            let (wanted, bound) = parts.expanded(feature, terms);
            deviation.observe((is.row(feature)[output] - wanted).abs(), bound);
        }
    }
    deviation
}

/// Compares the gradient of a scale `[D]` with `scale · Σₖ v ∘ Σₙ z dY`, dY [N, D]; the bounds are those of
/// [`gradient`], with one rounding more in each sum.
pub fn scale_gradient(parts: &Parts<'_>, is: &[f64]) -> Deviation {
    let (z, dy, v) = (parts.z, parts.dy, parts.v);
    if !parts.fit() || dy.columns != parts.features || is.len() != parts.features {
        return Deviation::beyond();
    }
    let mut deviation = Deviation::default();
    for (feature, &is) in is.iter().enumerate() {
        let group = feature / v.size;
        let terms = (0..v.rank).map(|number| {
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for row in 0..z.rows {
                let term = z.row(row)[group * v.rank + number] * dy.row(row)[feature];
                sum += term;
                magnitude += term.abs();
            }
            (number, sum, magnitude)
        });
        let (wanted, bound) = parts.expanded(feature, terms);
        deviation.observe((is - wanted).abs(), bound);
    }
    deviation
}

/// Compares X̂ [N, D] with `Σₖ z ⊗ v`: a product for each direction, and their sum.
pub fn reconstructed(parts: &Parts<'_>, is: &Matrix) -> Deviation {
    let (z, v) = (parts.z, parts.v);
    let fits = parts.fit() && (is.rows, is.columns) == (z.rows, parts.features);
    if !fits {
        return Deviation::beyond();
    }
    let mut deviation = Deviation::default();
    for row in 0..z.rows {
        for (feature, &is) in is.row(row).iter().enumerate() {
            let (group, m) = (feature / v.size, feature % v.size);
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for number in 0..v.rank {
                let term = z.row(row)[group * v.rank + number] * v.of(group, number)[m];
                sum += term;
                magnitude += term.abs();
            }
            let bound = gamma(v.rank) * magnitude + 2.0 * parts.rounding.of(magnitude);
            deviation.observe((is - sum).abs(), bound);
        }
    }
    deviation
}

impl Parts<'_> {
    fn fit(&self) -> bool {
        let (z, v) = (self.z, self.v);
        (z.rows, z.columns) == (self.dy.rows, self.groups.saturating_mul(v.rank))
            && self.features <= self.groups.saturating_mul(v.size)
    }

    /// One number of a gradient from its sums over tokens (the direction, P, and the sum of magnitudes), and
    /// its bound.
    fn expanded(
        &self,
        feature: usize,
        terms: impl Iterator<Item = (usize, f64, f64)>,
    ) -> (f64, f64) {
        let v = self.v;
        let (group, m) = (feature / v.size, feature % v.size);
        let in_sum = gamma(self.z.rows + 1);
        let rest = gamma(v.rank + 2) + 5.0 * self.rounding.unit;
        let (mut sum, mut bound) = (0.0, 0.0);
        for (number, p, magnitude) in terms {
            let direction = v.of(group, number)[m];
            let error = in_sum * magnitude;
            sum += direction * p;
            bound += direction.abs() * ((1.0 + rest) * error + rest * p.abs());
        }
        let least = 5.0 * self.rounding.least * (1.0 + self.scale.abs());
        (self.scale * sum, self.scale.abs() * bound + least)
    }
}

/// Aᵀ B of [N, I] and [N, J], and |A|ᵀ|B|.
fn product(a: &Matrix, b: &Matrix) -> (Matrix, Matrix) {
    let mut sum = Matrix::zeros(a.columns, b.columns);
    let mut magnitude = Matrix::zeros(a.columns, b.columns);
    for row in 0..a.rows {
        let right = b.row(row);
        for (column, &left) in a.row(row).iter().enumerate() {
            let sums = sum.row_mut(column).iter_mut();
            let magnitudes = magnitude.row_mut(column).iter_mut();
            for ((sum, magnitude), &right) in sums.zip(magnitudes).zip(right) {
                *sum += left * right;
                *magnitude += (left * right).abs();
            }
        }
    }
    (sum, magnitude)
}

#[cfg(test)]
mod tests;
