//! Operators that make tensors from attributes and shapes.

use super::DataType;
use super::call::Call;
use super::elementwise::at_least;
use super::fact::{Fact, MAX_CONTENTS, MAX_RANK, unknown};
use super::rules::Outcome;
use super::shape_ops::{given_shape, repeated};
use crate::dim::Dim;

pub(super) fn constant(call: &mut Call<'_>) -> Outcome {
    let name = call.output_name(0);
    let Some(attribute) = call.node.proto.attribute.first() else {
        return Ok(());
    };
    let length = |n: usize| vec![i64::try_from(n).map_or_else(|_| unknown(), Dim::from)];
    let fact = match attribute.name() {
        "value" => match &attribute.t {
            Some(tensor) => Fact::of_tensor(tensor, name)?,
            None => Fact::default(),
        },
        "value_int" => {
            let element = attribute.i.map_or_else(unknown, Dim::from);
            Fact::new(Some(DataType::INT64), Some(vec![])).with(Some(vec![element]))
        }
        "value_ints" => {
            let fact = Fact::new(Some(DataType::INT64), Some(length(attribute.ints.len())));
            let few = attribute.ints.len() <= MAX_CONTENTS;
            fact.with(few.then(|| attribute.ints.iter().map(|&v| Dim::from(v)).collect()))
        }
        "value_float" => Fact::new(Some(DataType::FLOAT), Some(vec![])),
        "value_floats" => Fact::new(Some(DataType::FLOAT), Some(length(attribute.floats.len()))),
        "value_string" => Fact::new(Some(DataType::STRING), Some(vec![])),
        "value_strings" => Fact::new(
            Some(DataType::STRING),
            Some(length(attribute.strings.len())),
        ),
        "sparse_value" => match &attribute.sparse_tensor {
            Some(sparse) if sparse.dims.len() <= MAX_RANK => Fact::new(
                sparse
                    .values
                    .as_ref()
                    .and_then(|v| v.data_type)
                    .map(DataType),
                Some(sparse.dims.iter().map(|&d| Dim::from(d)).collect()),
            ),
            _ => Fact::default(),
        },
        _ => Fact::default(),
    };
    call.set(0, fact);
    Ok(())
}

pub(super) fn constant_of_shape(call: &mut Call<'_>) -> Outcome {
    let value = call.node.attribute("value").and_then(|a| a.t.as_ref());
    let value = match value {
        Some(tensor) => Fact::of_tensor(tensor, call.output_name(0))?,
        None => Fact::new(Some(DataType::FLOAT), None).with(Some(vec![Dim::from(0)])),
    };
    let shape = given_shape(call, 0);
    let contents = match (value.contents.as_deref(), shape.as_deref()) {
        (Some([element]), Some([])) => Some(vec![element.clone()]),
        (Some([element]), Some([length])) => repeated(element, length),
        _ => None,
    };
    call.set(0, Fact::new(value.data_type, shape).with(contents));
    Ok(())
}

pub(super) fn range(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1, 2])?;
    let scalar = |slot: usize| match call.contents(slot) {
        Some([only]) => Some(only),
        _ => None,
    };
    let (mut length, mut contents) = (unknown(), None);
    if let (Some(start), Some(limit), Some(step)) = (scalar(0), scalar(1), scalar(2)) {
        if step.as_const() == Some(0) {
            return Err(call.fault(
                call.name(2),
                "the step is 0".to_owned(),
                "a step is not 0".to_owned(),
                "check the third input of the Range",
            ));
        }
        if step.as_const().is_some() || at_least(step, 1) || at_least(&-step, 1) {
            length = (limit - start).div_ceil(step).maximum(&Dim::from(0));
        }
        let count = length.as_const().and_then(|n| usize::try_from(n).ok());
        if let Some(count) = count.filter(|&n| n <= MAX_CONTENTS) {
            let mut next = start.clone();
            let mut all = Vec::with_capacity(count);
            for _ in 0..count {
                all.push(next.clone());
                next = next + step;
            }
            contents = Some(all);
        }
    }
    call.set(0, Fact::new(data_type, Some(vec![length])).with(contents));
    Ok(())
}

/// An element type given by an attribute, else `otherwise`.
fn type_attribute(call: &Call<'_>, otherwise: Option<DataType>) -> Option<DataType> {
    let given = i32::try_from(call.node.int("dtype", 0)).ok();
    given.filter(|&t| t != 0).map(DataType).or(otherwise)
}

pub(super) fn eye_like(call: &mut Call<'_>) -> Outcome {
    call.give(0, type_attribute(call, call.dtype(0)), call.shape_owned(0));
    Ok(())
}

pub(super) fn random(call: &mut Call<'_>) -> Outcome {
    let shape = call.node.ints("shape").filter(|s| s.len() <= MAX_RANK);
    let shape = shape.map(|s| s.iter().map(|&d| Dim::from(d)).collect());
    call.give(0, type_attribute(call, Some(DataType::FLOAT)), shape);
    Ok(())
}

pub(super) fn random_like(call: &mut Call<'_>) -> Outcome {
    eye_like(call)
}

/// [batch, classes] → [batch, samples]
pub(super) fn multinomial(call: &mut Call<'_>) -> Outcome {
    let batch = call.shape(0).and_then(|s| s.first()).cloned();
    let samples = Dim::from(call.node.int("sample_size", 1));
    let shape = vec![batch.unwrap_or_else(unknown), samples];
    call.give(0, type_attribute(call, Some(DataType::INT32)), Some(shape));
    Ok(())
}

/// A window function of the length that the input holds.
pub(super) fn window(call: &mut Call<'_>) -> Outcome {
    let length = match call.contents(0) {
        Some([only]) => only.clone(),
        _ => unknown(),
    };
    let given = i32::try_from(call.node.int("output_datatype", 1)).ok();
    call.give(0, given.map(DataType), Some(vec![length]));
    Ok(())
}
