//! A tensor's bytes are taken away where the plan says that its life ends: whoever still reads them is found.

use super::device;
use super::graphs::{Graph, files};
use softgpu::Gpu;
use std::time::Instant;
use velora_passes::select::Preset;
use velora_runtime::backend::{Backend, Observer, StepContext};
use velora_runtime::plan::{Plan, Region, Step};

/// Undefines what has died.
struct Reaper<'g> {
    gpu: &'g Gpu,
    plan: Plan,
    block: u64,
    undefined: usize,
}

impl Observer for Reaper<'_> {
    fn finished(
        &mut self,
        number: usize,
        _step: &Step,
        _times: (Instant, Instant),
        _written: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
        let buffers = &self.plan.buffers;
        let activations = buffers.iter().filter(|b| b.region == Region::Activations);
        for dead in activations.clone().filter(|b| b.lifetime.1 == number) {
            // What was written over it in this step lives on.
            let mut free = vec![(dead.offset, dead.offset + dead.bytes)];
            let live = activations
                .clone()
                .filter(|b| b.lifetime.0 <= number && b.lifetime.1 > number);
            for live in live {
                let (start, end) = (live.offset, live.offset + live.bytes);
                free = (free.into_iter())
                    .flat_map(|(from, to)| [(from, to.min(start)), (from.max(end), to)])
                    .filter(|(from, to)| from < to)
                    .collect();
            }
            for (from, to) in free {
                assert!(self.gpu.undefine(self.block + from as u64, to - from));
                self.undefined += to - from;
            }
        }
    }
}

/// Runs a step of a graph and takes away what has died.
pub fn reap(graph: &Graph, gpu: &Gpu, cuda: &dyn Backend) -> Result<usize, String> {
    let mut ready = graph.prepare(cuda, 2, 0);
    let block = gpu.allocations().into_iter().max_by_key(|block| block.len);
    let mut reaper = Reaper {
        gpu,
        plan: ready.executable.plan().clone(),
        block: block.unwrap().at,
        undefined: 0,
    };
    let context = StepContext { seed: 1, step: 1 };
    let ran = ready.executable.run(&context, Some(&mut reaper));
    ran.map_err(|fault| fault.to_string())?;
    Ok(reaper.undefined)
}

#[test]
fn nothing_is_read_after_its_life() {
    for file in files() {
        // Large weights make no other plan.
        if file.to_str().unwrap().contains("768x4") {
            continue;
        }
        let original = Graph::read(&file);
        let rewritten = original.rewrite(Preset::Freeable, false);
        for graph in [original, rewritten] {
            let undefined = device::with(|device, cuda| reap(&graph, &device.gpu, cuda));
            assert!(undefined.unwrap() > 0, "{}", graph.name);
        }
    }
}
