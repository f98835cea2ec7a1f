//! Between the types of memory and the classes that are computed with.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// Bytes of an element in memory.
pub fn bytes(ty: DataType) -> usize {
    ty.bits().map_or(0, |bits| bits as usize / 8)
}

/// Whether elements are computed with as they lie in memory.
pub fn is_native(ty: DataType) -> bool {
    matches!(ty.0, 1 | 7 | 9 | 11 | 13)
}

/// Reads elements from `first` on, every `stride`th, into values of the type's class.
pub fn load(ty: DataType, source: &[u8], first: usize, stride: usize, values: &mut [u8]) {
    match ty.0 {
        1 => segment(source, first, stride, values, |x: u32| x),
        7 | 11 | 13 => segment(source, first, stride, values, |x: u64| x),
        9 => segment(source, first, stride, values, |x: u8| x),
        10 if stride == 1 => {
            let values: &mut [f32] = cast_slice_mut(values);
            let source: &[f16] = cast_slice(source);
            source[first..first + values.len()].convert_to_f32_slice(values);
        }
        10 => segment(source, first, stride, values, f16::to_f32),
        16 => segment(source, first, stride, values, bf16::to_f32),
        2 => segment(source, first, stride, values, |x: u8| i64::from(x)),
        3 => segment(source, first, stride, values, |x: i8| i64::from(x)),
        4 => segment(source, first, stride, values, |x: u16| i64::from(x)),
        5 => segment(source, first, stride, values, |x: i16| i64::from(x)),
        6 => segment(source, first, stride, values, |x: i32| i64::from(x)),
        12 => segment(source, first, stride, values, |x: u32| i64::from(x)),
        // Expressions have no other types.
        _ => {}
    }
}

fn segment<S: Pod, D: Pod>(
    source: &[u8],
    first: usize,
    stride: usize,
    values: &mut [u8],
    convert: impl Fn(S) -> D,
) {
    let source: &[S] = cast_slice(source);
    let values: &mut [D] = cast_slice_mut(values);
    match stride {
        0 => values.fill(convert(source[first])),
        1 => {
            let source = &source[first..first + values.len()];
            for (value, &element) in values.iter_mut().zip(source) {
                *value = convert(element);
            }
        }
        _ => {
            for (value, &element) in values
                .iter_mut()
                .zip(source[first..].iter().step_by(stride))
            {
                *value = convert(element);
            }
        }
    }
}

/// Writes values to elements; the values are within the type.
pub fn store(ty: DataType, values: &[u8], elements: &mut [u8]) {
    match ty.0 {
        10 => cast_slice_mut::<u8, f16>(elements).convert_from_f32_slice(cast_slice(values)),
        16 => convert(values, elements, bf16::from_f32),
        2 | 3 => convert(values, elements, |x: i64| x as u8),
        4 | 5 => convert(values, elements, |x: i64| x as u16),
        6 | 12 => convert(values, elements, |x: i64| x as u32),
        _ => elements.copy_from_slice(values),
    }
}

fn convert<S: Pod, D: Pod>(values: &[u8], elements: &mut [u8], convert: impl Fn(S) -> D) {
    let elements = cast_slice_mut::<u8, D>(elements);
    for (element, &value) in elements.iter_mut().zip(cast_slice::<u8, S>(values)) {
        *element = convert(value);
    }
}
