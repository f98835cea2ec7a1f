//! Handles: numbers that cannot be guessed or mistaken for pointers, each of one kind, never used twice.

use super::Driver;
use super::codes::{Code, Outcome};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Context,
    Stream,
    Event,
    Module,
    Function,
    Graph,
    GraphExec,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Context => "context",
            Kind::Stream => "stream",
            Kind::Event => "event",
            Kind::Module => "module",
            Kind::Function => "function",
            Kind::Graph => "graph",
            Kind::GraphExec => "graph exec",
        })
    }
}

/// All handles ever given out since the last reset.
#[derive(Debug, Default)]
pub(crate) struct Handles(BTreeMap<usize, (Kind, bool)>);

/// Goes on across resets: a handle from before one must not mean something after it. Far from addresses of
/// the host and of the device, and not aligned: whoever dereferences one faults.
static NEXT: AtomicUsize = AtomicUsize::new(0x00de_0000_0101);

impl Handles {
    /// A new handle.
    pub(crate) fn make(&mut self, kind: Kind) -> usize {
        let handle = NEXT.fetch_add(0x100, Ordering::Relaxed);
        self.0.insert(handle, (kind, true));
        handle
    }

    /// From now on the handle is an error wherever it is used.
    pub(crate) fn destroy(&mut self, handle: usize) {
        if let Some(entry) = self.0.get_mut(&handle) {
            entry.1 = false;
        }
    }

    /// How many of a kind have not been destroyed.
    pub(crate) fn live(&self, kind: Kind) -> usize {
        self.0
            .values()
            .filter(|entry| **entry == (kind, true))
            .count()
    }

    /// Why the handle does not stand for a live object of that kind.
    fn fault(&self, handle: usize, kind: Kind) -> Option<String> {
        match self.0.get(&handle) {
            Some((found, true)) if *found == kind => None,
            Some((found, false)) if *found == kind => Some(format!("{kind} was destroyed before")),
            Some((found, _)) => Some(format!("this is a {found}, not a {kind}")),
            None if handle == 0 => Some(format!("null instead of a {kind}")),
            None => Some(format!("no {kind} has this handle ({handle:#x})")),
        }
    }
}

impl Driver {
    /// Reports a handle that is dead, foreign or of another kind.
    pub(super) fn check(&mut self, handle: usize, kind: Kind) -> Outcome<()> {
        match self.handles.fault(handle, kind) {
            None => Ok(()),
            Some(why) => {
                self.report(why);
                Err(Code::INVALID_HANDLE)
            }
        }
    }
}
