//! Everything of the two files but their nodes.

use super::factors::Way;
use super::{Difference, Side, at, compare, is_marked};
use crate::ops;
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet};
use velora_graph::ir::{Graph, Model, ValueId};
use velora_graph::onnx::schema::{GraphProto, ModelProto, TensorProto, ValueInfoProto};

/// Compares what surrounds the nodes, and adds what differs.
pub fn check(
    original: Side<'_>,
    rewritten: Side<'_>,
    ways: &[Way],
    differences: &mut Vec<Difference>,
) {
    initializers(original, rewritten, differences);
    let (old, new) = (original.model, rewritten.model);
    ports(&old.graph, &new.graph, ways, differences);
    infos(&old.graph, &new.graph, differences);
    let (was, is) = (bare(old), bare(new));
    if was.encode_to_vec() != is.encode_to_vec() {
        let shell = |model: &ModelProto| ModelProto {
            graph: None,
            ..model.clone()
        };
        let parts = [
            ("operator sets", was.opset_import == is.opset_import),
            ("functions", was.functions == is.functions),
            (
                "graph's name, documentation or metadata",
                was.graph == is.graph,
            ),
            ("version, producer or metadata", shell(&was) == shell(&is)),
        ];
        let part = parts
            .iter()
            .find(|(_, same)| !same)
            .map_or("message", |p| p.0);
        differences.push(Difference {
            node: String::new(),
            op: String::new(),
            tensor: String::new(),
            problem: format!("has other {part}"),
        });
    }
    functions(new, differences);
}

/// A file without nodes, constants, declarations and what is the tool's.
fn bare(model: &Model) -> ModelProto {
    let mut proto = model.to_proto();
    proto.functions.retain(|f| f.domain() != ops::DOMAIN);
    proto.opset_import.retain(|o| o.domain() != ops::DOMAIN);
    if let Some(graph) = &mut proto.graph {
        *graph = GraphProto {
            node: Vec::new(),
            initializer: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
            value_info: Vec::new(),
            ..std::mem::take(graph)
        };
    }
    proto
}

fn tensor(name: &str, problem: impl Into<String>) -> Difference {
    Difference {
        node: String::new(),
        op: String::new(),
        tensor: name.to_owned(),
        problem: problem.into(),
    }
}

/// The value of a name.
fn names(graph: &Graph) -> HashMap<&str, ValueId> {
    let named = graph.values().map(|v| (graph.value(v).name.as_str(), v));
    named.collect()
}

/// Constants stay as they are while anything reads them; new ones serve new nodes only.
fn initializers(original: Side<'_>, rewritten: Side<'_>, differences: &mut Vec<Difference>) {
    let (old, new) = (original.graph(), rewritten.graph());
    let (known, values) = (names(old), names(new));
    let by_name = |graph: &'_ Graph| -> HashMap<String, TensorProto> {
        let named = graph.initializers().iter();
        named.map(|t| (t.name().to_owned(), t.clone())).collect()
    };
    let after = by_name(new);
    let before: HashSet<&str> = old.initializers().iter().map(|t| t.name()).collect();
    for was in old.initializers() {
        let name = was.name();
        let reader = (known.get(name))
            .and_then(|&value| old.value(value).users.first())
            .map(|user| user.node);
        let differs = |problem: String| match reader {
            Some(reader) => at(old, reader, name, format!("the constant {problem}")),
            None => tensor(name, problem),
        };
        match after.get(name) {
            // A read of a value that nothing defines would not have been a graph.
            None => {
                let default = known.get(name).is_some_and(|v| old.inputs().contains(v));
                let unread = known
                    .get(name)
                    .is_some_and(|&v| old.value(v).users.is_empty());
                if default || unread {
                    differences.push(differs("is missing".to_owned()));
                }
            }
            Some(is) => {
                let shape = |tensor: &TensorProto| TensorProto {
                    raw_data: None,
                    external_data: Vec::new(),
                    data_location: None,
                    ..tensor.clone()
                };
                if shape(was).encode_to_vec() != shape(is).encode_to_vec() {
                    differences.push(differs("has another type, shape or data".to_owned()));
                } else if let Err(problem) =
                    compare::payloads(was, original.folder, is, rewritten.folder)
                {
                    differences.push(differs(problem));
                }
            }
        }
    }
    for is in new
        .initializers()
        .iter()
        .filter(|t| !before.contains(t.name()))
    {
        let value = values.get(is.name()).copied();
        let users = value.map_or(&[][..], |v| &new.value(v).users);
        match users.iter().find(|user| !is_marked(new.node(user.node))) {
            Some(user) => {
                let problem = "the constant is not in the original";
                differences.push(at(new, user.node, is.name(), problem));
            }
            None if known.contains_key(is.name()) => {
                differences.push(tensor(is.name(), "is a constant, and was none"));
            }
            None => {}
        }
    }
}

