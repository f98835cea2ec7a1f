//! Plans of a graph, for development.
use std::collections::BTreeMap;
use std::sync::Arc;
use velora_graph::analysis::Settings;
use velora_graph::analysis::recompute::cost::Rates;
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_passes::manager::Checks;
use velora_passes::pipeline::Options;
use velora_passes::planner::{Level, Planner, Subject};
use velora_passes::select::{Grouping, Selection};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().unwrap();
    let sizes: BTreeMap<Arc<str>, i64> = arguments
        .map(|a| {
            let (n, s) = a.split_once('=').unwrap();
            (Arc::from(n), s.parse().unwrap())
        })
        .collect();
    let model = Model::from_proto(read(std::path::Path::new(&file), UnknownFields::Allow).unwrap())
        .unwrap();
    let options = Options {
        settings: Settings {
            sizes,
            ..Settings::default()
        },
        selection: Selection::freeable(Grouping::Groups(32)),
        inline: false,
        hoist: true,
        recompute: None,
        pin: false,
        adapter: None,
        checks: Checks {
            verify_each: std::env::var("VERIFY").is_ok(),
            keep_after: None,
        },
    };
    let start = std::time::Instant::now();
    let subject = Subject::new(&model, &options).unwrap();
    let planner = Planner::new(&model, &options, &subject, Rates::default()).unwrap();
    println!("prepared {:?}", start.elapsed());
    let before = planner.before().unwrap();
    let mib = |b: i64| b as f64 / 1048576.0;
    println!(
        "before {:?}: peak {:.1} saved {:.1} seconds {:.4}",
        start.elapsed(),
        mib(before.peak),
        mib(before.saved),
        before.seconds
    );
    for exact in [true, false] {
        let show = |name: &str, plan: &velora_passes::planner::Plan| {
            let at = std::time::Instant::now();
            let point = planner.measure(plan).unwrap();
            println!(
                "{name:>8} exact {exact} again {:4} compressed {:3} peak {:8.1} {:5.1}% saved {:8.1} {:5.1}% time {:.3}  {:?}",
                plan.recompute.len(),
                plan.compress.len(),
                mib(point.peak),
                100.0 * point.peak as f64 / before.peak as f64,
                mib(point.saved),
                100.0 * point.saved as f64 / before.saved as f64,
                point.seconds / before.seconds,
                at.elapsed()
            );
        };
        let at = std::time::Instant::now();
        let plans = planner.frontier(exact);
        println!("frontier {:?}", at.elapsed());
        show("nothing", &planner.nothing(exact));
        for plan in &plans {
            show("cut", plan);
        }
        for level in [Level::Cheap, Level::Layers, Level::Sqrt] {
            match planner.level(level, exact) {
                Some(plan) => show(&format!("{level:?}"), &plan),
                None => println!("{level:?}: none"),
            }
        }
    }
}
