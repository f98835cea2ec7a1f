//! Plans with their block on the device.
//!
//! A plan's steps become commands once, when it is prepared, and a captured graph when it is first run; a
//! step then is one launch of that graph. Where someone watches, the commands are executed one by one.

use super::Cuda;
use super::control::{Control, NUMBERS};
use super::driver::{DeviceError, DeviceMemory, Function, Replay, Stream};
use super::elementwise;
use super::encode::{Call, Check, Command, Launch, Operand, Scratch, Sink};
use super::optimizer::Update;
use super::staging::Staging;
use crate::backend::{Executable, Fault, Observer, StepContext};
use crate::plan::{self, BufferId, Plan, Region, share_persistent, touch};
use crate::session::optimizer::{Optimizer, Step as OptimizerStep};
use std::ops::Range;
use std::time::Instant;

/// A command that can be given to the device.
#[derive(Debug)]
pub(super) enum Order {
    /// A kernel that was loaded.
    Launch(Function, Launch),
    /// What needs nothing of that kind.
    Other(Command),
}

/// A plan, and what the device is told for it.
struct Ready {
    // Dropped before the functions that it refers to.
    replay: Option<Replay>,
    plan: Plan,
    orders: Vec<Order>,
    /// By step: its commands.
    steps: Vec<Range<usize>>,
    checks: Vec<Check>,
    /// By region: the end of what its steps touch.
    touches: [usize; 6],
    norm: Option<Vec<Order>>,
    update: Option<Update>,
}

/// Some plans of one model on a device, and the block that they share.
pub struct Prepared<'c> {
    ready: Vec<Ready>,
    selected: usize,
    control: Control,
    staging: Staging,
    stream: Stream,
    block: DeviceMemory,
    touched: [usize; 6],
    cuda: &'c Cuda,
}

impl<'c> Prepared<'c> {
    /// Allocates the block and compiles what the plans need.
    ///
    /// # Errors
    /// [`Fault`] where there is not enough memory, an operation has no kernel, or the device fails.
    pub fn new(cuda: &'c Cuda, plans: Vec<Plan>) -> Result<Self, Fault> {
        let bytes = plans.iter().map(Plan::total).max().unwrap_or(0);
        if !share_persistent(&plans) {
            return Err(Fault::Plans);
        }
        let device = |error| cuda.fault(error);
        cuda.context.enter().map_err(device)?;
        let stream = Stream::new(&cuda.context).map_err(device)?;
        let block = DeviceMemory::new(&cuda.context, bytes).map_err(|error| {
            match error.code.starts_with("CUDA_ERROR_OUT_OF_MEMORY") {
                true => Fault::Memory {
                    bytes,
                    device: cuda.describe(),
                },
                false => cuda.fault(error),
            }
        })?;
        let largest = (plans.iter().flat_map(|plan| &plan.buffers))
            .filter(|buffer| buffer.region == Region::Inputs)
            .map(|buffer| buffer.bytes)
            .max();
        let staging = Staging::new(&cuda.context, largest.unwrap_or(0)).map_err(device)?;
        let control = Control::new(&cuda.context, &stream).map_err(device)?;
        let kept = plans.first().map_or(0, Plan::persistent);
        // State of an optimiser is zero at first.
        if kept > 0 {
            stream.fill(block.address(), 0, kept).map_err(device)?;
        }
        // Nothing may be under way where what follows fails, and all is given back.
        stream.synchronize().map_err(device)?;
        let ready = (plans.into_iter())
            .map(|plan| Ready::new(cuda, plan, block.address(), &control))
            .collect::<Result<Vec<_>, Fault>>()?;
        let mut prepared = Prepared {
            ready,
            selected: 0,
            control,
            staging,
            stream,
            block,
            touched: [0; 6],
            cuda,
        };
        prepared.attempt(|prepared| prepared.staging.after(&prepared.stream))?;
        prepared.select(0)?;
        Ok(prepared)
    }

