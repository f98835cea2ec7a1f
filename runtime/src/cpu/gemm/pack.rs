//! Packing: panels of an operand in the order in which the kernels read them.

use super::Matrix;
use super::element::{Accumulator, Element};
use super::kernel::Kernels;

/// A part of an operand to be packed: `lanes` rows of the left one or columns of the right one, each of
/// `depth` elements along the inner dimension.
pub struct Part {
    /// Where the first element lies.
    pub start: usize,
    /// The number of lanes.
    pub lanes: usize,
    /// Elements between two lanes.
    pub lane_stride: usize,
    /// The elements of a lane.
    pub depth: usize,
    /// Elements between two elements of a lane.
    pub depth_stride: usize,
}

/// Packs a part: `panel[p * width + lane]`, with zeros for the lanes from `lanes` to `width`.
///
/// The part lies inside the operand (checked on entry to the product), and the panel has `width * depth`
/// elements.
pub fn pack<E: Element>(
    kernels: &Kernels<E::Acc>,
    operand: &Matrix<'_, E>,
    part: &Part,
    panel: &mut [E::Acc],
    width: usize,
) {
    if part.lane_stride == 1 && part.lanes == width {
        macro_rules! rows {
            ($($width:literal)*) => {
                match width {
                    $($width => return copy_groups::<E, $width>(operand.data, part, panel),)*
                    _ => {}
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 16 32);
    }
    if part.lanes < width {
        panel.fill(E::Acc::ZERO);
    }
    if part.depth_stride == 1
        && part.depth > 0
        && let (Some(source), Some(interleave)) =
            (E::as_accumulators(operand.data), kernels.interleave)
    {
        let last = part.start + (part.lanes - 1) * part.lane_stride + part.depth;
        assert!(
            last <= source.len() && part.lanes <= width && width * part.depth <= panel.len(),
            "a part lies inside its operand and fits its panel"
        );
        // SAFETY: the assertion; the kernels were chosen for this machine.
        unsafe {
            interleave(
                source.as_ptr().add(part.start),
                part.lane_stride,
                part.lanes,
                part.depth,
                panel.as_mut_ptr(),
                width,
            );
        }
        return;
    }
    if part.lane_stride == 1 {
        for (p, group) in panel.chunks_exact_mut(width).enumerate() {
            let start = part.start + p * part.depth_stride;
            for (to, from) in group
                .iter_mut()
                .zip(&operand.data[start..start + part.lanes])
            {
                *to = from.to_acc();
            }
        }
        return;
    }
    // Eight lanes at a time: their cache lines stay while the depth passes through them.
    for first in (0..part.lanes).step_by(8) {
        let end = (first + 8).min(part.lanes);
        for (p, group) in panel.chunks_exact_mut(width).enumerate() {
            let start = part.start + p * part.depth_stride;
            for (lane, to) in group.iter_mut().enumerate().take(end).skip(first) {
                *to = operand.data[start + lane * part.lane_stride].to_acc();
            }
        }
    }
}

/// Packs groups of `W` contiguous elements.
fn copy_groups<E: Element, const W: usize>(data: &[E], part: &Part, panel: &mut [E::Acc]) {
    let (groups, _) = panel.as_chunks_mut::<W>();
    for (p, group) in groups.iter_mut().enumerate() {
        let start = part.start + p * part.depth_stride;
        if let Some(source) = data[start..].first_chunk::<W>() {
            for (to, from) in group.iter_mut().zip(source) {
                *to = from.to_acc();
            }
        }
    }
}
