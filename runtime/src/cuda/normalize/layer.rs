//! Layer normalisation and its gradient.

use crate::cuda::compile::Unit;
use crate::cuda::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported, address};
use crate::cuda::source::{
    Columns, Rows, Source, float, float_unit, lane_bytes, row_length, whole_pack,
};
use crate::ops::normalize::Layer;
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use velora_graph::shapes::DataType;

/// The kernels.
pub const SOURCE: Source = Source {
    name: "layer",
    file: "layer.cu",
};

/// Bytes that the parts of the gradients of scale and bias take at most, but for a few of them.
const MOST_PARTS: usize = 4 << 20;
/// Teams that take rows of the gradient in turns at most.
const MOST_TEAMS: usize = 512;
/// Threads of a block at most, and where doubles or single elements take more registers.
const MOST_THREADS: [usize; 2] = [1024, 512];

/// `Given` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Given {
    dy: u64,
    x: u64,
    scale: u64,
    fourth: u64,
    inverse: u64,
    dx: u64,
    parts: u64,
    rows: u64,
    size: u32,
    centred: u32,
    own: u32,
    of_scale: u32,
    of_bias: u32,
    unused: u32,
}

/// Inputs: X, scale, bias; outputs: Y, mean, inverse standard deviation.
pub fn encode(op: &Layer, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, y) = (call.input(0)?, call.output(0)?);
    let unit = float_unit(&SOURCE, float(x)?)?;
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let (mean, inverse) = (call.optional_output(1), call.optional_output(2));
    let statistics = mean.or(inverse);
    let own = statistics.is_some_and(|s| s.ty.data_type == x.ty.data_type);
    let rows = Rows::new(x.ty.data_type, op.rows, op.size, 4)?;
    let arguments = Arguments::new()
        .address(x.address)
        .address(call.input(1)?.address)
        .address(address(call.optional_input(2)))
        .address(y.address)
        .address(address(mean))
        .address(address(inverse))
        .size(op.rows)
        .u32(op.size as u32)
        .f64(f64::from(op.epsilon))
        .u32(u32::from(op.centred))
        .u32(u32::from(own));
    let (kernel, grid) = (rows.kernel("layer"), rows.grid(sink));
    sink.launch(&unit, kernel, grid, rows.threads, arguments);
    Ok(())
}

/// How the rows of a gradient are given to teams.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Rows are kept in registers by warps, or by blocks of so many threads.
    Kept {
        pack: usize,
        warps: bool,
        threads: usize,
        teams: usize,
    },
    /// They are too long.
    Long { columns: Columns },
}

impl Way {
    fn of(op: &Layer, data_type: DataType) -> Self {
        let pack = match data_type {
            DataType::DOUBLE => whole_pack(data_type, op.size),
            // 4 columns for a thread, and not more for 16 bits: their sums take registers.
            _ if op.size.is_multiple_of(4) => 4,
            _ => 1,
        };
        let columns_of_thread = match (data_type, pack) {
            (DataType::DOUBLE, _) => pack,
            (_, 1) => 2,
            _ => pack,
        };
        let threads = op.size.div_ceil(columns_of_thread).next_multiple_of(32);
        let many = data_type == DataType::DOUBLE || pack == 1;
        if threads > MOST_THREADS[usize::from(many)] {
            let columns = Columns::new(op.rows, op.size, 1);
            return Way::Long { columns };
        }
        let team_bytes = op.size.max(1) * 2 * lane_bytes(data_type);
        let most = (MOST_PARTS / team_bytes).clamp(16, MOST_TEAMS);
        // Some rows for each, where there are many.
        let teams = op.rows.div_ceil(4).clamp(1, most);
        let warps = threads == 32;
        Way::Kept {
            pack,
            warps,
            threads,
            // Blocks are of whole warps.
            teams: if warps {
                teams.next_multiple_of(8)
            } else {
                teams
            },
        }
    }

