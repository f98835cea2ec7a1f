//! Optimisers that compress the gradients of matrices: GaLore and FLORA.
//!
//! The smaller side s of a matrix W `[m, n]` is multiplied with a matrix P of R rows, so that what is kept
//! has R · max(m, n) entries in place of m · n. P is `[R, s]` in both orientations: with m < n the compressed
//! gradient is P G, `[R, n]`, otherwise G Pᵀ, `[m, R]`; Pᵀ N and N P are what comes back. Square matrices
//! are compressed along their columns, as by the authors' programs.
//!
//! What an update needs beside the tensors that stay is one buffer that all parameters share
//! ([`Optimizer::scratch`]). Products are those of [`crate::cpu::gemm`]: the bits depend on the sizes and the
//! machine's instruction set, not on the number of threads.

mod flora;
mod galore;
mod subspace;

use super::{Optimizer, OptimizerError, Step};
use crate::cpu::gemm::{Bias, Matrix, MatrixMut, Problem, gemm, workspace_len};
use flora::Flora;
use galore::GaLore;

/// A tensor that an optimiser keeps for a parameter: floats, zero at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// One of [`Optimizer::state`].
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// A parameter, for updates that depend on more than its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// Its name; what is drawn for it depends on that.
    pub name: &'a str,
    /// Its shape, and that of its gradient.
    pub shape: &'a [usize],
    /// Whether its gradient is to be compressed, where the optimiser can: [`Optimizer::projects`].
    pub projected: bool,
}

/// How a matrix is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    rows: usize,
    columns: usize,
    rank: usize,
}

impl Cut {
    /// `None` where compressing saves nothing: of what is no matrix, or has a side of at most the rank.
    fn new(shape: &[usize], rank: u64) -> Option<Self> {
        let &[rows, columns] = shape else { return None };
        let rank = usize::try_from(rank).ok()?;
        (rank > 0 && rows.min(columns) > rank).then_some(Cut {
            rows,
            columns,
            rank,
        })
    }

    /// Whether the rows are the smaller side, so that P is multiplied from the left.
    fn left(&self) -> bool {
        self.rows < self.columns
    }

    fn smaller(&self) -> usize {
        self.rows.min(self.columns)
    }

    /// The shape of a compressed gradient.
    fn compressed(&self) -> [usize; 2] {
        match self.left() {
            true => [self.rank, self.columns],
            false => [self.rows, self.rank],
        }
    }

    /// Elements of a compressed gradient.
    fn len(&self) -> usize {
        self.compressed().iter().product()
    }

    /// Elements of P.
    fn projector_len(&self) -> usize {
        self.rank * self.smaller()
    }

    fn down_problem(&self) -> Problem {
        let [m, n] = self.compressed();
        let k = self.smaller();
        Problem { m, n, k }
    }

    fn up_problem(&self) -> Problem {
        Problem {
            m: self.rows,
            n: self.columns,
            k: self.rank,
        }
    }

    /// Elements of workspace that [`Cut::down`] and [`Cut::up`] need.
    fn workspace(&self) -> usize {
        let problems = [self.down_problem(), self.up_problem()];
        let lengths = problems.map(|problem| workspace_len::<f32>(problem, 1));
        lengths[0].max(lengths[1])
    }

    /// `to` = α · the compressed matrix.
    fn down(
        &self,
        alpha: f32,
        projector: &[f32],
        matrix: &[f32],
        to: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), OptimizerError> {
        let problem = self.down_problem();
        let p = Matrix::row_major(projector, self.smaller());
        let matrix = Matrix::row_major(matrix, self.columns);
        let (a, b) = match self.left() {
            true => (p, matrix),
            false => (matrix, p.transposed()),
        };
        let to = MatrixMut::row_major(to, problem.n);
        Ok(gemm(problem, alpha, a, b, 0.0, to, Bias::None, workspace)?)
    }

