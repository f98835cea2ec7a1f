//! Normalisations, dropout, losses and recurrent layers.

use super::DataType;
use super::call::Call;
use super::fact::unknown;
use super::rules::{Fault, Outcome};
use super::shape_ops::product;
use crate::dim::Dim;

const UINT32: DataType = DataType(12);

/// The type of statistics: `stash_type`, float unless the file says otherwise.
fn stash(call: &Call<'_>) -> Option<DataType> {
    i32::try_from(call.node.int("stash_type", 1))
        .ok()
        .map(DataType)
}

/// The input's shape with the axes from `axis` on reduced to 1.
fn statistics(call: &Call<'_>) -> Result<Option<Vec<Dim>>, Box<Fault>> {
    let Some(shape) = call.shape(0) else {
        return Ok(None);
    };
    let axis = call.axis(call.node.int("axis", -1), shape.len(), 0)?;
    let mut reduced = shape[..axis].to_vec();
    reduced.resize(shape.len(), Dim::from(1));
    Ok(Some(reduced))
}

/// The scale must fit the normalised axes.
fn check_scale(call: &Call<'_>, slot: usize) -> Outcome {
    let (Some(x), Some([scale])) = (call.shape(0), call.shape(slot)) else {
        return Ok(());
    };
    let last = x.last().and_then(Dim::as_const);
    match (last, scale.as_const()) {
        (Some(x), Some(scale)) if scale != 1 && x != scale => Err(call.fault(
            call.name(slot),
            format!("it has {scale} elements"),
            format!("the last axis of '{}' is {x}", call.name(0)),
            "scale and bias have one element for each normalised feature",
        )),
        _ => Ok(()),
    }
}

pub(super) fn layer_norm(call: &mut Call<'_>) -> Outcome {
    check_scale(call, 1)?;
    check_scale(call, 2)?;
    let reduced = statistics(call)?;
    call.like(0, 0);
    call.give(1, stash(call), reduced.clone());
    call.give(2, stash(call), reduced);
    Ok(())
}

pub(super) fn simplified_layer_norm(call: &mut Call<'_>) -> Outcome {
    check_scale(call, 1)?;
    let reduced = statistics(call)?;
    // Operands of two types: the result has the scale's.
    call.give(0, call.dtype(1).or(call.dtype(0)), call.shape_owned(0));
    call.give(1, stash(call), reduced);
    Ok(())
}

/// Outputs: the result, mean, inverse standard deviation, the sum of input and skip.
pub(super) fn skip_layer_norm(call: &mut Call<'_>) -> Outcome {
    check_scale(call, 2)?;
    let reduced = statistics(call)?;
    call.like(0, 0);
    call.give(1, Some(DataType::FLOAT), reduced.clone());
    call.give(2, Some(DataType::FLOAT), reduced);
    call.like(3, 0);
    Ok(())
}

pub(super) fn skip_simplified_layer_norm(call: &mut Call<'_>) -> Outcome {
    skip_layer_norm(call)
}

/// The number of channels as a vector's shape: axis 1 of the input, else the scale's length.
fn channels(call: &Call<'_>) -> Option<Vec<Dim>> {
    let scale = call.shape_owned(1);
    scale.or_else(|| Some(vec![call.shape(0)?.get(1)?.clone()]))
}

pub(super) fn batch_norm(call: &mut Call<'_>) -> Outcome {
    call.like(0, 0);
    let of_channels = channels(call);
    for slot in 1..5 {
        call.give(slot, call.dtype(3).or(call.dtype(1)), of_channels.clone());
    }
    Ok(())
}

pub(super) fn batch_norm_internal(call: &mut Call<'_>) -> Outcome {
    batch_norm(call)
}

pub(super) fn dropout(call: &mut Call<'_>) -> Outcome {
    call.like(0, 0);
    // Before version 10 the mask had the data's type.
    let mask = if call.opset < 10 {
        call.dtype(0)
    } else {
        Some(DataType::BOOL)
    };
    call.give(1, mask, call.shape_owned(0));
    Ok(())
}

/// One bit for each element, in words of 32.
fn bitmask(call: &Call<'_>) -> Option<Vec<Dim>> {
    let count = product(call.shape(0)?);
    Some(vec![count.div_ceil(&Dim::from(32))])
}

pub(super) fn bitmask_dropout(call: &mut Call<'_>) -> Outcome {
    call.like(0, 0);
    let mask = bitmask(call);
    call.give(1, Some(UINT32), mask);
    Ok(())
}

pub(super) fn bias_dropout(call: &mut Call<'_>) -> Outcome {
    call.like(0, 0);
    call.give(1, Some(DataType::BOOL), call.shape_owned(0));
    Ok(())
}

pub(super) fn bitmask_bias_dropout(call: &mut Call<'_>) -> Outcome {
    bitmask_dropout(call)
}

/// Outputs: the loss, and the logarithms of the probabilities.
pub(super) fn cross_entropy(call: &mut Call<'_>) -> Outcome {
    let loss = loss_shape(call)?;
    call.give(0, output_type(call), loss);
    call.give(1, output_type(call), call.shape_owned(0));
    Ok(())
}

