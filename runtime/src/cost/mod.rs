//! What a step of a plan costs, whatever executes it: the bytes that it must move at least, and the
//! operations that it computes. From these and the peaks of a [`device`], [`roofline`] makes the least time.
//!
//! **Bytes.** Every tensor that a step reads is read once, however often the step names it, and every tensor
//! that it writes is written once; one that is written over its input counts as both. Of what is strided,
//! broadcast, gathered or scattered only the elements that are touched count. Scratch does not count, nor
//! does anything that a cache would have to fetch again.
//!
//! **FLOP.** A product of an m × k and a k × n matrix is 2mnk. An element-wise operation counts each of its
//! instructions, but for loads and constants, once by element: a function like the exponential, a division,
//! a comparison and a conversion are one each. A reduction is one by element, and one more where each element
//! goes through a function first. Softmax, normalisations, losses and optimisers count the instructions of
//! their formula by element. What is worked out once by row, or once by tensor, is left out. A number that is
//! drawn at random is one.

pub mod device;
mod operation;
pub mod roofline;
mod update;

pub use update::{gradient_norm, update};

use crate::ops::Op;
use crate::ops::window::Window;
use crate::plan::{BufferId, Operand, Step};
use crate::tensor::TensorType;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use velora_graph::shapes::DataType;

/// The least that has to be moved and computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Operations, by the convention of this module.
    pub flops: u64,
}

impl Cost {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            read: self.read + other.read,
            written: self.written + other.written,
            flops: self.flops + other.flops,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), Add::add)
    }
}

/// How elements are thought to be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// As their types say.
    #[default]
    Declared,
    /// All of type `float` in 16 bits: what a graph would cost that had been exported so.
    Halved,
}

impl Storage {
    /// Bytes of some elements of a type.
    pub fn bytes(self, data_type: DataType, elements: u64) -> u64 {
        let bits = match (self, data_type) {
            (Storage::Halved, DataType::FLOAT) => Some(16),
            _ => data_type.bits().and_then(|bits| u64::try_from(bits).ok()),
        };
        // Types without a size have no place in a plan.
        bits.map_or(0, |bits| (elements * bits).div_ceil(8))
    }
}

/// What part of a device limits the arithmetic of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Products of matrices of this type, which some devices have units of their own for.
    Product(DataType),
    /// Everything else.
    Vector,
}

/// Kinds of kernels, as reports tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Matrix products, convolutions and recurrent layers.
    Products,
    /// Softmax, normalisations, losses and reductions.
    Norms,
    /// Element-wise chains, sums of gradients, random numbers and conversions.
    Elementwise,
    /// What only moves elements.
    Movement,
    /// Compressions, directions, and what is made of compressed activations; not the small products.
    Velora,
    /// The optimiser's.
    Update,
}

impl Class {
    /// All of them, in the order of reports.
    pub const ALL: [Class; 6] = [
        Class::Products,
        Class::Norms,
        Class::Elementwise,
        Class::Movement,
        Class::Velora,
        Class::Update,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Products => "products",
            Class::Norms => "norms",
            Class::Elementwise => "element-wise",
            Class::Movement => "movement",
            Class::Velora => "velora",
            Class::Update => "update",
        }
    }

    /// The kind of an operation.
    pub fn of(op: &Op) -> Class {
        match op {
            Op::MatMul(_) | Op::Recurrent(_) => Class::Products,
            Op::Window(Window::Conv(_) | Window::ConvInput(_) | Window::ConvWeight(_)) => {
                Class::Products
            }
            Op::Window(
                Window::ChannelSum { .. }
                | Window::Pool(_)
                | Window::MaxGrad { .. }
                | Window::AverageGrad(_),
            )
            | Op::Reduce(_)
            | Op::Normalize(_)
            | Op::Loss(_) => Class::Norms,
            Op::Elementwise(_) | Op::Random(_) | Op::Accumulate(_) | Op::Dequantize(_) => {
                Class::Elementwise
            }
            Op::Movement(_) | Op::Index(_) => Class::Movement,
            Op::Velora(_) | Op::Directions(_) => Class::Velora,
        }
    }
}

/// What a step costs.
pub fn of_step(step: &Step, storage: Storage) -> Cost {
    of_operation(&step.op, &step.inputs, &step.outputs, storage)
}

/// What an operation costs on some operands; those with the same buffer are the same bytes.
pub fn of_operation(
    op: &Op,
    inputs: &[Option<Operand>],
    outputs: &[Option<Operand>],
    storage: Storage,
) -> Cost {
    let work = operation::work(op, &operation::Operands { inputs, outputs });
    let bytes = |operands: &[Option<Operand>], touched: &[u64]| {
        // By buffer the most that one operand touches: the parts that several touch may be the same.
        let mut most: Vec<(BufferId, u64)> = Vec::with_capacity(operands.len());
        for (operand, &elements) in operands.iter().zip(touched) {
            let Some(operand) = operand else { continue };
            let bytes = storage.bytes(operand.ty.data_type, elements);
            match most
                .iter_mut()
                .find(|(buffer, _)| *buffer == operand.buffer)
            {
                Some((_, known)) => *known = bytes.max(*known),
                None => most.push((operand.buffer, bytes)),
            }
        }
        most.iter().map(|&(_, bytes)| bytes).sum()
    };
    Cost {
        read: bytes(inputs, &work.read),
        written: bytes(outputs, &work.written),
        flops: work.flops,
    }
}

/// What limits the arithmetic of an operation.
///
/// Recurrent layers count as products altogether, though their gates are none.
pub fn arithmetic(op: &Op, inputs: &[Option<Operand>]) -> Arithmetic {
    let first = inputs.iter().flatten().next();
    match (Class::of(op), first) {
        (Class::Products, Some(operand)) => Arithmetic::Product(operand.ty.data_type),
        _ => Arithmetic::Vector,
    }
}

/// The elements of a type.
fn elements(ty: &TensorType) -> u64 {
    ty.elements() as u64
}
