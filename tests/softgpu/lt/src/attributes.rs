//! Attributes: numbers of a fixed size behind a pointer.

use crate::matmul::Matrix;
use crate::objects::{Descriptor, Preference, wrong};
use crate::status::{Outcome, Status};
use std::ffi::c_void;

/// A value that a caller gives by address and size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value {
    at: *const c_void,
    len: usize,
}

impl Value {
    pub(crate) fn new(at: *const c_void, len: usize) -> Self {
        Self { at, len }
    }

    /// The bytes of a value that has `N`.
    fn bytes<const N: usize>(self) -> Outcome<[u8; N]> {
        if self.at.is_null() || self.len != N {
            return wrong(
                &format!("an attribute of {N} bytes is set with {}", self.len),
                Status::INVALID_VALUE,
            );
        }
        // SAFETY: not null, and the caller promises `len` bytes, which are `N`.
        Ok(unsafe { self.at.cast::<[u8; N]>().read_unaligned() })
    }

    fn int(self) -> Outcome<i32> {
        self.bytes().map(i32::from_ne_bytes)
    }

    fn long(self) -> Outcome<i64> {
        self.bytes().map(i64::from_ne_bytes)
    }
}

/// `cublasLtMatrixLayoutAttribute_t`.
pub(crate) fn set_layout(layout: &mut Matrix, attribute: i32, value: Value) -> Outcome<()> {
    match attribute {
        0 => layout.kind = value.int()?,
        1 => layout.order = value.int()?,
        2 => layout.rows = value.long()? as u64,
        3 => layout.cols = value.long()? as u64,
        4 => layout.ld = value.long()?,
        5 => layout.batch = value.int()?,
        6 => layout.stride = value.long()?,
        _ => return unknown("matrix layout", attribute),
    }
    Ok(())
}

/// `cublasLtMatmulDescAttributes_t`.
pub(crate) fn set_descriptor(
    descriptor: &mut Descriptor,
    attribute: i32,
    value: Value,
) -> Outcome<()> {
    match attribute {
        0 => descriptor.compute = value.int()?,
        1 => descriptor.scale = value.int()?,
        2 => descriptor.pointer_mode = value.int()?,
        3 => descriptor.transpose_a = value.int()?,
        4 => descriptor.transpose_b = value.int()?,
        5 => descriptor.transpose_c = value.int()?,
        7 => descriptor.epilogue = value.int()?,
        8 => descriptor.bias = value.long()? as u64,
        10 => descriptor.bias_stride = value.long()?,
        26 => descriptor.bias_kind = value.int()?,
        _ => return unknown("matmul descriptor", attribute),
    }
    Ok(())
}

/// `cublasLtMatmulPreferenceAttributes_t`.
pub(crate) fn set_preference(
    preference: &mut Preference,
    attribute: i32,
    value: Value,
) -> Outcome<()> {
    match attribute {
        1 => preference.workspace = value.long()? as u64,
        5..=8 => preference.alignment[attribute as usize - 5] = value.int()? as u32,
        // Masks and limits of a search that has one result.
        0 | 3 | 9 | 12 => {}
        _ => return unknown("matmul preference", attribute),
    }
    Ok(())
}

fn unknown(kind: &str, attribute: i32) -> Outcome<()> {
    wrong(
        &format!("attribute {attribute} of a {kind} is not supported here"),
        Status::NOT_SUPPORTED,
    )
}
