//! Compares a device with the CPU, operation by operation.
//!
//! [`Check`] watches an execution. It takes what the device reads in a step, has the CPU's kernel do the same
//! to it, and compares what both write, element by element: errors do not add up over a step, and what is
//! found is the operation that went wrong. The difference that is allowed is derived from the operands
//! ([`ball`]): each side may round after every operation, add in any order, and be off by what is documented
//! for its elementary functions, and so may lie in a ball around the exact result; two that do are at most two
//! radii apart.

pub mod ball;
mod bounds;
mod expression;
pub mod functions;
mod loss;
mod normalize;
mod recurrent;
mod unit_vectors;

use crate::backend::{Observer, StepContext};
use crate::cpu::Cpu;
use crate::cpu::apart::{Held, integers};
use crate::plan::{Plan, Step};
use crate::tensor::TensorType;
use ball::Ball;
use bounds::{Allowed, Case};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// How a device computes, as far as bounds depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precision {
    /// The operands of products of 32 bits are rounded to the 11 significant bits of TF32.
    pub tf32: bool,
}

/// An element of which the device and the CPU make different numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Disagreement {
    /// The step of the plan.
    pub step: usize,
    /// The node it comes from.
    pub node: String,
    /// The operation.
    pub op: &'static str,
    /// The position of the output.
    pub output: usize,
    /// The tensor that owns the output's bytes.
    pub tensor: String,
    /// The element, counted in row-major order.
    pub element: usize,
    /// What the device has.
    pub device: f64,
    /// What the CPU has.
    pub cpu: f64,
    /// By how much they may differ; 0 where they must be the same.
    pub bound: f64,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node '{}' ({}), output {} (tensor '{}'), element {}: the device has {:e}, the CPU {:e} from the \
             same inputs; they may differ by {:.3e}",
            self.node,
            self.op,
            self.output,
            self.tensor,
            self.element,
            self.device,
            self.cpu,
            self.bound
        )
    }
}

/// What was compared of one kind of operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    /// Executions.
    pub operations: u64,
    /// Tensors.
    pub tensors: u64,
    /// Elements.
    pub elements: u64,
    /// Elements that were not what they should be.
    pub wrong: u64,
    /// Elements of which nothing can be said: where operands or sums are infinite, or a function is not
    /// defined within the error of its operand.
    pub unknown: u64,
    /// The largest difference of the device and the CPU, as a part of its bound.
    pub largest: f64,
    /// The node where that was.
    pub node: String,
    /// The largest distance of the CPU from the exact result, as a part of what it may be: near 0, bounds are
    /// wide; above 1, they are wrong.
    pub cpu: f64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// The first disagreement, in the order of the plan.
    pub first: Option<Disagreement>,
    /// By kind of operation.
    pub kinds: BTreeMap<&'static str, Compared>,
    /// Operations that could not be compared: node, kind and why.
    pub left_out: Vec<(String, &'static str, String)>,
}

impl Findings {
    /// All kinds together, and the kind with the largest difference.
    pub fn total(&self) -> (Compared, &'static str) {
        let (mut total, mut of) = (Compared::default(), "");
        for (&op, kind) in &self.kinds {
            total.operations += kind.operations;
            total.tensors += kind.tensors;
            total.elements += kind.elements;
            total.wrong += kind.wrong;
            total.unknown += kind.unknown;
            total.cpu = total.cpu.max(kind.cpu);
            if kind.largest > total.largest {
                (total.largest, of) = (kind.largest, op);
                total.node.clone_from(&kind.node);
            }
        }
        (total, of)
    }
}

