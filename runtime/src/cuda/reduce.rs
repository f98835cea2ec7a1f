//! Reductions over axes.

use super::compile::Unit;
use super::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported};
use super::source::{Columns, Divisor, Source, element_bytes, no_kernel, type_name, whole_pack};
use crate::ops::reduce::{Arg, Fold, Group, Kind, Reduce, Running};
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use velora_graph::shapes::DataType;

/// The kernels of most reductions.
pub const SOURCE: Source = Source {
    name: "reduce",
    file: "reduce.cu",
};

/// The kernels of logarithms of sums of powers, places of extremes, and running sums.
pub const SCAN: Source = Source {
    name: "scan",
    file: "scan.cu",
};

/// Axes of a kind that the kernels for any form take; kept and reduced ones take turns.
const AXES: usize = crate::ops::reduce::MAX_GROUPS / 2;

/// Elements of a row that a block reduces at least.
const LONG: usize = 8192;

/// `Axis` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Axis {
    size: Divisor,
    step: u64,
}

/// `Axes` of the kernels, from the innermost.
type Axes = [Axis; AXES];

/// The axes that stay and those that are reduced.
struct Walk {
    kept: Axes,
    reduced: Axes,
    /// The number of results.
    results: usize,
    /// The number of elements of each.
    count: usize,
}

impl Walk {
    fn new(op: &Fold) -> Self {
        let none = Axis {
            size: Divisor::new(1),
            step: 0,
        };
        let (mut axes, mut places, mut products) = ([[none; AXES]; 2], [0; 2], [1; 2]);
        let mut step = 1;
        for group in op.groups.iter().rev() {
            let which = usize::from(group.reduced);
            axes[which][places[which]] = Axis {
                size: Divisor::new(group.size),
                step,
            };
            places[which] += 1;
            products[which] *= group.size;
            step *= group.size as u64;
        }
        let [kept, reduced] = axes;
        let [results, count] = products;
        Walk {
            kept,
            reduced,
            results,
            count,
        }
    }

    /// As the kernels take it.
    fn arguments(&self, operands: Arguments) -> Arguments {
        let operands = operands.structure(&self.kept).structure(&self.reduced);
        operands.size(self.results).size(self.count)
    }

    /// Whether elements of a result lie side by side.
    fn is_along(op: &Fold) -> bool {
        op.groups.last().is_some_and(|group| group.reduced)
    }
}

/// The loops of a reduction.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Every result from elements side by side, in so many parts.
    Rows {
        rows: usize,
        size: usize,
        parts: usize,
    },
    /// Columns of matrices.
    Columns { outer: usize, columns: Columns },
    /// Anything else.
    General,
}

impl Form {
    fn of(op: &Fold, data_type: DataType) -> Form {
        let rows = |rows: usize, size: usize| {
            // A few long rows are cut, so that there is something to do for all.
            let parts = size.div_ceil(LONG).min(1024usize.div_ceil(rows.max(1)));
            let parts = parts.max(1);
            Form::Rows { rows, size, parts }
        };
        let columns = |outer: usize, rows: usize, width: usize| {
            let pack = whole_pack(data_type, width);
            let columns = match outer {
                // Not cut where there are many.
                0..8 => Columns::new(rows, width, pack),
                _ => Columns::whole(rows, width, pack),
            };
            Form::Columns { outer, columns }
        };
        let reduced = |group: &Group| group.reduced;
        match op.groups.as_slice() {
            [] => rows(1, 1),
            [only] if !only.reduced => rows(only.size, 1),
            [only] => rows(1, only.size),
            [outer, row] if reduced(row) => rows(outer.size, row.size),
            [row, width] => columns(1, row.size, width.size),
            [outer, row, width] if reduced(row) => columns(outer.size, row.size, width.size),
            _ => Form::General,
        }
    }

    /// Bytes of the parts, 0 where there is one of each result.
    fn bytes(&self) -> usize {
        match self {
            Form::Rows { rows, parts, .. } if *parts > 1 => rows * parts * 8,
            Form::Columns { outer, columns } if columns.parts() > 1 => outer * columns.bytes(),
            _ => 0,
        }
    }
}

