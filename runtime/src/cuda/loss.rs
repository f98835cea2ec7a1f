//! Losses, with their gradients.

use super::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported, address};
use super::source::{Divisor, Rows, Source, float, float_unit, whole_pack};
use crate::ops::loss::{CrossEntropy, Loss, Reduction};
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use velora_graph::shapes::DataType;

/// The kernels.
pub const SOURCE: Source = Source {
    name: "loss",
    file: "loss.cu",
};

/// Blocks that sum losses at most.
const MOST_BLOCKS: usize = 1024;
/// Threads of the block that joins their sums.
const JOINS: u32 = 512;

/// `Targets` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Targets {
    labels: u64,
    weights: u64,
    ignored: u64,
    report: u64,
    ignore: i64,
    classes: u64,
    check: u32,
    short_labels: u32,
    ignores: u32,
    unused: u32,
}

/// `Slope` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Slope {
    dy: u64,
    totals: u64,
    added: u64,
    reduction: u32,
    unused: u32,
}

impl Targets {
    /// Labels, weights and the label that is ignored; the kernels check the labels.
    fn new(
        op: &CrossEntropy,
        labels: Operand<'_>,
        weights: Option<Operand<'_>>,
        ignored: Option<Operand<'_>>,
        sink: &mut Sink<'_>,
    ) -> Self {
        let classes = op.classes;
        let (report, check) = sink.check(move |position, label| {
            let (place, ignored) = unpack(position);
            format!(
                "label {label} at place {place}: expected 0 to {} ({classes} classes){}",
                classes as i64 - 1,
                match ignored {
                    Some(ignore) => format!(", or {ignore} to be ignored"),
                    None => ", and no label is ignored: set ignore_index".to_owned(),
                }
            )
        });
        Targets {
            labels: labels.address,
            weights: address(weights),
            ignored: address(ignored),
            report,
            ignore: op.ignore.unwrap_or(0),
            classes: op.classes as u64,
            check,
            short_labels: u32::from(labels.ty.data_type == DataType::INT32),
            ignores: u32::from(op.ignore.is_some()),
            unused: 0,
        }
    }
}

/// The place of a label, and the label that is ignored, of what a kernel has reported: a report has two
/// numbers, and the second is the label.
fn unpack(position: i64) -> (i64, Option<i64>) {
    let place = position & ((1 << 40) - 1);
    match position >> 40 {
        0 => (place, None),
        ignored => (place, Some(ignored - (1 << 22) - 1)),
    }
}

fn reduction(op: &CrossEntropy) -> u32 {
    match op.reduction {
        Reduction::None => 0,
        Reduction::Sum => 1,
        Reduction::Mean => 2,
    }
}

/// How losses are summed.
enum Way {
    /// Rows that stay in registers.
    Rows(Rows),
    /// A thread for each label.
    Places,
}

/// How the losses are summed, and in how many blocks: that depends on the sizes only.
fn way(op: &CrossEntropy, data_type: DataType) -> Result<(Way, usize), Unsupported> {
    let labels = op.batch * op.inner;
    if op.inner == 1 && op.softmax {
        let rows = Rows::new(data_type, op.batch, op.classes, 4)?;
        let blocks = op.batch.div_ceil(rows.per_block());
        return Ok((Way::Rows(rows), blocks.clamp(1, MOST_BLOCKS)));
    }
    Ok((
        Way::Places,
        labels.div_ceil(BLOCK as usize).clamp(1, MOST_BLOCKS),
    ))
}

/// Bytes of scratch: two totals, and two sums of every block.
pub fn workspace(
    _op: &Loss,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    (1 + MOST_BLOCKS) * 16
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Loss, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    match op {
        Loss::CrossEntropy(op) => encode_loss(op, call, sink),
        Loss::CrossEntropyGrad(op) => encode_grad(op, call, sink),
    }
}

