//! The text of a kernel for an expression.
//!
//! A thread computes four neighbours along the innermost dimension where its size allows that, with loads
//! of four elements at once where they lie side by side. Sizes and strides of all but the outermost dimension
//! are numbers in the text.

use crate::ops::elementwise::{
    Binary, Class, Comparison, Expression, Instruction, Load, Operator, Unary,
};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use velora_graph::shapes::DataType;

/// Elements that a thread computes at once.
pub const VECTOR: usize = 4;

/// A generated kernel. Its parameters are the inputs, the outputs, and the number of elements.
pub struct Kernel {
    /// Its name, which is unique to its text.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The inputs of the operation that it reads, in the order of its parameters.
    pub inputs: Vec<usize>,
}

impl Kernel {
    /// The kernel of an expression.
    pub fn new(expression: &Expression) -> Self {
        let mut inputs: Vec<usize> = expression.loads.iter().map(|load| load.input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        let body = Writer {
            expression,
            inputs: &inputs,
        }
        .body();
        let digest = Sha256::digest(body.as_bytes());
        let mut name = "elementwise_".to_owned();
        for byte in &digest[..8] {
            let _ = write!(name, "{byte:02x}");
        }
        Kernel {
            text: format!("extern \"C\" __global__ void {name}{body}"),
            name,
            inputs,
        }
    }
}

/// Makes the text.
struct Writer<'e> {
    expression: &'e Expression,
    inputs: &'e [usize],
}