    /// `to` = α · the matrix that a compressed one stands for + β · `to`.
    fn up(
        &self,
        alpha: f32,
        projector: &[f32],
        compressed: &[f32],
        beta: f32,
        to: &mut [f32],
        workspace: &mut [f32],
    ) -> Result<(), OptimizerError> {
        let problem = self.up_problem();
        let p = Matrix::row_major(projector, self.smaller());
        let compressed = Matrix::row_major(compressed, self.compressed()[1]);
        let (a, b) = match self.left() {
            true => (p.transposed(), compressed),
            false => (compressed, p),
        };
        let to = MatrixMut::row_major(to, problem.n);
        Ok(gemm(problem, alpha, a, b, beta, to, Bias::None, workspace)?)
    }
}

impl Optimizer {
    /// The rank of an optimiser that compresses the gradients of matrices; `None` of others.
    pub fn rank(&self) -> Option<u64> {
        match *self {
            Optimizer::GaLore { rank, .. } | Optimizer::Flora { rank, .. } => Some(rank),
            _ => None,
        }
    }

    /// Whether it compresses gradients of that shape: matrices of which both sides are above the rank.
    pub fn projects(&self, shape: &[usize]) -> bool {
        self.cut(shape, true).is_some()
    }

    fn cut(&self, shape: &[usize], projected: bool) -> Option<Cut> {
        let rank = self.rank().filter(|_| projected)?;
        Cut::new(shape, rank)
    }

    /// The tensors that it keeps for a parameter whose gradient has that shape, in the order of
    /// [`Optimizer::state`]; `projected` says whether the gradient is to be compressed where it can be.
    ///
    /// - SGD, Adam, AdamW: tensors of the gradient's shape.
    /// - GaLore: P `[R, s]`, and Adam's two moments of the compressed gradient's shape, R · max(m, n); of
    ///   others what AdamW keeps.
    /// - FLORA: of matrices the first moment, compressed (R · max(m, n)) or not, and the means of the squares
    ///   by row `[m]` and by column `[n]`; of others both moments.
    pub fn layout(&self, shape: &[usize], projected: bool) -> Vec<State> {
        let cut = self.cut(shape, projected);
        let small = cut.map_or(shape.to_vec(), |cut| cut.compressed().to_vec());
        let full = |names: &[&'static str]| -> Vec<State> {
            (names.iter())
                .map(|name| State {
                    name,
                    shape: small.clone(),
                })
                .collect()
        };
        match (self, shape) {
            (Optimizer::GaLore { .. }, _) => {
                let projector = cut.map(|cut| State {
                    name: "projector",
                    shape: vec![cut.rank, cut.smaller()],
                });
                let moments = full(&["exp_avg", "exp_avg_sq"]);
                projector.into_iter().chain(moments).collect()
            }
            (Optimizer::Flora { .. }, &[rows, columns]) => {
                let mut states = full(&["exp_avg"]);
                states.push(State {
                    name: "exp_avg_sq_row",
                    shape: vec![rows],
                });
                states.push(State {
                    name: "exp_avg_sq_col",
                    shape: vec![columns],
                });
                states
            }
            (Optimizer::Flora { .. }, _) => full(&["exp_avg", "exp_avg_sq"]),
            _ => full(self.state()),
        }
    }

    /// The floats of scratch that an update of such a parameter needs; what they hold means nothing before
    /// and after.
    ///
    /// GaLore: a compressed gradient. FLORA: a compressed gradient, a projection and an R × R matrix. Both:
    /// the workspace of their products.
    pub fn scratch(&self, shape: &[usize], projected: bool) -> usize {
        match (self, self.cut(shape, projected)) {
            (Optimizer::GaLore { .. }, Some(cut)) => galore::scratch(&cut),
            (Optimizer::Flora { .. }, Some(cut)) => flora::scratch(&cut),
            _ => 0,
        }
    }

