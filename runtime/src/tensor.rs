//! Tensors on the host: what goes into a session and comes out of it.

use bytes::Bytes;
use velora_graph::shapes::DataType;

/// A dense row-major tensor; the bytes are little-endian and may lie at any address.
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

    /// The same tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            data_type: self.data_type,
            shape: &self.shape,
            bytes: &self.bytes,
        }
    }
}

/// The bytes of a dense tensor; `None` where the number exceeds what an allocation may have, or the
/// elements are not whole bytes.
///
/// Empty axes count as one, so that the product of the sizes of what passes cannot overflow in any
/// order.
pub fn byte_length(data_type: DataType, shape: &[usize]) -> Option<usize> {
    let bits = usize::try_from(data_type.bits()?).ok()?;
    if bits % 8 != 0 {
        return None;
    }
    let most = (shape.iter()).try_fold(bits / 8, |product, &size| product.checked_mul(size.max(1)));
    let most = most.filter(|&bytes| isize::try_from(bytes).is_ok())?;
    Some(if shape.contains(&0) { 0 } else { most })
}
