//! Results of cuBLASLt's functions.

use std::ffi::c_int;

/// A `cublasStatus_t` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) c_int);

impl Status {
    pub(crate) const NOT_INITIALIZED: Self = Self(1);
    pub(crate) const INVALID_VALUE: Self = Self(7);
    pub(crate) const EXECUTION_FAILED: Self = Self(13);
    pub(crate) const NOT_SUPPORTED: Self = Self(15);
}

/// What a function comes to.
pub(crate) type Outcome<T> = Result<T, Status>;
