//! From a program to a plan.

use super::arena::{Interval, PlaceError, Placement, place};
use super::fuse::fuse;
use super::order::order;
use super::{
    ALIGNMENT, Buffer, BufferId, Footprint, MAX_OPERANDS, Operand, Plan, Region, Step,
    TrainedOperands,
};
use crate::backend::Backend;
use crate::program::{Program, Source, TensorId};
use crate::tensor::TensorType;
use thiserror::Error;
use velora_graph::analysis::order::TaskError;

/// Why there is no plan.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The operations have no order.
    #[error("the operations cannot be ordered: {0}")]
    Order(#[from] TaskError),
    /// The arena is beyond any memory.
    #[error("the arena cannot be placed: {0}")]
    Place(#[from] PlaceError),
    /// An operation is too wide.
    #[error("node '{node}' has {count} operands on one side, and the runtime takes {MAX_OPERANDS}")]
    Operands {
        /// The node.
        node: String,
        /// How many it has.
        count: usize,
    },
}

/// Makes the plan of a program for a backend; the program's element-wise operations are fused for it.
///
/// # Errors
/// [`PlanError`] where an operation has too many operands.
pub fn build(program: &mut Program, backend: &dyn Backend) -> Result<Plan, PlanError> {
    fuse(program);
    build_unfused(program, backend)
}

/// The plan of a program as it is. Fusing is not to change a bit: this is what it is compared with.
///
/// # Errors
/// [`PlanError`] where an operation has too many operands.
pub fn build_unfused(program: &Program, backend: &dyn Backend) -> Result<Plan, PlanError> {
    let mut builder = Builder::new(program);
    let workspaces: Vec<usize> = (program.operations.iter())
        .map(|operation| {
            let types = |operands: &[Option<TensorId>]| -> Vec<Option<&TensorType>> {
                let operands = operands.iter();
                operands.map(|id| id.map(|id| program.ty(id))).collect()
            };
            let (inputs, outputs) = (types(&operation.inputs), types(&operation.outputs));
            backend.workspace(&operation.op, &inputs, &outputs)
        })
        .collect();
    let order = order(program, &builder.roots, &builder.regions, &workspaces)?;
    builder.persistent();
    for &place in &order.order {
        builder.step(place, workspaces[place])?;
    }
    builder.finish(order.given_peak)
}

/// What becomes of the tensors' bytes.
struct Builder<'p> {
    program: &'p Program,
    /// By tensor: its root.
    roots: Vec<TensorId>,
    /// By root: the region of its buffer.
    regions: Vec<Region>,
    /// By root: how many operations have yet to read it; one more where it lives on.
    readers: Vec<usize>,
    /// By root: its buffer.
    buffer: Vec<Option<BufferId>>,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
}

