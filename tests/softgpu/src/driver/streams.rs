//! Streams and events: the edges of the order in which a device may run things.

use super::Driver;
use super::capture::Branch;
use super::clock::{Clock, Lane};
use super::codes::{Code, Outcome};
use super::handles::Kind;
use std::cell::Cell;
use std::sync::Arc;

/// The key of the legacy default stream (handles 0 and 1) among the streams.
pub(crate) const LEGACY: usize = 0;
/// The handle that means "this thread's default stream".
const PER_THREAD: usize = 2;

thread_local! {
    static OF_THREAD: Cell<usize> = const { Cell::new(0) };
}

/// A queue of operations.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) name: Arc<str>,
    pub(crate) lane: Lane,
    /// What is over when the stream's next operation starts.
    pub(crate) clock: Clock,
    /// Whether it waits for the legacy stream and the other way round.
    pub(crate) blocking: bool,
    /// Its part in a capture.
    pub(crate) capture: Option<Branch>,
    polled: Option<Clock>,
}

/// A point in a stream.
#[derive(Debug, Default)]
pub(crate) struct Event {
    point: Point,
    polled: bool,
    /// Instructions executed when it was recorded: the device's time.
    time: u64,
    timing: bool,
}

#[derive(Clone, Debug, Default)]
enum Point {
    #[default]
    Never,
    /// What is over when the event is.
    At(Clock),
    /// Nodes of a capture.
    Captured(u32, Vec<usize>),
}

impl Driver {
    pub(super) fn add_legacy_stream(&mut self) {
        self.add_stream(LEGACY, "the legacy stream".into(), true);
    }

    fn add_stream(&mut self, key: usize, name: Arc<str>, blocking: bool) {
        let lane = self.new_lanes(1);
        let stream = Stream {
            name,
            lane,
            clock: Clock::default(),
            blocking,
            capture: None,
            polled: None,
        };
        self.streams.insert(key, stream);
    }

    /// `cuStreamCreate`; flag 1 is `CU_STREAM_NON_BLOCKING`.
    pub(super) fn create_stream(&mut self, flags: u32) -> Outcome<usize> {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = self.handles.make(Kind::Stream);
        self.stream_names += 1;
        let name = format!("stream {}", self.stream_names).into();
        self.add_stream(handle, name, flags == 0);
        Ok(handle)
    }

    pub(super) fn destroy_stream(&mut self, handle: usize) -> Outcome<()> {
        self.check(handle, Kind::Stream)?;
        if self
            .stream(handle)
            .is_some_and(|stream| stream.capture.is_some())
        {
            self.report("a stream is destroyed while it is being captured".to_string());
            self.invalidate_capture_of(handle);
        }
        self.handles.destroy(handle);
        let Some(stream) = self.streams.remove(&handle) else {
            return Ok(());
        };
        self.orphans.join(&stream.clock);
        if stream.blocking
            && let Some(legacy) = self.streams.get_mut(&LEGACY)
        {
            legacy.clock.join(&stream.clock);
        }
        Ok(())
    }

    fn stream(&self, key: usize) -> Option<&Stream> {
        self.streams.get(&key)
    }

    /// The key of the stream that a handle means.
    pub(super) fn stream_key(&mut self, handle: usize) -> Outcome<usize> {
        match handle {
            0 | 1 => Ok(LEGACY),
            PER_THREAD => {
                if !self.streams.contains_key(&OF_THREAD.get()) || OF_THREAD.get() == LEGACY {
                    // Not a handle that anybody has: the thread's stream is not the caller's to destroy.
                    let key = usize::MAX - self.next_lane as usize;
                    self.add_stream(key, "the thread's default stream".into(), true);
                    OF_THREAD.set(key);
                }
                Ok(OF_THREAD.get())
            }
            _ => self.check(handle, Kind::Stream).map(|()| handle),
        }
    }

    /// What is over when the next operation of a stream starts.
    pub(super) fn clock_of(&self, key: usize) -> Clock {
        let mut clock = self.host_clock.clone();
        let Some(stream) = self.streams.get(&key) else {
            return clock;
        };
        clock.join(&stream.clock);
        if key == LEGACY {
            self.streams
                .values()
                .filter(|other| other.blocking)
                .for_each(|other| clock.join(&other.clock));
        } else if stream.blocking
            && let Some(legacy) = self.streams.get(&LEGACY)
        {
            clock.join(&legacy.clock);
        }
        clock
    }

    /// `cuStreamSynchronize`.
    pub(super) fn synchronize_stream(&mut self, handle: usize) -> Outcome<()> {
        let key = self.stream_key(handle)?;
        self.not_captured(key, "synchronises a stream that is being captured")?;
        if key == LEGACY {
            self.legacy_in_capture()?;
        }
        let clock = self.clock_of(key);
        self.host_waits(&clock)
    }

    /// `cuCtxSynchronize`.
    pub(super) fn synchronize_all(&mut self) -> Outcome<()> {
        self.unsafe_in_capture("synchronises the context")?;
        let mut clock = self.orphans.clone();
        self.streams
            .values()
            .for_each(|stream| clock.join(&stream.clock));
        self.host_waits(&clock)
    }

    /// `cuStreamQuery`: not ready when first asked about work that the host has not waited for.
    pub(super) fn query_stream(&mut self, handle: usize) -> Outcome<()> {
        let key = self.stream_key(handle)?;
        self.not_captured(key, "asks about a stream that is being captured")?;
        let clock = self.clock_of(key);
        let Some(stream) = self.streams.get_mut(&key) else {
            return Err(Code::INVALID_HANDLE);
        };
        if !self.host_clock.covers_all(&clock) && stream.polled.as_ref() != Some(&clock) {
            stream.polled = Some(clock);
            return Err(Code::NOT_READY);
        }
        self.host_waits(&clock)
    }

