//! Streams, events, captures.

use super::{Out, api};
use std::ffi::{c_int, c_uint};

api! {
    /// A stream.
    Work cuStreamCreate(stream: Out<usize>, flags: c_uint) |driver| stream.set(driver.create_stream(flags)?)?;
    /// A stream; there is one priority.
    Work cuStreamCreateWithPriority(stream: Out<usize>, flags: c_uint, _priority: c_int) |driver| {
        stream.set(driver.create_stream(flags)?)?
    };
    /// Ends a stream; its work goes on.
    Release cuStreamDestroy_v2(stream: usize) |driver| driver.destroy_stream(stream)?;
    /// Waits for a stream.
    Work cuStreamSynchronize(stream: usize) |driver| driver.synchronize_stream(stream)?;
    /// Whether a stream's work is over.
    Work cuStreamQuery(stream: usize) |driver| driver.query_stream(stream)?;
    /// Makes a stream wait for an event.
    Work cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) |driver| driver.wait(stream, event)?;
    /// An event.
    Work cuEventCreate(event: Out<usize>, flags: c_uint) |driver| event.set(driver.create_event(flags)?)?;
    /// Ends an event.
    Release cuEventDestroy_v2(event: usize) |driver| driver.destroy_event(event)?;
    /// Makes an event the present end of a stream.
    Work cuEventRecord(event: usize, stream: usize) |driver| driver.record(event, stream)?;
    /// Whether an event is over.
    Work cuEventQuery(event: usize) |driver| driver.query_event(event)?;
    /// Waits for an event.
    Work cuEventSynchronize(event: usize) |driver| driver.synchronize_event(event)?;
    /// Milliseconds between events.
    Work cuEventElapsedTime(time: Out<f32>, start: usize, end: usize) |driver| {
        time.set(driver.elapsed(start, end)?)?
    };
    /// Milliseconds between events.
    Work cuEventElapsedTime_v2(time: Out<f32>, start: usize, end: usize) |driver| {
        time.set(driver.elapsed(start, end)?)?
    };
    /// From now on the stream builds a graph.
    Work cuStreamBeginCapture_v2(stream: usize, mode: c_uint) |driver| driver.begin_capture(stream, mode)?;
    /// The graph that a stream has built.
    Work cuStreamEndCapture(stream: usize, graph: Out<usize>) |driver| {
        graph.set_if_wanted(0);
        graph.set(driver.end_capture(stream)?)?
    };
    /// Whether a stream builds a graph.
    Work cuStreamIsCapturing(stream: usize, status: Out<c_int>) |driver| {
        status.set(driver.capture_status(stream)?.0)?
    };
    /// The same, and which.
    Work cuStreamGetCaptureInfo(stream: usize, status: Out<c_int>, id: Out<u64>) |driver| {
        let (found, capture) = driver.capture_status(stream)?;
        id.set_if_wanted(capture);
        status.set(found)?
    };
}
