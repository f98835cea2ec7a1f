//! How fast the interpreter is; a measurement, not a test: `cargo test --test speed -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Device, arg, random, texts};
use std::time::Instant;

#[test]
#[ignore = "a measurement"]
fn instructions_per_second() {
    let n = 1 << 19;
    for (arch, text) in texts("math") {
        let mut device = Device::new(&text);
        let (x, y, out) = (
            device.upload(&random(n, 1)),
            device.upload(&random(n, 2)),
            device.empty(4 * n),
        );
        for name in [
            "f32_div", "f32_exp", "f32_tanh", "f32_erf", "f32_sin", "f32_pow",
        ] {
            let args = [arg(x), arg(y), arg(out), arg(n as u32)];
            // The first launch pays for the memory of the detector of races.
            device.clean(name, n as u32 / 256, 256, 0, &args);
            let start = Instant::now();
            let report = device.clean(name, n as u32 / 256, 256, 0, &args);
            let rate = report.instrs as f64 / start.elapsed().as_secs_f64() / 1e6;
            println!("compute_{arch} {name}: {rate:.0} M thread instructions per second");
        }
    }
}
