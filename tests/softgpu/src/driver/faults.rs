//! Errors that a test asks for, and errors that stick.

use super::codes::{Code, Outcome};

/// What will fail, and what has failed.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Allocations to go until one fails.
    memory: Option<u64>,
    /// Launches to go until one fails.
    launch: Option<u64>,
    /// Calls of the named function to go until one returns the code.
    named: Vec<(String, u64, Code)>,
    /// Calls of any function to go until the device is lost.
    loss: Option<u64>,
    lost: bool,
    /// An error of the device that the host has not been told yet.
    pending: Option<Code>,
    sticky: Option<Code>,
}

/// Counts down; true at the count's end.
fn due(count: &mut Option<u64>) -> bool {
    match count {
        Some(1) => {
            *count = None;
            true
        }
        Some(n) => {
            *n -= 1;
            false
        }
        None => false,
    }
}

impl Faults {
    /// `SOFTGPU_FAULT`: faults by comma, as `memory:3`, `launch:1`, `lost:20`, `cuMemAlloc_v2:1:2`.
    pub(crate) fn from_environment() -> Self {
        let mut faults = Self::default();
        for fault in std::env::var("SOFTGPU_FAULT")
            .unwrap_or_default()
            .split(',')
        {
            let parts: Vec<&str> = fault.split(':').collect();
            let number = |index: usize| parts.get(index).and_then(|part| part.parse::<i64>().ok());
            if let Some(nth) = number(1) {
                faults.inject(parts[0], nth as u64, number(2).unwrap_or(0) as i32);
            }
        }
        faults
    }

    /// Arms a fault; `nth` counts from 1, from now on.
    pub(crate) fn inject(&mut self, what: &str, nth: u64, code: i32) {
        let nth = nth.max(1);
        match what {
            "memory" => self.memory = Some(nth),
            "launch" => self.launch = Some(nth),
            "lost" => self.loss = Some(nth),
            name => self.named.push((name.to_string(), nth, Code(code))),
        }
    }

    /// Called once for each call of the driver.
    pub(crate) fn call(&mut self, name: &str) -> Outcome<()> {
        self.lost |= due(&mut self.loss);
        for (wanted, left, code) in &mut self.named {
            if wanted == name && *left > 0 {
                *left -= 1;
                if *left == 0 {
                    return Err(*code);
                }
            }
        }
        Ok(())
    }

    /// Called once for each allocation.
    pub(crate) fn allocation(&mut self) -> Outcome<()> {
        if due(&mut self.memory) {
            Err(Code::OUT_OF_MEMORY)
        } else {
            Ok(())
        }
    }

    /// Called once for each launch of a kernel or a graph: whether it fails on the device.
    pub(crate) fn launch(&mut self) -> bool {
        due(&mut self.launch)
    }

    /// An error if the device is gone.
    pub(crate) fn lost(&self) -> Outcome<()> {
        if self.lost {
            Err(Code::DEVICE_UNAVAILABLE)
        } else {
            Ok(())
        }
    }

    /// The device stops: nothing runs from now on, and the host learns why when it next waits.
    pub(crate) fn stop(&mut self, code: Code) {
        self.pending.get_or_insert(code);
    }

    /// Whether the device still runs what it is given.
    pub(crate) fn running(&self) -> bool {
        self.pending.is_none()
    }

    /// Whether the device may still be at work on what it was given before.
    pub(crate) fn working(&self) -> bool {
        self.pending.is_none() && self.sticky.is_none() && !self.lost
    }

    /// The error that the host knows of; every call returns it.
    pub(crate) fn sticky(&self) -> Outcome<()> {
        self.sticky.map_or(Ok(()), Err)
    }

    /// The host waits, and learns of an error.
    pub(crate) fn surface(&mut self) -> Outcome<()> {
        if self.sticky.is_none() {
            self.sticky = self.pending;
        }
        self.sticky()
    }
}
