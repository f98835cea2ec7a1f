//! What the roofline model predicts for LLaMA-7B: the tables of `docs/roofline.md`.
//!
//! `BLESS=1` writes them.

use super::footprint::OPTIMIZER;
use super::graphs::Graph;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use velora_graph::ir::Model;
use velora_passes::select::{Gradients, Grouping, Init, LayerSettings, Preset};
use velora_runtime::cost::device::{A100_SXM, Device, H100_SXM, SingleProducts};
use velora_runtime::cost::roofline::{Roofline, Total};
use velora_runtime::cost::{Class, Storage};
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::Plan;
use velora_testgen::models::{LlamaSizes, llama};

const SIZES: LlamaSizes = LlamaSizes::SEVEN_B;

/// Blocks of the model that is predicted; plans have fewer, and the rest are like the last.
const BLOCKS: usize = 32;

/// Batches, and tokens of a sequence.
const SHAPES: [(i64, i64); 3] = [(1, 1024), (4, 1024), (16, 512)];

/// What is compared: a preset with the form of its gradients.
const VARIANTS: [(&str, Option<(Preset, Gradients)>); 5] = [
    ("original", None),
    ("v, down", Some((Preset::Paper, Gradients::Full))),
    (
        "v, down, factored",
        Some((Preset::Paper, Gradients::Factored)),
    ),
    ("all", Some((Preset::Freeable, Gradients::Full))),
    (
        "all, factored",
        Some((Preset::Freeable, Gradients::Factored)),
    ),
];

/// How plans are thought to be executed.
const FORMS: [(&str, SingleProducts, Storage); 3] = [
    ("f32", SingleProducts::Single, Storage::Declared),
    ("TF32 products", SingleProducts::Tf32, Storage::Declared),
    ("16-bit storage", SingleProducts::Single, Storage::Halved),
];

const DEVICES: [Device; 2] = [A100_SXM, H100_SXM];

/// Plans of a training step with so many blocks, by variant.
fn plans(cpu: &Cpu, blocks: usize, (batch, sequence): (i64, i64)) -> Vec<Plan> {
    let made = llama(blocks, &SIZES, sequence);
    let model = Model::from_proto(made.model).unwrap();
    let original = Graph::new("llama".to_owned(), model, Vec::new());
    let variants = VARIANTS.iter().map(|(_, variant)| {
        let Some((preset, gradients)) = variant else {
            return original.plan(cpu, batch, 2).0;
        };
        // As in the paper: 32 sub-tokens, and a direction from the first batch that stays.
        let settings = LayerSettings {
            init: Init::FirstBatch,
            gradients: *gradients,
            ..LayerSettings::new(Grouping::Groups(32))
        };
        let rewritten = original.rewrite_as(*preset, false, settings);
        let layers = match preset {
            Preset::Paper => 2 * blocks,
            _ => 9 * blocks + 2,
        };
        assert_eq!(rewritten.rewritten.len(), layers);
        rewritten.plan(cpu, batch, 2).0
    });
    variants.collect()
}

/// By kind of kernel.
type Split = BTreeMap<Class, Total>;

fn split(plan: &Plan, roofline: &Roofline) -> Split {
    let kernels = roofline.kernels(plan, Some(&OPTIMIZER));
    let total = |class| Total::of(kernels.iter().filter(|kernel| kernel.class == class));
    Class::ALL.map(|class| (class, total(class))).into()
}

fn combine(a: &Total, b: &Total, of_a: f64, of_b: f64) -> Total {
    let number = |a: u64, b: u64| (a as f64 * of_a + b as f64 * of_b) as u64;
    let mut total = Total {
        count: number(a.count as u64, b.count as u64) as usize,
        seconds: a.seconds * of_a + b.seconds * of_b,
        memory_seconds: a.memory_seconds * of_a + b.memory_seconds * of_b,
        ..Total::default()
    };
    total.cost.read = number(a.cost.read, b.cost.read);
    total.cost.written = number(a.cost.written, b.cost.written);
    total.cost.flops = number(a.cost.flops, b.cost.flops);
    total
}

