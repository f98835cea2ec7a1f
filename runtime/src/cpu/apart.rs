//! One operation on operands that lie in no plan: what a check of another device compares with.

use super::memory::{Call, Data, Input, Memory, Output};
use super::{Cpu, execute};
use crate::backend::{Backend, StepContext};
use crate::ops::Op;
use crate::tensor::TensorType;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// A tensor with memory of its own, aligned as those of a plan.
pub(crate) struct Held {
    /// Element type and dimensions.
    pub ty: TensorType,
    memory: Memory,
}

impl Held {
    /// A tensor of zeros; `None` where there is no memory for it.
    pub fn zeros(ty: &TensorType) -> Option<Self> {
        Some(Held {
            ty: ty.clone(),
            memory: Memory::new(ty.bytes())?,
        })
    }

    /// A copy; `None` where there is no memory for it, or the bytes are too few.
    pub fn copy(ty: &TensorType, bytes: &[u8]) -> Option<Self> {
        let mut held = Held::zeros(ty)?;
        let count = ty.bytes();
        held.bytes_mut().copy_from_slice(bytes.get(..count)?);
        Some(held)
    }

    /// Numbers of 64 bits in the shape of another tensor; `None` where there is no memory for them.
    pub fn of_f64(shape: &[usize], numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let mut held = Held::zeros(&TensorType::new(DataType::DOUBLE, shape))?;
        let places: &mut [f64] = bytemuck::cast_slice_mut(held.bytes_mut());
        for (place, number) in places.iter_mut().zip(numbers) {
            *place = number;
        }
        Some(held)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[..self.ty.bytes()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let count = self.ty.bytes();
        &mut self.memory.bytes_mut()[..count]
    }

    /// The elements in 64 bits; none where they are no floating-point numbers.
    pub fn to_f64(&self) -> Vec<f64> {
        reals(self.ty.data_type, self.bytes())
    }
}

/// Elements of a type in 64 bits; none where the type has no floating-point numbers.
pub(crate) fn reals(ty: DataType, bytes: &[u8]) -> Vec<f64> {
    match ty {
        DataType::FLOAT => widened(bytes, |x: f32| x.into()),
        DataType::DOUBLE => widened(bytes, |x: f64| x),
        DataType::FLOAT16 => widened(bytes, f16::to_f64),
        DataType::BFLOAT16 => widened(bytes, bf16::to_f64),
        _ => Vec::new(),
    }
}

/// Elements of a type of integers or truth values (0 and 1); none where it is another type.
pub(crate) fn integers(ty: DataType, bytes: &[u8]) -> Vec<i128> {
    match ty.0 {
        2 => widened(bytes, |x: u8| x.into()),
        9 => widened(bytes, |x: u8| i128::from(x != 0)),
        3 => widened(bytes, |x: i8| x.into()),
        4 => widened(bytes, |x: u16| x.into()),
        5 => widened(bytes, |x: i16| x.into()),
        6 => widened(bytes, |x: i32| x.into()),
        7 => widened(bytes, |x: i64| x.into()),
        12 => widened(bytes, |x: u32| x.into()),
        13 => widened(bytes, |x: u64| x.into()),
        _ => Vec::new(),
    }
}

fn widened<T: bytemuck::Pod, W>(bytes: &[u8], wide: impl Fn(T) -> W) -> Vec<W> {
    let elements: &[T] = bytemuck::cast_slice(bytes);
    elements.iter().map(|&element| wide(element)).collect()
}

impl Cpu {
    /// Executes one operation; no output lies where an input does.
    ///
    /// # Errors
    /// Where data does not fit the operation, or there is no memory for the outputs.
    pub(crate) fn execute_apart(
        &self,
        op: &Op,
        inputs: &[Option<&Held>],
        outputs: &[Option<TensorType>],
        context: &StepContext,
    ) -> Result<Vec<Option<Held>>, String> {
        let no_memory = || "there is no memory to check it".to_owned();
        let types: Vec<_> = { inputs.iter() }.map(|i| i.map(|i| &i.ty)).collect();
        let written: Vec<_> = outputs.iter().map(Option::as_ref).collect();
        let bytes = self.workspace(op, &types, &written);
        let mut workspace = Memory::new(bytes).ok_or_else(no_memory)?;
        let mut held = Vec::with_capacity(outputs.len());
        for ty in outputs {
            held.push(match ty {
                Some(ty) => Some(Held::zeros(ty).ok_or_else(no_memory)?),
                None => None,
            });
        }
        let mut call = Call {
            inputs: std::array::from_fn(|_| None),
            outputs: std::array::from_fn(|_| None),
            workspace: &mut workspace.bytes_mut()[..bytes],
        };
        for (to, input) in call.inputs.iter_mut().zip(inputs) {
            *to = input.map(|input| Input {
                ty: &input.ty,
                data: Data::Shared(input.bytes()),
            });
        }
        for ((to, held), ty) in call.outputs.iter_mut().zip(&mut held).zip(outputs) {
            if let (Some(held), Some(ty)) = (held, ty) {
                *to = Some(Output {
                    ty,
                    bytes: held.bytes_mut(),
                });
            }
        }
        self.pool.install(|| execute(op, call, context))?;
        Ok(held)
    }
}
