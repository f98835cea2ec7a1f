//! Updates from a gradient that is a direction times a small tensor.
//!
//! The state, as small as the tensor, is updated first; then one sweep over the parameter reads and writes
//! each element once. What the elements of a group share for one output (the mean, and the root of the mean
//! square with its division) is computed once for a tile on the stack, so that an element of Adam's costs
//! one division, not two and a root.

use super::full::{Adam, Sgd};
use super::{CHUNK, OptimizerError};
use crate::cpu::rows::vectorize;
use pulp::Arch;
use rayon::prelude::*;

/// Elements of the parameter that one thread takes at a time: 256 KiB, so that tiles serve many rows.
const BLOCK: usize = 1 << 16;

/// Elements of a tile of outputs: longer ones mean fewer jumps from row to row, which cost more than tiles
/// that do not stay in the first cache.
const OUTPUTS: usize = 4096;

/// Elements of a tile of groups, or of features laid out; five such tiles stay in the first cache.
const TILE: usize = 1024;

/// Up to this number of features, a group is shorter than the widest vectors: several are handled at once.
const NARROW: usize = 16;

/// How a weight is cut, with the numbers of its direction.
pub type Factor<'a> = crate::program::Factor<&'a [f32]>;

/// Whether a tensor has the length that a factor gives it.
pub(super) fn length(
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), OptimizerError> {
    match found == expected {
        true => Ok(()),
        false => Err(OptimizerError::FactoredLength {
            what,
            found,
            expected,
        }),
    }
}

impl<'a> Factor<'a> {
    /// M, the features of a whole group.
    pub(in crate::session) fn group_len(&self) -> usize {
        self.features.div_ceil(self.groups)
    }

    /// Groups that hold features: all but the last ones.
    pub(in crate::session) fn occupied(&self) -> usize {
        self.features.div_ceil(self.group_len())
    }

    /// The entries of the direction that count for an occupied group.
    #[inline]
    pub(in crate::session) fn group(&self, group: usize) -> &'a [f32] {
        let first = group * self.group_len();
        let len = self.group_len().min(self.features - first);
        let start = if self.is_shared() { 0 } else { first };
        &self.direction[start..start + len]
    }

    fn is_shared(&self) -> bool {
        self.direction.len() == self.group_len()
    }

    /// Whether the sizes are possible, and the tensors as long as they say. All else may index by them.
    pub(super) fn check(&self, parameter: usize, gradient: usize) -> Result<(), OptimizerError> {
        let layout = |reason| OptimizerError::Layout {
            groups: self.groups,
            features: self.features,
            outputs: self.outputs,
            reason,
        };
        if self.groups == 0 || self.groups > self.features {
            return Err(layout("expected from 1 group to as many as features"));
        }
        let product = |a: usize, b: usize| {
            a.checked_mul(b)
                .ok_or_else(|| layout("more elements than memory can have"))
        };
        let each = product(self.groups, self.group_len())?;
        length(
            "the parameter",
            parameter,
            product(self.features, self.outputs)?,
        )?;
        length(
            "the gradient",
            gradient,
            product(self.groups, self.outputs)?,
        )?;
        match self.direction.len() == each {
            true => Ok(()),
            false => length("the direction", self.direction.len(), self.group_len()),
        }
    }

    /// [`Factor::check`], but for the parameter, which a norm does not need.
    pub(in crate::session) fn fits(&self, gradient: usize) -> bool {
        let parameter = self.features.checked_mul(self.outputs);
        parameter.is_some_and(|parameter| self.check(parameter, gradient).is_ok())
    }
}

/// How an element of the parameter is updated.
pub(super) trait Rule: Copy + Sync {
    /// Whether [`Rule::apply`] reads the second number of [`Rule::prepare`].
    const DIVIDES: bool;
    /// What all features of a group share, of the gradient and the state of the group: what is multiplied
    /// with the direction, and what it is divided by, if anything, per |v|.
    fn prepare(self, x: f32, y: f32) -> (f32, f32);
    /// The new element.
    fn apply(self, w: f32, v: f32, along: f32, size: f32) -> f32;
}

impl Sgd {
    pub fn factored_momentum(self, gradient: &[f32], direction: &mut [f32]) {
        let arch = Arch::new();
        let chunks = (gradient.par_chunks(CHUNK), direction.par_chunks_mut(CHUNK));
        chunks.into_par_iter().for_each(|(g, d)| {
            vectorize(
                arch,
                #[inline(always)]
                |(g, d): (&[f32], &mut [f32])| {
                    for (g, d) in g.iter().zip(d) {
                        *d = self.momentum * *d + g * self.scale;
                    }
                },
                (g, d),
            );
        });
    }
}

/// Of the gradient and the direction that momentum keeps. Without momentum, which is 0 then, the second is
/// any number: nothing is added, not even the zero that an infinite gradient would turn into NaN.
impl Rule for Sgd {
    const DIVIDES: bool = false;

    #[inline(always)]
    fn prepare(self, gradient: f32, direction: f32) -> (f32, f32) {
        let g = gradient * self.scale;
        match self.momentum == 0.0 {
            true => (g, 0.0),
            false => (g + self.momentum * direction, 0.0),
        }
    }

