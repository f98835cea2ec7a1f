//! What tests, and cuBLASLt's stand-in, ask the driver beside CUDA's functions. The other side of it is
//! [`crate::control`], in another copy of this crate: only numbers and bytes cross.

use super::Text;
use crate::control::{Query, Setting};
use crate::driver::{control, reset};

/// Copies a text out, as far as it fits; its length.
fn give(text: &str, to: *mut u8, room: usize) -> usize {
    let count = text.len().min(room);
    if count > 0 && !to.is_null() {
        // SAFETY: the caller has `room` bytes at `to`.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, count) };
    }
    text.len()
}

/// The answer to a [`Query`], by lines.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_query(what: u32, to: *mut u8, room: usize) -> usize {
    control(|driver| {
        let counts = driver.counts;
        let lines = match what {
            what if what == Query::Reports as u32 => driver.reports.clone(),
            what if what == Query::Allocations as u32 => driver.allocations(),
            what if what == Query::Calls as u32 => {
                let own = driver
                    .calls
                    .iter()
                    .map(|(name, count)| format!("{name} {count}"));
                own.chain(
                    driver
                        .foreign_calls
                        .iter()
                        .map(|(name, count)| format!("{name} {count}")),
                )
                .collect()
            }
            what if what == Query::Leaks as u32 => driver.leaks(),
            what if what == Query::Counts as u32 => vec![
                format!("launches {}", counts.launches),
                format!("products {}", counts.products),
                format!("instructions {}", counts.instructions),
                format!("loads {}", counts.loads),
                format!("stores {}", counts.stores),
                format!("bytes_read {}", counts.bytes_read),
                format!("bytes_written {}", counts.bytes_written),
                format!("copied {}", counts.copied),
            ],
            _ => Vec::new(),
        };
        give(&lines.join("\n"), to, room)
    })
}

/// Forgets the first `count` reports.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_forget_reports(count: usize) {
    control(|driver| {
        driver
            .reports
            .drain(..count.min(driver.reports.len()))
            .for_each(drop)
    });
}

/// Changes a [`Setting`].
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_set(what: u32, value: u64) {
    control(|driver| {
        let settings = &mut driver.settings;
        match what {
            what if what == Setting::Capability as u32 => settings.capability = value as u32,
            what if what == Setting::Memory as u32 => settings.memory = value as usize,
            what if what == Setting::Seed as u32 => settings.seed = value,
            what if what == Setting::Ptx as u32 => settings.ptx = value as u32,
            what if what == Setting::Devices as u32 => settings.devices = value as i32,
            what if what == Setting::Pools as u32 => settings.pools = value != 0,
            _ => {}
        }
    });
}

/// Arms a fault.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_inject(what: Text, nth: u64, code: i32) {
    control(|driver| {
        if let Ok(what) = what.string() {
            driver.faults.inject(&what, nth, code);
        }
    });
}

/// Takes the value from bytes of device memory.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_undefine(at: u64, len: usize) -> i32 {
    control(|driver| driver.undefine(at, len).map_or_else(|code| code.0, |()| 0))
}

/// Forgets everything.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_reset() {
    reset();
}

/// A report from cuBLASLt's stand-in.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_report(text: Text) {
    control(|driver| {
        driver.current = "";
        if let Ok(text) = text.string() {
            driver.report(text);
        }
    });
}

/// Counts a call of cuBLASLt's stand-in, and meets the faults armed for it: an error's number, or 0.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_lt_call(name: Text) -> i32 {
    control(|driver| {
        let Ok(name) = name.string() else { return 0 };
        *driver.foreign_calls.entry(name.clone()).or_default() += 1;
        driver.faults.call(&name).map_or_else(|code| code.0, |()| 0)
    })
}

/// More or fewer objects of cuBLASLt's stand-in.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_objects(kind: Text, change: i64) {
    control(|driver| {
        if let Ok(kind) = kind.string() {
            *driver.foreign.entry(kind).or_default() += change;
        }
    });
}

/// Whether the calling thread has a live context.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_has_context() -> i32 {
    control(|driver| i32::from(driver.need_context().is_ok()))
}

/// How often everything was forgotten: what else is remembered from before is void.
// SAFETY: the name is this crate's own.
#[unsafe(no_mangle)]
extern "C" fn softgpu_generation() -> u64 {
    control(|driver| driver.generation)
}
