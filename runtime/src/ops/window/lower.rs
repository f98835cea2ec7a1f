//! From the operators of convolution and pooling to operations.

use super::{AXES, Conv, Geometry, Pool, Reduction, Window};
use crate::lower::{Lowering, Refusal};
use crate::ops::Op;
use crate::program::TensorId;
use crate::tensor::TensorType;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    match node.op() {
        "Conv" => conv(lowering, node),
        "ConvGrad" => conv_grad(lowering, node),
        "ConvTranspose" => conv_transpose(lowering, node),
        "ConvTransposeGrad" => conv_transpose_grad(lowering, node),
        "MaxPool" | "AveragePool" | "LpPool" => pool(lowering, node),
        "GlobalMaxPool" | "GlobalAveragePool" | "GlobalLpPool" => global_pool(lowering, node),
        "MaxPoolGrad" => max_pool_grad(lowering, node),
        "AveragePoolGrad" => average_pool_grad(lowering, node),
        op => Err(Refusal(format!("{op} has no lowering"))),
    }
}

/// Sizes and attributes beyond this are refused, so that positions fit 64 bits.
const LIMIT: i64 = 1 << 30;

/// A text attribute.
fn text<'n>(node: &'n Node, name: &str, default: &'n str) -> &'n str {
    let found = node.attribute(name).and_then(|a| a.s.as_deref());
    found.map_or(default, |s| std::str::from_utf8(s).unwrap_or(""))
}

/// Numbers of the spatial axes, behind ones for the axes that the layer lacks.
fn spread(numbers: &[usize], missing: usize) -> [usize; AXES] {
    let mut all = [missing; AXES];
    let start = AXES.saturating_sub(numbers.len());
    for (to, from) in all[start..].iter_mut().zip(numbers) {
        *to = *from;
    }
    all
}

/// A list attribute with `count` numbers of at least `least`.
fn list(
    node: &Node,
    name: &str,
    count: usize,
    least: i64,
    default: i64,
) -> Result<Vec<usize>, Refusal> {
    let given = node.ints(name).filter(|given| !given.is_empty());
    let numbers = given.map_or_else(|| vec![default; count], <[i64]>::to_vec);
    let fits = numbers.len() == count && numbers.iter().all(|n| (least..=LIMIT).contains(n));
    if !fits {
        return Err(Refusal(format!(
            "{name} is {numbers:?}: expected {count} numbers from {least} to {LIMIT}"
        )));
    }
    Ok(numbers.iter().map(|&n| n as usize).collect())
}

/// The spatial axes of a tensor `[batch, channels, spatial...]`.
fn spatial<'t>(ty: &'t TensorType, what: &str) -> Result<&'t [usize], Refusal> {
    let axes = ty.shape.get(2..).unwrap_or_default();
    if axes.is_empty() || axes.len() > AXES {
        return Err(Refusal(format!(
            "{what} is {ty}: expected one to {AXES} axes behind batch and channels"
        )));
    }
    if axes.iter().any(|&size| size as i64 > LIMIT) {
        return Err(Refusal(format!(
            "{what} is {ty}, which is longer than {LIMIT}"
        )));
    }
    Ok(axes)
}

/// The geometry of a window that slides from `size` to `out`.
///
/// Of a transposed convolution `size` is the output. The padding follows from the attributes, or from the
/// sizes where `auto_pad` or `output_shape` says so.
fn geometry(
    node: &Node,
    size: &[usize],
    kernel: &[usize],
    out: &[usize],
) -> Result<Geometry, Refusal> {
    let axes = size.len();
    if kernel.len() != axes || out.len() != axes {
        return Err(Refusal(format!(
            "a window of {} axes and a result of {} for {axes} spatial axes",
            kernel.len(),
            out.len()
        )));
    }
    if let Some(given) = node.ints("kernel_shape")
        && !given.is_empty()
        && !given.iter().copied().eq(kernel.iter().map(|&k| k as i64))
    {
        return Err(Refusal(format!(
            "kernel_shape is {given:?} and the weight has {kernel:?}"
        )));
    }
    let stride = list(node, "strides", axes, 1, 1)?;
    let dilation = list(node, "dilations", axes, 1, 1)?;
    let pads = list(node, "pads", 2 * axes, 0, 0)?;
    let reach = |axis: usize| dilation[axis] * kernel[axis].saturating_sub(1) + 1;
    let total = |axis: usize| {
        (out[axis].saturating_sub(1) * stride[axis] + reach(axis)).saturating_sub(size[axis])
    };
    let same = |upper: bool| {
        let before = |axis| {
            let total = total(axis);
            if upper { total / 2 } else { total - total / 2 }
        };
        let before: Vec<usize> = (0..axes).map(before).collect();
        let after = (0..axes).map(|axis| total(axis) - before[axis]).collect();
        (before, after)
    };
    let auto = text(node, "auto_pad", "NOTSET");
    let sized = node.op().starts_with("ConvTranspose")
        && node.ints("output_shape").is_some_and(|s| !s.is_empty());
    let (pad, pad_after) = match auto {
        "SAME_UPPER" | "SAME_LOWER" => same(auto == "SAME_UPPER"),
        _ if sized => transposed_pads(node, size, kernel, out)?,
        "VALID" => (vec![0; axes], vec![0; axes]),
        "NOTSET" | "" => (pads[..axes].to_vec(), pads[axes..].to_vec()),
        other => return Err(Refusal(format!("auto_pad {other:?} is not known"))),
    };
    Ok(Geometry {
        size: spread(size, 1),
        kernel: spread(kernel, 1),
        stride: spread(&stride, 1),
        dilation: spread(&dilation, 1),
        pad: spread(&pad, 0),
        pad_after: spread(&pad_after, 0),
        out: spread(out, 1),
    })
}