    #[inline(always)]
    fn apply(self, w: f32, v: f32, along: f32, _size: f32) -> f32 {
        let g = v * along;
        let g = if self.decay == 0.0 {
            g
        } else {
            g + self.decay * w
        };
        w + self.step * g
    }
}

/// Momentum without Nesterov: of the direction alone.
#[derive(Clone, Copy)]
pub(super) struct Momentum(pub Sgd);

impl Rule for Momentum {
    const DIVIDES: bool = false;

    #[inline(always)]
    fn prepare(self, direction: f32, _: f32) -> (f32, f32) {
        (direction, 0.0)
    }

    #[inline(always)]
    fn apply(self, w: f32, v: f32, along: f32, _size: f32) -> f32 {
        w + self.0.step * (v * along)
    }
}

impl Adam {
    pub fn factored_means(self, gradient: &[f32], mean: &mut [f32], square: &mut [f32]) {
        let arch = Arch::new();
        let chunks = (
            gradient.par_chunks(CHUNK),
            mean.par_chunks_mut(CHUNK),
            square.par_chunks_mut(CHUNK),
        );
        chunks.into_par_iter().for_each(|(g, m, s)| {
            vectorize(
                arch,
                #[inline(always)]
                |(g, m, s): (&[f32], &mut [f32], &mut [f32])| {
                    for ((g, m), s) in g.iter().zip(m).zip(s) {
                        let g = g * self.scale;
                        *m += self.fresh_mean * (g - *m);
                        *s = self.beta2 * *s + self.fresh_square * (g * g);
                    }
                },
                (g, m, s),
            );
        });
    }
}

/// Of the mean and the mean square.
impl Rule for Adam {
    const DIVIDES: bool = true;

    #[inline(always)]
    fn prepare(self, mean: f32, square: f32) -> (f32, f32) {
        (mean, square.sqrt() / self.root)
    }

    #[inline(always)]
    fn apply(self, w: f32, v: f32, along: f32, size: f32) -> f32 {
        w * self.keep + self.step * (v * along / (v.abs() * size + self.epsilon))
    }
}

/// Updates the parameter by a rule, from two tensors of the gradient's shape; lengths were checked.
pub(super) fn sweep<R: Rule>(
    rule: R,
    factor: &Factor<'_>,
    x: &[f32],
    y: &[f32],
    parameter: &mut [f32],
) {
    // Chunks must not be empty.
    if parameter.is_empty() {
        return;
    }
    match factor.features_last {
        true => features_last(rule, factor, x, y, parameter),
        false => features_first(rule, factor, x, y, parameter),
    }
}

/// Tiles of what [`Rule::prepare`] makes, one element per group and output.
struct Tiles<const N: usize> {
    along: [f32; N],
    size: [f32; N],
}

impl<const N: usize> Tiles<N> {
    fn new() -> Self {
        Tiles {
            along: [0.0; N],
            size: [0.0; N],
        }
    }

    #[inline(always)]
    fn fill<R: Rule>(&mut self, rule: R, x: &[f32], y: &[f32]) {
        let tiles = self.along.iter_mut().zip(&mut self.size);
        for ((&x, &y), (along, size)) in x.iter().zip(y).zip(tiles) {
            (*along, *size) = rule.prepare(x, y);
        }
    }
}

/// W is `[D, O]`: blocks of whole rows. A tile is a part of a group's outputs and serves the group's rows.
fn features_first<R: Rule>(
    rule: R,
    factor: &Factor<'_>,
    x: &[f32],
    y: &[f32],
    parameter: &mut [f32],
) {
    let arch = Arch::new();
    let (width, len) = (factor.outputs, factor.group_len());
    // At least some rows for a tile to serve, however long they are.
    let rows = (BLOCK / width).max(8).min(factor.features);
    let blocks = parameter.par_chunks_mut(rows * width).enumerate();
    blocks.for_each(|(number, block)| {
        vectorize(
            arch,
            #[inline(always)]
            |(block, tiles): (&mut [f32], &mut Tiles<OUTPUTS>)| {
                let mut first = number * rows;
                let end = first + block.len() / width;
                let mut rest = block;
                while first < end {
                    let group = first / len;
                    let next = end.min((group + 1) * len);
                    let (lines, others) = rest.split_at_mut((next - first) * width);
                    let direction = &factor.group(group)[first - group * len..];
                    for start in (0..width).step_by(OUTPUTS) {
                        let columns = start..width.min(start + OUTPUTS);
                        let part = group * width + columns.start..group * width + columns.end;
                        tiles.fill(rule, &x[part.clone()], &y[part]);
                        for (line, &v) in lines.chunks_exact_mut(width).zip(direction) {
                            let tile = tiles.along.iter().zip(&tiles.size);
                            for (w, (&along, &size)) in line[columns.clone()].iter_mut().zip(tile) {
                                *w = rule.apply(*w, v, along, size);
                            }
                        }
                    }
                    (rest, first) = (others, next);
                }
            },
            (block, &mut Tiles::new()),
        );
    });
}