    /// `cuEventCreate`; flag 2 is `CU_EVENT_DISABLE_TIMING`.
    pub(super) fn create_event(&mut self, flags: u32) -> Outcome<usize> {
        if flags > 7 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = self.handles.make(Kind::Event);
        self.events.insert(
            handle,
            Event {
                timing: flags & 2 == 0,
                ..Event::default()
            },
        );
        Ok(handle)
    }

    pub(super) fn destroy_event(&mut self, handle: usize) -> Outcome<()> {
        self.check(handle, Kind::Event)?;
        self.handles.destroy(handle);
        self.events.remove(&handle);
        Ok(())
    }

    /// `cuEventRecord`.
    pub(super) fn record(&mut self, event: usize, stream: usize) -> Outcome<()> {
        self.check(event, Kind::Event)?;
        let key = self.stream_key(stream)?;
        let point = match self.live_branch(key)? {
            Some(branch) => Point::Captured(branch.capture, branch.tails),
            None => {
                if key == LEGACY {
                    self.legacy_in_capture()?;
                }
                Point::At(self.clock_of(key))
            }
        };
        let time = self.counts.instructions;
        if let Some(event) = self.events.get_mut(&event) {
            *event = Event {
                point,
                polled: false,
                time,
                timing: event.timing,
            };
        }
        Ok(())
    }

    fn point(&self, event: usize) -> Point {
        self.events
            .get(&event)
            .map(|event| event.point.clone())
            .unwrap_or_default()
    }

    /// `cuStreamWaitEvent`.
    pub(super) fn wait(&mut self, stream: usize, event: usize) -> Outcome<()> {
        self.check(event, Kind::Event)?;
        let key = self.stream_key(stream)?;
        let branch = self.live_branch(key)?;
        match (self.point(event), branch) {
            (Point::Never, _) => Ok(()),
            (Point::At(clock), None) => {
                if key == LEGACY {
                    self.legacy_in_capture()?;
                }
                if let Some(stream) = self.streams.get_mut(&key) {
                    stream.clock.join(&clock);
                }
                Ok(())
            }
            (Point::At(_), Some(_)) => {
                self.report("the capture would depend on an event recorded before it".to_string());
                self.invalidate_capture_of(key);
                Err(Code::CAPTURE_ISOLATION)
            }
            (Point::Captured(capture, nodes), branch) => {
                self.join_capture(key, branch, capture, nodes)
            }
        }
    }

    /// `cuEventSynchronize`.
    pub(super) fn synchronize_event(&mut self, event: usize) -> Outcome<()> {
        self.check(event, Kind::Event)?;
        self.unsafe_in_capture("waits for an event")?;
        match self.point(event) {
            Point::Never => Ok(()),
            Point::At(clock) => self.host_waits(&clock),
            Point::Captured(..) => self.captured_event(),
        }
    }

    /// `cuEventQuery`: not ready when first asked about work that the host has not waited for.
    pub(super) fn query_event(&mut self, handle: usize) -> Outcome<()> {
        self.check(handle, Kind::Event)?;
        self.unsafe_in_capture("asks about an event")?;
        let clock = match self.point(handle) {
            Point::Never => return Ok(()),
            Point::At(clock) => clock,
            Point::Captured(..) => return self.captured_event(),
        };
        let Some(event) = self.events.get_mut(&handle) else {
            return Err(Code::INVALID_HANDLE);
        };
        if !event.polled && !self.host_clock.covers_all(&clock) {
            event.polled = true;
            return Err(Code::NOT_READY);
        }
        self.host_waits(&clock)
    }

    fn captured_event(&mut self) -> Outcome<()> {
        self.report(
            "the event was last recorded in a capture: it stands for nodes of a graph".to_string(),
        );
        Err(Code::CAPTURED_EVENT)
    }

    /// `cuEventElapsedTime`: a millisecond for a million instructions.
    pub(super) fn elapsed(&mut self, start: usize, end: usize) -> Outcome<f32> {
        self.check(start, Kind::Event)?;
        self.check(end, Kind::Event)?;
        for handle in [start, end] {
            let timing = self.events.get(&handle).is_some_and(|event| event.timing);
            match self.point(handle) {
                Point::Captured(..) => return self.captured_event().map(|()| 0.0),
                Point::At(clock) if timing => {
                    if !self.host_clock.covers_all(&clock) {
                        return Err(Code::NOT_READY);
                    }
                }
                _ => {
                    self.report(
                        "the event was not recorded, or was made without timing".to_string(),
                    );
                    return Err(Code::INVALID_HANDLE);
                }
            }
        }
        let time = |handle| self.events.get(&handle).map_or(0, |event| event.time);
        Ok((time(end) as f32 - time(start) as f32) / 1e6)
    }

    /// The host waits until all that a clock knows is over: copies to it arrive, and errors become known.
    pub(super) fn host_waits(&mut self, clock: &Clock) -> Outcome<()> {
        self.host_clock.join(clock);
        self.settle_copies();
        let host = &self.host_clock;
        self.blocks
            .values_mut()
            .for_each(|block| block.history.forget(host));
        self.host
            .histories()
            .for_each(|history| history.forget(host));
        self.faults.surface()
    }
}
