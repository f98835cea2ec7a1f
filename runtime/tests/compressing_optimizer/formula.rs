//! The formulas of both papers, as plainly as they can be written, in double precision; and how far single
//! precision may be from them.

use super::{RATE, SCALE};
use nalgebra::DMatrix;
use velora_runtime::random;
use velora_runtime::session::optimizer::Optimizer;

/// The relative error of one rounding.
const ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// A weight after some steps, and the greatest error of single precision, entry by entry in rows.
pub struct Expected {
    pub weight: Vec<f64>,
    pub bound: Vec<f64>,
}

pub fn start(shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product::<usize>() as u64;
    (0..count).map(|i| random::normal(1, 1, i) as f32).collect()
}

/// Gradients whose singular values are far apart, each half of the one before, so that their vectors are
/// determined.
pub fn gradient(shape: &[usize], step: u64) -> Vec<f32> {
    let &[rows, columns] = shape else {
        let count = shape.iter().product::<usize>() as u64;
        let draw = |i| random::normal(2, step, i) as f32;
        return (0..count).map(draw).collect();
    };
    let side = rows.min(columns);
    let draw = |stream: u64| {
        move |i: usize, j: usize| random::normal(3 + stream, step, (i * 1000 + j) as u64)
    };
    let left = DMatrix::from_fn(rows, side, draw(0));
    let right = DMatrix::from_fn(side, columns, draw(1));
    let values = DMatrix::from_fn(side, side, |i, j| match i == j {
        true => 0.5f64.powi(i as i32),
        false => 0.0,
    });
    in_rows(&(left * values * right))
        .iter()
        .map(|&g| g as f32)
        .collect()
}

fn in_rows(matrix: &DMatrix<f64>) -> Vec<f64> {
    matrix.transpose().as_slice().to_vec()
}

/// A tensor as a matrix: what is none is a column.
fn matrix(shape: &[usize], entries: &[f32]) -> DMatrix<f64> {
    let (rows, columns) = match shape {
        &[rows, columns] => (rows, columns),
        _ => (entries.len(), 1),
    };
    let entries: Vec<f64> = entries.iter().map(|&e| e.into()).collect();
    DMatrix::from_row_slice(rows, columns, &entries)
}

/// The weight and the gradient's scale, as the formulas have them, with the smaller side in the rows.
struct Course {
    shape: Vec<usize>,
    turned: bool,
    projected: bool,
    weight: DMatrix<f64>,
}

impl Course {
    fn new(shape: &[usize], rank: u64, projected: bool) -> Course {
        let weight = matrix(shape, &start(shape));
        let matrix = shape.len() == 2;
        let turned = matrix && shape[0] >= shape[1];
        let smaller = weight.nrows().min(weight.ncols());
        Course {
            shape: shape.to_vec(),
            turned,
            projected: projected && matrix && smaller > rank as usize,
            weight: if turned { weight.transpose() } else { weight },
        }
    }

    fn gradient(&self, step: u64) -> DMatrix<f64> {
        let gradient = matrix(&self.shape, &gradient(&self.shape, step)) * SCALE;
        if self.turned {
            gradient.transpose()
        } else {
            gradient
        }
    }

    fn finish(self, bound: DMatrix<f64>) -> Expected {
        let back = |matrix: DMatrix<f64>| match self.turned {
            true => in_rows(&matrix.transpose()),
            false => in_rows(&matrix),
        };
        Expected {
            bound: back(bound),
            weight: back(self.weight.clone()),
        }
    }
}

/// The first left singular vectors, in rows; the entry of largest magnitude is positive.
fn singular(gradient: &DMatrix<f64>, rank: usize) -> DMatrix<f64> {
    let svd = gradient.clone().svd(true, false);
    let vectors = svd.u.unwrap();
    let mut order: Vec<usize> = (0..svd.singular_values.len()).collect();
    order.sort_by(|&a, &b| svd.singular_values[b].total_cmp(&svd.singular_values[a]));
    DMatrix::from_fn(rank, gradient.nrows(), |r, i| {
        let vector = vectors.column(order[r]);
        let largest = vector[vector.iamax()];
        vector[i] * largest.signum()
    })
}

/// GaLore. The bound: a compressed gradient is a sum of s products of which each factor was rounded, so that
/// its error is at most (s + 4) roundings of the sum of magnitudes; Adam's quotient m / (√v + ε), with
/// |m| ≤ 4 √v in so few steps, changes by at most 5 / ε of that, and 10 roundings of its own, of numbers up
/// to 4; the way back is a sum of R products. Whatever a step adds is rounded with the weight.
pub fn galore(optimizer: &Optimizer, shape: &[usize], projected: bool, steps: u64) -> Expected {
    let &Optimizer::GaLore {
        rank,
        update_period,
        scale,
        betas,
        epsilon,
        weight_decay,
    } = optimizer
    else {
        panic!("{optimizer:?}");
    };
    let mut course = Course::new(shape, rank, projected);
    let (s, n) = course.weight.shape();
    let mut p = DMatrix::identity(s, s);
    let small = if course.projected { rank as usize } else { s };
    let mut mean = DMatrix::zeros(small, n);
    let mut square = DMatrix::zeros(small, n);
    let mut bound = DMatrix::zeros(s, n);
    let mut error = DMatrix::zeros(small, n);
    for t in 1..=steps {
        let g = course.gradient(t);
        if course.projected && (t - 1) % update_period == 0 {
            p = singular(&g, rank as usize);
        }
        let low = &p * &g;
        mean = &mean * betas[0] + &low * (1.0 - betas[0]);
        square = &square * betas[1] + low.component_mul(&low) * (1.0 - betas[1]);
        let corrected = |x: &DMatrix<f64>, beta: f64| x / (1.0 - beta.powi(t as i32));
        let (m, v) = (corrected(&mean, betas[0]), corrected(&square, betas[1]));
        let direction = m.zip_map(&v, |m, v| m / (v.sqrt() + epsilon));
        let scale = if course.projected { scale } else { 1.0 };
        course.weight = &course.weight * (1.0 - RATE * weight_decay)
            - p.transpose() * &direction * RATE * scale;

        let terms = if course.projected { s as f64 } else { 1.0 };
        let fresh = p.abs() * g.abs() * ((terms + 4.0) * ROUNDOFF);
        // Of all steps so far: means do not exceed the greatest.
        error = error.zip_map(&fresh, f64::max);
        let quotient = error.map(|error| 5.0 * error / epsilon + 40.0 * ROUNDOFF);
        let back = direction.abs() * ((small as f64 + 4.0) * ROUNDOFF);
        bound += p.transpose().abs() * (quotient + back) * RATE * scale;
        bound += course.weight.abs() * (4.0 * ROUNDOFF);
    }
    course.finish(bound)
}