impl Writer<'_> {
    /// Parameters and body.
    fn body(&self) -> String {
        let shape = &self.expression.shape;
        let mut text = format!("({}u64 count) {{\n", self.parameters());
        // 32 bits where all places fit: divisions cost much less.
        let reach = |load: &Load| {
            let ends = load.strides.iter().zip(shape);
            load.offset + ends.map(|(stride, size)| stride * size).sum::<usize>()
        };
        let most = self.expression.loads.iter().map(reach).max().unwrap_or(0);
        let small = most.max(self.expression.elements()) < 1 << 30;
        let _ = writeln!(
            text,
            "  typedef {} Index;\n  const Index stride = (Index)gridDim.x * blockDim.x;\n  const Index start = \
             (Index)blockIdx.x * blockDim.x + threadIdx.x;",
            if small { "u32" } else { "u64" }
        );
        let inner = shape.last().copied().unwrap_or(1);
        // One dimension has a tail; of several, all rows must be whole.
        let vector = shape.len() == 1 || inner.is_multiple_of(VECTOR);
        if vector {
            text += "  const Index fours = (Index)(count / 4);\n  for (Index i = start; i < fours; i += stride) {\n    \
                     const Index at = i * 4;\n";
            self.indices(&mut text);
            self.vector(&mut text);
            text += "  }\n";
        }
        if shape.len() == 1 || !vector {
            let first = if vector { "fours * 4 + start" } else { "start" };
            let _ = writeln!(
                text,
                "  for (Index at = {first}; at < (Index)count; at += stride) {{"
            );
            self.indices(&mut text);
            self.scalar(&mut text);
            text += "  }\n";
        }
        text + "}\n"
    }

    fn parameters(&self) -> String {
        let mut text = String::new();
        for (number, input) in self.inputs.iter().enumerate() {
            let load = self
                .expression
                .loads
                .iter()
                .find(|load| load.input == *input);
            let ty = load.map_or("u8", |load| memory_type(load.ty));
            let _ = write!(text, "const {ty}* in{number}, ");
        }
        for (number, &store) in self.expression.stores.iter().enumerate() {
            let ty = memory_type(self.expression.code[usize::from(store)].ty);
            let _ = write!(text, "{ty}* out{number}, ");
        }
        text
    }

    /// The position along every dimension, `p0` the outermost, of the element `at`.
    fn indices(&self, text: &mut String) {
        let shape = &self.expression.shape;
        if shape.len() < 2 {
            return;
        }
        let mut rest = "at".to_owned();
        for axis in (1..shape.len()).rev() {
            let _ = writeln!(
                text,
                "    const Index q{axis} = {rest} / {}u, p{axis} = {rest} - q{axis} * {}u;",
                shape[axis], shape[axis]
            );
            rest = format!("q{axis}");
        }
        let _ = writeln!(text, "    const Index p0 = {rest};");
    }

    /// Where a load finds the element at the indices.
    fn place(&self, load: &Load) -> String {
        let shape = &self.expression.shape;
        if load.is_dense(shape) {
            return "at".to_owned();
        }
        let position = |axis: usize| match shape.len() {
            1 => "at".to_owned(),
            _ => format!("p{axis}"),
        };
        let mut terms: Vec<String> = (load.strides.iter().enumerate())
            .filter(|(_, stride)| **stride != 0)
            .map(|(axis, &stride)| match stride {
                1 => position(axis),
                stride => format!("{} * (Index){stride}u", position(axis)),
            })
            .collect();
        if load.offset != 0 || terms.is_empty() {
            terms.push(format!("(Index){}u", load.offset));
        }
        terms.join(" + ")
    }

    fn parameter(&self, load: &Load) -> usize {
        let place = self.inputs.iter().position(|&input| input == load.input);
        // Every load's input is in the list.
        place.unwrap_or(0)
    }

    /// The type that a load's parameter has.
    fn parameter_type(&self, load: &Load) -> DataType {
        let first = self.expression.loads.iter().find(|l| l.input == load.input);
        first.map_or(load.ty, |first| first.ty)
    }

    /// A load of one element at a place.
    fn element(&self, load: &Load, place: &str) -> String {
        let number = self.parameter(load);
        let source = match self.parameter_type(load) == load.ty {
            true => format!("in{number}"),
            false => format!(
                "reinterpret_cast<const {}*>(in{number})",
                memory_type(load.ty)
            ),
        };
        format!("{source}[{place}]")
    }

    fn scalar(&self, text: &mut String) {
        let read = |load: &Load| self.element(load, &self.place(load));
        self.code(text, "    ", &read);
        for (number, store) in self.expression.stores.iter().enumerate() {
            let ty = self.expression.code[usize::from(*store)].ty;
            let stored = stored(ty, &format!("r{store}"));
            let _ = writeln!(text, "    if (out{number}) out{number}[at] = {stored};");
        }
    }

    fn vector(&self, text: &mut String) {
        let loads = &self.expression.loads;
        for (number, load) in loads.iter().enumerate() {
            let ty = memory_type(load.ty);
            let place = self.place(load);
            let element = self.element(load, &place);
            match self.reads_four(load) {
                Reads::Side => {
                    let _ = writeln!(
                        text,
                        "    const Four<{ty}> l{number} = load_four(&{element});"
                    );
                }
                Reads::One => {
                    let _ = writeln!(text, "    const {ty} l{number} = {element};");
                }
                Reads::Apart => {
                    let _ = writeln!(text, "    const Index a{number} = {place};");
                }
            }
        }
        for (number, &store) in self.expression.stores.iter().enumerate() {
            let ty = memory_type(self.expression.code[usize::from(store)].ty);
            let _ = writeln!(text, "    Four<{ty}> s{number};");
        }
        text.push_str("#pragma unroll\n    for (int k = 0; k < 4; k++) {\n");
        let read = |load: &Load| {
            let number = loads.iter().position(|other| std::ptr::eq(other, load));
            let number = number.unwrap_or(0);
            match self.reads_four(load) {
                Reads::Side => format!("l{number}.at[k]"),
                Reads::One => format!("l{number}"),
                Reads::Apart => {
                    let step = load.strides.last().copied().unwrap_or(0);
                    self.element(load, &format!("a{number} + (Index)k * {step}u"))
                }
            }
        };
        self.code(text, "      ", &read);
        for (number, &store) in self.expression.stores.iter().enumerate() {
            let ty = self.expression.code[usize::from(store)].ty;
            let _ = writeln!(
                text,
                "      s{number}.at[k] = {};",
                stored(ty, &format!("r{store}"))
            );
        }
        text.push_str("    }\n");
        for number in 0..self.expression.stores.len() {
            let _ = writeln!(
                text,
                "    if (out{number}) store_four(out{number} + at, s{number});"
            );
        }
    }

    fn reads_four(&self, load: &Load) -> Reads {
        let (inner, outer) = match load.strides.split_last() {
            Some((inner, outer)) => (*inner, outer),
            None => (0, &[][..]),
        };
        let aligned = load.offset.is_multiple_of(VECTOR)
            && outer.iter().all(|stride| stride.is_multiple_of(VECTOR));
        match inner {
            0 => Reads::One,
            1 if aligned => Reads::Side,
            _ => Reads::Apart,
        }
    }

    /// The instructions for one element, whose loads `read` gives.
    fn code(&self, text: &mut String, indent: &str, read: &dyn Fn(&Load) -> String) {
        for (number, instruction) in self.expression.code.iter().enumerate() {
            let value = self.value(instruction, read);
            let ty = value_type(instruction.class());
            let _ = writeln!(text, "{indent}const {ty} r{number} = {value};");
        }
    }

    fn value(&self, instruction: &Instruction, read: &dyn Fn(&Load) -> String) -> String {
        let argument = |number: usize| format!("r{}", instruction.arguments[number]);
        let class_of = |number: usize| {
            let register = instruction.arguments[number];
            self.expression.code[usize::from(register)].class()
        };
        let raw = match instruction.operator {
            Operator::Load(load) => {
                let load = &self.expression.loads[usize::from(load)];
                return match Class::of(load.ty) {
                    Some(Class::Bool) => read(load),
                    // Integers of 8 bits without a sign share their type with booleans.
                    _ if load.ty == DataType::UINT8 => format!("(i64){}", read(load)),
                    _ => format!("value({})", read(load)),
                };
            }
            Operator::Immediate(bits) => return immediate(instruction.class(), bits),
            Operator::Convert => convert(class_of(0), instruction.class(), &argument(0)),
            Operator::Select => {
                return format!("{} != 0 ? {} : {}", argument(0), argument(1), argument(2));
            }
            Operator::Unary(unary) => {
                let x = argument(0);
                match unary {
                    Unary::IsNan => return format!("(u8)({x} != {x})"),
                    unary => format!("{}({x})", unary_name(unary)),
                }
            }
            Operator::Binary(binary) => {
                let (x, y) = (argument(0), argument(1));
                match binary {
                    Binary::ShiftLeft | Binary::ShiftRight => {
                        let bits = instruction.ty.bits().unwrap_or(64);
                        format!("{}({x}, {y}, {bits})", binary_name(binary))
                    }
                    binary => format!("{}({x}, {y})", binary_name(binary)),
                }
            }
            Operator::Compare(comparison) => {
                let (x, y) = match class_of(0) {
                    Class::Bool => (
                        format!("({} != 0)", argument(0)),
                        format!("({} != 0)", argument(1)),
                    ),
                    _ => (argument(0), argument(1)),
                };
                let sign = match comparison {
                    Comparison::Equal => "==",
                    Comparison::Less => "<",
                    Comparison::LessOrEqual => "<=",
                };
                return format!("(u8)({x} {sign} {y})");
            }
        };
        narrowed(instruction.ty, raw)
    }
}

