//! What is fuzzed, shared by the fuzz targets and by `tests/fuzz_smoke.rs`, which runs it on stable.
//!
//! A target takes any bytes and panics where something is wrong; input that is refused with an error
//! is fine.

#[path = "targets_data.rs"]
mod data;

pub use data::{npz, safetensors};
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::inline::inline;
use velora_graph::ir::{Graph, GraphError, Model};
use velora_graph::onnx::read::{UnknownFields, decode as read};
use velora_graph::onnx::schema::ModelProto;
use velora_graph::onnx::write::write_to;
use velora_graph::text::{parse_model, parse_node, print_model, print_node};
use velora_graph::verify::{verify, verify_model};
use velora_passes::adapt::base::Base;
use velora_passes::manager::{Checks, PassError, PipelineError};
use velora_passes::pipeline::{Adapter, JobError, Options, optimise};
use velora_passes::select::{Gradients, Grouping, Init, Preset, Selection};

/// Takes an input, and tells whether it was accepted rather than refused with an error.
pub type Target = fn(&[u8]) -> bool;

/// Every target, by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("decode", decode),
    ("text", text),
    ("analyse", analyse),
    ("step", step),
    ("npz", npz),
    ("safetensors", safetensors),
];

/// The bytes that the streaming writer makes of a model.
fn written(model: &ModelProto) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_to(model, &mut bytes).expect("writing to memory cannot fail");
    bytes
}

/// Bytes -> model -> bytes -> model: the second model is the first, and the writer agrees with prost.
pub fn decode(data: &[u8]) -> bool {
    let mut accepted = false;
    for unknown in [UnknownFields::Refuse, UnknownFields::Allow] {
        let Ok(model) = read(Bytes::copy_from_slice(data), unknown) else {
            continue;
        };
        accepted = true;
        let bytes = written(&model);
        // Bytes are compared, since a NaN is not equal to itself.
        assert!(
            bytes == model.encode_to_vec(),
            "the writer and prost disagree"
        );
        let again = read(bytes.clone().into(), UnknownFields::Refuse);
        let again = again.expect("what was written cannot be read");
        assert!(
            again.encode_to_vec() == bytes,
            "reading and writing changed the model"
        );
    }
    accepted
}

/// Text -> model -> text -> model: the second model is the first.
pub fn text(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let mut accepted = false;
    if let Ok(model) = parse_model(text) {
        accepted = true;
        let printed = print_model(&model);
        let again = parse_model(&printed);
        let again =
            again.unwrap_or_else(|e| panic!("the printed text does not parse: {e}\n{printed}"));
        assert!(
            again.encode_to_vec() == model.encode_to_vec(),
            "the model changed:\n{printed}"
        );
    }
    if let Ok(node) = parse_node(text) {
        accepted = true;
        let printed = print_node(&node);
        let again = parse_node(&printed);
        let again =
            again.unwrap_or_else(|e| panic!("the printed node does not parse: {e}\n{printed}"));
        assert!(
            again.encode_to_vec() == node.encode_to_vec(),
            "the node changed:\n{printed}"
        );
    }
    accepted
}

