//! The operation of the family: instructions for every element of a shape.

use velora_graph::shapes::DataType;

/// The most loads of one expression.
pub const MAX_LOADS: usize = 24;

/// The most dimensions after neighbours were merged where possible.
pub const MAX_RANK: usize = 8;

/// The most values that are kept at once while an expression is executed.
pub const MAX_SLOTS: usize = 32;

/// A value of an expression: the position of the instruction that makes it.
pub type Register = u16;

/// A small program, executed for every element of a shape.
///
/// Values are in static single assignment: instruction `i` makes value `i`, and reads earlier ones.
/// Results do not depend on what else is in the expression: every value is rounded to its type.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    /// The dimensions that are iterated over; outputs are dense and row-major in it. Neighbours are
    /// merged where all loads allow it, so it has none for a single element.
    pub shape: Vec<usize>,
    /// How inputs are read.
    pub loads: Vec<Load>,
    /// What is done.
    pub code: Vec<Instruction>,
    /// By output: the value that is written.
    pub stores: Vec<Register>,
    /// By instruction: where an interpreter may keep its value. Values with the same place do not live
    /// at once, and a result never lies where its operands do.
    pub slots: Vec<u8>,
}

/// How an input is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The input's position.
    pub input: usize,
    /// Its element type.
    pub ty: DataType,
    /// By dimension of the expression: the step in elements, 0 where all positions see the same.
    pub strides: Vec<usize>,
    /// The element at the first position.
    pub offset: usize,
}

/// One step for an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub operator: Operator,
    /// The type of the result, to which it is rounded or wrapped.
    pub ty: DataType,
    /// The operands, as many as the operator has.
    pub arguments: [Register; 3],
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Reads an input, by the number of the load.
    Load(u16),
    /// A constant: the bits of a number of the result's class.
    Immediate(u64),
    /// The operand in the result's type.
    Convert,
    /// The second operand where the first, a boolean, is true, and else the third.
    Select,
    /// A function of one number.
    Unary(Unary),
    /// A function of two numbers of one class.
    Binary(Binary),
    /// A boolean from two numbers of one class.
    Compare(Comparison),
}

/// Functions of one number, with a result of the same class unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// -x; wraps for integers.
    Neg,
    /// |x|; wraps for integers.
    Abs,
    /// -1, 0 or 1; NaN for NaN.
    Sign,
    /// Booleans: the other one. Integers: all bits flipped.
    Not,
    /// The square root.
    Sqrt,
    /// 1 / x.
    Reciprocal,
    /// The exponential.
    Exp,
    /// The natural logarithm.
    Log,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Tangent of radians.
    Tan,
    /// Inverse sine.
    Asin,
    /// Inverse cosine.
    Acos,
    /// Inverse tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// Hyperbolic tangent.
    Tanh,
    /// Inverse hyperbolic sine.
    Asinh,
    /// Inverse hyperbolic cosine.
    Acosh,
    /// Inverse hyperbolic tangent.
    Atanh,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// log(1 + exp(x)).
    Softplus,
    /// The error function.
    Erf,
    /// The next integer below.
    Floor,
    /// The next integer above.
    Ceil,
    /// The nearest integer, the even one of two.
    Round,
    /// Whether it is no number: a boolean.
    IsNan,
}

/// Functions of two numbers of the result's class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// The sum; wraps for integers.
    Add,
    /// The difference; wraps for integers.
    Sub,
    /// The product; wraps for integers.
    Mul,
    /// The quotient; toward zero for integers, 0 for an integer divided by 0.
    Div,
    /// The remainder with the sign of the divisor; 0 for an integer modulo 0.
    Mod,
    /// The remainder with the sign of the dividend; 0 for an integer modulo 0.
    Rem,
    /// The power. Integers wrap; a negative exponent gives the truncated quotient, 0 for base 0.
    Pow,
    /// The lesser; NaN where one is NaN.
    Min,
    /// The greater; NaN where one is NaN.
    Max,
    /// Conjunction, bit by bit for integers.
    And,
    /// Disjunction, bit by bit for integers.
    Or,
    /// Exclusive disjunction, bit by bit for integers.
    Xor,
    /// The bits of an unsigned integer moved up; 0 from the type's width on.
    ShiftLeft,
    /// The bits of an unsigned integer moved down; 0 from the type's width on.
    ShiftRight,
}

