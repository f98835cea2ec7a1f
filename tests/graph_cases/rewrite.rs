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
use velora_graph::analysis::roles::{Factored, roles};
use velora_graph::analysis::sites::route::Route;
use velora_graph::ir::{Model, ValueId};
use velora_graph::onnx::schema::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use velora_graph::text::{print_function, print_graph};
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Adapter, Options, Outcome, optimise, shapes};

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
    let last = match (&case.recompute, case.hoist) {
        (Some(_), _) => "recompute",
        (None, true) => "hoist",
        (None, false) => "dead-code",
    };
    let options = Options {
        settings: case.settings.clone(),
        selection: case.selection.clone(),
        inline,
        hoist: case.hoist,
        recompute: case.recompute.clone(),
        pin,
        adapter: case.adapter.map(|base| Adapter { base, folder: None }),
        checks: Checks {
            verify_each: true,
            keep_after: Some(last.to_owned()),
        },
    };
    optimise(&case.model, &options).map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            // Errors that pass on another say what it says.
            if !text.ends_with(&error.to_string()) {
                text += &format!(": {error}");
            }
            cause = error.source();
        }
        text
    })
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
    text += &factors(case, kept);
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

/// What the marks of a rewritten graph say of gradients that leave as factors, and of adapters.
fn factors(case: &Case, kept: &Model) -> String {
    let graph = &kept.graph;
    let Ok(roles) = roles(graph, &case.settings.hints) else {
        return "the roles of the rewritten graph cannot be told\n".to_owned();
    };
    let one = |what: &str, parameter: ValueId, of: &Factored| {
        format!(
            "{what} {}: {} on axis {}, {} groups, direction {}\n",
            name(graph, parameter),
            name(graph, of.gradient),
            usize::from(of.features_last),
            of.groups,
            name(graph, of.direction),
        )
    };
    let mut text: String = { roles.factored.iter() }
        .map(|of| one("factored", of.parameter, of))
        .collect();
    for adapter in &roles.adapters {
        text += &one("adapter", adapter.input, &adapter.of);
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
    surroundings(outcome, original, model)?;
    if let Some(kept) = &outcome.ran.kept {
        order(&before, &kept.graph.to_proto())?;
    }
    let (old, new) = (&outcome.before.shapes, shapes(model, &case.settings));
    let new = new.map_err(|e| e.to_string())?;
    let routes = routes(outcome);
    let now = by_name(model.graph.outputs(), |&v| name(&model.graph, v));
    for &a in original.graph.outputs() {
        if routes.iter().any(|route| route.output == a) {
            continue;
        }
        let called = name(&original.graph, a);
        let found = now.get(called).map(|&&b| new.of(b));
        if found != Some(old.of(a)) {
            return Err(format!(
                "the type of {called} was {:?} and is {found:?}",
                old.of(a)
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
            // What was transposed twice is read as it is.
            let transposed = |name: &str| {
                let maker = old.get(name).filter(|maker| maker.op_type() == "Transpose");
                maker.map(|maker| maker.input[0].clone())
            };
            let derived = transposed(was).and_then(|inner| transposed(&inner));
            if input.starts_with("velora.") || derived.as_ref() == Some(input) {
                input.clone_from(was);
            }
        }
        if same != *was {
            return Err(format!("node {} changed", first(node)));
        }
    }
    Ok(())
}

/// The ways of the gradients that leave as factors.
fn routes(outcome: &Outcome) -> Vec<&Route> {
    let mut routes: Vec<&Route> = Vec::new();
    for route in outcome.decisions.iter().filter_map(|d| d.gradient.route()) {
        // Contractions of one gradient share its way.
        if !routes.contains(&route) {
            routes.push(route);
        }
    }
    routes
}

/// Everything but nodes is as it was, or added.
fn surroundings(outcome: &Outcome, original: &Model, model: &Model) -> Result<(), String> {
    let (mut before, mut after) = (original.to_proto(), model.to_proto());
    let name = |value: ValueId| original.graph.value(value).name.clone();
    let routes = routes(outcome);
    // An adapter's base has other values, another type and a scale.
    let adapted: Vec<String> = match after.graph.iter().flat_map(|g| &g.node).any(is_adapter) {
        true => routes.iter().map(|route| name(route.parameter)).collect(),
        false => Vec::new(),
    };
    constants(&mut before, &mut after, &adapted)?;
    ports(&before, &after, &routes, name)?;
    let exchanged: Vec<String> = { routes.iter() }
        .flat_map(|route| std::iter::once(route.output).chain(route.buffer))
        .map(name)
        .chain(adapted)
        .collect();
    let of_exchanged = |info: &str| {
        let parts = ["", ".P", ".v", ".A", ".scale"];
        let mut names = exchanged.iter();
        names.any(|e| {
            parts
                .iter()
                .any(|part| is_called(info, &format!("{e}{part}")))
        })
    };
    for side in [&mut before, &mut after] {
        side.functions
            .retain(|f| f.domain.as_deref() != Some("ai.velora"));
        side.opset_import.retain(|o| o.domain() != "ai.velora");
        if let Some(graph) = &mut side.graph {
            graph.node.clear();
            graph.value_info.clear();
            // The state of a running average comes and goes behind what was there.
            let kept = |name: &str| !name.starts_with("velora.") && !of_exchanged(name);
            graph.input.retain(|i| kept(i.name()));
            graph.output.retain(|o| kept(o.name()));
        }
    }
    match before == after {
        true => Ok(()),
        false => Err("something beside nodes and constants changed".to_owned()),
    }
}

fn is_adapter(node: &NodeProto) -> bool {
    let mut entries = node.metadata_props.iter();
    entries.any(|e| e.key() == "velora.adapter")
}

/// Takes the constants of both, which are the same but for new ones and bases of adapters.
fn constants(
    before: &mut ModelProto,
    after: &mut ModelProto,
    adapted: &[String],
) -> Result<(), String> {
    let take = |side: &mut ModelProto| {
        let taken = side
            .graph
            .as_mut()
            .map(|g| std::mem::take(&mut g.initializer));
        taken.unwrap_or_default()
    };
    let (old, new) = (take(before), take(after));
    let old = by_name(&old, |c| c.name());
    for constant in &new {
        let name = constant.name();
        let of_adapter = |w: &String| {
            let of_w = name.strip_prefix(w.as_str());
            matches!(of_w, Some("" | ".A" | ".scale"))
        };
        if adapted.iter().any(of_adapter) {
            continue;
        }
        match old.get(name) {
            Some(was) if *was != constant => return Err(format!("constant {name} changed")),
            None if !name.starts_with("velora.") => return Err(format!("constant {name} is new")),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a value has a wanted name, or as much of it as was free.
fn is_called(found: &str, wanted: &str) -> bool {
    let rest = found.strip_prefix(wanted);
    rest.is_some_and(|rest| {
        let number = rest.strip_prefix('.').unwrap_or("0");
        rest.is_empty() || rest.starts_with('.') && number.parse::<u32>().is_ok()
    })
}

/// Factors stand where the gradient stood, P and then v; everything else where it was.
fn ports(
    before: &ModelProto,
    after: &ModelProto,
    routes: &[&Route],
    name: impl Fn(ValueId) -> String,
) -> Result<(), String> {
    let list = |infos: &[ValueInfoProto]| -> Vec<String> {
        infos.iter().map(|info| info.name().to_owned()).collect()
    };
    let (Some(before), Some(after)) = (&before.graph, &after.graph) else {
        return Err("a model without a graph".to_owned());
    };
    let outputs = list(&before.output).into_iter().flat_map(|output| {
        match routes.iter().any(|route| name(route.output) == output) {
            true => vec![format!("{output}.P"), format!("{output}.v")],
            false => vec![output],
        }
    });
    let inputs = list(&before.input).into_iter().map(|input| {
        let buffer = |route: &&Route| route.buffer.map(&name).as_ref() == Some(&input);
        match routes.iter().any(buffer) {
            true => format!("{input}.P"),
            false => input,
        }
    });
    for (what, expected, found) in [
        ("inputs", inputs.collect::<Vec<_>>(), list(&after.input)),
        ("outputs", outputs.collect(), list(&after.output)),
    ] {
        // New ones may come behind; a name that is taken gets a number.
        let same = |(e, f): (&String, &String)| is_called(f, e);
        if found.len() < expected.len() || !expected.iter().zip(&found).all(same) {
            return Err(format!("the {what} are {found:?}, expected {expected:?}"));
        }
    }
    Ok(())
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
