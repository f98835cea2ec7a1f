//! What the outputs of an operation may be, given its inputs.
//!
//! Most operations are sums of products of their inputs. Their exact result is what the same kernel gives in
//! 64 bits, and the error of any order of summation in a format of unit u is at most γ(n) Σ |terms|, where n
//! counts the roundings that a term goes through, and the sum is what the kernel gives for absolute values.

use super::Precision;
use super::ball::{Ball, Format};
use super::{expression, functions, loss, normalize, recurrent, unit_vectors};
use crate::backend::StepContext;
use crate::cpu::Cpu;
use crate::cpu::apart::{Held, integers};
use crate::ops::Op;
use crate::ops::accumulate::Accumulate;
use crate::ops::directions::Directions;
use crate::ops::elementwise::{Elementwise, Unary};
use crate::ops::index::{Index, Reduction};
use crate::ops::matmul::MatMul;
use crate::ops::movement::{Movement, Range};
use crate::ops::random::{Distribution, Random};
use crate::ops::reduce::{Fold, Kind, Reduce};
use crate::ops::velora::Velora;
use crate::ops::window::{self, Window};
use crate::tensor::TensorType;
use velora_graph::shapes::DataType;

/// What an output may be.
pub(super) enum Allowed {
    /// What the CPU writes, bit for bit but for the bits of what is no number.
    Same,
    /// By element: what implementations may get. A ball of radius 0 is the CPU's element, whatever its middle.
    Near(Vec<Ball>),
}

/// One execution of an operation, and what the CPU made of the same inputs.
pub(super) struct Case<'c> {
    /// Executes operations.
    pub cpu: &'c Cpu,
    /// What was done.
    pub op: &'c Op,
    /// What was read.
    pub inputs: &'c [Option<Held>],
    /// The types of what was written.
    pub outputs: &'c [Option<TensorType>],
    /// What the CPU wrote.
    pub written: &'c [Option<Held>],
    /// What random numbers depend on.
    pub context: StepContext,
    /// How the device computes.
    pub precision: Precision,
}

