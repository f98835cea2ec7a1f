//! Writes the training graph of a published model, with a sparse file of weights of its true size beside it:
//!
//! ```text
//! cargo run --release -p velora-testgen --example make_graph -- llama-7b FOLDER
//!     [--sequence N] [--blocks N] [--f16]
//!     [--adapters RANK:q_proj,v_proj | --branches RANK:query,value | --scale-shift | --only v_proj,down_proj]
//! ```
//!
//! FOLDER gets `model.onnx` and `weights.bin`. The same arguments give the same bytes.

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use velora_graph::onnx::write::write;
use velora_testgen::Element;
use velora_testgen::models::{PUBLISHED, Recipe, Training, published, with_weights};

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("make_graph: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut words: impl Iterator<Item = String>) -> Result<String, Box<dyn std::error::Error>> {
    let usage = || format!("expected one of {} and a folder", PUBLISHED.join(", "));
    let name = words.next().ok_or_else(usage)?;
    let folder = words.next().ok_or_else(usage)?;
    let mut recipe = Recipe::default();
    while let Some(option) = words.next() {
        let mut value = || words.next().ok_or(format!("{option} needs a value"));
        match option.as_str() {
            "--f16" => recipe.element = Element::Half,
            "--sequence" => recipe.sequence = Some(value()?.parse()?),
            "--blocks" => recipe.blocks = Some(value()?.parse()?),
            "--only" => recipe.training = Training::Only(names(&value()?)),
            "--scale-shift" => recipe.training = Training::ScaleShift,
            "--adapters" | "--branches" => {
                let value = value()?;
                let (rank, targets) = value.split_once(':').ok_or("expected RANK:NAMES")?;
                let (rank, targets) = (rank.parse()?, names(targets));
                recipe.training = match &option[..] {
                    "--adapters" => Training::Adapters { rank, targets },
                    _ => Training::Branches { rank, targets },
                };
            }
            other => return Err(format!("there is no option {other}").into()),
        }
    }
    let made = published(&name, &recipe).ok_or_else(usage)?;
    let whole = with_weights(&made, recipe.element, "weights.bin");
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    File::create(folder.join("weights.bin"))?.set_len(whole.bytes)?;
    write(&whole.model, &folder.join("model.onnx"))?;
    let nodes = whole.model.graph.map_or(0, |graph| graph.node.len());
    Ok(format!(
        "{name}: {nodes} nodes, {} weights of {} bytes",
        made.weights.len(),
        whole.bytes
    ))
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::to_owned).collect()
}