/// Bytes of scratch.
pub fn workspace(
    op: &Reduce,
    inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match (op, inputs.first().copied().flatten()) {
        (Reduce::Fold(fold), Some(ty)) if fold.kind != Kind::LogSumExp => {
            Form::of(fold, ty.data_type).bytes()
        }
        _ => 0,
    }
}

/// The unit in which an element type is meant.
fn unit(source: &Source, data_type: DataType, step: &str) -> Result<Unit, Unsupported> {
    match data_type {
        DataType::FLOAT
        | DataType::DOUBLE
        | DataType::FLOAT16
        | DataType::BFLOAT16
        | DataType::INT64
        | DataType::INT32
        | DataType::INT8
        | DataType::UINT8
        | DataType::BOOL => {}
        other => return Err(no_kernel(other)),
    }
    let bytes = element_bytes(data_type).to_string();
    Ok(source.with(&[
        ("Element", type_name(data_type)?),
        ("ELEMENT_BYTES", &bytes),
        ("Step", step),
    ]))
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Reduce, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, y) = (call.input(0)?, call.output(0)?);
    let scan = unit(&SCAN, x.ty.data_type, "Sum")?;
    if y.ty.elements() == 0 {
        return Ok(());
    }
    match op {
        Reduce::Fold(fold) if fold.kind == Kind::LogSumExp => {
            let walk = Walk::new(fold);
            let log_lanes = match Walk::is_along(fold) {
                true => log_lanes(walk.count),
                false => 0,
            };
            let operands = Arguments::new().address(x.address).address(y.address);
            let arguments = walk
                .arguments(operands)
                .u32(log_lanes)
                .u32(u32::from(y.ty.data_type == DataType::BOOL));
            let blocks = sink.blocks(walk.results, BLOCK as usize >> log_lanes);
            sink.launch(&scan, "log_sum_exp", blocks, BLOCK, arguments);
        }
        Reduce::Fold(fold) => encode_fold(fold, call, [x, y], sink)?,
        Reduce::Arg(op) => arg(op, [x, y], &scan, sink),
        Reduce::Running(op) => running(op, [x, y], &scan, sink),
    }
    Ok(())
}

/// The logarithm of the number of threads for a result of so many elements, up to a warp.
fn log_lanes(elements: usize) -> u32 {
    elements.max(1).next_power_of_two().trailing_zeros().min(5)
}

