//! Which saved activations can be freed, found a second time by a few lines over the node list, on every graph
//! of `models/`: what the selection decides, and whom it names as keepers, must agree.
//!
//! Nothing of the analyses is used but the shapes. A read counts as one for a weight's gradient where all that
//! it has influence on in the end is the gradient of one parameter, and the result of the node that makes use
//! of it has that parameter's sizes. (The analyses follow axes instead.) A bias's gradient is no such read,
//! whatever mask stands before its sum.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::NodeProto;
use velora_graph::shapes::DataType;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::select::{Decision, Grouping, Reason, Selection};

type Names = BTreeSet<String>;

/// A graph as a list of nodes, and what is looked up in it.
struct Listed {
    nodes: Vec<NodeProto>,
    makers: BTreeMap<String, usize>,
    users: BTreeMap<String, Vec<(usize, usize)>>,
    outputs: Names,
    constants: Names,
    /// Nodes that something other than gradients depends on.
    forward: BTreeSet<usize>,
    /// The other nodes that gradients depend on.
    backward: BTreeSet<usize>,
    /// By value of a constant shape: its sizes.
    sizes: BTreeMap<String, Vec<i64>>,
    floats: Names,
}

/// The parameter whose gradient, new value or new momentum an output is.
fn parameter(output: &str) -> Option<&str> {
    let prefixes = ["grad.", "updated.momentum.", "updated."];
    let prefixed = prefixes.iter().find_map(|p| output.strip_prefix(p));
    prefixed.or_else(|| output.strip_suffix("_grad.accumulation.out"))
}

fn is_view(node: &NodeProto) -> bool {
    let views = ["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"];
    node.domain().is_empty() && views.contains(&node.op_type())
}

