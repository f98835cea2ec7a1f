//! `gradients MODEL --data F.npz --out F.npz [--dim NAME=N]... [--threads N] [--device cpu|cuda]`: executes a training graph
//! once on the inputs of an npz file (parameters included), and writes `loss`, by parameter `grad.NAME`, and
//! of a graph with its optimiser inside `updated.NAME`. The checks against other engines run it.

mod common;

use anyhow::{Context, Result};
use std::path::Path;
use velora_runtime::backend::StepContext;
use velora_runtime::data;

fn main() -> Result<()> {
    let arguments = common::Arguments::read()?;
    let device = common::device(&arguments)?;
    let inputs = arguments.options.get("--data").context("expected --data")?;
    let out = arguments.options.get("--out").context("expected --out")?;
    let data = [data::read(Path::new(inputs))?];
    let mut prepared = common::prepare(&*device, &arguments, &data)?;
    prepared.executable.run(&StepContext::default(), None)?;
    let mut results = vec![("loss".to_owned(), prepared.read(&prepared.loss)?)];
    for (name, operand) in &prepared.results {
        results.push((name.clone(), prepared.read(operand)?));
    }
    let views = results
        .iter()
        .map(|(name, tensor)| (&name[..], tensor.view()));
    data::npz::write(Path::new(out), views)?;
    Ok(())
}