    /// Updates one parameter and its state, as any optimiser does; the gradient is overwritten.
    ///
    /// `state` has the tensors of [`Optimizer::layout`], in that order; `scratch` has at least
    /// [`Optimizer::scratch`] floats. Allocates nothing when called within the pool of rayon that is to do
    /// the work, but where GaLore looks for singular vectors (every so many steps), which takes about four
    /// square matrices of the smaller side in 64 bits.
    ///
    /// # Errors
    /// Lengths that do not fit, and a gradient without singular vectors because it is no number somewhere;
    /// nothing is written then.
    pub fn update_shaped(
        &self,
        step: &Step,
        parameter: &Parameter<'_>,
        weight: &mut [f32],
        gradient: &mut [f32],
        state: &mut [&mut [f32]],
        scratch: &mut [f32],
    ) -> Result<(), OptimizerError> {
        let (shape, projected) = (parameter.shape, parameter.projected);
        let cut = self.cut(shape, projected);
        if self.rank().is_some() {
            self.check_lengths(shape, cut, weight, gradient, state)?;
            let expected = self.scratch(shape, projected);
            if scratch.len() < expected {
                return Err(OptimizerError::Length {
                    what: "the scratch",
                    found: scratch.len(),
                    expected,
                });
            }
            if weight.is_empty() {
                return Ok(());
            }
        }
        match *self {
            Optimizer::GaLore {
                update_period,
                scale,
                betas,
                epsilon,
                weight_decay,
                ..
            } => match (cut, state) {
                (Some(cut), [projector, mean, square]) => {
                    let galore = GaLore {
                        cut,
                        update_period,
                        scale,
                        betas,
                        epsilon,
                        weight_decay,
                    };
                    let state = [&mut **projector, &mut **mean, &mut **square];
                    galore.update(step, weight, gradient, state, scratch)
                }
                (_, state) => Optimizer::AdamW {
                    betas,
                    epsilon,
                    weight_decay,
                }
                .update(step, weight, gradient, state),
            },
            Optimizer::Flora {
                update_period,
                beta,
                weight_decay,
                seed,
                ..
            } => {
                let flora = Flora::new(step, update_period, beta, weight_decay, seed);
                match (cut, shape, state) {
                    (Some(cut), _, [mean, row, column]) => {
                        let state = [&mut **mean, &mut **row, &mut **column];
                        let name = parameter.name;
                        flora.projected(&cut, name, weight, gradient, state, scratch)
                    }
                    (None, &[_, columns], [mean, row, column]) => {
                        flora.matrix(columns, weight, gradient, mean, row, column);
                        Ok(())
                    }
                    (None, _, [mean, square]) => {
                        flora.vector(weight, gradient, mean, square);
                        Ok(())
                    }
                    // The number of tensors was compared above.
                    _ => Ok(()),
                }
            }
            _ => self.update(step, weight, gradient, state),
        }
    }

    /// Whether the tensors have the lengths of [`Optimizer::layout`]; without an allocation.
    fn check_lengths(
        &self,
        shape: &[usize],
        cut: Option<Cut>,
        weight: &[f32],
        gradient: &[f32],
        state: &[&mut [f32]],
    ) -> Result<(), OptimizerError> {
        let all = shape.iter().product();
        let small = cut.map_or(all, |cut| cut.len());
        let moments = ("the state exp_avg", small);
        let ([first, second, third], count) = match (self, cut, shape) {
            (Optimizer::Flora { .. }, _, &[rows, columns]) => {
                let row = ("the state exp_avg_sq_row", rows);
                ([moments, row, ("the state exp_avg_sq_col", columns)], 3)
            }
            (Optimizer::GaLore { .. }, Some(cut), _) => {
                let projector = ("the state projector", cut.projector_len());
                ([projector, moments, ("the state exp_avg_sq", small)], 3)
            }
            _ => ([moments, ("the state exp_avg_sq", small), ("", 0)], 2),
        };
        if state.len() != count {
            return Err(OptimizerError::States {
                found: state.len(),
                expected: count,
            });
        }
        let given = [
            ("the parameter", weight.len()),
            ("the gradient", gradient.len()),
        ];
        let whole = given.map(|(what, found)| (what, found, all));
        let states = [first, second, third].into_iter().zip(state);
        let states = states.map(|((what, expected), state)| (what, state.len(), expected));
        for (what, found, expected) in whole.into_iter().chain(states) {
            if found != expected {
                return Err(OptimizerError::Length {
                    what,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }
}
