//! Matrix products by cuBLASLt.
//!
//! Which algorithm computes a product is chosen once for its sizes and types, with the scratch that it
//! takes: the plan has a place for that, and the library allocates nothing.

use super::driver::{DeviceError, Stream};
use super::encode::Scratch;
use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// The elements of a product's matrices. Sums are in 32 bits, of doubles in 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `f32`
    F32,
    /// `f64`
    F64,
    /// IEEE half.
    F16,
    /// bfloat16
    Bf16,
}

impl Element {
    fn data_type(self) -> sys::cudaDataType {
        match self {
            Element::F32 => sys::cudaDataType::CUDA_R_32F,
            Element::F64 => sys::cudaDataType::CUDA_R_64F,
            Element::F16 => sys::cudaDataType::CUDA_R_16F,
            Element::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F64 => 8,
            Element::F16 | Element::Bf16 => 2,
        }
    }
}

/// How a matrix of rows and columns lies: rows side by side, `step` elements from one to the next; or
/// columns, where it is transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Columns lie side by side.
    pub transposed: bool,
    /// From one row (or column) to the next, at least the elements of one.
    pub step: usize,
    /// From one matrix of a batch to the next; 0 where they are all the same.
    pub batch: usize,
}

/// What decides how a product is computed: `Y[b] = alpha · A[b] · B[b] + beta · Y[b]`, row-major, where Y
/// is `m × n` with `n` elements from row to row, and A is `m × k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The elements.
    pub element: Element,
    /// Rows of A and Y.
    pub m: usize,
    /// Columns of B and Y.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// How A lies.
    pub a: Matrix,
    /// How B lies.
    pub b: Matrix,
    /// Products at once; Y's matrices lie one behind the other.
    pub count: usize,
    /// Whether a number for each column of Y is added.
    pub bias: bool,
    /// Whether the product is added to what Y holds.
    pub adds: bool,
}

impl Problem {
    /// One product of dense row-major matrices.
    pub fn dense(element: Element, m: usize, n: usize, k: usize) -> Self {
        let rows = |columns| Matrix {
            transposed: false,
            step: columns,
            batch: 0,
        };
        Problem {
            element,
            m,
            n,
            k,
            a: rows(k),
            b: rows(n),
            count: 1,
            bias: false,
            adds: false,
        }
    }
}

/// A product with its operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// What is multiplied; no size is 0.
    pub problem: Problem,
    /// A's address.
    pub a: u64,
    /// B's address.
    pub b: u64,
    /// Y's address.
    pub y: u64,
    /// The address of the numbers that are added, where the problem says so.
    pub bias: u64,
    /// The factor of the product.
    pub alpha: f32,
    /// The factor of what Y holds, where the problem says so.
    pub beta: f32,
    /// Scratch, as much as [`Lt::workspace`] gives for the problem.
    pub workspace: Scratch,
}

