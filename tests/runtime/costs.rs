//! What the steps of plans cost, on all graphs.

use super::graphs::{Graph, files};
use velora_passes::select::Preset;
use velora_runtime::cost::{Storage, of_step};
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::{Operand, Plan};

/// The bytes of some operands; those of one buffer count once.
fn bytes(operands: &[Option<Operand>]) -> u64 {
    let mut buffers: Vec<(u32, usize)> = Vec::new();
    for operand in operands.iter().flatten() {
        let bytes = operand.ty.bytes();
        match buffers.iter_mut().find(|(id, _)| *id == operand.buffer.0) {
            Some((_, known)) => *known = bytes.max(*known),
            None => buffers.push((operand.buffer.0, bytes)),
        }
    }
    buffers.iter().map(|&(_, bytes)| bytes as u64).sum()
}

/// Returns how many steps there are.
fn check(name: &str, plan: &Plan) -> usize {
    let (mut moved, mut outputs) = (0, 0);
    for step in &plan.steps {
        let at = format!("{name}: {} ({})", step.node, step.op.name());
        let cost = of_step(step, Storage::Declared);
        let (read, written) = (bytes(&step.inputs), bytes(&step.outputs));
        assert!(cost.read <= read, "{at}: reads {} of {read}", cost.read);
        assert!(
            cost.written <= written,
            "{at}: writes {} of {written}",
            cost.written
        );
        assert!(cost.bytes() > 0 || read + written == 0, "{at}: no bytes");
        let halved = of_step(step, Storage::Halved);
        assert_eq!(halved.flops, cost.flops, "{at}");
        // Of each operand half, rounded up to bytes.
        assert!(2 * halved.bytes() >= cost.bytes(), "{at}");
        moved += cost.bytes();
        outputs += written;
    }
    assert!(moved >= outputs, "{name}: {moved} bytes for {outputs}");
    plan.steps.len()
}

#[test]
fn every_step_moves_what_it_makes_and_no_more_than_it_names() {
    let cpu = Cpu::new(1).unwrap();
    let mut steps = 0;
    for file in files() {
        let original = Graph::read(&file);
        for graph in [original.rewrite(Preset::Freeable, false), original] {
            steps += check(&graph.name, &graph.plan(&cpu, 2, 0).0);
        }
    }
    assert!(steps > 1000, "{steps} steps");
}