/// The padding of a transposed convolution whose output size is given: what the steps reach too far.
fn transposed_pads(
    node: &Node,
    size: &[usize],
    kernel: &[usize],
    out: &[usize],
) -> Result<(Vec<usize>, Vec<usize>), Refusal> {
    let axes = size.len();
    let stride = list(node, "strides", axes, 1, 1)?;
    let dilation = list(node, "dilations", axes, 1, 1)?;
    let extra = list(node, "output_padding", axes, 0, 0)?;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for axis in 0..axes {
        let reach = dilation[axis] * kernel[axis].saturating_sub(1) + 1;
        let total = (out[axis].saturating_sub(1) * stride[axis] + extra[axis] + reach)
            .saturating_sub(size[axis]);
        // ONNX: the larger half is in front unless auto_pad is SAME_UPPER, which was handled before.
        before.push(total - total / 2);
        after.push(total / 2);
    }
    Ok((before, after))
}

/// The sizes of the convolution from x to y by the weight of given types.
fn conv_of(node: &Node, x: &TensorType, w: &TensorType, y: &TensorType) -> Result<Conv, Refusal> {
    let (size, out) = (spatial(x, "the input")?, spatial(y, "the result")?);
    let kernel = spatial(w, "the weight")?;
    let geometry = geometry(node, size, kernel, out)?;
    let groups = usize::try_from(node.int("group", 1)).unwrap_or(0);
    let (channels, filters) = (w.shape[1], w.shape[0]);
    let fits = groups > 0
        && filters.is_multiple_of(groups)
        && channels.checked_mul(groups) == Some(x.shape[1])
        && y.shape[1] == filters
        && x.shape[0] == y.shape[0];
    if !fits {
        return Err(Refusal(format!(
            "{groups} groups of filters {w} do not take {x} to {y}"
        )));
    }
    if x.data_type != w.data_type || x.data_type != y.data_type {
        return Err(Refusal(format!("{x}, {w} and {y} have different types")));
    }
    floating(x)?;
    if geometry.taps() > LIMIT as usize {
        return Err(Refusal(format!("the filters of {w} are too large")));
    }
    Ok(Conv {
        geometry,
        batch: x.shape[0],
        groups,
        channels,
        filters: filters / groups,
    })
}

fn floating(ty: &TensorType) -> Result<(), Refusal> {
    match ty.data_type {
        DataType::FLOAT | DataType::DOUBLE => Ok(()),
        _ => Err(Refusal(format!("{ty}: expected float or double"))),
    }
}

/// Refuses a bias that is no vector of so many elements.
fn check_bias(
    lowering: &Lowering<'_>,
    bias: Option<TensorId>,
    like: &TensorType,
    count: usize,
) -> Result<(), Refusal> {
    if let Some(bias) = bias {
        let ty = lowering.ty(bias);
        if ty.shape != [count] || ty.data_type != like.data_type {
            return Err(Refusal(format!(
                "the bias is {ty}: expected {count} elements of the input's type"
            )));
        }
    }
    Ok(())
}

fn conv(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let (x, w) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
    let bias = lowering.optional_input(node, 2)?;
    let y = lowering.required_output(node, 0)?;
    let (tx, tw, ty) = (lowering.ty(x), lowering.ty(w), lowering.ty(y));
    let conv = conv_of(node, &tx, &tw, &ty)?;
    check_bias(lowering, bias, &tx, tw.shape[0])?;
    let op = Op::Window(Window::Conv(conv));
    lowering.emit(op, vec![Some(x), Some(w), bias], vec![Some(y)]);
    Ok(())
}

