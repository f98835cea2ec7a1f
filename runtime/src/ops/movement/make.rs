//! Tensors made from attributes, shapes and numbers known when the plan is made.

use super::copy::{Axis, Copy, Origin, Part};
use super::{MAX_CONSTANT_BYTES, Movement, Range, Trilu, expect_shape, known, width};
use crate::lower::{Lowering, Refusal, constants};
use crate::ops::Op;
use crate::tensor::{Tensor, TensorType};
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// The bytes of a tensor's first element.
pub(super) fn element(tensor: &Tensor) -> Result<[u8; 8], Refusal> {
    let width = width(&TensorType::new(tensor.data_type, Vec::new()))?;
    let mut element = [0; 8];
    match tensor.bytes.get(..width) {
        Some(bytes) => element[..width].copy_from_slice(bytes),
        None => return Err(Refusal::new("a value without elements")),
    }
    Ok(element)
}

/// Gives an output of a node one element everywhere, and another on a diagonal where there is one
/// (its first element, the step, and how many).
fn filled(
    lowering: &mut Lowering<'_>,
    node: &Node,
    everywhere: [u8; 8],
    diagonal: Option<([u8; 8], usize, usize, usize)>,
) -> Result<(), Refusal> {
    let output = lowering.required_output(node, 0)?;
    let ty = lowering.ty(output);
    let width = width(&ty)?;
    let elements = ty.elements();
    if ty.bytes() <= MAX_CONSTANT_BYTES {
        let mut bytes = everywhere[..width].repeat(elements);
        if let Some((element, first, step, count)) = diagonal {
            for place in (0..count).map(|number| (first + number * step) * width) {
                bytes[place..place + width].copy_from_slice(&element[..width]);
            }
        }
        let tensor = Tensor {
            data_type: ty.data_type,
            shape: ty.shape,
            bytes: bytes.into(),
        };
        return known(lowering, node, 0, tensor);
    }
    let mut parts = vec![Part::fill(everywhere, elements)];
    if let Some((element, first, to, size)) = diagonal {
        let axis = Axis { size, from: 0, to };
        parts.extend(Part::new(Origin::Element(element), 0, [axis], 0, first)?);
    }
    let op = Op::Movement(Movement::Copy(Copy { parts }));
    lowering.emit(op, Vec::new(), vec![Some(output)]);
    Ok(())
}

pub(super) fn constant_of_shape(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let value = node
        .attribute("value")
        .and_then(|attribute| attribute.t.as_deref());
    let value = match value {
        Some(proto) => element(&lowering.attribute_tensor(proto)?)?,
        None => [0; 8],
    };
    filled(lowering, node, value, None)
}

pub(super) fn eye_like(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let output = lowering.required_output(node, 0)?;
    let ty = lowering.ty(output);
    let [rows, columns] = ty.shape[..] else {
        return Err(Refusal(format!("the output is {ty}: expected a matrix")));
    };
    let one = one(ty.data_type)?;
    let offset = node.int("k", 0);
    let up = usize::try_from(offset.max(0)).unwrap_or(usize::MAX);
    let down = usize::try_from(offset.min(0).unsigned_abs()).unwrap_or(usize::MAX);
    let count = rows.saturating_sub(down).min(columns.saturating_sub(up));
    let diagonal = (count > 0).then(|| (one, down * columns + up, columns + 1, count));
    filled(lowering, node, [0; 8], diagonal)
}

/// The number 1.
fn one(data_type: DataType) -> Result<[u8; 8], Refusal> {
    if data_type.is_float() {
        return element(&constants::scalar(data_type, 1.0)?);
    }
    let mut one = [0; 8];
    one[0] = 1;
    Ok(one)
}