fn output_type(call: &Call<'_>) -> Option<DataType> {
    let given = i32::try_from(call.node.int("output_type", 0)).ok();
    given.filter(|&t| t != 0).map(DataType).or(call.dtype(0))
}

pub(super) fn nll(call: &mut Call<'_>) -> Outcome {
    let loss = loss_shape(call)?;
    call.give(0, call.dtype(0), loss);
    Ok(())
}

/// A scalar, or the labels' shape; labels and scores must not contradict each other.
fn loss_shape(call: &Call<'_>) -> Result<Option<Vec<Dim>>, Box<Fault>> {
    if let (Some(scores), Some(labels)) = (call.shape(0), call.shape(1)) {
        call.want_rank(0, 2, usize::MAX)?;
        call.want_rank(1, scores.len() - 1, scores.len() - 1)?;
        for axis in 0..labels.len() {
            call.agree((1, axis), (0, if axis == 0 { 0 } else { axis + 1 }))?;
        }
    }
    Ok(match call.text("reduction", "mean") {
        "none" => call.shape_owned(1),
        _ => Some(Vec::new()),
    })
}

/// Sizes that the outputs of a recurrent layer have.
struct Recurrent {
    steps: Dim,
    batch: Dim,
    directions: Dim,
    hidden: Dim,
    batch_first: bool,
}

fn recurrent(call: &Call<'_>) -> Result<Recurrent, Box<Fault>> {
    call.want_rank(0, 3, 3)?;
    let size = |slot: usize, axis: usize| {
        let size = call.shape(slot).and_then(|s| s.get(axis));
        size.cloned().unwrap_or_else(unknown)
    };
    let batch_first = call.node.int("layout", 0) != 0;
    let two = call.text("direction", "forward") == "bidirectional";
    let hidden = match call.node.attribute("hidden_size").and_then(|a| a.i) {
        Some(hidden) => Dim::from(hidden),
        None => size(2, 2),
    };
    if let (Some(a), Some(b)) = (hidden.as_const(), size(2, 2).as_const())
        && a != b
    {
        return Err(call.fault(
            call.name(2),
            format!("its last axis is {b}"),
            format!("hidden_size is {a}"),
            "the recurrent weight has one column for each hidden unit",
        ));
    }
    let (steps, batch) = (size(0, 0), size(0, 1));
    let (steps, batch) = if batch_first {
        (batch, steps)
    } else {
        (steps, batch)
    };
    Ok(Recurrent {
        steps,
        batch,
        directions: Dim::from(if two { 2 } else { 1 }),
        hidden,
        batch_first,
    })
}

impl Recurrent {
    /// All steps, `wide` numbers for each hidden unit.
    fn all(&self, wide: i64) -> Option<Vec<Dim>> {
        let [s, d, b] = [&self.steps, &self.directions, &self.batch];
        let order = if self.batch_first {
            [b, s, d]
        } else {
            [s, d, b]
        };
        let mut shape: Vec<Dim> = order.into_iter().cloned().collect();
        shape.push(&self.hidden * &Dim::from(wide));
        Some(shape)
    }

    /// The last step.
    fn last(&self) -> Option<Vec<Dim>> {
        let [d, b] = [&self.directions, &self.batch];
        let order = if self.batch_first { [b, d] } else { [d, b] };
        let mut shape: Vec<Dim> = order.into_iter().cloned().collect();
        shape.push(self.hidden.clone());
        Some(shape)
    }
}

pub(super) fn rnn(call: &mut Call<'_>) -> Outcome {
    let layer = recurrent(call)?;
    call.give(0, call.dtype(0), layer.all(1));
    call.give(1, call.dtype(0), layer.last());
    Ok(())
}

pub(super) fn gru(call: &mut Call<'_>) -> Outcome {
    rnn(call)
}

pub(super) fn lstm(call: &mut Call<'_>) -> Outcome {
    let layer = recurrent(call)?;
    rnn(call)?;
    call.give(2, call.dtype(0), layer.last());
    Ok(())
}

/// Outputs behind those of LSTM: all cell states, and the four gates of every step.
pub(super) fn lstm_training(call: &mut Call<'_>) -> Outcome {
    let layer = recurrent(call)?;
    lstm(call)?;
    call.give(3, call.dtype(0), layer.all(1));
    call.give(4, call.dtype(0), layer.all(4));
    Ok(())
}

/// Behind those of GRU: the three gates of every step.
pub(super) fn gru_training(call: &mut Call<'_>) -> Outcome {
    let layer = recurrent(call)?;
    gru(call)?;
    call.give(2, call.dtype(0), layer.all(3));
    Ok(())
}

pub(super) fn dequantize(call: &mut Call<'_>) -> Outcome {
    let given = i32::try_from(call.node.int("output_dtype", 0)).ok();
    let given = given.filter(|&t| t != 0 && call.opset >= 23).map(DataType);
    call.give(0, given.or(call.dtype(1)), call.shape_owned(0));
    Ok(())
}