impl Listed {
    fn new(model: &Model) -> Self {
        let proto = model.to_proto().graph.unwrap();
        let nodes = proto.node;
        let (mut makers, mut users) = (BTreeMap::new(), BTreeMap::new());
        for (at, node) in nodes.iter().enumerate() {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                makers.insert(output.clone(), at);
            }
            for (slot, input) in node.input.iter().enumerate() {
                let users: &mut Vec<_> = users.entry(input.clone()).or_default();
                users.push((at, slot));
            }
        }
        let outputs: Names = proto.output.iter().map(|o| o.name().to_owned()).collect();
        let ancestors = |of: &dyn Fn(&str) -> bool| {
            let mut found = BTreeSet::new();
            let mut pending: Vec<&String> = outputs.iter().filter(|o| of(o)).collect();
            while let Some(value) = pending.pop() {
                if let Some(&at) = makers.get(value)
                    && found.insert(at)
                {
                    pending.extend(&nodes[at].input);
                }
            }
            found
        };
        let forward = ancestors(&|o| parameter(o).is_none());
        let backward = &ancestors(&|o| parameter(o).is_some()) - &forward;
        let shapes = Analyses::new(model, &Settings::default()).unwrap().shapes;
        let (mut sizes, mut floats) = (BTreeMap::new(), Names::new());
        for value in model.graph.values() {
            let (name, kind) = (&model.graph.value(value).name, shapes.of(value));
            let dims = kind.shape.iter().flatten();
            let known: Option<Vec<i64>> = dims.map(|d| d.as_const()).collect();
            if let Some(known) = known.filter(|_| kind.shape.is_some()) {
                sizes.insert(name.clone(), known);
            }
            if kind.data_type == Some(DataType::FLOAT) {
                floats.insert(name.clone());
            }
        }
        let constants = proto.initializer.iter().map(|i| i.name().to_owned());
        Listed {
            makers,
            users,
            outputs,
            constants: constants.collect(),
            forward,
            backward,
            sizes,
            floats,
            nodes,
        }
    }

    fn maker(&self, value: &str) -> Option<&NodeProto> {
        self.makers.get(value).map(|&at| &self.nodes[at])
    }

    fn users(&self, value: &str) -> &[(usize, usize)] {
        self.users.get(value).map_or(&[], Vec::as_slice)
    }

    /// The value whose bytes a value has.
    fn root<'a>(&'a self, value: &'a str) -> &'a str {
        match self.maker(value) {
            Some(node) if is_view(node) => self.root(&node.input[0]),
            _ => value,
        }
    }

    /// Saved floats, each with its reads in backward that need the bytes.
    fn saved(&self) -> BTreeMap<&str, Vec<(usize, usize)>> {
        let mut saved: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (value, users) in &self.users {
            let root = self.root(value);
            let made = self.makers.get(root);
            let forward = made.is_some_and(|at| self.forward.contains(at));
            if !forward || !self.floats.contains(root) || self.is_constant(root) {
                continue;
            }
            for &(at, slot) in users {
                let node = &self.nodes[at];
                let shape_only = slot == 0 && matches!(node.op_type(), "Shape" | "Size");
                // What compresses runs where the tensor is born, though only gradients depend on it.
                let compresses = matches!(node.op_type(), "Compress" | "MeanDirection");
                let excused = is_view(node) || shape_only || compresses;
                if self.backward.contains(&at) && !excused {
                    saved.entry(root).or_default().push((at, slot));
                }
            }
        }
        saved
    }

    fn is_constant(&self, value: &str) -> bool {
        self.constants.contains(value)
            || self.maker(value).is_some_and(|n| {
                // Made of nothing that the step gets.
                n.op_type() != "Constant" && n.input.iter().all(|i| self.constants.contains(i))
                    || n.op_type() == "Constant"
            })
    }

    /// Whether a read leads to gradients of weights only.
    fn for_weights_only(&self, at: usize, slot: usize) -> bool {
        let node = &self.nodes[at];
        if slot == 0 && (is_view(node) || matches!(node.op_type(), "Transpose" | "Cast")) {
            let users = self.users(&node.output[0]);
            return !users.is_empty() && users.iter().all(|&(a, s)| self.for_weights_only(a, s));
        }
        match (node.op_type(), slot) {
            ("ConvGrad", 1) | ("LSTMGrad" | "GRUGrad", 0) => true,
            ("MatMul" | "Gemm" | "FusedMatMul", 0 | 1) => self.weight_of(&node.output[0]).is_some(),
            ("Mul", _) => {
                let [(sum, 0)] = self.users(&node.output[0]) else {
                    return false;
                };
                let sum = &self.nodes[*sum];
                let scale = self.weight_of(&sum.output[0]);
                let factor = |p: &str| {
                    let mut readers = self.users(p).iter().map(|(at, _)| at);
                    readers
                        .any(|at| self.nodes[*at].op_type() == "Mul" && self.forward.contains(at))
                };
                sum.op_type() == "ReduceSum" && scale.is_some_and(factor)
            }
            _ => false,
        }
    }

    /// The only parameter that a value has influence on, where it has the same sizes in some order, apart
    /// from ones.
    fn weight_of(&self, value: &str) -> Option<&str> {
        let mut found = BTreeSet::new();
        let mut pending = vec![value.to_owned()];
        let mut seen = Names::new();
        while let Some(value) = pending.pop() {
            if let Some(output) = self.outputs.get(&value) {
                found.insert(parameter(output)?);
            }
            for (at, _) in self.users(&value) {
                let outputs = self.nodes[*at].output.iter().cloned();
                pending.extend(outputs.filter(|o| seen.insert(o.clone())));
            }
        }
        let sorted = |name: &str| {
            let sizes = self.sizes.get(name)?.iter().copied();
            let mut long: Vec<i64> = sizes.filter(|&d| d != 1).collect();
            long.sort();
            Some(long)
        };
        let only = found.pop_first().filter(|_| found.is_empty())?;
        (sorted(value).is_some() && sorted(value) == sorted(only)).then_some(only)
    }
}

