//! Published models at their real sizes, through the command line: what it holds in memory, what it counts, and
//! that open sizes give the numbers of every size.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use velora_graph::analysis::lifetimes::{Lifetimes, Sizes};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::dim::Dim;
use velora_graph::ir::Model;
use velora_graph::onnx::write::write;
use velora_passes::pipeline::assumed_sizes;
use velora_passes::schedule::schedule;
use velora_testgen::Element;
use velora_testgen::models::{PUBLISHED, Recipe, Training, published, with_weights};

const TOOL: &str = env!("CARGO_BIN_EXE_velora-opt");

/// The tool may hold so much of a graph of any size, in bytes.
const MEMORY: u64 = 100 * 1000 * 1000;

/// Writes a published model with a sparse file of weights.
fn model(folder: &Path, name: &str, recipe: &Recipe) -> PathBuf {
    let made = published(name, recipe).unwrap();
    let whole = with_weights(&made, recipe.element, "weights.bin");
    let weights = File::create(folder.join("weights.bin")).unwrap();
    weights.set_len(whole.bytes).unwrap();
    let path = folder.join("model.onnx");
    write(&whole.model, &path).unwrap();
    path
}

/// Runs the tool to its end; gives the most bytes that were resident, where the system tells.
///
/// The system keeps the maximum itself; what is missed is what was new in the last millisecond.
fn tool(arguments: &[&str]) -> Option<u64> {
    let mut child = Command::new(TOOL)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = None;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.map(|kib| kib * 1024));
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    peak
}

fn report(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_graph_of_any_size_takes_little_memory() {
    for name in PUBLISHED {
        let folder = tempfile::tempdir().unwrap();
        let path = model(folder.path(), name, &Recipe::default());
        let out = folder.path().join("out.onnx");
        let [path, out] = [&path, &out].map(|path| path.to_str().unwrap());
        let peak = tool(&[path, "-o", out, "-q"]);
        println!("{name}: {} MB resident", peak.unwrap_or(0) / 1_000_000);
        assert!(peak.is_none_or(|peak| peak < MEMORY), "{name}: {peak:?}");
        // What was kept and what was made is proved from the two files; the certificate reads all weights.
        if name == "llama-60m" {
            tool(&["verify", path, out]);
        }
    }
}

/// The rows of the paper's Table 6 (LLaMA-7B, 1024 tokens, 16 bits) that name presets, in its GB, which are 2^30
/// bytes. Its total is that of five projections a block: query, key, value, output and down. They come out with
/// sub-tokens of 128 features, and not with 32 of them, which is the same for the value projection only.
const TABLE_6: [(&str, &str); 4] = [
    ("none", "1.67"),
    ("value", "1.42"),
    ("down", "1.01"),
    ("paper", "0.76"),
];

fn recipe_of_table_6() -> Recipe {
    let trained = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"];
    Recipe {
        training: Training::Only(trained.map(str::to_owned).into()),
        element: Element::Half,
        ..Recipe::default()
    }
}

fn gib(value: &Value) -> String {
    format!(
        "{:.2}",
        value.as_i64().unwrap() as f64 / (1u64 << 30) as f64
    )
}

#[test]
fn memory_is_counted_as_the_paper_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), "llama-7b", &recipe_of_table_6());
    let json = folder.path().join("report.json");
    let [path, json_path] = [&path, &json].map(|path| path.to_str().unwrap());
    let common = ["--dim", "batch=1", "--sub-token-size", "128", "-q"];
    let inspect = ["inspect", path, "--json", json_path];
    let peak = tool(&[&inspect[..], &common].concat());
    assert!(peak.is_none_or(|peak| peak < MEMORY), "{peak:?}");
    let found = report(&json);
    let presets = found["presets"].as_array().unwrap();
    let row = |name: &str| presets.iter().find(|p| p["preset"] == name).unwrap();
    for (preset, paper) in TABLE_6 {
        assert_eq!(
            gib(&row(preset)["counted_per_layer_bytes"]),
            paper,
            "{preset}"
        );
    }
    // What a step saves falls by down alone: query and key keep what value reads.
    let freed = |name: &str| row(name)["freed_bytes"].as_i64().unwrap();
    assert!(freed("value") < 0 && freed("paper") < freed("down"));

    // Query, key, value and down: the paper has 0.24, less than the output projection's input alone takes.
    let out = folder.path().join("out.onnx");
    let rewrite = [path, "-o", out.to_str().unwrap(), "--json", json_path];
    let four = ["--select", "all", "--exclude", "o_proj"];
    tool(&[&rewrite[..], &four, &common].concat());
    let totals = &report(&json)["totals"];
    assert_eq!(gib(&totals["counted_per_layer_bytes_after"]), "0.26");
}

/// The value of an expression of the report.
fn at(expression: &str, batch: i64) -> i64 {
    let sizes = BTreeMap::from([("batch".into(), batch)]);
    let expression = Dim::parse(&expression.replace('·', "*"));
    expression.eval(&sizes).unwrap()
}

#[test]
fn an_open_batch_gives_the_peak_of_every_batch() {
    for name in PUBLISHED {
        let made = published(name, &Recipe::default()).unwrap();
        let model = Model::from_proto(made.model).unwrap();
        let analyses = Analyses::new(&model, &Settings::default()).unwrap();
        let (graph, buffers) = (&model.graph, &analyses.buffers);
        let nominal = assumed_sizes(&model, &analyses.shapes);
        let order = schedule(graph, buffers, &nominal).unwrap().order;
        let lifetimes = Lifetimes::new(graph, buffers, &nominal, &order);
        let peak = lifetimes.symbolic_peak(&analyses.shapes).unwrap();
        for batch in [1, 2, 3, 8, 64, 1000] {
            let sizes = Sizes::new(graph, &analyses.shapes, |_| batch);
            let concrete = Lifetimes::new(graph, buffers, &sizes, &order);
            let exact = concrete.peak(&sizes).0;
            let value = at(&peak.to_string(), batch);
            assert_eq!(value, exact, "{name}, batch {batch}: {peak}");
        }
    }
}

#[test]
fn a_report_with_an_open_batch_holds_for_every_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), "vit-b-16", &Recipe::default());
    let json = folder.path().join("report.json");
    let [path, json_path] = [&path, &json].map(|path| path.to_str().unwrap());
    let inspect = ["inspect", path, "-q", "--json", json_path];
    tool(&inspect);
    let open = report(&json);
    for batch in [1, 8, 64] {
        let dim = format!("batch={batch}");
        tool(&[&inspect[..], &["--dim", &dim]].concat());
        let fixed = report(&json);
        for key in ["saved_bytes", "peak_bytes", "counted_per_layer_bytes"] {
            for side in ["before", "after"] {
                let key = format!("{key}_{side}");
                let expression = open["totals"][format!("{key}_symbolic")].as_str();
                let value = at(expression.unwrap(), batch);
                let exact = fixed["totals"][&key].as_i64().unwrap();
                // Order and selection are those for a batch of 64: a smaller one may have a better order, and
                // tensors that are not worth a rewrite.
                let own = batch == 64 || side == "before" && !key.starts_with("peak");
                let better = side == "before" && value > exact;
                let holds = value == exact || !own && (better || side == "after");
                assert!(holds, "{key}, batch {batch}: {value} and {exact}");
            }
        }
    }
}