/// A model, from bytes or from text, through everything that reads one.
pub fn analyse(data: &[u8]) -> bool {
    let decoded = read(Bytes::copy_from_slice(data), UnknownFields::Refuse).ok();
    let parsed = || parse_model(std::str::from_utf8(data).ok()?).ok();
    let Some(mut model) = decoded.or_else(parsed) else {
        return false;
    };
    let text = print_model(&model);
    let verdict = verify_model(&model);
    if let Err(found) = &verdict {
        let listing = found.listing(&model);
        assert!(listing.lines().count() >= text.lines().count() + found.list.len());
        assert!(!found.to_string().is_empty());
    }
    // As a command does that executes the graph; the rest of the target keeps the calls.
    if !model.functions.is_empty()
        && let Ok(inlined) = inline(model.clone())
    {
        let indexed = Model::from_proto(inlined);
        assert!(
            verdict.is_err() || indexed.is_ok(),
            "verified, and yet no graph without calls"
        );
    }
    let Some(proto) = model.graph.take() else {
        return true;
    };
    let bytes = proto.encode_to_vec();
    let graph = match Graph::from_proto(proto) {
        Ok(graph) => graph,
        Err(error) => {
            assert!(verdict.is_err(), "verified, and yet no graph: {error}");
            return true;
        }
    };
    assert!(
        graph.to_proto().encode_to_vec() == bytes,
        "the indexed graph is another"
    );
    let sorted = graph.topological_order();
    assert!(
        !matches!(sorted, Err(GraphError::Cycle { .. })),
        "a cycle after indexing"
    );
    assert!(verdict.is_err() || sorted.as_deref() == Ok(graph.order()));
    let indexed = verify(&model, &graph);
    assert_eq!(
        indexed.is_ok(),
        verdict.is_ok(),
        "{indexed:?} and {verdict:?}"
    );

    let model = Model {
        shell: model,
        graph,
    };
    let sizes = BTreeMap::from([("batch".into(), 8)]);
    for sizes in [BTreeMap::new(), sizes] {
        let settings = Settings {
            sizes,
            ..Settings::default()
        };
        if let Ok(analyses) = Analyses::new(&model, &settings) {
            for value in model.graph.values() {
                let _ = analyses.shapes.bytes(value).map(|bytes| bytes.to_string());
            }
        }
    }
    rewrite(&model, form(data), verdict.is_ok());
    true
}

/// A training graph drawn from the bytes, through the whole job.
pub fn step(data: &[u8]) -> bool {
    let made = velora_testgen::random::graph(data);
    if let Err(found) = verify_model(&made.model) {
        panic!("{}", found.listing(&made.model));
    }
    let model = Model::from_proto(made.model).expect("a valid model has an index");
    rewrite(&model, form(data), true)
}

/// A preset, whether functions are expanded, whether the order is pinned, and in which form gradients leave.
type Form = (Preset, bool, bool, Leave);

/// In which form gradients leave the graph.
#[derive(Clone, Copy, PartialEq)]
enum Leave {
    Full,
    Factored,
    Adapter,
}

/// The form that an input is rewritten in: one of all, since each takes its time.
fn form(data: &[u8]) -> Form {
    let sum: usize = data.iter().map(|&b| usize::from(b)).sum();
    FORMS[sum % FORMS.len()]
}

/// Every preset, both forms, with and without pins, and every form of gradients.
const FORMS: [Form; 7] = [
    (Preset::Freeable, false, true, Leave::Full),
    (Preset::Paper, true, true, Leave::Full),
    (Preset::All, true, false, Leave::Full),
    (Preset::All, false, true, Leave::Full),
    (Preset::All, false, true, Leave::Factored),
    (Preset::All, true, false, Leave::Factored),
    (Preset::Freeable, false, true, Leave::Adapter),
];

/// Rewrites a model; what was valid stays valid, and can be written and read. Tells whether anything was
/// rewritten.
fn rewrite(model: &Model, (preset, inline, pin, leave): Form, valid: bool) -> bool {
    let mut selection = Selection::freeable(Grouping::Groups(2));
    selection.preset = preset;
    if leave != Leave::Full {
        selection.defaults.init = Init::Random;
        selection.defaults.gradients = Gradients::Factored;
    }
    let options = Options {
        settings: Settings::default(),
        selection,
        inline,
        hoist: true,
        recompute: None,
        pin,
        adapter: (leave == Leave::Adapter).then_some(Adapter {
            base: Base::Float32,
            folder: None,
        }),
        checks: Checks {
            verify_each: valid,
            keep_after: None,
        },
    };
    let outcome = match optimise(model, &options) {
        Ok(outcome) => outcome,
        // A weight that the graph hands out, say.
        Err(JobError::Pipeline(PipelineError::Pass {
            source: PassError::Adapt(_),
            ..
        })) => return false,
        Err(JobError::Pipeline(error)) if valid => panic!("{preset:?} {inline} {pin}: {error}"),
        Err(_) => return false,
    };
    let bytes = written(&outcome.ran.model.to_proto());
    if valid {
        let again = read(bytes.clone().into(), UnknownFields::Refuse);
        let again = again.expect("what was written cannot be read");
        assert!(written(&again) == bytes, "reading and writing changed it");
    }
    outcome.decisions.iter().any(|d| d.rewritten())
}
