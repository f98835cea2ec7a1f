//! The rewritten graph, before it is scheduled and pinned.
//!
//! Whatever a case asks for, the whole pipeline runs in function form and inline, with and without
//! pins, verified after each pass; and these must hold each time: every node that is not ours is the
//! node of that name in the original, message for message, but for inputs that say X̂ or stand behind
//! a pin, and for the mark of what was moved into the forward half; names, declarations and metadata of the model and the graph are the original's; outputs have
//! their types; a tensor is saved no longer exactly where nothing is said to keep it; before the schedule,
//! kept nodes stand in their old order.

use super::case::{Case, Found, Kind, by_name, name, names};
use super::select::line;
use velora_graph::analysis::Analyses;
use velora_graph::ir::Model;
use velora_graph::onnx::schema::{GraphProto, NodeProto};
use velora_graph::text::{print_function, print_graph};
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, Outcome, optimise, shapes};

pub struct Rewrite;

impl Kind for Rewrite {
    fn name(&self) -> &'static str {
        "rewrite"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        let mut shown = None;
        for inline in [false, true] {
            for pin in [false, true] {
                let outcome = match rewritten(case, inline, pin) {
                    Ok(outcome) => outcome,
                    Err(message) => return Ok(Err(message)),
                };
                let of = format!("inline {inline}, pin {pin}");
                check(case, &outcome).map_err(|e| format!("{of}: {e}"))?;
                if inline == case.inline && !pin {
                    shown = Some(outcome);
                }
            }
        }
        let outcome = shown.ok_or("no outcome")?;
        Ok(Ok(text(case, &outcome)))
    }
}

fn rewritten(case: &Case, inline: bool, pin: bool) -> Result<Outcome, String> {
    let options = Options {
        settings: case.settings.clone(),
        selection: case.selection.clone(),
        inline,
        hoist: case.hoist,
        pin,
        adapter: None,
        checks: Checks {
            verify_each: true,
            keep_after: Some(if case.hoist { "hoist" } else { "dead-code" }.to_owned()),
        },
    };
    optimise(&case.model, &options).map_err(|e| e.to_string())
}

fn text(case: &Case, outcome: &Outcome) -> String {
    let decisions = outcome.decisions.iter();
    let mut text: String = { decisions }
        .map(|d| line(&case.model.graph, d) + "\n")
        .collect();
    let Some(kept) = &outcome.ran.kept else {
        return text + "unchanged\n";
    };
    let (before, after) = (case.model.graph.to_proto(), kept.graph.to_proto());
    let gone: Vec<&str> = { before.node.iter() }
        .map(first)
        .filter(|name| {
            !after
                .node
                .iter()
                .any(|n| n.output.iter().any(|o| o == name))
        })
        .collect();
    let unread: Vec<&str> = (before.initializer.iter())
        .map(|i| i.name())
        .filter(|name| !after.initializer.iter().any(|i| i.name() == *name))
        .collect();
    let moved: Vec<&str> = { after.node.iter() }
        .filter(|node| is_moved(node))
        .map(first)
        .collect();
    let lists = [
        ("moved into forward", moved),
        ("removed", gone),
        ("removed constants", unread),
    ];
    for (what, list) in lists {
        if !list.is_empty() {
            text += &format!("{what}: {}\n", names(&list));
        }
    }
    if !kept.shell.functions.is_empty() {
        let list = kept.shell.functions.iter();
        let list: Vec<&str> = list
            .map(|f| f.name.as_deref().unwrap_or_default())
            .collect();
        text += &format!("functions: {}\n", names(&list));
    }
    if !case.from_file {
        text += "\n";
        text += &print_graph(&after);
    }
    for function in &kept.shell.functions {
        let name = function.name.as_deref().unwrap_or_default();
        if case.show.iter().any(|s| s == name) {
            text += "\n";
            text += &print_function(function);
        }
    }
    text
}

fn first(node: &NodeProto) -> &str {
    node.output.first().map_or("", String::as_str)
}

/// Whether a node is new; one that was moved is not.
fn ours(node: &NodeProto) -> bool {
    let says = |key: &str| node.metadata_props.iter().any(|entry| entry.key() == key);
    node.domain() == "ai.velora" || says("velora.version") && !is_moved(node)
}

/// Whether a node of the original was moved into the forward half.
fn is_moved(node: &NodeProto) -> bool {
    let says = |key: &str| node.metadata_props.iter().any(|entry| entry.key() == key);
    says("velora.half") && !says("velora.origin")
}

