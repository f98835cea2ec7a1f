//! An expression in the making.

use super::{
    Binary, Class, Comparison, Elementwise, Expression, Instruction, Load, Operator, Register,
    Unary,
};
use crate::lower::{Lowering, Refusal};
use crate::ops::Op;
use crate::program::{Source, TensorId};
use crate::tensor::Tensor;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// An expression in the making: instructions are added one by one.
///
/// Arithmetic on narrow floating-point types is done in 32 bits; a conversion goes back.
pub struct Draft {
    shape: Vec<usize>,
    inputs: Vec<TensorId>,
    loads: Vec<Load>,
    code: Vec<Instruction>,
}

impl Draft {
    /// An empty expression over a shape.
    pub fn new(shape: Vec<usize>) -> Self {
        Draft {
            shape,
            inputs: Vec::new(),
            loads: Vec::new(),
            code: Vec::new(),
        }
    }

    fn push(&mut self, operator: Operator, ty: DataType, arguments: &[Register]) -> Register {
        let mut all = [0; 3];
        all[..arguments.len()].copy_from_slice(arguments);
        self.code.push(Instruction {
            operator,
            ty,
            arguments: all,
        });
        (self.code.len() - 1) as Register
    }

    /// The type of a value.
    pub fn ty(&self, value: Register) -> DataType {
        self.code[usize::from(value)].ty
    }

    /// The bits of a value that is a constant.
    pub fn immediate(&self, value: Register) -> Option<u64> {
        match self.code[usize::from(value)].operator {
            Operator::Immediate(bits) => Some(bits),
            _ => None,
        }
    }

    /// Reads a tensor, broadcast to the expression's shape; a constant of one element becomes part of
    /// the code.
    ///
    /// # Errors
    /// [`Refusal`] where the tensor's type is not for arithmetic, or its shape does not fit.
    pub fn load(&mut self, lowering: &Lowering<'_>, tensor: TensorId) -> Result<Register, Refusal> {
        let ty = lowering.ty(tensor);
        if Class::of(ty.data_type).is_none() {
            return Err(Refusal(format!(
                "{ty}: expected elements that can be computed with"
            )));
        }
        if ty.elements() == 1
            && let Some(constant) = constant(lowering, tensor)
            && let Some(bits) = bits(&constant)
            && ty.shape.len() <= self.shape.len()
        {
            return Ok(self.push(Operator::Immediate(bits), ty.data_type, &[]));
        }
        let misfit = || Refusal(format!("{ty} cannot be broadcast to {:?}", self.shape));
        let missing = (self.shape.len())
            .checked_sub(ty.shape.len())
            .ok_or_else(misfit)?;
        let mut strides = ty.strides();
        for (axis, &size) in ty.shape.iter().enumerate() {
            if size == 1 {
                strides[axis] = 0;
            } else if size != self.shape[missing + axis] {
                return Err(misfit());
            }
        }
        strides.splice(0..0, std::iter::repeat_n(0, missing));
        let known = self.inputs.iter().position(|&input| input == tensor);
        let input = known.unwrap_or_else(|| {
            self.inputs.push(tensor);
            self.inputs.len() - 1
        });
        let load = Load {
            input,
            ty: ty.data_type,
            strides,
            offset: 0,
        };
        if let Some(same) = self.loads.iter().position(|other| *other == load) {
            let operator = Operator::Load(same as u16);
            if let Some(place) = self.code.iter().position(|i| i.operator == operator) {
                return Ok(place as Register);
            }
        }
        self.loads.push(load);
        let operator = Operator::Load((self.loads.len() - 1) as u16);
        Ok(self.push(operator, ty.data_type, &[]))
    }

    /// A constant.
    pub fn number(&mut self, ty: DataType, number: f64) -> Register {
        let bits = match Class::of(ty) {
            Some(Class::F64) => number.to_bits(),
            Some(Class::I64) => (number as i64) as u64,
            Some(Class::U64) => number as u64,
            Some(Class::Bool) => u64::from(number != 0.0),
            Some(Class::F32) | None => u64::from((number as f32).to_bits()),
        };
        self.push(Operator::Immediate(bits), ty, &[])
    }

    /// A value in another type; itself where it has that type.
    pub fn convert(&mut self, value: Register, ty: DataType) -> Register {
        if self.ty(value) == ty {
            return value;
        }
        self.push(Operator::Convert, ty, &[value])
    }

    /// A value of a narrow floating-point type in 32 bits, any other as it is.
    pub fn widen(&mut self, value: Register) -> Register {
        let ty = computed(self.ty(value));
        self.convert(value, ty)
    }

