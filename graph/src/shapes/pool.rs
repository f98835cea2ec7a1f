//! Windows over spatial axes: convolutions and pooling.

use super::DataType;
use super::call::Call;
use super::elementwise::at_least;
use super::fact::{MAX_RANK, unknown};
use super::rules::{Fault, Outcome};
use crate::dim::Dim;

/// The window of one spatial axis.
struct Window {
    kernel: Dim,
    stride: i64,
    dilation: i64,
    pads: (i64, i64),
}

/// What the attributes say about the axes behind batch and channels; `None` where the kernel is not
/// known at all.
fn windows(
    call: &Call<'_>,
    kernel: Option<Vec<Dim>>,
    rank: usize,
) -> Result<Option<Vec<Window>>, Box<Fault>> {
    let spatial = rank.saturating_sub(2);
    let attribute = call.node.ints("kernel_shape");
    let kernel = match (attribute, kernel) {
        (Some(sizes), _) if sizes.len() <= MAX_RANK => {
            sizes.iter().map(|&k| Dim::from(k)).collect()
        }
        (None, Some(kernel)) => kernel,
        _ => return Ok(None),
    };
    let list = |name: &str, each: usize, default: i64| match call.node.ints(name) {
        Some(list) if !list.is_empty() => (list.len() == each * spatial).then(|| list.to_vec()),
        _ => Some(vec![default; each * spatial]),
    };
    let (strides, dilations) = (list("strides", 1, 1), list("dilations", 1, 1));
    let lists = (strides, dilations, list("pads", 2, 0));
    let (Some(strides), Some(dilations), Some(pads)) = lists else {
        return Err(odd(call, spatial));
    };
    if kernel.len() != spatial || strides.iter().chain(&dilations).any(|&v| v < 1) {
        return Err(odd(call, spatial));
    }
    let window = |(axis, kernel): (usize, Dim)| Window {
        kernel,
        stride: strides[axis],
        dilation: dilations[axis],
        pads: (pads[axis], pads[axis + spatial]),
    };
    Ok(Some(kernel.into_iter().enumerate().map(window).collect()))
}

fn odd(call: &Call<'_>, spatial: usize) -> Box<Fault> {
    call.fault(
        call.name(0),
        format!("it has {spatial} spatial axes"),
        "kernel_shape, strides, dilations or pads do not fit them".to_owned(),
        "each lists one positive number for every spatial axis, pads two",
    )
}

/// The output size of a window over an axis.
fn slid(call: &Call<'_>, size: &Dim, window: &Window, ceil: bool) -> Dim {
    let one = Dim::from(1);
    let stride = Dim::from(window.stride);
    match call.text("auto_pad", "NOTSET") {
        "SAME_UPPER" | "SAME_LOWER" => return size.div_ceil(&stride),
        _ => {}
    }
    let (front, back) = match call.text("auto_pad", "NOTSET") {
        "VALID" => (0, 0),
        _ => window.pads,
    };
    // (size + pads - dilation·(kernel - 1) - 1) / stride + 1: ONNX, Conv and MaxPool.
    let reach = Dim::from(window.dilation) * (&window.kernel - &one) + &one;
    let room = size + Dim::from(front) + Dim::from(back) - reach;
    if !ceil {
        return room.div_floor(&stride) + one;
    }
    let count = room.div_ceil(&stride) + &one;
    // A last window that would start in the padding at the end is left out.
    let last_start = (&count - &one) * &stride;
    match (last_start.as_const(), (size + Dim::from(front)).as_const()) {
        (Some(start), Some(end)) if start >= end => count - one,
        (Some(_), Some(_)) => count,
        _ if window.stride == 1 || at_least(&(size + Dim::from(front) - last_start), 1) => count,
        _ => unknown(),
    }
}

pub(super) fn conv(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1, 2])?;
    convolved(call, data_type)
}

/// Small integers, summed in 32 bits; the inputs behind the weight are zero points.
pub(super) fn conv_integer(call: &mut Call<'_>) -> Outcome {
    convolved(call, Some(DataType::INT32))
}

