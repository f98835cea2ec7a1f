//! Tensors and types by themselves.

use super::NESTING_LIMIT;
use crate::onnx::schema::tensor_proto::DataLocation;
use crate::onnx::schema::tensor_shape_proto::dimension::Value::DimValue;
use crate::onnx::schema::{
    SparseTensorProto, TensorProto, TensorShapeProto, TypeProto, type_proto,
};
use crate::shapes::DataType;
use crate::text::element_name;

const STRING: i32 = DataType::STRING.0;
const INT64: i32 = DataType::INT64.0;

/// What is wrong with a tensor.
pub(super) fn problems(tensor: &TensorProto) -> Vec<String> {
    let mut found = Vec::new();
    let kind = tensor.data_type();
    let name = element_name(kind);
    if name.is_none() {
        found.push(element_problem(kind));
    }
    let elements = elements(&tensor.dims);
    if let Err(problem) = &elements {
        found.push(problem.clone());
    }
    let held = payloads(tensor);
    if tensor.data_location() == DataLocation::External {
        if !tensor.external_data.iter().any(|e| e.key() == "location") {
            found.push("an external tensor without location; expected one".to_owned());
        }
        if let Some((field, _)) = held.first() {
            found.push(format!(
                "an external tensor with a payload in {field}; expected none"
            ));
        }
        return found;
    }
    if tensor.segment.is_some() {
        found.push("a segment of a tensor; expected a whole one".to_owned());
        return found;
    }
    let (Some(name), Ok(elements)) = (name, elements) else {
        return found;
    };
    let dims = format_args!("dims {:?} of {name}", tensor.dims).to_string();
    let field = typed_field(kind);
    match held.as_slice() {
        [] => {
            if elements != 0 {
                found.push(format!(
                    "{dims} without payload; expected one in raw_data or {field}"
                ));
            }
        }
        &[("raw_data", _)] if kind == STRING => {
            found.push("strings in raw_data; expected them in string_data".to_owned());
        }
        &[("raw_data", length)] => {
            let bits = DataType(kind).bits().unwrap_or_default();
            // In 128 bits neither the product nor the rounding can overflow.
            let bytes = (i128::from(elements) * i128::from(bits) + 7) / 8;
            if length as i128 != bytes {
                found.push(format!(
                    "{dims} take {bytes} bytes, and raw_data has {length}"
                ));
            }
        }
        &[(other, _)] if other != field => {
            found.push(format!(
                "elements of {name} in {other}; expected them in {field}"
            ));
        }
        &[(_, length)] => {
            let entries = entries(kind, elements);
            if length as i128 != entries {
                found.push(format!(
                    "{dims} take {entries} entries, and {field} has {length}"
                ));
            }
        }
        several => {
            let fields: Vec<_> = several.iter().map(|(field, _)| *field).collect();
            let fields = fields.join(", ");
            found.push(format!("payloads in {fields}; expected one of them"));
        }
    }
    found
}

/// The fields with a payload, and how many entries each has.
fn payloads(t: &TensorProto) -> Vec<(&'static str, usize)> {
    let all = [
        ("raw_data", t.raw_data.as_ref().map_or(0, |r| r.len())),
        ("float_data", t.float_data.len()),
        ("int32_data", t.int32_data.len()),
        ("string_data", t.string_data.len()),
        ("int64_data", t.int64_data.len()),
        ("double_data", t.double_data.len()),
        ("uint64_data", t.uint64_data.len()),
    ];
    all.into_iter().filter(|(_, length)| *length > 0).collect()
}

/// The field for an element type, by the comments of `TensorProto` in onnx-ml.proto.
fn typed_field(kind: i32) -> &'static str {
    match kind {
        1 | 14 => "float_data",
        11 | 15 => "double_data",
        INT64 => "int64_data",
        12 | 13 => "uint64_data",
        STRING => "string_data",
        _ => "int32_data",
    }
}

