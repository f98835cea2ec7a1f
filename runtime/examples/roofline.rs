//! `roofline MODEL [--dim NAME=N]... [--optimizer sgd|adamw|none]`: the least time of a training step on some
//! GPUs by the roofline model, kernel by kernel. A model, not a measurement: see `docs/roofline.md`.

mod common;

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use velora_runtime::cost::Storage;
use velora_runtime::cost::device::{A100_SXM, H100_SXM, SingleProducts};
use velora_runtime::cost::roofline::{Kernel, Roofline, Total};
use velora_runtime::cpu::Cpu;
use velora_runtime::session::optimizer::Optimizer;

/// How plans are thought to be executed.
const FORMS: [(&str, SingleProducts, Storage); 3] = [
    ("f32", SingleProducts::Single, Storage::Declared),
    ("TF32 products", SingleProducts::Tf32, Storage::Declared),
    ("16-bit storage", SingleProducts::Single, Storage::Halved),
];

fn optimizer(name: &str) -> Result<Option<Optimizer>> {
    Ok(match name {
        "sgd" => Some(Optimizer::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        }),
        "adamw" => Some(Optimizer::AdamW {
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.01,
        }),
        "none" => None,
        other => bail!("--optimizer {other}: expected sgd, adamw or none"),
    })
}

fn main() -> Result<()> {
    let arguments = common::Arguments::read()?;
    let chosen = arguments.options.get("--optimizer");
    let optimizer = optimizer(chosen.map_or("adamw", |name| name))?;
    // The plan's sizes are those of any backend; its scratch does not count.
    let backend = Cpu::new(1).context("no threads")?;
    let (_, plan) = common::plan(&backend, &arguments)?;
    println!("a model, not a measurement");
    for device in [A100_SXM, H100_SXM] {
        for (form, products, storage) in FORMS {
            let roofline = Roofline {
                device,
                products,
                storage,
            };
            let kernels = roofline.kernels(&plan, optimizer.as_ref());
            println!("\n{}, {form}", device.name);
            print(&kernels);
        }
    }
    Ok(())
}

fn print(kernels: &[Kernel]) {
    let mut groups: BTreeMap<_, Vec<&Kernel>> = BTreeMap::new();
    for kernel in kernels {
        let group = groups.entry((kernel.class, kernel.name)).or_default();
        group.push(kernel);
    }
    let all = Total::of(kernels);
    println!(
        "{:<14} {:<20} {:>6} {:>12} {:>12} {:>12} {:>7} {:>12}",
        "kind", "kernel", "count", "MB", "MFLOP", "ms", "%", "memory-bound"
    );
    let row = |kind: &str, name: &str, total: &Total| {
        let percent = |part: f64, whole: f64| 100.0 * part / whole.max(f64::MIN_POSITIVE);
        println!(
            "{kind:<14} {name:<20} {:>6} {:>12.3} {:>12.3} {:>12.6} {:>7.2} {:>10.0} %",
            total.count,
            total.cost.bytes() as f64 / 1e6,
            total.cost.flops as f64 / 1e6,
            total.seconds * 1e3,
            percent(total.seconds, all.seconds),
            percent(total.memory_seconds, total.seconds),
        );
    };
    for ((class, name), group) in &groups {
        row(class.name(), name, &Total::of(group.iter().copied()));
    }
    row("all", "", &all);
}
