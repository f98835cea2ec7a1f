//! What inference knows of a value while it runs.

use super::DataType;
use super::rules::Fault;
use crate::dim::Dim;
use crate::onnx::schema::TensorProto;
use std::sync::Arc;

/// Contents longer than this are not followed: shapes and the operands of slices are short.
pub(super) const MAX_CONTENTS: usize = 64;
/// A rank above this is taken as unknown, so that no file can make ranks grow from node to node.
pub(super) const MAX_RANK: usize = 64;
/// An expression with more atoms and terms than this becomes a symbol, for the same reason.
pub(super) const MAX_DIM_SIZE: usize = 128;

/// A size or an element that nothing tells. It absorbs whatever is computed with it.
pub(super) fn unknown() -> Dim {
    Dim::from(i64::MIN)
}

/// A value's type, and its elements where they are few and known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fact {
    pub data_type: Option<DataType>,
    /// `None` is an unknown rank, an undefined dimension an unknown size.
    pub shape: Option<Vec<Dim>>,
    /// The elements in row-major order, truth values as 0 and 1. Integers wherever they come from;
    /// of `float` and `double` tensors, those that hold integers only. Undefined where unknown.
    pub contents: Option<Arc<[Dim]>>,
}

impl Fact {
    pub(super) const EMPTY: &'static Fact = &Fact {
        data_type: None,
        shape: None,
        contents: None,
    };

    pub(super) fn new(data_type: Option<DataType>, shape: Option<Vec<Dim>>) -> Fact {
        Fact {
            data_type,
            shape,
            contents: None,
        }
    }

    /// The same with elements, unless they are too many.
    pub(super) fn with(mut self, contents: Option<Vec<Dim>>) -> Fact {
        let kept = contents.filter(|c| c.len() <= MAX_CONTENTS);
        self.contents = kept.map(Arc::from);
        self
    }

    /// A vector or scalar of integers whose elements are known.
    pub(super) fn vector(data_type: DataType, elements: Vec<Dim>) -> Fact {
        let length = i64::try_from(elements.len()).unwrap_or(i64::MAX);
        Fact::new(Some(data_type), Some(vec![Dim::from(length)])).with(Some(elements))
    }

    /// What a constant in the file tells.
    pub(super) fn of_tensor(tensor: &TensorProto, name: &str) -> Result<Fact, Box<Fault>> {
        if let Some(axis) = tensor.dims.iter().position(|&d| d < 0) {
            return Err(Box::new(Fault {
                tensor: name.to_owned(),
                found: format!(
                    "the constant has the size {} on axis {axis}",
                    tensor.dims[axis]
                ),
                other: "no size is negative".to_owned(),
                hint: "the file is damaged",
            }));
        }
        let data_type = tensor.data_type.filter(|&t| t != 0).map(DataType);
        let shape = (tensor.dims.len() <= MAX_RANK)
            .then(|| tensor.dims.iter().map(|&d| Dim::from(d)).collect());
        Ok(Fact::new(data_type, shape).with(elements(tensor)))
    }
}

/// The elements of a small constant that is held in the file itself.
fn elements(tensor: &TensorProto) -> Option<Vec<Dim>> {
    let count = (tensor.dims.iter()).try_fold(1i64, |n, &d| n.checked_mul(d))?;
    let count = usize::try_from(count).ok().filter(|&n| n <= MAX_CONTENTS)?;
    if tensor.is_external() || tensor.segment.is_some() {
        return None;
    }
    let whole = |value: f64| {
        // Below 2^53 every integer is a double; -0.0 is not 0 to every operator, but is as a size.
        let fits = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
        fits.then(|| Dim::from(value as i64))
    };
    // Exporters write the least integer for "down to the start" in a reversing Slice; dimensions do
    // not hold it, and its neighbour means the same.
    let long = |value: i64| Dim::from(value.max(-i64::MAX));
    let raw = tensor.raw_data.as_deref();
    let found: Vec<Dim> = match (DataType(tensor.data_type?), raw) {
        (DataType::INT64, Some(raw)) => {
            let words = raw.as_chunks::<8>().0;
            words.iter().map(|w| long(i64::from_le_bytes(*w))).collect()
        }
        (DataType::INT64, None) => tensor.int64_data.iter().map(|&v| long(v)).collect(),
        (DataType::INT32, Some(raw)) => {
            let words = raw.as_chunks::<4>().0;
            let value = |w: &[u8; 4]| Dim::from(i64::from(i32::from_le_bytes(*w)));
            words.iter().map(value).collect()
        }
        (DataType::BOOL, Some(raw)) => raw.iter().map(|&b| Dim::from(i64::from(b != 0))).collect(),
        (DataType::INT32, None) => {
            let values = tensor.int32_data.iter();
            values.map(|&v| Dim::from(i64::from(v))).collect()
        }
        (DataType::BOOL, None) => {
            let values = tensor.int32_data.iter();
            values.map(|&v| Dim::from(i64::from(v != 0))).collect()
        }
        (DataType::FLOAT, Some(raw)) => {
            let words = raw.as_chunks::<4>().0.iter();
            words
                .map(|w| whole(f64::from(f32::from_le_bytes(*w))))
                .collect::<Option<_>>()?
        }
        (DataType::FLOAT, None) => {
            let values = tensor.float_data.iter();
            values
                .map(|&v| whole(f64::from(v)))
                .collect::<Option<_>>()?
        }
        (DataType::DOUBLE, Some(raw)) => {
            let words = raw.as_chunks::<8>().0.iter();
            words
                .map(|w| whole(f64::from_le_bytes(*w)))
                .collect::<Option<_>>()?
        }
        (DataType::DOUBLE, None) => {
            let values = tensor.double_data.iter();
            values.map(|&v| whole(v)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    (found.len() == count).then_some(found)
}