/// Comparisons of two numbers; false where one is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// a = b.
    Equal,
    /// a < b.
    Less,
    /// a ≤ b.
    LessOrEqual,
}

/// In which form values of a type are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 32-bit floating point: `float`, `float16` and `bfloat16`.
    F32,
    /// 64-bit floating point.
    F64,
    /// Signed 64-bit integers: all integers that fit.
    I64,
    /// `uint64`.
    U64,
    /// A byte: 0 is false.
    Bool,
}

impl Class {
    /// The class of a type; `None` for types that no element-wise operator of the runtime takes.
    pub fn of(ty: DataType) -> Option<Class> {
        Some(match ty.0 {
            1 | 10 | 16 => Class::F32,
            11 => Class::F64,
            2..=7 | 12 => Class::I64,
            13 => Class::U64,
            9 => Class::Bool,
            _ => return None,
        })
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Class::F32 => 4,
            Class::F64 | Class::I64 | Class::U64 => 8,
            Class::Bool => 1,
        }
    }
}

impl Operator {
    /// How many operands it has.
    pub fn arity(self) -> usize {
        match self {
            Operator::Load(_) | Operator::Immediate(_) => 0,
            Operator::Convert | Operator::Unary(_) => 1,
            Operator::Binary(_) | Operator::Compare(_) => 2,
            Operator::Select => 3,
        }
    }
}

impl Instruction {
    /// The operands.
    pub fn operands(&self) -> &[Register] {
        &self.arguments[..self.operator.arity()]
    }

    /// The class of the result; every type in an expression has one.
    pub fn class(&self) -> Class {
        Class::of(self.ty).unwrap_or(Class::F32)
    }
}

impl Load {
    /// Whether all positions see the same element.
    pub fn is_scalar(&self) -> bool {
        self.strides.iter().all(|&stride| stride == 0)
    }

    /// Whether the elements are those of an output in an output's order.
    pub fn is_dense(&self, shape: &[usize]) -> bool {
        let mut step = 1;
        self.offset == 0
            && (self.strides.iter().zip(shape).rev()).all(|(&stride, &size)| {
                let fits = stride == step;
                step *= size;
                fits
            })
    }

    /// Whether the rows of the innermost dimension are all the same, so that a value once read can be
    /// kept.
    pub fn repeats(&self) -> bool {
        let outer = self.strides.len().saturating_sub(1);
        self.is_scalar() || (outer > 0 && self.strides[..outer].iter().all(|&stride| stride == 0))
    }
}