/// The same with all blocks, from plans with two and with three.
fn extrapolated(two: &Split, three: &Split) -> Split {
    let more = (BLOCKS - 2) as f64;
    let line = |class: &Class| combine(&two[class], &three[class], 1.0 - more, more);
    two.keys().map(|class| (*class, line(class))).collect()
}

fn seconds(split: &Split) -> f64 {
    split.values().map(|total| total.seconds).sum()
}

/// The predictions for one shape: by variant, of a device and a form.
struct Predicted {
    two: Vec<Plan>,
    three: Vec<Plan>,
}

impl Predicted {
    fn new(cpu: &Cpu, shape: (i64, i64)) -> Self {
        Predicted {
            two: plans(cpu, 2, shape),
            three: plans(cpu, 3, shape),
        }
    }

    fn splits(&self, roofline: &Roofline) -> Vec<Split> {
        let pairs = self.two.iter().zip(&self.three);
        pairs
            .map(|(two, three)| extrapolated(&split(two, roofline), &split(three, roofline)))
            .collect()
    }
}

fn rooflines() -> impl Iterator<Item = (&'static str, Roofline)> {
    let of = |device| {
        move |(form, products, storage)| {
            let roofline = Roofline {
                device,
                products,
                storage,
            };
            (form, roofline)
        }
    };
    DEVICES
        .into_iter()
        .flat_map(move |device| FORMS.into_iter().map(of(device)))
}

const HEADING: &str = "*A model, not a measurement.*";

/// Seconds of the original step, and ratios to them.
fn step_table(shapes: &[((i64, i64), Predicted)]) -> String {
    let names = VARIANTS[1..].iter().map(|(name, _)| *name);
    let names: Vec<&str> = names.collect();
    let mut text = format!("{HEADING} Time of a step; the rewritten ones ÷ the original.\n\n");
    let columns = names.join(" | ");
    writeln!(
        text,
        "| batch × sequence | device | form | original, ms | {columns} |"
    )
    .unwrap();
    writeln!(text, "|---|---|---|---|{}", "---|".repeat(names.len())).unwrap();
    for ((batch, sequence), predicted) in shapes {
        for (form, roofline) in rooflines() {
            let times: Vec<f64> = predicted.splits(&roofline).iter().map(seconds).collect();
            let ratios = times[1..].iter().map(|t| format!(" {:.2} |", t / times[0]));
            writeln!(
                text,
                "| {batch} × {sequence} | {} | {form} | {:.1} |{}",
                roofline.device.name,
                times[0] * 1e3,
                ratios.collect::<String>()
            )
            .unwrap();
        }
    }
    text
}

/// Milliseconds by kind of kernel, and the part of them that is bound by memory.
fn split_table(predicted: &Predicted, form: &str, roofline: &Roofline) -> String {
    let splits = predicted.splits(roofline);
    let mut text = format!(
        "{HEADING} {}, {form}, 1 × 1024 tokens: ms, and the part bound by memory.\n\n",
        roofline.device.name
    );
    let names: Vec<&str> = VARIANTS.iter().map(|(name, _)| *name).collect();
    writeln!(text, "| kernels | {} |", names.join(" | ")).unwrap();
    writeln!(text, "|---|{}", "---|".repeat(names.len())).unwrap();
    let cell = |total: &Total| match total.count {
        0 => " - |".to_owned(),
        _ => format!(
            " {:.1} ({:.0} %) |",
            total.seconds * 1e3,
            100.0 * total.memory_seconds / total.seconds
        ),
    };
    for class in Class::ALL {
        let cells: String = splits.iter().map(|split| cell(&split[&class])).collect();
        writeln!(text, "| {} |{cells}", class.name()).unwrap();
    }
    let all = splits.iter().map(|split| {
        let totals = split.values();
        cell(&totals.fold(Total::default(), |sum, total| {
            combine(&sum, total, 1.0, 1.0)
        }))
    });
    writeln!(text, "| all |{}", all.collect::<String>()).unwrap();
    text
}