/// How a thread that computes four elements reads an operand.
enum Reads {
    /// Four, side by side.
    Side,
    /// One for all four.
    One,
    /// Four, one by one.
    Apart,
}

/// The type of elements in memory.
fn memory_type(ty: DataType) -> &'static str {
    match ty.0 {
        1 => "float",
        3 => "i8",
        4 => "u16",
        5 => "i16",
        6 => "i32",
        7 => "i64",
        10 => "f16",
        11 => "double",
        12 => "u32",
        13 => "u64",
        16 => "bf16",
        // Booleans, and 8 bits without a sign.
        _ => "u8",
    }
}

/// The type of values.
fn value_type(class: Class) -> &'static str {
    match class {
        Class::F32 => "float",
        Class::F64 => "double",
        Class::I64 => "i64",
        Class::U64 => "u64",
        Class::Bool => "u8",
    }
}

/// A constant by its bits.
fn immediate(class: Class, bits: u64) -> String {
    match class {
        Class::F32 => format!("__uint_as_float({}u)", bits as u32),
        Class::F64 => format!("__longlong_as_double((i64){bits}ull)"),
        Class::I64 => format!("(i64){bits}ull"),
        Class::U64 => format!("{bits}ull"),
        Class::Bool => format!("(u8){}", bits as u8),
    }
}

