//! The CUDA driver API subset cudarc 0.19 calls.
use crate::{ptx, vm};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

type Rc = c_int;
const OK: Rc = 0;
const INVALID: Rc = 1;
const NOT_FOUND: Rc = 500;
const BAD_PTX: Rc = 218;
const ILLEGAL: Rc = 700;
const CAPTURE_UNSUPPORTED: Rc = 900;
enum Node {
    Launch {
        k: usize,
        grid: [u32; 3],
        block: [u32; 3],
        params: Vec<u8>,
        sh: usize,
    },
    Set {
        p: u64,
        v: u32,
        w: usize,
        n: usize,
    },
    D2D {
        d: u64,
        s: u64,
        n: usize,
    },
    H2D {
        d: u64,
        s: usize,
        n: usize,
    },
    D2H {
        d: usize,
        s: u64,
        n: usize,
    },
    Gemm(Gemm),
}
#[derive(Default)]
struct G {
    mem: vm::Mem,
    kernels: Vec<ptx::Kernel>,
    launch: u32,
    sticky: Rc,
    capture: Option<Vec<Node>>,
    graphs: Vec<std::sync::Arc<Vec<Node>>>,
    events: Vec<u32>,
    cap_gen: u32,
    calls: std::collections::BTreeMap<&'static str, u64>,
}
static M: Mutex<Option<G>> = Mutex::new(None);
thread_local! { static CTX: std::cell::Cell<usize> = const { std::cell::Cell::new(0) }; }
fn with<T>(name: &'static str, f: impl FnOnce(&mut G) -> T) -> T {
    let mut g = M.lock().unwrap();
    let g = g.get_or_insert_with(G::default);
    *g.calls.entry(name).or_default() += 1;
    f(g)
}
macro_rules! stubs { ($($n:ident($($a:ident: $t:ty),*) => $e:expr;)*) => { $(#[unsafe(no_mangle)] pub unsafe extern "C" fn $n($($a: $t),*) -> Rc { with(stringify!($n), |_g| { $(let _ = $a;)* }); $e })* } }
stubs! {
  cuInit(_f: c_uint) => OK;
  cuDriverGetVersion(v: *mut c_int) => { *v = 12080; OK };
  cuDeviceGet(d: *mut c_int, o: c_int) => { if o != 0 { 101 } else { *d = 0; OK } };
  cuDeviceGetCount(n: *mut c_int) => { *n = 1; OK };
  cuDeviceGetName(p: *mut c_char, n: c_int, _d: c_int) => { let s = b"softgpu\0"; std::ptr::copy_nonoverlapping(s.as_ptr(), p as *mut u8, s.len().min(n as usize)); OK };
  cuDeviceTotalMem_v2(n: *mut usize, _d: c_int) => { *n = 8 << 30; OK };
  cuDevicePrimaryCtxRetain(c: *mut usize, _d: c_int) => { *c = 0x1000; OK };
  cuDevicePrimaryCtxRelease_v2(_d: c_int) => OK;
  cuCtxGetCurrent(c: *mut usize) => { *c = CTX.get(); OK };
  cuCtxSetCurrent(c: usize) => { CTX.set(c); OK };
  cuStreamCreate(s: *mut usize, _f: c_uint) => { *s = 0x2000; OK };
  cuStreamDestroy_v2(_s: usize) => OK;
  cuEventDestroy_v2(_e: usize) => OK;
  cuEventSynchronize(_e: usize) => OK;
  cuModuleUnload(_m: usize) => OK;
  cuFuncSetAttribute(_f: usize, _a: c_int, _v: c_int) => OK;
  cuGraphDestroy(_g: usize) => OK;
  cuGraphExecDestroy(_g: usize) => OK;
  cuGraphUpload(_g: usize, _s: usize) => OK;
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(_e: c_int, s: *mut *const c_char) -> Rc {
    *s = c"SOFTGPU_ERROR (see stderr)".as_ptr();
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_e: c_int, s: *mut *const c_char) -> Rc {
    *s = c"softgpu error, see stderr".as_ptr();
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(v: *mut c_int, a: c_int, _d: c_int) -> Rc {
    *v = match a {
        1 => 1024,
        2 | 3 => 1024,
        4 => 64,
        5 => i32::MAX,
        8 => 49152,
        10 => 32,
        16 => 132,
        75 => 8,
        76 => 0,
        97 => 166912,
        115 => (std::env::var("SOFTGPU_POOLS").map_or(true, |s| s != "0")) as i32,
        _ => 0,
    };
    with("cuDeviceGetAttribute", |_| OK)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(_s: usize) -> Rc {
    with("cuStreamSynchronize", |g| {
        if g.capture.is_some() {
            CAPTURE_UNSUPPORTED
        } else {
            g.sticky
        }
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Rc {
    with("cuCtxSynchronize", |g| {
        if g.capture.is_some() {
            CAPTURE_UNSUPPORTED
        } else {
            g.sticky
        }
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(f: *mut usize, t: *mut usize) -> Rc {
    with("cuMemGetInfo_v2", |g| {
        *t = 8 << 30;
        *f = (8 << 30) - g.mem.live;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(p: *mut u64, n: usize) -> Rc {
    with("cuMemAlloc_v2", |g| {
        if n == 0 {
            return INVALID;
        }
        if g.capture.is_some() {
            return CAPTURE_UNSUPPORTED;
        }
        *p = g.mem.alloc(n);
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(p: *mut u64, n: usize, _s: usize) -> Rc {
    with("cuMemAllocAsync", |g| {
        if n == 0 {
            return INVALID;
        }
        *p = g.mem.alloc(n);
        OK
    })
}
fn free(p: u64) -> Rc {
    with("cuMemFree", |g| {
        if g.mem.free(p) {
            OK
        } else {
            eprintln!("softgpu: free of unknown pointer 0x{p:x} (double free?)");
            INVALID
        }
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(p: u64) -> Rc {
    free(p)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(p: u64, _s: usize) -> Rc {
    free(p)
}
impl G {
    fn exec(&mut self, n: &Node) -> Rc {
        macro_rules! at {
            ($p:expr, $n:expr, $w:expr) => {
                match self.mem.find($p, $n) {
                    Some(x) => x,
                    None => {
                        eprintln!("softgpu: {} out of bounds: 0x{:x} + {}", $w, $p, $n);
                        self.sticky = ILLEGAL;
                        return INVALID;
                    }
                }
            };
        }
        match *n {
            Node::H2D { d, s, n } => {
                let (a, o) = at!(d, n, "memcpy to device");
                unsafe {
                    std::ptr::copy_nonoverlapping(s as *const u8, a.data.as_mut_ptr().add(o), n);
                }
                a.valid[o..o + n].fill(1);
                OK
            }
            Node::D2H { d, s, n } => {
                let (a, o) = at!(s, n, "memcpy from device");
                if a.valid[o..o + n].contains(&0) {
                    eprintln!(
                        "softgpu: copy to host of {n} bytes reads uninitialised device memory"
                    );
                }
                unsafe {
                    std::ptr::copy_nonoverlapping(a.data.as_ptr().add(o), d as *mut u8, n);
                }
                OK
            }
            Node::D2D { d, s, n } => {
                let (a, o) = at!(s, n, "copy source");
                let (v, q) = (a.data[o..o + n].to_vec(), a.valid[o..o + n].to_vec());
                let (a, o) = at!(d, n, "copy target");
                a.data[o..o + n].copy_from_slice(&v);
                a.valid[o..o + n].copy_from_slice(&q);
                OK
            }
            Node::Set { p, v, w, n } => {
                let (a, o) = at!(p, n * w, "memset");
                let b = v.to_le_bytes();
                for i in 0..n * w {
                    a.data[o + i] = b[i % w];
                }
                a.valid[o..o + n * w].fill(1);
                OK
            }
            Node::Gemm(ref q) => self.gemm(q),
            Node::Launch {
                k,
                grid,
                block,
                ref params,
                sh,
            } => {
                self.launch += 1;
                let mut rep = vm::Report::default();
                let seed = std::env::var("SOFTGPU_SEED")
                    .ok()
                    .and_then(|s| s.parse().ok())
                    .unwrap_or(0);
                let t = std::time::Instant::now();
                let ks = std::mem::take(&mut self.kernels);
                let ok = vm::run(
                    &vm::Launch {
                        k: &ks[k],
                        grid,
                        block,
                        params,
                        dyn_shared: sh,
                    },
                    &mut self.mem,
                    &mut rep,
                    self.launch,
                    seed,
                );
                if std::env::var_os("SOFTGPU_STATS").is_some() {
                    eprintln!(
                        "softgpu: {} grid {grid:?} block {block:?}: {} instr, {} loads, {} stores, {:.3}s",
                        ks[k].name,
                        rep.instrs,
                        rep.loads,
                        rep.stores,
                        t.elapsed().as_secs_f64()
                    );
                }
                self.kernels = ks;
                for e in &rep.errors {
                    eprintln!("softgpu: ERROR {e}");
                }
                if !ok || !rep.errors.is_empty() {
                    self.sticky = ILLEGAL;
                }
                OK // asynchronous, as on a device: the error shows at the next sync
            }
        }
    }
    fn submit(&mut self, n: Node) -> Rc {
        if self.sticky != OK {
            return self.sticky;
        }
        if let Some(c) = &mut self.capture {
            c.push(n);
            return OK;
        }
        self.exec(&n)
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(d: u64, s: usize, n: usize, _st: usize) -> Rc {
    with("cuMemcpyHtoDAsync_v2", |g| g.submit(Node::H2D { d, s, n }))
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(d: usize, s: u64, n: usize, _st: usize) -> Rc {
    with("cuMemcpyDtoHAsync_v2", |g| g.submit(Node::D2H { d, s, n }))
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(d: u64, s: u64, n: usize, _st: usize) -> Rc {
    with("cuMemcpyDtoDAsync_v2", |g| g.submit(Node::D2D { d, s, n }))
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(p: u64, v: u8, n: usize, _s: usize) -> Rc {
    with("cuMemsetD8Async", |g| {
        g.submit(Node::Set {
            p,
            v: v as u32,
            w: 1,
            n,
        })
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32Async(p: u64, v: u32, n: usize, _s: usize) -> Rc {
    with("cuMemsetD32Async", |g| {
        g.submit(Node::Set { p, v, w: 4, n })
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(m: *mut usize, img: *const c_char) -> Rc {
    if std::slice::from_raw_parts(img as *const u8, 4) == b"\x7fELF" {
        return 209;
    }
    let s = CStr::from_ptr(img).to_string_lossy();
    with("cuModuleLoadData", |g| match ptx::parse(&s) {
        Ok(k) => {
            g.kernels.extend(k);
            *m = 0x4000;
            OK
        }
        Err(e) => {
            eprintln!("softgpu: cannot load PTX: {e}");
            BAD_PTX
        }
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(f: *mut usize, _m: usize, n: *const c_char) -> Rc {
    let n = CStr::from_ptr(n).to_str().unwrap();
    with("cuModuleGetFunction", |g| {
        match g.kernels.iter().rposition(|k| k.name == n) {
            Some(i) => {
                *f = i + 1;
                OK
            }
            None => NOT_FOUND,
        }
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    f: usize,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    sh: c_uint,
    _s: usize,
    args: *const *const c_void,
    _e: *const c_void,
) -> Rc {
    with("cuLaunchKernel", |g| {
        if gx == 0
            || gy == 0
            || gz == 0
            || bx * by * bz == 0
            || bx * by * bz > 1024
            || gy > 65535
            || gz > 65535
        {
            eprintln!("softgpu: bad launch shape");
            return INVALID;
        }
        let k = &g.kernels[f - 1];
        let mut p = vec![0u8; k.param_bytes];
        if args.is_null() && !_e.is_null() {
            let e = _e as *const usize;
            let n = *(*e.add(3) as *const usize);
            if *e != 1 || *e.add(2) != 2 || n != k.param_bytes {
                eprintln!(
                    "softgpu: {}: {n} bytes of arguments, expected {}",
                    k.name, k.param_bytes
                );
                return INVALID;
            }
            std::ptr::copy_nonoverlapping(*e.add(1) as *const u8, p.as_mut_ptr(), n);
        } else {
            for (i, (o, n)) in k.params.iter().enumerate() {
                std::ptr::copy_nonoverlapping(
                    *args.add(i) as *const u8,
                    p.as_mut_ptr().add(*o),
                    *n,
                );
            }
        }
        g.submit(Node::Launch {
            k: f - 1,
            grid: [gx, gy, gz],
            block: [bx, by, bz],
            params: p,
            sh: sh as usize,
        })
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(_s: usize, _m: c_int) -> Rc {
    with("cuStreamBeginCapture_v2", |g| {
        if _s == 0 {
            eprintln!("softgpu: capture on the legacy default stream");
            return CAPTURE_UNSUPPORTED;
        }
        g.cap_gen += 1;
        g.capture = Some(vec![]);
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(_s: usize, st: *mut c_int) -> Rc {
    with("cuStreamIsCapturing", |g| {
        *st = g.capture.is_some() as i32;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(_s: usize, gr: *mut usize) -> Rc {
    with("cuStreamEndCapture", |g| match g.capture.take() {
        Some(c) => {
            g.graphs.push(std::sync::Arc::new(c));
            *gr = g.graphs.len();
            OK
        }
        None => 901,
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(e: *mut usize, gr: usize, _f: u64) -> Rc {
    *e = gr;
    with("cuGraphInstantiateWithFlags", |_| OK)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(e: usize, _s: usize) -> Rc {
    with("cuGraphLaunch", |g| {
        let n = g.graphs[e - 1].clone();
        for x in n.iter() {
            let r = g.exec(x);
            if r != OK {
                return r;
            }
        }
        OK
    })
}
/// Test-only extras, found with dlsym: mark an arena slice as undefined (its tensor's lifetime ended), list calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_undefine(p: u64, n: usize) -> Rc {
    with("softgpu_undefine", |g| match g.mem.find(p, n) {
        Some((a, o)) => {
            a.valid[o..o + n].fill(0);
            OK
        }
        None => INVALID,
    })
}
#[unsafe(no_mangle)]
pub extern "C" fn softgpu_print_calls() {
    with("softgpu_print_calls", |g| {
        for (k, v) in &g.calls {
            eprintln!("softgpu call {k} x{v}")
        }
    })
}

// Events: 1 = recorded outside capture, 1 + n = recorded inside capture n, 0 = never recorded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(e: *mut usize, _f: c_uint) -> Rc {
    with("cuEventCreate", |g| {
        g.events.push(0);
        *e = g.events.len();
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(e: usize, _s: usize) -> Rc {
    with("cuEventRecord", |g| {
        g.events[e - 1] = if g.capture.is_some() {
            1 + g.cap_gen
        } else {
            1
        };
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(_s: usize, e: usize, _f: c_uint) -> Rc {
    with("cuStreamWaitEvent", |g| {
        let ev = g.events[e - 1];
        if g.capture.is_some() && ev == 1 {
            eprintln!(
                "softgpu: capture depends on an event recorded before the capture (disable event tracking)"
            );
            return 905;
        }
        if g.capture.is_none() && ev > 1 {
            eprintln!("softgpu: wait on an event that was recorded inside a capture");
            return 907;
        }
        OK
    })
}

/// Reference GEMM for the cublasLt stand-in: column-major D = act(alpha op(A) op(B) + beta C + bias), f32 accumulate.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mat {
    pub p: u64,
    pub ty: c_int,
    pub rows: u64,
    pub cols: u64,
    pub ld: i64,
    pub batch: c_int,
    pub stride: i64,
}
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub ta: c_int,
    pub tb: c_int,
    pub epilogue: c_int,
    pub bias: u64,
    pub alpha: f32,
    pub beta: f32,
    pub a: Mat,
    pub b: Mat,
    pub c: Mat,
    pub d: Mat,
}
fn esz(t: c_int) -> usize {
    if t == 0 { 4 } else { 2 }
}
fn get(d: &[u8], i: usize, t: c_int) -> f32 {
    match t {
        0 => f32::from_le_bytes(d[4 * i..4 * i + 4].try_into().unwrap()),
        14 => f32::from_bits(
            (u16::from_le_bytes(d[2 * i..2 * i + 2].try_into().unwrap()) as u32) << 16,
        ),
        _ => unimplemented!("f16 gemm"),
    }
}
fn put(d: &mut [u8], i: usize, t: c_int, v: f32) {
    match t {
        0 => d[4 * i..4 * i + 4].copy_from_slice(&v.to_le_bytes()),
        _ => {
            let u = v.to_bits();
            let r = ((u + 0x7fff + ((u >> 16) & 1)) >> 16) as u16;
            d[2 * i..2 * i + 2].copy_from_slice(&r.to_le_bytes())
        }
    }
}
impl G {
    fn gemm(&mut self, q: &Gemm) -> Rc {
        let (m, n) = (q.d.rows as usize, q.d.cols as usize);
        let k = if q.ta == 0 { q.a.cols } else { q.a.rows } as usize;
        let (am, bn, bk) = (
            if q.ta == 0 { q.a.rows } else { q.a.cols } as usize,
            if q.tb == 0 { q.b.cols } else { q.b.rows } as usize,
            if q.tb == 0 { q.b.rows } else { q.b.cols } as usize,
        );
        if am != m || bn != n || bk != k {
            eprintln!("softgpu: gemm shapes disagree: {q:?}");
            self.sticky = ILLEGAL;
            return INVALID;
        }
        for x in [&q.a, &q.b, &q.d] {
            if (x.ld as u64) < x.rows {
                eprintln!("softgpu: gemm ld < rows: {x:?}");
                self.sticky = ILLEGAL;
                return INVALID;
            }
            if x.p % 16 != 0 {
                eprintln!(
                    "softgpu: note: gemm operand 0x{:x} is not 16-byte aligned (slow path)",
                    x.p
                );
            }
        }
        let span = |x: &Mat| {
            ((x.batch.max(1) as i64 - 1) * x.stride + (x.cols as i64 - 1) * x.ld + x.rows as i64)
                as usize
                * esz(x.ty)
        };
        let mut bufs = vec![];
        for (nm, x) in [("A", &q.a), ("B", &q.b)] {
            let Some((al, o)) = self.mem.find(x.p, span(x)) else {
                eprintln!("softgpu: gemm {nm} out of bounds: {x:?}");
                self.sticky = ILLEGAL;
                return INVALID;
            };
            let bad = (0..x.batch.max(1) as usize).any(|b| {
                (0..x.cols as usize).any(|c| {
                    let s = o + (b * x.stride as usize + c * x.ld as usize) * esz(x.ty);
                    al.valid[s..s + x.rows as usize * esz(x.ty)].contains(&0)
                })
            });
            if bad {
                eprintln!("softgpu: gemm {nm} reads uninitialised memory: {x:?}");
                self.sticky = ILLEGAL;
            }
            bufs.push(al.data[o..o + span(x)].to_vec());
        }
        let bias = if q.epilogue & 4 != 0 {
            match self.mem.find(q.bias, m * esz(q.d.ty)) {
                Some((a, o)) => Some(a.data[o..o + m * esz(q.d.ty)].to_vec()),
                None => {
                    eprintln!("softgpu: gemm bias");
                    return INVALID;
                }
            }
        } else {
            None
        };
        let cbuf = if q.beta != 0.0 {
            match self.mem.find(q.c.p, span(&q.c)) {
                Some((a, o)) => {
                    if a.valid[o..o + span(&q.c)].contains(&0) {
                        eprintln!("softgpu: gemm C (beta != 0) reads uninitialised memory");
                        self.sticky = ILLEGAL;
                    }
                    Some(a.data[o..o + span(&q.c)].to_vec())
                }
                None => {
                    eprintln!("softgpu: gemm C out of bounds");
                    return INVALID;
                }
            }
        } else {
            None
        };
        let Some((al, o)) = self.mem.find(q.d.p, span(&q.d)) else {
            eprintln!("softgpu: gemm D out of bounds: {:?}", q.d);
            self.sticky = ILLEGAL;
            return INVALID;
        };
        let es = esz(q.d.ty);
        for b in 0..q.d.batch.max(1) as usize {
            for j in 0..n {
                for i in 0..m {
                    let mut acc = 0f32;
                    let (ab, bb) = (b * q.a.stride as usize, b * q.b.stride as usize);
                    for l in 0..k {
                        let ai = if q.ta == 0 {
                            i + l * q.a.ld as usize
                        } else {
                            l + i * q.a.ld as usize
                        };
                        let bi = if q.tb == 0 {
                            l + j * q.b.ld as usize
                        } else {
                            j + l * q.b.ld as usize
                        };
                        acc = get(&bufs[0], ab + ai, q.a.ty)
                            .mul_add(get(&bufs[1], bb + bi, q.b.ty), acc);
                    }
                    let mut v = q.alpha * acc;
                    if let Some(c) = &cbuf {
                        v += q.beta
                            * get(c, b * q.c.stride as usize + i + j * q.c.ld as usize, q.c.ty);
                    }
                    if let Some(x) = &bias {
                        v += get(x, i, q.d.ty);
                    }
                    if q.epilogue & 2 != 0 {
                        v = v.max(0.0);
                    }
                    if q.epilogue & 32 != 0 {
                        v = 0.5 * v * (1.0 + (0.797_884_6 * (v + 0.044715 * v * v * v)).tanh());
                    }
                    let di = b * q.d.stride as usize + i + j * q.d.ld as usize;
                    put(&mut al.data[o..], di, q.d.ty, v);
                    al.valid[o + di * es..o + (di + 1) * es].fill(1);
                }
            }
        }
        OK
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_gemm(q: *const Gemm) -> Rc {
    with("softgpu_gemm", |g| g.submit(Node::Gemm(*q)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(p: *mut *mut c_void, n: usize, _f: c_uint) -> Rc {
    let mut v: Vec<u64> = vec![0; n / 8 + 1];
    *p = v.as_mut_ptr() as *mut c_void;
    std::mem::forget(v);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(_p: *mut c_void) -> Rc {
    OK
}
