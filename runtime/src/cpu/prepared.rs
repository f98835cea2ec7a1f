//! Plans with their memory.

use super::memory::{Cut, Memory};
use super::{Cpu, execute};
use crate::backend::{Backend, Executable, Fault, Observer, StepContext};
use crate::plan::{BufferId, Operand, Plan, share_persistent, touch};
use crate::session::gradient::{factored_sum_of_squares, global_norm, sum_of_squares};
use crate::session::optimizer::{Optimizer, Parameter, Step as OptimizerStep};
use std::ops::Range;
use std::time::Instant;

/// A plan and how its steps borrow from the block.
struct Ready {
    plan: Plan,
    cuts: Vec<Cut>,
}

/// Some plans of one model, and the block that they share.
pub struct Prepared<'c> {
    cpu: &'c Cpu,
    ready: Vec<Ready>,
    selected: usize,
    memory: Memory,
    /// By region: the end of what was touched, from the region's start.
    touched: [usize; 6],
}

impl<'c> Prepared<'c> {
    /// Allocates the block.
    ///
    /// # Errors
    /// [`Fault`] where there is not enough memory, or the plans do not belong together.
    pub fn new(cpu: &'c Cpu, plans: Vec<Plan>) -> Result<Self, Fault> {
        let bytes = plans.iter().map(Plan::total).max().unwrap_or(0);
        if !share_persistent(&plans) {
            return Err(Fault::Plans);
        }
        let memory = Memory::new(bytes).ok_or_else(|| Fault::Memory {
            bytes,
            device: cpu.name(),
        })?;
        let ready = plans.into_iter().map(|plan| Ready {
            cuts: plan
                .steps
                .iter()
                .map(|step| Cut::new(&plan, step))
                .collect(),
            plan,
        });
        let mut prepared = Prepared {
            cpu,
            ready: ready.collect(),
            selected: 0,
            memory,
            touched: [0; 6],
        };
        prepared.select(0)?;
        Ok(prepared)
    }

    fn touch(&mut self, start: usize, end: usize) {
        let regions = &self.ready[self.selected].plan.regions;
        touch(&mut self.touched, regions, start, end);
    }
}

