//! What moves, repeats or cuts elements, and makes constant ones.
//!
//! A box is copied by the first of these that fits: the driver's own copy, where it is one run of bytes; as a
//! matrix by tiles through shared memory, where each side has its own short step; and else element by
//! element in the order of the output, the elements being as wide as steps and places allow, up to 16 bytes.

use super::compile::Unit;
use super::division::{Divider, narrow};
use super::encode::{Arguments, BLOCK, Call, Launch, Operand, Sink, Unsupported, address};
use crate::ops::movement::copy::{Axis, MAX_AXES, Origin, Part};
use crate::ops::movement::{Movement, Range, Trilu};
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "movement.cu",
    text: Cow::Borrowed(include_str!("movement.cu")),
};

/// Rows and columns of a tile that is transposed at once.
const TILE: usize = 32;
/// The smallest side of a matrix for which tiles are worth it.
const LEAST_SIDE: usize = 8;
/// The widest elements that are moved, in bytes.
const WIDEST: usize = 16;

/// `Box<Divider>` of the kernels, for boxes of less than 2³¹ elements.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct NarrowBox {
    head: Head,
    sizes: [Divider; MAX_AXES],
}

/// `Box<Whole>` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct WideBox {
    head: Head,
    sizes: [u64; MAX_AXES],
}

/// What boxes of both kinds begin with.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Head {
    count: u64,
    axes: u64,
    from_start: i64,
    to_start: u64,
    from: [i64; MAX_AXES],
    to: [u64; MAX_AXES],
}

/// `Tiles` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Tiles {
    count: u64,
    across: u64,
    down: u64,
    rows: u64,
    columns: u64,
    row_to: u64,
    column_from: i64,
}

/// Bytes of an element that kernels only move.
///
/// # Errors
/// [`Unsupported`] where it is not a whole number of them, or too many.
pub(super) fn width(data_type: DataType) -> Result<usize, Unsupported> {
    match data_type.bits() {
        Some(bits @ (8 | 16 | 32 | 64)) => Ok(bits as usize / 8),
        _ => Err(Unsupported(format!(
            "moving elements of type {}",
            data_type.0
        ))),
    }
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Movement, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    match op {
        Movement::Copy(copy) => {
            for part in &copy.parts {
                let Some(output) = call.optional_output(part.output) else {
                    continue;
                };
                copy_part(part, &output, call, sink)?;
            }
            Ok(())
        }
        Movement::Trilu(op) => triangle(op, call, sink),
        Movement::Range(op) => range(op, &call.output(0)?, sink),
    }
}

fn copy_part(
    part: &Part,
    output: &Operand<'_>,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let bytes = width(output.ty.data_type)?;
    let mut part = part.clone();
    let from = match part.origin {
        Origin::Element(element) => return fill(part, element, bytes, output, sink),
        Origin::Input(slot) => call.input(slot)?.address,
        Origin::Scalar(slot) => {
            part.axes.iter_mut().for_each(|axis| axis.from = 0);
            part.from = 0;
            call.input(slot)?.address
        }
    };
    let run = match part.axes[..] {
        [] => Some(1),
        [axis] if (axis.from, axis.to) == (1, 1) => Some(axis.size),
        _ => None,
    };
    if let Some(elements) = run {
        let at = |address: u64, place: usize| address + (place * bytes) as u64;
        sink.copy(
            at(output.address, part.to),
            at(from, part.from),
            elements * bytes,
        );
        return Ok(());
    }
    let arguments = Arguments::new().address(from).address(output.address);
    if let Some((tiles, outer)) = tiles(&part) {
        let grid = sink.blocks(tiles.count as usize, 1);
        let arguments = arguments
            .structure(&tiles)
            .structure(&wide_box(&outer, part.from, part.to));
        sink.launch(&UNIT, format!("transpose_{bytes}"), grid, BLOCK, arguments);
        return Ok(());
    }
    let bytes = widen(&mut part, bytes);
    launch_box("copy", &part, bytes, arguments, sink);
    Ok(())
}