fn encode_fold(
    op: &Fold,
    call: &Call<'_>,
    [x, y]: [Operand<'_>; 2],
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (step, mut kind) = match op.kind {
        Kind::Sum => ("Sum", 0),
        Kind::Mean => ("Sum", 1),
        Kind::LogSum => ("Sum", 3),
        Kind::L1 => ("SumAbs", 0),
        Kind::L2 => ("SumSquare", 2),
        Kind::SumSquare => ("SumSquare", 0),
        Kind::Product => ("Product", 0),
        Kind::Max => ("Max", 0),
        Kind::Min => ("Min", 0),
        Kind::LogSumExp => return Err(Unsupported("a reduction of another kernel".to_owned())),
    };
    if y.ty.data_type == DataType::BOOL {
        kind |= 8;
    }
    let data_type = x.ty.data_type;
    let unit = unit(&SOURCE, data_type, step)?;
    let form = Form::of(op, data_type);
    let parts = match form.bytes() {
        0 => 0,
        _ => call.workspace.address,
    };
    let operands = Arguments::new().address(x.address).address(y.address);
    let (count, reduced) = match form {
        Form::Rows {
            rows,
            size,
            parts: 1,
        } if size <= 2048 || rows >= 4096 => {
            let pack = whole_pack(data_type, size);
            let log_lanes = log_lanes(size.div_ceil(pack));
            let arguments = operands.size(rows).size(size).u32(log_lanes).u32(kind);
            let blocks = sink.blocks(rows, BLOCK as usize >> log_lanes);
            let kernel = format!("short_rows_{pack}");
            sink.launch(&unit, kernel, blocks, BLOCK, arguments);
            return Ok(());
        }
        Form::Rows {
            rows,
            size,
            parts: count,
        } => {
            let pack = whole_pack(data_type, size);
            let blocks = rows * count;
            let arguments = operands
                .address(parts)
                .size(rows)
                .size(size)
                .size((size / pack).div_ceil(count))
                .size(blocks)
                .u32(kind);
            let grid = sink.blocks(blocks, 1);
            sink.launch(&unit, format!("long_rows_{pack}"), grid, BLOCK, arguments);
            (count, size)
        }
        Form::Columns { outer, columns } => {
            let pack = whole_pack(data_type, columns.width());
            let blocks = outer * columns.blocks();
            let arguments = operands
                .address(parts)
                .size(outer)
                .structure(&columns)
                .size(blocks)
                .u32(kind);
            let grid = sink.blocks(blocks, 1);
            sink.launch(&unit, format!("columns_{pack}"), grid, BLOCK, arguments);
            (columns.parts(), columns.rows())
        }
        Form::General => {
            let walk = Walk::new(op);
            let (results, count) = (walk.results, walk.count);
            let arguments = walk.arguments(operands);
            if count >= 1024 && results < 16 * 1024 {
                let grid = sink.blocks(results, 1);
                sink.launch(&unit, "any_axes_by_block", grid, BLOCK, arguments.u32(kind));
                return Ok(());
            }
            let log_lanes = match Walk::is_along(op) || results < 16 * 1024 {
                true => log_lanes(count),
                false => 0,
            };
            let arguments = arguments.u32(log_lanes).u32(kind);
            let grid = sink.blocks(results, BLOCK as usize >> log_lanes);
            sink.launch(&unit, "any_axes", grid, BLOCK, arguments);
            return Ok(());
        }
    };
    if parts != 0 {
        let width = y.ty.elements();
        let arguments = Arguments::new()
            .address(parts)
            .size(count)
            .size(width)
            .address(y.address)
            .size(reduced)
            .u32(kind);
        let blocks = width.div_ceil(32) as u32;
        sink.launch(&unit, "join_totals", blocks, BLOCK, arguments);
    }
    Ok(())
}

fn arg(op: &Arg, [x, y]: [Operand<'_>; 2], unit: &Unit, sink: &mut Sink<'_>) {
    let results = y.ty.elements();
    let log_lanes = match op.inner {
        1 => log_lanes(op.size),
        _ => 0,
    };
    let arguments = Arguments::new()
        .address(x.address)
        .address(y.address)
        .size(results)
        .size(op.size)
        .structure(&Divisor::new(op.inner))
        .u32(log_lanes)
        .u32(u32::from(op.greatest))
        .u32(u32::from(op.last));
    let blocks = sink.blocks(results, BLOCK as usize >> log_lanes);
    sink.launch(unit, "extreme", blocks, BLOCK, arguments);
}

fn running(op: &Running, [x, y]: [Operand<'_>; 2], unit: &Unit, sink: &mut Sink<'_>) {
    let lines = op.outer * op.inner;
    let arguments = Arguments::new()
        .address(x.address)
        .address(y.address)
        .size(lines)
        .size(op.size);
    let flags = |arguments: Arguments| {
        let arguments = arguments.u32(u32::from(op.exclusive));
        arguments.u32(u32::from(op.reverse))
    };
    if op.inner == 1 && op.size >= 16 {
        let blocks = sink.blocks(lines, BLOCK as usize / 32);
        sink.launch(unit, "running_rows", blocks, BLOCK, flags(arguments));
        return;
    }
    let arguments = flags(arguments.structure(&Divisor::new(op.inner)));
    let blocks = sink.blocks(lines, BLOCK as usize);
    sink.launch(unit, "running", blocks, BLOCK, arguments);
}
