//! The graphs, their rewritten forms, and executions of them on inputs from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use velora_graph::analysis::partition::{Partition, is_copy};
use velora_graph::analysis::roles::{Hints, roles};
use velora_graph::analysis::{Settings, symbols};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::shapes::DataType;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::select::{Grouping, LayerSettings, Preset, Selection};
use velora_runtime::backend::{Backend, Executable, StepContext};
use velora_runtime::plan::{Operand, Plan};
use velora_runtime::random;
use velora_runtime::session::bind::Bound;
use velora_runtime::session::optimizer::Optimizer;
use velora_runtime::session::prepare::{Common, Purpose, plan};
use velora_runtime::training::{Gradients, Keeps, Signature};

/// Tokens of a sequence, where the graph leaves it open.
const SEQUENCE: i64 = 4;

/// A training graph.
pub struct Graph {
    /// Folder and name of the file it comes from.
    pub name: String,
    pub model: Model,
    partition: Partition,
    pub signature: Signature,
    /// Parameters whose gradient was rewritten.
    pub rewritten: Vec<String>,
}

/// The files of `models/`.
pub fn files() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let entries = ["aot", "ort"].map(|folder| std::fs::read_dir(models.join(folder)).unwrap());
    let files = entries.into_iter().flatten().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|file| file.extension().is_some_and(|e| e == "onnx"))
        .collect();
    files.sort();
    assert!(files.len() > 30);
    let only = std::env::var("GRAPH").unwrap_or_default();
    files.retain(|file| file.to_str().unwrap().contains(&only));
    files
}

impl Graph {
    /// Reads a file.
    pub fn read(file: &Path) -> Graph {
        let folder = file.parent().unwrap().file_name().unwrap();
        let name = Path::new(folder).join(file.file_stem().unwrap());
        let proto = read(file, UnknownFields::Allow).unwrap();
        Graph::new(
            name.display().to_string(),
            Model::from_proto(proto).unwrap(),
            Vec::new(),
        )
    }

    pub fn new(name: String, model: Model, rewritten: Vec<String>) -> Graph {
        let roles = roles(&model.graph, &Hints::default()).unwrap();
        Graph {
            name,
            partition: Partition::new(&model.graph, &roles),
            signature: Signature::new(&model.graph, &roles),
            model,
            rewritten,
        }
    }

    /// What the rewrite makes of it, pins included.
    pub fn rewrite(&self, preset: Preset, inline: bool) -> Graph {
        self.rewrite_as(preset, inline, LayerSettings::new(Grouping::Groups(4)))
    }

    /// The same with settings of the layers.
    pub fn rewrite_as(&self, preset: Preset, inline: bool, defaults: LayerSettings) -> Graph {
        let options = Graph::options(preset, inline, defaults);
        let outcome = optimise(&self.model, &options).unwrap();
        let rewritten = outcome.decisions.iter().filter(|d| d.rewritten());
        let names = rewritten
            .map(|d| self.model.graph.value(d.parameter).name.clone())
            .collect();
        Graph::new(self.name.clone(), outcome.ran.model, names)
    }

    /// What rewrites it.
    pub fn options(preset: Preset, inline: bool, defaults: LayerSettings) -> Options {
        Options {
            settings: Settings::default(),
            selection: Selection {
                preset,
                defaults,
                ..Selection::freeable(defaults.grouping)
            },
            inline,
            hoist: true,
            recompute: None,
            pin: true,
            adapter: None,
            checks: Checks {
                verify_each: false,
                keep_after: None,
            },
        }
    }

    /// What is known of it where the batch is known.
    pub fn settings(&self, batch: i64) -> Settings {
        let known = symbols(&self.model.graph);
        let mut sizes = self.bound(batch).sizes;
        sizes.retain(|name, _| known.contains(name));
        Settings {
            sizes,
            ..Settings::default()
        }
    }

    /// How many of its nodes compute something again.
    pub fn copies(&self) -> usize {
        let nodes = self.model.graph.order().iter();
        { nodes }
            .filter(|&&id| is_copy(self.model.graph.node(id)))
            .count()
    }

    /// Whether it is a transformer.
    pub fn is_transformer(&self) -> bool {
        ["llama", "vit", "bert"]
            .iter()
            .any(|family| self.name.contains(family))
    }

