//! Softmax and its gradient.

use crate::cuda::encode::{Arguments, BLOCK, Call, Sink, Unsupported};
use crate::cuda::source::{Divisor, Rows, Source, float, float_unit};
use crate::ops::normalize::{Softmax, SoftmaxKind};

/// The kernels.
pub const SOURCE: Source = Source {
    name: "softmax",
    file: "softmax.cu",
};

fn kind(op: &Softmax) -> u32 {
    match op.kind {
        SoftmaxKind::Plain => 0,
        SoftmaxKind::Log => 1,
        SoftmaxKind::Hard => 2,
    }
}

/// Input: X; output: Y.
pub fn encode(op: &Softmax, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, y) = (call.input(0)?, call.output(0)?);
    float(x)?;
    let operands = Arguments::new().address(x.address).address(y.address);
    launch(op, "softmax", call, operands, 4, sink)
}

/// Inputs: dY, Y; output: dX.
pub fn encode_grad(op: &Softmax, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    float(call.input(0)?)?;
    let operands = Arguments::new()
        .address(call.input(0)?.address)
        .address(call.input(1)?.address)
        .address(call.output(0)?.address);
    launch(op, "softmax_grad", call, operands, 2, sink)
}

fn launch(
    op: &Softmax,
    name: &str,
    call: &Call<'_>,
    operands: Arguments,
    held: usize,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let y = call.output(0)?;
    let unit = float_unit(&SOURCE, y.ty.data_type)?;
    if y.ty.elements() == 0 {
        return Ok(());
    }
    if op.inner == 1 {
        let rows = Rows::new(y.ty.data_type, op.outer, op.size, held)?;
        let arguments = operands.size(op.outer).u32(op.size as u32).u32(kind(op));
        let (kernel, grid) = (rows.kernel(name), rows.grid(sink));
        sink.launch(&unit, kernel, grid, rows.threads, arguments);
        return Ok(());
    }
    let columns = op.outer * op.inner;
    let arguments = operands
        .size(columns)
        .size(op.size)
        .structure(&Divisor::new(op.inner))
        .u32(kind(op));
    let blocks = sink.blocks(columns, BLOCK as usize);
    sink.launch(&unit, format!("{name}_columns"), blocks, BLOCK, arguments);
    Ok(())
}
