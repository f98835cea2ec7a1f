//! Initialisation, devices, contexts, errors.

use super::{Out, api};
use crate::driver::codes::Code;
use crate::driver::modules::SHARED;
use crate::driver::{Driver, Outcome};
use std::ffi::{c_char, c_int, c_uint};

const NAME: &std::ffi::CStr = c"softgpu";

impl Driver {
    fn device(&self, device: c_int) -> Outcome<()> {
        if device == 0 && self.settings.devices > 0 {
            Ok(())
        } else {
            Err(Code::INVALID_DEVICE)
        }
    }

    /// Properties of the device; 0 for those that it lacks.
    fn device_attribute(&self, attribute: c_int) -> Outcome<c_int> {
        let capability = self.settings.capability as c_int;
        Ok(match attribute {
            1..=3 => 1024,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65535,
            8 => SHARED as c_int,
            9 => 65536,
            10 => 32,
            11 => i32::MAX,
            12 | 82 => 65536,
            13 => 1_410_000,
            14 => 512,
            16 => match capability {
                90.. => 132,
                _ => 108,
            },
            19 | 31 | 41 => 1,
            36 => 1_215_000,
            37 => 5120,
            38 => 40 << 20,
            39 => 2048,
            40 => 3,
            75 => capability / 10,
            76 => capability % 10,
            81 => self.settings.shared_opt_in() as c_int + 1024,
            97 => self.settings.shared_opt_in() as c_int,
            106 => 32,
            111 => 1024,
            115 => c_int::from(self.settings.pools),
            other if (1..=145).contains(&other) => 0,
            _ => return Err(Code::INVALID_VALUE),
        })
    }
}

api! {
    /// Starts the driver; the first call of all.
    Plain cuInit(flags: c_uint) |driver| {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if driver.settings.devices == 0 {
            return Err(Code::NO_DEVICE);
        }
        driver.initialised = true
    };
    /// 12.9, which takes PTX 8.8.
    Plain cuDriverGetVersion(version: Out<c_int>) |_driver| version.set(12090)?;
    /// The name of an error.
    Plain cuGetErrorName(error: c_int, name: Out<*const c_char>) |_driver| {
        let known = Code(error).name().ok_or(Code::INVALID_VALUE)?;
        name.set(known.as_ptr())?
    };
    /// The description of an error; its name again.
    Plain cuGetErrorString(error: c_int, text: Out<*const c_char>) |_driver| {
        let known = Code(error).name().ok_or(Code::INVALID_VALUE)?;
        text.set(known.as_ptr())?
    };
    /// A device by number.
    Device cuDeviceGet(device: Out<c_int>, ordinal: c_int) |driver| {
        driver.device(ordinal)?;
        device.set(ordinal)?
    };
    /// How many devices there are.
    Device cuDeviceGetCount(count: Out<c_int>) |driver| count.set(driver.settings.devices)?;
    /// The name of a device.
    Device cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) |driver| {
        driver.device(device)?;
        if name.is_null() || len < 1 {
            return Err(Code::INVALID_VALUE);
        }
        let shown = &NAME.to_bytes()[..NAME.to_bytes().len().min(len as usize - 1)];
        for (at, &byte) in shown.iter().chain(&[0]).enumerate() {
            // SAFETY: the caller promises `len` bytes, and at most as many are written.
            Out(unsafe { name.add(at) }).set(byte as c_char)?;
        }
    };
    /// The identity of a device.
    Device cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int) |driver| {
        driver.device(device)?;
        uuid.set(*b"software gpu\0\0\0\0")?
    };
    /// The memory of a device.
    Device cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) |driver| {
        driver.device(device)?;
        bytes.set(driver.settings.memory)?
    };
    /// A property of a device.
    Device cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) |driver| {
        driver.device(device)?;
        value.set(driver.device_attribute(attribute)?)?
    };
    /// The context that all users of a device in a process share.
    Device cuDevicePrimaryCtxRetain(context: Out<usize>, device: c_int) |driver| {
        driver.device(device)?;
        let handle = driver.retain();
        context.set(handle)?
    };
    /// Gives it back; the last one ends it.
    Device cuDevicePrimaryCtxRelease_v2(device: c_int) |driver| {
        driver.device(device)?;
        driver.release()?
    };
    /// The calling thread's context.
    Device cuCtxGetCurrent(context: Out<usize>) |driver| context.set(driver.current_context())?;
    /// Makes a context the calling thread's.
    Device cuCtxSetCurrent(context: usize) |driver| driver.set_context(context)?;
    /// Waits for everything.
    Work cuCtxSynchronize() |driver| driver.synchronize_all()?;
    /// How waiting is done; nothing here depends on it.
    Work cuCtxSetFlags(_flags: c_uint) |_driver| {};
    /// Priorities: one.
    Work cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) |_driver| {
        least.set_if_wanted(0);
        greatest.set_if_wanted(0)
    };
}