/// Sets all elements of a box.
fn fill(
    mut part: Part,
    element: [u8; 8],
    bytes: usize,
    output: &Operand<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let element = &element[..bytes];
    // As if they were read from a tensor of the same layout: the longest runs count.
    part.axes
        .iter_mut()
        .for_each(|axis| axis.from = axis.to as isize);
    part.from = part.to;
    if let ([Axis { size, to: 1, .. }], true) =
        (&part.axes[..], element.iter().all(|&b| b == element[0]))
    {
        let to = output.address + (part.to * bytes) as u64;
        sink.fill(to, element[0], size * bytes);
        return Ok(());
    }
    let wide = widen(&mut part, bytes);
    let pattern: [u8; WIDEST] = std::array::from_fn(|place| element[place % bytes]);
    let arguments = match wide {
        1 => Arguments::new().structure(&pattern[0]),
        2 => Arguments::new().structure(&u16::from_le_bytes([pattern[0], pattern[1]])),
        4 => Arguments::new().u32(bytemuck::pod_read_unaligned(&pattern[..4])),
        8 => Arguments::new().u64(bytemuck::pod_read_unaligned(&pattern[..8])),
        _ => Arguments::new().structure(&Sixteen(pattern)),
    };
    launch_box("fill", &part, wide, arguments.address(output.address), sink);
    Ok(())
}

/// `Sixteen` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct Sixteen([u8; WIDEST]);

/// Takes neighbours for one element, where all runs have them: gives its bytes.
fn widen(part: &mut Part, bytes: usize) -> usize {
    let mut bytes = bytes;
    while bytes < WIDEST {
        let Some((last, outer)) = part.axes.split_last() else {
            break;
        };
        let even = |axis: &Axis| axis.from % 2 == 0 && axis.to.is_multiple_of(2);
        let runs = (last.from, last.to) == (1, 1) && last.size.is_multiple_of(2);
        if !runs
            || !outer.iter().all(even)
            || !part.from.is_multiple_of(2)
            || !part.to.is_multiple_of(2)
        {
            break;
        }
        let place = part.axes.len() - 1;
        for axis in &mut part.axes[..place] {
            axis.from /= 2;
            axis.to /= 2;
        }
        part.axes[place].size /= 2;
        part.from /= 2;
        part.to /= 2;
        bytes *= 2;
    }
    bytes
}

/// Launches a kernel over all elements of a box.
fn launch_box(kernel: &str, part: &Part, bytes: usize, arguments: Arguments, sink: &mut Sink<'_>) {
    let boxed = wide_box(&part.axes, part.from, part.to);
    let dividers = part
        .axes
        .iter()
        .map(|axis| Divider::new(axis.size))
        .collect::<Result<Vec<_>, _>>();
    let grid = sink.blocks(part.elements(), BLOCK as usize);
    match (narrow(part.elements()), dividers) {
        (Ok(_), Ok(dividers)) => {
            let mut sizes = [Divider::default(); MAX_AXES];
            sizes[..dividers.len()].copy_from_slice(&dividers);
            let head = boxed.head;
            let arguments = arguments.structure(&NarrowBox { head, sizes });
            sink.launch(&UNIT, format!("{kernel}_{bytes}"), grid, BLOCK, arguments);
        }
        _ => {
            let arguments = arguments.structure(&boxed);
            let name = format!("{kernel}_wide_{bytes}");
            sink.launch(&UNIT, name, grid, BLOCK, arguments);
        }
    }
}

