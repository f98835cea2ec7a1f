//! Batch normalisation and its gradient.

use crate::cuda::compile::Unit;
use crate::cuda::encode::{Arguments, BLOCK, Call, Sink, Unsupported, address};
use crate::cuda::source::{Columns, Divisor, Source, float, float_unit, whole_pack};
use crate::ops::normalize::Batch;
use bytemuck::{Pod, Zeroable};
use velora_graph::shapes::DataType;

/// The kernels.
pub const SOURCE: Source = Source {
    name: "batch",
    file: "batch.cu",
};

/// `Planes` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Planes {
    batch: u64,
    channels: u64,
    spatial: u64,
    parts: u64,
    places: Divisor,
}

impl Planes {
    fn new(op: &Batch) -> Self {
        let parts = match op.spatial {
            1 => columns(op).parts(),
            // A few channels of many elements are cut, so that there is something to do for all.
            _ => {
                let elements = (op.batch * op.spatial).div_ceil(4096);
                elements.min(1024 / op.channels.max(1)).max(1)
            }
        };
        Planes {
            batch: op.batch as u64,
            channels: op.channels as u64,
            spatial: op.spatial as u64,
            parts: parts as u64,
            places: Divisor::new(op.spatial),
        }
    }

    /// Bytes of a sum for each part of each channel.
    fn bytes(&self) -> usize {
        (self.parts * self.channels) as usize * 8
    }
}

/// Without places channels lie side by side, and are columns.
fn columns(op: &Batch) -> Columns {
    Columns::new(op.batch, op.channels, 1)
}

/// What a sum of `batch_columns` is of.
#[derive(Clone, Copy, Debug)]
enum Sum {
    Itself = 0,
    Square = 1,
    Along = 2,
}

/// Bytes of scratch: two numbers of each channel, its mean, and parts of a sum.
pub fn workspace(op: &Batch) -> usize {
    op.channels * 3 * 8 + Planes::new(op).bytes()
}

/// Bytes of scratch: two numbers of each channel, and parts of two sums.
pub fn grad_workspace(op: &Batch) -> usize {
    op.channels * 2 * 8 + 2 * Planes::new(op).bytes()
}

/// Inputs: X, scale, bias, mean, variance; outputs: Y, running mean, running variance, mean and inverse
/// deviation of the batch.
pub fn encode(op: &Batch, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, y) = (call.input(0)?, call.output(0)?);
    let data_type = float(x)?;
    let unit = float_unit(&SOURCE, data_type)?;
    if op.channels == 0 {
        return Ok(());
    }
    let planes = Planes::new(op);
    let numbers = call.workspace.address;
    let means = numbers + op.channels as u64 * 16;
    let sums = means + op.channels as u64 * 8;
    let blocks = sink.blocks(op.channels * planes.parts as usize, 1);
    let by_channel = sink.blocks(op.channels, BLOCK as usize);
    if op.training {
        if op.spatial == 1 {
            column_sums(op, [x.address, 0, 0, 0, 0], sums, Sum::Itself, &unit, sink);
        } else {
            let arguments = Arguments::new().address(x.address).address(sums);
            let arguments = arguments.structure(&planes);
            sink.launch(&unit, "batch_sums", blocks, BLOCK, arguments);
        }
        let arguments = Arguments::new().address(sums).address(means);
        let arguments = arguments.structure(&planes);
        sink.launch(&unit, "batch_means", by_channel, BLOCK, arguments);
        if op.spatial == 1 {
            let operands = [x.address, 0, 0, 0, means];
            column_sums(op, operands, sums, Sum::Square, &unit, sink);
        } else {
            let arguments = Arguments::new()
                .address(x.address)
                .address(means)
                .address(sums)
                .structure(&planes);
            sink.launch(&unit, "batch_squares", blocks, BLOCK, arguments);
        }
    }
    let arguments = Arguments::new()
        .address(call.input(1)?.address)
        .address(call.input(3)?.address)
        .address(call.input(4)?.address)
        .address(means)
        .address(sums)
        .address(numbers)
        .address(address(call.optional_output(1)))
        .address(address(call.optional_output(2)))
        .address(address(call.optional_output(3)))
        .address(address(call.optional_output(4)))
        .structure(&planes)
        .f64(f64::from(op.epsilon))
        .f64(f64::from(op.momentum))
        .u32(u32::from(op.training))
        .u32(u32::from(op.unbiased));
    sink.launch(&unit, "batch_statistics", by_channel, BLOCK, arguments);
    let (pack, packs) = packs(op, data_type);
    let arguments = Arguments::new()
        .address(x.address)
        .address(numbers)
        .address(call.input(2)?.address)
        .address(y.address)
        .size(packs)
        .structure(&Divisor::new(op.spatial / pack))
        .structure(&Divisor::new(op.channels));
    let blocks = sink.blocks(packs, BLOCK as usize);
    sink.launch(
        &unit,
        format!("batch_apply_{pack}"),
        blocks,
        BLOCK,
        arguments,
    );
    Ok(())
}