/// W is `[O, D]`: blocks of whole rows. A tile is some of an output's groups.
fn features_last<R: Rule>(
    rule: R,
    factor: &Factor<'_>,
    x: &[f32],
    y: &[f32],
    parameter: &mut [f32],
) {
    let arch = Arch::new();
    let (width, len) = (factor.features, factor.group_len());
    let rows = (BLOCK / width).clamp(1, factor.outputs);
    let blocks = parameter.par_chunks_mut(rows * width).enumerate();
    blocks.for_each(|(number, block)| {
        let from = number * rows * factor.groups;
        let (x, y) = (&x[from..], &y[from..]);
        match len <= NARROW {
            true => vectorize(
                arch,
                #[inline(always)]
                |(block, tiles, wide): (&mut [f32], &mut Tiles<TILE>, &mut Wide)| {
                    wide.repeat_direction(factor);
                    let lines = block.chunks_exact_mut(width);
                    let sources = x.chunks(factor.groups).zip(y.chunks(factor.groups));
                    for (line, (x, y)) in lines.zip(sources) {
                        narrow_groups(rule, factor, (x, y), line, tiles, wide);
                    }
                },
                (block, &mut Tiles::new(), &mut Wide::new()),
            ),
            false => vectorize(
                arch,
                #[inline(always)]
                |(block, tiles): (&mut [f32], &mut Tiles<TILE>)| {
                    let lines = block.chunks_exact_mut(width);
                    let sources = x.chunks(factor.groups).zip(y.chunks(factor.groups));
                    for (line, (x, y)) in lines.zip(sources) {
                        wide_groups(rule, factor, (x, y), line, tiles);
                    }
                },
                (block, &mut Tiles::new()),
            ),
        }
    });
}

/// A row of groups that are long enough for a loop each.
#[inline(always)]
fn wide_groups<R: Rule>(
    rule: R,
    factor: &Factor<'_>,
    (x, y): (&[f32], &[f32]),
    line: &mut [f32],
    tiles: &mut Tiles<TILE>,
) {
    let mut group = 0;
    let sources = x.chunks(TILE).zip(y.chunks(TILE));
    for ((x, y), part) in sources.zip(line.chunks_mut(TILE * factor.group_len())) {
        tiles.fill(rule, x, y);
        let tile = tiles.along.iter().zip(&tiles.size);
        for (w, (&along, &size)) in part.chunks_mut(factor.group_len()).zip(tile) {
            for (w, &v) in w.iter_mut().zip(factor.group(group)) {
                *w = rule.apply(*w, v, along, size);
            }
            group += 1;
        }
    }
}

/// Tiles with one element per feature.
struct Wide {
    along: [f32; TILE],
    size: [f32; TILE],
    direction: [f32; TILE],
}

impl Wide {
    fn new() -> Self {
        Wide {
            along: [0.0; TILE],
            size: [0.0; TILE],
            direction: [0.0; TILE],
        }
    }

    /// A direction of all groups, once for each of a tile's groups.
    #[inline(always)]
    fn repeat_direction(&mut self, factor: &Factor<'_>) {
        if factor.is_shared() {
            for copy in self.direction.chunks_exact_mut(factor.direction.len()) {
                copy.copy_from_slice(factor.direction);
            }
        }
    }
}

/// A row of groups too short for a loop each: the groups' numbers are laid out beside the features.
#[inline(always)]
fn narrow_groups<R: Rule>(
    rule: R,
    factor: &Factor<'_>,
    (x, y): (&[f32], &[f32]),
    line: &mut [f32],
    tiles: &mut Tiles<TILE>,
    wide: &mut Wide,
) {
    let len = factor.group_len();
    let groups = TILE / len;
    let sources = x.chunks(groups).zip(y.chunks(groups));
    let parts = sources.zip(line.chunks_mut(groups * len));
    for (number, ((x, y), part)) in parts.enumerate() {
        tiles.fill(rule, x, y);
        repeat(&tiles.along[..x.len()], len, &mut wide.along);
        if R::DIVIDES {
            repeat(&tiles.size[..x.len()], len, &mut wide.size);
        }
        let direction = match factor.is_shared() {
            true => &wide.direction[..],
            // [G, M] lies as the features do.
            false => &factor.direction[number * groups * len..],
        };
        let tile = wide.along.iter().zip(&wide.size).zip(direction);
        for (w, ((&along, &size), &v)) in part.iter_mut().zip(tile) {
            *w = rule.apply(*w, v, along, size);
        }
    }
}

/// Writes each element `times` times. The numbers are constants in the code: a copy is a store or two, where
/// a loop of any length would cost more than the update.
#[inline(always)]
fn repeat(from: &[f32], times: usize, to: &mut [f32]) {
    macro_rules! constant {
        ($($times:literal)*) => {
            match times {
                $($times => {
                    for (to, &from) in to.as_chunks_mut::<$times>().0.iter_mut().zip(from) {
                        *to = [from; $times];
                    }
                })*
                _ => {
                    for (to, &from) in to.chunks_exact_mut(times).zip(from) {
                        to.fill(from);
                    }
                }
            }
        };
    }
    constant!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
}
