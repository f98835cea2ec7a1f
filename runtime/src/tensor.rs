//! Tensors on the host: what goes into a session and comes out of it.

use bytes::Bytes;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// A dense row-major tensor; the bytes are little-endian and may lie at any address. Integers of 4 bits
/// lie two to a byte, the first in the low half; an odd last one has the low half of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The type of the elements.
    pub data_type: DataType,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Bytes,
}

/// A [`Tensor`] whose parts are borrowed, for example a place in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// The type of the elements.
    pub data_type: DataType,
    /// The dimensions.
    pub shape: &'a [usize],
    /// The elements, little-endian.
    pub bytes: &'a [u8],
}

impl Tensor {
    /// A tensor of 32-bit floating-point elements.
    pub fn from_f32(shape: &[usize], elements: &[f32]) -> Self {
        Tensor {
            data_type: DataType::FLOAT,
            shape: shape.to_vec(),
            bytes: Bytes::copy_from_slice(bytemuck::must_cast_slice(elements)),
        }
    }

    /// A tensor of 64-bit integers.
    pub fn from_i64(shape: &[usize], elements: &[i64]) -> Self {
        Tensor {
            data_type: DataType::INT64,
            shape: shape.to_vec(),
            bytes: Bytes::copy_from_slice(bytemuck::must_cast_slice(elements)),
        }
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as 32-bit floating-point numbers; `None` where they have another type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.data_type == DataType::FLOAT).then(|| bytemuck::pod_collect_to_vec(&self.bytes[..]))
    }

    /// The elements in 64 bits; `None` where they are no floating-point numbers.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        let bytes = &self.bytes[..];
        Some(match self.data_type {
            DataType::FLOAT => widened::<f32>(bytes, f64::from),
            DataType::DOUBLE => widened::<f64>(bytes, |e| e),
            DataType::FLOAT16 => widened::<f16>(bytes, f16::to_f64),
            DataType::BFLOAT16 => widened::<bf16>(bytes, bf16::to_f64),
            _ => return None,
        })
    }

    /// The same tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            data_type: self.data_type,
            shape: &self.shape,
            bytes: &self.bytes,
        }
    }
}

fn widened<T: bytemuck::Pod>(bytes: &[u8], wide: impl Fn(T) -> f64) -> Vec<f64> {
    let elements = bytes.chunks_exact(size_of::<T>());
    elements
        .map(|e| wide(bytemuck::pod_read_unaligned(e)))
        .collect()
}

/// The bytes of a dense tensor; `None` where the number exceeds what an allocation may have, or the
/// runtime has no elements of that type.
///
/// Empty axes count as one, so that the product of the sizes of what passes cannot overflow in any
/// order.
pub fn byte_length(data_type: DataType, shape: &[usize]) -> Option<usize> {
    let most =
        (shape.iter()).try_fold(1usize, |product, &size| product.checked_mul(size.max(1)))?;
    let most = packed(data_type, most).filter(|&bytes| isize::try_from(bytes).is_ok())?;
    Some(if shape.contains(&0) { 0 } else { most })
}

/// The bytes of a number of elements that lie side by side: integers of 4 bits share a byte with their
/// neighbour, and an odd last one has a byte of its own. Other elements that are not whole bytes have
/// no kernel, and no place in a program.
fn packed(data_type: DataType, elements: usize) -> Option<usize> {
    if data_type.is_int4() {
        return Some(elements.div_ceil(2));
    }
    let bits = usize::try_from(data_type.bits()?).ok()?;
    (bits % 8 == 0).then(|| elements.checked_mul(bits / 8))?
}

/// The type and the dimensions of a tensor, all of them numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// The type of the elements.
    pub data_type: DataType,
    /// The dimensions.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(data_type: DataType, shape: impl Into<Vec<usize>>) -> Self {
        TensorType {
            data_type,
            shape: shape.into(),
        }
    }

    /// The number of elements; [`TensorType::bytes`] was checked when the type was made.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes of the elements, `None` where the product does not fit, or the runtime has no elements of
    /// that type.
    pub fn checked_bytes(&self) -> Option<usize> {
        let elements = (self.shape.iter()).try_fold(1usize, |n, &d| n.checked_mul(d))?;
        packed(self.data_type, elements)
    }

    /// The bytes of the elements; 0 for a type that [`TensorType::checked_bytes`] refuses, which no
    /// program holds.
    pub fn bytes(&self) -> usize {
        self.checked_bytes().unwrap_or(0)
    }

    /// The dimension at an axis, counted from the end where negative.
    pub fn axis(&self, axis: i64) -> Option<usize> {
        let rank = i64::try_from(self.shape.len()).ok()?;
        let axis = if axis < 0 { axis + rank } else { axis };
        (0..rank).contains(&axis).then_some(axis as usize)
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        for axis in (1..self.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * self.shape[axis];
        }
        strides
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let name = velora_graph::text::element_type_name(self.data_type.0);
        write!(f, "{}[{}]", name.unwrap_or("?"), dims.join(","))
    }
}
