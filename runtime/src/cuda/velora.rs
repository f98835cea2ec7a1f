//! Compressed activations and what is computed from them, with one direction.

use super::compile::Unit;
use super::directions;
use super::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported};
use super::source::{Columns, Divisor, Source, float, float_unit, pack};
use crate::ops::directions::Sets;
use crate::ops::velora::{SubTokens, Velora};
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use velora_graph::shapes::DataType;

/// The kernels, also those of several directions.
pub const SOURCE: Source = Source {
    name: "velora",
    file: "velora.cu",
};

/// The kernels for an element type.
pub(super) fn unit(data_type: DataType) -> Result<Unit, Unsupported> {
    float_unit(&SOURCE, data_type)
}

/// `Cut` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Cut {
    count: u64,
    features: u64,
    size: u64,
    groups: Divisor,
}

impl Cut {
    /// All sub-tokens at one place.
    pub(super) fn new(sizes: &SubTokens) -> Self {
        Cut {
            count: (sizes.rows * sizes.groups) as u64,
            features: sizes.features as u64,
            size: sizes.size() as u64,
            groups: Divisor::new(sizes.groups),
        }
    }
}

/// `Spread` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Spread {
    count: u64,
    features: u64,
    size: u64,
    rank: u64,
    by_group: u64,
    packs: Divisor,
    cut: Divisor,
    groups: Divisor,
    scale: f32,
    unused: u32,
}

/// Features that a thread of `repeat` writes.
const FEATURES: usize = 8;

/// How the sums of the features of X are made: of the rows as they are, or where sub-tokens fill them and one
/// sum is wanted, of all sub-tokens.
fn features(data_type: DataType, sizes: &SubTokens) -> Columns {
    let size = sizes.size();
    let (rows, width) = match size * sizes.groups == sizes.features {
        true => (sizes.rows * sizes.groups, size),
        false => (sizes.rows, sizes.features),
    };
    Columns::new(rows, width, pack(data_type, &[width]))
}

/// Bytes of scratch.
pub fn workspace(
    op: &Velora,
    inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    let data_type = inputs.first().copied().flatten().map(|ty| ty.data_type);
    let data_type = data_type.unwrap_or(DataType::FLOAT);
    match op {
        Velora::MeanDirection(sizes) if sizes.places != 1 => (sizes.features + sizes.size()) * 8,
        Velora::MeanDirection(sizes) => {
            let columns = features(data_type, sizes);
            columns.bytes() + (sizes.features + sizes.size()) * 8
        }
        Velora::ScaleGrad { sizes, .. } => weighted(data_type, sizes).0.bytes(),
        _ => 0,
    }
}

/// How the weighted sums of the features of dY are made, and how many columns are read at once.
fn weighted(data_type: DataType, sizes: &SubTokens) -> (Columns, usize) {
    let pack = pack(data_type, &[sizes.features, sizes.size()]);
    (Columns::new(sizes.rows, sizes.features, pack), pack)
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Velora, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, y) = (call.input(0)?, call.output(0)?);
    let data_type = float(x)?;
    let unit = unit(data_type)?;
    if y.ty.elements() == 0 {
        return Ok(());
    }
    match op {
        Velora::Compress(sizes) => {
            let v = call.input(1)?;
            let arguments = Arguments::new()
                .address(x.address)
                .address(v.address)
                .address(y.address);
            if sizes.places == 1 {
                let pack = pack(data_type, &[sizes.features, sizes.size()]);
                let log_lanes = log_lanes(sizes.size(), pack);
                let blocks = sink.blocks(sizes.rows * sizes.groups, BLOCK as usize >> log_lanes);
                let arguments = arguments.structure(&Cut::new(sizes)).u32(log_lanes);
                sink.launch(&unit, format!("compress_{pack}"), blocks, BLOCK, arguments);
                return Ok(());
            }
            let pack = pack(data_type, &[sizes.places]);
            let packs = sizes.places / pack;
            let blocks = sink.blocks(sizes.rows * sizes.groups * packs, BLOCK as usize);
            let arguments = arguments
                .structure(&Cut::new(sizes))
                .structure(&Divisor::new(packs));
            sink.launch(
                &unit,
                format!("compress_places_{pack}"),
                blocks,
                BLOCK,
                arguments,
            );
        }
        Velora::MeanDirection(sizes) => mean_direction(sizes, call, &unit, sink)?,
        Velora::Spread { sizes, scale } => {
            let sets = single(sizes);
            match sizes.places {
                1 => spread(&sets, *scale, [x, call.input(1)?, y], &unit, sink),
                _ => repeat(&sets, *scale, [x, call.input(1)?, y], &unit, sink),
            }
        }
        Velora::Repeat { sizes, scale } => {
            let sets = single(&as_places(sizes));
            repeat(&sets, *scale, [x, call.input(1)?, y], &unit, sink);
        }
        Velora::ScaleGrad { sizes, scale } => {
            let (dy, v) = (call.input(1)?, call.input(2)?);
            let (columns, pack) = weighted(data_type, sizes);
            let parts = call.workspace.address;
            let size = Divisor::new(sizes.size());
            let arguments = Arguments::new()
                .address(x.address)
                .address(dy.address)
                .address(parts)
                .structure(&columns)
                .structure(&size)
                .size(sizes.groups);
            let blocks = columns.blocks() as u32;
            sink.launch(
                &unit,
                format!("weigh_features_{pack}"),
                blocks,
                BLOCK,
                arguments,
            );
            let arguments = Arguments::new()
                .address(parts)
                .size(columns.parts())
                .size(sizes.features)
                .address(v.address)
                .address(y.address)
                .f32(*scale)
                .structure(&size);
            let blocks = sizes.features.div_ceil(32) as u32;
            sink.launch(&unit, "join_scale_grad", blocks, BLOCK, arguments);
        }
    }
    Ok(())
}

