//! How a product is cut into blocks, and the scratch that it takes.

use super::Problem;
use super::element::Accumulator;
use super::kernel::Kernels;

/// The longest block of the inner dimension: a panel of the right operand is read from the second-level
/// cache once per panel of the left one, which stays in the first.
const KC: usize = 512;
/// Elements of the packed right operand at a time: it shares the last-level cache with the left one.
const RIGHT_ELEMENTS: usize = 1 << 20;
/// Elements of the packed left operand at a time.
const LEFT_ELEMENTS: usize = 1 << 20;
/// With fewer tiles than this, blocks of the inner dimension are computed side by side.
const FEW_TILES: usize = 32;

/// How a product is cut.
#[derive(Clone, Copy, Debug)]
pub struct Blocking {
    /// Length of the blocks of the inner dimension.
    pub kc: usize,
    /// Rows of a panel of the left operand.
    pub height: usize,
    /// Rows of the left operand packed at a time.
    pub mc: usize,
    /// Columns of the right operand packed at a time.
    pub nc: usize,
    /// Columns of a panel of the right operand.
    pub nr: usize,
    /// Blocks of the inner dimension computed side by side.
    pub side_by_side: usize,
    /// Elements of the packed left operand.
    pub left: usize,
    /// Elements of the packed right operand.
    pub right: usize,
    /// Elements of the sums of each of the blocks side by side.
    pub sums: usize,
    /// Elements of the sums that are converted into the result.
    pub converted: usize,
}

impl Blocking {
    /// The blocking of a product; `converts` where the result is not stored as accumulators.
    pub fn new<T: Accumulator>(kernels: &Kernels<T>, problem: Problem, converts: bool) -> Self {
        let Problem { m, n, k } = problem;
        let (mr, nr) = (kernels.mr(), kernels.nr);
        let blocks = k.div_ceil(KC).max(1);
        let kc = k.div_ceil(blocks).next_multiple_of(8).min(k);
        // Equal panels: 32 rows are 11, 11 and 10 and not 14, 14 and 4.
        let height = m.div_ceil(m.div_ceil(mr).max(1)).max(1);
        let per_row = kc.max(1);
        let even = |length: usize, limit: usize, unit: usize| {
            let limit = (limit / unit).max(1) * unit;
            length
                .div_ceil(length.div_ceil(limit).max(1))
                .next_multiple_of(unit)
                .max(unit)
        };
        let mc = even(m, LEFT_ELEMENTS / per_row, height);
        let nc = even(n, RIGHT_ELEMENTS / per_row, nr);
        let tiles = m.div_ceil(height) * n.div_ceil(nr);
        let side_by_side = if tiles < FEW_TILES && blocks > 1 {
            (2 * FEW_TILES / tiles.max(1)).clamp(1, blocks)
        } else {
            1
        };
        let sums = if side_by_side > 1 { m * n } else { 0 };
        let converted = if converts { mc.min(m) * nc.min(n) } else { 0 };
        Blocking {
            kc,
            height,
            mc,
            nc,
            nr,
            side_by_side,
            left: (mc * kc).next_multiple_of(16),
            right: (nc * kc).next_multiple_of(16),
            sums: sums.next_multiple_of(16),
            converted: converted.next_multiple_of(16),
        }
    }

    /// Accumulators of scratch, without what aligns it.
    pub fn scratch(&self) -> usize {
        self.converted + self.side_by_side * (self.left + self.right + self.sums)
    }
}
