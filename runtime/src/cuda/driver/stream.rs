//! Streams, events, and sequences of work captured to be replayed.

use super::{Context, DeviceError, check};
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// A queue of work for the device, with no tie to the default stream.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: a stream may be used from any thread on which its context is current.
unsafe impl Send for Stream {}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let kind = result::stream::StreamKind::NonBlocking;
        let raw = check("cuStreamCreate", result::stream::create(kind))?;
        Ok(Stream {
            context: context.clone(),
            raw,
        })
    }

    /// The driver's handle.
    pub fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits until all that was enqueued is done.
    ///
    /// # Errors
    /// [`DeviceError`] also where something enqueued before failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe {
            result::stream::synchronize(self.raw)
        })
    }

    /// Lets what is enqueued from now on wait for an event.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event live as long as their owners.
        check("cuStreamWaitEvent", unsafe {
            result::stream::wait_event(self.raw, event.raw, flags)
        })
    }

    /// Enqueues a copy within the device's memory.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: a span that is not the device's own is refused by the driver, or fails on the device.
        check("cuMemcpyDtoDAsync", unsafe {
            result::memcpy_dtod_async(to, from, bytes, self.raw)
        })
    }

    /// Enqueues that all bytes of a span of the device's memory have a value.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as for copies.
        check("cuMemsetD8Async", unsafe {
            result::memset_d8_async(to, byte, bytes, self.raw)
        })
    }

    /// Captures what `work` enqueues, instead of executing it.
    ///
    /// # Errors
    /// That of `work`, or [`DeviceError`] where what it did cannot be captured. The capture has ended in
    /// any case.
    pub fn capture<E: From<DeviceError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Replay, E> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`, and is none of the default streams.
        check("cuStreamBeginCapture", unsafe {
            result::stream::begin_capture(self.raw, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        })?;
        let done = work();
        // Ended before anything is returned: the stream would stay in the capturing state otherwise.
        // SAFETY: as above, and a capture was begun.
        let graph = check("cuStreamEndCapture", unsafe {
            result::stream::end_capture(self.raw)
        });
        let capture = graph.map(|raw| Capture {
            context: self.context.clone(),
            raw,
        });
        done?;
        Ok(capture?.instantiate()?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.enter_to_drop();
        // SAFETY: created by `new`, and destroyed once.
        let destroyed = unsafe { result::stream::destroy(self.raw) };
        self.context.defer(check("cuStreamDestroy", destroyed));
    }
}

/// A point in a stream that others can wait for.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: an event may be used from any thread on which its context is current.
unsafe impl Send for Event {}

impl Event {
    /// An event that nothing was recorded in: waiting for it is no wait.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let raw = check("cuEventCreate", result::event::create(flags))?;
        Ok(Event {
            context: context.clone(),
            raw,
        })
    }

    /// Stands from now on for what a stream has been given so far.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both live as long as their owners.
        check("cuEventRecord", unsafe {
            result::event::record(self.raw, stream.raw)
        })
    }

    /// Waits until it has come.
    ///
    /// # Errors
    /// [`DeviceError`] also where something before it failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the event lives as long as `self`.
        check("cuEventSynchronize", unsafe {
            result::event::synchronize(self.raw)
        })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.enter_to_drop();
        // SAFETY: created by `new`, and destroyed once.
        let destroyed = unsafe { result::event::destroy(self.raw) };
        self.context.defer(check("cuEventDestroy", destroyed));
    }
}

/// Captured work that cannot be executed yet.
#[derive(Debug)]
pub struct Capture {
    context: Arc<Context>,
    raw: sys::CUgraph,
}

impl Capture {
    fn instantiate(self) -> Result<Replay, DeviceError> {
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was given by the driver, and lives as long as `self`.
        let raw = check("cuGraphInstantiate", unsafe {
            result::graph::instantiate(self.raw, flags)
        })?;
        Ok(Replay {
            context: self.context.clone(),
            raw,
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.context.enter_to_drop();
        // SAFETY: given by the driver, and destroyed once; what was instantiated from it is apart.
        let destroyed = unsafe { result::graph::destroy(self.raw) };
        self.context.defer(check("cuGraphDestroy", destroyed));
    }
}

/// Captured work, ready to be executed any number of times.
///
/// It refers to memory and functions by address: their owners must outlive it.
#[derive(Debug)]
pub struct Replay {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: an executable graph may be used from any thread on which its context is current, by one thread
// at a time; it is not `Sync`.
unsafe impl Send for Replay {}

impl Replay {
    /// Enqueues the work.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both live as long as their owners; who made the replay keeps what it refers to.
        check("cuGraphLaunch", unsafe {
            result::graph::launch(self.raw, stream.raw)
        })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.context.enter_to_drop();
        // SAFETY: given by the driver, and destroyed once.
        let destroyed = unsafe { result::graph::exec_destroy(self.raw) };
        self.context.defer(check("cuGraphExecDestroy", destroyed));
    }
}
