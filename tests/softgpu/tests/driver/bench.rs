//! A context with a module, and the calls that tests make of it.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use softgpu::Gpu;
use std::ffi::c_void;
use std::sync::Arc;

/// The kernels of `tests/ptx/small.cu`.
pub const PTX: &str = include_str!("../ptx/small.ptx");

/// The device under test. Fields are dropped in this order.
pub struct Bench {
    functions: [(&'static str, CudaFunction); 3],
    pub module: Arc<CudaModule>,
    pub context: Arc<CudaContext>,
    pub gpu: Gpu,
}

/// The number of an error, 0 if there is none.
pub fn code<T>(result: Result<T, DriverError>) -> u32 {
    result.map_or_else(|error| error.0 as u32, |_| 0)
}

/// The same for calls that cudarc does not wrap.
pub fn raw(result: sys::CUresult) -> u32 {
    result as u32
}

/// The argument pointer of a kernel's parameter.
fn argument<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

impl Bench {
    pub fn new() -> Self {
        Self::on(|_| {})
    }

    /// With a device that is set up first.
    pub fn on(set_up: impl FnOnce(&Gpu)) -> Self {
        let gpu = Gpu::exclusive().expect("the software GPU loads");
        set_up(&gpu);
        let context = CudaContext::new(0).expect("a context");
        let module = context
            .load_module(Ptx::from_src(PTX))
            .expect("the module loads");
        let function = |name| {
            (
                name,
                module.load_function(name).expect("the function exists"),
            )
        };
        let functions = ["fill", "twice", "reverse"].map(function);
        Self {
            functions,
            module,
            context,
            gpu,
        }
    }

    /// Gives back all but the device, which can still be asked.
    pub fn close(self) -> Gpu {
        let Self {
            functions,
            module,
            context,
            gpu,
        } = self;
        drop((functions, module));
        drop(context);
        gpu
    }

    /// A stream that does not wait for the legacy stream.
    pub fn stream(&self) -> sys::CUstream {
        result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream")
    }

    /// A stream that does.
    pub fn blocking_stream(&self) -> sys::CUstream {
        result::stream::create(result::stream::StreamKind::Default).expect("a stream")
    }

    pub fn event(&self) -> sys::CUevent {
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).expect("an event")
    }

    /// A block for `n` floats, for all streams.
    pub fn floats(&self, n: usize) -> u64 {
        // SAFETY: the size is not zero.
        unsafe { result::malloc_sync(4 * n) }.expect("memory")
    }

    /// A pinned block of `n` floats.
    pub fn pinned(&self, n: usize) -> *mut f32 {
        // SAFETY: the size is not zero.
        unsafe { result::malloc_host(4 * n, 0) }
            .expect("pinned memory")
            .cast()
    }

    pub fn launch(
        &self,
        name: &str,
        stream: sys::CUstream,
        blocks: u32,
        threads: u32,
        shared: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), DriverError> {
        let function = self
            .functions
            .iter()
            .find(|(known, _)| *known == name)
            .expect("a kernel of the module");
        let raw = function.1.cu_function();
        // SAFETY: the arguments are those of the kernel; the device checks what it does with them.
        unsafe {
            result::launch_kernel(
                raw,
                (blocks, 1, 1),
                (threads, 1, 1),
                shared,
                stream,
                arguments,
            )
        }
    }

    /// to[i] = value.
    pub fn fill(&self, stream: sys::CUstream, mut to: u64, mut value: f32, n: usize) -> u32 {
        let mut count = n as u32;
        let mut arguments = [
            argument(&mut to),
            argument(&mut value),
            argument(&mut count),
        ];
        code(self.launch("fill", stream, count.div_ceil(64), 64, 0, &mut arguments))
    }

    /// to[i] = 2 from[i].
    pub fn twice(&self, stream: sys::CUstream, mut to: u64, mut from: u64, n: usize) -> u32 {
        let mut count = n as u32;
        let mut arguments = [argument(&mut to), argument(&mut from), argument(&mut count)];
        code(self.launch("twice", stream, count.div_ceil(64), 64, 0, &mut arguments))
    }

    /// to = from backwards, through shared memory; more of it may be asked for than it uses.
    pub fn reverse(
        &self,
        stream: sys::CUstream,
        mut to: u64,
        mut from: u64,
        n: usize,
        shared: u32,
    ) -> u32 {
        let mut count = n as u32;
        let mut arguments = [argument(&mut to), argument(&mut from), argument(&mut count)];
        code(self.launch("reverse", stream, 1, count, shared, &mut arguments))
    }

    pub fn upload(&self, stream: sys::CUstream, to: u64, from: *const f32, n: usize) -> u32 {
        // SAFETY: callers own `n` floats there until the copy is over; where they do not, that is the test.
        code(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), 4 * n, stream) }.result())
    }

    pub fn download(&self, stream: sys::CUstream, to: *mut f32, from: u64, n: usize) -> u32 {
        // SAFETY: callers own `n` floats there until the copy is over.
        code(unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, 4 * n, stream) }.result())
    }

    /// A copy of `n` bytes to the host, after everything.
    pub fn read_bytes(&self, from: u64, n: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; n];
        assert_eq!(code(result::ctx::synchronize()), 0);
        // SAFETY: the vector has `n` bytes.
        let copied = unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), from, n) };
        assert_eq!(raw(copied), 0);
        bytes
    }

    /// A copy of `n` floats to the host, after everything.
    pub fn read(&self, from: u64, n: usize) -> Vec<f32> {
        let mut values = vec![0f32; n];
        assert_eq!(code(result::ctx::synchronize()), 0);
        // SAFETY: the vector has `n` floats.
        let copied = unsafe { sys::cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), from, 4 * n) };
        assert_eq!(raw(copied), 0);
        values
    }

    pub fn synchronize(&self, stream: sys::CUstream) -> u32 {
        // SAFETY: the driver checks handles.
        code(unsafe { result::stream::synchronize(stream) })
    }

    pub fn record(&self, event: sys::CUevent, stream: sys::CUstream) -> u32 {
        // SAFETY: the driver checks handles.
        code(unsafe { result::event::record(event, stream) })
    }

    pub fn wait(&self, stream: sys::CUstream, event: sys::CUevent) -> u32 {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the driver checks handles.
        code(unsafe { result::stream::wait_event(stream, event, flags) })
    }

    pub fn free(&self, at: u64) -> u32 {
        // SAFETY: the driver checks addresses.
        code(unsafe { result::free_sync(at) })
    }

    pub fn begin(&self, stream: sys::CUstream) -> u32 {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the driver checks handles.
        code(unsafe { result::stream::begin_capture(stream, mode) })
    }

    /// The graph of a capture, or the error.
    pub fn end(&self, stream: sys::CUstream) -> Result<sys::CUgraph, u32> {
        // SAFETY: the driver checks handles.
        unsafe { result::stream::end_capture(stream) }.map_err(|error| error.0 as u32)
    }

    pub fn instantiate(&self, graph: sys::CUgraph) -> sys::CUgraphExec {
        // SAFETY: the driver checks handles.
        unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
            .expect("a graph exec")
    }

    pub fn replay(&self, exec: sys::CUgraphExec, stream: sys::CUstream) -> u32 {
        // SAFETY: the driver checks handles.
        code(unsafe { result::graph::launch(exec, stream) })
    }

    /// Exactly one report, which says this; it is forgotten.
    #[track_caller]
    pub fn one_report(&self, says: &str) {
        let reports = self.gpu.take_reports();
        assert_eq!(reports.len(), 1, "{reports:#?}");
        assert!(reports[0].contains(says), "{reports:#?}");
    }

    #[track_caller]
    pub fn no_report(&self) {
        assert_eq!(self.gpu.take_reports(), [""; 0]);
    }
}