impl Case<'_> {
    /// An input.
    ///
    /// # Errors
    /// Where it is absent.
    pub fn input(&self, place: usize) -> Result<&Held, String> {
        let input = self.inputs.get(place).and_then(Option::as_ref);
        input.ok_or_else(|| "an operand is missing".to_owned())
    }

    /// The numbers of an input; none where it is absent.
    pub fn numbers(&self, place: usize) -> Option<Vec<f64>> {
        Some(self.inputs.get(place)?.as_ref()?.to_f64())
    }

    /// What the elements of an output are stored in.
    pub fn format(&self, output: usize) -> Option<Format> {
        Format::of(self.outputs.get(output)?.as_ref()?.data_type)
    }

    /// What is computed in: what outputs of real numbers are.
    pub fn computing(&self) -> Format {
        let mut types = self.outputs.iter().flatten().map(|ty| ty.data_type);
        let real = types.find(|ty| ty.is_float());
        Format::computing(real.unwrap_or(DataType::FLOAT))
    }

    /// What the CPU makes of the inputs in 64 bits after `change`, with an operation that may differ.
    fn wide(&self, op: &Op, change: fn(f64) -> f64) -> Result<Vec<Option<Held>>, String> {
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for input in self.inputs {
            inputs.push(match input {
                Some(input) if input.ty.data_type.is_float() => {
                    let numbers = input.to_f64().into_iter().map(change);
                    let wide = Held::of_f64(&input.ty.shape, numbers);
                    Some(wide.ok_or("there is no memory to check it")?)
                }
                Some(input) => Some(
                    Held::copy(&input.ty, input.bytes()).ok_or("there is no memory to check it")?,
                ),
                None => None,
            });
        }
        let read: Vec<_> = inputs.iter().map(Option::as_ref).collect();
        let outputs: Vec<_> = (self.outputs.iter())
            .map(|ty| {
                let ty = ty.as_ref()?;
                Some(match ty.data_type.is_float() {
                    true => TensorType::new(DataType::DOUBLE, ty.shape.clone()),
                    false => ty.clone(),
                })
            })
            .collect();
        self.cpu.execute_apart(op, &read, &outputs, &self.context)
    }

    /// Sums of products: exact results, and the sums of the absolute values of the terms, by output.
    fn products(&self, of_sizes: &Op) -> Result<Vec<Option<Products>>, String> {
        let exact = self.wide(self.op, |x| x)?;
        let sizes = self.wide(of_sizes, f64::abs)?;
        let pairs = exact.into_iter().zip(sizes);
        Ok(pairs
            .map(|(exact, size)| {
                let exact = exact?;
                exact.ty.data_type.is_float().then_some(Products {
                    exact: exact.to_f64(),
                    // Of the sums, not of what is subtracted from nothing.
                    size: size?.to_f64().into_iter().map(f64::abs).collect(),
                })
            })
            .collect())
    }

    /// Bounds of sums of products, each term of which goes through so many roundings; `stores` counts the
    /// roundings of the whole to the output's type.
    fn sums(&self, of_sizes: &Op, roundings: f64, stores: f64) -> Result<Vec<Allowed>, String> {
        let products = self.products(of_sizes)?;
        let each = products.into_iter().enumerate().map(|(output, products)| {
            let (Some(products), Some(stored)) = (products, self.format(output)) else {
                return Allowed::Same;
            };
            let format = self.computing();
            let relative = format.gamma(roundings);
            let tiny = roundings * format.tiny;
            let tf32 = self.tf32(output) / 2.0;
            Allowed::Near(
                (products.exact.iter().zip(&products.size))
                    .map(|(&exact, &size)| {
                        // Sums of nothing are 0, whatever is added.
                        if size == 0.0 {
                            return Ball::exact(exact);
                        }
                        let ball = Ball::around(exact, (relative + tf32) * size + tiny);
                        match stored == format {
                            true => ball,
                            false => Ball::around(
                                ball.mid,
                                ball.rad
                                    + stores * (stored.unit * size.max(ball.size()) + stored.tiny),
                            ),
                        }
                    })
                    .collect(),
            )
        });
        Ok(each.collect())
    }

    /// The relative error of a product whose operands were rounded to TF32 first; the CPU does not do that, so
    /// it comes once for both.
    fn tf32(&self, output: usize) -> f64 {
        let ty = self.outputs.get(output).and_then(Option::as_ref);
        let single = ty.is_some_and(|ty| ty.data_type == DataType::FLOAT);
        let product = matches!(
            self.op,
            Op::MatMul(_)
                | Op::Window(Window::Conv(_) | Window::ConvInput(_) | Window::ConvWeight(_))
        );
        match self.precision.tf32 && single && product {
            // Two operands with 11 significant bits each, and the product of their errors.
            true => 2.0 / 2048.0 + 1.0 / (2048.0 * 2048.0),
            false => 0.0,
        }
    }

    /// Bounds for what differs from the CPU's elements by a relative error of so many units.
    fn near(&self, output: usize, units: f64, format: Format) -> Allowed {
        let (Some(written), Some(stored)) = (
            self.written.get(output).and_then(Option::as_ref),
            self.format(output),
        ) else {
            return Allowed::Same;
        };
        let near = |mid: f64| {
            let ball = Ball::exact(mid).rounded_by(units, format);
            if stored == format {
                ball
            } else {
                ball.rounded_by(1.0, stored)
            }
        };
        Allowed::Near(written.to_f64().into_iter().map(near).collect())
    }
}

/// Exact results, and the sums of the absolute values of their terms.
struct Products {
    exact: Vec<f64>,
    size: Vec<f64>,
}

/// All outputs as the CPU writes them.
pub(super) fn same(case: &Case<'_>) -> Vec<Allowed> {
    case.outputs.iter().map(|_| Allowed::Same).collect()
}

/// What the outputs of an operation may be, in their order.
///
/// # Errors
/// Where an operand is missing, or there is no memory to work it out.
pub(super) fn allowed(case: &Case<'_>) -> Result<Vec<Allowed>, String> {
    let op = case.op;
    let real = case
        .outputs
        .iter()
        .flatten()
        .any(|ty| ty.data_type.is_float());
    match op {
        Op::Elementwise(Elementwise::Expression(code)) => expression::allowed(case, code),
        Op::Directions(Directions::Quantize { width }) => unit_vectors::quantized(case, *width),
        // Integers, truth values and places are the same in any implementation.
        _ if !real => Ok(match op {
            Op::Reduce(Reduce::Fold(fold)) => integer_fold(case, fold),
            _ => same(case),
        }),
        Op::MatMul(product) => matmul(case, product),
        Op::Reduce(reduce) => self::reduce(case, reduce),
        Op::Normalize(op) => normalize::allowed(case, op),
        Op::Loss(op) => loss::allowed(case, op),
        Op::Velora(velora) => self::velora(case, velora),
        Op::Directions(op) => directions(case, op),
        Op::Movement(op) => Ok(movement(case, op)),
        Op::Index(op) => index(case, op),
        Op::Random(op) => random(case, op),
        Op::Accumulate(Accumulate::Add | Accumulate::Overwrite | Accumulate::Gated) => {
            case.sums(op, 1.0, 1.0)
        }
        Op::Window(op) => window(case, op),
        Op::Recurrent(op) => recurrent::allowed(case, op),
        Op::Dequantize(_) => dequantize(case),
    }
}