fn encode_loss(op: &CrossEntropy, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (scores, loss) = (call.input(0)?, call.output(0)?);
    let data_type = float(scores)?;
    let unit = float_unit(&SOURCE, data_type)?;
    let labels = call.input(1)?;
    let (weights, ignored) = (call.optional_input(2), call.optional_input(3));
    let targets = Targets::new(op, labels, weights, ignored, sink);
    let single = op.reduction == Reduction::None;
    let sums = call.workspace.address + 16;
    let (way, blocks) = way(op, data_type)?;
    let arguments = Arguments::new()
        .address(scores.address)
        .address(address(call.optional_output(1)))
        .address(if single { loss.address } else { 0 })
        .address(sums)
        .size(op.batch * op.inner);
    match way {
        Way::Rows(rows) => {
            let arguments = arguments.structure(&targets);
            sink.launch(
                &unit,
                rows.kernel("loss"),
                blocks as u32,
                rows.threads,
                arguments,
            );
        }
        Way::Places => {
            let arguments = arguments
                .structure(&Divisor::new(op.inner))
                .structure(&targets)
                .u32(u32::from(op.softmax));
            sink.launch(&unit, "loss_places", blocks as u32, BLOCK, arguments);
        }
    }
    if !single {
        let arguments = Arguments::new()
            .address(sums)
            .u32(blocks as u32)
            .address(0)
            .address(loss.address)
            .u32(reduction(op));
        sink.launch(&unit, "join_losses", 1, JOINS, arguments);
    }
    Ok(())
}

/// Inputs: gradient of the loss, logarithms of the probabilities, labels, weights, ignored label, what is
/// added; output: the gradient of the scores.
fn encode_grad(op: &CrossEntropy, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (dy, logs, d) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let data_type = float(logs)?;
    let unit = float_unit(&SOURCE, data_type)?;
    let labels = call.input(2)?;
    let (weights, ignored) = (call.optional_input(3), call.optional_input(4));
    let targets = Targets::new(op, labels, weights, ignored, sink);
    let totals = call.workspace.address;
    let sums = totals + 16;
    let count = op.batch * op.inner;
    // The sum of weights is wanted; and where there are no classes, labels are checked all the same.
    if op.reduction == Reduction::Mean || op.classes == 0 {
        let blocks = count.div_ceil(BLOCK as usize).clamp(1, MOST_BLOCKS) as u32;
        let arguments = Arguments::new()
            .address(sums)
            .size(count)
            .structure(&targets);
        sink.launch(&unit, "loss_weights", blocks, BLOCK, arguments);
        let arguments = Arguments::new()
            .address(sums)
            .u32(blocks)
            .address(totals)
            .address(0)
            .u32(reduction(op));
        sink.launch(&unit, "join_losses", 1, JOINS, arguments);
    }
    let elements = count * op.classes;
    if elements == 0 {
        return Ok(());
    }
    let (name, line) = match op.inner {
        1 => ("loss_grad", op.classes),
        inner => ("loss_grad_places", inner),
    };
    let pack = whole_pack(data_type, line);
    let slope = Slope {
        dy: dy.address,
        totals,
        added: address(call.optional_input(5)),
        reduction: reduction(op),
        unused: 0,
    };
    let arguments = Arguments::new()
        .address(logs.address)
        .address(d.address)
        .size(elements / pack)
        .structure(&Divisor::new(line / pack))
        .structure(&Divisor::new(op.classes))
        .structure(&targets)
        .structure(&slope);
    let blocks = sink.blocks(elements / pack, BLOCK as usize);
    sink.launch(&unit, format!("{name}_{pack}"), blocks, BLOCK, arguments);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::unpack;

    #[test]
    fn a_report_has_the_place_and_the_ignored_label() {
        // As the kernels pack them.
        let pack = |place: i64, ignore: i64| place | ((ignore + (1 << 22) + 1) << 40);
        assert_eq!(unpack(17), (17, None));
        for ignore in [-100, -1, 0, 5, 1 << 20, -(1 << 22), (1 << 22) - 2] {
            assert_eq!(unpack(pack(123_456, ignore)), (123_456, Some(ignore)));
        }
    }
}