fn check(case: &Case, outcome: &Outcome) -> Result<(), String> {
    let original = &case.model;
    let model = &outcome.ran.model;
    if outcome.ran.passes.is_empty() {
        return match model.to_proto() == original.to_proto() {
            true => Ok(()),
            false => Err("nothing is rewritten, and yet the model differs".to_owned()),
        };
    }
    let (before, after) = (original.graph.to_proto(), model.graph.to_proto());
    nodes(&before, &after)?;
    surroundings(original, model)?;
    if let Some(kept) = &outcome.ran.kept {
        order(&before, &kept.graph.to_proto())?;
    }
    let (old, new) = (&outcome.before.shapes, shapes(model, &case.settings));
    let new = new.map_err(|e| e.to_string())?;
    for (&a, &b) in original.graph.outputs().iter().zip(model.graph.outputs()) {
        if old.of(a) != new.of(b) {
            return Err(format!(
                "the type of {} was {:?} and is {:?}",
                original.graph.value(a).name,
                old.of(a),
                new.of(b)
            ));
        }
    }
    let analyses = Analyses::new(model, &case.settings).map_err(|e| e.to_string())?;
    freed(case, outcome, &analyses)
}

/// A tensor is saved no longer exactly where all that read it is rewritten, or was moved.
fn freed(case: &Case, outcome: &Outcome, after: &Analyses) -> Result<(), String> {
    let graph = &outcome.ran.model.graph;
    let saved: Vec<&str> = after.saved.iter().map(|s| name(graph, s.buffer)).collect();
    for &released in outcome.hoists.iter().flat_map(|hoist| &hoist.released) {
        let tensor = name(&case.model.graph, released);
        if saved.contains(&tensor) {
            return Err(format!(
                "{tensor} is said to be released, and is still saved"
            ));
        }
    }
    for decision in outcome.decisions.iter().filter(|d| d.rewritten()) {
        let tensor = name(&case.model.graph, decision.activation);
        match (decision.kept_alive_by.is_empty(), saved.contains(&tensor)) {
            (true, true) => return Err(format!("{tensor} is still saved")),
            (false, false) => return Err(format!("{tensor} is said to be kept, and is not")),
            _ => {}
        }
    }
    Ok(())
}

/// Kept nodes are as they were.
fn nodes(before: &GraphProto, after: &GraphProto) -> Result<(), String> {
    let old = by_name(&before.node, first);
    for node in after.node.iter().filter(|n| !ours(n)) {
        let Some(&was) = old.get(first(node)) else {
            return Err(format!("{} is neither old nor ours", first(node)));
        };
        let mut same = node.clone();
        if is_moved(node) {
            let marks = ["velora.half", "velora.version"];
            same.metadata_props.retain(|e| !marks.contains(&e.key()));
        }
        for (input, was) in same.input.iter_mut().zip(&was.input) {
            if input.starts_with("velora.") {
                input.clone_from(was);
            }
        }
        if same != *was {
            return Err(format!("node {} changed", first(node)));
        }
    }
    Ok(())
}

/// Everything but nodes is as it was, or added.
fn surroundings(original: &Model, model: &Model) -> Result<(), String> {
    let (mut before, mut after) = (original.to_proto(), model.to_proto());
    let old_constants = before
        .graph
        .as_mut()
        .map(|g| std::mem::take(&mut g.initializer));
    let new_constants = after
        .graph
        .as_mut()
        .map(|g| std::mem::take(&mut g.initializer));
    let (old_constants, new_constants) = (
        old_constants.unwrap_or_default(),
        new_constants.unwrap_or_default(),
    );
    let old = by_name(&old_constants, |c| c.name());
    for constant in &new_constants {
        let name = constant.name();
        match old.get(name) {
            Some(was) if *was != constant => return Err(format!("constant {name} changed")),
            None if !name.starts_with("velora.") => return Err(format!("constant {name} is new")),
            _ => {}
        }
    }
    for side in [&mut before, &mut after] {
        side.functions
            .retain(|f| f.domain.as_deref() != Some("ai.velora"));
        side.opset_import.retain(|o| o.domain() != "ai.velora");
        if let Some(graph) = &mut side.graph {
            graph.node.clear();
            graph.value_info.clear();
            // The state of a running average comes and goes behind what was there.
            graph.input.retain(|i| !i.name().starts_with("velora."));
            graph.output.retain(|o| !o.name().starts_with("velora."));
        }
    }
    match before == after {
        true => Ok(()),
        false => Err("something beside nodes and constants changed".to_owned()),
    }
}

/// Kept nodes stand in their old order.
fn order(before: &GraphProto, after: &GraphProto) -> Result<(), String> {
    let kept: Vec<&str> = after.node.iter().filter(|n| !ours(n)).map(first).collect();
    let mut old = before.node.iter().map(first);
    match kept.iter().find(|name| !old.any(|o| o == **name)) {
        None => Ok(()),
        Some(name) => Err(format!("node {name} moved")),
    }
}