/// How a problem is solved.
#[derive(Clone, Copy, Debug)]
struct Algorithm {
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

/// Bytes at multiples of which operands start that algorithms with the widest loads take.
const ALIGNED: u64 = 16;

/// The library with the choices made so far.
#[derive(Debug)]
pub struct Lt {
    handle: sys::cublasLtHandle_t,
    /// Rounds operands of 32 bits to TF32, which is faster.
    tf32: bool,
    /// The most scratch that an algorithm may take.
    most_workspace: usize,
    /// By problem, and whether all its operands start at multiples of [`ALIGNED`]; what failed once stays so.
    chosen: Mutex<HashMap<(Problem, bool), Result<Algorithm, DeviceError>>>,
}

// SAFETY: the library allows one handle to be used by several threads.
unsafe impl Send for Lt {}
// SAFETY: as above, and the choices are behind a mutex.
unsafe impl Sync for Lt {}

impl Lt {
    /// Opens the library, in the context that is current.
    ///
    /// # Errors
    /// [`DeviceError`] where the library is missing, or cannot be used.
    pub fn open(tf32: bool, most_workspace: usize) -> Result<Self, DeviceError> {
        // SAFETY: looks for a library by its name; loading NVIDIA's runs no code of ours.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError {
                call: "looking for cuBLASLt",
                code: "no libcublasLt.so.12 found; install CUDA's cuBLAS (Python's package \
                       nvidia-cublas-cu12 has it, too) and name its folder in LD_LIBRARY_PATH"
                    .to_owned(),
            });
        }
        Ok(Lt {
            handle: check("cublasLtCreate", result::create_handle())?,
            tf32,
            most_workspace,
            chosen: Mutex::default(),
        })
    }

    /// The scratch that a product takes, wherever its operands start.
    ///
    /// # Errors
    /// [`DeviceError`] where the library has no algorithm for it.
    pub fn workspace(&self, problem: &Problem) -> Result<usize, DeviceError> {
        let aligned = self.choose(problem, true)?.workspace;
        Ok(aligned.max(self.choose(problem, false)?.workspace))
    }

    /// Enqueues a product.
    ///
    /// # Errors
    /// [`DeviceError`] where the library refuses.
    ///
    /// # Safety
    /// The operands lie in the device's memory, as large as the problem says, until the work is done.
    pub unsafe fn enqueue(&self, product: &Product, stream: &Stream) -> Result<(), DeviceError> {
        let problem = &product.problem;
        let operands = [product.a, product.b, product.y, product.bias];
        let aligned = operands.iter().all(|address| address % ALIGNED == 0);
        let Algorithm { algorithm, .. } = self.choose(problem, aligned)?;
        let parts = Parts::new(problem, self.tf32, product.bias)?;
        let (alpha, beta) = (product.alpha, product.beta);
        let wide = (f64::from(alpha), f64::from(beta));
        // The factors are of the type that sums are in.
        let factors: [*const c_void; 2] = match problem.element {
            Element::F64 => [(&raw const wide.0).cast(), (&raw const wide.1).cast()],
            _ => [(&raw const alpha).cast(), (&raw const beta).cast()],
        };
        // The library's matrices are column-major: of row-major ones it sees the transposed, and
        // Yᵀ = Bᵀ · Aᵀ.
        // SAFETY: the descriptions live until the call returns, the factors are read in it, and addresses are
        // the caller's promise.
        let enqueued = unsafe {
            result::matmul(
                self.handle,
                parts.how.0,
                factors[0],
                factors[1],
                product.b as *const c_void,
                parts.b.0,
                product.a as *const c_void,
                parts.a.0,
                product.y as *const c_void,
                parts.y.0,
                product.y as *mut c_void,
                parts.y.0,
                &raw const algorithm,
                product.workspace.address as *mut c_void,
                product.workspace.bytes,
                stream.raw().cast(),
            )
        };
        check("cublasLtMatmul", enqueued)
    }

    fn choose(&self, problem: &Problem, aligned: bool) -> Result<Algorithm, DeviceError> {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let choice = chosen.entry((*problem, aligned));
        choice
            .or_insert_with(|| self.find(problem, aligned))
            .clone()
    }

    fn find(&self, problem: &Problem, aligned: bool) -> Result<Algorithm, DeviceError> {
        // Any address does for the choice, but for none.
        let parts = Parts::new(problem, self.tf32, ALIGNED)?;
        let alignment = match aligned {
            true => ALIGNED as u32,
            false => problem.element.bytes() as u32,
        };
        let preference = Preference::new(self.most_workspace, alignment)?;
        // SAFETY: all descriptions live until the call returns.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                parts.how.0,
                parts.b.0,
                parts.a.0,
                parts.y.0,
                parts.y.0,
                preference.0,
            )
        };
        let found = check("cublasLtMatmulAlgoGetHeuristic", found)?;
        Ok(Algorithm {
            algorithm: found.algo,
            workspace: found.workspaceSize,
        })
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: created by `open`, and destroyed once.
        let destroyed = unsafe { result::destroy_handle(self.handle) };
        report_drop(check("cublasLtDestroy", destroyed));
    }
}

/// Descriptions of a problem, as the library wants them.
struct Parts {
    how: How,
    a: Layout,
    b: Layout,
    y: Layout,
}

impl Parts {
    fn new(problem: &Problem, tf32: bool, bias: u64) -> Result<Self, DeviceError> {
        let Problem { m, n, k, count, .. } = *problem;
        let ty = problem.element.data_type();
        // A row-major matrix is its transposed in columns: the sizes of what lies there.
        let stored = |matrix: &Matrix, rows: usize, columns: usize| match matrix.transposed {
            false => (columns, rows),
            true => (rows, columns),
        };
        let layout = |matrix: &Matrix, rows, columns| {
            let (rows, columns) = stored(matrix, rows, columns);
            Layout::new(ty, rows, columns, matrix.step, count, matrix.batch)
        };
        Ok(Parts {
            how: How::new(problem, tf32, bias)?,
            a: layout(&problem.a, m, k)?,
            b: layout(&problem.b, k, n)?,
            y: Layout::new(ty, n, m, n, count, m * n)?,
        })
    }
}

