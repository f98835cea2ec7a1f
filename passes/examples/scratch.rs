use std::path::Path;
use velora_graph::analysis::lifetimes::Lifetimes;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::write::write;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::schedule;
use velora_passes::select::{Grouping, Preset, Selection};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let model =
        Model::from_proto(read(Path::new(&args[1]), UnknownFields::Refuse).unwrap()).unwrap();
    let mut selection = Selection::freeable(Grouping::Groups(args[3].parse().unwrap()));
    let mut settings = Settings::default();
    let mut inline = false;
    let mut pin = true;
    for a in &args[4..] {
        match a.as_str() {
            "inline" => inline = true,
            "nopin" => pin = false,
            "all" => selection.preset = Preset::All,
            "paper" => selection.preset = Preset::Paper,
            d => {
                let (k, v) = d.split_once('=').unwrap();
                settings.sizes.insert(k.into(), v.parse().unwrap());
            }
        }
    }
    let t = std::time::Instant::now();
    let options = Options {
        settings,
        selection,
        inline,
        pin,
        checks: Checks {
            verify_each: true,
            keep_after: None,
        },
    };
    let out = optimise(&model, &options).unwrap();
    eprintln!("took {:?}", t.elapsed());
    let peak = |m: &Model, a: &Analyses| {
        let sizes = velora_passes::pipeline::assumed_sizes(m, &a.shapes);
        let file = Lifetimes::new(&m.graph, &a.buffers, &sizes, m.graph.order());
        let best = schedule::schedule(&m.graph, &a.buffers, &sizes).unwrap();
        let saved: i64 = a
            .saved
            .iter()
            .map(|s| sizes.of(s.buffer).unwrap_or(0))
            .sum();
        eprintln!(
            "peak file {:.1} MiB, best {:.1} MiB, saved {:.1} MiB; unknown {}",
            file.peak(&sizes).0 as f64 / 1048576.,
            best.peak as f64 / 1048576.,
            saved as f64 / 1048576.,
            file.unknown(&sizes).len()
        );
    };
    peak(&model, &out.before);
    for d in &out.decisions {
        println!(
            "{} {} {}",
            model.graph.value(d.parameter).name,
            d.reason.code(),
            d.message
        );
    }
    for p in &out.ran.passes {
        eprintln!("{p:?}");
    }
    let after = Analyses::new(&out.ran.model, &options.settings).unwrap();
    peak(&out.ran.model, &after);
    let pins = out
        .ran
        .model
        .graph
        .order()
        .iter()
        .filter(|&&n| {
            out.ran.model.graph.node(n).metadata("velora.op") == Some("Pin")
                && out.ran.model.graph.node(n).op() == "Reshape"
        })
        .count();
    eprintln!(
        "pins {pins}, nodes {} -> {}",
        model.graph.node_count(),
        out.ran.model.graph.node_count()
    );
    write(&out.ran.model.to_proto(), Path::new(&args[2])).unwrap();
}