fn convert(from: Class, to: Class, x: &str) -> String {
    match (from, to) {
        (Class::F32 | Class::F64, Class::I64) => format!("to_i64({x})"),
        (Class::F32 | Class::F64, Class::U64) => format!("to_u64({x})"),
        (_, Class::Bool) => format!("(u8)({x} != 0)"),
        (Class::Bool, to) => format!("({})({x} != 0)", value_type(to)),
        (from, to) if from == to => x.to_owned(),
        (_, to) => format!("({}){x}", value_type(to)),
    }
}

/// A value rounded to, or wrapped into, a type that is narrower than its class.
fn narrowed(ty: DataType, value: String) -> String {
    match ty.0 {
        10 => format!("as_f16({value})"),
        16 => format!("as_bf16({value})"),
        2..=6 | 12 => format!("(i64)({})({value})", memory_type(ty)),
        _ => value,
    }
}

/// A value as it lies in memory.
fn stored(ty: DataType, value: &str) -> String {
    match ty.0 {
        10 => format!("to_f16({value})"),
        16 => format!("to_bf16({value})"),
        _ => format!("({}){value}", memory_type(ty)),
    }
}

fn unary_name(unary: Unary) -> &'static str {
    match unary {
        Unary::Neg => "negative",
        Unary::Abs => "absolute",
        Unary::Sign => "sign",
        Unary::Not => "inverse",
        Unary::Sqrt => "square_root",
        Unary::Reciprocal => "reciprocal",
        Unary::Exp => "exponential",
        Unary::Log => "logarithm",
        Unary::Sin => "sine",
        Unary::Cos => "cosine",
        Unary::Tan => "tangent",
        Unary::Asin => "arcsine",
        Unary::Acos => "arccosine",
        Unary::Atan => "arctangent",
        Unary::Sinh => "hyperbolic_sine",
        Unary::Cosh => "hyperbolic_cosine",
        Unary::Tanh => "hyperbolic_tangent",
        Unary::Asinh => "area_sine",
        Unary::Acosh => "area_cosine",
        Unary::Atanh => "area_tangent",
        Unary::Sigmoid => "sigmoid",
        Unary::Softplus => "softplus",
        Unary::Erf => "error_function",
        Unary::Floor => "round_down",
        Unary::Ceil => "round_up",
        Unary::Round => "round_even",
        Unary::IsNan => "is_nan",
    }
}

fn binary_name(binary: Binary) -> &'static str {
    match binary {
        Binary::Add => "add",
        Binary::Sub => "subtract",
        Binary::Mul => "multiply",
        Binary::Div => "divide",
        Binary::Mod => "modulo",
        Binary::Rem => "remainder_of",
        Binary::Pow => "power",
        Binary::Min => "lesser",
        Binary::Max => "greater",
        Binary::And => "both",
        Binary::Or => "either",
        Binary::Xor => "one_of",
        Binary::ShiftLeft => "shift_up",
        Binary::ShiftRight => "shift_down",
    }
}
