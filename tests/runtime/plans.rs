//! Plans of a whole step: what is computed again changes no bit, and predicted bytes are measured.

use super::graphs::{Graph, files};
use velora_graph::analysis::recompute::cost::Rates;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::planner::{Level, Plan, Planner, Subject};
use velora_passes::select::{Grouping, LayerSettings, Preset};
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::Region;

const BATCH: i64 = 3;

/// The levels of a graph, and its plans at some of the prices; with `PLANS=all` at each.
fn plans(graph: &Graph, planner: &Planner<'_>, exact: bool) -> Vec<Plan> {
    let large = graph.name.contains("768x4");
    let all = std::env::var("PLANS").is_ok_and(|plans| plans == "all");
    let every_level = [Level::None, Level::Cheap, Level::Layers, Level::Sqrt];
    let (levels, every): (&[Level], usize) = match (large, exact) {
        _ if all => (&every_level, 1),
        (true, true) => (&[Level::Layers], 4),
        (true, false) => (&[], 5),
        (false, true) => (&every_level, 2),
        (false, false) => (&[Level::Cheap], 4),
    };
    let levels = levels
        .iter()
        .filter_map(|&level| planner.level(level, exact));
    let cuts = planner.frontier(exact).into_iter().rev().step_by(every);
    let mut plans: Vec<Plan> = Vec::new();
    for plan in levels.chain(cuts) {
        if !plans.contains(&plan) {
            plans.push(plan);
        }
    }
    plans
}

/// The graph that a plan makes.
fn carried_out(original: &Graph, options: &Options) -> Graph {
    let outcome = optimise(&original.model, options).unwrap();
    let rewritten = outcome.decisions.iter().filter(|d| d.rewritten());
    let names = rewritten
        .map(|d| original.model.graph.value(d.parameter).name.clone())
        .collect();
    Graph::new(original.name.clone(), outcome.ran.model, names)
}

#[test]
fn exact_plans_change_no_bit_and_no_prediction_is_wrong() {
    let cpu = Cpu::new(2).unwrap();
    let (mut exact_plans, mut others, mut copies) = (0, 0, 0);
    for file in files() {
        let original = Graph::read(&file);
        let before = original.prepare(&cpu, BATCH, 0).run();
        let defaults = LayerSettings::new(Grouping::Groups(4));
        let options = Options {
            settings: original.settings(BATCH),
            ..Graph::options(Preset::Freeable, false, defaults)
        };
        let subject = Subject::new(&original.model, &options).unwrap();
        let planner = Planner::new(&original.model, &options, &subject, Rates::default()).unwrap();
        for exact in [true, false] {
            for plan in plans(&original, &planner, exact) {
                let at = format!(
                    "{}, exact {exact}, {} nodes again, {} tensors compressed",
                    original.name,
                    plan.recompute.len(),
                    plan.compress.len()
                );
                let made = carried_out(&original, &planner.options(&plan));
                assert!(!exact || made.rewritten.is_empty(), "{at}");
                let mut ready = made.prepare(&cpu, BATCH, 0);
                let after = ready.run();
                assert!(before.loss == after.loss, "{at}: another loss");
                for (name, gradient) in &before.gradients {
                    let rewritten = made.rewritten.iter().any(|p| name.contains(&p[..]));
                    let same = *gradient == after.gradients[name];
                    assert!(same || rewritten, "{at}: {name} changed");
                }
                let plan = ready.executable.plan();
                for (region, measured) in Region::ALL.into_iter().zip(ready.executable.touched()) {
                    assert_eq!(plan.bytes(region), measured, "{at}: {}", region.name());
                }
                exact_plans += usize::from(exact);
                others += usize::from(!exact);
                copies += made.copies();
            }
        }
    }
    println!("{exact_plans} exact plans, {others} others, {copies} copies");
    assert!(
        std::env::var("GRAPH").is_ok() || (exact_plans > 120 && others > 50 && copies > 10_000)
    );
}