/// Inputs: dY, X, W. Outputs: dX, dW, dB.
fn conv_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let dy = lowering.input(node, 0)?;
    let (x, w) = (lowering.input(node, 1)?, lowering.input(node, 2)?);
    let (tdy, tx, tw) = (lowering.ty(dy), lowering.ty(x), lowering.ty(w));
    let conv = conv_of(node, &tx, &tw, &tdy)?;
    if let Some(dx) = lowering.output(node, 0)? {
        let op = Op::Window(Window::ConvInput(conv.clone()));
        lowering.emit(op, vec![Some(dy), Some(w), None], vec![Some(dx)]);
    }
    if let Some(dw) = lowering.output(node, 1)? {
        let op = Op::Window(Window::ConvWeight(conv));
        lowering.emit(op, vec![Some(dy), Some(x)], vec![Some(dw)]);
    }
    bias_grad(lowering, node, dy)
}

/// The gradient of a bias, output 2.
fn bias_grad(lowering: &mut Lowering<'_>, node: &Node, dy: TensorId) -> Result<(), Refusal> {
    let Some(db) = lowering.output(node, 2)? else {
        return Ok(());
    };
    let ty = lowering.ty(dy);
    check_bias(lowering, Some(db), &ty, ty.shape[1])?;
    let op = Window::ChannelSum {
        batch: ty.shape[0],
        channels: ty.shape[1],
        positions: ty.shape[2..].iter().product(),
    };
    lowering.emit(Op::Window(op), vec![Some(dy)], vec![Some(db)]);
    Ok(())
}

/// X takes the place of dY of the convolution that has the same weight.
fn conv_transpose(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let (x, w) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
    let bias = lowering.optional_input(node, 2)?;
    let y = lowering.required_output(node, 0)?;
    let (tx, tw, ty) = (lowering.ty(x), lowering.ty(w), lowering.ty(y));
    let conv = conv_of(node, &ty, &tw, &tx)?;
    check_bias(lowering, bias, &tx, ty.shape[1])?;
    let op = Op::Window(Window::ConvInput(conv));
    lowering.emit(op, vec![Some(x), Some(w), bias], vec![Some(y)]);
    Ok(())
}

/// Inputs: dY, X, W. Outputs: dX, dW, dB.
fn conv_transpose_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let dy = lowering.input(node, 0)?;
    let (x, w) = (lowering.input(node, 1)?, lowering.input(node, 2)?);
    let (tdy, tx, tw) = (lowering.ty(dy), lowering.ty(x), lowering.ty(w));
    let conv = conv_of(node, &tdy, &tw, &tx)?;
    if let Some(dx) = lowering.output(node, 0)? {
        let op = Op::Window(Window::Conv(conv.clone()));
        lowering.emit(op, vec![Some(dy), Some(w), None], vec![Some(dx)]);
    }
    if let Some(dw) = lowering.output(node, 1)? {
        let op = Op::Window(Window::ConvWeight(conv));
        lowering.emit(op, vec![Some(x), Some(dy)], vec![Some(dw)]);
    }
    bias_grad(lowering, node, dy)
}

/// The exponent of a norm: an integer, a number in the first version.
fn exponent(node: &Node) -> f32 {
    let real = node.attribute("p").and_then(|a| a.f);
    real.unwrap_or(node.int("p", 2) as f32)
}

fn reduction(node: &Node) -> Reduction {
    match node.op() {
        "MaxPool" | "GlobalMaxPool" => Reduction::Max {
            column_major: node.int("storage_order", 0) != 0,
        },
        "LpPool" | "GlobalLpPool" => Reduction::Norm { p: exponent(node) },
        _ => Reduction::Average {
            count_padding: node.int("count_include_pad", 0) != 0,
        },
    }
}

/// The pooling from x to y.
fn pool_of(node: &Node, x: &TensorType, y: &TensorType) -> Result<Pool, Refusal> {
    let (size, out) = (spatial(x, "the input")?, spatial(y, "the result")?);
    let kernel = list(node, "kernel_shape", size.len(), 1, 0)?;
    if x.shape[..2] != y.shape[..2] {
        return Err(Refusal(format!("{x} is not pooled to {y}")));
    }
    Ok(Pool {
        geometry: geometry(node, size, &kernel, out)?,
        planes: x.shape[0] * x.shape[1],
        reduction: reduction(node),
    })
}

