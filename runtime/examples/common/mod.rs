//! A training graph with values for all its inputs, prepared to be executed once and again.

// Each example uses its part.
#![allow(dead_code)]

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::roles::{Hints, roles};
use velora_graph::inline::inline;
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_runtime::backend::{Backend, Executable};
use velora_runtime::cpu::Cpu;
use velora_runtime::data::Dataset;
use velora_runtime::lower::{Request, constants};
use velora_runtime::plan::{Operand, Plan, build};
use velora_runtime::tensor::{Tensor, TensorType};
use velora_runtime::training::{Gradients, Keeps, Signature, wire};

/// Arguments: `MODEL [--dim NAME=N]... [--FLAG VALUE]...`.
pub struct Arguments {
    /// The model.
    pub model: String,
    /// Sizes.
    pub sizes: BTreeMap<Arc<str>, i64>,
    /// Other options.
    pub options: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads the command line.
    pub fn read() -> Result<Self> {
        let mut given = std::env::args().skip(1);
        let model = given.next().context("expected a model")?;
        let mut arguments = Arguments {
            model,
            sizes: BTreeMap::new(),
            options: BTreeMap::new(),
        };
        while let Some(option) = given.next() {
            let value = given
                .next()
                .with_context(|| format!("{option} needs a value"))?;
            if option == "--dim" {
                let (name, size) = value.split_once('=').context("expected NAME=N")?;
                arguments.sizes.insert(Arc::from(name), size.parse()?);
            } else {
                arguments.options.insert(option, value);
            }
        }
        Ok(arguments)
    }

    /// An option that is a number.
    pub fn number(&self, option: &str, default: usize) -> Result<usize> {
        let value = self.options.get(option);
        Ok(value
            .map(|text| text.parse())
            .transpose()?
            .unwrap_or(default))
    }
}

/// A graph on a device.
pub struct Prepared<'c> {
    /// What executes it.
    pub executable: Box<dyn Executable + 'c>,
    /// The loss.
    pub loss: Operand,
    /// `grad.NAME` by trained parameter, and `updated.NAME` by input that the graph updates itself.
    pub results: Vec<(String, Operand)>,
}

/// The device that `--device` names, by default the CPU with `--threads`.
pub fn device(arguments: &Arguments) -> Result<Box<dyn Backend>> {
    match arguments.options.get("--device").map_or("cpu", |d| d) {
        "cpu" => {
            let threads = arguments.number("--threads", 2)?;
            Ok(Box::new(Cpu::new(threads).context("no threads")?))
        }
        #[cfg(feature = "cuda")]
        "cuda" => {
            use velora_runtime::cuda::{Cuda, Options};
            Ok(Box::new(Cuda::open(Options::default())?))
        }
        other => bail!("--device {other}: there is none of that kind"),
    }
}

/// A graph with its plan.
pub struct Planned {
    /// The graph, without functions.
    model: Model,
    /// What its inputs and outputs are.
    signature: Signature,
}

/// Plans a training step; no memory is taken for its tensors.
pub fn plan(backend: &dyn Backend, arguments: &Arguments) -> Result<(Planned, Plan)> {
    let path = Path::new(&arguments.model);
    let model = Model::from_proto(inline(read(path, UnknownFields::Allow)?)?)?;
    let graph = &model.graph;
    let roles = roles(graph, &Hints::default())?;
    let partition = Partition::new(graph, &roles);
    let signature = Signature::new(graph, &roles);
    let request = Request {
        sizes: &arguments.sizes,
        partition: Some(&partition),
        folder: path.parent(),
        evaluation: false,
    };
    let batch: BTreeSet<usize> = signature.others.iter().copied().collect();
    let mut wired = wire(
        &model,
        &signature,
        &request,
        &batch,
        Gradients::Fresh,
        Keeps::default(),
    )?;
    let plan = build(&mut wired.program, backend)?;
    Ok((Planned { model, signature }, plan))
}

/// Plans a graph and puts the values in place; what no file gives has to have a default.
pub fn prepare<'c>(
    backend: &'c dyn Backend,
    arguments: &Arguments,
    data: &[Dataset],
) -> Result<Prepared<'c>> {
    let path = Path::new(&arguments.model);
    let (planned, plan) = plan(backend, arguments)?;
    let (graph, signature) = (&planned.model.graph, &planned.signature);
    let footprint = plan.footprint;
    eprintln!(
        "arena {} bytes, {:.4} of the bound; {:.4} of that in the file's order ({})",
        footprint.arena,
        footprint.arena as f64 / footprint.lower_bound as f64,
        footprint.lower_bound as f64 / footprint.file_order as f64,
        footprint.method,
    );
    let mut executable = backend.prepare(vec![plan])?;
    for (position, &value) in graph.inputs().iter().enumerate() {
        let Some(operand) = executable.plan().inputs[position].clone() else {
            continue;
        };
        let name = &graph.value(value).name;
        let given = data.iter().find_map(|data| data.arrays.get(name).cloned());
        let default = || constants::default(graph, name, path.parent())?.ok();
        let tensor = given
            .or_else(default)
            .with_context(|| format!("no value for '{name}'"))?;
        let found = TensorType::new(tensor.data_type, tensor.shape.clone());
        if found != operand.ty {
            bail!("'{name}': expected {}, got {found}", operand.ty);
        }
        executable.write(operand.buffer, &tensor.bytes)?;
    }
    let plan = executable.plan();
    let name = |input: usize| &graph.value(graph.inputs()[input]).name;
    let trained = (signature.trained.iter().zip(&plan.trained))
        .map(|(p, t)| (format!("grad.{}", name(p.input)), t.gradient.clone()));
    let updated = (signature.updated.iter()).filter_map(|&(input, _)| {
        Some((
            format!("updated.{}", name(input)),
            plan.inputs[input].clone()?,
        ))
    });
    let results = trained.chain(updated).collect();
    let loss = executable.plan().outputs[0].clone();
    Ok(Prepared {
        executable,
        loss,
        results,
    })
}

impl Prepared<'_> {
    /// The bytes of an operand.
    pub fn read(&self, operand: &Operand) -> Result<Tensor> {
        let mut bytes = vec![0; operand.ty.bytes()];
        self.executable.read(operand.buffer, &mut bytes)?;
        Ok(Tensor {
            data_type: operand.ty.data_type,
            shape: operand.ty.shape.clone(),
            bytes: bytes.into(),
        })
    }
}
