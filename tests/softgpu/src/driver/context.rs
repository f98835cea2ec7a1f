//! The primary context, and what is left in it when it goes.

use super::Driver;
use super::clock::Clock;
use super::codes::{Code, Outcome};
use super::handles::Kind;
use std::cell::Cell;

/// The primary context of the one device.
#[derive(Debug)]
pub(crate) struct Context {
    handle: usize,
    retained: u32,
}

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

impl Driver {
    /// The context that the calling thread works in, 0 if none.
    pub(super) fn current_context(&self) -> usize {
        CURRENT.get()
    }

    /// Makes a context, or none (0), the calling thread's.
    pub(super) fn set_context(&mut self, handle: usize) -> Outcome<()> {
        if handle != 0 && self.check(handle, Kind::Context).is_err() {
            return Err(Code::INVALID_CONTEXT);
        }
        CURRENT.set(handle);
        Ok(())
    }

    /// An error if the calling thread has no live context.
    pub(super) fn need_context(&mut self) -> Outcome<()> {
        let current = CURRENT.get();
        if current == 0 {
            self.report("the calling thread has no current context".to_string());
            return Err(Code::INVALID_CONTEXT);
        }
        if self
            .context
            .as_ref()
            .is_none_or(|context| context.handle != current)
        {
            self.report("the calling thread's context was destroyed".to_string());
            return Err(Code::CONTEXT_IS_DESTROYED);
        }
        Ok(())
    }

    /// The primary context; made if there is none.
    pub(super) fn retain(&mut self) -> usize {
        if let Some(context) = &mut self.context {
            context.retained += 1;
            return context.handle;
        }
        let handle = self.handles.make(Kind::Context);
        self.context = Some(Context {
            handle,
            retained: 1,
        });
        handle
    }

    /// Gives the primary context back; the last one to do so ends it and all that lives in it.
    pub(super) fn release(&mut self) -> Outcome<()> {
        let Some(context) = &mut self.context else {
            self.report("the primary context is released more often than retained".to_string());
            return Err(Code::INVALID_CONTEXT);
        };
        context.retained -= 1;
        if context.retained > 0 {
            return Ok(());
        }
        let handle = context.handle;
        let left = self.leaks();
        if !left.is_empty() {
            self.report(format!("leak: the context ends with {}", left.join(", ")));
        }
        self.end_context(handle);
        Ok(())
    }

    /// What has been made and not been given back, as "2 streams"; empty if nothing.
    pub(crate) fn leaks(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut add = |count: usize, name: &str| {
            if count > 0 {
                left.push(format!(
                    "{count} {name}{}",
                    if count == 1 { "" } else { "s" }
                ));
            }
        };
        add(self.blocks.len(), "device allocation");
        add(self.host.len(), "pinned host block");
        for kind in [
            Kind::Stream,
            Kind::Event,
            Kind::Module,
            Kind::Graph,
            Kind::GraphExec,
        ] {
            add(self.handles.live(kind), &kind.to_string());
        }
        for (name, &count) in &self.foreign {
            add(count.max(0) as usize, name);
        }
        left
    }

    fn end_context(&mut self, handle: usize) {
        self.handles.destroy(handle);
        self.context = None;
        let dead = self
            .streams
            .keys()
            .chain(self.events.keys())
            .chain(self.modules.keys());
        let dead = dead
            .chain(self.functions.keys())
            .chain(self.graphs.keys())
            .chain(self.execs.keys());
        for handle in dead.copied().collect::<Vec<_>>() {
            self.handles.destroy(handle);
        }
        self.streams.clear();
        self.events.clear();
        self.modules.clear();
        self.functions.clear();
        self.graphs.clear();
        self.execs.clear();
        self.captures.clear();
        for (base, block) in std::mem::take(&mut self.blocks) {
            self.memory.free(base);
            self.freed.insert(
                base,
                (block.len as u64, "the end of its context".to_string()),
            );
        }
        self.host.clear();
        self.host_clock = Clock::default();
        self.add_legacy_stream();
    }
}
