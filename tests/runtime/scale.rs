//! Plans of published models at their real sizes.

use super::footprint::OPTIMIZER;
use super::graphs::Graph;
use std::time::Instant;
use velora_graph::ir::Model;
use velora_passes::select::{Grouping, LayerSettings, Preset};
use velora_runtime::cpu::Cpu;
use velora_testgen::models::{PUBLISHED, Recipe, Training, published};

/// Everything is trained, or adapters beside the attention's projections.
fn trainings() -> [(&'static str, Training); 2] {
    let targets = ["q_proj", "v_proj", "query", "value"];
    let adapters = Training::Adapters {
        rank: 8,
        targets: targets.map(str::to_owned).into(),
    };
    [("full", Training::All), ("adapters", adapters)]
}

#[test]
fn plans_at_real_sizes_stay_near_the_lower_bound() {
    let cpu = Cpu::new(1).unwrap();
    let mut table = String::new();
    for name in PUBLISHED {
        for (kind, training) in trainings() {
            let recipe = Recipe {
                training,
                ..Recipe::default()
            };
            let made = published(name, &recipe).unwrap();
            let model = Model::from_proto(made.model).unwrap();
            let original = Graph::new(name.to_owned(), model, Vec::new());
            let settings = LayerSettings::new(Grouping::Groups(32));
            let rewritten = original.rewrite_as(Preset::Freeable, false, settings);
            for (form, graph) in [("original", original), ("rewritten", rewritten)] {
                let started = Instant::now();
                let (plan, _) = graph.plan(&cpu, 1, OPTIMIZER.state().len());
                let seconds = started.elapsed().as_secs_f64();
                let footprint = &plan.footprint;
                let ratio = footprint.arena as f64 / footprint.lower_bound as f64;
                let steps = plan.steps.len();
                table +=
                    &format!("{name} {kind} {form}: {steps} steps, {ratio:.4}, {seconds:.2} s\n");
                assert!(ratio <= 1.02, "{table}");
            }
        }
    }
    println!("{table}");
}