/// How many entries of the typed field hold so many elements: complex numbers take two, and
/// elements of 4 and 2 bits share the bytes of one.
fn entries(kind: i32, elements: i64) -> i128 {
    let elements = i128::from(elements);
    match kind {
        14 | 15 => elements * 2,
        _ => match DataType(kind).bits() {
            Some(4) => (elements + 1) / 2,
            Some(2) => (elements + 3) / 4,
            _ => elements,
        },
    }
}

fn elements(dims: &[i64]) -> Result<i64, String> {
    if let Some(negative) = dims.iter().find(|d| **d < 0) {
        return Err(format!("dims {dims:?} hold the negative size {negative}"));
    }
    if dims.contains(&0) {
        return Ok(0);
    }
    let product = dims
        .iter()
        .try_fold(1i64, |product, d| product.checked_mul(*d));
    product.ok_or_else(|| format!("the product of dims {dims:?} does not fit 64 bits"))
}

fn element_problem(kind: i32) -> String {
    match kind {
        0 => "the element type is missing; expected one".to_owned(),
        kind => format!("unknown element type {kind}; expected 1 to 26"),
    }
}

/// What is wrong with a sparse tensor.
pub(super) fn sparse_problems(sparse: &SparseTensorProto) -> Vec<String> {
    let (Some(values), Some(indices)) = (&sparse.values, &sparse.indices) else {
        return vec!["a sparse tensor without values or without indices; expected both".to_owned()];
    };
    let mut found = problems(values);
    found.extend(problems(indices));
    if sparse.dims.is_empty() || sparse.dims.iter().any(|d| *d <= 0) {
        found.push(format!(
            "dims {:?} of a sparse tensor; expected positive sizes",
            sparse.dims
        ));
    }
    let &[count] = values.dims.as_slice() else {
        let dims = &values.dims;
        found.push(format!(
            "dims {dims:?} of a sparse tensor's values; expected one size"
        ));
        return found;
    };
    let rank = i64::try_from(sparse.dims.len()).unwrap_or(i64::MAX);
    let linear = indices.dims == [count] || indices.dims == [count, rank];
    if indices.data_type() != INT64 || !linear {
        found.push(format!(
            "dims {:?} of a sparse tensor's indices; expected int64 and [{count}] or \
             [{count}, {rank}]",
            indices.dims
        ));
    }
    found
}

/// What is wrong with a type.
pub(super) fn type_problem(proto: &TypeProto, depth: usize) -> Option<String> {
    use type_proto::Value;
    if depth >= NESTING_LIMIT {
        return Some(format!(
            "types are nested deeper than {NESTING_LIMIT} levels"
        ));
    }
    let element = |kind: i32| element_name(kind).is_none().then(|| element_problem(kind));
    let inner = |inner: &Option<Box<TypeProto>>, what: &str| match inner {
        Some(inner) => type_problem(inner, depth + 1),
        None => Some(format!("{what} without content; expected a type")),
    };
    match proto.value.as_ref()? {
        Value::TensorType(t) => element(t.elem_type()).or_else(|| shape_problem(&t.shape)),
        Value::SparseTensorType(t) => element(t.elem_type()).or_else(|| shape_problem(&t.shape)),
        Value::SequenceType(t) => inner(&t.elem_type, "a sequence"),
        Value::OptionalType(t) => inner(&t.elem_type, "an optional"),
        Value::MapType(t) => match t.key_type() {
            // Integers of all widths and signs, and strings.
            2..=8 | 12 | 13 => inner(&t.value_type, "a map"),
            other => {
                let name = element_name(other).unwrap_or("none");
                Some(format!(
                    "a map with keys of {name}; expected integers or strings"
                ))
            }
        },
        Value::OpaqueType(_) => None,
    }
}

fn shape_problem(shape: &Option<TensorShapeProto>) -> Option<String> {
    shape
        .iter()
        .flat_map(|s| &s.dim)
        .find_map(|d| match d.value {
            Some(DimValue(size)) if size < 0 => {
                Some(format!("the shape holds the negative size {size}"))
            }
            _ => None,
        })
}