struct How(sys::cublasLtMatmulDesc_t);

impl How {
    fn new(problem: &Problem, tf32: bool, bias: u64) -> Result<Self, DeviceError> {
        use sys::cublasComputeType_t as Compute;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (compute, scale) = match problem.element {
            Element::F64 => (Compute::CUBLAS_COMPUTE_64F, sys::cudaDataType::CUDA_R_64F),
            Element::F32 if tf32 => (
                Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
                sys::cudaDataType::CUDA_R_32F,
            ),
            _ => (Compute::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F),
        };
        let how = How(check(
            "cublasLtMatmulDescCreate",
            result::create_matmul_desc(compute, scale),
        )?);
        // CUBLAS_OP_N and CUBLAS_OP_T; of the library's operands the first is B.
        how.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            &i32::from(problem.b.transposed),
        )?;
        how.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            &i32::from(problem.a.transposed),
        )?;
        if problem.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            how.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            how.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(how)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), DeviceError> {
        // SAFETY: the value is read in the call, and has the type of the attribute.
        let set = unsafe {
            result::set_matmul_desc_attribute(
                self.0,
                attribute,
                (&raw const *value).cast(),
                size_of::<T>(),
            )
        };
        check("cublasLtMatmulDescSetAttribute", set)
    }
}

impl Drop for How {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once.
        let destroyed = unsafe { result::destroy_matmul_desc(self.0) };
        report_drop(check("cublasLtMatmulDescDestroy", destroyed));
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(
        ty: sys::cudaDataType,
        rows: usize,
        columns: usize,
        step: usize,
        count: usize,
        batch: usize,
    ) -> Result<Self, DeviceError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let created = result::create_matrix_layout(ty, rows as u64, columns as u64, step as i64);
        let layout = Layout(check("cublasLtMatrixLayoutCreate", created)?);
        if count > 1 {
            let too_many = |_| DeviceError {
                call: "a product",
                code: format!("a batch of {count} matrices"),
            };
            let count = i32::try_from(count).map_err(too_many)?;
            layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count)?;
            layout.set(
                Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                &(batch as i64),
            )?;
        }
        Ok(layout)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatrixLayoutAttribute_t,
        value: &T,
    ) -> Result<(), DeviceError> {
        // SAFETY: the value is read in the call, and has the type of the attribute.
        let set = unsafe {
            result::set_matrix_layout_attribute(
                self.0,
                attribute,
                (&raw const *value).cast(),
                size_of::<T>(),
            )
        };
        check("cublasLtMatrixLayoutSetAttribute", set)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once.
        let destroyed = unsafe { result::destroy_matrix_layout(self.0) };
        report_drop(check("cublasLtMatrixLayoutDestroy", destroyed));
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(most_workspace: usize, alignment: u32) -> Result<Self, DeviceError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let created = result::create_matmul_pref();
        let preference = Preference(check("cublasLtMatmulPreferenceCreate", created)?);
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &(most_workspace as u64),
        )?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(attribute, &alignment)?;
        }
        Ok(preference)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), DeviceError> {
        // SAFETY: the value is read in the call, and has the type of the attribute.
        let set = unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                (&raw const *value).cast(),
                size_of::<T>(),
            )
        };
        check("cublasLtMatmulPreferenceSetAttribute", set)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once.
        let destroyed = unsafe { result::destroy_matmul_pref(self.0) };
        report_drop(check("cublasLtMatmulPreferenceDestroy", destroyed));
    }
}

/// Descriptions are the host's: that one cannot be freed is no failure of the device, but not silent.
fn report_drop(dropped: Result<(), DeviceError>) {
    if let Err(error) = dropped {
        eprintln!("velora-opt: {error}");
    }
}

fn check<T>(call: &'static str, result: Result<T, CublasError>) -> Result<T, DeviceError> {
    result.map_err(|error| DeviceError {
        call,
        code: format!("{:?}", error.0),
    })
}