pub(super) fn quantize(call: &mut Call<'_>) -> Outcome {
    let given = i32::try_from(call.node.int("output_dtype", 0)).ok();
    let given = given.filter(|&t| t != 0).map(DataType);
    let data_type = match call.has(2) {
        true => call.dtype(2),
        false => Some(given.unwrap_or(DataType::UINT8)),
    };
    call.give(0, data_type, call.shape_owned(0));
    Ok(())
}

/// Outputs: bytes, their scale and their zero point.
pub(super) fn dynamic_quantize(call: &mut Call<'_>) -> Outcome {
    call.give(0, Some(DataType::UINT8), call.shape_owned(0));
    call.give(1, Some(DataType::FLOAT), Some(Vec::new()));
    call.give(2, Some(DataType::UINT8), Some(Vec::new()));
    Ok(())
}

/// Attention of the standard operators: Q, K, V, mask, past K, past V → Y, present K, present V,
/// scores. Heads are an axis of their own in rank 4 and part of the last axis in rank 3.
pub(super) fn attention(call: &mut Call<'_>) -> Outcome {
    let size = |slot: usize, axis: usize| {
        let size = call.shape(slot).and_then(|s| s.get(axis));
        size.cloned().unwrap_or_else(unknown)
    };
    let heads = |name: &str| {
        let heads = call.node.attribute(name).and_then(|a| a.i);
        heads.map_or_else(unknown, Dim::from)
    };
    // [batch, heads, tokens, features of a head] of an input.
    let split = |slot: usize, name: &str| match call.rank(slot) {
        Some(4) => Some([0, 1, 2, 3].map(|axis| size(slot, axis))),
        Some(3) => {
            let heads = heads(name);
            let each = size(slot, 2).div_floor(&heads);
            Some([size(slot, 0), heads, size(slot, 1), each])
        }
        _ => None,
    };
    let parts = (
        split(0, "q_num_heads"),
        split(1, "kv_num_heads"),
        split(2, "kv_num_heads"),
    );
    let (Some(q), Some(k), Some(v)) = parts else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let with_past = |slot: usize, tokens: &Dim| match call.has(slot) {
        true => size(slot, 2) + tokens,
        false => tokens.clone(),
    };
    let (keys, values) = (with_past(4, &k[2]), with_past(5, &v[2]));
    let [batch, heads, tokens, _] = &q;
    let y = match call.rank(0) {
        Some(4) => vec![batch.clone(), heads.clone(), tokens.clone(), v[3].clone()],
        _ => vec![batch.clone(), tokens.clone(), heads * &v[3]],
    };
    let scores = vec![batch.clone(), heads.clone(), tokens.clone(), keys.clone()];
    call.give(0, call.dtype(0), Some(y));
    let [batch, heads, _, each] = k;
    call.give(1, call.dtype(1), Some(vec![batch, heads, keys, each]));
    let [batch, heads, _, each] = v;
    call.give(2, call.dtype(2), Some(vec![batch, heads, values, each]));
    call.give(3, call.dtype(0), Some(scores));
    Ok(())
}

/// Resize and Upsample: sizes by numbers, or by whole factors; other factors leave sizes open.
pub(super) fn resize(call: &mut Call<'_>) -> Outcome {
    let Some(shape) = call.shape(0) else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let rank = shape.len();
    let (scales, sizes) = match (call.node.op(), call.opset) {
        ("Upsample", _) | (_, ..=10) => (call.contents(1), None),
        _ => (call.contents(2), call.contents(3)),
    };
    let axes = match call.node.ints("axes") {
        Some(axes) => axes.to_vec(),
        None => (0..i64::try_from(rank).unwrap_or(0)).collect(),
    };
    let mut resized = shape.to_vec();
    let stretch = call.text("keep_aspect_ratio_policy", "stretch") == "stretch";
    for (index, axis) in axes.into_iter().enumerate() {
        let axis = call.axis(axis, rank, 0)?;
        let at = |list: Option<&[Dim]>| list.and_then(|l| l.get(index)).cloned();
        resized[axis] = match (at(sizes), at(scales)) {
            (Some(size), _) if stretch => size,
            (None, Some(scale)) => &shape[axis] * &scale,
            _ => unknown(),
        };
    }
    call.give(0, call.dtype(0), Some(resized));
    Ok(())
}

/// X [N, C, ...], grid [N, ..., axes] → [N, C, ...] with the grid's sizes.
pub(super) fn grid_sample(call: &mut Call<'_>) -> Outcome {
    call.want_rank(0, 3, usize::MAX)?;
    let shape = match (call.shape(0), call.shape(1)) {
        (Some(x), Some([_, spatial @ .., _])) => {
            let sizes = x[..2].iter().chain(spatial);
            Some(sizes.cloned().collect())
        }
        _ => None,
    };
    call.give(0, call.dtype(0), shape);
    Ok(())
}

/// [..., M, M] → [...]
pub(super) fn determinant(call: &mut Call<'_>) -> Outcome {
    call.want_rank(0, 2, usize::MAX)?;
    let shape = call.shape(0).map(|s| s[..s.len() - 2].to_vec());
    call.give(0, call.dtype(0), shape);
    Ok(())
}