    /// A function of one number, computed in that number's type.
    pub fn unary(&mut self, unary: Unary, value: Register) -> Register {
        let ty = match unary {
            Unary::IsNan => DataType::BOOL,
            _ => self.ty(value),
        };
        self.push(Operator::Unary(unary), ty, &[value])
    }

    /// A function of two numbers, in the type of the first.
    pub fn binary(&mut self, binary: Binary, a: Register, b: Register) -> Register {
        self.push(Operator::Binary(binary), self.ty(a), &[a, b])
    }

    /// The sum.
    pub fn add(&mut self, a: Register, b: Register) -> Register {
        self.binary(Binary::Add, a, b)
    }

    /// The difference.
    pub fn sub(&mut self, a: Register, b: Register) -> Register {
        self.binary(Binary::Sub, a, b)
    }

    /// The product.
    pub fn mul(&mut self, a: Register, b: Register) -> Register {
        self.binary(Binary::Mul, a, b)
    }

    /// The sum with a constant.
    pub fn plus(&mut self, a: Register, number: f64) -> Register {
        let number = self.number(self.ty(a), number);
        self.add(a, number)
    }

    /// The product with a constant.
    pub fn times(&mut self, a: Register, number: f64) -> Register {
        let number = self.number(self.ty(a), number);
        self.mul(a, number)
    }

    /// A comparison of two numbers of one type.
    pub fn compare(&mut self, comparison: Comparison, a: Register, b: Register) -> Register {
        self.push(Operator::Compare(comparison), DataType::BOOL, &[a, b])
    }

    /// `a` where a boolean is true, and else `b`.
    pub fn select(&mut self, condition: Register, a: Register, b: Register) -> Register {
        self.push(Operator::Select, self.ty(a), &[condition, a, b])
    }

    /// Adds the operation to the program, with what it writes.
    ///
    /// # Errors
    /// [`Refusal`] where the expression is too large.
    pub fn emit(
        mut self,
        lowering: &mut Lowering<'_>,
        stores: &[(Register, TensorId)],
    ) -> Result<(), Refusal> {
        let mut registers = Vec::new();
        let mut outputs = Vec::new();
        for &(value, tensor) in stores {
            let ty = lowering.ty(tensor);
            if Class::of(ty.data_type).is_none() || ty.shape != self.shape {
                return Err(Refusal(format!(
                    "the output is {ty}: expected elements that can be computed with in the shape {:?}",
                    self.shape
                )));
            }
            registers.push(self.convert(value, ty.data_type));
            outputs.push(Some(tensor));
        }
        let expression =
            Expression::new(self.shape, self.loads, self.code, registers).ok_or_else(|| {
                Refusal::new("more operands or broadcast dimensions than an expression holds")
            })?;
        let inputs = self.inputs.into_iter().map(Some).collect();
        lowering.emit(
            Op::Elementwise(Elementwise::Expression(expression)),
            inputs,
            outputs,
        );
        Ok(())
    }
}

/// The type that is computed in for a type of the graph.
pub fn computed(ty: DataType) -> DataType {
    match Class::of(ty) {
        Some(Class::F32) => DataType::FLOAT,
        _ => ty,
    }
}

/// A tensor that is a constant.
fn constant(lowering: &Lowering<'_>, mut tensor: TensorId) -> Option<Tensor> {
    loop {
        match &lowering.value(tensor).source {
            Source::Constant(constant) => return Some(constant.clone()),
            Source::View(of) => tensor = *of,
            _ => return None,
        }
    }
}

/// The only element of a tensor, as the bits of its class.
pub fn bits(tensor: &Tensor) -> Option<u64> {
    let bytes = &tensor.bytes[..];
    let narrow = |x: f32| u64::from(x.to_bits());
    let signed = |x: i64| x as u64;
    Some(match (tensor.data_type.0, bytes) {
        (1, &[a, b, c, d]) => u64::from(u32::from_le_bytes([a, b, c, d])),
        (10, &[a, b]) => narrow(f16::from_le_bytes([a, b]).to_f32()),
        (16, &[a, b]) => narrow(bf16::from_le_bytes([a, b]).to_f32()),
        (7 | 11 | 13, bytes) => u64::from_le_bytes(bytes.try_into().ok()?),
        (2, &[a]) => u64::from(a),
        (3, &[a]) => signed(i64::from(a as i8)),
        (9, &[a]) => u64::from(a != 0),
        (4, &[a, b]) => u64::from(u16::from_le_bytes([a, b])),
        (5, &[a, b]) => signed(i64::from(i16::from_le_bytes([a, b]))),
        (6, &[a, b, c, d]) => signed(i64::from(i32::from_le_bytes([a, b, c, d]))),
        (12, &[a, b, c, d]) => u64::from(u32::from_le_bytes([a, b, c, d])),
        _ => return None,
    })
}
