//! What reads or writes at places given by a tensor.
//!
//! What is scattered is sorted by its place first, in scratch, so that additions happen in the CPU's order and
//! without atomics. A scan of all indices for each row would cost rows · updates, and one for each update
//! updates²; sorting costs a few passes over the indices, however many rows there are.

use super::compile::Unit;
use super::division::{Divider, narrow};
use super::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported};
use super::movement::width;
use super::select;
use crate::ops::index::{Elements, Index, Reduction, Rows};
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "index.cu",
    text: Cow::Borrowed(include_str!("index.cu")),
};

/// The most axes that indices choose from, or that elements are addressed along.
const MOST_AXES: usize = 8;
/// Keys that a block sorts, and digits of a pass.
const SORT_TILE: usize = 1024;
const DIGITS: usize = 256;

/// `RowShape` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RowShape {
    depth: u32,
    rows: u32,
    bounds: [u32; MOST_AXES],
    count: Divider,
    batch: Divider,
    slice: Divider,
}

/// `ElementShape` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct ElementShape {
    axes: u32,
    bound: u32,
    step: u64,
    steps: [u64; MOST_AXES],
    sizes: [Divider; MOST_AXES],
}

/// `Spread` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Spread {
    updates: u32,
    outer: u32,
    rows: u32,
    slice: u32,
    columns: Divider,
    sorted: Divider,
}

/// Bytes of scratch.
pub fn workspace(
    op: &Index,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        Index::Scatter(op, _) => Sort::new(op.batch.saturating_mul(op.count)).bytes(),
        Index::ScatterElements(op, _) => Sort::new(op.indices.iter().product()).bytes(),
        _ => 0,
    }
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Index, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    match op {
        Index::Gather(op) => gather(op, call, sink),
        Index::Scatter(op, reduction) => scatter(op, *reduction, call, sink),
        Index::GatherElements(op) => gather_elements(op, call, sink),
        Index::ScatterElements(op, reduction) => scatter_elements(op, *reduction, call, sink),
        Index::OneHot(op) => select::one_hot(op, call, sink),
        Index::TopK(op) => select::top_k(op, call, sink),
    }
}