/// One direction, as a set of one for all groups.
fn single(sizes: &SubTokens) -> Sets {
    Sets {
        sizes: *sizes,
        rank: 1,
        by_group: false,
    }
}

/// Features by rows [features, rows], as one row of features with places.
pub(super) fn as_places(sizes: &SubTokens) -> SubTokens {
    SubTokens {
        rows: 1,
        places: sizes.rows,
        ..*sizes
    }
}

/// The logarithm of the number of neighbouring threads that work on a sub-token.
pub(super) fn log_lanes(size: usize, pack: usize) -> u32 {
    let packs = size.div_ceil(pack).max(1);
    packs.next_power_of_two().trailing_zeros().min(5)
}

/// Multiples of directions [rows, features], from p, v and to y.
pub(super) fn spread(
    sets: &Sets,
    scale: f32,
    [p, v, y]: [Operand<'_>; 3],
    unit: &Unit,
    sink: &mut Sink<'_>,
) {
    let sizes = &sets.sizes;
    let pack = pack(y.ty.data_type, &[sizes.features, sizes.size()]);
    let packs = sizes.features / pack;
    let count = sizes.rows * packs;
    let how = Spread {
        count: count as u64,
        features: sizes.features as u64,
        size: sizes.size() as u64,
        rank: sets.rank as u64,
        by_group: u64::from(sets.by_group),
        packs: Divisor::new(packs),
        cut: Divisor::new(sizes.size()),
        groups: Divisor::new(sizes.groups),
        scale,
        unused: 0,
    };
    let arguments = Arguments::new()
        .address(p.address)
        .address(v.address)
        .address(y.address)
        .structure(&how);
    let blocks = sink.blocks(count, BLOCK as usize);
    sink.launch(unit, format!("spread_{pack}"), blocks, BLOCK, arguments);
}

/// Multiples of directions [rows, features, places], from p, v and to y.
pub(super) fn repeat(
    sets: &Sets,
    scale: f32,
    [p, v, y]: [Operand<'_>; 3],
    unit: &Unit,
    sink: &mut Sink<'_>,
) {
    let sizes = &sets.sizes;
    let pack = pack(y.ty.data_type, &[sizes.places]);
    let packs = sizes.places / pack;
    let steps = sizes.size().div_ceil(FEATURES);
    let count = sizes.rows * sizes.groups * steps * packs;
    let how = Spread {
        count: count as u64,
        features: sizes.features as u64,
        size: sizes.size() as u64,
        rank: sets.rank as u64,
        by_group: u64::from(sets.by_group),
        packs: Divisor::new(packs),
        cut: Divisor::new(steps),
        groups: Divisor::new(sizes.groups),
        scale,
        unused: 0,
    };
    let arguments = Arguments::new()
        .address(p.address)
        .address(v.address)
        .address(y.address)
        .structure(&how);
    let blocks = sink.blocks(count, BLOCK as usize);
    sink.launch(unit, format!("repeat_{pack}"), blocks, BLOCK, arguments);
}

/// The mean of all sub-tokens, normalised.
fn mean_direction(
    sizes: &SubTokens,
    call: &Call<'_>,
    unit: &Unit,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (x, v) = (call.input(0)?, call.output(0)?);
    let size = sizes.size();
    if sizes.places == 1 {
        let columns = features(x.ty.data_type, sizes);
        let work = directions::sums(x, &columns, call.workspace.address, unit, sink);
        directions::normalise(work, v, columns.width(), size, 1, unit, sink);
        return Ok(());
    }
    let totals = call.workspace.address;
    let arguments = Arguments::new()
        .address(x.address)
        .address(totals)
        .size(sizes.rows)
        .size(sizes.features)
        .size(sizes.places);
    let blocks = sink.blocks(sizes.features, 1);
    sink.launch(unit, "sum_channels", blocks, BLOCK, arguments);
    directions::normalise(totals, v, sizes.features, size, 1, unit, sink);
    Ok(())
}