/// `alpha Σ a b + beta c`: k products and their sum, two factors, and the sum with the addend. Where c is
/// there, a result of 16 bits may be rounded before and after the product is added.
fn matmul(case: &Case<'_>, product: &MatMul) -> Result<Vec<Allowed>, String> {
    let mut sizes = product.clone();
    sizes.alpha = sizes.alpha.abs();
    if let Some(addend) = &mut sizes.addend {
        addend.beta = addend.beta.abs();
    }
    let stores = if product.addend.is_some() { 2.0 } else { 1.0 };
    case.sums(&Op::MatMul(sizes), product.k as f64 + 3.0, stores)
}

fn reduce(case: &Case<'_>, op: &Reduce) -> Result<Vec<Allowed>, String> {
    match op {
        Reduce::Arg(_) => Ok(same(case)),
        Reduce::Running(running) => case.sums(case.op, running.size as f64, 1.0),
        Reduce::Fold(fold) => self::fold(case, fold),
    }
}

/// How many elements are reduced to one.
fn count(fold: &Fold) -> f64 {
    let reduced = fold.groups.iter().filter(|group| group.reduced);
    reduced.map(|group| group.size as f64).product()
}

fn fold(case: &Case<'_>, fold: &Fold) -> Result<Vec<Allowed>, String> {
    let count = count(fold);
    match fold.kind {
        Kind::Max | Kind::Min => Ok(same(case)),
        // A product is one term.
        Kind::Sum | Kind::L1 | Kind::Product => case.sums(case.op, count, 1.0),
        Kind::Mean | Kind::SumSquare => case.sums(case.op, count + 1.0, 1.0),
        // The root halves the relative error of the sum of squares, and has one rounding.
        Kind::L2 => {
            let units = (count + 1.0) / 2.0 + 2.0;
            Ok(vec![case.near(0, units, case.computing())])
        }
        Kind::LogSum => {
            let sum = Op::Reduce(Reduce::Fold(Fold {
                kind: Kind::Sum,
                ..fold.clone()
            }));
            let format = case.computing();
            let exact = case.wide(&sum, |x| x)?;
            let sizes = case.wide(&sum, f64::abs)?;
            let ([Some(exact), ..], [Some(sizes), ..]) = (&exact[..], &sizes[..]) else {
                return Ok(same(case));
            };
            let pairs = exact.to_f64().into_iter().zip(sizes.to_f64());
            let log = |(sum, size): (f64, f64)| {
                let sum = Ball::around(sum, format.gamma(count) * size);
                let log = functions::unary(Unary::Log, sum, format);
                match case.format(0) {
                    Some(stored) if stored != format => log.rounded(stored),
                    _ => log,
                }
            };
            Ok(vec![Allowed::Near(pairs.map(log).collect())])
        }
        Kind::LogSumExp => Ok(vec![log_sum_exp(case, count)]),
    }
}

/// log Σ e^(x - m) + m with the greatest element m.
///
/// The sum s has the relative error ρ = γ(count) + the units of the exponential + u Σ p |x - m|, where p =
/// e^(x - m) / s; with the entropy of p, Σ p |x - m| ≤ log count. 0 ≤ log s ≤ log count has the error ρ and
/// that of the logarithm; the last sum rounds once, and m may have been rounded to the format.
fn log_sum_exp(case: &Case<'_>, count: f64) -> Allowed {
    let (Some(written), Some(stored)) = (
        case.written.first().and_then(Option::as_ref),
        case.format(0),
    ) else {
        return Allowed::Same;
    };
    let format = case.computing();
    let most = count.max(1.0).ln();
    let inner = format.gamma(count + functions::EXP + most) + functions::LOG * format.unit * most;
    let near = |y: f64| {
        if !y.is_finite() {
            return Ball::exact(y);
        }
        let ball = Ball::around(y, 2.0 * inner).rounded_by(2.0, format);
        if stored == format {
            ball
        } else {
            ball.rounded(stored)
        }
    };
    Allowed::Near(written.to_f64().into_iter().map(near).collect())
}