/// Inputs and outputs stay, in their order. New ones may follow where only new nodes read or make them:
/// state of the tool's own. Gradients that leave as factors have those in their places.
fn ports(old: &Graph, new: &Graph, ways: &[Way], differences: &mut Vec<Difference>) {
    let inputs = exchanged(old, old.inputs(), old.input_infos(), ways);
    let outputs = exchanged(old, old.outputs(), old.output_infos(), ways);
    let count = (inputs.len(), outputs.len());
    let mut compare = |what: &str, was: &[ValueInfoProto], is: &[ValueInfoProto]| {
        for (number, was) in was.iter().enumerate() {
            match is.get(number) {
                Some(is) if is.encode_to_vec() == was.encode_to_vec() => {}
                Some(is) if is.name() == was.name() => {
                    differences.push(tensor(
                        was.name(),
                        format!("is declared otherwise as {what}"),
                    ));
                }
                Some(is) => {
                    let problem = format!("was {what} {number}, which is now '{}'", is.name());
                    differences.push(tensor(was.name(), problem));
                }
                None => differences.push(tensor(was.name(), format!("is no {what} any more"))),
            }
        }
    };
    compare("input", &inputs, new.input_infos());
    compare("output", &outputs, new.output_infos());
    for &value in new.inputs().iter().skip(count.0) {
        let users = new.value(value).users.iter();
        if { users }.any(|user| !is_marked(new.node(user.node))) {
            let name = &new.value(value).name;
            differences.push(tensor(
                name,
                "is a new input that nodes of the original read",
            ));
        }
    }
    for &value in new.outputs().iter().skip(count.1) {
        if !new
            .producer(value)
            .is_some_and(|id| is_marked(new.node(id)))
        {
            let name = &new.value(value).name;
            differences.push(tensor(name, "is a new output that no new node makes"));
        }
    }
}

/// What the original declares, with factors in the places of the gradients that leave as such.
fn exchanged(
    old: &Graph,
    values: &[ValueId],
    infos: &[ValueInfoProto],
    ways: &[Way],
) -> Vec<ValueInfoProto> {
    let mut expected = Vec::new();
    for (value, info) in values.iter().zip(infos) {
        let way = ways.iter().find(|way| way.replaces(*value));
        match way {
            Some(way) => expected.extend(way.declarations(old, *value, info)),
            None => expected.push(info.clone()),
        }
    }
    expected
}

/// The bytes of all declarations of inner values, in their order; some tools declare a value twice.
fn by_name(graph: &Graph) -> BTreeMap<&str, Vec<Vec<u8>>> {
    let mut all: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    for info in graph.value_infos() {
        let declarations = all.entry(info.name()).or_default();
        declarations.push(info.encode_to_vec());
    }
    all
}

/// Declarations of inner values stay while there is the value; new ones are of new values.
fn infos(old: &Graph, new: &Graph, differences: &mut Vec<Difference>) {
    let (known, values) = (names(old), names(new));
    let (was, is) = (by_name(old), by_name(new));
    for (name, declarations) in was {
        match is.get(name) {
            Some(is) if *is == declarations => {}
            Some(_) => differences.push(tensor(name, "is declared otherwise")),
            // Of a value that is gone, or never was one, nothing is claimed.
            None if values.contains_key(name) => {
                differences.push(tensor(name, "is declared no longer"));
            }
            None => {}
        }
    }
    let declared: HashSet<&str> = old.value_infos().iter().map(|info| info.name()).collect();
    for info in new.value_infos() {
        if known.contains_key(info.name()) && !declared.contains(info.name()) {
            differences.push(tensor(info.name(), "was not declared, and is now"));
        }
    }
}

/// The functions of the tool's domain are those that this version writes.
fn functions(new: &Model, differences: &mut Vec<Difference>) {
    let opset = new.opset("").unwrap_or(ops::OLDEST_OPSET);
    for function in &new.shell.functions {
        if function.domain() == ops::DOMAIN && !ops::is_ours(function, opset).unwrap_or(false) {
            differences.push(Difference {
                node: function.name().to_owned(),
                op: format!("function of {}", ops::DOMAIN),
                tensor: String::new(),
                problem: "is not the function that this version of the tool writes".to_owned(),
            });
        }
    }
}