fn models() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut found = Vec::new();
    for folder in ["aot", "ort"] {
        for file in std::fs::read_dir(models.join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "onnx") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn listed(names: impl IntoIterator<Item = impl Into<String>>) -> Names {
    names.into_iter().map(Into::into).collect()
}

/// Whether two numbers for each token, and a direction, in the place of a tensor free less than a page.
fn saves_little(list: &Listed, tensor: &str, decision: &Decision) -> bool {
    let features = decision.site.as_ref().unwrap().features;
    let elements: i64 = list.sizes[tensor].iter().product();
    let left = elements / features * 2 + features.div_euclid(2);
    (elements - left) * 4 < 4096
}

#[test]
fn what_is_freed_and_who_keeps_the_rest() {
    let (mut freed_tensors, mut kept_tensors, mut kinds) = (0, 0, BTreeSet::new());
    for path in models() {
        let model = Model::from_proto(read(&path, UnknownFields::Allow).unwrap()).unwrap();
        let options = Options {
            settings: Settings::default(),
            // Two numbers of each token: less than every tensor here has.
            selection: Selection::freeable(Grouping::Groups(2)),
            inline: false,
            // What moves makes more tensors free; the recomputation judges the graph as it is.
            hoist: false,
            recompute: None,
            pin: false,
            adapter: None,
            checks: Checks::default(),
        };
        let outcome = optimise(&model, &options).unwrap();
        let (list, graph) = (Listed::new(&model), &model.graph);
        let name = |value| graph.value(value).name.as_str();
        let made = |node| {
            let outputs = graph.node(node).outputs.iter().flatten();
            outputs
                .map(|&v| name(v).to_owned())
                .next()
                .unwrap_or_default()
        };
        let of = path.display();
        let mut freed = Names::new();
        for (tensor, reads) in list.saved() {
            let good = |&&(at, slot): &&(usize, usize)| list.for_weights_only(at, slot);
            let blocking = reads.iter().filter(|read| !good(read));
            let first = |&(at, _): &(usize, usize)| {
                let outputs = &list.nodes[at].output;
                outputs.iter().find(|o| !o.is_empty()).unwrap().clone()
            };
            let blockers: Names = blocking.map(first).collect();
            let decisions = outcome.decisions.iter();
            let decisions: Vec<_> = decisions.filter(|d| name(d.activation) == tensor).collect();
            let members = list.users.keys().chain(&list.outputs);
            let is_output = { members }.any(|v| list.outputs.contains(v) && list.root(v) == tensor);
            if blockers.is_empty() && !is_output {
                assert!(!decisions.is_empty(), "{of}: nothing is said of {tensor}");
                let small = decisions.iter().any(|d| d.reason == Reason::NoSaving);
                for decision in decisions {
                    let expected = match small {
                        true => Reason::NoSaving,
                        false => Reason::Rewritten,
                    };
                    assert_eq!(decision.reason, expected, "{of}: {tensor}");
                    assert!(
                        !small || saves_little(&list, tensor, decision),
                        "{of}: {tensor}"
                    );
                    assert!(small || decision.kept_alive_by.is_empty(), "{of}: {tensor}");
                    kinds.insert(decision.kind.word());
                }
                if !small {
                    freed.insert(tensor.to_owned());
                }
                continue;
            }
            for decision in decisions {
                let what = format!("{of}: {tensor}: {}", decision.message);
                if is_output {
                    assert_eq!(decision.reason, Reason::GraphOutput, "{what}");
                    continue;
                }
                let little = decision.reason == Reason::NoSaving;
                assert!(little || decision.reason == Reason::KeptAlive, "{what}");
                assert!(!little || saves_little(&list, tensor, decision), "{what}");
                let keepers = decision.kept_alive_by.iter().filter_map(|k| k.node);
                let sites: BTreeSet<_> = outcome.decisions.iter().map(|d| d.node).collect();
                let others = keepers.filter(|node| !sites.contains(node)).map(made);
                assert_eq!(listed(others), blockers, "{what}");
                kept_tensors += 1;
            }
        }
        // And so it is in the graph that comes out.
        let after = Listed::new(&outcome.ran.model);
        let still: Names = listed(after.saved().into_keys());
        assert_eq!(&freed & &still, Names::new(), "{of}");
        freed_tensors += freed.len();
    }
    assert!(
        freed_tensors > 250 && kept_tensors > 5,
        "{freed_tensors}, {kept_tensors}"
    );
    assert!(
        kinds.is_superset(&BTreeSet::from(["linear", "scale"])),
        "{kinds:?}"
    );
}
