//! `step_time MODEL --params F.npz --data F.npz [--dim NAME=N]... [--threads N] [--steps N]
//! [--device cpu|cuda] [--profile F.json]`: executes a training graph (forward and backward, no optimiser) and prints a line
//! of JSON per step: its seconds and loss, and of the first one the norms of the gradients. The
//! benchmarks run it.

mod common;

use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::Instant;
use velora_runtime::backend::{Observer, StepContext};
use velora_runtime::data;
use velora_runtime::session::profile::Profile;

fn main() -> Result<()> {
    let arguments = common::Arguments::read()?;
    let device = common::device(&arguments)?;
    let files = ["--params", "--data"]
        .into_iter()
        .filter_map(|o| arguments.options.get(o));
    let data = files.map(|file| data::read(Path::new(file)));
    let data = data.collect::<Result<Vec<_>, _>>()?;
    let mut prepared = common::prepare(&*device, &arguments, &data)?;
    let mut profile = Profile::default();
    for step in 0..arguments.number("--steps", 10)? {
        let watch = arguments.options.contains_key("--profile") && step > 0;
        let observer = watch.then_some(&mut profile as &mut dyn Observer);
        let start = Instant::now();
        prepared.executable.run(&StepContext::default(), observer)?;
        let seconds = start.elapsed().as_secs_f64();
        let loss = prepared
            .read(&prepared.loss)?
            .to_f32()
            .context("the loss is not float")?[0];
        let mut line = json!({ "seconds": seconds, "loss": loss });
        if step == 0 {
            let mut norms = BTreeMap::new();
            let named = |(name, operand)| Some((str::strip_prefix(name, "grad.")?, operand));
            for (name, operand) in prepared
                .results
                .iter()
                .map(|(n, o)| (&n[..], o))
                .filter_map(named)
            {
                let gradient = prepared.read(operand)?.to_f32().unwrap_or_default();
                let squares = gradient.iter().map(|&g| f64::from(g).powi(2));
                norms.insert(name, squares.sum::<f64>().sqrt());
            }
            line["gradient_norms"] = json!(norms);
            line["device"] = json!(device.name());
        }
        println!("{line}");
    }
    if let Some(path) = arguments.options.get("--profile") {
        for row in profile.rows() {
            eprintln!("{:>6.2} % {:>5} {}", 100.0 * row.part, row.count, row.op);
        }
        profile.write_trace(&mut BufWriter::new(File::create(path)?))?;
    }
    Ok(())
}