fn wide_box(axes: &[Axis], from: usize, to: usize) -> WideBox {
    let mut boxed = WideBox {
        head: Head {
            count: axes.iter().map(|axis| axis.size as u64).product(),
            axes: axes.len() as u64,
            from_start: from as i64,
            to_start: to as u64,
            from: [0; MAX_AXES],
            to: [0; MAX_AXES],
        },
        sizes: [1; MAX_AXES],
    };
    for (number, axis) in axes.iter().enumerate() {
        boxed.head.from[number] = axis.from as i64;
        boxed.head.to[number] = axis.to as u64;
        boxed.sizes[number] = axis.size as u64;
    }
    boxed
}

/// The matrix of a box and its other axes, where the output's short step is a long one in the input and the
/// other way round, and the matrix is no thin strip.
fn tiles(part: &Part) -> Option<(Tiles, Vec<Axis>)> {
    let (columns, outer) = part.axes.split_last()?;
    let row = outer.iter().position(|axis| axis.from == 1)?;
    let rows = outer[row];
    let scattered = columns.to == 1 && columns.from.unsigned_abs() > 1;
    if !scattered || rows.size < LEAST_SIDE || columns.size < LEAST_SIDE {
        return None;
    }
    let mut others = outer.to_vec();
    others.remove(row);
    let matrices: usize = others.iter().map(|axis| axis.size).product();
    let (down, across) = (rows.size.div_ceil(TILE), columns.size.div_ceil(TILE));
    let tiles = Tiles {
        count: (matrices * down * across) as u64,
        across: across as u64,
        down: down as u64,
        rows: rows.size as u64,
        columns: columns.size as u64,
        row_to: rows.to as u64,
        column_from: columns.from as i64,
    };
    Some((tiles, others))
}

fn triangle(op: &Trilu, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (input, output) = (call.input(0)?, call.output(0)?);
    let bytes = width(output.ty.data_type)?;
    let elements = output.ty.elements();
    if elements == 0 || op.rows == 0 || op.columns == 0 {
        return Ok(());
    }
    let lines = elements / op.columns;
    let given = match op.diagonal {
        Some(_) => None,
        None => call.optional_input(1),
    };
    // The threads of a row: a power of two.
    let across = op.columns.next_power_of_two().clamp(8, BLOCK as usize) as u32;
    let down = BLOCK / across;
    let grid = sink.blocks(lines, down as usize);
    sink.launch_with(Launch {
        unit: UNIT.clone(),
        kernel: format!("triangle_{bytes}"),
        grid: [grid, 1, 1],
        block: [across, down, 1],
        shared: 0,
        arguments: Arguments::new()
            .address(input.address)
            .address(output.address)
            .size(op.rows)
            .size(op.columns)
            .size(lines)
            .i64(op.diagonal.unwrap_or(0))
            .address(address(given))
            .u32(u32::from(op.upper)),
    });
    Ok(())
}

fn range(op: &Range, output: &Operand<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let arguments = Arguments::new().address(output.address);
    let (kernel, arguments) = match (*op, output.ty.data_type) {
        (Range::Integers { start, step }, data_type) => {
            let kernel = match data_type {
                DataType::INT64 => "sequence_i64",
                DataType::INT32 => "sequence_i32",
                DataType(5) => "sequence_i16",
                other => return Err(of_type(other)),
            };
            (kernel, arguments.i64(start).i64(step))
        }
        (Range::Floats { start, step }, data_type) => {
            let kernel = match data_type {
                DataType::FLOAT => "ramp_f32",
                DataType::DOUBLE => "ramp_f64",
                DataType::FLOAT16 => "ramp_f16",
                DataType::BFLOAT16 => "ramp_bf16",
                other => return Err(of_type(other)),
            };
            (kernel, arguments.f64(start).f64(step))
        }
    };
    let count = output.ty.elements();
    let grid = sink.blocks(count, BLOCK as usize);
    sink.launch(&UNIT, kernel, grid, BLOCK, arguments.size(count));
    Ok(())
}

fn of_type(data_type: DataType) -> Unsupported {
    Unsupported(format!("a sequence of elements of type {}", data_type.0))
}
