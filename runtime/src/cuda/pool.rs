//! Pooling over planes, with its gradients.

use super::compile::Unit;
use super::division::{Divider, narrow};
use super::encode::{Arguments, BLOCK, Call, Sink, Unsupported, address};
use super::window::{Narrow, planes, suffix};
use crate::ops::window::{Pool, Reduction};
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "pool.cu",
    text: Cow::Borrowed(include_str!("pool.cu")),
};

/// Taps from which a warp works on a window.
const LARGE: usize = 32;
/// Warps of all planes together that the gradient of a maximum aims at, and the elements of dX that are
/// too few for a warp of their own.
const WARPS: usize = 4096;
const LEAST_PART: usize = 256;

/// `Pool` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Pooled {
    geometry: Narrow,
    positions: [Divider; 3],
    plane: u32,
    reduction: u32,
    flag: u32,
    p: f32,
}

impl Pooled {
    fn new(op: &Pool) -> Result<Self, Unsupported> {
        let (reduction, flag, p) = match op.reduction {
            Reduction::Max { column_major } => (0, column_major, 0.0),
            Reduction::Average { count_padding } => (1, count_padding, 0.0),
            Reduction::Norm { p } => (2, false, p),
        };
        Ok(Pooled {
            geometry: Narrow::new(&op.geometry)?,
            positions: planes(op.geometry.out)?,
            plane: narrow(op.geometry.plane())?,
            reduction,
            flag: u32::from(flag),
            p,
        })
    }
}

/// X → Y, and for the maximum, where they lie in X.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub(super) fn pool(op: &Pool, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, y) = (call.input(0)?, call.output(0)?);
    let suffix = match x.ty.data_type {
        DataType::FLOAT => "f32",
        DataType::DOUBLE => "f64",
        DataType::FLOAT16 => "f16",
        DataType::BFLOAT16 => "bf16",
        DataType::UINT8 => "u8",
        DataType::INT8 => "i8",
        other => return Err(Unsupported(format!("pooling of element type {}", other.0))),
    };
    let indices = match op.reduction {
        Reduction::Max { .. } => call.optional_output(1),
        _ => None,
    };
    let count = narrow(y.ty.elements())?;
    let arguments = Arguments::new()
        .address(x.address)
        .address(y.address)
        .address(address(indices))
        .structure(&Pooled::new(op)?)
        .u32(count);
    let (kernel, per_block) = match op.geometry.taps() >= LARGE {
        true => ("pool_by_warps", BLOCK as usize / 32),
        false => ("pool", BLOCK as usize),
    };
    let blocks = sink.blocks(count as usize, per_block);
    sink.launch(
        &UNIT,
        format!("{kernel}_{suffix}"),
        blocks,
        BLOCK,
        arguments,
    );
    Ok(())
}

/// dY, where the maxima lie in X → dX.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub(super) fn max_gradient(
    planes: usize,
    size: usize,
    positions: usize,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (dy, indices, dx) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let suffix = suffix(dx.ty.data_type)?;
    if planes == 0 || size == 0 {
        return Ok(());
    }
    // The result does not depend on the number of parts: what falls on an element is in one of them.
    let most = size.div_ceil(LEAST_PART);
    let parts = (WARPS / planes).clamp(1, most);
    let (report, check) = sink.check(|_, _| {
        "an index lies outside of its plane: expected the indices of MaxPool".to_owned()
    });
    let size = narrow(size)?;
    let arguments = Arguments::new()
        .address(dy.address)
        .address(indices.address)
        .address(dx.address)
        .u32(narrow(planes)?)
        .u32(size)
        .u32(narrow(positions)?)
        .u32(parts as u32)
        // Places up to the size, which stands for none.
        .u32(u32::BITS - size.leading_zeros())
        .address(report)
        .u32(check);
    let blocks = sink.blocks(planes * parts, 1);
    let kernel = format!("max_gradient_{suffix}");
    sink.launch(&UNIT, kernel, blocks, 32, arguments);
    Ok(())
}

/// dY → dX.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub(super) fn average_gradient(
    op: &Pool,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (dy, dx) = (call.input(0)?, call.output(0)?);
    let suffix = suffix(dx.ty.data_type)?;
    let count = narrow(dx.ty.elements())?;
    let mut pooled = Pooled::new(op)?;
    let counts_padding = matches!(
        op.reduction,
        Reduction::Average {
            count_padding: true
        }
    );
    pooled.flag = u32::from(counts_padding);
    let [plane, in_plane, in_row] = planes(op.geometry.size)?;
    let arguments = Arguments::new()
        .address(dy.address)
        .address(dx.address)
        .structure(&pooled)
        .structure(&plane)
        .structure(&in_plane)
        .structure(&in_row)
        .u32(count);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    let kernel = format!("average_gradient_{suffix}");
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}