/// The part of a kernel's name that says how wide indices are.
fn indices_of(indices: &Operand<'_>) -> Result<&'static str, Unsupported> {
    match indices.ty.data_type {
        DataType::INT32 => Ok("i32"),
        DataType::INT64 => Ok("i64"),
        other => Err(Unsupported(format!("indices of type {}", other.0))),
    }
}

/// The report, and the check of indices against bounds that they cycle through.
fn bounds_check(bounds: &[usize], sink: &mut Sink<'_>) -> (u64, u32) {
    let bounds = bounds.to_vec();
    sink.check(move |position, index| {
        let place = usize::try_from(position).unwrap_or(0);
        let bound = bounds.get(place % bounds.len().max(1)).copied();
        let bound = bound.unwrap_or(0);
        format!(
            "index {index} at position {position} is outside the axis: expected -{bound} to {bound}, exclusive"
        )
    })
}

fn row_shape(op: &Rows, slice: usize) -> Result<RowShape, Unsupported> {
    if op.bounds.len() > MOST_AXES {
        return Err(Unsupported(format!(
            "indices of {} axes: expected at most {MOST_AXES}",
            op.bounds.len()
        )));
    }
    let mut bounds = [0; MOST_AXES];
    for (to, &bound) in bounds.iter_mut().zip(&op.bounds) {
        *to = narrow(bound)?;
    }
    Ok(RowShape {
        depth: op.bounds.len() as u32,
        rows: narrow(op.bounds.iter().product())?,
        bounds,
        count: Divider::new(op.count)?,
        batch: Divider::new(op.batch)?,
        slice: Divider::new(slice)?,
    })
}

/// How many elements of a row are moved as one: gives the bytes of those, and how many there are.
fn widen(slice: usize, bytes: usize) -> (usize, usize) {
    let (mut slice, mut bytes) = (slice, bytes);
    while bytes < 16 && slice > 0 && slice.is_multiple_of(2) {
        slice /= 2;
        bytes *= 2;
    }
    (bytes, slice)
}

fn gather(op: &Rows, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (data, indices, output) = (call.input(0)?, call.input(1)?, call.output(0)?);
    if output.ty.elements() == 0 {
        return Ok(());
    }
    let (bytes, slice) = widen(op.slice, width(output.ty.data_type)?);
    let shape = row_shape(op, slice)?;
    let count = narrow(op.outer * op.batch * op.count * slice)?;
    let kernel = format!("gather_{}_{bytes}", indices_of(&indices)?);
    let (report, check) = bounds_check(&op.bounds, sink);
    let arguments = Arguments::new()
        .address(data.address)
        .address(indices.address)
        .address(output.address)
        .structure(&shape)
        .u32(count)
        .address(report)
        .u32(check);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

fn element_shape(op: &Elements) -> Result<ElementShape, Unsupported> {
    let strides = TensorType::new(DataType::UINT8, op.data.clone()).strides();
    // Sizes of the indices, with the steps of the data; neighbours that are one axis in both are merged.
    let mut axes: Vec<(usize, usize)> = Vec::new();
    for (axis, (&size, &stride)) in op.indices.iter().zip(&strides).enumerate() {
        let step = if axis == op.axis { 0 } else { stride };
        match axes.last_mut() {
            _ if size == 1 => {}
            Some(outer) if outer.1 == step * size => *outer = (outer.0 * size, step),
            _ => axes.push((size, step)),
        }
    }
    if axes.len() > MOST_AXES {
        return Err(Unsupported(format!(
            "{} axes move independently: expected at most {MOST_AXES}",
            axes.len()
        )));
    }
    let mut shape = ElementShape {
        axes: axes.len() as u32,
        bound: narrow(op.data[op.axis])?,
        step: strides[op.axis] as u64,
        steps: [0; MOST_AXES],
        sizes: [Divider::default(); MOST_AXES],
    };
    for (number, (size, step)) in axes.into_iter().enumerate() {
        shape.steps[number] = step as u64;
        shape.sizes[number] = Divider::new(size)?;
    }
    Ok(shape)
}

fn gather_elements(op: &Elements, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (data, indices, output) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let count = narrow(output.ty.elements())?;
    if count == 0 {
        return Ok(());
    }
    let bytes = width(output.ty.data_type)?;
    let kernel = format!("gather_elements_{}_{bytes}", indices_of(&indices)?);
    let shape = element_shape(op)?;
    let (report, check) = bounds_check(&[op.data[op.axis]], sink);
    let arguments = Arguments::new()
        .address(data.address)
        .address(indices.address)
        .address(output.address)
        .structure(&shape)
        .u32(count)
        .address(report)
        .u32(check);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

/// The places of a sort's lists in scratch.
#[derive(Clone, Copy, Debug)]
struct Sort {
    count: usize,
}

impl Sort {
    fn new(count: usize) -> Self {
        Sort { count }
    }

    /// Bytes of one list, to the next multiple of 64.
    fn list(&self) -> usize {
        self.count.saturating_mul(4).next_multiple_of(64)
    }

    fn tiles(&self) -> usize {
        self.count.div_ceil(SORT_TILE)
    }

    /// Keys and order, each before and after a pass, and the counts of digits.
    fn bytes(&self) -> usize {
        let counts = self.tiles().saturating_mul(DIGITS * 4);
        self.list().saturating_mul(4).saturating_add(counts)
    }

    /// The keys, then the order, in one of two places.
    fn lists(&self, workspace: u64, place: usize) -> (u64, u64) {
        let at = |number: usize| workspace + (number * self.list()) as u64;
        (at(place), at(2 + place))
    }

    /// Sorts keys up to `most`, which are in the first place; gives the keys and the order.
    fn encode(
        &self,
        workspace: u64,
        most: u32,
        sink: &mut Sink<'_>,
    ) -> Result<(u64, u64), Unsupported> {
        let counts = workspace + 4 * self.list() as u64;
        let (count, tiles) = (narrow(self.count)?, narrow(self.tiles())?);
        let passes = (u32::BITS - most.leading_zeros()).div_ceil(8).max(1);
        for pass in 0..passes {
            let from = pass as usize % 2;
            let (keys, order) = self.lists(workspace, from);
            let (to_keys, to_order) = self.lists(workspace, 1 - from);
            let arguments = Arguments::new()
                .address(keys)
                .address(counts)
                .u32(count)
                .u32(tiles)
                .u32(8 * pass);
            sink.launch(&UNIT, "count_digits", tiles, DIGITS as u32, arguments);
            let arguments = Arguments::new()
                .address(counts)
                .u32(narrow(self.tiles() * DIGITS)?);
            sink.launch(&UNIT, "add_up", 1, 1024, arguments);
            let arguments = Arguments::new()
                .address(keys)
                .address(if pass == 0 { 0 } else { order })
                .address(to_keys)
                .address(to_order)
                .address(counts)
                .u32(count)
                .u32(tiles)
                .u32(8 * pass);
            sink.launch(&UNIT, "sort_by_digit", tiles, DIGITS as u32, arguments);
        }
        Ok(self.lists(workspace, passes as usize % 2))
    }
}

/// Gives an output its first elements: those of the data, or 0.
fn start(call: &Call<'_>, output: &Operand<'_>, sink: &mut Sink<'_>) {
    match call.optional_input(0) {
        Some(data) => sink.copy(output.address, data.address, output.ty.bytes()),
        None => sink.fill(output.address, 0, output.ty.bytes()),
    }
}

/// What updates are combined into.
struct Target {
    outer: usize,
    /// Rows, of `slice` elements each.
    rows: usize,
    slice: usize,
}

/// Sorts the updates by their keys, which are there, and combines those of each row.
fn combine(
    sort: Sort,
    target: &Target,
    reduction: Reduction,
    call: &Call<'_>,
    output: &Operand<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let updates = call.input(2)?;
    let data_type = output.ty.data_type;
    let (kernel, slice) = match reduction {
        Reduction::Replace => {
            let (bytes, slice) = widen(target.slice, width(data_type)?);
            (format!("replace_{bytes}"), slice)
        }
        _ => {
            let name = match reduction {
                Reduction::Mul => "multiply",
                Reduction::Max => "greater",
                Reduction::Min => "lesser",
                _ => "add",
            };
            (format!("{name}_{}", number(data_type)?), target.slice)
        }
    };
    let rows = narrow(target.rows)?;
    let count = narrow(target.outer * sort.count * slice)?;
    let (keys, order) = sort.encode(call.workspace.address, rows, sink)?;
    let spread = Spread {
        updates: narrow(sort.count)?,
        outer: narrow(target.outer)?,
        rows,
        slice: narrow(slice)?,
        columns: Divider::new(slice)?,
        sorted: Divider::new(sort.count)?,
    };
    let arguments = Arguments::new()
        .address(keys)
        .address(order)
        .address(updates.address)
        .address(output.address)
        .structure(&spread)
        .u32(count);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

/// The ending of a kernel for numbers.
pub(super) fn number(data_type: DataType) -> Result<&'static str, Unsupported> {
    Ok(match data_type.0 {
        1 => "f32",
        11 => "f64",
        10 => "f16",
        16 => "bf16",
        3 => "i8",
        5 => "i16",
        6 => "i32",
        7 => "i64",
        2 | 9 => "u8",
        4 => "u16",
        12 => "u32",
        13 => "u64",
        other => return Err(Unsupported(format!("combining elements of type {other}"))),
    })
}

fn scatter(
    op: &Rows,
    reduction: Reduction,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (indices, output) = (call.input(1)?, call.output(0)?);
    start(call, &output, sink);
    let sort = Sort::new(op.batch * op.count);
    let shape = row_shape(op, op.slice)?;
    let target = Target {
        outer: op.outer,
        rows: op.batch * shape.rows as usize,
        slice: op.slice,
    };
    let (report, check) = bounds_check(&op.bounds, sink);
    let (keys, _) = sort.lists(call.workspace.address, 0);
    let arguments = Arguments::new()
        .address(indices.address)
        .address(keys)
        .structure(&shape)
        .u32(narrow(sort.count)?)
        .u32(narrow(target.rows)?)
        .address(report)
        .u32(check);
    let kernel = format!("row_keys_{}", indices_of(&indices)?);
    let blocks = sink.blocks(sort.count, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    // Indices are checked also where nothing is written.
    if sort.count == 0 || output.ty.elements() == 0 {
        return Ok(());
    }
    combine(sort, &target, reduction, call, &output, sink)
}

fn scatter_elements(
    op: &Elements,
    reduction: Reduction,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (indices, output) = (call.input(1)?, call.output(0)?);
    start(call, &output, sink);
    let sort = Sort::new(op.indices.iter().product());
    let target = Target {
        outer: 1,
        rows: output.ty.elements(),
        slice: 1,
    };
    let (report, check) = bounds_check(&[op.data[op.axis]], sink);
    let (keys, _) = sort.lists(call.workspace.address, 0);
    let arguments = Arguments::new()
        .address(indices.address)
        .address(keys)
        .structure(&element_shape(op)?)
        .u32(narrow(sort.count)?)
        .u32(narrow(target.rows)?)
        .address(report)
        .u32(check);
    let kernel = format!("element_keys_{}", indices_of(&indices)?);
    let blocks = sink.blocks(sort.count, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    if sort.count == 0 || output.ty.elements() == 0 {
        return Ok(());
    }
    combine(sort, &target, reduction, call, &output, sink)
}