/// Integers are reduced exactly, but for functions of real numbers that are cut to integers in the end: at
/// the border of two integers, either.
fn integer_fold(case: &Case<'_>, fold: &Fold) -> Vec<Allowed> {
    match (fold.kind, case.written.first()) {
        (Kind::L2 | Kind::LogSum | Kind::LogSumExp, Some(Some(written))) => {
            let numbers = integers(written.ty.data_type, written.bytes());
            let near = |number: i128| Ball::around(number as f64, 0.5);
            vec![Allowed::Near(numbers.into_iter().map(near).collect())]
        }
        _ => same(case),
    }
}

fn velora(case: &Case<'_>, op: &Velora) -> Result<Vec<Allowed>, String> {
    let mut sizes = op.clone();
    let roundings = match &mut sizes {
        Velora::MeanDirection(sizes) => return unit_vectors::mean(case, sizes, false),
        Velora::Compress(sizes) => sizes.size() as f64,
        Velora::Spread { scale, .. } | Velora::Repeat { scale, .. } => {
            *scale = scale.abs();
            2.0
        }
        Velora::ScaleGrad { sizes, scale } => {
            *scale = scale.abs();
            sizes.rows as f64 + 2.0
        }
    };
    case.sums(&Op::Velora(sizes), roundings, 1.0)
}

fn directions(case: &Case<'_>, op: &Directions) -> Result<Vec<Allowed>, String> {
    let mut sizes = op.clone();
    // Sums of few terms may be kept in the output, in its type.
    let (roundings, stores) = match &mut sizes {
        Directions::Means(sizes) => return unit_vectors::mean(case, sizes, true),
        Directions::Blend { size, decay } => {
            return unit_vectors::blend(case, *size, f64::from(*decay));
        }
        Directions::Quantize { width } => return unit_vectors::quantized(case, *width),
        Directions::Project(sets) => (sets.sizes.size() as f64, 1.0),
        Directions::Spread { sets, scale } | Directions::Repeat { sets, scale } => {
            *scale = scale.abs();
            (sets.rank as f64 + 2.0, sets.rank as f64)
        }
        // The integers are no floating-point numbers: their signs stay, and so does that of the result.
        Directions::Dequantize { .. } => (1.0, 1.0),
    };
    case.sums(&Op::Directions(sizes), roundings, stores)
}

fn movement(case: &Case<'_>, op: &Movement) -> Vec<Allowed> {
    match op {
        // start + i · step: of two roundings the first has the size of the product.
        Movement::Range(Range::Floats { start, .. }) => {
            let (Some(Some(written)), Some(stored)) = (case.written.first(), case.format(0)) else {
                return same(case);
            };
            let format = case.computing();
            let near = |y: f64| {
                let rad = 3.0 * format.unit * (start.abs() + y.abs());
                let ball = Ball::around(y, rad);
                if stored == format {
                    ball
                } else {
                    ball.rounded(stored)
                }
            };
            vec![Allowed::Near(
                written.to_f64().into_iter().map(near).collect(),
            )]
        }
        _ => same(case),
    }
}

fn index(case: &Case<'_>, op: &Index) -> Result<Vec<Allowed>, String> {
    let (mut counting, reduction) = match op {
        Index::Scatter(_, reduction) | Index::ScatterElements(_, reduction) => {
            (op.clone(), *reduction)
        }
        // Copies, and places: nothing is rounded.
        _ => return Ok(same(case)),
    };
    if !matches!(reduction, Reduction::Add | Reduction::Mul) {
        return Ok(same(case));
    }
    if let Index::Scatter(_, rule) | Index::ScatterElements(_, rule) = &mut counting {
        *rule = Reduction::Add;
    }
    // How many terms or factors an element has.
    let counts = case.wide(&Op::Index(counting), |_| 1.0)?;
    let products = case.products(case.op)?;
    let ([Some(counts), ..], [Some(products), ..]) = (&counts[..], &products[..]) else {
        return Ok(same(case));
    };
    let format = case.computing();
    let stored = case.format(0).unwrap_or(format);
    let ball = |((exact, size), count): ((&f64, &f64), f64)| {
        // One term is itself; every sum may be kept in the output's type.
        let roundings = (count - 1.0).max(0.0);
        let mut relative = format.gamma(roundings);
        if stored != format {
            relative += stored.gamma(roundings);
        }
        Ball::around(*exact, relative * size)
    };
    let pairs = products.exact.iter().zip(&products.size);
    let balls = pairs.zip(counts.to_f64()).map(ball).collect();
    Ok(vec![Allowed::Near(balls)])
}