/// FLORA's projection, `[R, s]`: normal with variance 1 / R, numbers of the parameter's stream.
fn projection(rank: usize, side: usize, seed: u64, number: u64) -> DMatrix<f64> {
    let stream = random::stream("FLORA's projection", b"w");
    DMatrix::from_fn(rank, side, |r, i| {
        let index = (number << 40) + (r * side + i) as u64;
        random::normal(seed, stream, index) / (rank as f64).sqrt()
    })
}

/// FLORA. The bound is one of Frobenius norms, since magnitudes alone would grow with each change of the
/// projection far more than the moment does: a product A B of which both factors are exact errs by the number of
/// roundings, at most 2 (s + R) + 40 here with all that made its factors, of ‖A‖ ‖B‖, and an error of B by the
/// spectral norm of A. The root mean square that clips errs by as much as what it is of.
pub fn flora(optimizer: &Optimizer, shape: &[usize], projected: bool, steps: u64) -> Expected {
    let &Optimizer::Flora {
        rank,
        update_period,
        beta,
        weight_decay,
        seed,
    } = optimizer
    else {
        panic!("{optimizer:?}");
    };
    let mut course = Course::new(shape, rank, projected);
    let (s, n) = course.weight.shape();
    let rank = rank as usize;
    let small = if course.projected { rank } else { s };
    let mut mean = DMatrix::zeros(small, n);
    // Of the moment.
    let mut error = 0f64;
    let (mut row, mut column) = (vec![0.0; s], vec![0.0; n]);
    let mut square = DMatrix::zeros(s, n);
    let mut bound = DMatrix::zeros(s, n);
    let mut a = projection(rank, s, seed, 0);
    let rounding = (2 * (s + rank) + 40) as f64 * ROUNDOFF;
    for t in 1..=steps {
        let g = course.gradient(t);
        let fresh = (t as f64).powf(-0.8);
        let squared = g.map(|g| g * g + 1e-30);
        let renew = |kept: &mut f64, new: f64| *kept = (1.0 - fresh) * *kept + fresh * new;
        let update = if shape.len() == 2 {
            for (i, kept) in row.iter_mut().enumerate() {
                renew(kept, squared.row(i).mean());
            }
            for (j, kept) in column.iter_mut().enumerate() {
                renew(kept, squared.column(j).mean());
            }
            // The mean over either side is that of all squares: orientation does not matter.
            let all = row.iter().sum::<f64>() / s as f64;
            DMatrix::from_fn(s, n, |i, j| g[(i, j)] / (row[i] * column[j] / all).sqrt())
        } else {
            square = square * (1.0 - fresh) + squared * fresh;
            g.zip_map(&square, |g, v| g / v.sqrt())
        };
        // Of the update: quotients of the gradient by roots of means, all of them sums without cancellation.
        let fresh = (rounding + t as f64 * 4.0 * ROUNDOFF) * update.norm();
        let spectral = |matrix: &DMatrix<f64>| matrix.singular_values().max();
        let (step, off) = if course.projected {
            let step = &update * (1.0 - beta) + a.transpose() * &mean * beta;
            let off = (1.0 - beta) * fresh
                + beta * (spectral(&a) * error + rounding * a.norm() * mean.norm());
            if t % update_period == 0 {
                let next = projection(rank, s, seed, t / update_period);
                let transfer = &next * a.transpose();
                error = spectral(&transfer) * error
                    + 2.0 * rounding * next.norm() * a.norm() * mean.norm();
                mean = transfer * mean;
                a = next;
            }
            error = beta * (error + rounding * mean.norm())
                + (1.0 - beta) * (spectral(&a) * fresh + rounding * a.norm() * update.norm());
            mean = mean * beta + &a * &update * (1.0 - beta);
            (step, off)
        } else {
            error = beta * error + (1.0 - beta) * fresh + rounding * mean.norm();
            mean = mean * beta + &update * (1.0 - beta);
            (mean.clone(), error)
        };
        let rms = |x: &DMatrix<f64>| (x.norm_squared() / x.len() as f64).sqrt();
        let over = rms(&step).max(1.0);
        course.weight = &course.weight * (1.0 - RATE * weight_decay) - &step * (RATE / over);

        let clip = (off / step.norm() + rounding) * step.abs();
        bound += clip.map(|clip| (clip + off) * RATE / over);
        bound += course.weight.abs() * (4.0 * ROUNDOFF);
    }
    course.finish(bound)
}