    /// Does something with the device, in its context; what fails becomes a fault.
    fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, DeviceError>,
    ) -> Result<T, Fault> {
        let cuda = self.cuda;
        let done = cuda.context.enter().and_then(|()| work(self));
        done.map_err(|error| cuda.fault(error))
    }

    fn touch(&mut self, start: usize, end: usize) {
        touch(
            &mut self.touched,
            &self.ready[self.selected].plan.regions,
            start,
            end,
        );
    }

    /// What a check found.
    fn outcome(&mut self) -> Result<f64, Fault> {
        let outcome = self.attempt(|prepared| prepared.control.outcome(&prepared.stream))?;
        if outcome.check == 0 {
            return Ok(outcome.squares);
        }
        self.attempt(|prepared| prepared.control.clear(&prepared.stream))?;
        let ready = &self.ready[self.selected];
        let check = ready.checks.get(outcome.check as usize - 1);
        let step = check.and_then(|check| ready.plan.steps.get(check.step));
        match (check, step) {
            (Some(check), Some(step)) => Err(Fault::Data {
                node: step.node.clone(),
                op: step.op.name(),
                message: (check.message)(outcome.position, outcome.value),
            }),
            _ => Err(Fault::Device {
                device: self.cuda.describe(),
                message: format!("an unknown check {} failed", outcome.check),
            }),
        }
    }

    /// Executes the steps one by one and shows them.
    fn watch(&mut self, observer: &mut dyn Observer) -> Result<(), Fault> {
        for number in 0..self.plan().steps.len() {
            if observer.wants_inputs() {
                let read = self.copies(number, |step| &step.inputs)?;
                let step = &self.plan().steps[number];
                let mut read = read.iter().map(|(place, bytes)| (*place, &bytes[..]));
                observer.starting(number, step, &mut read);
            }
            let began = Instant::now();
            self.attempt(|prepared| {
                let ready = &prepared.ready[prepared.selected];
                let orders = &ready.orders[ready.steps[number].clone()];
                enqueue(orders, prepared.cuda, &prepared.stream)?;
                prepared.stream.synchronize()
            })?;
            let ended = Instant::now();
            self.outcome()?;
            let written = self.copies(number, |step| &step.outputs)?;
            let step = &self.plan().steps[number];
            let mut written = written.iter().map(|(place, bytes)| (*place, &bytes[..]));
            observer.finished(number, step, (began, ended), &mut written);
        }
        Ok(())
    }

    /// The operands on one side of a step, copied to the host.
    fn copies(
        &self,
        number: usize,
        side: impl Fn(&plan::Step) -> &Vec<Option<plan::Operand>>,
    ) -> Result<Vec<(usize, Vec<u8>)>, Fault> {
        let operands = side(&self.plan().steps[number]).iter().enumerate();
        let present = operands.filter_map(|(place, operand)| Some((place, operand.as_ref()?)));
        present
            .map(|(place, operand)| {
                let mut bytes = vec![0; self.plan().buffer(operand.buffer).bytes];
                self.read(operand.buffer, &mut bytes)?;
                Ok((place, bytes))
            })
            .collect()
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // What is freed may still be at work.
        let entered = self.cuda.context.enter();
        let done = entered.and_then(|()| self.stream.synchronize());
        self.cuda.context.defer(done);
    }
}

impl Ready {
    fn new(cuda: &Cuda, plan: Plan, block: u64, control: &Control) -> Result<Self, Fault> {
        let mut sink = Sink::new(cuda.context.facts(), control.context(), control.report());
        let mut steps = Vec::with_capacity(plan.steps.len());
        let mut touches = [0; 6];
        for (number, step) in plan.steps.iter().enumerate() {
            let first = sink.begin(number);
            cuda.encode(&step.op, &call(&plan, step, block), &mut sink)
                .map_err(|unsupported| Fault::Unsupported {
                    node: step.node.clone(),
                    op: step.op.name(),
                    message: unsupported.0,
                })?;
            steps.push(first..sink.begin(number));
            let operands = step.inputs.iter().chain(&step.outputs).flatten();
            let buffers = operands.map(|operand| operand.buffer).chain(step.workspace);
            for buffer in buffers.map(|id| plan.buffer(id)) {
                let (start, end) = (buffer.offset, buffer.offset + buffer.bytes);
                touch(&mut touches, &plan.regions, start, end);
            }
        }
        let (commands, checks) = sink.finish();
        Ok(Ready {
            replay: None,
            orders: resolve(cuda, commands).map_err(|error| cuda.fault(error))?,
            plan,
            steps,
            checks,
            touches,
            norm: None,
            update: None,
        })
    }
}