/// Bytes and operations, which no device has a part in.
fn cost_table(predicted: &Predicted) -> String {
    let mut text =
        format!("{HEADING} 1 × 1024 tokens, as declared (f32): GB moved, and TFLOP.\n\n");
    let names: Vec<&str> = VARIANTS.iter().map(|(name, _)| *name).collect();
    writeln!(text, "| kernels | {} |", names.join(" | ")).unwrap();
    writeln!(text, "|---|{}", "---|".repeat(names.len())).unwrap();
    let (_, roofline) = rooflines().next().unwrap();
    let splits = predicted.splits(&roofline);
    for class in Class::ALL {
        let cells = splits.iter().map(|split| match split[&class].count {
            0 => " - |".to_owned(),
            _ => {
                let cost = split[&class].cost;
                let (bytes, flops) = (cost.bytes() as f64 / 1e9, cost.flops as f64 / 1e12);
                format!(" {bytes:.1}, {flops:.3} |")
            }
        });
        writeln!(text, "| {} |{}", class.name(), cells.collect::<String>()).unwrap();
    }
    text
}

/// Replaces what stands between the marks of a table.
fn replaced(document: &str, name: &str, table: &str) -> String {
    let (begin, end) = (
        format!("<!-- begin {name} -->\n"),
        format!("<!-- end {name} -->"),
    );
    let (before, rest) = document.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}\n{table}\n{end}{after}")
}

#[test]
fn the_document_has_the_tables_of_the_model() {
    let cpu = Cpu::new(1).unwrap();
    let shapes = SHAPES.map(|shape| (shape, Predicted::new(&cpu, shape)));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/roofline.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let mut updated = replaced(&document, "steps", &step_table(&shapes));
    updated = replaced(&updated, "costs", &cost_table(&shapes[0].1));
    let tables = rooflines().filter(|(form, _)| *form != "f32");
    let tables = tables.map(|(form, roofline)| split_table(&shapes[0].1, form, &roofline));
    let tables: Vec<String> = tables.collect();
    updated = replaced(&updated, "kernels", &tables.join("\n"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &updated).unwrap();
        return;
    }
    assert_eq!(document, updated, "BLESS=1 writes the tables");
}

/// What the extrapolation rests on: the third block adds what the fourth does, to the byte.
#[test]
fn blocks_cost_the_same() {
    let cpu = Cpu::new(1).unwrap();
    let (_, roofline) = rooflines().next().unwrap();
    let [two, three, four] = [2, 3, 4].map(|blocks| plans(&cpu, blocks, SHAPES[0]));
    for (at, (name, _)) in VARIANTS.iter().enumerate() {
        let [two, three, four] = [&two, &three, &four].map(|plans| split(&plans[at], &roofline));
        for class in Class::ALL {
            let [a, b, c] = [&two, &three, &four].map(|split| split[&class]);
            assert_eq!(b.count - a.count, c.count - b.count, "{name}: {class:?}");
            let costs = [a, b, c].map(|t| [t.cost.read, t.cost.written, t.cost.flops]);
            for number in 0..3 {
                let [a, b, c] = costs.map(|cost| cost[number]);
                assert_eq!(b - a, c - b, "{name}: {class:?}");
            }
        }
    }
}

/// Of the original: three products for each weight and token, and three for each product of attention, of which
/// there are two over all pairs of tokens.
#[test]
fn products_of_the_original_are_those_of_the_layers() {
    let cpu = Cpu::new(1).unwrap();
    let (batch, sequence) = SHAPES[0];
    let (_, roofline) = rooflines().next().unwrap();
    let plan = &plans(&cpu, 2, SHAPES[0])[0];
    let found = split(plan, &roofline)[&Class::Products].cost.flops as i64;
    let tokens = batch * sequence;
    let LlamaSizes {
        hidden,
        intermediate,
        vocabulary,
        ..
    } = SIZES;
    let weights = 2 * (4 * hidden * hidden + 3 * hidden * intermediate) + hidden * vocabulary;
    let pairs = 2 * tokens * sequence * hidden;
    assert_eq!(found, 3 * (2 * tokens * weights) + 3 * 2 * (2 * pairs));
}