fn convolved(call: &mut Call<'_>, data_type: Option<DataType>) -> Outcome {
    call.want_rank(0, 2, usize::MAX)?;
    let (Some(x), Some(w)) = (call.shape(0), call.shape(1)) else {
        call.give(0, data_type, None);
        return Ok(());
    };
    call.want_rank(1, x.len(), x.len())?;
    let group = call.node.int("group", 1);
    if let (Some(channels), Some(each)) = (x[1].as_const(), w[1].as_const())
        && each.checked_mul(group) != Some(channels)
    {
        return Err(call.fault(
            call.name(0),
            format!("axis 1 (channels) is {channels}"),
            format!(
                "'{}' takes {each} channels in each of {group} groups",
                call.name(1)
            ),
            "channels = groups × channels of the weight",
        ));
    }
    let mut shape = vec![x[0].clone(), w[0].clone()];
    match windows(call, Some(w[2..].to_vec()), x.len())? {
        Some(list) => shape.extend(
            x[2..]
                .iter()
                .zip(&list)
                .map(|(d, w)| slid(call, d, w, false)),
        ),
        None => shape.resize(x.len(), unknown()),
    }
    call.give(0, data_type, Some(shape));
    Ok(())
}

pub(super) fn conv_transpose(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1, 2])?;
    call.want_rank(0, 2, usize::MAX)?;
    let (Some(x), Some(w)) = (call.shape(0), call.shape(1)) else {
        call.give(0, data_type, None);
        return Ok(());
    };
    call.want_rank(1, x.len(), x.len())?;
    let group = Dim::from(call.node.int("group", 1));
    let mut shape = vec![x[0].clone(), &w[1] * &group];
    let spatial = x.len() - 2;
    let given = call
        .node
        .ints("output_shape")
        .filter(|s| s.len() == spatial);
    let extra = call
        .node
        .ints("output_padding")
        .filter(|s| s.len() == spatial);
    let auto = call.text("auto_pad", "NOTSET").starts_with("SAME");
    match (given, windows(call, Some(w[2..].to_vec()), x.len())?) {
        (Some(sizes), _) => shape.extend(sizes.iter().map(|&s| Dim::from(s))),
        (None, Some(list)) => {
            for (axis, (size, window)) in x[2..].iter().zip(&list).enumerate() {
                let (one, stride) = (Dim::from(1), Dim::from(window.stride));
                if auto {
                    shape.push(size * &stride);
                    continue;
                }
                let extra = Dim::from(extra.map_or(0, |e| e[axis]));
                let reach = Dim::from(window.dilation) * (&window.kernel - &one) + &one;
                let pads = Dim::from(window.pads.0) + Dim::from(window.pads.1);
                shape.push(stride * (size - &one) + extra + reach - pads);
            }
        }
        (None, None) => shape.resize(x.len(), unknown()),
    }
    call.give(0, data_type, Some(shape));
    Ok(())
}

fn pooled(call: &Call<'_>) -> Result<Option<Vec<Dim>>, Box<Fault>> {
    call.want_rank(0, 2, usize::MAX)?;
    let Some(x) = call.shape(0) else {
        return Ok(None);
    };
    let ceil = call.node.int("ceil_mode", 0) != 0;
    let mut shape = x[..2].to_vec();
    match windows(call, None, x.len())? {
        Some(list) => shape.extend(
            x[2..]
                .iter()
                .zip(&list)
                .map(|(d, w)| slid(call, d, w, ceil)),
        ),
        None => shape.resize(x.len(), unknown()),
    }
    Ok(Some(shape))
}

pub(super) fn pool(call: &mut Call<'_>) -> Outcome {
    let shape = pooled(call)?;
    call.give(0, call.dtype(0), shape);
    Ok(())
}

pub(super) fn max_pool(call: &mut Call<'_>) -> Outcome {
    let shape = pooled(call)?;
    call.give(0, call.dtype(0), shape.clone());
    call.give(1, Some(DataType::INT64), shape);
    Ok(())
}

pub(super) fn global_pool(call: &mut Call<'_>) -> Outcome {
    call.want_rank(0, 2, usize::MAX)?;
    let shape = call.shape(0).map(|x| {
        let mut shape = x[..2].to_vec();
        shape.resize(x.len(), Dim::from(1));
        shape
    });
    call.give(0, call.dtype(0), shape);
    Ok(())
}