impl<'p> Builder<'p> {
    fn new(program: &'p Program) -> Self {
        let ids = (0..program.values.len()).map(|index| TensorId(index as u32));
        let roots: Vec<TensorId> = ids.map(|id| program.root(id)).collect();
        let mut regions: Vec<Region> = (program.values.iter())
            .map(|value| match &value.source {
                Source::Constant(_) => Region::Constants,
                Source::Input(position) => program.input_regions[*position],
                Source::Kept(region) => *region,
                _ => Region::Activations,
            })
            .collect();
        let mut readers = vec![0; program.values.len()];
        for operation in &program.operations {
            let mut read: Vec<TensorId> = operation.inputs.iter().flatten().copied().collect();
            for id in &mut read {
                *id = roots[id.index()];
            }
            read.sort_unstable();
            read.dedup();
            for root in read {
                readers[root.index()] += 1;
            }
        }
        for output in program.wanted() {
            readers[roots[output.index()].index()] += 1;
        }
        for trained in &program.trained {
            let root = roots[trained.gradient.index()];
            if matches!(program.value(root).source, Source::Computed) {
                regions[root.index()] = Region::Gradients;
            }
        }
        Builder {
            program,
            roots,
            regions,
            readers,
            buffer: vec![None; program.values.len()],
            buffers: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Makes the buffers of what stays from step to step, in an order that depends on the model only:
    /// all its plans have them in the same places.
    fn persistent(&mut self) {
        let program = self.program;
        for trained in &program.trained {
            self.buffer_of(trained.parameter);
            if self.regions[self.roots[trained.gradient.index()].index()] == Region::Gradients {
                self.buffer_of(trained.gradient);
            }
            for &state in &trained.state {
                self.buffer_of(state);
            }
        }
        if let Some(scratch) = program.scratch {
            self.buffer_of(scratch);
        }
        // Before the batch, of which another plan may read less.
        let staying = |&(_, region): &(_, &Region)| *region != Region::Inputs;
        let inputs = program.inputs.iter().zip(&program.input_regions);
        for (&input, _) in inputs.filter(staying) {
            if let Some(input) = input {
                self.buffer_of(input);
            }
        }
        for &input in program.inputs.iter().flatten() {
            self.buffer_of(input);
        }
    }

    /// The buffer of a tensor, made where there is none.
    fn buffer_of(&mut self, id: TensorId) -> BufferId {
        let root = self.roots[id.index()];
        if let Some(buffer) = self.buffer[root.index()] {
            return buffer;
        }
        let value = self.program.value(root);
        let region = self.regions[root.index()];
        let first = match region {
            Region::Activations => self.steps.len(),
            _ => 0,
        };
        let buffer = self.make(value.name.clone(), region, value.ty.bytes(), first);
        self.buffer[root.index()] = Some(buffer);
        buffer
    }

    fn make(&mut self, name: String, region: Region, bytes: usize, first: usize) -> BufferId {
        let id = BufferId(self.buffers.len() as u32);
        self.buffers.push(Buffer {
            name,
            region,
            bytes,
            offset: 0,
            lifetime: (first, first),
        });
        id
    }

    fn operand(&mut self, id: TensorId) -> Operand {
        Operand {
            buffer: self.buffer_of(id),
            ty: self.program.ty(id).clone(),
        }
    }

    /// Adds a step for an operation.
    fn step(&mut self, place: usize, workspace: usize) -> Result<(), PlanError> {
        let operation = &self.program.operations[place];
        let count = operation.inputs.len().max(operation.outputs.len());
        if count > MAX_OPERANDS {
            return Err(PlanError::Operands {
                node: operation.node.clone(),
                count,
            });
        }
        let now = self.steps.len();
        let inputs: Vec<Option<Operand>> = (operation.inputs.iter())
            .map(|input| input.map(|id| self.operand(id)))
            .collect();
        let mut read: Vec<TensorId> = (operation.inputs.iter().flatten())
            .map(|id| self.roots[id.index()])
            .collect();
        read.sort_unstable();
        read.dedup();
        for root in &read {
            self.readers[root.index()] -= 1;
        }
        for (output, input) in operation.op.in_place() {
            self.take_over(operation.outputs[output], operation.inputs[input]);
        }
        let outputs: Vec<Option<Operand>> = (operation.outputs.iter())
            .map(|output| output.map(|id| self.operand(id)))
            .collect();
        let workspace = (workspace > 0).then(|| {
            let name = format!("{}/workspace", operation.node);
            self.make(name, Region::Activations, workspace, now)
        });
        for operand in inputs.iter().chain(&outputs).flatten() {
            self.buffers[operand.buffer.index()].lifetime.1 = now;
        }
        self.steps.push(Step {
            op: operation.op.clone(),
            inputs,
            outputs,
            workspace,
            node: operation.node.clone(),
            backward: operation.backward,
        });
        Ok(())
    }

    /// Gives an output the bytes of an input that dies here, where the two fit.
    fn take_over(&mut self, output: Option<TensorId>, input: Option<TensorId>) {
        let (Some(output), Some(input)) = (output, input) else {
            return;
        };
        let (to, from) = (self.roots[output.index()], self.roots[input.index()]);
        let free = to == output
            && self.buffer[to.index()].is_none()
            && self.readers[from.index()] == 0
            && self.regions[from.index()] == Region::Activations
            && self.regions[to.index()] == Region::Activations
            && self.program.ty(from).bytes() == self.program.ty(to).bytes();
        if free {
            // A second output must not take the same input.
            self.readers[from.index()] = usize::MAX;
            self.buffer[to.index()] = self.buffer[from.index()];
        }
    }

    fn finish(mut self, file_order: i64) -> Result<Plan, PlanError> {
        let program = self.program;
        let inputs = (program.inputs.iter())
            .map(|id| id.map(|id| self.operand(id)))
            .collect();
        let outputs: Vec<Operand> = (program.outputs.iter())
            .map(|&id| self.operand(id))
            .collect();
        let trained: Vec<TrainedOperands> = (program.trained.iter())
            .map(|trained| TrainedOperands {
                parameter: self.operand(trained.parameter),
                gradient: self.operand(trained.gradient),
                state: trained.state.iter().map(|&id| self.operand(id)).collect(),
                projected: trained.projected,
                factor: (trained.factor.as_ref())
                    .map(|factor| factor.with(self.operand(factor.direction))),
            })
            .collect();
        let reset = program.reset.map(|id| self.operand(id));
        let scratch = program.scratch.map(|id| self.operand(id));
        let end = self.steps.len();
        let directions = trained
            .iter()
            .filter_map(|t| Some(&t.factor.as_ref()?.direction));
        for output in outputs.iter().chain(directions) {
            self.buffers[output.buffer.index()].lifetime.1 = end;
        }
        let mut constants = Vec::new();
        for (index, value) in program.values.iter().enumerate() {
            if let (Source::Constant(tensor), Some(buffer)) = (&value.source, self.buffer[index]) {
                let ty = value.ty.clone();
                constants.push((Operand { buffer, ty }, tensor.clone()));
            }
        }
        let mut regions = [(0, 0); 6];
        let mut footprint = Footprint::default();
        let mut offset = 0;
        for (region, span) in Region::ALL.into_iter().zip(&mut regions) {
            let start = offset;
            if region == Region::Activations {
                let placement = place_arena(&mut self.buffers, start)?;
                footprint = Footprint {
                    arena: placement.bytes as usize,
                    lower_bound: placement.lower_bound as usize,
                    file_order: usize::try_from(file_order).unwrap_or(0),
                    method: placement.method,
                };
            } else {
                for buffer in self.buffers.iter_mut().filter(|b| b.region == region) {
                    buffer.offset = offset;
                    buffer.lifetime = (0, end);
                    offset += buffer.bytes.next_multiple_of(ALIGNMENT);
                }
            }
            // Up to the last byte of the last buffer; only the next region's start is rounded up.
            let ends = self.buffers.iter().filter(|b| b.region == region);
            let last = ends.map(|b| b.offset + b.bytes).max().unwrap_or(start);
            *span = (start, last - start);
            offset = last.next_multiple_of(ALIGNMENT);
        }
        Ok(Plan {
            buffers: self.buffers,
            steps: self.steps,
            inputs,
            outputs,
            trained,
            reset,
            scratch,
            constants,
            regions,
            footprint,
        })
    }
}

/// Places the buffers of the arena behind `start`.
fn place_arena(buffers: &mut [Buffer], start: usize) -> Result<Placement, PlanError> {
    let mut within: Vec<&mut Buffer> = (buffers.iter_mut())
        .filter(|buffer| buffer.region == Region::Activations)
        .collect();
    let intervals: Vec<Interval> = (within.iter())
        .map(|buffer| Interval {
            bytes: buffer.bytes as u64,
            first: buffer.lifetime.0,
            last: buffer.lifetime.1,
        })
        .collect();
    let placement = place(&intervals, ALIGNMENT as u64)?;
    for (buffer, offset) in within.iter_mut().zip(&placement.offsets) {
        buffer.offset = start + *offset as usize;
    }
    Ok(placement)
}