    /// The number of parts of each sum.
    fn parts(&self) -> usize {
        match self {
            Way::Kept { teams, .. } => *teams,
            Way::Long { columns } => columns.parts(),
        }
    }
}

/// Bytes of scratch: parts of the gradients of scale and bias.
pub fn grad_workspace(op: &Layer, inputs: &[Option<&TensorType>]) -> usize {
    let first = inputs.first().copied().flatten();
    let data_type = first.map_or(DataType::FLOAT, |ty| ty.data_type);
    Way::of(op, data_type).parts() * op.size * 2 * lane_bytes(data_type)
}

/// Inputs: dY, X or Y, scale, mean or bias, inverse deviation; outputs: dX, dScale, dBias.
pub fn encode_grad(op: &Layer, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (dy, inverse) = (call.input(0)?, call.input(4)?);
    let data_type = float(dy)?;
    let unit = float_unit(&SOURCE, data_type)?;
    let [dx, dscale, dbias] = [0, 1, 2].map(|number| call.optional_output(number));
    if op.rows == 0 || op.size == 0 {
        for output in [dscale, dbias].into_iter().flatten() {
            sink.fill(output.address, 0, output.ty.bytes());
        }
        return Ok(());
    }
    let given = Given {
        dy: dy.address,
        x: call.input(1)?.address,
        scale: call.input(2)?.address,
        fourth: address(call.optional_input(3)),
        inverse: inverse.address,
        dx: address(dx),
        parts: call.workspace.address,
        rows: op.rows as u64,
        size: row_length(op.size)?,
        centred: u32::from(op.centred),
        own: u32::from(inverse.ty.data_type == data_type),
        of_scale: u32::from(dscale.is_some()),
        of_bias: u32::from(dbias.is_some()),
        unused: 0,
    };
    let way = Way::of(op, data_type);
    match way {
        Way::Kept {
            pack,
            warps,
            threads,
            teams,
        } => {
            let name = if op.from_output { "inverted" } else { "layer" };
            let (kind, grid, block) = match warps {
                true => ("warps", teams / 8, BLOCK),
                false => ("blocks", teams, threads as u32),
            };
            let kernel = format!("{name}_grad_{kind}_{pack}");
            let arguments = Arguments::new().structure(&given);
            sink.launch(&unit, kernel, grid as u32, block, arguments);
        }
        Way::Long { columns } => {
            // The sums first: dX may lie where they read.
            if dscale.is_some() || dbias.is_some() {
                let kernel = match op.from_output {
                    true => "inverted_sums",
                    false => "layer_sums",
                };
                let arguments = Arguments::new()
                    .structure(&given)
                    .structure(&columns)
                    .u32(columns.parts() as u32);
                sink.launch(&unit, kernel, columns.blocks() as u32, BLOCK, arguments);
            }
            if dx.is_some() {
                let kernel = match op.from_output {
                    true => "inverted_grad_long",
                    false => "layer_grad_long",
                };
                let grid = sink.blocks(op.rows, 1);
                let arguments = Arguments::new().structure(&given);
                sink.launch(&unit, kernel, grid, 512, arguments);
            }
        }
    }
    let parts = way.parts();
    let second = (parts * op.size * lane_bytes(data_type)) as u64;
    // A team without rows has written none.
    let written = parts.min(op.rows);
    join(
        dscale,
        call.workspace.address,
        written,
        op.size,
        &unit,
        sink,
    );
    join(
        dbias,
        call.workspace.address + second,
        written,
        op.size,
        &unit,
        sink,
    );
    Ok(())
}

/// The total of parts, where somebody wants it.
fn join(
    output: Option<Operand<'_>>,
    parts: u64,
    count: usize,
    size: usize,
    unit: &Unit,
    sink: &mut Sink<'_>,
) {
    if let Some(output) = output {
        let arguments = Arguments::new()
            .address(parts)
            .size(count)
            .size(size)
            .address(output.address);
        let blocks = size.div_ceil(32) as u32;
        sink.launch(unit, "join_layer", blocks, BLOCK, arguments);
    }
}
