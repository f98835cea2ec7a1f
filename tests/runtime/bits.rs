//! The same bits: before and after the rewrite, and with any number of threads.

use super::graphs::{Graph, Results, files};
use velora_passes::select::Preset;
use velora_runtime::cpu::Cpu;

const BATCH: i64 = 3;

/// The loss, and the gradients of all parameters that were not rewritten. Those of biases, norms and
/// embeddings depend on the gradient of every activation.
#[test]
fn the_rewrite_leaves_the_bits_of_everything_else() {
    let cpu = Cpu::new(2).unwrap();
    let forms = [
        (Preset::Freeable, false),
        (Preset::Freeable, true),
        (Preset::All, false),
    ];
    let (mut same, mut changed) = (0, 0);
    for file in files() {
        let original = Graph::read(&file);
        let before = original.prepare(&cpu, BATCH, 0).run();
        let loss = f32::from_le_bytes(before.loss[..].try_into().unwrap());
        assert!(loss.is_finite(), "{}: loss {loss}", original.name);
        for (preset, inline) in forms {
            let form = format!("{}, {preset:?}, inline {inline}", original.name);
            let rewritten = original.rewrite(preset, inline);
            let after = rewritten.prepare(&cpu, BATCH, 0).run();
            assert_eq!(before.loss, after.loss, "{form}");
            assert!(before.gradients.keys().eq(after.gradients.keys()), "{form}");
            for (name, gradient) in &before.gradients {
                // An update inside the graph may have the parameter's name in a longer one.
                if rewritten
                    .rewritten
                    .iter()
                    .any(|parameter| name.contains(&parameter[..]))
                {
                    changed += usize::from(*gradient != after.gradients[name]);
                } else {
                    same += 1;
                    assert!(*gradient == after.gradients[name], "{form}: {name} changed");
                }
            }
        }
    }
    println!("{same} gradients are the same, {changed} were rewritten");
    assert!(std::env::var("GRAPH").is_ok() || (same > 900 && changed > 1000));
}

#[test]
fn threads_do_not_show_in_the_bits() {
    let cpus = [1, 2, 3].map(|threads| Cpu::new(threads).unwrap());
    for file in files() {
        let original = Graph::read(&file);
        for graph in [original.rewrite(Preset::Freeable, false), original] {
            let [one, two, three]: [Results; 3] = cpus
                .each_ref()
                .map(|cpu| graph.prepare(cpu, BATCH, 0).run());
            for (threads, other) in [(2, &two), (3, &three)] {
                let names = one
                    .gradients
                    .iter()
                    .filter(|(name, bits)| other.gradients[*name] != **bits);
                let different: Vec<&String> = names.map(|(name, _)| name).collect();
                assert!(
                    one == *other,
                    "{} ({} rewritten): {threads} threads give another loss or gradients of {different:?}",
                    graph.name,
                    graph.rewritten.len()
                );
            }
        }
    }
}