impl Expression {
    /// Puts an expression together: drops what no output needs, merges dimensions, and finds slots.
    ///
    /// `None` where it is beyond the limits of this module.
    pub fn new(
        shape: Vec<usize>,
        loads: Vec<Load>,
        code: Vec<Instruction>,
        stores: Vec<Register>,
    ) -> Option<Self> {
        let mut expression = Expression {
            shape,
            loads,
            code,
            stores,
            slots: Vec::new(),
        };
        expression.merge_dimensions();
        expression.drop_dead();
        let fits = expression.loads.len() <= MAX_LOADS && expression.shape.len() <= MAX_RANK;
        (fits && expression.find_slots()).then_some(expression)
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The word for listings: what it does where that is one thing.
    pub fn name(&self) -> &'static str {
        let mut work = (self.code.iter())
            .filter(|i| !matches!(i.operator, Operator::Load(_) | Operator::Immediate(_)));
        match (work.next(), work.next()) {
            (None, _) => "Copy",
            (Some(instruction), None) => match instruction.operator {
                Operator::Convert => "Cast",
                Operator::Select => "Where",
                Operator::Binary(Binary::Add) => "Add",
                Operator::Binary(Binary::Sub) => "Sub",
                Operator::Binary(Binary::Mul) => "Mul",
                Operator::Binary(Binary::Div) => "Div",
                _ => "Elementwise",
            },
            _ => "Elementwise",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (output, &register) in self.stores.iter().enumerate() {
            let bits = self.code[usize::from(register)].ty.bits();
            for load in &self.loads {
                let same = self.loads.iter().filter(|other| other.input == load.input);
                if load.ty.bits() == bits
                    && same.clone().all(|load| load.is_dense(&self.shape))
                    && !pairs.contains(&(output, load.input))
                {
                    pairs.push((output, load.input));
                }
            }
        }
        pairs
    }

    /// Drops instructions and loads that no store needs; inputs keep their positions.
    fn drop_dead(&mut self) {
        let mut live = vec![false; self.code.len()];
        for &store in &self.stores {
            live[usize::from(store)] = true;
        }
        for place in (0..self.code.len()).rev() {
            if live[place] {
                for &operand in self.code[place].operands() {
                    live[usize::from(operand)] = true;
                }
            }
        }
        let mut renamed: Vec<Register> = vec![0; self.code.len()];
        let mut loads = Vec::new();
        let mut code = Vec::new();
        for (place, instruction) in self.code.iter().enumerate() {
            if !live[place] {
                continue;
            }
            let mut instruction = *instruction;
            for argument in &mut instruction.arguments[..instruction.operator.arity()] {
                *argument = renamed[usize::from(*argument)];
            }
            if let Operator::Load(load) = &mut instruction.operator {
                loads.push(self.loads[usize::from(*load)].clone());
                *load = (loads.len() - 1) as u16;
            }
            renamed[place] = code.len() as Register;
            code.push(instruction);
        }
        for store in &mut self.stores {
            *store = renamed[usize::from(*store)];
        }
        (self.loads, self.code) = (loads, code);
    }

    /// Drops dimensions of size 1 and makes one of two where all loads allow it.
    fn merge_dimensions(&mut self) {
        if self.shape.contains(&0) {
            self.shape = vec![0];
            for load in &mut self.loads {
                load.strides = vec![1];
            }
            return;
        }
        let mut axis = 0;
        while axis < self.shape.len() {
            let size = self.shape[axis];
            let merges = axis > 0
                && (self.loads.iter())
                    .all(|load| load.strides[axis - 1] == load.strides[axis] * size);
            if size == 1 {
                self.shape.remove(axis);
                self.loads.iter_mut().for_each(|load| {
                    load.strides.remove(axis);
                });
            } else if merges {
                self.shape[axis] *= self.shape.remove(axis - 1);
                self.loads.iter_mut().for_each(|load| {
                    load.strides.remove(axis - 1);
                });
            } else {
                axis += 1;
            }
        }
    }

    /// Gives every value a slot; false where there are too few.
    fn find_slots(&mut self) -> bool {
        let end = self.code.len();
        let mut last: Vec<usize> = (0..end).collect();
        for (place, instruction) in self.code.iter().enumerate() {
            for &operand in instruction.operands() {
                last[usize::from(operand)] = place;
            }
            let kept = match instruction.operator {
                Operator::Immediate(_) => true,
                Operator::Load(load) => self.loads[usize::from(load)].repeats(),
                _ => false,
            };
            if kept {
                last[place] = end;
            }
        }
        for &store in &self.stores {
            last[usize::from(store)] = end;
        }
        // A kept value is filled once and must outlive the tiles: its slot is nobody else's.
        let kept: Vec<bool> = (self.code.iter())
            .map(|instruction| match instruction.operator {
                Operator::Immediate(_) => true,
                Operator::Load(load) => self.loads[usize::from(load)].repeats(),
                _ => false,
            })
            .collect();
        let own = kept.iter().filter(|&&kept| kept).count();
        let mut free_from = vec![0usize; own];
        let mut next_own = 0;
        self.slots.clear();
        for place in 0..end {
            let slot = if kept[place] {
                next_own += 1;
                next_own - 1
            } else {
                let free = (own..free_from.len()).find(|&slot| free_from[slot] <= place);
                let slot = free.unwrap_or_else(|| {
                    free_from.push(0);
                    free_from.len() - 1
                });
                // Free for results behind the last reader, not for that reader's own.
                free_from[slot] = last[place] + 1;
                slot
            };
            if slot >= MAX_SLOTS {
                return false;
            }
            self.slots.push(slot as u8);
        }
        true
    }
}
