//! Projections on several directions, moving directions, and how projections are stored.

use super::compile::Unit;
use super::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported};
use super::source::{Columns, Divisor, Source, float, float_unit, pack};
use super::velora;
use crate::ops::directions::{Directions, Sets};
use crate::ops::velora::SubTokens;
use crate::tensor::TensorType;
use velora_graph::shapes::DataType;

/// The kernels that are not those of one direction as well.
pub const SOURCE: Source = Source {
    name: "directions",
    file: "directions.cu",
};

fn unit(data_type: DataType) -> Result<Unit, Unsupported> {
    float_unit(&SOURCE, data_type)
}

/// How the sums of features are made, which are those of the groups.
fn features(data_type: DataType, sizes: &SubTokens) -> Columns {
    let width = sizes.features;
    Columns::new(sizes.rows, width, pack(data_type, &[width]))
}

/// Bytes of scratch.
pub fn workspace(
    op: &Directions,
    inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    let first = inputs.first().copied().flatten();
    let data_type = first.map_or(DataType::FLOAT, |ty| ty.data_type);
    match op {
        Directions::Means(sizes) => {
            let columns = features(data_type, sizes);
            columns.bytes() + (sizes.features + sizes.groups * sizes.size()) * 8
        }
        _ => 0,
    }
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Directions, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, y) = (call.input(0)?, call.output(0)?);
    // The other operand of the last one is integers.
    let data_type = match op {
        Directions::Dequantize { .. } => float(y)?,
        _ => float(x)?,
    };
    match op {
        Directions::Project(sets) => {
            if y.ty.elements() > 0 {
                project(sets, [x, call.input(1)?, y], sink)?;
            }
        }
        Directions::Spread { sets, scale } => {
            if y.ty.elements() > 0 {
                let operands = [x, call.input(1)?, y];
                velora::spread(sets, *scale, operands, &velora::unit(data_type)?, sink);
            }
        }
        Directions::Repeat { sets, scale } => {
            if y.ty.elements() == 0 {
                return Ok(());
            }
            let sets = Sets {
                sizes: velora::as_places(&sets.sizes),
                ..*sets
            };
            let operands = [x, call.input(1)?, y];
            velora::repeat(&sets, *scale, operands, &velora::unit(data_type)?, sink);
        }
        Directions::Means(sizes) => {
            let unit = velora::unit(data_type)?;
            let columns = features(data_type, sizes);
            let totals = sums(x, &columns, call.workspace.address, &unit, sink);
            let groups = sizes.groups;
            normalise(totals, y, sizes.features, sizes.size(), groups, &unit, sink);
        }
        Directions::Blend { size, decay } => {
            let vectors = y.ty.elements() / (*size).max(1);
            let arguments = Arguments::new()
                .address(x.address)
                .address(call.input(1)?.address)
                .address(y.address)
                .size(vectors)
                .size(*size)
                .f64(f64::from(*decay));
            let blocks = sink.blocks(vectors, 1);
            sink.launch(&unit(data_type)?, "blend", blocks, BLOCK, arguments);
        }
        Directions::Quantize { width } => {
            let rows = x.ty.elements() / (*width).max(1);
            let arguments = Arguments::new()
                .address(x.address)
                .address(y.address)
                .address(call.output(1)?.address)
                .size(rows)
                .size(*width);
            let blocks = sink.blocks(rows, BLOCK as usize / 32);
            sink.launch(&unit(data_type)?, "quantize", blocks, BLOCK, arguments);
        }
        Directions::Dequantize { width } => {
            let pack = pack(data_type, &[*width]);
            let packs = y.ty.elements() / pack;
            let arguments = Arguments::new()
                .address(x.address)
                .address(call.input(1)?.address)
                .address(y.address)
                .size(packs)
                .structure(&Divisor::new(width / pack));
            let blocks = sink.blocks(packs, BLOCK as usize);
            let kernel = format!("dequantize_{pack}");
            sink.launch(&unit(data_type)?, kernel, blocks, BLOCK, arguments);
        }
    }
    Ok(())
}

fn project(
    sets: &Sets,
    [x, v, z]: [Operand<'_>; 3],
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (sizes, data_type) = (&sets.sizes, z.ty.data_type);
    let pack = pack(data_type, &[sizes.features, sizes.size()]);
    let log_lanes = velora::log_lanes(sizes.size(), pack);
    let arguments = Arguments::new()
        .address(x.address)
        .address(v.address)
        .address(z.address)
        .structure(&velora::Cut::new(sizes))
        .size(sets.rank)
        .u32(u32::from(sets.by_group))
        .u32(log_lanes);
    let blocks = sink.blocks(sizes.rows * sizes.groups, BLOCK as usize >> log_lanes);
    let unit = velora::unit(data_type)?;
    sink.launch(&unit, format!("project_{pack}"), blocks, BLOCK, arguments);
    Ok(())
}

/// The sums of columns of x, as doubles behind their parts in a workspace; gives their address.
pub(super) fn sums(
    x: Operand<'_>,
    columns: &Columns,
    workspace: u64,
    unit: &Unit,
    sink: &mut Sink<'_>,
) -> u64 {
    let pack = pack(x.ty.data_type, &[columns.width()]);
    let totals = workspace + columns.bytes() as u64;
    let arguments = Arguments::new()
        .address(x.address)
        .address(workspace)
        .structure(columns);
    let blocks = columns.blocks() as u32;
    sink.launch(
        unit,
        format!("sum_features_{pack}"),
        blocks,
        BLOCK,
        arguments,
    );
    let arguments = Arguments::new()
        .address(workspace)
        .size(columns.parts())
        .size(columns.width())
        .address(totals);
    let blocks = columns.width().div_ceil(32) as u32;
    sink.launch(unit, "join_features", blocks, BLOCK, arguments);
    totals
}

/// Directions of length 1 from the sums of `features`: one of all sub-tokens, or one for each of `groups`.
/// Behind the sums lie as many doubles as the directions have entries.
pub(super) fn normalise(
    totals: u64,
    v: Operand<'_>,
    features: usize,
    size: usize,
    groups: usize,
    unit: &Unit,
    sink: &mut Sink<'_>,
) {
    let arguments = Arguments::new()
        .address(totals)
        .address(totals + features as u64 * 8)
        .address(v.address)
        .size(features)
        .size(size)
        .u32(u32::from(groups > 1));
    sink.launch(unit, "normalise_sums", groups as u32, 512, arguments);
}
