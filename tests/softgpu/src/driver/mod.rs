//! The driver: its state, and how a call enters it.
//!
//! A call locks the one state of the process, is counted, and meets what every call has to meet: faults that
//! a test injected, errors that stick, a context on the calling thread. `api/` holds the exported functions,
//! the modules beside it what they do.

mod api;
mod capture;
mod clock;
mod codes;
mod context;
mod faults;
mod graphs;
mod handles;
mod host;
mod matmul;
mod memory;
mod modules;
mod product;
mod queue;
mod races;
mod settings;
mod streams;
mod work;

use crate::vm;
use clock::{Clock, Lane};
use codes::{Code, Outcome};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All that the driver knows.
pub(crate) struct Driver {
    settings: settings::Settings,
    faults: faults::Faults,
    reports: Vec<String>,
    calls: BTreeMap<&'static str, u64>,
    counts: Counts,
    initialised: bool,
    context: Option<context::Context>,
    handles: handles::Handles,
    streams: BTreeMap<usize, streams::Stream>,
    stream_names: u32,
    events: BTreeMap<usize, streams::Event>,
    modules: BTreeMap<usize, modules::Module>,
    functions: BTreeMap<usize, modules::Function>,
    graphs: BTreeMap<usize, graphs::Graph>,
    execs: BTreeMap<usize, graphs::Exec>,
    captures: BTreeMap<u32, capture::Capture>,
    next_capture: u32,
    memory: vm::Mem,
    blocks: BTreeMap<u64, memory::Block>,
    freed: BTreeMap<u64, (u64, String)>,
    host: host::HostMemory,
    /// What the host has waited for.
    host_clock: Clock,
    /// The work of streams that were destroyed; it goes on.
    orphans: Clock,
    next_lane: Lane,
    /// Objects of other libraries, by kind: cuBLASLt's descriptors.
    foreign: BTreeMap<String, i64>,
    foreign_calls: BTreeMap<String, u64>,
    /// The call that is being served.
    current: &'static str,
    /// How many resets there were.
    generation: u64,
}

/// Work done, since the last reset.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) launches: u32,
    pub(crate) instructions: u64,
    pub(crate) loads: u64,
    pub(crate) stores: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) copied: u64,
    pub(crate) products: u64,
}

/// What a function needs before it may do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing: it works before `cuInit` and after any error.
    Plain,
    /// An initialised driver.
    Device,
    /// A context on the calling thread, and no error that sticks.
    Work,
    /// The same, but what it releases is released even if it returns an error.
    Release,
}

static STATE: Mutex<Option<Driver>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Driver>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` on the state, without any check: for the functions that tests control the driver by.
pub(crate) fn control<T>(f: impl FnOnce(&mut Driver) -> T) -> T {
    f(lock().get_or_insert_with(Driver::new))
}

/// Forgets everything but the numbers that handles are made of.
pub(crate) fn reset() {
    let mut state = lock();
    let generation = state.as_ref().map_or(0, |driver| driver.generation) + 1;
    *state = Some(Driver {
        generation,
        ..Driver::new()
    });
}

/// One call of the driver.
pub(crate) fn enter(
    name: &'static str,
    class: Class,
    f: impl FnOnce(&mut Driver) -> Outcome<()>,
) -> c_int {
    control(|driver| match driver.call(name, class, f) {
        Ok(()) => 0,
        Err(code) => code.0,
    })
}

impl Driver {
    fn new() -> Self {
        let mut driver = Self {
            settings: settings::Settings::from_environment(),
            faults: faults::Faults::default(),
            reports: Vec::new(),
            calls: BTreeMap::new(),
            counts: Counts::default(),
            initialised: false,
            context: None,
            handles: handles::Handles::default(),
            streams: BTreeMap::new(),
            stream_names: 0,
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            execs: BTreeMap::new(),
            captures: BTreeMap::new(),
            next_capture: 0,
            memory: vm::Mem::default(),
            blocks: BTreeMap::new(),
            freed: BTreeMap::new(),
            host: host::HostMemory::default(),
            host_clock: Clock::default(),
            orphans: Clock::default(),
            next_lane: 0,
            foreign: BTreeMap::new(),
            foreign_calls: BTreeMap::new(),
            current: "",
            generation: 0,
        };
        driver.add_legacy_stream();
        driver.faults = faults::Faults::from_environment();
        driver
    }

    fn call(
        &mut self,
        name: &'static str,
        class: Class,
        f: impl FnOnce(&mut Driver) -> Outcome<()>,
    ) -> Outcome<()> {
        *self.calls.entry(name).or_default() += 1;
        self.current = name;
        if class == Class::Plain {
            self.faults.call(name)?;
            return f(self);
        }
        if !self.initialised {
            self.report("the driver is used before cuInit".to_string());
            return Err(Code::NOT_INITIALIZED);
        }
        self.faults.call(name)?;
        if class == Class::Device {
            self.faults.lost()?;
            return f(self);
        }
        self.need_context()?;
        let failed = self.faults.lost().and_then(|()| self.faults.sticky());
        match (class, failed) {
            (Class::Release, Err(code)) => {
                let _ = f(self);
                Err(code)
            }
            (_, Err(code)) => Err(code),
            (_, Ok(())) => f(self),
        }
    }

    /// Notes that something is wrong, with the name of the call.
    pub(crate) fn report(&mut self, what: String) {
        let line = if self.current.is_empty() {
            what
        } else {
            format!("{}: {what}", self.current)
        };
        self.settings.log(&line);
        if self.reports.len() < 1000 {
            self.reports.push(line);
        }
    }

    /// A lane that nothing else uses.
    fn new_lanes(&mut self, count: u32) -> Lane {
        let first = self.next_lane;
        self.next_lane += count;
        first
    }
}
