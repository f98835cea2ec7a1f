#![allow(missing_docs, clippy::all, unsafe_op_in_unsafe_fn)]
//! Stand-in for libcublasLt.so: records descriptors, forwards the GEMM to softgpu's reference. Test use only.
use std::ffi::{c_char, c_int, c_void};
#[repr(C)]
#[derive(Clone, Copy)]
struct Mat {
    p: u64,
    ty: c_int,
    rows: u64,
    cols: u64,
    ld: i64,
    batch: c_int,
    stride: i64,
}
#[repr(C)]
struct Gemm {
    ta: c_int,
    tb: c_int,
    epilogue: c_int,
    bias: u64,
    alpha: f32,
    beta: f32,
    a: Mat,
    b: Mat,
    c: Mat,
    d: Mat,
}
#[derive(Default)]
struct Desc {
    ta: c_int,
    tb: c_int,
    epi: c_int,
    bias: u64,
}
unsafe extern "C" {
    fn dlopen(n: *const c_char, f: c_int) -> *mut c_void;
    fn dlsym(h: *mut c_void, n: *const c_char) -> *mut c_void;
}
const OK: c_int = 0;
const UNSUPPORTED: c_int = 15;
macro_rules! api { ($($n:ident($($a:ident: $t:ty),*) $b:block)*) => { $(#[unsafe(no_mangle)] pub unsafe extern "C" fn $n($($a: $t),*) -> c_int $b)* } }
api! {
  cublasLtCreate(h: *mut usize) { *h = 1; OK }
  cublasLtDestroy(_h: usize) { OK }
  cublasLtMatrixLayoutCreate(l: *mut *mut Mat, ty: c_int, rows: u64, cols: u64, ld: i64) { *l = Box::into_raw(Box::new(Mat { p: 0, ty, rows, cols, ld, batch: 1, stride: 0 })); OK }
  cublasLtMatrixLayoutSetAttribute(l: *mut Mat, a: c_int, v: *const c_void, _n: usize) { match a { 5 => (*l).batch = *(v as *const c_int), 6 => (*l).stride = *(v as *const i64), _ => return UNSUPPORTED } OK }
  cublasLtMatrixLayoutDestroy(l: *mut Mat) { drop(Box::from_raw(l)); OK }
  cublasLtMatmulDescCreate(d: *mut *mut Desc, _c: c_int, _s: c_int) { *d = Box::into_raw(Box::new(Desc { epi: 1, ..Desc::default() })); OK }
  cublasLtMatmulDescSetAttribute(d: *mut Desc, a: c_int, v: *const c_void, _n: usize) { let d = &mut *d; match a { 3 => d.ta = *(v as *const c_int), 4 => d.tb = *(v as *const c_int), 5 => {}, 7 => d.epi = *(v as *const c_int), 8 => d.bias = *(v as *const u64), _ => return UNSUPPORTED } OK }
  cublasLtMatmulDescDestroy(d: *mut Desc) { drop(Box::from_raw(d)); OK }
  cublasLtMatmulPreferenceCreate(p: *mut usize) { *p = 1; OK }
  cublasLtMatmulPreferenceSetAttribute(_p: usize, _a: c_int, _v: *const c_void, _n: usize) { OK }
  cublasLtMatmulPreferenceDestroy(_p: usize) { OK }
  cublasLtMatmulAlgoGetHeuristic(_h: usize, _d: usize, _a: usize, _b: usize, _c: usize, _dd: usize, _p: usize, _n: c_int, r: *mut u8, got: *mut c_int) { std::ptr::write_bytes(r, 0, 96); *got = 1; OK }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    _h: usize,
    d: *const Desc,
    alpha: *const f32,
    a: u64,
    al: *const Mat,
    b: u64,
    bl: *const Mat,
    beta: *const f32,
    c: u64,
    cl: *const Mat,
    dd: u64,
    dl: *const Mat,
    _algo: usize,
    _ws: u64,
    _n: usize,
    _s: usize,
) -> c_int {
    let f = dlsym(dlopen(c"libcuda.so".as_ptr(), 1), c"softgpu_gemm".as_ptr());
    if f.is_null() {
        return 14;
    }
    let f: extern "C" fn(*const Gemm) -> c_int = std::mem::transmute(f);
    let g = Gemm {
        ta: (*d).ta,
        tb: (*d).tb,
        epilogue: (*d).epi,
        bias: (*d).bias,
        alpha: *alpha,
        beta: *beta,
        a: Mat { p: a, ..*al },
        b: Mat { p: b, ..*bl },
        c: Mat { p: c, ..*cl },
        d: Mat { p: dd, ..*dl },
    };
    if f(&g) == 0 { OK } else { 13 }
}