fn check_pooled(reduction: Reduction, x: &TensorType, y: &TensorType) -> Result<(), Refusal> {
    let max = matches!(reduction, Reduction::Max { .. });
    let small = matches!(x.data_type, DataType::UINT8 | DataType(3));
    let half = matches!(x.data_type, DataType::FLOAT16 | DataType::BFLOAT16);
    if x.data_type != y.data_type || !(floating(x).is_ok() || half || max && small) {
        return Err(Refusal(format!(
            "{x} is not pooled to {y}: expected a floating-point type, or 8-bit integers for a maximum"
        )));
    }
    Ok(())
}

fn pool(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let x = lowering.input(node, 0)?;
    let y = lowering.required_output(node, 0)?;
    let (tx, ty) = (lowering.ty(x), lowering.ty(y));
    let pool = pool_of(node, &tx, &ty)?;
    emit_pool(lowering, node, pool, x, y)
}

fn emit_pool(
    lowering: &mut Lowering<'_>,
    node: &Node,
    pool: Pool,
    x: TensorId,
    y: TensorId,
) -> Result<(), Refusal> {
    check_pooled(pool.reduction, &lowering.ty(x), &lowering.ty(y))?;
    let indices = match pool.reduction {
        Reduction::Max { .. } => lowering.output(node, 1)?,
        _ => None,
    };
    if let Some(indices) = indices {
        let ty = lowering.ty(indices);
        if ty.data_type != DataType::INT64 || ty.shape != lowering.ty(y).shape {
            return Err(Refusal(format!("the indices are {ty}: expected int64")));
        }
    }
    let op = Op::Window(Window::Pool(pool));
    lowering.emit(op, vec![Some(x)], vec![Some(y), indices]);
    Ok(())
}

fn global_pool(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let x = lowering.input(node, 0)?;
    let y = lowering.required_output(node, 0)?;
    let (tx, ty) = (lowering.ty(x), lowering.ty(y));
    if tx.shape.len() < 2 || ty.elements() != tx.shape[0] * tx.shape[1] {
        return Err(Refusal(format!("{tx} is not pooled to {ty}")));
    }
    // One window over the plane, whatever its axes.
    let size = spread(&[tx.shape[2..].iter().product()], 1);
    let pool = Pool {
        geometry: Geometry {
            size,
            kernel: size,
            stride: [1; AXES],
            dilation: [1; AXES],
            pad: [0; AXES],
            pad_after: [0; AXES],
            out: [1; AXES],
        },
        planes: tx.shape[0] * tx.shape[1],
        reduction: reduction(node),
    };
    emit_pool(lowering, node, pool, x, y)
}

/// Inputs: dY, where the maxima lie in X.
fn max_pool_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let (dy, indices) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
    let dx = lowering.required_output(node, 0)?;
    let (tdy, ti, tdx) = (lowering.ty(dy), lowering.ty(indices), lowering.ty(dx));
    spatial(&tdy, "dY")?;
    floating(&tdy)?;
    if node.int("storage_order", 0) != 0 {
        return Err(Refusal::new(
            "storage_order 1: expected indices that count the last axis fastest",
        ));
    }
    let fits = ti.data_type == DataType::INT64
        && ti.shape == tdy.shape
        && tdx.data_type == tdy.data_type
        && tdx.shape.len() == tdy.shape.len()
        && tdx.shape[..2] == tdy.shape[..2];
    if !fits {
        return Err(Refusal(format!(
            "a gradient {tdy} with indices {ti} does not give {tdx}"
        )));
    }
    let op = Window::MaxGrad {
        planes: tdy.shape[0] * tdy.shape[1],
        size: tdx.shape[2..].iter().product(),
        positions: tdy.shape[2..].iter().product(),
    };
    let inputs = vec![Some(dy), Some(indices)];
    lowering.emit(Op::Window(op), inputs, vec![Some(dx)]);
    Ok(())
}

/// Input: dY; the shape of X is what inference knows of the output.
fn average_pool_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let dy = lowering.input(node, 0)?;
    let dx = lowering.required_output(node, 0)?;
    let (tdy, tdx) = (lowering.ty(dy), lowering.ty(dx));
    floating(&tdy)?;
    if tdy.data_type != tdx.data_type {
        return Err(Refusal(format!("a gradient {tdy} does not give {tdx}")));
    }
    let pool = pool_of(node, &tdx, &tdy)?;
    let op = Op::Window(Window::AverageGrad(pool));
    lowering.emit(op, vec![Some(dy)], vec![Some(dx)]);
    Ok(())
}
