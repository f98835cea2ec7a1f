//! Element types, and the type of one value.

use super::call::list;
use super::fact::unknown;
use crate::dim::Dim;
use crate::onnx::schema::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::schema::{ValueInfoProto, type_proto};
use crate::text::element_type_name;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// An element type of a tensor, by its number in `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataType(pub i32);

impl DataType {
    /// 32-bit float.
    pub const FLOAT: DataType = DataType(1);
    /// 8-bit unsigned integer.
    pub const UINT8: DataType = DataType(2);
    /// 8-bit integer.
    pub const INT8: DataType = DataType(3);
    /// 32-bit integer.
    pub const INT32: DataType = DataType(6);
    /// 64-bit integer.
    pub const INT64: DataType = DataType(7);
    /// Text.
    pub const STRING: DataType = DataType(8);
    /// Truth value, one byte.
    pub const BOOL: DataType = DataType(9);
    /// 16-bit float.
    pub const FLOAT16: DataType = DataType(10);
    /// 64-bit float.
    pub const DOUBLE: DataType = DataType(11);
    /// The upper half of a 32-bit float.
    pub const BFLOAT16: DataType = DataType(16);
    /// Unsigned 4-bit integer, two to a byte.
    pub const UINT4: DataType = DataType(21);
    /// Signed 4-bit integer, two to a byte.
    pub const INT4: DataType = DataType(22);

    /// Bits of one element, `None` for text and unknown numbers.
    pub fn bits(self) -> Option<i64> {
        // Names and numbers: `TensorProto.DataType` of onnx-ml.proto, IR version 14.
        Some(match self.0 {
            15 => 128,                     // complex128
            7 | 11 | 13 | 14 => 64,        // int64, double, uint64, complex64
            1 | 6 | 12 => 32,              // float, int32, uint32
            4 | 5 | 10 | 16 => 16,         // uint16, int16, float16, bfloat16
            2 | 3 | 9 | 17..=20 | 24 => 8, // uint8, int8, bool, float8 kinds
            21..=23 => 4,                  // uint4, int4, float4e2m1
            25 | 26 => 2,                  // uint2, int2
            _ => return None,
        })
    }

    /// Whether the elements are real floating point numbers of a width that can be computed with.
    pub fn is_float(self) -> bool {
        matches!(self.0, 1 | 10 | 11 | 16)
    }
}

/// What is known of one value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueType {
    /// The element type, where the value is known to be a tensor of it.
    pub data_type: Option<DataType>,
    /// The shape: `None` is an unknown rank, an empty list a scalar. A size that nothing tells is a
    /// symbol of its own, named after the value and the axis.
    pub shape: Option<Vec<Dim>>,
}

impl ValueType {
    /// The number of elements.
    pub fn elements(&self) -> Option<Dim> {
        let shape = self.shape.as_ref()?;
        Some(
            shape
                .iter()
                .fold(Dim::from(1), |product, dim| product * dim),
        )
    }

    /// The bytes of the dense buffer; sub-byte elements are packed and the sum rounded up.
    pub fn bytes(&self) -> Option<Dim> {
        let bits = self.data_type?.bits()?;
        let elements = self.elements()?;
        Some(match bits % 8 {
            0 => elements * Dim::from(bits / 8),
            _ => (elements * Dim::from(bits)).div_ceil(&Dim::from(8)),
        })
    }
}

/// Reads declarations. Each size is read once and shared: a file repeats few of them in many places.
pub(crate) struct Declarations<'a> {
    sizes: &'a BTreeMap<Arc<str>, Dim>,
    named: HashMap<&'a str, Dim>,
    numbers: HashMap<i64, Dim>,
}

impl<'a> Declarations<'a> {
    /// `sizes` are put in place of symbols, inside expressions as well (`4*batch`).
    pub(crate) fn new(sizes: &'a BTreeMap<Arc<str>, Dim>) -> Self {
        Declarations {
            sizes,
            named: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// What a declaration in the file says. A size that is missing or negative is undefined.
    pub(crate) fn read(&mut self, info: &'a ValueInfoProto) -> ValueType {
        let value = info.r#type.as_ref().and_then(|t| t.value.as_ref());
        let Some(type_proto::Value::TensorType(tensor)) = value else {
            return ValueType::default();
        };
        let shape = tensor.shape.as_ref();
        ValueType {
            data_type: tensor.elem_type.filter(|&t| t != 0).map(DataType),
            shape: shape.map(|s| s.dim.iter().map(|d| self.size(d)).collect()),
        }
    }

    fn size(&mut self, dim: &'a Dimension) -> Dim {
        match &dim.value {
            // Some exporters write -1 for a size that they do not know.
            Some(dimension::Value::DimValue(size)) if *size >= 0 => {
                let read = self.numbers.entry(*size);
                read.or_insert_with(|| Dim::from(*size)).clone()
            }
            Some(dimension::Value::DimParam(name)) if !name.is_empty() => {
                let sizes = self.sizes;
                let read = self.named.entry(name.as_str());
                let parse = || match sizes.is_empty() {
                    true => Dim::parse(name),
                    false => Dim::parse(name).substitute(sizes),
                };
                read.or_insert_with(parse).clone()
            }
            _ => unknown(),
        }
    }
}

/// The name in ONNX's textual syntax, or the number.
impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match element_type_name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "element type {}", self.0),
        }
    }
}

/// `float[batch, 64]`; `?` stands for an unknown element type, `...` for an unknown rank.
impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.data_type {
            Some(data_type) => write!(f, "{data_type}")?,
            None => f.write_str("?")?,
        }
        match &self.shape {
            Some(shape) => f.write_str(&list(shape)),
            None => f.write_str("[...]"),
        }
    }
}