fn random(case: &Case<'_>, op: &Random) -> Result<Vec<Allowed>, String> {
    match op {
        // The factor is rounded, and the product. The same elements are dropped.
        Random::Dropout(_) | Random::DropoutGrad(_) => case.sums(case.op, 2.0, 1.0),
        Random::Bernoulli { .. } => Ok(same(case)),
        Random::Draw(draw) => {
            let (Some(Some(written)), Some(stored)) = (case.written.first(), case.format(0)) else {
                return Ok(same(case));
            };
            // In 64 bits, and rounded once. Of a normal number each of logarithm, root, cosine and product is
            // a few units off, and it is less than 9.
            let rad = match draw.distribution {
                Distribution::Uniform { low, high } => 3.0 * (low.abs() + high.abs()),
                Distribution::Normal { mean, deviation } => mean.abs() + 200.0 * deviation.abs(),
            } * f64::EPSILON;
            let near = |y: f64| Ball::around(y, rad).rounded(stored);
            Ok(vec![Allowed::Near(
                written.to_f64().into_iter().map(near).collect(),
            )])
        }
    }
}

fn window(case: &Case<'_>, op: &Window) -> Result<Vec<Allowed>, String> {
    let roundings = match op {
        Window::Conv(conv) => (conv.channels * conv.geometry.taps()) as f64 + 1.0,
        Window::ConvInput(conv) => (conv.filters * conv.geometry.taps()) as f64 + 1.0,
        Window::ConvWeight(conv) => (conv.batch * conv.geometry.positions()) as f64,
        Window::ChannelSum {
            batch, positions, ..
        } => (batch * positions) as f64,
        Window::Pool(pool) => match pool.reduction {
            window::Reduction::Max { .. } => return Ok(same(case)),
            window::Reduction::Average { .. } => pool.geometry.taps() as f64 + 1.0,
            // All terms are positive: their relative error is that of the sum, 1/p of it that of the root.
            window::Reduction::Norm { p } => {
                let taps = pool.geometry.taps() as f64;
                let units = (functions::POWER + taps) / f64::from(p) + functions::POWER + 2.0;
                return Ok(vec![case.near(0, units, case.computing())]);
            }
        },
        // As many terms as windows that have the element as their maximum: at most all.
        Window::MaxGrad { positions, .. } => *positions as f64,
        Window::AverageGrad(pool) => pool.geometry.taps() as f64 + 1.0,
    };
    case.sums(case.op, roundings, 1.0)
}

/// `(x - zero) · scale` in 32 bits. Both integers are exact there unless they have 32 bits themselves; then
/// they are rounded, and what that is can be as large as either of them.
fn dequantize(case: &Case<'_>) -> Result<Vec<Allowed>, String> {
    let units = match case.input(0)?.ty.data_type {
        DataType::INT32 if case.inputs.get(2).is_some_and(Option::is_some) => {
            // 2³¹ of each, less than one unit of 2³²: in terms of the scale it is an absolute error.
            return large_integers(case);
        }
        DataType::INT32 => 2.0,
        // The difference is exact, the product is rounded.
        _ => 1.0,
    };
    Ok(vec![case.near(0, units, Format::F32)])
}

/// Integers of 32 bits with zero points: the rounding of each may be 2³¹ u, of their difference 2³² u, all of
/// it times the largest scale. Coarse: ONNX wants these zero points to be 0.
fn large_integers(case: &Case<'_>) -> Result<Vec<Allowed>, String> {
    let scales = case.input(1)?.to_f64();
    let scale = scales
        .iter()
        .fold(0.0, |most: f64, scale| most.max(scale.abs()));
    let error = 4.0 * 2f64.powi(31) * Format::F32.unit * scale;
    Ok(match case.near(0, 2.0, Format::F32) {
        Allowed::Near(balls) => {
            let wider = |ball: Ball| Ball::around(ball.mid, ball.rad + error);
            vec![Allowed::Near(balls.into_iter().map(wider).collect())]
        }
        Allowed::Same => vec![Allowed::Same],
    })
}