/// The operands of a step at their addresses.
fn call<'p>(plan: &'p Plan, step: &'p plan::Step, block: u64) -> Call<'p> {
    let operands = |side: &'p [Option<plan::Operand>]| {
        let side = side.iter().map(|operand| operand.as_ref());
        side.map(|operand| operand.map(|operand| located(plan, operand, block)))
            .collect()
    };
    let workspace = step.workspace.map(|id| plan.buffer(id));
    Call {
        inputs: operands(&step.inputs),
        outputs: operands(&step.outputs),
        workspace: workspace.map_or(Scratch::default(), |buffer| Scratch {
            address: block + buffer.offset as u64,
            bytes: buffer.bytes,
        }),
    }
}

/// An operand at its address.
pub(super) fn located<'p>(plan: &Plan, operand: &'p plan::Operand, block: u64) -> Operand<'p> {
    Operand {
        ty: &operand.ty,
        address: block + plan.buffer(operand.buffer).offset as u64,
    }
}

/// Loads the kernels of commands; those that were generated are compiled together.
pub(super) fn resolve(cuda: &Cuda, commands: Vec<Command>) -> Result<Vec<Order>, DeviceError> {
    let generated = commands.iter().filter_map(|command| match command {
        Command::Launch(launch) if launch.unit.name == elementwise::FILE => {
            Some(&launch.unit.text[..])
        }
        _ => None,
    });
    let generated = elementwise::merged(generated.collect());
    let order = |command| {
        Ok(match command {
            Command::Launch(launch) => {
                let unit = match launch.unit.name == elementwise::FILE {
                    true => &generated,
                    false => &launch.unit,
                };
                Order::Launch(cuda.compiler.function(unit, &launch.kernel)?, launch)
            }
            other => Order::Other(other),
        })
    };
    commands.into_iter().map(order).collect()
}