/// Elements that are moved at once, and how many times.
fn packs(op: &Batch, data_type: DataType) -> (usize, usize) {
    let pack = whole_pack(data_type, op.spatial);
    (pack, op.batch * op.channels * op.spatial / pack)
}

/// Sums of channels without places: of X, dY, the mean, the inverse deviation, and means in doubles.
fn column_sums(
    op: &Batch,
    operands: [u64; 5],
    sums: u64,
    sum: Sum,
    unit: &Unit,
    sink: &mut Sink<'_>,
) {
    let columns = columns(op);
    let arguments = operands
        .into_iter()
        .fold(Arguments::new(), Arguments::address);
    let arguments = arguments.address(sums).structure(&columns).u32(sum as u32);
    sink.launch(
        unit,
        "batch_columns",
        columns.blocks() as u32,
        BLOCK,
        arguments,
    );
}

/// Inputs: dY, X, scale, mean, inverse deviation; outputs: dX, dScale, dBias.
pub fn encode_grad(op: &Batch, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (dy, x) = (call.input(0)?, call.input(1)?);
    let data_type = float(dy)?;
    let unit = float_unit(&SOURCE, data_type)?;
    if op.channels == 0 {
        return Ok(());
    }
    let (mean, inverse) = (call.input(3)?.address, call.input(4)?.address);
    let planes = Planes::new(op);
    let numbers = call.workspace.address;
    let of_scale = numbers + op.channels as u64 * 16;
    let of_bias = of_scale + planes.bytes() as u64;
    if op.spatial == 1 {
        let operands = [x.address, dy.address, mean, inverse, 0];
        column_sums(op, operands, of_scale, Sum::Along, &unit, sink);
        let operands = [dy.address, 0, 0, 0, 0];
        column_sums(op, operands, of_bias, Sum::Itself, &unit, sink);
    } else {
        let arguments = Arguments::new()
            .address(dy.address)
            .address(x.address)
            .address(mean)
            .address(inverse)
            .address(of_scale)
            .address(of_bias)
            .structure(&planes);
        let blocks = sink.blocks(op.channels * planes.parts as usize, 1);
        sink.launch(&unit, "batch_grad_sums", blocks, BLOCK, arguments);
    }
    let arguments = Arguments::new()
        .address(of_scale)
        .address(of_bias)
        .address(numbers)
        .address(address(call.optional_output(1)))
        .address(address(call.optional_output(2)))
        .structure(&planes);
    let by_channel = sink.blocks(op.channels, BLOCK as usize);
    sink.launch(&unit, "batch_grad_totals", by_channel, BLOCK, arguments);
    if let Some(dx) = call.optional_output(0) {
        let (pack, packs) = packs(op, data_type);
        let arguments = Arguments::new()
            .address(dy.address)
            .address(x.address)
            .address(call.input(2)?.address)
            .address(mean)
            .address(inverse)
            .address(numbers)
            .address(dx.address)
            .size(packs)
            .structure(&Divisor::new(op.spatial / pack))
            .structure(&Divisor::new(op.channels));
        let blocks = sink.blocks(packs, BLOCK as usize);
        let kernel = format!("batch_grad_apply_{pack}");
        sink.launch(&unit, kernel, blocks, BLOCK, arguments);
    }
    Ok(())
}