    fn bound(&self, batch: i64) -> Bound {
        // ONNX Runtime's exports count the labels apart: of samples, or of tokens.
        let rows = if self.name.contains("llama") {
            batch * SEQUENCE
        } else {
            batch
        };
        let sizes = [("batch", batch), ("seq", SEQUENCE), ("rows", rows)];
        let graph = &self.model.graph;
        let is_data = |&&input: &&usize| {
            let name = &graph.value(graph.inputs()[input]).name;
            matches!(&name[..], "x" | "y" | "labels")
        };
        let data: BTreeSet<usize> = self
            .signature
            .others
            .iter()
            .filter(is_data)
            .copied()
            .collect();
        assert!(!data.is_empty(), "{}: no data", self.name);
        Bound {
            batch: data,
            size: batch as usize,
            sizes: sizes.map(|(name, size)| (Arc::from(name), size)).into(),
        }
    }

    /// The plan of a training step, and where it leaves the loss.
    pub fn plan(&self, cpu: &dyn Backend, batch: i64, state: usize) -> (Plan, Operand) {
        let common = Common {
            model: &self.model,
            partition: &self.partition,
            signature: &self.signature,
            folder: None,
            gradients: Gradients::Fresh,
            keeps: Keeps {
                optimizer: keeping(state),
                project: None,
            },
        };
        let (plan, ports) = plan(&common, &self.bound(batch), Purpose::Train, cpu)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        (plan, ports.loss)
    }

    /// Prepares a training step, with values for all inputs.
    pub fn prepare<'c>(&self, cpu: &'c dyn Backend, batch: i64, state: usize) -> Ready<'c> {
        let (plan, loss) = self.plan(cpu, batch, state);
        let mut executable = cpu.prepare(vec![plan]).unwrap();
        let graph = &self.model.graph;
        for (position, &value) in graph.inputs().iter().enumerate() {
            if let Some(operand) = executable.plan().inputs[position].clone() {
                executable
                    .write(operand.buffer, &entries(&graph.value(value).name, &operand))
                    .unwrap();
            }
        }
        let name = |input: usize| graph.value(graph.inputs()[input]).name.clone();
        let plan = executable.plan();
        let trained = (self.signature.trained.iter().zip(&plan.trained))
            .map(|(parameter, trained)| (name(parameter.input), trained.gradient.clone()));
        let updated = (self.signature.updated.iter())
            .map(|&(input, _)| (name(input), plan.inputs[input].clone().unwrap()));
        Ready {
            results: trained.chain(updated).collect(),
            loss,
            executable,
        }
    }
}

/// An optimiser that keeps so many tensors per parameter.
fn keeping(state: usize) -> Option<Optimizer> {
    match state {
        0 => None,
        1 => Some(Optimizer::Sgd {
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
        }),
        _ => Some(Optimizer::AdamW {
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.01,
        }),
    }
}

/// The bytes of an input: floats of the size that keeps activations near 1, labels and tokens below
/// every vocabulary of the models.
fn entries(name: &str, operand: &Operand) -> Vec<u8> {
    let stream = random::stream("test", name.as_bytes());
    let (ty, count) = (&operand.ty, operand.ty.elements() as u64);
    match ty.data_type {
        DataType::FLOAT => {
            let scale = match ty.shape[..] {
                [.., last] if ty.shape.len() > 1 => 1.0 / (last as f64).sqrt(),
                _ => 1.0,
            };
            let draw = |index| (random::normal(1, stream, index) * scale) as f32;
            (0..count)
                .flat_map(|index| draw(index).to_le_bytes())
                .collect()
        }
        DataType::INT64 => {
            let draw = |index| random::below(1, stream, index, 2) as i64;
            (0..count)
                .flat_map(|index| draw(index).to_le_bytes())
                .collect()
        }
        DataType::BOOL => vec![1; count as usize],
        other => panic!("input '{name}' of type {other:?}"),
    }
}

/// A graph that can be executed.
pub struct Ready<'c> {
    pub executable: Box<dyn Executable + 'c>,
    pub loss: Operand,
    /// By parameter: its gradient, or itself where the graph updates it.
    pub results: Vec<(String, Operand)>,
}

/// Bits of the loss, and by parameter of its gradient.
#[derive(PartialEq)]
pub struct Results {
    pub loss: Vec<u8>,
    pub gradients: BTreeMap<String, Vec<u8>>,
}

impl Ready<'_> {
    /// Executes a step.
    pub fn run(&mut self) -> Results {
        self.executable.run(&StepContext::default(), None).unwrap();
        let read = |operand: &Operand| {
            let mut bytes = vec![0; operand.ty.bytes()];
            self.executable.read(operand.buffer, &mut bytes).unwrap();
            bytes
        };
        let gradients = self
            .results
            .iter()
            .map(|(name, operand)| (name.clone(), read(operand)));
        Results {
            loss: read(&self.loss),
            gradients: gradients.collect(),
        }
    }
}