/// Gives commands to a stream.
pub(super) fn enqueue(orders: &[Order], cuda: &Cuda, stream: &Stream) -> Result<(), DeviceError> {
    for order in orders {
        match order {
            Order::Launch(function, launch) => {
                let arguments = launch.arguments.bytes();
                // SAFETY: families make the arguments of their kernels' parameters, which the tests compare
                // with the compiled code; the addresses lie in the plan's block, which outlives the stream's
                // work.
                let launched = unsafe {
                    function.launch(launch.grid, launch.block, launch.shared, arguments, stream)
                };
                launched.map_err(|error| DeviceError {
                    code: format!("{} ({} in {})", error.code, launch.kernel, launch.unit.name),
                    ..error
                })?;
            }
            // SAFETY: as above.
            Order::Other(Command::Product(product)) => unsafe {
                cuda.lt.enqueue(product, stream)?;
            },
            Order::Other(Command::Copy { to, from, bytes }) => stream.copy(*to, *from, *bytes)?,
            Order::Other(Command::Fill { to, byte, bytes }) => stream.fill(*to, *byte, *bytes)?,
            // Launches are resolved.
            Order::Other(Command::Launch(_)) => {}
        }
    }
    Ok(())
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
        let place = self.plan().buffer(buffer);
        let (start, end) = (place.offset, place.offset + place.bytes);
        self.attempt(|prepared| {
            let Prepared {
                staging,
                block,
                stream,
                ..
            } = prepared;
            staging.write(block, start, bytes, stream)
        })?;
        self.touch(start, end);
        Ok(())
    }

    fn fill(&mut self, buffer: BufferId, write: &mut dyn FnMut(&mut [u8])) -> Result<(), Fault> {
        let place = self.plan().buffer(buffer);
        let (start, bytes) = (place.offset, place.bytes);
        if bytes > self.staging.slot_bytes() {
            let mut whole = vec![0; bytes];
            write(&mut whole);
            return self.write(buffer, &whole);
        }
        self.attempt(|prepared| {
            let Prepared {
                staging,
                block,
                stream,
                ..
            } = prepared;
            staging.fill(block, start, bytes, write, stream)
        })?;
        self.touch(start, start + bytes);
        Ok(())
    }

    fn read(&self, buffer: BufferId, bytes: &mut [u8]) -> Result<(), Fault> {
        let place = self.plan().buffer(buffer);
        let entered = self.cuda.context.enter();
        let read = entered
            .and_then(|()| (self.staging).read(&self.block, place.offset, bytes, &self.stream));
        read.map_err(|error| self.cuda.fault(error))
    }

    fn run(
        &mut self,
        context: &StepContext,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), Fault> {
        self.attempt(|prepared| {
            (prepared.control).write(context, [0.0; NUMBERS], &prepared.stream)
        })?;
        match observer {
            Some(observer) => self.watch(observer)?,
            None => {
                self.attempt(|prepared| {
                    let cuda = prepared.cuda;
                    let stream = &prepared.stream;
                    let ready = &mut prepared.ready[prepared.selected];
                    let orders = &ready.orders;
                    let replay = match &mut ready.replay {
                        Some(replay) => replay,
                        none => none.insert(stream.capture(|| enqueue(orders, cuda, stream))?),
                    };
                    replay.launch(stream)?;
                    prepared.staging.after(stream)
                })?;
                self.outcome()?;
            }
        }
        let ready = &self.ready[self.selected];
        for (touched, end) in self.touched.iter_mut().zip(ready.touches) {
            *touched = (*touched).max(end);
        }
        Ok(())
    }

    fn gradient_norm(&mut self) -> Result<f64, Fault> {
        self.attempt(|prepared| {
            let block = prepared.block.address();
            let ready = &mut prepared.ready[prepared.selected];
            let orders = match &mut ready.norm {
                Some(orders) => orders,
                none => {
                    let facts = prepared.cuda.context.facts();
                    let mut sink =
                        Sink::new(facts, prepared.control.context(), prepared.control.report());
                    super::optimizer::norm(&ready.plan, block, &prepared.control, &mut sink)?;
                    none.insert(resolve(prepared.cuda, sink.finish().0)?)
                }
            };
            prepared.control.clear(&prepared.stream)?;
            enqueue(orders, prepared.cuda, &prepared.stream)
        })?;
        Ok(self.outcome()?.sqrt())
    }

    fn update(&mut self, optimizer: &Optimizer, step: &OptimizerStep) -> Result<(), Fault> {
        let block = self.block.address();
        let ready = &self.ready[self.selected];
        if ready
            .update
            .as_ref()
            .is_none_or(|update| !update.is_for(optimizer))
        {
            self.cuda
                .context
                .enter()
                .map_err(|error| self.cuda.fault(error))?;
            let update = Update::new(self.cuda, &ready.plan, optimizer, block, &self.control)?;
            self.ready[self.selected].update = Some(update);
        }
        self.attempt(|prepared| {
            let numbers = super::optimizer::numbers(optimizer, step);
            (prepared.control).write(&StepContext::default(), numbers, &prepared.stream)?;
            let ready = &mut prepared.ready[prepared.selected];
            if let Some(update) = &mut ready.update {
                update.launch(prepared.cuda, &prepared.stream)?;
            }
            prepared.staging.after(&prepared.stream)
        })?;
        let ready = &self.ready[self.selected];
        let trained = ready.plan.trained.iter();
        let operands = trained.flat_map(|trained| {
            let direction = trained.factor.as_ref().map(|factor| &factor.direction);
            ([&trained.parameter, &trained.gradient].into_iter())
                .chain(&trained.state)
                .chain(direction)
        });
        for buffer in operands.map(|operand| ready.plan.buffer(operand.buffer)) {
            let (start, end) = (buffer.offset, buffer.offset + buffer.bytes);
            touch(&mut self.touched, &ready.plan.regions, start, end);
        }
        Ok(())
    }

    fn touched(&self) -> [usize; 6] {
        self.touched
    }
}
