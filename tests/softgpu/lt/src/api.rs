//! The exported functions, as `cublasLt.h` declares them.

use crate::attributes::{Value, set_descriptor, set_layout, set_preference};
use crate::driver::driver;
use crate::matmul::{F64, Matmul, size_of};
use crate::objects::{Descriptor, Object, Objects, Preference, enter, layout, wrong};
use crate::problem::{Algorithm, Problem};
use crate::status::{Outcome, Status};
use std::ffi::{c_int, c_void};

/// Declares functions; the body's value is dropped.
macro_rules! api {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),* $(,)?) |$objects:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        // SAFETY: the name is the one that callers of cuBLASLt look up, with these arguments.
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $ty),*) -> c_int {
            enter(stringify!($name), move |$objects| {
                $body;
                Ok(())
            })
        }
    )*};
}

/// Writes a result.
fn put<T>(to: *mut T, value: T) -> Outcome<()> {
    if to.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: not null, and callers promise that they own what result pointers lead to.
    unsafe { to.write(value) };
    Ok(())
}

/// Reads a scale factor of the scale type.
fn scale(at: *const c_void, kind: i32) -> Outcome<f64> {
    if at.is_null() {
        return wrong("a scale factor is null", Status::INVALID_VALUE);
    }
    if kind == F64 {
        // SAFETY: not null, and callers promise a value of the scale type.
        return Ok(unsafe { at.cast::<f64>().read_unaligned() });
    }
    // SAFETY: as above; the problem was checked: the scale type is f32.
    Ok(unsafe { at.cast::<f32>().read_unaligned() }.into())
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Choice {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// The arguments that describe a problem.
#[derive(Clone, Copy)]
struct Described {
    descriptor: usize,
    layouts: [usize; 4],
}

impl Described {
    fn problem(self, objects: &mut Objects) -> Outcome<Problem> {
        let [a, b, c, d] = self.layouts;
        Ok(Problem {
            how: *objects.descriptor(self.descriptor)?,
            a: *objects.layout(a, "A")?,
            b: *objects.layout(b, "B")?,
            c: *objects.layout(c, "C")?,
            d: *objects.layout(d, "D")?,
        })
    }
}

/// Addresses and sizes of one product.
struct Operands {
    at: [u64; 4],
    workspace: u64,
    workspace_len: usize,
}

/// What cuBLASLt leaves to its callers, checked.
fn check_operands(
    problem: &Problem,
    algorithm: Option<&Algorithm>,
    operands: &Operands,
) -> Outcome<()> {
    let Operands {
        at,
        workspace,
        workspace_len,
    } = *operands;
    if workspace_len > 0 && (workspace == 0 || workspace % 16 != 0) {
        return wrong(
            "the workspace is not at a multiple of 16",
            Status::INVALID_VALUE,
        );
    }
    let matrices = [
        ("A", problem.a),
        ("B", problem.b),
        ("C", problem.c),
        ("D", problem.d),
    ];
    for (index, (name, matrix)) in matrices.iter().enumerate() {
        let size = size_of(matrix.kind) as u64;
        if at[index] % size != 0 {
            let why = format!(
                "{name} is at {:#x}, not at a multiple of its elements' {size} bytes",
                at[index]
            );
            return wrong(&why, Status::INVALID_VALUE);
        }
    }
    let Some(algorithm) = algorithm else {
        return Ok(());
    };
    if let Some(why) = algorithm.fault(problem, at) {
        return wrong(&why, Status::INVALID_VALUE);
    }
    if (workspace_len as u64) < algorithm.workspace {
        let why = format!(
            "the algorithm needs {} bytes of workspace, not {workspace_len}",
            algorithm.workspace
        );
        return wrong(&why, Status::INVALID_VALUE);
    }
    Ok(())
}

api! {
    /// A handle; needs a context.
    cublasLtCreate(handle: *mut usize) |objects| {
        if !driver().has_context() {
            return Err(Status::NOT_INITIALIZED);
        }
        let number = objects.add(Object::Handle);
        put(handle, number)?
    };
    /// Ends a handle.
    cublasLtDestroy(handle: usize) |objects| objects.remove(handle, Object::Handle.kind())?;
    /// How a matrix lies in memory.
    cublasLtMatrixLayoutCreate(made: *mut usize, kind: c_int, rows: u64, cols: u64, ld: i64) |objects| {
        let number = objects.add(layout(kind, rows, cols, ld));
        put(made, number)?
    };
    /// Changes an attribute of a layout.
    cublasLtMatrixLayoutSetAttribute(number: usize, attribute: c_int, at: *const c_void, len: usize) |objects| {
        set_layout(objects.layout(number, "a matrix")?, attribute, Value::new(at, len))?
    };
    /// Ends a layout.
    cublasLtMatrixLayoutDestroy(number: usize) |objects| objects.remove(number, "matrix layout")?;
    /// How a product is computed.
    cublasLtMatmulDescCreate(made: *mut usize, compute: c_int, scale: c_int) |objects| {
        let number = objects.add(Object::Descriptor(Descriptor::new(compute, scale)));
        put(made, number)?
    };
    /// Changes an attribute of a descriptor.
    cublasLtMatmulDescSetAttribute(number: usize, attribute: c_int, at: *const c_void, len: usize) |objects| {
        set_descriptor(objects.descriptor(number)?, attribute, Value::new(at, len))?
    };
    /// Ends a descriptor.
    cublasLtMatmulDescDestroy(number: usize) |objects| objects.remove(number, "matmul descriptor")?;
    /// What an algorithm may use.
    cublasLtMatmulPreferenceCreate(made: *mut usize) |objects| {
        let number = objects.add(Object::Preference(Preference::default()));
        put(made, number)?
    };
    /// Changes an attribute of a preference.
    cublasLtMatmulPreferenceSetAttribute(number: usize, attribute: c_int, at: *const c_void, len: usize) |objects| {
        set_preference(objects.preference(number)?, attribute, Value::new(at, len))?
    };
    /// Ends a preference.
    cublasLtMatmulPreferenceDestroy(number: usize) |objects| objects.remove(number, "matmul preference")?;
    /// Chooses an algorithm.
    cublasLtMatmulAlgoGetHeuristic(
        handle: usize, descriptor: usize, a: usize, b: usize, c: usize, d: usize, preference: usize,
        wanted: c_int, choices: *mut Choice, count: *mut c_int,
    ) |objects| {
        objects.handle(handle)?;
        put(count, 0)?;
        if wanted < 1 {
            return wrong("no algorithm is asked for", Status::INVALID_VALUE);
        }
        let problem = Described { descriptor, layouts: [a, b, c, d] }.problem(objects)?;
        if let Some(why) = problem.fault() {
            return wrong(&why, Status::NOT_SUPPORTED);
        }
        let algorithm = problem.choose(objects.preference(preference)?);
        let workspace = algorithm.workspace as usize;
        put(choices, Choice { algorithm, workspace, state: 0, waves: 1.0, reserved: [0; 4] })?;
        put(count, 1)?
    };
    /// A product on a stream.
    cublasLtMatmul(
        handle: usize, descriptor: usize, alpha: *const c_void, a: u64, a_layout: usize, b: u64, b_layout: usize,
        beta: *const c_void, c: u64, c_layout: usize, d: u64, d_layout: usize, algorithm: *const Algorithm,
        workspace: u64, workspace_len: usize, stream: usize,
    ) |objects| {
        objects.handle(handle)?;
        let layouts = [a_layout, b_layout, c_layout, d_layout];
        let problem = Described { descriptor, layouts }.problem(objects)?;
        if let Some(why) = problem.fault() {
            return wrong(&why, Status::INVALID_VALUE);
        }
        let how = problem.how;
        let (alpha, beta) = (scale(alpha, how.scale)?, scale(beta, how.scale)?);
        if beta != 0.0 && c == 0 {
            return wrong("C is null, but beta is not 0", Status::INVALID_VALUE);
        }
        // C is not read without beta; callers often pass D, or null.
        let c = if c == 0 { d } else { c };
        // SAFETY: null, or what the heuristic wrote (64 bytes), as the caller promises.
        let algorithm = unsafe { algorithm.as_ref() };
        check_operands(&problem, algorithm, &Operands { at: [a, b, c, d], workspace, workspace_len })?;
        let at = |matrix, at| crate::matmul::Matrix { at, ..matrix };
        let call = Matmul {
            a: at(problem.a, a),
            b: at(problem.b, b),
            c: at(problem.c, c),
            d: at(problem.d, d),
            transpose_a: how.transpose_a != 0,
            transpose_b: how.transpose_b != 0,
            compute: how.compute,
            epilogue: how.epilogue,
            bias: how.bias,
            bias_kind: problem.d.kind,
            bias_stride: how.bias_stride,
            alpha,
            beta,
            workspace,
            workspace_len: workspace_len as u64,
        };
        match driver().matmul(&call, stream) {
            0 => {}
            1 => return Err(Status::INVALID_VALUE),
            _ => return Err(Status::EXECUTION_FAILED),
        }
    };
}

/// 12.9.
// SAFETY: the name is the one that callers of cuBLASLt look up.
#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    120_900
}