impl fmt::Display for Findings {
    /// One line where all is well.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = &self.first {
            let wrong = self.total().0.wrong;
            return write!(f, "{first}; {wrong} elements differ by more than they may");
        }
        let (total, op) = self.total();
        write!(
            f,
            "checked {} tensors of {} operations against the CPU: all within their bounds",
            total.tensors, total.operations
        )?;
        if total.largest > 0.0 {
            write!(
                f,
                "; largest {:.2} of its bound, in '{}' ({op})",
                total.largest, total.node
            )?;
        }
        if total.unknown > 0 {
            write!(f, "; {} elements without a bound", total.unknown)?;
        }
        if let Some((node, op, why)) = self.left_out.first() {
            let count = self.left_out.len();
            write!(
                f,
                "; {count} operations left out, the first '{node}' ({op}): {why}"
            )?;
        }
        Ok(())
    }
}

/// Watches an execution and compares it with the CPU.
pub struct Check {
    cpu: Cpu,
    buffers: Vec<String>,
    context: StepContext,
    precision: Precision,
    /// Executions of the plan so far.
    executions: u64,
    /// What the step that is running reads.
    inputs: Vec<Option<Held>>,
    findings: Findings,
}

impl Check {
    /// A check of an execution of a plan in a context, or of some of them, the step of whose contexts counts up;
    /// `None` where the CPU's threads cannot be started.
    ///
    /// `threads` is the number of threads of the CPU, 0 for as many as there are cores.
    pub fn new(
        plan: &Plan,
        threads: usize,
        context: StepContext,
        precision: Precision,
    ) -> Option<Self> {
        Some(Check {
            cpu: Cpu::new(threads)?,
            buffers: plan.buffers.iter().map(|b| b.name.clone()).collect(),
            context,
            precision,
            executions: 0,
            inputs: Vec::new(),
            findings: Findings::default(),
        })
    }

    /// What was found so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Compares what a step wrote.
    fn compare(
        &mut self,
        number: usize,
        step: &Step,
        written: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) -> Result<(), String> {
        let op = step.op.name();
        let outputs: Vec<_> = (step.outputs.iter())
            .map(|output| output.as_ref().map(|output| output.ty.clone()))
            .collect();
        let inputs = std::mem::take(&mut self.inputs);
        let read: Vec<_> = inputs.iter().map(Option::as_ref).collect();
        let expected = (self.cpu).execute_apart(&step.op, &read, &outputs, &self.context)?;
        let allowed = bounds::allowed(&Case {
            cpu: &self.cpu,
            op: &step.op,
            inputs: &inputs,
            outputs: &outputs,
            written: &expected,
            context: self.context,
            precision: self.precision,
        })?;
        let kind = self.findings.kinds.entry(op).or_default();
        kind.operations += 1;
        for (place, bytes) in written {
            let (Some(Some(ty)), Some(Some(expected))) = (outputs.get(place), expected.get(place))
            else {
                continue;
            };
            let same = Allowed::Same;
            let sides = Sides {
                device: bytes.get(..ty.bytes()).unwrap_or(bytes),
                cpu: expected.bytes(),
                allowed: allowed.get(place).unwrap_or(&same),
            };
            kind.tensors += 1;
            let before = kind.largest;
            let wrong = sides.compare(ty, kind);
            if kind.largest > before {
                kind.node.clone_from(&step.node);
            }
            if let (Some(wrong), None) = (wrong, &self.findings.first) {
                let buffer = step.outputs[place].as_ref().map(|o| o.buffer.index());
                let tensor = buffer.and_then(|buffer| self.buffers.get(buffer));
                self.findings.first = Some(Disagreement {
                    step: number,
                    node: step.node.clone(),
                    op,
                    output: place,
                    tensor: tensor.cloned().unwrap_or_default(),
                    element: wrong.element,
                    device: wrong.device,
                    cpu: wrong.cpu,
                    bound: wrong.bound,
                });
            }
        }
        Ok(())
    }
}

impl Observer for Check {
    fn wants_inputs(&self) -> bool {
        true
    }

    fn starting(
        &mut self,
        number: usize,
        step: &Step,
        read: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
        if number == 0 {
            // A step of training may be several executions.
            self.context.step += u64::from(self.executions > 0);
            self.executions += 1;
        }
        self.inputs.clear();
        self.inputs.resize_with(step.inputs.len(), || None);
        for (place, bytes) in read {
            if let (Some(to), Some(Some(operand))) =
                (self.inputs.get_mut(place), step.inputs.get(place))
            {
                *to = Held::copy(&operand.ty, bytes);
            }
        }
    }

