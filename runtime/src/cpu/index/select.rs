//! `OneHot` and `TopK`.

use super::number::{Number, with_number};
use crate::cpu::memory::{Call, Input};
use crate::cpu::movement::{GRAIN, missing};
use crate::cpu::rows::for_chunks;
use crate::ops::index::{OneHot, TopK};
use bytemuck::Pod;
use half::{bf16, f16};
use std::cmp::Ordering;

/// An index of any number type.
fn index(input: &Input<'_>, place: usize) -> i64 {
    match input.ty.data_type.0 {
        1 => input.elements::<f32>()[place] as i64,
        11 => input.elements::<f64>()[place] as i64,
        10 => input.elements::<f16>()[place].to_f32() as i64,
        16 => input.elements::<bf16>()[place].to_f32() as i64,
        2 => i64::from(input.elements::<u8>()[place]),
        3 => i64::from(input.elements::<i8>()[place]),
        4 => i64::from(input.elements::<u16>()[place]),
        5 => i64::from(input.elements::<i16>()[place]),
        6 => i64::from(input.elements::<i32>()[place]),
        12 => i64::from(input.elements::<u32>()[place]),
        13 => i64::try_from(input.elements::<u64>()[place]).unwrap_or(i64::MAX),
        _ => input.elements::<i64>()[place],
    }
}

pub(super) fn one_hot(op: &OneHot, call: &mut Call<'_>) -> Result<(), String> {
    let ([Some(indices), Some(values), ..], [Some(output), ..]) = (&call.inputs, &mut call.outputs)
    else {
        return Err(missing());
    };
    match output.ty.data_type.bits() {
        Some(8) => one_hot_of::<u8>(op, indices, values.elements(), output.elements()),
        Some(16) => one_hot_of::<u16>(op, indices, values.elements(), output.elements()),
        Some(32) => one_hot_of::<u32>(op, indices, values.elements(), output.elements()),
        _ => one_hot_of::<u64>(op, indices, values.elements(), output.elements()),
    }
    Ok(())
}

fn one_hot_of<T: Pod + Send + Sync>(
    op: &OneHot,
    indices: &Input<'_>,
    values: &[T],
    output: &mut [T],
) {
    let (&[off, on], false) = (values, output.is_empty()) else {
        return;
    };
    let block = op.depth * op.inner;
    for_chunks(output, block, GRAIN, &|outer, output| {
        output.fill(off);
        for inner in 0..op.inner {
            let index = index(indices, outer * op.inner + inner);
            let depth = op.depth as i64;
            // What is outside leaves the row without the other value.
            if (-depth..depth).contains(&index) {
                let place = if index < 0 { index + depth } else { index };
                output[place as usize * op.inner + inner] = on;
            }
        }
    });
}

/// The order of the elements of a line.
pub(super) fn workspace(op: &TopK) -> usize {
    op.size * size_of::<u32>()
}

pub(super) fn top_k(op: &TopK, call: &mut Call<'_>) -> Result<(), String> {
    let Some(input) = call.inputs[0] else {
        return Err(missing());
    };
    with_number!(input.ty.data_type, top_k_of::<_>(op, &input, call))
}

/// Sorts places by what they hold, equal ones by their own order; compiled once for all types.
fn sort(places: &mut [u32], order: &dyn Fn(u32, u32) -> Ordering) {
    places.sort_unstable_by(|&a, &b| order(a, b).then(a.cmp(&b)));
}

fn top_k_of<T: Number>(op: &TopK, input: &Input<'_>, call: &mut Call<'_>) -> Result<(), String> {
    let data = input.elements::<T>();
    let [values, indices, ..] = &mut call.outputs;
    let mut values = values.as_mut().map(|values| values.elements::<T>());
    let mut indices = indices.as_mut().map(|indices| indices.elements::<i64>());
    let order: &mut [u32] = bytemuck::cast_slice_mut(call.workspace);
    let order = &mut order[..op.size];
    for line in 0..op.outer * op.inner {
        let (outer, inner) = (line / op.inner, line % op.inner);
        let element = |place: u32| &data[(outer * op.size + place as usize) * op.inner + inner];
        for (place, entry) in order.iter_mut().enumerate() {
            *entry = place as u32;
        }
        sort(order, &|a, b| match op.largest {
            true => element(b).order(element(a)),
            false => element(a).order(element(b)),
        });
        for (rank, &place) in order[..op.k].iter().enumerate() {
            let to = (outer * op.k + rank) * op.inner + inner;
            if let Some(values) = &mut values {
                values[to] = *element(place);
            }
            if let Some(indices) = &mut indices {
                indices[to] = i64::from(place);
            }
        }
    }
    Ok(())
}