impl Executable for Prepared<'_> {
    fn plan(&self) -> &Plan {
        &self.ready[self.selected].plan
    }

    fn select(&mut self, number: usize) -> Result<(), Fault> {
        self.selected = number.min(self.ready.len() - 1);
        for place in 0..self.plan().constants.len() {
            let (operand, tensor) = &self.plan().constants[place];
            let (buffer, bytes) = (operand.buffer, tensor.bytes.clone());
            self.write(buffer, &bytes)?;
        }
        Ok(())
    }

    fn write(&mut self, buffer: BufferId, bytes: &[u8]) -> Result<(), Fault> {
        self.fill(buffer, &mut |place| place.copy_from_slice(bytes))
    }

    fn fill(&mut self, buffer: BufferId, write: &mut dyn FnMut(&mut [u8])) -> Result<(), Fault> {
        let buffer = self.plan().buffer(buffer);
        let (start, end) = (buffer.offset, buffer.offset + buffer.bytes);
        write(&mut self.memory.bytes_mut()[start..end]);
        self.touch(start, end);
        Ok(())
    }

    fn read(&self, buffer: BufferId, bytes: &mut [u8]) -> Result<(), Fault> {
        let buffer = self.plan().buffer(buffer);
        let start = buffer.offset;
        bytes.copy_from_slice(&self.memory.bytes()[start..start + buffer.bytes]);
        Ok(())
    }

    fn run(
        &mut self,
        context: &StepContext,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(), Fault> {
        let Ready { plan, cuts } = &self.ready[self.selected];
        let memory = self.memory.bytes_mut();
        let touched = &mut self.touched;
        self.cpu.pool.install(|| {
            let mut ended = observer.is_some().then(Instant::now);
            for (number, (step, cut)) in plan.steps.iter().zip(cuts).enumerate() {
                if let Some(observer) = &mut observer
                    && observer.wants_inputs()
                {
                    observer.starting(number, step, &mut spans(plan, &step.inputs, memory));
                }
                let call = cut.call(step, memory);
                execute(&step.op, call, context).map_err(|message| Fault::Data {
                    node: step.node.clone(),
                    op: step.op.name(),
                    message,
                })?;
                for (start, end) in cut.spans() {
                    touch(touched, &plan.regions, start, end);
                }
                if let (Some(observer), Some(began)) = (&mut observer, ended) {
                    let mut written = spans(plan, &step.outputs, memory);
                    observer.finished(number, step, (began, Instant::now()), &mut written);
                    ended = Some(Instant::now());
                }
            }
            Ok(())
        })
    }

    fn gradient_norm(&mut self) -> Result<f64, Fault> {
        let plan = self.plan();
        let floats = |operand: &Operand| -> &[f32] {
            let buffer = plan.buffer(operand.buffer);
            let bytes = &self.memory.bytes()[buffer.offset..buffer.offset + buffer.bytes];
            bytemuck::cast_slice(bytes)
        };
        let squares = plan.trained.iter().map(|trained| {
            let gradient = floats(&trained.gradient);
            match &trained.factor {
                None => sum_of_squares(gradient),
                Some(factor) => {
                    let cut = factor.with(floats(&factor.direction));
                    factored_sum_of_squares(&cut, gradient)
                }
            }
        });
        Ok(self.cpu.pool.install(|| global_norm(squares)))
    }

    fn update(&mut self, optimizer: &Optimizer, step: &OptimizerStep) -> Result<(), Fault> {
        let Ready { plan, .. } = &self.ready[self.selected];
        let memory = self.memory.bytes_mut();
        let touched = &mut self.touched;
        self.cpu.pool.install(|| {
            for trained in &plan.trained {
                let span = |operand: &Operand| {
                    let buffer = plan.buffer(operand.buffer);
                    buffer.offset..buffer.offset + buffer.bytes
                };
                // Where there are fewer states, empty spans in their places.
                let state = |number| trained.state.get(number).map_or(0..0, span);
                let direction = trained.factor.as_ref().map(|factor| &factor.direction);
                let shape = &trained.parameter.ty.shape;
                // As much of the scratch as this parameter uses: what is measured is what was touched.
                let needs = size_of::<f32>() * optimizer.scratch(shape, trained.projected);
                let scratch = plan.scratch.as_ref().filter(|_| needs > 0).map(|scratch| {
                    let Range { start, end } = span(scratch);
                    start..end.min(start + needs)
                });
                let spans = [
                    span(&trained.parameter),
                    span(&trained.gradient),
                    state(0),
                    state(1),
                    state(2),
                    direction.map_or(0..0, span),
                    scratch.unwrap_or(0..0),
                ];
                let fault = |message: String| Fault::Data {
                    node: plan.buffer(trained.parameter.buffer).name.clone(),
                    op: "update",
                    message,
                };
                for span in &spans {
                    touch(touched, &plan.regions, span.start, span.end);
                }
                let parts = memory.get_disjoint_mut(spans);
                let [
                    parameter,
                    gradient,
                    first,
                    second,
                    third,
                    direction,
                    scratch,
                ] = parts.map_err(|error| fault(error.to_string()))?;
                let mut state: [&mut [f32]; 3] = [
                    bytemuck::cast_slice_mut(first),
                    bytemuck::cast_slice_mut(second),
                    bytemuck::cast_slice_mut(third),
                ];
                let weight = bytemuck::cast_slice_mut(parameter);
                let gradient = bytemuck::cast_slice_mut(gradient);
                let state = &mut state[..trained.state.len().min(3)];
                let updated = match &trained.factor {
                    None => {
                        let parameter = Parameter {
                            name: &plan.buffer(trained.parameter.buffer).name,
                            shape,
                            projected: trained.projected,
                        };
                        let scratch = bytemuck::cast_slice_mut(scratch);
                        optimizer.update_shaped(step, &parameter, weight, gradient, state, scratch)
                    }
                    Some(factor) => {
                        let cut = factor.with(bytemuck::cast_slice(direction));
                        optimizer.update_factored(step, weight, &cut, gradient, state)
                    }
                };
                updated.map_err(|error| fault(error.to_string()))?;
            }
            Ok(())
        })
    }

    fn touched(&self) -> [usize; 6] {
        self.touched
    }
}

/// The operands on one side of a step: their numbers, and their bytes.
fn spans<'m>(
    plan: &'m Plan,
    operands: &'m [Option<Operand>],
    memory: &'m [u8],
) -> impl Iterator<Item = (usize, &'m [u8])> {
    (operands.iter().enumerate()).filter_map(move |(number, operand)| {
        let buffer = plan.buffer(operand.as_ref()?.buffer);
        Some((number, &memory[buffer.offset..buffer.offset + buffer.bytes]))
    })
}