    fn finished(
        &mut self,
        number: usize,
        step: &Step,
        _times: (Instant, Instant),
        written: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
        if let Err(why) = self.compare(number, step, written) {
            let left_out = (step.node.clone(), step.op.name(), why);
            self.findings.left_out.push(left_out);
        }
    }
}

/// What both have of a tensor.
struct Sides<'s> {
    device: &'s [u8],
    cpu: &'s [u8],
    allowed: &'s Allowed,
}

/// An element that is not what it should be.
struct Wrong {
    element: usize,
    device: f64,
    cpu: f64,
    bound: f64,
}

impl Sides<'_> {
    /// Compares all elements; the first one that is wrong.
    fn compare(&self, ty: &TensorType, kind: &mut Compared) -> Option<Wrong> {
        let device = Held::copy(ty, self.device)?;
        let cpu = Held::copy(ty, self.cpu)?;
        let mut first = None;
        let mut note = |element: usize, pair: Pair, ball: Option<Ball>| {
            kind.elements += 1;
            if let Some(bound) = judge(&pair, ball, kind) {
                kind.wrong += 1;
                first.get_or_insert(Wrong {
                    element,
                    device: pair.device,
                    cpu: pair.cpu,
                    bound,
                });
            }
        };
        let ball = |element: usize| match self.allowed {
            Allowed::Same => None,
            Allowed::Near(balls) => Some(balls.get(element).copied().unwrap_or(Ball::ZERO)),
        };
        if ty.data_type.is_float() {
            let pairs = device.to_f64().into_iter().zip(cpu.to_f64());
            for (element, (device, cpu)) in pairs.enumerate() {
                let same = device == cpu || (device.is_nan() && cpu.is_nan());
                note(element, Pair { device, cpu, same }, ball(element));
            }
            return first;
        }
        let whole = |held: &Held| integers(ty.data_type, held.bytes());
        let (whole_device, whole_cpu) = (whole(&device), whole(&cpu));
        // Integers of 4 bits lie two to a byte: they are only ever moved.
        let packed = whole_cpu.is_empty();
        let (whole_device, whole_cpu) = match packed {
            true => (bytes(device.bytes()), bytes(cpu.bytes())),
            false => (whole_device, whole_cpu),
        };
        for (element, (device, cpu)) in whole_device.into_iter().zip(whole_cpu).enumerate() {
            let same = device == cpu;
            let (device, cpu) = (device as f64, cpu as f64);
            let ball = if packed { None } else { ball(element) };
            note(element, Pair { device, cpu, same }, ball);
        }
        first
    }
}

fn bytes(bytes: &[u8]) -> Vec<i128> {
    bytes.iter().map(|&byte| byte.into()).collect()
}

/// An element on both sides.
struct Pair {
    device: f64,
    cpu: f64,
    /// Whether both are the same number, or none.
    same: bool,
}

/// Whether a pair is wrong: by how much it may differ.
fn judge(pair: &Pair, ball: Option<Ball>, kind: &mut Compared) -> Option<f64> {
    let ball = match ball {
        None => return (!pair.same).then_some(0.0),
        Some(ball) => ball,
    };
    if ball.rad.is_infinite() {
        kind.unknown += 1;
        return None;
    }
    if ball.is_exact() {
        return (!pair.same).then_some(0.0);
    }
    let bound = 2.0 * ball.rad;
    if pair.cpu.is_finite() {
        kind.cpu = kind.cpu.max((pair.cpu - ball.mid).abs() / ball.rad);
    }
    if pair.same {
        return None;
    }
    let part = (pair.device - pair.cpu).abs() / bound;
    if part.is_finite() {
        kind.largest = kind.largest.max(part);
    }
    // No number and infinity are beyond any bound.
    let within = part <= 1.0;
    (!within).then_some(bound)
}