pub(super) fn constant(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let attribute = (node.proto.attribute.iter()).find(|a| a.name().contains("value"));
    let Some(attribute) = attribute else {
        return Err(Refusal::new("the value is missing"));
    };
    let floats = |shape: &[usize], elements: &[f32]| Tensor::from_f32(shape, elements);
    let tensor = match attribute.name() {
        "value" => match &attribute.t {
            Some(proto) => lowering.attribute_tensor(proto)?,
            None => return Err(Refusal::new("the value is no tensor")),
        },
        "value_int" => Tensor::from_i64(&[], &[attribute.i.unwrap_or(0)]),
        "value_ints" => Tensor::from_i64(&[attribute.ints.len()], &attribute.ints),
        "value_float" => floats(&[], &[attribute.f.unwrap_or(0.0)]),
        "value_floats" => floats(&[attribute.floats.len()], &attribute.floats),
        other => {
            return Err(Refusal(format!(
                "'{other}' is not supported: expected a dense tensor or numbers"
            )));
        }
    };
    known(lowering, node, 0, tensor)
}

pub(super) fn shape(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let rank = ty.shape.len() as i64;
    let bound = |bound: i64| {
        let bound = if bound < 0 {
            bound.saturating_add(rank)
        } else {
            bound
        };
        bound.clamp(0, rank) as usize
    };
    let start = bound(node.int("start", 0));
    let end = bound(node.int("end", rank)).max(start);
    let sizes: Vec<i64> = (ty.shape[start..end].iter()).map(|&n| n as i64).collect();
    known(lowering, node, 0, Tensor::from_i64(&[sizes.len()], &sizes))
}

pub(super) fn size(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let elements = lowering.ty(source).elements() as i64;
    known(lowering, node, 0, Tensor::from_i64(&[], &[elements]))
}

pub(super) fn range(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let output = lowering.required_output(node, 0)?;
    let ty = lowering.ty(output);
    let mut numbers = [0.0; 3];
    let mut integers = [0; 3];
    for slot in 0..3 {
        if ty.data_type.is_float() {
            let tensor = lowering.constant_input(node, slot)?;
            let number = tensor.as_ref().and_then(constants::float);
            numbers[slot] = number.ok_or_else(|| {
                Refusal(format!(
                    "input {slot} must be a number known before the first step"
                ))
            })?;
        } else {
            let number = lowering.constant_ints(node, slot)?;
            integers[slot] = number
                .and_then(|all| all.first().copied())
                .ok_or_else(|| Refusal(format!("input {slot} is missing")))?;
        }
    }
    let op = match ty.data_type {
        DataType::INT64 | DataType::INT32 | DataType(5) => {
            let [start, _, step] = integers;
            Range::Integers { start, step }
        }
        data_type if data_type.is_float() => {
            let [start, _, step] = numbers;
            Range::Floats { start, step }
        }
        _ => return Err(Refusal(format!("a range cannot be {ty}"))),
    };
    let op = Op::Movement(Movement::Range(op));
    lowering.emit(op, Vec::new(), vec![Some(output)]);
    Ok(())
}

pub(super) fn trilu(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    width(&ty)?;
    let [.., rows, columns] = ty.shape[..] else {
        return Err(Refusal(format!("the input is {ty}: expected matrices")));
    };
    let second = lowering.optional_input(node, 1)?;
    let diagonal = match second {
        None => Some(0),
        Some(_) => match lowering.constant_ints(node, 1) {
            Ok(known) => known.and_then(|all| all.first().copied()),
            Err(_) => None,
        },
    };
    let mut inputs = vec![Some(source)];
    if let (None, Some(second)) = (diagonal, second) {
        let given = lowering.ty(second);
        if given.data_type != DataType::INT64 || given.elements() != 1 {
            return Err(Refusal(format!(
                "the diagonal is {given}: expected int64[]"
            )));
        }
        inputs.push(Some(second));
    }
    let output = lowering.required_output(node, 0)?;
    expect_shape(&lowering.ty(output), &ty.shape)?;
    let op = Trilu {
        upper: node.int("upper", 1) != 0,
        diagonal,
        rows,
        columns,
    };
    lowering.emit(
        Op::Movement(Movement::Trilu(op)),
        inputs,
        vec![Some(output)],
    );
    Ok(())
}
